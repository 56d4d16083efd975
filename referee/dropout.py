"""Theorem 3 and Example 4.1: expectations as sums over all masks, and draws of our own."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import product as cartesian
from typing import NamedTuple

import numpy as np
from scipy import stats

from referee.redone import Redone
from referee.results import Point

Mask = np.ndarray


def masks(units: int, keep: float, block: int = 1) -> Iterator[tuple[float, Mask]]:
    """All masks of independent units or blocks with their probabilities."""
    for bits in cartesian((0.0, 1.0), repeat=units // block):
        kept = sum(bits)
        p = keep**kept * (1 - keep) ** (len(bits) - kept)
        yield p, np.repeat(bits, block)


def expected(of: Iterator[tuple[float, Mask]], loss: Callable[[Mask], float]) -> float:
    """The mean of a loss, summed without losing digits."""
    return math.fsum(p * loss(mask) for p, mask in of)


def nuclear(matrix: np.ndarray) -> float:
    """The nuclear norm."""
    return float(np.linalg.svd(matrix, compute_uv=False).sum())


def square(matrix: np.ndarray) -> float:
    """The square of the Frobenius norm."""
    return float(np.sum(matrix**2))


# Any masks -------------------------------------------------------------------------------------


class Masked:
    """A target and the terms that are masked, from a saved case."""

    def __init__(self, point: Point):
        case = point.case
        self.target, self.terms = case["target"], case["terms"]
        self.keep, self.block = float(case["keep_prob"]), int(case["block"])
        self.mean = np.full(len(self.terms), self.keep)

    def masks(self) -> Iterator[tuple[float, Mask]]:
        """All masks of the kind."""
        return masks(len(self.terms), self.keep, self.block)

    def loss(self, mask: Mask, mean: np.ndarray) -> float:
        """``||Y - sum (R_i/mu_i) Z_i||_F^2``."""
        return square(self.target - np.tensordot(mask / mean, self.terms, 1))

    def formula(self, mean: np.ndarray, covariance: np.ndarray) -> float:
        """``||Y - sum Z_i||_F^2 + sum C_ij/(mu_i mu_j) <Z_i, Z_j>``."""
        gram = np.einsum("iab,jab->ij", self.terms, self.terms)
        weights = covariance / np.outer(mean, mean)
        return square(self.target - self.terms.sum(0)) + float(np.sum(weights * gram))

    def covariance(self) -> np.ndarray:
        """``theta (1 - theta)`` within a block."""
        place = np.arange(len(self.terms)) // self.block
        return self.keep * (1 - self.keep) * (place[:, None] == place[None, :])

    def first_alone(self) -> "Masked":
        """The first block alone masked: all other terms belong to the target."""
        alone = object.__new__(Masked)
        alone.target = self.target - self.terms[self.block :].sum(0)
        alone.terms, alone.mean = self.terms[: self.block], self.mean[: self.block]
        alone.keep, alone.block = self.keep, self.block
        return alone


def mask_identity(point: Point) -> Redone:
    """The expected loss by two moments, and over all masks of the kind."""
    of = Masked(point)
    theory = of.formula(of.mean, of.covariance())
    seen = expected(of.masks(), lambda mask: of.loss(mask, of.mean))
    saved = (point.found["mask_identity_predicted"], point.found["mask_identity_measured"])
    return Redone(theory, seen, None, 1.0, "equal", *saved)


def any_masks(point: Point) -> Redone:
    """The same for nine masks of dependent real entries."""
    of = Masked(point)
    support, p = point.case["others.support"], point.case["others.probabilities"]
    mean = p @ support
    covariance = (support - mean).T @ ((support - mean) * p[:, None])
    theory = of.formula(mean, covariance)
    seen = math.fsum(w * of.loss(mask, mean) for w, mask in zip(p, support, strict=True))
    saved = (point.found["any_masks_predicted"], point.found["any_masks_measured"])
    return Redone(theory, seen, None, 1.0, "equal", *saved)


DRAWS = (16, 256, 4096)
REPEATS = 3500
SURPRISE = 9.0
"""-log10 of the smallest p-value that is no alarm: 1e-6 over at most a thousand tests."""


class Drawn(NamedTuple):
    """Estimates of an expected loss, each the mean of a number of draws."""

    draws: int
    mean: float
    """What they are in the mean, by the formula."""
    deviation: float
    """Of one loss, over all masks."""
    excess: float
    """Excess kurtosis of one loss."""
    estimates: tuple[np.ndarray, np.ndarray]
    """Those of the run, and ours."""


def of_draws(point: Point) -> Iterator[Drawn]:
    """The estimates of each number of draws; those of the most mask the first block alone."""
    whole, rng = Masked(point), np.random.default_rng(0)
    for k, (draws, of) in enumerate(zip(DRAWS, (whole, whole, whole.first_alone()), strict=True)):
        p, losses = np.array([(p, of.loss(mask, of.mean)) for p, mask in of.masks()]).T
        centred = losses - p @ losses
        variance = float(p @ centred**2)
        own = rng.multinomial(draws, p / p.sum(), size=REPEATS) @ losses / draws
        yield Drawn(
            draws,
            of.formula(of.mean, of.covariance()),
            math.sqrt(variance),
            float(p @ centred**4) / variance**2 - 3,
            (point.found["estimates"][k], own),
        )


def student_p(estimates: np.ndarray, mean: float) -> float:
    """The two-sided p-value of Student's test of a mean."""
    error = float(np.std(estimates, ddof=1)) / math.sqrt(len(estimates))
    t = abs(float(np.mean(estimates)) - mean) / error
    return 2 * float(stats.t.sf(t, len(estimates) - 1))


def surprise(p: float) -> Redone:
    """A p-value as a claim: -log10 p, 0 where nothing surprises."""
    return Redone(0.0, -math.log10(max(p, 1e-300)), 1.0, kind="statistical", tolerance=SURPRISE)


def monte_carlo(point: Point) -> Iterator[Redone]:
    """Student's test of means of 256 and of 4096 losses: those of the run, and draws of NumPy."""
    for drawn in of_draws(point):
        if drawn.draws > DRAWS[0]:
            for estimates in drawn.estimates:
                yield surprise(student_p(estimates, drawn.mean))


def monte_carlo_rate(point: Point) -> Iterator[Redone]:
    """The sum of the squared errors, over their variance, is about the number of estimates.

    A squared standardised error has the variance 2 and the excess of a mean of n draws, which is
    that of one over n.
    """
    for drawn in of_draws(point):
        for estimates in drawn.estimates:
            errors = (estimates - drawn.mean) / (drawn.deviation / math.sqrt(drawn.draws))
            spread = math.sqrt(len(errors) * max(2 + drawn.excess / drawn.draws, 0.1))
            deviations = abs(float(np.sum(errors**2)) - len(errors)) / spread
            yield surprise(2 * float(stats.norm.sf(deviations)))


# Dropout of one hidden layer --------------------------------------------------------------------


class Network:
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
    def made(self) -> np.ndarray:
        """Z."""
        return self.left @ self.right

    def sizes(self) -> float:
        """``sum_i ||u_i||^2 ||v_i||^2``."""
        return float(np.sum(np.sum(self.left**2, 0) * np.sum(self.right**2, 1)))


def added(left: np.ndarray, right: np.ndarray, keep: float, block: int = 1) -> float:
    """What masks over theta add to the loss of a product: over all masks of the units."""
    whole = left @ right
    return expected(
        masks(left.shape[1], keep, block), lambda m: square((left * m / keep) @ right - whole)
    )


def added_unit_by_unit(left: np.ndarray, right: np.ndarray, keep: float) -> float:
    """The same of independent units, each by its two masks."""
    per_unit = [square(np.outer(u, v)) for u, v in zip(left.T, right, strict=True)]
    both = keep * (1 / keep - 1) ** 2 + (1 - keep)
    return both * math.fsum(per_unit)


def equalised_factors(whole: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors in which all units have the same size, by rotations in planes of two units."""
    left, values, right = np.linalg.svd(whole, full_matrices=False)
    kept = min(width, len(values))
    size = np.zeros(width)
    size[:kept] = values[:kept]
    turn, moment, mean = np.eye(width), np.diag(size), size.sum() / width
    for _ in range(width - 1):
        entries = np.diag(moment)
        i, j = int(np.argmin(entries)), int(np.argmax(entries))
        if entries[j] - entries[i] <= 1e-15 * size.sum():
            break
        # The angle at which entry i of the turned matrix is the mean.
        a, b, c = entries[i], entries[j], moment[i, j]
        roots = np.roots([b - mean, 2 * c, a - mean])
        tangent = float(np.real(roots[np.argmin(np.abs(roots))]))
        cosine = 1 / math.sqrt(1 + tangent**2)
        plane = np.eye(width)
        plane[i, i] = plane[j, j] = cosine
        plane[i, j], plane[j, i] = tangent * cosine, -tangent * cosine
        moment, turn = plane @ moment @ plane.T, plane @ turn
    root = np.sqrt(values[:kept])
    return (left[:, :kept] * root) @ turn[:, :kept].T, turn[:, :kept] @ (
        root[:, None] * right[:kept]
    )


def saved_sides(point: Point, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Both saved sides of a claim."""
    return point.found[f"{name}_predicted"], point.found[f"{name}_measured"]


def penalty(point: Point) -> Redone:
    """``((1-theta)/theta) sum ||u_i||^2 ||v_i||^2`` over all masks."""
    of = Network(point)
    theory = square(of.target - of.made) + of.odds * of.sizes()
    loss = lambda m: square(of.target - (of.left * m / of.keep) @ of.right)  # noqa: E731
    seen = expected(masks(of.width, of.keep), loss)
    return Redone(theory, seen, None, 1.0, "equal", *saved_sides(point, "penalty"))


def unscaled_masks(point: Point) -> Redone:
    """``||Y - theta Z||^2 + theta (1 - theta) sum``."""
    of = Network(point)
    theory = square(of.target - of.keep * of.made) + of.keep * (1 - of.keep) * of.sizes()
    loss = lambda m: square(of.target - (of.left * m) @ of.right)  # noqa: E731
    seen = expected(masks(of.width, of.keep), loss)
    return Redone(theory, seen, None, 1.0, "equal", *saved_sides(point, "unscaled_masks"))


def factorisations(point: Point) -> Redone:
    """No factorisation of Z has a penalty below ``c ||Z||_*^2``."""
    of = Network(point)
    bound = of.odds / of.width * nuclear(of.made) ** 2
    mixed = [(of.left @ g, h @ of.right) for g, h in zip(of.mixers, of.unmixers, strict=True)]
    every = [*mixed, equalised_factors(of.made, of.width)]
    seen = np.array([added(left, right, of.keep) for left, right in every])
    theory = np.full(len(every), bound)
    return Redone(theory, seen, None, 1.0, "at least", *saved_sides(point, "factorisations"))


def equalised(point: Point) -> Redone:
    """The equalised factors have terms of the norm ``||Z||_* / h``."""
    of = Network(point)
    left, right = equalised_factors(of.made, of.width)
    seen = np.linalg.norm(left, axis=0) * np.linalg.norm(right, axis=1)
    theory = np.full(of.width, nuclear(of.made) / of.width)
    return Redone(theory, seen, None, 1.0, "equal", *saved_sides(point, "equalised"))


def equalised_product(point: Point) -> Redone:
    """Their product is Z."""
    of = Network(point)
    seen = np.matmul(*equalised_factors(of.made, of.width))
    return Redone(of.made, seen, None, 1.0, "equal", *saved_sides(point, "equalised_product"))


COPIES = (1, 3)


def equalised_penalty(point: Point) -> Redone:
    """Their penalty is the least one, at h and at 3 h units."""
    of = Network(point)
    theory = [of.odds / (k * of.width) * nuclear(of.made) ** 2 for k in COPIES]
    seen = [added_unit_by_unit(*equalised_factors(of.made, k * of.width), of.keep) for k in COPIES]
    return Redone(
        np.array(theory),
        np.array(seen),
        None,
        1.0,
        "equal",
        *saved_sides(point, "equalised_penalty"),
    )


def width_free(point: Point) -> Redone:
    """With ``theta(h) = p / (h - (h-1) p)`` it is ``((1-p)/p) ||Z||_*^2`` at every width."""
    of = Network(point)
    theory = np.full(len(COPIES), of.odds * nuclear(of.made) ** 2)
    seen, p = [], of.keep
    for k in COPIES:
        h = k * of.width
        seen.append(added_unit_by_unit(*equalised_factors(of.made, h), p / (h - (h - 1) * p)))
    condition = (of.width - (of.width - 1) * p) / (of.width * (1 - p))
    return Redone(
        theory, np.array(seen), None, condition, "equal", *saved_sides(point, "width_free")
    )


def fixed_keep_prob(point: Point) -> Redone:
    """Copies divide the penalty by their number."""
    of = Network(point)
    one = of.odds * of.sizes()
    copied = [(np.tile(of.left, (1, k)) / k, np.tile(of.right, (k, 1))) for k in COPIES]
    theory = np.array([one / k for k in COPIES])
    seen = np.array([added_unit_by_unit(*pair, of.keep) for pair in copied])
    return Redone(theory, seen, None, 1.0, "equal", *saved_sides(point, "fixed_keep_prob"))


def envelope_above(point: Point) -> Redone:
    """Single units of mean Z have the mean penalty ``((1-p)/p) ||Z||_*^2``."""
    of = Network(point)
    left, right = equalised_factors(of.made, of.width)
    alone = [
        added_unit_by_unit(of.width * u[:, None], v[None, :], of.keep)
        for u, v in zip(left.T, right, strict=True)
    ]
    theory, seen = of.odds * nuclear(of.made) ** 2, float(np.mean(alone))
    return Redone(theory, seen, None, 1.0, "equal", *saved_sides(point, "envelope_above"))


def envelope_below(point: Point) -> Redone:
    """``((1-p)/p) (2 ||Z||_* <U V^T, M> - ||Z||_*^2)`` lies below the penalty of every unit M."""
    of = Network(point)
    left, values, right = np.linalg.svd(of.made, full_matrices=False)
    kept = min(of.width, len(values))
    polar, norm = left[:, :kept] @ right[:kept], values[:kept].sum()
    pairs = [(of.left, of.right), equalised_factors(of.made, of.width)]
    theory, seen = [], []
    for u, v in ((u, v) for a, b in pairs for u, v in zip(a.T, b, strict=True)):
        unit = of.width * np.outer(u, v)
        theory.append(of.odds * (2 * norm * np.sum(polar * unit) - norm**2))
        seen.append(added_unit_by_unit(of.width * u[:, None], v[None, :], of.keep))
    return Redone(np.array(theory), np.array(seen), None, 1.0, "at least")


# Several layers and single weights --------------------------------------------------------------


def deep(point: Point) -> tuple[Network, list[np.ndarray]]:
    """The network, and three layers made of its parts."""
    of, middle = Network(point), point.case["middle"]
    k = len(middle)
    return of, [of.first[:k], middle, of.second[:, :k]]


def through(
    layers: Sequence[np.ndarray], inputs: np.ndarray, mask: Mask, keep: float
) -> np.ndarray:
    """Layers with masks over theta on every hidden one."""
    hidden, place = layers[0] @ inputs, 0
    for layer in layers[1:]:
        hidden = layer @ (mask[place : place + len(hidden), None] / keep * hidden)
        place += layer.shape[1]
    return hidden


def added_to_layers(layers: Sequence[np.ndarray], inputs: np.ndarray, keep: float) -> float:
    """What masks of both hidden layers add to the output, over all of them."""
    whole = layers[2] @ layers[1] @ layers[0] @ inputs
    units = len(layers[0]) + len(layers[1])
    return expected(masks(units, keep), lambda m: square(through(layers, inputs, m, keep) - whole))


def joint_penalty(layers: Sequence[np.ndarray], inputs: np.ndarray, keep: float) -> float:
    """``tr M_L - tr(W C W^T)``, the difference carried along."""
    odds = (1 - keep) / keep
    plain = layers[0] @ inputs @ inputs.T @ layers[0].T
    more = np.zeros_like(plain)
    for layer in layers[1:]:
        spread = np.diag(np.diag(plain + more))
        more, plain = layer @ (more + odds * spread) @ layer.T, layer @ plain @ layer.T
    return float(np.trace(more))


def strength(keep: float, widths: Sequence[int]) -> float:
    """``nu = prod_i (1 + (1-theta)/(theta d_i)) - 1``."""
    return math.expm1(math.fsum(math.log1p((1 - keep) / keep / d) for d in widths))


def layers_penalty(point: Point) -> Redone:
    """Dropout after each of two hidden layers."""
    of, layers = deep(point)
    whole = layers[2] @ layers[1] @ layers[0] @ of.inputs
    theory = square(of.target - whole) + joint_penalty(layers, of.inputs, of.keep)
    units = len(layers[0]) + len(layers[1])
    loss = lambda m: square(of.target - through(layers, of.inputs, m, of.keep))  # noqa: E731
    seen = expected(masks(units, of.keep), loss)
    return Redone(theory, seen, None, 1.0, "equal", *saved_sides(point, "layers"))


def layers_bound(point: Point) -> Redone:
    """It is at least ``nu ||Z||_*^2``."""
    of, layers = deep(point)
    whole = layers[2] @ layers[1] @ layers[0] @ of.inputs
    theory = strength(of.keep, [len(layers[0]), len(layers[1])]) * nuclear(whole) ** 2
    seen = added_to_layers(layers, of.inputs, of.keep)
    return Redone(theory, seen, None, 1.0, "at least", *saved_sides(point, "layers_bound"))


def layers_schatten(point: Point) -> Redone:
    """And at least the bound with the 2/3-norm."""
    of, layers = deep(point)
    whole = layers[2] @ layers[1] @ layers[0] @ of.inputs
    values = np.linalg.svd(whole, compute_uv=False)[: len(layers[0])]
    first, second = (of.odds / len(layer) for layer in layers[:2])
    theory = (first + second) * values.sum() ** 2 + first * second * np.sum(values ** (2 / 3)) ** 3
    seen = added_to_layers(layers, of.inputs, of.keep)
    return Redone(theory, seen, None, 1.0, "at least", *saved_sides(point, "layers_schatten"))


def layers_rank_one(point: Point) -> Redone:
    """For a map of rank one spread evenly it is ``nu ||Z||_*^2``."""
    of, layers = deep(point)
    column, row, d = point.case["column"], point.case["row"], len(layers[1])
    theory = strength(of.keep, [d, d]) * square(np.outer(column, row @ of.inputs))
    even = np.full(d, d**-0.5)
    made = [np.outer(even, row), np.outer(even, even), np.outer(column, even)]
    seen = added_to_layers(made, of.inputs, of.keep)
    return Redone(theory, seen, None, 1.0, "equal", *saved_sides(point, "layers_rank_one"))


def layers_rank_two(point: Point) -> Redone | None:
    """For two equal singular values spread evenly the other bound is attained."""
    of, layers = deep(point)
    d = len(layers[1])
    if d < 2:
        return None
    theory = 2 * of.odds / d * 4 + (of.odds / d) ** 2 * 8
    angles = 2 * np.pi * np.arange(d) / d if d > 2 else np.array([0, np.pi / 2])
    turned = np.sqrt(2 / d) * np.stack([np.cos(angles), np.sin(angles)])
    seen = added_to_layers([turned.T, turned.T @ turned, turned], np.eye(2), of.keep)
    return Redone(theory, seen, None, 1.0, "equal", *saved_sides(point, "layers_rank_two"))


TINY = 3


def dropconnect(point: Point, of_first: bool) -> Redone:
    """Masks on the weights of one layer."""
    of = Network(point)
    first, second = of.first[:TINY, :TINY], of.second[:TINY, :TINY]
    inputs, target = of.inputs[:TINY], of.target[:TINY]
    theory = square(target - second @ first @ inputs)
    if of_first:
        each = np.outer(np.sum(second**2, 0), np.sum(inputs**2, 1)) * first**2
    else:
        each = np.sum(second**2, 0) * np.sum((first @ inputs) ** 2, 1)
    theory += of.odds * float(each.sum())

    def loss(mask: Mask) -> float:
        layer = first if of_first else second
        masked = layer * mask.reshape(layer.shape) / of.keep
        made = second @ masked @ inputs if of_first else masked @ first @ inputs
        return square(target - made)

    seen = expected(masks((first if of_first else second).size, of.keep), loss)
    name = "dropconnect_input" if of_first else "dropconnect_output"
    return Redone(theory, seen, None, 1.0, "equal", *saved_sides(point, name))


CLAIMS = {
    "masks": {
        "mask_identity": mask_identity,
        "any_masks": any_masks,
        "monte_carlo": monte_carlo,
        "monte_carlo_rate": monte_carlo_rate,
    },
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
        "layers": layers_penalty,
        "layers_bound": layers_bound,
        "layers_rank_one": layers_rank_one,
        "layers_schatten": layers_schatten,
        "layers_rank_two": layers_rank_two,
        "dropconnect_input": lambda point: dropconnect(point, True),
        "dropconnect_output": lambda point: dropconnect(point, False),
    },
}
"""Scenario -> claim -> both of its sides."""
