"""Theorem 1: where descent with weight decay ends, of two layers and of more, and on data.

A run is judged where its own gradient says that it rests: at most 64 units in the last place.
"""

from collections.abc import Iterable
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy.optimize import root

from referee.descent import Layers, chain, gradients
from referee.redone import EPS, Redone, largest, saved_as, saved_sides
from referee.results import Point, once

FEW = 64
"""Units in the last place below which a gradient is rounding."""


class SavedDescent(NamedTuple):
    """A finished descent, from a saved case."""

    target: np.ndarray
    width: int
    decay: float
    layers: Layers
    objective: np.ndarray
    """The loss at the recorded steps."""
    left: np.ndarray
    values: np.ndarray
    right: np.ndarray

    @property
    def depth(self) -> int:
        """L, the number of layers."""
        return len(self.layers)

    @property
    def slope(self) -> float:
        """The norm of the gradient, of the layer with most of it."""
        return largest(np.linalg.norm(g) for g in slopes(self.layers, self.target, self.decay))

    @property
    def rests(self) -> bool:
        """Whether nothing but rounding is left of the gradient."""
        # The terms of a gradient have the size sigma w^(L-1), w = sigma^(1/L) in every layer.
        return bool(self.slope <= FEW * EPS * self.values[0] ** (2 - 1 / self.depth))

    def matrix_of(self, values: Iterable[float]) -> np.ndarray:
        """The product with these singular values in the basis of the target."""
        spectrum = np.array(list(values))
        n = len(spectrum)
        return (self.left[:, :n] * spectrum) @ self.right[:n]


def slopes(layers: Layers, target: np.ndarray, decay: float) -> Layers:
    """The gradient of ``1/2 ||W_L ... W_1 - Phi||^2 + lambda/2 sum ||W_l||^2``."""
    plain = gradients(layers, chain(layers) - target)
    return [g + decay * w for g, w in zip(plain, layers, strict=True)]


def loss(layers: Layers, target: np.ndarray, decay: float) -> float:
    """``1/2 ||W_L ... W_1 - Phi||^2 + lambda/2 sum ||W_l||^2``."""
    sizes = sum(float(np.sum(w**2)) for w in layers)
    return (float(np.sum((chain(layers) - target) ** 2)) + decay * sizes) / 2


def descended(
    layers: Layers, target: np.ndarray, decay: float, rate: float, times: list[int]
) -> tuple[Layers, list[float]]:
    """Layers after the last step, and the loss at the recorded ones."""
    losses = []
    for t in range(max(times) + 1):
        if t in times:
            losses.append(loss(layers, target, decay))
        # The last loss is recorded before a step that nobody asked for.
        if t < max(times):
            steps = zip(layers, slopes(layers, target, decay), strict=True)
            layers = [w - rate * g for w, g in steps]
    return layers, losses


@once
def run_of(point: Point) -> SavedDescent | None:
    """Descend from the saved start; None where the decays of layers differ."""
    case = point.case
    decays = case["weight_decay"]
    if np.ptp(decays) > 0:
        return None
    start, target = point.parts("weights"), case["target"]
    rate, decay = float(case["learning_rate"]), float(decays[0])
    layers, objective = descended(start, target, decay, rate, point.times)
    parts = np.linalg.svd(target, full_matrices=False)
    return SavedDescent(target, len(start[0]), decay, layers, np.array(objective), *parts)


def shrunk(sigma: float, decay: float, depth: int) -> float:
    """The s that minimises ``1/2 (s - sigma)^2 + (lambda L/2) s^(2/L)``."""
    if depth == 2:
        return max(sigma - decay, 0.0)
    w = larger_root(sigma, decay, depth)
    cost = lambda s: (s - sigma) ** 2 / 2 + decay * depth / 2 * s ** (2 / depth)  # noqa: E731
    return w**depth if w and cost(w**depth) < cost(0.0) else 0.0


def larger_root(sigma: float, decay: float, depth: int) -> float:
    """The larger root of ``w^(2L-2) - sigma w^(L-2) + lambda``, or 0 if there is none."""
    if decay == 0:
        return sigma ** (1 / depth)
    coefficients = np.zeros(2 * depth - 1)
    coefficients[0] = 1
    coefficients[depth] -= sigma
    coefficients[-1] += decay  # with two layers the same one
    roots = np.roots(coefficients)
    # Near a double root the eigenvalues of the companion matrix are complex by rounding.
    real = roots.real[(abs(roots.imag) < 1e-12 * sigma ** (1 / depth)) & (roots.real > 0)]
    w = float(max(real, default=0.0))
    for _ in range(3):  # Newton's method, for the last digits
        if w:
            value = w ** (2 * depth - 2) - sigma * w ** (depth - 2) + decay
            rise = (2 * depth - 2) * w ** (2 * depth - 3) - sigma * (depth - 2) * w ** (depth - 3)
            w -= value / rise
    return w


def least_loss(of: SavedDescent) -> float:
    """``sum_{i<=r} min_s (...) + sum_{i>r} sigma_i^2/2``, each by its root and a grid."""
    # Directions beyond the rank cannot be fitted.
    total = float(np.sum(of.values[of.width :] ** 2)) / 2
    for sigma in of.values[: of.width]:

        def cost(w: float, sigma: float = float(sigma)) -> float:
            return (w**of.depth - sigma) ** 2 / 2 + of.decay * of.depth / 2 * w**2

        at = [0.0, shrunk(float(sigma), of.decay, of.depth) ** (1 / of.depth)]
        # Points of a grid beside the root: if the formula named too large a loss, one of them would
        # be below it.
        at += list(np.linspace(0.3, 1, 15) * float(sigma) ** (1 / of.depth))
        total += min(map(cost, at))
    return total


def tied(of: SavedDescent) -> int:
    """Number of the values that are kept and tied with the first one that is not."""
    r = of.width
    if r >= len(of.values) or of.values[r - 1] - of.values[r] > 1e-12 * of.values[0]:
        return 0
    return int(np.sum(np.abs(of.values[:r] - of.values[r]) <= 1e-12 * of.values[0]))


def nearest_minimiser(of: SavedDescent) -> np.ndarray:
    """The minimiser; with a tie the one of its family whose projector is the run's."""
    spectrum = [shrunk(float(s), of.decay, of.depth) for s in of.values[: of.width]]
    return nearest_member(of, spectrum, chain(of.layers))


def nearest_member(of: SavedDescent, spectrum: list[float], product: np.ndarray) -> np.ndarray:
    """The matrix that keeps the first modes of the target with these singular values.

    Where the last one that is kept is tied with the first that is not, every choice among the tied
    ones is as good: then the member of the family whose projector is that of a product.
    """
    q = len(spectrum)
    tie = 0 < q < len(of.values) and of.values[q - 1] - of.values[q] <= 1e-12 * of.values[0]
    if not tie or not spectrum[-1]:
        return of.matrix_of(spectrum)
    same = np.abs(of.values - of.values[q - 1]) <= 1e-12 * of.values[0]
    above = int(np.argmax(same))
    left, right = of.left[:, same], of.right[same]
    turned = left.T @ product @ right.T
    _, vectors = np.linalg.eigh((turned + turned.T) / 2)
    onto = vectors[:, above - q :] @ vectors[:, above - q :].T
    return of.matrix_of(spectrum[:above]) + spectrum[-1] * left @ onto @ right


def saved_products(
    of: SavedDescent, spectrum: list[float], point: Point, condition: float
) -> list[Redone]:
    """Both saved products of a tied target, each beside the nearest member of the family.

    Which member a run ends at is the choice of its start, and of its rounding.
    """
    return [
        saved_as(nearest_member(of, spectrum, saved), saved, condition=condition)
        for saved in saved_sides(point, "product")
    ]


def distance_bound(of: SavedDescent) -> float:
    """Largest ratio of the distance of two layers from the minimiser to their gradient.

    It is sigma_1 over the least curvature that is not 0; infinite where that is 0.
    """
    above = of.values[: of.width][of.values[: of.width] > of.decay]
    q, sigma = len(above), of.values
    # The list of lrdyn's page on convergence, written once more.
    least = [2 * (above[-1] - of.decay)] if q else [of.decay - sigma[0]]
    if of.decay and q:
        least.append(2 * of.decay)
    gaps = [a - b for a in above for b in sigma[q:] if a - b > 1e-9 * sigma[0]]
    if len(of.target) != len(of.target.T) and q:
        gaps.append(float(above[-1]))
    if q < of.width and q < len(sigma):
        gaps.append(of.decay - sigma[q])
    smallest = min(least + gaps)
    return float(sigma[0] / smallest) if smallest > 0 else np.inf


def at_the_minimum(point: Point) -> SavedDescent | None:
    """A run of two layers that rests, where that says that it is near the minimum."""
    if (of := run_of(point)) is None or of.depth != 2 or not of.rests:
        return None
    # Beyond that the distance that rounding leaves has no digits worth a comparison.
    return of if distance_bound(of) < 1e6 else None


def minimiser(point: Point) -> list[Redone] | None:
    """Two layers end at ``U_r (Sigma_r - lambda)_+ V_r^T``."""
    if (of := at_the_minimum(point)) is None:
        return None
    measured = chain(of.layers)
    theory, condition = nearest_minimiser(of), FEW * distance_bound(of)
    plain = Redone(theory, measured, of.values[0], condition, "equal")
    if not tied(of):
        saved_theory, saved_run = saved_sides(point, "product")
        return [plain._replace(saved_theory=saved_theory, saved_run=saved_run)]
    spectrum = [shrunk(float(s), of.decay, of.depth) for s in of.values[: of.width]]
    return [plain, *saved_products(of, spectrum, point, condition)]


def minimum(point: Point) -> Redone | None:
    """Descent of two layers ends at the least loss."""
    if (of := at_the_minimum(point)) is None:
        return None
    saved = saved_sides(point, "loss")
    scale = np.sum(of.values**2) / 2
    return Redone(least_loss(of), of.objective[-1], scale, 1.0, "equal", *saved)


def schatten(point: Point) -> Redone | None:
    """The product's singular values minimise ``1/2 (s - sigma)^2 + lambda s``, each on its own."""
    if (of := at_the_minimum(point)) is None:
        return None
    theory = np.array([shrunk(float(sigma), of.decay, 2) for sigma in of.values[: of.width]])
    measured = np.linalg.svd(chain(of.layers), compute_uv=False)[: of.width]
    condition = FEW * distance_bound(of)
    saved = saved_sides(point, "singular_values")
    return Redone(theory, measured, of.values[0], condition, "equal", *saved)


def rest_points(of: SavedDescent) -> list[list[float]]:
    """Singular values of P_0, P_1, ...: the first q modes with the larger root.

    Without decay all modes that are not 0 have one.
    """
    roots = [larger_root(float(s), of.decay, of.depth) for s in of.values[: of.width]]
    if of.decay == 0:
        there = of.values[: of.width] > 1e-12 * of.values[0]
        roots = [w if rises else 0.0 for w, rises in zip(roots, there, strict=True)]
    # Values decrease: behind the first without a root there is none with one.
    most = next((i for i, w in enumerate(roots) if not w), len(roots))
    return [[w**of.depth for w in roots[:q]] for q in range(most + 1)]


def nearest_rest_point(of: SavedDescent) -> list[float]:
    """Singular values of the rest point P_q that a run is nearest to."""
    measured = chain(of.layers)

    def distance(spectrum: list[float]) -> float:
        return float(np.max(np.abs(nearest_member(of, spectrum, measured) - measured)))

    return min(rest_points(of), key=distance)


def rest_condition(of: SavedDescent) -> float:
    """Largest ratio of the distance of more layers from a minimum to their gradient."""
    roots = [larger_root(float(s), of.decay, of.depth) for s in of.values]
    depth, amplifications = of.depth, [0.0]
    for i, w in enumerate(roots[: of.width]):
        if w and of.decay:
            curvature = depth * w ** (2 * depth - 2) - (depth - 2) * of.decay
            amplifications.append(depth * w ** (depth - 1) / curvature)
            # Tied modes turn into one another at no cost.
            gaps = [of.values[i] - s for s in of.values[i + 1 :]]
            gaps = [gap for gap in gaps if gap > 1e-12 * of.values[0]]
            amplifications.append(w / min(gaps) if gaps else 0.0)
    # A gradient is measured by sigma_1 w^(L-1), as `rests` does.
    return largest([1.0, of.values[0] ** (1 - 1 / depth) * largest(amplifications)])


def rest(point: Point) -> list[Redone] | None:
    """A run of more layers at rest is at one of the P_q."""
    if (of := run_of(point)) is None or of.depth < 3 or not of.rests:
        return None
    spectrum, measured = nearest_rest_point(of), chain(of.layers)
    theory = nearest_member(of, spectrum, measured)
    _, saved = saved_sides(point, "product")
    condition = FEW * rest_condition(of)
    roots = [larger_root(float(sigma), of.decay, of.depth) ** of.depth for sigma in of.values]
    # The saved run can be at another member of a family.
    at_rest = measured if not tied(of) else nearest_member(of, spectrum, saved)
    return [
        Redone(theory, measured, of.values[0], condition, "equal"),
        saved_as(at_rest, saved, condition=condition),
        saved_as(np.array(roots), point.found["local_values"], condition=condition),
    ]


def rest_loss(point: Point) -> Redone | None:
    """At P_q the loss is ``sum 1/2 (s - sigma)^2 + (lambda L/2) s^(2/L)``."""
    if (of := run_of(point)) is None or of.depth < 3 or not of.rests:
        return None
    values = np.array(nearest_rest_point(of))
    penalty = of.decay * of.depth / 2 * np.sum(values ** (2 / of.depth))
    theory = np.sum((of.matrix_of(values) - of.target) ** 2) / 2 + penalty
    scale = np.sum(of.values**2) / 2
    condition = FEW * rest_condition(of)
    saved = (point.found["rest_losses"][len(values)], point.found["loss_measured"])
    return Redone(theory, of.objective[-1], scale, condition, "equal", *saved)


def balanced(point: Point) -> Redone | None:
    """With decay ``W_{l+1}^T W_{l+1} = W_l W_l^T`` wherever descent rests."""
    if (of := run_of(point)) is None or not of.decay or not of.rests:
        return None
    pairs = zip(of.layers, of.layers[1:], strict=False)
    measured = largest(np.max(np.abs(b.T @ b - a @ a.T)) for a, b in pairs)
    scale = of.values[0] ** (2 / of.depth)
    condition = FEW * of.values[0] ** (2 - 2 / of.depth) / of.decay
    return Redone(0.0, measured, scale, condition, "zero", None, point.found["imbalance"])


def lower_bound(point: Point) -> Redone | None:
    """The loss is never below the least one."""
    if (of := run_of(point)) is None:
        return None
    theory = np.full(len(of.objective), least_loss(of))
    scale = np.sum(of.values**2) / 2
    saved = np.full(len(of.objective), point.found["loss_predicted"])
    return Redone(theory, of.objective, scale, 1.0, "at least", saved, point.found["objective"])


# From starts near the minimiser -----------------------------------------------------------------


@once
def near_the_minimiser(point: Point) -> list[tuple[SavedDescent, np.ndarray]]:
    """Runs from the saved starts near the minimiser, and its product."""
    case = point.case
    target, decay = case["target"], float(case["weight_decay"])
    stacked, runs = point.parts("near"), []
    left, values, right = np.linalg.svd(target, full_matrices=False)
    for k, rate in enumerate(point.found["near_rates"]):
        start = [w[k] for w in stacked]
        layers, objective = descended(start, target, decay, float(rate), point.times)
        of = SavedDescent(
            target, len(start[0]), decay, layers, np.array(objective), left, values, right
        )
        wanted = of.matrix_of(shrunk(float(s), decay, of.depth) for s in values[: of.width])
        runs.append((of, wanted))
    return runs


def deep_minimiser(point: Point) -> Iterable[Redone]:
    """Starts below every other critical value end at the global minimiser."""
    for k, (of, wanted) in enumerate(near_the_minimiser(point)):
        saved = (point.found["minimiser"], point.found["near_products"][k])
        measured = chain(of.layers)
        yield Redone(wanted, measured, of.values[0], FEW * rest_condition(of), "equal", *saved)


def deep_minimum(point: Point) -> Iterable[Redone]:
    """Starts below every other critical value end at the least loss."""
    for k, (of, _) in enumerate(near_the_minimiser(point)):
        saved = (point.found["minimum"], point.found["near_ends"][k])
        scale = np.sum(of.values**2) / 2
        yield Redone(least_loss(of), of.objective[-1], scale, FEW, "equal", *saved)


# On data ---------------------------------------------------------------------------------------


class SavedAutoencoder(NamedTuple):
    """A regularised linear autoencoder, from a saved case."""

    inputs: np.ndarray
    decay: float
    encoder: np.ndarray
    decoder: np.ndarray
    left: np.ndarray
    squares: np.ndarray
    """sigma_i^2."""

    def slopes(self, encoder: np.ndarray, decoder: np.ndarray) -> Layers:
        """The gradient of ``||X - W_2 W_1 X||^2 + lambda (||W_1||^2 + ||W_2||^2)``."""
        # The loss knows the images by their moment alone.
        moment = self.inputs @ self.inputs.T
        error = decoder @ encoder @ moment - moment
        first = 2 * (decoder.T @ error + self.decay * encoder)
        return [first, 2 * (error @ encoder.T + self.decay * decoder)]

    def loss(self, encoder: np.ndarray, decoder: np.ndarray) -> float:
        """``||X - W_2 W_1 X||^2 + lambda (||W_1||^2 + ||W_2||^2)``."""
        sizes = np.sum(encoder**2) + np.sum(decoder**2)
        error = self.inputs - decoder @ encoder @ self.inputs
        return float(np.sum(error**2) + self.decay * sizes)


def autoencoder_of(point: Point) -> SavedAutoencoder | None:
    """The autoencoder of a point, unless it is noise, too wide, or has two decays."""
    case = point.case
    if not (case["real"] and case["whole"]) or np.ptp(case["weight_decay"]) > 0:
        return None
    encoder, decoder = point.parts("weights")
    left, values, _ = np.linalg.svd(case["inputs"], full_matrices=False)
    return SavedAutoencoder(
        case["inputs"], float(case["weight_decay"][0]), encoder, decoder, left, values**2
    )


@once
def trained(point: Point) -> tuple[SavedAutoencoder, Layers] | None:
    """The autoencoder of a point and its layers after descent, if they rest."""
    if (of := autoencoder_of(point)) is None or not of.decay:
        return None
    layers = [of.encoder, of.decoder]
    rate = float(point.case["learning_rate"])
    for _ in range(max(point.times)):
        layers = [w - rate * g for w, g in zip(layers, of.slopes(*layers), strict=True)]
    size = np.sqrt(sum(np.sum(w**2) for w in layers))
    slope = np.sqrt(sum(np.sum(g**2) for g in of.slopes(*layers)))
    return (of, layers) if slope <= FEW * EPS * of.squares[0] * size else None


def gains_of(of: SavedAutoencoder) -> np.ndarray:
    """``1 - lambda / sigma_i^2``, of the first directions that have more than decay takes."""
    return np.maximum(1 - of.decay / of.squares[: len(of.encoder)], 0.0)


def of_autoencoder(of: SavedAutoencoder) -> float:
    """Largest ratio of the distance of a trained autoencoder from the minimum to its gradient."""
    gaps = np.abs(np.diff(of.squares[: len(of.encoder) + 1]))
    return float(of.squares[0] / min(of.decay, gaps.min()))


def autoencoder(point: Point) -> Redone | None:
    """Descent on images ends at ``U_l (I - lambda Sigma_l^-2) U_l^T``."""
    if (both := trained(point)) is None:
        return None
    of, layers = both
    onto = of.left[:, : len(of.encoder)]
    saved = saved_sides(point, "autoencoder")
    theory = (onto * gains_of(of)) @ onto.T
    return Redone(theory, chain(layers), 1.0, FEW * of_autoencoder(of), "equal", *saved)


def autoencoder_loss(point: Point) -> Redone | None:
    """Descent ends at the loss ``sum (2 lambda - lambda^2/sigma_i^2) + sum_rest sigma_i^2``."""
    if (both := trained(point)) is None:
        return None
    of, layers = both
    count = int(np.sum(gains_of(of) > 0))
    theory = np.sum(2 * of.decay - of.decay**2 / of.squares[:count]) + np.sum(of.squares[count:])
    saved = saved_sides(point, "autoencoder_loss")
    scale = np.sum(of.squares)
    return Redone(theory, of.loss(layers[0], layers[1]), scale, FEW, "equal", *saved)


def transposed(point: Point) -> Redone | None:
    """At the end of descent the encoder is the transposed decoder, ``W_1 = W_2^T``."""
    if (both := trained(point)) is None:
        return None
    of, (encoder, decoder) = both
    measured = float(np.max(np.abs(encoder - decoder.T)))
    return Redone(
        0.0, measured, 1.0, FEW * of_autoencoder(of), "zero", None, point.found["asymmetry"]
    )


def autoencoder_gradient(point: Point) -> Redone | None:
    """The gradient is 0 at ``W_1 = W_2^T = (I - lambda Sigma_S^-2)^(1/2) U_S^T``."""
    if (of := autoencoder_of(point)) is None or of.squares[0] <= of.decay:
        return None
    width, leading = len(of.encoder), min(len(of.encoder) + 2, len(of.inputs))
    steepest = []
    for indices in (s for n in range(width + 1) for s in combinations(range(leading), n)):
        encoder = np.zeros_like(of.encoder)
        for slot, i in enumerate(indices):
            encoder[slot] = np.sqrt(max(1 - of.decay / of.squares[i], 0)) * of.left[:, i]
        steepest.append(largest(np.max(np.abs(g)) for g in of.slopes(encoder, encoder.T)))
    measured = np.array(steepest)
    saved = point.found["autoencoder_gradient_measured"]
    # Ours are summed over the moments of 500 images, theirs over a factor of them.
    return Redone(0 * measured, measured, of.squares[0], 8.0, "zero", None, saved)


def all_transposed(point: Point) -> list[Redone] | None:
    """No search on the leading directions, ours or the saved one, ends but where both are equal."""
    if (of := autoencoder_of(point)) is None or not of.decay:
        return None
    width, leading = len(of.encoder), min(len(of.encoder) + 2, len(of.inputs))
    small = of._replace(inputs=np.diag(np.sqrt(of.squares[:leading])))
    asymmetries = []
    for start in point.case["starts"]:
        layers = start.reshape(2, width, -1)[:, :, :leading]
        flat = np.concatenate([layers[0].ravel(), layers[1].T.ravel()])

        def slope(x: np.ndarray) -> np.ndarray:
            encoder, decoder = x[: width * leading], x[width * leading :]
            both = encoder.reshape(width, leading), decoder.reshape(leading, width)
            return np.concatenate([g.ravel() for g in small.slopes(*both)])

        # MINPACK's method with derivatives by differences: another one than Newton's of lrdyn.
        ended = root(slope, flat, method="lm", tol=1e-15)
        if np.linalg.norm(slope(ended.x)) <= FEW * EPS * of.squares[0]:
            encoder = ended.x[: width * leading].reshape(width, leading)
            decoder = ended.x[width * leading :].reshape(leading, width)
            asymmetries.append(float(np.max(np.abs(encoder - decoder.T))))
    limit = 8 * EPS * np.sqrt(float(point.found["longest_axis"])) * of.squares[0]
    asymmetries += list(point.found["asymmetries_measured"][point.found["found_gradient"] <= limit])
    scale = largest([1.0, of.squares[0] / of.decay])
    return [Redone(0.0, value, scale, FEW, "zero") for value in asymmetries]


CLAIMS = {
    "descent": {
        "minimiser": minimiser,
        "minimum": minimum,
        "schatten": schatten,
        "rest": rest,
        "rest_loss": rest_loss,
        "balanced": balanced,
        "lower_bound": lower_bound,
    },
    "basins": {"deep_minimiser": deep_minimiser, "deep_minimum": deep_minimum},
    "autoencoder": {
        "autoencoder": autoencoder,
        "autoencoder_loss": autoencoder_loss,
        "transposed": transposed,
        "autoencoder_gradient": autoencoder_gradient,
        "all_transposed": all_transposed,
    },
}
"""Scenario -> claim -> both of its sides."""
