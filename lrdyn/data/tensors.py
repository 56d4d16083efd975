"""Files of weights: safetensors, one or a sharded checkpoint, read one tensor at a time.

Names, types and shapes are known and checked when a file is opened; a tensor is read, by the
package safetensors, when it is asked for. Pickles are refused: to read one runs the code in it.
"""

import io
import math
import os
import stat
from collections.abc import Iterator, KeysView, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import ml_dtypes
import numpy as np

from lrdyn.core import checks
from lrdyn.data import guarded
from lrdyn.data.guarded import exactly, reading, refused
from lrdyn.system.whole_files import replace_file

DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
}
"""Types as a header has them, and as NumPy has them; bfloat16 is that of ml_dtypes, as in JAX."""
FLOATS = ("float16", "bfloat16", "float32", "float64")
EIGHT_BITS = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
"""Floating-point numbers of ml_dtypes that are read and not written."""
PIECE = 2**17
"""Entries that are looked at at once."""
LONGEST = 2**25
"""Bytes of a header or an index, at most: a tensor takes some 100, so 300,000 of them. The format
allows 100 MB, of which JSON would make gigabytes."""
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
NAMES = ("model.safetensors.index.json", "model.safetensors")
"""What is looked for in a folder."""


class Info(NamedTuple):
    """What is known of a tensor before it is read."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


class TensorFormat(NamedTuple):
    """The expected shape and types of a tensor."""

    shape: tuple[int, ...]
    dtypes: tuple[str, ...] = FLOATS


class Tensors:
    """The tensors of a file or of a checkpoint, by name: each is read when it is asked for.

    ``dict(tensors)`` reads all. It is no ``Mapping``, of which checkers of types look at a value.

    Args:
        path: the file that was opened, for messages.
        infos: what is known of each.
        metadata: the words in the header.

    Raises:
        Refused: on access, a tensor with a NaN in it.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "a.safetensors")
        >>> write(path, {"W": np.ones((2, 3), np.float32)})
        >>> tensors = opened(path)
        >>> tensors.infos["W"].shape, float(tensors["W"].sum())
        ((2, 3), 6.0)
    """

    def __init__(self, path: Path, infos: Mapping[str, Info], metadata: Mapping[str, str]):
        self.path, self.infos, self.metadata = path, dict(infos), dict(metadata)

    def __getitem__(self, name: str) -> np.ndarray:
        """Read one tensor."""
        file, dtype, shape = self.infos[name]
        library = _library()
        guarded.opened(file).close()  # the library opens it by its name, and waits for a FIFO
        if dtype in EIGHT_BITS.values():
            array = _of_eight_bits(file, name)
        else:
            with reading(file, "safetensors"), library.safe_open(file, framework="np") as content:
                array = np.asarray(content.get_tensor(name))
        if (array.dtype.name, array.shape) != (dtype, shape):
            got = f"{array.dtype.name} of shape {array.shape}"
            raise refused(file, got, f"{dtype} of shape {shape}, as when it was opened", name)
        # A NaN would spread through every norm and singular value before anybody sees where it
        # comes from.
        if count := _nans(array):
            raise refused(file, f"{count} NaN", "numbers", name)
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self.infos)

    def __len__(self) -> int:
        return len(self.infos)

    def __contains__(self, name: object) -> bool:
        return name in self.infos

    def keys(self) -> KeysView[str]:
        """Names, in the order of the file."""
        return self.infos.keys()


def _of_eight_bits(path: Path, name: str) -> np.ndarray:
    """A tensor of a type that the package safetensors does not give to NumPy."""
    with guarded.opened(path) as file, reading(path, "safetensors"):
        header, room = _header(file, path)
        if name not in header:
            raise missing(path, name)
        info, (first, last) = _entry(path, name, header[name])
        if last > room:
            raise refused(path, f"{room} bytes", f"{last}: it is truncated", name)
        file.seek(first, os.SEEK_CUR)
        content = exactly(file, last - first, path)
    return np.frombuffer(content, _type(info.dtype)).reshape(info.shape)


def opened(path: str | Path) -> Tensors:
    """Open a ``.safetensors`` file, a ``.safetensors.index.json``, or a folder with either.

    Raises:
        Refused: a pickle, no safetensors file, a header that is damaged or longer than the file, a
            name in it twice, an unknown type, a truncated file, a shard that is not there or holds
            other tensors than the index says.
        FileNotFoundError: there is no such file.

    Example:
        >>> opened("a.bin")
        Traceback (most recent call last):
        lrdyn.data.guarded.Refused: a.bin: got a .bin file, wanted safetensors: it is a pickle, ...
    """
    path = Path(path)
    if path.is_dir():
        files = [path / name for name in NAMES if (path / name).is_file()]
        if not files:
            raise refused(path, "a folder without weights", " or ".join(NAMES))
        path = files[0]
    return _sharded(path) if path.suffix == ".json" else _of_file(path)


def check(tensors: Tensors, known: Mapping[str, TensorFormat], *, more: bool = False) -> None:
    """Compare names, shapes and types with what they should be; nothing is read.

    Args:
        tensors: an open file.
        known: what each tensor should be.
        more: whether there may be others.

    Raises:
        Refused: a tensor is missing, is one too many, or has another shape or type.

    Example:
        >>> tensors = Tensors(Path("a"), {"W": Info(Path("a"), "float32", (2, 3))}, {})
        >>> check(tensors, {"W": TensorFormat((3, 2))})
        Traceback (most recent call last):
        lrdyn.data.guarded.Refused: a: W: got shape (2, 3), wanted (3, 2)
    """
    for name, wanted in known.items():
        info = tensors.infos.get(name)
        if info is None:
            raise missing(tensors.path, name)
        if info.shape != wanted.shape:
            raise refused(info.file, f"shape {info.shape}", f"{wanted.shape}", name)
        if info.dtype not in wanted.dtypes:
            raise refused(info.file, f"type {info.dtype}", " or ".join(wanted.dtypes), name)
    if not more and (others := set(tensors) - set(known)):
        raise extra(tensors.infos[min(others)].file, min(others))


def missing(path: Path, name: str) -> ValueError:
    """Make the error for a tensor that is missing."""
    return refused(path, "no tensor of this name", "one: it is missing", name)


def extra(path: Path, name: str) -> ValueError:
    """Make the error for a tensor that nothing asks for."""
    return refused(path, "an extra tensor", "no tensor of this name", name)


def write(
    path: str | Path, tensors: Mapping[str, Any], *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file, whole or not at all.

    Args:
        path: its name, which ends in ``.safetensors``.
        tensors: arrays of NumPy or JAX, by name.
        metadata: words for the header.

    Raises:
        ValueError: an array has another type than those of :data:`DTYPES`, or a NaN.
        OSError: the file could not be written.

    Example:
        >>> write("a.safetensors", {"W": np.array(np.nan)})
        Traceback (most recent call last):
        ValueError: tensors['W']: got 1 NaN, wanted numbers
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        checks.refuse("path", path, "a name that ends in .safetensors")
    # The library copies bytes as they lie: a transposed view would be written in another order.
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    for name, array in arrays.items():
        # The header has its words under this name, and would lose the tensor.
        if not isinstance(name, str) or name in ("", "__metadata__"):
            checks.refuse("tensors", f"the name {name!r}", "another name")
        if array.dtype.name not in DTYPES.values():
            checks.refuse(f"tensors[{name!r}]", f"dtype {array.dtype}", "a type of safetensors")
        if count := _nans(array):
            checks.refuse(f"tensors[{name!r}]", f"{count} NaN", "numbers")
    words = None if metadata is None else dict(metadata)
    library = _library()
    with replace_file(path) as temporary:
        mode = stat.S_IMODE(temporary.stat().st_mode)
        try:
            library.numpy.save_file(arrays, temporary, words)
        except library.SafetensorError as error:
            raise OSError(None, str(error), os.fspath(path)) from None
        # Newer releases put a file of their own in its place, which no one else may read.
        temporary.chmod(mode)


def _library() -> Any:
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError(
            "files of weights need the package safetensors: pip install 'lrdyn[adapters]'"
        ) from None
    return safetensors


def pieces(array: np.ndarray) -> Iterator[np.ndarray]:
    """Cut an array into pieces that fit into a core's cache, so that temporaries reuse its pages.

    Example:
        >>> [len(piece) for piece in pieces(np.zeros((3, 70000)))]
        [131072, 78928]
    """
    flat = array.reshape(-1)
    for start in range(0, flat.size, PIECE):
        yield flat[start : start + PIECE]


def _nans(array: np.ndarray) -> int:
    if array.dtype.name == "bfloat16":  # by its bits, in a tenth of the time
        bits = pieces(array.view(np.uint16))
        return sum(int(np.count_nonzero((piece & 0x7FFF) > 0x7F80)) for piece in bits)
    if not _is_floating(array):
        return 0
    return sum(int(np.count_nonzero(np.isnan(piece))) for piece in pieces(array))


def _is_floating(array: np.ndarray) -> bool:
    return array.dtype.name in (*FLOATS, *EIGHT_BITS.values())


def _type(name: str) -> np.dtype:
    """A type by its name; NumPy does not know those of ml_dtypes by theirs."""
    return np.dtype(getattr(ml_dtypes, name, name))


def _pickled(path: Path, got: str) -> NoReturn:
    wanted = "safetensors: it is a pickle, and to read one runs the code in it"
    raise refused(path, got, wanted)


def _of_file(path: Path) -> Tensors:
    if path.suffix in PICKLES:
        _pickled(path, f"a {path.suffix} file")
    with guarded.opened(path) as file, reading(path, "safetensors"):
        header, room = _header(file, path)
        metadata = header.pop("__metadata__", {})
        words = metadata.items() if isinstance(metadata, dict) else [(0, 0)]
        if not all(isinstance(word, str) for pair in words for word in pair):
            raise refused(path, f"{metadata!r}", "words", "__metadata__")
        entries = {name: _entry(path, name, entry) for name, entry in header.items()}
        _check_places(path, entries, room)
    return Tensors(path, {name: info for name, (info, _) in entries.items()}, metadata)


def _header(file: io.BufferedReader, path: Path) -> tuple[dict[str, Any], int]:
    """The header, and the number of bytes behind it."""
    size, wanted = os.fstat(file.fileno()).st_size, "safetensors"
    first = exactly(file, 8, path)
    length = int.from_bytes(first, "little")
    # A pickle's first bytes, read as a length, are a huge number: this is where it shows.
    if length > size - 8:
        if first.startswith((b"\x80\2", b"\x80\4", b"PK\3\4")):
            _pickled(path, "a file as torch.save writes it")
        got = f"a header of {length} bytes in a file of {size}"
        raise refused(path, got, f"{wanted}: it is truncated or another file")
    if length > LONGEST:
        raise refused(path, f"a header of {length} bytes", f"at most {LONGEST}")
    header = guarded.parsed(exactly(file, length, path), path, wanted)
    if not isinstance(header, dict):
        raise refused(path, f"a header that is a {type(header).__name__}", wanted)
    return header, size - 8 - length


def _entry(path: Path, name: str, entry: Any) -> tuple[Info, tuple[int, int]]:
    """A tensor, and where its bytes begin and end."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise refused(path, f"{entry!r}", "dtype, shape and data_offsets", name)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    for field, numbers in (("shape", shape), ("data_offsets", offsets)):
        if not isinstance(numbers, list) or not all(type(n) is int and n >= 0 for n in numbers):
            raise refused(path, f"{field} {numbers!r}", "integers >= 0", name)
    known = DTYPES | EIGHT_BITS
    if not isinstance(dtype, str) or dtype not in known:
        raise refused(path, f"the unknown type {dtype!r}", f"one of {', '.join(known)}", name)
    if len(offsets) != 2:
        raise refused(path, f"data_offsets {offsets}", "two integers", name)
    # Offsets and shape say the same twice: where they differ, one of them is wrong.
    kind = known[dtype]
    itemsize = _type(kind).itemsize
    size = math.prod(shape) * itemsize
    if offsets[1] - offsets[0] != size:
        got = f"{offsets[1] - offsets[0]} bytes"
        raise refused(path, got, f"{size} of {kind} of shape {tuple(shape)}", name)
    return Info(path, kind, tuple(shape)), (offsets[0], offsets[1])


def _check_places(path: Path, entries: Mapping[str, tuple[Info, tuple[int, int]]], room: int):
    """Refuse tensors that overlap, or bytes that belong to none."""
    end = 0
    for name, (_, place) in sorted(entries.items(), key=lambda item: item[1][1]):
        # Gaps could hide bytes from whoever checks the file, and overlaps make one tensor two.
        if place[0] != end:
            got = f"bytes from place {place[0]} on"
            raise refused(path, got, f"from {end}, where the tensor before it ends", name)
        end = place[1]
        if end > room:
            got = f"{room} bytes where the file ends"
            raise refused(path, got, f"{end}: it is truncated", name)
    if room > end:
        raise refused(path, f"{room - end} bytes after the last tensor", "the end of the file")


def _sharded(path: Path) -> Tensors:
    wanted = "the index of a sharded checkpoint"
    if not path.name.endswith(".safetensors.index.json"):
        raise refused(path, "a .json file", f"{wanted}, named .safetensors.index.json")
    content = guarded.read_json(path, wanted, most=LONGEST)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict):
        raise refused(path, "no weight_map", wanted)
    for name, file in places.items():
        # Of another folder nothing is read, whatever an index asks for.
        here = isinstance(file, str) and Path(file).name == file and "\0" not in file
        if not here or not file.endswith(".safetensors"):
            raise refused(path, f"{file!r}", "a .safetensors file of the same folder", name)
    infos: dict[str, Info] = {}
    for file in dict.fromkeys(places.values()):
        shard = path.with_name(file)
        first = next(name for name, shard_name in places.items() if shard_name == file)
        if not shard.is_file():
            raise refused(path, f"{file}, which is not there", "a file of this folder", first)
        for name, info in _of_file(shard).infos.items():
            if places.get(name) != file:
                raise extra(shard, name)
            infos[name] = info
    for name, file in places.items():
        if name not in infos:
            raise missing(path.with_name(file), name)
    return Tensors(path, {name: infos[name] for name in places}, {})
