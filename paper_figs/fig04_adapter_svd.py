"""Figure 4: the SVD of a product of three full-width factors that is added to one value matrix."""

from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from lrdyn.core import chance
from lrdyn.figures import plotting
from lrdyn.figures.exhibits import Figure, Results
from lrdyn.studies.adapter_training import ADAPTERS
from lrdyn.studies.adapter_training.singular_value_evolution import (
    MOVED,
    RULES,
    EvolutionMeasured,
    has_moved,
    log_moves,
)
from lrdyn.verification.stating import fields
from paper_figs import paired

CURVES = ("sigma", "right_angle", "value_sigma", "value_right_angle")
"""Variables over the steps, along ``curve``; a baseline keeps some of the values."""
SETTLED = tuple(
    f"{begin}{name}"
    for begin in ("", "value_")
    for name in ("move", "count", "random_move", "random_count")
)
"""Variables of every value at the end, and counts over the steps."""
TOLERANCES = dict.fromkeys((*CURVES, *SETTLED, "gap", "pearson", "largest"), 0.05)
"""Differences to another training in float32, on another machine or with other kernels."""
OWN = "that value matrix alone"
LABELS = {"adam": "Adam", "sgd": "SGD"}
DASHES = {"adam": "-", "sgd": "--"}

CAPTION = """\
P, three full-width factors, eps times orthogonal at first, is added to a value matrix W and trained
alone; eps = {captioned:g}, in (e) {small:g}. Adam; dashed: SGD. (a) How far each singular value
moved; thin, bands: random matrices. (b) How many by 10 %; marks: chance. Singular values of (c),
(e) P and (d) W + P under Adam; coloured: moved by 10 %; dotted: the largest of W. (f), (g) Angles
of their right vectors to Theorem 2's {frame} directions; band: chance. (h) Distance from Theorem
2's form; dotted: chance. {counts}
"""
NOTES = """\
P = W_3 W_2 W_1 has {width} singular values. The value matrix is that of the encoder's second-last
layer (the 11th in BERT); seed {seed}, {examples} examples, {dtype}. The survey captions eps = 1
and adds P as it is, so that the model starts changed; "centred" takes the start off P, so that it
starts unchanged. The survey's message is that few singular values move. Counted is |ln(sigma_i(T)
/ sigma_i(0))| above ln 1.1, by place in the order; what is below the round-off of the largest
value, {width} eps32 sigma_1, is neither drawn nor counted. Chance: Gaussian matrices of the norm
of P(T) - P(0) added to P(0), or to W with it. The frame is made with the gradient of the loss at
the start in the place of the target; at t = 0 all values of P are equal and its vectors arbitrary,
so they are compared with the frame from the first recorded step on. (h) Theorem 2's form is U_l
blkdiag(W~_l, rho_l I) V_l^T; the largest distance of the three, over how far they moved. Adam /
SGD at the end: {table}. The theorem is about descent on a linear loss with whitened inputs;
neither holds here. Trained: {how} A step of SGD is measured in Adam's: at the same rate the first
is as long. Rates: {rates}. Of the curves in (c) to (g) the committed numbers hold the first and the
last 16 values and every 32nd, and draw no others.
"""


def numbers(results: Results, **settings: Any) -> xr.Dataset:
    """Spectra, angles and distance over init scale, centring, rule, step and index."""
    groups = results[ADAPTERS.name]
    whole = groups["/evolution"]
    first_seed = paired.drop_single_axes(
        whole.isel(seed=0), "init_scale", "center", "step", "index", "rule", "level"
    )
    run = fields.of_run(first_seed, EvolutionMeasured)
    spectra = run(lambda run: run.sigma), run(lambda run: run.value_sigma)
    moved, value_moved = (moves_of(sigma) for sigma in spectra)
    random, value_random = run(lambda run: run.random_move), run(lambda run: run.value_random_move)

    def select_captioned(array: xr.DataArray) -> xr.DataArray:
        """Select the init scale that the survey captions, and the product as it is."""
        return array.sel(init_scale=whole.init_scale.values.max()).isel(center=0)

    drawn = xr.Dataset(
        {
            "sigma": spectra[0].isel(rule=RULES.index("adam")).rename(index="curve"),
            "right_angle": select_captioned(
                angles_of_moved(run(lambda run: run.right_angle), moved)
            ),
            "value_sigma": select_captioned(spectra[1])
            .isel(rule=RULES.index("adam"))
            .rename(index="curve"),
            "value_right_angle": select_captioned(
                angles_of_moved(run(lambda run: run.value_right_angle), value_moved)
            ),
            "move": moved.isel(step=-1),
            "value_move": value_moved.isel(step=-1),
            "count": count_moved(moved),
            "value_count": count_moved(value_moved),
            "random_move": select_captioned(random),
            "value_random_move": select_captioned(value_random),
            "random_count": count_moved(random.isel(level=0)),
            "value_random_count": count_moved(value_random.isel(level=0)),
            "largest": spectra[1].isel(step=0, rule=0).max("index"),
            "gap": run(lambda run: run.gap),
            "pearson": run(lambda run: run.pearson),
        }
    ).astype(np.float32)  # as they were trained: a baseline of half the size
    index = np.arange(1, drawn.sizes["index"] + 1)
    drawn = drawn.assign_coords(rule=list(RULES), index=index, curve=index)
    drawn["step"] = run(lambda run: run.step)
    for name, tolerance in TOLERANCES.items():
        drawn[name].attrs = {"kind": "training", "tolerance": tolerance}
    task = str(np.ravel(whole["task"].values)[0])
    rank = int(whole["rank"].values.ravel()[0])
    bracketed = bool(np.all(run(lambda run: run.bracketed).values))
    how = paired.describe_trainings(groups, [task], bracketed, adapted=OWN)
    return drawn.assign_attrs(
        _facts(drawn, run(lambda run: run.rate))
        | {"how": how["how"], "dtype": how["dtype"], "frame": 2 * rank}
        | {"seed": int(whole.seed[0]), "examples": int(whole["examples"].values.ravel()[0])}
    )


def moves_of(sigma: xr.DataArray) -> xr.DataArray:
    """How far each singular value is from its start, NaN below round-off."""
    ordered = sigma.transpose(..., "step", "index")
    return ordered.copy(data=log_moves(ordered.values))


def angles_of_moved(angles: xr.DataArray, move: xr.DataArray) -> xr.DataArray:
    """Angles of the vectors whose values have moved at the end, NaN of the others, as curves."""
    last = move.isel(step=-1)
    return angles.where(last.copy(data=has_moved(last.values))).rename(index="curve")


def count_moved(move: xr.DataArray) -> xr.DataArray:
    """How many singular values are 10 % from their start."""
    return move.copy(data=has_moved(move.values)).sum("index")


def runs_of(dataset: xr.Dataset) -> list[tuple[float, str, str]]:
    """Init scale and centring of every run, and words for both."""
    return [
        (eps, center, f"ε = {eps:g}" + (", centred" if center == "yes" else ""))
        for eps in dataset.init_scale.values
        for center in dataset.center.values
    ]


def _facts(drawn: xr.Dataset, rates: xr.DataArray) -> dict[str, Any]:
    """What the caption says of the results."""
    scales, width = drawn.init_scale.values, drawn.sizes["index"]
    lines, chosen = [], []

    def pair(array: xr.DataArray, form: str) -> str:
        return " / ".join(format(array.sel(rule=rule).item(), form) for rule in RULES)

    def end(run: xr.Dataset, name: str) -> str:
        by_chance = pair(run[f"{name}random_count"], ".0f")
        return f"{pair(run[f'{name}count'].isel(step=-1), '.0f')} (chance {by_chance})"

    rates = rates.assign_coords(rule=list(RULES))
    for eps, center, text in runs_of(drawn):
        run = drawn.sel(init_scale=eps, center=center)
        lines.append(
            f"{text}: of P {end(run, '')} moved, of W + P {end(run, 'value_')}, distance "
            f"{pair(run.gap.isel(step=-1), '.2g')}"
        )
        chosen.append(f"{text} {pair(rates.sel(init_scale=eps, center=center), '.2g')}")
    first = drawn.sel(init_scale=max(scales), center=drawn.center.values[0])
    counts = f"Moved, Adam / SGD: of P {end(first, '')}, of W + P {end(first, 'value_')}."
    return {
        "width": width,
        "counts": counts,
        "table": "; ".join(lines),
        "rates": "; ".join(chosen),
        "captioned": float(max(scales)),
        "small": float(min(scales)),
    }


def thin(dataset: xr.Dataset) -> xr.Dataset:
    """Part kept as a baseline: curves of the first and last 16 values, and of every 32nd."""
    place = np.arange(dataset.sizes["curve"])
    ends = (place < 16) | (place >= len(place) - 16)
    return dataset.isel(curve=np.nonzero(ends | (place % 32 == 0))[0])


def draw(dataset: xr.Dataset) -> Any:
    """Draw Figure 4: what moved in the first row, beside chance, and what it is made of below."""
    first, small = dataset.captioned, dataset.small
    plain = dataset.sel(init_scale=first, center=dataset.center.values[0])
    last = dataset.sel(init_scale=small, center=dataset.center.values[-1])
    figure = plotting.blank_figure(6.4)
    grid = figure.add_gridspec(2, 1, height_ratios=(1.25, 2))
    shapes = (1, 2), (2, 3)
    rows: Any = [grid[place].subgridspec(*shape) for place, shape in enumerate(shapes)]
    axes = [ax for row in rows for ax in row.subplots().ravel()]
    titles = [
        "how far each moved",
        "moved by 10 %",
        rf"$\sigma_i(t)$ of P, $\epsilon$ = {first:g}",
        rf"$\sigma_i(t)$ of W + P, $\epsilon$ = {first:g}",
        rf"$\sigma_i(t)$ of P, $\epsilon$ = {small:g}",
        "angles, P",
        "angles, W + P",
        "distance from Theorem 2",
    ]
    plotting.entitle(axes, titles)
    plot_moves(axes[0], plain)
    plot_counts(axes[1], plain)
    for ax, run, matrix in ((axes[2], plain, 0), (axes[3], plain, 1), (axes[4], last, 0)):
        plot_values(ax, run, MATRICES[matrix])
    axes[4].axhline(float(last.largest), color="k", ls=":", lw=0.8)
    for ax, matrix in zip(axes[5:], MATRICES, strict=False):
        plot_angles(ax, plain, matrix)
    plotting.key(axes[6], RULE_KEY, "lower right", serves=axes[5:], fontsize=7, handlelength=1.2)
    plot_gaps(axes[7], dataset)
    return figure


class Shown(NamedTuple):
    """A matrix whose singular values are followed."""

    begin: str
    """Beginning of the names of its arrays."""
    color: str
    label: str


MATRICES = (Shown("", plotting.BLUE, "P"), Shown("value_", plotting.ORANGE, "W + P"))


LOOKS_OF_RULES = {"adam": (plotting.BLUE, 0.5), "sgd": (plotting.ORANGE, 1.0)}
"""Colour and width of the angles under a rule."""
RULE_KEY = [
    plotting.entry(LABELS[rule], color, ls=DASHES[rule], lw=width)
    for rule, (color, width) in LOOKS_OF_RULES.items()
]


def moved_curves(run: xr.Dataset, rule: str, matrix: Shown) -> np.ndarray:
    """Which of the curves are of values of a matrix that moved under a rule."""
    move = run[f"{matrix.begin}move"].sel(rule=rule).sel(index=run.curve.values)
    return has_moved(move.values)


def plot_values(ax: Any, run: xr.Dataset, matrix: Shown) -> None:
    """The singular values of a matrix under Adam that are above the round-off of the largest."""
    sigma = run[f"{matrix.begin}sigma"].transpose("step", "curve")
    values, steps = sigma.values, run.step.values
    least = int(run.width) * np.finfo(np.float32).eps * values.max(axis=1, keepdims=True)
    known, moved = np.where(values > least, values, np.nan), moved_curves(run, "adam", matrix)
    ax.plot(steps, known[:, ~moved], color="#B3B3B3", lw=0.5, zorder=1)
    ax.plot(steps, known[:, moved], color=matrix.color, lw=0.8, zorder=2)
    ax.set(xlabel="step t", xlim=(0, int(steps[-1])))
    most, least = np.nanmax(known), np.nanmin(known)
    if most > 20 * least:
        ax.set(yscale="log", ylim=(least / 1.5, 1.5 * most))


def plot_moves(ax: Any, run: xr.Dataset) -> None:
    """|ln| of each value's change, largest first, beside what a random matrix of the size gives."""
    for begin, color, label in MATRICES:
        for rule in RULES:
            move = np.nan_to_num(run[f"{begin}move"].sel(rule=rule).values)
            place = np.arange(1, len(move) + 1)
            words = label if rule == "adam" else None
            ax.plot(place, np.sort(move)[::-1], DASHES[rule], color=color, lw=1.0, label=words)
            random = run[f"{begin}random_move"].sel(rule=rule).transpose("level", "index").values
            mean, low, high = np.sort(random, axis=1)[:, ::-1]
            shade = 0.25 if rule == "adam" else 0.12
            ax.fill_between(place, low, high, color=color, alpha=shade, lw=0)
            ax.plot(place, mean, DASHES[rule], color=color, lw=0.5, alpha=0.6)
    ax.axhline(np.log1p(MOVED), color="k", ls=":", lw=0.8)
    ax.set(xscale="log", yscale="log", xlim=(1, int(run.width)), ylim=(1e-4, None))
    ax.set(xlabel="place", ylabel="|ln σ(T)/σ(0)|")
    plotting.key(ax, None, "lower left", fontsize=7)


def plot_counts(ax: Any, run: xr.Dataset) -> None:
    """How many values have moved, over the steps, and how many a random matrix moves."""
    last = int(run.step[-1])
    for begin, color, label in MATRICES:
        for rule, mark in zip(RULES, "os", strict=True):
            count = run[f"{begin}count"].sel(rule=rule).values
            words = f"{label}, {LABELS[rule]}"
            ax.plot(run.step, count, DASHES[rule], color=color, lw=1.0, label=words)
            random = run[f"{begin}random_count"].sel(rule=rule).item()
            ax.plot([last], [random], mark, color=color, mfc="white", ms=4, clip_on=False)
    width = int(run.width)
    ax.set(xlabel="step t", xlim=(0, last), yscale="symlog", ylim=(0, width), ylabel="values")
    ticks = [tick for tick in (0, 1, 10, 100) if tick < width / 2]
    ax.set_yticks([*ticks, width], [str(tick) for tick in (*ticks, width)])
    # Clear of the marks of chance, which stand at the last step.
    beside = plotting.BESIDE | {"bbox_to_anchor": (1.05, 1.0)}
    ax.legend(fontsize=7, labelspacing=0.3, **beside)


def plot_angles(ax: Any, run: xr.Dataset, matrix: Shown) -> None:
    """Angles to the frame of the right vectors of the values that moved, in degrees."""
    steps = run.step.values[1:]
    every = run[f"{matrix.begin}right_angle"].transpose("rule", "step", "curve")
    for rule, (color, width) in LOOKS_OF_RULES.items():
        moved = moved_curves(run, rule, matrix)
        angles = every.sel(rule=rule).values[1:, moved]
        if moved.any():
            ax.plot(steps, angles, DASHES[rule], color=color, lw=width)
    random = chance.direction_angle(int(run.width), int(run.frame))
    ax.axhspan(float(random.low), float(random.high), color="#D9D9D9", lw=0, zorder=0)
    ax.axhline(float(random.value), color="k", ls=":", lw=0.8)
    ax.set(xlabel="step t", xlim=(0, int(steps[-1])), ylim=(0, 90), yticks=(0, 30, 60, 90))
    ax.set(ylabel="degrees")


def plot_gaps(ax: Any, dataset: xr.Dataset) -> None:
    """Distance from the theorem's form over the steps, for every start and both rules."""
    colors = (plotting.BLUE, plotting.GREEN, plotting.ORANGE, plotting.PINK)
    for (eps, center, text), color in zip(runs_of(dataset), colors, strict=False):
        run = dataset.sel(init_scale=eps, center=center)
        for rule in RULES:
            label = text if rule == "adam" else None
            gap = run.gap.sel(rule=rule).values[1:]
            ax.plot(run.step[1:], gap, DASHES[rule], color=color, lw=1.0, label=label)
    # Of n^2 directions the form has (2r)^2 and the multiple of the identity.
    free = 1 - (int(dataset.frame) ** 2 + 1) / int(dataset.width) ** 2
    ax.axhline(np.sqrt(free), color="k", ls=":", lw=0.8)
    ax.set(xlabel="step t", xlim=(0, int(dataset.step[-1])), ylim=(0, 1.05))
    plotting.key(ax, None, "lower right", fontsize=7, handlelength=1.0)


FIGURE = Figure(
    name="fig04",
    shows=("adapters", "lora"),
    title="SVD of a deep adapter of one value matrix",
    caption=CAPTION,
    notes=NOTES,
    sources=paired.sources,
    numbers=numbers,
    draw=draw,
    thin=thin,
    presets={"quick": paired.QUICK, "paper": paired.PAPER},
    long=True,
    turn=3,
    groups=("/evolution",),
    panels={
        "move": "acf",
        "value_move": "adg",
        "random_move": "a",
        "value_random_move": "a",
        "count": "b",
        "value_count": "b",
        "random_count": "b",
        "value_random_count": "b",
        "sigma": "ce",
        "value_sigma": "d",
        "largest": "e",
        "right_angle": "f",
        "value_right_angle": "g",
        "gap": "h",
    },
)
