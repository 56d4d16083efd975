"""Figure 5: LoRA's two factors, one rate and two, and which rates wide networks allow."""

from typing import Any

import numpy as np
import xarray as xr

from lrdyn.engine import fields
from lrdyn.figures import plotting
from lrdyn.figures.exhibits import Figure, Results
from lrdyn.studies.adapter_training import ADAPTERS
from lrdyn.studies.adapter_training.factors import COMPARED, FactorsMeasured
from lrdyn.studies.adapter_training.widths import RATES, WidthMeasured
from paper_figs import paired
from paper_figs.paired import COLORS, TITLES
from paper_figs.shared import counted, judged

TOLERANCES = {"norm_A": 0.05, "norm_B": 0.05, "pearson": 0.05, "move": 0.02}
"""Of another training in float32, on another machine or with other kernels."""

CAPTION = """\
LoRA's factors in {dtype}, rank r = {rank}, {examples} examples. (a) ||A||_F (solid) and ||B||_F
(dashed) over the steps, seed {seed}: mean over the {matrices} adapted matrices and band of one
standard deviation. LoRA (A drawn, B = 0): ||A||_F ends at {A:.3f} of its start, ||B||_F at {B:.3f}
of ||A||_F's. (b) the same for LoRA+ (rate of B 16 times that of A: {A_plus:.3f} and {B_plus:.3f})
and for LoRA with B drawn and A = 0. (c) Pearson correlation on pairs that were not trained on, mean
of {seeds} and band of one standard error; at the end {ends}; LoRA+ less LoRA of the same seed, mean
over the recorded steps: {ahead}, expected above 0: {came_true}. (d) the toy f = (W* + b a^T) x of
width n from 64 to 4096, rates eta_A = n^-alpha and eta_B = n^-beta: what the second step's move of
a changes f by, over |U| (medians of starts), and lines of the exponent 1 - alpha - 2 beta; that of
b follows n^-beta alike. Only eta_A = 1/n, eta_B = 1 (LoRA+) lets both move f by as much at every
width. {adapted} {how}
"""


def numbers(results: Results, **settings: Any) -> xr.Dataset:
    """Norms of one seed, Pearson of all, and the moves of the toy over n."""
    groups = results[ADAPTERS.name]
    whole = judged(groups["/factors"])
    run = fields.of_run(
        paired.plain(whole.isel(seed=0), "method_of_factors", "step", "matrix"), FactorsMeasured
    )
    over_seeds = fields.of_run(
        paired.plain(whole, "seed", "method_of_factors", "step"), FactorsMeasured
    )
    drawn = xr.Dataset(
        {"norm_A": run(lambda run: run.norm_A), "norm_B": run(lambda run: run.norm_B)}
    ).astype(float)
    drawn["pearson"] = over_seeds(lambda run: run.pearson).astype(float)
    drawn = drawn.assign_coords(method_of_factors=list(COMPARED))
    drawn = drawn.rename(method_of_factors="adapter")
    drawn["step"] = run(lambda run: run.step)
    toy = groups["/widths/float64" if "/widths/float64" in groups else "/widths"]
    axes = ("n", "all_rates", "quantity")
    of_toy = fields.of_run(
        toy.isel({dim: 0 for dim in toy.dims if dim not in axes}, drop=True), WidthMeasured
    )
    drawn["move"] = of_toy(lambda run: run.move).isel(all_rates=slice(len(RATES)), quantity=0)
    drawn = drawn.assign_coords(n=of_toy(lambda run: run.n).values)
    for name, tolerance in TOLERANCES.items():
        drawn[name].attrs = {"kind": "training", "tolerance": tolerance}
    return drawn.assign_attrs(
        paired.how(groups)
        | {
            "seed": int(whole.seed[0]),
            "examples": int(whole["examples"].values.ravel()[0]),
            "rank": int(whole["rank"].values.ravel()[0]),
        }
    )


def _facts(drawn: xr.Dataset) -> dict[str, Any]:
    """What the caption says of the results."""
    start = drawn.norm_A.isel(step=0)
    growth_A = (drawn.norm_A.isel(step=-1) / start).mean("matrix")
    growth_B = (drawn.norm_B.isel(step=-1) / start).mean("matrix")
    over_steps = drawn.pearson.isel(step=slice(1, None)).mean("step")
    ahead = paired.paired(*(over_steps.sel(adapter=n).values for n in ("lora_plus", "lora")))
    last = drawn.pearson.isel(step=-1).mean("seed")
    return {
        "A": float(growth_A.sel(adapter="lora")),
        "B": float(growth_B.sel(adapter="lora")),
        "A_plus": float(growth_A.sel(adapter="lora_plus")),
        "B_plus": float(growth_B.sel(adapter="lora_plus")),
        "matrices": drawn.sizes["matrix"],
        "ends": ", ".join(f"{TITLES[n]} {float(last.sel(adapter=n)):.3f}" for n in COMPARED),
        "seeds": counted(drawn.sizes["seed"]),
        "ahead": str(ahead),
        "came_true": ahead.came_of("factors_plus_ahead"),
    }


def draw(dataset: xr.Dataset) -> Any:
    """Draw Figure 5."""
    titles = ["norms, LoRA", "norms, LoRA+, B drawn", "Pearson", "toy: move of a"]
    figure, axes = plotting.panels(titles, height=2.3)
    plot_norms(axes[0], dataset, ["lora"])
    plot_norms(axes[1], dataset, ["lora_plus", "lora_b"])
    for name in COMPARED:
        pearson = dataset.pearson.sel(adapter=name).transpose("seed", "step").values
        plot_band(
            axes[2],
            dataset.step,
            pearson.mean(axis=0),
            paired.error(pearson),
            COLORS[name],
            label=TITLES[name],
        )
    low, high = axes[2].get_ylim()
    axes[2].set_ylim(low - 0.4 * (high - low), high)  # room for the key
    plotting.key(axes[2], None, "lower right", fontsize=6)
    for ax in axes[:3]:
        ax.set(xlabel="step t", xlim=(0, int(dataset.step[-1])))
    plot_widths(axes[3], dataset)
    return figure


def plot_norms(ax: Any, dataset: xr.Dataset, names: list[str]) -> None:
    """Mean and band over the matrices."""
    for name in names:
        for norm, dash in ((dataset.norm_A, "-"), (dataset.norm_B, "--")):
            norms = norm.sel(adapter=name).transpose("step", "matrix").values
            mean = np.where(norms.any(axis=1), norms.mean(axis=1), np.nan)  # a factor starts at 0
            plot_band(ax, dataset.step, mean, norms.std(axis=1), COLORS[name], ls=dash)
    entries = [plotting.entry("‖A‖"), plotting.entry("‖B‖", ls="--")]
    if len(names) > 1:
        entries += [plotting.entry(TITLES[name], COLORS[name]) for name in names]
    sizes = np.concatenate([dataset.norm_A.values.ravel(), dataset.norm_B.values.ravel()])
    least, most = sizes[sizes > 0].min(), sizes.max()
    ax.set(yscale="log", ylim=(least / 300, 3 * most))  # room for the key
    plotting.key(ax, entries, "lower right", fontsize=6)


def plot_band(ax: Any, steps: Any, mean: Any, width: Any, color: str, **look: Any) -> None:
    """A curve, and its width on both sides."""
    ax.plot(steps, mean, color=color, lw=1.0, **look)
    ax.fill_between(steps, mean - width, mean + width, color=color, alpha=0.2, lw=0)


def plot_widths(ax: Any, dataset: xr.Dataset) -> None:
    """Moves over the width, and the powers of it."""
    n = dataset.n.values
    texts = ("1/n, 1", "1, 1", "n^{-1/2}, n^{-1/2}", "1/n, 1/n", "n^{-1/3}, n^{-1/3}")
    for place, ((alpha, beta), text) in enumerate(zip(RATES, texts, strict=True)):
        move, color = dataset.move.values[:, place], plotting.SHADES[place]
        exponent = 1 - alpha - 2 * beta
        ax.plot(n, move[0] * (n / n[0]) ** exponent, color=color, lw=0.8)
        look = plotting.OPEN | {"mec": color, "ms": 7 - place}  # two of them coincide
        ax.plot(n, move, color=color, label=f"${text}$", **look)
    ax.set(xscale="log", yscale="log", xlabel="width n")
    plotting.key(ax, None, "upper left", fontsize=5, title=r"$\eta_A, \eta_B$", title_fontsize=5)
    top = float(dataset.move.max())
    ax.set_ylim(None, 1e7 * top)


FIGURE = Figure(
    name="fig05",
    title="Norms of LoRA's factors",
    caption=CAPTION,
    sources=paired.sources,
    numbers=numbers,
    draw=draw,
    presets={"quick": paired.QUICK, "paper": paired.PAPER},
    long=True,
    groups=("/factors", "/widths"),
    says=_facts,
    panels={"norm_A": "ab", "norm_B": "ab", "pearson": "c", "move": "d"},
)
