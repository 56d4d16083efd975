"""Figures of what was watched, and of what was found between two checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lrdyn.core.show import printable
from lrdyn.figures.plotting import BESIDE, BLACK, DASHED, GREY, SHADES, entry, panels, style

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lrdyn.diagnosis.report import Diagnosis

EFFECTIVE = "effective rank of the update"
BOTTOM = 1e-4
"""Least energy left that is shown: below it the curves leave the panel."""
MOST = len(SHADES) - 1
"""Matrices that have a colour and a name of their own; of more, all are drawn in grey."""


def watched(dataset: xr.Dataset) -> Figure:
    """Effective rank, energy outside of the first k, and angles over the steps.

    Args:
        dataset: that of a :class:`lrdyn.diagnosis.watcher.Watcher`.

    Example:
        >>> import lrdyn
        >>> recorder = lrdyn.watch({"W": np.zeros((4, 3))}, k=2)
        >>> recorder({"W": np.eye(4, 3)}, 1)
        >>> len(watched(recorder.dataset).axes)
        3
    """
    steps, names = dataset["step"].values, [str(name) for name in dataset["matrix"].values]
    k = dataset.attrs["k"]
    squared_cosines = np.cos(dataset["angle_to_last"].values) ** 2
    is_known = np.isfinite(squared_cosines)
    overlap = np.where(is_known, squared_cosines, 0).sum((2, 3)) / np.where(
        is_known.any((2, 3)), is_known.sum((2, 3)), np.nan
    )
    curves = {
        EFFECTIVE: dataset["effective_rank"].values,
        f"energy left by rank {k}": 1 - dataset["energy"].values,
        f"overlap of the first {k} with the last call": overlap,
    }
    with style():
        figure, axes = panels(list(curves))
        least = dataset["effective_rank_least"].values
        for low, high, look in zip(least.T, curves[EFFECTIVE].T, _looks(names), strict=True):
            axes[0].fill_between(steps, low, high, color=look["color"], alpha=0.2, lw=0)
        for ax, values in zip(axes, curves.values(), strict=True):
            for curve, look in zip(values.T, _looks(names), strict=True):
                ax.plot(steps, curve, marker="o", ms=2.5, **look)
            ax.set_xlabel("step")
            ax.set_ylim(bottom=0)
        _legend(axes[-1], names)
    return figure


def diagnosed(diagnosis: Diagnosis) -> Figure:
    """Singular values of the updates, energy that rank r leaves, and the bulk before and after.

    Args:
        diagnosis: what :func:`lrdyn.diagnose` gives.

    Example:
        >>> import lrdyn
        >>> diagnosis = lrdyn.diagnose({"W": np.eye(4, 3)}, {"W": 2 * np.eye(4, 3)}, k=1)
        >>> len(diagnosed(diagnosis).axes)
        3
    """
    moved = [update for update in diagnosis.matrices if update.rank > 0]
    names = [update.name for update in moved]
    with style():
        titles = ["singular values / the first", "energy left by rank r", "spread of the bulk"]
        figure, axes = panels(titles)
        values, left, bulk = axes
        for update, look in zip(moved, _looks(names), strict=True):
            r = np.arange(1, len(update.values) + 1)
            outside = 1 - np.cumsum(update.values**2) / np.sum(update.values**2)
            above_rounding = slice(None, update.rank)
            values.loglog(
                r[above_rounding], update.values[above_rounding] / update.values[0], **look
            )
            left.loglog(r, np.maximum(outside, BOTTOM / 100), **look)
            bulk.plot(
                update.spread_before, update.spread_after, **look | {"ls": "none", "marker": "o"}
            )
        for rest, text in ((0.1, "90 %"), (0.01, "99 %")):
            left.axhline(rest, color=BLACK, lw=0.6, ls=DASHED)
            left.annotate(
                text,
                (0.02, rest),
                (0, 1.5),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
            )
        values.set(xlabel="index", ylabel="of W after - W before")
        left.set(xlabel="r", ylabel="share of the squared norm", ylim=(BOTTOM, 1.5))
        bulk.locator_params(nbins=4)
        bulk.set(xlabel=f"of W before, behind the first {diagnosis.k}", ylabel="after")
        # On the diagonal the bulk is as spread after as before.
        low, high = (f(*bulk.get_xlim(), *bulk.get_ylim()) for f in (min, max))
        bulk.plot((low, high), (low, high), color=BLACK, lw=0.6, ls=DASHED, zorder=0)
        _legend(bulk, names)
    return figure


def _looks(names: Sequence[str]) -> list[dict[str, Any]]:
    """A colour each, as long as they can be told apart."""
    if len(names) <= MOST:
        return [{"color": color, "lw": 1.0} for color in SHADES[: len(names)]]
    return [{"color": GREY, "lw": 0.6, "alpha": 0.5}] * len(names)


def _legend(ax: Axes, names: Sequence[str]) -> None:
    # A dollar begins mathematics, and a label that begins with _ is left out.
    names = [printable(name).replace("$", r"\$") for name in names]
    names = [f" {name}" if name.startswith("_") else name for name in names]
    if 1 < len(names) <= MOST:
        ax.legend(handles=[entry(n, c) for n, c in zip(names, SHADES, strict=False)], **BESIDE)
    elif names:
        text = names[0] if len(names) == 1 else f"{len(names)} matrices"
        ax.legend(handles=[entry(text, SHADES[0] if len(names) == 1 else GREY)], **BESIDE)
