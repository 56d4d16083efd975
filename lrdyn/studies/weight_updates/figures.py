"""Figures of the study beside its verdict."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def plot_reach(groups: Mapping[str, Any]) -> Any:
    """How the structure of Theorem 2 fades as a kink or a curve between the layers grows."""
    if "/nonlinear" not in groups:
        return None
    from lrdyn.figures import plotting

    name = "/nonlinear/float64" if "/nonlinear/float64" in groups else "/nonlinear"
    found = groups[name]
    with plotting.style():
        figure, axes = plotting.panels(["leaky slope a", "tanh(b x) / b"])
        for ax, kind, axis, label, powers in (
            (axes[0], "leaky", "kink", "1 – a", (1, 2)),
            (axes[1], "tanh", "bend", "b", (2, 4)),
        ):
            _plot_powers(ax, found, kind, axis, label, powers)
        axes[0].set_ylabel("off-diagonal block; energy outside 2K")
    return figure


def _plot_powers(
    ax: Any, found: Any, kind: str, axis: str, label: str, powers: tuple[int, int]
) -> None:
    """Every run as a thin line, and through the mean of their ends the power that theory gives."""
    from lrdyn.figures import plotting

    sizes, colors, ends = found[axis].values, [plotting.BLUE, plotting.ORANGE], []
    for quantity, color, power in zip(("residuals", "energies"), colors, powers, strict=True):
        curves = found[f"{kind}_{quantity}"].values.reshape(-1, len(sizes))
        ax.plot(sizes, curves.T, color=color, lw=0.6, alpha=0.7)
        ends.append(float(np.exp(np.mean(np.log(curves[:, -1])))))
        ax.plot(sizes, ends[-1] * (sizes / sizes[-1]) ** power, color="k", lw=1.0, ls="--")
    ax.set(xscale="log", yscale="log", xlabel=label)
    ax.set_xticks([sizes[0], sizes[-1]], [f"{size:g}" for size in (sizes[0], sizes[-1])])
    ax.minorticks_off()
    texts = [f"{what}, power {n}" for what, n in zip(("block", "energy"), powers, strict=True)]
    plotting.label_ends(ax, ends, texts, colors)
