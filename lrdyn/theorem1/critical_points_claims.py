"""Theorem 1, landscape: every critical point of a small instance, and the Hessian at each.

With ``f = 1/2 ||W_2 W_1 - Phi||_F^2 + lambda/2 (||W_1||_F^2 + ||W_2||_F^2)`` and ``Phi = U Sigma
V^T``, the critical points are ``W_1 = (Sigma_S - lambda I)^{1/2} V_S^T``, ``W_2 = U_S (Sigma_S -
lambda I)^{1/2}`` up to a rotation in between, one for each set S of at most r indices with
``sigma_i > lambda``. All but S = {i <= r: sigma_i > lambda} are strict saddles.
"""

import dataclasses
from functools import partial
from math import comb
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from lrdyn.core import linalg
from lrdyn.core.factorization import Weights, end_to_end, factorization_loss
from lrdyn.core.spectra import half_of_the_digits, singular_values
from lrdyn.theorem1 import landscape, setting
from lrdyn.theorem1.shrinkage import decayed_loss
from lrdyn.verification.running.evaluate import each_time
from lrdyn.verification.stating.claims import tolerance
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.forms import Count, Equal, Zero
from lrdyn.verification.stating.statement import Claim, Control, Outcome, Scenario

Points = tuple[Float[Array, "sets r d"], Float[Array, "sets k r"]]
"""The two layers at many points."""

SEARCHES = 8
"""Random starts of the search for critical points."""

SEARCH_STEPS = 40
"""Steps of Newton's method; most starts need about 15."""

DEEP = (3, 4)
"""L of the origins that are no strict saddles."""

LARGEST = 10**7
"""Most entries of the Hessians of all critical points of an instance: 80 MB in float64."""


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
        """Shape (k, d) of the target."""
        rows, columns = self.target.shape
        return rows, columns

    @property
    def sets(self) -> landscape.Sets:
        """All sets of at most r of its singular values."""
        return landscape.index_sets(min(self.target.shape), self.rank)

    @property
    def values(self) -> Float[Array, "n"]:
        """The singular values of the target."""
        return singular_values(self.target)

    @property
    def points(self) -> Points:
        """The critical point of each set."""
        return landscape.critical_points(self.target, self.sets, self.weight_decay)

    def loss(self, weights: Weights) -> Float[Array, ""]:
        """The decayed loss, of layers of any depth."""
        return decayed_loss(weights, self.target, self.weight_decay)


class CriticalTheory(NamedTuple):
    """The critical points in closed form; 0 for a set without a critical point of its own."""

    critical_loss: Float[Array, "set"] = ABSENT
    """sum_S (lambda sigma_i - lambda^2/2) + sum_rest sigma_i^2/2, the loss there."""
    smallest: Float[Array, "set"] = ABSENT
    """The smallest eigenvalue of the Hessian there."""
    spectrum: Float[Array, "set eigenvalue"] = ABSENT
    """All its eigenvalues, ascending."""
    global_: Int[Array, "set"] = ABSENT
    """1 for the set of the minimum."""
    admissible: Int[Array, "set"] = ABSENT
    """1 for a set with a critical point of its own: sigma_i > lambda for all i in S."""
    deep_origin: Float[Array, "origin"] = ABSENT
    """The Hessian at the origin with three layers and four, without decay: 0."""
    margin: Float[Array, ""] = ABSENT
    """Least size of a negative eigenvalue at a saddle, see :func:`margin`."""
    separation: Float[Array, ""] = ABSENT
    """Least size of an eigenvalue that is not 0, see :func:`separation`."""
    target_values: Float[Array, "target_index"] = ABSENT
    """sigma_i."""
    family: Float[Array, "set row column"] = ABSENT
    """W_2 W_1 at each critical point."""


class CriticalMeasured(NamedTuple):
    """Derivatives by JAX at those points, and a search elsewhere; 0 for sets without a point."""

    critical_loss: Float[Array, "set"] = ABSENT
    """The loss."""
    critical_gradient: Float[Array, "set"] = ABSENT
    """Largest absolute entry of the gradient."""
    smallest: Float[Array, "set"] = ABSENT
    """The smallest eigenvalue of the Hessian."""
    spectrum: Float[Array, "set eigenvalue"] = ABSENT
    """All its eigenvalues, ascending."""
    found: Float[Array, "search row column"] = ABSENT
    """W_2 W_1 where each search ended."""
    found_gradient: Float[Array, "search"] = ABSENT
    """Norm of the gradient there."""
    deep_origin: Float[Array, "origin"] = ABSENT
    """Largest absolute entry of the Hessian at the origin with three layers and four."""


CriticalOutcome = Outcome[CriticalTheory, CriticalMeasured]
Side = TypeVar("Side", CriticalTheory, CriticalMeasured)


def make_case(
    key: Key[Array, ""],
    *,
    rows: int,
    cols: int,
    rank: int,
    weight_decay: Any,
    target_scale: Any,
    rank_deficit: Any,
    tie: Any,
    target_condition: Any = 2.0,
) -> Instance:
    """Draw an instance; start from layers about as large as those of the critical points."""
    sets = sum(comb(min(rows, cols), size) for size in range(rank + 1))
    # All Hessians are in memory at once.
    whole = sets * (rank * (rows + cols)) ** 2 <= LARGEST
    rows, cols, rank = (rows, cols, rank) if whole else (1, 1, 1)
    of_target = {"rank_deficit": rank_deficit, "tie": tie}
    of_target |= {"target_scale": target_scale, "target_condition": target_condition}
    # Both layers in one row, as Newton's method has them.
    shape = (SEARCHES, rank * (rows + cols))
    target, (starts,) = setting.draw_target(key, rows, cols, [shape], rank=rank, **of_target)
    # Layers of the critical points have the norm sigma_1^{1/2} at most.
    size = jnp.sqrt(jnp.asarray(target_scale, target.dtype) / rank)
    return Instance(target, jnp.asarray(weight_decay, target.dtype), size * starts, whole)


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


def _zero_elsewhere(case: Instance, values: Float[Array, "n"], arrays: Side) -> Side:
    """Put 0 for every set that belongs to no critical point of its own."""
    # On both sides: the point of such a set is that of a smaller one, and counted there.
    valid = landscape.admissible(case.sets, values, case.weight_decay)
    return jax.tree.map(
        lambda array: jnp.where(valid.reshape(-1, *(1,) * (array.ndim - 1)), array, 0), arrays
    )


def predict(case: Instance) -> CriticalTheory:
    """Values and spectra of all critical points in closed form."""
    sets, values, decay = case.sets, case.values, case.weight_decay
    # A spare slot is -1, as in the sets.
    best = jnp.where(values > decay, np.arange(len(values)), -1)[: case.rank]
    is_best = jnp.all(jnp.sort(sets, axis=1) == jnp.sort(best)[None, :], axis=1)
    of_sets = CriticalTheory(
        critical_loss=landscape.critical_values(values, sets, decay),
        smallest=landscape.smallest_curvature(values, sets, decay),
        spectrum=landscape.hessian_spectrum(values, sets, case.shape, decay),
        global_=is_best.astype(jnp.int32),
        admissible=jnp.ones(len(sets), jnp.int32),
    )
    first, last = case.points
    return _zero_elsewhere(case, values, of_sets)._replace(
        deep_origin=jnp.zeros(len(DEEP), decay.dtype),
        margin=margin(values, decay),
        separation=separation(values, decay),
        target_values=values,
        family=last @ first,
    )


def measure(case: Instance) -> CriticalMeasured:
    """Gradients and Hessians by JAX at the points of the family, and a search for others."""
    origins = [jnp.max(jnp.abs(_hessian_at_origin(case, depth))) for depth in DEEP]
    of_sets = _zero_elsewhere(case, case.values, _derivatives_at(case, case.points))
    searches = _search_all(case)
    return of_sets._replace(
        found=searches.found,
        found_gradient=searches.found_gradient,
        deep_origin=jnp.stack(origins),
    )


def _derivatives_at(case: Instance, points: Points) -> CriticalMeasured:
    """Loss, gradient and Hessian at points."""
    spectra = jax.vmap(lambda layers: linalg.eigh(landscape.hessian(case.loss, layers))[0])(points)
    slopes = jax.vmap(jax.grad(case.loss))(points)
    return CriticalMeasured(
        critical_loss=jax.vmap(case.loss)(points),
        critical_gradient=jnp.maximum(*(jnp.max(jnp.abs(W), axis=(1, 2)) for W in slopes)),
        smallest=spectra[:, 0],
        spectrum=spectra,
    )


def _search_all(case: Instance) -> CriticalMeasured:
    """Products and gradients where the search from every start ends."""
    ends = jax.vmap(partial(_search, case))(case.starts)
    return CriticalMeasured(found=jax.vmap(end_to_end)(ends.weights), found_gradient=ends.gradient)


def _search(case: Instance, start: Float[Array, "params"]) -> landscape.CriticalPoint:
    (rows, columns), rank = case.shape, case.rank
    first, last = jnp.split(start, [rank * columns])
    layers = first.reshape(rank, columns), last.reshape(rows, rank)
    return landscape.find_critical_point(case.loss, layers, steps=SEARCH_STEPS)


def _hessian_at_origin(case: Instance, depth: int) -> Float[Array, "params params"]:
    (rows, columns), rank = case.shape, case.rank
    widths = (columns, *(rank,) * (depth - 1), rows)
    origin = tuple(jnp.zeros(shape) for shape in zip(widths[1:], widths[:-1], strict=True))
    return landscape.hessian(lambda weights: factorization_loss(weights, case.target), origin)


# Claims ----------------------------------------------------------------------------------------


def _scale(outcome: CriticalOutcome) -> float:
    """Largest singular value sigma_1 of the target."""
    # A NumPy number: if a control makes it negative, its powers are NaN and not complex.
    return np.float64(outcome.predicted.target_values[0])


def _kept_value(outcome: CriticalOutcome) -> float:
    """Singular value (sigma_1 - lambda)_+ that decay leaves of sigma_1."""
    return max(float(_scale(outcome)) - outcome.point["weight_decay"], 0.0)


def _is_resolved(outcome: CriticalOutcome, distance: Any) -> bool:
    """Whether a distance is told from 0 by half of all digits."""
    return bool(distance > half_of_the_digits(outcome.dtype) * _scale(outcome))


def _count_minima(outcome: CriticalOutcome) -> Count:
    """Count the sets whose curvature has no negative value, told apart at half the margin."""
    theory, curvature = outcome.predicted, outcome.measured.smallest
    # At a saddle the smallest eigenvalue is -margin or less, at the minimum 0 or more.
    is_minimum = (theory.admissible > 0) & (curvature > -theory.margin / 2)
    minima = np.where(is_minimum, 1.0, 0.0)
    minima[np.isnan(curvature + theory.admissible)] = np.nan  # what is lost is no saddle
    return Count(theory.global_, minima)


def _converged_searches(outcome: CriticalOutcome) -> np.ndarray:
    """Which searches ended so near to a critical point that their gradient bounds the distance.

    With ``|g| <= mu^2 / (16 sigma_1^{1/2})``, mu the least curvature, one lies within ``2 |g| /
    mu``; and a third of the rounding of a gradient, on the scale ``sigma_1^{3/2}``, moves the
    product by ``sigma_1^2 / mu`` times the rounding at most (docs/theorems/critical_points.md).
    """
    scale, limit = _scale(outcome), tolerance("identity", outcome.dtype, size=outcome.size)
    near = (outcome.predicted.separation / scale) ** 2 / 16
    return np.asarray(outcome.measured.found_gradient <= min(limit / 3, near) * scale**1.5)


def _nearest_in_family(outcome: CriticalOutcome) -> Equal:
    """Compare each search that converged with the nearest member of the family."""
    theory = outcome.predicted
    products, family = outcome.measured.found[_converged_searches(outcome)], theory.family
    family = family[theory.admissible > 0]
    gaps = np.abs(products[:, None] - family[None])
    # Of the products, since the layers are known up to a rotation only.
    nearest = np.argmin(np.max(gaps, axis=(2, 3)), axis=1)
    return Equal(family[nearest], products, scale=_scale(outcome) ** 2 / theory.separation)


CLAIMS: tuple[Claim[CriticalTheory, CriticalMeasured], ...] = (
    Claim(
        "critical_gradient",
        "with two layers, the gradient is 0 at W_1 = (Sigma_S - lambda I)^{1/2} V_S^T, W_2 = U_S "
        "(Sigma_S - lambda I)^{1/2} for every S with |S| <= r and sigma_i > lambda in S (at half "
        "of these layers it would be 3/8 (sigma_i - lambda)^{3/2})",
        form=lambda outcome: Zero(
            outcome.measured.critical_gradient,
            scale=_scale(outcome) ** 1.5,  # a singular value times the root of one
            alternative=3 / 8 * _kept_value(outcome) ** 1.5,
        ),
        reads=lambda theory, run: (run.critical_gradient, theory.target_values),
        # Else there is the origin alone, where the gradient is 0 whatever is claimed.
        applies=lambda outcome: _kept_value(outcome) > 0,
    ),
    Claim(
        "critical_loss",
        "with two layers, the loss at the critical point of each set S of at most r indices is "
        "sum_S (lambda sigma_i - lambda^2/2) + sum_rest sigma_i^2/2",
    ),
    Claim(
        "spectrum",
        "with two layers, the r (k + d) eigenvalues of the Hessian at the critical point of each "
        "set S of at most r indices are those of lrdyn.theorem1.hessian_spectrum",
    ),
    Claim(
        "smallest",
        "with two layers, the smallest eigenvalue of the Hessian at the critical point of a set "
        "S is the least of 0 (if lambda = 0, or S is not empty and r >= 2), 2 lambda and 2 "
        "(sigma_i - lambda) (if r = 1 and S = {i}), min sigma(S) - max sigma(S^c) (if S is not "
        "empty) and lambda - max sigma(S^c) (if |S| < r)",
        # Rounding of a spectrum lives on the scale of its largest value.
        form=lambda outcome: Equal(
            outcome.predicted.smallest,
            outcome.measured.smallest,
            scale=np.max(outcome.predicted.spectrum),
        ),
        reads=lambda theory, run: (theory.smallest, run.smallest, theory.spectrum),
    ),
    Claim(
        "global",
        "with two layers, the Hessian has a negative eigenvalue at every critical point but that "
        "of S = {i <= r: sigma_i > lambda}: all the others are strict saddles",
        kind="exact",
        form=_count_minima,
        reads=lambda theory, run: (
            theory.global_,
            run.smallest,
            theory.admissible,
            theory.margin,
            theory.target_values,
        ),
        applies=lambda outcome: _is_resolved(outcome, outcome.predicted.margin),
    ),
    Claim(
        "search",
        "with two layers, every critical point that Newton's method finds from random starts has "
        "the product sum_S (sigma_i - lambda) u_i v_i^T for a set S of at most r indices",
        form=_nearest_in_family,
        reads=lambda theory, run: (
            run.found,
            run.found_gradient,
            theory.family,
            theory.admissible,
            theory.separation,
            theory.target_values,
        ),
        applies=lambda outcome: _is_resolved(outcome, outcome.predicted.separation),
        undecided=lambda outcome: (
            "" if np.any(_converged_searches(outcome)) else "no search converged"
        ),
    ),
    Claim(
        "deep_origin",
        "with three or four layers and lambda = 0, the Hessian at the origin is 0: the origin is "
        "no strict saddle (with two layers the Hessian has the eigenvalue -sigma_1 there)",
        form=lambda outcome: Zero(
            outcome.measured.deep_origin - outcome.predicted.deep_origin,
            scale=_scale(outcome),
            # With two layers the largest entries would be those of the target.
            alternative=_scale(outcome),
        ),
        reads=lambda theory, run: (theory.deep_origin, run.deep_origin, theory.target_values),
    ),
)


# Controls --------------------------------------------------------------------------------------


def _at_half_threshold(case: Instance) -> CriticalMeasured:
    """Derivatives at the points of lambda/2, which are not critical."""
    points = landscape.critical_points(case.target, case.sets, case.weight_decay / 2)
    return _zero_elsewhere(case, case.values, _derivatives_at(case, points))


def _first_layer_curvature(case: Instance) -> CriticalMeasured:
    """Least curvature along W_1 alone, in which the loss is convex."""

    def smallest(first: Float[Array, "r d"], last: Float[Array, "k r"]) -> Float[Array, ""]:
        curvature = landscape.hessian(lambda weights: case.loss((*weights, last)), (first,))
        return linalg.eigh(curvature)[0][0]

    curvatures = jax.vmap(smallest)(*case.points)
    return _zero_elsewhere(case, case.values, CriticalMeasured(smallest=curvatures))


def _with_decay(case: Instance, decay: Float[Array, ""]) -> CriticalTheory:
    """Values and spectra of another decay, for the sets that the right one admits."""
    wrong = CriticalTheory(
        critical_loss=landscape.critical_values(case.values, case.sets, decay),
        spectrum=landscape.hessian_spectrum(case.values, case.sets, case.shape, decay),
    )
    return _zero_elsewhere(case, case.values, wrong)


def _without_spare_slots(case: Instance) -> CriticalTheory:
    """Leave out lambda - max sigma(S^c), as if every S were full."""
    values = case.values
    inside = landscape.members(case.sets, len(values))
    least = jnp.min(jnp.where(inside, values[None], jnp.inf), axis=1)
    outside = jnp.max(jnp.where(inside, 0.0, values[None]), axis=1)
    return _zero_elsewhere(case, values, CriticalTheory(smallest=jnp.minimum(least - outside, 0.0)))


def _two_layer_hessian(case: Instance) -> CriticalMeasured:
    """The Hessian at the origin of two layers, which have the eigenvalue -sigma_1 there."""
    slope = jnp.max(jnp.abs(_hessian_at_origin(case, 2)))
    return CriticalMeasured(deep_origin=jnp.full(len(DEEP), slope))


def _swap_global_set(case: Instance) -> CriticalTheory:
    """Claim the product of {1, ..., r - 1, r + 1} to be global."""
    swap = np.array([[*range(case.rank - 1), case.rank]])
    return CriticalTheory(global_=jnp.all(case.sets == swap, axis=1).astype(jnp.int32))


CONTROLS: tuple[Control[Instance, CriticalTheory, CriticalMeasured], ...] = (
    *(
        Control(
            f"{claim}_at_half_threshold",
            "points with lambda/2 in place of lambda",
            claim,
            measure=_at_half_threshold,
        )
        for claim in ("critical_gradient", "critical_loss", "spectrum")
    ),
    *(
        Control(
            f"{claim}_of_the_first_layer",
            "curvature along W_1 alone",
            claim,
            measure=_first_layer_curvature,
        )
        for claim in ("smallest", "global")
    ),
    Control(
        "critical_loss_half_threshold",
        "values with lambda/2 in place of lambda",
        "critical_loss",
        predict=lambda case: _with_decay(case, case.weight_decay / 2),
    ),
    Control(
        "spectrum_without_decay",
        "spectra without decay",
        "spectrum",
        predict=lambda case: _with_decay(case, 0 * case.weight_decay),
    ),
    Control(
        "spare_slots_left_out",
        "without the eigenvalue lambda - max sigma(S^c)",
        "smallest",
        predict=_without_spare_slots,
    ),
    Control(
        "swapped_index",
        "S = {1, ..., r - 1, r + 1} claimed global",
        "global",
        predict=_swap_global_set,
    ),
    Control(
        "minimum_alone",
        "no critical point but the minimum",
        "search",
        predict=lambda case, once=each_time: CriticalTheory(admissible=once(predict, case).global_),
    ),
    Control(
        "found_without_decay",
        "searches for critical points without decay",
        "search",
        measure=lambda case: _search_all(
            dataclasses.replace(case, weight_decay=0 * case.weight_decay)
        ),
    ),
    Control(
        "strict_deep_origin",
        "sigma_1 in place of 0, as if these origins were strict saddles",
        "deep_origin",
        predict=lambda case: CriticalTheory(deep_origin=jnp.full(len(DEEP), case.values[0])),
    ),
    Control(
        "origin_of_two_layers",
        "the Hessian of two layers at the origin",
        "deep_origin",
        measure=_two_layer_hessian,
    ),
)


CRITICAL_POINTS = Scenario[Instance, CriticalTheory, CriticalMeasured](
    "critical_points",
    make_case,
    predict,
    measure,
    theory=CriticalTheory,
    measured=CriticalMeasured,
    claims=CLAIMS,
    controls=CONTROLS,
    hypotheses={"few_critical_points": lambda case: jnp.asarray(case.whole)},
    # With a tie there are more critical points than these.
    narrow=lambda settings: settings | {"tie": (0,)},
    at={"weight_decay": 0.1, "depth": 2, "init_scale": 1.0},
    sides="closed forms over all index sets against JAX's gradient and Hessian; Newton's "
    "method from random starts for the search",
)
