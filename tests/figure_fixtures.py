"""Figures of this repository, drawn from committed numbers, for tests that look at all of them."""

from docs import gallery
from lrdyn.figures import exhibits
from paper_figs import BASELINES, EXHIBITS

FIGURES = {
    exhibit.name: exhibit
    for exhibit in EXHIBITS
    if isinstance(exhibit, exhibits.Figure) and (BASELINES / f"{exhibit.name}.nc").exists()
}
NAMES = sorted(FIGURES)


def drawn(name):
    """A figure, drawn anew."""
    return FIGURES[name].draw_styled(gallery.numbers(FIGURES[name]))


def letters(exhibit, baselines):
    """Letters of the panels that curves are said to stand in."""
    if exhibit.name not in FIGURES:
        return []
    return sorted({letter for panels in exhibit.panels.values() for letter in panels})
