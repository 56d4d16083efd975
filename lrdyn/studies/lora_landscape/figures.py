"""The phase diagram: where ends are certified, where some are spurious, and how far above r*."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lrdyn.studies.lora_landscape.phase import OWN, PHASES, PhaseMeasured, cells_of
from lrdyn.studies.lora_landscape.verdicts import SECOND_FACTOR, exact_interval
from lrdyn.verification.stating import fields

if TYPE_CHECKING:
    import xarray as xr

DARKEST = "#8C8C8C"
"""Colour of a cell in which no problem has all of its ends certified."""
REACH = (-2, 3)
"""r - r* of the last panel."""


def phase_numbers(results: "xr.Dataset") -> "xr.Dataset":
    """What the figure shows of the problems of one name, from its group of ``results.nc``.

    Seed 0, which set expectations, is left out if there are others.

    Args:
        results: the group.

    Returns:
        Over decay, equations and width the shares of problems all of whose ends are certified
        (``certified``) and with a spurious one (``spurious``); the mean ``convex_rank``; over
        decay and r - r* (``above``) how many ``problems`` there are and of how many an end is
        spurious (``hits``), with the ends of an exact interval of that share (``end``).
    """
    import xarray as xr

    seeds = results.seed[results.seed > 0]
    read = fields.of_run(results.sel(seed=seeds) if seeds.size else results, PhaseMeasured)

    def plain(array: "xr.DataArray") -> np.ndarray:
        single = [dim for dim in array.dims if dim == "problem"]
        return array.squeeze(single, drop=True).transpose("seed", ...).values

    run = PhaseMeasured(
        verdict=plain(read(lambda run: run.verdict)),
        product_rank=plain(read(lambda run: run.product_rank)),
        convex_rank=plain(read(lambda run: run.convex_rank)),
        width=np.atleast_2d(read(lambda run: run.width).values),
        equations=np.atleast_2d(read(lambda run: run.equations).values),
        sides=plain(read(lambda run: run.sides)),
    )
    cells = cells_of(run)
    above = np.arange(REACH[0], REACH[1] + 1)
    at = cells.above[..., None] == above
    problems = np.sum(at, axis=(0, 2, 3))
    hits = np.sum(at & cells.spurious[..., None], axis=(0, 2, 3))
    intervals = [
        [
            exact_interval(int(h), int(n)) if n else (np.nan, np.nan)
            for h, n in zip(*row, strict=True)
        ]
        for row in zip(hits, problems, strict=True)
    ]
    known = np.where(run.convex_rank >= 0, run.convex_rank, np.nan)
    grid = ("decay", "equations", "width")
    return xr.Dataset(
        {
            "certified": (grid, np.mean(cells.certified, axis=0)),
            "spurious": (grid, np.mean(cells.spurious, axis=0)),
            "convex_rank": (grid[:2], np.mean(known, axis=0)),
            "problems": (("decay", "above"), problems),
            "hits": (("decay", "above"), hits),
            "interval": (("decay", "above", "end"), np.array(intervals, float)),
        },
        {
            "decay": np.ravel(read(lambda run: run.decay).values)[: len(hits)],
            "equations": run.equations[0],
            "width": run.width[0],
            "above": above,
            "end": ["low", "high"],
        },
        {"rows": cells.sides[0], "cols": cells.sides[1], "seeds": len(run.verdict)},
    )


def plot_phase(ax: Any, data: "xr.Dataset") -> None:
    """Draw one diagram over N and r: certified shares, spurious ends, both counts, and r*.

    Args:
        ax: the axes.
        data: of one decay, see :func:`phase_numbers`.
    """
    from matplotlib.colors import LinearSegmentedColormap

    from lrdyn.figures import plotting

    N, r = data.equations.values, data.width.values
    step = np.diff(N).min() if len(N) > 1 else 1
    # White where every end of every problem is certified.
    shade = {"cmap": LinearSegmentedColormap.from_list("share", [DARKEST, "white"])}
    shade |= {"vmin": 0.0, "vmax": 1.0}
    extent = (N[0] - step / 2, N[-1] + step / 2, r[0] - 0.5, r[-1] + 0.5)
    look = {"origin": "lower", "aspect": "auto", "interpolation": "nearest", "zorder": 0}
    ax.imshow(data.certified.values.T, extent=extent, **shade, **look)
    places = np.argwhere(data.spurious.values > 0)
    sizes = [28 * data.spurious.values[i, j] for i, j in places]
    if sizes:
        ax.scatter(N[places[:, 0]], r[places[:, 1]], sizes, color=plotting.ORANGE, lw=0, zorder=3)
    fine = np.linspace(*extent[:2], 200)
    ax.plot(fine, (np.sqrt(1 + 8 * fine) - 1) / 2, color=plotting.BLUE, lw=1.2)
    half = (data.attrs["rows"] + data.attrs["cols"]) / 2
    inside = half**2 - SECOND_FACTOR * fine
    ax.plot(
        fine,
        np.where(inside >= 0, half - np.sqrt(np.maximum(inside, 0)), np.nan),
        color=plotting.GREEN,
        lw=1.2,
        ls=plotting.DASHED,
    )
    if np.isfinite(data.convex_rank.values).any():
        ax.plot(N, data.convex_rank.values, **{**plotting.OPEN, "mec": plotting.BLACK, "ms": 2.6})
    ax.set(xlim=extent[:2], ylim=extent[2:], xlabel="equations N")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_yticks(r)


def phase_entries() -> list[Any]:
    """Lines of the key of :func:`plot_phase`."""
    from lrdyn.figures import plotting

    dot = {"marker": "o", "ls": "", "mec": "none", "ms": 5}
    shade = {"marker": "s", "ls": "", "mec": "none", "ms": 6}
    return [
        plotting.entry("no problem with all ends certified", DARKEST, **shade),
        plotting.entry("r (r + 1) / 2 = N", plotting.BLUE, lw=1.2),
        plotting.entry("r (m + n - r) = 1.35 N", plotting.GREEN, lw=1.2, ls=plotting.DASHED),
        plotting.entry("rank r* of the convex minimiser, mean", plotting.BLACK, **plotting.OPEN),
        plotting.entry("spurious ends, area: share of problems", plotting.ORANGE, **dot),
    ]


def plot_above(ax: Any, tables: Mapping[str, "xr.Dataset"], colors: Mapping[str, Any]) -> None:
    """Draw the share of problems with a spurious end over r - r*, with exact intervals.

    Args:
        ax: the axes.
        tables: label -> numbers of one decay.
        colors: label -> colour.
    """
    from lrdyn.figures import plotting

    for place, (label, data) in enumerate(tables.items()):
        shift = 0.14 * (place - (len(tables) - 1) / 2)
        x, n = data.above.values + shift, data.problems.values
        with np.errstate(invalid="ignore", divide="ignore"):
            share = data.hits.values / n
        low, high = data.interval.values.T
        ax.vlines(x, low, high, color=colors[label], lw=1.0)
        ax.plot(x, share, "o", color=colors[label], ms=3.2, label=label)
    ax.axvline(0.5, color=plotting.BLACK, lw=0.8, ls=":")
    ax.set(xlabel="r - r*", xlim=(REACH[0] - 0.6, REACH[1] + 0.6), ylim=(-0.03, 1.03))
    ax.set_xticks(range(REACH[0], REACH[1] + 1))


def plot_phases(groups: Mapping[str, Any]) -> Any:
    """Diagrams of every problem and decay of a run, and the shares over r - r*."""
    from lrdyn.figures import plotting

    panels: dict[str, Any] = {}
    for scenario in PHASES:
        if (group := groups.get(f"/{scenario.id}")) is not None:
            table = phase_numbers(group)
            for place, decay in enumerate(table.decay.values):
                panels[f"{scenario.id}, λ = {decay:g}"] = table.isel(decay=place)
    # Of a file there is one problem: its starts have no interval over problems.
    drawn = {name: data for name, data in panels.items() if not name.startswith(OWN)}
    decayed = {name: data for name, data in drawn.items() if data.problems.values.any()}
    titles = [*panels, *(["spurious, share of problems"] if decayed else [])]
    rows = -(-len(titles) // 3)
    figure, axes = plotting.panels(titles, rows=rows, height=2.3 * rows)
    for ax, data in zip(axes, panels.values(), strict=False):
        plot_phase(ax, data)
    axes[0].set_ylabel("rank r")
    if decayed:
        shades = [*plotting.SHADES, plotting.BLUES[2], plotting.ORANGES[0]]
        colors = {name: shades[i % len(shades)] for i, name in enumerate(decayed)}
        plot_above(axes[-1], decayed, colors)
        plotting.key(axes[-1])
    plotting.common_key(figure, phase_entries())
    return figure
