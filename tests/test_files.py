import json
import stat

import numpy as np
import pytest
import xarray as xr

from lrdyn.engine import files


@pytest.fixture
def path(tmp_path):
    (tmp_path / "kept.txt").write_text("before")
    return tmp_path / "kept.txt"


def test_replacing_replaces_all_at_once(path):
    with files.replacing(path) as temporary:
        temporary.write_text("after")
        assert path.read_text() == "before"
        assert (temporary.parent, temporary.suffix) == (path.parent, path.suffix)
    assert path.read_text() == "after"
    assert [p.name for p in path.parent.iterdir()] == ["kept.txt"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644  # readable by others, unlike mkstemp's


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failed_write_keeps_the_old_file_and_no_half_one(path, error):
    def write():
        with files.replacing(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "before"
    assert [p.name for p in path.parent.iterdir()] == ["kept.txt"]


def test_json_round_trip(path):
    content = {"a": [1, None, 2.5e-16], "b": {"c": True}}
    files.write_json(path, content)
    assert json.loads(path.read_text()) == content


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_without_nan(path, value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, {"residual": [value]})
    assert path.read_text() == "before"


def test_netcdf_round_trip(path):
    root = xr.Dataset(
        {"y": (("x", "step"), [[1.0, np.nan]]), "ok": ("x", [True]), "n": 3}, {"x": [0.1]}
    )
    nested = xr.Dataset({"z": ("index", np.arange(3, dtype=np.float32))}, attrs={"title": "t"})
    files.write_netcdf(path, {"/": root, "/controls/one/float32": nested})
    assert xr.load_dataset(path, engine="h5netcdf").identical(root)
    found = xr.load_dataset(path, engine="h5netcdf", group="/controls/one/float32")
    assert found.identical(nested)
    assert found["z"].dtype == np.float32


def test_netcdf_keeps_labels_that_are_no_axis(path):
    labelled = xr.Dataset({"y": ("x", [1.0, 2.0])}, {"x": [0, 1], "word": ("x", ["a", "b"])})
    files.write_netcdf(path, {"/": labelled})
    assert xr.load_dataset(path, engine="h5netcdf").identical(labelled)


def test_damaged_files_are_named_and_kept(path):
    lines = []
    aside = files.set_aside(path, "no netCDF", lines.append)
    assert lines == [f"{path}: damaged (no netCDF), kept as kept.txt.damaged and computed again"]
    assert aside.name == "kept.txt.damaged"
    assert aside.read_text() == "before"
    assert not path.exists()
