"""The referee by hand: when it calls two numbers equal, what it says, and its formulas one by one.

Points are made here, or taken from a small run and changed: no command runs for these tests.
"""

import functools
import json
import math
from collections import defaultdict
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from lrdyn.studies import REGISTRY as STUDIES
from referee import __main__ as referee
from referee import (
    completion,
    corollary1,
    descent,
    dropout_training,
    equivariance,
    galore,
    gradient_rank,
    machine,
    masked_autoencoder,
    masks,
    minimisers,
    theorem2,
    trajectories,
)
from referee.redone import EPS, Redone, coarser, saved_as
from referee.results import Point, SavedScenario, once, scenarios
from tests.runs import finished

pytestmark = pytest.mark.tools

NAN = float("nan")
ONES = np.ones(4)


def made_point(case, found=None, **flags):
    """A point with what a case has; of what was found there all else is 0."""
    zeros: Any = defaultdict(lambda: np.zeros(()), found or {})
    return Point({name: np.asarray(array) for name, array in case.items()}, zeros, flags, {})


@functools.cache
def read(path):
    return scenarios(path)


def saved_points(theorem, scenario, factory):
    """The points of a small run, with nothing computed yet."""
    done = finished(theorem, factory.getbasetemp())
    assert done.process.returncode == 0, done.process.stderr
    points = read(done.folder / "results.nc")[scenario].points
    return [point._replace(memory={}) for point in points]


def in_the_case(point, **changed):
    return point._replace(case={**point.case, **changed}, memory={})


# When two numbers are equal ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("both", "size", "residual"),
    [
        (Redone(np.array([1.0, -4.0]), np.array([1.0, 2.0])), 4.0, 1.5),
        (Redone(np.array([1.0, 2.0]), np.array([3.0, -8.0])), 8.0, 1.25),
        (Redone(np.zeros(2), np.zeros(2)), 1.0, 0.0),
        (Redone(0.0, 0.25), 0.25, 1.0),
        (Redone(1.0, 2.0, 8.0), 8.0, 0.125),
        (Redone(1.0, 2.0, np.array([-8.0, 4.0])), 8.0, 0.125),
        (Redone(np.array([2.0, 4.0]), np.array([3.0, 1.0]), 4.0, kind="at most"), 4.0, 0.25),
        (Redone(np.array([2.0, 4.0]), np.array([3.0, 1.0]), 4.0, kind="at least"), 4.0, 0.75),
        (Redone(np.array([2.0, 4.0]), np.array([2.0, 3.0]), 4.0, kind="at most"), 4.0, 0.0),
        (Redone(0.0, np.array([1.0, -3.0]), 2.0, kind="zero"), 2.0, 1.5),
        (Redone(np.array([]), np.array([])), 1.0, 0.0),
    ],
)
def test_a_residual_is_in_units_of_the_scale(both, size, residual):
    assert (both.size, both.residual) == (size, residual)


@pytest.mark.parametrize("place", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", ["equal", "at most"])
def test_a_number_that_is_lost_is_no_agreement(kind, place):
    run = np.array([1.0, 2.0, 3.0, 4.0])
    run[place] = NAN
    at = referee.ClaimAtPoint([Redone(ONES, ONES), Redone(ONES, run, 1.0, kind=kind)], 3)
    assert math.isnan(at.parts[1].residual)
    assert not at.holds


@pytest.mark.parametrize(
    ("both", "steps", "units"),
    [
        (Redone(1.0, 1.0), 0, 8 * 1.0),
        (Redone(1.0, 1.0), 3, 8 * (2 + 1.5)),
        (Redone(ONES, ONES), 3, 8 * (4 + 1.5)),
        (Redone(np.ones((9, 4)), np.ones((9, 4))), 0, 8 * 2.0),
        (Redone(np.ones((4, 0)), np.ones((4, 0))), 8, 8 * 4.0),
        (Redone(ONES, ONES, None, 100.0), 3, 800 * (4 + 1.5)),
        (Redone(ONES, ONES, None, 1.5), 3, 12 * (4 + 1.5)),
        (Redone(ONES, ONES, None, 0.01), 3, 8 * (4 + 1.5)),
        (Redone(1, 1, 1.0, 100.0, "count"), 3, 0.0),
    ],
)
def test_rounding_is_a_random_walk_times_the_condition(both, steps, units):
    if both.theory is not None and np.size(both.theory) == 0:
        units = 8 * (0 + 4.0)  # no number is rounded in no dot product, but steps are
    assert both.rounding(steps) == pytest.approx(units * EPS, rel=1e-14)
    assert both.limit(steps) == both.rounding(steps)
    given = both._replace(tolerance=0.03)
    assert (given.limit(steps), given.rounding(steps)) == (0.03, both.rounding(steps))


@pytest.mark.parametrize(
    ("saved", "apart"),
    [
        ((None, None), 0.0),
        ((np.array([1.0, 2.0, 4.0]), None), 0.25),
        ((None, np.array([1.0, 2.0, 4.0])), 0.5),
        ((np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 4.0])), 0.5),
        ((np.array([1.0, 2.0, 3.0], np.float32), None), 0.0),
        ((np.array([1.0, 2.0, 4.0], np.float32), None), 0.25 / 2**29),
        ((np.array([1, 2, 4]), None), 0.25),
    ],
)
def test_saved_sides_are_apart_by_the_rounding_of_their_precision(saved, apart):
    both = Redone(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 2.0]), 4.0, 1.0, "equal", *saved)
    assert both.apart() == apart


def test_a_saved_number_alone_is_compared_with_ours():
    assert (coarser(np.ones(1)), coarser(np.ones(1, int))) == (1.0, 1.0)
    part = saved_as(2.0, 2.5, condition=7.0)
    assert (part.residual, part.apart(), part.condition) == (0.0, 0.25, 7.0)
    assert part.saved_run is None


LIMIT = Redone(1.0, 1.0).limit(0)
PASSES = Redone(1.0, 1.0 + 0.5 * LIMIT, 1.0)
FAILS = Redone(1.0, 1.0 + 3 * LIMIT, 1.0)
LOOSE = Redone(1.0, 1.5, 1.0, tolerance=0.6)
OFF = Redone(1, 2, 1.0, kind="count")


@pytest.mark.parametrize(
    ("parts", "holds", "worst"),
    [
        ([PASSES, LOOSE], True, LOOSE),
        ([LOOSE, PASSES], True, LOOSE),
        ([LOOSE, FAILS], False, FAILS),
        ([FAILS, PASSES], False, FAILS),
        ([Redone(1.0, 1.0), OFF], False, OFF),
        ([Redone(1.0, 1.0 + LIMIT / 1.0, 1.0, tolerance=LIMIT)], True, None),
    ],
)
def test_every_part_of_a_claim_must_hold(parts, holds, worst):
    at = referee.ClaimAtPoint(parts, 0)
    assert at.holds is holds
    assert worst is None or at.worst is worst


def test_saved_sides_are_apart_over_their_own_rounding():
    near = Redone(1.0, 1.0, 1.0, 1.0, "equal", 1.0 + 8 * EPS)
    far = Redone(1.0, 1.0, 1.0, 1.0, "equal", None, 1.0 + 16 * EPS)
    for parts in ([near, far], [far, near]):
        assert referee.ClaimAtPoint(parts, 0).apart == 2.0
    assert referee.ClaimAtPoint([near._replace(condition=4.0)], 0).apart == 0.25
    # A count has no rounding: any difference is too far.
    assert referee.ClaimAtPoint([OFF._replace(saved_run=2)], 0).apart == 0.0
    assert referee.ClaimAtPoint([OFF._replace(saved_run=3)], 0).apart > 1e200


# What it says -------------------------------------------------------------------------------------


def scenario_of(*parts: Any, left_out=(), **found):
    """A scenario of as many points as there are lists of parts, and the claim about it."""
    points = [made_point({"number": k}, found, first=k == 0) for k in range(len(parts))]
    saved = SavedScenario("made", points, list(left_out))
    claim: Any = lambda point: parts[int(point.case["number"])]  # noqa: E731
    return claim, saved


TRUE = {
    "id": "made",
    "residual": 0.5,
    "holds": True,
    "judged": {"float64": {"drawn": 2, "judged": 0, "left_out": {"claim does not apply": 2}}},
}
NEAR = Redone(1.0, 1.0, 1.0, 1.0, "equal", 1.0 + 24 * EPS)
FAR = Redone(1.0, 1.0, 1.0, 1.0, "equal", 1.0 + 40 * EPS)
LOST = Redone(1.0, 1.0, 1.0, 1.0, "equal", NAN)


@pytest.mark.parametrize(
    ("parts", "holds", "said", "agrees", "points"),
    [
        ([PASSES, PASSES], True, "agrees", True, 2),
        ([[PASSES, PASSES], [PASSES]], True, "agrees", True, 2),
        ([PASSES, None, []], True, "agrees", True, 1),
        ([PASSES, FAILS], True, "DOES NOT HOLD HERE", False, 2),
        ([FAILS, PASSES], True, "DOES NOT HOLD HERE", False, 2),
        ([PASSES, FAILS], False, "agrees", True, 2),
        ([PASSES, PASSES], False, "HOLDS HERE", False, 2),
        ([PASSES, NEAR], True, "agrees", True, 2),
        ([FAR, PASSES], True, "A SAVED SIDE IS ANOTHER", False, 2),
        ([PASSES, FAR], True, "A SAVED SIDE IS ANOTHER", False, 2),
        ([LOST], True, "A SAVED SIDE IS ANOTHER", False, 1),
        ([PASSES, LOST], True, "A SAVED SIDE IS ANOTHER", False, 2),
        ([[PASSES, LOST]], True, "A SAVED SIDE IS ANOTHER", False, 1),
        ([[LOST, PASSES], PASSES], True, "A SAVED SIDE IS ANOTHER", False, 2),
        ([FAILS, FAR], False, "A SAVED SIDE IS ANOTHER", False, 2),
        ([FAILS, FAR], None, "the verdict is open", None, 2),
        ([None, None], True, "NO POINT MEETS THE HYPOTHESES", False, 0),
        ([None, None], False, "no point meets the hypotheses", None, 0),
        ([None, None], None, "no point meets the hypotheses", None, 0),
    ],
)
def test_a_line_says_what_was_found(parts, holds, said, agrees, points):
    claim, saved = scenario_of(*parts)
    line = referee.line(TRUE | {"holds": holds}, claim, saved)
    assert (line.claim, line.theirs) == ("made", 0.5)
    assert (line.said, line.agrees, line.points) == (said, agrees, points)
    every = [p for part in parts if part for p in (part if isinstance(part, list) else [part])]
    if every:
        assert line.mine == max(part.residual for part in every)
        np.testing.assert_equal(line.apart, np.max([part.apart() / LIMIT for part in every]))
    else:
        assert (line.mine, line.apart) == (None, 0)


def test_a_case_that_was_too_large_to_save_is_named_and_not_computed():
    _, saved = scenario_of(PASSES, left_out=("target", "weights.0"))

    def computed(point):
        raise AssertionError("its case is not there")

    for holds, agrees in ((True, False), (False, None), (None, None)):
        line = referee.line(TRUE | {"holds": holds}, computed, saved)
        assert line == ("made", 0.5, None, 0, 0, "NOT SAVED: target, weights.0", agrees)


@pytest.mark.parametrize(
    "word", [{"diverges": 0}, {"galore_diverges_at": [-1, 7]}, {"met_small": 0}]
)
@pytest.mark.parametrize("holds", [True, False, None])
def test_a_word_of_the_file_alone_excuses_no_point(word, holds):
    found = {name: np.asarray(value) for name, value in word.items()}
    claim, saved = scenario_of(PASSES, **found)
    line = referee.line(TRUE | {"holds": holds}, claim, saved)
    assert line.agrees is False
    name = next(iter(word)).removeprefix("met_")
    assert line.said == f"EXCUSED WITHOUT A REASON: {name}"
    met = {"diverges": np.asarray(-1), "met_small": np.asarray([True, True])}
    claim, saved = scenario_of(PASSES, **met)
    assert referee.line(TRUE, claim, saved).agrees


def test_a_point_that_diverges_here_is_excused():
    claim, saved = scenario_of(PASSES, FAILS)
    second = referee.line(TRUE, claim, saved, lambda point: int(point.case["number"]) == 1)
    assert second.agrees
    assert referee.line(TRUE, claim, saved, lambda point: True).agrees is False


def test_every_point_that_was_judged_is_computed():
    every = {"drawn": 6, "judged": 6, "left_out": {}}  # three seeds
    claim, saved = scenario_of(PASSES, None)
    line = referee.line(TRUE | {"judged": {"float64": every}}, claim, saved)
    assert (line.said, line.agrees) == ("NOT COMPUTED AGAIN AT 1 OF 2 POINTS", False)
    one_less = {"drawn": 6, "judged": 5, "left_out": {"trivial": 1}}
    assert referee.line(TRUE | {"judged": {"float64": one_less}}, claim, saved).agrees


def test_saved_sides_are_no_further_apart_than_the_verdict_says():
    near = Redone(1.0, 1.0 + EPS, 1.0, 1.0, "equal", 1.0, 1.0 + EPS)
    claim, saved = scenario_of(near)
    for residual, agrees in ((EPS, True), (EPS / 8, True), (0.0, False), (None, False)):
        line = referee.line(TRUE | {"residual": residual}, claim, saved)
        assert line.agrees is agrees


def test_what_a_damaged_case_raises_is_named():
    def computed(point):
        values = np.linalg.svd(np.full((2, 2), NAN), compute_uv=False)
        return Redone(values, values, 1.0, 1.0, "equal")

    _, saved = scenario_of(PASSES)
    for holds in (True, False, None):
        line = referee.line(TRUE | {"holds": holds}, computed, saved)
        assert (line.said, line.agrees) == ("CANNOT BE COMPUTED: LinAlgError", False)


def test_steps_are_the_last_recorded_one():
    claim, saved = scenario_of(PASSES)
    (still,) = referee.redone(claim, saved)
    (moving,) = referee.redone(
        claim, saved._replace(points=[made_point({"number": 0, "steps": [0, 7, 40]})])
    )
    assert (still.steps, moving.steps) == (0, 40)


def test_a_claim_without_a_referee_needs_a_reason():
    entry = {"id": "mine", "residual": 0.5}
    line = referee.not_redone(entry, "")
    assert line == ("mine", 0.5, None, 0, 0, "NO REFEREE OF THIS CLAIM", False)
    assert referee.not_redone(entry, "a study") == ("mine", 0.5, None, 0, 0, "a study", None)


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_is_computed_again_or_says_why_not(name):
    mine = referee.referee_of(name)
    assert bool(mine.claims) != bool(mine.reason)


@pytest.mark.parametrize("name", ["my_theorem", "redone", "exact", "a.b", "", "__main__"])
def test_a_name_that_is_no_theorem_of_ours_has_no_referee(name):
    assert referee.referee_of(name) == referee.Referee({}, {})


AGREES = referee.Line("rho", 1e-16, 2e-16, 0.125, 4, "agrees", True)
OPEN = referee.Line("transformer", None, None, 0, 0, "a study", None)
DIFFERS = referee.Line("loss", 1e-16, 0.5, 0.0, 1, "DOES NOT HOLD HERE", False)


@pytest.mark.parametrize(
    ("lines", "last", "status"),
    [
        ([AGREES, OPEN], "1 of 2 claims computed again and agreed", 0),
        ([AGREES, AGREES], "2 of 2 claims computed again and agreed", 0),
        ([DIFFERS, AGREES], "1 of 2 claims computed again and agreed; DIFFERENT: loss", 1),
        (
            [DIFFERS, OPEN, DIFFERS],
            "0 of 3 claims computed again and agreed; DIFFERENT: loss, loss",
            1,
        ),
    ],
)
def test_the_table_ends_with_how_many_agreed(lines, last, status, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(referee, "lines", lambda folder: lines)
    monkeypatch.setattr(referee, "contradictions", lambda verdict, folder: [])
    finished_run(tmp_path / "run")
    assert referee.main([str(tmp_path)]) == status
    out = capsys.readouterr().out.splitlines()
    assert out[0] == str(tmp_path / "run")
    assert out[1].split() == ["claim", "residual", "here", "apart", "points"]
    assert out[-1] == last
    cells = {
        AGREES: "rho 1.0e-16 2.0e-16 0.12 4 agrees",
        OPEN: "transformer a study",
        DIFFERS: "loss 1.0e-16 5.0e-01 0 1 DOES NOT HOLD HERE",
    }
    assert [row.split() for row in out[2:-1]] == [cells[line].split() for line in lines]


def finished_run(folder):
    folder.mkdir(parents=True)
    (folder / "verdict.json").write_text("{}")
    (folder / "results.nc").write_text("")


def test_the_worst_of_several_runs_decides(tmp_path, monkeypatch, capsys):
    for name in ("a", "b", "c"):
        finished_run(tmp_path / name)
    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped" / "verdict.json").write_text("{}")
    assert [run.name for run in referee.folders([str(tmp_path)])] == ["a", "b", "c"]
    assert referee.folders([str(tmp_path / "b"), str(tmp_path / "a")])[0].name == "b"
    found = {"a": [AGREES], "b": [DIFFERS], "c": [AGREES]}
    monkeypatch.setattr(referee, "lines", lambda folder: found[folder.name])
    monkeypatch.setattr(referee, "contradictions", lambda verdict, folder: [])
    assert referee.main([str(tmp_path)]) == 1
    assert referee.main([str(tmp_path / "a"), str(tmp_path / "c")]) == 0
    capsys.readouterr()
    assert referee.main([str(tmp_path / "a"), str(tmp_path / "stopped")]) == 2
    assert "stopped: got no run" in capsys.readouterr().err


def test_controls_and_findings_are_left_to_lrdyn(tmp_path, monkeypatch):
    claims = [
        {"id": name, "kind": kind, "residual": None, "holds": True}
        for name, kind in (("off_block", "identity"), ("noisy", "control"), ("size", "finding"))
    ]
    claims.append({"id": "unknown", "kind": "bound", "residual": None, "holds": True})
    (tmp_path / "verdict.json").write_text(json.dumps({"name": "theorem9", "claims": claims}))
    saved = {"factorization": SavedScenario("factorization", [], [])}
    monkeypatch.setattr(referee, "scenarios", lambda path: saved)
    found = referee.lines(tmp_path)
    assert [(line.claim, line.agrees) for line in found] == [
        ("off_block", False),  # of no point
        ("unknown", False),
    ]


def test_claims_that_the_verdict_does_not_mention_are_named(tmp_path, monkeypatch):
    (tmp_path / "verdict.json").write_text(json.dumps({"name": "theorem2", "claims": []}))
    saved = {"collapse": SavedScenario("collapse", [], [])}
    monkeypatch.setattr(referee, "scenarios", lambda path: saved)
    found = {line.claim: (line.said, line.agrees) for line in referee.lines(tmp_path)}
    assert found == dict.fromkeys(theorem2.CLAIMS["collapse"], ("NOT IN THE VERDICT", False))


# Reading ------------------------------------------------------------------------------------------


def test_what_is_computed_once_is_kept_by_function_and_arguments():
    calls = []

    @once
    def counted(point, *rest):
        calls.append(rest)
        return None if rest == (3,) else len(calls)

    point, other = made_point({}), made_point({})
    assert [counted(point), counted(point), counted(point, 1), counted(point, 1)] == [1, 1, 2, 2]
    assert (counted(point, 3), counted(point, 3), counted(other)) == (None, None, 4)
    assert calls == [(), (1,), (3,), ()]


def test_the_parts_of_a_case_end_where_one_is_missing_or_empty():
    case = {"w.0": ONES, "w.1": 2 * ONES, "w.2": np.zeros(0), "w.3": ONES, "v.1": ONES}
    point = made_point(case | {"steps": 7})
    assert [part[0] for part in point.parts("w")] == [1.0, 2.0]
    assert point.parts("v") == []
    assert point.times == [7]


# Descent ------------------------------------------------------------------------------------------


def test_gradients_of_products_are_differences():
    rng = np.random.default_rng(0)
    layers = [rng.standard_normal(shape) for shape in ((3, 4), (2, 3), (5, 2))]
    goal, way = rng.standard_normal((5, 4)), [rng.standard_normal(w.shape) for w in layers]
    loss = lambda t: (  # noqa: E731
        np.sum((descent.chain([w + t * d for w, d in zip(layers, way, strict=True)]) - goal) ** 2)
        / 2
    )
    slopes = descent.gradients(layers, descent.chain(layers) - goal)
    slope = sum(np.sum(g * d) for g, d in zip(slopes, way, strict=True))
    assert (loss(1e-5) - loss(-1e-5)) / 2e-5 == pytest.approx(slope, rel=1e-7)


def test_each_layer_has_its_own_step_and_decay():
    """The residual is the product, 6, and the gradient of a layer that times the other one."""
    layers = [np.array([[2.0]]), np.array([[3.0]])]
    rates, decays, record = [0.1, 0.01], [0.5, 2.0], lambda w: [x.item() for x in w]
    first, second = descent.descend(layers, lambda whole: whole, rates, decays, [0, 1], record)
    assert first == [2.0, 3.0]
    assert second == pytest.approx([2 * (1 - 0.05) - 0.1 * 18, 3 * (1 - 0.02) - 0.01 * 12])


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_amplification_is_the_response_over_the_disturbance(scale):
    layers = [np.zeros((2, 2)), np.zeros((3, 2))]
    (first, second) = descent.disturbed(layers, 1.0)
    run = lambda w: np.concatenate([3 * w[0].ravel(), -5 * w[1].ravel()])  # noqa: E731
    wanted = max(3 * np.abs(first).max(), 5 * np.abs(second).max())
    found = descent.amplification(run, layers, scale, run(layers))
    assert found == pytest.approx(wanted, rel=1e-9)


# Theorem 1 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1.0, 8.0, 0.02])
@pytest.mark.parametrize(
    ("depth", "decay", "kept"),
    [(2, 0.5, 1), (2, 3.0, 1), (3, 0.9, 1), (3, 1.1, 0), (4, 0.45, 1), (4, 0.55, 0), (5, 0.3, 1)],
)
def test_a_singular_value_is_shrunk_or_dropped(depth, decay, kept, size):
    """``s = 1`` is at rest for sigma = 1 + lambda, and costs less than 0 if lambda (L - 2) < 1.

    In other units lambda is ``size^(2 - 2/L)`` times as large.
    """
    sigma, weight_decay = size * (1 + decay), decay * size ** (2 - 2 / depth)
    assert minimisers.shrunk(sigma, weight_decay, depth) == pytest.approx(size * kept, rel=1e-12)
    root = minimisers.larger_root(sigma, weight_decay, depth)
    assert root**depth == pytest.approx(size, rel=1e-12)


def test_without_decay_nothing_is_shrunk_and_with_too_much_all_is():
    for depth in (2, 3, 5):
        assert minimisers.shrunk(0.3, 0.0, depth) == pytest.approx(0.3, rel=1e-14)
        assert minimisers.shrunk(0.3, 9.0, depth) == 0.0
    assert minimisers.larger_root(0.3, 9.0, 3) == 0.0


def descent_of(values, width, decay, depth=2, shape=None):
    """A finished descent on a diagonal target, whose layers nobody asks for."""
    rows, columns = shape or (len(values), len(values))
    target = np.zeros((rows, columns))
    np.fill_diagonal(target, values)
    parts = np.linalg.svd(target, full_matrices=False)
    layers = [np.zeros((width, columns)), *[np.eye(width)] * (depth - 2), np.zeros((rows, width))]
    return minimisers.SavedDescent(target, width, decay, layers, np.zeros(1), *parts)


@pytest.mark.parametrize(
    ("values", "width", "decay", "shape", "smallest"),
    [
        ([4.0, 2.5, 2.0], 2, 1.0, None, 0.5),  # to the first that is left out
        ([4.0, 2.5, 0.1], 2, 0.2, None, 0.4),  # twice the decay
        ([4.0, 2.5, 0.1], 2, 2.3, None, 0.4),  # twice what is left of the last one kept
        ([4.0, 2.5, 2.0], 3, 2.2, None, 0.2),  # from the first that decay takes
        ([4.0, 0.5], 2, 0.4, (2, 3), 0.2),
        ([4.0, 0.7], 2, 0.0, (2, 3), 0.7),  # outside of the row space
        ([4.0, 0.7], 2, 0.0, None, 1.4),
        ([4.0, 0.7], 2, 5.0, None, 1.0),  # nothing is kept
        ([4.0, 4.0, 1.0], 1, 1.5, None, 3.0),  # a tie does not count
        ([4.0, 1.0], 2, 1.0, None, 0.0),
    ],
)
def test_the_distance_from_a_minimiser_is_the_gradient_over_the_least_curvature(
    values, width, decay, shape, smallest
):
    found = minimisers.distance_bound(descent_of(values, width, decay, shape=shape))
    assert found == (pytest.approx(4.0 / smallest) if smallest else math.inf)


@pytest.mark.parametrize(
    ("depth", "others", "width", "wanted"),
    [
        # At w = 1, sigma = 1 + lambda, the curvature is L - (L - 2) lambda; lambda = 0.1.
        (3, [1.0], 1, 10.0),  # one over the gap
        (3, [], 1, 3 / 2.9),
        (4, [], 1, 4 / 3.8),
        (3, [0.05], 1, 3 / 2.9),
        (3, [1.1], 1, 3 / 2.9),  # a tie is no gap
    ],
)
def test_the_distance_of_deep_layers_from_rest(depth, others, width, wanted):
    of = descent_of([1.1, *others], width, 0.1, depth)
    unit = 1.1 ** (1 - 1 / depth)
    assert minimisers.rest_condition(of) == pytest.approx(unit * wanted)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_a_root_that_is_wrong_is_undercut_by_the_grid(depth, monkeypatch):
    """The least loss over 15 points of a grid is found, whatever the formula says."""
    of = descent_of([8.0, 0.5, 0.25], 2, 0.05, depth)
    right = minimisers.least_loss(of)
    grid = np.linspace(0.0, 3.0, 30_001)
    wanted = 0.25**2 / 2 + sum(
        np.min((grid**depth - sigma) ** 2 / 2 + 0.05 * depth / 2 * grid**2) for sigma in (8.0, 0.5)
    )
    assert right == pytest.approx(wanted, rel=1e-6)
    monkeypatch.setattr(minimisers, "shrunk", lambda sigma, decay, depth: 0.0)
    assert right <= minimisers.least_loss(of) < right + 0.02


@pytest.mark.parametrize(
    ("values", "width", "ties"),
    [([3.0, 2.0, 2.0], 2, 1), ([3.0, 2.0, 2.0], 1, 0), ([2.0, 2.0, 2.0], 2, 2), ([3.0, 2.0], 2, 0)],
)
def test_ties_are_those_of_the_first_value_that_is_left_out(values, width, ties):
    assert minimisers.tied(descent_of(values, width, 0.1)) == ties


def rescaled(depth, unit):
    """A descent of Theorem 1 in other units: the product is ``unit^L`` times as large."""
    rng = np.random.default_rng(depth)
    sides = [3, *[2] * (depth - 1), 4]
    layers = [0.6 * rng.standard_normal((b, a)) for a, b in pairwise(sides)]
    target = rng.standard_normal((4, 3))
    curvature = unit ** (2 * depth - 2)
    case = {f"weights.{k}": unit * w for k, w in enumerate(layers)}
    return made_point(
        case
        | {
            "target": unit**depth * target / np.linalg.norm(target, 2),
            "weight_decay": np.full(depth, 0.05 * curvature),
            "learning_rate": 0.4 / curvature,
            "steps": [0, 1000],
        },
        {"rest_losses": np.zeros(9)},
    )


@pytest.mark.parametrize("depth", [2, 3])
def test_verdicts_of_theorem_1_do_not_depend_on_units(depth):
    """Every threshold scales with what it is compared with."""
    claims = minimisers.CLAIMS["descent"]
    judged = {name: number for name, number in (("minimiser", 2), ("rest", 3)) if number == depth}
    first: dict[str, Any] = {}
    for unit in (2.0**-6, 1.0, 2.0**6):
        of = minimisers.run_of(rescaled(depth, unit))
        assert of is not None
        assert of.rests
        found = {
            name: referee.redone(claim, SavedScenario("", [rescaled(depth, unit)], []))
            for name, claim in claims.items()
        }
        assert judged.keys() <= {name for name, at in found.items() if at}
        rows = {
            name: [(part.size, part.condition) for point in at for part in point.parts]
            for name, at in found.items()
        }
        first = first or rows
        powers = dict.fromkeys(("minimum", "lower_bound", "rest_loss"), 2) | {"balanced": 2 / depth}
        for name, parts in rows.items():
            for (size, condition), (before, its_condition) in zip(parts, first[name], strict=True):
                larger = (unit * 2.0**6) ** (depth * powers.get(name, 1))
                assert size == pytest.approx(before * larger, rel=1e-6), name
                assert condition == pytest.approx(its_condition, rel=1e-6), name


# Theorem 2 and Corollary 1 ------------------------------------------------------------------------


def orthogonal_start(dim=6, depth=2, scale=0.5, seed=0):
    rng = np.random.default_rng(seed)
    return [scale * np.linalg.qr(rng.standard_normal((dim, dim)))[0] for _ in range(depth)]


def deep_point(rank=1, rate=0.1, steps=(0, 1, 2), depth=2, decay=0.0, **more):
    dim = 6
    rng = np.random.default_rng(1)
    left, right = (np.linalg.qr(rng.standard_normal((dim, dim)))[0][:, :rank] for _ in range(2))
    layers = orthogonal_start(dim, depth)
    case = {f"weights.{k}": w for k, w in enumerate(layers)}
    return made_point(
        case
        | {
            "target": left * (1 + np.arange(rank)[::-1]) @ right.T,
            "rank": rank,
            "scales": np.full(depth, 0.5),
            "learning_rate": rate,
            "weight_decay": np.full(depth, decay),
            "steps": list(steps),
            "ranks": np.array([rank]),
        }
        | more,
        {"bound": np.zeros(1), "error_measured": np.zeros((1, len(steps)))},
    )


def test_a_frame_needs_a_target_of_the_rank_that_is_said():
    layers = orthogonal_start()
    target = np.diag([3.0, 2.0, 1.0, 0, 0, 0])
    frames = theorem2.frame(layers, target, 3)
    assert len(frames) == 3
    for basis in frames:
        np.testing.assert_allclose(basis.T @ basis, np.eye(6), atol=1e-12)
    with pytest.raises(AssertionError):
        theorem2.frame(layers, target, 1)
    with pytest.raises(AssertionError):
        theorem2.frame(layers, target, 2)


@pytest.mark.parametrize(
    ("changed", "meets"),
    [
        ({}, True),
        ({"rank": np.array(2)}, True),
        ({"target": np.diag([2.0, 1e-8, 0, 0, 0, 0])}, False),
        ({"target": np.diag([2.0, 1e-11, 0, 0, 0, 0])}, True),
        ({"scales": np.array([0.5, 0.6])}, False),
        ({"weights.1": 0.5 * np.eye(6) + 1e-9}, False),
        ({"noise": np.zeros(1)}, False),
        ({"mask": np.ones((6, 6))}, False),
    ],
)
def test_hypotheses_of_theorem_2(changed, meets):
    of = theorem2.setting_of(in_the_case(deep_point(), **changed))
    assert (of is not None) is meets


def test_the_mean_loss_is_descended_itself(monkeypatch):
    """Not the sum, which takes the same path."""
    asked, dense = [], theorem2.FactorizationCase.dense

    def noting(of, layers, record, mean=False):
        asked.append(mean)
        return dense(of, layers, record, mean)

    monkeypatch.setattr(theorem2.FactorizationCase, "dense", noting)
    found: Any = defaultdict(lambda: np.zeros((3, 2, 2, 2)))
    parts = theorem2.mean_loss(deep_point()._replace(found=found))
    assert parts is not None
    assert asked == [True, True]
    assert all(part.residual < 1e-14 for part in parts)


def test_on_the_mean_steps_are_larger_and_decay_is_smaller():
    of = theorem2.setting_of(deep_point(decay=0.2))
    assert of is not None
    plain, mean = (of.dense(of.layers, np.array, kind) for kind in (False, True))
    np.testing.assert_allclose(mean, plain, rtol=1e-12)
    assert np.abs(plain[-1] - plain[0]).max() > 0.03


@pytest.mark.parametrize(
    ("apart", "slow", "distinct"), [(0.0, 2, True), (1e-9, 2, False), (1e-3, 1, True)]
)
def test_eigenvalues_that_count_as_the_least_are_told_from_one_by_more_than_rounding(
    apart, slow, distinct
):
    """Within half of the digits of l_1 they count as it; then they must be equal to the last."""
    sides = np.diag([1.0, 1.0 + apart, 3.0])[None], np.ones((1, 1, 1))
    of = gradient_rank.with_modes(np.ones((1, 3, 1)), *sides, 0.1, "float64")
    assert np.sum(of.slow) == slow
    assert of.distinct is distinct


@pytest.mark.parametrize(("optimizer", "whole"), [("sgd", True), ("adam", False)])
def test_in_float32_signs_matter_to_a_kept_state_alone(optimizer, whole, tmp_path_factory):
    """The digits of an SVD differ behind the first period whatever the optimiser is."""
    (point,) = saved_points("galore", "optax", tmp_path_factory)
    changed = point._replace(flags={**point.flags, "optimizer": optimizer, "dtype": "float32"})
    run = galore.paths(changed)
    first = np.array(run.of.times) <= run.of.period
    assert run.known.tolist() == first.tolist()
    assert not run.known.all()
    assert run.signed.all() if whole else run.signed.tolist() == first.tolist()
    parts = galore.optax_precise(changed)
    assert parts is not None
    assert len(parts[0].theory) == (len(first) if whole else first.sum())


def test_rho_by_hand():
    of = theorem2.setting_of(deep_point(depth=3, decay=0.2, steps=(0, 2)))
    assert of is not None
    other = of._replace(scales=np.array([0.5, 1.0, 2.0]))
    first = [0.5 * (1 - 0.02 - 0.1 * 4), 1.0 * (1 - 0.02 - 0.1 * 1), 2.0 * (1 - 0.02 - 0.1 / 4)]
    a, b, c = first
    second = [a * (0.98 - 0.1 * (b * c) ** 2), b * (0.98 - 0.1 * (a * c) ** 2)]
    second.append(c * (0.98 - 0.1 * (a * b) ** 2))
    np.testing.assert_allclose(theorem2.rho(other), [[0.5, 1.0, 2.0], second], rtol=1e-13)


@pytest.mark.parametrize("steps", [(0, 1), (0, 1, 2), (0, 2)])
@pytest.mark.parametrize(("rate", "judged"), [(0.1, True), (7.9, True), (8.1, False)])
def test_a_first_step_that_expands_is_not_judged_however_short_the_run_is(rate, judged, steps):
    """rho is multiplied by ``1 - eta / 4``, which is -1 at eta = 8; later ones are nearer to 1."""
    point = deep_point(rate=rate, steps=steps)
    assert (corollary1.error_bound(point) is not None) is judged
    assert corollary1.bound_attained(point) is not None


def test_the_error_of_a_compressed_network_by_hand():
    """At the start it is ``sqrt(d - 2 r) e``; one step multiplies both factors by 1 - eta / 4."""
    both = corollary1.error_identity(deep_point(rate=0.4, steps=(0, 1)))
    assert both is not None
    wanted = [[2 * 0.25, 2 * (0.5 * 0.9) ** 2]]
    np.testing.assert_allclose(both.theory, wanted, rtol=1e-13)
    np.testing.assert_allclose(both.run, wanted, rtol=1e-13)
    bound = corollary1.error_bound(deep_point(rate=0.4, steps=(0, 1)))
    assert bound is not None
    np.testing.assert_allclose(bound.theory, [[0.5, 0.5]], rtol=1e-13)
    assert bound.kind == "at most"


def test_scatter_by_hand():
    """Within 1 + 1 + 4 + 4, between 2 (1 + 1) about the mean 0 of four examples in two classes."""
    features = np.array([[-2.0, 0.0, -1.0, 3.0]])
    found = theorem2.scatter_ratio(features, np.array([0, 0, 1, 1]))
    assert found == pytest.approx((2 + 8) / (2 * 1 + 2 * 1))


# Completion ---------------------------------------------------------------------------------------


def seen(values=(2.0,), dim=4, mask=None, scale=0.1, rank=None):
    target = np.zeros((dim, dim))
    np.fill_diagonal(target[: len(values), : len(values)], values)
    return completion.CompletionCase(
        target=target,
        layers=[scale * np.eye(dim)] * 3,
        rank=rank or len(values),
        rate=0.1,
        alpha=4.0,
        gamma=1.0,
        times=[0, 1],
        mask=np.ones((dim, dim)) if mask is None else mask,
        measurements=None,
    )


@pytest.mark.parametrize("values", [(2.0,), (8.0, 1.0), (1.0, 1.0)])
def test_the_largest_curvature_of_a_loss_that_sees_all(values):
    """Along the first singular pair: ``3 sigma_1^(4/3)``."""
    wanted = 3 * max(values) ** (4 / 3)
    assert completion.largest_curvature(seen(values)) == pytest.approx(wanted, rel=1e-9)


def test_curvature_over_the_share_that_is_seen():
    """With one entry seen in 16, which has all of the target, it is 16 times as large."""
    mask = np.zeros((4, 4))
    mask[0, 0] = 1
    of = seen(mask=mask)
    assert (of.share, of.size, of.level) == (1 / 16, 2.0, 32 * of.left)
    assert of.left == pytest.approx(math.sqrt(2) * 1e-3 / 2)
    assert completion.largest_curvature(of) == pytest.approx(16 * 3 * 2 ** (4 / 3), rel=1e-9)
    assert completion.least_curvature(of) == pytest.approx(0, abs=1e-12)
    assert completion.least_curvature(seen()) == pytest.approx(1, rel=1e-12)


def completion_case(of):
    case = {f"weights.{k}": w for k, w in enumerate(of.layers)}
    return made_point(
        case
        | {
            "target": of.target,
            "rank": of.rank,
            "learning_rate": of.rate,
            "step_ratio": of.alpha,
            "outer_ratio": of.gamma,
            "steps": of.times,
            "mask": of.mask,
        }
    )


@pytest.mark.parametrize("scale", [0.1, 0.5, 1.0])
def test_the_gap_of_the_gradient_by_hand(scale):
    """``e / (sigma_r - e)``, with e the cube of the scale; rounding: ``(sigma_1 + e) / .``."""
    e = scale**3
    both = completion.basis_gap(completion_case(seen((8.0, 2.0), scale=scale)))
    assert both is not None
    assert both.theory == pytest.approx(e / (2 - e))
    # W_3 W_2 = scale^2 I, and the difference is sigma - e, or -e.
    assert both.run == pytest.approx(e / (2 - e))
    assert both.condition == pytest.approx((8 + e) / (2 - e))
    mask = np.ones((4, 4))
    mask[3, 3] = 0
    assert completion.basis_gap(completion_case(seen((8.0, 2.0), mask=mask))) is None
    assert completion.basis_gap(completion_case(seen((8.0, 1.0), scale=1.0))) is None


def test_where_all_is_seen_nothing_is_hidden_from_a_start(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(completion, "stable", lambda point: True)
    points = saved_points("completion", "completion", tmp_path_factory)
    point = next(point for point in points if point.case["mask"].min() == 0)
    fresh = in_the_case(point)
    assert len(list(completion.start(fresh))) == 3
    everything = in_the_case(point, mask=np.ones_like(point.case["mask"]))
    assert list(completion.start(everything)) == []
    monkeypatch.setattr(completion, "stable", lambda point: False)
    assert list(completion.start(fresh)) == []


def test_a_step_that_is_too_large_or_a_start_that_is_too_far_is_not_judged():
    of = seen((2.0,), dim=6, scale=0.1)
    factor = 4 ** (2 / 3)
    most = 1.7 / (3 * 2 ** (4 / 3) * factor)
    for rate, stable in ((0.99 * most, True), (1.01 * most, False)):
        assert completion.stable(completion_case(of._replace(rate=rate))) is stable
    # sqrt(6 - 2) e / 2 is 0.1 / 32 where e is.
    edge = (0.1 / 32) ** (1 / 3)
    for scale, stable in ((0.99 * edge, True), (1.01 * edge, False)):
        far = seen((2.0,), dim=6, scale=scale)
        assert completion.stable(completion_case(far._replace(rate=0.1 * most))) is stable


# Theorem 3 ----------------------------------------------------------------------------------------


def images(unit=1.0, rows=4, examples=7, keep=0.5):
    rng = np.random.default_rng(0)
    return masked_autoencoder.SavedAutoencoding(
        unit * rng.standard_normal((rows, examples)),
        keep,
        np.arange(rows) // 2,
        rng.standard_normal((rows, rows)),
        [rng.standard_normal((2, rows)), rng.standard_normal((rows, 2))],
    )


@pytest.mark.parametrize("unit", [2.0**-20, 1.0, 2.0**20])
def test_whether_a_moment_is_regular_does_not_depend_on_units(unit):
    of, one = images(unit), images()
    assert of.regular
    np.testing.assert_allclose(of.optimum(), one.optimum(), rtol=1e-9)
    np.testing.assert_allclose(of.narrow_optimum(), one.narrow_optimum(), rtol=1e-9)
    np.testing.assert_allclose(of.masked_optimum(), one.masked_optimum(), rtol=1e-9)
    assert of.inverting == pytest.approx(one.inverting, rel=1e-9)
    assert of.choosing() == pytest.approx(one.choosing(), rel=1e-9)
    still = of._replace(data=of.data * np.array([1.0, 1.0, 1.0, 0.0])[:, None])
    assert not still.regular


def test_optima_of_masked_autoencoders_have_no_gradient():
    """Of the sums over all masks, by differences; the minimum of rank r along rank r."""
    of, rng = images(), np.random.default_rng(1)
    way = rng.standard_normal((4, 4))
    loss, size = of.loss, 1e-4
    at = of.optimum()
    slope = (loss(at + size * way) - loss(at - size * way)) / (2 * size)
    assert slope == pytest.approx(0, abs=1e-9)
    hidden = lambda A: loss(A, hidden_only=True)  # noqa: E731
    outside = way - of.within(way)
    at = of.masked_optimum()
    assert np.abs(of.within(at)).max() < 1e-12
    slope = (hidden(at + size * outside) - hidden(at - size * outside)) / (2 * size)
    assert slope == pytest.approx(0, abs=1e-9)
    assert np.linalg.svd(of.narrow_optimum(), compute_uv=False)[2] < 1e-12
    turn = np.linalg.qr(np.eye(4) + 1e-3 * (way - way.T))[0]
    least = loss(of.narrow_optimum())
    assert loss(turn @ of.narrow_optimum()) > least
    assert loss(of.narrow_optimum() @ turn) > least


def test_all_counts_of_singular_values_are_compared(tmp_path_factory, monkeypatch):
    """Those of the data, of the formula, and of what was trained."""
    (point, *_) = saved_points("theorem3", "autoencoder", tmp_path_factory)
    monkeypatch.setattr(masked_autoencoder, "ended", lambda point, loss: [(0, sets[0])])
    sets = masked_autoencoder.data_sets(point)
    best = sets[0].optimum()
    trained = masked_autoencoder.TrainedAutoencoders(best, best, best)
    monkeypatch.setattr(masked_autoencoder, "trained", lambda point, k: trained)
    right, *_ = masked_autoencoder.rank(point)
    assert right.residual == 0
    values = sets[0].narrow_values()
    fewer = np.append(values[:1], 0 * values[1:])
    monkeypatch.setattr(masked_autoencoder.SavedAutoencoding, "narrow_values", lambda of: fewer)
    wrong, *_ = masked_autoencoder.rank(point)
    assert wrong.residual == np.linalg.matrix_rank(sets[0].data) - 1 > 0


def test_beyond_ten_units_the_loss_is_that_of_the_formula(tmp_path_factory, monkeypatch):
    """Where both can be had they are one number."""
    monkeypatch.setattr(dropout_training, "trained", lambda point: layers)
    points = saved_points("theorem3", "dropout_training", tmp_path_factory)
    of = dropout_training.regression(points[0])
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, *of.start[0].shape))
    layers = dropout_training.Trained(first, second.T, 1.0)
    assert of.start[1].T.shape == of.start[0].shape
    summed = dropout_training.dropout_minimum(points[0])
    monkeypatch.setattr(dropout_training, "ENUMERATED", 0)
    formula = dropout_training.dropout_minimum(points[0])
    assert summed is not None
    assert formula is not None
    assert formula.run == pytest.approx(summed.run, rel=1e-12)
    assert formula.theory == summed.theory


# Theorem 4 ----------------------------------------------------------------------------------------


def test_paths_that_are_lost_or_whose_subspace_is_not_decided_are_not_compared(tmp_path_factory):
    """A step that diverges; a gradient of a rank below r."""
    point = saved_points("theorem4", "trajectory", tmp_path_factory)[0]
    assert trajectories.pair(in_the_case(point)) is not None
    rate = point.case["learning_rate"]
    for times in (1e6, 1e200):  # beyond the first loss over epsilon, and beyond all numbers
        lost = in_the_case(point, learning_rate=np.asarray(times * rate))
        with np.errstate(all="ignore"):
            assert trajectories.pair(lost) is None
            for name in ("weights", "training_loss", "top_directions", "sum_excess", "sum_rank"):
                assert trajectories.CLAIMS["trajectory"][name](lost) is None
    alike = {name: np.ones_like(point.case[name]) for name in ("data.0", "data.1")}
    tied = in_the_case(point, **alike)  # of inputs that are all alike the gradient has rank 1
    assert point.case["rank"] > 1
    assert trajectories.pair(tied) is None


@pytest.mark.parametrize(
    ("squares", "decay", "wanted"), [([9.0, 6.0, 5.0, 4.9], 2.0, 9.0), ([9.0, 6.0, 2.0], 0.5, 18.0)]
)
def test_the_distance_of_an_autoencoder_from_its_minimum(squares, decay, wanted):
    """sigma_1^2 over the decay, or over a gap between the first three, for a code of two."""
    unit = np.eye(2, 4)
    of = minimisers.SavedAutoencoder(unit, decay, unit, unit.T, unit, np.array(squares))
    assert minimisers.of_autoencoder(of) == pytest.approx(wanted)


@pytest.mark.parametrize(("mean", "cancelled"), [(0.5, 1.0), (-3.0, 1.5)])
def test_digits_that_a_loss_loses_to_its_mean(mean, cancelled):
    drawn = masks.MonteCarloMeans(16, mean, 2.0, ONES, (ONES, ONES), ONES)
    assert drawn.cancelled == cancelled
    assert drawn.rounding == 4 * EPS * abs(mean)


def test_a_lost_estimate_is_no_estimate_of_the_right_size(tmp_path_factory):
    """Beyond those that are drawn again, where only their statistics see them."""
    point = saved_points("theorem3", "masks", tmp_path_factory)[0]
    saved = SavedScenario("masks", [point], [])
    limits = [part.residual <= part.limit(0) for part in masks.monte_carlo_rate(point)]
    assert all(limits)
    estimates = point.found["estimates"].copy()
    estimates[0, -1] = NAN
    lost = point._replace(found={**point.found, "estimates": estimates}, memory={})
    computed = referee.redone(masks.monte_carlo_rate, saved._replace(points=[lost]))
    assert not any(at.holds for at in computed)


def test_amplification_is_the_slope_of_the_response():
    """Of ``3 w + w^2`` at 1 it is 5: neither rounding nor the square shows in six digits."""
    layers = [np.ones((3, 3))]
    run = lambda layers: 3 * layers[0] + layers[0] ** 2  # noqa: E731
    noise = descent.disturbed([np.zeros((3, 3))], 1.0)[0]
    found = descent.amplification(run, layers, 1.0, run(layers))
    assert found == pytest.approx(5 * np.abs(noise).max(), rel=2e-6)


def test_a_network_that_has_not_found_the_target_bounds_nothing(tmp_path_factory):
    point = next(
        p
        for p in saved_points("completion", "completion", tmp_path_factory)
        if completion.arrived(p)
    )
    assert list(completion.recovered(point))
    at_the_start = in_the_case(point, steps=np.array([0, 1]))
    assert completion.stable(at_the_start)
    assert not list(completion.recovered(at_the_start))
    assert not list(completion.recovery(at_the_start))


def test_a_run_with_too_large_a_step_is_known_to_diverge(tmp_path_factory):
    point = saved_points("corollary1", "compression", tmp_path_factory)[0]
    diverges = referee.referee_of("corollary1").diverges["compression"]
    assert not diverges(point)
    with np.errstate(all="ignore"):
        assert diverges(in_the_case(point, learning_rate=np.asarray(3.0)))


@pytest.mark.parametrize("losses", [[1.0, 2.0], [1.0, 1e15], [0.0, 1e300], [-1.0, 3.0]])
def test_a_loss_diverges_beyond_its_digits(losses):
    assert not descent.diverged(np.array(losses), EPS)
    for beyond in (NAN, np.inf):
        assert descent.diverged(np.array([losses[0], beyond]), EPS)
    assert descent.diverged(np.array([1.0, 1e8]), float(np.finfo(np.float32).eps))


def test_another_blas_is_named(monkeypatch):
    library = {"name": "openblas", "version": "0.3.30", "architecture": "SkylakeX", "threads": 1}
    here = [{**library, "threads": 8}]
    monkeypatch.setattr(machine, "libraries_here", lambda: here)
    assert machine.another_blas({}) == ""  # of an earlier release
    assert machine.another_blas({"blas": []}) == ""
    assert machine.another_blas({"blas": [library]}) == ""
    other = machine.another_blas({"blas": [{**library, "architecture": "Haswell"}]})
    assert "openblas 0.3.30 Haswell" in other
    assert "OPENBLAS_CORETYPE=Haswell" in other


def test_muons_law_is_computed_again_until_its_run_is_chaotic():
    """By steps of 0.3 all modes arrive early; then rounding turns the layers, and no law holds."""
    rng = np.random.default_rng(0)
    case = {
        "bases": np.linalg.qr(rng.normal(size=(3, 6, 6)))[0],
        "start": rng.uniform(0.05, 0.4, (2, 6)),
        "modes": rng.uniform(0.2, 1.5, 6),
        "moved": np.zeros(()),
        "learning_rate": 0.3,
        "steps": np.arange(201),
    }
    point = made_point(case)
    of, within = equivariance.aligned(point), equivariance.law(point)
    assert of is not None
    assert within is not None
    least = np.arange(201)[:, None, None] * of.rate + of.start
    arrivals = equivariance.first(np.prod(least, axis=1) >= of.modes)
    assert max(arrivals) < within.last < 200
    apart = np.abs(of.dense(of.layers())[200] - of.law(200)[:, None] * np.eye(6)).max()
    assert np.abs(within.dense - within.every[..., None] * np.eye(6)).max() < 1e-10 < 0.01 < apart
