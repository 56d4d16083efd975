"""Write ``figures.md`` and its images from the committed numbers: ``python -m docs.gallery``."""

import json
import re
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from PIL import Image
from scipy.spatial import KDTree

from lrdyn.figures import baselines, exhibits, long, plotting
from lrdyn.verification.storing import results_file
from paper_figs import BASELINES, EXHIBITS

PAGE = Path(__file__).with_name("figures.md")
IMAGES = Path(__file__).with_name("images")
DPI = 300
COLORS, MOST, NEAR = 256, 224, 4
"""Of the palette of an image, a third of the bytes; how many of them are colours of areas, as they
are, while the others stand for the edges of lines and letters; and by how much, of 255, the colour
of an area may differ where these are too few, as the next step of a colour bar does."""
RUN = (2, 14)
"""Rows and columns of pixels of one colour that belong to an area: edges change sooner, or are
straight; those of a curve that is nearly flat are a row high."""
INTRODUCTION = """\
# Figures and tables

Every figure and table, with its caption and the command that makes it as PNG, PDF and text in
`results/figures/` ([in a clone](commands.md#where-commands-run)): `python -m paper_figs fig03`.
Click a picture to see it in full.

Without a clone there is no `paper_figs`. With the installed package, `lrdyn verify theorem2` draws
the figures of a theorem into the folder that its last line names, and `lrdyn figures init` begins
figures of your own ([draw your own](draw-your-own.md)).

Most figures compute their numbers, in seconds to half a minute. The figures of trainings do not
train by default: `python -m paper_figs %s` draws them from your results, or else from the committed
numbers, and the caption says which. `--train` makes new results, which takes data sets and minutes
to hours ([details](studies.md)). Computed figures have the sizes of the preset `quick`. If the
preset `paper` has other sizes, they are also shown at those, with the minutes that it took.

On this page all figures are drawn from the committed numbers in `paper_figs/baselines/`, by
`python -m docs.gallery`. `python -m paper_figs check` compares new numbers and drawings with these
([how](ci.md)); with `--preset paper` it uses that preset.
"""


QUICK, PAPER = baselines.QUICK, "paper"


def numbers(exhibit: exhibits.Exhibit, preset: str = QUICK) -> xr.Dataset:
    """Load the committed numbers of a figure or table."""
    folder = baselines.folder_of(exhibit, BASELINES, preset)
    committed = results_file.load(folder / f"{exhibit.name}.nc")["/"]
    return committed.assign_attrs(drawn_from=long.COMMITTED) if exhibit.long else committed


def has_two(exhibit: exhibits.Exhibit) -> bool:
    """Whether numbers of both presets are committed."""
    return baselines.folder_of(exhibit, BASELINES, PAPER) != BASELINES


def section(exhibit: exhibits.Exhibit) -> Iterator[str]:
    """Lines about one figure or table."""
    dataset = numbers(exhibit)
    title = exhibits.headline(exhibit, dataset)
    command = f"python -m paper_figs {exhibit.name}"
    yield f"## {exhibit.name}: {title}"
    yield ""
    if isinstance(exhibit, exhibits.Figure):
        yield f"![{title}](images/{exhibit.name}.png)"
        yield ""
        yield f"`{command}`"
    else:
        yield "```console parsed takes longer than a page should"
        yield f"$ {command}"
        yield exhibit.terminal_text(dataset).rstrip()
        yield "```"
    yield ""
    text = " ".join(exhibits.caption(exhibit, dataset).split())
    yield escaped(text.removeprefix(f"{exhibit.name}. {title}. "))
    if exhibit.notes:
        yield ""
        yield escaped(" ".join(exhibits.notes(exhibit, dataset).split()))
    if not exhibit.long and not has_two(exhibit):
        yield ""
        yield f"The preset `paper` is the same: {took(dataset)}."
    if has_two(exhibit):
        yield from at_paper_preset(exhibit)


def at_paper_preset(exhibit: exhibits.Exhibit) -> Iterator[str]:
    """Lines about the same figure at the preset ``paper``: what it took, and its own numbers."""
    dataset = numbers(exhibit, PAPER)
    title = exhibits.headline(exhibit, dataset)
    yield ""
    yield f"### {exhibit.name} at the preset paper"
    yield ""
    yield f"![{title}, preset paper](images/{image_of(exhibit.name, PAPER)}.png)"
    yield ""
    yield f"`python -m paper_figs {exhibit.name} --preset paper`: {took(dataset)}."
    yield ""
    text = " ".join(exhibits.caption(exhibit, dataset).split())
    yield escaped(text.removeprefix(f"{exhibit.name}. {title}. "))


def took(dataset: xr.Dataset) -> str:
    """How long numbers took, on what, in words."""
    where = json.loads(dataset.attrs["environment"])
    minutes = dataset.attrs["seconds_taken"] / 60
    on = f"JAX {where['jax']}, revision {where['git']}"
    return f"{minutes:.2g} minutes on a {where['platform'].upper()} ({on})"


def image_of(name: str, preset: str) -> str:
    """Stem of the image of a figure."""
    return name if preset == QUICK else f"{name}_{preset}"


def escaped(text: str) -> str:
    """Text in which Markdown finds no signs of its own, wrapped."""
    return exhibits.wrap(re.sub(r"([\\*_<])", r"\\\1", text))


def thumbnails() -> str:
    """A small image of each figure, which leads to its section."""
    figures = [exhibit for exhibit in EXHIBITS if isinstance(exhibit, exhibits.Figure)]
    images = (f'<img src="images/{one.name}.png" alt="{one.name}" width="160">' for one in figures)
    titles = (f"{one.name}: {exhibits.headline(one, numbers(one))}" for one in figures)
    return "\n".join(
        f"[{image}](#{anchor(title)})" for image, title in zip(images, titles, strict=True)
    )


def anchor(heading: str) -> str:
    """Where a heading is on its page, as code hosts and the site name it.

    Example:
        >>> anchor("fig09: GaLore is ReLoRA, + one")
        'fig09-galore-is-relora--one'
    """
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def written() -> str:
    """The whole page."""
    sections = ("\n".join(section(exhibit)) for exhibit in EXHIBITS)
    trained = " ".join(exhibit.name for exhibit in EXHIBITS if exhibit.long)
    parts = (thumbnails() + "\n", *(f"{text}\n" for text in sections))
    return "\n".join([INTRODUCTION % trained, *parts])


def draw(names: list[str]) -> None:
    """Draw the images, those of these figures or, without a name, all."""
    for exhibit in EXHIBITS:
        if not isinstance(exhibit, exhibits.Figure) or (names and exhibit.name not in names):
            continue
        for preset in (QUICK, PAPER) if has_two(exhibit) else (QUICK,):
            save(exhibit.draw_styled(numbers(exhibit, preset)), image_of(exhibit.name, preset))


def save(figure: Any, name: str) -> None:
    """Save a figure as an image of a page."""
    IMAGES.mkdir(exist_ok=True)
    reduced = reduce_colors(pixels_of(figure))
    reduced.save(IMAGES / f"{name}.png", optimize=True, dpi=(DPI, DPI))


def pixels_of(figure: Any) -> np.ndarray:
    """A figure as a page shows it: rows, columns, and red, green and blue up to 255."""
    with plotting.style(), BytesIO() as whole:
        figure.savefig(whole, dpi=DPI, format="png", **plotting.LIGHTLY)
        return np.asarray(Image.open(whole).convert("RGB"))


def reduce_colors(pixels: np.ndarray) -> Image.Image:
    """An image with a palette, if areas keep their colours in it; else one with all colours.

    A palette of clusters would give a curve or a part of a colour bar the mean of its neighbours.
    """
    # One number for each colour: rows of three take ten times as long to sort.
    red, green, blue = np.moveaxis(pixels.astype(np.int64), -1, 0)
    codes = red << 16 | green << 8 | blue
    found, places, counts = np.unique(codes, return_inverse=True, return_counts=True)
    colors = np.stack([found >> 16, found >> 8 & 255, found & 255], axis=1).astype(np.uint8)
    places = places.reshape(codes.shape)
    windows = np.lib.stride_tricks.sliding_window_view(places, RUN)
    within = windows[..., 0, 0][(windows == windows[..., :1, :1]).all(axis=(-1, -2))]
    in_areas = np.bincount(within, minlength=len(colors))
    order = np.lexsort((-counts, -in_areas))
    palette, rest = colors[order[:MOST]], colors[order[MOST:]]
    if len(rest):
        # This method keeps the largest difference small, whatever the counts.
        others = Image.fromarray(rest[None]).quantize(COLORS - MOST, Image.Quantize.MAXCOVERAGE)
        palette = np.concatenate([palette, np.asarray(others.convert("RGB"))[0]])
        palette = np.unique(palette, axis=0)
    _, nearest = KDTree(palette).query(colors)
    changed = np.abs(palette[np.asarray(nearest)].astype(int) - colors).max(axis=1)
    if np.any(changed[in_areas > 0] > NEAR):
        return Image.fromarray(pixels)
    image = Image.fromarray(np.asarray(nearest)[places].astype(np.uint8), "P")
    image.putpalette(palette.tobytes())
    return image


if __name__ == "__main__":
    draw(sys.argv[1:])
    PAGE.write_text(written())
