"""Figure of optax's GaLore: its distance from Algorithm 1, with three projectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from lrdyn.figures import plotting
from lrdyn.galore.path_claims import PathMeasured, PathTheory
from lrdyn.verification.stating.fields import of_run, of_theory

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure


def plot_distances(groups: Mapping[str, xr.Dataset]) -> Figure:
    """Draw the largest difference of weights over the largest weight, at each recorded step.

    All flags have their first values. The control on the smaller side has settings of its own.
    """
    first = plotting.first_point(groups["/"])
    curves = [
        (first, lambda theory: theory.optax_same, "P in float32", plotting.BLUE),
        (first, lambda theory: theory.optax_precise, "P in the run's precision", plotting.GREEN),
    ]
    name = f"/controls/smaller_side/{first['optax_same_measured'].dtype}"
    if name in groups:
        control = plotting.first_point(groups[name])
        curves.append(
            (control, lambda theory: theory.optax_same, "P on the smaller side", plotting.ORANGE)
        )
    figure, (ax,) = plotting.panels(["optax's GaLore and Algorithm 1"])
    for data, predicted, label, color in curves:
        theory, run = of_theory(data, PathTheory), of_run(data, PathMeasured)
        path = run(lambda run: run.optax_same).values
        apart = np.max(np.abs(theory(predicted).values - path), axis=-1) / np.max(np.abs(path))
        steps = run(lambda run: run.step).values
        # An agreement to the last bit has no logarithm, and a line to it no meaning.
        apart = np.where(apart > 0, apart, np.nan)
        ax.plot(steps, apart, color=color, marker="o", ms=3, label=label)
    ax.set(yscale="log", xlabel="step", ylabel="difference / largest weight")
    ax.legend(**plotting.BESIDE)
    return figure
