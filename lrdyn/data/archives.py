"""Archives from elsewhere, read member by member, without writing anything to the disk."""

import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lrdyn.data.guarded import Limited, exactly, reading, refused, unpacked

OVERHEAD = 2**20
"""Bytes of an archive beside its members: headers and padding."""


def members(
    path: Path, folder: str, sizes: Mapping[str, int], title: str
) -> Iterator[tuple[str, bytes]]:
    """Name below its folder and content of every member of a tar.gz.

    Args:
        path: the archive.
        folder: in which all members lie.
        sizes: name of each member that is known -> its bytes, at most.
        title: what the archive is of, for messages.

    Raises:
        Refused: the archive is damaged; a member is unknown, there twice, a link, or too large.

    Example:
        >>> list(members(Path("a.tar.gz"), "a", {"b": 1}, "letters"))  # doctest: +SKIP
        [('b', b'x')]
    """
    most = sum(sizes.values()) + OVERHEAD
    with unpacked(path) as file, reading(path, f"a tar.gz of {title}"):
        limited: Any = Limited(file, most, path)
        read_names: set[str] = set()
        # As a stream, member by member: nothing is unpacked to the disk.
        with tarfile.open(fileobj=limited, mode="r|") as archive:
            for member in archive:
                if member.isdir() and member.name == folder:
                    continue
                name = _checked(member, path, folder, sizes, read_names)
                inside: Any = archive.extractfile(member)
                yield name, exactly(inside, member.size, path)
        while limited.read(2**20):  # read to its end, where gzip compares the checksum
            pass


def _checked(
    member: tarfile.TarInfo, path: Path, folder: str, sizes: Mapping[str, int], read_names: set[str]
) -> str:
    """The name of a member below the folder, if it is one of the known ones, once, and a file."""
    name = member.name.removeprefix(folder + "/")
    if member.name != f"{folder}/{name}" or name not in sizes or name in read_names:
        which = "a second" if name in read_names else "the unknown"
        wanted = f"{', '.join(sizes)} in {folder}, each once"
        raise refused(path, f"{which} member {member.name}", wanted)
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
        raise refused(path, f"the member {member.name}, which is no file", "regular files alone")
    if member.size > sizes[name]:
        got = f"the member {member.name} of {member.size} bytes"
        raise refused(path, got, f"at most {sizes[name]}")
    read_names.add(name)
    return name
