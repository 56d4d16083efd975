"""Figures of the study beside its verdict."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def plot_reach(groups: Mapping[str, Any]) -> Any:
    """How the structure of Theorem 2 fades as a kink or a curve between the layers grows."""
    if "/nonlinear" not in groups:
        return None
    from lrdyn.drawing import plotting

    name = "/nonlinear/float64" if "/nonlinear/float64" in groups else "/nonlinear"
    found = groups[name]
    with plotting.style():
        figure, axes = plotting.panels(["leaky slope a", "tanh(b x) / b"])
        for ax, kind, axis, label, powers in (
            (axes[0], "leaky", "kink", "1 – a", (1, 2)),
            (axes[1], "tanh", "bend", "b", (2, 4)),
        ):
            sizes = found[axis].values
            for quantity, color, power in zip(
                ("residuals", "energies"), (plotting.BLUE, plotting.ORANGE), powers, strict=True
            ):
                curves = found[f"{kind}_{quantity}"].values.reshape(-1, len(sizes))
                ax.plot(sizes, curves.T, color=color, lw=0.6, alpha=0.7)
                line = np.exp(np.mean(np.log(curves[:, -1]))) * (sizes / sizes[-1]) ** power
                ax.plot(sizes, line, color=plotting.BLACK, lw=1.0, ls="--")
                ax.annotate(f"power {power}", (sizes[0], line[0]), (0, 6),
                            textcoords="offset points", color=color)  # fmt: skip
            ax.set(xscale="log", yscale="log", xlabel=label)
        axes[0].set_ylabel("off-diagonal block; energy outside 2K")
    return figure
