"""The basis of one gradient: with all entries observed it spans what moves in Theorem 2."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lrdyn.completion.problem import Recovery, make_entries
from lrdyn.core import linalg
from lrdyn.core.factorization import end_to_end
from lrdyn.core.spectra import singular_values
from lrdyn.corollary1.compression import gradient_gap_bound
from lrdyn.engine.claims import excess, on_scale
from lrdyn.engine.statement import Claim, Control, Outcome, Scenario
from lrdyn.theorem2.setting import hide_entries
from lrdyn.theorem2.subspace import frame, start_scales


def _projector(columns: Float[Array, "d s"]) -> Float[Array, "d d"]:
    return columns @ columns.T


def _gap_bound(case: Recovery, power: int = 1) -> Float[Array, ""]:
    smallest = singular_values(case.target)[case.rank - 1]
    return gradient_gap_bound(start_scales(case.weights) ** power, smallest)


def _conditions(case: Recovery) -> dict[str, Array]:
    """What amplifies rounding errors: how near the singular values of the gradient are, and angles.

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

    def over(gap: Float[Array, ""], without: float) -> Float[Array, ""]:
        return jnp.where(gap > 0, (largest + e) / jnp.abs(gap), without)

    return {
        "basis_condition": over(smallest - 2 * e, jnp.inf) / angle,
        "gap_condition": over(smallest - e, 1.0),  # there the bound is infinite
    }


def predict(case: Recovery) -> dict[str, Array]:
    """The span from the frame of Theorem 2, a bound from its scales, and what amplifies errors."""
    exact = frame(case.weights, case.target, case.rank).right[0, :, : 2 * case.rank]
    return {"basis": _projector(exact), "basis_gap": _gap_bound(case), **_conditions(case)}


def measure(case: Recovery) -> dict[str, Array]:
    """The span and the gap of the gradient."""
    found = case.basis
    return {"basis": _projector(found.columns), "basis_gap": found.gap}


def _of_both_spaces(case: Recovery) -> dict[str, Array]:
    """The span of row(Phi) and col(Phi), not turned by the start."""
    left, _, right = linalg.svd(case.target)
    both = jnp.concatenate([right[: case.rank].T, left[:, : case.rank]], axis=1)
    return {"basis": _projector(linalg.orthogonal_factor(both))}


def _infinite(one: Outcome) -> str:
    return "" if np.isfinite(one.predicted["basis_gap"]) else "bound is infinite"


BASIS = Scenario[Recovery](
    "basis", make_entries, predict, measure,
    (
        Claim("basis",
              "all entries observed: the basis of the gradient spans V_{1,1} of Theorem 2",
              residual=on_scale("basis", lambda one: 1.0), condition="basis_condition"),
        Claim("basis_gap",
              "its gap sigma_{r+1} / sigma_r is at most e / (sigma_r(Phi) - e), e = prod eps_l",
              kind="bound", condition="gap_condition",
              residual=lambda one: excess(one.measured["basis_gap"], one.predicted["basis_gap"]),
              undecided=_infinite),
    ),
    (
        Control("hidden_entries", "half of the entries hidden", "basis", case=hide_entries,
                breaks="all_entries_observed",
                amount=0.5, amounts=(0.002, 0.02, 0.1, 0.3, 0.5),
                amount_label="fraction of entries hidden"),
        Control("basis_not_turned", "row(Phi) and col(Phi), not turned by the start", "basis",
                predict=_of_both_spaces),
        Control("gap_with_hidden_entries", "half of the entries hidden", "basis_gap",
                case=hide_entries, breaks="all_entries_observed", amount=0.5),
        Control[Recovery](
            "gap_of_squared_scales", "the bound of the gap from squared init scales", "basis_gap",
            predict=lambda case: {"basis_gap": _gap_bound(case, 2)}),
    ),
    hypotheses={"all_entries_observed": lambda case: jnp.all(case.mask == 1)},
    dims={"basis": ("row", "column")},
    narrow=lambda settings: settings | {"steps": 1, "observed": (1.0,)},
    # A start that is large enough for its square to differ in float32, too.
    at={"observed": 1.0, "steps": 1, "init_scale": 0.1},
    sides="frame of Theorem 2 from the SVD of Phi against the SVD of one gradient",
)  # fmt: skip
