"""What the scenarios of Theorem 1 share: flags, targets, and what claims ask of a run."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lrdyn.core.factorization import Weights
from lrdyn.core.initialization import gaussians, orthogonal, spaced_singular_values
from lrdyn.core.spectra import half_of_the_digits
from lrdyn.engine.claims import ROUNDING_SAFETY, tolerance
from lrdyn.engine.flags import Domain, Flag, at_least, between
from lrdyn.engine.statement import Outcome
from lrdyn.theorem1 import convergence
from lrdyn.theorem2.setting import DECAY, SIZE

SCALE = between(1e-6, 1e6)
"""Of targets: the search for critical points squares gradients, and the square of the last digit of
one, ``(eps sigma^{3/2})^2``, is no number of float32 from sigma = 1e-8 on."""

FLAGS = (
    Flag("rows", (6,), at_least(1), int, "k", "rows of the target Phi", (6,), shapes=True),
    Flag("cols", (4,), at_least(1), int, "d", "columns of the target Phi", (4, 8), shapes=True),
    Flag("rank", (2,), at_least(1), int, "r", "width of the hidden layers", (1, 2, 4), shapes=True),
    Flag("depth", (2, 3), at_least(2), int, "L", "number of layers", (2, 3, 4), shapes=True),
    Flag("weight_decay", (0.0, 0.1, 0.92), DECAY, float, "lambda",
         "weight decay of every layer", (0.0, 0.03, 0.1, 0.2, 0.35, 0.7, 0.92)),
    Flag("init_scale", (0.3, 1.0), SIZE, float, "eps",
         "init scale: Gaussian layers, entries of variance eps^2 / longer side", (0.1, 0.3, 1.0)),
    Flag("rank_deficit", (0, 2), at_least(0), int, "min(k, d) - rank Phi",
         "so many of the smallest singular values of the target are 0", (0, 2, 3)),
    Flag("tie", (0, 1), Domain("0 or 1", lambda x: x in (0, 1)), int, "",
         "1: a target with sigma_{r+1} = sigma_r"),
    Flag("learning_rate", (0.2,), SIZE, float, "eta", "step size for the loss 1/2 ||.||_F^2"),
    Flag("target_scale", (1.0,), SCALE, float, "sigma_1", "largest singular value of Phi"),
    Flag("steps", (4000,), at_least(1), int, "t", "steps of descent", (10_000,), swept=False),
)  # fmt: skip


def draw_target(
    key: Key[Array, ""], rows: int, cols: int, others: list[tuple[int, int]], *, rank: int,
    rank_deficit: Any, tie: Any, target_scale: Any,
) -> tuple[Float[Array, "k d"], list[Array]]:  # fmt: skip
    """Target with evenly spaced singular values, some zero, perhaps ``sigma_{r+1} = sigma_r``.

    And Gaussian matrices of other shapes in the same draw: each costs as much to compile as the
    descent.
    """
    count = min(rows, cols)
    left, right, *rest = gaussians(key, [(rows, count), (count, cols), *others])
    values, place = spaced_singular_values(count, target_scale), np.arange(count)
    values = jnp.where(place < count - rank_deficit, values, 0.0)
    values = jnp.where((place == rank) & (tie == 1), values[rank - 1], values)
    return (orthogonal(left) * values[None, :]) @ orthogonal(right), rest


def prepare(settings: dict[str, Any], given: set[str]) -> dict[str, Any]:
    """Leave out default deficits that small targets have no room for."""
    room = min(settings["rows"] + settings["cols"])
    fitting = tuple(d for d in settings["rank_deficit"] if d < room)
    return settings if "rank_deficit" in given else settings | {"rank_deficit": fitting}


def check(point: Mapping[str, Any]) -> None:
    """Refuse combinations outside the theorem."""
    rows, cols = point["rows"], point["cols"]
    sizes = f"with k = {rows} and d = {cols}"
    if point["rank"] > min(rows, cols):
        raise ValueError(f"--rank: got {point['rank']} {sizes}, wanted r <= min(k, d)")
    if point["rank_deficit"] >= min(rows, cols):
        raise ValueError(
            f"--rank-deficit: got {point['rank_deficit']} {sizes}, wanted less than min(k, d)"
        )


def numbers(point: Mapping[str, Any]) -> int:
    """Numbers of a case: target, product and its gradient, factors of their singular values."""
    return 3 * (point["rows"] + point["rank"]) * (point["cols"] + point["rank"])


FEW = 64
"""Units in the last place that the gradient may leave to go."""

# What the claims ask of a run -------------------------------------------------------------------


def decay_of(one: Outcome) -> float:
    """Lambda of the layer with most of it; a control changes it, the flag does not tell."""
    return float(np.max(one.predicted["decay"]))


def close(one: Outcome, largest: float) -> float:
    """Distance from which singular values are told apart: half of all digits."""
    return half_of_the_digits(one.dtype) * abs(largest)


def nearness(one: Outcome) -> float:
    """How near to its end theory must know a run to be, relative to the scale of the claim."""
    return tolerance("identity", one.dtype, steps=one.steps, size=one.size) / ROUNDING_SAFETY


def at_rest(one: Outcome, distance: float, scale: float) -> bool:
    """Whether a bound by the gradient leaves round-off alone, some digits of the last place.

    A remainder that a run still has to go would not scale with epsilon.
    """
    least = min(nearness(one), FEW * float(np.finfo(one.dtype).eps))
    return bool(distance <= least * scale)


def start_of(
    weights: Weights, left: Float[Array, "k n"], right: Float[Array, "n d"]
) -> dict[str, Array]:
    """Arrays of :class:`lrdyn.theorem1.Start`, from the singular vectors of the target."""
    first, last = weights[0], weights[-1]
    return {
        "start_modes": (left.T @ last + right @ first.T) / 2,
        "start_first": first @ first.T,
        "start_last": last.T @ last,
    }


START = ("start_modes", "start_first", "start_last")
"""Names of these arrays."""

START_DIMS = {
    "start_modes": ("target_index", "slot"),
    "start_first": ("slot", "other_slot"),
    "start_last": ("slot", "other_slot"),
}


def start(one: Outcome) -> convergence.Start:
    """The layers at the start."""
    return convergence.Start(*(one.predicted[name] for name in START))


def too_few(one: Outcome, number: float) -> str:
    """Whether the run has the number of steps after which theory wants it to be at its end."""
    if np.isinf(number):
        return "no curvature"
    return "" if one.steps >= number else "too few steps"
