"""What completion draws: recovery errors over the steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lrdyn.figures import plotting

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

NETWORKS = {
    "full": ("full_error", plotting.BLACK, "-"),
    "compressed, spectral start": ("spectral_error", plotting.BLUE, "-"),
    "compressed, gradient basis": ("basis_error", plotting.ORANGE, "--"),
    "the same basis, fixed": ("fixed_error", plotting.PINK, "-"),
}


def plot_recovery(groups: Mapping[str, xr.Dataset]) -> Figure:
    """Draw the recovery errors over the steps, for the first point of the sweep and every seed."""
    with plotting.style():
        figure, axes = plotting.panels(["observed entries", "Gaussian measurements"])
        for ax, group in zip(axes, ("/", "/sensing"), strict=True):
            data = plotting.first_point(groups[group], "seed", "step", of="full_error")
            for label, (name, color, dashes) in NETWORKS.items():
                if name in data:
                    curves = data[name].transpose("step", "seed")
                    lines = ax.plot(data["step"], curves, color=color, ls=dashes, lw=0.9)
                    lines[0].set_label(label)
            ax.set(yscale="log", xlabel="step t", xlim=(0, int(data["step"][-1])))
        axes[0].set_ylabel(r"recovery error $\Vert f - \Phi \Vert_F / \Vert \Phi \Vert_F$")
        axes[1].legend(handles=axes[0].get_legend_handles_labels()[0], **plotting.BESIDE)
    return figure
