"""What Figures 4, 5, 7 and 8 share: the study, its judged seeds, two methods beside each other."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from lrdyn.engine import claims
from lrdyn.engine.configuration import Run, run_of
from lrdyn.engine.judging import Groups
from lrdyn.figures import plotting
from lrdyn.studies.adapter_training import ADAPTERS, tuning
from lrdyn.studies.adapter_training.sentences import AUTO
from lrdyn.studies.adapter_training.tuning import METHODS

QUICK = {"preset": "quick", "seed": 1}
PAPER = {"preset": "paper", "seed": 1, "seeds": 20}
TITLES = {
    "lora": "LoRA",
    "lora_over_rank": "LoRA, α / r",
    "lora_plus": "LoRA+",
    "lora_b": "LoRA, B drawn",
    "deep_lora": "Deep LoRA",
}
COLORS = {
    "lora": plotting.ORANGE,
    "lora_over_rank": plotting.GREY,
    "lora_plus": plotting.GREEN,
    "lora_b": plotting.PINK,
    "deep_lora": plotting.BLUE,
}
DASHES = {name: "--" if name == "lora_over_rank" else "-" for name in METHODS}
"""LoRA with and without alpha / r is the same at r = alpha."""
HOW = (
    "How: a cross-encoder {about} ({pairs}); a random head that stays as it is reads {pooled}; "
    "squared error of score / 5, Adam {betas} with eps = {eps:g}, without decay, at the rate "
    "{learning_rate:g} (Deep LoRA: {deep_rate:g}), which falls linearly to 0; {steps} steps of "
    "{batch} pairs of {length} tokens."
)
POOLED = {"mean": "the mean over the tokens", "pooler": "the pooler"}
ADAPTED = "Adapters stand on all dense matrices of the last layers ({layers} of them){pooler}."


def sources(**settings: Any) -> Mapping[str, Run]:
    """The study."""
    return {ADAPTERS.name: run_of(ADAPTERS, **settings)}


def how(groups: Groups) -> dict[str, Any]:
    """What a caption says of the trainings."""
    root = groups["/"].attrs
    config = json.loads(root["config"])
    pooler = " and on the pooler" if config["pool"] == "pooler" else ""
    pairs = "STS-B" if config["train_file"] == AUTO else "other pairs than STS-B"
    return {
        "pairs": pairs,
        "adapted": ADAPTED.format(layers=config["layers"], pooler=pooler),
        "how": HOW.format(
            about=root["about"],
            pairs=pairs,
            pooled=POOLED[config["pool"]],
            betas=tuning.BETAS,
            eps=tuning.EPS,
            batch=tuning.BATCH,
            length=config["length"],
            steps=config["steps"],
            learning_rate=config["learning_rate"],
            deep_rate=config["learning_rate"] * METHODS["deep_lora"].faster,
        ),
        "dtype": config["dtype"],
    }


def plain(run: xr.Dataset, *axes: str) -> xr.Dataset:
    """Arrays without the axes of one value, but for these."""
    return run.squeeze([d for d in run.dims if run.sizes[d] == 1 and d not in axes], drop=True)


def named(run: xr.Dataset) -> xr.Dataset:
    """Methods by their names, along ``adapter``: ``method`` is a word of xarray."""
    names = [list(METHODS)[i] for i in run.method.values]
    return run.rename(method="adapter").assign_coords(adapter=names)


class Paired(NamedTuple):
    """One method less another, of the same seeds."""

    mean: float
    error: float
    """Standard error, NaN of one seed."""
    wins: int
    seeds: int
    p: float
    """Of the two-sided sign test; ties are left out."""
    draws: np.ndarray
    """The difference of each seed."""

    def __str__(self) -> str:
        """In words."""
        wins = f"ahead in {self.wins} of {self.seeds} seeds"
        if self.seeds < 2:
            return f"{self.mean:+.3f} ({wins})"
        return f"{self.mean:+.3f} ± {self.error:.3f} ({wins}, sign test p = {self.p:.2g})"

    def came_of(self, finding: str) -> str:
        """What came of what a finding of the study expects: its interval and its outcome."""
        came = ADAPTERS.came_of(finding, self.draws)
        if came["interval"] is None:
            return str(came["outcome"])
        return "{outcome}, {0:+.3f} to {1:+.3f}".format(*came["interval"], outcome=came["outcome"])


def error(values: np.ndarray) -> np.ndarray:
    """Standard error over the first axis, NaN of one seed."""
    one_seed = np.full(np.shape(values)[1:], np.nan)
    return claims.standard_error(values) if len(values) > 1 else one_seed


def paired(method: np.ndarray, other: np.ndarray) -> Paired:
    """Compare two methods over seeds.

    Example:
        >>> str(paired(np.array([0.5, 0.6, 0.9]), np.array([0.4, 0.5, 0.5])))
        '+0.200 ± 0.100 (ahead in 3 of 3 seeds, sign test p = 0.25)'
    """
    from scipy.stats import binomtest

    difference = np.asarray(method, float) - np.asarray(other, float)
    wins, losses = int(np.sum(difference > 0)), int(np.sum(difference < 0))
    p = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    mean, count = float(np.mean(difference)), len(difference)
    return Paired(mean, float(error(difference)), wins, count, float(p), difference)


def plot_methods(ax: Any, pearson: xr.DataArray, axis: str, authors: Mapping[str, Any]) -> None:
    """Mean over seeds with a standard error, and the authors' numbers as open markers."""
    places = pearson[axis].values
    for name in pearson.adapter.values:
        values = pearson.sel(adapter=name).transpose("seed", axis).values
        ax.errorbar(
            places,
            values.mean(axis=0),
            error(values),
            color=COLORS[name],
            ls=DASHES[name],
            marker=".",
            lw=1.0,
            capsize=2,
            label=TITLES[name],
        )
    for name, published in authors.items():
        marks = {**plotting.OPEN, "mec": COLORS[name], "ls": ":", "lw": 0.8}
        ax.plot(list(published), list(published.values()), color=COLORS[name], **marks)
    ticks = sorted({*places.tolist(), *(n for published in authors.values() for n in published)})
    ax.set(xscale="log", ylabel="Pearson correlation")
    ax.set_xticks(ticks, [f"{n}" for n in ticks])
    ax.minorticks_off()


def plot_differences(ax: Any, pearson: xr.DataArray, axis: str) -> None:
    """Deep LoRA less LoRA of the same seed, each seed a point, and their mean."""
    places = pearson[axis].values
    apart = pearson.sel(adapter="deep_lora") - pearson.sel(adapter="lora")
    for place, values in zip(places, apart.transpose(axis, "seed").values, strict=True):
        ax.plot(np.full(len(values), place), values, ".", color=plotting.GREY, ms=4)
        ax.plot([place], [values.mean()], "_", color=plotting.BLUE, ms=12, mew=1.5)
    ax.axhline(0, color="k", lw=0.6)
    ax.set(xscale="log", ylabel="Deep LoRA less LoRA")
    ax.set_xticks(places, [f"{n}" for n in places])
    ax.minorticks_off()
    ax.margins(x=0.2)
