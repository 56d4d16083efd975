"""The command ``lrdyn``, ``lrdyn.verify``, and how commands end on a signal."""

import dataclasses
import importlib.metadata
import json
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import lrdyn as lr
from lrdyn import __main__ as command
from lrdyn import statements, theorem2
from lrdyn.commands import ending, pool
from lrdyn.figures import verdict_plots
from lrdyn.registry import BEYOND_THE_SURVEY, REGISTRY, theorem, theorems
from lrdyn.studies import REGISTRY as STUDIES
from lrdyn.system import interrupts, memory_limit, progress, whole_files
from lrdyn.verification.judging import verdict_text
from lrdyn.verification.judging.judging import Verdict
from lrdyn.verification.judging.outcomes import PRECISIONS
from lrdyn.verification.running.configuration import run_of
from lrdyn.verification.runs import past_runs, run_folder
from lrdyn.verification.runs.past_runs import settings_text
from lrdyn.verification.stating import own_files
from lrdyn.verification.stating.claims import judge
from lrdyn.verification.storing import files, parts, results_file
from tests.faults import signals
from tests.runs import ROOT, python, started
from tests.test_commands import register, tree
from tests.tiny import Value
from tests.verification.test_theorem import MY_THEOREM

SMALL = ["--dim", "2", "--dtype", "float32", "--seeds", "1"]


@pytest.fixture
def lrdyn(tmp_path, monkeypatch, unchecked, capsys):
    """Run ``lrdyn`` here, in an empty folder with a theorem: status, output, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LRDYN_CACHE", "")
    (tmp_path / "mine.py").write_text(MY_THEOREM)
    yield lambda *words: (command.main(list(map(str, words))), *capsys.readouterr())
    jax.config.update("jax_enable_x64", True)


def test_what_it_says_of_itself(lrdyn):
    assert lrdyn("--version") == (0, f"lrdyn {lr.__version__}\n", "")
    for words in ([], ["--help"], ["-h"]):
        status, out, err = lrdyn(*words)
        assert (status, err) == (0, "")
        assert all(f"  {name} " in out or f"  {name}\n" in out for name in command.COMMANDS)
    status, out, _ = lrdyn("list")
    names = [line.split()[0] for line in out.splitlines()]
    of_survey = [name for name in REGISTRY if name not in BEYOND_THE_SURVEY]
    assert names == [
        *("theorems", *of_survey),
        *("beyond", *(name for name in REGISTRY if name in BEYOND_THE_SURVEY)),
        *("studies,", *STUDIES),
    ]


IMPORTED = """
import contextlib, io, sys
import lrdyn
from lrdyn.__main__ import main
assert {"rho", "theorem2", "main"} <= {*dir(lrdyn)}
for words in ([], ["--help"], ["help"], ["--version"]):
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(words) == 0
print(sorted({"jax", "numpy", "optax", "equinox", "xarray", "matplotlib"} & set(sys.modules)))
lrdyn.rho
print("jax" in sys.modules, {"xarray", "matplotlib"} & set(sys.modules))
"""


def test_nothing_is_imported_before_it_is_asked_for():
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED], capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.stdout, done.stderr) == ("[]\nTrue set()\n", "")


def fault_of(module, **variables):
    """The one line of a command that could not begin: status 3, and nothing else is said."""
    done = subprocess.run(
        [sys.executable, "-m", module, "list"],
        env=os.environ | variables,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)
    return done.stderr


@pytest.mark.parametrize("module", ["lrdyn", "experiments.theorem2", "paper_figs"])
def test_a_command_that_cannot_be_imported_gives_no_verdict(module):
    """Python's own status, 1, would say that a theorem is false."""
    assert "JAX_ENABLE_X64" in fault_of(module, JAX_ENABLE_X64="perhaps")


@pytest.mark.parametrize("package", ["optax", "jax"])
def test_a_package_that_is_not_there_is_named(package, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{package!r}] = None\n")
    said = fault_of("experiments.theorem2", PYTHONPATH=os.fspath(tmp_path))
    assert f"pip install {package}" in said


def test_without_metadata_the_version_is_that_of_the_source(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    installed = importlib.metadata.version("lrdyn")
    monkeypatch.setattr(importlib.metadata, "version", absent)
    monkeypatch.delitem(vars(lr), "__version__", raising=False)
    assert lr.__version__ == installed


def test_names_are_those_of_the_modules_that_have_them():
    names = {}
    exec("from lrdyn import *", names)
    assert set(lr.__all__) <= set(names)
    assert names["rho"] is lr.theorem2.rho is theorem2.rho
    assert pickle.loads(pickle.dumps(lr.rho)) is lr.rho
    with pytest.raises(AttributeError, match=r"no attribute 'swep' \(did you mean 'sweep'\?\)"):
        _ = lr.swep


def test_every_exported_name_is_there():
    assert len(set(lr.__all__)) == len(lr.__all__)
    assert all(hasattr(lr, name) for name in lr.__all__)
    assert not {name for name in lr.__all__ if name.startswith("_")} - {"__version__"}


def test_a_theorem_in_a_file_is_verified_listed_and_compared(lrdyn, tmp_path):
    assert lrdyn("verify", "mine.py", *SMALL)[0] == 0
    status, out, _ = lrdyn("verify", "mine.py:THEOREM", *SMALL, "--rate", "0.3")
    assert status == 0
    assert out.splitlines()[-1].startswith("my_theorem holds: results/my_theorem/")
    status, out, err = lrdyn("runs")
    assert (status, err) == (0, "")
    heading, *lines = out.splitlines()
    assert heading.split() == ["ended", "(UTC)", "name", "verdict", "settings", "folder"]
    assert len(lines) == 2
    assert all(" my_theorem  holds " in line and "--dim 2" in line for line in lines)
    first, second = (line.split()[-1] for line in lines)
    assert lrdyn("diff", first, first) == (0, "no difference\n", "")
    status, out, err = lrdyn("diff", first, second)
    assert (status, err) == (1, "")
    assert "setting rate: " in out
    assert not [line for line in out.splitlines() if line.startswith("setting dim")]


def test_damaged_and_unfinished_runs_are_listed(lrdyn, tmp_path):
    (tmp_path / "results/a/one/parts").mkdir(parents=True)
    (tmp_path / "results/a/two").mkdir()
    (tmp_path / "results/a/two/verdict.json").write_text('{"name": "a"}')
    _, out, _ = lrdyn("runs")
    said = {line.split()[-1]: line for line in out.splitlines()[1:]}
    assert "unfinished" in said["results/a/one"]
    assert "damaged" in said["results/a/two"]


def test_searches_are_listed_with_what_came_of_them(lrdyn, tmp_path):
    found = {
        "search-1": {"points": 64, "holds": True},
        "search-2": {"points": 640, "holds": False},
        "beyond-3": {"points": 64},
        "search-4": {"points": "many", "holds": True},
        "search-5": [],
    }
    for name, content in found.items():
        (tmp_path / "results/a" / name / "parts").mkdir(parents=True)
        (tmp_path / "results/a" / name / "search.json").write_text(json.dumps(content))
    (tmp_path / "results/a/search-6/parts").mkdir(parents=True)  # has not ended
    (tmp_path / "results/a/search-6/search.json.part").touch()
    status, out, err = lrdyn("runs")
    assert (status, err) == (0, "")
    said = {line.rpartition("/")[2]: line for line in out.splitlines()[1:]}
    assert re.search(" a +search holds +--search 64 ", said["search-1"])
    assert re.search(" a +search IS FALSE +--search 640 ", said["search-2"])
    assert re.search(" a +search +--search 64 ", said["beyond-3"])
    assert " damaged " in said["search-4"]
    assert " damaged " in said["search-5"]
    assert " unfinished " in said["search-6"]


CONFIG = {"preset": "quick", "seed": 0, "seeds": 2, "dtype": "float64", "perturb": False}
CLAIMED = {
    "id": "sums",
    "kind": "identity",
    "statement": "2 x = x + x",
    "hypotheses_met": True,
    "residual": 0.0,
    "tolerance": 1e-9,
    "holds": True,
    "cases": 1,
    "judged": {},
    "worst_case": {},
}


def verdict_file(folder, **changes):
    """A run of a folder: a verdict, and results that nobody looks into."""
    folder.mkdir(parents=True)
    content = {
        "name": "theorem2",
        "config": CONFIG | {"dim": [2]},
        "claims": [CLAIMED],
        "environment": {"dtype": "float64"},
        "results_sha256": 64 * "0",
        "holds": True,
        "undecided": [],
    }
    (folder / "verdict.json").write_text(json.dumps(content | changes))
    (folder / "results.nc").write_bytes(b"not looked into")
    return folder


READABLE = {
    "unknown": {"name": "theorem99", "config": CONFIG | {"length": 3}},
    "other kind": {"config": CONFIG | {"dim": "x", "depth": [None], "length": 3}},
}
DAMAGED = {
    "empty": {"config": {}},
    "preset": {"config": CONFIG | {"preset": "zzz"}},
    "object": {"config": CONFIG | {"target": {"a": 1}}},
    "claims": {"claims": [1]},
    "another": {"claims": [{}]},
}


def test_a_bad_neighbour_takes_no_table_down(lrdyn, tmp_path):
    runs_of = tmp_path / "results/a"
    verdict_file(runs_of / "good")
    for name, changes in (READABLE | DAMAGED).items():
        verdict_file(runs_of / name, **changes)
    deep = verdict_file(runs_of / "deep") / "verdict.json"
    deep.write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    (runs_of / "fifo").mkdir()
    os.mkfifo(runs_of / "fifo/verdict.json")
    (runs_of / "folder/verdict.json").mkdir(parents=True)
    (verdict_file(runs_of / "alone") / "results.nc").unlink()
    (runs_of / "elsewhere").symlink_to(tmp_path)  # which holds itself
    status, out, err = lrdyn("runs")
    assert (status, err) == (0, "")
    lines = {line.rpartition("/")[2]: line for line in out.splitlines()[1:]}
    damaged = {"folder", "alone", "deep", "fifo", *DAMAGED}
    assert lines.keys() == {"good", *READABLE} | damaged
    assert {name for name, line in lines.items() if " damaged " in line} == damaged
    assert {name for name, line in lines.items() if " holds " in line} == {"good", *READABLE}
    assert " --dim 2 " in lines["good"]
    assert "--dim x --depth None --length 3" in lines["other kind"]
    assert re.search(" damaged +no results.nc ", lines["alone"])
    for name in (*DAMAGED, "deep", "fifo", "folder"):
        status, out, err = lrdyn("diff", "results/a/good", f"results/a/{name}")
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert "wanted two folders of results" in err


def test_a_folder_that_cannot_be_opened_is_a_row(tmp_path, monkeypatch):
    verdict_file(tmp_path / "good")
    denied = PermissionError(13, "Permission denied", str(tmp_path / "secret"))
    walk = os.walk

    def refusing(top, onerror):
        yield from walk(top)
        onerror(denied)

    monkeypatch.setattr(os, "walk", refusing)
    lines = {line.rpartition("/")[2]: line for line in past_runs.table(tmp_path, {})}
    assert re.search(" damaged +Permission denied ", lines["secret"])
    assert " holds " in lines["good"]


def test_nothing_a_table_shows_is_obeyed(lrdyn, tmp_path):
    evil = "\x1b]0;title\x07\x1b[2J\nforged  holds"
    verdict_file(tmp_path / "results/a\x1b[31m/one", name=evil, config=CONFIG | {evil: evil})
    status, out, err = lrdyn("runs")
    assert (status, err, len(out.splitlines())) == (0, "", 2)
    assert out.replace("\n", "").isprintable()
    verdict_file(tmp_path / "two", name=evil + "2", config=CONFIG | {evil: 1})
    status, out, _ = lrdyn("diff", "results/a\x1b[31m/one", "two")
    assert status == 1
    assert out.replace("\n", "").isprintable()
    assert not [line for line in out.splitlines() if line.startswith("forged")]


def test_diff_tells_of_other_sources_and_of_files_that_are_not_the_runs(lrdyn, tmp_path):
    def written(name, digest):
        folder = verdict_file(tmp_path / name)
        files.write_netcdf(
            folder / "results.nc", {"/": xr.Dataset({"x": 1.0}, attrs={"digest": digest})}
        )
        verdict = json.loads((folder / "verdict.json").read_text())
        verdict["results_sha256"] = results_file.checksum(folder / "results.nc")
        (folder / "verdict.json").write_text(json.dumps(verdict))

    written("one", "a" * 64)
    written("same", "a" * 64)
    written("other", "b" * 64)
    assert lrdyn("diff", "one", "same") == (0, "no difference\n", "")
    path = tmp_path / "same/verdict.json"
    verdict = json.loads(path.read_text())
    kernels = {"name": "openblas", "version": "0.3.30", "architecture": "Haswell", "threads": 1}
    elsewhere = {**verdict["environment"], "blas": [kernels]}
    path.write_text(json.dumps(verdict | {"environment": elsewhere}))
    status, out, _ = lrdyn("diff", "one", "same")
    assert (status, out.splitlines()[0]) == (0, "environment only:")
    assert "blas" in out
    path.write_text(json.dumps(verdict))
    status, out, _ = lrdyn("diff", "one", "other")
    assert (status, out) == (1, f"sources (SHA-256): {'a' * 64} -> {'b' * 64}\n")
    shutil.copy(tmp_path / "other/results.nc", tmp_path / "same/results.nc")
    assert (
        "results.nc of the second: not the one of its verdict\n" in lrdyn("diff", "one", "same")[1]
    )
    (tmp_path / "same/results.nc").write_bytes(b"half")
    assert "results.nc of the second: " in lrdyn("diff", "one", "same")[1]
    (tmp_path / "same/results.nc").unlink()
    assert lrdyn("diff", "one", "same")[1] == "results.nc of the second: not found\n"


def test_a_command_asks_for_its_address_space(lrdyn, monkeypatch):
    monkeypatch.setattr(memory_limit, "address_space", lambda: 10**9)
    status, out, err = lrdyn("verify", "mine.py", *SMALL)
    assert (status, out, err.count("\n")) == (3, "", 1)
    assert "ulimit -v: got 1 GB of address space, wanted 2." in err
    assert lrdyn("list")[0] == 0


def test_a_command_asks_for_memory_that_can_be_written(lrdyn, monkeypatch):
    limits = {resource.RLIMIT_DATA: 10**8}
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limits.get(which, -1), -1))
    memory_limit.address_space.cache_clear()
    status, out, err = lrdyn("verify", "mine.py", *SMALL)
    assert (status, out, err.count("\n")) == (3, "", 1)
    assert "ulimit -d: got 100 MB of data, wanted " in err


def test_settings_are_shown_where_the_preset_has_others():
    theorem2 = theorems()[1]
    config = run_of(theorem2, dim=9, depth=[2, 5], seeds=1).config
    assert settings_text(config, theorem2) == "--dim 9 --depth 2 5 --seeds 1"
    assert "--preset quick" in settings_text({"seed": 3, "preset": "quick"}, None)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["theorem2"], "command: got 'theorem2', wanted one of verify, list, explain, runs, diff"),
        (["verify"], "verify: got nothing, wanted a theorem, FILE.py[:NAME] or all"),
        (["verify", "theorem5"], "verify: got 'theorem5' (did you mean 'theorem"),
        (["verify", "none.py"], "verify: got 'none.py' (no such file"),
        (["verify", "mine.py:X"], "verify: got 'mine.py:X', wanted the name of a theorem"),
        (["verify", "bad.py"], "bad.py:2: got ZeroDivisionError (division by zero), wanted a file"),
        (["verify", "half.py"], "half.py:1: got SyntaxError ('(' was never closed"),
        (["verify", "two.py"], "verify: got 'two.py', wanted one of two.py:A, two.py:B"),
        (["verify", "empty.py"], "verify: got 'empty.py', wanted a file that states a theorem"),
        (["list", "more"], "more: got an unknown argument, wanted one of those in --help"),
        (["runs", "9" * 5000], "runs: got '9999"),
        (["verify", "9" * 5000 + ".py"], "verify: got '9999"),
        (["verify", "mine.py", "--out", "9" * 5000], "--out: got '9999"),
        (["runs", "none"], "runs: got 'none' (no such file"),
        (["diff", "one"], "RUN: got nothing, wanted a value"),
        (["diff", ".", "."], "diff: got verdict.json: not found, wanted two folders"),
        (["diff", "a\nb", "."], "diff: got a b/verdict.json: not found, wanted two folders"),
    ],
)
def test_bad_input(words, said, lrdyn, tmp_path):
    (tmp_path / "bad.py").write_text("x = 1\n1 / 0\n")
    (tmp_path / "half.py").write_text("f(\n")
    (tmp_path / "empty.py").write_text("from lrdyn.theorem2.statement import THEOREM2\n")
    two = "import lrdyn as lr\nA, B = (lr.Experiment(n, '', (), (lr.Scenario('s', dict),))"
    (tmp_path / "two.py").write_text(f"{two} for n in 'ab')\n")
    before = tree(tmp_path)
    status, out, err = lrdyn(*words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert re.match(f"(lrdyn|my_theorem): error: {re.escape(said)}", err), err
    assert len(err) <= 201
    left = {p: c for p, c in tree(tmp_path).items() if "__pycache__" not in str(p)}
    assert left == before


def test_all_leaves_a_summary(lrdyn, tmp_path, monkeypatch):
    mine = own_files.own_experiment(os.fspath(tmp_path / "mine.py"))
    register(monkeypatch, mine)
    assert lrdyn("verify", "all", "--jobs", "1", *SMALL, "--out", "kept")[0] == 0
    content = json.loads((tmp_path / "kept/summary.json").read_text())
    assert (content["holds"], len(content["theorems"])) == (True, 1)
    (entry,) = content["theorems"]
    assert entry["claims"] == {"hold": 1, "false": 0, "open": 0}
    assert (
        entry["results_sha256"]
        == json.loads((tmp_path / entry["folder"] / "verdict.json").read_text())["results_sha256"]
    )


# In Python -----------------------------------------------------------------------------------


def test_verify_takes_what_the_command_takes(lrdyn, tmp_path):
    mine = own_files.own_experiment(os.fspath(tmp_path / "mine.py"))
    found = lr.verify(mine, dim=2, rate=np.array([0.1, 0.2]), dtype="float32", seeds=1)
    assert found.verdict["holds"] is True
    assert (found.verdict["config"]["dim"], found.verdict["config"]["rate"]) == ([2], [0.1, 0.2])
    assert found.results["/"].sizes["rate"] == 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"width": 3}, "--width: got an unknown setting, wanted one of dim, depth"),
        ({"dim": 9.5}, "--dim: got 9.5, wanted an integer >= 3"),
        ({"dim": True}, "--dim: got True, wanted an integer >= 3"),
        ({"dim": []}, "--dim: got nothing, wanted an integer >= 3"),
        ({"dim": 2**40}, "--dim: got 1099511627776, wanted an integer >= 3, below 2"),
        ({"steps": (1, 2)}, r"--steps: got \(1, 2\), wanted an integer >= 1"),
        ({"dim": 8, "rank": 4}, "--rank: got 4 with d = 8, wanted d > 2 rank"),
        ({"init_scale": float("nan")}, "--init-scale: got nan, wanted"),
        ({"target": [[1, float("inf")], [1, 2]]}, "--target: got .*, wanted an array of real"),
        ({"seeds": 0}, "--seeds: got 0, wanted an integer >= 1"),
        ({"preset": "slow"}, "--preset: got 'slow', wanted one of quick, paper"),
        ({"dtype": "float16"}, "--dtype: got 'float16', wanted one of float64, float32"),
        ({"seed": 2**31 - 1, "seeds": 2}, "--seed: got 2147483647, wanted all seeds below"),
    ],
)
def test_verify_names_what_it_refuses(given, said, unchecked):
    with pytest.raises(ValueError, match=said):
        lr.verify(theorems()[1], **given)


def test_another_theorem_of_the_same_name_has_a_folder_of_its_own(tmp_path):
    first, second = (tmp_path / name for name in ("first.py", "second.py"))
    first.write_text(MY_THEOREM)
    second.write_text(MY_THEOREM.replace("class ", "# edited\nclass ", 1) + "\n# edited\n")
    found = [run_of(own_files.own_experiment(os.fspath(file))) for file in (first, second)]
    assert found[0].config == found[1].config
    assert found[0].folder("") != found[1].folder("")


# Signals -------------------------------------------------------------------------------------


ENDLESS = MY_THEOREM.replace(
    "    run = jax.lax.scan",
    '    x = jax.lax.fori_loop(0, 2**31 - 2, lambda _, x: jnp.sin(x), case["start"])\n'
    '    case = case | {"start": x}\n'
    "    run = jax.lax.scan",
)
"""A theorem that computes until it is ended."""


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    file = tmp_path_factory.mktemp("endless") / "endless.py"
    file.write_text(ENDLESS)
    return ("-m", "lrdyn", "verify", os.fspath(file))


ALL = signals.COMMANDS["all"]


@pytest.mark.parametrize(
    ("words", "number", "until"),
    [
        (ALL, signal.SIGINT, "imports"),
        (signals.COMMANDS["figures"], signal.SIGTERM, "imports"),
        (None, signal.SIGINT, "folder"),
        (None, signal.SIGTERM, "run"),
        (ALL, signal.SIGTERM, "folder"),
        (ALL, signal.SIGKILL, "run"),
    ],
    ids=["importing", "figures", "own-int", "own-term", "all-term", "all-kill"],
)
def test_a_signal_ends_a_command_in_one_line_with_its_workers(
    words, number, until, endless, tmp_path
):
    out = tmp_path / "out"

    def wait():
        if until == "imports":
            time.sleep(1)
            return
        while not signals.folders(out):
            time.sleep(0.05)
        time.sleep(2 if until == "run" else 0)

    ended = signals.signalled(words or endless, number, wait, out)
    assert ended.status == signals.STATUS[number], ended.stderr
    assert not ended.faults(number)
    left = [path for path in out.rglob("*") if path.is_file() and path.suffix != ".npz"]
    killed = number == signal.SIGKILL  # which leaves scratch, any other signal nothing but the mark
    known = re.compile(rf"{whole_files.SCRATCH}|{whole_files.MARK}" if killed else whole_files.MARK)
    assert all(known.fullmatch(path.name) for path in left)


def test_workers_are_started_where_ctrl_c_is_none_of_theirs():
    with interrupts.guard_workers():
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert interrupts.PARENT not in os.environ


def test_a_worker_whose_parent_ended_before_its_first_line_ends(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    source, parent = "import lrdyn, time; time.sleep(60)", str(gone.pid)
    words = ("-c", source, "--multiprocessing-fork")  # as multiprocessing starts it
    with started(*words, cwd=tmp_path, LRDYN_PARENT=parent) as worker:
        assert worker.wait(timeout=30) == 128 + signal.SIGKILL


LATE = """
import os, sys, time
from lrdyn.system import interrupts
interrupts.end_at_once()
class Late:
    def __del__(self, write=os.write, sleep=time.sleep):
        write(1, b"late\\n")
        sleep(1)
late = Late()
sys.exit(4)
"""


@pytest.mark.parametrize("number", interrupts.SIGNALS)
def test_a_command_that_has_ended_keeps_its_status(number):
    with started("-c", LATE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "late\n"
        process.send_signal(number)
        assert process.wait(timeout=30) == 4


OWN_HANDLERS = """
import signal, threading
mine = lambda number, frame: None
signal.signal(signal.SIGINT, mine)
IMPORT
assert signal.getsignal(signal.SIGINT) is mine
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
assert signal.set_wakeup_fd(-1) == -1
assert [t.name for t in threading.enumerate() if t.name == "signals"] == []
"""
IN_A_THREAD = """
failed = []
threading.excepthook = failed.append
thread = threading.Thread(target=lambda: __import__("lrdyn"))
thread.start()
thread.join()
assert not failed
"""


@pytest.mark.parametrize("how", ["import lrdyn", IN_A_THREAD], ids=["main", "thread"])
def test_a_script_keeps_its_own_handlers(how, tmp_path):
    (tmp_path / "script.py").write_text(OWN_HANDLERS.replace("IMPORT", how))
    done = python(tmp_path / "script.py")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_summary_that_cannot_be_written_is_a_fault(lrdyn, tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device", os.fspath(path))

    mine = own_files.own_experiment(os.fspath(tmp_path / "mine.py"))
    register(monkeypatch, mine)
    monkeypatch.setattr(pool.files, "write_json", full)
    monkeypatch.setattr(files, "write_json", full)
    status, _, err = lrdyn("verify", "all", "--jobs", "1", *SMALL)
    assert status == 3
    assert "No space left on device; finished parts are kept" in err.splitlines()[-1]


# In a notebook -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def verified():
    scenario = lr.Scenario[jax.Array, Value, Value](
        "sums",
        lambda key, *, size: jnp.arange(1.0, size + 1),
        lambda x: Value(2 * x),
        lambda x: Value(x + x),
        theory=Value,
        measured=Value,
        claims=(
            lr.Claim(
                "value",
                "2 x = x + x < 4 & > 0",
                compares=lambda theory, run: (theory.value, run.value),
            ),
        ),
        controls=(lr.Control("tripled", "3 x", "value", predict=lambda x: Value(3 * x)),),
    )
    flag = lr.Flag("size", (2, 3), lr.at_least(1), int, "n", "length of x", shapes=True)
    return lr.verify(lr.Theorem("sums", "2 x = x + x", (flag,), (scenario,)), seed=5, seeds=3)


def test_a_verdict_shows_itself_as_the_report_begins(verified):
    text, page = repr(verified), verified._repr_html_()
    said = verdict_text.sentence(verified.verdict)
    assert text.startswith("sums: 2 x = x + x\n")
    assert said in " ".join(text.split())
    assert "tripled" not in text  # a control is a number in the sentence
    root = ElementTree.fromstring(f"<div>{page}</div>")
    assert ["".join(e.itertext()) for e in root.iter("p")] == ["sums: 2 x = x + x", said]
    open_table, folded = root.find("table"), root.find("details/table")
    assert open_table is not None
    assert folded is not None
    for shown, name in ((open_table, "value"), (folded, "tripled")):
        assert [row[0].text for row in shown.findall("tr")] == ["claim", name]
        assert len(list(shown.iter("circle"))) == 1


@pytest.mark.parametrize("seen", [True, False, None])
def test_a_control_that_was_not_seen_to_fail_is_not_folded(seen, verified):
    claim, control = verified.verdict["claims"]
    page = verdict_text.html(verified.verdict | {"claims": [claim, control | {"holds": seen}]})
    root = ElementTree.fromstring(f"<div>{page}</div>")
    folded = [row[0].text for row in root.findall("details/table/tr")]
    shown = [row[0].text for row in root.findall("table/tr")]
    assert ("tripled" in folded, "tripled" in shown) == (seen is True, seen is not True)


@pytest.mark.parametrize("holds", [True, False, None])
def test_a_verdict_holds_only_if_it_says_so(holds, verified):
    """None, undecided, is neither: it does not hold, and is not false."""
    said = dataclasses.replace(verified, verdict=verified.verdict | {"holds": holds})
    names = {True: "HOLDS", False: "FALSE", None: "UNDECIDED"}
    assert said.outcome is lr.Decision[names[holds]]
    assert said.holds is (holds is True)


def test_what_reads_like_a_verdict_is_not_true_by_being_there(verified):
    """``assert lrdyn.verify(...)`` would pass whatever was found."""
    judged = judge(np.array([9.0]), np.array([1.0]), np.array([True]))
    whole = Verdict([{"holds": False}], 0, {}, [])
    endings = ending.Sameness(same=False), ending.Judged(Path("verdict.json"), holds=False)
    for found in (verified, verified.outcome, judged, whole, *endings):
        with pytest.raises(TypeError, match=f"^{type(found).__name__}: is neither .*, write "):
            assert found
    with pytest.raises(TypeError, match=r"write \.holds, or \.outcome"):
        all([verified])


def test_a_verdict_is_no_tuple(verified):
    """Its first entry was the verdict, whatever one meant by unpacking it or counting in it."""
    with pytest.raises(TypeError, match="unpack"):
        _, *_ = verified
    with pytest.raises(TypeError, match="subscriptable"):
        verified[0]
    assert not {"count", "index", "__len__", "__iter__"} & set(dir(verified))


def test_a_notebook_shows_why_a_claim_is_undecided(verified):
    claim, control = verified.verdict["claims"]
    counts = {"float64": {"drawn": 6, "judged": 0, "left_out": {"t < 5 & d > 2": 6}}}
    open_claim = claim | {"holds": None, "residual": None, "judged": counts, "cases": 0}
    open_claim |= {"decided_by": {"excused": 6}}
    page = verdict_text.html(
        verified.verdict | {"holds": None, "undecided": ["value"], "claims": [open_claim, control]}
    )
    sentence, table, _ = re.split("<table>|<details>", page, maxsplit=2)
    why = "value: undecided, t &lt; 5 &amp; d &gt; 2 (6)"
    assert why in sentence
    assert "undecided: t &lt; 5 &amp; d &gt; 2 (6)" in table


@pytest.mark.parametrize(
    ("holds", "undecided", "word"),
    [
        (True, [], "holds"),
        (False, [], "is false"),
        (None, ["value"], "is undecided"),
        (None, [], "does not apply"),
    ],
)
def test_the_figure_of_a_verdict_says_which_it_is(holds, undecided, word, verified):
    said = verified.verdict | {"holds": holds, "undecided": undecided}
    (ax,) = verdict_plots.verdict_figure(said, verified.legs).axes
    assert ax.get_title("left").startswith(f"sums {word}: ")


def test_controls_run_with_seeds_of_their_own(verified):
    assert verified.results["/"]["seed"].values.tolist() == [5, 6, 7]
    assert verified.results["/controls/tripled/float64"]["seed"].values.tolist() == [0, 1]


@pytest.mark.parametrize(("dtype", "run_in"), [("float64", ["float64"]), ("float32", [])])
def test_a_control_runs_where_its_failure_shows(dtype, run_in):
    scenario = lr.Scenario[jax.Array, Value, Value](
        "sums",
        lambda key: jnp.ones(2),
        lambda x: Value(2 * x),
        lambda x: Value(x + x),
        theory=Value,
        measured=Value,
        claims=(lr.Claim("value", "", compares=lambda theory, run: (theory.value, run.value)),),
        controls=tuple(
            lr.Control(id, "3 x", "value", predict=lambda x: Value(3 * x), precision=precision)
            for id, precision in (("float64", "float64"), ("both", ""))
        ),
    )
    found = lr.verify(lr.Theorem("sums", "", (), (scenario,)), preset="paper", dtype=dtype)
    assert found.verdict["holds"] is True
    assert list(found.legs.get("float64", ())) == run_in
    assert len(found.legs["both"]) == len(PRECISIONS[dtype])


def test_results_show_themselves_and_say_what_they_hold(verified, tmp_path):
    heading, first, *_ = repr(verified.results).splitlines()
    assert heading.split() == ["group", "arrays", "axes", "bytes"]
    assert first.startswith("/ ")
    assert verified.results._repr_html_().count("<tr>") == 1 + len(verified.results)


def test_arrays_say_in_symbols_what_they_are(verified):
    claim = lr.Claim[Value, Value](
        "value", "2 x = x + x", compares=lambda theory, run: (theory.value, run.value)
    )
    scenario = lr.Scenario("sums", dict, theory=Value, measured=Value, claims=(claim,))
    flag = lr.Flag("size", (2, 3), lr.at_least(1), int, "n", "length of x", shapes=True)
    theorem = lr.Theorem("sums", "", (flag,), (scenario,))
    found = run_folder.label_results(theorem, verified.results, "float64")
    assert found["/"]["size"].attrs == {"symbol": "n", "long_name": "length of x", "units": "1"}
    said = found["/"]["value_predicted"].attrs["long_name"]
    assert said == "predicted: value: 2 x = x + x"
    assert "long_name" not in verified.results["/"]["size"].attrs


def test_a_trajectory_shows_itself():
    run = lr.simulate(
        lambda w: 0.5 * jnp.sum(w**2),
        jnp.ones(3),
        lr.gradient_descent(0.5),
        jnp.arange(9),
        record=lambda w: {"norm": jnp.sum(w**2), "w": w},
    )
    assert repr(run).splitlines() == [
        "record    shape   first  last",
        "['norm']  (9,)    3      4.578e-05",
        "['w']     (9, 3)",
        "params: 1 arrays, 3 numbers; diverged_at: -1",
    ]
    page = run._repr_html_()
    assert page.count("<polyline") == 4
    assert "log scale" in page

    @jax.jit
    def traced(rate):
        inner = lr.simulate(lambda w: w**2, jnp.ones(()), lr.gradient_descent(rate), jnp.arange(2))
        assert "(2,)" in repr(inner)
        assert "<table>" in inner._repr_html_()
        return inner.params

    traced(0.1)


def test_a_theorem_is_verified_with_a_bar_in_a_notebook_alone(monkeypatch, unchecked):
    shown = []

    def noting(run, context):
        shown.append(context.progress)
        return lr.Verification({}, {}, [], {})

    monkeypatch.setattr(statements, "verify_run", noting)
    for inside in (True, False):
        monkeypatch.setattr(progress, "in_notebook", lambda inside=inside: inside)
        lr.verify(theorem("lora"), dtype="float64")
    lr.verify(theorem("lora"), dtype="float64", progress=shown[0])
    assert list(map(type, shown)) == [progress.Notebook, progress.Silent, progress.Notebook]


def test_a_notebook_gets_a_bar(monkeypatch, capsys):
    """With a stand-in for IPython, which only its users have."""
    drawn = []
    handle = SimpleNamespace(update=lambda bundle, raw: drawn.append(bundle))

    def display(bundle, raw, display_id):
        drawn.append(bundle)
        return handle

    shown = SimpleNamespace(display=display)
    ipython = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=None), display=shown)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", shown)
    with progress.shown("sweep") as told:
        told.expect(2)
        told.advance(2)
        told.note("a line")
    assert isinstance(told, progress.Notebook)
    assert '<progress max="2" value="2">' in drawn[-1]["text/html"]
    assert drawn[-1]["text/plain"].startswith("sweep: 2 of 2 points")
    assert capsys.readouterr().out == "sweep: a line\n"


# Sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("theorem2 --dim 1000000000", "--dim: got 1000000000, with which a case takes"),
        ("theorem4 --rows 2000000000", "--rows: got 2000000000, with which a case takes"),
        ("theorem2 --seeds 2000000000", "--seeds: got 2000000000, with which "),
        ("theorem3 --width 2000000", "--width: got 2000000, with which a case takes"),
        ("theorem1 --rows 100000000", "--rows: got 100000000, with which a case takes"),
        ("completion --dim 2147483647", "--dim: got 2147483647, with which a case takes"),
        ("theorem2 --dim 100 --memory 10kB", "--dim: got 100, with which a case takes 720 kB or"),
    ],
)
def test_what_cannot_fit_is_refused_before_anything_is_made(words, said, lrdyn, tmp_path):
    before = tree(tmp_path)
    begin, most = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status, out, err = lrdyn("verify", *words.split())
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert len(err) <= 200
    assert tree(tmp_path) == before
    assert time.monotonic() - begin < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most < 100_000  # kB


# Files ---------------------------------------------------------------------------------------


LIMITED = """
import resource, sys
from lrdyn import cli
from lrdyn.verification.stating.own_files import own_experiment
from lrdyn.verification.storing import results_file as results
write = results.write
def limited(*words, **more):
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    write(*words, **more)
results.write = limited
sys.exit(cli.run("mine", lambda: cli.main(own_experiment("mine.py"), sys.argv[1:])))
"""


def test_a_limit_of_the_size_of_files_is_one_line(tmp_path):
    (tmp_path / "mine.py").write_text(MY_THEOREM)
    (tmp_path / "limited.py").write_text(LIMITED)
    done = python("limited.py", *SMALL, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    last = done.stderr.splitlines()[-1]
    assert re.match(r"my_theorem: error: .*results.nc: File too large; finished parts are", last)
    assert "Traceback" not in done.stderr
    assert list(tmp_path.rglob("*.npz"))


@pytest.mark.parametrize(
    ("owner", "name"), [(results_file, "write"), (files, "_write_group"), (parts.Store, "save")]
)
@pytest.mark.parametrize("slab", [100, 2**26])
def test_a_folder_that_vanishes_is_one_line(owner, name, slab, lrdyn, tmp_path, monkeypatch):
    then = getattr(owner, name)

    def gone(*given, **more):
        shutil.rmtree(tmp_path / "results", ignore_errors=True)
        return then(*given, **more)

    monkeypatch.setattr(files, "SLAB", slab)
    monkeypatch.setattr(owner, name, gone)
    status, out, err = lrdyn("verify", "mine.py", *SMALL)
    assert (status, out, err.count("\n")) == (3, "", 1), err
    assert re.match(r"my_theorem: error: results/\S+: No such file or directory\n", err)
    assert not list(tmp_path.rglob("results.nc"))


def test_what_is_in_the_place_of_results_is_named(lrdyn, tmp_path):
    mine = own_files.own_experiment(os.fspath(tmp_path / "mine.py"))
    run = run_of(mine, dim=2, dtype="float32", seeds=1)
    (run.folder("results") / "results.nc").mkdir(parents=True)
    status, _, err = lrdyn("verify", "mine.py", *SMALL)
    assert (status, err.splitlines()[-1]) == (
        3,
        f"my_theorem: error: {run.folder('results')}/results.nc: Is a directory; finished parts "
        "are kept",
    )


def test_odd_names_of_folders(lrdyn, tmp_path):
    assert lrdyn("verify", "mine.py", *SMALL, "--out", "")[0] == 2
    assert lrdyn("verify", "mine.py", *SMALL, "--out", "-5")[0] == 0
    assert (tmp_path / "-5/my_theorem").is_dir()
    words = ("-m", "lrdyn", "verify", "mine.py", *SMALL, "--out", "\u00e9")
    with started(*words, cwd=tmp_path, PYTHONIOENCODING="ascii", LC_ALL="C") as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "my_theorem holds: \\xe9/my_theorem/" in out
