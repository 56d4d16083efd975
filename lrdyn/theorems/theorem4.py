"""Theorem 4: GaLore and ReLoRA with a frozen factor take the same path."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lrdyn.adapters.galore import GALORE
from lrdyn.adapters.method import Method
from lrdyn.adapters.relora import RELORA, RELORA_FROZEN
from lrdyn.claims import tolerance
from lrdyn.theorem import (
    POSITIVE,
    Arrays,
    Claim,
    Control,
    Flag,
    Statement,
    Theorem,
    at_least,
    longest_axis,
    one_of,
    relative_difference,
    with_condition,
)
from lrdyn.theorems.duality import DUALITY
from lrdyn.theorems.gradient_rank import GRADIENT_RANK
from lrdyn.theorems.low_rank_controls import STALE, UNMERGED, no_factors, pruned
from lrdyn.theorems.low_rank_training import (
    OPTIMIZERS,
    PROBLEMS,
    LowRankRun,
    at,
    determined,
    distance,
    independence,
    losses,
    make_run,
    refreshed,
    sum_ranks,
    sum_values,
    train,
)
from lrdyn.theorems.optax_galore import OPTAX
from lrdyn.theorems.optimizer_state import NAMES, OPTIMIZER_STATE

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIDES = ("left", "right")

FLAGS = (
    Flag("rows", (10,), at_least(2), int, "m", "rows of W: outputs, classes, hidden units",
         shapes=True),
    Flag("cols", (14,), at_least(2), int, "n", "columns of W: features of an example", shapes=True),
    Flag("rank", (2,), at_least(1), int, "r", "columns of P", (1, 3), shapes=True),
    Flag("period", (10,), at_least(1), int, "T", "steps between two refreshes of P", (1, 7, 25),
         shapes=True),
    Flag("optimizer", tuple(OPTIMIZERS), one_of(*OPTIMIZERS), str, "opt",
         "what sees the coordinates of the gradient: sgd, momentum 0.9, or Adam", shapes=True),
    Flag("state", ("keep",), one_of(*NAMES), str, "",
         "what becomes of the optimiser's state at a refresh", NAMES, shapes=True),
    Flag("side", SIDES, one_of(*SIDES), str, "", "side of the gradient that is projected",
         shapes=True),
    Flag("problem", ("regression", "mlp"), one_of(*PROBLEMS), str, "f",
         "what is trained; every matrix of a network is projected", PROBLEMS, shapes=True),
    Flag("learning_rate", (0.05,), POSITIVE, float, "eta",
         "step size; for the regression that of the loss 1/2 ||.||_F^2", (0.02, 0.05)),
    Flag("steps", (60,), at_least(1), int, "t", "steps of descent", (100,), swept=False),
)  # fmt: skip


def check(point: Mapping[str, Any]) -> None:
    """Refuse combinations outside the theorem."""
    if point["rank"] > min(point["rows"], point["cols"]):
        raise ValueError(
            f"--rank: got {point['rank']} with {point['rows']} x {point['cols']}, "
            "wanted at most the smaller"
        )


# Theory and measurement --------------------------------------------------------------------------


def predict(case: LowRankRun) -> dict[str, Array]:
    """GaLore, and what its projectors say."""
    records, condition = with_condition(
        lambda both: train(case, GALORE, both).records, (case.params, case.data)
    )
    found, recorded = refreshed(case, records), at(case, case.steps)
    ranks = sum_ranks(case)
    return {
        "weights": records[recorded],
        "training_loss": losses(case, records[recorded]),
        "condition": condition,
        "singular_gap": found.gaps,
        "independence": independence(case, found.bases),
        "sum_rank": ranks,
        "sum_excess": jnp.zeros(ranks.shape, records.dtype),
    }


def measure(case: LowRankRun, *, method: Method = RELORA_FROZEN, **how: Any) -> dict[str, Array]:
    """ReLoRA with a frozen factor, or something else with the arguments of its run."""
    run = train(case, method, **how)
    recorded = at(case, case.steps)
    values = sum_values(case, run.records)
    largest = jnp.maximum(values[:, 0], jnp.finfo(values.dtype).tiny)[:, None]
    following = jnp.pad(values, ((0, 0), (0, 1)))[_count(values), sum_ranks(case)]
    limit = tolerance(
        "identity", values.dtype, steps=case.steps[-1], size=longest_axis(case)
    )  # of the claims: what is larger is no round-off
    return {
        "weights": run.records[recorded],
        "training_loss": losses(case, run.records[recorded]),
        "sum_values": values,
        "sum_rank": jnp.sum(values > limit * largest, axis=1),
        "sum_excess": following / largest[:, 0],
        "step": jnp.asarray(case.steps),
        "diverged_at": run.diverged_at,
    }


def _count(array: Array) -> np.ndarray:
    return np.arange(len(array), dtype=np.int32)


def gap(case: LowRankRun, predicted: Arrays, measured: Arrays) -> dict[str, Array]:
    """The gap between the two trajectories at each recorded step."""
    return {"gap": distance(predicted["weights"], measured["weights"])}


def _determined(case: LowRankRun, predicted: Arrays, measured: Arrays) -> Array:
    return determined(predicted["singular_gap"])


INDEPENDENT = 0.1
"""Least singular value of [P_1 ... P_K] from which its columns count as independent."""


def _same_path(prefix: str = "") -> tuple[Claim, Claim]:
    """Claims that GaLore and ReLoRA agree, for a statement of its own names."""
    return (
        Claim(
            f"{prefix}weights",
            "GaLore and ReLoRA with a frozen factor have the same weights at every step",
            residual=lambda case, p, m: relative_difference(p["weights"], m["weights"]),
            applies=_determined,
        ),
        Claim(
            f"{prefix}training_loss",
            "and the same loss",
            residual=lambda case, p, m: relative_difference(p["training_loss"], m["training_loss"]),
            applies=_determined,
        ),
    )


CLAIMS = (
    *_same_path(),
    Claim(
        "sum_excess",
        "W(t) - W(0) has rank at most r K after K refreshes: sigma_{rK+1} = 0",
        kind="bound",
        residual=lambda case, p, m: relative_difference(
            p["sum_excess"], m["sum_excess"], jnp.ones_like(case.learning_rate)
        ),
    ),
    Claim(
        "sum_rank",
        "and no less if the subspaces are independent: steps of rank r, a sum of rank r K",
        kind="exact",
        residual=lambda case, p, m: jnp.sum(
            (p["sum_rank"] != m["sum_rank"]) & (p["independence"] >= INDEPENDENT)
        ),
    ),
)


# Controls ----------------------------------------------------------------------------------------


def _other_side(case: LowRankRun) -> dict[str, Array]:
    return measure(case, side={"left": "right", "right": "left"}[case.side])


def _pruned(case: LowRankRun) -> dict[str, Array]:
    return measure(case, state=pruned(jax.random.key(0)))


def _one_less(case: LowRankRun) -> dict[str, Array]:
    """Rank r as for a single adapter; sigma_{rK} for sigma_{rK+1}."""
    right = measure(case)
    before = right["sum_values"][_count(right["sum_rank"]), sum_ranks(case) - 1]
    return right | {
        "sum_rank": jnp.full_like(right["sum_rank"], case.rank),
        "sum_excess": before / right["sum_values"][:, 0],
    }


SGD = {"optimizer": "sgd", "side": "left", "problem": "regression", "state": "keep", "steps": 60}
ADAM = SGD | {"optimizer": "adam", "state": "reset", "steps": 20}

CONTROLS = (
    Control(
        "one_keeps_one_resets",
        "one method keeps its state and the other resets it, as published",
        "weights",
        measure=lambda case: measure(case, state="keep"),
        at=ADAM,
    ),
    Control(
        "pruned_state",
        "a reset that sets 99.9 % of the moments to zero and keeps the count of steps",
        "weights",
        measure=_pruned,
        at=ADAM,
    ),
    Control(
        "no_merge",
        "A set to zero at a refresh without a merge: the function jumps",
        "training_loss",
        measure=lambda case: measure(case, method=UNMERGED),
        at=SGD,
    ),
    Control(
        "stale_adapter",
        "a fresh P with the A of the old one",
        "weights",
        measure=lambda case: measure(case, method=STALE),
        at=SGD,
    ),
    Control(
        "both_factors_trained",
        "B trained as well as A: ReLoRA as published",
        "weights",
        measure=lambda case: measure(case, method=RELORA),
        at=SGD,
    ),
    Control(
        "both_factors_zero",
        "both factors zero at the start: their gradients are exactly 0, and nothing moves",
        "weights",
        measure=lambda case: measure(case, method=RELORA, choose=no_factors(case.rank, case.side)),
        at=SGD,
    ),
    Control(
        "other_side",
        "the other side projected",
        "weights",
        measure=_other_side,
        at=SGD,
    ),
    Control(
        "one_direction_less",
        "the sum claimed to have a rank below r K",
        "sum_excess",
        measure=_one_less,
        at=SGD,
    ),
    Control(
        "rank_of_one_adapter",
        "the sum claimed to have the rank of one adapter",
        "sum_rank",
        measure=_one_less,
        at=SGD,
    ),
)

DIMS = {
    "weights": ("step", "entry"),
    "training_loss": ("step",),
    "gap": ("step",),
    "singular_gap": ("refresh", "matrix"),
    "sum_rank": ("refreshes",),
    "sum_excess": ("refreshes",),
    "independence": ("refreshes",),
    "sum_values": ("refreshes", "index"),
    "step": ("step",),
}


def _first_problem(settings: dict[str, Any]) -> dict[str, Any]:
    """The first problem, on the first side unless several ranks, periods or states are swept.

    The other statements run on the last side.
    """
    broad = max(len(settings[name]) for name in ("rank", "period", "state")) > 1
    sides = settings["side"] if broad else settings["side"][:1]
    return settings | {"problem": settings["problem"][:1], "side": sides}


def _other_problems(settings: dict[str, Any]) -> dict[str, Any]:
    """The other problems, briefly: they amplify rounding the more the longer they are trained."""
    names = ("optimizer", "rank", "period", "side", "learning_rate")
    last = {name: settings[name][-1:] for name in names}
    steps = min(settings["steps"], 30)
    return settings | last | {"problem": settings["problem"][1:], "steps": steps}


TRAJECTORY = Statement(
    "trajectory",
    make_run,
    predict,
    measure,
    CLAIMS,
    controls=CONTROLS,
    dims=DIMS,
    narrow=_first_problem,
    compare=gap,
)

OTHER_PROBLEMS = Statement(
    "other_problems",
    make_run,
    predict,
    measure,
    _same_path("network_"),
    dims=DIMS,
    narrow=_other_problems,
    compare=gap,
)

# Figure ------------------------------------------------------------------------------------------


def plot_paths(groups: "Mapping[str, xr.Dataset]") -> "Figure":
    """Draw the loss of both methods, the gap between them, and the rank of what they added.

    Args:
        groups: content of ``results.nc``.

    Returns:
        The figure, at the first values of all flags but the optimiser.
    """
    from lrdyn import plotting

    swept = ["seed", *(flag.name for flag in FLAGS if flag.name != "optimizer")]
    root = groups["/"]
    data = root.isel({name: 0 for name in swept if name in root.dims})
    titles = ["two methods, one path", "their distance", "$W(t) - W(0)$, $K$ refreshes"]
    with plotting.style():
        figure, (left, middle, right) = plotting.panels(titles, height=2.6)
        _plot_losses(left, data)
        _plot_gaps(middle, data, groups)
        _plot_sums(right, data.isel(optimizer=0))
    return figure


def _plot_losses(ax: "Axes", data: "xr.Dataset") -> None:
    from lrdyn import plotting

    names = data["optimizer"].values
    for start, (name, color) in enumerate(zip(names, plotting.SHADES, strict=False)):
        one = data.sel(optimizer=name)
        step, predicted, measured = (
            one[n].values for n in ("step", "training_loss_predicted", "training_loss_measured")
        )
        plotting.plot_compared(ax, step, predicted, measured, color=color, every=(2 * start, 6))
    for refresh in range(0, int(data["step"][-1]) + 1, int(data["period"])):
        ax.axvline(refresh, color="#D9D9D9", lw=0.4, zorder=0)
    ax.set(xlabel="step", ylabel="training loss", xlim=(0, data["step"][-1]))
    legend = plotting.plot_key(ax, line="GaLore", marker="ReLoRA, frozen factor").get_legend()
    if legend is not None:
        legend.set_loc("upper right")


def _plot_gaps(ax: "Axes", data: "xr.Dataset", groups: "Mapping[str, xr.Dataset]") -> None:
    from lrdyn import plotting

    for name, color in zip(data["optimizer"].values, plotting.SHADES, strict=False):
        gaps = data["gap"].sel(optimizer=name)
        # An agreement to the last bit has no logarithm.
        ax.plot(gaps["step"], gaps.where(gaps > 0), color=color, lw=1.0, label=str(name))
    table = next(found for name, found in groups.items() if name.startswith("/controls/"))
    controls = table["residual"].where(table["claim"] == "weights").min("seed")
    if controls.notnull().any():
        low, high = float(controls.min()), float(controls.max())
        ax.axhspan(low, high, color=plotting.GREY, lw=0, alpha=0.35)
        text = f"controls: {low:.2f} to {high:.2f}"
        ax.annotate(text, (0.03, low), (0, -3), xycoords=("axes fraction", "data"),
                    textcoords="offset points", va="top", color=plotting.GREY)  # fmt: skip
    ax.legend(loc="center right")
    ax.set(yscale="log", xlabel="step", ylabel="gap / largest weight", ylim=(None, 3.0))
    ax.set_xlim(0, float(data["step"][-1]))


def _plot_sums(ax: "Axes", data: "xr.Dataset") -> None:
    from lrdyn import plotting

    rank, values = int(data["rank"]), data["sum_values"]
    for number, color in zip(range(values.sizes["refreshes"]), plotting.SHADES, strict=False):
        one = values.isel(refreshes=number).dropna("index").values
        index = np.arange(1, 1 + len(one))
        ax.plot(index, one / one[0], color=color, marker="o", ms=3, lw=0.8)
        edge = rank * (number + 1)
        ax.annotate(f"$K = {number + 1}$", (edge, one[edge - 1] / one[0]), (3, 3),
                    textcoords="offset points", color=color)  # fmt: skip
    ax.set_xticks(range(rank, values.sizes["index"] + 1, rank))
    ax.set(yscale="log", xlabel="index $i$", ylabel=r"$\sigma_i / \sigma_1$")


THEOREM4 = Theorem(
    "theorem4",
    "GaLore and ReLoRA with a frozen factor take the same path, for any optimiser of gradients",
    FLAGS,
    (TRAJECTORY, OPTIMIZER_STATE, OTHER_PROBLEMS, OPTAX, DUALITY, GRADIENT_RANK),
    plots={"paths": plot_paths},
    check=check,
)
