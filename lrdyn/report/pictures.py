"""Pictures of a report: PNG files within the page, each with what it shows in words."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lrdyn.data import guarded
from lrdyn.report.markup import Markup, element, joined

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CAPTION = "Description"
"""Keyword of the text in a PNG that says what it shows, one of those that the format names."""
MOST = 2**25
"""Bytes of a picture, at most: those of the library have less than 2 MB."""


class DamagedPicture(ValueError):
    """The file is not a complete PNG."""


class Picture(NamedTuple):
    """A figure that lies beside results."""

    name: str
    caption: str
    width: int
    height: int
    content: bytes

    @property
    def size(self) -> int:
        """Bytes that the picture takes within a page."""
        return 4 * -(-len(self.content) // 3)


def read(path: Path) -> Picture:
    """Read a PNG with its caption: that of a text file beside it, else that within it.

    Raises:
        DamagedPicture: it is none, or not a whole one, or a link.
        OSError: it cannot be read.
    """
    try:
        content = guarded.content(path, most=MOST, links=False)
    except guarded.Refused as error:
        raise DamagedPicture(f"{path}: damaged ({error.why})") from None
    try:
        width, height, caption = parsed(content)
    except DamagedPicture as error:
        raise DamagedPicture(f"{path}: damaged ({error})") from None
    beside = path.with_suffix(".txt")
    if beside.is_file() or beside.is_symlink():
        try:
            text = guarded.content(beside, most=2**20, links=False)
        except guarded.Refused as error:
            raise DamagedPicture(f"{beside}: damaged ({error.why})") from None
        caption = text.decode("utf-8", "replace").strip()
    return Picture(path.stem, caption, width, height, content)


def parsed(content: bytes) -> tuple[int, int, str]:
    """Width and height in pixels, and the caption in a PNG; each part must be whole.

    Raises:
        DamagedPicture: it is no PNG, or a part has another checksum, or the end is missing.

    Example:
        >>> parsed(b"GIF89a")
        Traceback (most recent call last):
        lrdyn.report.pictures.DamagedPicture: got no PNG
    """
    if not content.startswith(SIGNATURE):
        raise DamagedPicture("got no PNG")
    size, caption = (0, 0), ""
    for kind, data in _chunks(content):
        if kind == b"IHDR" and len(data) == 13:
            size = struct.unpack(">II", data[:8])
        keyword, _, rest = data.partition(b"\0")
        if kind == b"tEXt" and keyword == CAPTION.encode():
            # tEXt is Latin-1 by the PNG specification; for letters outside of it Pillow writes
            # iTXt, in UTF-8.
            caption = rest.decode("latin-1")
        elif kind == b"iTXt" and keyword == CAPTION.encode() and rest[:1] == b"\0":
            caption = rest[2:].split(b"\0", 2)[-1].decode("utf-8", "replace")
    if not all(size):
        raise DamagedPicture("got no size")
    return *size, caption


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The parts of a PNG up to its end."""
    place = len(SIGNATURE)
    while place + 12 <= len(content):
        (length,) = struct.unpack(">I", content[place : place + 4])
        kind, data = content[place + 4 : place + 8], content[place + 8 : place + 8 + length]
        check = content[place + 8 + length : place + 12 + length]
        if len(check) < 4 or struct.unpack(">I", check)[0] != zlib.crc32(kind + data):
            raise DamagedPicture("a part is cut or changed")
        yield kind, data
        if kind == b"IEND":
            return
        place += 12 + length
    raise DamagedPicture("its end is missing")


def figure(picture: Picture, title: str, *, embedded: bool) -> Markup:
    """A figure with its caption below; a picture that is not embedded is only named.

    Args:
        picture: what is shown.
        title: what stands before the caption.
        embedded: whether there is room for it.
    """
    first, _, more = picture.caption.partition("\n\n")
    words = f"{title}. {first}" if first else f"{title}."
    if embedded:
        data = base64.b64encode(picture.content).decode("ascii")
        shown = element(
            "img",
            src=f"data:image/png;base64,{data}",
            alt=_short(words),
            width=picture.width,
            height=picture.height,
        )
    else:
        shown = element("p", f"{picture.name}.png is not in this page, which would be too large.")
    caption = [element("strong", f"{title}. "), first]
    notes = element("p", more, class_="notes") if more else ""
    return element("figure", shown, element("figcaption", element("p", *caption), notes))


def _short(words: str, most: int = 300) -> str:
    """A caption as alternative text: its sentences, as many as a listener takes in."""
    if len(words) <= most:
        return words
    end = words.rfind(". ", 0, most)
    return words[: end + 1] if end > most // 3 else f"{words[: most - 3]}..."


def embedded(pictures: list[Picture], room: int) -> list[bool]:
    """Which of several pictures fit into some bytes, the first ones first.

    Example:
        >>> embedded([Picture("a", "", 1, 1, bytes(n)) for n in (3, 300, 6)], 12)
        [True, False, True]
    """
    fits = []
    for picture in pictures:
        fits.append(picture.size <= room)
        room -= picture.size if fits[-1] else 0
    return fits


def block(pictures: list[Picture], fits: list[bool], whose: str) -> Markup:
    """Arrange figures one below the other.

    Args:
        pictures: what is shown.
        fits: which of them are embedded.
        whose: name of the theorem, study or diagnosis.
    """
    return joined(
        *(
            figure(picture, f"{whose}: {picture.name.replace('_', ' ')}", embedded=fit)
            for picture, fit in zip(pictures, fits, strict=True)
        )
    )
