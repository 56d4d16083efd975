"""Theorem 3: masked training is training with a penalty, for any masks.

For masks R of means mu and covariance C, whatever their distribution, and any terms Z_i,

    E ||Y - sum_i (R_i/mu_i) Z_i||_F^2 = ||Y - sum_i Z_i||_F^2 + sum_ij C_ij/(mu_i mu_j) <Z_i, Z_j>.

Example 4.1 is dropout: terms ``u_i v_i^T`` of h hidden units, each kept with probability theta. Its
penalty, ``(1-theta)/theta sum_i ||u_i||^2 ||v_i||^2``, is at least ``(1-theta)/(theta h)
||Z||_*^2``, with equality for equalised factors. Example 4.2 masks the inputs of an autoencoder.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lrdyn.core import masking
from lrdyn.core.initialization import gaussians
from lrdyn.core.masking import MaskDistribution, exact_expectation, mask_covariance, mask_mean
from lrdyn.core.platforms import platform_dependent
from lrdyn.data import mnist_file
from lrdyn.shared_flags import COLS, LEARNING_RATE, ROWS, STEPS
from lrdyn.theorem3 import masked_autoencoder_claims
from lrdyn.theorem3.dropblock_claims import DROPBLOCK
from lrdyn.theorem3.dropout_minimiser_claims import MINIMISER
from lrdyn.theorem3.dropout_penalty_claims import DROPOUT
from lrdyn.theorem3.figures import plot_dropout
from lrdyn.theorem3.network import MOST_MASKS, EnumeratedCase
from lrdyn.theorem3.statistics import (
    Law,
    combine_p,
    law_of_squares,
    mean_decides,
    mean_p,
    scatter_decides,
    scatter_p,
)
from lrdyn.verification.running.evaluate import Once, each_time
from lrdyn.verification.stating.claims import ROUNDING_SAFETY, tolerance
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.flags import FRACTION, POSITIVE, Flag, at_least, one_of
from lrdyn.verification.stating.forms import Test
from lrdyn.verification.stating.statement import Claim, Control, Outcome, Scenario, Theorem

KINDS = ("dropout", "dropblock", "input", "patch")
"""Masks of single hidden units, of blocks of them, of single inputs, and of patches of these."""

LOSSES = ("all", "masked")
"""Entries that a masked autoencoder is trained to give back."""

FLAGS = (
    ROWS.at((6,), paper=(8,), help="rows of Y and of X"),
    COLS.at((8,), paper=(10,), help="examples: columns of X and Y"),
    Flag(
        "width",
        (4,),
        at_least(1),
        int,
        symbol="h",
        help="hidden units",
        paper=(4, 12, 24),
        shapes=True,
    ),
    Flag(
        "keep_prob",
        (0.3, 0.5, 0.7),
        FRACTION,
        symbol="theta",
        help="probability to keep a hidden unit, a block or an input",
        paper=(0.2, 0.3, 0.5, 0.7, 0.9),
    ),
    Flag("mask", KINDS, one_of(*KINDS), str, symbol="R", help="what is masked", shapes=True),
    Flag(
        "block_size",
        (2,),
        at_least(1),
        int,
        symbol="b",
        help="hidden units of a block of DropBlock",
        paper=(2, 4),
        shapes=True,
    ),
    Flag(
        "patch_size",
        (2,),
        at_least(1),
        int,
        symbol="b",
        help="rows of X in a patch",
        paper=(2, 4),
        shapes=True,
    ),
    Flag(
        "loss",
        LOSSES,
        one_of(*LOSSES),
        str,
        help="entries of X that masked autoencoders reconstruct",
        shapes=True,
    ),
    LEARNING_RATE.at((0.5,), paper=(0.4,), domain=POSITIVE),
    STEPS.at((5000,), paper=(20_000,)),
)

ANY = 9
"""Points of a distribution of masks without structure."""

DRAWS = (16, 256, 4096)
"""Draws of an estimate. Those of the most draws have masks of the first term or block alone, which
cost less: all others are kept."""

KEYS = 16
"""Keys of an estimate. Where it has more draws each makes several masks, which costs less."""

REPEATS = 3500
"""How often each estimate is made. Errors larger or smaller by a tenth are then noticed in 99 of
100 runs, at the chance of a false alarm that a command of 24 tests has."""

MASKS_AT_ONCE = 2**16
"""Masks of one run that are drawn side by side on an accelerator: 4 MB of random bits for 16
terms."""

TENTH = 1.1
"""Factor by which errors must not be off unnoticed; 2 - TENTH on the other side."""

SHIFT = 1 / 80
"""Standard deviations of one loss by which a mean must not be off unnoticed: 11.8 and 47.3 standard
errors of the mean of all estimates of 256 and of 4096 draws."""


class MaskedSum(EnumeratedCase):
    """A target, the terms of a prediction and the distributions of their masks."""

    target: Float[Array, "m n"]
    terms: Float[Array, "terms m n"]
    """Z_i."""
    others: MaskDistribution
    """Masks without any structure: real numbers, dependent, of unequal means."""
    key: Key[Array, ""]
    """Random key of the draws."""
    block: int = eqx.field(static=True)
    """Terms that are masked together."""

    @property
    def mean(self) -> Float[Array, "terms"]:
        """Mean of a mask of the kind, theta in every entry."""
        return jnp.full(len(self.terms), self.keep_prob)

    def covariance(self, block: int) -> Float[Array, "terms terms"]:
        """Covariance of a mask of independent blocks."""
        return masking.block_covariance(len(self.terms), block, self.keep_prob)

    def expected(self, mean: Array, covariance: Array) -> Float[Array, ""]:
        """The loss over masks of this mean and covariance, by the theorem."""
        return masking.deterministic_equivalent(self.target, self.terms, mean, covariance)


class MasksTheory(NamedTuple):
    """Expected losses from two moments, and how losses scatter."""

    mask_identity: Float[Array, ""] = ABSENT
    """Expected loss over the masks of the kind, from their mean and covariance."""
    any_masks: Float[Array, ""] = ABSENT
    """Expected loss over masks without structure, from theirs."""
    monte_carlo: Float[Array, "draws"] = ABSENT
    """Expected losses of random masks: of those of the kind, twice, and of the first one alone."""
    monte_carlo_rate: Float[Array, "draws"] = ABSENT
    """Standard errors of the estimates: the deviation of one loss over the root of DRAWS."""
    losses_shape: Float[Array, "draws moment"] = ABSENT
    """Standardised moments of the loss of a random mask, of order 3 to 8."""


class MasksMeasured(NamedTuple):
    """Sums over masks, and means over random draws."""

    mask_identity: Float[Array, ""] = ABSENT
    """Loss summed over all masks of the kind with their probabilities."""
    any_masks: Float[Array, ""] = ABSENT
    """Loss summed over the masks without structure."""
    estimates: Float[Array, "draws repeat"] = ABSENT
    """Mean losses of DRAWS random masks, REPEATS times with other ones."""


def make_case(
    key: Key[Array, ""],
    *,
    rows: int,
    cols: int,
    width: int,
    keep_prob: Any,
    mask: str,
    block_size: int,
    patch_size: int,
) -> MaskedSum:
    """Draw a target and the terms that masks of a kind act on."""
    shapes = [(rows, cols), (rows, cols), (width, rows), (rows, width)]
    hidden = mask in ("dropout", "dropblock")
    block = {"dropblock": block_size, "patch": patch_size}.get(mask, 1)
    # More terms than can be enumerated are left out.
    count = min(width if hidden else rows, MOST_MASKS * block)
    *draws, others = gaussians(key, [*shapes, (ANY, count + 1)])
    target, inputs, first, second = (G / np.sqrt(rows) for G in draws)
    columns, lines = (second, first @ inputs) if hidden else (second @ first, inputs)
    keep_prob = jnp.asarray(keep_prob, target.dtype)
    return MaskedSum(
        target=target,
        terms=columns.T[:count, :, None] * lines[:count, None, :],
        keep_prob=keep_prob,
        masks=masking.block_masks(count, block, keep_prob),
        # Positive entries: their means, which masks are divided by, are away from zero.
        others=MaskDistribution(0.2 + jnp.abs(others[:, 1:]), jax.nn.softmax(others[:, 0])),
        key=jax.random.fold_in(key, 1),
        block=block,
    )


# Theory and measurement ----------------------------------------------------------------------


def _loss(case: MaskedSum, mask: Array, mean: Array) -> Float[Array, ""]:
    return jnp.sum((case.target - masking.masked_prediction(mask, mean, case.terms)) ** 2)


def _mask_first_block(case: MaskedSum) -> tuple[MaskDistribution, Array]:
    """Masks of the first block, all others being kept, and their mean."""
    first = jnp.arange(len(case.terms)) < case.block
    of_one = masking.bernoulli_masks(1, case.keep_prob)
    masks = of_one._replace(support=jnp.where(first[None, :], of_one.support, 1.0))
    return masks, jnp.where(first, case.keep_prob, 1.0)


class _Losses(NamedTuple):
    """Scatter of the loss of a random mask, by enumeration."""

    deviation: Float[Array, ""]
    """Standard deviation."""
    moments: Float[Array, "6"]
    """Standardised moments of order 3 to 8."""


def _law(case: MaskedSum, masks: MaskDistribution, mean: Array) -> _Losses:
    losses = jax.vmap(lambda mask: _loss(case, mask, mean))(masks.support)
    # From centred losses: differences of raw moments of order 8 would cancel.
    centred = losses - masks.probabilities @ losses
    deviation = jnp.sqrt(masks.probabilities @ centred**2)
    powers = (centred / deviation)[None, :] ** np.arange(3, 9)[:, None]
    return _Losses(deviation, powers @ masks.probabilities)


def _expected_estimates(case: MaskedSum, covariance: Array) -> Float[Array, "draws"]:
    """Expected losses of what is drawn, by the theorem, if masks have that covariance."""
    mean_alone = _mask_first_block(case)[1]
    first = mean_alone < 1
    # Terms that are always kept have no variance.
    alone = jnp.where(first[:, None] & first[None, :], covariance, 0.0)
    of_all = case.expected(case.mean, covariance)
    return jnp.stack([of_all, of_all, case.expected(mean_alone, alone)])


def predict(case: MaskedSum) -> MasksTheory:
    """Expected losses from means and covariances alone; the law of the losses from all masks."""
    of_all, of_first = _law(case, case.masks, case.mean), _law(case, *_mask_first_block(case))
    each = [of_all, of_all, of_first]
    deviations = jnp.stack([law.deviation for law in each])
    return MasksTheory(
        mask_identity=case.expected(case.mean, case.covariance(case.block)),
        any_masks=case.expected(mask_mean(case.others), mask_covariance(case.others)),
        monte_carlo=_expected_estimates(case, case.covariance(case.block)),
        monte_carlo_rate=deviations / np.sqrt(DRAWS),
        losses_shape=jnp.stack([law.moments for law in each]),
    )


def _estimates(
    case: MaskedSum, losses: Float[Array, "masks"], draws: int, keep_prob: Array, repeats: int
) -> Float[Array, "repeats"]:
    """Mean losses of random masks of blocks that are kept with a probability.

    Args:
        case: its key and its blocks.
        losses: of all masks of the first blocks, in the order of :func:`bernoulli_masks`, which
            numbers masks by their bits.
        draws: masks of an estimate.
        keep_prob: theta of the masks that are drawn.
        repeats: how many estimates are made.
    """
    # The losses of all 2^blocks masks are known: to draw one is to look it up by its bits.
    blocks, together = len(losses).bit_length() - 1, draws // KEYS
    bits = 2.0 ** jnp.arange(blocks)

    def draw(key: Key[Array, ""]) -> Array:
        size = together * blocks * case.block
        mask = masking.draw_mask(key, size, keep_prob, block=case.block)
        # Terms of a block share one bit.
        return mask.reshape(together, blocks, case.block)[:, :, 0]

    def loss(masks: Array) -> Array:
        return jnp.mean(losses[(masks @ bits).astype(jnp.int32)])

    def estimate(number: Array) -> Array:
        key = jax.random.fold_in(jax.random.fold_in(case.key, draws), number)
        return masking.monte_carlo(key, loss, draw, KEYS).mean

    # One after another they stay in a processor's cache; elsewhere each would have its own kernels.
    several = max(1, MASKS_AT_ONCE // draws)
    return platform_dependent(
        jnp.arange(repeats),
        cpu=lambda numbers: jax.lax.map(estimate, numbers),
        default=lambda numbers: jax.lax.map(estimate, numbers, batch_size=several),
    )


def _measure_masks(
    case: MaskedSum,
    masks: MaskDistribution,
    others: MaskDistribution,
    keep_prob: Array,
    repeats: int,
) -> MasksMeasured:
    """Losses over two distributions of masks, and of draws that are kept with a probability.

    Masks are divided by the means of the case, whatever the distributions are.
    """
    other_mean = mask_mean(case.others)
    first, mean_alone = _mask_first_block(case)
    of_all = jax.vmap(lambda mask: _loss(case, mask, case.mean))(case.masks.support)
    of_first = jax.vmap(lambda mask: _loss(case, mask, mean_alone))(first.support)
    each = zip((of_all, of_all, of_first), DRAWS, strict=True)
    return MasksMeasured(
        mask_identity=exact_expectation(lambda mask: _loss(case, mask, case.mean), *masks),
        any_masks=exact_expectation(lambda mask: _loss(case, mask, other_mean), *others),
        estimates=jnp.stack(
            [_estimates(case, losses, draws, keep_prob, repeats) for losses, draws in each]
        ),
    )


def measure(case: MaskedSum) -> MasksMeasured:
    """Expected losses by enumeration of all masks, and by random draws."""
    return _measure_masks(case, case.masks, case.others, case.keep_prob, REPEATS)


def _moments_as_stated(case: MaskedSum) -> Array:
    """Whether P(R_i = 1) = theta, and P(R_i = R_j = 1) = theta in a block and theta^2 elsewhere."""
    (masks, probabilities), theta = case.masks, case.keep_prob
    number = np.arange(len(case.terms)) // case.block
    wanted = jnp.where(number[:, None] == number[None, :], theta, theta**2)
    together = (probabilities[:, None] * masks).T @ masks
    # Masks are 0 or 1, too.
    errors = jnp.append(jnp.abs(together - wanted), jnp.abs(masks * (1 - masks)))
    return jnp.max(errors) <= tolerance("identity", errors.dtype, size=len(probabilities))


# Judges --------------------------------------------------------------------------------------

MasksOutcome = Outcome[MasksTheory, MasksMeasured]


LARGER = range(1, len(DRAWS))
"""Which estimates are precise enough to test their mean."""


def _skewness(outcome: MasksOutcome, index: int) -> float:
    """Skewness of the mean of all draws."""
    repeats = np.shape(outcome.measured.estimates)[1]
    return float(outcome.predicted.losses_shape[index, 0] / np.sqrt(DRAWS[index] * repeats))


def _rounding(outcome: MasksOutcome, index: int) -> float:
    """By how much rounding alone can move an expectation, and every estimate alike.

    Where masks change little of a loss, so many draws would tell its last digits from theory's.
    """
    rounding = tolerance("identity", outcome.dtype, size=outcome.size) / ROUNDING_SAFETY
    return rounding * abs(float(outcome.predicted.monte_carlo[index]))


def _mean_test(outcome: MasksOutcome) -> Test:
    """Student's test of the estimates, and of what it would say if their mean were off by SHIFT.

    Theory's expectation is known up to rounding: tested is the nearest one within it.
    """
    theory, estimates = outcome.predicted, np.asarray(outcome.measured.estimates)

    def p_if_off(index: int, by: float) -> float:
        # The rate is that of a mean of DRAWS losses; times their root it is the deviation of one.
        off = by * theory.monte_carlo_rate[index] * np.sqrt(DRAWS[index])
        expected, rounding = float(theory.monte_carlo[index] + off), _rounding(outcome, index)
        mean = float(np.mean(estimates[index], dtype=float))
        nearest = float(np.clip(mean, expected - rounding, expected + rounding))
        return mean_p(nearest, estimates[index], _skewness(outcome, index))

    right = np.min([p_if_off(index, 0.0) for index in LARGER])
    off = max(p_if_off(index, by) for index in LARGER for by in (-SHIFT, SHIFT))
    # Two tests have two chances of a false alarm.
    return Test(*(combine_p(float(p), len(LARGER)) for p in (right, off)))


def _law_of_squares(outcome: MasksOutcome, index: int) -> Law:
    """Law of the sum of the squared errors of estimates, over the square of their error."""
    moments = np.asarray(outcome.predicted.losses_shape[index])
    return law_of_squares(moments, DRAWS[index], np.shape(outcome.measured.estimates)[1])


def _scatter_test(outcome: MasksOutcome) -> Test:
    """Test of the squared errors of the estimates, and of what they are if errors are off.

    The alternative depends on no draw: errors larger or smaller by a tenth make the sum of their
    squares, in the mean, larger or smaller by the square of that. Errors are known up to rounding:
    tested is the nearest sum within it.
    """
    theory, estimates = outcome.predicted, np.asarray(outcome.measured.estimates)
    errors = (estimates - theory.monte_carlo[:, None]) / theory.monte_carlo_rate[:, None]
    laws = [_law_of_squares(outcome, index) for index in range(len(DRAWS))]

    def p_if_size(index: int, size: float) -> float:
        """p-value of errors whose root mean square is ``size``, in units of that of theory."""
        law = laws[index]
        rounding = _rounding(outcome, index) / float(theory.monte_carlo_rate[index])
        nearest = np.clip(1.0, max(size - rounding, 0.0), size + rounding)
        return scatter_p(law.number * float(nearest) ** 2, law)

    indices, sizes = range(len(DRAWS)), np.sqrt(np.mean(errors**2, axis=1)).tolist()
    off = [p_if_size(index, by) for index in indices for by in (TENTH, 2 - TENTH)]
    right = np.min(list(map(p_if_size, indices, sizes)))
    return Test(*(combine_p(float(p), len(DRAWS)) for p in (right, max(off))))


def _mean_undecided(outcome: MasksOutcome) -> str:
    decided = all(mean_decides(_skewness(outcome, index)) for index in LARGER)
    return "" if decided else "losses too skewed"


def _scatter_undecided(outcome: MasksOutcome) -> str:
    decided = all(scatter_decides(_law_of_squares(outcome, index)) for index in range(len(DRAWS)))
    return "" if decided else "losses too skewed"


# What is broken ------------------------------------------------------------------------------


def _tilt(key: Key[Array, ""], case: MaskedSum, amount: Array) -> MaskedSum:
    """Move the probabilities toward those of a mask that keeps everything."""
    probabilities = case.masks.probabilities
    tilted = (1 - amount) * probabilities + amount * jnp.all(case.masks.support == 1, axis=1)
    return eqx.tree_at(lambda c: c.masks.probabilities, case, tilted)


def _wrong_formulas(case: MaskedSum, once: Once = each_time) -> MasksTheory:
    """The mean prediction alone; masks not scaled; the error of a sum in place of a mean."""
    return MasksTheory(
        any_masks=case.expected(jnp.ones_like(case.mean), mask_covariance(case.others)),
        monte_carlo=_expected_estimates(case, jnp.zeros((len(case.terms),) * 2)),
        monte_carlo_rate=once(predict, case).monte_carlo_rate * np.asarray(DRAWS),
    )


def _wrong_run(case: MaskedSum) -> MasksMeasured:
    """Masks kept with probability theta^2, though divided by theta; the others equally likely."""
    squared = case.keep_prob**2
    masks = masking.block_masks(len(case.terms), case.block, squared)
    equal = jnp.full(ANY, 1 / ANY, case.target.dtype)
    others = case.others._replace(probabilities=equal)
    # So far off that a few estimates show it.
    return _measure_masks(case, masks, others, squared, REPEATS // 5)


# The scenario --------------------------------------------------------------------------------


def _first_kind(settings: dict[str, Any]) -> dict[str, Any]:
    """The first kind of mask, at widths whose masks can be enumerated.

    The scenarios about the other kinds have an identity of their own.
    """
    kind = settings["mask"][0]
    sizes = {"dropblock": "block_size", "patch": "patch_size"}
    others = [size for other, size in sizes.items() if other != kind]
    first = {name: settings[name][:1] for name in ("mask", *others)}
    few = tuple(width for width in settings["width"] if width <= MOST_MASKS)
    return settings | first | {"width": few or (MOST_MASKS,)}


MASKS = Scenario[MaskedSum, MasksTheory, MasksMeasured](
    "masks",
    make_case,
    predict,
    measure,
    theory=MasksTheory,
    measured=MasksMeasured,
    claims=(
        Claim(
            "mask_identity",
            "E ||Y - sum_i (R_i/mu_i) Z_i||_F^2 = ||Y - sum_i Z_i||_F^2 + sum_ij C_ij/(mu_i "
            "mu_j) <Z_i, Z_j> over all masks R of a kind, of means mu and covariance C (of the "
            f"first {MOST_MASKS} terms or blocks, if there are more)",
        ),
        Claim(
            "any_masks",
            "E ||Y - sum_i (R_i/mu_i) Z_i||_F^2 = ||Y - sum_i Z_i||_F^2 + sum_ij C_ij/(mu_i "
            "mu_j) <Z_i, Z_j> for masks R of real entries, dependent and of unequal means",
        ),
        Claim(
            "monte_carlo",
            "the mean loss of random masks is the expected loss of the formula: Student's test "
            f"of {REPEATS} estimates of {DRAWS[1]} draws each, and of as many of {DRAWS[2]} draws "
            "of the first term or block alone, all others being kept; the smaller p, times the "
            "factor by which the skewness of the losses can falsify it (undecided near theta = 0 "
            f"and 1); alternative: expected losses off by {SHIFT:g} standard deviations of one "
            "loss",
            kind="statistical",
            form=_mean_test,
            reads=lambda theory, run: (
                theory.monte_carlo,
                theory.monte_carlo_rate,
                theory.losses_shape,
                run.estimates,
            ),
            undecided=_mean_undecided,
        ),
        Claim(
            "monte_carlo_rate",
            "the mean loss of n random masks has the standard error that theory gives, the "
            f"deviation of one loss over n^(1/2), for n = {', '.join(map(str, DRAWS))} (the most "
            f"of the first term or block alone): the sum of {REPEATS} squared errors against the "
            "shifted gamma law of its mean, variance and skewness; the smallest p of the three, "
            "corrected for the fourth moment; alternative: errors larger or smaller by a tenth",
            kind="statistical",
            form=_scatter_test,
            reads=lambda theory, run: (
                theory.monte_carlo_rate,
                theory.monte_carlo,
                theory.losses_shape,
                run.estimates,
            ),
            undecided=_scatter_undecided,
        ),
    ),
    controls=(
        Control(
            "masks_taken_as_independent",
            "the covariance within a block left out",
            "mask_identity",
            predict=lambda case: MasksTheory(
                mask_identity=case.expected(case.mean, case.covariance(1))
            ),
        ),
        Control(
            "tilted_masks",
            "masks of another mean and covariance",
            "mask_identity",
            case=_tilt,
            breaks="moments_as_stated",
            amount=0.5,
            amounts=(1e-8, 1e-6, 1e-4, 1e-2, 0.1, 0.5),
            amount_label="probability moved to the full mask",
        ),
        Control(
            "masks_not_scaled",
            "the formula without the means that masks are divided by",
            "any_masks",
            predict=_wrong_formulas,
        ),
        Control(
            "draws_without_penalty",
            "the loss of the mean prediction alone",
            "monte_carlo",
            predict=_wrong_formulas,
        ),
        Control(
            "sum_of_draws",
            "the error of the sum of the draws, which grows as n^(1/2)",
            "monte_carlo_rate",
            predict=_wrong_formulas,
        ),
        *(
            Control(f"{claim}_of_other_masks", f"{what}, in the run", claim, measure=_wrong_run)
            for claim, what in (
                ("mask_identity", "masks kept with probability theta^2"),
                ("any_masks", "all masks equally likely"),
                ("monte_carlo", "masks drawn with probability theta^2"),
                ("monte_carlo_rate", "masks drawn with probability theta^2"),
            )
        ),
    ),
    hypotheses={"moments_as_stated": _moments_as_stated},
    narrow=_first_kind,
    summed=lambda case: (case.target, case.terms),
    long=True,
    sides="mean and covariance of the masks against all masks enumerated, and against draws",
    at={"mask": "dropblock", "keep_prob": 0.5, "width": 4, "block_size": 2},
)

LEAST = 1e-8
"""Smallest keep probability: losses of its inverse square and cube are numbers in float32."""


def check(point: Mapping[str, Any]) -> None:
    """Refuse combinations outside the theorem."""
    masked_autoencoder_claims.check(point)
    if not LEAST <= np.float32(point["keep_prob"]) < 1:
        raise ValueError(
            f"--keep-prob: got {point['keep_prob']}, wanted {LEAST:g} to 1 - 6e-8: the float32 run "
            "rounds it to 1, or squares it to 0"
        )
    parts = {"dropblock": ("block_size", "width"), "patch": ("patch_size", "rows")}
    if point["mask"] in parts:
        block, whole = parts[point["mask"]]
        if point[whole] % point[block]:
            raise ValueError(
                f"--{block.replace('_', '-')}: got {point[block]} with --{whole} {point[whole]}, "
                f"wanted a divisor of {whole}"
            )


THEOREM3 = Theorem(
    "theorem3",
    "masked training is training with a penalty; dropout's is a squared nuclear norm",
    FLAGS,
    (MASKS, DROPOUT, MINIMISER, DROPBLOCK, masked_autoencoder_claims.AUTOENCODER),
    plots={"dropout": plot_dropout},
    check=check,
    data=lambda settings: mnist_file(),
    numbers=lambda point: point["width"] * (point["rows"] + point["cols"] + DRAWS[-1]),
    title="Theorem 3",
    page="docs/theorems/theorem3.md",
    source="derived here for masks of any law; Cavazza et al. 2018 for dropout",
    small={"rows": (6,), "cols": (8,), "keep_prob": (0.5, 0.7)},
)
