"""Figure 2: singular values of the last activations of networks that are trained with dropout.

The networks of the study ``dropout_spectra``, and beside them the linear network at its minimum,
whose spectrum Theorem 3 gives.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from lrdyn.engine import fields
from lrdyn.engine.configuration import Run, run_of
from lrdyn.engine.judging import Groups
from lrdyn.figures import plotting
from lrdyn.figures.exhibits import Figure, Results
from lrdyn.studies.dropout_spectra import DROPOUT_SPECTRA
from lrdyn.studies.dropout_spectra.activations import DropoutMeasured
from lrdyn.studies.dropout_spectra.minimum import MinimumMeasured, MinimumTheory
from lrdyn.studies.dropout_spectra.raw import RawMeasured, RawTheory
from paper_figs.shared import capital, counted, judged

QUICK = {"preset": "quick", "seed": 1}
PAPER = {"preset": "paper", "seed": 1, "seeds": 5}
TITLES = {"dln": "linear network", "mlp": "perceptron", "resnet": "ResNet"}


class Kind(NamedTuple):
    """One of the four spectra at the end, and how it is drawn."""

    read: Callable[[DropoutMeasured], Any]
    text: str
    color: str
    dash: str


KINDS = {
    "activations": Kind(lambda run: run.activations, "H, dropout", plotting.BLUE, "-"),
    "balanced": Kind(lambda run: run.balanced, "balanced, dropout", plotting.BLUE, "--"),
    "plain_activations": Kind(lambda run: run.plain_activations, "H", plotting.GREY, "-"),
    "plain_balanced": Kind(lambda run: run.plain_balanced, "balanced", plotting.GREY, "--"),
}
COLOURED = {"dln": 8, "mlp": 8, "resnet": 10}
"""Singular values that are drawn in colour over the steps: rank of the teacher, classes."""

MEANS: Mapping[str, Callable[[DropoutMeasured], Any]] = {
    "activations_rank": lambda run: run.activations_rank,
    "balanced_rank": lambda run: run.balanced_rank,
    "plain_activations_rank": lambda run: run.plain_activations_rank,
    "plain_balanced_rank": lambda run: run.plain_balanced_rank,
    "quality": lambda run: run.quality,
    "plain_quality": lambda run: run.plain_quality,
}
"""What is averaged over seeds at the end."""

TOLERANCES = {
    "singular_value": 0.02,
    "spectrum": 0.02,
    "activations_rank": 0.05,
    "balanced_rank": 0.05,
    "plain_activations_rank": 0.05,
    "plain_balanced_rank": 0.05,
    "quality": 0.02,
    "plain_quality": 0.02,
    "shrunk": 0.01,
    "at_minimum": 1e-6,
    "predicted": 1e-6,
    "as_it_is": 0.01,
    "distance": 0.02,
}
"""Of another training in float32, on another machine or with other kernels."""
IDENTITIES = ("at_minimum", "predicted")
"""The minimum in float64, found by descent and by formula."""

CAPTION = """\
Singular values of the activations H of the last hidden layer on 1,000 examples that were not
trained on, over the square root of their number, in evaluation, not centred, with dropout of
{percent:g} % of that layer (seed {seed}, trained in {dtype}). Top: (a) a linear network at the
minimum of the expected loss, {depths} layers: crosses, H with its rows balanced; line, sqrt(s) of
Theorem 3 (they differ by {identity:.0e}); points, H as it is. (b)-(d) all singular values of H over
the steps of training, the first 8 (rank of the teacher) or 10 (classes) in blue. Bottom: (e) two
layers, white inputs, {starts} starts balanced unit by unit: root mean square distance of the
spectrum of H from c^(1/4) sqrt(s) against the step, and a line of slope 1. (f)-(h) the spectra at
the end, over their largest; blue with dropout, grey without from the same start; dashed: each row
of H over (||h_i|| / ||w_i||)^(1/2), w_i the weights that read it. Dropout leaves W D and D^-1 H as
good as W and H for every positive diagonal D: the raw spectrum depends on that free scale of the
units, the balanced one does not. {networks}
"""
NETWORK_TEXT = {
    "dln": "Linear network and perceptron (ReLU): Adam on the squared error of mini-batches, white "
    "Gaussian inputs, a teacher of rank 8 and noise; dotted: sqrt(s).",
    "mlp": "",
    "resnet": "ResNet-18 of {width} to {widest} channels: Adam on the cross-entropy of "
    "mini-batches of {described}.",
}
RESULT_TEXT = (
    "{title}: effective rank of H {activations_rank:.1f} (without {plain_activations_rank:.1f}), "
    "balanced {balanced_rank:.1f} ({plain_balanced_rank:.1f}); {quality_text} {quality:.3f} "
    "({plain_quality:.3f}); means over {seeds}."
)
QUALITY = {"dln": "missed share", "mlp": "missed share", "resnet": "accuracy"}


def sources(**settings: Any) -> Mapping[str, Run]:
    """The study."""
    return {DROPOUT_SPECTRA.name: run_of(DROPOUT_SPECTRA, **settings)}


def numbers(results: Results, **settings: Any) -> xr.Dataset:
    """Spectra over network, index and point, at the end and at the minimum, and their ranks."""
    groups = results[DROPOUT_SPECTRA.name]
    runs = {name: groups[f"/{name}"] for name in TITLES if f"/{name}" in groups}
    drawn = _over_steps(runs)
    for name, read in MEANS.items():
        ends = [fields.of_run(judged(run), DropoutMeasured)(read) for run in runs.values()]
        means = [float((end[..., -1] if "step" in end.dims else end).mean()) for end in ends]
        drawn[name] = ("network", means)
    drawn = drawn.merge(_minimum(groups)).merge(_drift(groups))
    for name, tolerance in TOLERANCES.items():
        kind = "identity" if name in IDENTITIES else "training"
        drawn[name].attrs.update(kind=kind, tolerance=tolerance)
    drawn["singular_value"].attrs["curve_along"] = "point"
    return drawn.assign_attrs(_facts(groups, drawn, runs))


def _first(array: xr.DataArray, *axes: str) -> xr.DataArray:
    """The first seed and the first value of every axis but these."""
    return array.isel({name: 0 for name in array.dims if name not in axes}, drop=True)


def _over_steps(runs: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Spectra of different sizes in one dataset, padded with NaN."""
    sets = []
    for name, results in runs.items():
        run = fields.of_run(results, DropoutMeasured)
        values = _first(run(lambda run: run.activations), "step", "index").values
        ends = [_first(run(kind.read), "step", "index").values[-1] for kind in KINDS.values()]
        points, width = values.shape
        sets.append(
            xr.Dataset(
                {
                    "singular_value": (("network", "point", "index"), values[None]),
                    "spectrum": (("network", "kind", "index"), np.stack(ends)[None]),
                    "step": (
                        ("network", "point"),
                        _first(run(lambda run: run.step), "step").values[None],
                    ),
                },
                {
                    "network": [name],
                    "point": np.arange(points),
                    "index": np.arange(1, width + 1),
                    "kind": list(KINDS),
                },
            )
        )
    if "dln" in runs:
        run = fields.of_run(runs["dln"], DropoutMeasured)
        limit = _first(run(lambda run: run.shrunk), "index").values
        sets.append(xr.Dataset({"shrunk": ("index", limit)}, {"index": 1 + np.arange(len(limit))}))
    merged = xr.merge(sets, join="outer")
    assert isinstance(merged, xr.Dataset)
    return merged


def _minimum(groups: Groups) -> xr.Dataset:
    """The balanced spectrum of every depth, and H as it is."""
    # In float64, whichever precision was asked for; so is the drift below.
    root = groups["/float64" if "/float64" in groups else "/"].rename({"index": "place"})
    theory, run = fields.of_theory(root, MinimumTheory), fields.of_run(root, MinimumMeasured)
    axes = ("depth", "place")
    return xr.Dataset(
        {
            "at_minimum": _first(run(lambda run: run.balanced), *axes),
            "predicted": _first(theory(lambda theory: theory.balanced), *axes),
            "as_it_is": _first(run(lambda run: run.activations), *axes),
        }
    ).assign_coords(place=np.arange(1, root.sizes["place"] + 1))


def _drift(groups: Groups) -> xr.Dataset:
    """Root mean square distance of the raw spectra from their limit, for each step."""
    results = groups["/raw/float64" if "/raw/float64" in groups else "/raw"]
    theory, run = fields.of_theory(results, RawTheory), fields.of_run(results, RawMeasured)
    limit = _first(theory(lambda theory: theory.limit), "index")
    spectra = _first(run(lambda run: run.raw_spectrum), "rate", "start", "index")
    distance = np.sqrt(np.mean((spectra.values - limit.values) ** 2, axis=(1, 2)))
    rates = run(lambda run: run.rate).values
    return xr.Dataset({"distance": ("rate", distance)}, {"rate": rates})


def _facts(groups: Groups, drawn: xr.Dataset, runs: Mapping[str, xr.Dataset]) -> dict[str, Any]:
    """What the caption says."""
    root = groups["/"]
    config = json.loads(root.attrs["config"])
    width = int(config["resnet_width"])
    described = root.attrs["about"].removeprefix("residual network on ")
    texts = []
    for name, run in runs.items():
        of_network = drawn.sel(network=name)
        texts += [
            NETWORK_TEXT[name].format(width=width, widest=8 * width, described=described),
            RESULT_TEXT.format(
                title=capital(TITLES[name]),
                quality_text=QUALITY[name],
                seeds=counted(judged(run).seed.size),
                **{mean: float(of_network[mean]) for mean in MEANS},
            ),
        ]
    return {
        "percent": 100 * float(config["dropout"]),
        "seed": int(root.seed[0]),
        "dtype": config["dtype"],
        "depths": " and ".join(str(n) for n in drawn.depth.values),
        "starts": int(groups["/raw"].sizes["start"]),
        "identity": float(np.abs(drawn["at_minimum"] - drawn["predicted"]).max()),
        "networks": " ".join(texts),
    }


def thin(dataset: xr.Dataset) -> xr.Dataset:
    """Part kept as a baseline: the first 40 singular values and every 20th of the others."""
    index = dataset.index.values
    return dataset.isel(index=np.nonzero((index <= 40) | (index % 20 == 0))[0])


def draw(dataset: xr.Dataset) -> Any:
    """Draw Figure 2."""
    names = [str(name) for name in dataset.network.values]
    trained = [TITLES[name] for name in names]
    titles = ["at the minimum", *trained, "two layers, white", *[f"{t}, end" for t in trained]]
    figure, axes = plotting.panels(titles, rows=2, height=4.4)
    half = len(names) + 1
    plot_minimum(axes[0], dataset)
    plot_drift(axes[half], dataset)
    for ax, below, name in zip(axes[1:half], axes[half + 1 :], names, strict=True):
        run = dataset.sel(network=name)
        plot_steps(ax, run, COLOURED[name])
        plot_ends(below, run, with_limit=name == "dln")
    axes[0].set_ylabel("singular values")
    axes[half].set_ylabel("distance")
    return figure


def plot_minimum(ax: Any, dataset: xr.Dataset) -> None:
    """Theory as lines, the balanced spectrum as crosses, H as it is as points."""
    place = dataset.place.values
    looks = zip(dataset.depth.values, (plotting.BLUE, plotting.ORANGE), "x+", strict=False)
    for depth, color, marker in looks:
        run = dataset.sel(depth=depth)
        ax.plot(place, run.predicted, color="k", lw=0.8, zorder=1)
        ax.plot(place, run.at_minimum, marker, color=color, ms=7, label=f"L = {depth}")
        ax.plot(place, run.as_it_is, ".", color=color, ms=4, alpha=0.6)
    ax.set(xlabel="index i", ylim=(-0.05, None))
    ax.set_xticks(place[::2])
    plotting.key(ax, None, "upper right")


def plot_drift(ax: Any, dataset: xr.Dataset) -> None:
    """Distance from the limit over the step, and the first power."""
    rates, distance = dataset.rate.values, dataset.distance.values
    ax.plot(rates, distance[-1] * rates / rates[-1], "--", color=plotting.GREY)
    ax.plot(rates, distance, "o", color=plotting.BLUE)
    ax.set(xscale="log", yscale="log", xlabel="η / θ")
    ax.set_xticks(rates, [f"{rate:g}" for rate in rates])
    ax.set_yticks(distance, [f"{value:.1e}" for value in distance])
    ax.minorticks_off()


def plot_steps(ax: Any, run: xr.Dataset, coloured: int) -> None:
    """All singular values over the steps, the first ones in colour."""
    recorded = np.isfinite(run.step.values)
    steps, values = run.step.values[recorded], run.singular_value.values[recorded]
    values = np.where(values > 0, values, np.nan)
    ax.plot(steps, values[:, coloured:], color="#B3B3B3", lw=0.3, rasterized=True, zorder=1)
    ax.plot(steps, values[:, :coloured], color=plotting.BLUE, lw=0.8, zorder=2)
    top = float(np.nanmax(values))
    ax.set(yscale="log", xlabel="step t", xlim=(0, int(steps[-1])), ylim=(1e-4 * top, 2 * top))
    ax.locator_params(axis="x", nbins=4)


def plot_ends(ax: Any, run: xr.Dataset, *, with_limit: bool) -> None:
    """The four spectra at the end, over their largest."""
    index = run.index.values
    for name, kind in KINDS.items():
        values = run.spectrum.sel(kind=name).values
        look = {"color": kind.color, "ls": kind.dash, "label": kind.text}
        ax.plot(index, values / values[0], lw=1.0, **look)
    if with_limit:
        limit = run.shrunk.values
        ax.plot(index, np.where(limit > 0, limit, np.nan) / limit[0], ":", color="k", lw=1.5)
        plotting.key(ax, None, "lower left", fontsize=5.5)
    ax.set(xscale="log", yscale="log", xlabel="index i", ylim=(1e-3, 2))


FIGURE = Figure(
    name="fig02",
    title="Activations of the last layer under dropout",
    caption=CAPTION,
    sources=sources,
    numbers=numbers,
    draw=draw,
    presets={"quick": QUICK, "paper": PAPER},
    thin=thin,
    long=True,
    panels={
        **dict.fromkeys(("at_minimum", "predicted", "as_it_is"), "a"),
        "distance": "e",
        "singular_value": "bcd",
        "step": "bcd",
        "spectrum": "fgh",
        "shrunk": "f",
    },
)
