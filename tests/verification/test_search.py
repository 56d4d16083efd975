"""The search for the worst case: faults that no preset sees, what it says, how it goes on."""

import dataclasses
import json
import math
import re
from collections import Counter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

from lrdyn import cli
from lrdyn.commands import search as search_command
from lrdyn.corollary1.statement import COROLLARY1
from lrdyn.system.progress import Silent
from lrdyn.theorem2.statement import THEOREM2
from lrdyn.verification.running.configuration import BadInput
from lrdyn.verification.running.produce import jobs_of, produce
from lrdyn.verification.searching.beyond import hypothesis_controls
from lrdyn.verification.searching.domains import draw_value, from_unit, to_unit
from lrdyn.verification.searching.evaluator import Evaluator
from lrdyn.verification.searching.search import (
    REPEATS,
    Court,
    Once,
    Search,
    climb_starts,
    combinations,
    count_tests,
    draw_points,
    judge_random_points,
    ratios,
    run_search,
    summary,
    worst_cases,
)
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.flags import FRACTION, Domain, Flag, at_least, between
from lrdyn.verification.stating.forms import AtMost, Test
from lrdyn.verification.stating.statement import Claim, Scenario, Theorem

pytestmark = pytest.mark.tools


class Cube(NamedTuple):
    """The cubes of a vector, and a number."""

    cube: Float[Array, "index"] = ABSENT
    """rate^3 times the vector."""
    bound: Float[Array, ""] = ABSENT
    """What a number stays below."""
    number: Float[Array, ""] = ABSENT
    """That number."""
    p: Float[Array, ""] = ABSENT
    """Uniform between 0 and 1."""


def make_case(key, *, size, rate, shift):
    start, chance = jax.random.split(key)
    vector = jax.random.uniform(start, (size,), minval=1.0, maxval=2.0)
    return {"vector": vector, "rate": rate, "shift": shift, "p": jax.random.uniform(chance)}


def measure(case):
    cube = case["rate"] * (case["rate"] * (case["rate"] * case["vector"]))
    return Cube(cube=cube, number=case["rate"] + case["shift"], p=case["p"])


def right(case):
    return Cube(cube=case["rate"] ** 3 * case["vector"], bound=2 * case["rate"])


def wrong_at_the_end(case):
    factor = jnp.where(case["rate"] > 1e4, 1.001, 1.0)
    return Cube(cube=factor * case["rate"] ** 3 * case["vector"], bound=2 * case["rate"])


CUBED = Claim[Cube, Cube](
    "cubed", "x^3 = x x x", compares=lambda theory, run: (theory.cube, run.cube)
)
BELOW = Claim[Cube, Cube](
    "below",
    "x + y <= 2 x if y <= x",
    "bound",
    form=lambda outcome: AtMost(outcome.measured.number, outcome.predicted.bound),
    reads=lambda theory, run: (run.number, theory.bound),
    applies=lambda outcome: outcome.measured.number <= outcome.predicted.bound,
)
CHANCE = Claim[Cube, Cube](
    "chance",
    "p is uniform",
    "statistical",
    form=lambda outcome: Test(float(outcome.measured.p), 1e-30),
    reads=lambda theory, run: (run.p,),
)
FLAGS = (
    Flag("size", (2, 3), at_least(1), int, "n", "entries", shapes=True),
    Flag("rate", (0.5, 2.0), between(1e-6, 1e6), float, "x", "what is cubed"),
    Flag("shift", (0.1,), between(1e-3, 1e3), float, "y", "what is added"),
)


def theorem(predict, *claims, **others):
    scenario = Scenario(
        "cubes", make_case, predict, measure, theory=Cube, measured=Cube, claims=claims
    )
    return Theorem("cubes", "powers", FLAGS, (scenario,), **others)


RIGHT = theorem(right, CUBED)
FAULTY = theorem(wrong_at_the_end, CUBED)


@pytest.fixture(autouse=True)
def _double(monkeypatch):
    monkeypatch.setenv("LRDYN_CACHE", "")
    with jax.enable_x64(True):
        yield


def found_in(folder):
    (file,) = folder.glob("cubes/search-*/search.json")
    return json.loads(file.read_text())


# Faults -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
def test_a_fault_at_the_end_of_a_range_is_found_by_the_search_and_by_no_preset(tmp_path, capsys):
    for preset in ("quick", "paper"):
        assert cli.main(FAULTY, ["--preset", preset, "--out", str(tmp_path)]) == 0
    assert cli.main(FAULTY, ["--search", "64", "--out", str(tmp_path)]) == 1
    (entry,) = found_in(tmp_path)["claims"]
    assert entry["ratios"]["float64"] > 1e9
    assert not found_in(tmp_path)["holds"]
    said = capsys.readouterr().out
    assert entry["command"] in said
    assert "\nABOVE ITS THRESHOLD: cubed\n" in said
    assert cli.main(RIGHT, ["--search", "64", "--out", str(tmp_path / "right")]) == 0
    assert "\nnothing is above its threshold\n" in capsys.readouterr().out


def test_the_command_that_is_printed_gives_the_ratio_that_is_printed(tmp_path):
    cli.main(RIGHT, ["--search", "64", "--out", str(tmp_path)])
    (entry,) = found_in(tmp_path)["claims"]
    _, words = entry["command"].split("lrdyn verify cubes ")
    assert cli.main(RIGHT, [*words.split(), "--out", str(tmp_path / "again")]) == 0
    (file,) = (tmp_path / "again").glob("cubes/*/verdict.json")
    (claim,) = json.loads(file.read_text())["claims"]
    assert entry["repeated"] > 0
    assert claim["residual"] / claim["tolerance"] == entry["repeated"]


@pytest.mark.usefixtures("unchecked")
def test_a_climb_finds_a_fault_between_the_points_that_are_drawn():
    """A slope that points to a place: no point that is drawn is nearer than one of the climb."""

    def peaked(case):
        near = jnp.exp(-((jnp.log10(case["rate"]) - 2.2) ** 2) / 0.5)
        return Cube(cube=(1 + 1e-12 * near) * case["rate"] ** 3 * case["vector"])

    search = Search(theorem(peaked, CUBED), 2 * 64)
    evaluator = Evaluator(search.experiment)
    records = run_search(search, evaluator)
    court = Court(search, evaluator, None)
    first = list(judge_random_points(search, court, Silent()))
    before = max(worst.ratio for worst in worst_cases(first, 1))
    assert len(records) > len(first)
    assert max(worst.ratio for worst in worst_cases(records, 1)) > before


def test_a_climb_goes_through_points_with_which_a_scenario_is_not_concerned():
    (scenario,) = RIGHT.scenarios

    def narrow(settings):
        return settings | {"rate": tuple(rate for rate in settings["rate"] if rate > 1)}

    narrowed = (dataclasses.replace(scenario, narrow=narrow),)
    search = Search(dataclasses.replace(RIGHT, scenarios=narrowed), 64)
    records = run_search(search, Evaluator(search.experiment))
    rates = [drawn_point.asked["rate"] for record in records for drawn_point in record.points]
    assert min(rates) > 1
    assert {len(record.points) for record in records} > {64}  # some generations are whole


# Going on ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
def test_a_search_goes_on_after_a_kill_and_a_longer_one_from_a_shorter(tmp_path, monkeypatch):
    computed, most = [], [3]
    whole = Evaluator.results

    def counted(self, scenario, precision, points, controls=()):
        computed.append(len(points))
        if len(computed) > most[0]:
            raise KeyboardInterrupt
        return whole(self, scenario, precision, points, controls)

    monkeypatch.setattr(Evaluator, "results", counted)
    words = ["--search", "128", "--size", "2", "--out", str(tmp_path / "killed")]
    assert cli.main(RIGHT, words) == 130
    most[0] = 10**6
    computed.clear()
    assert cli.main(RIGHT, words) == 0
    rest = len(computed)
    computed.clear()
    assert cli.main(RIGHT, [*words[:-1], str(tmp_path / "whole")]) == 0
    assert rest == len(computed) - 3
    one, other = found_in(tmp_path / "killed"), found_in(tmp_path / "whole")
    assert one["claims"] == other["claims"]
    computed.clear()
    assert cli.main(RIGHT, ["--search", "192", *words[2:]]) == 0
    assert sum(size == 64 for size in computed[:2]) == 2  # the third batch, in two precisions
    assert found_in(tmp_path / "killed")["points"] == 192


def test_points_of_a_batch_are_those_of_a_grid():
    scenario = RIGHT.scenarios[0]
    rates = (0.5, 2.0, 3.0)
    points = [{"size": 3, "rate": x, "shift": 0.1, "seed": n} for n, x in enumerate(rates)]
    (found,) = Evaluator(RIGHT).results(scenario, "float64", points)
    settings = {"size": (3,), "rate": rates, "shift": (0.1,)}
    grid = produce(RIGHT, settings, seeds=(0, 1, 2))["/"]
    for n, point in enumerate(points):
        same = grid["cube_measured"].sel(seed=n, rate=point["rate"], size=3).values.ravel()
        assert np.allclose(found["cube_measured"].values[n], same, rtol=1e-14)


def test_a_scenario_alone_and_the_first_of_its_theorem_have_programs_of_their_own():
    """A worst point is repeated by its scenario alone, which is then the first of the theorem."""
    first, other = (
        Scenario(name, make_case, right, measure, theory=Cube, measured=Cube, claims=(claim,))
        for name, claim in (("cubes", CUBED), ("others", BELOW))
    )
    settings = {"size": (2,), "rate": (0.5,), "shift": (0.1,)}
    several = (
        Theorem("cubes", "powers", FLAGS, scenarios)
        for scenarios in ((first, other), (first,), (other,))
    )
    whole, same, alone = (
        next(jobs_of(one, settings, "float64", lambda _: (0,), False, False)) for one in several
    )
    assert whole.group == same.group == alone.group == "/"
    assert whole.identity == same.identity != alone.identity


def test_what_was_computed_stays_when_a_search_ends_in_an_error(tmp_path, monkeypatch):
    def refused(*_):
        raise BadInput("rate: got 1, wanted another")

    monkeypatch.setattr(search_command, "repeat_point", refused)
    assert cli.main(RIGHT, ["--search", "64", "--out", str(tmp_path)]) == 2
    assert list(tmp_path.glob("cubes/search-*/parts/*/*.npz"))


# What it says -----------------------------------------------------------------------------------


def test_every_point_is_accepted_and_has_a_seed_of_its_own():
    search = Search(COROLLARY1, 3 * 64, seed=5)
    known = combinations(search)
    points = [point for n in range(3) for point in draw_points(search, known, n)]
    assert [point["seed"] for point in points] == list(range(5, 5 + 192))
    for point in points:
        COROLLARY1.check(point)
    assert draw_points(search, known, 1) == points[64:128]
    held = Search(COROLLARY1, 64, held={"dim": [9], "learning_rate": [0.1, 0.2]})
    found = draw_points(held, combinations(held), 0)
    assert {point["dim"] for point in found} == {9}
    assert {point["learning_rate"] for point in found} == {0.1, 0.2}


def test_a_scenario_with_settings_of_its_own_is_run_with_a_few_seeds():
    once = Once(THEOREM2)
    # The scenario is about descent, whatever optimiser the others are asked for.
    search = Search(THEOREM2, 64, held={"optimizer": ["gradient_descent"]})
    asked = draw_points(search, combinations(search), 0)
    (collapse,) = (one for one in THEOREM2.scenarios if one.id == "collapse")
    found = once.points(collapse, asked)
    depths = Counter(one.point["depth"] for one in found)
    assert len(depths) > 1
    assert set(depths.values()) == {REPEATS}
    assert len(once.points(THEOREM2.scenarios[0], asked)) == len(asked)


def test_statistical_claims_share_their_alarms_over_all_points_and_do_not_climb():
    search = Search(theorem(right, CHANCE), 128)
    records = run_search(search, Evaluator(search.experiment))
    tests = count_tests(records)
    assert tests == 2 * 128
    assert all(len(record.points) == 64 for record in records)
    (one,) = summary(search, records)
    assert one.largest is not None
    largest = max(float(np.max(record.columns["residual"])) for record in records)
    assert one.largest.ratio == pytest.approx(largest / (6 + math.log10(tests)))
    assert climb_starts(worst_cases(records, tests)) == []


def test_cases_are_judged_excused_or_outside(tmp_path):
    search = Search(theorem(right, BELOW), 64)
    records = list(
        judge_random_points(search, Court(search, Evaluator(search.experiment), None), Silent())
    )
    (one,) = summary(search, records)
    assert one.judged + one.excused + one.outside == 128
    assert one.outside == one.reasons["claim does not apply"] > 0
    over, reasons = ratios(records[0], 1)
    assert np.array_equal(np.isnan(over), reasons != "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--beyond"], "--beyond: got it alone, wanted --search N"),
        (["--search", "0"], "--search"),
        (["--search", "5", "--seeds", "2"], "--seeds: got it beside --search"),
        (["--search", "5", "--perturb"], "--perturb"),
    ],
)
def test_what_a_search_has_no_use_for_is_refused(words, said, capsys):
    assert cli.main(COROLLARY1, words) == 2
    assert said in capsys.readouterr().err


def test_flags_with_which_no_point_is_accepted_are_refused(capsys, tmp_path):
    words = ["--search", "5", "--dim", "4", "--rank", "3", "--out", str(tmp_path / "none")]
    assert cli.main(COROLLARY1, words) == 2
    assert "wanted d > 2 rank" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "flag",
    [Flag("share", (-0.5, 0.5), Domain(-1, 1)), Flag("debt", (-0.5,), Domain(high=0))],
    ids=lambda flag: flag.name,
)
def test_numbers_below_0_are_not_searched(flag, capsys, tmp_path, unchecked):
    signed = dataclasses.replace(COROLLARY1, flags=(*COROLLARY1.flags, flag))
    assert cli.main(signed, ["--search", "5", "--out", str(tmp_path)]) == 2
    assert f"--search: got --{flag.name} with numbers below 0" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flag", "drawn"),
    [
        (Flag("dim", (40,), at_least(30), int), {*range(30, 41)}),
        (Flag("dim", (2,), at_least(1), int, most=3), {1, 2, 3}),
        (Flag("tie", (0,), Domain(0, 1, integer=True), int), {0, 1}),
        (Flag("file", ("a", "b"), Domain(text="a path"), str, shapes=True), {"a", "b"}),
    ],
)
def test_far_from_the_usual_every_value_of_a_flag_is_drawn(flag, drawn):
    rng = np.random.default_rng(0)
    assert {draw_value(flag, rng, far=True) for _ in range(300)} == drawn


@pytest.mark.parametrize(
    "flag",
    [
        Flag("rate", (0.1,), between(1e-6, 1e6)),
        Flag("decay", (0.1,), between(1e-6, 1e6, zero=True)),
        Flag("share", (0.5,), FRACTION),
        Flag("rank", (2,), at_least(1), int),
    ],
    ids=lambda flag: flag.name,
)
def test_the_way_through_a_domain_goes_from_end_to_end(flag):
    way = [from_unit(flag, x) for x in np.linspace(0, 1, 101)]
    assert way == sorted(way)
    assert all(map(flag.accepts, way))
    for number in way[10:-10]:
        assert from_unit(flag, to_unit(flag, number)) == pytest.approx(number, rel=1e-5)


# Beyond -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
def test_beyond_names_the_hypothesis_that_a_claim_needs_and_repeats_it(tmp_path, capsys):
    bounded = theorem(right, BELOW)
    assert cli.main(bounded, ["--search", "64", "--beyond", "--out", str(tmp_path)]) == 0
    (file,) = tmp_path.glob("cubes/beyond-*/search.json")
    costly = [edge for edge in json.loads(file.read_text())["edges"] if edge["fails"]]
    assert {edge["hypothesis"] for edge in costly} == {"condition of below"}
    assert {edge["precision"] for edge in costly} == {"float64", "float32"}
    capsys.readouterr()
    words = costly[0]["command"].removeprefix("lrdyn verify cubes ").split()
    assert cli.main(bounded, [*words, "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"condition of below +below +float64 +1/1 ", out), out


@pytest.mark.usefixtures("unchecked")
def test_what_the_flags_may_not_be_is_tried_beyond(tmp_path):
    """The experiment refuses it, and the claim fails there."""

    def check(point):
        if point["rate"] > 1e3:
            raise ValueError(f"--rate: got {point['rate']}, wanted x <= 1000")

    narrow = theorem(wrong_at_the_end, CUBED, check=check)
    assert cli.main(narrow, ["--search", "64", "--out", str(tmp_path)]) == 0
    assert cli.main(narrow, ["--search", "64", "--beyond", "--out", str(tmp_path)]) == 0
    (file,) = tmp_path.glob("cubes/beyond-*/search.json")
    costly = [edge for edge in json.loads(file.read_text())["edges"] if edge["fails"]]
    assert {(edge["claim"], edge["hypothesis"]) for edge in costly} == {("cubed", "x <= 1000")}


@pytest.mark.usefixtures("unchecked")
def test_a_climb_beyond_finds_where_ill_conditioning_costs_a_claim(tmp_path):
    """Between the points that are drawn, in a narrow range of one flag."""

    def disturbed(case):
        away = jnp.log(case["rate"] / 3e4) / 0.02
        error = jnp.where(case["rate"] > 1e3, 0.015 / (1 + away**2), 0.0)
        ill = jnp.where(case["rate"] > 1e3, 1e15, 1.0)
        return Cube(cube=(1 + error) * case["rate"] ** 3 * case["vector"], bound=ill)

    claim = Claim[Cube, Cube](
        "cubed",
        "x^3 = x x x",
        compares=lambda theory, run: (theory.cube, run.cube),
        condition=lambda theory: theory.bound,
    )
    out = str(tmp_path)
    assert cli.main(theorem(disturbed, claim), ["--search", "512", "--beyond", "--out", out]) == 0
    (file,) = tmp_path.glob("cubes/beyond-*/search.json")
    edges = json.loads(file.read_text())["edges"]
    (edge,) = (e for e in edges if e["hypothesis"] == "ill-conditioned" and e["fails"])
    assert 384 < edge["found_after"] <= 512
    assert 1 < edge["ratio"] < 12  # .015 over two digits


@pytest.mark.parametrize("theorem", [THEOREM2, COROLLARY1], ids=lambda theorem: theorem.name)
def test_beyond_goes_every_control_that_breaks_or_drops_a_hypothesis(theorem):
    """But those of claims about all seeds, and those that show in the other precision alone."""
    every = set()
    for scenario in theorem.scenarios:
        about = {claim.id for claim in scenario.claims if not claim.seeds}
        wanted = {
            control.id
            for control in scenario.controls
            if control.claim in about
            and (control.breaks or control.drops)
            and control.precision in ("", "float64")
        }
        found = [
            control.id for group in hypothesis_controls(scenario, "float64") for control in group
        ]
        assert sorted(found) == sorted(wanted)
        every |= wanted
    assert every
