"""Theorem 3, part A: where training with dropout ends."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lrdyn import linalg
from lrdyn.claims import tolerance
from lrdyn.descent import gradient_descent, simulate
from lrdyn.dropout import (
    Shrinkage,
    dropout_descent,
    dropout_loss,
    dropout_minimiser,
    dropout_strength,
    equalize,
    project_rows,
    shrink_squared,
    shrink_squared_values,
)
from lrdyn.factorization import Weights, end_to_end
from lrdyn.initialization import gaussians, spaced_singular_values
from lrdyn.spectra import singular_values
from lrdyn.theorem import Arrays, Claim, Control, Statement
from lrdyn.theorems.dropout import COPIES, LARGEST, only, reflection

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RUNS = 24
"""Runs of stochastic training."""

SHARE = 2
"""Gradient descent takes so many times the steps of a stochastic run."""

HALVES = 40
"""The steps of a stochastic run are halved after this part of it, and end at 1/41."""


class Training(eqx.Module):
    """A regression to be trained with dropout."""

    inputs: Float[Array, "d n"]
    target: Float[Array, "m n"]
    weights: Weights
    """Start of gradient descent."""
    fitted: Weights
    """Start of stochastic training: the minimiser without dropout."""
    keep_prob: Float[Array, ""]
    learning_rate: Float[Array, ""]
    key: Key[Array, ""]
    width: int = eqx.field(static=True)
    steps: int = eqx.field(static=True)


def _training(
    key: Key[Array, ""],
    *,
    rows: int,
    cols: int,
    width: int,
    keep_prob: Any,
    learning_rate: Any,
    steps: int,
    **flags: Any,
) -> Training:
    rank = min(rows, cols)
    shapes = [(2, rows), (1, cols), (1, rank), (rows, cols), (width, rows), (rows, width)]
    sides, line, turn, noise, first, second = gaussians(key, shapes)
    left, columns = jax.vmap(reflection)(sides)[:, :, :rank]
    lines = reflection(line[0])[:rank]
    turned = reflection(turn[0]) @ lines
    # Singular values of X from 4/3 to 2/3; of Y P from 1 to 1/rank, above the threshold and below.
    scales, spectrum = spaced_singular_values(rank, 4 / 3), jnp.linspace(1.0, 1 / rank, rank)
    roots, rest = jnp.sqrt(spectrum[:width]), max(width - rank, 0)
    fitted, hidden = equalize(
        jnp.pad(columns[:, :width] * roots[None, :], ((0, 0), (0, rest))),
        jnp.pad(roots[:, None] * turned[:width], ((0, rest), (0, 0))),
    )
    reached = (columns * spectrum[None, :]) @ turned
    return Training(
        inputs=(left * scales[None, :]) @ lines,
        target=reached + 0.1 * (noise - (noise @ lines.T) @ lines),
        weights=(0.5 * first / np.sqrt(rows), 0.5 * second / np.sqrt(rows)),
        fitted=((hidden @ lines.T / scales[None, :]) @ left.T, fitted),
        keep_prob=jnp.asarray(keep_prob, lines.dtype),
        learning_rate=jnp.asarray(learning_rate, lines.dtype),
        key=jax.random.fold_in(key, 1),
        width=width,
        steps=steps,
    )


def _predict_minimiser(case: Training, found: Shrinkage | None = None) -> dict[str, Array]:
    """The closed form: product, value, spectrum, and how clear the choice of q is."""
    if found is None:
        found = dropout_minimiser(case.target, case.inputs, case.keep_prob, case.width)
    rest = case.target - found.product
    strength = dropout_strength(case.keep_prob, case.width)
    return {
        "dropout_minimiser": found.product,
        "dropout_minimum": jnp.sum(rest**2) + strength * jnp.sum(found.values) ** 2,
        "stochastic": jnp.sum(found.values),
        "stochastic_values": found.values,
    }


def _gap(case: Training, found: Shrinkage, reached: Float[Array, "k"]) -> Float[Array, ""]:
    """Least distance of a singular value of Y P from being chosen otherwise, over the largest."""
    counted = jnp.arange(len(reached)) < case.width
    gap = jnp.min(jnp.where(counted, jnp.abs(reached - found.threshold), jnp.inf))
    if case.width < len(reached):  # a full choice can be exchanged for what was left out
        step = reached[case.width - 1] - reached[case.width]
        gap = jnp.where(found.rank == case.width, jnp.minimum(gap, step), gap)
    return gap / reached[0]


def _measure_minimiser(case: Training) -> dict[str, Array]:
    """Gradient descent on the expected loss, and stochastic training with dropout."""

    def loss(weights):
        first, second = weights
        return 0.5 * dropout_loss(second, first @ case.inputs, case.target, case.keep_prob)

    run = simulate(
        loss, case.weights, gradient_descent(case.learning_rate), np.asarray([0, case.steps])
    )
    slopes = jax.grad(loss)(run.params)
    product = end_to_end(run.params) @ case.inputs
    closed = dropout_minimiser(case.target, case.inputs, case.keep_prob, case.width)
    reached = singular_values(project_rows(case.target, case.inputs))

    steps, halve_after = _schedule(case)

    def train(number):
        weights = dropout_descent(
            jax.random.fold_in(case.key, number),
            case.fitted,
            case.inputs,
            case.target,
            case.keep_prob,
            case.learning_rate,
            steps,
            halve_after=halve_after,
        )
        found = end_to_end(weights) @ case.inputs
        ends = jnp.diagonal(closed.left.T @ found @ closed.right.T)
        return jnp.where(closed.values > 0, ends, 0.0)

    ends = jax.vmap(train)(jnp.arange(RUNS))
    whole = jnp.sum(ends, axis=1)
    return {
        "dropout_minimiser": product,
        "dropout_minimum": 2 * loss(run.params),
        "stochastic": jnp.mean(whole),
        "standard_error": jnp.std(whole, ddof=1) / np.sqrt(RUNS),
        "stochastic_values": jnp.mean(ends, axis=0),
        "standard_errors": jnp.std(ends, axis=0, ddof=1) / np.sqrt(RUNS),
        "singular_values": singular_values(product),
        "gradient": jnp.sqrt(sum(jnp.sum(slope**2) for slope in slopes)),
        "gap": _gap(case, closed, reached),
        "spectrum": reached,
        "diverged_at": run.diverged_at,
    }


def _schedule(case: Training) -> tuple[int, int]:
    """Steps of a stochastic run, and after how many they are halved."""
    steps = max(1, case.steps // SHARE)
    return steps, max(1, steps // HALVES)


def _converged(case: Training, predicted: Arrays, measured: Arrays) -> Array:
    # Near a minimum the distance to it is the gradient over the curvature: down to round-off.
    limit = tolerance("identity", case.target.dtype, size=max(case.target.shape))
    return measured["gradient"] <= limit * measured["gap"]


def _long_enough(case: Training, predicted: Arrays, measured: Arrays) -> Array:
    # What is decided at the rate of the gap needs a time of 1 / gap: the sum of all steps.
    steps, first = _schedule(case)
    time = case.learning_rate * case.keep_prob * first * np.log1p(steps / first)
    # A single unit has no noise at the minimum: its runs agree better than they have converged.
    return (time * measured["gap"] >= 1) & (case.width > 1) & (measured["standard_error"] > 0)


MINIMISER_CLAIMS = (
    Claim(
        "dropout_minimiser",
        "gradient descent on the expected loss ends at Z = U (Sigma - mu_q I)_+ V^T, from Y P = "
        "U Sigma V^T and c = (1-theta)/(theta h) (if it has converged)",
        applies=_converged,
    ),
    Claim(
        "dropout_minimum",
        "the expected loss there is the minimum of ||Y - Z||_F^2 + c ||Z||_*^2 over rank Z <= h",
        applies=_converged,
    ),
    Claim(
        "stochastic",
        f"training with random masks and decreasing steps ends there: mean over {RUNS} runs of "
        "sum_{i<=q} u_i^T Z v_i, which is ||Z||_* (if h > 1 and the sum of the steps exceeds "
        "1 / gap)",
        kind="statistical",
        residual=lambda case, p, m: (
            jnp.abs(p["stochastic"] - m["stochastic"]) / m["standard_error"]
        ),
        applies=_long_enough,
    ),
)

AT_WIDTH = 4
MINIMISER_AT = {"mask": "dropout", "keep_prob": 0.5, "rows": 6, "cols": 8, "width": AT_WIDTH}


def _shrunk_by(strength: float, *, projected: bool = True) -> Callable[[Training], dict]:
    """Prediction with another strength than c, in multiples of it, or without P."""

    def wrong(case):
        c = strength * dropout_strength(case.keep_prob, case.width)
        target = project_rows(case.target, case.inputs) if projected else case.target
        return _predict_minimiser(case, shrink_squared(target, c, case.width))

    return wrong


def _soft_thresholded(case: Training) -> dict[str, Array]:
    """Minimiser of ||Y P - Z||_F^2 + c ||Z||_*: soft thresholding at c/2."""
    left, values, right = linalg.svd(project_rows(case.target, case.inputs))
    threshold = dropout_strength(case.keep_prob, case.width) / 2
    kept = jnp.maximum(values - threshold, 0.0) * (jnp.arange(len(values)) < case.width)
    rank = jnp.sum(kept > 0)
    wrong = Shrinkage((left * kept[None, :]) @ right, kept, threshold, rank, left, right)
    return _predict_minimiser(case, wrong)


MINIMISER = Statement(
    "dropout_training",
    _training,
    _predict_minimiser,
    _measure_minimiser,
    MINIMISER_CLAIMS,
    controls=(
        *(
            Control(
                f"{claim}_without_width",
                "c with h dropped",
                claim,
                predict=_shrunk_by(1.0 * AT_WIDTH),
                at=MINIMISER_AT,
            )
            for claim in ("dropout_minimiser", "stochastic")
        ),
        *(
            Control(
                f"{claim}_soft_thresholded",
                "nuclear norm not squared",
                claim,
                predict=_soft_thresholded,
                at=MINIMISER_AT,
            )
            for claim in ("dropout_minimiser", "dropout_minimum", "stochastic")
        ),
        Control(
            "target_not_projected",
            "Y in place of Y P, though X has fewer rows than columns",
            "dropout_minimiser",
            predict=_shrunk_by(1.0, projected=False),
            at=MINIMISER_AT,
        ),
    ),
    dims={
        "dropout_minimiser": ("row", "column"),
        "stochastic_values": ("index",),
        "standard_errors": ("index",),
        "singular_values": ("index",),
        "spectrum": ("index",),
    },
    narrow=lambda settings: (
        only("dropout", "block_size", "patch_size")(settings) | {"steps": settings["steps"]}
    ),
)


def plot_dropout(groups: "Mapping[str, xr.Dataset]") -> "Figure | None":
    """Draw the singular values of the minimisers over theta, and the least penalty over width.

    Args:
        groups: content of ``results.nc``.

    Returns:
        The figure, at the first values of all other flags; None if dropout was not run.
    """
    from lrdyn import plotting

    if "/dropout_training/" not in groups:
        return None
    with plotting.style():
        figure, (left, right) = plotting.panels(
            ["minimisers of the expected loss", "least penalty"], height=2.9
        )
        _plot_minimisers(left, _first(groups["/dropout_training/"], "keep_prob"))
        _plot_widths(right, _first(groups["/dropout/"], "width", "keep_prob"))
    return figure


def _first(data: "xr.Dataset", *kept: str) -> "xr.Dataset":
    """The first value of every flag but some."""
    flags = ("seed", "rows", "cols", "width", "keep_prob", "mask", "block_size", "patch_size")
    flags += ("loss", "learning_rate")
    return data.isel({name: 0 for name in flags if name in data.dims and name not in kept})


def _plot_minimisers(ax: "Axes", data: "xr.Dataset") -> None:
    from lrdyn import plotting

    width, spectrum = int(data["width"]), data["spectrum"].values[0]
    chances = np.linspace(0.02, 1.0, 200)
    shrunk = jax.vmap(
        lambda x: shrink_squared_values(jnp.asarray(spectrum), dropout_strength(x, width), width)[0]
    )
    curves = np.asarray(shrunk(jnp.asarray(chances, spectrum.dtype)))
    shades = plotting.SHADES
    for index, color in zip(range(len(spectrum)), shades * len(spectrum), strict=False):
        ax.plot(chances, curves[:, index], color=color, lw=1.0)
        found = data["singular_values"].isel(index=index)
        ax.plot(data["keep_prob"], found, ls="none", marker="o", mfc="white", mec=color, mew=0.8,
                ms=5, zorder=3, clip_on=False)  # fmt: skip
        live = data["stochastic_values_predicted"].isel(index=index).values > 0
        ax.errorbar(
            data["keep_prob"].values[live],
            data["stochastic_values_measured"].isel(index=index).values[live],
            4 * data["standard_errors"].isel(index=index).values[live],
            ls="none", marker=".", ms=3, color=color, elinewidth=0.8, zorder=4,
        )  # fmt: skip
    ax.set(xlabel=r"keep probability $\theta$", ylabel=r"singular values of $W_2 W_1 X$")
    ax.set(xlim=(0, 1), ylim=(-0.03, 1.03))
    _key(ax, ("closed form", "gradient descent", f"dropout, {RUNS} runs, 4 s.e."))


def _key(ax: "Axes", texts: tuple[str, str, str]) -> None:
    from matplotlib.lines import Line2D

    from lrdyn.plotting import GREY

    line = Line2D([], [], color=GREY, lw=1.0, label=texts[0])
    opened = Line2D([], [], ls="none", marker="o", mfc="white", mec=GREY, label=texts[1])
    dot = Line2D([], [], ls="none", marker=".", color=GREY, label=texts[2])
    ax.legend(handles=[line, opened, dot], loc="upper left", borderaxespad=0.3)


def _plot_widths(ax: "Axes", data: "xr.Dataset") -> None:
    from lrdyn import plotting

    last = data.isel(keep_prob=-1)
    whole = last["width_free_predicted"]
    widths = np.minimum(last["width"].values, LARGEST)[:, None] * np.asarray(COPIES)[None, :]
    x = np.array([1, 2 * widths.max()])
    for name, line, color, marker, text in (
        ("width_free_measured", 1.0 + 0 * x, plotting.BLUE, "s", r"$\theta(h) = p/(h - (h-1)p)$"),
        ("fixed_theta", 1 / x, plotting.ORANGE, "o", r"$\theta$ fixed: $1/h$"),
    ):
        ax.plot(x, line, color=color, lw=1.0, label=text)
        ratio = (last[name] / whole).transpose("width", "copies").values
        ax.plot(widths.ravel(), ratio.ravel(), ls="none", marker=marker, mfc="white", mec=color)
    ax.set(xscale="log", yscale="log", xlabel=r"width $h$")
    ax.set_ylabel(r"penalty / $\left(\frac{1-p}{p} \Vert Z \Vert_*^2\right)$")
    ax.legend(loc="lower left")
