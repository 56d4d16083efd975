"""What the theorem about LoRA draws: how far off compression is if a matrix is not square."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lrdyn.figures import plotting
from lrdyn.lora.compressed_deep_lora_claims import CompressedMeasured
from lrdyn.verification.stating.fields import of_run

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure


def plot_aspects(groups: Mapping[str, xr.Dataset]) -> Figure:
    """Draw the distance at the end over the aspect ratio, for the first point and every seed."""
    data = plotting.first_point(groups["/compressed"], "seed", "aspect", of="distance")
    run = of_run(data, CompressedMeasured)
    curves = run(lambda run: run.distance).transpose("aspect", "seed")
    figure, (ax,) = plotting.panels(["compressed Deep LoRA beside full width, each curve a seed"])
    ax.plot(run(lambda run: run.aspect), curves, color=plotting.BLUE, marker="o", lw=0.9)
    ax.set(xlabel="rows / columns of W", ylabel=r"$\Vert f - f_C \Vert_F / \Vert T - W_0 \Vert_F$")
    return figure
