"""Theorem 3: the figure of its own."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from lrdyn.claims import STANDARD_ERRORS, standard_error
from lrdyn.dropout import dropout_strength, shrink_squared_values
from lrdyn.theorems.theorem3.dropout_minimiser import RUNS
from lrdyn.theorems.theorem3.dropout_penalty import COPIES, LARGEST

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_dropout(groups: "Mapping[str, xr.Dataset]") -> "Figure | None":
    """Draw the singular values of the minimisers over theta, and the least penalty over width.

    Args:
        groups: content of ``results.nc``.

    Returns:
        The figure, at the first values of all other flags; None if dropout was not run.
    """
    from lrdyn.drawing import plotting

    if "/dropout_training" not in groups:
        return None
    with plotting.style():
        figure, (left, right) = plotting.panels(
            ["minimisers of the expected loss", "least penalty"], height=2.9
        )
        _plot_minimisers(left, _first(groups["/dropout_training"], "keep_prob"))
        _plot_widths(right, _first(groups["/dropout"], "width", "keep_prob"))
    return figure


def _first(data: "xr.Dataset", *kept: str) -> "xr.Dataset":
    """The first value of every flag but some."""
    flags = ("seed", "rows", "cols", "width", "keep_prob", "mask", "block_size", "patch_size")
    flags += ("loss", "learning_rate")
    return data.isel({name: 0 for name in flags if name in data.dims and name not in kept})


def _plot_minimisers(ax: "Axes", data: "xr.Dataset") -> None:
    from lrdyn.drawing import plotting

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
        live = data["stochastic_values"].isel(index=index).values > 0
        ends = (
            data["stochastic_ends"].isel(index=index).transpose("run", "keep_prob").values[:, live]
        )
        ax.errorbar(
            data["keep_prob"].values[live],
            np.mean(ends, axis=0),
            STANDARD_ERRORS * standard_error(ends),
            ls="none", marker=".", ms=3, color=color, elinewidth=0.8, zorder=4,
        )  # fmt: skip
    ax.set(xlabel=r"keep probability $\theta$", ylabel=r"singular values of $W_2 W_1 X$")
    ax.set(xlim=(0, 1), ylim=(-0.03, 1.03))
    _key(ax, ("closed form", "gradient descent", f"dropout, {RUNS} runs, {STANDARD_ERRORS:g} s.e."))


def _key(ax: "Axes", texts: tuple[str, str, str]) -> None:
    from matplotlib.lines import Line2D

    from lrdyn.drawing.plotting import GREY

    line = Line2D([], [], color=GREY, lw=1.0, label=texts[0])
    opened = Line2D([], [], ls="none", marker="o", mfc="white", mec=GREY, label=texts[1])
    dot = Line2D([], [], ls="none", marker=".", color=GREY, label=texts[2])
    ax.legend(handles=[line, opened, dot], loc="upper left", borderaxespad=0.3)


def _plot_widths(ax: "Axes", data: "xr.Dataset") -> None:
    from lrdyn.drawing import plotting

    last = data.isel(keep_prob=-1)
    whole = last["width_free_predicted"]
    widths = np.minimum(last["width"].values, LARGEST)[:, None] * np.asarray(COPIES)[None, :]
    x = np.array([1, 2 * widths.max()])
    for name, line, color, marker, text in (
        ("width_free_measured", 1.0 + 0 * x, plotting.BLUE, "s", r"$\theta(h) = p/(h - (h-1)p)$"),
        ("equalised_penalty_measured", 1 / x, plotting.ORANGE, "o", r"$\theta$ fixed: $1/h$"),
    ):
        ax.plot(x, line, color=color, lw=1.0, label=text)
        ratio = (last[name] / whole).transpose("width", "copies").values
        ax.plot(widths.ravel(), ratio.ravel(), ls="none", marker=marker, mfc="white", mec=color)
    ax.set(xscale="log", yscale="log", xlabel=r"width $h$")
    ax.set_ylabel(r"penalty / $\left(\frac{1-p}{p} \Vert Z \Vert_*^2\right)$")
    ax.legend(loc="lower left")
