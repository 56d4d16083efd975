"""Example 4.2 of Theorem 3: masked self-supervised learning by a linear autoencoder.

Masks show each patch of X with probability p = theta, ``S = X X^T / n``, D its diagonal blocks and
``Q = p S + (1-p) D``:

    E ||X - A(M*X)||^2 / n = tr[(I - pA) S (I - pA)^T] + p(1-p) tr(A D A^T),

least at ``A = S Q^{-1}``.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from lrdyn.core import linalg
from lrdyn.core.condition import relative_response
from lrdyn.core.spectra import half_of_the_digits, singular_values
from lrdyn.theorem3 import (
    autoencoder_training_claims,
    dropout_minimum,
    dropout_penalties,
    masked_autoencoder,
)
from lrdyn.theorem3.autoencoder_training_claims import Autoencoding, MaskedAutoencoderMeasured
from lrdyn.theorem3.masked_autoencoder import MaskedMoments, nuclear_norm_bound, within_patches
from lrdyn.theorem3.network import MOST_MASKS, lower_bound
from lrdyn.verification.running.evaluate import Once, each_time
from lrdyn.verification.stating.claims import MoreSteps, tolerance
from lrdyn.verification.stating.fields import ABSENT, arrays_in
from lrdyn.verification.stating.forms import Count, Equal, Zero, scale_of_each
from lrdyn.verification.stating.statement import Claim, Control, Outcome, Scenario


class MaskedAutoencoderTheory(NamedTuple):
    """Losses and minimisers from S, D and p, for each data set."""

    marginal: Float[Array, "data"] = ABSENT
    """Expected loss of an autoencoder that is no minimiser."""
    optimum: Float[Array, "data row column"] = ABSENT
    """S Q^{-1}, the minimiser."""
    rank_values: Float[Array, "data index"] = ABSENT
    """Singular values of S Q^{-1/2}, as many above 0 as X has rank."""
    bottleneck: Float[Array, "data row column"] = ABSENT
    """U_r U_r^T S Q^{-1}, the minimiser of width r."""
    bottleneck_value: Float[Array, "data"] = ABSENT
    """Its loss."""
    energy: Float[Array, "data"] = ABSENT
    """tr S, the scale of losses."""
    nuclear_bound: Float[Array, "data autoencoder"] = ABSENT
    """p(1-p) ||A X||_*^2 / (n m) of the minimiser and of the one that is none."""
    attained: Float[Array, ""] = ABSENT
    """That bound of A = I on data whose rows are orthogonal and of equal norm."""
    masked_marginal: Float[Array, "data"] = ABSENT
    """Expected loss on masked entries alone, of the one that is no minimiser."""
    masked_optimum: Float[Array, "data row column"] = ABSENT
    """(S - blkdiag M_b) Q^{-1}, the minimiser of that loss outside the blocks."""
    unidentified: Float[Array, "data row column"] = ABSENT
    """Diagonal blocks where training starts: that loss does not see them."""
    inverting: Float[Array, ""] = ABSENT
    """By how much inverting Q amplifies errors, for all data sets."""
    choosing: Float[Array, ""] = ABSENT
    """By how much that, or telling sigma_r from sigma_{r+1}, does."""
    unique: Bool[Array, ""] = ABSENT
    """Whether Q is regular, for all data sets."""


AutoencoderOutcome = Outcome[MaskedAutoencoderTheory, MaskedAutoencoderMeasured]


# Closed forms --------------------------------------------------------------------------------


def _moments(case: Autoencoding, data: Array) -> MaskedMoments:
    return masked_autoencoder.masked_moments(data, case.patch_of, case.keep_prob)


def _bounds(case: Autoencoding, data: Array) -> Float[Array, "2"]:
    """Bounds of the penalties of A = I, for which it can be attained, and of an A drawn."""
    both = jnp.stack([jnp.eye(len(data), dtype=data.dtype), case.anything])
    return jax.vmap(lambda A: nuclear_norm_bound(A, data, case.keep_prob))(both)


class _Conditions(NamedTuple):
    """By how much an error of one data set is amplified, and whether its Q is regular."""

    inverting: Array
    choosing: Array
    regular: Array


def _conditions(case: Autoencoding, moments: MaskedMoments, values: Array) -> _Conditions:
    inverse = moments.root @ moments.root
    # At least the condition of Q: also the slowness of training, whose curvature is Q.
    inverting = jnp.linalg.norm(moments.masked) * jnp.linalg.norm(inverse)
    squares = jnp.append(values, jnp.zeros(1, values.dtype)) ** 2
    gap = squares[case.width - 1] - squares[case.width]
    # Infinite at a tie, where the first r directions are not determined.
    choosing = jnp.maximum(inverting, squares[0] / jnp.where(gap > 0, gap, 0.0))
    # Q^{-1/2} Q Q^{-1/2} projects onto the range of Q: its trace is the rank of Q.
    rank = jnp.sum(moments.root * (moments.masked @ moments.root))
    return _Conditions(inverting, choosing, rank > len(moments.whole) - 0.5)


def predict(case: Autoencoding) -> MaskedAutoencoderTheory:
    """All closed forms, from S, D and p."""

    def predict_data_set(data: Array) -> tuple[MaskedAutoencoderTheory, _Conditions]:
        moments = _moments(case, data)
        narrow = masked_autoencoder.bottleneck_autoencoder(moments, case.width)
        optimum = masked_autoencoder.optimal_autoencoder(moments)
        theory = MaskedAutoencoderTheory(
            marginal=masked_autoencoder.masked_autoencoder_loss(case.anything, moments),
            optimum=optimum,
            rank_values=narrow.values,
            bottleneck=narrow.autoencoder,
            bottleneck_value=narrow.loss,
            energy=jnp.trace(moments.whole),
            nuclear_bound=_bounds(case, data),
            masked_marginal=masked_autoencoder.masked_only_loss(case.anything, moments),
            masked_optimum=masked_autoencoder.optimal_masked_only(moments),
            unidentified=within_patches(case.anything, case.patch_of),
        )
        return theory, _conditions(case, moments, narrow.values)

    of_each, conditions = jax.vmap(predict_data_set)(case.data)
    unit = jnp.eye(len(case.white), dtype=case.white.dtype)
    return MaskedAutoencoderTheory(
        **arrays_in(of_each),
        attained=nuclear_norm_bound(unit, case.white, case.keep_prob),
        inverting=jnp.max(conditions.inverting),
        choosing=jnp.max(conditions.choosing),
        unique=jnp.all(conditions.regular),
    )


def _are_masks_independent(case: Autoencoding) -> Array:
    """Whether P(M_i = 1) = p and P(M_i = M_j = 1) = p^2 of two patches."""
    (masks, probabilities), theta = case.masks, case.keep_prob
    together = (probabilities[:, None] * masks).T @ masks
    wanted = jnp.where(jnp.eye(len(together), dtype=bool), theta, theta**2)
    limit = tolerance("identity", together.dtype, size=len(probabilities))
    return relative_response(wanted, together) <= limit


# Judges --------------------------------------------------------------------------------------


Fields = Callable[[MaskedAutoencoderTheory, MaskedAutoencoderMeasured], tuple[Any, Any]]
"""The fields of both sides that a claim compares."""


def compare_each_data_set(compares: Fields) -> Callable[[AutoencoderOutcome], Equal]:
    """Make a comparison of two arrays whose parts, one a data set, have scales of their own."""

    def form(outcome: AutoencoderOutcome) -> Equal:
        theory, run = compares(outcome.predicted, outcome.measured)
        return Equal(theory, run, scale_of_each(theory, run))

    return form


def compare_bottleneck_value(outcome: AutoencoderOutcome) -> Equal:
    """Losses of the bottleneck on the scale of tr S, of which near p = 1 they are differences."""
    theory, run = outcome.predicted.bottleneck_value, outcome.measured.bottleneck_value
    return Equal(theory, run, outcome.predicted.energy)


def compare_ranks(outcome: AutoencoderOutcome) -> Count:
    """Compare the rank that theory states with that of what training reaches."""
    return Count(
        ranks(np.asarray(outcome.predicted.rank_values), outcome.dtype),
        ranks(np.asarray(outcome.measured.rank_values), outcome.dtype),
    )


def change_of_blocks(outcome: AutoencoderOutcome) -> Zero:
    """Change of the diagonal blocks; were they trained, they would end elsewhere altogether."""
    start = np.asarray(outcome.predicted.unidentified)
    largest = float(np.max(np.abs(start)))
    return Zero(outcome.measured.unidentified - start, scale=largest, alternative=largest)


def ranks(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Ranks of matrices that are known to half of their digits, from their singular values."""
    largest = np.max(values, axis=-1, keepdims=True)
    count = np.sum(values > half_of_the_digits(dtype) * largest, axis=-1)
    # NaN is no rank: it differs from all.
    return np.where(np.isfinite(largest[..., 0]), count, np.nan)


def too_short(outcome: AutoencoderOutcome, rate: float, condition: float) -> str:
    """Why the end of training cannot be judged; nothing if it can.

    The slowest error, of curvature 1 / condition, must decay to round-off squared.

    Args:
        outcome: its precision decides what round-off is.
        rate: step, over that of A.
        condition: of the curvature.
    """
    # Momentum makes steps 1 / (1 - momentum) times as long.
    time = autoencoder_training_claims.STEPS / (1 - autoencoder_training_claims.MOMENTUM)
    if np.isinf(condition):
        return "no curvature"
    # The exponent by which the slowest error has fallen at the end.
    decay, wanted = time * rate / condition, -2 * np.log(np.finfo(outcome.dtype).eps)
    if decay >= wanted:
        return ""
    return MoreSteps(autoencoder_training_claims.STEPS * wanted / decay)


def whole_too_short(outcome: AutoencoderOutcome) -> str:
    """Why the end of autoencoders without a bottleneck cannot be judged; nothing if it can."""
    return too_short(outcome, 1.0, float(outcome.predicted.inverting))


def narrow_too_short(outcome: AutoencoderOutcome) -> str:
    """Why the end of the narrow autoencoder cannot be judged; nothing if it can.

    Its slowest direction may be that of a small gap of sigma_r and sigma_{r+1}.
    """
    flags = outcome.point
    groups = autoencoder_training_claims.patch_numbers(
        int(flags["rows"]), flags["mask"], int(flags["patch_size"])
    )
    rate = autoencoder_training_claims.narrow_rate(flags["keep_prob"], groups)
    return too_short(outcome, float(rate), float(outcome.predicted.choosing))


def _asks_for(loss: str) -> Callable[[AutoencoderOutcome], bool]:
    """Make a test of whether a loss was asked for."""
    return lambda outcome: loss in outcome.point["loss"].split()


def _asks_for_unique(loss: str) -> Callable[[AutoencoderOutcome], bool]:
    """Make a test of whether a loss was asked for and Q is regular.

    On the kernel of Q training does not move A.
    """
    asked = _asks_for(loss)
    return lambda outcome: asked(outcome) and bool(outcome.predicted.unique)


# What is broken ------------------------------------------------------------------------------


def _fixed_number(key: Key[Array, ""], case: Autoencoding, amount: Array) -> Autoencoding:
    """About p of the patches shown, as in practice: the right mean, but not independent."""
    shown = jnp.sum(case.masks.support, axis=1)
    # Weights of the two whole numbers around p times the patches, so that the mean is p; each is
    # shared by all ways of showing so many.
    near = jnp.maximum(0.0, 1 - jnp.abs(shown - case.keep_prob * case.masks.support.shape[1]))
    ways = jnp.sum(shown[:, None] == shown[None, :], axis=1)
    masks = case.masks._replace(probabilities=near / ways)
    return dataclasses.replace(case, masks=masks)


def soft_threshold(case: Autoencoding, data: Array) -> Array:
    """A if masking penalised the squared nuclear norm: p A X = U (Sigma - mu I)_+ V^T."""
    strength = dropout_penalties.dropout_strength(case.keep_prob, len(data))
    product = dropout_minimum.shrink_squared(data, strength, len(data)).product
    return dropout_minimum.input_layer(product, data) / case.keep_prob


def _wrong_formulas(case: Autoencoding) -> dict[str, MaskedAutoencoderTheory]:
    """Theories with one wrong field, by the ids of their controls."""
    A, theta, width = case.anything, case.keep_prob, case.width

    def off_blocks(matrix: Array) -> Array:
        return matrix - within_patches(matrix, case.patch_of)

    def predict_data_set(data: Array) -> dict[str, MaskedAutoencoderTheory]:
        moments = _moments(case, data)
        fit = autoencoder_training_claims.autoencoder_loss(A, data, jnp.full(len(data), theta))
        entries = masked_autoencoder.masked_moments(data, np.arange(len(data)), theta)
        loss = masked_autoencoder.masked_autoencoder_loss
        masked_loss = masked_autoencoder.masked_only_loss(A, moments)
        optimum = masked_autoencoder.optimal_autoencoder(moments)
        thresholded, left = soft_threshold(case, data), linalg.svd(data)[0][:, :width]
        values = masked_autoencoder.bottleneck_autoencoder(moments, width).values
        value = jnp.trace(moments.whole) - jnp.sum(values[:width] ** 2)
        # Only the diagonal of A put to 0, by mu_i, where patches are masked.
        inverse = moments.root @ moments.root
        mu = jnp.diagonal(moments.whole @ inverse) / jnp.diagonal(inverse)
        no_diagonal = (moments.whole - jnp.diag(mu)) @ inverse
        Theory = MaskedAutoencoderTheory
        return {
            "nuclear_norm_penalty": Theory(marginal=fit + nuclear_norm_bound(A, data, theta)),
            "plain_ridge": Theory(marginal=fit + theta * (1 - theta) * jnp.sum(A**2)),
            "entries_for_patches": Theory(marginal=loss(A, entries)),
            "masks_over_their_mean": Theory(marginal=loss(A / theta, moments)),
            "soft_thresholding": Theory(optimum=thresholded),
            "optimum_of_entries": Theory(optimum=masked_autoencoder.optimal_autoencoder(entries)),
            "rank_of_soft_thresholding": Theory(rank_values=singular_values(thresholded)),
            "vectors_of_s": Theory(bottleneck=left @ (left.T @ optimum)),
            "value_without_p": Theory(bottleneck_value=value),
            "bound_not_divided": Theory(nuclear_bound=len(data) * _bounds(case, data)),
            "diagonal_kept": Theory(masked_marginal=(1 - theta) * loss(A, moments)),
            "chance_forgotten": Theory(masked_marginal=masked_loss / (1 - theta)),
            "blocks_cut_out": Theory(masked_optimum=off_blocks(optimum)),
            "single_multipliers": Theory(masked_optimum=off_blocks(no_diagonal)),
            "blocks_trained": Theory(unidentified=jnp.zeros_like(A)),
        }

    return jax.vmap(predict_data_set)(case.data)


def _control(id: str, statement: str, claim: str) -> Control[Autoencoding, Any, Any]:
    """Make a control whose theory has one wrong field, with the tolerance of a condition of 1."""

    def predict_wrong(case: Autoencoding, once: Once = each_time) -> MaskedAutoencoderTheory:
        # All wrong formulas are computed once, and shared by their controls.
        wrong = arrays_in(once(_wrong_formulas, case)[id])
        unconditioned = jnp.ones((), case.data.dtype)
        return MaskedAutoencoderTheory(**wrong, inverting=unconditioned, choosing=unconditioned)

    return Control(id, statement, claim, predict=predict_wrong)


# The scenario --------------------------------------------------------------------------------


def _narrow(settings: dict[str, Any]) -> dict[str, Any]:
    """Input masks only, and both losses in one program.

    At a width of the rank of the random data, min(m - 1, n), there is no bottleneck, and training
    ends late; beyond it nothing determines the other directions. Such widths become one less.
    """
    words = tuple(word for word in settings["mask"] if word in ("input", "patch"))
    losses = " ".join(sorted(settings["loss"]))
    rank = min(min(settings["rows"]) - 1, *settings["cols"])
    most = max(1, rank - 1)
    narrow = tuple(width for width in settings["width"] if width <= most) or (most,)
    return settings | {"mask": words, "loss": (losses,), "width": narrow}


AUTOENCODER = Scenario[Autoencoding, MaskedAutoencoderTheory, MaskedAutoencoderMeasured](
    "autoencoder",
    autoencoder_training_claims.make_case,
    predict,
    autoencoder_training_claims.measure,
    theory=MaskedAutoencoderTheory,
    measured=MaskedAutoencoderMeasured,
    claims=(
        Claim(
            "marginal",
            "E ||X - A(M*X)||^2 / n = tr[(I - pA) S (I - pA)^T] + p(1-p) tr(A D A^T) for any A, "
            "over all masks M of features or patches, S = X X^T / n, D its diagonal blocks",
            form=compare_each_data_set(lambda theory, run: (theory.marginal, run.marginal)),
            applies=_asks_for("all"),
        ),
        Claim(
            "optimum",
            "a masked autoencoder trained on all entries reaches A = S Q^{-1}, Q = p S + (1-p) "
            "D, if Q is not singular (no patch has more features than X has rank)",
            form=compare_each_data_set(lambda theory, run: (theory.optimum, run.optimum)),
            reads=lambda theory, run: (
                theory.optimum,
                run.optimum,
                theory.inverting,
                theory.unique,
            ),
            condition=lambda theory: theory.inverting,
            applies=_asks_for_unique("all"),
            undecided=whole_too_short,
        ),
        Claim(
            "rank",
            "a masked autoencoder trained on all entries has the rank of X if Q = p S + (1-p) D is "
            "regular: masks cut no direction off",
            kind="exact",
            form=compare_ranks,
            reads=lambda theory, run: (
                theory.rank_values,
                run.rank_values,
                theory.inverting,
                theory.unique,
            ),
            applies=_asks_for_unique("all"),
            undecided=whole_too_short,
        ),
        Claim(
            "bottleneck",
            "a masked autoencoder of width r trained on all entries reaches A = U_r U_r^T S "
            "Q^{-1}, U_r the first r left singular vectors of S Q^{-1/2}, if Q = p S + (1-p) D is "
            "regular and sigma_r > sigma_{r+1} of S Q^{-1/2}",
            form=compare_each_data_set(lambda theory, run: (theory.bottleneck, run.bottleneck)),
            reads=lambda theory, run: (
                theory.bottleneck,
                run.bottleneck,
                theory.choosing,
                theory.unique,
            ),
            condition=lambda theory: theory.choosing,
            applies=_asks_for_unique("all"),
            undecided=narrow_too_short,
        ),
        Claim(
            "bottleneck_value",
            "a masked autoencoder of width r trained on all entries reaches the loss tr S - p "
            "sum_{i <= r} sigma_i(S Q^{-1/2})^2, Q = p S + (1-p) D",
            form=compare_bottleneck_value,
            reads=lambda theory, run: (
                theory.bottleneck_value,
                run.bottleneck_value,
                theory.energy,
                theory.choosing,
            ),
            # A sum of the largest squares has no gap in it.
            condition=lambda theory: theory.inverting,
            applies=_asks_for("all"),
            undecided=narrow_too_short,
        ),
        dataclasses.replace(
            lower_bound(
                "nuclear_bound",
                "the penalty of input masks is at least a squared nuclear norm: p(1-p) tr(A D "
                "A^T) >= p(1-p) ||A X||_*^2 / (n m) for any A",
                compares=lambda theory, run: (theory.nuclear_bound, run.penalty),
            ),
            applies=_asks_for("all"),
        ),
        Claim(
            "attained",
            "if the rows of X are orthogonal and of equal norm, p(1-p) tr(A D A^T) = p(1-p) ||A "
            "X||_*^2 / (n m) at A = I",
            applies=_asks_for("all"),
        ),
        Claim(
            "masked_marginal",
            "the expected loss of a masked autoencoder A on the masked entries alone is 1 - p "
            "times the loss on all entries of A without its diagonal blocks",
            form=compare_each_data_set(
                lambda theory, run: (theory.masked_marginal, run.masked_marginal)
            ),
            applies=_asks_for("masked"),
        ),
        Claim(
            "masked_optimum",
            "a masked autoencoder trained on the masked entries alone reaches A = (S - blkdiag "
            "M_b) Q^{-1} outside the diagonal blocks, M_b = (S Q^{-1})_bb ((Q^{-1})_bb)^{-1}",
            form=compare_each_data_set(
                lambda theory, run: (theory.masked_optimum, run.masked_optimum)
            ),
            reads=lambda theory, run: (
                theory.masked_optimum,
                run.masked_optimum,
                theory.inverting,
                theory.unique,
            ),
            condition=lambda theory: theory.inverting,
            applies=_asks_for_unique("masked"),
            undecided=whole_too_short,
        ),
        Claim(
            "unidentified",
            "training a masked autoencoder A on the masked entries alone leaves its diagonal "
            "blocks where they started",
            form=change_of_blocks,
            applies=_asks_for("masked"),
        ),
    ),
    controls=(
        Control(
            "fixed_number_shown",
            "always the same number of patches shown, or one more, the mean being p",
            "marginal",
            case=_fixed_number,
            breaks="masks_are_independent",
        ),
        *(
            _control(*texts)
            for texts in (
                ("nuclear_norm_penalty", "penalty p(1-p) ||A X||_*^2 / (n m)", "marginal"),
                ("plain_ridge", "D replaced by I", "marginal"),
                ("entries_for_patches", "D = diag S where patches are masked", "marginal"),
                ("masks_over_their_mean", "p forgotten: the loss of M/p", "marginal"),
                (
                    "soft_thresholding",
                    "input masking by soft-thresholding: p A X = U (Sigma - mu I)_+ V^T",
                    "optimum",
                ),
                ("optimum_of_entries", "D = diag S where patches are masked", "optimum"),
                ("rank_of_soft_thresholding", "the rank that soft-thresholding leaves", "rank"),
                ("vectors_of_s", "U_r of S, not of S Q^{-1/2}", "bottleneck"),
                ("value_without_p", "tr S - sum_{i <= r} sigma_i^2", "bottleneck_value"),
                ("bound_not_divided", "the bound without 1/m", "nuclear_bound"),
            )
        ),
        Control(
            "attained_by_any_data",
            "A = I on data whose rows are not orthogonal",
            "attained",
            measure=lambda case: MaskedAutoencoderMeasured(
                attained=autoencoder_training_claims.identity_penalty(case, case.data[0])
            ),
        ),
        Control(
            "attained_twofold",
            "twice the squared nuclear norm",
            "attained",
            predict=lambda case, once=each_time: MaskedAutoencoderTheory(
                attained=2 * once(predict, case).attained
            ),
        ),
        *(
            Control(
                f"{claim}_untrained",
                "no training, and masks that mostly show everything",
                claim,
                measure=autoencoder_training_claims.measure_untrained,
            )
            for claim in (
                "marginal",
                "optimum",
                "rank",
                "bottleneck",
                "bottleneck_value",
                "nuclear_bound",
                "masked_marginal",
                "masked_optimum",
            )
        ),
        Control(
            "unidentified_untrained",
            "no training, and the diagonal blocks halved",
            "unidentified",
            measure=autoencoder_training_claims.measure_untrained,
        ),
        *(
            _control(*texts)
            for texts in (
                ("diagonal_kept", "diagonal blocks of A kept", "masked_marginal"),
                ("chance_forgotten", "the factor 1 - p left out", "masked_marginal"),
                ("blocks_cut_out", "S Q^{-1} without its blocks", "masked_optimum"),
                ("single_multipliers", "mu_i in place of M_b", "masked_optimum"),
                ("blocks_trained", "diagonal blocks of A trained to 0", "unidentified"),
            )
        ),
    ),
    hypotheses={"masks_are_independent": _are_masks_independent},
    narrow=_narrow,
    summed=lambda case: (case.data, case.white),
    long=True,
    sides="moments S, D, Q against all masks enumerated and autoencoders trained on these sums",
    at={"mask": "patch", "loss": "all masked"},
)


def check(point: Mapping[str, Any]) -> None:
    """Refuse combinations whose masks cannot be enumerated."""
    if point["mask"] not in ("input", "patch"):
        return
    size = point["patch_size"] if point["mask"] == "patch" else 1
    if size > point["rows"]:
        raise ValueError(f"--patch-size: got {size}, wanted at most --rows {point['rows']}")
    groups = -(-point["rows"] // size)
    if groups > MOST_MASKS:
        raise ValueError(
            f"--rows: got {point['rows']}, {groups} parts to mask, wanted at most {MOST_MASKS}: "
            "all masks are summed over"
        )
