"""The door for other people's files: what is no file, too large, too deep, or asks for too much."""

import json
import os
import shutil
import socket
import tempfile
import time
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrdyn import cli
from lrdyn.data import Refused, arrays, guarded
from lrdyn.registry import theorem
from lrdyn.verification.running.configuration import BadInput
from lrdyn.verification.storing import results_file
from lrdyn.verification.storing.results_file import Damaged, Missing, Unreadable
from tests.foreign import FOREIGN, READERS, WORDS, edited, outcome

FOUND = sorted((FOREIGN / "found").iterdir())
"""Named by the reader that once ended otherwise."""


def refused(read, said, path):
    """One line that begins with the name of the file."""
    with pytest.raises((Refused, Unreadable), match=said) as caught:
        read()
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


# Kinds of files -----------------------------------------------------------------------------------


def a_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.fspath(path))


KINDS = {
    "FIFO": os.mkfifo,
    "socket": a_socket,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": Path.mkdir,
}


@pytest.mark.parametrize("kind", KINDS)
def test_only_files_are_opened(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    KINDS[kind](Path("a"))
    refused(lambda: guarded.opened(Path("a")), f"got a {kind}, wanted a file", "a")


@pytest.mark.parametrize("name", READERS)
def test_no_reader_waits_for_a_fifo(name, tmp_path):
    reader = READERS[name]
    reader.place(tmp_path, b"")
    (tmp_path / reader.file.name).unlink()
    os.mkfifo(tmp_path / reader.file.name)
    if name == "part":  # set aside, and computed again
        assert reader.read(tmp_path) is None
    else:
        with pytest.raises(ValueError, match=r"got a FIFO|no such text|: Refused"):
            reader.read(tmp_path)


def test_a_file_that_changes_its_kind_is_not_waited_for(tmp_path, monkeypatch):
    """What is looked at first may be another file when it is opened."""
    os.mkfifo(tmp_path / "a")
    (tmp_path / "b").touch()
    before = os.stat(tmp_path / "b")
    monkeypatch.setattr(os, "stat", lambda *path, **how: before)
    refused(lambda: guarded.opened(tmp_path / "a"), "got a FIFO", tmp_path / "a")


@pytest.mark.parametrize("name", ["part", "checkpoint"])
def test_what_a_run_keeps_is_no_link(name, tmp_path):
    reader = READERS[name]
    reader.place(tmp_path, reader.file.read_bytes())
    path = tmp_path / reader.file.name
    path.rename(tmp_path / "elsewhere")
    path.symlink_to("elsewhere")
    if name == "part":
        assert reader.read(tmp_path) is None
        assert (tmp_path / "elsewhere").is_file()
    else:
        with pytest.raises(ValueError, match="Refused"):
            reader.read(tmp_path)


def test_an_array_of_a_flag_is_no_fifo(tmp_path):
    os.mkfifo(tmp_path / "a.npy")
    with pytest.raises(BadInput, match=r"--target: got .*a.npy', wanted an .npy file of real numb"):
        cli.parse(theorem("theorem2"), ["--target", os.fspath(tmp_path / "a.npy")])


def test_links_are_followed_where_they_may_be(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    link = tmp_path / "b"
    link.symlink_to("a")
    assert guarded.content(link, most=3) == b"abc"
    refused(lambda: guarded.opened(link, links=False), "a link, wanted a file", link)
    refused(lambda: guarded.content(link, most=2), "got 3 bytes, wanted at most 2", link)
    with pytest.raises(FileNotFoundError):
        guarded.opened(tmp_path / "c")


# JSON ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "JSON that nests too deeply, wanted at most 32 levels"),
        ("[" * 33 + "]" * 33, "JSON that nests too deeply, wanted at most 32 levels"),
        ('{"a": {"b": 1, "b": 2}}', "b: got this name twice, wanted it once"),
        ('{"a": NaN}', "got NaN, wanted a number: JSON has no NaN"),
        ('{"a": [-Infinity]}', "got -Infinity"),
        ('{"a": [1e999]}', "a: got a number too large for float64, wanted a finite number"),
        ('{"lora_alpha": 1' + 400 * "0" + "}", "lora_alpha: got an integer of more than 64 bits"),
        ('{"a": 1' + 5000 * "0" + "}", r"a damaged file \(ValueError\)"),
        (r'{"a": "\ud800"}', r"a damaged file \(UnicodeEncodeError\)"),
        (r'{"\ud800": 1}', r"a damaged file \(UnicodeEncodeError\)"),
        ("{", r"a damaged file \(JSONDecodeError\)"),
        ("", r"a damaged file \(JSONDecodeError\)"),
        (" " * 101, "got 101 bytes, wanted at most 100"),
    ],
    ids="deep deeper twice nan infinity float integer digits half name cut empty large".split(),
)
def test_json_is_refused(text, said, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(text)
    most = 100 if text.isspace() else 10**6
    refused(lambda: guarded.read_json(path, "numbers", most=most), said, path)


def test_json_is_read(tmp_path):
    value = {"a": [1, 2.5, -(2**63), 2**64 - 1, None, True, "zwölf"], "b": {}}
    (tmp_path / "a.json").write_text(json.dumps(value))
    assert guarded.read_json(tmp_path / "a.json", "numbers") == value
    nested = "[" * 32 + "]" * 32
    assert guarded.parsed(nested, tmp_path, "lists")


# HDF5 ---------------------------------------------------------------------------------------------


def cycle(file):
    file.create_group("a")["b"] = file["/"]


def virtual(file):
    layout = h5py.VirtualLayout((4,), "f8")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (4,))
    file.create_virtual_dataset("x", layout)


def deep(file):
    file.create_group("/".join("a" * 20))


HDF5 = {
    "empty chunks": (
        lambda f: f.create_dataset("x", (300_000, 300_000), "f8", chunks=(100, 100)),
        r"arrays of 720000000000 bytes in a file of \d+ bytes, wanted at most 67108864 bytes of",
    ),
    "one large chunk": (
        lambda f: f.create_dataset("x", (1,), "f8", chunks=(2**27,), maxshape=(None,)),
        "arrays of 1073741824 bytes",
    ),
    "external link": (
        lambda f: f.update({"x": h5py.ExternalLink("/etc/passwd", "/")}),
        "/x: got a link to elsewhere",
    ),
    "soft link": (lambda f: f.update({"x": h5py.SoftLink("/y")}), "/x: got a link to elsewhere"),
    "external storage": (
        lambda f: f.create_dataset("x", (4,), "f8", external=[("/etc/passwd", 0, 32)]),
        "/x: got an array in other files",
    ),
    "virtual": (virtual, "/x: got an array in other files"),
    "another name": (cycle, "/a/b: got a second name of an object"),
    "deep": (deep, "got more objects, wanted at most 100000, nested 8 deep"),
    "filter": (
        lambda f: f.create_dataset("x", data=np.ones(4), chunks=(4,), compression="lzf"),
        r"/x: got the filters \[32000\]",
    ),
    "named type": (
        lambda f: f.update({"x": np.dtype("f8")}),
        "/x: got a type that is stored by itself",
    ),
    "references": (
        lambda f: f.create_dataset("x", (4,), h5py.ref_dtype),
        "/x: got an array of type object",
    ),
    "lists": (
        lambda f: f.create_dataset("x", (4,), h5py.vlen_dtype("f8")),
        "/x: got an array of type object",
    ),
    "texts": (
        lambda f: f.attrs.update({"x": np.array(["a", "b"], object)}),
        "/: got an attribute that is a list of texts",
    ),
    "attributes": (
        lambda f: f.attrs.update({f"{i}": i for i in range(300)}),
        "/: got 300 attributes",
    ),
}


@pytest.mark.parametrize("name", HDF5)
def test_hdf5_is_refused_before_it_is_read(name, tmp_path):
    make, said = HDF5[name]
    path = tmp_path / "results.nc"
    with h5py.File(path, "w") as file:
        make(file)
    refused(lambda: results_file.read(path), said, path)


def test_one_text_of_many_entries_is_not_read_for_each(tmp_path):
    """An entry of text is a reference: 3,000 of them to a megabyte are 3 gigabytes."""
    path = tmp_path / "results.nc"
    with h5py.File(path, "w") as file:
        texts = file.create_dataset("x", (3000,), h5py.string_dtype())
        texts[:] = ["a" * 2**20, *["b"] * 2999]
        place = texts.id.get_offset()
    whole = path.read_bytes()
    # A reference has 16 bytes; here all are made the first one.
    path.write_bytes(whole[:place] + 3000 * whole[place : place + 16] + whole[place + 48_000 :])
    with h5py.File(path) as file:
        array: Any = file["x"]
        assert len(array[2000]) == 2**20
    tracemalloc.start()
    refused(lambda: results_file.read(path), r"arrays of \d+ bytes in a file of", path)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_results_that_are_none_are_named(tmp_path):
    path = tmp_path / "results.nc"
    with pytest.raises(Missing, match=r"results.nc: not found"):
        results_file.read(path)
    path.mkdir()
    with pytest.raises(Damaged, match=r"results.nc: damaged \(got a folder, wanted a file\)"):
        results_file.read(path)
    with pytest.raises(Damaged, match="got a folder"):
        results_file.checksum(path)
    shutil.copyfile(FOREIGN / "results.nc", tmp_path / "other.nc")
    assert results_file.load(tmp_path / "other.nc")["/"].kind.values.tolist() == ["a", "b"]


# Archives and arrays ------------------------------------------------------------------------------


def test_an_archive_out_of_proportion_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("W.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(
                member, {"descr": "<f8", "fortran_order": False, "shape": (65 * 2**17,)}
            )
            for _ in range(65):
                member.write(bytes(2**20))
    refused(lambda: arrays.opened(path), r"got arrays of \d+ bytes in a file of \d+", path)


@pytest.mark.parametrize("shape", [(2**40,), (2, 2), (-1,), (2**62, 2**62)])
def test_an_array_of_another_size_is_refused(shape, tmp_path):
    path = tmp_path / "a.npy"
    with path.open("wb") as file:
        about = {"descr": "<f8", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, about)
        file.write(bytes(24))
    refused(lambda: arrays.read_npy(path), "got 24 bytes of numbers, wanted -?[0-9]+, as", path)


# Verdicts -----------------------------------------------------------------------------------------

VERDICT = json.loads((FOREIGN / "verdict.json").read_text())
CLAIM = VERDICT["claims"][0]
CONFIG = VERDICT["config"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"config": {}}, "config: preset: got nothing, wanted it"),
        ({"config": CONFIG | {"preset": "zzz"}}, "config: preset: got 'zzz', wanted quick or pap"),
        ({"config": CONFIG | {"depth": {}}}, "config: 'depth': got an object, wanted a value, a"),
        ({"config": CONFIG | {"depth": [[2]]}}, "config: 'depth': got a list"),
        ({"config": CONFIG | {"target": {"shape": [2]}}}, "config: 'target': got an object"),
        ({"config": CONFIG | {"seed": True}}, "config: seed: got True, wanted an integer >= 0"),
        ({"config": CONFIG | {"\x1b[2J": [[]]}}, r"config: '\\x1b\[2J': got a list"),
        ({"config": []}, "config: got a list, wanted an object"),
        ({"claims": [1]}, "claims: 0: got 1, wanted an object"),
        ({"claims": [{}]}, "claims: 0: id: got nothing, wanted it"),
        ({"claims": [CLAIM | {"residual": "1"}]}, "claims: 0: residual: got '1', wanted a number"),
        ({"claims": [CLAIM | {"cases": -1}]}, "claims: 0: cases: got -1, wanted an integer >= 0"),
        ({"claims": [CLAIM | {"judged": {"a": 1}}]}, "judged: 'a': got 1, wanted an object"),
        ({"claims": [CLAIM | {"kind": "x"}]}, "kind: got 'x', wanted one of exact, identity, "),
        ({"claims": [CLAIM | {"finding": {}}]}, "finding: got an object, wanted a finding or null"),
        ({"claims": [CLAIM, CLAIM]}, "claims: got 'rho' twice"),
        ({"environment": {}}, "environment: dtype: got nothing"),
        (
            {"environment": {"dtype": "float64", "blas": [{"name": 3}]}},
            "environment: blas: 0: name: got 3, wanted a text",
        ),
        ({"results_sha256": "0"}, "results_sha256: got '0', wanted a SHA-256 in hexadecimal"),
        ({"holds": 1}, "holds: got 1, wanted true, false or null"),
        ({"name": None}, "name: got None, wanted a text"),
    ],
    ids=str,
)
def test_a_verdict_is_refused(changes, said, tmp_path):
    (tmp_path / "verdict.json").write_text(json.dumps(VERDICT | changes))
    refused(lambda: results_file.read_verdict(tmp_path), said, tmp_path / "verdict.json")


@pytest.mark.parametrize("text", ["[]", "{", "[" * 5000, "NaN", '{"a": 1, "a": 2}', ""])
def test_what_is_no_verdict_is_refused(text, tmp_path):
    (tmp_path / "verdict.json").write_text(text)
    refused(lambda: results_file.read_verdict(tmp_path), "damaged", tmp_path / "verdict.json")


def test_a_verdict_that_is_not_there(tmp_path):
    for folder in (tmp_path, tmp_path / "none", tmp_path / "file" / "below"):
        (tmp_path / "file").touch()
        with pytest.raises(Missing, match=r"verdict.json: not found"):
            results_file.read_verdict(folder)
    (tmp_path / "verdict.json").mkdir()
    with pytest.raises(Unreadable, match="got a folder, wanted a file"):
        results_file.read_verdict(tmp_path)


# Anything -----------------------------------------------------------------------------------------

EDITS = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True), st.integers(-3, len(WORDS) - 1), st.integers(0, 30)
    ),
    min_size=1,
    max_size=4,
)


def read_in_bounds(name, content):
    """A value or one line, within five seconds and 256 MB."""
    reader = READERS[name]
    with tempfile.TemporaryDirectory() as folder:
        reader.place(Path(folder), content)
        tracemalloc.start()
        begin = time.process_time()
        try:
            assert not outcome(reader, Path(folder))
            assert time.process_time() - begin < 5
            assert tracemalloc.get_traced_memory()[1] < 2**28
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("name", READERS)
def test_files_of_the_corpus_are_read(name, tmp_path):
    reader = READERS[name]
    reader.place(tmp_path, reader.file.read_bytes())
    assert reader.read(tmp_path) is not None


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=8)
@given(edits=EDITS)
def test_damaged_files_end_in_a_value_or_a_line(name, edits):
    read_in_bounds(name, edited(READERS[name].file.read_bytes(), edits))


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.stem)
def test_what_was_found_ends_so_as_well(path):
    read_in_bounds(path.stem.rsplit("-", 2)[0].replace("-", " "), path.read_bytes())
