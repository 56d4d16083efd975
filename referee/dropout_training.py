"""Example 4.1: where training with dropout ends, by descent on the expected loss and with masks.

Every random mask of a run is drawn again from its key, so that what it saved of training both
layers is compared number by number. Training of the last layer starts above equalised factors,
of which there are many: its ends are tested, and so are ends of our own.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from referee import draws
from referee.dropout import equalised_factors
from referee.masks import expected, masks, square, student_p, surprise
from referee.redone import EPS, Redone, largest, saved_as, saved_sides
from referee.results import Point, once

RUNS = 256
"""Runs of training with masks."""
DRIFT = 64
"""Steps of those that train both layers."""
SHARE = 24
"""Steps of descent for each step of a run that trains the last layer."""
FEW = 8
"""Units of rounding at which the end of descent still counts as at rest."""
ENUMERATED = 10
"""Most units whose masks are summed over."""


class SavedRegression:
    """Data, a target and two starts, from a saved case."""

    def __init__(self, point: Point):
        case = point.case
        self.inputs, self.target = case["inputs"], case["target"]
        self.start, self.fitted = point.parts("weights"), point.parts("fitted")
        self.keep, self.rate = float(case["keep_prob"]), float(case["learning_rate"])
        self.width, self.steps = int(case["width"]), int(case["steps"])
        self.key = case["key"]
        self.odds = (1 - self.keep) / self.keep
        onto = np.linalg.pinv(self.inputs) @ self.inputs
        self.left, self.sigma, self.right = np.linalg.svd(self.target @ onto, full_matrices=False)

    def shrunk(self) -> tuple[np.ndarray, float]:
        """Singular values ``(sigma_i - mu_q)_+`` of the minimiser on q directions, and mu_q."""
        c = self.odds / self.width
        q, mu = 0, 0.0
        for i in range(1, min(self.width, len(self.sigma)) + 1):
            threshold = c / (1 + c * i) * float(self.sigma[:i].sum())
            if self.sigma[i - 1] > threshold:
                q, mu = i, threshold
        chosen = np.arange(len(self.sigma)) < q
        return np.where(chosen, self.sigma - mu, 0.0), mu

    def matrix_of(self, values: np.ndarray) -> np.ndarray:
        """The product with these singular values."""
        return (self.left * values) @ self.right

    def gap(self) -> float:
        """How far, over sigma_1, any sigma_i is from being chosen otherwise."""
        _, mu = self.shrunk()
        h = self.width
        distances = list(np.abs(self.sigma[:h] - mu))
        if h < len(self.sigma) and self.sigma[h - 1] > mu:
            distances.append(self.sigma[h - 1] - self.sigma[h])
        return float(min(distances) / self.sigma[0])

    def pulls(self, layers: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The gradients of half the loss at the mean of the masks, and of half the units' squares.

        These are ``sum_i ||w_{2,i}||^2 ||w_{1,i} X||^2``.
        """
        first, second = layers
        hidden = first @ self.inputs
        residual = second @ hidden - self.target
        swapped = np.swapaxes(hidden, -1, -2)
        fit = [np.swapaxes(second, -1, -2) @ residual @ self.inputs.T, residual @ swapped]
        of_units = np.sum(second**2, -2)[..., :, None] * hidden @ self.inputs.T
        units = [of_units, second * np.sum(hidden**2, -1)[..., None, :]]
        return fit, units

    def slopes(self, layers: list[np.ndarray]) -> list[np.ndarray]:
        """The gradient of half the expected loss."""
        return [f + self.odds * u for f, u in zip(*self.pulls(layers), strict=True)]

    def masked_slopes(self, layers: list[np.ndarray], mask: np.ndarray) -> list[np.ndarray]:
        """The gradients of ``1/2 ||Y - W_2 diag(R/theta) W_1 X||_F^2``, of several runs."""
        first, second = layers
        scaled = mask / self.keep
        hidden = scaled[..., :, None] * (first @ self.inputs)
        residual = second @ hidden - self.target
        above = scaled[..., :, None] * (np.swapaxes(second, -1, -2) @ residual)
        return [above @ self.inputs.T, residual @ np.swapaxes(hidden, -1, -2)]


class Trained(NamedTuple):
    """Layers at the end of descent on the expected loss."""

    first: np.ndarray
    second: np.ndarray
    condition: float
    """How far the end is from rest, in units of rounding; 1 if it is nearer."""


@once
def regression(point: Point) -> SavedRegression:
    """The regression of a point."""
    return SavedRegression(point)


@once
def trained(point: Point) -> Trained | None:
    """Layers after descent on the expected loss; None where it is not at rest."""
    of = regression(point)
    layers = of.start
    for _ in range(of.steps):
        layers = [w - of.rate * g for w, g in zip(layers, of.slopes(layers), strict=True)]
    slope = math.sqrt(sum(square(g) for g in of.slopes(layers)))
    numbers = max(of.target.shape)
    # In units of rounding that chooses no other directions. lrdyn judges at about one of them: a
    # few more, by which a run here can round otherwise, are as much more of a distance.
    left = slope / (8 * EPS * math.sqrt(numbers) * of.gap())
    return Trained(layers[0], layers[1], largest([left, 1.0])) if left <= FEW else None


def dropout_minimiser(point: Point) -> Redone | None:
    """Descent on the expected loss ends at ``U (Sigma - mu_q I)_+ V^T``."""
    of, run = regression(point), trained(point)
    if run is None:
        return None
    measured, saved = run.second @ run.first @ of.inputs, saved_sides(point, "dropout_minimiser")
    return Redone(of.matrix_of(of.shrunk()[0]), measured, None, run.condition, "equal", *saved)


def dropout_minimum(point: Point) -> Redone | None:
    """The expected loss there is the least of ``||Y - Z||_F^2 + c ||Z||_*^2``."""
    of, run = regression(point), trained(point)
    if run is None:
        return None
    values, _ = of.shrunk()
    theory = square(of.target - of.matrix_of(values)) + of.odds / of.width * values.sum() ** 2
    left, right = run.second, run.first @ of.inputs
    # 2^h losses: beyond that the penalty by its formula, which `penalty` checks.
    if of.width <= ENUMERATED:
        loss = lambda m: square(of.target - (left * m / of.keep) @ right)  # noqa: E731
        measured = expected(masks(of.width, of.keep), loss)
    else:
        sizes = np.sum(left**2, 0) * np.sum(right**2, 1)
        measured = square(of.target - left @ right) + of.odds * float(sizes.sum())
    saved = saved_sides(point, "dropout_minimum")
    return Redone(theory, measured, None, 1.0, "equal", *saved)


# The last layer, trained with masks -------------------------------------------------------------


class LastLayer(NamedTuple):
    """Training of the last layer from 0 above the first one of the minimiser."""

    theory: np.ndarray
    """``(sigma_i - mu_q)_+ (1 - prod_t (1 - eta_t sigma_i))``."""
    mean: np.ndarray
    """``u_i^T Z v_i`` at the end of descent on the expected loss, which is their mean."""
    ends: np.ndarray
    """``u_i^T Z v_i`` at the end of runs with masks of our own."""
    decided: bool
    """Whether the slowest direction is at its end."""


@once
def last_layer(point: Point) -> LastLayer:
    """The last layer of a point: what theory says, the exact mean, and runs of our own."""
    of = regression(point)
    values, _ = of.shrunk()
    count = max(1, of.steps // SHARE)
    half = max(1, count // 2)
    # sigma_1 = 1: half of theta at first, and half of that behind half of the steps.
    rates = [of.keep / (2 * (1 + t / half)) for t in range(count)]
    left_over = np.prod([1 - rate * of.sigma for rate in rates], axis=0)
    _, hidden = equalised_factors(of.matrix_of(values), of.width)
    moment, with_target = hidden @ hidden.T, of.target @ hidden.T
    # The loss is quadratic in the last layer, and the odds weigh each unit's own square.
    curvature = moment + of.odds * np.diag(np.diag(moment))
    mean = np.zeros((len(of.target), of.width))
    runs, rng = np.zeros((RUNS, *mean.shape)), np.random.default_rng(0)
    for rate in rates:
        mean = mean - rate * (mean @ curvature - with_target)
        scaled = (rng.random((RUNS, of.width)) < of.keep)[:, None, :] / of.keep
        runs = runs - rate * (((runs * scaled) @ moment - with_target) * scaled)
    along = lambda second: np.einsum("mi,...mh,hi->...i", of.left, second, hidden @ of.right.T)  # noqa: E731
    chosen = values > 0
    slowest = float(of.sigma[chosen].min()) if chosen.any() else math.inf
    return LastLayer(
        values * (1 - left_over),
        np.where(chosen, along(mean), 0.0),
        np.where(chosen, along(runs), 0.0),
        of.width > 1 and sum(rates) * slowest >= 10,
    )


def stochastic(point: Point) -> Iterator[Redone]:
    """In the mean over masks the last layer follows descent on the expected loss.

    Each direction and their sum, of the run and of our own.
    """
    training = last_layer(point)
    if not training.decided:
        return
    # Equalised factors turn by the rounding of Z over the least singular value that is kept.
    values = training.theory[training.theory > 0]
    condition = float(values.max() / values.min())
    saved = point.found["stochastic_values"]
    yield Redone(training.theory, training.mean, None, condition, "equal", saved)
    for ends in (point.found["stochastic_ends"], training.ends):
        yield surprise(student_p(ends.sum(1), float(training.theory.sum())))
        for i in np.flatnonzero(training.theory):
            yield surprise(student_p(ends[:, i], float(training.theory[i])))


# Both layers, trained with masks ----------------------------------------------------------------


class NoisyRuns(NamedTuple):
    """Runs that train both layers, from the masks of a run."""

    moved: np.ndarray
    """``<W(0), W(T) - W(0)>``."""
    pulled: np.ndarray
    """``-sum_t eta_t <W(0), .>`` of the gradients of the fit, and of the squares of the units."""
    products: np.ndarray
    """``sum_t n_t^2`` and ``sum_t n_t n_{t+1}``, n_t the part of step t that no gradient explains.
    """


@once
def both_layers(point: Point) -> NoisyRuns:
    """Train both layers with the masks of the key of the run."""
    of = regression(point)
    # A unit that is kept weighs 1/theta and is curved by 1/theta^2.
    rate = 0.1 * of.keep**2
    layers = [np.broadcast_to(w, (RUNS, *w.shape)) for w in of.fitted]

    def along(slopes: list[np.ndarray]) -> np.ndarray:
        pairs = zip(of.fitted, slopes, strict=True)
        return -rate * np.sum([np.sum(w * g, (-2, -1)) for w, g in pairs], axis=0)

    steps, pulls = [], []
    for t in range(DRIFT):
        # Negative numbers: the masks of the last layer have the others.
        mask = draws.kept(draws.folded(of.key, -1 - t), (RUNS, of.width), of.keep)
        slopes = of.masked_slopes(layers, mask)
        steps.append(along(slopes))
        pulls.append([along(part) for part in of.pulls(layers)])
        layers = [w - rate * g for w, g in zip(layers, slopes, strict=True)]
    moved, pulled = np.array(steps), np.array(pulls)
    noise = moved - pulled[:, 0] - of.odds * pulled[:, 1]
    products = np.stack([np.sum(noise**2, 0), np.sum(noise[1:] * noise[:-1], 0)], -1)
    return NoisyRuns(moved.sum(0), np.moveaxis(pulled.sum(0), 0, -1), products)


def stochastic_drift(point: Point) -> Iterator[Redone]:
    """In the mean both layers move against the gradient of the expected loss."""
    of, noise, saved = regression(point), both_layers(point), point.found
    yield saved_as(of.odds, saved["stochastic_drift"])
    # Runs of so many steps with steps of a tenth amplify rounding by less than ten.
    yield saved_as(noise.moved, saved["moved"], condition=10.0)
    yield saved_as(noise.pulled, saved["pulled"], condition=10.0)
    for moved, pulled in ((saved["moved"], saved["pulled"]), noise[:2]):
        unexplained = moved - pulled @ np.array([1.0, of.odds])
        yield surprise(student_p(unexplained, 0.0))


def stochastic_noise(point: Point) -> Iterator[Redone]:
    """The masks of successive steps are independent: ``sum_t n_t n_{t+1}`` has the mean 0."""
    of, noise = regression(point), both_layers(point)
    saved = point.found["products"] @ of.odds ** np.arange(3)
    yield saved_as(of.odds, point.found["stochastic_drift"])
    yield saved_as(noise.products, saved, condition=10.0)
    for products in (saved, noise.products):
        yield surprise(student_p(products[:, 1], 0.0))


CLAIMS = {
    "dropout_training": {
        "dropout_minimiser": dropout_minimiser,
        "dropout_minimum": dropout_minimum,
        "stochastic": stochastic,
        "stochastic_drift": stochastic_drift,
        "stochastic_noise": stochastic_noise,
    }
}
"""Scenario -> claim -> both of its sides."""
