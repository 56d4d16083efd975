"""Every way to leave a command: a status is a verdict only where the run wrote it."""

import errno
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from lrdyn import __main__ as command
from lrdyn.commands import ending as commands
from lrdyn.commands.ending import Judged, Sameness, Status
from lrdyn.system import interrupts, whole_files
from lrdyn.verification.storing import results_file
from paper_figs import __main__ as figures_command
from tests.runs import ROOT, python
from tests.test_commands import tree
from tests.verification.test_theorem import MY_THEOREM

PLAIN = """
import errno, sys
from typing import NamedTuple

import lrdyn
from lrdyn import cli
from lrdyn.commands.ending import Help

PLACE, FACTOR, UNDECIDED = "nowhere", 1.0, ""


class One(NamedTuple):
    one: float


class Own(BaseException): ...


class Dumb(Exception):
    def __str__(self): raise SystemExit(0)


class Numb(Exception):
    def __str__(self): return 0


class DumbSystemExit(SystemExit):
    code = property(lambda self: 1 / 0)
    def __str__(self): raise Own


def deep():
    deep()


def leave(place):
    if place == PLACE:
        pass  # the way to leave


leave("import")


def case(key, *, size):
    leave("case")
    return {"size": size}


def predict(case):
    leave("predict")
    return One(1.0)


def measure(case):
    leave("measure")
    return One(FACTOR)


def hypothesis(case):
    leave("hypothesis")
    return True


def undecided(outcome):
    leave("claim")
    return UNDECIDED if outcome.measured.one < 3 else ""


def other(case):
    leave("control")
    return One(3.0)


def draw(groups):
    leave("draw")


def check(point):
    leave("check")


SCENARIO = lrdyn.Scenario(
    "plain",
    case,
    predict,
    measure,
    theory=One,
    measured=One,
    claims=(
        lrdyn.Claim(
            "one",
            "1 = 1",
            compares=lambda theory, run: (theory.one, run.one),
            undecided=undecided,
        ),
    ),
    controls=(lrdyn.Control("two", "1 = 3", "one", measure=other),),
    hypotheses={"any": hypothesis},
    traced=False,
)
THEOREM = lrdyn.Theorem(
    "plain", "a theorem without a program",
    (lrdyn.Flag("size", (1,), lrdyn.at_least(1), int),), (SCENARIO,),
    plots={"plot": draw}, check=check,
)
if __name__ == "__main__":
    sys.exit(cli.main(THEOREM))
"""
"""A theorem of one number that takes milliseconds; functions of its own say where they are."""
PLACES = re.findall(r'leave\("(\w+)"\)', PLAIN)
WAYS = {
    "raise SystemExit(0)": 2,
    "raise SystemExit(1)": 2,
    "raise SystemExit": 2,
    "raise SystemExit('boom')": 2,
    "sys.exit(7)": 2,
    "raise DumbSystemExit": 2,
    "raise Own": 2,
    "raise GeneratorExit": 2,
    "raise StopIteration": 2,
    "raise Dumb": 2,
    "raise Numb": 2,
    "raise ValueError('two\\nlines \\x1b[2J')": 2,
    "raise Help('no help')": 2,
    "deep()": 2,
    "open('nothing')": 2,
    "raise OSError(errno.ENOSPC, 'No space left on device')": 3,
    "raise BrokenPipeError": 3,
    "raise MemoryError": 3,
    "raise KeyboardInterrupt": 130,
}
"""Way to leave -> status."""
STATUSES = {
    "FACTOR, UNDECIDED = 1.0, ''": 0,
    "FACTOR, UNDECIDED = 2.0, ''": 1,
    "FACTOR, UNDECIDED = 1.0, 'too few steps'": 4,
}
"""What the theorem is -> status of its verdict."""
WORDS = ["verify", "plain.py", "--dtype", "float32", "--seeds", "1"]


@pytest.fixture
def lrdyn(tmp_path, monkeypatch, unchecked, capsys):
    """Run ``lrdyn`` here in an empty folder: status, output, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LRDYN_CACHE", "")
    monkeypatch.setattr(
        "lrdyn.figures.verdicts.verdict_plots", None
    )  # which takes most of the time
    yield lambda *words: (command.main(list(words)), *capsys.readouterr())
    jax.config.update("jax_enable_x64", True)


def stated(way="pass", place="nowhere", what="FACTOR, UNDECIDED = 1.0, ''"):
    text = PLAIN.replace("pass  # the way to leave", way)
    usual = 'PLACE, FACTOR, UNDECIDED = "nowhere", 1.0, ""'
    Path("plain.py").write_text(text.replace(usual, f"PLACE = {place!r}\n{what}"))


LATE = ("control", "claim", "draw")
"""Places after which a run has taken a tenth of a second: not every way leads there."""
LEAVES = [
    (way, place)
    for index, way in enumerate(WAYS)
    for place in dict.fromkeys(PLACES)
    if place not in LATE or index % len(LATE) == LATE.index(place) or way == "raise SystemExit(0)"
]


@pytest.mark.parametrize(("way", "place"), LEAVES)
def test_no_exception_is_a_verdict(way, place, lrdyn, tmp_path):
    stated(way, place)
    status, out, err = lrdyn(*WORDS)
    wanted = 2 if place == "import" and WAYS[way] == 3 else WAYS[way]
    assert (status, out, err.count("\n")) == (wanted, "", 1), err
    assert "\x1b" not in err
    assert not list(tmp_path.rglob("verdict.json"))
    own_words = place == "check" and "ValueError" in way  # a check refuses settings by them
    if status == 2 and not own_words:
        assert re.match(r"(lrdyn|plain): error: plain.py:\d+.*: got \w+.*, wanted ", err), err
        left = {path.name for path in tmp_path.rglob("*") if "__pycache__" not in str(path)}
        kept = {"results", "plain", "results.nc", whole_files.MARK} if place == "draw" else set()
        assert left - {path.parent.name for path in tmp_path.rglob("results.nc")} == {
            "plain.py",
            *kept,
        }


@pytest.mark.parametrize("what", STATUSES)
@pytest.mark.parametrize("stream", ["full", "closed", "gone", "none"])
def test_a_verdict_stands_where_nothing_can_be_printed(what, stream, lrdyn, tmp_path, monkeypatch):
    monkeypatch.setattr("lrdyn.commands.verify.verdicts.draw", lambda *found: None)
    stated(what=what)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, STREAMS[stream]())
    status, _, _ = lrdyn(*WORDS)
    (path,) = tmp_path.rglob("verdict.json")
    holds = json.loads(path.read_text())["holds"]
    assert status == STATUSES[what] == {True: 0, False: 1, None: 4}[holds]


class Refusing:
    """A stream that takes nothing."""

    encoding = "utf-8"

    def __init__(self, error):
        self.error = error

    def write(self, text):
        raise self.error

    def flush(self):
        raise self.error

    def isatty(self):
        return False


STREAMS = {
    "full": lambda: Refusing(OSError(errno.ENOSPC, "No space left on device")),
    "closed": lambda: Refusing(ValueError("I/O operation on closed file")),
    "gone": lambda: Refusing(BrokenPipeError(errno.EPIPE, "Broken pipe")),
    "none": lambda: None,
}


@pytest.mark.parametrize(
    ("stream", "status"), [("full", 3), ("closed", 3), ("gone", 0), ("none", 0)]
)
def test_what_only_prints_ends_with_3_unless_the_reader_has_gone(
    stream, status, lrdyn, monkeypatch
):
    monkeypatch.setattr(sys, "stdout", STREAMS[stream]())
    assert lrdyn("--version")[0] == status
    monkeypatch.setattr(sys, "stderr", STREAMS[stream]())
    assert lrdyn("--version")[0] == status
    assert lrdyn("nothing")[0] == 2


def test_the_status_is_read_from_the_file(tmp_path, capsys):
    file = tmp_path / "verdict.json"

    def status(holds, claims=True):
        return commands.run("x", lambda: Judged(file, holds, claims))

    assert status(True) == 3  # there is none
    for holds, wanted in ((True, 0), (False, 1), (None, 4)):
        file.write_text(json.dumps({"holds": holds}))
        assert status(holds) == wanted
        assert status(not holds) == 3
        assert "got another verdict than was judged" in capsys.readouterr().err
    assert status(None, claims=False) == 0
    file.write_text("half")
    assert status(True) == 3


ENDINGS = [(None, 0), (Sameness(True), 0), (Sameness(False), 1), (Status(4), 4)]
ENDINGS += [(0, 3), (1, 3), (True, 3), ("", 3), (SystemExit(0), 3)]


@pytest.mark.parametrize(("ending", "status"), ENDINGS)
def test_a_number_is_no_status(ending, status, capsys):
    assert commands.run("x", lambda: ending) == status
    assert capsys.readouterr().err.count("\n") == (status == 3)


EVERY = ["--help", "list", "runs", "verify theorem2 --help", "verify all", "data", "diff a b"]
EVERY += ["figures --help", "diagnose --help"]


@pytest.mark.parametrize("line", EVERY)
def test_a_bad_variable_is_bad_input_of_every_command(line, lrdyn, monkeypatch):
    monkeypatch.setenv("LRDYN_CACHE_MAX", "x")
    err = "lrdyn: error: LRDYN_CACHE_MAX: got 'x', wanted a size such as 500MB or 2GiB\n"
    assert lrdyn(*line.split()) == (2, "", err)
    assert figures_command.main(["--help"]) == 2


@pytest.mark.parametrize("name", ["n" * 5000, "circle"], ids=["long", "circle"])
@pytest.mark.parametrize("of", ["summary", "index", "words", "judge", "target"])
def test_a_name_that_no_file_has_is_bad_input(name, of, lrdyn, tmp_path):
    """Be it among the words or in a file that somebody sent: the machine has no fault."""
    summary = {"theorems": [{"name": "plain", "folder": f"results/{name}/0"}]}
    Path("summary.json").write_text(json.dumps(summary))
    file = f"{name}.safetensors"
    index = json.dumps({"weight_map": {"weight": file}})
    Path("model.safetensors.index.json").write_text(index)
    for link in ("circle", "circle.safetensors"):
        Path(link).symlink_to(link)
    line = {
        "summary": ["report", "."],
        "index": ["diagnose", ".", "."],
        "words": ["diagnose", file, file],
        "judge": ["verify", "corollary1", "--judge", name],
        "target": ["verify", "corollary1", "--target", name],
    }[of]
    status, out, err = lrdyn(*line)
    assert (status, out, err.count("\n")) == (2, "", 1), err
    files = ("summary.json", "model.safetensors.index.json")
    assert name[:20] in err or any(file in err for file in files)
    assert "wanted" in err
    assert "parts are kept" not in err


def test_without_compiling_there_is_no_run(lrdyn, tmp_path):
    Path("mine.py").write_text(MY_THEOREM)
    before = tree(tmp_path)
    with jax.disable_jit():
        status, out, err = lrdyn("verify", "mine.py", "--dim", "2")
    said = "JAX_DISABLE_JIT: got it set, wanted it unset: sweeps run compiled programs"
    assert (status, out, err) == (2, "", f"my_theorem: error: {said}\n")
    assert {path for path in tree(tmp_path) if "__pycache__" not in str(path)} == set(before)


def test_results_that_cannot_be_read_back_are_a_fault_of_the_machine(lrdyn, monkeypatch):
    """They were written a moment ago: neither the theorem nor its user is wrong."""

    def lost(path):
        raise results_file.Damaged(path, "Input/output error")

    monkeypatch.setattr("lrdyn.verification.runs.verify.results_file.read", lost)
    Path("mine.py").write_text(MY_THEOREM)
    status, out, err = lrdyn("verify", "mine.py", "--dim", "2", "--seeds", "1")
    assert (status, out, err.count("\n")) == (3, "", 1)
    assert err.startswith("my_theorem: error: results/my_theorem/")
    said = "results.nc: cannot be read back as it was written; finished parts are kept\n"
    assert err.endswith(said)
    assert not list(Path().rglob("verdict.json"))


@pytest.mark.parametrize("text", ["1", "x", "", "-5", "9" * 400])
def test_nobody_else_is_a_worker(text):
    assert interrupts._parent(text) is None


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="zombies are told by /proc")
def test_a_parent_that_ended_is_dead_before_anybody_has_looked():
    """A worker that comes to its first line afterwards must end, too."""
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    try:
        deadline = time.monotonic() + 20
        while interrupts._is_alive(process.pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert process.returncode is None  # it is a zombie still
        assert not interrupts._is_alive(process.pid)
    finally:
        process.wait()


def test_a_full_disk_below_both_streams_and_a_variable_of_workers(tmp_path):
    """What Python itself does when it ends, too: nothing else comes out of a process."""
    (tmp_path / "plain.py").write_text(PLAIN)
    words = f"{sys.executable} plain.py --dtype float32 --seeds 1 >/dev/full 2>/dev/full"
    done = python("-c", f"import os, sys; sys.exit(os.system({words!r}) >> 8)", cwd=tmp_path)
    assert done.returncode == 0
    (path,) = tmp_path.rglob("verdict.json")
    assert json.loads(path.read_text())["holds"] is True


def test_a_command_prints_in_one_place():
    prints = {
        path.relative_to(ROOT).as_posix()
        for folder in ("lrdyn", "experiments", "paper_figs")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"^[^#>]*(?<![\w.])(print\(|sys\.std(out|err)\.write)", path.read_text(), re.M)
    }
    assert prints == set()
