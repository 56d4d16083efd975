"""What certifies a global minimum, to rounding: a spectrum, a bound, values of the convex problem.

Theory's side is the convex problem by proximal gradient descent and the Hessian by a formula; the
run's side is Newton's method on the factors, and the Hessian by automatic differentiation.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from lrdyn.core import linalg, spectra
from lrdyn.core.spectra import half_of_the_digits
from lrdyn.studies.lora_landscape.convex import proximal_gradient
from lrdyn.studies.lora_landscape.draws import draw_model, draw_starts, model_of_file
from lrdyn.studies.lora_landscape.features import NONE
from lrdyn.studies.lora_landscape.problem import (
    SQUARED,
    Factors,
    LinearisedModel,
    lora_loss,
    lower_bound,
)
from lrdyn.studies.lora_landscape.second_order import (
    descend,
    flat,
    hessian,
    unflat,
)
from lrdyn.verification.stating.claims import MoreSteps, tolerance
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.forms import AtMost, Count, Equal
from lrdyn.verification.stating.statement import Claim, Control, Outcome, Scenario

CONVEX_STEPS = 1000
"""Steps of proximal gradient descent: enough for decays of a tenth of the largest one."""


class Landscape(NamedTuple):
    """A linearised model with decay, and starts of LoRA."""

    model: LinearisedModel
    starts: Factors
    """The first axis counts them."""


class CertificateTheory(NamedTuple):
    """What is predicted from the convex problem, and from R."""

    spectrum: Float[Array, "eigenvalue"] = ABSENT
    """Eigenvalues of the Hessian at a start with a column of zeros added, increasing."""
    minimum: Float[Array, ""] = ABSENT
    """f(W) + lambda ||W||_* by proximal gradient descent."""
    convex_gap: Float[Array, ""] = ABSENT
    """By how much that is above the minimum, at most, by the same bound."""
    convex_rank: Int[Array, ""] = ABSENT
    """Rank of that minimiser."""
    unit: Float[Array, ""] = ABSENT
    """F at U = V = 0."""


class CertificateMeasured(NamedTuple):
    """What is measured at starts and at the ends of descent on the factors."""

    spectrum: Float[Array, "eigenvalue"] = ABSENT
    """The same eigenvalues by automatic differentiation."""
    bounds: Float[Array, "bound"] = ABSENT
    """F less its gap: at U = V = 0, at the starts and at the ends."""
    value: Float[Array, "start"] = ABSENT
    """F at the ends."""
    certified: Bool[Array, "start"] = ABSENT
    """Whether ||R||_2 <= lambda at a stationary end, to half of the digits."""
    deficient: Bool[Array, "start"] = ABSENT
    """Whether an end is of second order, to half of the digits, and UV^T of a rank below r."""
    product_rank: Int[Array, "start"] = ABSENT
    """Rank of UV^T at the ends."""
    width: Int[Array, ""] = ABSENT
    """r."""


def make_landscape(
    key: Key[Array, ""],
    *,
    rows: int,
    cols: int,
    rank: int,
    measurements: int,
    weight_decay: Any,
    starts: int,
    features: str = NONE,
) -> Landscape:
    """Draw a model, or take that of a file, and draw starts."""
    of_model, of_starts = jax.random.split(key)
    own = model_of_file(features, weight_decay)
    model = own or draw_model(of_model, SQUARED, rows, cols, measurements, weight_decay)
    m, n = model.features.shape[2:]
    return Landscape(model, draw_starts(of_starts, (starts,), m, n, rank))


def _first(starts: Factors) -> Factors:
    return Factors(starts.U[0], starts.V[0])


def _column_of_zeros(factors: Factors) -> Factors:
    return Factors(*(jnp.pad(W, ((0, 0), (0, 1))) for W in factors))


def widened_spectrum(
    model: LinearisedModel, factors: Factors, *, decay: Any = None, residual: Any = 1.0
) -> Float[Array, "eigenvalue"]:
    """Eigenvalues of the Hessian with a column of zeros added: those without it, lambda +- sigma_i.

    Args:
        model: the model.
        factors: U and V without the column.
        decay: another lambda of the new column, for a control.
        residual: what R is multiplied by there, for a control.
    """
    decay = model.decay if decay is None else decay
    m, n = model.features.shape[2:]
    values = residual * linalg.svdvals(model.residual(factors.product))
    beside = jnp.full(abs(m - n), decay)
    old = linalg.eigh(hessian(model, factors))[0]
    return jnp.sort(jnp.concatenate([old, decay + values, decay - values, beside]))


def rank_at_rest(values: Float[Array, "*some k"]) -> Int[Array, "*some"]:
    """How many singular values exceed a hundred times half of the digits of the largest.

    Stationarity to half of the digits leaves what should vanish at about that size.
    """
    threshold = 100 * half_of_the_digits(values.dtype)
    return spectra.numerical_rank(values, values.shape[-1], threshold)


def predict_certificate(case: Landscape) -> CertificateTheory:
    """The convex problem, and the spectrum by formulas."""
    model = case.model
    convex = proximal_gradient(model, CONVEX_STEPS)
    return CertificateTheory(
        spectrum=widened_spectrum(model, _first(case.starts)),
        minimum=convex.value,
        convex_gap=convex.gap,
        convex_rank=rank_at_rest(linalg.svdvals(convex.W)),
        unit=model.data_loss(jnp.zeros_like(model.targets)),
    )


def _bounds(
    model: LinearisedModel, products: Float[Array, "point m n"], lower: Any = lower_bound
) -> Float[Array, "bound"]:
    """Lower bounds from W = 0 and from products."""
    zero = jnp.zeros_like(products[:1])
    return jax.vmap(lambda W: lower(model, W))(jnp.concatenate([zero, products]))


def _products(factors: Factors) -> Float[Array, "point m n"]:
    return jnp.einsum("...ar,...br->...ab", factors.U, factors.V)


def measure_certificate(case: Landscape) -> CertificateMeasured:
    """Newton's method from every start, and the Hessian by automatic differentiation."""
    model = case.model
    wide = _column_of_zeros(_first(case.starts))
    by_autodiff = jax.hessian(lambda x: lora_loss(model, unflat(x, wide)))(flat(wide))
    ends = jax.vmap(lambda start: descend(model, start, decays=True))(case.starts)
    digits = half_of_the_digits(ends.value.dtype)
    resting = ends.gradient <= digits
    rank, width = rank_at_rest(ends.values), case.starts.U.shape[-1]
    products = jnp.concatenate([_products(case.starts), _products(Factors(ends.U, ends.V))])
    return CertificateMeasured(
        spectrum=linalg.eigh(by_autodiff)[0],
        bounds=_bounds(model, products),
        value=ends.value,
        certified=resting & (ends.norm <= model.decay * (1 + digits)),
        deficient=resting & (ends.curvature >= -digits) & (rank < width),
        product_rank=rank,
        width=jnp.asarray(width),
    )


CertificateOutcome = Outcome[CertificateTheory, CertificateMeasured]


def _convex_has_arrived(outcome: CertificateOutcome) -> str:
    """Theory's own gap says whether its descent has arrived."""
    theory = outcome.predicted
    limit = tolerance("identity", outcome.dtype, steps=CONVEX_STEPS, size=outcome.size)
    return "" if theory.convex_gap <= limit * theory.unit else MoreSteps()


def _values_at(chosen: Any) -> Any:
    """Compare the minimum of the convex problem with F at some ends; F at 0 is the null."""

    def form(outcome: CertificateOutcome) -> Equal:
        theory, run = outcome.predicted, outcome.measured
        values = run.value[chosen(run)]
        predicted = np.full(values.shape, theory.minimum)
        return Equal(predicted, values, scale=theory.unit, null=theory.unit)

    return form


def _compare_ranks(outcome: CertificateOutcome) -> Count:
    theory, run = outcome.predicted, outcome.measured
    ranks = run.product_rank[run.certified]
    return Count(np.full(ranks.shape, theory.convex_rank), ranks)


def _is_wide(outcome: CertificateOutcome) -> Any:
    """Whether r exceeds the rank of the convex minimiser, and some end has a rank below r."""
    run = outcome.measured
    return (run.width > outcome.predicted.convex_rank) & np.any(run.deficient)


# Controls ----------------------------------------------------------------------------------------


def _half_the_decay(case: Landscape) -> CertificateTheory:
    """The certificate of lambda / 2: another convex problem, another column."""
    half = case.model.decay / 2
    other = dataclasses.replace(case.model, decay=half)
    return CertificateTheory(
        spectrum=widened_spectrum(case.model, _first(case.starts), decay=half),
        minimum=proximal_gradient(other, CONVEX_STEPS).value,
    )


def _without_the_mean(case: Landscape) -> CertificateTheory:
    """R without its factor 1 / N."""
    count = len(case.model.weights)
    return CertificateTheory(
        spectrum=widened_spectrum(case.model, _first(case.starts), residual=float(count))
    )


def _unscaled(case: Landscape) -> CertificateMeasured:
    """The slopes as they are, though ||R||_2 > lambda: c = 1."""

    def lower(model: LinearisedModel, W: Array) -> Array:
        return -model.conjugate(model.slopes(model.outputs(W)), jnp.ones((), W.dtype))

    return CertificateMeasured(bounds=_bounds(case.model, _products(case.starts), lower))


def _at_zero(case: Landscape) -> CertificateMeasured:
    """U = V = 0, stationary and of rank 0, as if it were of second order and certified."""
    count = len(case.starts.U)
    zero = case.model.data_loss(jnp.zeros_like(case.model.targets))
    every = jnp.ones(count, bool)
    return CertificateMeasured(value=jnp.full(count, zero), certified=every, deficient=every)


def _columns(case: Landscape) -> CertificateMeasured:
    """The number of columns in the place of the rank of UV^T."""
    count, _, width = case.starts.U.shape
    return CertificateMeasured(product_rank=jnp.full(count, width))


CERTIFICATE = Scenario[
    Landscape, CertificateTheory, CertificateMeasured
](
    "certificate",
    make_landscape,
    predict_certificate,
    measure_certificate,
    theory=CertificateTheory,
    measured=CertificateMeasured,
    claims=(
        Claim(
            "spectrum",
            "with a column of zeros added to U and V the Hessian of F has the eigenvalues that it "
            "had, and lambda +- sigma_i(R), at any U and V",
            sides="a formula of the Hessian and the SVD of R against automatic differentiation",
        ),
        Claim(
            "bounds",
            "F less its duality gap is at most min f(W) + lambda ||W||_*, at any U and V: no "
            "convergence is needed",
            kind="bound",
            form=lambda outcome: AtMost(
                outcome.measured.bounds,
                np.full_like(outcome.measured.bounds, outcome.predicted.minimum),
                scale=outcome.predicted.unit,
            ),
            reads=lambda theory, run: (run.bounds, theory.minimum, theory.unit),
        ),
        Claim(
            "certified",
            "F = min f(W) + lambda ||W||_* at every stationary end with ||R||_2 <= lambda (both "
            "to half of the digits, whose square is in the value)",
            form=_values_at(lambda run: run.certified),
            reads=lambda theory, run: (
                theory.minimum,
                theory.convex_gap,
                theory.unit,
                run.value,
                run.certified,
            ),
            applies=lambda outcome: np.any(outcome.measured.certified),
            undecided=_convex_has_arrived,
            steps=CONVEX_STEPS,
        ),
        Claim(
            "deficient",
            "F = min f(W) + lambda ||W||_* at every second-order end with rank UV^T < r, where r "
            "exceeds the rank of the convex minimiser",
            form=_values_at(lambda run: run.deficient),
            reads=lambda theory, run: (
                theory.minimum,
                theory.convex_gap,
                theory.convex_rank,
                theory.unit,
                run.value,
                run.deficient,
                run.width,
            ),
            applies=_is_wide,
            undecided=_convex_has_arrived,
            steps=CONVEX_STEPS,
        ),
        Claim(
            "convex_rank",
            "UV^T has the rank of the convex minimiser at every certified end",
            kind="exact",
            form=_compare_ranks,
            reads=lambda theory, run: (
                theory.convex_rank,
                theory.convex_gap,
                theory.unit,
                run.product_rank,
                run.certified,
            ),
            applies=lambda outcome: np.any(outcome.measured.certified),
            undecided=_convex_has_arrived,
            carries=False,  # it holds where the minimiser is the only one, as it is almost surely
        ),
    ),
    controls=(
        Control(
            "spectrum_half_the_decay",
            "lambda / 2 in the column",
            "spectrum",
            predict=_half_the_decay,
        ),
        Control("spectrum_without_1_N", "R without 1 / N", "spectrum", predict=_without_the_mean),
        Control("bounds_unscaled", "slopes that are not scaled by c", "bounds", measure=_unscaled),
        Control(
            "certified_half_the_decay",
            "the convex problem with lambda / 2",
            "certified",
            predict=_half_the_decay,
        ),
        Control("certified_at_zero", "the saddle U = V = 0", "certified", measure=_at_zero),
        Control("deficient_at_zero", "the saddle U = V = 0", "deficient", measure=_at_zero),
        Control("convex_rank_columns", "r in its place", "convex_rank", measure=_columns),
    ),
    narrow=lambda settings: {
        **settings,
        "problem": settings["problem"][:1],
        # The convex problem takes about 1 / lambda steps, and each rank is a program of its own.
        "weight_decay": (max(settings["weight_decay"]),),
        "rank": (max(settings["rank"]),),
        "measurements": (sorted(settings["measurements"])[len(settings["measurements"]) // 2],),
    },
    sides="proximal gradient descent on the convex problem against Newton's method on the factors",
    at={"rows": 4, "cols": 4, "rank": 4, "measurements": 7, "weight_decay": 0.1, "starts": 4},
    seeds=2,
)
