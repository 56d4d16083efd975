"""Theorem 3: the minimisers of dropout over theta, and the least penalty over the width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from lrdyn.figures import band, plotting
from lrdyn.theorem3.dropout_minimiser_claims import RUNS, MinimiserMeasured, MinimiserTheory
from lrdyn.theorem3.dropout_penalty_claims import DropoutMeasured, DropoutTheory
from lrdyn.theorem3.dropout_units import COPIES
from lrdyn.verification.stating.fields import of_run, of_theory

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


ERRORS = 4
"""Standard errors that an error bar is long, up and down."""


def plot_dropout(groups: Mapping[str, xr.Dataset]) -> Figure | None:
    """Draw the singular values of the minimisers over theta, and the least penalty over width.

    All other flags have their first values; nothing is drawn if dropout was not run.
    """
    if "/dropout_training" not in groups:
        return None
    titles = ["minimisers of the expected loss", "least penalty"]
    figure, (left, right) = plotting.panels(titles, height=2.9)
    training = plotting.first_point(groups["/dropout_training"], "keep_prob")
    _plot_minimisers(left, training)
    _plot_widths(right, plotting.first_point(groups["/dropout"], "width", "keep_prob"))
    return figure


def minimiser_values(spectrum: np.ndarray, width: int, keep_probs: np.ndarray) -> np.ndarray:
    """Singular values of the minimiser at each theta: those of Y P less mu, down to 0.

    ``mu_q = c/(1 + c q) sum_{i<=q} sigma_i`` grows as long as the next value exceeds it, so the
    largest of them is that of the q values that are kept.
    """
    strengths = ((1 - keep_probs) / keep_probs / width)[:, None]
    first = spectrum[:width]
    thresholds = strengths / (1 + strengths * np.arange(1, len(first) + 1)) * np.cumsum(first)
    left = np.maximum(first - np.max(thresholds, axis=1, keepdims=True), 0.0)
    return np.pad(left, ((0, 0), (0, len(spectrum) - len(first))))


def _plot_minimisers(ax: Axes, results: xr.Dataset) -> None:
    theory, run = of_theory(results, MinimiserTheory), of_run(results, MinimiserMeasured)
    width, keep_probs = int(results["width"]), results["keep_prob"]
    spectrum = theory(lambda theory: theory.spectrum).values[0]
    along = np.linspace(0.02, 1.0, 200)
    curves = minimiser_values(spectrum, width, along)
    means = theory(lambda theory: theory.stochastic_values)
    for index, color in zip(range(len(spectrum)), plotting.SHADES * len(spectrum), strict=False):
        look = plotting.OPEN | {"mec": color, "ms": 5}
        ax.plot(along, curves[:, index], color=color, lw=1.0)
        descent = run(lambda run: run.singular_values).isel(index=index)
        ax.plot(keep_probs, descent, zorder=3, clip_on=False, **look)
        # A direction that is cut off ends at 0 in every run.
        live = means.isel(index=index).values > 0
        ends = run(lambda run: run.stochastic_ends).isel(index=index)
        band(
            ax,
            ends.isel(keep_prob=live),
            over="run",
            errors=ERRORS,
            bars=True,
            ls="none",
            marker=".",
            ms=3,
            color=color,
            elinewidth=0.8,
            capsize=0,
            zorder=4,
        )
    ax.set(xlabel=r"keep probability $\theta$", ylabel=r"singular values of $W_2 W_1 X$")
    ax.set(xlim=(0, 1), ylim=(-0.03, 1.03))
    entries = [
        plotting.entry("closed form"),
        plotting.entry("gradient descent", ls="none", marker="o", mfc="white"),
        plotting.entry(f"dropout, {RUNS} runs, {ERRORS} s.e.", ls="none", marker="."),
    ]
    ax.legend(handles=entries, loc="upper left", borderaxespad=0.3)


def _plot_widths(ax: Axes, results: xr.Dataset) -> None:
    last = results.isel(keep_prob=-1)
    theory, run = of_theory(last, DropoutTheory), of_run(last, DropoutMeasured)
    widths = last["width"].values[:, None] * np.asarray(COPIES)[None, :]
    x = np.array([1, 2 * widths.max()])
    for penalty, line, color, marker, text in (
        (
            run(lambda run: run.width_free),
            1.0 + 0 * x,
            plotting.BLUE,
            "s",
            r"$\theta(h) = p/(h - (h-1)p)$",
        ),
        (
            run(lambda run: run.equalised_penalty),
            1 / x,
            plotting.ORANGE,
            "o",
            r"$\theta$ fixed: $1/h$",
        ),
    ):
        ax.plot(x, line, color=color, lw=1.0, label=text)
        # In units of the penalty of a single unit, which no width changes.
        ratio = penalty / theory(lambda theory: theory.width_free)
        ratio = ratio.transpose("width", "copies").values
        ax.plot(widths.ravel(), ratio.ravel(), ls="none", marker=marker, mfc="white", mec=color)
    ax.set(xscale="log", yscale="log", xlabel=r"width $h$")
    ax.set_ylabel(r"penalty / $\left(\frac{1-p}{p} \Vert Z \Vert_*^2\right)$")
    ax.legend(loc="lower left")
