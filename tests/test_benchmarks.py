"""Benchmarks at tiny sizes: they run, both sides agree, and the columns are printed."""

import json
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrdyn
from benchmarks import __main__ as command
from benchmarks import (
    accelerator,
    accelerator_report,
    ahead,
    cached,
    cells,
    common,
    completion,
    convolutions,
    diagnosis,
    early_stopping,
    galore,
    kept,
    lanes,
    many,
    pages,
    reduced,
    streamed,
    sums,
    sweeps,
    training,
)
from docs import accelerators
from lrdyn import cli
from lrdyn.system.messages import BadInput
from tests.runs import python

pytestmark = pytest.mark.tools

TINY = sweeps.Case(dim=8, steps=20, numpy_steps=20)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Keep what is compiled: every benchmark runs its programs more than once."""
    with early_stopping.compilation_cache(str(tmp_path_factory.mktemp("cache"))):
        yield


def columns(name: str, header: tuple[str, ...]) -> list[list[str]]:
    """Rows of a tiny benchmark below the header, split into cells."""
    lines = command.TINY[name]().splitlines()
    at = next(i for i, line in enumerate(lines) if all(name in line for name in header))
    return [line.split() for line in lines[at + 1 :]]


def test_reduced_prints_its_columns_and_agrees():
    rows = columns("reduced", reduced.HEADER)
    assert [row[0] for row in rows] == ["24"]
    assert max(map(float, rows[0][-2:])) < 1e-12


def test_sums_are_the_same_however_they_are_compiled():
    rows = columns("sums", sums.HEADER[1:])
    of_float64, of_float32 = (float(row[-1]) for row in rows)
    assert of_float64 < 1e-14
    assert of_float32 < 1e-6


def test_cells_are_the_same_by_vmap_and_with_options():
    rows = columns("cells", cells.HEADER[1:])[:2]
    assert max(float(row[-1]) for row in rows) < 1e-14


def test_a_cliff_is_a_rank_that_costs_more_than_a_larger_one():
    ranks = [cells.Cell(rank, 3, "float64") for rank in (2, 4, 8)]
    other = cells.Cell(16, 4, "float64")  # another depth
    ratio, where = cells.cliff([*ranks, other], [1.0, 6.0, 4.0, 0.5])
    assert (ratio, where) == (1.5, f"{ranks[1].name} to r = 8")


def test_step_size_at_the_size_of_the_issue():
    assert reduced.learning_rate(1000) == 500


def test_reduced_loss_is_the_loss_of_the_expanded_weights():
    @jax.jit
    def losses():
        case = reduced.problem(9, rank=2, steps=1)
        frame = lrdyn.frame(case.weights, case.target, 2)
        small = lrdyn.reduced_target(frame, case.target, 4)
        blocks, bulk = (jnp.eye(4), 2 * jnp.eye(4), jnp.eye(4)), jnp.array([0.5, 2.0, 3.0])
        full = lrdyn.factorization_loss(lrdyn.expand(frame, blocks, bulk), case.target)
        return reduced.reduced_loss(blocks, bulk, small, 9), full

    found, expected = losses()
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_sweeps_prints_its_columns():
    (row,) = columns("sweeps", sweeps.HEADER)
    assert row[0] == "8"
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


def test_the_command_runs_one():
    done = python("-m", "benchmarks", "completion", "--tiny")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("$ python -m benchmarks completion --tiny")
    assert all(name in done.stdout for name in completion.HEADER)


@pytest.mark.parametrize(("words", "ran"), [(["--tiny"], "TINY"), ([], "FULL"), (["all"], "FULL")])
def test_the_command_runs_all_of_them(words, ran, monkeypatch, capsys):
    assert list(command.TINY) == list(command.FULL)
    for size in ("TINY", "FULL"):
        told = {name: (lambda text=f"{size} {name}": text) for name in command.FULL}
        monkeypatch.setattr(command, size, told)
    monkeypatch.setattr(cli, "setup", lambda *_, **__: None)
    assert command.main(words) is None  # which is status 0
    shown = capsys.readouterr().out.splitlines()
    assert [line for line in shown if line.startswith(("TINY", "FULL"))] == [
        f"{ran} {name}" for name in command.FULL
    ]


def test_what_an_encoder_need_not_compute_is_measured():
    layers, places = columns("cached", cached.HEADER)
    assert layers[:4] == "1 of 2 layers".split()
    assert places[1:4] == "of 12 places".split()
    assert all(float(row[-1]) > 0 for row in (layers, places))


def test_what_kept_programs_save_is_measured():
    (row,) = columns("kept", kept.HEADER)
    name, cold, edited, warm, formula = row
    assert name == "theorem2"
    assert float(warm) < float(edited) < 1 < 100 * float(cold)
    assert float(formula) < float(edited)


def test_an_unknown_benchmark_is_bad_input():
    done = python("-m", "benchmarks", "speed")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1


def test_many_runs_are_measured():
    rows = columns("many", many.HEADER)
    assert [row[0] for row in rows] == ["full,", "reduced,", "reduced,", "NumPy"]
    assert all(row[-1].endswith("x") for row in rows)


def test_runs_that_are_not_kept_are_measured():
    (row,) = columns("streamed", streamed.HEADER)
    assert row[0] == "2,000"
    assert int(row[5]) >= 1


def test_many_full_and_reduced_runs_are_the_same_runs():
    steps = np.array([0, 5, 20])
    points = {name: np.array(values) for name, values in many.points(4).columns.items()}
    full = np.asarray(jax.jit(jax.vmap(many.full(9, steps)))(**points)["spectra"])
    inner = np.asarray(jax.jit(many.reduced(9, steps, True))(**points)["spectra"])
    scale = lrdyn.tolerance("identity", "float64", steps=20, size=9)
    # The 6 moving values are among the 9: each is found next to one of them.
    gaps = np.abs(full[..., None, :] - inner[..., :, None]).min(-1)
    assert gaps.max() <= scale
    assert np.abs(full[:, -1] - full[:, 0]).min(-1).max() > 100 * scale


def test_early_stopping_prints_its_rivals_and_their_steps_are_equal():
    rows = columns("early", early_stopping.HEADER[1:])
    assert [row[-1] for row in rows] == ["equal"] * 4
    assert rows[-1][0] == "sweep"


def test_completion_by_entries_is_completion_by_matrices():
    row, _, _, fractions, scanned = columns("completion", completion.HEADER)
    assert row[0] == "50%"
    assert float(row[-1]) < 1e-12
    assert fractions == ["d", "r", "50%"]
    assert scanned[:2] == ["20", "2"]
    assert float(scanned[2].removesuffix("x")) > 0


def test_runs_of_the_reduced_integrator_are_those_of_a_kernel_in_c(monkeypatch):
    rows = columns("lanes", lanes.HEADER)
    kernels = [row for row in rows if row[1] == "C"]
    assert len(rows) == 4 + len(kernels)
    assert all(float(row[-1]) < {"float64": 1e-14, "float32": 1e-6}[row[0]] for row in rows)
    lanes.compiled.cache_clear()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    text = lanes.report(((8, 2),), repeats=1)
    assert text.endswith("no cc, or no AVX-512: the kernel in C is left out")
    assert " C " not in text.replace("in C is", "")
    lanes.compiled.cache_clear()


SMALL_GALORE = galore.Case(rows=6, cols=5, rank=2, period=3, steps=10, runs=2)


def test_galore_prints_its_rivals_and_they_take_the_same_steps():
    rows = columns("galore", galore.HEADER)
    assert [row[0] for row in rows] == [*["optax,"] * 3, *["lrdyn"] * 1, "lrdyn,", "NumPy,"]
    scale = lrdyn.tolerance("identity", "float64", steps=SMALL_GALORE.steps, size=6)
    assert max(float(row[-1]) for row in rows) <= scale


def test_galore_of_numpy_is_another_run_with_another_projector():
    """What the benchmark compares can differ."""
    seeds = jnp.arange(SMALL_GALORE.runs)
    found = galore.by_numpy(SMALL_GALORE, seeds)()
    later = galore.by_numpy(SMALL_GALORE._replace(period=4), seeds)()
    assert galore.difference(later, jnp.asarray(found)) > 1e-3


def test_training_prints_its_loops_and_they_take_the_same_steps():
    *rows, kept = columns("training", training.HEADER)
    assert [row[0] for row in rows] == ["plain", "loop", "train"]
    assert max(float(row[-1]) for row in rows) <= lrdyn.tolerance("identity", "float32", steps=7)
    assert rows[-1][-2].endswith("%")
    assert kept[0] == "checkpoint"


def test_training_by_fewer_steps_is_another_run():
    """What the benchmark compares can differ."""
    case = training.Case(inputs=6, width=5, batch=4, examples=10, steps=7)
    images = training.images(case)
    one, other = (training.by_hand(case._replace(steps=n), images, True) for n in (7, 6))
    assert training.difference(one.weights, other.weights) > 1e-4


def test_waiting_is_what_is_no_piece():
    case = training.Case(inputs=6, width=5, batch=4, examples=10, steps=7)
    found = training.by_train(case, training.images(case))
    assert found.waiting is not None
    assert 0 < found.waiting < found.run


def test_watching_and_diagnosing_are_measured():
    case = diagnosis.Case((6, 5, 2), 4, 1, 2, (6, 9), 1, (100, 90))
    lines = [line for line in diagnosis.report(case).splitlines() if line]
    heads = ["widths", "6-5-2", "how", "lrdyn", "scipy", "lrdyn", "randomised"]
    assert [line.split()[0] for line in lines] == heads
    assert lines[1].endswith("%")
    assert all(50 < float(line.split()[-1]) < 2000 for line in lines[3:])


def test_workers_give_the_bits_of_devices():
    rows = dict(line.rsplit("  ", 1) for line in command.TINY["cluster"]().splitlines()[3:])
    measured = {name.strip(): value for name, value in rows.items()}
    assert float(measured["largest relative difference"]) < 1e-12
    assert measured["a part that costs nothing"].endswith(" ms")


def test_steps_are_timed_in_a_process_that_begins_with_the_size_of_its_pages(monkeypatch):
    begun, run = [], pages.subprocess.run

    def noted(words, env, **how):
        begun.append(env.get(pages.TUNABLES))
        return run(words, env=env, **how)

    monkeypatch.setattr(pages.subprocess, "run", noted)
    rows = columns("pages", pages.HEADER)[:-1]
    assert begun == [pages.PAGES["2 MiB"]]
    assert [" ".join(row[:-5]) for row in rows] == [
        "encoder 2 MiB a call each",
        "encoder 2 MiB in a loop",
        "VGG 2 MiB a call each",
    ]
    assert all(float(row[-5]) > 0 for row in rows)


def test_convolutions_prints_its_columns():
    rows = columns("convolutions", convolutions.HEADER)
    assert [" ".join(row[:-5]) for row in rows] == ["1 x 1", "2 x 2", "VGG-16"]
    assert all(float(row[-1]) > 0 for row in rows)


def test_a_day_with_an_accelerator(tmp_path):
    """The command itself, tiny: all of it is there, but for what a CPU does not have."""
    ran = python("-m", "benchmarks.accelerator", "--tiny", "--minutes", "60", "--out", tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (found,) = json.loads((tmp_path / "measured.json").read_text())
    assert found["of"]["tiny"]
    assert list(found["stages"]) == list(accelerator.STAGES)
    assert all(found["stages"].values())
    there = {name: row for stage in found["stages"].values() for name, row in stage.items()}
    assert not [name for name, row in there.items() if "fault" in row or "cut" in row]
    # A CPU has no TF32 to ask for.
    absent = {name for name, row in there.items() if "absent" in row}
    assert absent == {name for name in there if "tf32" in name}
    assert there["fig03 quick"]["same"]
    assert there["corollary1 float64"]["holds"]
    assert set(there["corollary1 float64"]["measured"]) == {"float64", "float32"}
    text = (tmp_path / "report.md").read_text()
    assert all(f"| {name} | " in text for name in there)
    assert "|  |" not in text
    assert "theorems in float64: 1 of 1 as wanted" in text
    assert "Still missing: nothing." in text


@pytest.fixture
def letters(monkeypatch):
    """A day of three pieces, the second of which fails once; the names that were called."""
    calls = []

    def piece(name):
        calls.append(name)
        if name == "b" and calls.count("b") == 1:
            raise RuntimeError("RESOURCE_EXHAUSTED")
        return {"seconds": 1.0}

    def pieces(day, seconds):
        return {name: lambda name=name: piece(name) for name in "abc"}

    monkeypatch.setattr(accelerator, "STAGES", {"letters": pieces})
    return calls


def test_a_day_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys, letters):
    day = accelerator.Day(tmp_path)
    assert accelerator.carried_out(day, 0) == ["a", "b", "c"]
    assert accelerator.carried_out(day, 7) == ["b"]
    assert "**RuntimeError: RESOURCE_EXHAUSTED**" in (tmp_path / "report.md").read_text()
    assert accelerator.carried_out(day, 7) == []
    assert letters == ["a", "b", "c", "b"]
    assert "RESOURCE" not in (tmp_path / "report.md").read_text()
    folder = day.folder
    of = accelerator.machine(False) | {"device": "NVIDIA H200"}
    monkeypatch.setattr(accelerator, "machine", lambda tiny: of)
    capsys.readouterr()
    assert accelerator.carried_out(day, 7) == []
    assert "NVIDIA H200: a device without numbers yet" in capsys.readouterr().out
    first, second = json.loads((tmp_path / "measured.json").read_text())
    assert first["stages"] == second["stages"]  # and nothing of the first is lost
    assert day.folder != folder  # parts and figures of the first are not taken for its own
    text = (tmp_path / "report.md").read_text()
    assert text.index("# NVIDIA H200\n") < text.index("# cpu\n")


def test_what_failed_does_not_keep_the_rest_waiting(tmp_path, letters):
    day = accelerator.Day(tmp_path)
    book = accelerator.Book(day)
    book.stages["letters"]["b"] = {"fault": "RuntimeError: no memory"}
    book.write()
    letters.append("b")  # that call
    assert accelerator.carried_out(day, 7) == []
    assert letters == ["b", "a", "c", "b"]


def test_a_piece_is_cut_when_the_minutes_are_over(tmp_path, monkeypatch):
    """The other thread ends the process, which here only lets the piece go on, and writes first."""
    over, at_the_end = threading.Event(), []

    def end():
        at_the_end.append(json.loads((tmp_path / "measured.json").read_text()))
        over.set()

    pieces = {"long": lambda: {"same": over.wait(60), "seconds": 1.0}, "later": dict}
    monkeypatch.setattr(accelerator, "STAGES", {"all": lambda day, seconds: pieces})
    missing = accelerator.carried_out(accelerator.Day(tmp_path), 1 / 600, end)
    ((cut,),) = at_the_end
    assert cut["stages"]["all"]["long"]["cut"] > 0
    assert not accelerator_report.is_finished(cut["stages"]["all"]["long"])
    assert missing == ["later"]  # this process was not ended
    assert "DIFFERS" not in (tmp_path / "report.md").read_text()


def test_a_folder_that_holds_something_else_is_one_line(tmp_path):
    (tmp_path / "measured.json").write_text("[1]")
    with pytest.raises(BadInput, match=r"--out: got .* without days, wanted what a day"):
        accelerator.carried_out(accelerator.Day(tmp_path), 7)


def made_up(stage, name):
    """Numbers such as a piece leaves, of a card that is as its maker says."""
    seconds = {"seconds": 1.25}
    measured = {"products": "float32", "dot": 1.5, "svd": 9.0, "svd_on_device": 30.0}
    if stage == "arithmetic":
        return measured
    if stage == "verdicts":
        of = {"holds": "tf32" not in name, "wanted": "tf32" not in name, "said": "4 of 4 claims"}
        return of | seconds | {"measured": {"float32": measured}}
    if stage.startswith("figures"):
        return {"same": True, "said": "near"} | seconds
    if stage == "programs":
        return {"first": 20.0} | seconds
    if name.startswith("product"):
        return {"rate": 40e12, "arithmetic": name.split()[-1]}
    return {"bytes": 3e12} if name == "memory" else {"a step": 1e-6}


@pytest.mark.parametrize(
    ("kind", "row", "share"),
    [
        ("NVIDIA H100 80GB HBM3", "H100", "40 TF/s, 60 % of 67"),
        ("TPU v5 lite", "v5e", "40 TF/s, 20 % of 197"),
        ("NVIDIA H200", None, "3 TB/s, 62 % of 4.8"),
        ("TPU v6 lite", None, "40 TF/s |"),
    ],
)
def test_a_page_takes_the_numbers_of_any_device(kind, row, share, tmp_path, monkeypatch):
    """Pieces are those of the day itself: one that is added to it has to find its place, too."""
    of = {"platform": "gpu", "device": kind, "jax": "1", "tiny": False}
    monkeypatch.setattr(accelerator, "machine", lambda tiny: of)
    book = accelerator.Book(accelerator.Day(tmp_path))
    for stage, name, _ in book.pieces():
        book.stages[stage][name] = made_up(stage, name)
    book.write()
    assert book.missing() == []
    monkeypatch.setattr(accelerators, "MEASURED", tmp_path / "measured.json")
    compilations = json.loads(accelerators.FOUND.read_text())
    text = accelerators.page("", compilations)
    assert f"### {kind}\n" in text
    assert share in text
    own = text.partition(f"### {kind}\n")[2]
    for _, name, _ in book.pieces():
        (line,) = [line for line in own.splitlines() if line.startswith(f"| {name} | ")]
        assert line.split(" | ", 1)[1].rstrip("| ")
    tables = text.split("\n### ")[1:]
    compiled = {table.split()[0]: table for table in tables}
    for device in ahead.PLATFORMS:
        # Every program of a device that was tried has been measured; of the other none.
        of_device = {r["name"] for r in compilations["rows"] if r["device"] == device}
        unmeasured = compiled[device].count("| not run |")
        assert unmeasured == (0 if device == row else len(of_device))
