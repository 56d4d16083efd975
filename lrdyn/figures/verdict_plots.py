"""What shows a verdict: residuals over tolerances, over a sweep, and as hypotheses are left."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lrdyn.figures.plotting import (
    BESIDE,
    BLACK,
    BLUES,
    ORANGES,
    SHADES,
    blank_figure,
    common_key,
    entry,
    label_once,
    panels,
    style,
)
from lrdyn.verification.judging.judging import claim_of, ratio_of, residuals
from lrdyn.verification.judging.outcomes import control_group

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lrdyn.verification.judging.judging import Legs
    from lrdyn.verification.stating.statement import Experiment

LEAST_RATIO = 1e-4
"""Where agreement to the last bit is drawn on the log axis."""
VERDICT_COLORS = {
    ("claim", "float64"): BLUES[1],
    ("claim", "float32"): BLUES[2],
    ("control", "float64"): ORANGES[1],
    ("control", "float32"): ORANGES[0],
}


def verdict_figure(verdict: Mapping[str, Any], legs: Mapping[str, Legs]) -> Figure:
    """Draw every claim and control of a verdict: residual / tolerance of each case.

    Left of the line at 1 a claim holds, right of it it fails; a tick marks the worst case. ``legs``
    has for each of them what :func:`lrdyn.verification.judging.judging.residuals` found in each
    precision.
    """
    claims = [claim for claim in verdict["claims"] if claim["id"] in legs]
    with style():
        figure = blank_figure(0.9 + 0.19 * len(claims))
        ax = figure.subplots()
        drawn = set()
        for row, claim in enumerate(claims):
            kind = "control" if claim["kind"] == "control" else "claim"
            for precision, leg in legs[claim["id"]].items():
                ratios = ratio_of(leg, precision, everything=kind == "control").values.ravel()
                drawn.add((kind, precision))
                height = row + (-0.15 if precision == "float64" else 0.15)
                worst = np.min if kind == "control" else np.max
                _plot_strip(ax, ratios, height, VERDICT_COLORS[kind, precision], worst)
        ax.axvline(1.0, color=BLACK, lw=0.8)
        ax.set_xscale("log")
        ax.set_yticks(range(len(claims)), [claim["id"] for claim in claims])
        ax.set_ylim(len(claims) - 0.4, -0.6)
        ax.set_xlabel("residual / tolerance (exact agreement is drawn at the left edge)")
        ax.grid(axis="y", lw=0.5)
        unheld = "is undecided" if verdict["undecided"] else "does not apply"
        held = {True: "holds", False: "is false", None: unheld}[verdict["holds"]]
        ax.set_title(f"{verdict['name']} {held}: claims left of 1, controls right of it")
        dot = {"ls": "none", "marker": "o", "ms": 3, "mew": 0}
        entries = [
            entry(", ".join(kind_and_precision), c, **dot)
            for kind_and_precision, c in VERDICT_COLORS.items()
            if kind_and_precision in drawn
        ]
        ax.legend(handles=entries, **BESIDE)
    figure.set_label(
        "Residual over tolerance of every case of every claim and control, the worst one of each "
        "marked. A claim holds left of the line at 1; a control must lie right of it."
    )
    return figure


def _plot_strip(ax: Axes, ratios: np.ndarray, height: float, color: str, worst: Callable) -> None:
    # The axis is logarithmic, and a residual of 0 would be nowhere.
    shown = np.maximum(ratios[np.isfinite(ratios)], LEAST_RATIO)
    heights = np.full(shown.shape, height)
    ax.plot(shown, heights, ls="none", marker=".", ms=3, mew=0, color=color, alpha=0.5)
    if shown.size:
        ax.plot(worst(shown), height, ls="none", marker="|", ms=6, mew=1.0, color=color)


def swept_axes(ratio: xr.DataArray, first: Sequence[str] = ()) -> list[str]:
    """Axes of a sweep with several numbers but the seed, ``first`` before all others.

    Example:
        >>> import xarray as xr
        >>> axes = {"seed": [0, 1], "dim": [8, 9], "depth": [2, 3], "rank": [1]}
        >>> swept_axes(xr.DataArray(np.zeros((2, 2, 2, 1)), axes), ("depth", "rank"))
        ['depth', 'dim']
    """
    several = [
        str(name)
        for name, size in ratio.sizes.items()
        if size > 1 and name != "seed" and ratio[name].dtype.kind in "if"
    ]
    return sorted(several, key=lambda name: first.index(name) if name in first else len(first))


def sweep_figure(
    name: str, ratios: Mapping[str, xr.DataArray], first: Sequence[str] = ()
) -> Figure:
    """Draw how close a theorem comes to its tolerances over the axes of a sweep.

    One curve for each value of the second axis, one panel for each of the third, the first as
    abscissa; the largest over all others. ``ratios`` has for each precision the largest residual /
    tolerance over the claims, at each point.
    """
    main = next(iter(ratios.values()))
    axes = swept_axes(main, first)[:3]
    panels = main[axes[2]].values if len(axes) > 2 else [None]
    values = np.concatenate([ratio.values.ravel() for ratio in ratios.values()])
    # Above the line at 1 in any case, which is what the figure is about.
    top = 3.0 * max(1.0, np.max(values, initial=0.0, where=np.isfinite(values)))
    with style():
        figure = blank_figure(2.6)
        row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for ax, value in zip(row, panels, strict=True):
            for precision, ratio in ratios.items():
                part = ratio.max([d for d in ratio.dims if d not in axes])
                part = part if value is None else part.sel({axes[2]: value})
                _plot_curves(ax, part, axes, precision, named=ratio is main)
            ax.set_title("" if value is None else f"{_words(axes[2])} {value:g}")
            ax.axhline(1.0, color=BLACK, lw=0.8)
            ax.set(yscale="log", xlabel=_words(axes[0]), ylim=(LEAST_RATIO, top))
        row[0].set_ylabel("residual / tolerance")
        if len(axes) > 1:
            row[-1].legend(**BESIDE)
        figure.suptitle(f"{name}: claims hold below 1 (filled float64, open float32)")
    figure.set_label(
        "The largest residual over tolerance of all claims along the axes of the sweep, in float64 "
        "(filled) and float32 (open). Claims hold below the line at 1."
    )
    return figure


def _words(name: str) -> str:
    return name.replace("_", " ")


def _plot_curves(
    ax: Axes, part: xr.DataArray, axes: list[str], precision: str, named: bool
) -> None:
    several = part[axes[1]].values if len(axes) > 1 else [None]
    x = part[axes[0]].values
    if x.min() > 0 and x.max() >= 10 * x.min():
        ax.set_xscale("log")
    ax.set_xticks(x, [f"{value:g}" for value in x])
    ax.minorticks_off()
    for color, value in zip(SHADES * (1 + len(several) // len(SHADES)), several, strict=False):
        curve = part if value is None else part.sel({axes[1]: value})
        filled = precision == "float64"
        # A ratio that is not finite is not drawn.
        shown = np.where(np.isfinite(curve.values), curve.values, np.nan)
        ax.plot(
            x,
            np.maximum(shown, LEAST_RATIO),
            color=color,
            marker="o",
            ms=3,
            mfc=color if filled else "white",
            lw=1.0 if filled else 0.6,
            clip_on=False,
            zorder=3,
            label=f"{_words(axes[1])} {value:g}" if named and value is not None else None,
        )


class Departure(NamedTuple):
    """How a claim breaks as one of its hypotheses is left by degrees."""

    title: str
    label: str
    """What an amount is."""
    amounts: np.ndarray
    """Distances from the hypothesis; at 0 it is met."""
    residuals: Mapping[str, np.ndarray]
    """Precision -> the residual of the claim, amounts x seeds."""
    tolerances: Mapping[str, float]
    """Precision -> the largest residual that is let pass."""


def departures(
    theorem: Experiment, groups: Mapping[str, xr.Dataset], precisions: Sequence[str]
) -> dict[str, Departure]:
    """Control -> how its claim breaks, from the groups that ``--perturb`` adds to a run."""
    by_control = {}
    for scenario in theorem.scenarios:
        for control in scenario.controls:
            names = {p: control_group(control, p, perturb=True) for p in precisions}
            mine = {p: groups[name] for p, name in names.items() if name in groups}
            if not mine:
                continue
            claim = claim_of(control, scenario)
            legs = {p: residuals(claim, scenario, data, p) for p, data in mine.items()}
            first = next(iter(legs.values()))
            by_control[control.id] = Departure(
                title=control.statement,
                label=control.amount_label or "amount",
                amounts=first["amount"].values,
                residuals={
                    p: leg["residual"].transpose("amount", ...).values.reshape(len(leg.amount), -1)
                    for p, leg in legs.items()
                },
                tolerances={
                    p: float(leg["tolerance"].values.ravel()[0]) for p, leg in legs.items()
                },
            )
    return by_control


def perturb_figure(title: str, by_control: Mapping[str, Departure]) -> Figure:
    """Draw how a claim breaks as its hypotheses are left: residual against the distance from each.

    Lines are the medians over seeds, the dashed lines the tolerances; amount 0, the hypothesis met,
    is the point at the left edge.

    Args:
        title: that of the theorem.
        by_control: what :func:`departures` found.
    """
    columns = 2 if len(by_control) in (2, 4) else min(3, len(by_control))
    rows = -(-len(by_control) // columns)
    titles = [departure.title for departure in by_control.values()]
    figure, axes = panels(titles, height=0.6 + 2.0 * rows, rows=rows)
    for ax, departure in zip(axes, by_control.values(), strict=True):
        _plot_departure(ax, departure)
    ends = [ax.get_ylim() for ax in axes]
    for row in range(0, len(axes), columns):
        label_once(axes[row : row + columns], "relative residual")
    for ax in axes:  # one scale, so that panels can be compared
        ax.set_ylim(min(low for low, _ in ends), max(high for _, high in ends))
    lines = axes[0].get_legend_handles_labels()[0]
    common_key(figure, [*lines, entry("tolerance", ls="--", lw=0.7)])
    figure.suptitle(f"{title}: how far does it reach?")
    figure.set_label(
        "How a claim breaks as each hypothesis is left: its residual, the median over seeds, "
        "against the distance from it. Dashed: the tolerance; at 0 the hypothesis is met."
    )
    return figure


def _plot_departure(ax: Axes, departure: Departure) -> None:
    amounts = departure.amounts
    away = amounts > 0
    left = amounts[away].min() / 20
    for (precision, each), color in zip(departure.residuals.items(), BLUES[1:], strict=False):
        values = np.median(each, axis=1)
        ax.loglog(
            amounts[away], values[away], color=color, marker="o", ms=2.5, lw=1.0, label=precision
        )
        ax.plot(
            np.full((~away).sum(), left), values[~away], ls="none", marker="o", ms=2.5, color=color
        )
        ax.axhline(departure.tolerances[precision], color=color, lw=0.7, ls="--")
    # Ticks at the amounts alone: left of them stands 0, which no logarithm has.
    low, high = np.log10(amounts[away].min()), np.log10(amounts.max())
    decades = np.arange(np.ceil(low), np.floor(high) + 1)
    ax.set_xticks(10.0 ** decades[:: 2 if len(decades) > 5 else 1])
    ax.minorticks_off()
    ax.annotate(
        "0",
        (left, 0),
        (0, -3),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="center",
        va="top",
    )
    ax.set_xlabel(departure.label)
