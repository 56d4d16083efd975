"""Example 4.2: masked autoencoders, by moments, by sums over all masks and by training on these."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from referee.masks import expected, masks, nuclear, square
from referee.redone import EPS, Redone, largest, saved_as, saved_sides
from referee.results import Point, once

STEPS = 24_000
"""Most steps of training, as many as lrdyn takes."""
MOMENTUM = 0.9
"""Momentum of Nesterov's method."""


class SavedAutoencoding(NamedTuple):
    """One data set and what hides parts of it, from a saved case."""

    data: np.ndarray
    keep: float
    patch: np.ndarray
    """Number of the patch of each feature."""
    anything: np.ndarray
    """An autoencoder that is no minimiser."""
    factors: list[np.ndarray]
    """W_1 and W_2."""

    @property
    def moment(self) -> np.ndarray:
        """``S = X X^T / n``."""
        return self.data @ self.data.T / self.data.shape[1]

    def within(self, matrix: np.ndarray) -> np.ndarray:
        """The diagonal blocks of the patches."""
        return np.where(self.patch[:, None] == self.patch[None, :], matrix, 0.0)

    @property
    def masked_moment(self) -> np.ndarray:
        """``Q = p S + (1 - p) D``."""
        return self.keep * self.moment + (1 - self.keep) * self.within(self.moment)

    def shown(self) -> Iterator[tuple[float, np.ndarray]]:
        """All masks of features with their probabilities."""
        for p, mask in masks(int(self.patch.max()) + 1, self.keep):
            yield p, mask[self.patch]

    def loss(self, autoencoder: np.ndarray, hidden_only: bool = False) -> float:
        """``E ||X - A(M*X)||^2 / n`` over all masks, of the hidden entries alone or of all."""

        def of(mask: np.ndarray) -> float:
            residual = self.data - autoencoder @ (mask[:, None] * self.data)
            return square(residual * (1 - mask[:, None]) if hidden_only else residual)

        return expected(self.shown(), of) / self.data.shape[1]

    def formula(self, autoencoder: np.ndarray) -> float:
        """``tr[(I - pA) S (I - pA)^T] + p(1-p) tr(A D A^T)``."""
        p, rest = self.keep, np.eye(len(autoencoder)) - self.keep * autoencoder
        ridge = np.trace(autoencoder @ self.within(self.moment) @ autoencoder.T)
        return float(np.trace(rest @ self.moment @ rest.T) + p * (1 - p) * ridge)

    def added(self, autoencoder: np.ndarray) -> float:
        """Penalty that masks add to the loss at their mean, over all of them."""

        def of(mask: np.ndarray) -> float:
            return square(autoencoder @ ((mask - self.keep)[:, None] * self.data))

        return expected(self.shown(), of) / self.data.shape[1]

    def bound(self, autoencoder: np.ndarray) -> float:
        """``p(1-p) ||A X||_*^2 / (n m)``."""
        p = self.keep
        return p * (1 - p) * nuclear(autoencoder @ self.data) ** 2 / self.data.size

    @property
    def regular(self) -> bool:
        """Whether Q has an inverse, to rounding."""
        values = np.linalg.eigvalsh(self.masked_moment)
        return bool(values[0] > len(values) * EPS * values[-1])

    def root_of_inverse(self) -> np.ndarray:
        """``Q^{-1/2}``, on the range of Q."""
        values, vectors = np.linalg.eigh(self.masked_moment)
        # Features that never vary have no weight: the pseudo-inverse.
        there = values > len(values) * EPS * values[-1]
        return (vectors[:, there] / np.sqrt(values[there])) @ vectors[:, there].T

    @property
    def inverting(self) -> float:
        """By how much inverting Q amplifies errors."""
        root = self.root_of_inverse()
        return float(np.linalg.norm(self.masked_moment) * np.linalg.norm(root @ root))

    def choosing(self) -> float:
        """By how much inverting Q, or choosing the first r directions, amplifies errors."""
        squares = np.append(self.narrow_values(), 0.0) ** 2
        r = len(self.factors[0])
        gap = squares[r - 1] - squares[r]
        return largest([self.inverting, squares[0] / gap if gap > 0 else math.inf])

    def narrow_values(self) -> np.ndarray:
        """Singular values of ``S Q^{-1/2}``."""
        return np.linalg.svd(self.moment @ self.root_of_inverse(), compute_uv=False)

    def optimum(self) -> np.ndarray:
        """The minimiser of the loss on all entries, ``S Q^{-1}``."""
        root = self.root_of_inverse()
        return self.moment @ root @ root

    def narrow_optimum(self) -> np.ndarray:
        """The minimiser of rank r, ``U_r U_r^T S Q^{-1}``."""
        left = np.linalg.svd(self.moment @ self.root_of_inverse())[0]
        onto = left[:, : len(self.factors[0])]
        return onto @ onto.T @ self.optimum()

    def masked_optimum(self) -> np.ndarray:
        """``(S - blkdiag M_b) Q^{-1}``, block by block."""
        inverse, multiplier = np.linalg.inv(self.masked_moment), np.zeros_like(self.masked_moment)
        whole = self.moment @ inverse
        for number in np.unique(self.patch):
            block = np.ix_(self.patch == number, self.patch == number)
            # M_b (Q^{-1})_bb = (S Q^{-1})_bb, solved for M_b; Q is symmetric.
            multiplier[block] = np.linalg.solve(inverse[block], whole[block].T).T
        return (self.moment - multiplier) @ inverse


@once
def data_sets(point: Point) -> list[SavedAutoencoding]:
    """Each data set of a point."""
    case = point.case
    rest = (float(case["keep_prob"]), case["groups"], case["anything"], point.parts("factors"))
    return [SavedAutoencoding(data, *rest) for data in case["data"]]


# Training ---------------------------------------------------------------------------------------


class TrainedAutoencoders(NamedTuple):
    """Autoencoders that training on the sums over all masks reaches."""

    full: np.ndarray
    narrow: np.ndarray
    guess: np.ndarray
    """Trained on masked entries alone."""


def descended(
    start: list[np.ndarray], slopes: Callable[[list[np.ndarray]], list[np.ndarray]], rate: float
) -> list[np.ndarray]:
    """Descent with the momentum of Nesterov, until nothing moves or for as many steps as a run."""
    layers, speeds = start, [np.zeros_like(w) for w in start]
    for step in range(STEPS):
        before, gradients = layers, slopes(layers)
        speeds = [g + MOMENTUM * v for g, v in zip(gradients, speeds, strict=True)]
        moves = [g + MOMENTUM * v for g, v in zip(gradients, speeds, strict=True)]
        layers = [w - rate * move for w, move in zip(layers, moves, strict=True)]
        # Now and then only: comparing all numbers costs as much as a step.
        if step % 100 == 0 and all(map(np.array_equal, layers, before)):
            break
    return layers


@once
def trained(point: Point, number: int) -> TrainedAutoencoders:
    """Train on a data set, with gradients by hand."""
    of = data_sets(point)[number]
    moment, shown = of.moment, list(of.shown())
    together = sum(p * np.outer(mask, mask) for p, mask in shown) * moment
    first = sum(p * mask for p, mask in shown) * moment
    # Of the row of a feature count the masks that hide it.
    hidden = np.array([sum(p * (1 - m[i]) * np.outer(m, m) for p, m in shown) for i in rows(of)])
    of_hidden = hidden * moment / (1 - of.keep)
    to_hidden = sum(p * np.outer(1 - m, m) for p, m in shown) * moment / (1 - of.keep)
    # The Frobenius norm is at least the largest curvature.
    rate = 1 / float(np.linalg.norm(together))
    slower = (of.keep + (1 - of.keep) / (int(of.patch.max()) + 1)) / 8

    def factors(layers: list[np.ndarray]) -> list[np.ndarray]:
        slope = layers[1] @ layers[0] @ together - first
        return [layers[1].T @ slope, slope @ layers[0].T]

    (full,) = descended([of.anything], lambda A: [A[0] @ together - first], rate)
    first_factor, second_factor = descended(of.factors, factors, slower * rate)
    rowwise = lambda A: [(of_hidden @ A[0][:, :, None])[:, :, 0] - to_hidden]  # noqa: E731
    (guess,) = descended([of.anything], rowwise, rate)
    return TrainedAutoencoders(full, second_factor @ first_factor, guess)


def rows(of: SavedAutoencoding) -> range:
    """The numbers of all features, from 0."""
    return range(len(of.data))


def decayed(condition: float, rate: float = 1.0) -> bool:
    """Whether the slowest error has fallen to rounding squared at the end."""
    return STEPS / (1 - MOMENTUM) * rate / condition >= -2 * math.log(EPS)


def asked(point: Point, loss: str) -> Iterator[tuple[int, SavedAutoencoding]]:
    """The data sets with their numbers, if a loss was asked for."""
    if loss in str(point.flags["loss"]).split():
        yield from enumerate(data_sets(point))


def ended(point: Point, loss: str, narrow: bool = False) -> Iterator[tuple[int, SavedAutoencoding]]:
    """The data sets with their numbers, if training is at its end on all of them."""
    for k, of in asked(point, loss):
        groups = int(of.patch.max()) + 1
        slower = (of.keep + (1 - of.keep) / groups) / 8
        conditions = [o.choosing() if narrow else o.inverting for o in data_sets(point)]
        if decayed(largest(conditions), slower if narrow else 1.0):
            yield k, of


def regular(point: Point) -> bool:
    """Whether no Q is singular."""
    return all(of.regular for of in data_sets(point))


# Claims -----------------------------------------------------------------------------------------


def sides(point: Point, name: str, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Both saved sides of a claim on a data set."""
    return point.found[f"{name}_predicted"][k], point.found[f"{name}_measured"][k]


def marginal(point: Point) -> Iterator[Redone]:
    """The expected loss by S, D and p, and over all masks."""
    for k, of in asked(point, "all"):
        theory, measured = of.formula(of.anything), of.loss(of.anything)
        yield Redone(theory, measured, None, 1.0, "equal", *sides(point, "marginal", k))


def optimum(point: Point) -> Iterator[Redone]:
    """Training on all entries reaches ``S Q^{-1}``."""
    for k, of in ended(point, "all"):
        if regular(point):
            theory, measured = of.optimum(), trained(point, k).full
            saved = sides(point, "optimum", k)
            yield Redone(theory, measured, None, of.inverting, "equal", *saved)


def rank(point: Point) -> Iterator[Redone]:
    """The trained autoencoder has as many singular values above half of the digits as X."""
    for k, of in ended(point, "all"):
        if regular(point):
            both = (of.narrow_values(), np.linalg.svd(trained(point, k).full, compute_uv=False))
            counts = [int(np.sum(v > math.sqrt(EPS) * v[0])) for v in both]
            of_data = int(np.linalg.matrix_rank(of.data))
            yield Redone([of_data, counts[0]], [counts[1], counts[1]], 1.0, kind="count")
            for mine, saved in zip(both, sides(point, "rank_values", k), strict=True):
                yield saved_as(mine, saved, condition=of.inverting)


def bottleneck(point: Point) -> Iterator[Redone]:
    """At width r training reaches ``U_r U_r^T S Q^{-1}``."""
    for k, of in ended(point, "all", narrow=True):
        if regular(point):
            theory, measured = of.narrow_optimum(), trained(point, k).narrow
            saved = sides(point, "bottleneck", k)
            yield Redone(theory, measured, None, of.choosing(), "equal", *saved)


def bottleneck_value(point: Point) -> Iterator[Redone]:
    """At width r the trained loss is ``tr S - p sum_{i<=r} sigma_i(S Q^{-1/2})^2``."""
    for k, of in ended(point, "all", narrow=True):
        values = of.narrow_values()[: len(of.factors[0])]
        energy = float(np.trace(of.moment))
        theory, measured = energy - of.keep * np.sum(values**2), of.loss(trained(point, k).narrow)
        saved = sides(point, "bottleneck_value", k)
        yield Redone(theory, measured, energy, of.inverting, "equal", *saved)


def nuclear_bound(point: Point) -> Iterator[Redone]:
    """``p(1-p) tr(A D A^T)`` is at least ``p(1-p) ||A X||_*^2 / (n m)``, for the same A."""
    for k, of in asked(point, "all"):
        bounds, added = point.found["nuclear_bound"][k], point.found["penalty"][k]
        for place, A in enumerate((np.eye(len(of.data)), of.anything)):
            yield Redone(
                of.bound(A), of.added(A), None, 1.0, "at least", bounds[place], added[place]
            )


def attained(point: Point) -> Iterator[Redone]:
    """The nuclear bound is an equality at A = I, if rows of X are orthogonal and of equal norm."""
    for _, of in list(asked(point, "all"))[:1]:
        white = of._replace(data=point.case["white"])
        unit = np.eye(len(white.data))
        saved = saved_sides(point, "attained")
        yield Redone(white.bound(unit), white.added(unit), None, 1.0, "equal", *saved)


def masked_marginal(point: Point) -> Iterator[Redone]:
    """The loss on hidden entries is 1 - p times that of A without its diagonal blocks."""
    for k, of in asked(point, "masked"):
        theory = (1 - of.keep) * of.formula(of.anything - of.within(of.anything))
        measured = of.loss(of.anything, hidden_only=True)
        yield Redone(theory, measured, None, 1.0, "equal", *sides(point, "masked_marginal", k))


def masked_optimum(point: Point) -> Iterator[Redone]:
    """Training on hidden entries reaches ``(S - blkdiag M_b) Q^{-1}`` outside of the blocks."""
    for k, of in ended(point, "masked"):
        if regular(point):
            theory, guess = of.masked_optimum(), trained(point, k).guess
            saved = sides(point, "masked_optimum", k)
            measured = guess - of.within(guess)
            yield Redone(theory, measured, None, of.inverting, "equal", *saved)


def unidentified(point: Point) -> Iterator[Redone]:
    """Training on hidden entries leaves the diagonal blocks of A where they started."""
    for k, of in asked(point, "masked"):
        theory, measured = of.within(of.anything), of.within(trained(point, k).guess)
        yield Redone(theory, measured, None, 1.0, "equal", *sides(point, "unidentified", k))


CLAIMS = {
    "autoencoder": {
        "marginal": marginal,
        "optimum": optimum,
        "rank": rank,
        "bottleneck": bottleneck,
        "bottleneck_value": bottleneck_value,
        "nuclear_bound": nuclear_bound,
        "attained": attained,
        "masked_marginal": masked_marginal,
        "masked_optimum": masked_optimum,
        "unidentified": unidentified,
    }
}
"""Scenario -> claim -> both of its sides."""
