"""GaLore under gradient noise: the schedule by a priority queue, Algorithm 1 by plain loops."""

import heapq
from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from referee.galore import SINGLE, single
from referee.low_rank import RULES, Map
from referee.optimizers import Rule, begun
from referee.redone import EPS, Redone, saved_sides
from referee.results import Point, once

HALF = float(np.sqrt(EPS))
"""Half of the digits of float64."""


class Noisy(NamedTuple):
    """The example, from a saved case."""

    target: np.ndarray
    """D."""
    start: np.ndarray
    signs: np.ndarray
    """zeta_t."""
    noise: float
    """sigma."""
    rate: float
    """eta."""
    rank: int
    period: int
    left: bool

    @property
    def true(self) -> int:
        """How many rows are true, n - r."""
        return len(self.target)

    def gradient(self, X: np.ndarray, sign: float) -> np.ndarray:
        """``grad f + zeta sigma C``."""
        k, G = self.true, np.zeros_like(X)
        G[:k] = X[:k]
        G[:k, :k] += self.target
        G[range(k, len(X)), range(k, len(X))] = sign * self.noise
        return G

    def values(self, X: np.ndarray) -> np.ndarray:
        """s_i, the largest first."""
        k = self.true
        return np.linalg.svd(X[:k, :k] + self.target, compute_uv=False)

    def choose(self, gradient: np.ndarray) -> Map:
        """The r first singular vectors of one side."""
        left, _, right = np.linalg.svd(gradient)
        return Map((left if self.left else right.T)[:, : self.rank], self.left)


def example(point: Point, prefix: str = "") -> Noisy:
    """The example of a point."""
    c = {name.removeprefix(prefix): array for name, array in point.case.items()}
    return Noisy(
        c["target"],
        c["start"],
        c["signs"],
        float(c["noise"]),
        float(c["learning_rate"]),
        int(c["rank"]),
        int(c["period"]),
        point.flags["side"] == "left",
    )


def hypotheses(of: Noisy) -> bool:
    """Noise of one size, and Y = 0."""
    return bool(np.all(np.abs(of.signs) == 1) and not np.any(of.start[: of.true, of.true :]))


# The schedule -----------------------------------------------------------------------------------


class Queue(NamedTuple):
    """What a priority queue makes of the values."""

    values: np.ndarray
    """At each refresh and at the end, the largest first."""
    gap: float
    """Least distance over sigma from another choice."""
    refreshes: int
    """How many took a value, to its end."""


def queue(of: Noisy, values: np.ndarray, refreshes: int) -> Queue:
    """Pop up to r values above sigma at each refresh, push them back smaller.

    Args:
        of: its rank, rate and period.
        values: s_i at the start.
        refreshes: of the run; the schedule itself goes on to its end.
    """
    heap, records, gaps, count = [-s for s in values], [], [], 0
    heapq.heapify(heap)
    while -heap[0] > of.noise or len(records) <= refreshes:
        records.append(sorted((-s for s in heap), reverse=True))
        popped: list[float] = []
        while heap and len(popped) < of.rank and -heap[0] > of.noise:
            popped.append(-heapq.heappop(heap))
        if len(records) <= refreshes:
            from_noise = min(abs(s - of.noise) for s in records[-1])
            from_next = popped[-1] + heap[0] if popped and heap else np.inf
            gaps.append(min(from_noise, from_next) / of.noise)
        count += bool(popped)
        for value in popped:
            # Step by step, as the gradient of 1/2 s^2 is s.
            for _ in range(of.period):
                value -= of.rate * value
            heapq.heappush(heap, -value)
    return Queue(np.array(records[: refreshes + 1]), min(gaps), count)


# Algorithm 1 ------------------------------------------------------------------------------------


class Path(NamedTuple):
    """A run of Algorithm 1."""

    weights: np.ndarray
    """X at each refresh and at the end."""
    moved: np.ndarray
    """Largest change of an entry of the true rows in each step."""


Choose = Callable[[np.ndarray], Map]


def projected(
    of: Noisy, rule: Rule | None = None, keep: bool = False, choose: Choose | None = None
) -> Path:
    """``X <- X + P opt(P^T G)``, or with P on the right."""
    rule, choose = rule or RULES["sgd"](of.rate), choose or of.choose
    X, weights, moved = of.start, [], []
    place, state = Map(None, True), begun(np.zeros(1))
    for t, sign in enumerate(of.signs):
        G = of.gradient(X, sign)
        if t % of.period == 0:
            weights.append(X)
            place = choose(G)
            state = state if keep and t else begun(place.project(G))
        step, state = rule(place.project(G), state)
        after = X + place.lift(step)
        moved.append(np.abs(after - X)[: of.true].max())
        X = after
    return Path(np.array([*weights, X]), np.array(moved))


def adapted(of: Noisy) -> Path:
    """``X + P A`` or ``X + A P^T``, of which A is trained by SGD and merged at a refresh."""
    X, A, weights, moved = of.start, np.zeros(1), [], []
    place = Map(None, True)
    for t, sign in enumerate(of.signs):
        if t % of.period == 0:
            X = X + place.lift(A) if t else X
            weights.append(X)
            place = of.choose(of.gradient(X, sign))
            A = 0 * place.project(X)
        slope = place.project(of.gradient(X + place.lift(A), sign))
        after = A - of.rate * slope
        moved.append(np.abs(place.lift(after - A))[: of.true].max())
        A = after
    return Path(np.array([*weights, X + place.lift(A)]), np.array(moved))


def last(of: Noisy, moved: np.ndarray) -> int:
    """The last step that moved the true rows by more than half of the digits of a step, or -1."""
    return int(np.max(np.flatnonzero(moved > HALF * of.rate * of.noise), initial=-1))


class Stop(NamedTuple):
    """A point of the scenario of SGD: the schedule, and the run."""

    of: Noisy
    queue: Queue
    path: Path

    @property
    def last(self) -> int:
        """The last step at which the true rows move, by the queue."""
        return self.queue.refreshes * self.of.period - 1

    @property
    def has_stopped(self) -> bool:
        """Whether the run goes on for a period behind that step."""
        return self.last + 1 + self.of.period <= len(self.of.signs)

    @property
    def is_seen(self) -> bool:
        """Whether the last step of a period is above what counts as a move, and the run ends."""
        shrink = (1 - self.of.rate) ** self.of.period
        return self.has_stopped and shrink / len(self.of.start) > HALF


@once
def stop(point: Point) -> Stop | None:
    """The schedule and the run of a point, where no two values are too close to choose."""
    of = example(point)
    if not hypotheses(of):
        return None
    schedule = queue(of, of.values(of.start), len(of.signs) // of.period)
    return Stop(of, schedule, projected(of)) if schedule.gap > np.sqrt(point.epsilon) else None


def noisy_values(point: Point) -> Redone | None:
    """s_i at every refresh."""
    if (run := stop(point)) is None:
        return None
    measured = np.array([run.of.values(X) for X in run.path.weights])
    saved = saved_sides(point, "noisy_values")
    # A turned vector changes a value by its square, that of the digits at a refresh: rounding.
    steps = len(run.of.signs)
    return Redone(run.queue.values, measured, None, np.sqrt(steps), "equal", *saved)


def last_move(point: Point) -> Redone | None:
    """The last step, by running the queue to its end."""
    if (run := stop(point)) is None or not run.is_seen:
        return None
    saved = saved_sides(point, "last_move")
    return Redone(run.last, last(run.of, run.path.moved), 1.0, 1.0, "count", *saved)


def stalled_rows(point: Point) -> Redone | None:
    """Behind it nothing moves."""
    if (run := stop(point)) is None or not run.has_stopped or run.last < 0:
        return None
    after = run.path.moved[run.last + 1 :]
    kappa = 1 + 1 / abs(1 - (run.queue.values[-1, 0] / run.of.noise) ** 2)
    saved = point.found["moved"][run.last + 1 :]
    scale = run.of.rate * run.of.noise
    return Redone(0 * after, after, scale, kappa * np.sqrt(len(saved)), "zero", None, saved)


def stalled_gradient(point: Point) -> list[Redone] | None:
    """Its norm is between ``(1 - eta)^{T_0} sigma`` and sigma."""
    if (run := stop(point)) is None or not run.has_stopped or run.last < 0:
        return None
    of, X = run.of, run.path.weights[-1]
    norm = np.linalg.norm(of.gradient(X, 0.0)[: of.true], 2)
    bounds, saved = point.found["stalled_between"], point.found["stalled_gradient"]
    low = of.noise * np.prod(np.full(of.period, 1 - of.rate))
    condition = float(np.sqrt(len(of.signs)))
    return [
        Redone(bound, norm, of.noise, condition, kind, there, saved)
        for bound, kind, there in zip((low, of.noise), ("at least", "at most"), bounds, strict=True)
    ]


def relora_stops(point: Point) -> list[Redone] | None:
    """``X + P A`` takes the same path."""
    if (run := stop(point)) is None or not run.is_seen:
        return None
    of, other = run.of, adapted(run.of)
    apart = np.abs(run.path.weights - other.weights)[:, : of.true].max((1, 2))
    found = point.found
    condition = (1 + 1 / run.queue.gap) * float(np.sqrt(len(of.signs)))
    return [
        Redone(
            *(run.last, last(of, other.moved), 1.0, 1.0, "count"),
            *saved_sides(point, "relora_last_move"),
        ),
        Redone(0 * apart, apart, of.noise, condition, "zero", None, found["relora_distance"]),
    ]


def optax_stops(point: Point) -> Redone | None:
    """On the left, with P from float32."""
    run = stop(point)
    if run is None or not run.is_seen or run.queue.gap <= np.sqrt(SINGLE):
        return None
    of = run.of._replace(left=True)
    path = projected(of, choose=lambda G: Map(single(G, of.rank), True))
    saved = saved_sides(point, "optax_last_move")
    return Redone(run.last, last(of, path.moved), 1.0, 1.0, "count", *saved)


# Any inner optimiser ----------------------------------------------------------------------------


def never_again(point: Point) -> Redone | None:
    """Once all s_i are below sigma at a refresh, with Y = 0, nothing moves."""
    of, flags = example(point), point.flags
    rule, keep = RULES[flags["optimizer"]](of.rate), flags["state"] == "keep"
    if not hypotheses(of) or (not of.left and keep and flags["optimizer"] != "sgd"):
        return None
    path, k = projected(of, rule, keep), of.true
    below = [of.values(X)[0] < of.noise * (1 - HALF) for X in path.weights[:-1]]
    if not any(below):
        return None
    stopped = below.index(True)
    if np.abs(path.weights[stopped, :k, k:]).max() > HALF * of.noise:
        return None
    first = stopped * of.period
    scale = float(np.max(path.moved[:first], initial=0.0)) or of.noise
    after, saved = path.moved[first:], point.found["any_moved"][first:]
    return Redone(0 * after, after, scale, 1.0, "zero", None, saved)


# The stall --------------------------------------------------------------------------------------


class Stall(NamedTuple):
    """Factors of a small Y over one period, for every sequence of signs and every value."""

    theory: np.ndarray
    run: np.ndarray
    condition: float
    """By how much a difference quotient amplifies rounding."""


def leaning(s: float, noise: float, left: bool) -> float:
    """By how much, over h, a vector of the noise turns towards u_i or v_i, for zeta = 1.

    The 2 x 2 block of ``G G^T`` (``G^T G``) has ``s^2`` and ``sigma^2`` on its diagonal and
    ``sigma h`` (``s h``) beside it: ``tan 2 theta`` is twice that over their difference.
    """
    beside = noise if left else s
    return beside / (noise**2 - s**2)


def factor(of: Noisy, s: float, signs: np.ndarray) -> float:
    """What the steps of a period make of y = 1, one after another."""
    lean, y = leaning(s, of.noise, of.left), 1.0
    for sign in signs:
        if of.left:
            # The true row of P is the lean, and meets the noise of this step.
            y -= of.rate * signs[0] * lean * sign * of.noise
        else:
            # The true row of G P: its entry of Y, and s times the lean.
            y -= of.rate * (y + s * lean)
    return y


@once
def stall(point: Point) -> Stall | None:
    """Both sides at a point, if all values are below the noise."""
    of, k = example(point, "example."), len(point.case["values"])
    values, left, w = (point.case[name] for name in ("values", "left", "beside"))
    # A difference quotient over h: its next order is h^2, as small as rounding over h.
    h = EPS ** (1 / 3)
    if values.max() / of.noise > 1 - h:
        return None
    theory, run = [], []
    for signs in product((1.0, -1.0), repeat=of.period):
        mine = of._replace(signs=np.array(signs))
        theory.append([factor(of, s, mine.signs) for s in values])
        row = []
        for u in left.T:
            start = of.start.copy()
            start[:k, k:] = h * of.noise * np.outer(u, w)
            end = projected(mine._replace(start=start)).weights[-1]
            row.append(u @ end[:k, k:] @ w / (h * of.noise))
        run.append(row)
    kappa = 1 / (1 - (values.max() / of.noise) ** 2)
    return Stall(np.array(theory), np.array(run), float(kappa**2 / h))


def stall_factor(point: Point) -> Redone | None:
    """What one period makes of a small Y."""
    if (both := stall(point)) is None:
        return None
    saved = saved_sides(point, "stall_factor")
    return Redone(both.theory, both.run, None, both.condition, "equal", *saved)


def stall_exponent(point: Point) -> Redone | None:
    """The mean of its logarithm over all sequences of signs."""
    if (both := stall(point)) is None:
        return None
    theory, run = (np.mean(np.log(np.abs(side)), axis=0) for side in both[:2])
    saved = saved_sides(point, "stall_exponent")
    condition = both.condition / float(np.abs(both.theory).min())
    return Redone(theory, run, None, condition, "equal", *saved)


CLAIMS: dict[str, dict[str, Any]] = {
    "stop": {
        "noisy_values": noisy_values,
        "last_move": last_move,
        "stalled_rows": stalled_rows,
        "stalled_gradient": stalled_gradient,
        "relora_stops": relora_stops,
        "optax_stops": optax_stops,
    },
    "any_optimizer": {"never_again": never_again},
    "stability": {"stall_factor": stall_factor, "stall_exponent": stall_exponent},
}
"""Scenario -> claim -> both of its sides."""
