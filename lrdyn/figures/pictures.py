"""Committed pictures: PNGs without text, which no font moves, and where another one differs."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lrdyn.figures import looks, plotting
from lrdyn.system import whole_files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 100
TOLERANCE = 1.0
"""Root mean square over the pixels and colours of a strip, out of 255, that two pictures may differ
by. Equal numbers and looks give 0 with one Matplotlib, and some tenths with another's rendering of
the edges of lines; a thin curve of another colour in one panel of four gives about 2."""
STRIP = 400
"""Rows of pixels of a strip, at most: over all of a tall picture one panel counts for little."""


def remove_text(figure: Figure) -> Figure:
    """Take all text from a figure, in place, so that its layout no longer knows of fonts.

    Example:
        >>> figure, (ax,) = plotting.panels(["loss"])
        >>> remove_text(figure) is figure, ax.get_title(loc="left")
        (True, '')
    """
    from matplotlib.text import Text
    from matplotlib.ticker import NullFormatter

    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(NullFormatter())
            axis.set_minor_formatter(NullFormatter())
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_text("")
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG without its text, which it loses, atomically."""
    from PIL import Image

    remove_text(figure)
    with plotting.style(), whole_files.replace_file(path) as temporary:
        # Without the name of the release, which would change the committed bytes at every upgrade.
        figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})
        # No pixel is transparent: three channels say the same in a tenth less.
        with Image.open(temporary) as picture:
            opaque = picture.convert("RGB")
        # Where there are few colours a byte names one, and nothing is lost.
        if opaque.getcolors(256):
            opaque = opaque.convert("P", palette=Image.Palette.ADAPTIVE, colors=256)
        temporary.write_bytes(encode_png(opaque))


def encode_png(picture: Any) -> bytes:
    """A picture as PNG whose rows are not filtered, or as Pillow filters them if that is less.

    Pillow predicts each row of an RGB picture from its neighbours, as suits photographs: lines on
    white are an eighth smaller without.

    Args:
        picture: a picture of Pillow, RGB or with a palette.

    Example:
        >>> from PIL import Image
        >>> picture = Image.new("RGB", (3, 2), "red")
        >>> Image.open(io.BytesIO(encode_png(picture))).getpixel((2, 1))
        (255, 0, 0)
    """
    filtered = io.BytesIO()
    picture.save(filtered, format="PNG", optimize=True)
    if picture.mode != "RGB":
        return filtered.getvalue()
    rows = np.asarray(picture).reshape(picture.height, -1)
    # A byte 0 in front of a row says that it is as it is.
    packed = zlib.compress(np.insert(rows, 0, 0, axis=1).tobytes(), 9)
    header = struct.pack(">2I5B", picture.width, picture.height, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", packed), (b"IEND", b""))
    )
    return min(content, filtered.getvalue(), key=len)


class Place(NamedTuple):
    """Where two pictures differ most."""

    panel: str
    curve: str
    """The curve next to it."""
    x: float
    y: float


def difference(figure: Figure, wanted: Path) -> str:
    """Compare a figure, without its text, with a committed picture; empty if they agree.

    The measure is Matplotlib's own, that of pytest-mpl, of the strip that differs most.
    """
    from matplotlib.testing.compare import calculate_rms

    with whole_files.scratch_folder() as folder:
        picture = folder / "found.png"
        save(figure, picture)
        try:
            committed, found = _pixels(wanted), _pixels(picture)
        except Exception as error:  # no picture
            return f"picture: {str(error).splitlines()[0]}"
        if committed.shape != found.shape:
            sizes = ("{1} x {0}".format(*pixels.shape) for pixels in (found, committed))
            return "picture: Image sizes do not match: {}, wanted {}".format(*sizes)
        count = -(-len(found) // STRIP)
        strips = zip(*(np.array_split(pixels, count) for pixels in (committed, found)), strict=True)
        differs = max(calculate_rms(*both) for both in strips)
        if differs <= TOLERANCE:
            return ""
        panel, curve, x, y = _worst_place(figure, picture, wanted)
    where = f"{panel}: picture, next to {curve} at ({x:.3g}, {y:.3g})"
    return f"{where}: root mean square {differs:.1f} of 255 (tolerance {TOLERANCE:g})"


def _pixels(path: Path) -> np.ndarray:
    """The colours of a picture, as numbers whose differences have signs."""
    from PIL import Image

    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(np.int16)


BLOCK = 8
"""Pixels of the squares that are compared to find the place."""


def _worst_place(figure: Figure, picture: Path, wanted: Path) -> Place:
    from matplotlib.image import imread

    apart = np.abs(imread(picture)[..., :3] - imread(wanted)[..., :3]).sum(axis=2)
    rows, columns = (size // BLOCK for size in apart.shape)
    blocks = apart[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK)
    row, column = np.unravel_index(np.argmax(blocks.sum(axis=(1, 3))), (rows, columns))
    scale = figure.dpi / DPI  # pixels of the file to those of the transforms
    place = scale * np.array([(column + 0.5) * BLOCK, apart.shape[0] - (row + 0.5) * BLOCK])
    ends = [ax.get_window_extent() for ax in figure.axes]
    outside = [
        max(end.x0 - place[0], place[0] - end.x1, 0) + max(end.y0 - place[1], place[1] - end.y1, 0)
        for end in ends
    ]
    at = int(np.argmin(outside))
    ax = figure.axes[at]
    x, y = ax.transData.inverted().transform(place)
    return Place(looks.panel_names(figure)[at], _nearest_line(ax, place), float(x), float(y))


def _nearest_line(ax: Axes, place: np.ndarray) -> str:
    """The line that passes nearest to a place in pixels."""
    distances = []
    for line in ax.lines:
        points = line.get_transform().transform(line.get_xydata())
        gaps = np.hypot(*(points - place).T)
        distances.append(np.min(gaps, initial=np.inf, where=np.isfinite(gaps)))
    return f"curve {1 + int(np.argmin(distances))}" if distances else "no curve"
