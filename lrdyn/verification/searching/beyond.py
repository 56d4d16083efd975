"""Beyond the hypotheses: which of them a claim cannot do without, and where it fails.

A hypothesis is lost where the flags leave it (the experiment refuses such settings, or a claim
leaves such cases out), where a control moves a case away from it, and where a formula goes without
it. A point says something of a hypothesis if it is the only one that is lost there.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lrdyn.core.checks import OutsideDomain
from lrdyn.system.progress import Progress, Silent
from lrdyn.verification.judging import judging
from lrdyn.verification.judging.judging import is_test
from lrdyn.verification.judging.outcomes import outcomes, precisions
from lrdyn.verification.running.configuration import BadInput
from lrdyn.verification.running.produce import group_by_settings
from lrdyn.verification.searching.evaluator import WIDE, Evaluator, Point, points_of
from lrdyn.verification.searching.random_settings import (
    SHAPES,
    TRIES,
    Settings,
    choose_values,
    configure_run,
    random_generator,
)
from lrdyn.verification.searching.search import (
    Court,
    DrawnPoint,
    Once,
    Search,
    WorstCase,
    climb,
    combinations,
    cut_batches,
    draw_point_values,
    point_from_settings,
    single_case_claims,
)
from lrdyn.verification.stating import claims as judging_claims
from lrdyn.verification.stating import forms
from lrdyn.verification.stating.mistakes import first_line
from lrdyn.verification.stating.statement import Claim, Control, Experiment, Outcome, Scenario
from lrdyn.verification.storing.parts import Store
from lrdyn.verification.storing.results_file import canonical_json

if TYPE_CHECKING:
    import xarray

NO_LOSS = (forms.TRIVIAL, forms.BELOW_SIGHT, judging.TOO_FEW_SEEDS)
"""Reasons for leaving a case out that are not hypotheses."""

RAISED = (ValueError, TypeError, ZeroDivisionError, IndexError)
"""Exceptions that a function raises for shapes for which it was not written."""


class Case(NamedTuple):
    """A claim at a point, judged whatever hypotheses are lost there."""

    claim: Claim
    lost: list[str]
    """Hypotheses that are not met."""
    precision: str
    ratio: float
    """Residual over threshold, infinite where there is no number."""
    condition: float
    place: int
    """Index of its point in the batch."""
    asked: Point
    reached: int = 0
    """How many points were tried up to it."""


class Edge(NamedTuple):
    """What the loss of a hypothesis costs a claim in one precision."""

    claim: Claim
    hypothesis: str
    precision: str
    points: int
    fails: int
    """Points at which the claim fails."""
    worst: Case
    """The case with the largest finite ratio; one without a number if no ratio is finite."""
    least: float
    """The smallest condition with which it fails."""
    found_after: int | None
    """How many points were tried up to the first at which it fails."""


class Unrun(NamedTuple):
    """Shapes at which a scenario cannot be run."""

    scenario: str
    hypothesis: str
    why: str
    asked: Point


def drop_check(experiment: Experiment) -> Experiment:
    """A copy of an experiment that accepts all combinations of its flags."""
    return replace(experiment, check=lambda point: None)


def refusal(experiment: Experiment, asked: Point) -> str:
    """The experiment's message when it refuses a point; empty if it accepts it."""
    settings = {n: [v] for n, v in asked.items() if n != "seed" and v is not None}
    try:
        configure_run(experiment, settings)
    except BadInput as error:
        return str(error).rpartition("wanted ")[2]
    return ""


def combinations_beyond(search: Search) -> list[Settings]:
    """Combinations of shapes that the experiment accepts and refuses, in turn.

    The refused ones differ in their reason, as far as there are several reasons.
    """
    # Half inside and half outside: a claim that also fails inside says nothing of a hypothesis.
    free, half = search._replace(experiment=drop_check(search.experiment)), SHAPES // 2
    inside: list[Settings] = []
    outside: dict[str, list[Settings]] = {}
    for more in range(TRIES):
        for combination in combinations(free._replace(seed=search.seed + more)):
            settings = configure_run(free.experiment, combination).settings
            refused = refusal(
                search.experiment, point_from_settings(free.experiment, settings, search.seed)
            )
            several = outside.setdefault(refused, []) if refused else inside
            if combination not in several:
                several.append(combination)
    refused = [
        combination
        for several in zip_longest(*outside.values())
        for combination in several
        if combination
    ]
    pairs = zip_longest(inside[:half], refused[:half])
    return [combination for pair in pairs for combination in pair if combination is not None]


def draw_beyond(search: Search, known: Sequence[Settings], n: int) -> list[Point]:
    """The points of the n-th batch, among them those that the experiment refuses."""
    free = drop_check(search.experiment)
    rng, shape = random_generator(free, search.seed, n + 1), known[n % len(known)]
    points = []
    for k in range(min(WIDE, search.points - n * WIDE)):
        # The shape last, for all points of a batch share one program.
        settings = draw_point_values(free, rng) | choose_values(dict(search.held), rng) | shape
        points.append(
            point_from_settings(
                free, configure_run(free, settings).settings, search.seed + n * WIDE + k
            )
        )
    return points


def lost_hypotheses(claim: Claim, scenario: Scenario, outcome: Outcome, limit: float) -> list[str]:
    """The hypotheses that a case does not meet: of the scenario, and of the claim."""
    lost = [name for name, met in outcome.hypotheses.items() if not np.all(met)]
    with np.errstate(all="ignore"):
        try:
            lost += judging.reasons_against(claim, scenario, outcome, limit)
        except OutsideDomain:
            lost.append("no numbers")
    return [why for why in dict.fromkeys(lost) if why not in NO_LOSS]


def ratio_beyond(claim: Claim, row: judging.Row) -> float:
    """Residual over threshold, where an ill-conditioned case must keep two digits.

    A larger threshold would accept results without a correct digit.
    """
    limit = min(row.tolerance, judging_claims.RESOLVED) if claim.condition else row.tolerance
    ratio = row.residual / limit if limit > 0 else row.residual / np.finfo(np.float64).eps
    return np.inf if np.isnan(ratio) else float(ratio)


def judge_cases(
    scenario: Scenario,
    claim: Claim,
    dataset: "xarray.Dataset",
    precision: str,
    points: Sequence[DrawnPoint],
    *,
    dropped: str = "",
) -> Iterator[Case]:
    """A claim at points, judged whatever is lost; ``dropped`` is what the formula goes without."""
    every = zip(points, outcomes(claim, scenario, dataset, precision), strict=True)
    for place, (drawn, outcome) in enumerate(every):
        # A wrong formula must fail, as a control must; whether it could have passed is no question
        # then.
        row = judging.row_of(claim, scenario, outcome, power=not dropped)
        if row.reason not in NO_LOSS:
            lost = lost_hypotheses(claim, scenario, outcome, row.tolerance)
            lost += [dropped] if dropped else []
            ratio = ratio_beyond(claim, row)
            yield Case(claim, lost, precision, ratio, row.condition, place, drawn.asked)


def hypothesis_controls(scenario: Scenario, precision: str) -> list[tuple[Control, ...]]:
    """Controls that break a hypothesis of claims about single cases, grouped by program."""
    about_single_cases = {claim.id for claim in single_case_claims(scenario) if not is_test(claim)}
    leaving = [
        c for c in scenario.controls if c.claim in about_single_cases and (c.breaks or c.drops)
    ]
    return group_by_settings([c for c in leaving if c.shows_in(precision)])


def control_points(
    experiment: Experiment, scenario: Scenario, control: Control, batch: Sequence[DrawnPoint]
) -> list[DrawnPoint]:
    """Points with the shapes at which a control runs, and what else it fixes."""
    deciding = [flag for flag in experiment.flags if flag.shapes or not flag.swept]
    shapes = {f.name: f.quick[0] if f.quick else None for f in deciding}
    shapes |= {n: v for n, v in scenario.at.items() if n in shapes}
    return [DrawnPoint(point.asked, {**point.point, **shapes, **control.at}) for point in batch]


def judge_beyond(
    search: Search,
    evaluator: Evaluator,
    scenario: Scenario,
    precision: str,
    batch: Sequence[DrawnPoint],
) -> Iterator[Case]:
    """Judge the claims of a scenario at points, whichever hypotheses the flags break."""
    refused = [refusal(search.experiment, drawn.asked) for drawn in batch]
    (plain,) = evaluator.results(scenario, precision, [drawn.point for drawn in batch])
    for claim in single_case_claims(scenario):
        if not is_test(claim):
            for case in judge_cases(scenario, claim, plain, precision, batch):
                lost = [*case.lost, refused[case.place]]
                yield from keep_single_loss(case._replace(lost=[why for why in lost if why]))


def judge_controls(
    search: Search,
    evaluator: Evaluator,
    scenario: Scenario,
    precision: str,
    batch: Sequence[DrawnPoint],
) -> Iterator[Case]:
    """Judge the claims of controls, which move a case away from a hypothesis or drop it."""
    for controls in hypothesis_controls(scenario, precision) if scenario.traced else ():
        points = control_points(search.experiment, scenario, controls[0], batch)
        refused = [refusal(search.experiment, point.point) for point in points]
        every = evaluator.results(scenario, precision, [point.point for point in points], controls)
        for control, dataset in zip(controls, every, strict=True):
            claim = judging.claim_of(control, scenario)
            for case in judge_cases(
                scenario, claim, dataset, precision, points, dropped=control.drops
            ):
                if not refused[case.place]:
                    yield from keep_single_loss(case)


def keep_single_loss(case: Case) -> Iterator[Case]:
    """The case, if exactly one of its hypotheses does not hold."""
    if len(case.lost) == 1:
        yield case


Judge = Callable[[Search, Evaluator, Scenario, str, Sequence[DrawnPoint]], Iterator[Case]]


class BatchJudge:
    """Judges batches, and stores the judged cases."""

    def __init__(self, search: Search, evaluator: Evaluator, store: Store | None):
        self.search, self.evaluator, self.store = search, evaluator, store
        self.made_by = Court(search, evaluator, store).made_by

    def cases(
        self, judge: Judge, scenario: Scenario, precision: str, batch: Sequence[DrawnPoint]
    ) -> list[Case]:
        """The judged cases of a batch, from the store if they are there."""
        words = [*self.made_by, judge.__name__, scenario.id, precision]
        words += [dict(drawn.point) for drawn in batch]
        key = "0-" + hashlib.sha256(canonical_json(words).encode()).hexdigest()[:20]
        known = {claim.id: claim for claim in scenario.claims}
        columns = self.store.load(key) if self.store else None
        if columns is None:
            judged = list(judge(self.search, self.evaluator, scenario, precision, batch))
            if self.store:
                self.store.save(key, _arrays(judged))
            return judged
        rows = zip(*(columns[name].tolist() for name in KEPT), strict=True)
        return [
            Case(known[claim], [lost], precision, ratio, condition, place, batch[place].asked)
            for claim, lost, ratio, condition, place in rows
        ]


KEPT = ("claim", "lost", "ratio", "condition", "place")


def _arrays(cases: Sequence[Case]) -> dict[str, np.ndarray]:
    """Convert cases to arrays, one for each column of the store."""
    rows = [(c.claim.id, c.lost[0], c.ratio, c.condition, c.place) for c in cases]
    columns = zip(*rows, strict=True) if rows else ((),) * len(KEPT)
    types = ("U", "U", float, float, int)
    return {
        n: np.asarray(column, kind)
        for n, column, kind in zip(KEPT, map(list, columns), types, strict=True)
    }


def count_climbs(points: int) -> int:
    """On how many climbs of two generations a quarter of the points goes.

    Example:
        >>> [count_climbs(points) for points in (64, 511, 512, 2000)]
        [0, 0, 1, 3]
    """
    return points // 4 // (2 * WIDE)


def search_beyond(
    search: Search,
    evaluator: Evaluator,
    store: Store | None = None,
    progress: Progress | None = None,
) -> tuple[list[Edge], list[Unrun]]:
    """Find which claims need which hypotheses, at random points and on climbs.

    A search climbs where ill-conditioning costs a claim most, if it cost it no digit that is asked
    for at a random point: such cases are rare, and how ill they are is a matter of degree.
    """
    progress = progress or Silent()
    progress.expect(search.points)
    random = search.points - 2 * WIDE * count_climbs(search.points)
    free = search._replace(experiment=drop_check(search.experiment), points=random)
    once, known = Once(free.experiment), combinations_beyond(search)
    keeper, cases = BatchJudge(search, evaluator, store), []
    unrun: dict[tuple[str, str], Unrun] = {}
    for n in range(-(-random // WIDE)):
        asked = draw_beyond(free, known, n)
        for scenario in free.experiment.scenarios:
            points = once.points(scenario, asked) if single_case_claims(scenario) else []
            for batch in cut_batches(free.experiment, scenario, points):
                for precision in precisions(free.experiment, scenario, search.dtype):
                    try:
                        cases += keeper.cases(judge_beyond, scenario, precision, batch)
                    except RAISED as error:
                        lost = refusal(search.experiment, batch[0].asked)
                        if not lost:
                            raise
                        why = f"{type(error).__name__}: {first_line(error)}"
                        failure = Unrun(scenario.id, lost, why, batch[0].asked)
                        unrun.setdefault((scenario.id, lost), failure)
                    cases += keeper.cases(judge_controls, scenario, precision, batch)
        progress.advance(len(asked))
    cases = [case._replace(reached=case.asked["seed"] - search.seed + 1) for case in cases]
    for number, start in enumerate(find_ill_conditioned(search.experiment, cases)):
        if number == count_climbs(search.points):
            break
        progress.during(0.0, f"climb {number + 1}")
        cases += climb_condition(search, keeper, start, number, random + 2 * WIDE * number)
    return edges(cases), list(unrun.values())


def find_ill_conditioned(experiment: Experiment, cases: Sequence[Case]) -> Iterator[WorstCase]:
    """Find ill-conditioned cases to climb from, worst first, of claims that none of them fails."""
    groups: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        if case.lost == [judging.ILL_CONDITIONED]:
            groups.setdefault((case.claim.id, case.precision), []).append(case)
    scenarios = {claim.id: s for s in experiment.scenarios for claim in s.claims}
    worst = (max(several, key=lambda case: case.ratio) for several in groups.values())
    for case in sorted((case for case in worst if case.ratio <= 1), key=lambda case: -case.ratio):
        scenario = scenarios[case.claim.id]
        point = points_of(experiment, scenario, case.asked)[0]
        yield WorstCase(case.ratio, case.precision, scenario, case.claim, case.asked, point)


def climb_condition(
    search: Search, keeper: BatchJudge, start: WorstCase, number: int, before: int
) -> list[Case]:
    """Climb two generations from an ill-conditioned case, and return the cases of its claim.

    Args:
        search: what is searched.
        keeper: judges, and keeps what was judged.
        start: where the climb begins.
        number: of the climb.
        before: how many points were tried before it.
    """
    cases: list[Case] = []
    tried = before

    def over(points: Sequence[DrawnPoint]) -> np.ndarray:
        nonlocal tried
        judged = keeper.cases(judge_beyond, start.scenario, start.precision, points)
        ratios = np.zeros(len(points))
        for case in judged:
            if case.claim.id == start.claim.id and case.lost == [judging.ILL_CONDITIONED]:
                ratios[case.place] = min(case.ratio, 1e300)
                cases.append(case._replace(reached=tried + case.place + 1))
        tried += len(points)
        return ratios

    climb(search, start, number, over, 1)
    return cases


def edges(cases: Sequence[Case]) -> list[Edge]:
    """Group cases by claim, hypothesis and precision, failing claims first."""
    groups: dict[tuple[str, str, str], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.lost[0], case.claim.id, case.precision), []).append(case)
    rows = []
    for several in groups.values():
        fails = [case for case in several if case.ratio > 1]
        finite = [case for case in several if np.isfinite(case.ratio)]
        worst = max(
            [case for case in finite if case.ratio > 1] or fails or finite, key=lambda c: c.ratio
        )
        least = min((case.condition for case in fails), default=np.inf)
        first = min((case.reached for case in fails), default=None)
        where = worst.claim, worst.lost[0], worst.precision
        rows.append(Edge(*where, len(several), len(fails), worst, least, first))
    return sorted(rows, key=lambda row: (not row.fails, row.hypothesis, row.claim.id))
