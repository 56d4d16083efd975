"""Theorem 1, landscape: every critical point of a small instance, and the Hessian at each."""

import dataclasses
from functools import partial
from math import comb
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lrdyn.core import linalg
from lrdyn.core.factorization import Weights, end_to_end, factorization_loss
from lrdyn.core.spectra import half_of_the_digits, singular_values
from lrdyn.engine.claims import on_scale, relative_difference, tolerance
from lrdyn.engine.statement import Claim, Control, Outcome, Scenario
from lrdyn.theorem1 import landscape, setting
from lrdyn.theorem1.shrinkage import decayed_loss

SEARCHES = 8
"""Random starts of the search for critical points."""

SEARCH_STEPS = 40
"""Steps of Newton's method; most starts need about 15."""

DEEP = (3, 4)
"""L of the origins that are no strict saddles."""

LARGEST = 10**7
"""Most entries of the Hessians of all critical points of an instance."""


class Instance(eqx.Module):
    """A two-layer factorisation with weight decay, and starts for a search."""

    target: Float[Array, "k d"]
    weight_decay: Float[Array, ""]
    starts: Float[Array, "starts params"]
    """All entries of both layers in a row, as the Hessian has them."""
    whole: bool = eqx.field(static=True)
    """Whether it has the size of the flags; one of 1 x 1 takes the place of what is too large."""

    @property
    def rank(self) -> int:
        """r, the width of the hidden layer."""
        return self.starts.shape[1] // sum(self.target.shape)

    @property
    def shape(self) -> tuple[int, int]:
        """(k, d)."""
        rows, columns = self.target.shape
        return rows, columns

    @property
    def sets(self) -> landscape.Sets:
        """All index sets."""
        return landscape.index_sets(min(self.target.shape), self.rank)

    @property
    def values(self) -> Float[Array, "n"]:
        """The singular values of the target."""
        return singular_values(self.target)

    @property
    def points(self) -> "Points":
        """The critical point of each set."""
        return landscape.critical_points(self.target, self.sets, self.weight_decay)

    def loss(self, weights: Weights) -> Float[Array, ""]:
        """The decayed loss, of layers of any depth."""
        return decayed_loss(weights, self.target, self.weight_decay)


def make_case(
    key: Key[Array, ""], *, rows: int, cols: int, rank: int, weight_decay: Any, target_scale: Any,
    rank_deficit: Any, tie: Any,
) -> Instance:  # fmt: skip
    """Draw an instance; start from layers about as large as those of the critical points."""
    whole = _hessian_entries(rows, cols, rank) <= LARGEST
    rows, cols, rank = (rows, cols, rank) if whole else (1, 1, 1)
    of_target = {"rank_deficit": rank_deficit, "tie": tie, "target_scale": target_scale}
    shape = (SEARCHES, rank * (rows + cols))
    target, (starts,) = setting.draw_target(key, rows, cols, [shape], rank=rank, **of_target)
    size = jnp.sqrt(jnp.asarray(target_scale, target.dtype) / rank)
    return Instance(target, jnp.asarray(weight_decay, target.dtype), size * starts, whole)


def _hessian_entries(rows: int, cols: int, rank: int) -> int:
    """Entries of the Hessians of all critical points."""
    sets = sum(comb(min(rows, cols), size) for size in range(rank + 1))
    return sets * (rank * (rows + cols)) ** 2


def margin(values: Float[Array, "n"], decay: Float[Array, ""]) -> Float[Array, ""]:
    """Least size of a negative eigenvalue at a saddle.

    The least distance of the ``sigma_i > lambda`` from lambda and from the next value.
    """
    rest = jnp.append(values[1:], 0.0)
    lower = jnp.maximum(rest, decay)
    return jnp.min(jnp.where(values > decay, values - lower, jnp.inf))


def separation(values: Float[Array, "n"], decay: Float[Array, ""]) -> Float[Array, ""]:
    """Least size of an eigenvalue that is not 0 at a critical point.

    Besides the margin: the least distance of all singular values from lambda, and of lambda from 0
    if it is not 0. Without decay a target that is not of full rank has separation 0.
    """
    distances = jnp.abs(values - decay)
    least = jnp.minimum(margin(values, decay), jnp.min(distances))
    return jnp.minimum(least, jnp.where(decay > 0, decay, jnp.inf))


def _of_points(
    case: Instance, values: Float[Array, "n"], every: dict[str, Array]
) -> dict[str, Array]:
    """Zeros for sets that belong to no critical point of their own."""
    valid = landscape.admissible(case.sets, values, case.weight_decay)
    return {
        name: jnp.where(valid.reshape(-1, *(1,) * (found.ndim - 1)), found, 0)
        for name, found in every.items()
    }


def predict(case: Instance) -> dict[str, Array]:
    """Values and spectra of all critical points in closed form."""
    sets, values, decay = case.sets, case.values, case.weight_decay
    kept = jnp.where(values > decay, np.arange(len(values)), -1)[: case.rank]
    is_best = jnp.all(jnp.sort(sets, axis=1) == jnp.sort(kept)[None, :], axis=1)
    every = {
        "critical_loss": landscape.critical_values(values, sets, decay),
        "smallest": landscape.smallest_curvature(values, sets, decay),
        "spectrum": landscape.hessian_spectrum(values, sets, case.shape, decay),
        "global": is_best.astype(jnp.int32),
        "admissible": jnp.ones(len(sets), jnp.int32),
    }
    first, last = case.points
    return _of_points(case, values, every) | {
        "deep_origin": jnp.zeros(len(DEEP), decay.dtype),
        "margin": margin(values, decay),
        "separation": separation(values, decay),
        "target_values": values,
        "family": last @ first,
    }


def measure(case: Instance) -> dict[str, Array]:
    """Gradients and Hessians by JAX at the points of the family, and a search for others."""
    origins = [jnp.max(jnp.abs(_hessian_of_the_origin(case, depth))) for depth in DEEP]
    every = _of_points(case, case.values, _at(case, case.points))
    return every | _searched(case) | {"deep_origin": jnp.stack(origins)}


Points = tuple[Float[Array, "sets r d"], Float[Array, "sets k r"]]


def _at(case: Instance, points: Points) -> dict[str, Array]:
    """Loss, gradient and Hessian at points."""
    spectra = jax.vmap(lambda layers: linalg.eigh(landscape.hessian(case.loss, layers))[0])(points)
    slopes = jax.vmap(jax.grad(case.loss))(points)
    return {
        "critical_loss": jax.vmap(case.loss)(points),
        "critical_gradient": jnp.maximum(*(jnp.max(jnp.abs(W), axis=(1, 2)) for W in slopes)),
        "smallest": spectra[:, 0],
        "spectrum": spectra,
    }


def _searched(case: Instance) -> dict[str, Array]:
    """Products of what is found from every start."""
    found = jax.vmap(partial(_search, case))(case.starts)
    return {"found": jax.vmap(end_to_end)(found.weights), "found_gradient": found.gradient}


def _search(case: Instance, start: Float[Array, "params"]) -> landscape.Found:
    (rows, columns), rank = case.shape, case.rank
    first, last = jnp.split(start, [rank * columns])
    layers = first.reshape(rank, columns), last.reshape(rows, rank)
    return landscape.find_critical_point(case.loss, layers, steps=SEARCH_STEPS)


def _hessian_of_the_origin(case: Instance, depth: int) -> Float[Array, "params params"]:
    (rows, columns), rank = case.shape, case.rank
    widths = (columns, *(rank,) * (depth - 1), rows)
    origin = tuple(jnp.zeros(shape) for shape in zip(widths[1:], widths[:-1], strict=True))
    return landscape.hessian(lambda weights: factorization_loss(weights, case.target), origin)


# Claims ----------------------------------------------------------------------------------------


def _scale(one: Outcome) -> float:
    return one.predicted["target_values"][0]


def _resolved(one: Outcome, name: str) -> bool:
    """Whether a distance is told from 0 by half of all digits."""
    return bool(one.predicted[name] > half_of_the_digits(one.dtype) * _scale(one))


def _gradient(one: Outcome) -> float:
    found = one.measured["critical_gradient"]
    return relative_difference(np.zeros_like(found), found, _scale(one) ** 1.5)


def _without_descent(one: Outcome) -> float:
    """Compare where the curvature has no negative value, told apart at half the margin."""
    curvature, there = one.measured["smallest"], one.predicted["admissible"]
    found = np.where((there > 0) & (curvature > -one.predicted["margin"] / 2), 1.0, 0.0)
    found[np.isnan(curvature + there)] = np.nan
    return relative_difference(one.predicted["global"], found)


def _converged(one: Outcome) -> np.ndarray:
    limit = tolerance("identity", one.dtype, size=one.size)
    return one.measured["found_gradient"] <= limit * _scale(one) ** 1.5


def _nothing_found(one: Outcome) -> str:
    return "" if np.any(_converged(one)) else "no search converged"


def _outside(one: Outcome) -> float:
    """Distance of what was found from the family, times separation / scale.

    A gradient g leaves a point within g / curvature of a critical one, and the least curvature is
    the separation.
    """
    family = one.predicted["family"][one.predicted["admissible"] > 0]
    gaps = np.abs(one.measured["found"][:, None] - family[None])
    nearest = np.min(np.max(gaps, axis=(2, 3)), axis=1)
    worst = np.max(np.where(_converged(one), nearest, 0.0))
    return float(worst * one.predicted["separation"] / _scale(one) ** 2)


CLAIMS = (
    Claim("critical_gradient",
          "at W_1 = (Sigma_S - lambda I)^{1/2} V_S^T, W_2 = U_S (Sigma_S - lambda I)^{1/2} the "
          "gradient is 0, for every S with |S| <= r and sigma_i > lambda in S (the formula is that "
          "of the points: the other side is 0)",
          residual=_gradient, reads=("critical_gradient", "target_values")),
    Claim("critical_loss",
          "the loss there is sum_S (lambda sigma_i - lambda^2/2) + sum_rest sigma_i^2/2"),
    Claim("spectrum",
          "all r (k + d) eigenvalues of the Hessian there are those of "
          "lrdyn.theorem1.hessian_spectrum"),
    Claim("smallest",
          "the smallest is the least of 0 (lambda = 0, or S not empty and r >= 2), 2 lambda and "
          "2 (sigma_i - lambda) (r = 1), min sigma(S) - max sigma(S^c), lambda - max sigma(S^c) "
          "(|S| < r)",
          # Rounding of a spectrum lives on the scale of its largest value.
          residual=on_scale("smallest", lambda one: np.max(one.predicted["spectrum"])),
          reads=("smallest", "spectrum")),
    Claim("global",
          "it is negative at all of them but one, S = {i <= r: sigma_i > lambda}: strict saddles",
          kind="exact", residual=_without_descent, applies=lambda one: _resolved(one, "margin"),
          reads=("global", "smallest", "admissible", "margin", "target_values")),
    Claim("search",
          "Newton's method from random starts finds no critical product outside the family",
          residual=_outside, applies=lambda one: _resolved(one, "separation"),
          undecided=_nothing_found,
          reads=("found", "found_gradient", "family", "admissible", "separation", "target_values")),
    Claim("deep_origin",
          "three layers and four, lambda = 0: the Hessian at the origin is 0, no strict saddle",
          residual=on_scale("deep_origin", _scale), reads=("deep_origin", "target_values")),
)  # fmt: skip


# Controls --------------------------------------------------------------------------------------


def _at_half_threshold(case: Instance) -> dict[str, Array]:
    points = landscape.critical_points(case.target, case.sets, case.weight_decay / 2)
    return _of_points(case, case.values, _at(case, points))


def _of_the_first_layer(case: Instance) -> dict[str, Array]:
    """Least curvature along W_1 alone, in which the loss is convex."""

    def smallest(first: Float[Array, "r d"], last: Float[Array, "k r"]) -> Float[Array, ""]:
        curvature = landscape.hessian(lambda weights: case.loss((*weights, last)), (first,))
        return linalg.eigh(curvature)[0][0]

    return _of_points(case, case.values, {"smallest": jax.vmap(smallest)(*case.points)})


def _found_without_decay(case: Instance) -> dict[str, Array]:
    return _searched(dataclasses.replace(case, weight_decay=0 * case.weight_decay))


def _with_decay(case: Instance, decay: Float[Array, ""]) -> dict[str, Array]:
    """Values and spectra of another decay, at the critical points of the right one."""
    sets, values = case.sets, case.values
    wrong = {
        "critical_loss": landscape.critical_values(values, sets, decay),
        "spectrum": landscape.hessian_spectrum(values, sets, case.shape, decay),
    }
    return _of_points(case, values, wrong)


def _without_spare_slots(case: Instance) -> dict[str, Array]:
    """Leave out lambda - max sigma(S^c), as if every S were full."""
    values = case.values
    inside = landscape.members(case.sets, len(values))
    least = jnp.min(jnp.where(inside, values[None], jnp.inf), axis=1)
    outside = jnp.max(jnp.where(inside, 0.0, values[None]), axis=1)
    return _of_points(case, values, {"smallest": jnp.minimum(least - outside, 0.0)})


def _of_two_layers(case: Instance) -> dict[str, Array]:
    """The Hessian at the origin of two layers, which have the eigenvalue -sigma_1 there."""
    slope = jnp.max(jnp.abs(_hessian_of_the_origin(case, 2)))
    return {"deep_origin": jnp.full(len(DEEP), slope)}


def _swapped(case: Instance) -> dict[str, Array]:
    """Claim the product of {1, ..., r - 1, r + 1} to be global."""
    swap = np.array([[*range(case.rank - 1), case.rank]])
    return {"global": jnp.all(case.sets == swap, axis=1).astype(jnp.int32)}


CONTROLS = (
    *(Control(f"{claim}_at_half_threshold", "points with threshold lambda/2", claim,
              measure=_at_half_threshold)
      for claim in ("critical_gradient", "critical_loss", "spectrum")),
    *(Control(f"{claim}_of_the_first_layer", "curvature along W_1 alone", claim,
              measure=_of_the_first_layer)
      for claim in ("smallest", "global")),
    Control[Instance](
        "critical_loss_half_threshold", "values with threshold lambda/2", "critical_loss",
        predict=lambda case: _with_decay(case, case.weight_decay / 2)),
    Control[Instance](
        "spectrum_without_decay", "spectra with lambda = 0", "spectrum",
        predict=lambda case: _with_decay(case, 0 * case.weight_decay)),
    Control("spare_slots_left_out", "without the eigenvalue lambda - max sigma(S^c)", "smallest",
            predict=_without_spare_slots),
    Control("swapped_index", "S = {1, ..., r - 1, r + 1} claimed global", "global",
            predict=_swapped),
    Control[Instance](
        "minimum_alone", "no critical point but the minimum", "search",
        predict=lambda case: {"admissible": predict(case)["global"]}),
    Control("found_without_decay", "critical points of lambda = 0", "search",
            measure=_found_without_decay),
    Control[Instance](
        "strict_deep_origin", "these origins claimed to be strict saddles", "deep_origin",
        predict=lambda case: {"deep_origin": jnp.full(len(DEEP), case.values[0])}),
    Control("origin_of_two_layers", "the Hessian of two layers at the origin", "deep_origin",
            measure=_of_two_layers),
)  # fmt: skip

_OF_SETS = ("critical_loss", "critical_gradient", "smallest", "global", "admissible")


CRITICAL_POINTS = Scenario[Instance](
    "critical_points", make_case, predict, measure, CLAIMS, CONTROLS,
    hypotheses={"few_critical_points": lambda case: jnp.asarray(case.whole)},
    dims={
        **dict.fromkeys(_OF_SETS, ("set",)),
        "spectrum": ("set", "eigenvalue"),
        "target_values": ("target_index",),
        "family": ("set", "row", "column"),
        "found": ("search", "row", "column"),
        "found_gradient": ("search",),
        "deep_origin": ("origin",),
    },
    # With a tie there are more critical points than these.
    narrow=lambda settings: settings | {"tie": (0,)},
    at={"weight_decay": 0.1, "depth": 2, "init_scale": 1.0},
    sides="closed forms over all index sets against JAX's gradient and Hessian; Newton's "
    "method from random starts for the search",
)  # fmt: skip
