import errno
import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr

from lrdyn.system import whole_files
from lrdyn.verification.storing import files, netcdf, results_file


@pytest.fixture
def path(tmp_path):
    (tmp_path / "kept.txt").write_text("before")
    return tmp_path / "kept.txt"


def test_replacing_replaces_all_at_once(path):
    with whole_files.replace_file(path) as temporary:
        temporary.write_text("after")
        assert path.read_text() == "before"
        assert (temporary.parent, temporary.suffix) == (path.parent, path.suffix)
    assert path.read_text() == "after"
    assert [p.name for p in path.parent.iterdir()] == ["kept.txt"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644  # readable by others, unlike mkstemp's


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failed_write_keeps_the_old_file_and_no_half_one(path, error):
    def write():
        with whole_files.replace_file(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "before"
    assert [p.name for p in path.parent.iterdir()] == ["kept.txt"]


DATA = {"/": xr.Dataset({name: ("x", np.arange(1000.0)) for name in "ab"})}
WHERE = [
    (whole_files, "make_scratch"),
    (files, "NetCDF"),
    (files, "_write_group"),
    (files.NetCDF, "close"),
    (files.os, "replace"),
]


@pytest.mark.parametrize("slab", [1000, 2**26])
@pytest.mark.parametrize("where", WHERE, ids=lambda where: where[1])
def test_a_folder_that_vanishes_is_named(where, slab, tmp_path, monkeypatch):
    """It is removed at some moment of a small write, and of one in pieces."""
    owner, name = where
    then, target = getattr(owner, name), tmp_path / "run" / "results.nc"

    def gone(*given, **more):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        return then(*given, **more)

    target.parent.mkdir()
    monkeypatch.setattr(files, "SLAB", slab)
    monkeypatch.setattr(owner, name, gone)
    with pytest.raises(FileNotFoundError) as caught:
        files.write_netcdf(target, DATA)
    assert caught.value.filename == str(target)
    assert caught.value.strerror == "No such file or directory"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("slab", [1000, 2**26])
def test_a_full_disk_is_named(slab, path, monkeypatch):
    def full(folder, suffix):
        (folder / "full").symlink_to("/dev/full")
        return folder / "full"

    monkeypatch.setattr(files, "SLAB", slab)
    monkeypatch.setattr(whole_files, "make_scratch", full)
    with pytest.raises(OSError, match=r"No space left on device: .*kept\.txt"):
        files.write_netcdf(path, DATA)
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


@pytest.mark.parametrize("slab", [100, 1000, 2**26])
def test_netcdf_is_the_same_in_pieces(path, monkeypatch, slab):
    rng = np.random.default_rng(0)
    data = xr.Dataset(
        {
            "a": (("x", "y", "z"), rng.normal(size=(5, 4, 30))),
            "b": (("y", "z"), rng.normal(size=(4, 30)) > 0),
            "c": ("x", np.arange(5)),
            "d": ("z", np.arange(30, dtype=np.float32)),
            "n": 3,
        },
        {"y": [1.0, 2.0, 3.0, 4.0], "name": ("x", list("abcde")), "word": ("y", list("abcd"))},
        {"title": "mine"},
    )
    data["a"][2] = np.nan
    monkeypatch.setattr(files, "SLAB", slab)
    groups = {"/": data, "/deep/er": data.isel(x=slice(2))}
    files.write_netcdf(path, groups)
    for group, expected in groups.items():
        found = xr.load_dataset(path, group=group, engine="h5netcdf")
        assert found.identical(expected)
        assert all(found[name].dtype == expected[name].dtype for name in expected.variables)


def test_an_array_may_be_called_as_an_axis_whose_values_it_is_not(tmp_path):
    """Steps of a run that depend on a flag, beside what was seen at them."""
    seen = np.arange(6.0).reshape(2, 3)
    data = xr.Dataset(
        {
            "loss": (("period", "step"), seen),
            "step": (("period", "step"), 10 * seen),
            "period": ("period", [1, 2]),
        }
    )
    files.write_netcdf(tmp_path / "a.nc", {"/": data})
    assert xr.load_dataset(tmp_path / "a.nc", engine="h5netcdf").identical(data)


def attributes_of(data):
    return {name: (type(value), np.array(value).tolist()) for name, value in data.attrs.items()}


def described(groups):
    """All that a reader can see of datasets but their values, and in which order."""
    return {
        group: (
            {n: (v.dims, v.dtype, attributes_of(v)) for n, v in data.variables.items()},
            [*data.variables],
            [*data.indexes],
            {*data.coords},
            dict(data.sizes),
            attributes_of(data),
        )
        for group, data in groups.items()
    }


def as_xarray_reads_it(path):
    groups = xr.open_groups(path, engine="h5netcdf")
    return {group: data.load() for group, data in groups.items()}


def is_in_memory(data):
    return isinstance(data.variable._data, np.ndarray)


ATTRIBUTES = {"words": "a b", "number": 3, "float": 2.5, "list": [1.0, 2.0]}


@pytest.fixture
def written(tmp_path):
    """A file with all that results have."""
    data = xr.Dataset(
        {
            "a": (("x", "y"), np.array([[1.0, np.nan], [3.0, 4.0], [5.0, 6.0]])),
            "single": ("y", np.ones(2, np.float32), {"long_name": "ones", "units": "1"}),
            "true": ("x", [True, False, True]),
            "at": (("x", "y"), np.arange(6).reshape(3, 2)),
            "empty": (("x", "empty"), np.zeros((3, 0))),  # called as an axis without values
            "scalar": 2.5,
            "said": ("x", ["", "b", "ccc"]),
        },
        {"y": [1.0, 2.0], "step": ("x", [3, 2, 1]), "word": ("y", ["p", "qr"])},
        ATTRIBUTES,
    )
    data["y"].attrs.update(symbol="y", units="1")
    path = tmp_path / "results.nc"
    files.write_netcdf(path, {"/": data, "/deep/er": data.isel(x=slice(2)), "/bare": data[["at"]]})
    return path


def test_groups_are_read_as_xarray_reads_them(written):
    found, wanted = netcdf.read_groups(written), as_xarray_reads_it(written)
    assert list(found) == list(wanted) == ["/", "/deep", "/deep/er", "/bare"]
    assert described(found) == described(wanted)
    for group, data in found.items():
        assert data.identical(wanted[group])
        assert all(map(is_in_memory, data.data_vars.values()))


def test_a_large_file_is_read_when_it_is_used(written, monkeypatch):
    monkeypatch.setattr(netcdf, "SLAB", 300)
    found = netcdf.read_groups(written)
    assert not is_in_memory(found["/"]["a"])
    assert found["/"].identical(as_xarray_reads_it(written)["/"])


@pytest.mark.parametrize(
    "attributes", [{"scale_factor": 0.5}, {"units": "days since 2000-01-01"}, {"_FillValue": 1.0}]
)
def test_what_has_another_meaning_is_left_to_xarray(attributes, tmp_path):
    path = tmp_path / "a.nc"
    files.write_netcdf(path, {"/": xr.Dataset({"x": ("t", np.arange(3.0))})})
    with h5py.File(path, "a") as file:
        file["x"].attrs.update(attributes)
    found = netcdf.read_groups(path)["/"]
    assert found.identical(xr.load_dataset(path, engine="h5netcdf"))
    assert found.x.values.tolist() != [0.0, 1.0, 2.0]


# Calls of the system that fail --------------------------------------------------------------------


def failing(monkeypatch, name, number=errno.EIO, after=0):
    """Let a function of ``os`` fail, after it worked so many times; what it was given then."""
    then, given = getattr(os, name), []

    def fails(*words, **more):
        given.append(words)
        if len(given) <= after:
            return then(*words, **more)
        raise OSError(number, os.strerror(number), *words[:1])

    monkeypatch.setattr(os, name, fails)
    return given


def test_scratch_that_cannot_be_closed_is_removed(tmp_path, monkeypatch):
    failing(monkeypatch, "close", errno.EDQUOT)
    with pytest.raises(OSError, match="quota exceeded"):
        whole_files.make_scratch(tmp_path, ".nc")
    assert list(tmp_path.iterdir()) == []


def test_an_error_is_not_hidden_by_that_of_its_clearing(path, monkeypatch):
    failing(monkeypatch, "unlink", errno.EROFS)
    with pytest.raises(OSError, match=r"No space left on device: .*kept\.txt"):
        with whole_files.replace_file(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with whole_files.replace_file(path) as temporary:  # of which nothing is left to clear
        temporary.write_text("after")
    assert path.read_text() == "after"


def repository(folder, *tracked):
    """A repository with one commit of these files; its revision."""
    for name in tracked:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(folder.name)
    names = {f"user.{name}": "nobody@localhost" for name in ("name", "email")}
    how = [word for name, text in names.items() for word in ("-c", f"{name}={text}")]

    def git(*words):
        command = ["git", "-C", folder, *how, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--message", "one", "--allow-empty")
    git("worktree", "add", "--quiet", folder.with_name(f"{folder.name}-beside"))
    return git("rev-parse", "--short=12", "HEAD")


@pytest.mark.parametrize("hook", [False, True])
def test_a_revision_is_that_of_a_checkout_of_the_library_alone(hook, tmp_path, monkeypatch):
    """Not of a project that its environment lies in, nor of that whose hook is running."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    ours = "lrdyn/verification/storing/results_file.py"
    revision = repository(tmp_path / "checkout", ours)
    repository(tmp_path / "project", "project.py")
    repository(tmp_path / "monorepo", f"vendor/{ours}")
    if hook:
        monkeypatch.setenv("GIT_DIR", os.fspath(tmp_path / "project" / ".git"))
        monkeypatch.setenv("GIT_WORK_TREE", os.fspath(tmp_path / "project"))
        monkeypatch.setenv("GIT_INDEX_FILE", os.fspath(tmp_path / "project" / ".git" / "index"))
    wanted = {
        "checkout": revision,
        "checkout-beside": revision,
        "project/.venv/lib/python3/site-packages": None,
        "project": None,  # pip install --target .
        "monorepo/vendor": None,
        "nowhere": None,
    }
    found = {}
    for folder in wanted:
        file = tmp_path / folder / ours
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        monkeypatch.setattr(results_file, "__file__", os.fspath(file))
        found[folder] = results_file._revision.__wrapped__()
    assert found == wanted
    (tmp_path / "checkout" / ours).write_text("changed")
    monkeypatch.setattr(results_file, "__file__", os.fspath(tmp_path / "checkout" / ours))
    assert results_file._revision.__wrapped__() == f"{revision}-dirty"
