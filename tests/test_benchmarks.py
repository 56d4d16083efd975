"""Benchmarks at tiny sizes: they run, both sides agree, and the columns are printed."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import lrdyn
from benchmarks import common, reduced, sweeps

TINY = sweeps.Case(dim=6, steps=3, numpy_steps=3)


def columns(text: str, header: tuple[str, ...]) -> list[list[str]]:
    """Rows below the header, split into cells."""
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if all(name in line for name in header))
    return [line.split() for line in lines[at + 1 :]]


def test_reduced_prints_its_columns_and_agrees():
    rows = columns(reduced.report((9, 12), rank=2, steps=5, repeats=1), reduced.HEADER)
    assert [row[0] for row in rows] == ["9", "12"]
    for row in rows:
        assert max(float(row[-2]), float(row[-1])) < 1e-12


def test_step_size_at_the_size_of_the_issue():
    assert reduced.learning_rate(1000) == 500


def test_reduced_loss_is_the_loss_of_the_expanded_weights():
    case = reduced.problem(9, rank=2, steps=1)
    frame = lrdyn.frame(case.weights, case.target, 2)
    small = lrdyn.reduced_target(frame, case.target, 4)
    blocks, bulk = (jnp.eye(4), 2 * jnp.eye(4), jnp.eye(4)), jnp.array([0.5, 2.0, 3.0])
    full = lrdyn.factorization_loss(lrdyn.expand(frame, blocks, bulk), case.target)
    np.testing.assert_allclose(reduced.reduced_loss(blocks, bulk, small, 9), full, rtol=1e-12)


def test_sweeps_prints_its_columns():
    (row,) = columns(sweeps.report((TINY,), repeats=1, gemm_size=16), sweeps.HEADER)
    assert row[0] == "6"
    assert row[-1].endswith("x")


def test_numpy_loop_is_gradient_descent():
    loop = sweeps.rival(TINY)
    sweeps.check(TINY, loop)
    with pytest.raises(AssertionError):
        sweeps.check(TINY, lambda steps: loop(steps + 1))


def test_best_and_spread():
    times = common.Times((3.0, 1.0, 2.0))
    assert (times.best, times.spread) == (1.0, 1.0)


def test_a_variable_that_slows_numpy_is_noted(monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    assert "note: OPENBLAS_CORETYPE=Haswell" in common.machine()
    monkeypatch.delenv("OPENBLAS_CORETYPE")
    assert "OPENBLAS_CORETYPE" not in common.machine()


def command(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_command_runs_both():
    done = command("--tiny")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("$ python -m benchmarks --tiny")
    assert all(name in done.stdout for name in (*reduced.HEADER, *sweeps.HEADER))


def test_unknown_benchmark_is_bad_input():
    done = command("speed")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
