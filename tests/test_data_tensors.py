"""Safetensors: what is written is read, by the package too; what is damaged is named."""

import json
import os
import pickle
import sys
import tracemalloc
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from lrdyn.data import Refused, tensors
from lrdyn.data.tensors import TensorFormat, opened, write

ARRAYS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array([1.5, -2.0], ml_dtypes.bfloat16),
    "c": np.array([[True], [False]]),
    "none": np.zeros((0, 3), np.int64),
    "number": np.array(7, np.uint16),
}


def entry(dtype: Any = "F32", shape=(2,), data_offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(data_offsets)}


def raw(path, header, body=bytes(8), length=None):
    """A file by hand: a header of any text or content, bytes behind it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + text + body)
    return path


def refused(path, said, part=""):
    """One line that starts with the file's name and names the tensor."""
    with pytest.raises(Refused, match=said) as caught:
        dict(opened(path))
    start = f"{path}: {part}: got " if part else f"{path}: got "
    assert str(caught.value).startswith(start)
    assert "\n" not in str(caught.value)


def same(found, wanted):
    assert set(found) == set(wanted)
    for name, one in wanted.items():
        assert found[name].dtype == one.dtype, name
        np.testing.assert_array_equal(found[name], one)


def test_what_is_written_is_read_by_us_and_by_the_package(tmp_path):
    path = tmp_path / "a.safetensors"
    write(path, ARRAYS, metadata={"format": "pt"})
    found = opened(path)
    same(found, ARRAYS)
    same(safetensors.numpy.load_file(path), ARRAYS)
    assert found.metadata == {"format": "pt"}
    assert found.infos["a.weight"] == (path, "float32", (2, 3))
    assert os.listdir(tmp_path) == ["a.safetensors"]


@pytest.mark.parametrize("dtype", tensors.DTYPES.values())
def test_every_type(dtype, tmp_path):
    wanted = {"x": np.arange(6).astype(np.dtype(dtype)).reshape(2, 3)}
    write(tmp_path / "a.safetensors", wanted)
    same(opened(tmp_path / "a.safetensors"), wanted)


def test_others_may_read_a_file_as_any_new_file_of_this_user(tmp_path):
    write(tmp_path / "a.safetensors", {"W": np.ones(2, np.float32)})
    (tmp_path / "plain").touch()
    modes = [(tmp_path / name).stat().st_mode for name in ("a.safetensors", "plain")]
    assert modes[0] == modes[1]


def test_views_and_arrays_of_jax_are_written_as_they_are(tmp_path):
    """The package copies memory: a transposed view would come back as another matrix."""
    W = np.arange(6.0).reshape(2, 3)
    bf16 = jnp.arange(3, dtype=jnp.bfloat16)
    write(tmp_path / "a.safetensors", {"t": W.T, "s": W[:, ::2], "j": bf16, "b": W.astype(">f8")})
    found = opened(tmp_path / "a.safetensors")
    same(found, {"t": W.T, "s": W[:, ::2], "j": np.asarray(bf16), "b": W})


def test_nothing_is_read_before_it_is_asked_for(tmp_path):
    """One tensor at a time is in memory."""
    path = tmp_path / "a.safetensors"
    write(path, {name: np.ones(2**20, np.float32) for name in "abcd"})
    tracemalloc.start()
    try:
        found = opened(path)
        assert tracemalloc.get_traced_memory()[1] < 2**18
        assert sum(float(found[name].sum()) for name in found) == 4 * 2**20
        assert tracemalloc.get_traced_memory()[1] < 2.5 * 2**22
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("suffix", tensors.PICKLES)
def test_pickles_are_refused_unread(suffix, tmp_path):
    refused(tmp_path / f"a{suffix}", f"a {suffix} file, wanted safetensors: it is a pickle, and to")


@pytest.mark.parametrize("body", [pickle.dumps({"a": [1.0]}, 2), b"PK\3\4" + bytes(range(1, 60))])
def test_a_pickle_by_another_name_is_refused(body, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(body)
    refused(tmp_path / "a.safetensors", r"torch.save writes it, .* runs the code in it")


def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path):
    """640 bytes are 80 02 in hexadecimal, which is how a pickle begins."""
    text = json.dumps({"a": entry()}).encode()
    path = raw(tmp_path / "a.safetensors", text + b" " * (640 - len(text)))
    assert path.read_bytes().startswith(b"\x80\2")
    same(opened(path), {"a": np.zeros(2, np.float32)})


OF_A_FILE = [
    (b"", None, "5 bytes before its end, wanted 8: it is truncated"),
    ({"a": entry()}, 1000, "a header of 1000 bytes in a file of 7[0-9], wanted safetensors: it is"),
    (b"{]", None, r"a damaged file \(JSONDecodeError\)"),
    (b"\xff\xfe", None, r"a damaged file \(UnicodeDecodeError\)"),
    (b"[" * 100_000, None, "JSON that nests too deeply, wanted at most 32 levels"),
    ([1], None, "a header that is a list"),
    ({"a": entry(data_offsets=(0, 4), shape=(1,))}, None, "4 bytes after the last tensor"),
    ({"__metadata__": {"a": entry()}, "a": entry()}, None, None),
    ({"__metadata__": {"a": 1}, "a": entry()}, None, None),
]


@pytest.mark.parametrize(("header", "length", "said"), OF_A_FILE)
def test_a_file_that_is_none_is_refused(header, length, said, tmp_path):
    path = raw(tmp_path / "a.safetensors", header, length=length)
    if header == b"":
        path.write_bytes(bytes(5))
    refused(path, said or "wanted words", "" if said else "__metadata__")


ONE = json.dumps(entry())


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (f'{{"a": {ONE}, "a": {ONE}}}'.encode(), "this name twice, wanted it once"),
        ({"a": entry("F4")}, "the unknown type 'F4', wanted one of BOOL, U8"),
        ({"a": entry(["F32"])}, "the unknown type"),
        (
            {"a": entry(data_offsets=(0, 400), shape=(100,))},
            "8 bytes where .*, wanted 400: it is",
        ),
        ({"a": entry(shape=(3,))}, r"8 bytes, wanted 12 of float32 of shape \(3,\)"),
        ({"a": entry(shape=(2**62, 2**62))}, "8 bytes, wanted 8507"),
        ({"a": entry(data_offsets=(4, 8), shape=(1,))}, "bytes from place 4 on, wanted from 0"),
        ({"a": entry(shape=(-2,))}, r"shape \[-2\], wanted integers >= 0"),
        ({"a": entry(shape=(2.0,))}, r"shape \[2.0\], wanted integers"),
        ({"a": entry(shape=(True, 2))}, r"shape \[True, 2\], wanted integers"),
        ({"a": entry(data_offsets=(8,))}, "data_offsets .8., wanted two"),
        ({"a": entry() | {"more": 1}}, "wanted dtype, shape and data_offsets"),
        ({"a": 5}, "5, wanted dtype, shape and data_offsets"),
    ],
)
def test_a_tensor_that_is_wrong_is_named(header, said, tmp_path):
    refused(raw(tmp_path / "a.safetensors", header), said, "a")


def test_a_key_of_an_entry_that_stands_twice_is_refused(tmp_path):
    twice = f'{{"a": {ONE[:-1]}, "dtype": "F64"}}}}'.encode()
    refused(raw(tmp_path / "a.safetensors", twice), "this name twice", "dtype")


def test_overlapping_tensors_are_refused(tmp_path):
    header = {"a": entry(), "b": entry(data_offsets=(4, 12))}
    refused(
        raw(tmp_path / "a.safetensors", header, bytes(12)), "from place 4 on, wanted from 8", "b"
    )


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    write(path, {"a": np.ones(9), "b": np.ones(9)})
    whole = path.read_bytes()
    for kept, part in ((0, ""), (7, ""), (50, ""), (len(whole) - 1, "b"), (len(whole) - 80, "a")):
        path.write_bytes(whole[:kept])
        refused(path, "truncated", part)


@pytest.mark.parametrize("dtype", tensors.FLOATS)
def test_nan_is_refused_when_it_is_read(dtype, tmp_path):
    path = tmp_path / "a.safetensors"
    nan = np.array([1.0, np.nan, np.inf], np.dtype(dtype))
    safetensors.numpy.save_file({"good": np.ones(2), "bad": nan}, path)
    found = opened(path)
    assert found["good"].sum() == 2
    with pytest.raises(Refused, match=r"a.safetensors: bad: got 1 NaN, wanted numbers"):
        found["bad"]


def test_a_file_that_changed_since_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    write(path, {"a": np.ones(2)})
    found = opened(path)
    write(path, {"a": np.ones(3)})
    with pytest.raises(Refused, match=r"a: got float64 of shape \(3,\), wanted .* \(2,\), as when"):
        found["a"]
    write(path, {"b": np.ones(3)})
    with pytest.raises(Refused, match=r"a damaged file \(SafetensorError\)"):
        found["a"]


def test_no_file_and_no_package(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError):
        opened(tmp_path / "a.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=r"the package safetensors: pip install 'lrdyn\[adapters"):
        write(tmp_path / "a.safetensors", {})
    raw(tmp_path / "a.safetensors", {"a": entry()})
    with pytest.raises(ImportError, match="pip install"):
        opened(tmp_path / "a.safetensors")["a"]


@pytest.mark.parametrize(
    ("known", "more", "said"),
    [
        ({"W": TensorFormat((2, 3)), "b": TensorFormat((2,))}, False, None),
        ({"W": TensorFormat((2, 3))}, True, None),
        (
            {"W": TensorFormat((2, 3))},
            False,
            "b: got an extra tensor, wanted no tensor of this name",
        ),
        (
            {"W": TensorFormat((2, 3)), "c": TensorFormat(())},
            True,
            "c: got no tensor of this name, wanted one: it is mis",
        ),
        ({"W": TensorFormat((3, 2))}, True, r"W: got shape \(2, 3\), wanted \(3, 2\)"),
        (
            {"b": TensorFormat((2,), ("float32", "float16"))},
            True,
            "b: got type int32, wanted float32 or",
        ),
    ],
)
def test_names_shapes_and_types_are_checked(known, more, said, tmp_path):
    write(tmp_path / "a.safetensors", {"W": np.ones((2, 3)), "b": np.ones(2, np.int32)})
    found = opened(tmp_path / "a.safetensors")
    if "b" in known and said is None:
        known["b"] = TensorFormat((2,), ("int32",))
    if said is None:
        tensors.check(found, known, more=more)
        return
    with pytest.raises(Refused, match=rf"a.safetensors: {said}"):
        tensors.check(found, known, more=more)


# A sharded checkpoint ---------------------------------------------------------------------------


INDEX = "model.safetensors.index.json"


def shards(folder, **changes):
    """Two shards and their index."""
    write(folder / "model-1.safetensors", {"a": np.ones(2), "b": np.ones((2, 3))})
    write(folder / "model-2.safetensors", {"c": np.ones(3)})
    places = dict.fromkeys("ab", "model-1.safetensors") | {"c": "model-2.safetensors"} | changes
    content = {"weight_map": {name: file for name, file in places.items() if file}}
    (folder / INDEX).write_text(json.dumps(content))
    return folder / INDEX


def test_a_sharded_checkpoint_is_read_by_its_index_or_folder(tmp_path):
    index = shards(tmp_path)
    for path in (index, tmp_path, str(tmp_path)):
        same(opened(path), {"a": np.ones(2), "b": np.ones((2, 3)), "c": np.ones(3)})
    assert opened(index).infos["c"].file == tmp_path / "model-2.safetensors"


def test_a_folder_with_one_file_is_read(tmp_path):
    with pytest.raises(Refused, match=r"a folder without weights, wanted model.safetensors.index"):
        opened(tmp_path)
    write(tmp_path / "model.safetensors", {"a": np.ones(2)})
    same(opened(tmp_path), {"a": np.ones(2)})


@pytest.mark.parametrize(
    ("changes", "file", "part", "said"),
    [
        ({"d": "model-2.safetensors"}, "model-2.safetensors", "d", "it is missing"),
        ({"c": "model-1.safetensors"}, "model-1.safetensors", "c", "it is missing"),
        ({"b": None}, "model-1.safetensors", "b", "an extra tensor"),
        ({"b": "model-2.safetensors"}, "model-1.safetensors", "b", "an extra tensor"),
        ({"d": "model-3.safetensors"}, INDEX, "d", "model-3.safetensors, which is not there"),
        (
            {"d": "../model-1.safetensors"},
            INDEX,
            "d",
            "'../model-1.safetensors', wanted a .sa",
        ),
        ({"d": "model-1.bin"}, INDEX, "d", "'model-1.bin', wanted a .safetensors file of the same"),
        ({"d": "a\0.safetensors"}, INDEX, "d", "wanted a .safetensors file"),
        ({"d": 5}, INDEX, "d", "5, wanted a .safetensors file"),
    ],
)
def test_an_index_that_is_wrong_is_refused(changes, file, part, said, tmp_path):
    shards(tmp_path, **changes)
    with pytest.raises(Refused, match=said) as caught:
        opened(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / file}: {part}: got ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"weight_map": {"a": "x", "a": "y"}}', "a: got this name twice"),
        ('{"weight_map": []}', "no weight_map"),
        ("[]", "no weight_map"),
        ("{", r"a damaged file \(JSONDecodeError\), wanted the index of a sharded checkpoint"),
    ],
)
def test_an_index_that_is_none_is_refused(text, said, tmp_path):
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(Refused, match=said):
        opened(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(Refused, match=r"config.json: got a .json file, wanted the index"):
        opened(tmp_path / "config.json")


# Writing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "array", "said"),
    [
        ("W", np.ones(2, complex), r"tensors\['W'\]: got dtype complex128, wanted a type of safe"),
        ("W", np.array(["a"]), r"tensors\['W'\]: got dtype <U1"),
        ("W", np.array([None]), r"tensors\['W'\]: got dtype object"),
        ("W", np.ones(2, ml_dtypes.float8_e4m3fn), r"tensors\['W'\]: got dtype float8_e4m3fn"),
        ("W", np.array([np.nan, 1]), r"tensors\['W'\]: got 1 NaN, wanted numbers"),
        ("__metadata__", np.ones(2), "tensors: got the name '__metadata__', wanted another name"),
        ("", np.ones(2), "tensors: got the name ''"),
    ],
)
def test_what_cannot_be_written_is_named(name, array, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        write(tmp_path / "a.safetensors", {name: array})
    assert not os.listdir(tmp_path)


def test_another_suffix_is_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"path: got .*a.bin, wanted a name that ends in .safeten"):
        write(tmp_path / "a.bin", {"W": np.ones(2)})


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    write(path, {"W": np.ones(2)})

    def fail(arrays, place, words):
        place.write_bytes(b"half")
        raise safetensors.SafetensorError("no space left")

    monkeypatch.setattr(safetensors.numpy, "save_file", fail)
    with pytest.raises(OSError, match="no space left") as caught:
        write(path, {"W": np.ones(3)})
    assert caught.value.filename == str(path)
    same(opened(path), {"W": np.ones(2)})
    assert os.listdir(tmp_path) == ["a.safetensors"]
