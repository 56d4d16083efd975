"""Algorithm 1 by hand: GaLore, ReLoRA with a frozen factor, and momentum without coordinates."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from referee.descent import diverged
from referee.networks import LOSSES, AdaptedLayer, Loss, Slope
from referee.optimizers import MomentState, Rule, adam, begun, momentum, sgd
from referee.redone import largest
from referee.results import Point

RULES: dict[str, Callable[[float], Rule]] = {"sgd": sgd, "momentum": momentum, "adam": adam}
POLICIES = ("keep", "reset", "transport")


class Map(NamedTuple):
    """The factor P on one side of a matrix; a vector has none and is trained as it is."""

    basis: np.ndarray | None
    left: bool

    def project(self, gradient: np.ndarray) -> np.ndarray:
        """``P^T G``, or ``G P``."""
        if self.basis is None:
            return gradient
        return self.basis.T @ gradient if self.left else gradient @ self.basis

    def lift(self, coordinates: np.ndarray) -> np.ndarray:
        """``P R``, or ``R P^T``."""
        if self.basis is None:
            return coordinates
        return self.basis @ coordinates if self.left else coordinates @ self.basis.T

    def layer(self, weight: np.ndarray, coordinates: np.ndarray) -> Any:
        """``W + B A`` as a layer: B = P and A trained, or A = P^T and B trained."""
        if self.basis is None:
            return weight + coordinates
        if self.left:
            return AdaptedLayer(weight, self.basis, coordinates)
        return AdaptedLayer(weight, coordinates, self.basis.T)

    def of_factor(self, slope: Any) -> np.ndarray:
        """The derivative in the factor that is trained: ``(B^T E) X^T``, or ``E (A X)^T``."""
        if self.basis is None:
            return slope
        if self.left:
            return (self.basis.T @ slope.errors) @ slope.inputs.T
        return slope.errors @ (self.basis.T @ slope.inputs).T


class LowRankCase(NamedTuple):
    """A problem and how it is trained, from a saved case."""

    loss: Loss
    start: list[np.ndarray]
    data: list[np.ndarray]
    rank: int
    period: int
    rule: Rule
    rate: float
    left: bool
    times: list[int]
    """Recorded steps."""

    @property
    def refreshes(self) -> list[int]:
        """Steps at which P is chosen: 0, T, 2T, ..."""
        return list(range(0, max(self.times), self.period))

    @property
    def looks(self) -> list[int]:
        """All steps at which weights are kept: the recorded ones and the refreshes."""
        return sorted({*self.times, *self.refreshes})

    def gradient(self, weights: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The gradient in each parameter, a matrix as ``E X^T``."""
        _, slopes = self.loss(weights, self.data)
        return [s.errors @ s.inputs.T if isinstance(s, Slope) else s for s in slopes]

    def apart(self, flat: np.ndarray) -> list[np.ndarray]:
        """The parameters of a saved row."""
        ends = np.cumsum([array.size for array in self.start])[:-1]
        shapes = [array.shape for array in self.start]
        return [a.reshape(s) for a, s in zip(np.split(flat, ends), shapes, strict=True)]

    def disturbed(self, size: float) -> "LowRankCase":
        """Start and data with relative noise of a size."""
        rng = np.random.default_rng(0)
        start, data = (
            [a + size * np.abs(a).max() * rng.standard_normal(a.shape) for a in arrays]
            for arrays in (self.start, self.data)
        )
        return self._replace(start=start, data=data)


def setting_of(point: Point) -> LowRankCase:
    """The problem of a point."""
    loss, names = LOSSES[point.flags["problem"]]
    rate = float(point.case["learning_rate"])
    return LowRankCase(
        loss,
        [point.case[f"params{name}"] for name in names],
        [point.case["data.0"], point.case["data.1"]],
        int(point.case["rank"]),
        int(point.case["period"]),
        RULES[point.flags["optimizer"]](rate),
        rate,
        point.flags["side"] == "left",
        point.times,
    )


# How P is chosen --------------------------------------------------------------------------------


def largest_positive(vectors: np.ndarray) -> np.ndarray:
    """The first entry within a thousandth of the largest is positive."""
    sizes = np.abs(vectors)
    # Of entries that are about equal the first decides: rounding must not.
    first = np.argmax(sizes >= (1 - 1e-3) * sizes.max(0), axis=0)
    return vectors * np.sign(vectors[first, np.arange(vectors.shape[1])])


def first_positive(vectors: np.ndarray) -> np.ndarray:
    """Another rule for signs: the first entry is positive."""
    return vectors * np.where(vectors[0] < 0, -1.0, 1.0)


Signs = Callable[[np.ndarray], np.ndarray]
Choice = Callable[[Sequence[np.ndarray]], list[Map]]


def top_vectors(of: LowRankCase, signs: Signs = largest_positive) -> Choice:
    """The r singular vectors of each gradient on one side that belong to the largest values."""

    def choose(gradients: Sequence[np.ndarray]) -> list[Map]:
        return [Map(basis_of(of, G, signs) if G.ndim == 2 else None, of.left) for G in gradients]

    return choose


def basis_of(of: LowRankCase, gradient: np.ndarray, signs: Signs) -> np.ndarray:
    """P, the leading singular vectors of a gradient with their signs fixed."""
    # Of a run that was lost any P will do: its weights remain what they are, no numbers.
    known = np.where(np.isfinite(gradient), gradient, 0)
    left, _, right = np.linalg.svd(known, full_matrices=False)
    return signs((left if of.left else right.T)[:, : of.rank])


# The loops --------------------------------------------------------------------------------------


def after_refresh(policy: str, state: MomentState, old: Map, new: Map) -> MomentState:
    """State after a refresh: as it was, that of a new run, or ``P_new^T P_old M``.

    Of a vector, which is trained as it is, nothing changes.
    """
    if policy == "reset" and new.basis is not None:
        return begun(state.first)
    if policy == "transport":
        # The first moment alone: squares have no sign to turn, and would become negative.
        return state._replace(first=new.project(old.lift(state.first)))
    return state


def renewed(
    policy: str,
    states: list[MomentState] | None,
    old: list[Map],
    new: list[Map],
    like: Sequence[Any],
) -> list[MomentState]:
    """The states after a refresh; those of a new run at the first."""
    if states is None:
        return [begun(array) for array in like]
    triples = zip(states, old, new, strict=True)
    return [after_refresh(policy, state, before, after) for state, before, after in triples]


def flat(weights: Sequence[np.ndarray]) -> np.ndarray:
    """All entries in a row."""
    return np.concatenate([np.ravel(w) for w in weights])


def galore(of: LowRankCase, policy: str = "keep", choose: Choice | None = None) -> np.ndarray:
    """``W <- W + P opt(P^T G)``; the weights at the looks."""
    choose = choose or top_vectors(of)
    weights, maps, states = of.start, [], None
    records = []
    for t in range(max(of.times) + 1):
        if t in of.looks:
            records.append(flat(weights))
        gradients = of.gradient(weights)
        if t % of.period == 0:
            old, maps = maps, choose(gradients)
            coordinates = [m.project(G) for m, G in zip(maps, gradients, strict=True)]
            states = renewed(policy, states, old, maps, coordinates)
        coordinates = [m.project(G) for m, G in zip(maps, gradients, strict=True)]
        moves, states = stepped(of.rule, coordinates, states)
        weights = [w + m.lift(u) for w, m, u in zip(weights, maps, moves, strict=True)]
    return np.array(records)


def relora(of: LowRankCase, policy: str = "keep", choose: Choice | None = None) -> np.ndarray:
    """``W + P A``, of which A is trained; P A is merged every T steps."""
    choose = choose or top_vectors(of)
    weights, maps, factors, states = of.start, [], [], None
    records = []
    for t in range(max(of.times) + 1):
        if t % of.period == 0:
            weights = merged(weights, maps, factors)
            old, maps = maps, choose(of.gradient(weights))
            # A begins at 0, so that the merge changes no function.
            factors = [0 * m.project(w) for m, w in zip(maps, weights, strict=True)]
            states = renewed(policy, states, old, maps, factors)
        if t in of.looks:
            records.append(flat(merged(weights, maps, factors)))
        triples = zip(maps, weights, factors, strict=True)
        _, slopes = of.loss([m.layer(w, A) for m, w, A in triples], of.data)
        gradients = [m.of_factor(slope) for m, slope in zip(maps, slopes, strict=True)]
        moves, states = stepped(of.rule, gradients, states)
        factors = [A + move for A, move in zip(factors, moves, strict=True)]
    return np.array(records)


def merged(
    weights: Sequence[np.ndarray], maps: list[Map], factors: list[np.ndarray]
) -> list[np.ndarray]:
    """``W + P A``; W before anything was chosen."""
    if not maps:
        return list(weights)
    return [w + m.lift(A) for w, m, A in zip(weights, maps, factors, strict=True)]


def stepped(
    rule: Rule, gradients: Sequence[np.ndarray], states: list[MomentState] | None
) -> tuple[list[np.ndarray], list[MomentState]]:
    """A step of an optimiser in each parameter."""
    assert states is not None, "a run begins with a refresh"
    pairs = [rule(g, state) for g, state in zip(gradients, states, strict=True)]
    return [move for move, _ in pairs], [state for _, state in pairs]


def lifted_momentum(of: LowRankCase, policy: str, mu: float = 0.9) -> np.ndarray:
    """``M <- mu M + P P^T G``, ``W <- W - eta M``, with M of the size of W.

    At a refresh M becomes ``P_new P_old^T M`` (keep), 0 (reset) or ``P_new P_new^T M`` (transport).
    """
    weights, maps, moments, records = of.start, [], [0 * w for w in of.start], []
    choose = top_vectors(of)
    for t in range(max(of.times) + 1):
        if t in of.looks:
            records.append(flat(weights))
        gradients = of.gradient(weights)
        if t % of.period == 0:
            # Before the first refresh M is 0, and any P will do.
            old, maps = maps or choose(gradients), choose(gradients)
            triples = list(zip(old, maps, moments, strict=True))
            moments = {
                "keep": [new.lift(last.project(M)) for last, new, M in triples],
                "reset": [M if new.basis is None else 0 * M for _, new, M in triples],
                "transport": [new.lift(new.project(M)) for _, new, M in triples],
            }[policy]
        pairs = zip(maps, moments, gradients, strict=True)
        moments = [mu * M + m.lift(m.project(G)) for m, M, G in pairs]
        weights = [w - of.rate * M for w, M in zip(weights, moments, strict=True)]
    return np.array(records)


# What is looked at in a run ---------------------------------------------------------------------


class PolicyRuns(NamedTuple):
    """A run with each of some policies."""

    of: LowRankCase
    rows: np.ndarray
    """policy x look x entry."""

    def at(self, steps: Sequence[int]) -> np.ndarray:
        """The rows at some of the looks."""
        return self.rows[:, [self.of.looks.index(t) for t in steps]]

    @property
    def recorded(self) -> np.ndarray:
        """Weights: policy x recorded step x entry."""
        return self.at(self.of.times)

    @property
    def losses(self) -> np.ndarray:
        """The loss of each policy at the recorded steps."""
        value = lambda row: self.of.loss(self.of.apart(row), self.of.data)[0]  # noqa: E731
        return np.array([[value(row) for row in rows] for rows in self.recorded])

    def refreshed(self) -> Iterator[list[list[np.ndarray]]]:
        """For each policy, the gradients of the matrices at all refreshes."""
        for rows in self.at(self.of.refreshes):
            every = [self.of.gradient(self.of.apart(row)) for row in rows]
            yield [[G for G in gradients if G.ndim == 2] for gradients in every]

    def matrices(self, steps: Sequence[int]) -> np.ndarray:
        """The first matrix at some of the looks, of each policy."""
        place = next(k for k, array in enumerate(self.of.start) if array.ndim == 2)
        return np.array([[self.of.apart(row)[place] for row in rows] for rows in self.at(steps)])


class MethodPair(NamedTuple):
    """GaLore and ReLoRA, and GaLore from disturbed starts."""

    galore: PolicyRuns
    relora: PolicyRuns
    twins: list[tuple[float, PolicyRuns]]

    def condition(self, look: Callable[[PolicyRuns], np.ndarray], scale: float = 0.0) -> float:
        """By how much what is looked at amplifies a disturbance, in units of its size."""
        plain = look(self.galore)
        # A run that stays at 0 has no scale of its own.
        size = scale or float(np.abs(plain).max()) or 1.0
        apart = [np.abs(look(run) - plain).max() / size / much for much, run in self.twins]
        return largest(apart)


DISTURBANCES = (1e-8, 1e-11)
"""Sizes of disturbances: a larger one may turn a singular vector further than in proportion."""


def pair_of(of: LowRankCase, policies: Sequence[str]) -> MethodPair:
    """All runs of a problem."""

    def run(of: LowRankCase, method: Callable[[LowRankCase, str], np.ndarray]) -> PolicyRuns:
        return PolicyRuns(of, np.array([method(of, policy) for policy in policies]))

    twins = [(size, run(of.disturbed(size), galore)) for size in DISTURBANCES]
    return MethodPair(run(of, galore), run(of, relora), twins)


def lost(of: PolicyRuns, digits: float) -> bool:
    """Whether a loss is no number, or beyond the first one over half of the digits."""
    return diverged(of.losses.ravel(), digits)


def undetermined(of: PolicyRuns, digits: float) -> bool:
    """Whether rounding decides a P: at a gradient of rank below r, or a tie at the r-th value.

    The gap counts as a part of the largest gradient of its matrix in the run, on whose scale
    gradients are rounded.
    """
    for of_policy in of.refreshed():
        spectra = [
            np.array([np.linalg.svd(G, compute_uv=False) for G in gradients])
            for gradients in zip(*of_policy, strict=True)
        ]
        for values in spectra:
            r = min(of.of.rank, values.shape[1])
            beyond = np.pad(values, ((0, 0), (0, 1)))[:, r]
            if np.any(values[:, r - 1] <= digits * values[:, 0]):
                return True
            if np.any(values[:, r - 1] - beyond < digits * values[:, 0].max()):
                return True
    return False
