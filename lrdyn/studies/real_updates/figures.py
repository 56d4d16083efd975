"""The figure of the study: energy against rank by kind of layer, and a table of ranks."""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from lrdyn.core import chance
from lrdyn.studies.real_updates.energies import EnergyMeasured
from lrdyn.verification.stating import fields

MOST = 8
"""Kinds that are drawn, the ones with the most energy."""
GRID = np.linspace(0, 1, 101)
"""r / min(m, n) at which energies are drawn."""


def kind_of(name: str) -> str:
    """A name of a matrix without the numbers of its layers, and without ``weight``.

    Example:
        >>> kind_of("encoder.layer.11.attention.self.query.weight")
        'attention.self.query'
        >>> kind_of("layers.0.W"), kind_of("W")
        ('W', 'W')
    """
    words = re.sub(r"\.weight$", "", name).split(".")
    numbers = [i for i, word in enumerate(words) if word.isdigit()]
    return ".".join(words[numbers[-1] + 1 :] if numbers and numbers[-1] + 1 < len(words) else words)


def name_of(letters: np.ndarray) -> str:
    """A name from the numbers of its letters.

    Example:
        >>> name_of(np.array([87, 49, 0]))
        'W1'
    """
    return "".join(chr(int(letter)) for letter in letters if letter > 0)


def energies_at(values: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Share of the squared norm in the first r values, r / min(m, n) one of some shares.

    Between two ranks the share is drawn straight.

    Example:
        >>> energies_at(np.array([3.0, 1.0]), np.array([0.0, 0.5, 0.75])).round(3).tolist()
        [0.0, 0.9, 0.95]
    """
    known = values[np.isfinite(values)]
    sums = np.concatenate([[0.0], np.cumsum(known**2)])
    # An update that is 0 has no shares: its curve is 0.
    return np.interp(shares, np.arange(len(sums)) / len(known), sums / max(sums[-1], 1e-300))


class Updates(NamedTuple):
    """What a run counted, and its matrices by kind."""

    values: Float[np.ndarray, "matrix index"]
    ranks: Float[np.ndarray, "matrix share"]
    shapes: Int[np.ndarray, "matrix side"]
    kinds: dict[str, list[int]]
    """Kind -> places of its matrices that moved."""


def read_updates(root: Any) -> Updates:
    """Read what the dataset of a run, of its first seed, says of each update."""
    run = fields.of_run(root.isel(seed=0), EnergyMeasured)
    values = run(lambda run: run.values).values
    kinds: dict[str, list[int]] = {}
    for place, letters in enumerate(run(lambda run: run.name).values):
        if np.nansum(values[place] ** 2) > 0:
            kinds.setdefault(kind_of(name_of(letters)), []).append(place)
    ranks, shapes = run(lambda run: run.rank_with).values, run(lambda run: run.shape).values
    return Updates(values, ranks, shapes.astype(int), kinds)


def plot_energies(groups: Mapping[str, Any]) -> Any:
    """Energies of all matrices by kind beside chance and 2K, and ranks with .9 and .99 of them."""
    from lrdyn.figures import plotting

    root = groups["/"]
    values, ranks, shapes, kinds = read_updates(root)
    outputs = int(json.loads(root.attrs["fixed"]).get("outputs", 0))
    order = sorted(kinds, key=lambda kind: -np.nansum(values[kinds[kind]] ** 2))[:MOST]
    height = max(2.6, 0.9 + 0.26 * len(order))
    figure, axes = plotting.panels(
        ["energy in the first r", "median r with .9, .99 of it"], height=height
    )
    colors = [*plotting.SHADES, plotting.BLUES[2], plotting.ORANGES[0]][: len(order)]
    for kind, color in zip(order, colors, strict=True):
        shares = np.array([energies_at(values[i], GRID) for i in kinds[kind]])
        axes[0].plot(GRID, shares.mean(axis=0), color=color, lw=1.2, label=kind)
        axes[0].fill_between(
            GRID, shares.min(axis=0), shares.max(axis=0), color=color, alpha=0.15, lw=0
        )
    _plot_chance(axes[0], shapes[kinds[order[0]][0]] if order else None, outputs)
    axes[0].set(xlabel="r / min(m, n)", ylabel="share of ||ΔW||²", xlim=(0, 1), ylim=(0, 1.02))
    _write_table(axes[1], order, kinds, ranks, shapes, colors)
    return figure


def _plot_chance(ax: Any, shape: np.ndarray | None, outputs: int) -> None:
    """A Gaussian matrix of the size of the kind that moved most, and 2K of its values."""
    if shape is None:
        return
    squares = chance.gaussian_singular_values(*map(int, shape)) ** 2
    sums = np.concatenate([[0.0], np.cumsum(squares)]) / np.sum(squares)
    ax.plot(np.linspace(0, 1, len(sums)), sums, "--", color="#6E6E6E", lw=1.0)
    ax.text(0.62, np.interp(0.62, np.linspace(0, 1, len(sums)), sums) - 0.09, "chance", fontsize=7)
    if outputs:
        place = 2 * outputs / int(min(shape))
        ax.axvline(place, color="k", lw=0.8, ls=":")
        ax.text(place + 0.01, 0.05, "2K", fontsize=7)


def _write_table(
    ax: Any,
    order: list[str],
    kinds: Mapping[str, list[int]],
    ranks: np.ndarray,
    shapes: np.ndarray,
    colors: list[Any],
) -> None:
    """Median ranks of each kind, and the shorter side."""
    from lrdyn.figures import plotting

    ax.axis("off")
    heads = ("kind", "of", ".9", ".99")
    places = (0.0, 0.74, 0.86, 1.0)
    step = 1 / (len(order) + 1.5)
    for x, head in zip(places, heads, strict=True):
        ax.text(x, 1 - step / 2, head, fontsize=7, ha="left" if x == 0 else "right", weight="bold")
    for row, (kind, color) in enumerate(zip(order, colors, strict=True)):
        mine = kinds[kind]
        short = sorted({int(min(shapes[i])) for i in mine})
        of = f"{short[0]}" if len(short) == 1 else f"{short[0]}-{short[-1]}"
        cells = (kind[-26:], of, *(f"{np.median(ranks[mine, j]):g}" for j in range(2)))
        for x, cell in zip(places, cells, strict=True):
            side = "left" if x == 0 else "right"
            ax.text(x, 1 - (row + 1.5) * step, cell, fontsize=7, ha=side, color=plotting.ink(color))
