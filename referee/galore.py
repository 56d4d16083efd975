"""The path of ``optax.contrib.galore``: Algorithm 1 on the larger side, with the state kept."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import svd

from referee.descent import diverged
from referee.low_rank import LowRankCase, Map, galore, relora
from referee.memory import OF_OPTAX
from referee.networks import Slope
from referee.optimizers import Rule, adam, begun, momentum, sgd
from referee.redone import EPS, Claim, Redone, largest, roundings, saved_sides
from referee.results import Point, once

ORDER = ("bias", "first", "second")
"""Parameters as they are saved."""
SINGLE = float(np.finfo(np.float32).eps)
"""Rounding of the singular vectors."""


def linear_network(
    parameters: Sequence[Any], data: Sequence[np.ndarray]
) -> tuple[float, list[Any]]:
    """``1/2 ||W_2 (W_1 X + b 1^T) - Y||_F^2``."""
    (b, W_1, W_2), (X, Y) = parameters, data
    hidden = W_1 @ X + b[:, None]
    errors = W_2 @ hidden - Y
    before = W_2.T @ errors
    return float(np.sum(errors**2)) / 2, [before.sum(1), Slope(before, X), Slope(errors, hidden)]


@once
def setting_of(point: Point) -> LowRankCase:
    """The network of a point, trained by Algorithm 1."""
    c, rate = point.case, float(point.case["learning_rate"])
    rule = {"sgd": sgd, "momentum": momentum, "adam": adam}[point.flags["optimizer"]](rate)
    start, data = [c[f"weights.{name}"] for name in ORDER], [c["inputs"], c["outputs"]]
    sizes = (int(c["rank"]), int(c["period"]))
    # Which side it is depends on the matrix.
    return LowRankCase(linear_network, start, data, *sizes, rule, rate, True, point.times)


# How P is chosen --------------------------------------------------------------------------------


def single(gradient: np.ndarray, rank: int) -> np.ndarray:
    """P of an SVD in float32, on the larger side (left of a square), with LAPACK's signs."""
    rounded = gradient.astype(np.float32)
    # SciPy's: NumPy's would compute it in float64, and choose other signs.
    left, _, right = svd(rounded, full_matrices=False, check_finite=False)
    m, n = gradient.shape
    return (left if m >= n else right.T)[:, :rank].astype(float)


def double(gradient: np.ndarray, rank: int) -> np.ndarray:
    """P of an SVD in float64 with the signs of the other."""
    left, _, right = np.linalg.svd(gradient, full_matrices=False)
    m, n = gradient.shape
    basis = (left if m >= n else right.T)[:, :rank]
    return basis * np.sign(np.sum(basis * single(gradient, rank), axis=0))


Basis = Callable[[np.ndarray, int], np.ndarray]


def larger_side(
    of: LowRankCase, basis: Basis, noise: float = 0.0
) -> Callable[[Sequence[np.ndarray]], list[Map]]:
    """Make a choice of P for every matrix, on its larger side.

    Args:
        of: its rank.
        basis: P of a gradient and a rank.
        noise: relative noise of the gradients that the SVD sees.
    """
    rng = np.random.default_rng(0)

    def chosen(G: np.ndarray) -> Map:
        if G.ndim != 2:
            return Map(None, True)
        noisy = G + noise * np.abs(G).max() * rng.standard_normal(G.shape)
        return Map(basis(noisy, of.rank), G.shape[0] >= G.shape[1])

    return lambda gradients: [chosen(G) for G in gradients]


# optax ------------------------------------------------------------------------------------------


BASES: dict[str, Rule] = {"sgd": sgd(-1.0), "momentum": momentum(-1.0), "adam": adam(-1.0)}
"""``optax.identity``, ``trace(0.9)`` and ``scale_by_adam``: updates without a step size."""


def optax_path(of: LowRankCase, name: str, decay: float = 0.0) -> np.ndarray:
    """Init, update, apply: a counter, a projector, a base optimiser, then decay and ``-eta``.

    The gradients are those of each example, added up.
    """
    base, weights = BASES[name], list(of.start)
    projectors: list[np.ndarray | None] = [None] * len(weights)
    states: list[Any] = [None] * len(weights)
    records = []
    for count in range(max(of.times) + 1):
        if count in of.times:
            records.append(np.concatenate([w.ravel() for w in weights]))
        updates = []
        for k, G in enumerate(of_examples(weights, of.data)):
            if G.ndim == 1:
                small, lift = G, lambda u: u
            else:
                if count % of.period == 0:
                    projectors[k] = single(G, of.rank)
                P = projectors[k]
                assert P is not None
                if len(G) >= len(G.T):
                    small, lift = P.T @ G, lambda u, P=P: P @ u
                else:
                    small, lift = G @ P, lambda u, P=P: u @ P.T
            states[k] = begun(small) if states[k] is None else states[k]
            scaled, states[k] = base(small, states[k])
            updates.append(-of.rate * (lift(scaled) + decay * weights[k]))
        weights = [w + u for w, u in zip(weights, updates, strict=True)]
    return np.array(records)


def of_examples(weights: Sequence[np.ndarray], data: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The gradient, one example after another."""
    b, W_1, W_2 = weights
    totals = [np.zeros_like(w) for w in weights]
    for x, y in zip(data[0].T, data[1].T, strict=True):
        hidden = W_1 @ x + b
        error = W_2 @ hidden - y
        before = W_2.T @ error
        for total, part in zip(
            totals, (before, np.outer(before, x), np.outer(error, hidden)), strict=True
        ):
            total += part
    return totals


# Claims -----------------------------------------------------------------------------------------


class SavedGalorePaths(NamedTuple):
    """All paths of a point, and what rounding makes of them."""

    of: LowRankCase
    single: np.ndarray
    """Algorithm 1 with P from float32."""
    double: np.ndarray
    """Algorithm 1 with P from float64."""
    optax: np.ndarray
    known: np.ndarray
    """Recorded steps up to which both sides see the same digits of float32 in every gradient."""
    signed: np.ndarray
    """Recorded steps up to which rounding chooses no sign that a kept state would notice."""
    condition: float
    """By how much the path amplifies a disturbance of the data or of what the SVD sees."""


def given_to_svds(of: LowRankCase, rows: np.ndarray) -> np.ndarray:
    """The gradients of the matrices at the refreshes, one row each."""
    every = [of.gradient(of.apart(rows[of.looks.index(t)])) for t in of.refreshes]
    return np.array([np.concatenate([G.ravel() for G in gs if G.ndim == 2]) for gs in every])


def to_a_tie(numbers: np.ndarray) -> float:
    """The distance of the nearest of them from a number half way between two of float32."""
    # Twice the number has its ties where the sum of two neighbours lies.
    below, above = (np.nextafter(np.float32(numbers), np.float32(x)) for x in (-np.inf, np.inf))
    middle = np.float32(numbers).astype(float)
    sums = np.array([middle + below, middle + above])
    return float(np.abs(sums - 2 * numbers).min()) / 2


@once
def paths(point: Point) -> SavedGalorePaths:
    """The paths of a point."""
    of, name = setting_of(point), point.flags["optimizer"]
    plain = galore(of, "keep", larger_side(of, double))
    looks, conditions, of_gradients = [of.looks.index(t) for t in of.times], [], []
    gradients = given_to_svds(of, plain)
    # The larger one may turn a singular vector further than in proportion; the smaller one is still
    # far above rounding.
    for size in (1e-8, 1e-11):
        moved = of.disturbed(size)
        other = galore(moved, "keep", larger_side(moved, double, size))
        conditions.append(np.abs(other - plain).max() / np.abs(plain).max() / size)
        apart = np.abs(given_to_svds(moved, other) - gradients).max(1)
        of_gradients.append(apart / np.abs(gradients).max(1) / size)
    condition = largest(conditions)
    rounded = galore(of, "keep", larger_side(of, single))
    times, precise = np.array(of.times), point.flags["dtype"] == "float64"
    if precise:
        steps, longest = np.array(of.refreshes), max(max(a.shape) for a in of.start)
        rounding = EPS * roundings(longest, steps)
        given = given_to_svds(of, rounded)
        ties = [to_a_tie(G) / np.abs(G).max() for G in given]
        near = steps[ties <= rounding * np.maximum(1, np.max(of_gradients, 0))]
        known = times <= min([*near, max(times)])
    else:
        known = times <= of.period
    return SavedGalorePaths(
        of,
        rounded[looks],
        plain[looks],
        optax_path(of, name),
        known,
        (times <= of.period) | precise | (name == "sgd"),
        condition,
    )


def optax_same(point: Point) -> Redone | None:
    """Algorithm 1 with P from float32, and optax."""
    run = paths(point)
    if not run.known[1:].any():
        return None
    theory, measured, known = run.single, run.optax, run.known
    saved, saved_run = (point.found[f"optax_same_{side}"] for side in ("predicted", "measured"))
    both = (saved[known], saved_run[known])
    return Redone(theory[known], measured[known], None, run.condition, "equal", *both)


def optax_precise(point: Point) -> list[Redone] | None:
    """With P from float64 both paths are apart by the rounding of float32 times the response."""
    run = paths(point)
    # A last digit of float32 is within this claim's tolerance; in a run in float32 signs are not.
    known = run.signed
    if not known[1:].any():
        return None
    of, numbers = run.of, run.double.shape[1]
    refreshes = len(of.refreshes)
    # Those of so many refreshes, as of so many steps.
    unit = float(SINGLE * roundings(numbers, refreshes) * run.condition)
    adapted = relora(of, "keep", larger_side(of, double))[[of.looks.index(t) for t in of.times]]
    theory, measured = run.double[known], run.optax[known]
    saved, saved_run = (point.found[f"optax_precise_{s}"] for s in ("predicted", "measured"))
    parts = [
        Redone(theory, measured, None, 1.0, "equal", tolerance=unit),
        Redone(theory, adapted[known], None, run.condition, "equal", saved[known]),
    ]
    if (alike := run.known)[1:].any():
        sides = (run.single[alike], run.optax[alike])
        parts.append(Redone(*sides, None, run.condition, "equal", None, saved_run[alike]))
    return parts


def optax_decay(point: Point) -> Redone:
    """``- eta lambda W``, against the difference of two first updates."""
    of, decay = setting_of(point), float(point.case["decay"])
    name = point.flags["optimizer"]
    first = of._replace(times=[1])
    start = np.concatenate([w.ravel() for w in of.start])
    plain, decayed = (optax_path(first, name, share)[0] - start for share in (0.0, decay))
    saved = saved_sides(point, "optax_decay")
    # Both updates are differences of weights, and rounded like these.
    scale = largest([np.abs(plain).max(), np.abs(start).max()])
    return Redone(-of.rate * decay * start, decayed - plain, scale, 1.0, "equal", *saved)


def diverges(point: Point) -> bool:
    """Whether the path of a point diverges."""
    run = paths(point)
    losses = [run.of.loss(run.of.apart(row), run.of.data)[0] for row in run.single]
    return diverged(np.array(losses), point.epsilon)


CLAIMS: dict[str, dict[str, Claim]] = {
    "optax": {
        "optax_same": optax_same,
        "optax_precise": optax_precise,
        "optax_decay": optax_decay,
    },
    "optax_state": OF_OPTAX,
}
"""Scenario -> claim -> both of its sides."""
DIVERGES = {"optax": diverges}
"""Scenario -> whether the run of a point diverges, where nothing is claimed."""
