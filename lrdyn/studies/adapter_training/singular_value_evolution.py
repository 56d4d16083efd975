"""Figure 4: the product of three full-width factors, added to one value matrix of an encoder.

Where all singular values of the product start equal its singular vectors are arbitrary: they are
compared with a frame of 2r directions, Theorem 2's for the gradient of the loss at the start in the
place of the target, and never with themselves.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lrdyn.core import chance, linalg
from lrdyn.core.factorization import Weights, end_to_end
from lrdyn.core.recording import recorded_steps
from lrdyn.core.spectra import sines
from lrdyn.studies.adapter_training import cells, tasks, tuning
from lrdyn.studies.adapter_training.cells import Bench, SentenceTraining, TrainingRequest
from lrdyn.studies.adapter_training.few_shot import pad_rates, search_rates
from lrdyn.studies.adapter_training.tuning import Tuning
from lrdyn.studies.over_seeds import restrict_to
from lrdyn.theorem2 import subspace
from lrdyn.theorem2.subspace import Frame
from lrdyn.training import FORGETFUL, Keeper
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.statement import Finding, Outcome, Scenario

POINTS = 26
RULES = ("adam", "sgd")
MOVED = 0.1
"""A singular value that is 10 % larger or smaller than at the start has moved."""


class EvolutionMeasured(NamedTuple):
    """What is measured of the product and of the matrix that it is added to, in order of RULES."""

    sigma: Float[np.ndarray, "rule step index"] = ABSENT
    """Singular values of the product."""
    right_angle: Float[np.ndarray, "rule step index"] = ABSENT
    """Angle of each of its right singular vectors to the frame's directions, in degrees."""
    left_angle: Float[np.ndarray, "rule step index"] = ABSENT
    """Angle of each of its left singular vectors to them, in degrees."""
    value_sigma: Float[np.ndarray, "rule step index"] = ABSENT
    """Singular values of the value matrix, the product added."""
    value_right_angle: Float[np.ndarray, "rule step index"] = ABSENT
    """Angle of each of its right singular vectors to the frame's directions, in degrees."""
    random_move: Float[np.ndarray, "rule level index"] = ABSENT
    """How far a random matrix as large as the move of the product at the end moves each singular
    value of the product, |ln|: mean, lower and upper end of a band."""
    value_random_move: Float[np.ndarray, "rule level index"] = ABSENT
    """How far it moves those of the value matrix."""
    gap: Float[np.ndarray, "rule step"] = ABSENT
    """Distance of the factors from Theorem 2's form over how far they moved, the largest."""
    moved: Float[np.ndarray, "rule step"] = ABSENT
    """How far the factors moved over their size at the start, the largest."""
    pearson: Float[np.ndarray, "rule"] = ABSENT
    """Correlation on texts that were not trained on, at the end."""
    rate: Float[np.ndarray, "rule"] = ABSENT
    """The rate that is best on seeds and texts of its own; of descent, in units of Adam's."""
    bracketed: Int[np.ndarray, "rule"] = ABSENT
    """Whether worse rates lie on both sides of it."""
    tried: Float[np.ndarray, "rule candidate"] = ABSENT
    """Rates that were tried, NaN behind them."""
    tried_pearson: Float[np.ndarray, "rule candidate rate_seed"] = ABSENT
    """What they reach there."""
    step: Int[np.ndarray, "step"] = ABSENT
    """Recorded steps."""
    diverged_at: Int[np.ndarray, ""] = ABSENT
    """-1: a rate at which the reported training diverges is not chosen."""


Measured = Outcome[Any, EvolutionMeasured]


class Snapshot(NamedTuple):
    """The product and its factors at one step; the fields are those of EvolutionMeasured."""

    sigma: Float[Array, "index"]
    right_angle: Float[Array, "index"]
    left_angle: Float[Array, "index"]
    gap: Float[Array, ""]
    moved: Float[Array, ""]


class Look(NamedTuple):
    """What is recorded of one training, over its steps."""

    product: Snapshot
    value_sigma: Float[Array, "index"]
    value_right_angle: Float[Array, "index"]
    size: Float[Array, ""]
    """Norm of what the value matrix has moved by."""


def layers_of(adapter: Any) -> Weights:
    """Layers of an adapter from W_1, the first to act, to W_L."""
    return tuple(reversed(adapter.factors))


def gaps(frame: Frame, layers: Weights, moving: int) -> Float[Array, "depth"]:
    """Distance of each layer from Theorem 2's form, ``U_l blkdiag(Wt_l, rho_l I) V_l^T``."""
    parts = []
    for U, V, W in zip(frame.left, frame.right, layers, strict=True):
        inner = U.T @ W @ V
        bulk = inner[moving:, moving:]
        rho = jnp.mean(jnp.diagonal(bulk))
        rest = inner.at[:moving, :moving].set(0)
        rest = rest.at[moving:, moving:].set(bulk - rho * jnp.eye(len(bulk), dtype=bulk.dtype))
        parts.append(jnp.linalg.norm(rest))
    return jnp.stack(parts)


def angles_to(basis: Float[Array, "n moving"], vectors: Float[Array, "n k"]) -> Float[Array, "k"]:
    """Angle of each vector to the span of an orthonormal basis, in degrees."""
    return jnp.degrees(jnp.arcsin(jnp.clip(sines(basis, vectors), 0, 1)))


def snapshot(frame: Frame, start: Weights, moving: int, layers: Weights) -> Snapshot:
    """Spectrum of the product, angles of its vectors to the frame in degrees, distance from it."""
    U, sigma, Vh = linalg.svd(end_to_end(layers))
    moved = jnp.stack([jnp.linalg.norm(W - S) for W, S in zip(layers, start, strict=True)])
    # At the start nothing has moved: a distance of 0, not 0 / 0.
    gap = jnp.where(moved > 0, gaps(frame, layers, moving) / jnp.where(moved > 0, moved, 1), 0)
    return Snapshot(
        sigma=sigma,
        right_angle=angles_to(frame.right[0][:, :moving], Vh.T),
        left_angle=angles_to(frame.left[-1][:, :moving], U),
        gap=jnp.max(gap),
        moved=jnp.max(moved / jnp.stack([jnp.linalg.norm(S) for S in start])),
    )


@lru_cache
def look_at(moving: int) -> cells.Look:
    """What is recorded at a step, with a frame of which so many directions move.

    One function for one number: by it a program is known.
    """

    def look(now: dict[str, Any], frame: Frame, start: Weights, W: Array, first: Array) -> Look:
        (adapter,) = now.values()
        changed = adapter.onto(W)
        _, sigma, Vh = linalg.svd(changed)
        return Look(
            snapshot(frame, start, moving, layers_of(adapter)),
            sigma,
            angles_to(frame.right[0][:, :moving], Vh.T),
            jnp.linalg.norm(changed - first),
        )

    return look


@lru_cache(maxsize=2)
def _ground_of(task: tasks.Task, precision: str) -> SentenceTraining:
    """The texts, and the value matrix of the second-last layer, once for all points."""
    data = tasks.encode(task, precision)
    return SentenceTraining(data, (tuning.value_matrix(data.model)[0],))


def measure_evolution(case: Tuning, keeper: Keeper = FORGETFUL) -> EvolutionMeasured:
    """Train with Adam and by descent, each at the rate that is best for it elsewhere."""
    # The second-last layer, the 11th of BERT's 12; the only one of an encoder that has one.
    depth = len(tuning.model_of(case).layers)
    ground = _ground_of(tuning.task_of(case)._replace(layers=min(2, depth)), tuning.precision())
    bench = Bench(ground, keeper)
    more = "_centred" if case.center == "yes" else ""
    runs = [_follow(bench, case, f"{rule}{more}") for rule in RULES]
    arrays = {
        name: np.stack([run[name] for run in runs])
        for name in EvolutionMeasured._fields
        if name in runs[0]
    }
    steps = recorded_steps(case.steps, POINTS)
    return EvolutionMeasured(**arrays, step=steps, diverged_at=np.array(-1))


def _follow(bench: Bench, case: Tuning, method: str) -> dict[str, np.ndarray]:
    """What is measured of one rule, by the fields of EvolutionMeasured."""
    (path,) = bench.paths
    W = bench.weight(path)
    width = min(W.shape)
    best = search_rates(bench, case, method, width, case.examples).chosen
    asked = TrainingRequest(method, width, case.examples, best.rate, case.steps, case.init_scale)
    begun = bench.beginning(asked, case.key)
    start = layers_of(begun.adapters[path])
    # The matrix that the model starts with: the product is in it, unless it is centred.
    first = begun.adapters[path].onto(W)
    examples = bench.ground.batch(jnp.unique(begun.order), begun.scores)
    slope = tuning.value_slope(bench.with_head(begun.head), first, examples)
    frame = jax.jit(subspace.frame, static_argnums=2)(start, slope, case.rank)
    times = recorded_steps(case.steps, POINTS)
    look = bench.follow(asked, case.key, look_at(2 * case.rank), times, frame, start, W, first)
    size = float(look.size[-1])
    random = chance.moved_singular_values(np.asarray(end_to_end(start), np.float64), size)
    value_random = chance.moved_singular_values(np.asarray(first, np.float64), size)
    return look.product._asdict() | {
        "value_sigma": look.value_sigma,
        "value_right_angle": look.value_right_angle,
        "random_move": np.stack(random),
        "value_random_move": np.stack(value_random),
        "pearson": bench.run(asked, case.key).pearson,
        "rate": np.array(best.rate),
        "bracketed": np.array(int(best.bracketed)),
        "tried": pad_rates(best.tried),
        "tried_pearson": pad_rates(best.scores),
    }


def log_moves(sigma: Float[np.ndarray, "... step index"]) -> Float[np.ndarray, "... step index"]:
    """How far each singular value is from its start, |ln(sigma(t) / sigma(0))|.

    NaN where one of both is below the round-off of the largest value of its step in float32, of
    which nothing is known.

    Args:
        sigma: singular values over steps, the start first.

    Example:
        >>> log_moves(np.array([[1.0, 1.0, 1.0], [2.0, 1.0, 1e-9]])).round(3).tolist()
        [[0.0, 0.0, 0.0], [0.693, 0.0, nan]]
    """
    sigma = np.asarray(sigma, float)
    least = sigma.shape[-1] * np.finfo(np.float32).eps * sigma.max(axis=-1, keepdims=True)
    known = np.where(sigma > least, sigma, np.nan)
    return np.abs(np.log(known / known[..., :1, :]))


def has_moved(move: Float[np.ndarray, "..."]) -> np.ndarray:
    """Whether a singular value is :data:`MOVED` larger or smaller; what is not known has not.

    Example:
        >>> has_moved(np.array([0.0, 0.09, 0.1, np.nan])).tolist()
        [False, False, True, False]
    """
    return np.nan_to_num(move) > np.log1p(MOVED)


def _gap(outcome: Measured, place: int) -> np.ndarray:
    return outcome.measured.gap[:, place, -1]


def _have_moved(sigma: np.ndarray, place: int) -> np.ndarray:
    """Which singular values have moved at the end, over seeds, with the rule of a place."""
    return has_moved(log_moves(sigma[:, place])[:, -1])


def _moved_count(outcome: Measured, place: int) -> np.ndarray:
    return _have_moved(outcome.measured.sigma, place).sum(axis=-1).astype(float)


def _value_moved_count(outcome: Measured, place: int) -> np.ndarray:
    return _have_moved(outcome.measured.value_sigma, place).sum(axis=-1).astype(float)


def _value_count_above(outcome: Measured, place: int) -> np.ndarray:
    """How many more than a random matrix moves."""
    random = outcome.measured.value_random_move[:, place, 0]
    return _value_moved_count(outcome, place) - has_moved(random).sum(axis=-1)


def _angle(outcome: Measured, place: int) -> np.ndarray:
    """Mean over the singular values of the product that moved; NaN where none did."""
    moved = _have_moved(outcome.measured.sigma, place)
    angles = np.where(moved, outcome.measured.right_angle[:, place, -1], 0.0)
    return angles.sum(axis=-1) / np.where(moved.any(axis=-1), moved.sum(axis=-1), np.nan)


MEASURES = (
    (
        "gap",
        "distance of the factors from Theorem 2's form, over how far they moved, at the end, "
        "largest over the factors",
        _gap,
        lambda theory, run: (run.gap,),
    ),
    (
        "moved",
        "singular values of the product that are 10 % from their start at the end",
        _moved_count,
        lambda theory, run: (run.sigma,),
    ),
    (
        "value_moved",
        "singular values of the value matrix that are 10 % from their start at the end",
        _value_moved_count,
        lambda theory, run: (run.value_sigma,),
    ),
    (
        "value_chance",
        "how many more these are than a random matrix of the same size moves",
        _value_count_above,
        lambda theory, run: (run.value_sigma, run.value_random_move),
    ),
    (
        "angle",
        "angle of the right singular vectors of the product that moved to the frame of one "
        "gradient, mean, degrees, at the end",
        _angle,
        lambda theory, run: (run.right_angle, run.sigma),
    ),
)
"""Name, words and number of what is said of a run, and the arrays that it reads."""


def _findings(
    rule: str, text: str, center: str, more: str
) -> tuple[Finding[Any, EvolutionMeasured], ...]:
    """Findings about runs with one rule from eps = 1, the scale of the survey's caption."""

    def at_center(value: Callable[[Measured, int], np.ndarray]) -> Callable[[Measured], np.ndarray]:
        def value_at(outcome: Measured) -> np.ndarray:
            point = outcome.point
            counts = point["init_scale"] == 1 and point["center"] == center
            return value(outcome, RULES.index(rule)) if counts else np.zeros(0)

        return value_at

    name = f"{rule}{more and '_centred'}"
    return tuple(
        Finding(
            f"evolution_{measure}_{name}",
            f"{text}, eps = 1{more}: {words}",
            at_center(value),
            reads,
        )
        for measure, words, value, reads in MEASURES
    )


def _settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The first method and rank, and the most examples."""
    return restrict_to("evolution", settings, "part") | {
        "task": settings["task"][:1],
        "method": settings["method"][:1],
        "rank": settings["rank"][:1],
        "examples": (max(settings["examples"]),),
    }


EVOLUTION = Scenario[Tuning, Any, EvolutionMeasured](
    "evolution",
    tuning.make_tuning,
    train=measure_evolution,
    measured=EvolutionMeasured,
    narrow=_settings,
    steps="steps",
    diverged=lambda run: run.diverged_at,
    findings=tuple(
        finding
        for center, more in (("no", ""), ("yes", ", centred"))
        for rule, text in zip(RULES, ("Adam", "SGD"), strict=True)
        for finding in _findings(rule, text, center, more)
    ),
)
