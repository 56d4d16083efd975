"""Small data sets in the files of their authors, for tests."""

import gzip
import io
import struct
import tarfile

import numpy as np
import pytest

from lrdyn import __main__ as command
from lrdyn import data
from lrdyn.data import cifar, sets

RNG = np.random.default_rng(0)
PYTHON, BINARY = cifar.VERSIONS
NAMES = {PYTHON: "cifar-10-batches-py/{}", BINARY: "cifar-10-batches-bin/{}.bin"}
LABELS = f"{sets.FOUR[1]}.gz"
PICTURES = f"{sets.FOUR[0]}.gz"
BATCHES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]


def content(shape, train, test):
    """Images and labels of both parts, all different."""
    return tuple(
        array
        for count in (train, test)
        for array in (RNG.integers(0, 256, (count, *shape), np.uint8), np.arange(count) % 10)
    )


COLOUR = content((32, 32, 3), 10, 2)
GREY = content((28, 28), 6, 2)


def same(images, wanted):
    """Whether a set holds these images and labels."""
    arrays = (images.train_inputs, images.train_labels, images.test_inputs, images.test_labels)
    return all(np.array_equal(a.reshape(b.shape), b) for a, b in zip(arrays, wanted, strict=True))


def idx_bytes(array, axes=None):
    axes = array.shape if axes is None else axes
    return (
        struct.pack(f">{1 + len(axes)}I", 0x800 + len(axes), *axes) + array.astype("u1").tobytes()
    )


def write_idx(folder, parts=GREY, ending=".gz"):
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in zip(sets.FOUR, parts, strict=True):
        body = idx_bytes(part)
        (folder / f"{name}{ending}").write_bytes(gzip.compress(body) if ending else body)
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
    head = b"\x80\x02}q\x01(" + text2(b"batch_label") + text2(b"training batch 1 of 5")
    return head + text2(b"labels") + numbers + text2(b"data") + array + b"u."


def batch_files(version, parts=COLOUR):
    """Name -> content of the six batches of an archive."""
    inputs, labels = np.concatenate(parts[::2]), np.concatenate(parts[1::2])
    files = {}
    for place, name in enumerate(BATCHES):
        rows, own = (array[2 * place : 2 * place + 2] for array in (planes(inputs), labels))
        if version == BINARY:
            body = np.concatenate([own[:, None].astype("u1"), rows], axis=1).tobytes()
        else:
            body = pickle2(rows, own)
        files[NAMES[version].format(name)] = body
    return files


def member(name, size=0, **attributes):
    info = tarfile.TarInfo(name)
    info.size = size
    for key, value in attributes.items():
        setattr(info, key, value)
    return info


def write_tar(path, files, extra=()):
    with tarfile.open(path, "w:gz") as archive:
        folder = next(iter(files)).partition("/")[0]
        archive.addfile(member(folder, type=tarfile.DIRTYPE))
        for info, body in [*((member(n, len(b)), b) for n, b in files.items()), *extra]:
            archive.addfile(info, io.BytesIO(body))
    return path


def write_cifar(folder, version=PYTHON, changes=(), extra=()):
    files = batch_files(version)
    files |= dict(changes)
    present = {name: body for name, body in files.items() if body is not None}
    return write_tar(folder / version, present, extra)


def in_folder(version, name, **attributes):
    return member(f"{cifar.VERSIONS[version].folder}/{name}", **attributes)


def refused(path, message, read):
    """One line that starts with the file's name."""
    with pytest.raises(data.Refused, match=message) as caught:
        read()
    assert str(caught.value).startswith(f"{path}: got ")
    assert "\n" not in str(caught.value)


def lrdyn(capsys, *words):
    status = command.main(list(map(str, words)))
    return status, *capsys.readouterr()
