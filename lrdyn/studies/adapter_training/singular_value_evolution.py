"""Figure 4: the product of three full-width factors, added to one value matrix of an encoder.

Where all singular values of the product start equal its singular vectors are arbitrary: they are
compared with a frame of 2r directions, Theorem 2's for the gradient of the loss at the start in the
place of the target, and never with themselves.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from lrdyn import adapters
from lrdyn.core import linalg
from lrdyn.core.factorization import Weights, end_to_end
from lrdyn.core.recording import recorded_steps
from lrdyn.core.spectra import sines
from lrdyn.engine.fields import ABSENT
from lrdyn.engine.statement import Finding, Outcome, Scenario
from lrdyn.studies.adapter_training import tuning
from lrdyn.studies.adapter_training.sentences import Examples
from lrdyn.studies.adapter_training.tuning import Tuning
from lrdyn.studies.over_seeds import only
from lrdyn.theorem2 import subspace
from lrdyn.theorem2.subspace import Frame
from lrdyn.training import FORGETFUL, Keeper, train

POINTS = 26
RULES = ("adam", "sgd")


class EvolutionMeasured(NamedTuple):
    """What is measured of the product under Adam and under descent, in the order of RULES."""

    sigma: Float[np.ndarray, "rule step index"] = ABSENT
    """Singular values of the product."""
    right_angle: Float[np.ndarray, "rule step index"] = ABSENT
    """Angle of each right singular vector to the frame's directions, in degrees."""
    left_angle: Float[np.ndarray, "rule step index"] = ABSENT
    """Angle of each left singular vector to them, in degrees."""
    gap: Float[np.ndarray, "rule step"] = ABSENT
    """Distance of the factors from Theorem 2's form over how far they moved, the largest."""
    moved: Float[np.ndarray, "rule step"] = ABSENT
    """How far the factors moved over their size at the start, the largest."""
    pearson: Float[np.ndarray, "rule step"] = ABSENT
    """Correlation on pairs that were not trained on."""
    loss: Float[np.ndarray, "rule step"] = ABSENT
    """Loss of the last batch before each recorded step; NaN at the start."""
    step: Int[np.ndarray, "step"] = ABSENT
    """Recorded steps."""
    diverged_at: Int[np.ndarray, ""] = ABSENT
    """Step at which Adam's run diverged, or -1."""


Measured = Outcome[Any, EvolutionMeasured]


class Snapshot(NamedTuple):
    """The product and its factors at one step; the fields are those of EvolutionMeasured."""

    sigma: Float[Array, "index"]
    right_angle: Float[Array, "index"]
    left_angle: Float[Array, "index"]
    gap: Float[Array, ""]
    moved: Float[Array, ""]


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


def snapshot(frame: Frame, start: Weights, moving: int, layers: Weights) -> Snapshot:
    """Spectrum of the product, angles of its vectors to the frame in degrees, distance from it."""
    U, sigma, Vh = linalg.svd(end_to_end(layers))
    moved = jnp.stack([jnp.linalg.norm(W - S) for W, S in zip(layers, start, strict=True)])
    # At the start nothing has moved: a distance of 0, not 0 / 0.
    gap = jnp.where(moved > 0, gaps(frame, layers, moving) / jnp.where(moved > 0, moved, 1), 0)

    def angles(basis: Array, vectors: Array) -> Array:
        return jnp.degrees(jnp.arcsin(jnp.clip(sines(basis[:, :moving], vectors), 0, 1)))

    return Snapshot(
        sigma=sigma,
        right_angle=angles(frame.right[0], Vh.T),
        left_angle=angles(frame.left[-1], U),
        gap=jnp.max(gap),
        moved=jnp.max(moved / jnp.stack([jnp.linalg.norm(S) for S in start])),
    )


def measure_evolution(case: Tuning, keeper: Keeper = FORGETFUL) -> EvolutionMeasured:
    """Train with Adam and, from the same start, by descent whose first step is as long."""
    path, layer = tuning.value_matrix(tuning.model_of(case))
    problem = tuning.problem(case, case.examples, layer)
    *_, start_key, key = jax.random.split(case.key, 4)
    method = adapters.deep_lora(
        depth=tuning.DEPTH, init_scale=case.init_scale, centred=case.center == "yes"
    )
    width = len(problem.net.model.embeddings.norm.gain)
    begun = adapters.init(start_key, problem.net, select=path, method=method, rank=width)
    start, moving = layers_of(begun[path]), 2 * case.rank
    # The matrix that the model starts with: the product is in it, unless it is centred.
    W = begun[path].onto(tuning.value_of(problem.net))
    gradient = tuning.value_slope(problem.net, W, problem.train)
    frame = jax.jit(subspace.frame, static_argnums=2)(start, gradient, case.rank)
    steps = recorded_steps(case.steps, POINTS)

    def look(now: dict, state: PyTree) -> tuple[Snapshot, Array]:
        return (
            snapshot(frame, start, moving, layers_of(now[path])),
            tuning.pearson(problem.net, problem.dev, now),
        )

    batches, loss = tuning.batches_of(problem)
    rate = case.learning_rate
    # Descent whose first step is as long as Adam's, rate times the root of the number of entries.
    first = jax.tree.map(lambda x: x[: tuning.BATCH], problem.train)
    slopes = layers_of(next(iter(_slope(problem.net, begun, first).values())))
    size = np.sqrt(sum(G.size for G in slopes) / sum(float(jnp.sum(G**2)) for G in slopes))
    falling = optax.linear_schedule(rate * float(size), 0.0, case.steps)
    rules = {"adam": tuning.adam(case.steps)(rate), "sgd": optax.sgd(falling)}
    runs = [
        train(key, loss, begun, rules[name], batches, steps, record=look, name=name, keeper=keeper)
        for name in RULES
    ]
    snapshots, pearson = jax.tree.map(
        lambda *arrays: np.stack(arrays), *(run.records for run in runs)
    )
    return EvolutionMeasured(
        **snapshots._asdict(),
        pearson=pearson,
        loss=np.stack([run.metrics["loss"] for run in runs]),
        step=steps,
        # Adam's alone: a run of SGD that diverges leaves NaN in its own rows.
        diverged_at=np.array(runs[0].diverged_at),
    )


@eqx.filter_jit
def _slope(net: tuning.CrossEncoder, begun: dict, batch: Examples) -> dict:
    return jax.grad(lambda now: tuning.squared_error(net, now, None, batch, None)[0])(begun)


def extremes(count: int, rank: int) -> np.ndarray:
    """Which of so many indices are the first r or the last r.

    Where Theorem 2 holds and all singular values start equal, these are the ones that move: r grow,
    r shrink.

    Example:
        >>> extremes(5, 1).tolist()
        [True, False, False, False, True]
    """
    index = np.arange(count)
    return (index < rank) | (index >= count - rank)


def _gap(outcome: Measured, place: int) -> np.ndarray:
    return outcome.measured.gap[:, place, -1]


def _angle(outcome: Measured, place: int) -> np.ndarray:
    """Mean over the r largest and the r smallest values."""
    angles = outcome.measured.right_angle[:, place, -1]
    return np.mean(angles[:, extremes(angles.shape[-1], outcome.point["rank"])], axis=-1)


def _findings(
    rule: str, text: str, center: str, more: str
) -> tuple[Finding[Any, EvolutionMeasured], Finding[Any, EvolutionMeasured]]:
    """Findings about runs with one rule from eps = 1, the scale of the survey's caption."""

    def of(value: Callable[[Measured, int], np.ndarray]) -> Callable[[Measured], np.ndarray]:
        def of_point(outcome: Measured) -> np.ndarray:
            point = outcome.point
            counts = point["init_scale"] == 1 and point["center"] == center
            return value(outcome, RULES.index(rule)) if counts else np.zeros(0)

        return of_point

    name = f"{rule}{more and '_centred'}"
    return (
        Finding(
            f"evolution_gap_{name}",
            f"{text}, eps = 1{more}: distance of the factors from Theorem 2's form, over how "
            "far they moved, at the end, largest over the factors",
            of(_gap),
            reads=lambda theory, run: (run.gap,),
        ),
        Finding(
            f"evolution_angle_{name}",
            f"{text}, eps = 1{more}: angle of the right singular vectors of the r largest and "
            "r smallest values to the frame of one gradient, mean, degrees, at the end",
            of(_angle),
            reads=lambda theory, run: (run.right_angle,),
        ),
    )


def _settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The first method and rank, and the most examples."""
    return only("evolution", settings, "part") | {
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
