"""Example 4.2 of Theorem 3: masked self-supervised learning by a linear autoencoder."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lrdyn.core import linalg
from lrdyn.core.condition import relative_response
from lrdyn.core.spectra import half_of_the_digits, singular_values
from lrdyn.engine.claims import excess, on_each, relative_difference
from lrdyn.engine.evaluate import once_a_case
from lrdyn.engine.statement import Claim, Control, Outcome, Scenario
from lrdyn.theorem3 import (
    autoencoder_training_claims,
    dropout_minimum,
    dropout_penalties,
    masked_autoencoder,
)
from lrdyn.theorem3.autoencoder_training_claims import Autoencoding
from lrdyn.theorem3.masked_autoencoder import MaskedMoments, nuclear_norm_bound, within_patches
from lrdyn.theorem3.network import MOST_MASKS

# Closed forms --------------------------------------------------------------------------------


@once_a_case
def predict(case: Autoencoding) -> dict[str, Array]:
    """Everything from S, D and p."""
    found = jax.vmap(lambda data: _predict(case, data))(case.data)
    unit = jnp.eye(len(case.white), dtype=case.white.dtype)
    return found | {
        "attained": nuclear_norm_bound(unit, case.white, case.keep_prob),
        "condition": jnp.max(found["condition"]),
        "unique": jnp.all(found["unique"]),
    }


def _predict(case: Autoencoding, data: Array) -> dict[str, Array]:
    moments = _moments(case, data)
    narrow = masked_autoencoder.bottleneck_autoencoder(moments, case.width)
    optimum = masked_autoencoder.optimal_autoencoder(moments)
    return {
        "marginal": masked_autoencoder.masked_autoencoder_loss(case.anything, moments),
        "optimum": optimum,
        "rank_values": narrow.values,
        "bottleneck": narrow.autoencoder,
        "bottleneck_value": narrow.loss,
        "energy": jnp.trace(moments.whole),
        "nuclear_bound": _bounds(case, data, optimum),
        "masked_marginal": masked_autoencoder.masked_only_loss(case.anything, moments),
        "masked_optimum": masked_autoencoder.optimal_masked_only(moments),
        "unidentified": within_patches(case.anything, case.patch_of),
        "condition": _condition(case, moments, narrow.values),
        "unique": jnp.sum(moments.root * (moments.masked @ moments.root)) > len(data) - 0.5,
    }


def _moments(case: Autoencoding, data: Array) -> MaskedMoments:
    return masked_autoencoder.masked_moments(data, case.patch_of, case.keep_prob)


def _bounds(case: Autoencoding, data: Array, optimum: Array) -> Float[Array, "2"]:
    both = jnp.stack([optimum, case.anything])
    return jax.vmap(lambda A: nuclear_norm_bound(A, data, case.keep_prob))(both)


def _condition(case: Autoencoding, moments: MaskedMoments, values: Array) -> Float[Array, ""]:
    """By how much inverting Q, or telling sigma_r from sigma_{r+1}, amplifies an error."""
    inverse = moments.root @ moments.root
    inverting = jnp.linalg.norm(moments.masked) * jnp.linalg.norm(inverse)
    squares = jnp.append(values, jnp.zeros(1, values.dtype)) ** 2
    gap = squares[case.width - 1] - squares[case.width]
    return jnp.maximum(inverting, squares[0] / jnp.where(gap > 0, gap, 0.0))


# Claims --------------------------------------------------------------------------------------


def _below_bound(one: Outcome) -> float:
    """By how much the penalty falls below the bound, over the penalty."""
    bound, penalty = one.predicted["nuclear_bound"], one.measured["penalty"]
    # A penalty that is not positive is below any bound.
    ratio = np.divide(bound, penalty, out=np.full_like(bound, np.inf), where=penalty > 0)
    return excess(ratio, 1.0)


def _value(one: Outcome) -> float:
    """On the scale of tr S: near p = 1 it is a small difference of that."""
    energy = one.predicted["energy"]
    below, found = (s["bottleneck_value"] / energy for s in (one.predicted, one.measured))
    return relative_difference(below, found, 1.0)


def _differ(one: Outcome) -> int:
    """Number of data sets whose rank is another."""
    ranks = (_ranks(side["rank_values"], one.dtype) for side in (one.predicted, one.measured))
    return int(np.count_nonzero(np.not_equal(*ranks)))


def _ranks(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Ranks of matrices that are known to half of their digits, from their singular values."""
    largest = np.max(values, axis=-1, keepdims=True)
    count = np.sum(values > half_of_the_digits(dtype) * largest, axis=-1)
    # NaN is no rank: it differs from all.
    return np.where(np.isfinite(largest[..., 0]), count, np.nan)


def _asked(loss: str) -> Callable[[Outcome], bool]:
    """Whether this loss was asked for."""
    return lambda one: loss in one.point["loss"].split()


def _unique(asked: Callable[[Outcome], bool]) -> Callable[[Outcome], bool]:
    """Whether, besides, Q is not singular: on its kernel A stays where training starts."""
    return lambda one: asked(one) and bool(one.predicted["unique"])


def _trained(one: Outcome) -> bool:
    """Whether the slowest error, of curvature 1 / condition, must decay to round-off squared."""
    flags = one.point
    groups = autoencoder_training_claims.patch_numbers(
        int(flags["rows"]), flags["mask"], int(flags["patch_size"])
    )
    rate = autoencoder_training_claims.narrow_rate(flags["keep_prob"], groups)
    decay = (
        autoencoder_training_claims.STEPS
        * rate
        / ((1 - autoencoder_training_claims.MOMENTUM) * one.predicted["condition"])
    )
    return bool(decay >= -2 * np.log(np.finfo(one.dtype).eps))


def _too_short(one: Outcome) -> str:
    return "" if _trained(one) else "too few steps"


def _claim(
    name: str,
    statement: str,
    *,
    loss: str = "all",
    trained: bool = True,
    unique: bool = False,
    reads: tuple[str, ...] = (),
    **how: Any,
) -> Claim:
    how.setdefault("residual", on_each(name))
    if trained and how.get("kind", "identity") in ("identity", "bound"):
        how["condition"] = "condition"
    if trained:
        how["undecided"] = _too_short
    read = (*(reads or (name,)), *(("condition",) if trained else ()))
    if not unique:
        return Claim(name, statement, reads=read, applies=_asked(loss), **how)
    return Claim(name, statement, reads=(*read, "unique"), applies=_unique(_asked(loss)), **how)


CLAIMS = (
    _claim("marginal", "E ||X - A(M*X)||^2 / n = tr[(I - pA) S (I - pA)^T] + p(1-p) tr(A D A^T)",
           trained=False),
    _claim("optimum", "training reaches A = S Q^{-1}, Q = p S + (1-p) D (if Q is not singular: no "
           "patch has more features than X has rank)", unique=True),
    _claim("rank", "it has the rank of X: no direction is cut off", kind="exact", residual=_differ,
           reads=("rank_values",), unique=True),
    _claim("bottleneck", "at width r it reaches U_r U_r^T S Q^{-1}, U_r the left of S Q^{-1/2}",
           unique=True),
    _claim("bottleneck_value", "with the loss tr S - p sum_{i <= r} sigma_i(S Q^{-1/2})^2",
           residual=_value, reads=("bottleneck_value", "energy")),
    _claim("nuclear_bound", "p(1-p) tr(A D A^T) >= p(1-p) ||A X||_*^2 / (n m) for any A",
           kind="bound", residual=_below_bound, reads=("nuclear_bound", "penalty")),
    _claim("attained", "with equality at A = I, if the rows of X are orthogonal and of equal norm",
           residual=None, trained=False),
    _claim("masked_marginal",
           "on the masked entries alone: 1 - p times the loss of A without its diagonal blocks",
           loss="masked", trained=False),
    _claim("masked_optimum",
           "training on these reaches A = (S - blkdiag M_b) Q^{-1} outside the blocks",
           loss="masked", unique=True),
    _claim("unidentified", "and leaves the diagonal blocks where they started", loss="masked"),
)  # fmt: skip


def _independent(case: Autoencoding) -> Array:
    (masks, chances), p = case.masks, case.keep_prob
    together = (chances[:, None] * masks).T @ masks
    wanted = jnp.where(jnp.eye(len(together), dtype=bool), p, p**2)
    return relative_response(wanted, together) < half_of_the_digits(together.dtype)


# Controls ------------------------------------------------------------------------------------


def _fixed_number(key: Key[Array, ""], case: Autoencoding, amount: Array) -> Autoencoding:
    """About p of the patches shown, as in practice: the right mean, but not independent."""
    shown = jnp.sum(case.masks.support, axis=1)
    near = jnp.maximum(0.0, 1 - jnp.abs(shown - case.keep_prob * case.masks.support.shape[1]))
    ways = jnp.sum(shown[:, None] == shown[None, :], axis=1)
    masks = case.masks._replace(probabilities=near / ways)
    return dataclasses.replace(case, masks=masks)


def _soft_threshold(case: Autoencoding, data: Array) -> Array:
    """A if masking penalised the squared nuclear norm: p A X = U (Sigma - mu I)_+ V^T."""
    strength = dropout_penalties.dropout_strength(case.keep_prob, len(data))
    product = dropout_minimum.shrink_squared(data, strength, len(data)).product
    return dropout_minimum.input_layer(product, data) / case.keep_prob


def _wrong(case: Autoencoding, data: Array) -> dict[str, Array]:
    """By the id of the control."""
    A, p, width, moments = case.anything, case.keep_prob, case.width, _moments(case, data)
    at_mean = autoencoder_training_claims.autoencoder_loss(A, data, jnp.full(len(data), p))
    entries = masked_autoencoder.masked_moments(data, np.arange(len(data)), p)
    loss, optimum = (
        masked_autoencoder.masked_autoencoder_loss,
        masked_autoencoder.optimal_autoencoder(moments),
    )
    thresholded, left = _soft_threshold(case, data), linalg.svd(data)[0][:, :width]
    values = masked_autoencoder.bottleneck_autoencoder(moments, width).values
    # Only the diagonal of A put to 0, by mu_i, where patches are masked.
    inverse = moments.root @ moments.root
    mu = jnp.diagonal(moments.whole @ inverse) / jnp.diagonal(inverse)
    without_diagonal = (moments.whole - jnp.diag(mu)) @ inverse
    return {
        "nuclear_norm_penalty": at_mean + nuclear_norm_bound(A, data, p),
        "plain_ridge": at_mean + p * (1 - p) * jnp.sum(A**2),
        "entries_for_patches": loss(A, entries),
        "masks_over_their_mean": loss(A / p, moments),
        "soft_thresholding": thresholded,
        "optimum_of_entries": masked_autoencoder.optimal_autoencoder(entries),
        "rank_of_soft_thresholding": singular_values(thresholded),
        "vectors_of_s": left @ (left.T @ optimum),
        "value_without_p": jnp.trace(moments.whole) - jnp.sum(values[:width] ** 2),
        "bound_not_divided": len(data) * _bounds(case, data, optimum),
        "diagonal_kept": (1 - p) * loss(A, moments),
        "chance_forgotten": masked_autoencoder.masked_only_loss(A, moments) / (1 - p),
        "blocks_cut_out": optimum - within_patches(optimum, case.patch_of),
        "single_multipliers": without_diagonal - within_patches(without_diagonal, case.patch_of),
        "blocks_trained": jnp.zeros_like(A),
    }


@once_a_case
def _wrongs(case: Autoencoding) -> dict[str, Array]:
    return jax.vmap(lambda data: _wrong(case, data))(case.data)


def _control(name: str, statement: str, claim: str, array: str = "") -> Control[Autoencoding]:
    """One array of the prediction is wrong, that of the claim's name unless another is named."""

    def predicted(case: Autoencoding) -> dict[str, Array]:
        return {array or claim: _wrongs(case)[name], "condition": jnp.ones((), case.data.dtype)}

    return Control(name, statement, claim, predict=predicted)


def _twice(case: Autoencoding) -> dict[str, Array]:
    return {"attained": 2 * predict(case)["attained"]}


def _any_data(case: Autoencoding) -> dict[str, Array]:
    return {"attained": autoencoder_training_claims.added_at_identity(case, case.data[0])}


CONTROLS = (
    Control("fixed_number_shown",
            "always the same number of patches shown, or one more, the mean being p", "marginal",
            case=_fixed_number, breaks="masks_are_independent"),
    _control("nuclear_norm_penalty", "penalty p(1-p) ||A X||_*^2 / (n m)", "marginal"),
    _control("plain_ridge", "D replaced by I", "marginal"),
    _control("entries_for_patches", "D = diag S where patches are masked", "marginal"),
    _control("masks_over_their_mean", "p forgotten: the loss of M/p", "marginal"),
    _control("soft_thresholding",
             "input masking by soft-thresholding: p A X = U (Sigma - mu I)_+ V^T", "optimum"),
    _control("optimum_of_entries", "D = diag S where patches are masked", "optimum"),
    _control("rank_of_soft_thresholding", "the rank that soft-thresholding leaves", "rank",
             "rank_values"),
    _control("vectors_of_s", "U_r of S, not of S Q^{-1/2}", "bottleneck"),
    _control("value_without_p", "tr S - sum_{i <= r} sigma_i^2", "bottleneck_value"),
    _control("bound_not_divided", "the bound without 1/m", "nuclear_bound"),
    Control("attained_by_any_data", "A = I on data whose rows are not orthogonal", "attained",
            measure=_any_data),
    Control("attained_twofold", "twice the bound", "attained", predict=_twice),
    *(
        Control(f"{claim}_untrained", "no training, and masks that mostly show everything", claim,
                measure=autoencoder_training_claims.measure_untrained)
        for claim in ("marginal", "optimum", "rank", "bottleneck", "bottleneck_value",
                      "nuclear_bound", "masked_marginal", "masked_optimum", "unidentified")
    ),
    _control("diagonal_kept", "diagonal blocks of A kept", "masked_marginal"),
    _control("chance_forgotten", "the factor 1 - p left out", "masked_marginal"),
    _control("blocks_cut_out", "S Q^{-1} without its blocks", "masked_optimum"),
    _control("single_multipliers", "mu_i in place of M_b", "masked_optimum"),
    _control("blocks_trained", "diagonal blocks of A trained to 0", "unidentified"),
)  # fmt: skip


# The scenario -------------------------------------------------------------------------------


def _narrow(settings: dict[str, Any]) -> dict[str, Any]:
    """Input masks only, and both losses in one program.

    At a width of the rank of the random data, m - 1, or more there is no bottleneck.
    """
    words = tuple(word for word in settings["mask"] if word in ("input", "patch"))
    losses = " ".join(sorted(settings["loss"]))
    most = max(1, min(settings["rows"]) - 1)
    narrow = tuple(width for width in settings["width"] if width <= most) or (most,)
    return settings | {"mask": words, "loss": (losses,), "width": narrow}


AUTOENCODER = Scenario(
    "autoencoder",
    autoencoder_training_claims.make_case,
    predict,
    autoencoder_training_claims.measure,
    CLAIMS,
    CONTROLS,
    hypotheses={"masks_are_independent": _independent},
    dims={
        **dict.fromkeys(("marginal", "bottleneck_value", "energy", "masked_marginal"), ("data",)),
        **dict.fromkeys(("nuclear_bound", "penalty"), ("data", "autoencoder")),
        **dict.fromkeys(
            ("optimum", "bottleneck", "masked_optimum", "unidentified"), ("data", "row", "column")
        ),
        "rank_values": ("data", "index"),
    },
    narrow=_narrow, long=True,
    sides="moments S, D, Q against all masks enumerated and autoencoders trained on these sums",
    at={"mask": "patch", "loss": "all masked"},
)  # fmt: skip


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
