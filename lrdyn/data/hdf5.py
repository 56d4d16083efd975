"""Checks of what an HDF5 file announces, before any array of it is read.

HDF5 can do much that a file of results never does: read other files (external links, external
storage, virtual datasets), run plugins for filters that it does not know, announce arrays of any
size whose chunks were never written, and give one long text to any number of entries. Such files
are refused. Deflate may still make 1,032 bytes of one while a chunk is read.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lrdyn.data.guarded import check_room, opened, reading, refused

OBJECTS = 100_000
"""Groups and arrays, at most; results of the theorems have up to 1,200."""
LEVELS = 8
"""How deep groups nest, at most; those of results nest 3 deep."""
ATTRIBUTES = 256
"""Attributes of a group or an array, at most; those of results have up to 21."""
TEXTS = 100_000
"""Entries that are text, at most: each is looked at."""
REFERENCES = (b"DIMENSION_LIST", b"REFERENCE_LIST")
"""Attributes in which netCDF keeps the axes of an array, as references to other arrays."""


def check(path: Path) -> None:
    """Look through a file of arrays of numbers and texts, as netCDF-4 has them.

    Raises:
        Refused: it is damaged, reads other files, has an unknown filter, other types than numbers
            and texts, links, too many objects, or arrays out of proportion to its size.
        OSError: there is no such file, or the machine could not read it.

    Example:
        >>> import tempfile, h5py
        >>> path = Path(tempfile.mkdtemp(), "a.nc")
        >>> with h5py.File(path, "w") as file:
        ...     file["x"] = h5py.ExternalLink("/etc/passwd", "/")
        >>> check(path)
        Traceback (most recent call last):
        lrdyn.data.guarded.Refused: ...: /x: got a link to elsewhere, wanted arrays and groups
    """
    import h5py

    with opened(path) as file, reading(path, "netCDF"):
        stored = file.seek(0, 2)
        file.seek(0)
        # The open file, not its name, under which another one could lie by now.
        with h5py.File(file, "r") as content:
            largest = total = texts = 0
            for place, node in _objects(content.id, path):
                texts += _check_attributes(node, place, path)
                if isinstance(node, h5py.h5d.DatasetID):
                    size = _announced(node, place, path)
                    largest, total = max(largest, size), total + size
                # After each object, since its announced size may be a reason to stop.
                check_room(path, largest, total + texts, stored)
                if isinstance(node, h5py.h5d.DatasetID) and node.get_type().get_class() == TEXT:
                    for length in _lengths(node, place, path):
                        texts += length
                        check_room(path, largest, total + texts, stored)


INTEGER, FLOAT, TEXT, LIST, COMPOUND = 0, 1, 3, 9, 6
"""Classes of types, by HDF5's own numbers."""
DEFLATE, SHUFFLE, CHECKSUM = 1, 2, 3
"""Filters of chunks, by HDF5's own numbers."""


def _objects(root: Any, path: Path) -> Iterator[tuple[str, Any]]:
    """Every group and array with its place, each once."""
    import h5py

    library: Any = h5py  # h5py's stubs lack the two
    h5l, h5o = library.h5l, library.h5o

    wanted = "arrays and groups"
    left, addresses = [("", root)], {h5o.get_info(root).addr}
    yield "/", root
    while left:
        place, group = left.pop()
        for name in group:
            where = f"{place}/{name.decode(errors='replace')}"
            if group.links.get_info(name).type != h5l.TYPE_HARD:
                raise refused(path, "a link to elsewhere", wanted, where)
            about = h5o.get_info(group, name)
            # A group that holds itself would be walked for ever.
            if about.addr in addresses:
                raise refused(path, "a second name of an object", wanted, where)
            addresses.add(about.addr)
            if about.type not in (h5o.TYPE_GROUP, h5o.TYPE_DATASET):
                raise refused(path, "a type that is stored by itself", wanted, where)
            if len(addresses) > OBJECTS or where.count("/") > LEVELS:
                raise refused(
                    path, "more objects", f"at most {OBJECTS}, nested {LEVELS} deep", where
                )
            node = h5o.open(group, name)
            yield where, node
            if about.type == h5o.TYPE_GROUP:
                left.append((where, node))


def _check_attributes(node: Any, place: str, path: Path) -> int:
    """Refuse attributes other than numbers and texts; returns the bytes of the texts."""
    import h5py

    count, size = h5py.h5a.get_num_attrs(node), 0
    if count > ATTRIBUTES:
        raise refused(path, f"{count} attributes", f"at most {ATTRIBUTES}", place)
    for number in range(count):
        attribute = h5py.h5a.open(node, index=number)
        kind = attribute.get_type()
        if kind.get_class() == TEXT and kind.is_variable_str():
            # Many entries may name one long text: it would be read once for each.
            if attribute.get_space().get_simple_extent_npoints() > 1:
                raise refused(path, "an attribute that is a list of texts", "one text", place)
            entry = np.empty((), object)
            attribute.read(entry)
            size += len(entry.item() or b"")
        elif kind.get_class() in (LIST, COMPOUND) and attribute.name in REFERENCES:
            pass
        elif kind.get_class() not in (INTEGER, FLOAT, TEXT):
            raise refused(path, f"an attribute of type {kind.dtype}", "numbers or a text", place)
    return size


def _announced(array: Any, place: str, path: Path) -> int:
    """Bytes that an array takes when it is read; it lies in this file alone."""
    import h5py

    kind, settings = array.get_type(), array.get_create_plist()
    if kind.get_class() not in (INTEGER, FLOAT, TEXT):
        raise refused(path, f"an array of type {kind.dtype}", "numbers or texts", place)
    if settings.get_layout() == h5py.h5d.VIRTUAL or settings.get_external_count():
        raise refused(path, "an array in other files", "one in this file", place)
    filters = [settings.get_filter(number)[0] for number in range(settings.get_nfilters())]
    # Deflate twice makes a million bytes of one; an unknown filter would load a plugin.
    if len(set(filters)) != len(filters) or not {*filters} <= {DEFLATE, SHUFFLE, CHECKSUM}:
        raise refused(path, f"the filters {filters}", "deflate and shuffle, each once", place)
    # A chunk is made whole, even that of an array of one entry.
    chunk = settings.get_chunk() if settings.get_layout() == h5py.h5d.CHUNKED else ()
    return max(math.prod(array.shape), math.prod(chunk)) * kind.get_size()


def _lengths(array: Any, place: str, path: Path) -> Iterator[int]:
    """Bytes of each text of an array, which HDF5 keeps elsewhere, read one at a time."""
    import h5py

    if not array.get_type().is_variable_str():
        return
    if (count := math.prod(array.shape)) > TEXTS:
        raise refused(path, f"{count} texts", f"at most {TEXTS}", place)
    entries = h5py.Dataset(array)
    for index in np.ndindex(*array.shape):
        yield len(entries[index])
