"""Nothing is lost: a killed, damaged or refused sweep goes on where it was."""

import os
import pty
import random
import select
import time
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import lrdyn as lr
from lrdyn.system import progress
from lrdyn.verification.running import work
from lrdyn.verification.storing import files, parts
from tests import forked
from tests.runs import XLA_FLAGS, Told, python, started

POINTS = lr.product(seed=range(40), size=[2, 3])


def chaotic(seed, size):
    """A long chain of roundings: other kernels would end with other bits."""
    A = jax.random.normal(jax.random.key(seed), (size, size))
    B = jax.lax.fori_loop(0, 20, lambda _, B: jnp.sin(3 * B @ A), A)
    return {"B": B, "trace": jnp.trace(B), "positive": B[0] > 0, "count": jnp.arange(3)}


def run(store=None, told=None, function=chaotic, **options):
    """A sweep in parts of four points."""
    settings: dict[str, Any] = {"memory": 1} | options
    return lr.sweep(
        function, POINTS, shapes=("size",), store=store, progress=told or Told(), **settings
    )


@pytest.fixture(scope="module")
def whole():
    return run()


def same(found, expected):
    """Equal to the last bit, with the same types and labels."""
    return found.load().identical(expected) and all(
        found[name].dtype == expected[name].dtype for name in expected.variables
    )


# Parts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 40, 41])
@pytest.mark.parametrize("fit", [1, 4, 5, 100])
def test_no_part_has_a_single_point_unless_the_sweep_has(count, fit):
    told = Told()
    size = 8 * (count + 2)  # bytes of one point of the function below
    points = lr.product(x=np.arange(float(count)))
    lr.sweep(lambda x: {"y": jnp.full(count + 2, x)}, points, memory=2 * size * fit, progress=told)
    assert sum(told.computed) == told.expected == count
    assert min(told.computed) >= min(2, count)
    assert max(told.computed) <= max(4, fit)
    assert max(told.computed) - min(told.computed) <= 1


def test_one_by_one_runs_are_unbatched():
    shapes = []

    def function(x):
        shapes.append(x.shape)
        return {"steps": jax.lax.while_loop(lambda n: n < x, lambda n: n + 1, jnp.asarray(0))}

    found = lr.sweep(function, lr.product(x=[3.0, 7.0, 1.0]), lanes=1)
    assert found["steps"].values.tolist() == [3, 7, 1]
    jaxpr = str(jax.make_jaxpr(function)(1.0))
    assert set(shapes) == {()}
    assert "reduce_or" not in jaxpr  # what a batched loop would wait with


# Resuming ------------------------------------------------------------------------------------


def test_finished_parts_are_not_computed_again(tmp_path, whole, monkeypatch):
    first, second = Told(), Told()
    assert same(run(tmp_path, first), whole)
    assert first.saved == []
    monkeypatch.setattr(jax.stages.Lowered, "compile", None)  # nothing may be compiled
    assert same(run(tmp_path, second), whole)
    assert second.computed == []
    assert second.saved == first.computed
    assert first.expected == second.expected == POINTS.size == sum(second.saved)


def test_an_interrupted_sweep_goes_on(tmp_path, whole):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Told(stop_after=5))
    told = Told()
    assert same(run(tmp_path, told), whole)
    assert len(told.saved) == 5
    assert sum(told.saved) + sum(told.computed) == POINTS.size


def other(seed, size):
    return {name: 2 * value for name, value in chaotic(seed, size).items()}


def test_parts_of_another_program_are_not_taken(tmp_path):
    run(tmp_path)
    changes: list[dict[str, Any]] = [
        {"function": other},
        {"lanes": 2},
        {"compiler_options": {"xla_backend_optimization_level": 0}},
    ]
    for factor in (2.0, 3.0):  # in a constant that the program's text does not show
        constant = jnp.full((2, 2), factor)
        changes.append({"function": lambda seed, size, c=constant: {"B": jnp.sum(c) * seed}})
    for change in changes:
        told = Told()
        run(tmp_path, told, **change)
        assert told.saved == []


def with_data(seed, size, shared):
    return {"B": chaotic(seed, size)["B"] * shared["data"][0][0]}


def test_parts_with_other_shared_arrays_are_not_taken(tmp_path):
    def saved(data):
        told = Told()
        run(tmp_path, told, function=with_data, shared={"data": data})
        return sum(told.saved)

    data = np.arange(12.0).reshape(4, 3)
    other = data.copy()
    other[3, 2] += 1e-12  # which no result depends on
    assert saved(data) == 0
    assert saved(jnp.array(data)) == POINTS.size
    assert [saved(one) for one in (other, data[:3], list(data), data > 0)] == [0] * 4
    assert saved(data) == POINTS.size


def test_parts_of_another_precision_are_not_taken(tmp_path):
    run(tmp_path)
    told = Told()
    with jax.enable_x64(False):
        found = run(tmp_path, told)
    assert told.saved == []
    assert found["B"].dtype == np.float32


def test_a_larger_sweep_takes_the_parts_it_can(tmp_path):
    few = lr.product(x=np.arange(8.0))
    more = lr.product(x=np.arange(16.0))
    function, told = (lambda x: {"y": jnp.sin(x)}), Told()
    lr.sweep(function, few, memory=1, store=tmp_path, lanes=4)
    found = lr.sweep(function, more, memory=1, store=tmp_path, lanes=4, progress=told)
    assert (sum(told.saved), sum(told.computed)) == (8, 8)
    assert np.array_equal(found["y"], np.asarray(jnp.sin(jnp.arange(16.0))))


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "garbage"])
def test_a_damaged_part_is_named_set_aside_and_computed_again(tmp_path, whole, damage):
    run(tmp_path)
    path = sorted(tmp_path.glob("[0-9]*.npz"))[3]
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        content = content[:-100]
    elif damage == "flip":
        content[content.index(b"NUMPY") + 200] ^= 1  # a bit of the data of the first array
    else:
        content = bytearray() if damage == "empty" else bytearray(b"no archive" * 100)
    path.write_bytes(content)
    told = Told()
    assert same(run(tmp_path, told), whole)
    assert len(told.computed) == 1
    (note,) = told.notes
    assert str(path) in note
    assert f"kept as {path.name}.damaged and computed again" in note
    assert (tmp_path / f"{path.name}.damaged").read_bytes() == content
    again = Told()
    run(tmp_path, again)
    assert again.computed == []


@pytest.mark.parametrize("wrong", ["swapped", "other arrays", "no manifest"])
def test_a_part_says_what_it_holds(tmp_path, whole, wrong):
    run(tmp_path)
    first, second, *_ = sorted(tmp_path.glob("[0-9]*.npz"))
    if wrong == "swapped":
        content = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(content)
    else:
        with zipfile.ZipFile(first) as archive:
            said = archive.read(parts.MANIFEST)
        with zipfile.ZipFile(first, "w") as archive:
            if wrong == "other arrays":
                archive.writestr(parts.MANIFEST, said.replace(b'"trace"', b'"other"'))
    told = Told()
    assert same(run(tmp_path, told), whole)
    assert len(told.notes) == (2 if wrong == "swapped" else 1)
    assert all("kept as" in note for note in told.notes)


def test_a_damaged_part_is_a_warning_where_nobody_listens(tmp_path):
    points = lr.product(x=[1.0, 2.0])
    lr.sweep(lambda x: {"y": x}, points, store=tmp_path)
    (path,) = tmp_path.glob("[0-9]*.npz")
    path.write_bytes(b"")
    with pytest.warns(UserWarning, match="damaged"):
        lr.sweep(lambda x: {"y": x}, points, store=tmp_path)


def test_any_name_of_a_result_can_be_kept(tmp_path):
    function = lambda x: {"file": x, "args": 2 * x, "a b/c": 3 * x}  # noqa: E731
    for _ in range(2):
        found = lr.sweep(function, lr.product(x=[1.0, 2.0]), store=tmp_path)
        assert [found[name].values.tolist() for name in ("file", "args", "a b/c")] == [
            [1, 2],
            [2, 4],
            [3, 6],
        ]


# Killed at any moment ------------------------------------------------------------------------

KILLED = """
import sys, time
from lrdyn import cli
cli.setup(host_devices=2)
import lrdyn as lr
from tests.runs import Told
from tests.verification.test_parts import chaotic

class Slow(Told):
    def advance(self, points, *, saved=False):
        time.sleep(0 if saved else 0.01)
        super().advance(points, saved=saved)

points = lr.product(seed=range(400), size=[2, 3])
print("started", flush=True)
told = Slow()
found = lr.sweep(chaotic, points, shapes=("size",), memory=1, store=sys.argv[1], progress=told)
found.to_netcdf(sys.argv[2], engine="h5netcdf")
print(len(told.saved), len(told.computed), *told.notes)
"""


def start_killed(store, result):
    """In a process forked from one that has imported JAX: its client's end is a kill -9 of it."""
    script = result.parent / "killed.py"
    script.write_text(KILLED)
    how = {"cache": result.parent / "cache", "interpreter": forked.interpreter()}
    return started(script, store, result, **how)


def test_kill_minus_9_loses_nothing(tmp_path):
    reference = start_killed(tmp_path / "a", tmp_path / "a.nc")
    assert reference.stdout
    assert reference.stdout.readline() == "started\n"
    parts = int(reference.communicate(timeout=200)[0].split()[1])
    store, rng, kept = tmp_path / "b", random.Random(0), [0]

    def finished():
        return len(list(store.glob("[0-9]*.npz")))

    for kill in range(8):
        process = start_killed(store, tmp_path / "b.nc")
        assert process.stdout
        process.stdout.readline()
        while kill % 2 and finished() == kept[-1] and process.poll() is None:
            time.sleep(0.01)  # every second one in the midst of the parts
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.communicate()
        kept.append(finished())
        assert kept[-1] >= kept[-2]
    assert any(0 < count < parts for count in kept), kept
    last = start_killed(store, tmp_path / "b.nc")
    output, _ = last.communicate(timeout=200)
    assert output.split() == ["started", str(kept[-1]), str(parts - kept[-1])]
    a, b = (xr.load_dataset(tmp_path / f"{n}.nc", engine="h5netcdf") for n in "ab")
    assert same(b, a)
    assert len(list(store.glob(".*"))) == 1  # the arrays of the last run, above its budget


# Refused -------------------------------------------------------------------------------------


def test_a_store_belongs_to_one_run(tmp_path, whole):
    run(tmp_path)
    with files.lock(tmp_path), pytest.raises(files.InUse, match=f"{tmp_path} is in use by"):
        run(tmp_path)
    assert same(run(tmp_path), whole)


def test_an_impossible_store(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        run(tmp_path / "file" / "below")


FULL = """
import resource, sys
from lrdyn import cli
cli.setup(host_devices=1)
from tests.verification.test_parts import run
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
run(sys.argv[1])
"""


def test_a_full_disk_keeps_what_is_finished(tmp_path, whole, monkeypatch):
    """A limit on the size of a file fails like a full disk: some bytes are written, then an error.

    The parts of smaller matrices are below it.
    """
    run(tmp_path / "free")
    sizes = sorted(path.stat().st_size for path in (tmp_path / "free").glob("[0-9]*.npz"))
    limit = (sizes[0] + sizes[-1]) // 2
    assert sizes[0] < limit < sizes[-1]
    if "XLA_FLAGS" not in os.environ:
        monkeypatch.setenv("XLA_FLAGS", XLA_FLAGS)  # the same kernels as here, to the bit
    process = python("-c", FULL, tmp_path / "full", str(limit))
    assert "OSError" in process.stderr
    assert "File too large" in process.stderr
    assert str(tmp_path / "full") in process.stderr.splitlines()[-1]
    kept = list((tmp_path / "full").glob("[0-9]*.npz"))
    assert 0 < len(kept) < len(sizes)
    told = Told()
    assert same(run(tmp_path / "full", told), whole)
    assert len(told.saved) == len(kept)


# Results larger than the budget --------------------------------------------------------------


def test_large_results_stay_on_disk_and_are_the_same(tmp_path, whole):
    lazy = run(tmp_path)
    assert len(list(tmp_path.glob(".*.nc"))) == 1
    assert not lazy["B"].variable._in_memory
    assert lazy["trace"].variable._in_memory
    assert same(lazy, whole)
    assert run(tmp_path / "small", memory=10**8)["B"].variable._in_memory


PEAK = """
import sys
import jax.numpy as jnp, numpy as np
import lrdyn as lr
from lrdyn.verification.storing import files
store, memory = sys.argv[1] or None, int(sys.argv[2])

def function(x):
    return {"y": x * jnp.arange(5000.0)}

def sweep(count):
    return lr.sweep(function, lr.product(x=np.arange(float(count))), memory=memory, store=store)

files.SLAB = 2**20
sweep(40)
def status(name):
    (line,) = [text for text in open("/proc/self/status") if text.startswith(name)]
    return int(line.split()[1])

open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = status("VmRSS")
found = sweep(8000)
if store:
    from pathlib import Path
    files.write_netcdf(Path(store) / "copy.nc", {"/": found})
print(found["y"].nbytes // 1024, status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
def test_memory_is_flat(tmp_path):
    """Peak memory grows with the budget and not with the results (here 160 MB, in float32)."""
    size, growth = map(int, python("-c", PEAK, tmp_path, str(2**22)).stdout.split())
    assert size == 8000 * 5000 * 4 // 1024
    assert growth < size / 2
    _, held = map(int, python("-c", PEAK, "", str(2**22)).stdout.split())
    assert held > 0.9 * size


# Progress ------------------------------------------------------------------------------------


def test_a_library_says_nothing(tmp_path, capfd):
    lr.sweep(chaotic, POINTS, shapes=("size",), store=tmp_path)
    assert capfd.readouterr() == ("", "")


def test_a_log_gets_plain_lines(tmp_path, monkeypatch):
    log = tmp_path / "log"
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    with log.open("w") as stream, progress.shown("mine", stream) as told:
        run(tmp_path / "store", told)
    lines = log.read_text().splitlines()
    assert lines[-1].startswith("mine: 80 of 80 points, ")
    assert all(line.startswith("mine: ") for line in lines)
    assert "\x1b" not in "".join(lines)
    with log.open("w") as stream, progress.shown("mine", stream) as told:
        run(tmp_path / "store", told)
    assert log.read_text().splitlines()[-1] == "mine: 80 of 80 points, 80 from an earlier run"


def test_a_log_is_not_flooded(tmp_path):
    log = tmp_path / "log"
    with log.open("w") as stream, progress.shown("mine", stream) as told:
        told.expect(1000)
        for _ in range(1000):
            told.advance(1)
    assert log.read_text() == ""


def test_rate_and_time_left(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    counted = progress._Counted("mine")
    counted.expect(1000)
    counted.advance(400, saved=True)
    now[0] += 20
    counted.advance(100)
    assert counted.text() == ("500 of 1,000 points, 400 from an earlier run, 5 a second, 1:40 left")


def test_a_terminal_gets_a_bar():
    script = (
        "import sys, lrdyn.system.progress as p\n"
        "with p.shown('mine') as told:\n"
        "    told.expect(10); told.advance(4); told.note('a [bold] note'); told.advance(6)\n"
        "    told.bar.refresh()\n"
    )
    leader, follower = pty.openpty()
    process = started("-c", script, stderr=follower, TERM="xterm", COLUMNS="100")
    os.close(follower)
    seen = b""
    while select.select([leader], [], [], 60)[0]:
        try:
            seen += os.read(leader, 4096)
        except OSError:  # the other end is closed
            break
    os.close(leader)
    process.communicate(timeout=60)
    assert process.returncode == 0
    text = seen.decode()
    assert "mine: a [bold] note" in text
    assert "10 of 10 points" in text
    assert "━" in text


# What comes back -------------------------------------------------------------------------------


class Elsewhere:
    """Other processes, whose answers are changed on their way back."""

    def __init__(self, change):
        self.change = change

    def executor(self, recipe, progress):
        def execute(parts, store):
            answers = [*work.execute_here(parts, None)]
            yield from self.change(answers)

        return execute

    def workers(self):
        return []

    def measure_arithmetic(self, precision, word):
        return []


def changed(one):
    """Change the arrays of the first part alone."""

    def change(answers):
        (part, arrays), *others = answers
        return [(part, one(dict(arrays))), *others]

    return change


ANSWERS = {
    "nothing": changed(lambda arrays: None),
    "an object": changed(lambda arrays: object()),
    "no array": changed(lambda arrays: arrays | {"B": "B"}),
    "an array less": changed(lambda arrays: {n: a for n, a in arrays.items() if n != "trace"}),
    "an array more": changed(lambda arrays: arrays | {"other": arrays["B"]}),
    "a column": changed(lambda arrays: arrays | {"B": arrays["B"][..., :1]}),
    "a point less": changed(lambda arrays: {n: a[1:] for n, a in arrays.items()}),
    "another type": changed(lambda arrays: arrays | {"B": arrays["B"].astype(complex)}),
    "a part twice": lambda answers: [*answers, answers[0]],
    "a part less": lambda answers: answers[1:],
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_what_comes_back_is_what_was_planned_or_one_line_says_what_is_not(answer):
    """None of it fills other places, or leaves zeros in the place of results."""
    with pytest.raises(work.PartFailed, match=r"seed.*: got .*, wanted "):
        run(client=Elsewhere(ANSWERS[answer]))


def test_what_comes_back_as_planned_is_taken(whole):
    assert same(run(client=Elsewhere(lambda answers: answers[::-1])), whole)


def test_a_stored_part_of_another_shape_is_computed_again(whole, tmp_path):
    """Its file is whole and says itself what it holds: only the plan knows better."""
    run(tmp_path)
    path = min(tmp_path.rglob("*.npz"))
    told = Told()
    store = parts.Store(path.parent, told.note)
    stored = store.load(path.stem)
    assert stored is not None
    store.save(path.stem, dict(stored) | {"B": stored["B"][..., :1]})
    assert same(run(tmp_path, told), whole)
    assert sum(told.computed) == len(stored["B"])
    assert path.with_name(path.name + ".damaged").exists()
