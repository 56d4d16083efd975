"""Figure 1: updates have an edge at K, and what labels decide lies behind it.

The study ``labels``. The five networks of the survey over their training are an appendix,
``fig01_networks``.
"""

import json
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr

from lrdyn.core import chance
from lrdyn.core.spectra import effective_rank
from lrdyn.figures import plotting, spectrum
from lrdyn.figures.exhibits import Figure, Results
from lrdyn.studies.labels import LABELS, trainings
from lrdyn.studies.labels.cells import PERCEPTRONS
from lrdyn.studies.labels.measured import (
    ANEW,
    LABELLINGS,
    LEVELS,
    SHUFFLED,
    TRUE,
    LabelsMeasured,
    first_record,
)
from lrdyn.verification.running.configuration import Run, run_of
from lrdyn.verification.stating import fields
from paper_figs.shared import count_seeds, judged_seeds

SPECTRA: tuple[str, ...] = ("pairs", "base", "parity", "random50", "random100")
"""Cells that differ in K, whose spectra are drawn."""
QUICK = {"preset": "quick", "cell": SPECTRA[:-1]}
PAPER = {"preset": "paper"}
GRID = np.geomspace(1.0, min(LEVELS), 31)
"""Training losses over log K at which the base cell is drawn."""
FITTED = LEVELS.index(min(LEVELS))
WIDEST = 3.0
"""i / K up to which spectra are drawn."""

TOLERANCES = dict.fromkeys(
    (
        *("spectrum", "outside_K", "outside_2K", "rank", "part"),
        *("outside_K_fresh", "outside_2K_fresh", "rank_fresh"),
    ),
    0.05,
)
"""Of another training in float32, on another machine or with other kernels: relative, of the size
of the spread over seeds."""

CAPTION = """\
W(t) - W(0), penultimate matrix of a perceptron on {described}, SGD. (a) Singular values at loss .01
log K over i / K; sigma_(K+1) / sigma_K: {edges}. Dashed: labels shuffled. (b) Energy outside K and
2K directions over the fit, K = {classes}; triangles: labels anew at each step, where updates are as
large; dotted: Gaussian. (c) Effective rank. At loss .01 log K shuffled labels leave {outside:.1f}
times the energy outside 2K and a rank of {shuffled:.0f} against {true:.0f} (Gaussian:
{gaussian:.0f}): R = {part}.
"""
NOTES = """\
R = log(rank shuffled / rank true) / log(rank Gaussian / rank true), means of {seeds} ({dtype}),
95 % intervals, {held} held at once. {cells}. Curves are geometric means over seeds; at a level of
the loss the first record that reaches it is taken.
"""


def sources(**settings: Any) -> Mapping[str, Run]:
    """The study whose results the figure shows."""
    return {LABELS.name: run_of(LABELS, **settings)}


def _mean(values: np.ndarray) -> np.ndarray:
    """Geometric mean over seeds, the first axis; NaN where a seed has none."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.exp(np.mean(np.log(values), axis=0))


def numbers(results: Results, **settings: Any) -> xr.Dataset:
    """Spectra over cell and index, and energies and ranks of the base cell over the fit."""
    groups = results[LABELS.name]
    found = [name for name in PERCEPTRONS if f"/{name}" in groups]
    drawn = xr.merge(
        [
            *(_spectra_of(name, groups[f"/{name}"]) for name in found if name in SPECTRA),
            *(_parts_of(name, groups[f"/{name}"]) for name in found),
            _over_the_fit(groups["/base"]),
        ],
        join="outer",
        compat="no_conflicts",
    )
    assert isinstance(drawn, xr.Dataset)
    drawn = drawn.sel(cell=[name for name in SPECTRA if name in found], of=found)
    for name, tolerance in TOLERANCES.items():
        drawn[name].attrs.update(kind="training", tolerance=tolerance)
    root = groups["/"]
    config = json.loads(root.attrs["config"])
    return drawn.assign_attrs(
        described=root.attrs["about"].removeprefix("on "),
        dtype=config["dtype"],
        seeds=int(judged_seeds(groups["/base"]).sizes["seed"]),
    )


def _arrays(results: xr.Dataset) -> Any:
    """Read fields of the judged seeds as arrays, seed first and settings of one value dropped."""
    run = fields.of_run(judged_seeds(results), LabelsMeasured)

    def read(field: Any) -> np.ndarray:
        array = run(field)
        single = [dim for dim in array.dims if array.sizes[dim] == 1 and dim != "seed"]
        return array.squeeze(single, drop=True).transpose("seed", ...).values.astype(float)

    return read


def _spectra_of(name: str, results: xr.Dataset) -> xr.Dataset:
    """Mean spectra of a cell where its labels are fitted, over the largest value."""
    read = _arrays(results)
    updates, at = read(lambda run: run.update), read(lambda run: run.record_at).astype(int)
    spectra = []
    for place in (LABELLINGS.index(TRUE), LABELLINGS.index(SHUFFLED)):
        records = at[:, place, FITTED]
        of_seeds = np.stack([u[place, record] for u, record in zip(updates, records, strict=True)])
        of_seeds[records < 0] = np.nan
        spectra.append(_mean(of_seeds / of_seeds[:, :1]))
    classes = PERCEPTRONS[name].classes
    count = min(int(WIDEST * classes), len(spectra[0]))
    return xr.Dataset(
        {
            "spectrum": (("cell", "labelling", "index"), [[s[:count] for s in spectra]]),
            "classes": ("cell", [classes]),
        },
        {"cell": [name], "labelling": [TRUE, SHUFFLED], "index": np.arange(1, count + 1)},
    )


def _parts_of(name: str, results: xr.Dataset) -> xr.Dataset:
    """R of a cell where its labels are fitted, of each seed."""
    read = _arrays(results)
    ranks = read(lambda run: run.rank_at)[..., FITTED]
    part = trainings.part_of_labels(ranks[:, 1], ranks[:, 0], read(lambda run: run.gaussian_rank))
    return xr.Dataset(
        {"part": (("of", "judged_seed"), [part])},
        {"of": [name], "judged_seed": np.arange(len(part))},
    )


def _over_the_fit(results: xr.Dataset) -> xr.Dataset:
    """Energies and ranks of the base cell at each level of the training loss."""
    read = _arrays(results)
    updates, losses = read(lambda run: run.update), read(lambda run: run.training_loss)
    classes = PERCEPTRONS["base"].classes
    norms = np.linalg.norm(updates, axis=-1)
    chosen = [LABELLINGS.index(name) for name in (TRUE, SHUFFLED)]
    picked = np.full((len(updates), len(chosen), len(GRID), updates.shape[-1]), np.nan)
    for seed, place in np.ndindex(picked.shape[:2]):
        for k, level in enumerate(GRID):
            record = first_record(losses[seed, chosen[place]] <= level)
            if record > 0:
                picked[seed, place, k] = updates[seed, chosen[place], record]
    anew = LABELLINGS.index(ANEW)
    sizes = read(lambda run: run.equal_norm)
    fresh = np.stack(
        [
            u[anew, first_record(n[anew] >= size)]
            for u, n, size in zip(updates, norms, sizes, strict=True)
        ]
    )
    named = {}
    for suffix, spectra, dims in (
        ("", picked, ("labelling", "level")),
        ("_fresh", fresh, ()),
    ):
        shares = np.cumsum(spectra**2, axis=-1) / np.sum(spectra**2, axis=-1, keepdims=True)
        named |= {
            f"outside_K{suffix}": (dims, _mean(1 - shares[..., classes - 1])),
            f"outside_2K{suffix}": (dims, _mean(1 - shares[..., 2 * classes - 1])),
            f"rank{suffix}": (dims, _mean(np.asarray(effective_rank(jnp.asarray(spectra))))),
        }
    gaussian = _arrays(results)(lambda run: run.gaussian_rank).mean()
    width = updates.shape[-1]
    energies = {
        f"gaussian_{name}": 1 - chance.gaussian_energy(width, width, count)
        for name, count in (("K", classes), ("2K", 2 * classes))
    }
    return xr.Dataset(
        named | {"gaussian_rank": gaussian} | energies,
        {"labelling": [TRUE, SHUFFLED], "level": GRID},
    )


def says(drawn: xr.Dataset) -> dict[str, Any]:
    """Values of the results that the caption quotes."""
    last = drawn.isel(level=-1)
    edges, parts, result = [], {}, ""
    for name in drawn.cell.values:
        values = drawn["spectrum"].sel(cell=name, labelling=TRUE).values
        classes = int(drawn["classes"].sel(cell=name))
        edges.append((f"{values[classes] / values[classes - 1]:.2f}", f"{classes}"))
    for name in drawn.of.values:
        entry = LABELS.outcome_entry(f"{name}_part_at_0.01", drawn["part"].sel(of=name).values)
        parts[str(name)] = f"{np.mean(drawn['part'].sel(of=name).values):.2f}"
        if entry["interval"]:
            low, high = entry["interval"]
            words = trainings.part_in_words(low, high)
            parts[str(name)] += f" ({low:.2f} to {high:.2f}, {words})"
            if name == "base":
                result = f"labels decide {words} of the rank behind an edge at K"
    return {
        "classes": PERCEPTRONS["base"].classes,
        "edges": "{} at K = {}".format(*(", ".join(side) for side in zip(*edges, strict=True))),
        "outside": float(
            last["outside_2K"].sel(labelling=SHUFFLED) / last["outside_2K"].sel(labelling=TRUE)
        ),
        "shuffled": float(last["rank"].sel(labelling=SHUFFLED)),
        "true": float(last["rank"].sel(labelling=TRUE)),
        "gaussian": float(drawn["gaussian_rank"]),
        "part": parts["base"],
        "result": result,
        "seeds": count_seeds(int(drawn.attrs["seeds"])),
        "held": LABELS.intervals,
        "cells": "; ".join(
            f"{PERCEPTRONS[name].title}: R = {text}"
            for name, text in parts.items()
            if name != "base"
        ),
    }


SHADES = (*plotting.BLUES, *plotting.ORANGES[1:])
COLORS: Mapping[str, str] = dict[str, str](zip(SPECTRA, SHADES, strict=True))
WIDTHS = {"K": 1.8, "2K": 0.9}
"""Widths of the curves of the energy outside so many directions."""
RANKS = (25, 50, 100, 200, 400)
"""Ticks of the effective rank."""
OF_LABELS = {TRUE: (plotting.BLUE, "-"), SHUFFLED: (plotting.ORANGE, "--")}


def draw(dataset: xr.Dataset) -> Any:
    """Draw Figure 1."""
    figure = plotting.draw_panels(
        {
            "an edge at K while K is small": plot_spectra,
            "energy outside K and 2K": plot_energies,
            "effective rank": plot_ranks,
        },
        dataset,
        height=2.9,
    )
    entries = [
        *(
            plotting.entry(f"{name} labels", color, ls=dash)
            for name, (color, dash) in OF_LABELS.items()
        ),
        plotting.entry("labels anew", plotting.GREEN, ls="", marker="^", ms=4),
        plotting.entry("Gaussian", "k", ls=":"),
        plotting.entry("outside K", plotting.GREY, lw=WIDTHS["K"]),
        plotting.entry("outside 2K", plotting.GREY, lw=WIDTHS["2K"]),
    ]
    spectra, energies, ranks = figure.axes
    # Colours of spectra are those of K: alone, that panel is told of dashes only.
    dashes = [plotting.entry(f"{name} labels", ls=dash) for name, (_, dash) in OF_LABELS.items()]
    serves = [(dashes, [spectra]), (entries, [energies]), (entries[:4], [ranks])]
    return plotting.common_key(figure, entries, serves=serves, fontsize=7)


def plot_spectra(ax: Any, dataset: xr.Dataset) -> None:
    """Spectra over i / K, true labels solid and shuffled ones dashed."""
    for name in dataset.cell.values:
        cell = dataset.sel(cell=name)
        classes = int(cell["classes"])
        for labelling, dash in ((TRUE, "-"), (SHUFFLED, "--")):
            values = cell["spectrum"].sel(labelling=labelling).values
            label = f"K = {classes}" if labelling == TRUE else None
            look = {"color": COLORS[str(name)], "ls": dash, "label": label}
            spectrum(ax, values, index=dataset.index.values / classes, **look)
    ax.axvline(1, color=plotting.GREY, lw=0.5, zorder=0)
    ax.set(xscale="linear", xlim=(0, WIDEST), xlabel="i / K", ylabel="singular value / largest")
    plotting.key(ax, None, "upper right")


def _along_the_fit(ax: Any) -> None:
    ax.set(xscale="log", xlabel="training loss / log K")
    ax.set_xlim(1.15, 0.9 * GRID[-1])


def plot_energies(ax: Any, dataset: xr.Dataset) -> None:
    """Energy outside the first K and 2K directions, over the fit."""
    for count, width in WIDTHS.items():
        for labelling, (color, dash) in OF_LABELS.items():
            curve = dataset[f"outside_{count}"].sel(labelling=labelling).values
            ax.plot(GRID, curve, color=color, ls=dash, lw=width)
        ax.plot(
            1.0, float(dataset[f"outside_{count}_fresh"]), "^", color=plotting.GREEN, ms=3 * width
        )
        ax.axhline(float(dataset[f"gaussian_{count}"]), color="k", ls=":", lw=width)
    ax.set(yscale="log")
    _along_the_fit(ax)


def plot_ranks(ax: Any, dataset: xr.Dataset) -> None:
    """Effective rank over the fit."""
    for labelling, (color, dash) in OF_LABELS.items():
        ax.plot(GRID, dataset["rank"].sel(labelling=labelling).values, color=color, ls=dash)
    ax.plot(1.0, float(dataset["rank_fresh"]), "^", color=plotting.GREEN, ms=5)
    ax.axhline(float(dataset["gaussian_rank"]), color="k", ls=":")
    ax.set(yscale="log")
    ax.set_yticks(RANKS, [f"{rank}" for rank in RANKS])
    ax.minorticks_off()
    _along_the_fit(ax)


FIGURE = Figure(
    name="fig01",
    shows=("labels",),
    title="Weight updates on true and on shuffled labels",
    result="{result}",
    caption=CAPTION,
    sources=sources,
    numbers=numbers,
    draw=draw,
    presets={"quick": QUICK, "paper": PAPER},
    long=True,
    turn=5,
    says=says,
    notes=NOTES,
    panels={
        "spectrum": "a",
        **dict.fromkeys(("outside_K", "outside_2K", "outside_K_fresh", "outside_2K_fresh"), "b"),
        **dict.fromkeys(("rank", "rank_fresh", "gaussian_rank"), "c"),
    },
)
