"""Models with other leaves than arrays, against ``eqx.filter_value_and_grad`` and optax."""

from typing import Any, NamedTuple

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
KEY = jax.random.key(1)
OPTIMIZERS = {"momentum": optax.sgd(0.1, momentum=0.9), "adam": optax.adam(0.02)}
X = jnp.asarray(np.random.default_rng(0).normal(size=(9, 4)))
Y = jnp.asarray(np.random.default_rng(1).normal(size=(9, 3)))


def network(seed=0):
    """Two matrices, two vectors, and the activations, which are functions among the leaves."""
    return eqx.nn.MLP(4, 3, width_size=5, depth=1, activation=jnp.tanh, key=jax.random.key(seed))


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


@pytest.fixture(params=OPTIMIZERS)
def optimizer(request):
    return OPTIMIZERS[request.param]


# Plain training --------------------------------------------------------------------------------


def by_hand(optimizer, model, cost=loss):
    """The model at every step."""
    state, path = optimizer.init(eqx.filter(model, eqx.is_inexact_array)), [model]
    for _ in range(STEPS):
        _, gradients = eqx.filter_value_and_grad(cost)(model)
        updates, state = optimizer.update(gradients, state)
        model = eqx.apply_updates(model, updates)
        path.append(model)
    return path


def snapshot(records, at):
    return jax.tree.map(lambda leaf: leaf[at] if eqx.is_array(leaf) else leaf, records)


@pytest.mark.parametrize("train", [lr.simulate, lr.low_rank_descent])
def test_training_is_a_loop_of_equinox_and_optax(train, optimizer):
    how: dict[str, Any] = {"steps": np.array([0, 3, STEPS])}
    run = (
        lr.simulate(loss, network(), optimizer, **how)
        if train is lr.simulate
        else lr.low_rank_descent(lr.FULL, loss, network(), optimizer, **how)
    )
    path = by_hand(optimizer, network())
    assert_same(run.params, path[-1])
    for at, t in enumerate(how["steps"]):
        assert_same(snapshot(run.records, at), path[t])


def test_a_recorder_is_given_the_whole_model():
    at = np.array([0, STEPS])
    run = lr.simulate(
        loss, network(), optax.sgd(0.1), at, record=lambda model: ("f(X)", jax.vmap(model)(X))
    )
    assert run.records[0] == "f(X)"
    path = by_hand(optax.sgd(0.1), network())
    expected = jnp.stack([jax.vmap(path[t])(X) for t in at])
    chex.assert_trees_all_close(run.records[1], expected, rtol=1e-12)


def test_until_a_tolerance():
    found = lr.descent.simulate_until(
        loss, network(), optax.sgd(0.1), 0.0, check_every=STEPS, max_steps=STEPS
    )
    assert_same(found.params, by_hand(optax.sgd(0.1), network())[-1])


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
        return lr.simulate(mixed_loss, model, optax.sgd(0.1), np.array([0, STEPS]))

    run = (eqx.filter_jit(train) if compiled else train)(MIXED)
    expected = by_hand(optax.sgd(0.1), MIXED, mixed_loss)[-1]
    chex.assert_trees_all_close(run.params.weight, expected.weight, rtol=1e-12)
    assert eqx.tree_equal(run.params._replace(weight=0), MIXED._replace(weight=0))
    seen = snapshot(run.records, 1)  # a number is stacked, as it is of any recorder
    assert eqx.tree_equal(seen._replace(weight=0, power=2), MIXED._replace(weight=0))
    assert run.records.power.tolist() == [2, 2]


def test_other_leaves_cost_nothing():
    """The program is that of the arrays alone."""

    def program(model, cost):
        held, rest = eqx.partition(model, eqx.is_inexact_array)

        def train(held):
            run = lr.simulate(cost, eqx.combine(held, rest), optax.adam(0.1), np.array([0, STEPS]),
                              record=lambda model: ())  # fmt: skip
            return arrays(run.params), run.diverged_at

        return str(jax.make_jaxpr(train)(held))

    bare = program({"w": jnp.ones(2)}, lambda model: jnp.sum(model["w"] ** 2))
    amid = {"a": "text", "f": jnp.tanh, "n": None, "w": jnp.ones(2)}
    assert program(amid, lambda model: jnp.sum(model["w"] ** 2)) == bare


def test_an_ensemble_is_its_members():
    def train(model):
        return lr.simulate(loss, model, optax.sgd(0.1), np.array([STEPS])).params

    keys = jax.random.split(KEY, 2)
    draw = eqx.filter_vmap(lambda key: eqx.nn.MLP(4, 3, 5, 1, activation=jnp.tanh, key=key))
    found = eqx.filter_vmap(train)(draw(keys))
    for at in range(2):
        assert_same(snapshot(found, at), train(snapshot(draw(keys), at)))


# Algorithm 1 -----------------------------------------------------------------------------------


def top_factors(gradients):
    """Of a matrix its top right singular vectors as columns, the largest entry of each positive."""

    def factor(G):
        A = np.linalg.svd(G)[2][:RANK].T
        return A * np.sign(np.take_along_axis(A, np.abs(A).argmax(0)[None], 0))

    return [factor(G) if G.ndim == 2 else None for G in gradients]


def drawn_factors(t, weights):
    """Of a matrix a Gaussian factor, from the key of the refresh at t."""
    keys = jax.random.split(jax.random.fold_in(KEY, t), len(weights))
    return [
        jax.random.normal(key, (W.shape[1], RANK)) / np.sqrt(W.shape[1]) if W.ndim == 2 else None
        for key, W in zip(keys, weights, strict=True)
    ]


def galore_by_hand(optimizer, model):
    """What the optimiser sees of a matrix is G P; the rest it sees as it is."""
    state: Any = None
    P: list[Any] = []
    for t in range(STEPS):
        _, gradients = eqx.filter_value_and_grad(loss)(model)
        leaves, structure = jax.tree.flatten(gradients)
        if t % PERIOD == 0:
            P = top_factors(leaves)
        seen = [G if p is None else G @ p for G, p in zip(leaves, P, strict=True)]
        updates, state = optimizer.update(seen, optimizer.init(seen) if t == 0 else state)
        lifted = [U if p is None else U @ p.T for U, p in zip(updates, P, strict=True)]
        model = eqx.apply_updates(model, jax.tree.unflatten(structure, lifted))
    return model


def adapters_by_hand(optimizer, model, *, frozen=False, once=False):
    """W + B P^T of a matrix and W + B of the rest: B is trained from 0, and P unless frozen."""

    def adapted(pair):
        held, rest = eqx.partition(model, eqx.is_inexact_array)
        leaves, structure = jax.tree.flatten(held)
        parts = zip(leaves, *pair, strict=True)
        new = [W + B if P is None else W + B @ P.T for W, P, B in parts]
        return eqx.combine(jax.tree.unflatten(structure, new), rest)

    trained, fixed, state = None, None, None
    for t in range(STEPS):
        if t == 0 or (t % PERIOD == 0 and not once):
            model = adapted(eqx.combine(trained, fixed)) if t else model
            _, gradients = eqx.filter_value_and_grad(loss)(model)
            leaves = jax.tree.leaves(gradients)
            P = top_factors(leaves) if frozen else drawn_factors(t, leaves)
            B = [0 * (G if p is None else G @ p) for G, p in zip(leaves, P, strict=True)]
            none = [None] * len(P)
            trained, fixed = ((none, B), (P, none)) if frozen else ((P, B), (none, none))
            state = optimizer.init(trained)
        _, slopes = eqx.filter_value_and_grad(
            lambda trained, fixed=fixed: loss(adapted(eqx.combine(trained, fixed)))
        )(trained)
        updates, state = optimizer.update(slopes, state)
        trained = eqx.apply_updates(trained, updates)
    return adapted(eqx.combine(trained, fixed))


METHODS = {
    "galore": (lr.GALORE, galore_by_hand, {}),
    "relora_frozen": (lr.RELORA_FROZEN, adapters_by_hand, {"frozen": True}),
    "relora": (lr.RELORA, adapters_by_hand, {}),
    "lora": (lr.LORA, adapters_by_hand, {"once": True}),
}


def descend(method, model, optimizer=OPTIMIZERS["momentum"], **how):
    return lr.low_rank_descent(
        method, loss, model, optimizer, steps=(0, STEPS), rank=RANK, side="right", key=KEY,
        period=0 if method.once else PERIOD, **how,
    )  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_algorithm_1_is_a_loop_of_equinox_and_optax(name, optimizer):
    method, oracle, how = METHODS[name]
    run = descend(method, network(), optimizer)
    assert_same(run.params, oracle(optimizer, network(), **how))
    assert_same(snapshot(run.records, 0), network())


@pytest.mark.parametrize("method", [lr.RELORA_FROZEN, lr.LORA])
def test_a_linear_layer_of_equinox_may_stay_in_factors(method):
    """``eqx.nn.Linear`` uses its weight as ``weight @ x`` only."""
    apart = descend(method, network(), network=lr.adapters.layered)
    assert_same(apart.params, descend(method, network()).params)


# Refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "got"),
    [
        ({"order": jnp.array([1, 0]), "name": "x", "scale": 0.5}, "ArrayImpl, float, str"),
        ((None, ()), "none"),
    ],
)
def test_nothing_to_train(model, got):
    cost, rule = (lambda model: jnp.zeros(())), optax.sgd(0.1)
    message = f"params: got leaves of type {got}, wanted at least one array of floating-point"
    for train in (
        lambda: lr.simulate(cost, model, rule, np.array([1])),
        lambda: lr.descent.simulate_until(cost, model, rule, 0.1, check_every=1, max_steps=1),
        lambda: lr.low_rank_descent(lr.GALORE, cost, model, rule, steps=(1,), rank=1, period=1),
    ):
        with pytest.raises(ValueError, match=message):
            train()
