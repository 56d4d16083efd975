"""Low-rank training of a small LLaMA (ours): losses at equal tokens, and what gradients look like.

Two figures of the study ``low_rank_training``, each with one message.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from lrdyn.figures import band, plotting
from lrdyn.figures.exhibits import Figure, Results
from lrdyn.studies.low_rank_training import CONTESTANTS, LOW_RANK_TRAINING, RaceMeasured
from lrdyn.studies.low_rank_training.model import KINDS
from lrdyn.studies.low_rank_training.trainings import CHOICES, SCALED
from lrdyn.verification.running.configuration import Run, run_of
from lrdyn.verification.stating import fields
from lrdyn.verification.stating.expectations import simultaneous_interval
from paper_figs.shared import count_seeds, judged_seeds

TOLERANCES = dict.fromkeys(("loss", "behind", "stable_rank", "seen", "best"), 0.05)
"""Of another training in float32, with other kernels: relative, of the size of the spread."""
TITLES = {
    "full": "full",
    "lora": "LoRA",
    "lora_bytes": "LoRA, GaLore's bytes",
    "galore": "GaLore",
    "random": "random P",
    "relora": "ReLoRA",
    "relora_frozen": "ReLoRA'",
}
COLORS = {
    "full": plotting.BLACK,
    "lora": plotting.ORANGE,
    "lora_bytes": plotting.ORANGES[0],
    "galore": plotting.BLUE,
    "random": plotting.BLUES[0],
    "relora": plotting.GREEN,
    "relora_frozen": plotting.PINK,
}
DASHES = dict.fromkeys(COLORS, "-") | {"lora_bytes": "--", "random": "--", "relora_frozen": "--"}
MARKS = dict(zip(COLORS, "*os^vDP", strict=True))
KIND_MARKS: Mapping[str, str] = dict[str, str](zip(KINDS, "os^vDP*", strict=True))
"""Apart without colours, too."""
OF_KINDS: Mapping[str, str] = dict[str, str](
    zip(KINDS, (*plotting.BLUES, plotting.GREEN, *plotting.ORANGES), strict=True)
)
"""Matrices of the attention in blue and green, those of the perceptron in orange."""
LOSSES_CAPTION = """\
A LLaMA of {depth} blocks of width {width} on {described}; {steps} steps of {batch} windows of
{context} tokens for every method, r = {rank}, Adam, {seeds}. (a) Loss of held-out documents, means
and standard errors. (b) Loss at the end over that of full training from the same start on the same
windows: single seeds, means, and those of the study's {held} intervals that hold at once (95 %);
filled: 0 is outside. Crosses: P stays that of step 0, means alone. {said}
"""
LOSSES_NOTES = """\
The survey has no such figure ({dtype}). Each method has its own scale s out of 1, 3, 8, found on
seed 0, which is not shown; the rate is that of full training. Bytes of weights, Adam's state and
P: {held_bytes}. GaLore's paper (arXiv 2403.03507, 60M parameters, 1.1e9 tokens) reports
perplexities of 34.06 (full), 34.88 (GaLore), 34.99 (LoRA) and 37.04 (ReLoRA).
"""
GRADIENTS_CAPTION = """\
Gradients along full training of a LLaMA ({depth} blocks of width {width}) on {described}, batches
of {batch} windows of {context} tokens; means over blocks and {seeds}. (a) Stable rank of the mean
gradient of {others} batches, by kind of matrix: {rise}. (b) Share of its squared norm that P sees
if it comes from one other batch (solid), and that the best P of rank r = {rank} would see (dashed);
dotted: a random P. {said}
"""
GRADIENTS_NOTES = """\
The survey has no such figure ({dtype}). Shaded: one standard error over seeds. GaLore's paper
(arXiv 2403.03507) expects the rank of gradients to fall; its lemma is about layers whose gradient
is A - B W C with constant B and C, which none here is.
"""
OTHERS = 15
"""Batches of the mean gradient."""


def sources(**settings: Any) -> Mapping[str, Run]:
    """The study whose results both figures show."""
    return {LOW_RANK_TRAINING.name: run_of(LOW_RANK_TRAINING, **settings)}


def _read(results: Results) -> tuple[Any, dict[str, Any]]:
    """What reads a field of the judged seeds, seed first; and what captions say of the run."""
    groups = results[LOW_RANK_TRAINING.name]
    root, race = groups["/"], judged_seeds(groups["/race"])
    run, config = fields.of_run(race, RaceMeasured), json.loads(root.attrs["config"])

    def read(field: Any) -> np.ndarray:
        array = run(field)
        axes = ("seed", "contestant", "choice", "period", "kind", "looked_at")
        single = [dim for dim in array.dims if dim not in axes]
        array = array.squeeze(single, drop=True)
        return array.transpose("seed", ...).values

    said = {
        "described": root.attrs["about"].removeprefix("on ").partition(",")[0],
        "seeds": int(race.sizes["seed"]),
        "dtype": config["dtype"],
        "period": int(np.ravel(config["period"])[0]),
        "batch": config["batch_size"],
        # The recorded steps, the same for all seeds, are the coordinate of their axis.
        "looked_at": np.ravel(run(lambda run: run.looked_at).values).tolist(),
        **{name: config[name] for name in ("depth", "width", "steps", "context", "rank")},
    }
    return read, said


def _trained(drawn: xr.Dataset) -> xr.Dataset:
    for name, tolerance in TOLERANCES.items():
        if name in drawn:
            drawn[name].attrs.update(kind="training", tolerance=tolerance)
    return drawn


def loss_numbers(results: Results, **settings: Any) -> xr.Dataset:
    """Losses over the steps, and at the end over those of full training, by seed."""
    read, said = _read(results)
    loss = read(lambda run: run.loss)
    ends = read(lambda run: run.period_loss)
    names = list(CONTESTANTS)
    full = loss[:, names.index("full"), -1]
    rows = {TITLES[name]: loss[:, names.index(name), -1] for name in SCALED}
    for place, name in enumerate(CHOICES):
        rows[f"{TITLES[name]}, without refresh"] = ends[:, place, -1]
    drawn = xr.Dataset(
        {
            "loss": (("contestant", "step", "seed"), np.moveaxis(loss, 0, -1)),
            "behind": (("row", "seed"), np.stack([end / full - 1 for end in rows.values()])),
            "held": ("contestant", read(lambda run: run.held)[0]),
            "rank_held": ("contestant", read(lambda run: run.rank_held)[0]),
        },
        {"contestant": names, "step": said.pop("looked_at"), "row": list(rows)},
        said,
    )
    return _trained(drawn)


def gradient_numbers(results: Results, **settings: Any) -> xr.Dataset:
    """Stable ranks, and what P of one batch sees, over the steps, by kind and seed."""
    read, said = _read(results)
    dims = ("kind", "step", "seed")
    drawn = xr.Dataset(
        {
            name: (dims, np.moveaxis(read(lambda run, name=name: getattr(run, name)), 0, -1))
            for name in ("stable_rank", "seen", "best")
        },
        {"kind": list(KINDS), "step": said.pop("looked_at")},
        said | {"chance": said["rank"] / said["width"]},
    )
    return _trained(drawn)


def _intervals(drawn: xr.Dataset) -> dict[str, tuple[float, float, float]]:
    """Mean and interval of each row; NaN where it is no finding of the study, or of one seed."""
    stated = {TITLES[name] for name in SCALED}
    rows = {}
    for name in drawn.row.values:
        draws = drawn.behind.sel(row=name).values
        ends = (np.nan, np.nan)
        if len(draws) > 1 and name in stated:
            ends = simultaneous_interval(draws, LOW_RANK_TRAINING.intervals)
        rows[str(name)] = float(np.mean(draws)), *ends
    return rows


def says_losses(drawn: xr.Dataset) -> dict[str, Any]:
    """Values that the caption of the losses quotes."""
    rows = _intervals(drawn)
    first = min(rows, key=lambda name: rows[name][0])

    def said(name: str) -> str:
        mean, low, high = rows[name]
        words = f"{name} ends {mean:.1%} behind full training"
        return words if np.isnan(low) else f"{words} ({low:.1%} to {high:.1%})"

    near = [name for name, (_, low, high) in rows.items() if low <= 0 <= high]
    names = dict.fromkeys((first, TITLES["galore"], TITLES["random"]))
    held = dict(zip(drawn.contestant.values, drawn.held.values, strict=True))
    ranks = dict(zip(drawn.contestant.values, drawn.rank_held.values, strict=True))
    return {
        "said": f"{'; '.join(map(said, names))}.",
        "result": f"{near[0]} alone is not told from full training"
        if len(near) == 1
        else f"{first} ends nearest to full training",
        "held": LOW_RANK_TRAINING.intervals,
        "held_bytes": ", ".join(
            f"{TITLES[name]} {held[name] / 1e6:.2f} MB"
            + (f" (r = {ranks[name]})" if name == "lora_bytes" else "")
            for name in held
        ),
        "seeds": count_seeds(int(drawn.attrs["seeds"])),
    }


def says_gradients(drawn: xr.Dataset) -> dict[str, Any]:
    """Values that the caption of the gradients quotes."""
    steps = drawn.step.values
    means = drawn.mean(("kind", "seed"))
    rank, seen, best = (means[name].values for name in ("stable_rank", "seen", "best"))
    place = min(1, len(steps) - 1)
    word = "grows" if rank[-1] > rank[place] else "falls"
    return {
        "rise": f"{rank[place]:.1f} at step {steps[place]}, {rank[-1]:.1f} at step {steps[-1]} "
        "(mean over kinds)",
        "said": f"At the end one batch's P sees {seen[-1]:.0%}, the best {best[-1]:.0%} (means).",
        "result": f"their rank {word}, and one batch's P misses {1 - seen[-1]:.0%} of them",
        "others": OTHERS,
        "seeds": count_seeds(int(drawn.attrs["seeds"])),
    }


def draw_losses(dataset: xr.Dataset) -> Any:
    """Draw the losses."""
    figure, (left, right) = plotting.panels(
        ["loss of held-out documents", "at the end, over full training"], height=2.9
    )
    for name in dataset.contestant.values:
        look = {"color": COLORS[str(name)], "ls": DASHES[str(name)], "lw": 1.1}
        losses = dataset.loss.sel(contestant=name).isel(step=slice(1, None))
        band(left, losses, over="seed", marker=MARKS[str(name)], ms=3, **look)
    left.set(xlabel="step", ylabel="nats a byte")
    tokens = [
        plotting.entry(TITLES[n], COLORS[n], ls=DASHES[n], marker=MARKS[n], ms=3)
        for n in map(str, dataset.contestant.values)
    ]
    plotting.key(left, tokens, "upper right", fontsize=7)
    rows = _intervals(dataset)
    looks = {TITLES[name]: (COLORS[name], MARKS[name]) for name in COLORS}
    for place, (name, (mean, low, high)) in enumerate(reversed(rows.items())):
        color, mark = looks[name.partition(", without")[0]]
        draws = 100 * dataset.behind.sel(row=name).values
        right.plot(draws, np.full(len(draws), place), "|", color=plotting.GREY, ms=5, mew=0.7)
        right.plot([100 * low, 100 * high], [place, place], color=plotting.GREY, lw=1.0)
        apart = low > 0 or high < 0
        mark = mark if name in looks else "x"
        look = {"marker": mark, "color": color, "mfc": color if apart else "w", "ms": 4.5}
        right.plot([100 * mean], [place], **look)
    right.axvline(0, color="k", lw=0.8)
    right.set_yticks(range(len(rows)), list(rows)[::-1], fontsize=7)
    right.set(xlabel="loss above that of full training (%)", ylim=(-0.6, len(rows) - 0.4))
    return figure


def draw_gradients(dataset: xr.Dataset) -> Any:
    """Draw the gradients."""
    figure, (left, right) = plotting.panels(
        ["stable rank of the mean gradient", "share of it that P sees"], height=2.9
    )
    for kind in map(str, dataset.kind.values):
        look = {"color": OF_KINDS[kind], "marker": KIND_MARKS[kind], "ms": 3}
        band(left, dataset.stable_rank.sel(kind=kind), over="seed", lw=1.1, **look)
        band(right, dataset.seen.sel(kind=kind), over="seed", lw=1.1, **look)
        best = dataset.best.sel(kind=kind).mean("seed")
        right.plot(dataset.step.values, best.values, ls="--", lw=0.9, **look)
    right.axhline(dataset.attrs["chance"], color="k", ls=":", lw=1.0)
    left.set(xlabel="step", ylabel=r"$\|G\|_F^2 / \|G\|_2^2$", ylim=(0.9, None))
    right.set(xlabel="step", ylabel="share of the squared norm", ylim=(0, 1.03))
    lines = [
        plotting.entry("P of one other batch"),
        plotting.entry("best P", ls="--"),
        plotting.entry("random P", "k", ls=":"),
    ]
    plotting.key(right, lines, (0.42, 0.16), fontsize=7)
    kinds = [
        plotting.entry(kind, color, marker=KIND_MARKS[kind], ms=3)
        for kind, color in OF_KINDS.items()
    ]
    return plotting.common_key(figure, kinds, fontsize=7)


_SHARED: dict[str, Any] = {
    "shows": (LOW_RANK_TRAINING.name,),
    "sources": sources,
    "result": "{result}",
    "presets": {
        "quick": {"preset": "quick", "seeds": 5},
        "paper": {"preset": "paper", "seeds": 5},
    },
    "long": True,
    "groups": ("/race",),
}
LOSSES = Figure(
    name="low_rank_losses",
    title="Low-rank training of a small LLaMA at equal tokens",
    caption=LOSSES_CAPTION,
    notes=LOSSES_NOTES,
    numbers=loss_numbers,
    draw=draw_losses,
    says=says_losses,
    turn=2,
    panels={"loss": "a", "behind": "b"},
    **_SHARED,
)
GRADIENTS = Figure(
    name="low_rank_gradients",
    title="Gradients of a small LLaMA along full training",
    caption=GRADIENTS_CAPTION,
    notes=GRADIENTS_NOTES,
    numbers=gradient_numbers,
    draw=draw_gradients,
    says=says_gradients,
    turn=2,
    panels={"stable_rank": "a", **dict.fromkeys(("seen", "best"), "b")},
    **_SHARED,
)
