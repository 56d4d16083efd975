"""Figures of the study beside its verdict."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lrdyn.studies.weight_updates.nonlinear import ReachMeasured
from lrdyn.verification.stating import fields


def plot_reach(groups: Mapping[str, Any]) -> Any:
    """How the structure of Theorem 2 fades as a kink or a curve between the layers grows."""
    if "/nonlinear" not in groups:
        return None
    from lrdyn.figures import plotting

    double = "/nonlinear/float64"
    run = fields.of_run(groups[double if double in groups else "/nonlinear"], ReachMeasured)
    figure, axes = plotting.panels(["leaky slope a", "tanh(b x) / b"])
    plot_powers(
        axes[0],
        run(lambda run: run.kink).values,
        blocks=run(lambda run: run.leaky_residuals).values,
        energies=run(lambda run: run.leaky_energies).values,
        powers=(1, 2),
        label="1 – a",
    )
    plot_powers(
        axes[1],
        run(lambda run: run.bend).values,
        blocks=run(lambda run: run.tanh_residuals).values,
        energies=run(lambda run: run.tanh_energies).values,
        powers=(2, 4),
        label="b",
    )
    axes[0].set_ylabel("off-diagonal block; energy outside 2K")
    return figure


def plot_powers(
    ax: Any,
    sizes: np.ndarray,
    *,
    blocks: np.ndarray,
    energies: np.ndarray,
    powers: tuple[int, int],
    label: str,
) -> None:
    """Every run as a thin line, and through the mean of their ends the power that theory gives."""
    from lrdyn.figures import plotting

    colors, ends = [plotting.BLUE, plotting.ORANGE], []
    for values, color, power in zip((blocks, energies), colors, powers, strict=True):
        curves = values.reshape(-1, len(sizes))
        ax.plot(sizes, curves.T, color=color, lw=0.6, alpha=0.7)
        ends.append(float(np.exp(np.mean(np.log(curves[:, -1])))))
        ax.plot(sizes, ends[-1] * (sizes / sizes[-1]) ** power, color="k", lw=1.0, ls="--")
    ax.set(xscale="log", yscale="log", xlabel=label)
    ax.set_xticks([sizes[0], sizes[-1]], [f"{size:g}" for size in (sizes[0], sizes[-1])])
    ax.minorticks_off()
    texts = [f"{name}, power {n}" for name, n in zip(("block", "energy"), powers, strict=True)]
    plotting.label_ends(ax, ends, texts, colors)
