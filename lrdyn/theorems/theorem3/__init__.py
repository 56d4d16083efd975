"""Theorem 3: masked training is training with a penalty, for any masks."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lrdyn import masking
from lrdyn.claims import student_p, surprise, tolerance
from lrdyn.data import mnist_file
from lrdyn.initialization import gaussians
from lrdyn.masking import MaskDistribution, exact_expectation, mask_covariance, mask_mean
from lrdyn.theorem import (
    FRACTION,
    POSITIVE,
    Claim,
    Control,
    Flag,
    Outcome,
    Scenario,
    Theorem,
    at_least,
    one_of,
)
from lrdyn.theorems.theorem3 import masked_autoencoder
from lrdyn.theorems.theorem3.block_penalty import DROPBLOCK
from lrdyn.theorems.theorem3.dropout_minimiser import MINIMISER
from lrdyn.theorems.theorem3.dropout_penalty import DROPOUT
from lrdyn.theorems.theorem3.figures import plot_dropout
from lrdyn.theorems.theorem3.network import MOST_MASKS

KINDS = ("dropout", "dropblock", "input", "patch")

LOSSES = ("all", "masked")

FLAGS = (
    Flag("rows", (6,), at_least(2), int, "m", "rows of Y and of X", (8,), shapes=True),
    Flag("cols", (8,), at_least(2), int, "n", "examples: columns of X and Y", (10,), shapes=True),
    Flag("width", (4,), at_least(1), int, "h", "hidden units", (4, 12, 24), shapes=True),
    Flag("keep_prob", (0.3, 0.5, 0.7), FRACTION, float, "theta",
         "probability to keep a hidden unit, a block or an input", (0.2, 0.3, 0.5, 0.7, 0.9)),
    Flag("mask", KINDS, one_of(*KINDS), str, "R", "what is masked", shapes=True),
    Flag("block_size", (2,), at_least(1), int, "b", "hidden units of a block of DropBlock", (2, 4),
         shapes=True),
    Flag("patch_size", (2,), at_least(1), int, "b", "rows of X in a patch", (2, 4), shapes=True),
    Flag("loss", LOSSES, one_of(*LOSSES), str, "",
         "entries of X that masked autoencoders reconstruct", shapes=True),
    Flag("learning_rate", (0.5,), POSITIVE, float, "eta", "step size for the loss 1/2 ||.||_F^2",
         (0.4,)),
    Flag("steps", (5000,), at_least(1), int, "t", "steps of descent", (20_000,), swept=False),
)  # fmt: skip

ANY = 9
"""Points of a distribution of masks without structure."""


class Masked(eqx.Module):
    """A target, the terms of a prediction and the distributions of their masks."""

    target: Float[Array, "m n"]
    terms: Float[Array, "terms m n"]
    """Z_i."""
    keep_prob: Float[Array, ""]
    masks: MaskDistribution
    """All masks of the kind."""
    others: MaskDistribution
    """Masks without any structure: real numbers, dependent, of unequal means."""
    key: Key[Array, ""]
    """Of the random draws."""
    block: int = eqx.field(static=True)
    """Terms that are masked together."""

    @property
    def mean(self) -> Float[Array, "terms"]:
        """Of a mask of the kind."""
        return jnp.full(len(self.terms), self.keep_prob)

    def covariance(self, block: int) -> Float[Array, "terms terms"]:
        """Of a mask of independent blocks."""
        return masking.block_covariance(len(self.terms), block, self.keep_prob)

    def expected(self, mean: Array, covariance: Array) -> Float[Array, ""]:
        """The loss over masks of this mean and covariance, by the theorem."""
        return masking.deterministic_equivalent(self.target, self.terms, mean, covariance)


def make_case(
    key: Key[Array, ""], *, rows: int, cols: int, width: int, keep_prob: Any, mask: str,
    block_size: int, patch_size: int,
) -> Masked:  # fmt: skip
    """Draw a target and the terms that masks of a kind act on."""
    shapes = [(rows, cols), (rows, cols), (width, rows), (rows, width)]
    hidden = mask in ("dropout", "dropblock")
    block = {"dropblock": block_size, "patch": patch_size}.get(mask, 1)
    count = min(width if hidden else rows, MOST_MASKS * block)
    *draws, others = gaussians(key, [*shapes, (ANY, count + 1)])
    target, inputs, first, second = (G / np.sqrt(rows) for G in draws)
    columns, lines = (second, first @ inputs) if hidden else (second @ first, inputs)
    keep_prob = jnp.asarray(keep_prob, target.dtype)
    return Masked(
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


def predict(case: Masked) -> dict[str, Array]:
    """Expected losses from means and covariances alone."""
    return {
        "mask_identity": case.expected(case.mean, case.covariance(case.block)),
        "any_masks": case.expected(mask_mean(case.others), mask_covariance(case.others)),
        "monte_carlo_rate": jnp.asarray(-0.5),
    }


DRAWS, REPEATS = 256, 128
"""Draws of an estimate, and how often it is made."""


def measure(case: Masked) -> dict[str, Array]:
    """Expected losses by enumeration of all masks, and by random draws."""

    def loss(mask: Array, mean: Array):
        return jnp.sum((case.target - masking.masked_prediction(mask, mean, case.terms)) ** 2)

    def own(mask: Array):
        return loss(mask, case.mean)

    def draw(key: Key[Array, ""]):
        return masking.draw_mask(key, len(case.terms), case.keep_prob, block=case.block)

    def estimate(number: Array):
        return masking.monte_carlo(jax.random.fold_in(case.key, number), own, draw, DRAWS).mean

    exact = exact_expectation(own, *case.masks)
    # The error of a single draw is known: the standard deviation of the loss.
    single = jnp.sqrt(exact_expectation(lambda mask: (own(mask) - exact) ** 2, *case.masks))
    other_mean = mask_mean(case.others)
    return {
        "mask_identity": exact,
        "any_masks": exact_expectation(lambda mask: loss(mask, other_mean), *case.others),
        "estimates": jax.vmap(estimate)(jnp.arange(REPEATS)),
        "deviation": single,
    }


def _moments_as_stated(case: Masked) -> Array:
    mean = mask_mean(case.masks) - case.mean
    covariance = mask_covariance(case.masks) - case.covariance(case.block)
    errors = jnp.abs(jnp.append(mean, covariance))
    size = len(case.masks.probabilities)
    return jnp.max(errors) <= tolerance("identity", errors.dtype, size=size)


def _tilt(key: Key[Array, ""], case: Masked, amount: Array) -> Masked:
    """Move the probabilities toward those of a mask that keeps everything."""
    chances = case.masks.probabilities
    tilted = (1 - amount) * chances + amount * jnp.all(case.masks.support == 1, axis=1)
    masks = case.masks._replace(probabilities=tilted)
    return eqx.tree_at(lambda c: c.masks, case, masks)


# Claims and controls -------------------------------------------------------------------------


def _slope_apart(one: Outcome) -> float:
    """Difference of the predicted slope of the error over the draws from the one that is found."""
    apart = one.measured["estimates"] - one.measured["mask_identity"]
    error = np.sqrt(np.mean(apart**2))
    with np.errstate(divide="ignore", invalid="ignore"):  # no slope without a deviation
        slope = np.log(error / one.measured["deviation"]) / np.log(DRAWS)
    return float(np.abs(one.predicted["monte_carlo_rate"] - slope))


CLAIMS = (
    Claim("mask_identity",
          "E ||Y - sum (R_i/mu_i) Z_i||_F^2 = ||Y - sum Z_i||_F^2 + sum C_ij/(mu_i mu_j) <Z_i, "
          f"Z_j>, over all masks of the kind (of the first {MOST_MASKS} terms or blocks, if there "
          "are more)"),
    Claim("any_masks", "the same for masks of real entries, dependent and of unequal means"),
    Claim("monte_carlo", "the mean loss of random masks agrees", kind="statistical",
          residual=lambda one: surprise(student_p(
              one.predicted["mask_identity"], one.measured["estimates"])),
          reads=("mask_identity", "estimates")),
    Claim("monte_carlo_rate",
          f"the error of the mean of n draws falls as n^(-1/2): slope from one draw to {DRAWS}, "
          f"{REPEATS} times, of standard error 1/(sqrt(2 {REPEATS}) log {DRAWS}) = 0.011, four of "
          "which are tolerated", kind="rate", residual=_slope_apart,
          reads=("monte_carlo_rate", "mask_identity", "estimates", "deviation"), tolerance=0.045),
)  # fmt: skip


def _wrong_formulas(case: Masked) -> dict[str, Array]:
    """The mean prediction alone; masks not scaled; the error of a sum in place of a mean."""
    return {
        "mask_identity": case.expected(case.mean, jnp.zeros((len(case.terms),) * 2)),
        "any_masks": case.expected(jnp.ones_like(case.mean), mask_covariance(case.others)),
        "monte_carlo_rate": jnp.asarray(0.5),
    }


CONTROLS = (
    Control[Masked](
        "masks_taken_as_independent", "the covariance within a block left out", "mask_identity",
        predict=lambda case: {"mask_identity": case.expected(case.mean, case.covariance(1))},
    ),
    Control("tilted_masks", "masks of another mean and covariance", "mask_identity", case=_tilt,
            breaks="moments_as_stated",
            amount=0.5, amounts=(1e-8, 1e-6, 1e-4, 1e-2, 0.1, 0.5),
            amount_label="probability moved to the full mask"),
    Control("masks_not_scaled", "the formula without the means that masks are divided by",
            "any_masks", predict=_wrong_formulas),
    Control("draws_without_penalty", "the loss of the mean prediction alone", "monte_carlo",
            predict=_wrong_formulas),
    Control("sum_of_draws", "the error of the sum of the draws, which grows as n^(1/2)",
            "monte_carlo_rate", predict=_wrong_formulas),
)  # fmt: skip


def _first_kind(settings: dict[str, Any]) -> dict[str, Any]:
    """The first kind of mask, at widths whose masks can be enumerated.

    The scenarios about the other kinds have an identity of their own.
    """
    kind = settings["mask"][0]
    sizes = {"dropblock": "block_size", "patch": "patch_size"}
    others = [size for other, size in sizes.items() if other != kind]
    first = {name: settings[name][:1] for name in ("mask", *others)}
    few = tuple(width for width in settings["width"] if width <= MOST_MASKS)
    return settings | first | {"width": few or settings["width"][:1]}


MASKS = Scenario(
    "masks", make_case, predict, measure, CLAIMS, CONTROLS,
    hypotheses={"moments_as_stated": _moments_as_stated}, dims={"estimates": ("repeat",)},
    narrow=_first_kind,
    sides="mean and covariance of the masks against all masks enumerated, and against draws",
    at={"mask": "dropblock", "keep_prob": 0.5, "width": 4, "block_size": 2},
)  # fmt: skip


def check(point: Mapping[str, Any]) -> None:
    """Refuse combinations outside the theorem."""
    masked_autoencoder.check(point)
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
    (MASKS, DROPOUT, MINIMISER, DROPBLOCK, masked_autoencoder.AUTOENCODER),
    plots={"dropout": plot_dropout},
    check=check,
    data=mnist_file,
)
