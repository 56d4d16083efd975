"""Images of the pages, decoded: each is what is drawn from committed numbers, in its colours."""

import io
import itertools
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
from PIL import Image

from docs import gallery, reach, updates
from docs import pictures as of_pages
from lrdyn.figures import exhibits, pictures
from paper_figs import EXHIBITS
from tests import figure_fixtures


def shown_figures():
    """Name of an image -> what draws the figure that it shows."""
    shown = {updates.IMAGE: updates.draw} | of_pages.shown_pictures()
    for name in reach.committed():
        shown[f"reach_{name}"] = partial(reach.figure_of, name)
    for exhibit in EXHIBITS:
        if isinstance(exhibit, exhibits.Figure):
            shown[exhibit.name] = partial(figure_fixtures.drawn, exhibit.name)
            if gallery.has_two(exhibit):
                shown[gallery.image_of(exhibit.name, gallery.PAPER)] = partial(at_paper, exhibit)
    return shown


def at_paper(figure):
    """A figure at the preset paper."""
    return figure.draw_styled(gallery.numbers(figure, gallery.PAPER))


SHOWN = shown_figures()
EDGES = 2.0
"""Root mean square, out of 255, that the edges of lines and letters may differ by in a strip: those
of an image have the nearest colour of its palette, which is half of that."""
RUN, NEAR = 14, 4
"""Pixels of one colour in two rows that are no edge, as those of a step of a colour bar; and by how
much the colour may differ there: two steps of a bar may be as close."""


@cache
def committed(name):
    """The committed image, decoded."""
    with Image.open(gallery.IMAGES / f"{name}.png") as image:
        return np.asarray(image.convert("RGB"))


def difference(found, wanted):
    """Root mean square of the strip that differs most; infinite for images of other sizes."""
    if found.shape != wanted.shape:
        return np.inf
    apart = found.astype(np.int16) - wanted
    strips = np.array_split(apart, -(-len(apart) // pictures.STRIP))
    return max(float(np.sqrt(np.mean(np.square(one, dtype=np.int32)))) for one in strips)


def worst_color(found, wanted):
    """The largest difference where so many pixels in two rows of the drawing have one colour."""
    width = wanted.shape[1] - RUN + 1
    red, green, blue = np.moveaxis(wanted.astype(np.int32), -1, 0)
    colors = red << 16 | green << 8 | blue  # of one number they are compared sooner
    beside, below = colors[:, 1:] == colors[:, :-1], colors[1:] == colors[:-1]
    flat = below[:, :width].copy()
    for row, step in itertools.product((0, 1), range(RUN - 1)):
        flat &= beside[row:][: len(flat), step : step + width]
    apart = np.abs(found[:-1, :width].astype(np.int16) - wanted[:-1, :width]).max(axis=-1)
    assert 0.5 < flat.mean() < 1
    return int(apart[flat].max())


@pytest.mark.parametrize("name", SHOWN)
def test_an_image_is_what_is_drawn(name):
    drawn = gallery.pixels_of(SHOWN[name]())
    assert difference(committed(name), drawn) < EDGES
    assert worst_color(committed(name), drawn) <= NEAR


@pytest.mark.parametrize("name", of_pages.shown_animations())
def test_an_animation_is_what_is_drawn(name):
    """Frame by frame; it repeats, rests on the last one, and a page can hold it."""
    path = gallery.IMAGES / name
    assert path.stat().st_size < 1_000_000
    drawn = io.BytesIO(of_pages.shown_animations()[name]())
    kept: Any
    wanted: Any
    with Image.open(path) as kept, Image.open(drawn) as wanted:
        assert kept.info["loop"] == 0
        assert kept.n_frames == wanted.n_frames
        durations = []
        for frame in range(kept.n_frames):
            kept.seek(frame)
            wanted.seek(frame)
            pair = [np.asarray(image.convert("RGB")) for image in (kept, wanted)]
            assert difference(*pair) < EDGES
            durations.append(kept.info["duration"])
    assert durations[-1] > 10 * max(durations[:-1])


def test_no_image_would_pass_for_another():
    """The two that are closest are far enough apart, so that a swap of any two fails."""
    assert {path.stem for path in gallery.IMAGES.glob("*.png")} == {*SHOWN}
    pairs = itertools.combinations(sorted(SHOWN), 2)
    closest = min((difference(committed(a), committed(b)), a, b) for a, b in pairs)
    # An image is within EDGES of what it shows, which is then farther than that from any other.
    assert closest[0] > 2 * EDGES, closest


def test_clusters_of_colours_are_noticed():
    """As the images had them: a map whose end is yellow had an orange one."""
    drawn = gallery.pixels_of(SHOWN["theorem2"]())
    clusters = Image.fromarray(drawn).quantize(128).convert("RGB")
    assert worst_color(np.asarray(clusters), drawn) > 5 * NEAR
    assert worst_color(np.asarray(gallery.reduce_colors(drawn).convert("RGB")), drawn) <= NEAR


def test_images_are_small():
    sizes = {path.stem: path.stat().st_size for path in gallery.IMAGES.glob("*.png")}
    assert max(sizes.values()) < 300_000
