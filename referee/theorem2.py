"""Theorem 2, its classifier, and the collapse between layers."""

from typing import Any, NamedTuple

import numpy as np

from referee import equivariant
from referee.descent import Layers, Record, amplification, chain, descend, disturbed, diverged
from referee.redone import Redone, largest, saved_sides
from referee.results import Point, once


class FactorizationCase(NamedTuple):
    """A run of deep factorisation, from a saved case."""

    layers: Layers
    target: np.ndarray
    rank: int
    scales: np.ndarray
    rate: float
    decay: np.ndarray
    times: list[int]
    """Steps that are compared."""
    optimizer: str = "gradient_descent"

    @property
    def bulk(self) -> int:
        """``m = d - 2r``."""
        return len(self.target) - 2 * self.rank

    def reduced(self, goal: np.ndarray, size: int, bulk: int) -> np.ndarray:
        """Layers of ``size`` from eps_l I, with one dimension more that counts ``bulk`` times."""
        start = [s * np.eye(size + 1) for s in self.scales]
        wide = np.pad(goal, (0, 1))
        rule = equivariant.direction(self.optimizer, equivariant.counts(size + 1, bulk))
        rates = (self.rate, self.decay, self.times)
        residual = lambda whole: whole - wide  # noqa: E731
        return np.array(equivariant.train(start, residual, rule, *rates, np.array))

    def loss(self, layers: Layers) -> float:
        """``1/2 ||W_L ... W_1 - Phi||_F^2``."""
        return float(np.sum((chain(layers) - self.target) ** 2)) / 2

    def dense(self, layers: Layers, record: Record, mean: bool = False) -> np.ndarray:
        """Descent on half the sum of squares; on half the mean with eta d^2 and lambda / d^2."""
        n = self.target.size if mean else 1
        residual = lambda whole: (whole - self.target) / n  # noqa: E731
        rates = (n * self.rate, self.decay / n)
        if self.optimizer != "gradient_descent":
            rule = equivariant.direction(self.optimizer, np.ones_like(self.target))
            made = equivariant.train(layers, residual, rule, *rates, self.times, record)
            return np.array(made)
        return np.array(descend(layers, residual, *rates, self.times, record))


AMPLIFIED = 1e3
"""By how much what is compared may amplify a disturbance, of optimisers but gradient descent."""


def within_window(of: FactorizationCase) -> FactorizationCase:
    """The run up to where it becomes chaotic, as Muon's does when it has arrived."""
    if of.optimizer == "gradient_descent":
        return of
    run = lambda start: of.dense(start, np.array)  # noqa: E731
    whole = run(of.layers)
    size = 1e-7 * float(np.abs(whole).max())
    apart = np.abs(run(disturbed(of.layers, size)) - whole).max((1, 2, 3)) / size
    count = int(np.sum(np.logical_and.accumulate(apart <= AMPLIFIED)))
    return of._replace(times=of.times[: max(count, 1)])


def sides_at_times(of: Any, point: Point, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Both saved sides of a claim over steps, up to the last one that is compared."""
    predicted, measured = saved_sides(point, name)
    return predicted[: len(of.times)], measured[: len(of.times)]


@once
def setting_of(point: Point) -> FactorizationCase | None:
    """The run of a point, if it meets the hypotheses."""
    case = point.case
    layers, target = point.parts("weights"), case["target"]
    scales = case["scales"]
    turned = [w @ w.T / s**2 - np.eye(len(w)) for w, s in zip(layers, scales, strict=True)]
    sigma = values(target)
    rank = int(case["rank"])
    # Far above rounding, and far below what the controls add.
    low = np.all(sigma[rank:] <= 1e-10 * sigma[0])
    if not (low and np.max(np.abs(turned)) < 1e-10 and "noise" not in case and "mask" not in case):
        return None
    return within_window(
        FactorizationCase(
            layers,
            target,
            rank,
            scales,
            float(case["learning_rate"]),
            case["weight_decay"],
            point.times,
            point.flags.get("optimizer", "gradient_descent"),
        )
    )


def frame(layers: Layers, target: np.ndarray, rank: int) -> list[np.ndarray]:
    """V_1, ..., V_{L+1}: the first 2r columns of V_1 span ``row(Phi) + W^T col(Phi)``."""
    spanning = np.hstack([target.T, chain(layers).T @ target])
    # By Phi and its image, not by singular vectors of Phi: another frame of the same subspace than
    # that of lrdyn.
    left, values, _ = np.linalg.svd(spanning)
    numerical_rank = int(np.sum(values > 1e-10 * values[0]))
    assert numerical_rank <= 2 * rank
    frames = [left]
    for layer in layers:
        turned = layer @ frames[-1]
        frames.append(turned / np.linalg.norm(turned, axis=0))
    return frames


def rho(of: FactorizationCase) -> np.ndarray:
    """``rho <- rho (1 - eta lambda - eta prod_{k != l} rho_k^2)`` from eps, at the times."""
    if of.optimizer != "gradient_descent":
        # The last dimension of the reduced run, which counts m times.
        return of.reduced(goal_of(of), 2 * of.rank, of.bulk)[:, :, -1, -1]
    value, path = np.array(of.scales, float), []
    for t in range(max(of.times) + 1):
        if t in of.times:
            path.append(value)
        # No division by rho_l, which may be 0.
        others = np.array([np.prod(np.delete(value, l)) ** 2 for l in range(len(value))])
        value = value * (1 - of.rate * of.decay - of.rate * others)
    return np.array(path)


def in_frame(frames: list[np.ndarray], layers: Layers) -> np.ndarray:
    """``U_l^T W_l V_l`` of every layer."""
    return np.array([frames[l + 1].T @ w @ frames[l] for l, w in enumerate(layers)])


class DenseBlocks(NamedTuple):
    """Layers of a dense run in the frame of its start."""

    of: FactorizationCase
    path: np.ndarray
    """``U_l^T W_l V_l`` at the recorded steps."""
    scale: float
    """The largest singular value."""
    condition: float
    """By how much the run amplifies a disturbance."""


@once
def blocks(point: Point, mean: bool = False) -> DenseBlocks | None:
    """The blocks of the run of a point, if it meets the hypotheses."""
    if (of := setting_of(point)) is None:
        return None
    frames = frame(of.layers, of.target, of.rank)
    run = lambda start: of.dense(start, lambda w: in_frame(frames, w), mean)  # noqa: E731
    path = run(of.layers)
    scale = float(np.max(np.linalg.norm(path, 2, axis=(-2, -1))))
    return DenseBlocks(of, path, scale, amplification(run, of.layers, scale, path))


def off_block(point: Point) -> Redone | None:
    """The off-diagonal blocks are 0."""
    if (run := blocks(point)) is None:
        return None
    k = 2 * run.of.rank
    beside = np.maximum(
        np.abs(run.path[..., k:, :k]).max((-2, -1)), np.abs(run.path[..., :k, k:]).max((-2, -1))
    )
    saved = point.found["off_block"][: len(run.of.times)]
    return Redone(0 * beside, beside, run.scale, run.condition, "zero", None, saved)


def bulk(point: Point) -> Redone | None:
    """The bulk block is a multiple of the identity."""
    if (run := blocks(point)) is None:
        return None
    k, m = 2 * run.of.rank, run.of.bulk
    inner = run.path[..., k:, k:]
    # The multiple of the identity that is nearest to the block.
    mean = np.trace(inner, axis1=-2, axis2=-1) / m
    rest = np.abs(inner - mean[..., None, None] * np.eye(m)).max((-2, -1))
    saved = point.found["bulk_deviation"][: len(run.of.times)]
    return Redone(0 * rest, rest, run.scale, run.condition, "zero", None, saved)


def bulk_value(point: Point, mean: bool = False, name: str = "rho") -> Redone | None:
    """rho_l by its recursion, and the mean of the diagonal of the bulk block."""
    if (run := blocks(point, mean)) is None:
        return None
    k = 2 * run.of.rank
    measured = np.trace(run.path[..., k:, k:], axis1=-2, axis2=-1) / run.of.bulk
    saved = sides_at_times(run.of, point, name)
    return Redone(rho(run.of), measured, run.scale, run.condition, "equal", *saved)


def goal_of(of: FactorizationCase) -> np.ndarray:
    """Phi~, the target in the moving block of the frame."""
    frames, k = frame(of.layers, of.target, of.rank), 2 * of.rank
    return frames[-1][:, :k].T @ of.target @ frames[0][:, :k]


def small_run(of: FactorizationCase) -> np.ndarray:
    """Layers of the problem of width 2r, which descends by itself from eps_l I."""
    k, goal = 2 * of.rank, goal_of(of)
    if of.optimizer != "gradient_descent":
        return of.reduced(goal, k, of.bulk)[:, :, :k, :k]
    start = [s * np.eye(k) for s in of.scales]
    residual = lambda whole: whole - goal  # noqa: E731
    return np.array(descend(start, residual, of.rate, of.decay, of.times, np.array))


def reduced(point: Point, mean: bool = False, name: str = "reduced") -> list[Redone] | None:
    """The moving block is a run of its own; which basis it is written in is free.

    So what was saved is compared by its singular values.
    """
    if (run := blocks(point, mean)) is None:
        return None
    k = 2 * run.of.rank
    theory, measured = small_run(run.of), run.path[..., :k, :k]
    saved, saved_run = map(values, sides_at_times(run.of, point, name))
    return [
        Redone(theory, measured, run.scale, run.condition),
        Redone(
            values(theory), values(measured), run.scale, run.condition, "equal", saved, saved_run
        ),
    ]


def values(blocks: np.ndarray) -> np.ndarray:
    """Singular values of matrices, along the last axis."""
    return np.linalg.svd(blocks, compute_uv=False)


def spectra(point: Point) -> Redone | None:
    """Singular values of every layer: of the small one, and m times |rho|."""
    if (of := setting_of(point)) is None:
        return None
    small = values(small_run(of))
    still = np.repeat(np.abs(rho(of))[..., None], of.bulk, axis=-1)
    theory = -np.sort(-np.concatenate([small, still], axis=-1), axis=-1)
    run = lambda start: of.dense(start, lambda layers: values(np.array(layers)))  # noqa: E731
    measured = run(of.layers)
    scale = float(measured.max())
    saved = sides_at_times(of, point, "singular_values")
    condition = amplification(run, of.layers, scale, measured)
    return Redone(theory, measured, scale, condition, "equal", *saved)


def loss(point: Point) -> Redone | None:
    """``f = 1/2 ||Wt_L ... Wt_1 - Phi~||^2 + (m/2) prod rho^2``."""
    if (of := setting_of(point)) is None:
        return None
    goal = goal_of(of)
    moving = np.array([np.sum((chain(list(w)) - goal) ** 2) / 2 for w in small_run(of)])
    theory = moving + of.bulk / 2 * np.prod(rho(of), axis=1) ** 2
    run = lambda start: of.dense(start, of.loss)  # noqa: E731
    measured = run(of.layers)
    condition = amplification(run, of.layers, float(measured.max()), measured)
    saved = sides_at_times(of, point, "loss")
    return Redone(theory, measured, None, condition, "equal", *saved)


def mean_loss(point: Point) -> list[Redone] | None:
    """Descent on half the mean over d^2 entries with eta d^2 and lambda / d^2 is the same run."""
    mean_rho, moving = bulk_value(point, True, "mean_rho"), reduced(point, True, "mean_reduced")
    return None if mean_rho is None or moving is None else [mean_rho, *moving]


# Classification --------------------------------------------------------------------------------


class Labelled(NamedTuple):
    """A classifier on whitened data, from a saved case."""

    layers: Layers
    inputs: np.ndarray
    outputs: np.ndarray
    scales: np.ndarray
    rate: float
    decay: np.ndarray
    times: list[int]

    @property
    def target(self) -> np.ndarray:
        """``Phi = Y X^T``, the target of the product."""
        return self.outputs @ self.inputs.T

    def descend(self, layers: Layers, record: Record) -> np.ndarray:
        """Descent on ``1/2 ||W X - Y||_F^2``."""
        residual = lambda w: (w @ self.inputs - self.outputs) @ self.inputs.T  # noqa: E731
        return np.array(descend(layers, residual, self.rate, self.decay, self.times, record))

    def loss(self, layers: Layers) -> float:
        """``1/2 ||W X - Y||_F^2``."""
        return float(np.sum((chain(layers) @ self.inputs - self.outputs) ** 2)) / 2

    def frames(self) -> list[np.ndarray]:
        """V_1, ..., V_L: the first 2K columns of V_1 span ``row(Phi) + row(W_L ... W_1)``."""
        left, _, _ = np.linalg.svd(np.hstack([self.target.T, chain(self.layers).T]))
        frames = [left]
        for layer in self.layers[:-1]:
            turned = layer @ frames[-1]
            frames.append(turned / np.linalg.norm(turned, axis=0))
        return frames


@once
def labelled(point: Point) -> Labelled | None:
    """The classifier of a point, if its data is white and its start orthogonal."""
    case = point.case
    layers, inputs, scales = point.parts("weights"), case["inputs"], case["scales"]
    white = np.max(np.abs(inputs @ inputs.T - np.eye(len(inputs)))) < 1e-10
    turned = [w @ w.T / s**2 - np.eye(len(w)) for w, s in zip(layers, scales, strict=True)]
    # Not ``> 1e-10``: a start that holds a NaN is not orthogonal.
    if not (white and largest(np.max(np.abs(t)) for t in turned) <= 1e-10):
        return None
    return Labelled(
        layers,
        inputs,
        case["outputs"],
        scales,
        float(case["learning_rate"]),
        case["weight_decay"],
        point.times,
    )


def largest_norm(of: Labelled) -> float:
    """The largest singular value of any layer over the run."""
    norms = lambda layers: largest(np.linalg.norm(w, 2) for w in layers)  # noqa: E731
    return float(of.descend(of.layers, norms).max())


def class_off_block(point: Point) -> Redone | None:
    """The off-diagonal blocks are 0, and so is the last layer on the bulk."""
    if (of := labelled(point)) is None:
        return None
    frames, k = of.frames(), 2 * len(of.outputs)

    def beside(layers: Layers) -> np.ndarray:
        entries = []
        for l, w in enumerate(layers[:-1]):
            block = frames[l + 1].T @ w @ frames[l]
            entries.append(largest([np.abs(block[k:, :k]).max(), np.abs(block[:k, k:]).max()]))
        return np.array([*entries, np.abs(layers[-1] @ frames[-1][:, k:]).max()])

    measured, scale = of.descend(of.layers, beside), largest_norm(of)
    condition = amplification(lambda w: of.descend(w, beside), of.layers, scale, measured)
    saved = point.found["class_off_block"]
    return Redone(0 * measured, measured, scale, condition, "zero", None, saved)


def class_rho(point: Point) -> Redone | None:
    """``rho_l = eps_l (1 - eta lambda_l)^t`` for all layers but the last."""
    if (of := labelled(point)) is None:
        return None
    frames, k = of.frames(), 2 * len(of.outputs)

    def mean(layers: Layers) -> np.ndarray:
        inner = [frames[l + 1].T @ w @ frames[l] for l, w in enumerate(layers[:-1])]
        return np.array([np.trace(block[k:, k:]) / len(block[k:]) for block in inner])

    power = np.array(of.times)[:, None]
    theory = of.scales[:-1] * (1 - of.rate * of.decay[:-1]) ** power
    measured, scale = of.descend(of.layers, mean), largest_norm(of)
    condition = amplification(lambda w: of.descend(w, mean), of.layers, scale, measured)
    saved = saved_sides(point, "class_rho")
    return Redone(theory, measured, scale, condition, "equal", *saved)


def small_classifier(of: Labelled, record: Record) -> np.ndarray:
    """Descent of the problem of width 2K."""
    frames, k = of.frames(), 2 * len(of.outputs)
    goal = of.target @ frames[0][:, :k]
    start = [s * np.eye(k) for s in of.scales[:-1]] + [of.layers[-1] @ frames[-1][:, :k]]
    residual = lambda whole: whole - goal  # noqa: E731
    return np.array(descend(start, residual, of.rate, of.decay, of.times, record))


def class_product(point: Point) -> list[Redone] | None:
    """The product of the problem of width 2K, as ``W V V^T``, which no basis decides.

    What was saved is compared by its singular values.
    """
    if (of := labelled(point)) is None:
        return None
    onto = of.frames()[0][:, : 2 * len(of.outputs)]
    theory = small_classifier(of, chain) @ onto.T
    run = lambda start: of.descend(start, lambda w: chain(w) @ onto @ onto.T)  # noqa: E731
    measured = run(of.layers)
    condition = amplification(run, of.layers, float(np.abs(measured).max()), measured)
    sides = ("predicted", "measured")
    saved, saved_run = (values(point.found[f"class_product_{side}"]) for side in sides)
    return [
        Redone(theory, measured, None, condition),
        Redone(values(theory), values(measured), None, condition, "equal", saved, saved_run),
    ]


# Collapse --------------------------------------------------------------------------------------


def scatter_ratio(features: np.ndarray, labels: np.ndarray) -> float:
    """``tr Sigma_W / tr Sigma_B``, the global mean removed."""
    means = {k: features[:, labels == k].mean(1, keepdims=True) for k in np.unique(labels)}
    within = sum(np.sum((features[:, labels == k] - m) ** 2) for k, m in means.items())
    # Sums over examples on both sides: their number cancels.
    centre = features.mean(1, keepdims=True)
    between = sum(np.sum(labels == k) * np.sum((m - centre) ** 2) for k, m in means.items())
    return float(within / between)


@once
def trained_ratio(point: Point) -> float | None:
    """``(D_{L-1} / D_0)^(1/(L-1))`` at the end of the training of a point."""
    if (of := labelled(point)) is None:
        return None
    labels = point.case["labels"]
    residual = lambda w: (w @ of.inputs - of.outputs) @ of.inputs.T  # noqa: E731
    (end,) = descend(of.layers, residual, of.rate, of.decay, of.times[-1:], list)
    features, ratios = of.inputs, [scatter_ratio(of.inputs, labels)]
    for layer in end[:-1]:
        features = layer @ features
        ratios.append(scatter_ratio(features, labels))
    return (ratios[-1] / ratios[0]) ** (1 / (len(ratios) - 1))


def collapse_prediction(of: Labelled) -> tuple[float, float]:
    """``p = eps^2 / n^(1/L)`` and the lower end of the interval whose upper end it is."""
    depth, (classes, examples) = len(of.layers), of.outputs.shape
    d = len(of.inputs)
    p = of.scales[0] ** 2 / (examples / classes) ** (1 / depth)
    part = ((d - 2 * classes) / (d - classes)) ** (1 / (depth - 1))
    return p, p * part * (1 - p) ** (1 / depth)


def collapse(point: Point) -> Redone | None:
    """The ratio of neighbouring layers is about p: within three percent."""
    if (of := labelled(point)) is None or (measured := trained_ratio(point)) is None:
        return None
    p, _ = collapse_prediction(of)
    saved = saved_sides(point, "collapse")
    return Redone(p, measured, p, 1.0, "limit", *saved, tolerance=0.03)


def collapse_interval(point: Point) -> list[Redone] | None:
    """The ratio lies between the ends that are derived."""
    if (of := labelled(point)) is None or (measured := trained_ratio(point)) is None:
        return None
    high, low = collapse_prediction(of)
    saved = point.found["collapse_measured"]
    return [
        Redone(high, measured, high, 1.0, "at most", point.found["collapse_predicted"], saved),
        Redone(low, measured, high, 1.0, "at least", point.found["collapse_lower"], saved),
    ]


def collapse_loss(point: Point) -> Redone | None:
    """On the way the loss is that of the problem of width 2K."""
    if (of := labelled(point)) is None:
        return None
    goal = of.target @ of.frames()[0][:, : 2 * len(of.outputs)]
    theory = small_classifier(of, lambda w: np.sum((chain(w) - goal) ** 2) / 2)
    measured = of.descend(of.layers, of.loss)
    saved = saved_sides(point, "collapse_loss")
    return Redone(theory, measured, None, 1.0, "equal", *saved)


@once
def factorization_diverges(point: Point) -> bool:
    """Whether the dense run of a point diverges."""
    of = setting_of(point)
    return of is not None and diverged(of.dense(of.layers, of.loss), point.epsilon)


@once
def classifier_diverges(point: Point) -> bool:
    """Whether the training of a point diverges."""
    of = labelled(point)
    return of is not None and diverged(of.descend(of.layers, of.loss), point.epsilon)


CLAIMS = {
    "factorization": {
        "off_block": off_block,
        "bulk": bulk,
        "rho": bulk_value,
        "reduced": reduced,
        "spectra": spectra,
        "loss": loss,
    },
    "mean_loss": {"mean_loss": mean_loss},
    "classification": {
        "class_off_block": class_off_block,
        "class_rho": class_rho,
        "class_product": class_product,
    },
    "collapse": {
        "collapse": collapse,
        "collapse_interval": collapse_interval,
        "collapse_loss": collapse_loss,
    },
}
"""Scenario -> claim -> both of its sides."""
DIVERGES = {
    "factorization": factorization_diverges,
    "mean_loss": factorization_diverges,
    "classification": classifier_diverges,
    "collapse": classifier_diverges,
}
"""Scenario -> whether the run of a point diverges, where nothing is claimed."""
