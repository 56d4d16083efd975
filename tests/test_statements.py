"""Verifying what a name, a module, a file or a package stands for, and the object that comes."""

import importlib.metadata
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import lrdyn as lr
from lrdyn import __main__ as command
from lrdyn import statements, testing
from lrdyn.registry import REGISTRY, theorem
from lrdyn.studies import REGISTRY as STUDIES
from lrdyn.verification.runs.repeating import repeating
from lrdyn.verification.stating import own_files
from tests.runs import python

OWN = """
from typing import NamedTuple

import jax.numpy as jnp
import lrdyn as lr
from jaxtyping import Array, Float


class Value(NamedTuple):
    x: Float[Array, "index"] = lr.ABSENT


SIZES = lr.Flag("size", (2, 3), lr.at_least(1), int, "n", "length", shapes=True)


def theorem(name, form, kind="identity", **about):
    claim = lr.Claim(
        "claimed", "x is as stated", kind, form, lambda theory, run: (theory.x, run.x), **about
    )
    control = lr.Control("broken", "x + 1", "claimed", measure=lambda x: Value(x + 1.0))
    scenario = lr.Scenario(
        "only", lambda key, *, size: jnp.arange(1.0, size + 1), Value, Value,
        claims=(claim,), controls=(control,), theory=Value, measured=Value,
    )
    return lr.Theorem(name, "a statement", (SIZES,), (scenario,))


"""
FORMS = {
    "equal": "lambda o: lr.Equal(o.predicted.x, o.measured.x)",
    "zero": "lambda o: lr.Zero(o.measured.x - o.predicted.x, scale=1.0, alternative=1.0)",
    "at_most": "lambda o: lr.AtMost(o.measured.x[0], 1.0)",
    "at_least": "lambda o: lr.AtLeast(-o.measured.x[0], -1.0)",
    "count": "lambda o: lr.Count(o.predicted.x.astype(int), o.measured.x.astype(int))",
    "test": "lambda o: lr.Test(0.5 if o.measured.x[0] == 1 else 1e-9, 1e-9)",
    "stated": "lambda o: lr.Stated(abs(o.measured.x[0] - 1.0), 1.0)",
}
KINDS = {
    "equal": "'identity'",
    "zero": "'identity'",
    "at_most": "'bound'",
    "at_least": "'bound'",
    "count": "'exact'",
    "test": "'statistical'",
    "stated": "'limit', tolerance=0.01",
}
BROKEN = {
    "equal": FORMS["equal"].replace("o.measured.x", "o.measured.x + 0.5"),
    "zero": FORMS["zero"].replace("o.measured.x -", "o.measured.x + 0.5 -"),
    "at_most": FORMS["at_most"].replace("1.0)", "0.5)"),
    "at_least": FORMS["at_least"].replace("-1.0)", "-0.5)"),
    "count": FORMS["count"].replace("o.measured.x", "(o.measured.x + 1)"),
    "test": FORMS["test"].replace("0.5 if", "1e-9 if"),
    "stated": FORMS["stated"].replace("- 1.0", "- 0.5"),
}
"""The same, which is false."""
SETTINGS = {"seeds": 1, "dtype": "float32"}


def source(form, outcome):
    """A file that states a theorem of that form and outcome."""
    stated = BROKEN[form] if outcome == "FALSE" else FORMS[form]
    about = ", undecided=lambda o: lr.MoreSteps(70.0, flag='size')" * (outcome == "UNDECIDED")
    return f"{OWN}MINE = theorem('mine', {stated}, {KINDS[form]}{about})\n"


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch, unchecked):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("LRDYN_CACHE", "")
    yield
    jax.config.update("jax_enable_x64", True)


class Packages(importlib.metadata.DistributionFinder):
    """Packages that hand in theorems: distribution -> entry points."""

    def __init__(self, packages):
        self.packages = packages

    def find_spec(self, *given):
        return None

    def find_distributions(self, context=None):
        for name, points in self.packages.items():
            lines = "".join(f"{key} = {value}\n" for key, value in points.items())
            yield Handed(name, f"[{statements.GROUP}]\n{lines}")


class Handed(importlib.metadata.Distribution):
    def __init__(self, name, points):
        self.files_of = {"METADATA": f"Name: {name}\nVersion: 1\n", "entry_points.txt": points}

    def read_text(self, filename):
        return self.files_of.get(filename)

    def locate_file(self, path):
        return Path(path)


@pytest.fixture
def packages(monkeypatch):
    def install(**named):
        monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Packages(named)])

    return install


def ways(path, packages):
    """Every way of naming the theorem of a file, each with a module of its own."""
    yield os.fspath(path)
    yield path
    yield f"{path.name}:MINE"
    module = own_files.import_script(path)
    yield module
    yield module.MINE
    packages(somebody={"mine": f"{module.__name__}:MINE"})
    yield "mine"


@pytest.mark.parametrize("outcome", ["HOLDS", "FALSE", "UNDECIDED"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_comes_to_the_same_however_it_is_named(form, outcome, tmp_path, packages):
    path = tmp_path / f"{form}_{outcome.lower()}.py"
    path.write_text(source(form, outcome))
    stated = []
    for way in ways(path, packages):
        stated.append(statements.statement(way))
        assert stated[-1].name == "mine"
    found = lr.verify(stated[-1], **SETTINGS)
    assert found.outcome is lr.Decision[outcome]
    assert found.holds is (outcome == "HOLDS")
    claim = found.claims["claimed"]
    assert claim.outcome is lr.Decision[outcome]
    assert found.controls["broken"].claim == "claimed"


def test_the_librarys_own_are_found_by_name_and_by_room():
    for name, place in {**REGISTRY, **STUDIES}.items():
        stated = statements.statement(name)
        assert stated.name == name
        room = place.partition(":")[0].removesuffix(".statement")
        assert statements.statement(importlib.import_module(room)) is stated


@pytest.mark.parametrize(
    ("given", "raised", "said"),
    [
        ("theorm2", ValueError, "theorem: got 'theorm2' (did you mean 'theorem2'?), wanted one of"),
        ("none.py", ValueError, "theorem: got 'none.py' (no such file), wanted a Python file"),
        ("two.py", ValueError, "theorem: got 'two.py', wanted one of two.py:A, two.py:B"),
        ("two.py:C", ValueError, "theorem: got 'two.py:C', wanted the name of a theorem"),
        (Path("folder"), ValueError, "theorem: got 'folder', wanted a Python file"),
        (lr.core, ValueError, "theorem: got the module 'lrdyn.core', wanted a module that states"),
        (3, TypeError, "theorem: got an object of type int, wanted a theorem, its name"),
        (None, TypeError, "theorem: got an object of type NoneType, wanted a theorem"),
        (lr.Theorem, TypeError, "theorem: got the class Theorem, wanted a theorem"),
        (b"theorem2", TypeError, "theorem: got an object of type bytes, wanted a theorem"),
    ],
)
def test_what_names_no_theorem_is_refused_in_a_line(given, raised, said):
    Path("folder").mkdir()
    Path("two.py").write_text(f"{OWN}A, B = (theorem(n, {FORMS['equal']}) for n in 'ab')\n")
    with pytest.raises(raised) as error:
        lr.verify(given)
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


def test_a_module_with_two_theorems_says_which_there_are():
    Path("several.py").write_text(f"{OWN}A, B = (theorem(n, {FORMS['equal']}) for n in 'ab')\n")
    with pytest.raises(ValueError, match=r"'several', wanted one of several\.A, several\.B"):
        lr.verify(own_files.import_script(Path("several.py")))


# The object --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Outcome -> a verification with it."""
    folder = tmp_path_factory.mktemp("made")
    found = {}
    for outcome in ("HOLDS", "FALSE", "UNDECIDED"):
        path = folder / f"made_{outcome.lower()}.py"
        path.write_text(source("equal", outcome))
        found[outcome] = lr.verify(path, seeds=1)
    return found


@pytest.mark.parametrize("outcome", ["HOLDS", "FALSE", "UNDECIDED"])
def test_an_entry_is_that_of_the_verdict(outcome, made):
    found = made[outcome]
    saved = {entry["id"]: entry for entry in json.loads(json.dumps(found.verdict))["claims"]}
    entries = {**found.claims, **found.controls, **found.findings}
    assert entries.keys() == saved.keys()
    for id, entry in entries.items():
        same = ("id", "statement", "kind", "residual", "tolerance", "worst_case", "cases")
        assert {name: getattr(entry, name) for name in same} == {n: saved[id][n] for n in same}
        assert entry.outcome is lr.Decision.of(saved[id]["holds"])
        assert entry.holds is (saved[id]["holds"] is True)
        assert "\n" not in repr(entry)
        with pytest.raises(TypeError, match="Entry: is neither true nor false"):
            assert entry


def test_an_entry_of_another_id_names_one_that_is_near(made):
    found = made["HOLDS"]
    with pytest.raises(KeyError, match=r"claims: got 'claimd' .*'claimed'"):
        found.claims["claimd"]
    with pytest.raises(KeyError, match="controls: got 'claimed', wanted one of broken"):
        found.controls["claimed"]
    with pytest.raises(KeyError, match="findings: got 'x', wanted none"):
        found.findings["x"]
    assert found.claims.get("claimd") is None
    assert "claimd" not in found.claims


def test_what_holds_raises_nothing(made):
    made["HOLDS"].raise_unless_holds()


def test_what_is_false_says_claim_numbers_case_and_command(made):
    found = made["FALSE"]
    with pytest.raises(lr.DoesNotHold) as error:
        found.raise_unless_holds()
    text, claim = str(error.value), found.claims["claimed"]
    assert isinstance(error.value, AssertionError)
    assert f"{claim!r}" in text
    assert f"{claim.residual:.1e} of {claim.tolerance:.1e}" in text
    assert "broken (control" not in text  # which was seen to fail
    again = repeating(found.command, found.verdict["config"], claim.worst_case)
    assert again in text
    words = shlex.split(again)
    assert words[:2] == ["lrdyn", "verify"]
    assert Path(words[2]).name == "made_false.py"
    assert command.main([*words[1:], "--out", "again"]) == 1


def test_what_is_undecided_says_why_and_how_many_steps_would_do(made):
    with pytest.raises(lr.DoesNotHold) as error:
        made["UNDECIDED"].raise_unless_holds()
    assert re.search(r"claimed \(identity\) undecided: too few steps .*--size 70", str(error.value))


def test_a_control_that_is_not_seen_to_fail_is_why():
    path = Path("blind.py")
    path.write_text(source("equal", "HOLDS").replace("x + 1.0", "x"))
    with pytest.raises(lr.DoesNotHold, match=r"broken \(control of claimed\) NOT SEEN TO FAIL"):
        testing.assert_holds(path, **SETTINGS)


@pytest.mark.parametrize("outcome", ["HOLDS", "FALSE", "UNDECIDED"])
def test_assert_holds_passes_what_holds_alone(outcome, tmp_path):
    path = tmp_path / f"asserted_{outcome.lower()}.py"
    path.write_text(source("equal", outcome))
    if outcome == "HOLDS":
        assert testing.assert_holds(path, **SETTINGS).claims["claimed"].holds
        return
    with pytest.raises(lr.DoesNotHold):
        testing.assert_holds(path, **SETTINGS)


USERS_TEST = """
import pytest

@pytest.mark.parametrize("outcome", ["holds", "false", "undecided"])
def test_theorem(outcome, assert_holds):
    assert_holds(f"{outcome}.py", seeds=1, dtype="float32")
"""
SILENT = """
import sys

def test_nothing_heavy_is_imported():
    assert not {"lrdyn", "jax", "numpy"} & set(sys.modules)
"""


def test_the_plugin_of_pytest_fails_with_claim_and_numbers(tmp_path):
    for outcome in ("HOLDS", "FALSE", "UNDECIDED"):
        (tmp_path / f"{outcome.lower()}.py").write_text(source("equal", outcome))
    (tmp_path / "test_users.py").write_text(USERS_TEST)
    done = python(*PYTEST, "test_users.py", cwd=tmp_path)
    assert "1 passed" in done.stdout
    assert "2 failed" in done.stdout
    assert re.search(r"DoesNotHold: mine IS FALSE.*\n.*claimed \(identity\) FALSE: ", done.stdout)
    assert re.search(r"DoesNotHold: mine is undecided", done.stdout)


def test_the_plugin_imports_nothing_before_it_is_asked(tmp_path):
    (tmp_path / "test_silent.py").write_text(SILENT)
    # Not forked from a process that has imported everything, as ``python`` is.
    words, alone = (
        [sys.executable, *PYTEST, "test_silent.py"],
        {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )
    done = subprocess.run(
        words,
        cwd=tmp_path,
        env={**os.environ, **alone},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout


PYTEST = ("-m", "pytest", "-q", "-p", "pytest_lrdyn", "-p", "no:cacheprovider")


# Theorems of installed packages ------------------------------------------------------------------


@pytest.fixture
def listed(capsys):
    def lines():
        assert command.main(["list"]) == 0
        out, err = capsys.readouterr()
        assert not err
        return [line.strip() for line in out.splitlines()]

    return lines


def test_a_theorem_of_a_package_is_listed_and_verified(packages, listed, monkeypatch):
    Path("handed_in.py").write_text(source("equal", "HOLDS"))
    packages(somebody={"mine": "handed_in:MINE"})
    (line,) = [line for line in listed() if line.startswith("mine")]
    assert "a statement" in line
    assert "somebody" in line
    monkeypatch.setenv("LRDYN_CACHE", "")
    assert command.main(["verify", "mine", "--seeds", "1", "--dtype", "float32"]) == 0
    assert testing.assert_holds("mine", **SETTINGS).command == "lrdyn verify mine"
    with pytest.raises(ValueError, match=r"'mne' \(did you mean 'mine'"):
        lr.verify("mne")


@pytest.mark.parametrize(
    ("named", "refused"),
    [
        ({"p": {"absent": "no_such_module:X"}}, "absent: got .*'p' .ModuleNotFoundError.*, wanted"),
        ({"p": {"broken": "broken_one:X"}}, "broken: got .*ZeroDivisionError.*, wanted"),
        ({"p": {"none": "os:path"}}, "none: got 'os:path' of the package 'p' .module., wanted"),
        ({"p": {"theorem2": "os:path"}}, "theorem2: got .*, wanted another name: lrdyn has"),
        ({"p": {"labels": "os:path"}}, "labels: got .*, wanted another name: lrdyn has"),
        (
            {"p": {"twice": "os:path"}, "q": {"twice": "os:sep"}},
            "twice: got .*, wanted another name: the package '[pq]' has",
        ),
        ({"p": {"other": "good_one:MINE"}}, "other: got .*name 'mine'.*, wanted the name of its"),
    ],
)
def test_an_entry_point_that_cannot_be_used_is_a_line_of_the_list(
    named, refused, packages, listed, capsys
):
    Path("broken_one.py").write_text("1 / 0\n")
    Path("good_one.py").write_text(source("equal", "HOLDS"))
    before = listed()
    packages(**named)
    heading, line = listed()[len(before) :]
    assert heading == "of installed packages"
    assert re.match(refused, line)
    (name,) = {name for points in named.values() for name in points}
    if name in {**REGISTRY, **STUDIES}:
        assert statements.statement(name).name == name  # ours stays
        return
    assert command.main(["verify", name]) == 2
    assert re.search(refused, capsys.readouterr().err)


# What is stated shows itself ---------------------------------------------------------------------


def test_a_theorem_shows_itself_as_a_table_of_its_claims():
    for name in REGISTRY:
        stated = theorem(name)
        text = repr(stated)
        assert not re.search(r"0x[0-9a-f]{6}|<function", text)
        ids = [claim.id for s in stated.scenarios for claim in s.claims]
        shown = [line.split()[1] for line in text.splitlines() if line.split()[0] in SCENARIOS]
        assert [id for id in shown if id in ids] == ids
        assert stated._repr_html_().count("<tr>") >= len(ids)
        for scenario in stated.scenarios:
            for entry in (scenario, *scenario.claims, *scenario.controls, *scenario.findings):
                assert repr(entry).count("\n") == 0
                assert "0x" not in repr(entry)


SCENARIOS = {scenario.id for name in REGISTRY for scenario in theorem(name).scenarios}


def test_the_package_shows_public_names_alone():
    names = set(dir(lr))
    assert set(lr.__all__) <= names
    for name in names - {"__version__"}:
        assert not name.startswith("_")
        assert hasattr(lr, name)
    assert not {"import_module", "ModuleType", "interrupts", "system"} & names
