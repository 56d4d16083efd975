"""Figure 5: LoRA's two factors, one rate and two, and which rates wide networks allow."""

from typing import Any

import numpy as np
import xarray as xr

from lrdyn.figures import band, plotting
from lrdyn.figures.exhibits import Figure, Results
from lrdyn.studies.adapter_training import ADAPTERS
from lrdyn.studies.adapter_training.factors import COMPARED, FactorsMeasured
from lrdyn.studies.adapter_training.widths import RATES, WidthMeasured
from lrdyn.verification.stating import fields
from paper_figs import paired
from paper_figs.paired import COLORS, MARKS, TASKS, TITLES
from paper_figs.shared import count_seeds, judged_seeds

TOLERANCES = {
    "norm_A": 0.05,
    "norm_B": 0.05,
    "tried_pearson": 0.05,
    "tried_loss": 0.05,
    "move": 0.02,
}
"""Differences to another training in float32, on another machine or with other kernels."""
A_SIDE, B_SIDE = 0, 1
"""Quantities of the toy: what the moves of a and of b change f by."""

CAPTION = """\
LoRA from its usual start, A ~ N(0, 1/d) and B = 0, and LoRA+, whose B has 4 or 16 times the rate:
{what}, rank {rank}, n = {examples}, {dtype}. (a) ||A||_F (solid) and ||B||_F (dashed) at the best
rates, seed {seed}; A ends at {grown} of its start. (b) Training loss, mean of the last ten steps,
and (c) Pearson correlation over the rate of A: {tried} seeds on which rates are chosen, mean and
standard error. (d), (e) A toy of width n: how much the second step's moves of a and b change f, and
theory's lines; only rates 1/n and 1 let both move f alike.
"""
NOTES = """\
(a) is the mean over {matrices} matrices. On {seeds} of the report, each method at its best rate,
{held} intervals held at once: {ahead}. (d), (e) f = (W* + b a^T) x; changes over |U|, medians of
starts; the lines are n^(1 - alpha - 2 beta) and n^-beta for rates n^-alpha of a and n^-beta of b.
How: {how}
"""


def numbers(results: Results, **settings: Any) -> xr.Dataset:
    """Norms of one seed, what rates reach, Pearson of all seeds, and the moves of the toy."""
    groups = results[ADAPTERS.name]
    whole = judged_seeds(groups["/factors"])
    task = str(np.ravel(whole["task"].values)[0])
    axes = ("method_of_factors", "step", "matrix", "candidate", "rate_seed")
    run = fields.of_run(paired.drop_single_axes(whole.isel(seed=0), *axes), FactorsMeasured)
    over_seeds = fields.of_run(
        paired.drop_single_axes(whole, "seed", "method_of_factors"), FactorsMeasured
    )
    drawn = xr.Dataset(
        {
            "norm_A": run(lambda run: run.norm_A),
            "norm_B": run(lambda run: run.norm_B),
            "tried": run(lambda run: run.tried),
            "tried_pearson": run(lambda run: run.tried_pearson),
            "tried_loss": run(lambda run: run.tried_loss),
            "rate": run(lambda run: run.rate),
            "pearson": over_seeds(lambda run: run.pearson),
        }
    ).astype(float)
    drawn = drawn.assign_coords(method_of_factors=list(COMPARED))
    drawn = drawn.rename(method_of_factors="adapter")
    drawn["step"] = run(lambda run: run.step)
    # As many rates as were tried with some method.
    drawn = drawn.isel(candidate=np.isfinite(drawn.tried).any("adapter").values)
    toy = groups["/widths/float64" if "/widths/float64" in groups else "/widths"]
    axes = ("n", "all_rates", "quantity")
    of_toy = fields.of_run(
        toy.isel({dim: 0 for dim in toy.dims if dim not in axes}, drop=True), WidthMeasured
    )
    drawn["move"] = of_toy(lambda run: run.move).isel(
        all_rates=slice(len(RATES)), quantity=[A_SIDE, B_SIDE]
    )
    drawn = drawn.assign_coords(n=of_toy(lambda run: run.n).values)
    for name, tolerance in TOLERANCES.items():
        drawn[name].attrs = {"kind": "training", "tolerance": tolerance}
    places = np.sum(np.isfinite(drawn.tried.values), axis=1)
    best = [
        int(np.argmin(np.abs(np.nan_to_num(row) - rate)))
        for row, rate in zip(drawn.tried.values, drawn.rate.values, strict=True)
    ]
    inside = all(0 < i < count - 1 for i, count in zip(best, places, strict=True))
    return drawn.assign_attrs(
        paired.describe_trainings(groups, [task], inside)
        | {
            "task": task,
            "seed": int(whole.seed[0]),
            "examples": int(np.ravel(whole["examples"].values)[0]),
            "rank": int(np.ravel(whole["rank"].values)[0]),
        }
    )


def _facts(drawn: xr.Dataset) -> dict[str, Any]:
    """Values of the results that the caption quotes."""
    what, seeds = TASKS[drawn.attrs["task"]], count_seeds(drawn.sizes["seed"])
    growth = (drawn.norm_A.isel(step=-1) / drawn.norm_A.isel(step=0)).mean("matrix")
    plain, ahead, told = drawn.pearson.sel(adapter="lora").values, [], []
    for name in COMPARED[1:]:
        difference = paired.compare_pair(drawn.pearson.sel(adapter=name).values, plain)
        came = difference.came_of(f"factors_{name}_ahead")
        ahead.append(f"{TITLES[name]} less LoRA {difference.mean:+.3f} ({came})")
        ratio = TITLES[name].rpartition(", ")[2]
        told.append(f"{difference.mean:+.3f} (ratio {ratio}, {came.partition(',')[0]})")
    return {
        "result": f"LoRA+ less LoRA at n = {drawn.attrs['examples']}, {seeds}: {', '.join(told)}",
        "what": what,
        "grown": ", ".join(f"{float(growth.sel(adapter=name)):.2f}" for name in COMPARED),
        "matrices": drawn.sizes["matrix"],
        "seeds": seeds,
        "tried": drawn.sizes["rate_seed"],
        "ahead": "; ".join(ahead),
        "held": ADAPTERS.intervals,
    }


def draw(dataset: xr.Dataset) -> Any:
    """Draw Figure 5, with all keys in the place of a sixth panel."""
    figure = plotting.blank_figure(4.4)
    axes = figure.subplots(2, 3).ravel()
    tried = count_seeds(dataset.sizes["rate_seed"])
    titles = (
        f"norms, seed {dataset.attrs['seed']}",
        f"loss over rates, {tried}",
        f"Pearson over rates, {tried}",
    )
    plotting.entitle(axes[:5], (*titles, "toy: move of a", "toy: move of b"))
    plot_norms(axes[0], dataset)
    for ax, name, text in (
        (axes[1], "tried_loss", "training loss"),
        (axes[2], "tried_pearson", "Pearson correlation"),
    ):
        plot_tried(ax, dataset, name)
        ax.set(xscale="log", xlabel="rate of A", ylabel=text)
    axes[1].set(yscale="log")
    plot_widths(axes[3], dataset.move.isel(quantity=0), lambda alpha, beta: 1 - alpha - 2 * beta)
    plot_widths(axes[4], dataset.move.isel(quantity=1), lambda alpha, beta: -beta)
    axes[5].axis("off")
    methods = [
        plotting.entry(TITLES[name], COLORS[name], marker=MARKS[name], ms=3.5)
        for name in map(str, dataset.adapter.values)
    ]
    norms = [plotting.entry("‖A‖"), plotting.entry("‖B‖", ls="--")]
    _, texts = axes[3].get_legend_handles_labels()
    toy = [plotting.entry(text, **toy_look(place)) for place, text in enumerate(texts)]
    entries = [
        plotting.entry("(a)-(c)", ls="None"),
        *methods,
        *norms,
        plotting.entry(r"(d), (e): $\eta_A, \eta_B$", ls="None"),
        *toy,
    ]
    plotting.key(axes[5], entries, "center left", ncols=2, fontsize=7, columnspacing=1.0)
    for lines, panels in ((methods, axes[:3]), (norms, axes[:1]), (toy, axes[3:5])):
        plotting.share_key(figure, lines, panels)
    return figure


def plot_norms(ax: Any, dataset: xr.Dataset) -> None:
    """Means over the matrices."""
    for name in dataset.adapter.values:
        for norm, dash in ((dataset.norm_A, "-"), (dataset.norm_B, "--")):
            mean = norm.sel(adapter=name).mean("matrix").values
            ax.plot(dataset.step, mean, color=COLORS[name], ls=dash, lw=1.0)
    ax.set(xlabel="step t", xlim=(0, int(dataset.step[-1])), ylim=(0, None))


def plot_tried(ax: Any, dataset: xr.Dataset, name: str) -> None:
    """Draw what each learning rate reaches, for each method."""
    for method in dataset.adapter.values:
        rates = dataset.sel(adapter=method)
        known = np.isfinite(rates.tried.values)
        values = rates[name].isel(candidate=known)
        look = {"color": COLORS[method], "marker": MARKS[method], "ms": 3.5, "lw": 0.9}
        x = rates.tried.values[known]
        band(ax, values, over="rate_seed", x=x, bars=True, label=TITLES[method], **look)


def plot_widths(ax: Any, moves: xr.DataArray, exponent: Any) -> None:
    """Draw moves over the width, with the powers of it that they follow."""
    n = moves.n.values
    texts = ("1/n, 1", "1, 1", "n^{-1/2}, n^{-1/2}", "1/n, 1/n", "n^{-1/3}, n^{-1/3}")
    for place, ((alpha, beta), text) in enumerate(zip(RATES, texts, strict=True)):
        move, color = moves.transpose("n", "all_rates").values[:, place], plotting.SHADES[place]
        ax.plot(n, move[0] * (n / n[0]) ** exponent(alpha, beta), color=color, lw=0.8)
        ax.plot(n, move, label=f"${text}$", **toy_look(place))
    ax.set(xscale="log", yscale="log", xlabel="width n")


def toy_look(place: int) -> dict[str, Any]:
    """Markers of a pair of rates: the later ones are smaller, since some of them coincide."""
    color = plotting.SHADES[place]
    return plotting.OPEN | {"color": color, "mec": color, "ms": 7 - place}


FIGURE = Figure(
    name="fig05",
    shows=("adapters", "lora"),
    title="LoRA's factors, one rate and two",
    result="{result}",
    caption=CAPTION,
    notes=NOTES,
    sources=paired.sources,
    numbers=numbers,
    draw=draw,
    presets={"quick": paired.QUICK, "paper": paired.PAPER},
    long=True,
    turn=4,
    groups=("/factors", "/widths"),
    says=_facts,
    panels={"norm_A": "a", "norm_B": "a", "tried_loss": "b", "tried_pearson": "c", "move": "de"},
)
