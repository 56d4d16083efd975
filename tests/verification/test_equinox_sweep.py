"""Models of equinox as cases: functions, strings, integers and None stand among their leaves."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

import lrdyn as lr
from lrdyn.statements import verify
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.statement import longest_axis
from tests.jobs import controls_job


class Network(eqx.Module):
    """A model with every kind of leaf that the library can meet."""

    mlp: eqx.nn.MLP
    norm: eqx.nn.LayerNorm
    first: Callable = jnp.abs
    name: str = "network"
    width: int = 8
    nothing: None = None

    def __call__(self, x):
        return self.mlp(self.norm(self.first(x)))


def network(key, width=8):
    return Network(eqx.nn.MLP(3, 2, width, 1, key=key), eqx.nn.LayerNorm(3), width=width)


made = eqx.filter_jit(network)


class Output(NamedTuple):
    """What a model returns."""

    output: Float[Array, "index"] = ABSENT


def case(key, *, width, rate):
    return {"model": network(key, width), "rate": rate, "x": jnp.arange(3.0)}


def by_hand(case):
    x = jnp.abs(case["x"])
    y = (x - jnp.mean(x)) / jnp.sqrt(jnp.var(x) + 1e-5)
    for layer in case["model"].mlp.layers[:-1]:
        y = jnp.maximum(layer.weight @ y + layer.bias, 0.0)
    last = case["model"].mlp.layers[-1]
    return Output(case["rate"] * (last.weight @ y + last.bias))


def moved(key, case, amount):
    model = eqx.tree_at(lambda m: m.norm.bias, case["model"], replace_fn=lambda b: b + amount)
    return case | {"model": model}


NETWORK = lr.Scenario[dict, Output, Output](
    "network",
    case,
    by_hand,
    lambda case: Output(case["rate"] * case["model"](case["x"])),
    theory=Output,
    measured=Output,
    claims=(
        lr.Claim(
            "output",
            "a model is its layers, one after another",
            compares=lambda theory, run: (theory.output, run.output),
        ),
    ),
    controls=(
        lr.Control(
            "moved",
            "a bias of the norm",
            "output",
            case=moved,
            breaks="no bias",
            amounts=(1e-3, 1.0),
        ),
        lr.Control(
            "linear",
            "no activation",
            "output",
            predict=lambda case: Output(case["rate"] * case["x"][:2]),
        ),
    ),
    hypotheses={"no bias": lambda case: jnp.all(case["model"].norm.bias == 0)},
)
FLAGS = (
    lr.Flag("width", (4, 8), lr.at_least(1), int, "n", "width", shapes=True),
    lr.Flag("rate", (0.5, 2.0), lr.POSITIVE, float, "c", "factor"),
)
THEOREM = lr.Theorem("network", "equinox", FLAGS, (NETWORK,))


@pytest.mark.parametrize("traced", [True, False])
def test_a_case_may_hold_a_model(traced):
    theorem = dataclasses.replace(THEOREM, scenarios=(dataclasses.replace(NETWORK, traced=traced),))
    settings = {"width": (4, 8) if traced else (8,), "rate": (0.5,)}
    found = verify(theorem, **settings, dtype="float32", seeds=1)
    holds = {claim["id"]: claim["holds"] for claim in found.verdict["claims"]}
    assert holds == {"output": True, "moved": True, "linear": True}
    assert found.results["/"]["longest_axis"].sel(width=8).values.tolist() == [[8]]


def test_without_a_move_the_model_is_itself():
    job = controls_job(THEOREM, NETWORK, NETWORK.controls[:1], (0,), "float64", amounts=(0.0,))
    (found,) = job.run().values()
    np.testing.assert_allclose(found["output_measured"], found["output_predicted"], rtol=1e-14)


def test_the_longest_axis_of_a_model():
    assert longest_axis(made(jax.random.key(0), 16)) == 16
    assert longest_axis({"name": "x" * 99, "size": 50, "none": None, "f": jnp.sin}) == 1


def test_the_condition_of_a_model():
    """Its weights are disturbed, its functions and integers stay."""
    model = made(jax.random.key(0))
    run = eqx.filter_jit(lambda model: 30 * model(jnp.arange(3.0)))
    result, condition = eqx.filter_jit(lr.with_condition)(run, model)
    assert result.shape == (2,)
    assert 1 <= condition < 100
