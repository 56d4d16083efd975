"""Small data sets in the files of their authors, for tests."""

import gzip
import io
import pickle
import struct
import tarfile

import numpy as np
import pytest

from lrdyn import __main__ as command
from lrdyn import data
from lrdyn.data import cifar, sets

RNG = np.random.default_rng(0)
LABELS = f"{sets.FOUR[1]}.gz"
PICTURES = f"{sets.FOUR[0]}.gz"


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


def binary_batch(rows, labels):
    return np.concatenate([labels[:, None].astype("u1"), rows], axis=1).tobytes()


def python_batch(rows, labels):
    """A batch of the form that is not read."""
    return pickle.dumps({b"data": rows, b"labels": labels.tolist()}, protocol=2)


def batch_files(parts=COLOUR, names=cifar.BATCHES, made=binary_batch):
    """Name -> content of the six batches of an archive."""
    rows, labels = planes(np.concatenate(parts[::2])), np.concatenate(parts[1::2])
    spans = {name: slice(2 * place, 2 * place + 2) for place, name in enumerate(names)}
    return {name: made(rows[span], labels[span]) for name, span in spans.items()}


def member(name, size=0, **attributes):
    info = tarfile.TarInfo(name)
    info.size = size
    for key, value in attributes.items():
        setattr(info, key, value)
    return info


def write_tar(path, folder, files, extra=()):
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(member(folder, type=tarfile.DIRTYPE))
        own = [(member(f"{folder}/{name}", len(body)), body) for name, body in files.items()]
        for info, body in (*own, *extra):
            archive.addfile(info, io.BytesIO(body))
    return path


def write_cifar(folder, changes=(), extra=()):
    files = batch_files() | dict(changes)
    present = {name: body for name, body in files.items() if body is not None}
    return write_tar(folder / cifar.ARCHIVE, cifar.FOLDER, present, extra)


def write_python_cifar(folder):
    """The archive of the form that is not read."""
    names = [name.removesuffix(".bin") for name in cifar.BATCHES]
    files = batch_files(names=names, made=python_batch)
    return write_tar(folder / cifar.PICKLES, "cifar-10-batches-py", files)


def in_folder(name, **attributes):
    return member(f"{cifar.FOLDER}/{name}", **attributes)


def refused(path, message, read):
    """One line that starts with the file's name."""
    with pytest.raises(data.Refused, match=message) as caught:
        read()
    assert str(caught.value).startswith(f"{path}: got ")
    assert "\n" not in str(caught.value)


def lrdyn(capsys, *words):
    status = command.main(list(map(str, words)))
    return status, *capsys.readouterr()
