"""The basis of one gradient: with all entries observed it spans what moves in Theorem 2.

With G the gradient with respect to W_1 at an orthogonal start, the top-r right singular vectors of
G and of ``G^T W_1`` span ``V_{1,1}``, and ``sigma_{r+1}(G) / sigma_r(G) <= e / (sigma_r(Phi) - e)``
with ``e = prod_l eps_l``.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lrdyn.completion.problem import Recovery, make_entries
from lrdyn.core import linalg
from lrdyn.core.factorization import end_to_end
from lrdyn.core.spectra import singular_values
from lrdyn.corollary1.compression import gradient_gap_bound
from lrdyn.theorem2.setting import hide_entries
from lrdyn.theorem2.subspace import frame, start_scales
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.forms import AtMost, Equal
from lrdyn.verification.stating.statement import Claim, Control, Scenario


class BasisTheory(NamedTuple):
    """Span of the basis and bound of its gap, from Theorem 2."""

    basis: Float[Array, "row column"] = ABSENT
    """Projector onto V_{1,1}."""
    basis_gap: Float[Array, ""] = ABSENT
    """Bound of the gap, infinite if the start is too large for one."""
    basis_condition: Float[Array, ""] = ABSENT
    """By how much rounding errors of the basis are amplified."""
    gap_condition: Float[Array, ""] = ABSENT
    """By how much rounding errors of the gap are amplified."""


class BasisMeasured(NamedTuple):
    """Span of the basis and its gap, from the SVD of one gradient."""

    basis: Float[Array, "row column"] = ABSENT
    """Projector onto its basis."""
    basis_gap: Float[Array, ""] = ABSENT
    """sigma_{r+1} / sigma_r."""


def _projector(columns: Float[Array, "d s"]) -> Float[Array, "d d"]:
    return columns @ columns.T


def _gap_bound(case: Recovery, power: int = 1) -> Float[Array, ""]:
    smallest = singular_values(case.target)[case.rank - 1]
    return gradient_gap_bound(start_scales(case.weights) ** power, smallest)


def _conditions(case: Recovery) -> BasisTheory:
    """Amplification of rounding errors: by near singular values of the gradient, and by angles.

    On the scale of W - Phi, of which the gradient is an isometry's multiple, r of its singular
    values are at least sigma_r - e and the others at most e = prod eps_l. The basis joins row(Phi)
    and W^T col(Phi), turned by as much: their angle matters, too.
    """
    product, e = end_to_end(case.weights), jnp.prod(start_scales(case.weights))
    left, values, right = linalg.svd(case.target)
    r = case.rank
    largest, smallest = values[0], values[r - 1]
    both = jnp.concatenate([right[:r].T, product.T @ left[:, :r] / e], axis=1)
    angle = linalg.svdvals(both)[-1]

    def over_gap(gap: Float[Array, ""], without: float) -> Float[Array, ""]:
        return jnp.where(gap > 0, (largest + e) / jnp.abs(gap), without)

    return BasisTheory(
        # r values are sigma_r - e or more and the others e or less: between them are sigma_r - 2 e.
        basis_condition=over_gap(smallest - 2 * e, jnp.inf) / angle,
        gap_condition=over_gap(smallest - e, 1.0),  # without a gap the bound is infinite
    )


def predict(case: Recovery) -> BasisTheory:
    """The span from the frame of Theorem 2, a bound from its scales, and the amplification."""
    exact = frame(case.weights, case.target, case.rank).right[0, :, : 2 * case.rank]
    return _conditions(case)._replace(basis=_projector(exact), basis_gap=_gap_bound(case))


def measure(case: Recovery) -> BasisMeasured:
    """The span and the gap of the gradient."""
    basis = case.basis
    return BasisMeasured(basis=_projector(basis.columns), basis_gap=basis.gap)


def _unturned_basis(case: Recovery) -> BasisTheory:
    """The span of row(Phi) and col(Phi), not turned by the start."""
    left, _, right = linalg.svd(case.target)
    both = jnp.concatenate([right[: case.rank].T, left[:, : case.rank]], axis=1)
    return BasisTheory(basis=_projector(linalg.orthogonal_factor(both)))


BASIS = Scenario[Recovery, BasisTheory, BasisMeasured](
    "basis",
    make_entries,
    predict,
    measure,
    theory=BasisTheory,
    measured=BasisMeasured,
    claims=(
        Claim(
            "basis",
            "if all entries are observed, the top-r right singular vectors of the gradient G in "
            "W_1 at the start, and those of G^T W_1, span the columns of V_{1,1} of Theorem 2",
            form=lambda outcome: Equal(
                outcome.predicted.basis,
                outcome.measured.basis,
                scale=1.0,  # the norm of a projector
            ),
            condition=lambda theory: theory.basis_condition,
        ),
        Claim(
            "basis_gap",
            "if all entries are observed, the gradient in W_1 at the start has the gap "
            "sigma_{r+1} / sigma_r <= e / (sigma_r(Phi) - e), e = prod_l eps_l",
            kind="bound",
            form=lambda outcome: AtMost(
                outcome.measured.basis_gap,
                outcome.predicted.basis_gap,
                scale=1.0,  # the ratio is of rounded numbers, the larger of them 1
            ),
            condition=lambda theory: theory.gap_condition,
            undecided=lambda outcome: (
                "" if np.isfinite(outcome.predicted.basis_gap) else "bound is infinite"
            ),
        ),
    ),
    controls=(
        Control(
            "hidden_entries",
            "half of the entries hidden",
            "basis",
            case=hide_entries,
            breaks="all_entries_observed",
            amount=0.5,
            amounts=(0.002, 0.02, 0.1, 0.3, 0.5),
            amount_label="fraction of entries hidden",
        ),
        Control(
            "basis_not_turned",
            "row(Phi) and col(Phi), not turned by the start",
            "basis",
            predict=_unturned_basis,
        ),
        Control(
            "gap_with_hidden_entries",
            "half of the entries hidden",
            "basis_gap",
            case=hide_entries,
            breaks="all_entries_observed",
            amount=0.5,
        ),
        Control(
            "gap_of_squared_scales",
            "the bound of the gap from squared init scales",
            "basis_gap",
            predict=lambda case: BasisTheory(basis_gap=_gap_bound(case, 2)),
        ),
    ),
    hypotheses={"all_entries_observed": lambda case: jnp.all(case.mask == 1)},
    narrow=lambda settings: settings | {"steps": 1, "observed": (1.0,)},
    # A start that is large enough for its square to differ in float32, too.
    at={"observed": 1.0, "steps": 1, "init_scale": 0.1},
    sides="frame of Theorem 2 from the SVD of Phi against the SVD of one gradient",
)
