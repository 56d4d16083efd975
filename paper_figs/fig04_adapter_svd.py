"""Figure 4: the SVD of a product of three full-width factors that is added to one value matrix."""

import json
from typing import Any

import numpy as np
import xarray as xr

from lrdyn.core import chance
from lrdyn.engine import fields
from lrdyn.figures import plotting
from lrdyn.figures.exhibits import Figure, Results
from lrdyn.studies.adapter_training import ADAPTERS
from lrdyn.studies.adapter_training.singular_value_evolution import (
    RULES,
    EvolutionMeasured,
    extremes,
)
from lrdyn.studies.adapter_training.tuning import BATCH
from paper_figs import paired

TOLERANCES = dict.fromkeys(("sigma", "right_angle", "left_angle", "gap", "pearson"), 0.05)
"""Of another training in float32, on another machine or with other kernels."""

CAPTION = """\
The product P = W_3 W_2 W_1 of three full-width factors (eps times orthogonal at the start) beside
one value matrix, width {width}, {dtype}, {examples} examples; the factors alone are trained.
(a)-(c) eps = {captioned:g}, Adam: singular values of P, and angles of its right and left singular
vectors to Theorem 2's frame of 2 x {rank} directions. Blue: the first {rank} and the last {rank},
which theory lets move; grey: the others; dotted, grey band: a random direction. (d) The same values
where the start is taken off P ("centred"). (e) eps = {small:g}. (f) Distance of the factors from
Theorem 2's form over how far they moved: solid Adam, dashed SGD.
"""
NOTES = """\
The value matrix is that of the encoder's second-last layer (the 11th in BERT); seed {seed}. (a)-(c)
The survey captions this eps; the product is added as it is. The frame is made with the gradient of
the loss at the start in the place of the target. At t = 0 all values are equal and the vectors
arbitrary: they are compared with the frame, not with themselves, from the first recorded step on.
Values below the round-off of the largest one, {width} eps sigma_1, are not drawn: of many vectors
in (e) and their angles nothing is known. (d) The model starts unchanged. (f) Theorem 2's form is
U_l blkdiag(W~_l, rho_l I) V_l^T; the largest distance of the three; SGD has a first step of equal
length. At the end, Adam / SGD: {gaps}; mean angle of the blue right vectors under Adam: {angles}.
The theorem is about descent on a linear loss with whitened inputs; neither holds here. {how}
"""


def numbers(results: Results, **settings: Any) -> xr.Dataset:
    """Spectra, angles and distance over init scale, centring, rule, step and index."""
    groups = results[ADAPTERS.name]
    whole = groups["/evolution"]
    first_seed = paired.plain(whole.isel(seed=0), "init_scale", "center", "step", "index", "rule")
    run = fields.of_run(first_seed, EvolutionMeasured)
    drawn = xr.Dataset(
        {
            "sigma": run(lambda run: run.sigma),
            "right_angle": run(lambda run: run.right_angle),
            "left_angle": run(lambda run: run.left_angle),
            "gap": run(lambda run: run.gap),
            "pearson": run(lambda run: run.pearson),
        }
    ).astype(float)
    drawn = drawn.assign_coords(rule=list(RULES), index=np.arange(1, drawn.sizes["index"] + 1))
    drawn["step"] = run(lambda run: run.step)
    for name, tolerance in TOLERANCES.items():
        drawn[name].attrs = {"kind": "training", "tolerance": tolerance}
    rank = int(whole["rank"].values.ravel()[0])
    drawn["blue"] = "index", extremes(drawn.sizes["index"], rank).astype(int)
    return drawn.assign_attrs(
        _facts(drawn, rank)
        | _how(groups)
        | {"seed": int(whole.seed[0]), "examples": int(whole["examples"].values.ravel()[0])}
    )


def _how(groups: Any) -> dict[str, Any]:
    """Values of the trainings that the caption quotes."""
    config = json.loads(groups["/"].attrs["config"])
    how = (
        f"Task: {config['task'][0]}; squared error of scores in [0, 1], Adam at "
        f"{config['learning_rate']:g}, which falls linearly to 0, {config['steps']} steps of "
        f"batches of {BATCH}."
    )
    return {"how": how, "dtype": config["dtype"]}


def _facts(drawn: xr.Dataset, rank: int) -> dict[str, Any]:
    """Values of the results that the caption quotes."""
    end = drawn.isel(step=-1)
    gaps, angles = [], []
    for eps in drawn.init_scale.values:
        for center in drawn.center.values:
            run = end.sel(init_scale=eps, center=center)
            text = f"eps = {eps:g}" + (", centred" if center == "yes" else "")
            values = [float(run.gap.sel(rule=rule)) for rule in RULES]
            words = [f"{value:.2g}" if np.isfinite(value) else "lost" for value in values]
            gaps.append(f"{text} {' / '.join(words)}")
            angle = run.right_angle.sel(rule="adam").values[drawn.blue.values == 1].mean()
            angles.append(f"{text} {angle:.0f}°")
    scales = drawn.init_scale.values
    return {
        "rank": rank,
        "width": drawn.sizes["index"],
        "gaps": "; ".join(gaps),
        "angles": ", ".join(angles),
        "captioned": float(max(scales)),
        "small": float(min(scales)),
    }


def thin(dataset: xr.Dataset) -> xr.Dataset:
    """Part kept as a baseline: what is blue, and every 40th of the others."""
    thinned = (dataset.blue.values == 1) | (dataset.index.values % 40 == 0)
    return dataset.isel(index=np.nonzero(thinned)[0])


def draw(dataset: xr.Dataset) -> Any:
    """Draw Figure 4."""
    first, small = dataset.captioned, dataset.small
    plain = dataset.sel(init_scale=first, center=dataset.center.values[0], rule="adam")
    titles = [
        rf"$\sigma_i(t)$, $\epsilon$ = {first:g}",
        "right vectors to the frame",
        "left vectors",
        rf"$\sigma_i(t)$, $\epsilon$ = {first:g}, centred",
        rf"$\sigma_i(t)$, $\epsilon$ = {small:g}, centred",
        "distance from Theorem 2",
    ]
    figure, axes = plotting.panels(titles, rows=2, height=4.2)
    plot_values(axes[0], plain)
    for ax, name in zip(axes[1:3], ("right_angle", "left_angle"), strict=True):
        plot_angles(ax, plain, name)
    last = dataset.center.values[-1]
    plot_values(axes[3], dataset.sel(init_scale=first, center=last, rule="adam"))
    plot_values(axes[4], dataset.sel(init_scale=small, center=last, rule="adam"))
    plot_gaps(axes[5], dataset)
    return figure


def _curves(ax: Any, run: xr.Dataset, name: str, since: int) -> None:
    steps = run.step.values[since:]
    values = run[name].transpose("step", "index").values[since:]
    inside = run.blue.values == 1
    ax.plot(steps, values[:, ~inside], color="#B3B3B3", lw=0.5, zorder=1)
    ax.plot(steps, values[:, inside], color=plotting.BLUE, lw=0.8, zorder=2)
    ax.set(xlabel="step t", xlim=(0, int(steps[-1])))


def plot_values(ax: Any, run: xr.Dataset) -> None:
    """Draw all singular values above the round-off of the largest, over the steps."""
    # Below this a value is the rounding of the largest one.
    floor = int(run.width) * np.finfo(np.float32).eps * run.sigma.max("index")
    run = run.assign(sigma=run.sigma.where(run.sigma > floor))
    _curves(ax, run, "sigma", 0)
    values = run.sigma.values
    most, least = np.nanmax(values), np.nanmin(np.where(values > 0, values, np.nan))
    if most > 20 * least:
        ax.set(yscale="log", ylim=(max(1e-10 * most, least / 3), 3 * most))


def plot_angles(ax: Any, run: xr.Dataset, name: str) -> None:
    """Draw the angles to the frame, in degrees."""
    _curves(ax, run, name, 1)
    random = chance.direction_angle(int(run.width), 2 * int(run.attrs["rank"]))
    ax.axhspan(float(random.low), float(random.high), color="#D9D9D9", lw=0, zorder=0)
    ax.axhline(float(random.value), color="k", ls=":", lw=0.8)
    ax.set(ylim=(-2, 92), yticks=(0, 30, 60, 90), ylabel="degrees")


def plot_gaps(ax: Any, dataset: xr.Dataset) -> None:
    """Distance from the theorem's form over the steps, for every start and both rules."""
    starts = [(eps, c) for eps in dataset.init_scale.values for c in dataset.center.values]
    colors = (plotting.BLUE, plotting.GREEN, plotting.ORANGE, plotting.PINK)
    for (eps, center), color in zip(starts, colors, strict=False):
        text = f"ε = {eps:g}" + (", centred" if center == "yes" else "")
        for rule, dash, label in zip(RULES, ("-", "--"), (text, None), strict=True):
            gap = dataset.gap.sel(init_scale=eps, center=center, rule=rule)
            ax.plot(gap.step[1:], gap.values[1:], dash, color=color, lw=1.0, label=label)
    ax.set(xlabel="step t", xlim=(0, int(dataset.step[-1])), ylim=(0, 1.05))
    plotting.key(ax, None, "lower right", fontsize=7)


FIGURE = Figure(
    name="fig04",
    title="SVD of a deep adapter of one value matrix",
    caption=CAPTION,
    notes=NOTES,
    sources=paired.sources,
    numbers=numbers,
    draw=draw,
    presets={"quick": paired.QUICK, "paper": paired.PAPER},
    thin=thin,
    long=True,
    groups=("/evolution",),
    panels={"sigma": "ade", "right_angle": "b", "left_angle": "c", "gap": "f"},
)
