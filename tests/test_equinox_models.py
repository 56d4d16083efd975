"""Models with other leaves than arrays, against ``eqx.filter_value_and_grad`` and optax."""

from typing import NamedTuple

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lrdyn as lr
from lrdyn.claims import tolerance

STEPS, PERIOD, RANK = 7, 3, 2
SEEN = np.array([0, 3, STEPS])
KEY = jax.random.key(1)
SGD, MOMENTUM, ADAM = optax.sgd(0.1), optax.sgd(0.1, momentum=0.9), optax.adam(0.02)
X = jnp.asarray(np.random.default_rng(0).normal(size=(9, 4)))
Y = jnp.asarray(np.random.default_rng(1).normal(size=(9, 3)))


def network(key=KEY):
    """Two matrices, two vectors, and the activations, which are functions among the leaves."""
    return eqx.nn.MLP(4, 3, width_size=5, depth=1, activation=jnp.tanh, key=key)


def loss(model):
    return 0.5 * jnp.mean((jax.vmap(model)(X) - Y) ** 2)


def arrays(model):
    return eqx.filter(model, eqx.is_array)


def others(model):
    return jax.tree.leaves(eqx.filter(model, eqx.is_array, inverse=True))


def assert_same(found, expected):
    """Arrays to round-off, all other leaves the same objects."""
    chex.assert_trees_all_equal_structs(found, expected)
    chex.assert_trees_all_equal_dtypes(arrays(found), arrays(expected))
    # Adam divides by a root of what is left of 1 - 0.999^t: three digits.
    near = tolerance("identity", "float64", steps=STEPS, size=1000**2)
    chex.assert_trees_all_close(arrays(found), arrays(expected), rtol=0, atol=near)
    assert all(a is b for a, b in zip(others(found), others(expected), strict=True))


def snapshot(records, at):
    return jax.tree.map(lambda leaf: leaf[at] if eqx.is_array(leaf) else leaf, records)


@pytest.fixture(params=[MOMENTUM, ADAM], ids=["momentum", "adam"])
def optimizer(request):
    return request.param


# Loops of equinox and optax ---------------------------------------------------------------------


def whole(gradients):
    return [jnp.eye(G.shape[-1]) for G in gradients]


def top_factors(gradients):
    """Of a matrix its top right singular vectors as columns, the largest entry of each positive."""

    def factor(G):
        A = np.linalg.svd(G)[2][:RANK].T
        return A * np.sign(np.take_along_axis(A, np.abs(A).argmax(0)[None], 0))

    return [factor(G) if G.ndim == 2 else jnp.eye(len(G)) for G in gradients]


def by_hand(optimizer, model, cost=loss, *, factors=whole, restart=False):
    """The model at every step of GaLore: the optimiser sees G P of a gradient G.

    ReLoRA with a frozen P is the same, but that its optimiser starts anew with each P.
    """
    path, P, state = [model], [], None
    for t in range(STEPS):
        leaves, structure = jax.tree.flatten(eqx.filter_grad(cost)(path[-1]))
        P = factors(leaves) if t % PERIOD == 0 else P
        seen = jax.tree.map(jnp.matmul, leaves, P)
        if t == 0 or (restart and t % PERIOD == 0):
            state = optimizer.init(seen)
        updates, state = optimizer.update(seen, state)
        lifted = [U @ factor.T for U, factor in zip(updates, P, strict=True)]
        path.append(eqx.apply_updates(path[-1], jax.tree.unflatten(structure, lifted)))
    return path


def drawn_factors(t, weights):
    """Of a matrix a Gaussian factor, from the key of the refresh at t."""
    keys = jax.random.split(jax.random.fold_in(KEY, t), len(weights))

    def factor(key, W):
        return jax.random.normal(key, (W.shape[1], RANK)) / np.sqrt(W.shape[1])

    pairs = zip(keys, weights, strict=True)
    return [factor(key, W) if W.ndim == 2 else jnp.eye(len(W)) for key, W in pairs]


def adapters_by_hand(optimizer, model, *, once=False):
    """W + B P^T of a matrix and W + B of the rest, from B = 0: B and P are trained."""

    def adapted(pair, model):
        held, rest = eqx.partition(model, eqx.is_inexact_array)
        leaves, structure = jax.tree.flatten(held)
        parts = zip(leaves, *pair, strict=True)
        new = [W + (B @ P.T if W.ndim == 2 else B) for W, B, P in parts]
        return eqx.combine(jax.tree.unflatten(structure, new), rest)

    slope = eqx.filter_grad(lambda pair, model: loss(adapted(pair, model)))
    path, pair, state = [model], None, None
    for t in range(STEPS):
        if t == 0 or (t % PERIOD == 0 and not once):
            model = path[-1]
            weights = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
            P = drawn_factors(t, weights)
            pair = jax.tree.map(lambda W, factor: 0 * W @ factor, weights, P), P
            state = optimizer.init(pair)
        updates, state = optimizer.update(slope(pair, model), state)
        pair = eqx.apply_updates(pair, updates)
        path.append(adapted(pair, model))
    return path


METHODS = {
    "full": (lr.FULL, by_hand, {}),
    "galore": (lr.GALORE, by_hand, {"factors": top_factors}),
    "relora_frozen": (lr.RELORA_FROZEN, by_hand, {"factors": top_factors, "restart": True}),
    "relora": (lr.RELORA, adapters_by_hand, {}),
    "lora": (lr.LORA, adapters_by_hand, {"once": True}),
}


def descend(method, optimizer=MOMENTUM, **how):
    if method is not lr.FULL:
        how |= {"rank": RANK, "side": "right", "key": KEY, "period": 0 if method.once else PERIOD}
    return lr.low_rank_descent(method, loss, network(), optimizer, steps=SEEN, **how)


def assert_path(run, path):
    assert_same(run.params, path[-1])
    for at, t in enumerate(SEEN):
        assert_same(snapshot(run.records, at), path[t])


def test_training_is_a_loop(optimizer):
    assert_path(lr.simulate(loss, network(), optimizer, SEEN), by_hand(optimizer, network()))


@pytest.mark.parametrize("name", METHODS)
def test_algorithm_1_is_a_loop(name, optimizer):
    method, oracle, how = METHODS[name]
    assert_path(descend(method, optimizer), oracle(optimizer, network(), **how))


@pytest.mark.parametrize("method", [lr.RELORA_FROZEN, lr.LORA])
def test_a_linear_layer_of_equinox_may_stay_in_factors(method):
    """``eqx.nn.Linear`` uses its weight as ``weight @ x`` only."""
    apart = descend(method, network=lr.adapters.layered)
    assert_same(apart.params, descend(method).params)


# What a model may hold --------------------------------------------------------------------------


def test_a_recorder_is_given_the_whole_model():
    run = lr.simulate(loss, network(), SGD, SEEN, record=lambda net: ("f(X)", jax.vmap(net)(X)))
    assert run.records[0] == "f(X)"
    path = by_hand(SGD, network())
    expected = jnp.stack([jax.vmap(path[t])(X) for t in SEEN])
    chex.assert_trees_all_close(run.records[1], expected, rtol=1e-12)


def test_until_a_tolerance():
    how = {"check_every": STEPS, "max_steps": STEPS}
    found = lr.descent.simulate_until(loss, network(), SGD, 0.0, **how)
    assert_same(found.params, by_hand(SGD, network())[-1])


class Mixed(NamedTuple):
    weight: jax.Array
    order: jax.Array
    power: int
    name: str
    nothing: None
    random: jax.Array


MIXED = Mixed(jnp.array([1.0, -2.0, 3.0]), jnp.array([2, 0, 1]), 2, "cubic", None, KEY)


def mixed_loss(model):
    assert (model.name, model.power, model.nothing) == ("cubic", 2, None)
    noise = jax.random.normal(model.random, (3,))
    return jnp.sum((model.weight[model.order] - noise) ** model.power)


@pytest.mark.parametrize("compiled", [False, True])
def test_what_is_no_inexact_array_stays(compiled):
    def train(model):
        return lr.simulate(mixed_loss, model, SGD, np.array([0, STEPS]))

    run = (eqx.filter_jit(train) if compiled else train)(MIXED)
    expected = by_hand(SGD, MIXED, mixed_loss)[-1]
    chex.assert_trees_all_close(run.params.weight, expected.weight, rtol=1e-12)
    assert eqx.tree_equal(run.params._replace(weight=0), MIXED._replace(weight=0))
    seen = snapshot(run.records, 1)  # a number is stacked, as it is of any recorder
    assert eqx.tree_equal(seen._replace(weight=0, power=2), MIXED._replace(weight=0))
    assert run.records.power.tolist() == [2, 2]


def test_other_leaves_cost_nothing():
    """The program is that of the arrays alone."""

    def cost(model):
        return jnp.sum(model["w"] ** 2)

    def program(model):
        held, rest = eqx.partition(model, eqx.is_inexact_array)

        def train(held):
            whole = eqx.combine(held, rest)
            run = lr.simulate(cost, whole, ADAM, np.array([0, STEPS]), record=lambda model: ())
            return arrays(run.params), run.diverged_at

        return str(jax.make_jaxpr(train)(held))

    bare = {"w": jnp.ones(2)}
    assert program({"a": "text", "f": jnp.tanh, "n": None} | bare) == program(bare)


def test_an_ensemble_is_its_members():
    def train(model):
        return lr.simulate(loss, model, SGD, np.array([STEPS])).params

    models = eqx.filter_vmap(network)(jax.random.split(KEY, 2))
    found = eqx.filter_vmap(train)(models)
    for at in range(2):
        assert_same(snapshot(found, at), train(snapshot(models, at)))


# Refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "got"),
    [
        ({"order": jnp.array([1, 0]), "name": "x", "scale": 0.5}, "ArrayImpl, float, str"),
        ((None, ()), "none"),
    ],
)
def test_nothing_to_train(model, got):
    start = (lambda model: jnp.zeros(())), model, SGD
    message = f"params: got leaves of type {got}, wanted at least one array of floating-point"
    for train in (
        lambda: lr.simulate(*start, np.array([1])),
        lambda: lr.descent.simulate_until(*start, 0.1, check_every=1, max_steps=1),
        lambda: lr.low_rank_descent(lr.GALORE, *start, steps=(1,), rank=1, period=1),
    ):
        with pytest.raises(ValueError, match=message):
            train()
