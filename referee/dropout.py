"""Theorem 3 and Example 4.1: what dropout of one hidden layer adds, over all masks."""

import math

import numpy as np

from referee.masks import expected, masks, nuclear, square
from referee.redone import Redone, saved_sides
from referee.results import Point


class SavedNetwork:
    """Two layers and data, from a saved case."""

    def __init__(self, point: Point, name: str = "network"):
        case = {n.removeprefix(f"{name}."): a for n, a in point.case.items()}
        self.first, self.second = case["weights.0"], case["weights.1"]
        self.inputs, self.target = case["inputs"], case["target"]
        self.keep, self.block = float(case["keep_prob"]), int(case.get("block", 1))
        self.mixers, self.unmixers = case["mixers"], case["unmixers"]
        self.left, self.right = self.second, self.first @ self.inputs

    @property
    def odds(self) -> float:
        """``(1 - theta) / theta``."""
        return (1 - self.keep) / self.keep

    @property
    def width(self) -> int:
        """The number of hidden units."""
        return self.left.shape[1]

    @property
    def product(self) -> np.ndarray:
        """Z, the product of both factors."""
        return self.left @ self.right

    def sizes(self) -> float:
        """``sum_i ||u_i||^2 ||v_i||^2``, summed over the hidden units."""
        return float(np.sum(np.sum(self.left**2, 0) * np.sum(self.right**2, 1)))


def added(left: np.ndarray, right: np.ndarray, keep: float, block: int = 1) -> float:
    """Penalty of masks over theta for a product, over all masks of the units."""
    whole = left @ right
    return expected(
        masks(left.shape[1], keep, block), lambda m: square((left * m / keep) @ right - whole)
    )


def added_unit_by_unit(left: np.ndarray, right: np.ndarray, keep: float) -> float:
    """Penalty of masks of independent units for a product, each unit by its two masks."""
    per_unit = [square(np.outer(u, v)) for u, v in zip(left.T, right, strict=True)]
    both = keep * (1 / keep - 1) ** 2 + (1 - keep)
    return both * math.fsum(per_unit)


def equalised_factors(whole: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors in which all units have the same size, by rotations in planes of two units."""
    left, values, right = np.linalg.svd(whole, full_matrices=False)
    rank = min(width, len(values))
    size = np.zeros(width)
    size[:rank] = values[:rank]
    # Balanced factors share the matrix diag(sigma): its diagonal is the squared size of each unit.
    turn, moment, mean = np.eye(width), np.diag(size), size.sum() / width
    # A turn sets one entry to the mean, for good: after width - 1 turns all are equal.
    for _ in range(width - 1):
        entries = np.diag(moment)
        i, j = int(np.argmin(entries)), int(np.argmax(entries))
        # Equal up to rounding: an angle out of rounding would undo what is there.
        if entries[j] - entries[i] <= 1e-15 * size.sum():
            break
        # The angle at which entry i of the turned matrix is the mean.
        a, b, c = entries[i], entries[j], moment[i, j]
        # Real, since the mean lies between both entries; the smaller one turns less.
        roots = np.roots([b - mean, 2 * c, a - mean])
        tangent = float(np.real(roots[np.argmin(np.abs(roots))]))
        cosine = 1 / math.sqrt(1 + tangent**2)
        plane = np.eye(width)
        plane[i, i] = plane[j, j] = cosine
        plane[i, j], plane[j, i] = tangent * cosine, -tangent * cosine
        moment, turn = plane @ moment @ plane.T, plane @ turn
    root = np.sqrt(values[:rank])
    return (left[:, :rank] * root) @ turn[:, :rank].T, turn[:, :rank] @ (
        root[:, None] * right[:rank]
    )


def penalty(point: Point) -> Redone:
    """``((1-theta)/theta) sum ||u_i||^2 ||v_i||^2`` over all masks."""
    of = SavedNetwork(point)
    theory = square(of.target - of.product) + of.odds * of.sizes()
    loss = lambda m: square(of.target - (of.left * m / of.keep) @ of.right)  # noqa: E731
    measured = expected(masks(of.width, of.keep), loss)
    return Redone(theory, measured, None, 1.0, "equal", *saved_sides(point, "penalty"))


def unscaled_masks(point: Point) -> Redone:
    """``||Y - theta Z||^2 + theta (1 - theta) sum``."""
    of = SavedNetwork(point)
    theory = square(of.target - of.keep * of.product) + of.keep * (1 - of.keep) * of.sizes()
    loss = lambda m: square(of.target - (of.left * m) @ of.right)  # noqa: E731
    measured = expected(masks(of.width, of.keep), loss)
    return Redone(theory, measured, None, 1.0, "equal", *saved_sides(point, "unscaled_masks"))


def factorisations(point: Point) -> Redone:
    """No factorisation of Z has a penalty below ``c ||Z||_*^2``."""
    of = SavedNetwork(point)
    bound = of.odds / of.width * nuclear(of.product) ** 2
    mixed = [(of.left @ g, h @ of.right) for g, h in zip(of.mixers, of.unmixers, strict=True)]
    every = [*mixed, equalised_factors(of.product, of.width)]
    measured = np.array([added(left, right, of.keep) for left, right in every])
    theory = np.full(len(every), bound)
    return Redone(theory, measured, None, 1.0, "at least", *saved_sides(point, "factorisations"))


def equalised(point: Point) -> Redone:
    """The equalised factors have terms of the norm ``||Z||_* / h``."""
    of = SavedNetwork(point)
    left, right = equalised_factors(of.product, of.width)
    measured = np.linalg.norm(left, axis=0) * np.linalg.norm(right, axis=1)
    theory = np.full(of.width, nuclear(of.product) / of.width)
    return Redone(theory, measured, None, 1.0, "equal", *saved_sides(point, "equalised"))


def equalised_product(point: Point) -> Redone:
    """The product of the equalised factors is Z."""
    of = SavedNetwork(point)
    measured = np.matmul(*equalised_factors(of.product, of.width))
    return Redone(
        of.product, measured, None, 1.0, "equal", *saved_sides(point, "equalised_product")
    )


COPIES = (1, 3)
"""Widths, as multiples of h, that stand for all."""


def equalised_penalty(point: Point) -> Redone:
    """The penalty of the equalised factors is the least one, at h and at 3 h units."""
    of = SavedNetwork(point)
    theory = [of.odds / (k * of.width) * nuclear(of.product) ** 2 for k in COPIES]
    measured = [
        added_unit_by_unit(*equalised_factors(of.product, k * of.width), of.keep) for k in COPIES
    ]
    return Redone(
        np.array(theory),
        np.array(measured),
        None,
        1.0,
        "equal",
        *saved_sides(point, "equalised_penalty"),
    )


def width_free(point: Point) -> Redone:
    """With ``theta(h) = p / (h - (h-1) p)`` the penalty is ``((1-p)/p) ||Z||_*^2`` at any width."""
    of = SavedNetwork(point)
    theory = np.full(len(COPIES), of.odds * nuclear(of.product) ** 2)
    measured, p = [], of.keep
    for k in COPIES:
        h = k * of.width
        measured.append(
            added_unit_by_unit(*equalised_factors(of.product, h), p / (h - (h - 1) * p))
        )
    # 1 / (1 - theta(h)): theta(h) is rounded, and its odds amplify that.
    condition = (of.width - (of.width - 1) * p) / (of.width * (1 - p))
    return Redone(
        theory, np.array(measured), None, condition, "equal", *saved_sides(point, "width_free")
    )


def fixed_keep_prob(point: Point) -> Redone:
    """Copies divide the penalty by their number."""
    of = SavedNetwork(point)
    whole = of.odds * of.sizes()
    copied = [(np.tile(of.left, (1, k)) / k, np.tile(of.right, (k, 1))) for k in COPIES]
    theory = np.array([whole / k for k in COPIES])
    measured = np.array([added_unit_by_unit(*pair, of.keep) for pair in copied])
    return Redone(theory, measured, None, 1.0, "equal", *saved_sides(point, "fixed_keep_prob"))


def envelope_above(point: Point) -> Redone:
    """Single units of mean Z have the mean penalty ``((1-p)/p) ||Z||_*^2``."""
    of = SavedNetwork(point)
    left, right = equalised_factors(of.product, of.width)
    alone = [
        added_unit_by_unit(of.width * u[:, None], v[None, :], of.keep)
        for u, v in zip(left.T, right, strict=True)
    ]
    theory, measured = of.odds * nuclear(of.product) ** 2, float(np.mean(alone))
    return Redone(theory, measured, None, 1.0, "equal", *saved_sides(point, "envelope_above"))


def envelope_below(point: Point) -> Redone:
    """``((1-p)/p) (2 ||Z||_* <U V^T, M> - ||Z||_*^2)`` lies below the penalty of every unit M."""
    of = SavedNetwork(point)
    left, values, right = np.linalg.svd(of.product, full_matrices=False)
    rank = min(of.width, len(values))
    polar, norm = left[:, :rank] @ right[:rank], values[:rank].sum()
    pairs = [(of.left, of.right), equalised_factors(of.product, of.width)]
    theory, measured = [], []
    for u, v in ((u, v) for a, b in pairs for u, v in zip(a.T, b, strict=True)):
        unit = of.width * np.outer(u, v)
        theory.append(of.odds * (2 * norm * np.sum(polar * unit) - norm**2))
        measured.append(added_unit_by_unit(of.width * u[:, None], v[None, :], of.keep))
    # Of equalised units, of which there are many, all have the same two numbers.
    saved = saved_sides(point, "envelope_below")
    return Redone(np.array(theory), np.array(measured), None, 1.0, "at least", *saved)


CLAIMS = {
    "dropout": {
        "penalty": penalty,
        "unscaled_masks": unscaled_masks,
        "factorisations": factorisations,
        "equalised": equalised,
        "equalised_product": equalised_product,
        "equalised_penalty": equalised_penalty,
        "width_free": width_free,
        "fixed_keep_prob": fixed_keep_prob,
        "envelope_above": envelope_above,
        "envelope_below": envelope_below,
    }
}
"""Scenario -> claim -> both of its sides."""
