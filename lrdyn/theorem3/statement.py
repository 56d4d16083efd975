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
from lrdyn.data import mnist_file
from lrdyn.engine.claims import tolerance
from lrdyn.engine.fields import ABSENT
from lrdyn.engine.flags import FRACTION, POSITIVE, Flag, at_least, one_of
from lrdyn.engine.statement import Claim, Control, Outcome, Scenario, Theorem
from lrdyn.theorem3 import masked_autoencoder_claims
from lrdyn.theorem3.dropblock_claims import DROPBLOCK
from lrdyn.theorem3.dropout_minimiser_claims import MINIMISER
from lrdyn.theorem3.dropout_penalty_claims import DROPOUT
from lrdyn.theorem3.figures import plot_dropout
from lrdyn.theorem3.network import MOST_MASKS, EnumeratedCase
from lrdyn.theorem3.statistics import decides, mean_surprise, scatter_surprise

KINDS = ("dropout", "dropblock", "input", "patch")

LOSSES = ("all", "masked")

FLAGS = (
    Flag(
        "rows",
        (6,),
        at_least(2),
        int,
        symbol="m",
        help="rows of Y and of X",
        paper=(8,),
        shapes=True,
    ),
    Flag(
        "cols",
        (8,),
        at_least(2),
        int,
        symbol="n",
        help="examples: columns of X and Y",
        paper=(10,),
        shapes=True,
    ),
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
    Flag(
        "mask",
        KINDS,
        one_of(*KINDS),
        str,
        symbol="R",
        help="what is masked",
        shapes=True,
    ),
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
    Flag(
        "learning_rate",
        (0.5,),
        POSITIVE,
        symbol="eta",
        help="step size for the loss 1/2 ||.||_F^2",
        paper=(0.4,),
    ),
    Flag(
        "steps",
        (5000,),
        at_least(1),
        int,
        symbol="t",
        help="steps of descent",
        paper=(20_000,),
        swept=False,
    ),
)

ANY = 9
"""Points of a distribution of masks without structure."""

DRAWS, REPEATS = 256, 128
"""Draws of an estimate, and how often it is made."""


class MaskedSum(EnumeratedCase):
    """A target, the terms of a prediction and the distributions of their masks."""

    target: Float[Array, "m n"]
    terms: Float[Array, "terms m n"]
    """Z_i."""
    others: MaskDistribution
    """Masks without any structure: real numbers, dependent, of unequal means."""
    key: Key[Array, ""]
    """Of the random draws."""
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
    """What is predicted: expected losses of two moments, and how losses scatter."""

    mask_identity: Float[Array, ""] = ABSENT
    """Expected loss over the masks of the kind, from their mean and covariance."""
    any_masks: Float[Array, ""] = ABSENT
    """Expected loss over masks without structure, from theirs."""
    monte_carlo_rate: Float[Array, ""] = ABSENT
    """Standard error of an estimate: the deviation of one loss over the root of DRAWS."""
    losses_shape: Float[Array, "moment"] = ABSENT
    """Skewness and excess kurtosis of the loss of a random mask."""


class MasksMeasured(NamedTuple):
    """What is measured: sums over masks, and means over random draws."""

    mask_identity: Float[Array, ""] = ABSENT
    """Loss summed over all masks of the kind with their probabilities."""
    any_masks: Float[Array, ""] = ABSENT
    """Loss summed over the masks without structure."""
    estimates: Float[Array, "repeat"] = ABSENT
    """Mean loss of DRAWS random masks, REPEATS times with other ones."""


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


def predict(case: MaskedSum) -> MasksTheory:
    """Expected losses from means and covariances alone; the law of the losses from all masks."""
    losses = jax.vmap(lambda mask: _loss(case, mask, case.mean))(case.masks.support)
    probabilities = case.masks.probabilities
    centred = losses - probabilities @ losses
    deviation = jnp.sqrt(probabilities @ centred**2)
    third, fourth = (probabilities @ (centred / deviation) ** power for power in (3, 4))
    return MasksTheory(
        mask_identity=case.expected(case.mean, case.covariance(case.block)),
        any_masks=case.expected(mask_mean(case.others), mask_covariance(case.others)),
        monte_carlo_rate=deviation / np.sqrt(DRAWS),
        losses_shape=jnp.stack([third, fourth - 3]),
    )


def _measured(
    case: MaskedSum, masks: MaskDistribution, others: MaskDistribution, keep_prob: Array
) -> MasksMeasured:
    """Losses over two distributions of masks, and of draws that are kept with a probability.

    Masks are divided by the means of the case, whatever the distributions are.
    """
    other_mean = mask_mean(case.others)

    def draw(key: Key[Array, ""]) -> Array:
        return masking.draw_mask(key, len(case.terms), keep_prob, block=case.block)

    def estimate(number: Array) -> Array:
        key = jax.random.fold_in(case.key, number)
        return masking.monte_carlo(key, lambda mask: _loss(case, mask, case.mean), draw, DRAWS).mean

    return MasksMeasured(
        mask_identity=exact_expectation(lambda mask: _loss(case, mask, case.mean), *masks),
        any_masks=exact_expectation(lambda mask: _loss(case, mask, other_mean), *others),
        estimates=jax.vmap(estimate)(jnp.arange(REPEATS)),
    )


def measure(case: MaskedSum) -> MasksMeasured:
    """Expected losses by enumeration of all masks, and by random draws."""
    return _measured(case, case.masks, case.others, case.keep_prob)


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


def _skewness(outcome: MasksOutcome) -> float:
    """Skewness of the mean of all draws."""
    return float(outcome.predicted.losses_shape[0] / np.sqrt(DRAWS * REPEATS))


def _excess(outcome: MasksOutcome) -> float:
    """Excess kurtosis of the mean of the draws of one estimate."""
    return float(outcome.predicted.losses_shape[1] / DRAWS)


def _mean_surprise(outcome: MasksOutcome) -> float:
    expected = float(outcome.predicted.mask_identity)
    return mean_surprise(expected, np.asarray(outcome.measured.estimates), _skewness(outcome))


def _scatter_surprise(outcome: MasksOutcome) -> float:
    return scatter_surprise(
        float(outcome.predicted.mask_identity),
        float(outcome.predicted.monte_carlo_rate),
        np.asarray(outcome.measured.estimates),
        _skewness(outcome),
        _excess(outcome),
    )


def _mean_undecided(outcome: MasksOutcome) -> str:
    return "" if decides(_skewness(outcome)) else "losses too skewed"


def _scatter_undecided(outcome: MasksOutcome) -> str:
    decided = decides(_skewness(outcome), _excess(outcome), REPEATS)
    return "" if decided else "losses too skewed"


# What is broken ------------------------------------------------------------------------------


def _tilt(key: Key[Array, ""], case: MaskedSum, amount: Array) -> MaskedSum:
    """Move the probabilities toward those of a mask that keeps everything."""
    probabilities = case.masks.probabilities
    tilted = (1 - amount) * probabilities + amount * jnp.all(case.masks.support == 1, axis=1)
    return eqx.tree_at(lambda c: c.masks.probabilities, case, tilted)


def _wrong_formulas(case: MaskedSum) -> MasksTheory:
    """The mean prediction alone; masks not scaled; the error of a sum in place of a mean."""
    return MasksTheory(
        mask_identity=case.expected(case.mean, jnp.zeros((len(case.terms),) * 2)),
        any_masks=case.expected(jnp.ones_like(case.mean), mask_covariance(case.others)),
        monte_carlo_rate=predict(case).monte_carlo_rate * DRAWS,
    )


def _wrong_run(case: MaskedSum) -> MasksMeasured:
    """Masks kept with probability theta^2, though divided by theta; the others equally likely."""
    squared = case.keep_prob**2
    masks = masking.block_masks(len(case.terms), case.block, squared)
    equal = jnp.full(ANY, 1 / ANY, case.target.dtype)
    return _measured(case, masks, case.others._replace(probabilities=equal), squared)


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
            "E ||Y - sum (R_i/mu_i) Z_i||_F^2 = ||Y - sum Z_i||_F^2 + sum C_ij/(mu_i mu_j) <Z_i, "
            f"Z_j>, over all masks of the kind (of the first {MOST_MASKS} terms or blocks, if "
            "there are more)",
            compares=lambda theory, run: (theory.mask_identity, run.mask_identity),
        ),
        Claim(
            "any_masks",
            "the same for masks of real entries, dependent and of unequal means",
            compares=lambda theory, run: (theory.any_masks, run.any_masks),
        ),
        Claim(
            "monte_carlo",
            "the mean loss of random masks agrees: Student's test of "
            f"{REPEATS} estimates, {REPEATS - 1} degrees of freedom, each the mean of {DRAWS} "
            "draws; its p times the factor by which the skewness of the losses, known from all "
            "masks, can falsify it (near theta = 0 and 1 it decides nothing: undecided)",
            kind="statistical",
            residual=_mean_surprise,
            reads=lambda theory, run: (theory.mask_identity, run.estimates, theory.losses_shape),
            undecided=_mean_undecided,
        ),
        Claim(
            "monte_carlo_rate",
            f"the error of the mean of {DRAWS} draws is the deviation of one, known from all "
            f"masks, times {DRAWS}^(-1/2): chi-square test of the squared errors of {REPEATS} "
            f"estimates, {REPEATS} degrees of freedom, its p corrected in the same way",
            kind="statistical",
            residual=_scatter_surprise,
            reads=lambda theory, run: (
                theory.monte_carlo_rate,
                theory.mask_identity,
                run.estimates,
                theory.losses_shape,
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
    numbers=lambda point: point["width"] * (point["rows"] + point["cols"] + DRAWS),
)
