"""What completion draws: recovery errors over the steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lrdyn.completion.problem import CompletionMeasured, CompletionTheory
from lrdyn.figures import plotting
from lrdyn.verification.stating import fields

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure


def plot_recovery(groups: Mapping[str, xr.Dataset]) -> Figure:
    """Draw the recovery errors over the steps, for the first point of the sweep and every seed."""
    figure, axes = plotting.panels(["observed entries", "Gaussian measurements"])
    for ax, group in zip(axes, ("/", "/sensing"), strict=True):
        data = plotting.first_point(groups[group], "seed")
        theory = fields.of_theory(data, CompletionTheory)
        run = fields.of_run(data, CompletionMeasured)
        curves = {
            "full": (theory(lambda theory: theory.full_error), plotting.BLACK, "-"),
            "compressed, spectral start": (
                run(lambda run: run.spectral_error),
                plotting.BLUE,
                "-",
            ),
        }
        if group == "/":
            curves |= {
                "compressed, gradient basis": (
                    run(lambda run: run.basis_error),
                    plotting.ORANGE,
                    "--",
                ),
                "compressed, fixed gradient basis": (
                    run(lambda run: run.fixed_error),
                    plotting.PINK,
                    "-",
                ),
            }
        steps = theory(lambda theory: theory.step)
        for label, (error, color, dashes) in curves.items():
            lines = ax.plot(steps, error.transpose("step", "seed"), color=color, ls=dashes, lw=0.9)
            lines[0].set_label(label)
        ax.set(yscale="log", xlabel="step t", xlim=(0, int(steps[-1])))
    axes[0].set_ylabel(r"recovery error $\Vert f - \Phi \Vert_F / \Vert \Phi \Vert_F$")
    # The left panel has all curves, and only beside the right one there is room.
    axes[1].legend(handles=axes[0].get_legend_handles_labels()[0], **plotting.BESIDE)
    return figure
