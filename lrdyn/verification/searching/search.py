"""The worst case of a theorem: random points of its domain, and a climb from the worst of them.

Every point has a seed of its own. A batch of points has one combination of shapes and is computed
by programs that are compiled once (:mod:`lrdyn.verification.searching.evaluator`); what was found
of it is kept, so that the same search goes on after a kill, and a longer one from a shorter.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from lrdyn.system.progress import Progress, Silent
from lrdyn.verification.judging.judging import is_test
from lrdyn.verification.judging.outcomes import precisions
from lrdyn.verification.running.configuration import BadInput
from lrdyn.verification.running.evaluate import DATA_DIR, case_arguments
from lrdyn.verification.searching.domains import draw_value, from_unit, to_unit
from lrdyn.verification.searching.evaluator import (
    WIDE,
    Evaluator,
    Point,
    batches_of,
    judge_points,
    points_of,
)
from lrdyn.verification.searching.random_settings import (
    TRIES,
    Settings,
    choose_flags,
    choose_values,
    configure_run,
    draw_shapes,
    point_flags,
    random_generator,
    shape_flags,
)
from lrdyn.verification.stating import claims as judging_claims
from lrdyn.verification.stating import forms
from lrdyn.verification.stating.flags import Flag, option_string
from lrdyn.verification.stating.sources import judges_digest, source_digest
from lrdyn.verification.stating.statement import Claim, Experiment, Scenario
from lrdyn.verification.storing.parts import Store
from lrdyn.verification.storing.results_file import canonical_json, environment

REPEATS = 8
"""Seeds with which a scenario is run at the same settings: one that has settings of its own would
be run at them for every point of the others."""

CLIMBS = 10
"""Points from which a search climbs."""

LOCAL = 0.02
"""Spread around such a point, as a share of each flag's range, of three quarters of those from
which the climb starts; the others lie anywhere."""


class Search(NamedTuple):
    """The experiment that is searched, the number of points, and their range."""

    experiment: Experiment
    points: int
    """Number of points that are drawn."""
    seed: int = 0
    """Seed of the first point; the others follow."""
    held: Mapping[str, list[Any]] = MappingProxyType({})
    """Flags that are drawn from these values alone."""
    dtype: str = "float64"
    """float64 searches float32 beside it."""

    @property
    def name(self) -> str:
        """Name of the results; it is that of a longer search, too, which goes on from here."""
        digest = source_digest(self.experiment), judges_digest(self.experiment)
        words = canonical_json([self.seed, dict(self.held), self.dtype, *digest])
        return hashlib.sha256(words.encode()).hexdigest()[:12]


class DrawnPoint(NamedTuple):
    """A point as a command line asks for it, and as a scenario is run at it."""

    asked: Point
    point: Point


class Record(NamedTuple):
    """Judgements of the claims of a scenario at the points of a batch."""

    scenario: Scenario
    precision: str
    claims: tuple[Claim, ...]
    points: Sequence[DrawnPoint]
    columns: Mapping[str, np.ndarray]
    """See :func:`lrdyn.verification.searching.evaluator.judge_points`."""


# Points ---------------------------------------------------------------------------------------


def combinations(search: Search) -> list[Settings]:
    """The combinations of shapes that the points of a search have.

    Raises:
        BadInput: none has a point that the experiment accepts, or a flag has numbers that are not
            drawn.
    """
    for flag in (*shape_flags(search.experiment), *point_flags(search.experiment)):
        # Numbers are drawn by decades.
        if flag.type is float and (
            min(flag.quick, default=0) < 0 or (flag.domain and flag.domain.high <= 0)
        ):
            raise BadInput(
                f"--search: got {option_string(flag.name)} with numbers below 0, "
                "wanted flags of positive numbers and 0"
            )
    known = draw_shapes(search.experiment, search.seed, 1, dict(search.held))
    if not known:
        # Checked with the usual values of the other flags: the refusal says why.
        configure_run(search.experiment, {name: values[:1] for name, values in search.held.items()})
        raise BadInput("--search: got flags with which no point is accepted, wanted others")
    return known


def draw_points(search: Search, known: Sequence[Settings], n: int) -> list[Point]:
    """The points of the n-th batch, from 0 on: near the quick preset, or one or two flags far."""
    # Random numbers of their own for each batch, so that a longer search repeats those of a shorter
    # one; 0 is the draw of the shapes.
    experiment, rng = search.experiment, random_generator(search.experiment, search.seed, n + 1)
    shape, points = known[n % len(known)], []
    wanted = min(WIDE, search.points - n * WIDE)
    # Not ``while``: an experiment may refuse nearly all points of a combination of shapes.
    for _ in range(TRIES * WIDE):
        if len(points) == wanted:
            break
        settings = (
            shape | draw_point_values(experiment, rng) | choose_values(dict(search.held), rng)
        )
        # All points of a batch have the same shapes.
        settings |= {name: shape[name] for name in shape}
        try:
            run = configure_run(experiment, settings)
        except BadInput:
            continue
        points.append(
            point_from_settings(experiment, run.settings, search.seed + n * WIDE + len(points))
        )
    return points


def draw_point_values(experiment: Experiment, rng: np.random.Generator) -> Settings:
    """One value of every flag that does not decide a shape."""
    flags = point_flags(experiment)
    far = choose_flags(flags, rng) if rng.random() < 0.5 else set()
    others = [f for f in experiment.flags if f.swept and not f.domain and f.quick]
    usual = {f.name: [f.quick[rng.integers(len(f.quick))]] for f in others}
    return usual | {f.name: [draw_value(f, rng, far=f.name in far)] for f in flags}


def point_from_settings(experiment: Experiment, settings: Mapping[str, Any], seed: int) -> Point:
    """Convert settings with one value each to a point."""
    swept = {f.name for f in experiment.flags if f.swept and f.type != "array"}
    known = {n: v[0] if n in swept else v for n, v in settings.items() if n != DATA_DIR}
    return known | {"seed": seed}


def words_of(point: Point) -> list[str]:
    """The words of the command line that asks for a point."""
    settings = {n: v for n, v in point.items() if n != "seed" and v is not None}
    flags = [w for n, v in settings.items() for w in (f"--{n.replace('_', '-')}", str(v))]
    return ["--seed", str(point["seed"]), *flags]


class Once:
    """Leaves out points at which a scenario has been run already, beyond a few seeds."""

    def __init__(self, experiment: Experiment):
        self.experiment, self.times_drawn = experiment, Counter()

    def points(self, scenario: Scenario, asked: Sequence[Point]) -> list[DrawnPoint]:
        """The points of a scenario that have not been run often enough yet."""
        fresh = []
        for asked_point in asked:
            for point in points_of(self.experiment, scenario, asked_point):
                settings = {name: v for name, v in point.items() if name != "seed"}
                key = canonical_json([scenario.id, case_arguments(scenario, settings)])
                self.times_drawn[key] += 1
                if self.times_drawn[key] <= REPEATS:
                    fresh.append(DrawnPoint(asked_point, point))
        return fresh


# Batches --------------------------------------------------------------------------------------


class Court:
    """Computes and judges batches, and stores the judgements."""

    def __init__(self, search: Search, evaluator: Evaluator, store: Store | None):
        self.search, self.evaluator, self.store = search, evaluator, store

    @cached_property
    def made_by(self) -> list[Any]:
        """Everything that decides the judgements, besides the points."""
        record = environment(self.search.dtype)
        return [self.search.name, *(record[name] for name in ("jax", "jaxlib", "numpy"))]

    def record(
        self,
        scenario: Scenario,
        precision: str,
        claims: Sequence[Claim],
        points: Sequence[DrawnPoint],
    ) -> Record:
        """Judge claims at points that share a program, or read the judgements from the store."""
        words = [*self.made_by, scenario.id, precision, [c.id for c in claims]]
        words += [dict(drawn_point.point) for drawn_point in points]
        # A number, a dash and the digest: parts have such names, and ``parts.clear`` removes no
        # other.
        key = "0-" + hashlib.sha256(canonical_json(words).encode()).hexdigest()[:20]
        columns = self.store.load(key) if self.store else None
        if columns is None:
            (results,) = self.evaluator.results(
                scenario, precision, [drawn_point.point for drawn_point in points]
            )
            columns = judge_points(scenario, claims, results, precision)
            if self.store:
                self.store.save(key, columns)
        return Record(scenario, precision, tuple(claims), points, columns)


def single_case_claims(scenario: Scenario) -> list[Claim]:
    """The claims of a scenario about single cases; those over seeds have no worst case."""
    return [claim for claim in scenario.claims if not claim.seeds]


def cut_batches(
    experiment: Experiment, scenario: Scenario, points: Sequence[DrawnPoint]
) -> Iterator[list[DrawnPoint]]:
    """Cut points into batches that share a program."""
    # By identity, for several commands can ask for equal points of a scenario.
    places = {id(drawn_point.point): drawn_point for drawn_point in points}
    for batch in batches_of(experiment, scenario, [drawn_point.point for drawn_point in points]):
        yield [places[id(point)] for point in batch]


def judge_random_points(search: Search, court: Court, progress: Progress) -> Iterator[Record]:
    """Judge the random points of a search, batch after batch."""
    known, once = combinations(search), Once(search.experiment)
    for n in range(math.ceil(search.points / WIDE)):
        asked = draw_points(search, known, n)
        for scenario in search.experiment.scenarios:
            claims = single_case_claims(scenario)
            points = once.points(scenario, asked)
            for batch in cut_batches(search.experiment, scenario, points) if claims else ():
                for precision in precisions(search.experiment, scenario, search.dtype):
                    yield court.record(scenario, precision, claims, batch)
        progress.advance(len(asked))


# Ratios ---------------------------------------------------------------------------------------


def count_tests(records: Sequence[Record]) -> int:
    """How many statistical tests there were, judged or not."""
    return max(1, sum(len(r.points) for r in records for claim in r.claims if is_test(claim)))


def ratios(record: Record, tests: int) -> tuple[np.ndarray, np.ndarray]:
    """Residual over threshold of claims and points, NaN where left out; and why it is.

    A residual that is no number counts as infinite. All statistical tests share the false alarms of
    one command.
    """
    # Copies: the limits of tests are replaced below, and differ with the number of tests.
    columns = {name: np.array(column) for name, column in record.columns.items()}
    limits, reasons = columns["tolerance"], columns["reason"].astype(object)
    limit = judging_claims.tolerance("statistical", "float64", tests=tests)
    for row, claim in enumerate(record.claims):
        if is_test(claim):
            limits[row] = limit
            blind = (columns["residual"][row] <= limit) & (columns["alternative"][row] <= limit)
            reasons[row] = np.where((reasons[row] == "") & blind, forms.BELOW_SIGHT, reasons[row])
    # An exact claim has tolerance 0; one rounding takes its place, so that the ratio is a number.
    limits = np.where(limits > 0, limits, np.finfo(record.precision).eps)
    over = columns["residual"] / limits
    over = np.where(np.isnan(over), np.inf, over)
    return np.where(reasons == "", over, np.nan), reasons


class WorstCase(NamedTuple):
    """The point at which a claim came nearest to its threshold, or above it."""

    ratio: float
    precision: str
    scenario: Scenario
    claim: Claim
    asked: Point
    point: Point


def worst_cases(records: Sequence[Record], tests: int) -> list[WorstCase]:
    """For each claim, precision and record the worst point, if there is one that was judged."""
    worst = []
    for record in records:
        over, _ = ratios(record, tests)
        for claim, row in zip(record.claims, over, strict=True):
            if not np.all(np.isnan(row)):
                at = int(np.nanargmax(row))
                drawn_point = record.points[at]
                where = record.precision, record.scenario, claim
                worst.append(
                    WorstCase(float(row[at]), *where, drawn_point.asked, drawn_point.point)
                )
    return worst


# Climbing -------------------------------------------------------------------------------------


def climb_starts(worst: Sequence[WorstCase]) -> list[WorstCase]:
    """Ten points to climb from: the worst of each claim, then their second worst, and so on.

    A statistical claim would climb to the seed's luck, and a count has no slope.
    """
    rows = [w for w in worst if w.claim.kind != "statistical" and w.claim.kind != "exact"]
    # From 0 there is no slope to climb, and from infinity nothing higher.
    rows = sorted((w for w in rows if 0 < w.ratio < np.inf), key=lambda w: -w.ratio)
    place: Counter = Counter()
    ranked = []
    for row in rows:
        place[row.claim.id] += 1
        ranked.append((place[row.claim.id], -row.ratio, row))
    return [row for *_, row in sorted(ranked, key=lambda each: each[:2])[:CLIMBS]]


def generations(points: int) -> int:
    """Generations of a climb: all climbs together take about as many points as were drawn."""
    return max(1, min(12, points // (WIDE * CLIMBS)))


def traced_flags(search: Search, start: WorstCase) -> list[Flag]:
    """Flags that a climb may change: numbers of the case that decide no shape."""
    mine = case_arguments(start.scenario, dict(start.point))
    return [
        flag
        for flag in point_flags(search.experiment)
        if flag.name not in search.held
        and flag.name in mine
        and mine[flag.name] == start.asked[flag.name]
    ]


def climb(
    search: Search,
    start: WorstCase,
    number: int,
    over: Callable[[Sequence[DrawnPoint]], np.ndarray],
    most: int,
) -> None:
    """Differential evolution from a point: every generation is a batch of one program.

    Args:
        search: what is searched.
        start: where the climb begins.
        number: of the climb, from which its random numbers come.
        over: ratios at points, 0 where nothing is judged; it keeps what it finds.
        most: generations behind the first.
    """
    from scipy.optimize import differential_evolution  # half a second: not at import

    flags = traced_flags(search, start)
    if not flags:
        return
    # Beyond the numbers of all batches, which are below 2^31.
    rng = random_generator(search.experiment, search.seed, 2**31 + number)
    place = np.array([to_unit(flag, start.asked[flag.name]) for flag in flags])
    first = place + LOCAL * rng.standard_normal((WIDE, len(flags)))
    # A quarter begins anywhere, lest all of them share one hill; the point itself is one of them.
    first[WIDE * 3 // 4 :] = rng.random((WIDE - WIDE * 3 // 4, len(flags)))
    first[0] = place

    def lost(places: np.ndarray) -> np.ndarray:
        """Minus the ratio at each place of a generation; 0 where it is not judged."""
        points, found = {}, np.zeros(places.shape[1])
        for column, at in enumerate(places.T):
            # None where the experiment refuses it; no point where the scenario is not concerned.
            asked = move_point(search, flags, start.asked, at)
            if asked is None:
                continue
            for point in points_of(search.experiment, start.scenario, asked)[:1]:
                points[column] = DrawnPoint(asked, point)
        if points:
            found[list(points)] = -over(list(points.values()))
        return found

    differential_evolution(
        lost,
        [(0.0, 1.0)] * len(flags),
        init=np.clip(first, 0.0, 1.0),  # pyright: ignore[reportArgumentType]
        maxiter=most,
        # No early end and no gradient steps; "deferred" hands over a generation at a time, a batch.
        tol=0.0,
        polish=False,
        updating="deferred",
        vectorized=True,
        **rng_argument(rng),
    )


def rng_argument(rng: np.random.Generator) -> dict[str, Any]:
    """The argument by which SciPy takes random numbers; releases before 1.15 call it ``seed``."""
    import inspect

    from scipy.optimize import differential_evolution

    named = inspect.signature(differential_evolution).parameters
    return {"rng" if "rng" in named else "seed": rng}


def move_point(
    search: Search, flags: Sequence[Flag], asked: Point, place: np.ndarray
) -> Point | None:
    """A point with other values of some flags; none where the experiment refuses it."""
    values = {f.name: from_unit(f, float(x)) for f, x in zip(flags, place, strict=True)}
    point = {**asked, **values}
    try:
        for scenario in search.experiment.scenarios:
            for swept in points_of(search.experiment, scenario, point):
                search.experiment.check(swept)
    except ValueError:
        return None
    return point


def run_search(
    search: Search,
    evaluator: Evaluator,
    store: Store | None = None,
    progress: Progress | None = None,
) -> list[Record]:
    """Search: judge random points, and climb from the worst of them."""
    progress = progress or Silent()
    court = Court(search, evaluator, store)
    progress.expect(search.points)
    records = list(judge_random_points(search, court, progress))
    several = climb_starts(worst_cases(records, count_tests(records)))
    for number, start in enumerate(several):
        progress.during(0.0, f"climb {number + 1} of {len(several)}")

        def over(points: Sequence[DrawnPoint], start: WorstCase = start) -> np.ndarray:
            record = court.record(start.scenario, start.precision, [start.claim], points)
            records.append(record)
            # SciPy compares numbers: a point that is not judged is the worst for it, infinity the
            # best. One test: the number of all of them changes as the climb goes on, and would move
            # the hill.
            return np.nan_to_num(ratios(record, 1)[0][0], nan=0.0, posinf=1e300)

        climb(search, start, number, over, generations(search.points))
    return records


# Summary --------------------------------------------------------------------------------------


class Summary(NamedTuple):
    """Summary of a search for one claim."""

    claim: Claim
    judged: int
    excused: int
    """Cases that meet all hypotheses and could not be judged."""
    outside: int
    """Cases that do not meet the hypotheses, or are trivial."""
    reasons: Mapping[str, int]
    """Reasons for which cases were left out, and how often."""
    worst: Mapping[str, WorstCase]
    """Precision -> its worst point."""

    @property
    def largest(self) -> WorstCase | None:
        """The worst case over both precisions."""
        return max(self.worst.values(), key=lambda w: w.ratio, default=None)


def summary(search: Search, records: Sequence[Record]) -> list[Summary]:
    """Summaries of a search for every claim, in the order of the theorem."""
    tests, rows = count_tests(records), []
    worst = worst_cases(records, tests)
    for scenario in search.experiment.scenarios:
        for claim in single_case_claims(scenario):
            reasons, excused = Counter(), 0
            for record in records:
                if claim in record.claims:
                    row = record.claims.index(claim)
                    why = ratios(record, tests)[1][row]
                    reasons.update(why.tolist())
                    open_ones = ~np.isin(why, ["", forms.TRIVIAL])
                    excused += int(np.sum(record.columns["applies"][row] & open_ones))
            done = reasons.pop("", 0)
            mine = [w for w in worst if w.claim is claim]
            largest = {
                p: max((w for w in mine if w.precision == p), key=lambda w: w.ratio)
                for p in dict.fromkeys(w.precision for w in mine)
            }
            outside = sum(reasons.values()) - excused
            rows.append(Summary(claim, done, excused, outside, dict(reasons), largest))
    return rows
