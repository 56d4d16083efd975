"""Figures of this repository, drawn from committed numbers, for tests that look at all of them."""

import functools
import pickle

from docs import gallery
from lrdyn.figures import exhibits
from paper_figs import BASELINES, EXHIBITS

FIGURES = {
    exhibit.name: exhibit
    for exhibit in EXHIBITS
    if isinstance(exhibit, exhibits.Figure) and (BASELINES / f"{exhibit.name}.nc").exists()
}
NAMES = sorted(FIGURES)


@functools.cache
def numbers(name):
    """Its committed numbers, read once: for those who change nothing in them."""
    return gallery.numbers(FIGURES[name])


@functools.cache
def _packed(name):
    return pickle.dumps(FIGURES[name].draw_styled(numbers(name)))


def drawn(name):
    """A figure of one's own, of the one that is drawn once: it takes a tenth of the time."""
    return pickle.loads(_packed(name))


def letters(exhibit, baselines):
    """Letters of the panels that curves are said to stand in."""
    if exhibit.name not in FIGURES:
        return []
    return sorted({letter for panels in exhibit.panels.values() for letter in panels})
