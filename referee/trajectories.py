"""Theorem 4: GaLore and ReLoRA take one path, what they add up to, and what methods hold."""

from collections.abc import Callable, Iterable

import numpy as np

from referee import low_rank
from referee.low_rank import (
    LowRankCase,
    MethodPair,
    PolicyRuns,
    galore,
    lifted_momentum,
    relora,
    top_vectors,
)
from referee.redone import EPS, Claim, Redone, largest, saved_sides
from referee.results import Point, once


def digits(point: Point) -> float:
    """Half of the digits of the precision of a run: the root of its machine epsilon."""
    return float(np.sqrt(np.finfo(point.flags["dtype"]).eps))


@once
def runs_of(point: Point, policies: tuple[str, ...] = ()) -> MethodPair:
    """The runs of a point, with its own policy unless others are given."""
    return low_rank.pair_of(low_rank.setting_of(point), policies or (point.flags["state"],))


@once
def pair(point: Point, policies: tuple[str, ...] = ()) -> MethodPair | None:
    """The runs of a point; None if they diverge, or if P is undecided."""
    both = runs_of(point, policies)
    hopeless = low_rank.lost(both.galore, digits(point)) or low_rank.undetermined(
        both.galore, digits(point)
    )
    return None if hopeless else both


def same(
    point: Point, both: MethodPair | None, name: str, look: Callable[[PolicyRuns], np.ndarray]
) -> Redone | None:
    """GaLore against ReLoRA in what is looked at; the policies of several are the first axis."""
    if both is None:
        return None
    theory, run = look(both.galore), look(both.relora)
    saved, saved_run = (point.found[f"{name}_{side}"] for side in ("predicted", "measured"))
    # One policy alone has no axis in the file.
    theory, run = theory.reshape(saved.shape), run.reshape(saved_run.shape)
    return Redone(theory, run, None, both.condition(look), "equal", saved, saved_run)


def recorded(run: PolicyRuns) -> np.ndarray:
    """The weights at the recorded steps."""
    return run.recorded


def losses(run: PolicyRuns) -> np.ndarray:
    """The losses at the recorded steps."""
    return run.losses


def trained(point: Point, policies: int = 0) -> Redone:
    """``r n`` entries of A for each m x n (m r on the right), and those of vectors as they are."""
    of = low_rank.setting_of(point)
    r = of.rank
    formula = 0
    for array in of.start:
        if array.ndim == 2:
            m, n = array.shape
            formula += min(r, m, n) * (n if of.left else m)
        else:
            formula += array.size
    gradients = of.gradient(of.start)
    maps = top_vectors(of)(gradients)
    factors = [m.project(w) for m, w in zip(maps, of.start, strict=True)]
    counted = sum(factor.size for factor in factors)
    of_each = np.ones(policies, int) if policies else 1
    saved = saved_sides(point, "trained")
    return Redone(formula * of_each, counted * of_each, 1.0, 1.0, "count", *saved)


# One path ---------------------------------------------------------------------------------------


def weights(point: Point) -> Redone | None:
    """GaLore and ReLoRA have the same weights at every step."""
    return same(point, pair(point), "weights", recorded)


def training_loss(point: Point) -> Redone | None:
    """GaLore and ReLoRA have the same loss at every step."""
    return same(point, pair(point), "training_loss", losses)


def ends(run: PolicyRuns) -> list[int]:
    """The end of each period."""
    return [*run.of.refreshes[1:], max(run.of.times)]


def moves(run: PolicyRuns) -> np.ndarray:
    """Change of the first matrix between each refresh and the next."""
    return (run.matrices(ends(run)) - run.matrices(run.of.refreshes))[0]


def bases(run: PolicyRuns) -> np.ndarray:
    """P of the first matrix at each refresh."""
    (gradients,) = run.refreshed()
    return np.array([low_rank.basis_of(run.of, G[0], low_rank.largest_positive) for G in gradients])


def onto(bases: np.ndarray) -> np.ndarray:
    """``P P^T``, which has no signs."""
    return bases @ bases.mT


def outside(moves: np.ndarray, projectors: np.ndarray, left: bool) -> np.ndarray:
    """The part of moves outside of the span of P."""
    return moves - (projectors @ moves if left else moves @ projectors)


def top_directions(point: Point) -> Iterable[Redone] | None:
    """Between two refreshes W moves within the top r singular vectors of the gradient."""
    both, r = pair(point), int(point.case["rank"])
    if both is None or r == min(both.galore.matrices([0]).shape[-2:]):
        return None
    left, scale = both.galore.of.left, float(np.abs(both.galore.recorded).max())
    # Projectors, for signs and turns within the span are free.
    P, run = onto(bases(both.galore)), moves(both.relora)
    rest = outside(run, P, left)
    saved_P, saved_moves = onto(point.found["top_directions"]), point.found["moves"]
    saved_rest = outside(saved_moves, saved_P, left)
    condition = both.condition(recorded)
    return [
        Redone(0 * rest, rest, scale, condition, "zero", None, saved_rest),
        Redone(moves(both.galore), run, scale, condition, "equal", None, saved_moves),
        Redone(P, onto(bases(both.relora)), 1.0, of_projectors(both), "equal", saved_P),
    ]


def of_projectors(both: MethodPair) -> float:
    """By how much ``P P^T`` amplifies a disturbance."""
    return both.condition(lambda run: onto(bases(run)), 1.0)


def sums(run: PolicyRuns) -> np.ndarray:
    """Singular values of W(t) - W(0) after K = 1, 2, ... refreshes, while r K < min(m, n)."""
    moved = (run.matrices(ends(run)) - run.matrices([0]))[0]
    most = max(1, (min(moved.shape[1:]) - 1) // run.of.rank)
    return np.linalg.svd(moved[:most], compute_uv=False)


def scale_of_sums(both: MethodPair) -> float:
    """W(t) - W(0) is rounded like W: the larger of its values and of the entries of W."""
    return float(
        largest([np.abs(both.galore.matrices(ends(both.galore))).max(), sums(both.galore).max()])
    )


def sum_excess(point: Point) -> Iterable[Redone] | None:
    """After K refreshes the singular values of W(t) - W(0) beyond the first r K are 0."""
    both = pair(point)
    if both is None or both.galore.of.rank >= sums(both.galore).shape[1]:
        return None
    theory, run, scale = sums(both.galore), sums(both.relora), scale_of_sums(both)
    ranks = both.galore.of.rank * np.arange(1, 1 + len(run))
    beyond = np.arange(run.shape[1]) >= ranks[:, None]
    saved, condition = point.found["sum_values"], both.condition(sums, scale)
    # That a sum of K terms has this rank amplifies nothing.
    return [
        Redone(0 * run, run * beyond, scale, 1.0, "zero", None, saved * beyond),
        Redone(theory, run, scale, condition, "equal", None, saved),
    ]


def sum_rank(point: Point) -> Iterable[Redone] | None:
    """W(t) - W(0) has rank r K where ``[P_1 ... P_K]`` has no singular value below .1."""
    both = pair(point)
    if both is None:
        return None
    of, values = both.galore.of, sums(both.relora)
    chosen, parts = list(bases(both.galore)), []
    rounding = 1e3 * EPS * scale_of_sums(both) * (1 + max(of.times))
    for k, (mine, saved) in enumerate(zip(values, point.found["sum_values"], strict=True), 1):
        together = np.hstack(chosen[:k])
        independent = np.linalg.svd(together, compute_uv=False)[together.shape[1] - 1 :]
        if not (independent.size and independent[0] >= 0.1):
            continue
        # A last value so near to rounding could be counted or not: the claim says nothing then.
        if sums(both.galore)[k - 1, of.rank * k - 1] <= 10 * rounding:
            return None
        count = int(np.sum(mine > rounding))
        limit = rounding * np.finfo(saved.dtype).eps / EPS
        claimed, saved_count = point.found["sum_rank"][k - 1], int(np.sum(saved > limit))
        parts.append(Redone(of.rank * k, count, 1.0, 1.0, "count", claimed, saved_count))
    return parts


# The state at a refresh -------------------------------------------------------------------------


def policies(point: Point) -> MethodPair | None:
    """The runs of a point with all policies."""
    return pair(point, low_rank.POLICIES)


def diverges(point: Point) -> bool:
    """Whether GaLore diverges at a point."""
    return low_rank.lost(runs_of(point).galore, digits(point))


def policies_diverge(point: Point) -> bool:
    """Whether GaLore diverges with any policy."""
    return low_rank.lost(runs_of(point, low_rank.POLICIES).galore, digits(point))


def policy_weights(point: Point) -> Redone | None:
    """GaLore and ReLoRA agree whether both keep, reset or transport."""
    return same(point, policies(point), "policy_weights", recorded)


def lifted(point: Point) -> Redone | None:
    """With momentum ReLoRA follows the path of a momentum of the size of W."""
    if (both := policies(point)) is None:
        return None
    of = both.galore.of
    alone = PolicyRuns(of, np.array([lifted_momentum(of, policy) for policy in low_rank.POLICIES]))
    theory, run, condition = alone.recorded, both.relora.recorded, both.condition(recorded)
    saved = saved_sides(point, "lifted")
    return Redone(theory, run, None, condition, "equal", *saved)


def of_signs(of: LowRankCase, method: Callable[..., np.ndarray], policy: str) -> np.ndarray:
    """Distance of two runs with two rules for signs, over the largest weight of the first."""
    rules = (low_rank.largest_positive, low_rank.first_positive)
    rows = [method(of, policy, top_vectors(of, signs)) for signs in rules]
    plain, other = (PolicyRuns(of, each[None]).recorded[0] for each in rows)
    return np.abs(plain - other).max(1) / np.abs(plain).max()


def signs(point: Point) -> Iterable[Redone] | None:
    """After a reset or a transport signs have no effect; after a kept state they have."""
    if (both := policies(point)) is None:
        return None
    of, condition = both.galore.of, both.condition(recorded)
    measured = np.array([of_signs(of, relora, policy) for policy in ("reset", "transport")])
    predicted_kept, kept_run = (of_signs(of, method, "keep") for method in (galore, relora))
    return [
        Redone(0 * measured, measured, 1.0, condition, "zero", None, point.found["signs"]),
        Redone(predicted_kept, kept_run, 1.0, condition, "equal", None, point.found["kept_signs"]),
    ]


def network_weights(point: Point) -> Redone | None:
    """GaLore and ReLoRA have the same weights on other problems, under every policy."""
    return same(point, policies(point), "weights", recorded)


def network_training_loss(point: Point) -> Redone | None:
    """GaLore and ReLoRA have the same loss on other problems, under every policy."""
    return same(point, policies(point), "training_loss", losses)


CLAIMS: dict[str, dict[str, Claim]] = {
    "trajectory": {
        "weights": weights,
        "training_loss": training_loss,
        "trained": trained,
        "top_directions": top_directions,
        "sum_excess": sum_excess,
        "sum_rank": sum_rank,
    },
    "optimizer_state": {
        "policy_weights": policy_weights,
        "policy_trained": lambda point: trained(point, 3),
        "lifted": lifted,
        "signs": signs,
    },
    "other_problems": {
        "network_weights": network_weights,
        "network_training_loss": network_training_loss,
        "network_trained": lambda point: trained(point, 3),
    },
}
"""Scenario -> claim -> both of its sides."""
DIVERGES = {
    "trajectory": diverges,
    "optimizer_state": policies_diverge,
    "other_problems": policies_diverge,
}
"""Scenario -> whether the run of a point diverges, where nothing is claimed."""
