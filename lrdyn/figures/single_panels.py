"""Panels that stand alone, for talks: one panel of a figure with all that it needs to be read."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from lrdyn.figures import plotting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

LETTERED = re.compile(r"\((\w)\) ")
"""How the title of a panel begins that can be asked for."""
LEAST_HEIGHT = 0.5
"""Height of the axis of a panel, at least, as a share of the width of the figure."""


class Unfit(ValueError):
    """There is no such panel, or its labels do not fit into the width."""


def letters_of(figure: Figure) -> dict[str, Axes]:
    """The panels of a figure by their letters; one that is alone and has none is panel a.

    Example:
        >>> figure, _ = plotting.panels(["loss", "rank"])
        >>> list(letters_of(figure))
        ['a', 'b']
        >>> figure, _ = plotting.panels(["loss"], letters=False)
        >>> list(letters_of(figure))
        ['a']
    """
    lettered = ((LETTERED.match(ax.get_title(loc="left")), ax) for ax in figure.axes)
    letters = {found[1]: ax for found, ax in lettered if found}
    return letters or ({"a": figure.axes[0]} if len(figure.axes) == 1 else {})


def keep_panel(figure: Figure, letter: str, width: float | int | str | None = None) -> Figure:
    """Leave one panel of a figure, in place, with its labels, its title, keys and colour bar.

    The panel is as high as it was, and its title has no letter. Keys that other panels have for
    it, or that all have in common, stand below it.

    Args:
        figure: a figure with lettered panels, such as that of :func:`lrdyn.figures.panels`.
        letter: that of the panel.
        width: of the figure, as of :func:`lrdyn.figures.style`; None for a column, or as much
            more as its labels need.

    Returns:
        The same figure.

    Raises:
        Unfit: there is no such panel, or its labels need a larger width.

    Example:
        >>> figure, (loss, rank) = plotting.panels(["loss", "rank"])
        >>> _ = plotting.key(loss, [plotting.entry("trained")], "upper right", serves=[rank])
        >>> keep_panel(figure, "b") is figure
        True
        >>> [ax.get_title(loc="left") for ax in figure.axes], len(figure.legends)
        (['rank'], 1)
        >>> keep_panel(figure, "z")
        Traceback (most recent call last):
        lrdyn.figures.single_panels.Unfit: panel: got 'z', wanted one of the letters a
    """
    by_letter = letters_of(figure)
    if letter not in by_letter:
        known = ", ".join(by_letter) or "none"
        raise Unfit(f"panel: got {letter!r}, wanted one of the letters {known}")
    kept, inches = by_letter[letter], plotting.inches_of(width or "column")
    with plotting.house_style(tex=getattr(figure, "with_tex", False)):
        figure.draw_without_rendering()  # which places the panels
        height = kept.get_window_extent().height / figure.dpi
        entries = _entries_for(figure, kept)
        for legend in list(figure.legends):
            legend.remove()
        if figure.get_suptitle():
            figure.suptitle("")
        bars = _remove_colour_bars(figure)
        for ax in list(figure.axes):
            if ax is not kept:
                ax.remove()
        kept.set_subplotspec(figure.add_gridspec(1, 1)[0])
        kept.xaxis.label.set_visible(True)
        kept.yaxis.label.set_visible(True)
        kept.tick_params(labelleft=True, labelbottom=True)
        kept.set_title(LETTERED.sub("", kept.get_title(loc="left"), count=1), loc="left")
        for shown in _mappables([kept]):
            if id(shown.norm) in bars:  # of one norm there is one bar
                figure.colorbar(shown, ax=kept, label=bars.pop(id(shown.norm)))
        figure.set_size_inches(inches, height + 0.8)
        if entries:
            plotting.common_key(figure, entries, serves=[])
        if own := kept.get_legend():
            own.set_in_layout(True)  # the place that was free beside it is gone
        _set_height(figure, kept, max(height, LEAST_HEIGHT * inches))
        needed = _needed_width(figure)
        if needed > inches and width is not None:
            raise Unfit(
                f"width: got {inches:g} inches for panel {letter}, whose labels need {needed:g}"
            )
        if needed > inches:
            figure.set_figwidth(needed)
            _set_height(figure, kept, height)
    return figure


def require_room(figure: Figure, name: str) -> None:
    """Refuse a figure so narrow that no axis is left beside its labels.

    Raises:
        Unfit: it is.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "constrained_layout not applied", UserWarning)
        try:
            figure.draw_without_rendering()
        except UserWarning:
            got = f"width: got {figure.get_figwidth():g} inches for {name}"
            raise Unfit(f"{got}, wanted more: beside its labels no axis is left") from None


def _needed_width(figure: Figure) -> float:
    """The width at which nothing stands out of the picture, where it would be cut off."""
    from matplotlib.backends.backend_agg import RendererAgg

    width = figure.get_figwidth()
    box = figure.get_tightbbox(RendererAgg(1, 1, figure.dpi))
    # What stands in the middle of an axis stands out on one side alone, and less as that grows.
    out = 2 * max(0.0, -box.x0, box.x1 - width)
    return width if out < 0.02 * width else float(np.ceil(10 * (width + out)) / 10)


def _mappables(axes: Iterable[Axes]) -> list[ScalarMappable]:
    return [shown for ax in axes for shown in (*ax.images, *ax.collections)]


def _remove_colour_bars(figure: Figure) -> dict[int, str]:
    """Remove the colour bars of a figure: the label of each, by the norm of its colours."""
    labels = {}
    for shown in _mappables(figure.axes):
        if shown.colorbar is not None:
            labels[id(shown.norm)] = shown.colorbar.ax.get_ylabel()
            shown.colorbar.remove()
    return labels


def _entries_for(figure: Figure, kept: Axes) -> list[Any]:
    """What keys outside of a panel say of it, each label once."""
    legend = kept.get_legend()
    said = {text.get_text() for text in legend.get_texts()} if legend else set()
    entries = []
    for shared in getattr(figure, "shared_keys", []):
        if not any(ax is kept for ax in shared.panels):
            continue
        for entry in shared.entries:
            if entry.get_label() not in said:
                said.add(entry.get_label())
                entries.append(entry)
    return entries


def _set_height(figure: Figure, kept: Axes, height: float) -> None:
    """Make the figure so high that its panel has a height, in inches."""
    # Labels and keys keep their size: what is missing once is missing.
    for _ in range(2):
        with warnings.catch_warnings():
            # Where labels leave no room Matplotlib warns; how much they need is said below.
            warnings.filterwarnings("ignore", "constrained_layout not applied", UserWarning)
            figure.draw_without_rendering()
        missing = height - kept.get_window_extent().height / figure.dpi
        figure.set_figheight(max(height, figure.get_figheight() + missing))
