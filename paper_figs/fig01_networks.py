"""Figure 1, appendix: singular values of the updates of five networks over their training.

The networks of the study ``weight_updates``, and beside them the linear classifier on whitened
images that the theorem covers.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from lrdyn.core import chance
from lrdyn.figures import plotting, spectrum
from lrdyn.figures.exhibits import Figure, Results
from lrdyn.studies.weight_updates import WEIGHT_UPDATES
from lrdyn.studies.weight_updates.edge import EdgeMeasured
from lrdyn.studies.weight_updates.updates import UpdateMeasured
from lrdyn.verification.judging.judging import Groups
from lrdyn.verification.running.configuration import Run, run_of
from lrdyn.verification.stating import fields
from paper_figs.shared import capital, count_seeds, judged_seeds

QUICK = {"preset": "quick", "seed": 1}
PAPER = {
    "preset": "paper",
    "seed": 1,
    "linear_steps": 10_000,
    "vgg_epochs": 3,
    "resnet_width": 16,
    "resnet_epochs": 20,
    "vit_width": 128,
    "vit_depth": 6,
    "vit_heads": 4,
    "vit_epochs": 4,
    "shuffled_epochs": 1,
}
"""As far as some five hours of a core bring them; the study's own preset wants a GPU."""
TITLES = {
    "dln": "linear network",
    "mlp": "perceptron",
    "vgg": "VGG",
    "resnet": "ResNet",
    "vit": "transformer",
    "edge": "whitened",
}
EDGE = "edge"

TOLERANCES = {
    "singular_value": 0.02,
    "shuffled_value": 0.02,
    "share_over_steps": 0.02,
    "shuffled_over_steps": 0.02,
    "share": 0.01,
    "effective_rank": 0.05,
    "accuracy": 0.02,
}
"""Of another training in float32, on another machine or with other kernels: rounding errors grow by
some thousands over the steps, and the spread over seeds is of this size."""

CAPTION = """\
(a-{last}) Singular values of W(t) - W(0), penultimate layer: dark blue up to K = {classes}, light
blue up to 2K = {rank}; titles: test accuracy (whitened: of training images). ({ends}) At the last
step, over the largest; orange: labels shuffled{early}; dotted: Gaussian; thin: K and 2K; titles:
share of the squared norm in the first 2K (Gaussian). ({over}) This share over training; dashed:
labels shuffled. On whitened images the edge at 2K is exact: sigma_(2K+1) / sigma_(2K) = {edge:.0e}.
Elsewhere the values fall and go on behind it: {ratios} (Gaussian {gaussian_ratios}).
"""
NOTES = """\
Trained on {described} (seed {seed}, {dtype}: rounding lies some 1e-6 below the largest value).
{networks} Share on shuffled labels, which the same network is trained on with the same rates, and
at the same step on true ones: {shuffled}. Without the largest direction, which in a layer behind
ReLU can be that of the mean, the next 2K hold {without} of what is left. The whitened network is
linear, in float64, on the first {edge_width} principal coordinates of 600 images. A Gaussian matrix
has the size of the update.
"""
NETWORK_TEXT = {
    "dln": "Deep linear network: full-batch gradient descent on half the mean squared error "
    "against one-hot labels, from an orthogonal start, without weight decay; raw pixels are not "
    "whitened, so that the theorem does not cover it.",
    "mlp": "Perceptron: gradient descent on the cross-entropy of mini-batches, ReLU, Gaussian "
    "start.",
    "vgg": "VGG with a hidden layer of 512 x 512, {norm} batch normalisation, ResNet (last kernel) "
    "and the vision transformer (second matrix of the last block's perceptron): Adam on the same "
    "loss, {schedule}.",
    "resnet": "",
    "vit": "",
}
RESULT_TEXT = (
    "{title}: share {share:.4f}, of a Gaussian {gaussian_share:.2f}; effective rank "
    "{effective_rank:.1f}, of a Gaussian {gaussian_rank:.1f} (mean of {seeds})."
)


def sources(**settings: Any) -> Mapping[str, Run]:
    """The study whose results the figure shows."""
    return {WEIGHT_UPDATES.name: run_of(WEIGHT_UPDATES, **settings)}


def numbers(results: Results, **settings: Any) -> xr.Dataset:
    """Singular values over network, index and point, and what is measured over seeds."""
    groups = results[WEIGHT_UPDATES.name]
    names = [name for name in TITLES if f"/{name}" in groups]
    sets = [
        *(_network_spectra(name, groups[f"/{name}"]) for name in names),
        _whitened_spectra(groups),
    ]
    # Sizes differ: what a network does not have is NaN.
    drawn = xr.merge(sets, join="outer", compat="no_conflicts")
    assert isinstance(drawn, xr.Dataset)
    drawn = drawn.sel(network=[*names, EDGE], trained=names)
    for name in TOLERANCES.keys() & drawn.keys():
        drawn[name].attrs.update(kind="training", tolerance=TOLERANCES[name])
    drawn["singular_value"].attrs["curve_along"] = "point"
    return drawn.assign_attrs(_facts(groups))


def _network_spectra(name: str, results: xr.Dataset) -> xr.Dataset:
    """Spectra of the first seed of a network, and means over the seeds above 0."""
    run = fields.of_run(results, UpdateMeasured)
    over_seeds = fields.of_run(judged_seeds(results), UpdateMeasured)
    shares, accuracy = over_seeds(lambda run: run.share), over_seeds(lambda run: run.test_accuracy)
    rank = over_seeds(lambda run: run.effective_rank)[..., -1]
    sides = {"rows": run(lambda run: run.rows), "columns": run(lambda run: run.columns)}
    over_steps = shares.mean([axis for axis in shares.dims if axis != "step"])
    ends = {
        "share": over_steps.values[-1],
        "effective_rank": float(rank.mean()),
        "seeds": accuracy.sizes["seed"],
    }
    shuffled = over_seeds(lambda run: run.share_shuffled)
    shuffled = shuffled.mean([axis for axis in shuffled.dims if axis != "early"]).values
    behind = over_steps.size - shuffled.size  # steps that this training does not have
    padded = np.pad(shuffled, (0, behind), constant_values=np.nan)
    shuffled_values = _first_seed(run(lambda run: run.update_shuffled))
    return _spectra(
        name,
        _first_seed(run(lambda run: run.update)),
        run(lambda run: run.step).values,
        share_over_steps=(("network", "point"), over_steps.values[None]),
        shuffled_over_steps=(("network", "point"), padded[None]),
        shuffled_value=(("network", "index"), shuffled_values[None]),
        accuracy=("network", [float(accuracy.mean())]),
        **{side: ("network", [int(_first_seed(size))]) for side, size in sides.items()},
        **{end: ("trained", [value]) for end, value in ends.items()},
    ).assign_coords(trained=[name])


def _whitened_spectra(groups: Groups) -> xr.Dataset:
    """Spectra of the network on whitened images, of the layer before the last."""
    # The identity in float64, whichever precision was asked for.
    run = fields.of_run(groups["/float64" if "/float64" in groups else "/"], EdgeMeasured)
    values = _first_seed(run(lambda run: run.update))[:, -1]
    sides = {side: ("network", [values.shape[-1]]) for side in ("rows", "columns")}
    accuracy = float(_first_seed(run(lambda run: run.edge_accuracy)))
    steps = run(lambda run: run.step).values
    return _spectra(EDGE, values, steps, accuracy=("network", [accuracy]), **sides)


def _first_seed(array: xr.DataArray) -> np.ndarray:
    """The first seed, whatever other axes of one value there are."""
    return array.isel(seed=0).squeeze(drop=True).values


def _spectra(name: str, values: np.ndarray, steps: np.ndarray, **others: Any) -> xr.Dataset:
    """Spectra (point, index) of one network at its recorded steps, and what else it has."""
    points, width = values.shape
    return xr.Dataset(
        {
            "singular_value": (("network", "point", "index"), values[None].astype(float)),
            "step": (("network", "point"), steps[None].astype(float)),
            **others,
        },
        {"network": [name], "point": np.arange(points), "index": np.arange(1, width + 1)},
    )


def _facts(groups: Groups) -> dict[str, Any]:
    """Values of the settings that the caption quotes."""
    root = groups["/"]
    config = json.loads(root.attrs["config"])
    classes = int(_first_seed(fields.of_run(root, EdgeMeasured)(lambda run: run.classes)))
    return {
        "described": root.attrs["about"].removeprefix("on "),
        "classes": classes,
        "rank": 2 * classes,
        "seed": int(root.seed[0]),
        "dtype": config["dtype"],
        "norm": "with" if config["vgg_norm"] == "yes" else "without",
        "warmup": float(config["warmup"]),
    }


def says(drawn: xr.Dataset) -> dict[str, Any]:
    """Values of the results that the caption quotes."""
    rank, names = int(drawn.attrs["rank"]), [str(name) for name in drawn.trained.values]
    warmup = float(drawn.attrs["warmup"])
    how = "at a constant rate" if not warmup else f"after a warm-up of {warmup:g} of the steps"
    how = {"norm": drawn.attrs["norm"], "schedule": how}
    texts, ratios, gaussian_ratios, shuffled, early = [], [], [], [], []
    for name in names:
        shape, means = _shape(drawn, name), drawn.sel(trained=name)
        ratios.append(f"{TITLES[name]} {_ratio(drawn, name):.2f}")
        gaussian_ratios.append(chance.gaussian_ratio(*shape, rank))
        result = RESULT_TEXT.format(
            title=capital(TITLES[name]),
            seeds=count_seeds(int(means.seeds)),
            share=float(means.share),
            effective_rank=float(means.effective_rank),
            gaussian_share=chance.gaussian_energy(*shape, rank),
            gaussian_rank=chance.gaussian_effective_rank(*shape),
        )
        texts += [NETWORK_TEXT[name].format(**how), result]
        at, share, true = shuffled_share(drawn, name)
        shuffled.append(f"{TITLES[name]} {share:.2f} and {true:.2f} after {at:,} steps")
        if at < np.nanmax(drawn["step"].sel(network=name)):
            early.append(TITLES[name])
    half = drawn.sizes["network"]
    return {
        "last": plotting.LETTERS[half - 1],
        "ends": f"{plotting.LETTERS[half]}-{plotting.LETTERS[2 * half - 1]}",
        "over": plotting.LETTERS[2 * half],
        "edge": _ratio(drawn, EDGE),
        "edge_width": int(drawn["rows"].sel(network=EDGE)),
        "ratios": ", ".join(ratios),
        "gaussian_ratios": f"{min(gaussian_ratios):.2f} to {max(gaussian_ratios):.2f}",
        "networks": " ".join(texts),
        "shuffled": ", ".join(shuffled),
        "without": ", ".join(
            f"{share_without_largest(drawn, name):.3f} ({TITLES[name]})" for name in names
        ),
        "early": f" ({', '.join(early)}: early in training)" if early else "",
    }


def shuffled_share(drawn: xr.Dataset, name: str) -> tuple[int, float, float]:
    """Last step of the training on shuffled labels, its share there, and that on true ones."""
    run = drawn.sel(network=name)
    last = np.flatnonzero(np.isfinite(run["shuffled_over_steps"].values))[-1]
    step, share, true = (
        run[of].values[last] for of in ("step", "shuffled_over_steps", "share_over_steps")
    )
    return int(step), float(share), float(true)


def share_without_largest(drawn: xr.Dataset, name: str) -> float:
    """Share of the squared norm without the largest direction that the next 2K hold, at the end."""
    rank, squares = int(drawn.attrs["rank"]), _end(drawn, name) ** 2
    # Committed numbers have not all of the spectrum, but what its first 2K hold.
    whole = squares[:rank].sum() / float(drawn["share"].sel(trained=name))
    return float(squares[1 : rank + 1].sum() / (whole - squares[0]))


def _shape(drawn: xr.Dataset, name: str) -> tuple[int, int]:
    """Rows and columns of the matrix of a network."""
    network = drawn.sel(network=name)
    return int(network["rows"]), int(network["columns"])


def _end(drawn: xr.Dataset, name: str) -> np.ndarray:
    """The spectrum of a network at its last step, with NaN behind it."""
    network = drawn.sel(network=name)
    return network.singular_value.values[np.isfinite(network.step.values)][-1]


def _ratio(drawn: xr.Dataset, name: str) -> float:
    """sigma_(2K+1) / sigma_(2K) at the end; the first 40 are there."""
    rank, values = int(drawn.attrs["rank"]), _end(drawn, name)
    return float(values[rank] / values[rank - 1])


def thin(dataset: xr.Dataset) -> xr.Dataset:
    """Part kept as a baseline: the first 40 singular values and every 50th of the others."""
    index = dataset.index.values
    return dataset.isel(index=np.nonzero((index <= 40) | (index % 50 == 0))[0])


COLUMNS = 3
COLORS = {
    "dln": plotting.BLACK,
    "mlp": plotting.ORANGE,
    "vgg": plotting.BLUE,
    "resnet": plotting.GREEN,
    "vit": plotting.PINK,
}


def draw(dataset: xr.Dataset) -> Any:
    """Draw the appendix of Figure 1."""
    names = [str(name) for name in dataset.network.values]
    rows = -(-len(names) // COLUMNS)
    figure = plotting.blank_figure(1.3 * (2 * rows + 1) + 0.3)
    grid = figure.add_gridspec(2 * rows + 1, COLUMNS)
    above, below = (
        [figure.add_subplot(grid[begin + place]) for place in range(len(names))]
        for begin in (0, rows * COLUMNS)
    )
    over = figure.add_subplot(grid[-1, :2])
    accuracies = [
        f"{TITLES[name]}, {float(dataset['accuracy'].sel(network=name)):.2f}" for name in names
    ]
    ends = [f"{TITLES[name]}, {_shares(dataset, name)}" for name in names]
    plotting.entitle([*above, *below, over], [*accuracies, *ends, "share in the first 2K"])
    rank, classes = int(dataset.attrs["rank"]), int(dataset.attrs["classes"])
    for ax, end, name in zip(above, below, names, strict=True):
        run = dataset.sel(network=name)
        least = LEAST[name == EDGE]
        plot_steps(ax, run.step.values, run.singular_value.values.T, (classes, rank), least)
        plot_end(end, dataset, name, LOWEST[name == EDGE])
    plot_shares(over, dataset)
    for row in range(0, len(names), COLUMNS):
        plotting.label_once(above[row : row + COLUMNS], "singular values")
        plotting.label_once(below[row : row + COLUMNS], "over the largest")
    for column in range(COLUMNS):
        plotting.label_last(above[column:][::COLUMNS], "step t")
        plotting.label_last(below[column:][::COLUMNS], "index i")
    entries = [
        plotting.entry("up to K", plotting.BLUES[0]),
        plotting.entry("up to 2K", plotting.BLUES[2]),
        plotting.entry("behind", PALE),
        plotting.entry("at the end", plotting.BLUES[1]),
        plotting.entry("Gaussian", plotting.BLACK, ls=":", lw=0.8),
        plotting.entry("shuffled labels", plotting.ORANGE, lw=0.8),
    ]
    over_steps = [entries[4], plotting.entry("shuffled labels", ls="--")]
    serves = [(entries[:3], above), (entries[3:], below), (over_steps, [over])]
    plotting.common_key(figure, entries, serves=serves)
    return figure


PALE = "#BDBDBD"
"""Of the values behind 2K."""
LEAST = (1e-8, 1e-18)
"""Lower end of the log axes over the steps, of a training in float32 and of the identity in
float64."""
LOWEST = (1e-5, 1e-17)
"""Lower end of the log axes at the end, of a training in float32 and of the identity in float64."""


def _shares(dataset: xr.Dataset, name: str) -> str:
    """Share of the first 2K singular values at the end, beside that of a Gaussian matrix."""
    share = 1.0 if name == EDGE else float(dataset["share"].sel(trained=name))
    gaussian = chance.gaussian_energy(*_shape(dataset, name), int(dataset.attrs["rank"]))
    return f"{share:.4f} ({gaussian:.2f})"


def plot_steps(
    ax: Any, steps: np.ndarray, values: np.ndarray, marks: tuple[int, int], lowest: float
) -> None:
    """Draw all singular values (index, step), those up to K and to 2K in colour, no zeros."""
    recorded = np.isfinite(steps)
    steps, values = steps[recorded], values[:, recorded]
    values = values[np.isfinite(values[:, -1])]
    positive = np.where(values > 0, values, np.nan)
    classes, rank = marks
    ax.plot(steps, positive[rank:].T, color=PALE, lw=0.5, rasterized=True, zorder=1)
    ax.plot(steps, positive[classes:rank].T, color=plotting.BLUES[2], lw=0.6, zorder=2)
    ax.plot(steps, positive[:classes].T, color=plotting.BLUES[0], lw=0.6, zorder=3)
    last = values[:, -1]
    least = max(float(last[last > 0][-1]) / 3, lowest)
    ax.set(yscale="log", xlim=(0, int(steps[-1])), ylim=(least, 3 * last[0]))
    ax.set_xticks([0, int(steps[-1])])


def plot_end(ax: Any, dataset: xr.Dataset, name: str, lowest: float) -> None:
    """The spectrum at the end beside that of a Gaussian matrix, each over its largest value."""
    rank, classes = int(dataset.attrs["rank"]), int(dataset.attrs["classes"])
    values, shape = _end(dataset, name), _shape(dataset, name)
    index, marks = dataset.index.values, (classes, rank)
    spectrum(ax, values, marks, chance=shape, index=index, color=plotting.BLUES[1])
    shuffled = dataset["shuffled_value"].sel(network=name).values
    if np.isfinite(shuffled[0]):  # the whitened network has none
        spectrum(ax, shuffled, index=index, color=plotting.ORANGE, lw=0.8)
    ax.set_ylim(lowest, 3)


def plot_shares(ax: Any, dataset: xr.Dataset) -> None:
    """Share of the update in its first 2K over the steps of each training.

    Dotted: of a Gaussian; dashed: on shuffled labels.
    """
    names = [str(name) for name in dataset.trained.values]
    rank = int(dataset.attrs["rank"])
    for name in names:
        run, color = dataset.sel(network=name), COLORS[name]
        there = run.step.values > 0  # at the start there is no update
        steps = run.step.values[there]
        steps = steps / steps[-1]
        shares, shuffled = (
            run[of].values[there] for of in ("share_over_steps", "shuffled_over_steps")
        )
        ax.plot(steps, shares, color=color, lw=1.0, label=TITLES[name])
        ax.plot(steps, shuffled, color=color, lw=1.0, ls="--")
        gaussian = chance.gaussian_energy(*_shape(dataset, name), rank)
        ax.axhline(gaussian, color=color, lw=0.8, ls=":")
    ax.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="step over the last step")
    # Left out of the layout, which would make room for it: the cell beside is empty.
    ax.legend(**plotting.BESIDE).set_in_layout(False)


FIGURE = Figure(
    name="fig01_networks",
    shows=("weight_updates", "theorem2"),
    title="Five networks: an exact edge on whitened images, a decay behind K elsewhere",
    caption=CAPTION,
    sources=sources,
    numbers=numbers,
    draw=draw,
    presets={"quick": QUICK, "paper": PAPER},
    thin=thin,
    long=True,
    turn=7,
    says=says,
    notes=NOTES,
    panels={
        "singular_value": "abcdefghijkl",
        "step": "abcdefm",
        "shuffled_value": "ghijk",
        "share_over_steps": "m",
        "shuffled_over_steps": "m",
    },
)
