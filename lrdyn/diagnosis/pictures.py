"""Figures of a watched training, and of the update between two checkpoints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lrdyn.core.show import make_printable, shortened
from lrdyn.diagnosis import advice
from lrdyn.diagnosis.updates import MatrixUpdate
from lrdyn.figures.plotting import (
    BESIDE,
    BLACK,
    BLUES,
    DASHED,
    GREY,
    ORANGES,
    SHADES,
    entry,
    panels,
)

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROWS = 14
"""Kinds of layers that have a row."""
EFFECTIVE = "effective rank of the update"
BOTTOM = 1e-4
"""Least energy left that is shown: below it the curves leave the panel."""
COLORS = (*SHADES[:-1], BLUES[2], ORANGES[0])
"""Of matrices that have a name of their own, or of kinds of them; what is left is grey."""
MOST = 5
"""Matrices that have a colour each; of more, each kind has one."""
OTHERS = "other kinds"


def plot_watch(dataset: xr.Dataset) -> Figure:
    """Effective rank, energy outside of the first k, drift of the bulk, and angles over the steps.

    Dashed, or shaded around 0: what a random update of that size has.

    Args:
        dataset: that of a :class:`lrdyn.diagnosis.watcher.Watcher`.

    Example:
        >>> import lrdyn
        >>> recorder = lrdyn.watch({"W": np.zeros((4, 3))}, k=2)
        >>> recorder({"W": np.eye(4, 3)}, 1)
        >>> len(plot_watch(recorder.dataset).axes)
        4
    """
    steps, names = dataset["step"].values, [str(name) for name in dataset["matrix"].values]
    k, looks = dataset.attrs["k"], _looks(names)
    first, chance = (
        np.degrees(dataset[name].mean(("side", "direction")).values)
        for name in ("angle_to_first", "angle_chance")
    )
    # At the first call with an update the angle is to itself.
    first = np.where(dataset["angle_to_last"].isnull().all(("side", "direction")), np.nan, first)
    usual = np.broadcast_to(1 - dataset["energy_chance"].values, (len(steps), len(names)))
    curves = {
        EFFECTIVE: dataset["effective_rank"].values,
        f"energy left by rank {k} (dashed: chance)": 1 - dataset["energy"].values,
        "drift of the bulk (shaded: chance)": dataset["bulk_drift"].values,
        "degrees to the first call (dashed: chance)": first,
    }
    figure, axes = panels(list(curves), height=4.4, rows=2)
    for ax, values in zip(axes, curves.values(), strict=True):
        for curve, look in zip(values.T, looks, strict=True):
            ax.plot(steps, curve, marker="o", ms=2.5, **look)
        ax.set_xlabel("step")
    least, drift = (dataset[x].values.T for x in ("effective_rank_least", "bulk_drift_chance"))
    for row, look in enumerate(looks):
        shade: dict[str, Any] = {"color": look["color"], "alpha": 0.2, "lw": 0}
        axes[0].fill_between(steps, least[row], curves[EFFECTIVE][:, row], **shade)
        axes[2].fill_between(steps, -drift[row], drift[row], **shade)
        dashed: dict[str, Any] = look | {"lw": 0.6, "ls": DASHED}
        axes[1].plot(steps, usual[:, row], **dashed)
        axes[3].plot(steps, np.where(np.isnan(first), np.nan, chance)[:, row], **dashed)
    # Above the highest mark: the margin that Matplotlib leaves is a share of what curves span.
    axes[0].set_ylim(0, 1.08 * max(1.0, np.nanmax(curves[EFFECTIVE], initial=0.0)))
    axes[1].set_yscale("log")
    axes[1].set_ylim(BOTTOM, 1.5)
    axes[3].set(xlim=axes[0].get_xlim(), ylim=(0, 95), yticks=(0, 30, 60, 90))
    _legend(axes[1], names)
    return figure


def plot_diagnosis(matrices: Sequence[MatrixUpdate], k: int) -> Figure:
    """One page: spectra of the updates, energy that rank r leaves, r and its cost by kind.

    Where the bulk of W was asked for there is a panel of it in place of an empty one.

    Args:
        matrices: the updates that :func:`lrdyn.diagnose` found.
        k: how many singular values of W lie before its bulk.

    Example:
        >>> import lrdyn
        >>> diagnosis = lrdyn.diagnose({"W": np.eye(4, 3)}, {"W": 2 * np.eye(4, 3)}, k=1)
        >>> len(plot_diagnosis(diagnosis.matrices, diagnosis.k).axes)
        4
    """
    moved = [update for update in matrices if update.rank > 0]
    names = [update.name for update in moved]
    has_bulk = any(np.isfinite(update.spread_before) for update in moved)
    titles = [
        "singular values / the first",
        "energy left by rank r",
        "r by kind of layer",
        "spread of the bulk" if has_bulk else "parameters of LoRA / full",
    ]
    figure, axes = panels(titles, height=5.2, rows=2)
    values, left, ranks, last = axes
    for update, look in zip(moved, _looks(names), strict=True):
        _plot_spectrum(values, update, look)
        r = np.arange(1, len(update.values) + 1)
        total = np.sum(update.values**2) / (1 - update.beyond)
        outside = 1 - np.cumsum(update.values**2) / total
        left.loglog(r, np.maximum(outside, BOTTOM / 100), **look)
    for rest, text in ((0.1, "90 %"), (0.01, "99 %")):
        left.axhline(rest, color=BLACK, lw=0.6, ls=DASHED)
        left.annotate(  # right, since curves begin high
            text,
            (0.98, rest),
            (0, 1.5),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
        )
    has_floor = any(update.noise is not None for update in moved)
    values.set(
        xlabel=f"index{' (dashed: edge of noise)' * has_floor}", ylabel="of W after - W before"
    )
    left.set(xlabel="r", ylabel="share of the squared norm", ylim=(BOTTOM, 1.5))
    groups = advice.kinds(moved)[:ROWS]
    _plot_ranks(ranks, groups)
    if has_bulk:
        _plot_bulk(last, k, moved, _looks(names))
    else:
        _plot_costs(last, groups)
    _legend(left, names)
    figure.set_label(
        "Singular values of the updates over the first of each, with the edge of noise; the share "
        "of the squared norm that rank r leaves; the least and the largest r by kind of layer; "
        + ("the spread of the bulk of W." if has_bulk else "parameters of LoRA over those of full.")
    )
    return figure


def _plot_spectrum(ax: Axes, update: MatrixUpdate, look: dict[str, Any]) -> None:
    """Singular values above rounding, and the edge of noise where there is one."""
    shown = update.values[: update.rank] / update.values[0]
    ax.loglog(np.arange(1, len(shown) + 1), shown, **look)
    if update.noise is not None:
        edge, above = update.noise.edge / update.values[0], update.noise.above
        low, high = max(1.0, above / 2), max(2.0, 2.0 * above + 1)
        dashed: dict[str, Any] = look | {"lw": 0.6, "ls": DASHED}
        ax.plot((low, high), (edge, edge), **dashed)


def _plot_ranks(ax: Axes, groups: Sequence[advice.MatrixKind]) -> None:
    """Draw the least to the largest r of each kind of layer, for 90 and for 99 %."""
    for height, kind in enumerate(groups):
        for share, color, shift in ((90, SHADES[0], -0.15), (99, SHADES[2], 0.15)):
            ranks = [matrix.rank_90 if share == 90 else matrix.rank_99 for matrix in kind.matrices]
            known = [r for r in ranks if r]
            if known:
                ends = (min(known), max(known))
                ax.plot(ends, (height + shift,) * 2, color=color, lw=2, marker="o", ms=3)
    _name_rows(ax, groups)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_xlabel("r (least to largest)")
    ax.legend(handles=[entry("90 %", SHADES[0]), entry("99 %", SHADES[2])], loc="best")


def _plot_costs(ax: Axes, groups: Sequence[advice.MatrixKind]) -> None:
    """What LoRA would train, beside full training."""
    for height, kind in enumerate(groups):
        for share, color, shift in ((90, SHADES[0], -0.15), (99, SHADES[2], 0.15)):
            cost = kind.cost(share)
            if cost:
                ax.plot((cost,), (height + shift,), color=color, ls="none", marker="o", ms=3)
    _name_rows(ax, groups)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("")
    ax.axvline(1.0, color=BLACK, lw=0.6, ls=DASHED)
    ax.set_xlabel("right of 1 it is not worth it")


def _name_rows(ax: Axes, groups: Sequence[advice.MatrixKind]) -> None:
    names = [shortened(_escape_dollar(kind.name), 22) for kind in groups]
    ax.set_yticks(range(len(groups)), names)
    ax.set_ylim(len(groups) - 0.5, -0.5)


def _plot_bulk(
    ax: Axes, k: int, moved: Sequence[MatrixUpdate], looks: Sequence[dict[str, Any]]
) -> None:
    for update, look in zip(moved, looks, strict=True):
        how: dict[str, Any] = look | {"ls": "none", "marker": "o"}
        ax.plot(update.spread_before, update.spread_after, **how)
    ax.locator_params(nbins=4)
    ax.set(xlabel=f"of W before, behind the first {k}", ylabel="after")
    # On the diagonal the bulk is as spread after as before.
    low, high = (f(*ax.get_xlim(), *ax.get_ylim()) for f in (min, max))
    ax.plot((low, high), (low, high), color=BLACK, lw=0.6, ls=DASHED, zorder=0)


def _groups(names: Sequence[str]) -> list[str]:
    """What the key calls each curve: the matrix while they are few, else its kind.

    Example:
        >>> _groups(["a.query", "b.query"])
        ['a.query', 'b.query']
        >>> _groups([f"{layer}.query" for layer in range(6)])[0]
        'query (6)'
    """
    if len(names) <= MOST:
        return list(names)
    kinds = [advice.kind_of(name) for name in names]
    counts = Counter(kinds)
    # Of too many kinds those have a colour that most matrices are of.
    named = {kind for kind, _ in counts.most_common(len(COLORS))}
    return [f"{kind} ({counts[kind]})" if kind in named else OTHERS for kind in kinds]


def _colors(names: Sequence[str]) -> dict[str, str]:
    """Group of curves -> its colour, in the order in which they come."""
    groups = dict.fromkeys(_groups(names))
    named = [group for group in groups if group != OTHERS]
    colors = dict(zip(named, COLORS, strict=False))
    return colors | ({OTHERS: GREY} if OTHERS in groups else {})


def _looks(names: Sequence[str]) -> list[dict[str, Any]]:
    """Colour and width of the curve of each matrix."""
    colors = _colors(names)
    thin = {"lw": 0.6, "alpha": 0.6} if len(names) > MOST else {"lw": 1.0}
    return [{"color": colors[group], **thin} for group in _groups(names)]


def _legend(ax: Axes, names: Sequence[str]) -> None:
    entries = []
    for group, color in _colors(names).items():
        text = shortened(_escape_dollar(group), 34)
        # A label that begins with _ is left out.
        entries.append(entry(f" {text}" if text.startswith("_") else text, color))
    if entries:
        ax.legend(handles=entries, **BESIDE)


def _escape_dollar(name: str) -> str:
    r"""A name that a figure shows as it is: a dollar would begin mathematics."""
    return make_printable(name).replace("$", r"\$")
