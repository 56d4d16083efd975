"""Models with other leaves than arrays: each takes the path of its arrays alone."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lrdyn as lr
from tests.oracles import assert_close

STEPS = 7
SEEN = np.array([0, 3, STEPS])
KEY = jax.random.key(1)
SGD, ADAM = optax.sgd(0.1), optax.adam(0.02)
X = jnp.asarray(np.random.default_rng(0).normal(size=(9, 4)))
Y = jnp.asarray(np.random.default_rng(1).normal(size=(9, 3)))


def network(key=KEY):
    """Two matrices, two vectors, and the activations, which are functions among the leaves."""
    return eqx.nn.MLP(4, 3, width_size=5, depth=1, activation=jnp.tanh, key=key)


def loss(model):
    return 0.5 * jnp.mean((jax.vmap(model)(X) - Y) ** 2)


class Mixed(NamedTuple):
    weight: jax.Array
    order: jax.Array
    power: int
    name: str
    nothing: None
    random: jax.Array
    function: Callable


MIXED = Mixed(jnp.array([1.0, -2.0, 3.0]), jnp.array([2, 0, 1]), 2, "cubic", None, KEY, jnp.tanh)


def mixed_loss(model):
    assert (model.name, model.power, model.nothing) == ("cubic", 2, None)
    noise = jax.random.normal(model.random, (3,))
    return jnp.sum((model.function(model.weight[model.order]) - noise) ** model.power)


MODELS = {"network": (loss, network()), "mixed": (mixed_loss, MIXED)}


def descend(method, cost, model, **how):
    if method is not lr.FULL:
        how |= {"rank": 2, "side": "right", "key": KEY, "period": 0 if method.once else 3}
    return lr.low_rank_descent(method, cost, model, ADAM, steps=SEEN, **how)


def until(cost, model):
    how = {"check_every": STEPS, "max_steps": STEPS}
    return lr.core.simulate_until(cost, model, ADAM, 0.0, **how)


TRAININGS = {
    "simulate": lambda cost, model: lr.simulate(cost, model, ADAM, SEEN),
    "simulate_until": until,
    "full": partial(descend, lr.FULL),
    "galore": partial(descend, lr.GALORE),
    "relora_frozen": partial(descend, lr.RELORA_FROZEN),
    "relora": partial(descend, lr.RELORA),
    "lora": partial(descend, lr.LORA),
}


def trained(tree):
    return eqx.filter(tree, eqx.is_inexact_array)


def others(tree):
    return eqx.filter(tree, eqx.is_inexact_array, inverse=True)


def assert_same(found, expected):
    """What is trained to round-off, with its structure; all other leaves exactly."""
    chex.assert_trees_all_equal_structs(trained(found), trained(expected))
    assert_close(trained(found), trained(expected), steps=STEPS)
    assert eqx.tree_equal(others(found), others(expected))


def snapshot(records, at):
    return jax.tree.map(lambda leaf: leaf[at] if eqx.is_array(leaf) else leaf, records)


@pytest.mark.parametrize("training", TRAININGS)
@pytest.mark.parametrize("name", MODELS)
def test_a_model_takes_the_path_of_its_arrays(name, training):
    (cost, model), train = MODELS[name], TRAININGS[training]
    rest = others(model)
    found = train(cost, model)
    expected = train(lambda arrays: cost(eqx.combine(arrays, rest)), trained(model))
    assert_same(found.params, eqx.combine(expected.params, rest))
    # Records and losses too; an integer is stacked, as it is of any recorder.
    chex.assert_trees_all_equal_structs(trained(found), trained(expected))
    assert_close(trained(found), trained(expected), steps=STEPS)
    if training != "simulate_until":
        chex.assert_trees_all_equal_structs(found.records, model)
        words, of_model = (
            eqx.filter(tree, eqx.is_array_like, inverse=True) for tree in (found.records, model)
        )
        assert eqx.tree_equal(words, of_model)


@pytest.mark.parametrize("compiled", [False, True])
def test_what_is_no_inexact_array_stays(compiled):
    def train(model):
        return lr.simulate(mixed_loss, model, SGD, np.array([0, STEPS]))

    run = (eqx.filter_jit(train) if compiled else train)(MIXED)
    assert eqx.tree_equal(others(run.params), others(MIXED))
    seen = snapshot(run.records, 1)  # a number is stacked, as it is of any recorder
    assert eqx.tree_equal(others(seen._replace(power=2)), others(MIXED))
    assert run.records.power.tolist() == [2, 2]


@pytest.mark.parametrize("method", [lr.RELORA_FROZEN, lr.LORA])
def test_a_linear_layer_of_equinox_may_stay_in_factors(method):
    """``eqx.nn.Linear`` uses its weight as ``weight @ x`` only."""
    apart = descend(method, loss, network(), network=lr.adapters.layered)
    assert_same(apart.params, descend(method, loss, network()).params)


def test_a_recorder_is_given_the_whole_model():
    run = lr.simulate(loss, network(), SGD, SEEN, record=lambda net: ("f(X)", jax.vmap(net)(X)))
    path = lr.simulate(loss, network(), SGD, SEEN).records
    assert run.records[0] == "f(X)"
    for at, outputs in enumerate(run.records[1]):
        assert_close(outputs, jax.vmap(snapshot(path, at))(X), size=5)


def test_other_leaves_cost_nothing():
    """The program is that of the arrays alone."""

    def program(model):
        def train(arrays):
            whole = eqx.combine(arrays, others(model))
            cost, steps = (lambda model: jnp.sum(model["w"] ** 2)), np.array([0, STEPS])
            run = lr.simulate(cost, whole, ADAM, steps, record=lambda model: ())
            return trained(run.params), run.diverged_at

        return str(jax.make_jaxpr(train)(trained(model)))

    bare = {"w": jnp.ones(2)}
    assert program({"a": "text", "f": jnp.tanh, "n": None} | bare) == program(bare)


def test_an_ensemble_is_its_members():
    def train(model):
        return lr.simulate(loss, model, SGD, np.array([STEPS])).params

    models = eqx.filter_vmap(network)(jax.random.split(KEY, 2))
    found = eqx.filter_vmap(train)(models)
    for at in range(2):
        assert_same(snapshot(found, at), train(snapshot(models, at)))


@pytest.mark.parametrize("training", TRAININGS)
@pytest.mark.parametrize(
    ("model", "got"),
    [
        ({"order": jnp.array([1, 0]), "name": "x", "scale": 0.5}, "ArrayImpl, float, str"),
        ((None, ()), "none"),
    ],
)
def test_nothing_to_train(model, got, training):
    message = f"params: got leaves of type {got}, wanted at least one array of floating-point"
    with pytest.raises(ValueError, match=message):
        TRAININGS[training](lambda model: jnp.zeros(()), model)
