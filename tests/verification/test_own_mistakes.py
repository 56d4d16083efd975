"""A theorem of one's own with one mistake: one line that says where, status 2, nothing written."""

import re
from pathlib import Path

import jax
import pytest

from lrdyn import __main__ as command
from lrdyn.commands import verify as verify_command
from lrdyn.registry import REGISTRY, theorem
from lrdyn.verification.running.configuration import BadInput, run_of
from lrdyn.verification.stating import own_files
from lrdyn.verification.stating.names_and_presets import check_statement
from tests.runs import python

MINE = """
import datetime
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import lrdyn
from lrdyn import cli


class Theory(NamedTuple):
    twice: Float[Array, "index"] = None


class Run(NamedTuple):
    twice: Float[Array, "index"] = None
    beside: Float[Array, "index"] = None


def case(key, *, size, rate):
    return {"x": jax.random.normal(key, (size,)), "rate": rate}


def predict(case):
    return Theory(2 * case["x"])


def measure(case):
    return Run(twice=case["x"] + case["x"], beside=case["x"])


def positive(case):
    return case["rate"] > 0


DOUBLING = lrdyn.Scenario(
    "doubling",
    case,
    predict,
    measure,
    theory=Theory,
    measured=Run,
    claims=(
        lrdyn.Claim("double", "2x = x + x", compares=lambda t, r: (t.twice, r.twice)),
    ),
    controls=(
        lrdyn.Control("treble", "3x", "double", predict=lambda c: Theory(3 * c["x"])),
    ),
    hypotheses={"positive": positive},
)
FLAG = lrdyn.Flag("steps", (2,))
THEOREM = lrdyn.Theorem(
    "mine",
    "twice is once and once",
    (
        lrdyn.Flag("size", (2, 3), lrdyn.at_least(1), int, shapes=True),
        lrdyn.Flag("rate", (0.1, 0.2)),
    ),
    (DOUBLING,),
)
if __name__ == "__main__":
    sys.exit(cli.main(THEOREM))
"""
PRESETS = [
    "float('nan')",
    "float('inf')",
    "'text'",
    "2**62",
    "None",
    "True",
    "1j",
    "[1]",
    "-10**400",
]
PRESETS += ["np.float32(1)", "np.int64(3)", "jnp.ones(())", "np.ones(3)"]
"""What is no value of a flag."""
NAMES = ["", ".", "..", "a/b", "/abs", "../up", "a\\0b", "\\ud800", "a\\nb", "\\x1b[2J", "\\u202e"]
NAMES += ["n" * 300, "\\U0001f600" * 80]
"""What is no name, as it stands in a source."""
NAMED = ['"mine"', '"doubling"', '"double"', '"treble"', '"positive"', '"rate"']
"""Where a name stands."""
COMMON = [
    option[2:].replace("-", "_")
    for group in verify_command.parser_of(theorem("theorem1"))._action_groups
    if not (group.title or "").startswith("settings")
    for action in group._group_actions
    for option in action.option_strings
    if option.startswith("--")
]
"""The options that every theorem's command has."""
TAKEN = [*COMMON, "key", "amount", "keeper", "case", "controls", "lambda", "size"]
"""Names that a flag cannot have beside those of this theorem."""
HUGE = 10**15
"""Entries of an array for which no process has the addresses, however much a machine promises."""
MISTAKES = {
    **{f"preset {value}": ("(0.1, 0.2)", f"(0.1, {value})") for value in PRESETS},
    **{
        f"integer {value}": ("(2, 3)", f"(2, {value})") for value in PRESETS if "int64" not in value
    },
    "paper": ("(0.1, 0.2)", "(0.1, 0.2), paper=(float('nan'),)"),
    "no preset": ("(0.1, 0.2)", "()"),
    "no tuple": ("(0.1, 0.2)", "0.1"),
    "no flag": ('lrdyn.Flag("rate", (0.1, 0.2))', '"rate"'),
    **{
        f"name {name[:9]!r} for {there}": (there, there.replace(there.strip('"'), name))
        for name in NAMES
        for there in NAMED
    },
    **{f"flag {name}": ('Flag("rate"', f'Flag("{name}"') for name in TAKEN},
    **{
        f"field {name}": ("    beside:", f"    {name}: Float[Array, 'index'] = None\n    beside:")
        for name in ("length_index", "met_positive", "longest_axis", "size", "seed", "case")
    },
    **{
        f"axis {name}": ('beside: Float[Array, "index"', f'beside: Float[Array, "{name}"')
        for name in ("size", "seed", "amount", "controls", "/abs", "..")
    },
    **{
        f"setting {value}": ('"3x", "double", ', f'"3x", "double", at={{{value}}}, ')
        for value in ("'sizes': 3", "'size': 0", "'rate': 0.1, 'steps': 2")
    },
    "half of a letter": ('"2x = x + x"', '"\\ud800"'),
    "text with NUL": ('"mine",\n    "twice is once and once"', '"mine", "a\\0b"'),
    "scale below zero": (
        "compares=lambda t, r: (t.twice, r.twice)",
        "reads=lambda t, r: (t.twice, r.twice), "
        "form=lambda o: lrdyn.Equal(o.predicted.twice, o.measured.twice, scale=np.array([1, -1]))",
    ),
    "import": ("import datetime", "raise MemoryError"),
    "array at import": ("import datetime", "import numpy; numpy.ones(10**15)"),
    "result": ('beside=case["x"]', f"beside=jnp.ones({HUGE})"),
    "array of NumPy": ('beside=case["x"]', f'beside=case["x"] + np.full({HUGE}, 1.0)[0]'),
}
"""Mistake -> what of the theorem it stands in the place of, and the mistake, on one line of it."""
ELSEWHERE = {
    "array": ('beside=case["x"]', f'beside=jnp.sort(jnp.full({HUGE}, case["rate"]))[:1]'),
    "one flag and no tuple": (MINE[MINE.index("    (\n") : MINE.index("    (DOUBL")], "FLAG,\n"),
    "narrow": ("hypotheses=", "narrow=lambda settings: None, hypotheses="),
    "narrow, nothing left": ("hypotheses=", "narrow=lambda settings: {}, hypotheses="),
    "narrow to a number": ("hypotheses=", "narrow=lambda s: s | {'size': 3}, hypotheses="),
    "whole": ("hypotheses=", "whole=('nothing',), hypotheses="),
    **{
        f"hypothesis {value}": ('case["rate"] > 0', value)
        for value in ("'text'", "()", "None", "object()", "np.array([object()])", "b'x'", "{}")
    },
    **{
        said: ("compares=", f"{said}, compares=")
        for said in (
            "condition=lambda theory: theory.absent",
            "tolerance='small'",
            "applies=lambda outcome: 'yes'",
            "undecided=lambda outcome: 3",
            "tolerence=0.1",
            "kind='identiy'",
        )
    },
    **{
        said: ("hypotheses=", f"{said}, hypotheses=")
        for said in (
            "steps='stepz'",
            "diverged=lambda run: run.absent",
            "diverges=lambda theory: theory.absent",
            "findings='none'",
            "at={'absent': 1}",
        )
    },
    "hypothesis in words": ("{'positive': positive}".replace("'", '"'), "{'positive': 'rate > 0'}"),
    "one scenario and no tuple": ("(DOUBLING,)", "DOUBLING"),
    "hypothesis of a day": ('case["rate"] > 0', "datetime.datetime.now()"),
    "hypothesis of a key": ('case["rate"] > 0', "jax.random.key(0)"),
}
"""Mistakes that only the library meets: some line of the file is named."""


@pytest.fixture
def verify(tmp_path, monkeypatch, unchecked, capsys):
    """Run ``lrdyn verify`` on the theorem with a mistake: status, output, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LRDYN_CACHE", "")
    monkeypatch.setattr("lrdyn.commands.verify.verdicts.draw", lambda *found: None)

    def run(old, new, *words):
        assert old in MINE
        Path("mine.py").write_text(MINE.replace(old, new))
        status = command.main(["verify", "mine.py", "--seeds", "1", "--dtype", "float32", *words])
        return status, *capsys.readouterr()

    yield run
    jax.config.update("jax_enable_x64", True)


def is_refused(found, tmp_path):
    """Whether a command ended as bad input of the file; the line of the file that it named."""
    status, out, err = found
    assert (status, out, err.count("\n")) == (2, "", 1), err
    line = re.match(r".*: error: mine\.py:(\d+)(?: \(\w+\))?: .*got .*, wanted .*\n", err)
    assert line, err
    assert {path.name for path in tmp_path.iterdir()} <= {"mine.py", "__pycache__"}
    return Path("mine.py").read_text().splitlines()[int(line[1]) - 1]


def test_without_a_mistake_it_holds(verify):
    assert verify("mine", "mine")[0] == 0


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_where_it_stands(mistake, verify, tmp_path):
    old, new = MISTAKES[mistake]
    line = is_refused(verify(old, new), tmp_path)
    # A result is named with the function that returned it.
    assert new.splitlines()[0] in line or (mistake == "result" and "def measure" in line)


@pytest.mark.parametrize("mistake", ELSEWHERE)
def test_a_mistake_that_the_library_meets_is_one_of_the_file(mistake, verify, tmp_path):
    is_refused(verify(*ELSEWHERE[mistake]), tmp_path)


@pytest.mark.parametrize(
    "mistake", ["flag seed", "preset float('nan')", "name '/abs' for \"mine\""]
)
def test_it_is_the_same_however_the_file_is_run(mistake, verify, tmp_path):
    old, new = MISTAKES[mistake]
    for words in (["--help"], ["--judge", "."], ["--search", "3"]):
        is_refused(verify(old, new, *words), tmp_path)
    done = python("mine.py", cwd=tmp_path)
    is_refused((done.returncode, done.stdout, done.stderr), tmp_path)
    with pytest.raises(BadInput, match=r"mine.py:\d+: got "):
        run_of(own_files.own_experiment("mine.py"))


def test_what_the_library_states_can_be_used():
    for name in REGISTRY:
        check_statement(theorem(name))
