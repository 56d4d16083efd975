"""Theorem 1, landscape: the Hessian at the balanced minimum of any depth. Beyond the survey.

Dense layers in random bases, whose Hessian JAX differentiates and LAPACK decomposes.
"""

import itertools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from lrdyn.core import linalg
from lrdyn.core.factorization import Weights, end_to_end, factorization_loss
from lrdyn.core.initialization import gaussians, orthogonal
from lrdyn.core.spectra import half_of_the_digits
from lrdyn.theorem1 import landscape
from lrdyn.theorem1.balanced_minimum import balanced_spectrum, least_sharpness
from lrdyn.theorem2.setting import target_values
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.forms import AtLeast, Equal
from lrdyn.verification.stating.hypotheses import Extent, at_most
from lrdyn.verification.stating.statement import Claim, Control, Scenario

DRAWS = 4
"""Other factorisations of the same target; every second one has wider inner layers."""
WIDEST = 6
"""Largest d: the Hessian of three layers has then 108 rows."""


class BalancedMinimum(eqx.Module):
    """A target, its singular values, and factorisations of it."""

    target: Float[Array, "d d"]
    values: Float[Array, "d"]
    """s_i, r of them not 0."""
    balanced: Weights
    """W_l = U_l diag(s^{1/L}) U_{l-1}^T."""
    of_equal_values: Weights
    """The same of a target with s_i = s_1 for i up to r."""
    others: tuple[Weights, ...]
    """Unbalanced ones."""
    rank: int = eqx.field(static=True)

    @property
    def depth(self) -> int:
        """L."""
        return len(self.balanced)


class BalancedTheory(NamedTuple):
    """Closed forms."""

    balanced_spectrum: Float[Array, "weight"] = ABSENT
    """All L d^2 eigenvalues, increasing."""
    nonzero_directions: Int[Array, ""] = ABSENT
    """d^2 - (d - r)^2."""
    least_nonzero: Float[Array, ""] = ABSENT
    """The least mu_ij that is not 0, over the largest."""
    sharpness_bound: Float[Array, ""] = ABSENT
    """L s_1^{2 - 2/L}."""
    cluster_ratio: Float[Array, ""] = ABSENT
    """L."""


class BalancedMeasured(NamedTuple):
    """Hessians of dense layers."""

    balanced_spectrum: Float[Array, "weight"] = ABSENT
    nonzero_directions: Int[Array, ""] = ABSENT
    """Eigenvalues above rounding."""
    sharpness: Float[Array, "other"] = ABSENT
    """Largest eigenvalue at other factorisations."""
    other_loss: Float[Array, "other"] = ABSENT
    """Largest entry of their product less Phi."""
    cluster_ratio: Float[Array, ""] = ABSENT
    """Largest eigenvalue over the least that is not 0, of equal values."""


def make_case(
    key: Key[Array, ""], *, cols: int, rank: int, depth: int, target_scale: Any
) -> BalancedMinimum:
    """Draw bases, a target of rank r, and other factorisations of it."""
    d, rank = cols, min(rank, cols)
    shapes = [(d, d)] * (depth + 1)
    # An inner width of d or of d + 1: its basis, and what stretches it.
    widths = [d + n % 2 for n in range(DRAWS)]
    inner = [(width, width) for width in widths for _ in range(depth - 1)]
    draws = gaussians(key, [*shapes, *inner])
    bases = [orthogonal(draw) for draw in draws[: depth + 1]]
    values = jnp.zeros(d, bases[0].dtype).at[:rank].set(target_values(rank, target_scale))
    equal = jnp.where(values > 0, values[0], 0.0)
    balanced = _factors(bases, values)
    stretches = iter(draws[depth + 1 :])
    others = []
    for width in widths:
        layers = [_padded(W, n, depth, width) for n, W in enumerate(balanced)]
        for place in range(depth - 1):
            turn = orthogonal(next(stretches))
            # Stretched by up to e^{1/2}, and back in the next layer.
            scales = jnp.exp(jnp.linspace(-0.5, 0.5, width, dtype=turn.dtype))
            layers[place] = (turn * scales[None]) @ turn.T @ layers[place]
            layers[place + 1] = layers[place + 1] @ (turn / scales[None]) @ turn.T
        others.append(tuple(layers))
    return BalancedMinimum(
        target=end_to_end(balanced),
        values=values,
        balanced=balanced,
        of_equal_values=_factors(bases, equal),
        others=tuple(others),
        rank=rank,
    )


def _factors(bases: list[Array], values: Float[Array, "d"]) -> Weights:
    roots = values ** (1 / (len(bases) - 1))
    return tuple((after * roots[None]) @ before.T for before, after in itertools.pairwise(bases))


def _padded(W: Float[Array, "d d"], place: int, depth: int, width: int) -> Array:
    """A layer with zeros for inner units beyond d."""
    more = width - len(W)
    return jnp.pad(W, ((0, more if place < depth - 1 else 0), (0, more if place else 0)))


def predict(case: BalancedMinimum) -> BalancedTheory:
    """Closed forms in the values."""
    depth, d, r = case.depth, len(case.values), case.rank
    mu = balanced_spectrum(case.values, depth)
    zeros = jnp.zeros((depth - 1) * d * d, mu.dtype)
    return BalancedTheory(
        balanced_spectrum=jnp.sort(jnp.concatenate([mu.ravel(), zeros])),
        nonzero_directions=jnp.asarray(d**2 - (d - r) ** 2),
        least_nonzero=jnp.min(jnp.where(mu > 0, mu, jnp.inf)) / jnp.max(mu),
        sharpness_bound=least_sharpness(case.values[0], depth),
        cluster_ratio=jnp.asarray(depth, mu.dtype),
    )


def _eigenvalues(weights: Weights) -> Float[Array, "weight"]:
    """Of the Hessian of the loss whose target is the product, increasing."""
    target = end_to_end(weights)
    return linalg.eigh(landscape.hessian(lambda W: factorization_loss(W, target), weights))[0]


def _least_above_rounding(spectrum: Float[Array, "weight"]) -> Array:
    above = spectrum > half_of_the_digits(spectrum.dtype) * spectrum[-1]
    return jnp.min(jnp.where(above, spectrum, jnp.inf))


def measure(case: BalancedMinimum) -> BalancedMeasured:
    """Differentiate twice, and decompose."""
    spectrum, equal = _eigenvalues(case.balanced), _eigenvalues(case.of_equal_values)
    least = _least_above_rounding(spectrum)
    products = [end_to_end(weights) for weights in case.others]
    return BalancedMeasured(
        balanced_spectrum=spectrum,
        nonzero_directions=jnp.sum(spectrum >= least),
        sharpness=jnp.stack([_eigenvalues(weights)[-1] for weights in case.others]),
        other_loss=jnp.stack([jnp.max(jnp.abs(product - case.target)) for product in products]),
        cluster_ratio=equal[-1] / _least_above_rounding(equal),
    )


@at_most("largest entry of the product less Phi, over s_1")
def _factorisations(case: BalancedMinimum) -> Extent:
    """All of them are minima."""
    apart = [jnp.max(jnp.abs(end_to_end(W) - case.target)) for W in case.others]
    # A product of L layers of d units, stretched and back.
    rounding = 64 * case.depth * jnp.finfo(case.target.dtype).eps
    return Extent(jnp.max(jnp.stack(apart)) / case.values[0], rounding)


def _with_other_exponents(case: BalancedMinimum) -> BalancedTheory:
    both = case.values[:, None] * case.values[None, :]
    mu = jnp.sum(jnp.stack([both ** (2 * l / case.depth) for l in range(case.depth)]), axis=0)
    zeros = jnp.zeros((case.depth - 1) * both.size, both.dtype)
    return BalancedTheory(balanced_spectrum=jnp.sort(jnp.concatenate([zeros, mu.ravel()])))


def _with_other_values(case: BalancedMinimum) -> BalancedMeasured:
    spectrum = _eigenvalues(case.balanced)
    return BalancedMeasured(cluster_ratio=spectrum[-1] / _least_above_rounding(spectrum))


def _smaller_layers(key: Key[Array, ""], case: BalancedMinimum, amount: Any) -> BalancedMinimum:
    others = jax.tree.map(lambda W: (1 - 0.5 * amount) * W, case.others)
    return eqx.tree_at(lambda c: c.others, case, others)


BALANCED_MINIMUM = Scenario[BalancedMinimum, BalancedTheory, BalancedMeasured](
    "balanced_minimum",
    make_case,
    predict,
    measure,
    theory=BalancedTheory,
    measured=BalancedMeasured,
    claims=(
        Claim(
            "balanced_spectrum",
            "at the balanced minimum of any depth the Hessian has the eigenvalues mu_ij = sum_l "
            "s_i^{2(L-l)/L} s_j^{2(l-1)/L}, 0^0 = 1, and 0",
            steps=1,
            form=lambda outcome: Equal(
                outcome.predicted.balanced_spectrum, outcome.measured.balanced_spectrum
            ),
        ),
        Claim(
            "nonzero_directions",
            "d^2 - (d - r)^2 of them are not 0",
            kind="exact",
            applies=lambda outcome: (
                outcome.predicted.least_nonzero > 2 * half_of_the_digits(outcome.dtype)
            ),
            reads=lambda theory, run: (theory.least_nonzero,),
        ),
        Claim(
            "least_sharpness",
            "no factorisation of Phi, of any inner widths, has a sharpness below L s_1^{2 - 2/L}",
            kind="bound",
            steps=1,
            form=lambda outcome: AtLeast(
                outcome.measured.sharpness, outcome.predicted.sharpness_bound
            ),
            reads=lambda theory, run: (theory.sharpness_bound, run.sharpness),
        ),
        Claim(
            "cluster_ratio",
            "of equal values the largest eigenvalue is L times the least that is not 0",
            steps=1,
            # The least eigenvalue is rounded as the largest is, which is L times it.
            condition=lambda theory: theory.cluster_ratio,
            applies=lambda outcome: outcome.point["rank"] < outcome.point["cols"],
        ),
    ),
    controls=(
        Control(
            "other_exponents",
            "s_i^{2l/L} in the place of s_i^{2(L-l)/L}",
            "balanced_spectrum",
            predict=_with_other_exponents,
        ),
        Control(
            "full_rank_directions",
            "r (2 d - 1) of them claimed",
            "nonzero_directions",
            predict=lambda case: BalancedTheory(
                nonzero_directions=jnp.asarray(case.rank * (2 * len(case.values) - 1))
            ),
        ),
        Control(
            "half_of_the_layers",
            "layers of half the size, whose product is not Phi",
            "least_sharpness",
            case=_smaller_layers,
            breaks="factorisations",
        ),
        Control(
            "unequal_values",
            "values that are not equal",
            "cluster_ratio",
            measure=_with_other_values,
        ),
    ),
    hypotheses={"factorisations": _factorisations},
    narrow=lambda settings: (
        settings | {"cols": tuple(sorted({min(cols, WIDEST) for cols in settings["cols"]}))}
    ),
    at={"cols": 4, "rank": 2, "depth": 3},
    sides="closed forms in the singular values, against Hessians by automatic differentiation of "
    "dense layers in random bases",
)
