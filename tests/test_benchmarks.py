"""Benchmarks at tiny sizes: they run, both sides agree, and the columns are printed."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import lrdyn
from benchmarks import common, completion, early_stopping, galore, many, reduced, sweeps

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


def test_many_runs_are_measured():
    rows = columns(many.report(40, 9, 20, rival_runs=1), many.HEADER)
    assert [row[0] for row in rows] == ["full,", "reduced,", "reduced,", "NumPy"]
    assert all(row[-1].endswith("x") for row in rows)


def test_many_full_and_reduced_runs_are_the_same_runs():
    steps = np.array([0, 5, 20])
    points = many.points(4)
    full = lrdyn.sweep(many.full(9, steps), points)["spectra"].values
    inner = lrdyn.sweep(many.reduced(9, steps, True), points, batched=True)["spectra"].values
    scale = lrdyn.tolerance("identity", "float64", steps=20, size=9)
    # The 6 moving values are among the 9: each is found next to one of them.
    gaps = np.abs(full[..., None, :] - inner[..., :, None]).min(-1)
    assert gaps.max() <= scale
    assert np.abs(full[:, -1] - full[:, 0]).min(-1).max() > 100 * scale


def test_early_stopping_prints_its_rivals_and_their_steps_are_equal():
    text = early_stopping.report(20, (1.0, 4.0), 10, 50, repeats=1)
    rows = columns(text, early_stopping.HEADER[1:])
    assert [row[-1] for row in rows] == ["equal"] * 4
    assert rows[-1][0] == "sweep"


def test_completion_by_entries_is_completion_by_matrices():
    (row,) = columns(completion.report(20, (0.5,), steps=10, repeats=1), completion.HEADER)
    assert row[0] == "50%"
    assert float(row[-1]) < 1e-12


SMALL_GALORE = galore.Case(rows=6, cols=5, rank=2, period=3, steps=10, runs=2)


def test_galore_prints_its_rivals_and_they_take_the_same_steps():
    rows = columns(galore.report(SMALL_GALORE, repeats=1), galore.HEADER)
    assert [row[0] for row in rows] == [*["optax,"] * 3, *["lrdyn"] * 1, "lrdyn,", "NumPy,"]
    scale = lrdyn.tolerance("identity", "float64", steps=SMALL_GALORE.steps, size=6)
    assert max(float(row[-1]) for row in rows) <= scale


def test_galore_of_numpy_is_another_run_with_another_projector():
    """What the benchmark compares can differ."""
    seeds = jnp.arange(SMALL_GALORE.runs)
    found = galore.by_numpy(SMALL_GALORE, seeds)()
    later = galore.by_numpy(SMALL_GALORE._replace(period=4), seeds)()
    assert galore.difference(later, jnp.asarray(found)) > 1e-3
