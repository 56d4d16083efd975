"""Mutants: what is changed, which are drawn, which tests see them, and how a run goes on."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import test_formulas_kept
from tests.mutants import __main__ as command
from tests.mutants import attempt, drawing, operators, record, running, swapping
from tests.mutants.references import Graph
from tests.mutants.running import Note, Workshop

pytestmark = pytest.mark.tools

SOURCE = '''
"""A module."""

import jax

LIMIT = 1e-3
"""How much is let pass."""


def make_case(key, *, target_scale, rows: int = 3):
    """A text with 1 + 1.

    Example:
        >>> 1 + 1
        2
    """
    if rows < 1:
        raise ValueError(f"rows: got {rows + 1}")
    mask = jax.random.fold_in(key, rows - 1)
    return target_scale * mask


def why_open(outcome) -> str:
    return "" if outcome.steps > 3 else "too few"


def residual(outcome) -> float:
    sizes = [abs(x) ** 2 for x in outcome.values]
    return max(x * 2.0 for x in sizes)


CLAIM = Claim("rho", "rho decays", applies=lambda outcome: True, form=residual)
THEORY = Theory(rho=LIMIT * 1.0)
'''


def changes(source=SOURCE, flags=None):
    found = operators.mutants("toy.py", source, {"target_scale": "1.0"} if flags is None else flags)
    return [(m.operator, m.before, m.after, m.within) for m in found]


@pytest.mark.parametrize(
    "change",
    [
        ("tolerance", "1e-3", "0.01", "LIMIT"),
        ("number", "3", "4", "make_case"),
        ("boundary", "rows < 1", "(rows <= 1)", "make_case"),
        ("condition", "rows < 1", "(rows >= 1)", "make_case"),
        ("seed reused", "jax.random.fold_in(key, rows - 1)", "key", "make_case"),
        ("mask used twice", "rows - 1", "((rows - 1) // 2)", "make_case"),
        ("flag ignored", "target_scale", "1.0", "make_case"),
        ("arithmetic", "target_scale * mask", "(target_scale / mask)", "make_case"),
        ("excuse", '"" if outcome.steps > 3 else "too few"', "''", "why_open"),
        ("excuse", '"" if outcome.steps > 3 else "too few"', "'too few'", "why_open"),
        ("exponent", "abs(x) ** 2", "abs(x)", "residual"),
        ("exponent", "abs(x) ** 2", "(abs(x) ** (2 + 1))", "residual"),
        ("sign", "abs(x)", "x", "residual"),
        ("min for max", "max", "min", "residual"),
        ("first for all", "sizes", "list(sizes)[:1]", "residual"),
        ("scale", "max(x * 2.0 for x in sizes)", "2 * (max((x * 2.0 for x in sizes)))", "residual"),
        ("excuse more", "lambda outcome: True", "lambda outcome: False", "CLAIM"),
        ("excuse less", "lambda outcome: True", "None", "CLAIM"),
        ("null prediction", "LIMIT * 1.0", "0 * (LIMIT * 1.0)", "THEORY"),
    ],
)
def test_an_operator_makes_its_change(change):
    assert change in changes()


def test_every_mutant_is_code_and_changes_one_place():
    for mutant in operators.mutants("toy.py", SOURCE, {"target_scale": "1.0"}):
        text = operators.applied(SOURCE, mutant)
        assert text != SOURCE
        assert len(text.splitlines()) == len(SOURCE.splitlines())
        compile(text, "toy.py", "exec")


def test_words_annotations_and_errors_are_left_as_they_are():
    said = {before for _, before, _, _ in changes()}
    assert not said & {"1 + 1", "rows + 1", '"too few"'}
    assert changes('def f(x: "Float[Array, 3]" = None):\n    """1 < 2"""\n') == []
    assert changes('FLAGS = (Flag("dim", (16,), least(3)),)\n') == []


@pytest.mark.parametrize(
    "source",
    [
        "x = 0.0\n",
        "def f(n) -> Array:\n    return jnp.zeros(n)\n",
        "x = Theory(rho=jnp.zeros(n), scale=0.0)\n",
        "x = Claim(tolerance=0.0)\n",
        "x = dict(zip(y, z, strict=True))\n",
    ],
)
def test_what_would_change_nothing_is_no_mutant(source):
    """A multiple of 0, and a check that lists are as long, which they are in every run."""
    assert changes(source) == []


def test_a_place_behind_letters_of_several_bytes_is_found():
    (mutant,) = operators.mutants("toy.py", 'x = ("θ — α", 5)\n', {})
    assert operators.applied('x = ("θ — α", 5)\n', mutant) == 'x = ("θ — α", 6)\n'


def test_a_source_that_was_edited_at_the_place_is_refused():
    (mutant,) = operators.mutants("toy.py", "x = 5\n", {})
    with pytest.raises(ValueError, match="wanted '5'"):
        operators.applied("x = 7\n", mutant)


def test_a_name_survives_an_edit_elsewhere():
    def keys(source):
        return {m.key for m in operators.mutants("toy.py", source, {}) if m.within == "residual"}

    assert keys(SOURCE) == keys(SOURCE.replace("LIMIT = 1e-3", "LIMIT = 1e-3\nOTHER = 7.0"))
    assert keys(SOURCE) != keys(SOURCE.replace("x * 2.0", "x * 5.0"))


# Drawing --------------------------------------------------------------------------------------


def test_a_drawing_is_by_its_seed_alone_and_has_all_kinds():
    first, more = drawing.drawn(7, 100), drawing.drawn(7, 200)
    assert more[:100] == first  # the next ones come behind
    assert first != drawing.drawn(8, 100)
    assert len({one.mutant.key for one in more}) == 200
    counts = Counter(one.kind for one in first)
    assert all(abs(counts[kind] - 100 * share) <= 1 for kind, share in drawing.SHARES.items())


def test_every_name_is_that_of_one_mutant():
    every = drawing.every()
    assert len({one.mutant.key for one in every}) == len(every)


def test_flags_that_may_be_ignored_have_the_values_of_the_presets():
    assert drawing.usual_values()["target_scale"] == "1.0"
    ignored = {
        (one.mutant.file, one.mutant.within)
        for one in drawing.every()
        if (one.mutant.operator, one.mutant.before) == ("flag ignored", "target_scale")
    }
    assert ("lrdyn/theorem2/setting.py", "make_case") in ignored


# Which tests ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def graph():
    return Graph()


def test_the_nearest_tests_are_those_that_call_it(graph):
    start = graph.node("lrdyn/theorem3/dropout_minimiser_claims.py", "gap")
    first = graph.tests(start)[0]
    assert first.id == "tests/test_dropout.py::test_the_gap_is_how_clear_the_choice_of_q_is"
    assert first.distance == 1
    assert graph.claims_of(start) == {"dropout_minimiser", "dropout_minimum"}
    assert graph.theorems(start) == ["theorem3"]


@pytest.mark.parametrize(
    ("file", "within", "only"),
    [
        ("lrdyn/theorem3/dropout_minimiser_claims.py", "not_at_the_end", True),
        ("lrdyn/theorem3/dropout_minimiser_claims.py", "train_last", False),
        ("lrdyn/theorem2/setting.py", "make_case", False),
        ("lrdyn/verification/judging/judging.py", "row_of", True),
    ],
)
def test_what_only_judges_makes_no_result(graph, file, within, only):
    assert graph.only_judges(graph.node(file, within)) is only


def test_the_shared_functions_reach_their_theorems_and_examples(graph):
    start = graph.node("lrdyn/core/linalg.py", "svd")
    assert set(graph.theorems(start)) >= {"theorem1", "theorem2"}
    named = {test.id: test.distance for test in graph.tests(start)}
    assert named["lrdyn/theorem2/subspace.py::lrdyn.theorem2.subspace.frame"] == 1


def test_parts_of_the_referee_are_reached_through_its_lists_of_modules(graph):
    start = graph.node("referee/dropout.py", "equalised_factors")
    ids = {test.id for test in graph.tests(start)}
    assert "tests/test_referee.py::test_every_claim_is_computed_again_and_agrees" in ids
    assert "equalised" in graph.claims_of(start)
    assert graph.refereed(start) == ["theorem3"]
    exact = graph.node("referee/exact/theorem4.py", "adam_path")
    assert graph.tests(exact)[0].id.startswith("tests/test_exact.py::")
    assert graph.refereed(exact) == ["theorem4"]


def test_tests_that_run_whole_commands_are_known(graph):
    start = graph.node("lrdyn/theorem4/gradient_rank_claims.py", "Recursion")
    whole = {test.id.partition("::")[2] for test in graph.tests(start) if test.whole}
    assert "test_formulas_of_theorem_4_that_are_wrong_on_both_sides_hold_and_are_refused" in whole
    assert "test_small_problems" not in whole


def test_a_test_of_every_module_is_tried_for_the_one_that_is_changed(graph, tmp_path):
    test = "tests/test_formulas_kept.py::test_a_public_function_gives_what_it_gave"
    start = graph.node("lrdyn/corollary1/compression.py", "bulk_contracts")
    (found,) = (one for one in graph.tests(start) if one.id == test)
    assert not found.general
    assert found.distance == 3
    task = attempt.Task([test], [], [], [], [], 1.0, "", module="corollary1.compression")
    watch = attempt.Watch(task, tmp_path / "now")
    of = {
        name: SimpleNamespace(nodeid=test, callspec=SimpleNamespace(params={"path": name}))
        for name in ("corollary1.compression", "core.masking")
    }
    assert {name: watch._concerned(item) for name, item in of.items()} == {
        "corollary1.compression": True,
        "core.masking": False,
    }


def test_a_table_of_calls_begins_with_those_that_name_what_is_changed(tmp_path):
    task = attempt.Task(
        [], [], [], [], [], 1.0, "", module="theorem1.convergence", function="autoencoder_curvature"
    )
    watch = attempt.Watch(task, tmp_path / "now")
    test = test_formulas_kept.test_formulas_give_what_they_gave_far_from_their_examples
    names = "curvature of a square near the decay", "curvatures", "threshold", "distance"
    found = {
        name: watch._calls_others(
            SimpleNamespace(function=test, callspec=SimpleNamespace(params={"name": name}))
        )
        for name in names
    }
    assert list(found.values()) == [0, 0, 1, 2]


# A toy library with its tests ------------------------------------------------------------------

SQUARES = '''
"""Toy formulas."""


def squared(x):
    """The square of a number."""
    return x ** 2 + 0


def loops(n):
    """Count to n."""
    k = 0
    while k < n:
        k += 1
    return k
'''
TESTS = """
import subprocess
import sys

from lrdyn.squares import loops, squared


def test_broken():
    assert squared(3) == 10


def test_another_begins_and_this_one_hangs():
    if squared(3) == 3:
        words = "import os, time; os.setpgid(0, 0); open('inner', 'w').write(str(os.getpid()))"
        subprocess.Popen([sys.executable, "-c", words + "; time.sleep(600)"])
        while True:
            pass


def test_squared():
    assert squared(3) == 9


def test_loops():
    assert loops(4) == 4
"""


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    root = tmp_path / "root"
    for name, text in {
        "lrdyn/__init__.py": "",
        "lrdyn/squares.py": SQUARES,
        "tests/conftest.py": "",
        "tests/test_squares.py": TESTS,
        "pyproject.toml": '[tool.pytest.ini_options]\npythonpath = ["."]\n',
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for name in ("__init__.py", "attempt.py", "swapping.py"):
        (root / "tests" / "mutants").mkdir(exist_ok=True)
        text = (running.ROOT / "tests" / "mutants" / name).read_text()
        (root / "tests" / "mutants" / name).write_text(text)
    monkeypatch.setattr(running, "RUNS", 2.0)
    monkeypatch.setattr(running, "JUDGES", 2.0)
    monkeypatch.setattr(running, "WAITS", 100.0)
    one = Workshop(tmp_path / "folder", root)
    yield one
    one.close()


def of_squares(operator, before, after):
    found = operators.mutants("lrdyn/squares.py", SQUARES, {})
    (mutant,) = (m for m in found if (m.operator, m.before, m.after) == (operator, before, after))
    return drawing.Drawn(mutant, "formulas")


def test_a_known_mutant_is_killed_and_an_equivalent_one_stays_alive(workshop, tmp_path):
    several = [
        of_squares("arithmetic", "x ** 2 + 0", "((x ** 2) - 0)"),
        of_squares("exponent", "x ** 2", "(x ** (2 + 1))"),
    ]
    equivalent, killed = command.tried(several, workshop, tmp_path / "log", again=False, at_most=60)
    assert (killed.ended, killed.by) == ("tests", "tests/test_squares.py::test_squared")
    assert "27" in killed.said
    # The test that fails without it, too, is no witness.
    assert (equivalent.ended, equivalent.ran) == ("alive", 2)
    assert workshop.passes["tests/test_squares.py::test_broken"] is False
    assert workshop.passes["tests/test_squares.py::test_squared"] is True
    assert (workshop.root / "lrdyn" / "squares.py").read_text() == SQUARES
    assert (workshop.tree / "lrdyn" / "squares.py").read_text() == SQUARES


def test_a_mutant_that_hangs_is_killed_by_time(workshop):
    note = workshop.try_mutant(of_squares("statement dropped", "k += 1", "pass"))
    assert (note.ended, note.by) == ("time", "tests/test_squares.py::test_loops")
    assert note.seconds >= 6


def test_a_test_that_is_slow_without_a_mutant_says_nothing_about_time(workshop):
    one = of_squares("statement dropped", "k += 1", "pass")
    note = note_of(one, "time", "tests/test_squares.py::test_loops")
    workshop.passes[note.by] = True
    for seconds, wrong in ((0.5, set()), (1.5, {note.key})):
        workshop.seconds[note.by] = seconds
        assert workshop.no_witnesses([note]) == wrong
    workshop.seconds[note.by] = 30.0
    assert note.by not in workshop.task(one).tests


def test_processes_that_left_their_group_end_with_the_mutant(workshop):
    workshop.passes["tests/test_squares.py::test_broken"] = False
    note = workshop.try_mutant(of_squares("exponent", "x ** 2", "x"))
    assert (note.ended, note.by) == (
        "time",
        "tests/test_squares.py::test_another_begins_and_this_one_hangs",
    )
    pid = int((workshop.tree / "inner").read_text())
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and alive(pid):
        time.sleep(0.05)
    assert not alive(pid)


@pytest.mark.parametrize("said", [None, "", "/autogroup-7 nice 0\n"])
def test_a_session_begins_where_the_system_says_nothing_of_shares(said, tmp_path):
    share = tmp_path / "autogroup"
    if said is not None:
        share.write_text(said)
        share.chmod(0o400)
    words = "import os; from pathlib import Path; from tests.mutants.attempt import own_session"
    words += f"; own_session(Path({str(share)!r})); assert os.getsid(0) == os.getpid()"
    subprocess.run([sys.executable, "-c", words], check=True, cwd=running.ROOT)
    assert (share.read_text() if said is not None else None) == said


def test_a_process_that_ends_before_its_tests_begin_kills_no_mutant(workshop):
    (workshop.tree / "tests" / "mutants" / "attempt.py").write_text(
        (running.ROOT / "tests" / "mutants" / "attempt.py")
        .read_text()
        .replace("    own_session()\n    nowhere", "    raise OSError\n    nowhere")
    )
    with pytest.raises(RuntimeError, match="ended with 1 before pytest began"):
        workshop.try_mutant(of_squares("exponent", "x ** 2", "x"))


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return not state.stdout.startswith("Z") and bool(state.stdout)


# Code that is exchanged -------------------------------------------------------------------------

MADE_ONCE = """
def scaled(n):
    return 2 * n


def adder(n):
    def add(x):
        return x + n

    return add


def later(n, of=lambda x: x + 1):
    return [add(k) for k, add in enumerate([adder(n), of])]


HALF = scaled(3) / 2
add_one = adder(1)
"""


@pytest.mark.parametrize(
    ("before", "after", "swapped"),
    [
        ("enumerate([adder(n), of])", "enumerate([of, adder(n)])", True),
        ("[add(k) for", "[add(k + 1) for", True),  # in a function that was not called yet
        ("x + 1", "x - 1", True),  # the value of an argument, made at the import and not called
        ("x + n", "x - n", False),  # of a function that another made at the import
        ("2 * n", "3 * n", False),  # called by the import
        ("/ 2", "/ 3", False),  # in the module itself
    ],
)
def test_code_is_exchanged_where_the_import_did_not_run_it(
    before, after, swapped, tmp_path, monkeypatch
):
    (tmp_path / "toys").mkdir()
    (tmp_path / "toys" / "__init__.py").write_text("")
    file, original = tmp_path / "toys" / "once.py", tmp_path / "original.py"
    for path in (file, original):
        path.write_text(MADE_ONCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    imported = swapping.Imported(["toys"], lambda: None)
    try:
        once = sys.modules["toys.once"]
        expected: dict = {}
        file.write_text(MADE_ONCE.replace(before, after))
        exec(file.read_text(), expected)
        assert once.later(5) != expected["later"](5) or not swapped
        found = imported.swap(Path("toys/once.py"), original)
        assert found is swapped
        kept = MADE_ONCE if not swapped else file.read_text()
        exec(kept, expected)
        assert once.later(5) == expected["later"](5)
        assert (once.HALF, once.add_one(1)) == (3, 2)
    finally:
        for name in ("toys.once", "toys"):
            sys.modules.pop(name)


def test_an_exchanged_mutant_and_one_that_is_imported_anew_end_alike(workshop):
    one = of_squares("exponent", "x ** 2", "(x ** (2 + 1))")
    workshop.passes["tests/test_squares.py::test_broken"] = False
    workshop.servers["warm"] = workshop.server()  # a cold one
    anew = workshop.try_mutant(one)
    del workshop.servers["warm"]
    swapped = workshop.try_mutant(one)
    assert (anew.ended, anew.by, anew.said) == (swapped.ended, swapped.by, swapped.said)


# The log and the record ------------------------------------------------------------------------


def note_of(one, ended="tests", by=""):
    m = one.mutant
    place = (m.key, one.kind, m.file, m.line, m.within, m.operator, m.before, m.after)
    return Note(*place, ended, by, seconds=2.0)


class Stand:
    """A workshop that only remembers."""

    def __init__(self):
        self.tried = []

    def try_mutant(self, one):
        self.tried.append(one)
        return note_of(one, *(("alive",) if len(self.tried) == 2 else ("tests", "a test")))

    def no_witnesses(self, notes):
        assert {note.by for note in notes} <= {"a test", ""}
        return set()


def test_a_kill_loses_one_mutant_and_a_second_call_goes_on(tmp_path, capsys):
    several, log, stand = drawing.drawn(7, 5), tmp_path / "log", Stand()
    command.tried(several[:3], stand, log, again=False, at_most=60)
    log.write_text(log.read_text()[:-30])  # within the last line
    notes = command.tried(several, stand, log, again=False, at_most=60)
    assert stand.tried == [*several[:3], *several[2:]]
    assert [note.key for note in notes] == [one.mutant.key for one in several]
    command.tried(several, stand, log, again=True, at_most=60)
    assert stand.tried[6:] == [several[1]]  # the one that stayed alive
    command.tried(drawing.drawn(8, 3), stand, log, again=False, at_most=1)
    assert len(stand.tried) == 8  # one is enough for the time


def test_a_new_folder_goes_on_behind_the_committed_record(tmp_path):
    several, stand = drawing.drawn(7, 3), Stand()
    committed = record.recorded(7, 3, "", several[:1], [note_of(several[0], "command")], {})
    before = list(record.notes_of(committed))
    assert [(note.key, note.ended) for note in before] == [(several[0].mutant.key, "command")]
    notes = command.tried(several, stand, tmp_path / "log", again=False, at_most=60, before=before)
    assert stand.tried == several[1:]
    assert [note.key for note in notes] == [one.mutant.key for one in several]
    assert record.recorded(7, 3, "", several, notes, committed)["mutants"][0]["ended"] == "command"


def test_the_record_keeps_reasons_until_something_kills_the_mutant():
    several = drawing.drawn(7, 3)
    notes = [
        note_of(several[0], "tests"),
        note_of(several[1], "alive"),
        note_of(several[2], "alive"),
    ]
    first = record.recorded(7, 3, "2026-01-01", several, notes, {})
    assert record.score(first["mutants"]) == (1, 3)
    first["mutants"][1] |= {"ended": "equivalent", "reason": "x + 0"}
    again = record.recorded(7, 3, "2026-01-02", several, notes, first)
    assert again["mutants"][1]["reason"] == "x + 0"
    assert record.score(again["mutants"]) == (1, 2)
    assert json.loads(record.written(again)) == again
    killed = record.recorded(7, 3, "", several, [*notes, note_of(several[1], "command")], again)
    assert killed["mutants"][1]["ended"] == "command"


def test_the_lower_bound_is_exact():
    found = record.Score(8, 10)
    assert found.lower == pytest.approx(0.493099, abs=1e-6)  # of tables
    assert record.Score(0, 5).lower == 0
    assert record.Score(5, 5).lower == pytest.approx(0.05 ** (1 / 5))


@pytest.mark.parametrize("file", [record.FILE, record.FRESH])
def test_a_committed_record_has_reasons_for_what_it_sets_aside(file):
    committed = record.read(file)
    ended = {entry["ended"] for entry in committed["mutants"]}
    assert ended <= {*record.KILLED, record.EQUIVALENT, record.ALIVE}
    equivalent = [e for e in committed["mutants"] if e["ended"] == record.EQUIVALENT]
    assert len(equivalent) <= record.MOST_EQUIVALENT * len(committed["mutants"])
    assert all(entry["reason"] for entry in equivalent)


def test_the_page_says_what_the_records_say():
    assert record.PAGE.read_text() == record.page()
