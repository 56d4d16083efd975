"""A made-up scenario and arrays made by hand, for tests of the judge."""

import dataclasses
import json
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int

import lrdyn as lr
from lrdyn.verification.judging.judging import claim_entry, residuals
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.flags import Flag, at_least
from lrdyn.verification.stating.forms import Stated, Test
from lrdyn.verification.stating.statement import Claim, Scenario


class Made(NamedTuple):
    """What either side of a made-up run may have: a vector, and marks of one number."""

    value: Float[Array, "index"] = ABSENT
    other: Float[Array, "index"] = ABSENT
    lost: Int[Array, ""] = ABSENT
    """Step at which a run diverged, or -1."""
    amplified: Float[Array, ""] = ABSENT
    """Condition of theory's own run."""
    short: Int[Array, ""] = ABSENT
    outside: Int[Array, ""] = ABSENT
    extra: Float[Array, "extra_0"] = ABSENT


CLAIM = Claim[Made, Made](
    "value",
    "the two values agree",
    compares=lambda theory, run: (theory.value, run.value),
)


def stated(difference, **changes):
    """The claim that a number, made of an outcome, is small."""
    return dataclasses.replace(
        CLAIM,
        compares=None,
        form=lambda outcome: Stated(difference(outcome), 1.0),
        **changes,
        reads=lambda theory, run: (theory.value, run.value),
    )


def a_test(p, alternative=0.0):
    """A statistical claim of this p-value."""
    return dataclasses.replace(
        stated(lambda outcome: 0.0), kind="statistical", form=lambda outcome: Test(p, alternative)
    )


EVEN = {"even": lambda case: jnp.asarray(True)}
SCENARIO = Scenario[Any, Made, Made](
    "made", dict, claims=(CLAIM,), hypotheses=EVEN, steps="steps", theory=Made, measured=Made
)
TRAINED = dataclasses.replace(
    SCENARIO,
    id="learned",
    train=lambda case, keeper: Made(),
    diverged=lambda run: run.lost,
    claims=(),
)
"""The same scenario, whose run is a training."""
SIZES = Flag("size", (2, 4), at_least(1), int, "n", "numbers", shapes=True)
TOLERANCE = lr.tolerance("identity", "float64", steps=3, size=5)


def produced(predicted, measured, *, lengths=None, met: Any = True, size: Any = 5, **more):
    """Arrays of two seeds, as a sweep would leave them."""
    shape = (2,)
    arrays = {
        "value_predicted": (("seed", "index"), np.asarray(predicted)),
        "value_measured": (("seed", "index"), np.asarray(measured)),
        "longest_axis": ("seed", np.full(shape, size)),
        "met_even": ("seed", np.broadcast_to(met, shape)),
    }
    if lengths is not None:
        arrays["length_index"] = ("seed", np.asarray(lengths))
    return xr.Dataset(arrays | more, {"seed": [0, 1]}, {"fixed": json.dumps({"steps": 3})})


def judged(dataset, claim=CLAIM, scenario=SCENARIO):
    return claim_entry(claim, {"float64": residuals(claim, scenario, dataset, "float64")})


EXACT = np.array([[1.0, 2.0, 4.0], [1.0, 2.0, 4.0]])
