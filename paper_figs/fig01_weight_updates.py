"""Figure 1: singular values of the weight updates of the penultimate layer.

The networks of the study ``weight_updates``, and beside them the linear classifier on whitened
images that the theorem covers.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from lrdyn.engine import fields
from lrdyn.engine.configuration import Run, run_of
from lrdyn.engine.judging import Groups
from lrdyn.figures import plotting
from lrdyn.figures.exhibits import Figure, Results
from lrdyn.studies.weight_updates import WEIGHT_UPDATES
from lrdyn.studies.weight_updates.edge import EdgeMeasured
from lrdyn.studies.weight_updates.updates import UpdateMeasured
from paper_figs.shared import capital, judged

QUICK = {"preset": "quick", "seed": 1}
PAPER = {"preset": "paper", "seed": 1, "seeds": 5}
TITLES = {
    "dln": "linear network",
    "mlp": "perceptron",
    "vgg": "VGG",
    "vit": "vision transformer",
    "edge": "linear, whitened",
}
EDGE = "edge"

TOLERANCES = {"singular_value": 0.02, "share": 0.01, "effective_rank": 0.05, "accuracy": 0.02}
"""Of another training in float32, on another machine or with other kernels: rounding errors grow by
some thousands over the steps, and the spread over seeds is of this size."""

CAPTION = """\
Singular values of the weight update W(t) - W(0) of the penultimate layer, all of them, over the
steps of training on {described} (seed {seed}). Blue: the first 2K = {rank}, for K = {classes}
classes; grey: the others; trained in {dtype} (in float32 rounding lies some 1e-6 below the
largest). {networks} {edge}
"""
NETWORK_TEXT = {
    "dln": "Deep linear network: full-batch gradient descent on half the mean squared error "
    "against one-hot labels, from an orthogonal start, without weight decay; raw pixels are not "
    "whitened, so that the theorem does not cover it.",
    "mlp": "Perceptron: gradient descent on the cross-entropy of mini-batches, ReLU, Gaussian "
    "start.",
    "vgg": "VGG with a hidden layer of 512 x 512, without batch normalisation, and the vision "
    "transformer (second matrix of the last block's perceptron): Adam on the same loss.",
    "vit": "",
}
RESULT_TEXT = (
    "{title}: at the end the first 2K hold {share:.4f} of the squared Frobenius norm of the "
    "update, its effective rank is {effective_rank:.1f}, and {accuracy:.3f} of the test images are "
    "classified correctly (mean over seeds above 0, {seeds} in all)."
)
EDGE_TEXT = (
    "Last panel: the linear classifier on whitened images (first {width} principal coordinates, "
    "in float64), which the theorem covers: sigma_(2K+1) / sigma_1 = {tail:.1e} at the end is "
    "round-off."
)


def sources(**settings: Any) -> Mapping[str, Run]:
    """The study."""
    return {WEIGHT_UPDATES.name: run_of(WEIGHT_UPDATES, **settings)}


def numbers(results: Results, **settings: Any) -> xr.Dataset:
    """Singular values over network, index and point, and what is measured over seeds."""
    groups = results[WEIGHT_UPDATES.name]
    names = [name for name in TITLES if f"/{name}" in groups]
    spectra, steps, ends = {}, {}, []
    for name in names:
        run = fields.of_run(groups[f"/{name}"], UpdateMeasured)
        spectra[name] = _first(run(lambda run: run.update))
        steps[name] = run(lambda run: run.step).values
        over_seeds = fields.of_run(judged(groups[f"/{name}"]), UpdateMeasured)
        ends.append(
            {
                "share": float(over_seeds(lambda run: run.share)[..., -1].mean()),
                "effective_rank": float(over_seeds(lambda run: run.effective_rank)[..., -1].mean()),
                "accuracy": float(over_seeds(lambda run: run.test_accuracy).mean()),
            }
        )
    # The identity in float64, whichever precision was asked for.
    edge = fields.of_run(groups["/float64" if "/float64" in groups else "/"], EdgeMeasured)
    spectra[EDGE] = _first(edge(lambda run: run.update))[:, -1]
    steps[EDGE] = edge(lambda run: run.step).values
    drawn = _padded(spectra, steps)
    for name in ("share", "effective_rank", "accuracy"):
        drawn[name] = ("trained", [end[name] for end in ends])
    for name, tolerance in TOLERANCES.items():
        drawn[name].attrs.update(kind="training", tolerance=tolerance)
    drawn["singular_value"].attrs["curve_along"] = "point"
    return drawn.assign_coords(trained=names).assign_attrs(_facts(groups, drawn, names))


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


def _facts(groups: Groups, drawn: xr.Dataset, names: list[str]) -> dict[str, Any]:
    """What the caption says."""
    root = groups["/"]
    classes = int(_first(fields.of_run(root, EdgeMeasured)(lambda run: run.classes)))
    last = drawn["singular_value"].sel(network=EDGE).isel(point=-1).values
    texts = []
    for place, name in enumerate(names):
        means = {n: float(drawn[n][place]) for n in ("share", "effective_rank", "accuracy")}
        seeds = judged(groups[f"/{name}"]).seed.size
        result = RESULT_TEXT.format(title=capital(TITLES[name]), seeds=seeds, **means)
        texts += [NETWORK_TEXT[name], result]
    tail = float(last[2 * classes] / last[0])
    return {
        "described": root.attrs["about"].removeprefix("on "),
        "classes": classes,
        "rank": 2 * classes,
        "seed": int(root.seed[0]),
        "dtype": json.loads(root.attrs["config"])["dtype"],
        "networks": " ".join(texts),
        "edge": EDGE_TEXT.format(width=int(np.sum(np.isfinite(last))), tail=tail),
    }


def thin(dataset: xr.Dataset) -> xr.Dataset:
    """Part kept as a baseline: the first 40 singular values and every 50th of the others."""
    index = dataset.index.values
    return dataset.isel(index=np.nonzero((index <= 40) | (index % 50 == 0))[0])


def draw(dataset: xr.Dataset) -> Any:
    """Draw Figure 1."""
    names, rank = [str(name) for name in dataset.network.values], int(dataset.attrs["rank"])
    rows = 1 if len(names) < 4 else 2
    titles = [TITLES[name] + _untrained(dataset, name) for name in names]
    figure, axes = plotting.panels(titles, rows=rows, height=2.2 * rows)
    for ax, name in zip(axes, names, strict=True):
        run = dataset.sel(network=name)
        plot_spectrum(ax, run.step.values, run.singular_value.values.T, rank, LOWEST[name == EDGE])
    for ax in axes[:: -(-len(names) // rows)]:
        ax.set_ylabel("singular values of W(t) – W(0)")
    return figure


def _untrained(dataset: xr.Dataset, name: str) -> str:
    """What a title says of a network that is no better than twice chance."""
    learned = name not in dataset.trained.values or (
        float(dataset["accuracy"].sel(trained=name)) > 2 / int(dataset.attrs["classes"])
    )
    return "" if learned else ", not trained"


LOWEST = (1e-9, 1e-18)
"""Lower end of the log axes, of a training in float32 and of the identity in float64."""


def plot_spectrum(ax: Any, steps: np.ndarray, values: np.ndarray, rank: int, lowest: float) -> None:
    """Draw all singular values (index, step), the first ones in colour; no zeros and no NaN."""
    recorded = np.isfinite(steps)
    steps, values = steps[recorded], values[:, recorded]
    values = values[np.isfinite(values[:, -1])]
    positive = np.where(values > 0, values, np.nan)
    ax.plot(steps, positive[rank:].T, color="#B3B3B3", lw=0.3, rasterized=True, zorder=1)
    ax.plot(steps, positive[:rank].T, color=plotting.BLUE, lw=0.8, zorder=2)
    ax.set(yscale="log", xlabel="step t", xlim=(0, int(steps[-1])), ylim=(lowest, 10))
    ax.locator_params(axis="x", nbins=5)
    last = values[:, -1]
    least = max(float(last[-1]), lowest)
    ends = [float(np.sqrt(last[0] * last[rank - 1])), float(np.sqrt(last[rank] * least))]
    texts = [f"1–{rank}", f"> {rank}"]
    plotting.label_ends(ax, ends, texts, [plotting.BLUE, plotting.GREY], title="i =")


FIGURE = Figure(
    name="fig01",
    title="Weight updates of the penultimate layer are of low rank",
    caption=CAPTION,
    sources=sources,
    numbers=numbers,
    draw=draw,
    presets={"quick": QUICK, "paper": PAPER},
    thin=thin,
    long=True,
    panels={"singular_value": "abcde", "step": "abcde"},
)
