"""Example 4.1: DropBlock, and the spectral k-support norm that it induces."""

import math

import numpy as np

from referee.dropout import SavedNetwork, added
from referee.masks import expected, masks, square
from referee.redone import Redone, largest, saved_sides
from referee.results import Point


class SplitSpectrum:
    """A matrix whose singular values are split: ``w_i = s_i p_i`` with ``sum p_i = k``."""

    def __init__(self, matrix: np.ndarray, block: int):
        self.left, self.values, self.right = np.linalg.svd(matrix, full_matrices=False)
        self.support = k = min(block, len(self.values))
        # For each r the largest k - r - 1 values keep their size, the others have a common one.
        levels = [float(self.values[k - r - 1 :].sum()) / (r + 1) for r in range(k)]
        # With r = k - 1 no value keeps its size, and the condition is met.
        above = [math.inf if r == k - 1 else float(self.values[k - r - 2]) for r in range(k)]
        r = next(r for r in range(k) if above[r] > levels[r])
        self.level, self.whole = levels[r], k - r - 1
        self.norm_squared = float(np.sum(self.values[: self.whole] ** 2)) + (r + 1) * self.level**2

    @property
    def sizes(self) -> np.ndarray:
        """s_i, the singular values with the smaller ones levelled to a common value."""
        return np.where(np.arange(len(self.values)) < self.whole, self.values, self.level)

    @property
    def shares(self) -> np.ndarray:
        """p_i, 1 where all of a value is in each block."""
        return np.minimum(self.values / self.sizes, 1.0) if self.level else 1.0 * (self.values > 0)

    def attained(self, blocks: int) -> bool:
        """Whether so many blocks attain the least penalty."""
        p = self.shares
        between = p[(p > 1e-12) & (p < 1 - 1e-12)]
        least = blocks * np.minimum(between, 1 - between)
        return bool(np.all(least >= 2 - 1e-12))

    def products(self, blocks: int) -> np.ndarray:
        """``U_j V_j^T = (1/B) U S^(1/2) P_j S^(1/2) V^T`` of each block."""
        vectors = unit_vectors(blocks * self.shares, blocks * self.support)
        # In turn: vectors that are B apart share no entry, so that those of a block are orthogonal.
        dealt = vectors.reshape(self.support, blocks, -1).swapaxes(0, 1)
        scaled = dealt * np.sqrt(self.sizes / blocks)
        return (self.left @ scaled.swapaxes(1, 2)) @ (scaled @ self.right)


def unit_vectors(weights: np.ndarray, count: int) -> np.ndarray:
    """Vectors of norm 1, of at most two entries, with ``sum_l f_l f_l^T = diag(weights)``."""
    rest, vectors, i = weights.copy(), [], 0
    # Rounding of the weights: an entry is counted as whole or as used up.
    few = 1e-13 * count
    while len(vectors) < count:
        while i < len(rest) - 1 and rest[i] <= few:
            i += 1
        if rest[i] >= 1 - few or i == len(rest) - 1:
            vectors.append(np.eye(len(rest))[i])
            rest[i] -= 1
        else:
            # Two vectors with opposite signs take what is left, and 2 less that of the next.
            x = rest[i]
            for sign in (1, -1):
                vector = np.zeros(len(rest))
                vector[i], vector[i + 1] = math.sqrt(x / 2), sign * math.sqrt(1 - x / 2)
                vectors.append(vector)
            rest[i], rest[i + 1] = 0, rest[i + 1] - (2 - x)
    return np.array(vectors[:count])


def keep_prob(p: float, block: int, width: int) -> float:
    """``theta(h) = b p / (h - (h - b) p)``."""
    return block * p / (width - (width - block) * p)


def amplified(p: float, blocks: int) -> float:
    """Amplification 1 / (1 - theta(h)) of the rounding of theta(h) in its odds."""
    return (blocks - (blocks - 1) * p) / (blocks * (1 - p))


class SavedBlockNetwork(SavedNetwork):
    """A network with masks on blocks, and a matrix to be factorised in blocks."""

    def __init__(self, point: Point):
        super().__init__(point)
        self.matrix, self.blocks = point.case["matrix"], int(point.case["blocks"])
        self.split = SplitSpectrum(self.matrix, self.block)
        counts = (self.width // self.block, self.blocks)
        self.condition = largest(amplified(self.keep, count) for count in counts)

    def least(self) -> float:
        """``((1-p)/p) ||.||^2`` of the matrix."""
        return self.odds * self.split.norm_squared

    def attained(self) -> float:
        """The penalty of the factors made for it, each block by its two masks."""
        theta = keep_prob(self.keep, self.block, self.blocks * self.block)
        # Variance of a mask over theta, from its two values: no formula for the odds.
        both = theta * (1 / theta - 1) ** 2 + (1 - theta)
        return both * square(self.split.products(self.blocks))


def dropblock(point: Point) -> Redone:
    """Blocks add ``((1-theta)/theta) sum_j ||U_j V_j^T||_F^2``."""
    of = SavedBlockNetwork(point)
    starts = range(0, of.width, of.block)
    cut = [slice(start, start + of.block) for start in starts]
    sizes = math.fsum(square(of.left[:, j] @ of.right[j]) for j in cut)
    theory = square(of.target - of.product) + of.odds * sizes
    loss = lambda m: square(of.target - (of.left * m / of.keep) @ of.right)  # noqa: E731
    measured = expected(masks(of.width, of.keep, of.block), loss)
    return Redone(theory, measured, None, 1.0, "equal", *saved_sides(point, "dropblock"))


def dropblock_bound(point: Point) -> Redone:
    """At theta(h) every factorisation of Z has a penalty of ``((1-p)/p) ||Z||^2`` or more."""
    of = SavedBlockNetwork(point)
    theta = keep_prob(of.keep, of.block, of.width)
    bound = of.odds * SplitSpectrum(of.product, of.block).norm_squared
    pairs = [(of.left, of.right)]
    pairs += [(of.left @ g, h @ of.right) for g, h in zip(of.mixers, of.unmixers, strict=True)]
    measured = [added(left, right, theta, of.block) for left, right in pairs]
    saved, saved_run = saved_sides(point, "dropblock_bound")  # the matrix comes last
    theory, measured = np.full(len(pairs), bound), np.array(measured)
    return Redone(
        theory,
        measured,
        None,
        of.condition,
        "at least",
        saved[: len(measured)],
        saved_run[: len(measured)],
    )


def dropblock_least(point: Point) -> Redone | None:
    """The least penalty is attained by factors in enough blocks."""
    of = SavedBlockNetwork(point)
    if not of.split.attained(of.blocks):
        return None
    saved = saved_sides(point, "dropblock_least")
    return Redone(of.least(), of.attained(), None, of.condition, "equal", *saved)


def dropblock_product(point: Point) -> Redone | None:
    """The factors that attain the least penalty have the matrix as their product."""
    of = SavedBlockNetwork(point)
    if not of.split.attained(of.blocks):
        return None
    measured = of.split.products(of.blocks).sum(0)
    # A decomposition is rounded by some ten units in the last place.
    return Redone(
        of.matrix, measured, None, 10.0, "equal", *saved_sides(point, "dropblock_product")
    )


CLAIMS = {
    "dropblock": {
        "dropblock": dropblock,
        "dropblock_bound": dropblock_bound,
        "dropblock_least": dropblock_least,
        "dropblock_product": dropblock_product,
    }
}
"""Scenario -> claim -> both of its sides."""
