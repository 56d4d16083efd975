"""What completion draws: recovery errors over the steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lrdyn.drawing import plotting

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure


def plot_recovery(groups: Mapping[str, xr.Dataset]) -> Figure:
    """Draw the recovery errors over the steps, for the first point of the sweep and every seed.

    Args:
        groups: content of ``results.nc``.

    Returns:
        The matplotlib figure.
    """
    entries, sensing = (_first_point(groups[name]) for name in ("/", "/sensing"))
    networks = {
        "full": ("full_error", plotting.BLACK, "-"),
        "compressed, spectral start": ("spectral_error", plotting.BLUE, "-"),
        "compressed, gradient basis": ("basis_error", plotting.ORANGE, "--"),
        "the same basis, fixed": ("fixed_error", plotting.PINK, "-"),
    }
    with plotting.style():
        figure, axes = plotting.panels(["observed entries", "Gaussian measurements"])
        for ax, data in zip(axes, (entries, sensing), strict=True):
            for label, (name, color, dashes) in networks.items():
                if name in data:
                    lines = ax.plot(data["step"], data[name].T, color=color, ls=dashes, lw=0.9)
                    lines[0].set_label(label)
            ax.set(yscale="log", xlabel="step t", xlim=(0, int(data["step"][-1])))
        axes[0].set_ylabel(r"recovery error $\Vert f - \Phi \Vert_F / \Vert \Phi \Vert_F$")
        axes[1].legend(
            handles=axes[0].get_legend_handles_labels()[0],
            loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0,
        )  # fmt: skip
    return figure


def _first_point(results: xr.Dataset) -> xr.Dataset:
    others = [dim for dim in results["full_error"].dims if dim not in ("seed", "step")]
    return results.isel(dict.fromkeys(others, 0)).transpose("seed", "step", ...)
