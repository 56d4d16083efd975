"""Damaged and hostile files of data sets: refused in one line that begins with their name."""

import gzip
import struct
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest

from lrdyn import data
from lrdyn.data import cifar
from tests.datasets import (
    COLOUR,
    GREY,
    LABELS,
    PICTURES,
    binary_batch,
    idx_bytes,
    in_folder,
    member,
    planes,
    refused,
    write_cifar,
    write_idx,
    write_npz,
)

pytestmark = pytest.mark.usefixtures("small_sets")


@pytest.mark.parametrize(
    ("name", "made", "said"),
    [
        (PICTURES, idx_bytes(GREY[0], (2**31, 28, 28)), "IDX of 2147483648 x 28 x 28, wanted IDX"),
        (PICTURES, idx_bytes(GREY[0][:5]), "IDX of 5 x 28 x 28"),
        (PICTURES, idx_bytes(GREY[0])[:-1], "4703 bytes before its end, wanted 4704: it is trunc"),
        (PICTURES, idx_bytes(GREY[0]) + b"0", "more bytes"),
        (PICTURES, idx_bytes(GREY[0].reshape(6, -1)), "the magic number 0x00000802"),
        (PICTURES, b"", "0 bytes before its end"),
        (LABELS, idx_bytes(GREY[1] + 5), "labels from 5 to 10, wanted 0 to 9"),
    ],
    ids=["announces", "count", "truncated", "longer", "magic", "empty", "labels"],
)
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


SPARSE = {"GNU.sparse.map": "0,4", "GNU.sparse.size": "4"}


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (in_folder("evil.py"), "the unknown member cifar-10-batches-bin/evil.py"),
        (member("/etc/passwd"), "the unknown member /etc/passwd"),
        (in_folder("../../evil"), "the unknown member cifar-10-batches-bin/../../evil"),
        (member("readme.html"), "the unknown member readme.html"),
        (in_folder("test_batch.bin"), "a second member cifar-10-batches-bin/test_batch.bin"),
        (in_folder("readme.html", type=tarfile.SYMTYPE, linkname="/"), "which is no file"),
        (in_folder("readme.html", type=tarfile.LNKTYPE, linkname="/"), "which is no file"),
        (in_folder("readme.html", type=tarfile.FIFOTYPE), "which is no file"),
        (in_folder("readme.html", type=tarfile.DIRTYPE), "which is no file"),
        (in_folder("readme.html", size=4, pax_headers=SPARSE), "which is no file"),
        (in_folder("readme.html", size=4097), "of 4097 bytes, wanted at most 4096"),
        (in_folder("a" * 500), "the unknown member cifar-10-"),
    ],
    ids="unknown absolute up outside twice symlink hardlink fifo folder sparse large long".split(),
)
def test_members_are_refused(one, said, tmp_path):
    path = write_cifar(tmp_path, extra=[(one, bytes(one.size))])
    refused(path, said, data.cifar10)
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_batch_above_the_known_size_is_refused(tmp_path):
    path = write_cifar(tmp_path, {"data_batch_2.bin": bytes(6147)})
    refused(path, "of 6147 bytes, wanted at most 6146", data.cifar10)


def test_a_batch_below_the_known_size_is_refused(tmp_path):
    path = write_cifar(tmp_path, {"test_batch.bin": bytes(3073)})
    refused(path, "a batch of 3073 bytes, wanted 6146, those of 2 images", data.cifar10)


def test_a_missing_batch_is_refused(tmp_path):
    path = write_cifar(tmp_path, {"data_batch_3.bin": None})
    refused(path, "no data_batch_3.bin, wanted all six", data.cifar10)


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_truncated_archive_is_refused(kept, tmp_path):
    path = write_cifar(tmp_path)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    refused(path, "damaged file|truncated", data.cifar10)


def test_a_wrong_checksum_of_an_archive_is_refused(tmp_path):
    """It stands behind the end of the tar, where its parser no longer reads."""
    path = write_cifar(tmp_path)
    made = bytearray(gzip.compress(gzip.decompress(path.read_bytes()) + bytes(2**17)))
    made[-6] ^= 1
    path.write_bytes(made)
    refused(path, r"a damaged file \(BadGzipFile\)", data.cifar10)


def test_an_archive_that_is_none_is_refused(tmp_path):
    path = tmp_path / cifar.ARCHIVE
    path.write_bytes(gzip.compress(b"no tar" * 1000))
    refused(path, r"a damaged file \(ReadError\)", data.cifar10)


def test_a_header_that_grows_is_not_read(tmp_path):
    """Tar's own extensions may be of any length, and its parser reads them whole."""
    path = tmp_path / cifar.ARCHIVE
    header = member("x", 2**33, type=tarfile.XHDTYPE).tobuf(tarfile.GNU_FORMAT)
    with gzip.GzipFile(path, "wb", compresslevel=1) as file:
        file.write(header)
        for _ in range(32):
            file.write(bytes(2**20))
    refused(path, r"more than \d+ bytes", data.cifar10)


def test_labels_of_cifar_are_checked(tmp_path):
    made = binary_batch(planes(COLOUR[2]), np.array([0, 10]))
    path = write_cifar(tmp_path, {"test_batch.bin": made})
    refused(path, "labels from 0 to 10, wanted 0 to 9", data.cifar10)


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit",))


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
        (npy((10, 32, 32, 3)) + bytes(9), "9 bytes before its end, wanted 30720: it is truncated"),
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
        refused(path, "no zip directory at its end", data.cifar10)


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
    refused(tmp_path / "cifar10.npz", "a long zip directory", data.cifar10)


def test_a_directory_elsewhere_is_not_read(tmp_path):
    """Zip's larger form has a second directory, of which the first says nothing."""
    path = write_npz(tmp_path / "cifar10.npz", COLOUR)
    whole = path.read_bytes()
    path.write_bytes(whole[:-22] + b"PK\6\7" + bytes(16) + whole[-22:])
    refused(path, "a long zip directory", data.cifar10)
