"""Compiled programs on disk: found again untraced, and never in the place of others."""

import dataclasses
import os
import zipfile
from typing import Any

import jax
import numpy as np
import pytest

from lrdyn import cli
from lrdyn.engine import jobs, kept_programs, programs
from lrdyn.theorems.theorem2 import THEOREM2
from tests.runs import TINY, Told, finished, python, results_of

SMALL = ["--dim", "6", "--depth", "2", "--rank", "1", "--steps", "5"]
SETTINGS: dict[str, Any] = dict(cli.parse(THEOREM2, SMALL).run.settings)
SCENARIO = THEOREM2.scenarios[0]


def run(precision="float64", **changed):
    job = jobs.claims_job(THEOREM2, SCENARIO, SETTINGS | changed, [0, 1], "/", precision, False)
    return job.run(progress=Told())["/"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder where programs of Theorem 2 are kept."""
    now = kept_programs._Keeping(THEOREM2.scenarios, os.fspath(tmp_path / "kept"))
    monkeypatch.setattr(kept_programs, "_now", now)
    return tmp_path / "kept"


@pytest.fixture
def untraceable(monkeypatch):
    """After a call of this, tracing is an error."""

    def refuse():
        monkeypatch.setattr(programs, "_traced", lambda *_: pytest.fail("traced"))

    return refuse


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_what_is_kept_is_not_traced_and_gives_the_same_bits(folder, untraceable, precision):
    first = run(precision)
    assert len(list(folder.iterdir())) == 1
    untraceable()
    again = run(precision)
    assert first.identical(again)
    assert all(first[name].dtype == again[name].dtype for name in first.variables)


def test_other_values_share_a_program(folder, untraceable):
    run(learning_rate=(0.01,))
    untraceable()
    other = run(learning_rate=(0.02,))
    folder.rename(folder.with_name("away"))
    with pytest.raises(pytest.fail.Exception, match="traced"):
        run(learning_rate=(0.02,))
    assert np.isfinite(other["loss_measured"].values).all()


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr(kept_programs, "_surroundings", lambda: "an edited library"),
        lambda patch: patch.setitem(SETTINGS, "steps", 6),
        lambda patch: patch.setitem(SETTINGS, "depth", (3,)),
        lambda patch: patch.setattr(jobs, "unoptimized", lambda level: {}),
        lambda patch: jax.config.update("jax_default_matmul_precision", "tensorfloat32"),
    ],
    ids=["library", "setting", "shape", "options", "precision"],
)
def test_another_program_is_never_taken(folder, untraceable, monkeypatch, change):
    run()
    untraceable()
    try:
        change(monkeypatch)
        with pytest.raises(pytest.fail.Exception, match="traced"):
            run()
    finally:
        jax.config.update("jax_default_matmul_precision", "highest")


def test_an_edited_file_of_the_library_is_another_library(tmp_path, monkeypatch):
    import lrdyn
    from lrdyn.engine.sources import library_digest

    (tmp_path / "one.py").write_text("x = 1")
    monkeypatch.setattr(lrdyn, "__path__", [os.fspath(tmp_path)])
    before = library_digest.__wrapped__()
    (tmp_path / "one.py").write_text("x = 2")
    assert library_digest.__wrapped__() != before


@pytest.mark.parametrize("damage", ["cut", "facts", "program"])
def test_a_damaged_program_is_compiled_again(folder, damage):
    first = run()
    (path,) = folder.iterdir()
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        with zipfile.ZipFile(path) as archive:
            content = {name: archive.read(name) for name in archive.namelist()}
        content["program" if damage == "program" else "facts.json"] = b"{}"
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in content.items():
                archive.writestr(name, data)
    assert run().identical(first)
    assert path.stat().st_size > 10_000


def test_another_scenario_of_that_name_keeps_nothing(folder):
    other = dataclasses.replace(SCENARIO, controls=())
    jobs.claims_job(THEOREM2, other, SETTINGS, [0, 1], "/", "float64", False).run(progress=Told())
    assert not folder.exists()


def test_others_keep_nothing(folder, monkeypatch):
    monkeypatch.setattr(kept_programs, "_now", kept_programs._Keeping((), os.fspath(folder)))
    run()
    assert not folder.exists()
    assert cli._is_ours(THEOREM2)
    assert not cli._is_ours(dataclasses.replace(THEOREM2))


def test_what_jax_kept_is_compiled_once_more(tmp_path, untraceable):
    """A program that JAX reads from its folder is whole, but not when it is written down again."""
    before = jax.config.values["jax_persistent_cache_min_compile_time_secs"]
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    kept_programs._let_jax_keep(os.fspath(tmp_path))
    try:
        first = run()
        assert list(tmp_path.glob("jit_*"))
        with kept_programs.keeping(THEOREM2):
            run()
        assert len(list(tmp_path.glob("lrdyn-*"))) == 1
        untraceable()
        with kept_programs.keeping(THEOREM2):
            assert run().identical(first)
        assert jax.config.values["jax_compilation_cache_dir"] == os.fspath(tmp_path)
    finally:
        kept_programs._let_jax_keep(None)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before)


def test_a_command_that_ran_before_traces_nothing(tmp_path, tmp_path_factory):
    ran = finished("theorem1", tmp_path_factory.getbasetemp())
    cache, out = ran.folder.parents[2] / "cache", tmp_path / "out"
    times = {path: path.stat().st_ino for path in cache.rglob("lrdyn-*.zip")}
    assert times
    again = python("-m", "experiments.theorem1", *TINY["theorem1"], "--out", out, cache=cache)
    assert again.returncode == 0, again.stderr
    assert results_of(out).identical(ran.group("/"))
    for path, inode in times.items():  # none was written again
        assert path.stat().st_ino == inode
