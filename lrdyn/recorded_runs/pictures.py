"""Theory drawn over a recorded run: lines are predicted, markers are what was recorded."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import xarray as xr

from lrdyn.figures import overlay

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Curves(NamedTuple):
    """What a panel shows, from the arrays of a verdict."""

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


def plot_run(results: xr.Dataset) -> "Figure":
    """Draw what theory predicts from the first record over what was recorded.

    Args:
        results: predicted and recorded arrays side by side, those of a
            :class:`lrdyn.recorded_runs.RecordedRun`.

    Returns:
        A figure of matplotlib; :func:`lrdyn.figures.save` writes it.
    """
    shown = next(
        panels
        for panels in PANELS.values()
        if all(f"{one.field}_predicted" in results for one in panels)
    )
    steps = results["step"].values
    run, theory = (
        xr.Dataset(
            {
                one.field: (
                    ("step", f"{one.field}_curve"),
                    _by_step(results[f"{one.field}_{side}"].values[0], len(steps)),
                    {"long_name": one.title},
                )
                for one in shown
            },
            {"step": steps},
        )
        for side in ("measured", "predicted")
    )
    figure = overlay(run, theory)
    for ax, one in zip(figure.axes, shown, strict=True):
        ax.set_ylabel(one.ordinate)
    return figure


def _by_step(values: np.ndarray, steps: int) -> np.ndarray:
    """An array of one column for each curve; the steps are the first or the last axis."""
    first = values if len(values) == steps else np.moveaxis(values, -1, 0)
    return first.reshape(steps, -1)
