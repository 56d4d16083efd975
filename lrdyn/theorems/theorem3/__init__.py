"""Theorem 3: masked training is training with a penalty, for any masks."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lrdyn.claims import in_standard_errors, tolerance
from lrdyn.data.mnist import mnist_file
from lrdyn.initialization import gaussians
from lrdyn.masking import (
    MaskDistribution,
    block_covariance,
    block_masks,
    deterministic_equivalent,
    draw_mask,
    exact_expectation,
    mask_covariance,
    mask_mean,
    masked_prediction,
    monte_carlo,
)
from lrdyn.theorem import (
    FRACTION,
    POSITIVE,
    Claim,
    Control,
    Flag,
    Outcome,
    Statement,
    Theorem,
    at_least,
    one_of,
)
from lrdyn.theorems.theorem3.block_penalty import DROPBLOCK
from lrdyn.theorems.theorem3.dropout_minimiser import MINIMISER
from lrdyn.theorems.theorem3.dropout_penalty import DROPOUT, LARGEST
from lrdyn.theorems.theorem3.figures import plot_dropout
from lrdyn.theorems.theorem3.masked_autoencoder import SELF_SUPERVISED
from lrdyn.theorems.theorem3.masked_autoencoder import check as check_self_supervised

KINDS = ("dropout", "dropblock", "input", "patch")

FLAGS = (
    Flag("rows", (6,), at_least(2), int, "m", "rows of Y and of X", (8,), shapes=True),
    Flag("cols", (8,), at_least(2), int, "n", "examples: columns of X and Y", (10,), shapes=True),
    Flag("width", (4,), at_least(1), int, "h", "hidden units", (4, 12, 24), shapes=True),
    Flag(
        "keep_prob",
        (0.3, 0.5, 0.7),
        FRACTION,
        float,
        "theta",
        "probability to keep a hidden unit, a block or an input",
        (0.2, 0.3, 0.5, 0.7, 0.9),
    ),
    Flag("mask", KINDS, one_of(*KINDS), str, "R", "what is masked", shapes=True),
    Flag(
        "block_size",
        (2,),
        at_least(1),
        int,
        "b",
        "hidden units of a block of DropBlock",
        (2, 4),
        shapes=True,
    ),
    Flag("patch_size", (2,), at_least(1), int, "b", "rows of X in a patch", (2, 4), shapes=True),
    Flag(
        "loss",
        ("all", "masked"),
        one_of("all", "masked"),
        str,
        "",
        "entries of X that masked autoencoders reconstruct",
        shapes=True,
    ),
    Flag(
        "learning_rate", (0.5,), POSITIVE, float, "eta", "step size for the loss 1/2 ||.||_F^2",
        (0.4,),
    ),
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


def _case(
    key: Key[Array, ""],
    *,
    rows: int,
    cols: int,
    width: int,
    keep_prob: Any,
    mask: str,
    block_size: int,
    patch_size: int,
) -> Masked:
    shapes = [(rows, cols), (rows, cols), (width, rows), (rows, width)]
    kept = {"dropout": width, "dropblock": width, "input": rows, "patch": rows}[mask]
    block = {"dropout": 1, "dropblock": block_size, "input": 1, "patch": patch_size}[mask]
    count = min(kept, LARGEST * block)
    *draws, others = gaussians(key, [*shapes, (ANY, count + 1)])
    target, inputs, first, second = (G / np.sqrt(rows) for G in draws)
    if mask in ("dropout", "dropblock"):
        columns, lines = second, first @ inputs
    else:
        columns, lines = second @ first, inputs
    keep_prob = jnp.asarray(keep_prob, target.dtype)
    return Masked(
        target=target,
        terms=columns.T[:count, :, None] * lines[:count, None, :],
        keep_prob=keep_prob,
        masks=block_masks(count, block, keep_prob),
        # Positive entries: their means, which masks are divided by, are away from zero.
        others=MaskDistribution(0.2 + jnp.abs(others[:, 1:]), jax.nn.softmax(others[:, 0])),
        key=jax.random.fold_in(key, 1),
        block=block,
    )


# Theory and measurement ----------------------------------------------------------------------


def _mean(case: Masked) -> Float[Array, "terms"]:
    return jnp.full(len(case.terms), case.keep_prob)


def predict(case: Masked, *, correlated: bool = True) -> dict[str, Array]:
    """Expected losses from means and covariances alone."""
    block = case.block if correlated else 1
    covariance = block_covariance(len(case.terms), block, case.keep_prob)
    expected = deterministic_equivalent(case.target, case.terms, _mean(case), covariance)
    return {
        "mask_identity": expected,
        "any_masks": deterministic_equivalent(
            case.target, case.terms, mask_mean(case.others), mask_covariance(case.others)
        ),
        "monte_carlo_rate": jnp.full_like(expected, -0.5),
    }


DRAWS, REPEATS = 256, 128
"""Draws of an estimate, and how often it is made."""


def measure(case: Masked) -> dict[str, Array]:
    """Expected losses by enumeration of all masks, and by random draws."""

    def loss(mask, mean):
        return jnp.sum((case.target - masked_prediction(mask, mean, case.terms)) ** 2)

    def own(mask):
        return loss(mask, _mean(case))

    def estimate(number):
        key = jax.random.fold_in(case.key, number)
        return monte_carlo(
            key,
            own,
            lambda key: draw_mask(key, len(case.terms), case.keep_prob, block=case.block),
            DRAWS,
        ).mean

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
    covariance = block_covariance(len(case.terms), case.block, case.keep_prob)
    errors = jnp.concatenate(
        [
            jnp.abs(mask_mean(case.masks) - _mean(case)),
            jnp.abs(mask_covariance(case.masks) - covariance).ravel(),
        ]
    )
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
    Claim(
        "mask_identity",
        "E ||Y - sum (R_i/mu_i) Z_i||_F^2 = ||Y - sum Z_i||_F^2 + sum C_ij/(mu_i mu_j) <Z_i, Z_j>, "
        f"over all masks of the kind (of the first {LARGEST} terms or blocks, if there are more)",
    ),
    Claim("any_masks", "the same for masks of real entries, dependent and of unequal means"),
    Claim(
        "monte_carlo",
        "the mean loss of random masks agrees",
        kind="statistical",
        residual=lambda one: in_standard_errors(
            one.predicted["mask_identity"], one.measured["estimates"]
        ),
        reads=("mask_identity", "estimates"),
    ),
    Claim(
        "monte_carlo_rate",
        f"the error of the mean of n draws falls as n^(-1/2): slope from one draw to {DRAWS}, "
        f"{REPEATS} times, of standard error 1/(sqrt(2 {REPEATS}) log {DRAWS}) = 0.011, four of "
        "which are tolerated",
        kind="rate",
        residual=_slope_apart,
        reads=("monte_carlo_rate", "mask_identity", "estimates", "deviation"),
        tolerance=0.045,
    ),
)


def _wrong_formulas(case: Masked) -> dict[str, Array]:
    """The mean prediction alone; masks not scaled; the error of a sum in place of a mean."""
    zero = jnp.zeros((len(case.terms),) * 2)
    expected = deterministic_equivalent(case.target, case.terms, _mean(case), zero)
    return {
        "mask_identity": expected,
        "any_masks": deterministic_equivalent(
            case.target,
            case.terms,
            jnp.ones_like(_mean(case)),
            mask_covariance(case.others),
        ),
        "monte_carlo_rate": jnp.full_like(expected, 0.5),
    }


AT = {"mask": "dropblock", "keep_prob": 0.5, "width": 4, "block_size": 2}


def _first_kind(settings: dict[str, Any]) -> dict[str, Any]:
    """The first kind of mask, at widths whose masks can be enumerated.

    The statements about the other kinds have an identity of their own.
    """
    kind = settings["mask"][0]
    sizes = {"dropblock": "block_size", "patch": "patch_size"}
    others = [size for other, size in sizes.items() if other != kind]
    first = {name: settings[name][:1] for name in ("mask", *others)}
    few = tuple(width for width in settings["width"] if width <= LARGEST)
    return settings | first | {"width": few or settings["width"][:1]}


MASKS = Statement(
    "masks",
    _case,
    predict,
    measure,
    CLAIMS,
    controls=(
        Control(
            "masks_taken_as_independent",
            "the covariance within a block left out",
            "mask_identity",
            predict=lambda case: predict(case, correlated=False),
            at=AT,
        ),
        Control(
            "tilted_masks",
            "masks of another mean and covariance",
            "mask_identity",
            case=_tilt,
            at=AT,
            amount=0.5,
            amounts=(1e-8, 1e-6, 1e-4, 1e-2, 0.1, 0.5),
            amount_label="probability moved to the full mask",
        ),
        Control(
            "masks_not_scaled",
            "the formula without the means that masks are divided by",
            "any_masks",
            predict=_wrong_formulas,
            at=AT,
        ),
        Control(
            "draws_without_penalty",
            "the loss of the mean prediction alone",
            "monte_carlo",
            predict=_wrong_formulas,
            at=AT,
        ),
        Control(
            "sum_of_draws",
            "the error of the sum of the draws, which grows as n^(1/2)",
            "monte_carlo_rate",
            predict=_wrong_formulas,
            at=AT,
        ),
    ),
    hypotheses={"moments_as_stated": _moments_as_stated},
    dims={"estimates": ("repeat",)},
    narrow=_first_kind,
    sides="mean and covariance of the masks against all masks enumerated, and against draws",
)


def check(point: Mapping[str, Any]) -> None:
    """Refuse combinations outside the theorem."""
    check_self_supervised(point)
    for mask, block, whole in (
        ("dropblock", "block_size", "width"),
        ("patch", "patch_size", "rows"),
    ):
        if point["mask"] == mask and point[whole] % point[block]:
            raise ValueError(
                f"--{block.replace('_', '-')}: got {point[block]} with --{whole} {point[whole]}, "
                f"wanted a divisor of {whole}"
            )


THEOREM3 = Theorem(
    "theorem3",
    "masked training is training with a penalty; dropout's is a squared nuclear norm",
    FLAGS,
    (MASKS, DROPOUT, MINIMISER, DROPBLOCK, *SELF_SUPERVISED),
    plots={"dropout": plot_dropout},
    check=check,
    data=mnist_file,
)
