"""Which rank before training (ours): spectra at the start against the rank of the update."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from lrdyn.figures import plotting
from lrdyn.figures.exhibits import Figure, Results
from lrdyn.studies.rank_before_training import RANK_BEFORE_TRAINING
from lrdyn.studies.rank_before_training.prediction import predict_ranks
from lrdyn.studies.rank_before_training.trainings import (
    CELLS,
    DESCENT,
    ENCODER,
    LANGUAGE,
    PREDICTORS,
    RanksMeasured,
)
from lrdyn.verification.running.configuration import Run, run_of
from lrdyn.verification.stating import fields
from paper_figs.shared import judged_seeds

TITLES = {LANGUAGE: "language, Adam", DESCENT: "language, descent", ENCODER: "encoder, Adam"}
LABELS = {
    "weights": "W",
    "gradient": "one gradient",
    "gradients": "k gradients",
    "adam": "Adam's step",
    "activations": "activations",
    "kind": "kind of layer",
    "pilot": "a tenth of it",
}
SHADES = {LANGUAGE: plotting.BLUE, DESCENT: plotting.GREEN, ENCODER: plotting.ORANGE}
FULL = {"mec": "none", "ms": 3, "alpha": 0.8}
DRAWN = {
    "weights": {**FULL, "color": plotting.GREY, "marker": "s"},
    "adam": {**FULL, "color": plotting.BLUE, "marker": "o"},
    "pilot": {**FULL, "color": plotting.ORANGE, "marker": "^"},
}
"""Predictors of which every matrix is drawn."""
TOLERANCE = 0.05
"""Of another training in float32, on another machine: relative, about the spread over seeds."""

CAPTION = """\
Rank r that holds .9 of the squared norm, of each matrix ({matrices}), full training. (a-c) r of
the update over r of what is known: W, the step of Adam from k gradients at the start, the update
after a tenth of the training; means over seeds, over min(m, n); line: equal. (d) Rank correlation
over matrices, 95 % intervals over matrices; grey: the size that 95 % of permutations of the
matrices stay below. The kind is the mean of the other blocks' updates: like the tenth it is not
known before.
"""
NOTES = """\
{seeds} ({dtype}); those of the encoder vary the order of sentences and the head. {learned}. Share
of the error of one rank for all that Adam's step saves, r fitted by a line in logarithms to the
other matrices: {gains}.
"""


def sources(**settings: Any) -> Mapping[str, Run]:
    """The study whose results the figure shows."""
    return {RANK_BEFORE_TRAINING.name: run_of(RANK_BEFORE_TRAINING, **settings)}


def _cell(name: str, results: xr.Dataset) -> xr.Dataset:
    """Ranks of one training, and how they are predicted, over its seeds together."""
    run = fields.of_run(judged_seeds(results), RanksMeasured)

    def read(field: Any) -> np.ndarray:
        array = run(field)
        single = [dim for dim in array.dims if array.sizes[dim] == 1 and dim != "seed"]
        return array.squeeze(single, drop=True).transpose("seed", ...).values.astype(float)

    ranks, known = read(lambda run: run.rank), read(lambda run: run.known)
    side = read(lambda run: run.smaller_side)[0]
    losses = read(lambda run: run.tested_loss)
    found = [
        predict_ranks(known[:, place], ranks, fit=predictor != "kind")
        for place, predictor in enumerate(PREDICTORS)
    ]
    return xr.Dataset(
        {
            "rank": (("cell", "matrix"), [ranks.mean(axis=0) / side]),
            "known": (("cell", "predictor", "matrix"), [known.mean(axis=0) / side]),
            "correlation": (("cell", "predictor"), [[one.correlation for one in found]]),
            "interval": (
                ("cell", "predictor", "end"),
                [[(one.low, one.high) for one in found]],
            ),
            "p": (("cell", "predictor"), [[one.p for one in found]]),
            "chance": (("cell", "predictor"), [[one.chance for one in found]]),
            "gain": (("cell", "predictor"), [[one.gain for one in found]]),
            "ratio": (
                ("cell", "predictor"),
                [[np.exp(np.mean(np.log(ranks / k))) for k in known.swapaxes(0, 1)]],
            ),
            "matrices": ("cell", [ranks.shape[1]]),
            "seeds": ("cell", [len(ranks)]),
            "learned": ("cell", [np.mean(losses[:, 1] / losses[:, 0])]),
        },
        {
            "cell": [name],
            "predictor": list(PREDICTORS),
            "matrix": np.arange(ranks.shape[1]),
            "end": ["low", "high"],
        },
    )


def numbers(results: Results, **settings: Any) -> xr.Dataset:
    """Ranks over cell and matrix, correlations and gains over cell and predictor."""
    groups = results[RANK_BEFORE_TRAINING.name]
    parts = [_cell(name, groups[f"/{name}"]) for name in CELLS if f"/{name}" in groups]
    merged = xr.concat(parts, "cell", data_vars="all", join="outer")
    for variable in merged.data_vars.values():
        variable.attrs.update(kind="training", tolerance=TOLERANCE)
    config = json.loads(groups["/"].attrs["config"])
    return merged.assign_attrs(dtype=config["dtype"])


def says(dataset: xr.Dataset) -> dict[str, Any]:
    """What the caption quotes."""
    cells = [str(name) for name in dataset.cell.values]

    def each(form: str, values: Any) -> str:
        found = list(zip(cells, np.asarray(values), strict=True))
        if len({form.format(value) for _, value in found}) == 1:
            return form.format(found[0][1])
        return ", ".join(f"{TITLES[cell]}: {form.format(value)}" for cell, value in found)

    return {
        "matrices": each("{:.0f}", dataset.matrices),
        "seeds": f"Seeds: {each('{:.0f}', dataset.seeds)}",
        "learned": "Loss at the end over that at the start: " + each("{:.2f}", dataset.learned),
        "gains": each("{:+.2f}", dataset.gain.sel(predictor="adam")),
    }


def draw(dataset: xr.Dataset) -> Any:
    """Draw the figure."""
    cells = [str(name) for name in dataset.cell.values]
    titles = [*(TITLES[cell] for cell in cells), "rank correlation over matrices"]
    figure, axes = plotting.panels(titles, rows=2, height=4.6)
    for ax, cell in zip(axes, cells, strict=False):
        plot_ranks(ax, dataset.sel(cell=cell))
    plot_correlations(axes[len(cells)], dataset)
    entries = [plotting.entry(LABELS[name], **{"ls": "", **look}) for name, look in DRAWN.items()]
    return plotting.common_key(figure, entries, serves=[(entries, axes[: len(cells)])])


def plot_ranks(ax: Any, data: xr.Dataset) -> None:
    """Draw the rank of the update of every matrix over what is known of it."""
    for name, look in DRAWN.items():
        ax.plot(data.known.sel(predictor=name), data["rank"], **{"ls": "", **look})
    finite = np.append(data.known.sel(predictor=list(DRAWN)).values.ravel(), data["rank"].values)
    low, high = np.nanmin(finite) / 1.3, min(1.0, np.nanmax(finite) * 1.3)
    ax.plot([low, high], [low, high], color=plotting.BLACK, lw=0.7)
    ax.set(xscale="log", yscale="log", xlabel="r known / min(m, n)", ylabel="r of the update")
    ax.set(xlim=(low, high), ylim=(low, high))
    for axis in (ax.xaxis, ax.yaxis):
        plotting.label_log_ticks(axis)
        axis.set_major_formatter("{x:g}")  # shares, not powers


def plot_correlations(ax: Any, dataset: xr.Dataset) -> None:
    """Draw correlations with their intervals over the matrices, a row for each predictor."""
    rows = np.arange(len(LABELS))[::-1]
    chance = float(dataset.chance.max())
    ax.axvspan(-chance, chance, color=plotting.GREY, alpha=0.2, lw=0)
    for place, (name, title) in enumerate(TITLES.items()):
        if name in dataset.cell.values:
            data, at = dataset.sel(cell=name), rows + 0.22 * (1 - place)
            for y, ends in zip(at, data.interval.values, strict=True):
                ax.plot(ends, [y, y], color=SHADES[name], lw=1.0)
            ax.plot(data.correlation, at, "o", color=SHADES[name], ms=3, label=title)
    ax.axvline(0, color=plotting.BLACK, lw=0.7)
    ax.set_yticks(rows, [LABELS[name] for name in PREDICTORS])
    ax.set(xlim=(-1, 1.02), xlabel="Spearman's correlation with r of the update")
    plotting.key(ax, None, "upper left", fontsize=7)


FIGURE = Figure(
    name="rank_before_training",
    shows=(RANK_BEFORE_TRAINING.name,),
    title="Which rank before training",
    caption=CAPTION,
    notes=NOTES,
    sources=sources,
    numbers=numbers,
    draw=draw,
    says=says,
    presets={"quick": {"preset": "quick"}, "paper": {"preset": "paper"}},
    long=True,
    turn=8,
    panels={
        **dict.fromkeys(("rank", "known"), "abc"),
        **dict.fromkeys(("correlation", "interval", "p", "chance", "gain"), "d"),
        **dict.fromkeys(("ratio", "matrices", "seeds", "learned"), ""),
    },
)
