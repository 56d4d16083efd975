"""Figure 1: singular values of the weight updates of the penultimate layer.

The networks of the study ``weight_updates``, and beside them the linear classifier on whitened
images that the theorem covers.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from lrdyn.core import chance
from lrdyn.engine import fields
from lrdyn.engine.configuration import Run, run_of
from lrdyn.engine.judging import Groups
from lrdyn.figures import plotting
from lrdyn.figures.exhibits import Figure, Results
from lrdyn.studies.weight_updates import WEIGHT_UPDATES
from lrdyn.studies.weight_updates.edge import EdgeMeasured
from lrdyn.studies.weight_updates.updates import UpdateMeasured
from paper_figs.shared import capital, counted, judged

QUICK = {"preset": "quick", "seed": 1}
PAPER = {
    "preset": "paper",
    "seed": 1,
    "linear_steps": 10_000,
    "vgg_epochs": 5,
    "resnet_width": 16,
    "resnet_epochs": 12,
    "vit_width": 128,
    "vit_depth": 6,
    "vit_heads": 4,
    "vit_epochs": 8,
}
"""As far as some three hours of a core bring them; the study's own preset wants a GPU."""
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
    "share": 0.01,
    "effective_rank": 0.05,
    "accuracy": 0.02,
    "shuffled": 0.02,
}
"""Of another training in float32, on another machine or with other kernels: rounding errors grow by
some thousands over the steps, and the spread over seeds is of this size."""

CAPTION = """\
(a-{last}) Singular values of W(t) - W(0) of the penultimate layer over training, dark blue up to
K = {classes}, light blue up to 2K = {rank}; titles: test accuracy. ({ends}) The spectrum at the end
over its largest value; dashed: a Gaussian matrix of that size; dotted: K and 2K; titles: share of
the squared norm in the first 2K (of the Gaussian). On whitened images the edge at 2K is exact:
sigma_(2K+1) / sigma_(2K) = {edge:.0e}. Elsewhere the values fall fast and go on behind it: {ratios}
(Gaussian {gaussian_ratios}).
"""
NOTES = """\
Trained on {described} (seed {seed}, {dtype}: rounding lies some 1e-6 below the largest value).
{networks} {missing} The whitened network is linear, in float64, on the first {edge_width} principal
coordinates; its accuracy is not kept.
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
    spectra, steps, ends, shapes = {}, {}, [], []
    for name in names:
        run = fields.of_run(groups[f"/{name}"], UpdateMeasured)
        spectra[name] = _first(run(lambda run: run.update))
        steps[name] = run(lambda run: run.step).values
        shapes.append([int(_first(run(side))) for side in SIDES])
        over_seeds = fields.of_run(judged(groups[f"/{name}"]), UpdateMeasured)
        accuracy = over_seeds(lambda run: run.test_accuracy)
        ends.append(
            {
                "share": float(over_seeds(lambda run: run.share)[..., -1].mean()),
                "effective_rank": float(over_seeds(lambda run: run.effective_rank)[..., -1].mean()),
                "accuracy": float(accuracy.mean()),
                "shuffled": _shuffled(groups[f"/{name}"]),
                "seeds": accuracy.sizes["seed"],
            }
        )
    # The identity in float64, whichever precision was asked for.
    edge = fields.of_run(groups["/float64" if "/float64" in groups else "/"], EdgeMeasured)
    spectra[EDGE] = _first(edge(lambda run: run.update))[:, -1]
    steps[EDGE] = edge(lambda run: run.step).values
    shapes.append([spectra[EDGE].shape[-1]] * 2)
    drawn = _padded(spectra, steps)
    for name in ("share", "effective_rank", "accuracy", "shuffled", "seeds"):
        values = [end[name] for end in ends]
        if np.isfinite(values).any():  # no network need have been trained on shuffled labels
            drawn[name] = ("trained", values)
    for place, name in enumerate(("rows", "columns")):
        drawn[name] = ("network", [shape[place] for shape in shapes])
    for name in TOLERANCES.keys() & drawn.keys():
        drawn[name].attrs.update(kind="training", tolerance=TOLERANCES[name])
    drawn["singular_value"].attrs["curve_along"] = "point"
    return drawn.assign_coords(trained=names).assign_attrs(_facts(groups))


SIDES = (lambda run: run.rows, lambda run: run.columns)


def _shuffled(results: xr.Dataset) -> float:
    """Mean share of trainings on shuffled labels, NaN where there are none."""
    if "share_shuffled" not in results:
        return float("nan")
    shares = fields.of_run(judged(results), UpdateMeasured)(lambda run: run.share_shuffled)
    return float(shares.mean())


def _first(array: xr.DataArray) -> np.ndarray:
    """The first seed, whatever other axes of one value there are."""
    return array.isel(seed=0).squeeze(drop=True).values


def _padded(spectra: Mapping[str, np.ndarray], steps: Mapping[str, np.ndarray]) -> xr.Dataset:
    """Spectra (step, index) of different sizes in one dataset, padded with NaN."""
    points, width = (max(values.shape[i] for values in spectra.values()) for i in (0, 1))

    def pad(values: np.ndarray, *sizes: int) -> np.ndarray:
        room = [(0, size - n) for size, n in zip(sizes, values.shape, strict=True)]
        return np.pad(values.astype(float), room, constant_values=np.nan)

    return xr.Dataset(
        {
            "singular_value": (
                ("network", "point", "index"),
                np.stack([pad(values, points, width) for values in spectra.values()]),
            ),
            "step": (("network", "point"), np.stack([pad(t, points) for t in steps.values()])),
        },
        {"network": list(spectra), "index": np.arange(1, width + 1)},
    )


def _facts(groups: Groups) -> dict[str, Any]:
    """Values of the settings that the caption quotes."""
    root = groups["/"]
    config = json.loads(root.attrs["config"])
    classes = int(_first(fields.of_run(root, EdgeMeasured)(lambda run: run.classes)))
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
    texts, ratios, gaussian_ratios = [], [], []
    for name in names:
        shape, means = _shape(drawn, name), drawn.sel(trained=name)
        ratios.append(f"{TITLES[name]} {_ratio(drawn, name):.2f}")
        gaussian_ratios.append(chance.gaussian_ratio(*shape, rank))
        result = RESULT_TEXT.format(
            title=capital(TITLES[name]),
            seeds=counted(int(means.seeds)),
            share=float(means.share),
            effective_rank=float(means.effective_rank),
            gaussian_share=chance.gaussian_energy(*shape, rank),
            gaussian_rank=chance.gaussian_effective_rank(*shape),
        )
        texts += [NETWORK_TEXT[name].format(**how), result]
    shares = drawn["shuffled"].dropna("trained") if "shuffled" in drawn else ()
    shuffled = [f"{TITLES[str(share.trained.item())]} {share.item():.2f}" for share in shares]
    letters = "abcdefghijkl"[: 2 * drawn.sizes["network"]]
    half = drawn.sizes["network"]
    return {
        "last": letters[half - 1],
        "ends": f"{letters[half]}-{letters[-1]}",
        "edge": _ratio(drawn, EDGE),
        "edge_width": int(drawn["rows"].sel(network=EDGE)),
        "ratios": ", ".join(ratios),
        "gaussian_ratios": f"{min(gaussian_ratios):.2f} to {max(gaussian_ratios):.2f}",
        "networks": " ".join(texts),
        "missing": f"Share on shuffled labels: {', '.join(shuffled)}."
        if shuffled
        else "Shares on shuffled labels are not among these numbers.",
    }


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


def draw(dataset: xr.Dataset) -> Any:
    """Draw Figure 1."""
    names = [str(name) for name in dataset.network.values]
    titles = [TITLES[name] + _accuracy(dataset, name) for name in names]
    figure, axes = plotting.panels(
        [*titles, *(_shares(dataset, n) for n in names)], rows=2, height=3.9
    )
    rank, classes = int(dataset.attrs["rank"]), int(dataset.attrs["classes"])
    for above, below, name in zip(axes, axes[len(names) :], names, strict=False):
        run = dataset.sel(network=name)
        least = LEAST[name == EDGE]
        plot_steps(above, run.step.values, run.singular_value.values.T, (classes, rank), least)
        plot_end(below, dataset, name, LOWEST[name == EDGE])
    axes[0].set_ylabel("singular values")
    axes[len(names)].set_ylabel("over the largest")
    plotting.key(
        axes[-2],
        [
            plotting.entry("update", plotting.BLUES[1]),
            plotting.entry("Gaussian", plotting.GREY, ls="--"),
        ],
        "lower left",
    )
    return figure


def _accuracy(dataset: xr.Dataset, name: str) -> str:
    """Words of a title about the accuracy of a network, if it is known."""
    if name not in dataset.trained.values:
        return ""
    return f", {float(dataset['accuracy'].sel(trained=name)):.2f}"


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
    ax.plot(steps, positive[rank:].T, color="#BDBDBD", lw=0.5, rasterized=True, zorder=1)
    ax.plot(steps, positive[classes:rank].T, color=plotting.BLUES[2], lw=0.6, zorder=2)
    ax.plot(steps, positive[:classes].T, color=plotting.BLUES[0], lw=0.6, zorder=3)
    last = values[:, -1]
    least = max(float(last[last > 0][-1]) / 3, lowest)
    ax.set(yscale="log", xlabel="step t", xlim=(0, int(steps[-1])), ylim=(least, 3 * last[0]))
    ax.set_xticks([0, int(steps[-1])])


def plot_end(ax: Any, dataset: xr.Dataset, name: str, lowest: float) -> None:
    """The spectrum at the end beside that of a Gaussian matrix, each over its largest value."""
    rank, classes = int(dataset.attrs["rank"]), int(dataset.attrs["classes"])
    values, shape = _end(dataset, name), _shape(dataset, name)
    drawn = np.isfinite(values) & (values > 0)
    gaussian = chance.gaussian_singular_values(*shape)
    ax.plot(1 + np.arange(len(gaussian)), gaussian / gaussian[0], "--", color=plotting.GREY, lw=0.8)
    ax.plot(dataset.index.values[drawn], values[drawn] / values[0], color=plotting.BLUES[1], lw=1.0)
    for mark in (classes, rank):
        ax.axvline(mark, color="k", lw=0.5, ls=":")
    ax.set(xscale="log", yscale="log", xlabel="index i", ylim=(lowest, 3))


FIGURE = Figure(
    name="fig01",
    title="Weight updates: an exact edge on whitened images, a fast decay without one elsewhere",
    caption=CAPTION,
    sources=sources,
    numbers=numbers,
    draw=draw,
    presets={"quick": QUICK, "paper": PAPER},
    thin=thin,
    long=True,
    turn=5,
    says=says,
    notes=NOTES,
    panels={"singular_value": "abcdefghij", "step": "abcde"},
)
