"""Theory drawn over a recorded run: lines are predicted, markers are what was recorded."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lrdyn.figures import plotting
from lrdyn.recorded_runs.judge import RecordedRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Curves(NamedTuple):
    """What a panel of the overlay shows, from the arrays of a verdict."""

    field: str
    """Name of a field that theory predicts and that is recorded, its first axis the steps."""
    title: str
    ordinate: str


PANELS: dict[str, tuple[Curves, ...]] = {
    "factorization": (
        Curves("singular_values", "Singular values of the layers", r"$\sigma_i(W_l)$"),
        Curves("loss", "Loss", r"$f$"),
    ),
    "classification": (
        Curves("class_rho", "Bulk of the square layers", r"$\rho_l$"),
        Curves("class_product", "Product in the frame", r"entries of $W_L \cdots W_1 V_{1,1}$"),
    ),
    "compression": (
        Curves("error", "Error of the compressed network", r"$\Vert f - f_C \Vert_F$"),
    ),
    "trajectory": (
        Curves("training_loss", "Loss of GaLore (line) and ReLoRA", r"$f$"),
        Curves("weights", "Weights of GaLore (lines) and ReLoRA", "entries of $W$"),
    ),
}
"""Scenario -> its panels."""
MOST = 12
"""Curves of a panel, at most: those that move most."""
COLORS: Sequence[str] = (plotting.BLUE, plotting.ORANGE, plotting.GREEN, plotting.BLACK)


def overlay(found: RecordedRun) -> "Figure":
    """Draw what theory predicts from the first record over what was recorded.

    Args:
        found: what :func:`lrdyn.judge_run` returned.

    Returns:
        A figure of matplotlib; :func:`lrdyn.figures.plotting.save` writes it.
    """
    results = found.results["/"]
    curves = next(
        panels
        for panels in PANELS.values()
        if all(f"{one.field}_predicted" in results for one in panels)
    )
    steps = results["step"].values
    with plotting.style():
        figure = plotting.blank_figure(2.4)
        for ax, one in zip(np.ravel(figure.subplots(1, len(curves))), curves, strict=True):
            sides = [
                _by_step(results[f"{one.field}_{side}"].values[0], len(steps))
                for side in ("predicted", "measured")
            ]
            _draw(ax, steps, *sides)
            ax.set(xlabel="step", ylabel=one.ordinate, title=one.title)
        figure.set_label(f"{found.verdict['name']}: theory (lines) over a recorded run (markers)")
    return figure


def _by_step(values: np.ndarray, steps: int) -> np.ndarray:
    """An array of one column for each curve; the steps are the first or the last axis."""
    first = values if len(values) == steps else np.moveaxis(values, -1, 0)
    return first.reshape(steps, -1)


def _draw(ax: Any, steps: np.ndarray, predicted: np.ndarray, measured: np.ndarray) -> None:
    # Of many entries those that move most; what stays is one line below another.
    moved = np.nan_to_num(np.ptp(measured, axis=0))
    chosen = np.sort(np.argsort(-moved, kind="stable")[:MOST])
    every = max(1, len(steps) // 20)
    for place, column in enumerate(chosen):
        color = COLORS[place % len(COLORS)]
        sides = predicted[:, column], measured[:, column]
        plotting.plot_compared(ax, steps, *sides, color=color, every=every)
