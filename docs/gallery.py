"""Write ``figures.md`` and its images from the committed numbers: ``python -m docs.gallery``."""

import re
import sys
import textwrap
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import xarray as xr
from PIL import Image

from lrdyn.engine import results
from lrdyn.figures import exhibits, long, plotting
from paper_figs import BASELINES, EXHIBITS

PAGE = Path(__file__).with_name("figures.md")
IMAGES = Path(__file__).with_name("images")
DPI = 300
COLORS = 128
"""Of the palette of an image: a third of the bytes, and nothing that is seen."""
INTRODUCTION = """\
# Figures and tables

Every figure and table with its caption and the command that makes it, as PNG, PDF and text, in
`results/figures/`. Here they are drawn from the committed numbers in `paper_figs/baselines/`, by
`python -m docs.gallery`. `python -m paper_figs check` compares new numbers with these, and how they
are drawn ([how](ci.md)).
"""


def numbers(exhibit: exhibits.Exhibit) -> xr.Dataset:
    """Load the committed numbers of a figure or table."""
    committed = results.load(BASELINES / f"{exhibit.name}.nc")["/"]
    return committed.assign_attrs(drawn_from=long.COMMITTED) if exhibit.long else committed


def section(exhibit: exhibits.Exhibit) -> Iterator[str]:
    """Lines about one figure or table."""
    dataset = numbers(exhibit)
    command = f"python -m paper_figs {exhibit.name}"
    yield f"## {exhibit.name}: {exhibit.title}"
    yield ""
    if isinstance(exhibit, exhibits.Figure):
        yield f"![{exhibit.title}](images/{exhibit.name}.png)"
        yield ""
        yield f"`{command}`"
    else:
        yield "```console parsed takes longer than a page should"
        yield f"$ {command}"
        yield exhibit.shown(dataset).rstrip()
        yield "```"
    yield ""
    text = " ".join(exhibits.caption(exhibit, dataset).split())
    yield escaped(text.removeprefix(f"{exhibit.name}. {exhibit.title}. "))
    if exhibit.notes:
        yield ""
        yield escaped(" ".join(exhibits.notes(exhibit, dataset).split()))


def escaped(text: str) -> str:
    """Text in which Markdown finds no signs of its own, wrapped."""
    return textwrap.fill(re.sub(r"([\\*_<])", r"\\\1", text), 100)


def written() -> str:
    """The whole page."""
    sections = ("\n".join(section(exhibit)) for exhibit in EXHIBITS)
    return "\n".join([INTRODUCTION, *(f"{text}\n" for text in sections)])


def draw(names: list[str]) -> None:
    """Draw the images, those of these figures or, without a name, all."""
    for exhibit in EXHIBITS:
        if isinstance(exhibit, exhibits.Figure) and (not names or exhibit.name in names):
            save(exhibit.drawn(numbers(exhibit)), exhibit.name)


def save(figure: Any, name: str) -> None:
    """Save a figure as an image of a page."""
    IMAGES.mkdir(exist_ok=True)
    with plotting.style(), BytesIO() as whole:
        figure.savefig(whole, dpi=DPI, format="png", metadata={"Software": None})
        reduced = Image.open(whole).convert("RGB").quantize(COLORS)
        reduced.save(IMAGES / f"{name}.png", optimize=True, dpi=(DPI, DPI))


if __name__ == "__main__":
    draw(sys.argv[1:])
    PAGE.write_text(written())
