"""Figure 2: singular values of the last activations of networks that are trained with dropout.

The networks of the study ``dropout_spectra``, and beside them the linear network at its minimum,
whose spectrum Theorem 3 gives.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from lrdyn.core import chance
from lrdyn.figures import plotting, spectrum
from lrdyn.figures.exhibits import Figure, Results
from lrdyn.studies.dropout_spectra import DROPOUT_SPECTRA, synthetic
from lrdyn.studies.dropout_spectra.activations import TrainedDropoutMeasured
from lrdyn.studies.dropout_spectra.minimum import MinimumMeasured, MinimumTheory
from lrdyn.studies.dropout_spectra.raw import RawMeasured, RawTheory
from lrdyn.verification.judging.judging import Groups
from lrdyn.verification.running.configuration import Run, run_of
from lrdyn.verification.stating import fields
from lrdyn.verification.stating.claims import STILL_MOVING, standard_error
from lrdyn.verification.stating.rest import AT_REST, OverSteps
from paper_figs.shared import capital, count_seeds, judged_seeds

QUICK = {"preset": "quick", "seed": 1}
PAPER = {
    "preset": "paper",
    "seed": 1,
    "seeds": 4,
    "synthetic_examples": 4000,
    "synthetic_width": 128,
    "synthetic_epochs": 3200,
    "resnet_width": 8,
    "resnet_epochs": 8,
}
"""What a CPU trains in hours: the study's preset ``paper`` wants a GPU."""
TITLES = {"dln": "linear network", "mlp": "perceptron", "resnet": "ResNet"}


class Kind(NamedTuple):
    """One of the four spectra at the end, and how it is drawn."""

    read: Callable[[TrainedDropoutMeasured], Any]
    text: str
    color: str
    dash: str


KINDS = {
    "activations": Kind(lambda run: run.activations, "H, dropout", plotting.BLUE, "-"),
    "balanced": Kind(lambda run: run.balanced, "balanced, dropout", plotting.BLUE, "--"),
    "plain_activations": Kind(lambda run: run.plain_activations, "H", plotting.GREY, "-"),
    "plain_balanced": Kind(lambda run: run.plain_balanced, "balanced", plotting.GREY, "--"),
}
SIDES = {"above 0": "lower", "below 0": "higher", "one seed": "one seed"}
"""Outcome of the rank without dropout less that with it -> what dropout did to the rank; of others
it is not told."""
FORGOTTEN = 29
"""Step from which a network with running statistics is drawn: (1 - .1)^29 < .05 of them is still
that of the untrained network."""

MEANS: Mapping[str, Callable[[TrainedDropoutMeasured], Any]] = {
    "activations_rank": lambda run: run.activations_rank,
    "balanced_rank": lambda run: run.balanced_rank,
    "plain_activations_rank": lambda run: run.plain_activations_rank,
    "plain_balanced_rank": lambda run: run.plain_balanced_rank,
    "quality": lambda run: run.quality,
    "plain_quality": lambda run: run.plain_quality,
}
"""What is averaged over seeds at the end."""

TOLERANCES = {
    "spectrum": 0.02,
    "rank": 0.05,
    "rank_error": 0.05,
    "activations_rank": 0.05,
    "balanced_rank": 0.05,
    "plain_activations_rank": 0.05,
    "plain_balanced_rank": 0.05,
    "drop": 0.05,
    "quality": 0.02,
    "plain_quality": 0.02,
    "shrunk": 0.01,
    "at_minimum": 1e-6,
    "predicted": 1e-6,
    "as_it_is": 0.01,
    "distance": 0.02,
}
"""Differences to another training in float32, on another machine or with other kernels."""
IDENTITIES = ("at_minimum", "predicted")
"""The minimum in float64, found by descent and by formula."""

CAPTION = """\
The survey: dropout gradually lowers the rank of the last activations H. Found, effective rank
without dropout to with it ({held} intervals held at once): {found}; rows balanced:
{found_balanced}. (a) Linear network at the minimum of the expected loss: crosses, balanced; line,
sqrt(s) of Theorem 3; points, H. (b-{last}) Effective rank over the steps; ({ends}) spectra at the
last; dotted: a Gaussian H. ({drift}) Distance of H from c^(1/4) sqrt(s) over the step
size, slope 1.
"""
NOTES = """\
Singular values are those on 1,000 examples that were not trained on, over the square root of their
number, in evaluation, not centred, with dropout of {percent:g} % of the last hidden layer (seed
{seed}, trained in {dtype}). (a) {depths} layers; the crosses differ from sqrt(s) by {identity:.0e}.
({drift}) Two layers, white inputs, {starts} starts balanced unit by unit, root mean square.
Balanced: each row of H over (||h_i|| / ||w_i||)^(1/2), w_i the weights that read it. Dropout leaves
W D and D^-1 H as good as W and H for every positive diagonal D: the raw spectrum depends on that
free scale of the units, the balanced one does not. Curves: blue with dropout, grey without from the
same start. The linear network's H is a matrix times {inputs} inputs: so is its Gaussian one.
{networks} Running statistics of batch normalisation are drawn from step {forgotten} on,
where less than .05 of them is of the untrained network.
"""
NETWORK_TEXT = {
    "dln": "Linear network and perceptron (ReLU): Adam on the squared error of mini-batches, white "
    "Gaussian inputs, a teacher of rank 8 and noise; orange: sqrt(s).",
    "mlp": "",
    "resnet": "ResNet-18 of {width} to {widest} channels: Adam on the cross-entropy of "
    "mini-batches of {described}.",
}
RESULT_TEXT = "{title}: {quality_text} {quality:.3f} (without {plain_quality:.3f}), {seeds}."
QUALITY = {"dln": "missed share", "mlp": "missed share", "resnet": "accuracy"}


def sources(**settings: Any) -> Mapping[str, Run]:
    """The study whose results the figure shows."""
    return {DROPOUT_SPECTRA.name: run_of(DROPOUT_SPECTRA, **settings)}


def numbers(results: Results, **settings: Any) -> xr.Dataset:
    """Spectra over network, index and point, at the end and at the minimum, and their ranks."""
    groups = results[DROPOUT_SPECTRA.name]
    runs = {name: groups[f"/{name}"] for name in TITLES if f"/{name}" in groups}
    drawn = _spectra(runs).merge(_ranks(runs))
    for name, read in MEANS.items():
        ends = [
            fields.of_run(judged_seeds(run), TrainedDropoutMeasured)(read) for run in runs.values()
        ]
        means = [float((end[..., -1] if "step" in end.dims else end).mean()) for end in ends]
        drawn[name] = ("network", means)
    drawn["seeds"] = ("network", [judged_seeds(run).seed.size for run in runs.values()])
    drawn = drawn.merge(_minimum(groups)).merge(_drift(groups))
    for name, tolerance in TOLERANCES.items():
        kind = "identity" if name in IDENTITIES else "training"
        drawn[name].attrs.update(kind=kind, tolerance=tolerance)
    return drawn.assign_attrs(_facts(groups))


def _first_seed(array: xr.DataArray, *axes: str) -> xr.DataArray:
    """The first seed and the first value of every axis but these."""
    return array.isel({name: 0 for name in array.dims if name not in axes}, drop=True)


def _spectra(runs: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Spectra at the end, of different sizes in one dataset, padded with NaN."""
    sets = []
    for name, results in runs.items():
        run = fields.of_run(results, TrainedDropoutMeasured)
        ends = [_first_seed(run(kind.read), "step", "index").values[-1] for kind in KINDS.values()]
        width = len(ends[0])
        sets.append(
            xr.Dataset(
                {
                    "spectrum": (("network", "kind", "index"), np.stack(ends)[None]),
                    "width": ("network", [width]),
                },
                {"network": [name], "index": np.arange(1, width + 1), "kind": list(KINDS)},
            )
        )
    if "dln" in runs:
        run = fields.of_run(runs["dln"], TrainedDropoutMeasured)
        limit = _first_seed(run(lambda run: run.shrunk), "index").values
        sets.append(xr.Dataset({"shrunk": ("index", limit)}, {"index": 1 + np.arange(len(limit))}))
    merged = xr.merge(sets, join="outer", compat="no_conflicts")
    assert isinstance(merged, xr.Dataset)
    return merged


def _ranks(runs: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Effective ranks over the steps, mean over seeds and standard error, padded with NaN.

    ``drop`` is the rank at the end without dropout less that with it, of each seed.
    """
    sets = []
    for name, results in runs.items():
        run = fields.of_run(judged_seeds(results), TrainedDropoutMeasured)
        ranks = [run(MEANS[f"{kind}_rank"]) for kind in KINDS]
        flat = [r.transpose("seed", ..., "step").values.reshape(r.sizes["seed"], -1) for r in ranks]
        with_dropout, without = np.split(np.array(flat)[..., -1], 2)
        points = flat[0].shape[1]
        sets.append(
            xr.Dataset(
                {
                    "rank": (("network", "kind", "point"), [[x.mean(axis=0) for x in flat]]),
                    "rank_error": (
                        ("network", "kind", "point"),
                        [[standard_error(x) for x in flat]],
                    ),
                    "drop": (("network", "of", "judged_seed"), [without - with_dropout]),
                    "step": (
                        ("network", "point"),
                        _first_seed(run(lambda run: run.step), "step").values[None].astype(float),
                    ),
                },
                {
                    "network": [name],
                    "kind": list(KINDS),
                    "of": list(KINDS)[:2],
                    "point": np.arange(points),
                    "judged_seed": np.arange(len(flat[0])),
                },
            )
        )
    merged = xr.merge(sets, join="outer", compat="no_conflicts")
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
            "at_minimum": _first_seed(run(lambda run: run.balanced), *axes),
            "predicted": _first_seed(theory(lambda theory: theory.balanced), *axes),
            "as_it_is": _first_seed(run(lambda run: run.activations), *axes),
        }
    ).assign_coords(place=np.arange(1, root.sizes["place"] + 1))


def _drift(groups: Groups) -> xr.Dataset:
    """Root mean square distance of the raw spectra from their limit, for each step."""
    results = groups["/raw/float64" if "/raw/float64" in groups else "/raw"]
    theory, run = fields.of_theory(results, RawTheory), fields.of_run(results, RawMeasured)
    limit = _first_seed(theory(lambda theory: theory.limit), "index")
    spectra = _first_seed(run(lambda run: run.raw_spectrum), "rate", "start", "index")
    distance = np.sqrt(np.mean((spectra.values - limit.values) ** 2, axis=(1, 2)))
    rates = run(lambda run: run.rate).values
    return xr.Dataset({"distance": ("rate", distance)}, {"rate": rates})


def _facts(groups: Groups) -> dict[str, Any]:
    """Values of the settings that the caption quotes."""
    root = groups["/"]
    config = json.loads(root.attrs["config"])
    return {
        "percent": 100 * float(config["dropout"]),
        "seed": int(root.seed[0]),
        "dtype": config["dtype"],
        "resnet_width": int(config["resnet_width"]),
        "described": root.attrs["about"].removeprefix("residual network on "),
        "starts": int(groups["/raw"].sizes["start"]),
    }


def says(drawn: xr.Dataset) -> dict[str, Any]:
    """Values of the results that the caption quotes."""
    names = [str(name) for name in drawn.network.values]
    width = int(drawn.attrs["resnet_width"])
    how = {"width": width, "widest": 8 * width, "described": drawn.attrs["described"]}
    texts, raw, balanced = [], [], []
    for name in names:
        network = drawn.sel(network=name)
        means = {mean: float(network[mean]) for mean in MEANS}
        title, seeds = capital(TITLES[name]), count_seeds(int(network["seeds"]))
        raw.append(f"{TITLES[name]} {_describe_rank(network, 'activations')}")
        balanced.append(_describe_rank(network, "balanced"))
        result = RESULT_TEXT.format(title=title, quality_text=QUALITY[name], seeds=seeds, **means)
        texts += [NETWORK_TEXT[name].format(**how), result]
    last = len(names)
    return {
        "held": DROPOUT_SPECTRA.intervals,
        "found": "; ".join(raw),
        "found_balanced": "; ".join(balanced),
        "last": plotting.LETTERS[last],
        "drift": plotting.LETTERS[last + 1],
        "ends": f"{plotting.LETTERS[last + 2]}-{plotting.LETTERS[2 * last + 1]}",
        "depths": " and ".join(str(n) for n in drawn.depth.values),
        "identity": float(np.abs(drawn["at_minimum"] - drawn["predicted"]).max()),
        "networks": " ".join(texts),
        "forgotten": FORGOTTEN,
        "inputs": synthetic.INPUTS,
    }


def _describe_rank(network: xr.Dataset, kind: str) -> str:
    """A rank at the end without dropout, that with it, and what the interval of the seeds tells."""
    draws = network["drop"].sel(of=kind).values[: int(network["seeds"])]
    finding = f"{network.network.item()}_{kind}_drop"
    told = SIDES.get(DROPOUT_SPECTRA.outcome_entry(finding, draws)["outcome"], "not told")
    ranks = float(network[f"plain_{kind}_rank"]), float(network[f"{kind}_rank"])
    return "{:.1f} to {:.1f}, {} ({})".format(*ranks, told, _rest_of(network, kind))


def _rest_of(network: xr.Dataset, kind: str) -> str:
    """Whether the difference of the mean ranks had come to rest at the last step."""
    there = np.isfinite(network["step"].values)
    means = network["rank"].isel(point=there)
    drop = means.sel(kind=f"plain_{kind}").values - means.sel(kind=kind).values
    steps = network["step"].values[there].astype(int)
    return AT_REST if OverSteps(steps, drop[None]).longer() == 1.0 else STILL_MOVING


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
        plot_ranks(ax, run, FORGOTTEN if name == "resnet" else 1)
        plot_ends(below, run, with_limit=name == "dln")
    entries = [plotting.entry(k.text, k.color, ls=k.dash) for k in KINDS.values()]
    trained_panels = [*axes[1:half], *axes[half + 1 :]]
    serves = [(entries, trained_panels)]
    if "dln" in names:
        of_theory = plotting.entry(r"$\sqrt{s}$, Theorem 3", plotting.ORANGE, ls=":", lw=1.5)
        serves.append(([of_theory], [axes[half + 1 + names.index("dln")]]))
    every = [entry for lines, _ in serves for entry in lines]
    plotting.common_key(figure, every, serves=serves, fontsize=7)
    axes[0].set_ylabel("singular values")
    plotting.label_once(axes[1:half], "effective rank")
    axes[half].set_ylabel("distance")
    plotting.label_once(axes[half + 1 :], "over the largest")
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
    ax.xaxis.minorticks_off()
    ax.margins(0.15)
    plotting.label_log_ticks(ax.yaxis)


def plot_ranks(ax: Any, run: xr.Dataset, first: int) -> None:
    """Draw the effective rank over the steps, mean over seeds and its standard error."""
    chance_rank = chance.gaussian_effective_rank(*size_of(run))
    every = run["step"].values
    drawn = every >= min(first, np.nanmax(every))  # of a short training its end
    for name, kind in KINDS.items():
        steps, curve = every[drawn], run.sel(kind=name).isel(point=drawn)
        mean, width = curve["rank"].values, np.nan_to_num(curve["rank_error"].values)
        ax.plot(steps, mean, color=kind.color, ls=kind.dash, lw=1.0)
        ax.fill_between(steps, mean - width, mean + width, color=kind.color, alpha=0.2, lw=0)
    ax.axhline(chance_rank, color="k", lw=0.7, ls=":")
    ax.set(xscale="log", xlabel="step t", ylim=(0, 1.08 * chance_rank))


EXAMPLES = 1000
"""Columns of H."""


def size_of(run: xr.Dataset) -> tuple[int, int]:
    """Size of a Gaussian matrix with the spectrum of a Gaussian H, but for a factor.

    The linear network's H is W X, and X is white: the singular values are those of W.
    """
    return int(run["width"]), synthetic.INPUTS if run.network.item() == "dln" else EXAMPLES


def plot_ends(ax: Any, run: xr.Dataset, *, with_limit: bool) -> None:
    """The four spectra at the end, over their largest."""
    index = run.index.values
    for name, kind in KINDS.items():
        values = run.spectrum.sel(kind=name).values
        size = size_of(run) if kind is [*KINDS.values()][-1] else False
        look: dict[str, Any] = {"color": kind.color, "ls": kind.dash, "label": kind.text}
        spectrum(ax, values, chance=size, index=index, **look)
    if with_limit:
        limit = run.shrunk.values
        known = np.where(limit > 0, limit, np.nan)
        ax.plot(index, known / limit[0], ":", color=plotting.ORANGE, lw=1.5)
    ax.set_ylim(1e-3, 2)


FIGURE = Figure(
    name="fig02",
    shows=("dropout_spectra", "theorem3"),
    title="What dropout does to the rank of the last activations, raw and balanced",
    caption=CAPTION,
    sources=sources,
    numbers=numbers,
    draw=draw,
    presets={"quick": QUICK, "paper": PAPER},
    thin=thin,
    says=says,
    notes=NOTES,
    long=True,
    turn=6,
    panels={
        **dict.fromkeys(("at_minimum", "predicted", "as_it_is"), "a"),
        **dict.fromkeys(("rank", "rank_error"), "bcd"),
        "distance": "e",
        "spectrum": "fgh",
        "shrunk": "f",
    },
)
