"""Drawing: each function takes data and ``ax`` and returns ``ax``; matplotlib loads on first use."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE = Path(__file__).with_name("lrdyn.mplstyle")
BLUE, ORANGE, GREEN, PINK, BLACK, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#8C8C8C"
# Three shades of one hue that stay apart in grey print as well.
BLUES, ORANGES = ("#003F66", "#0072B2", "#56B4E9"), ("#E69F00", "#D55E00", "#7F3300")
TEXT_WIDTH = 7.0  # inches


def style() -> AbstractContextManager[None]:
    """Matplotlib style of this package, for the length of a ``with`` block.

    Returns:
        A context manager; the settings of the caller are neither used inside nor changed after.

    Example:
        >>> import matplotlib
        >>> size = matplotlib.rcParams["font.size"]
        >>> with style():
        ...     matplotlib.rcParams["font.size"]
        8.0
        >>> matplotlib.rcParams["font.size"] == size
        True
    """
    import matplotlib.style

    return matplotlib.style.context(STYLE, after_reset=True)


def panels(titles: Sequence[str], *, height: float = 2.4) -> tuple[Figure, np.ndarray]:
    """Make a figure of text width with one panel a title, side by side.

    No pyplot is involved: nothing has to be closed and no window opens.

    Args:
        titles: titles of the panels; each gets its letter.
        height: in inches.

    Returns:
        The figure and its axes.

    Example:
        >>> len(panels(["left", "right"])[1])
        2
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(TEXT_WIDTH, height), layout="constrained")
    axes = figure.subplots(1, len(titles), squeeze=False)[0]
    for letter, title, ax in zip("abcdefgh", titles, axes, strict=False):
        ax.set_title(f"({letter}) {title}")
    return figure, axes


def plot_compared(
    ax: Axes,
    x: np.ndarray,
    predicted: np.ndarray,
    measured: np.ndarray,
    *,
    color: str,
    marker: str = "o",
    every: int | tuple[int, int] = 5,
) -> Axes:
    """Draw a prediction as a line and what was measured as open markers on it.

    Args:
        ax: where to draw.
        x: abscissae.
        predicted: values from theory.
        measured: values from the run.
        color: colour of both.
        marker: shape of the markers.
        every: one marker each so many points; ``(start, every)`` staggers coincident curves.

    Returns:
        ``ax``.
    """
    ax.plot(x, predicted, color=color, lw=1.0)
    ax.plot(
        x, measured, ls="none", marker=marker, mfc="white", mec=color, mew=0.8,
        markevery=every, clip_on=False, zorder=3,
    )  # fmt: skip
    return ax


def plot_key(ax: Axes, *, line: str, marker: str, loc: str = "upper left") -> Axes:
    """Explain the lines and the markers of :func:`plot_compared`, whatever their colours.

    Args:
        ax: where to draw.
        line: what the lines are.
        marker: what the markers are.
        loc: corner.

    Returns:
        ``ax``.
    """
    from matplotlib.lines import Line2D

    entries = [
        Line2D([], [], color=GREY, lw=1.0, label=line),
        Line2D([], [], ls="none", marker="o", mfc="white", mec=GREY, mew=0.8, label=marker),
    ]
    ax.legend(handles=entries, loc=loc, borderaxespad=0.2, labelspacing=0.3)
    return ax


def plot_spectrum(ax: Axes, x: np.ndarray, values: np.ndarray, *, rank: int) -> Axes:
    """Draw all singular values over time on a log axis, the first ``rank`` in colour.

    Args:
        ax: where to draw.
        x: times.
        values: singular values in decreasing order, ``(index, time)``; zeros and NaN are left out.
        rank: how many of them theory allows to move.

    Returns:
        ``ax``.
    """
    positive = np.where(values > 0, values, np.nan)
    ax.plot(x, positive[rank:].T, color="#B3B3B3", lw=0.3, rasterized=True, zorder=1)
    ax.plot(x, positive[:rank].T, color=BLUE, lw=0.8, zorder=2)
    ax.set_yscale("log")
    return ax


def label_ends(
    ax: Axes, values: Sequence[float], texts: Sequence[str], colors: Sequence[Any], *, gap: float = 0.075
) -> Axes:
    """Write labels to the right of an axis, at the heights of the ends of its curves.

    Args:
        ax: where to write; its limits must be final.
        values: ordinates of the ends.
        texts: one label each.
        colors: one colour each.
        gap: least distance of two labels, as a part of the height of the axis.

    Returns:
        ``ax``.
    """
    to_axis = ax.transData + ax.transAxes.inverted()
    heights = np.array([to_axis.transform((ax.get_xlim()[1], value))[1] for value in values])
    for height, text, color in zip(spread(heights, gap), texts, colors, strict=True):
        ax.text(1.03, height, text, color=color, transform=ax.transAxes, va="center")
    return ax


def spread(heights: np.ndarray, gap: float) -> np.ndarray:
    """Move numbers as little as needed to be ``gap`` apart, keeping their order.

    Least squares under ``h_{i+1} - h_i >= gap``: with the gaps subtracted it is isotonic
    regression, solved by pooling adjacent violators.

    Args:
        heights: the numbers.
        gap: least distance.

    Returns:
        The moved numbers, in the order given.

    Example:
        >>> spread(np.array([0.5, 0.5, 2.0]), 0.1).round(6).tolist()
        [0.45, 0.55, 2.0]
    """
    order = np.argsort(heights, kind="stable")
    slots = gap * np.arange(len(heights))
    pools: list[list[float]] = []
    for height in heights[order] - slots:
        pools.append([height])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    moved = np.empty(len(heights))
    moved[order] = np.repeat([np.mean(p) for p in pools], [len(p) for p in pools]) + slots
    return moved
