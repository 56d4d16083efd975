"""Figure 4: the product of three full-width factors, added to one value matrix of an encoder.

Where all singular values of the product start equal its singular vectors are arbitrary: they are
compared with a frame of 2r directions, Theorem 2's for the gradient of the loss at the start in the
place of the target, and never with themselves.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from lrdyn import adapters
from lrdyn.core import linalg
from lrdyn.core.factorization import Weights, end_to_end
from lrdyn.core.recording import recorded_steps
from lrdyn.core.spectra import sines
from lrdyn.engine.statement import Finding, Outcome, Scenario
from lrdyn.studies.adapter_training import tuning
from lrdyn.studies.adapter_training.sentences import Examples
from lrdyn.studies.adapter_training.tuning import Problem, Tuning
from lrdyn.studies.over_seeds import only
from lrdyn.theorem2 import subspace
from lrdyn.theorem2.subspace import Frame
from lrdyn.training import train

POINTS = 26
RULES = ("adam", "sgd")


def layers_of(adapter: Any) -> Weights:
    """W_1, the first to act, to W_L."""
    return tuple(reversed(adapter.factors))


@partial(jax.jit, static_argnums=2)
def _frame(start: Weights, gradient: Float[Array, "d d"], rank: int) -> Frame:
    return subspace.frame(start, gradient, rank)


def gaps(frame: Frame, layers: Weights, moving: int) -> Float[Array, "depth"]:
    """What of each layer is not ``U_l blkdiag(Wt_l, rho_l I) V_l^T``, Theorem 2's form."""
    parts = []
    for U, V, W in zip(frame.left, frame.right, layers, strict=True):
        inner = U.T @ W @ V
        bulk = inner[moving:, moving:]
        rho = jnp.mean(jnp.diagonal(bulk))
        rest = inner.at[:moving, :moving].set(0)
        rest = rest.at[moving:, moving:].set(bulk - rho * jnp.eye(len(bulk), dtype=bulk.dtype))
        parts.append(jnp.linalg.norm(rest))
    return jnp.stack(parts)


def looked_at(frame: Frame, start: Weights, moving: int, layers: Weights) -> dict[str, Array]:
    """Spectrum of the product, angles of its vectors to the frame in degrees, distance from it."""
    U, sigma, Vh = linalg.svd(end_to_end(layers))
    moved = jnp.stack([jnp.linalg.norm(W - S) for W, S in zip(layers, start, strict=True)])
    gap = jnp.where(moved > 0, gaps(frame, layers, moving) / jnp.where(moved > 0, moved, 1), 0)

    def angles(basis: Array, vectors: Array) -> Array:
        return jnp.degrees(jnp.arcsin(jnp.clip(sines(basis[:, :moving], vectors), 0, 1)))

    return {
        "sigma": sigma, "right_angle": angles(frame.right[0], Vh.T),
        "left_angle": angles(frame.left[-1], U), "gap": jnp.max(gap),
        "moved": jnp.max(moved / jnp.stack([jnp.linalg.norm(S) for S in start])),
    }  # fmt: skip


def measure_evolution(case: Tuning) -> dict[str, Any]:
    """Train with Adam and, from the same start, by descent whose first step is as long."""
    path, layer = tuning.value_matrix(tuning.model_of(case))
    found = tuning.problem(case, case.examples, layer)
    *_, start_key, key = jax.random.split(case.key, 4)
    method = adapters.deep_lora(
        depth=tuning.DEPTH, init_scale=case.init_scale, centred=case.center == "yes"
    )
    width = len(found.net.model.embeddings.norm.gain)
    made = adapters.init(start_key, found.net, select=path, method=method, rank=width)
    start, moving = layers_of(made[path]), 2 * case.rank
    W = made[path].onto(tuning.value_of(found.net))
    frame = _frame(start, tuning.value_slope(found.net, W, found.train), case.rank)
    steps = recorded_steps(case.steps, POINTS)

    def look(now: dict, state: PyTree) -> dict[str, Array]:
        seen = looked_at(frame, start, moving, layers_of(now[path]))
        return {"pearson": tuning.pearson(found.net, found.dev, now), **seen}

    batches, loss = tuning.batches_of(found)
    runs = []
    for name in RULES:
        rule = _rule(name, case, found, made)
        runs.append(train(key, loss, made, rule, batches, steps, record=look, name=name))
    records = {n: np.stack([run.records[n] for run in runs]) for n in runs[0].records}
    return records | {
        "loss": np.stack([run.metrics["loss"] for run in runs]), "step": steps,
        # A run of SGD that is lost leaves NaN beside Adam's.
        "diverged_at": np.array(runs[0].diverged_at),
    }  # fmt: skip


def _rule(name: str, case: Tuning, found: Problem, made: dict) -> optax.GradientTransformation:
    """Adam, or descent such that both take a first step of one length."""
    rate = tuning.rate_of(case, "deep_lora")
    if name == "adam":
        return tuning.adam(case.steps)(rate)
    first = jax.tree.map(lambda x: x[: tuning.BATCH], found.train)
    factors = layers_of(next(iter(_slope(found.net, made, first).values())))
    size = np.sqrt(sum(G.size for G in factors) / sum(float(jnp.sum(G**2)) for G in factors))
    return optax.sgd(optax.linear_schedule(rate * float(size), 0.0, case.steps))


@eqx.filter_jit
def _slope(net: tuning.CrossEncoder, made: dict, batch: Examples) -> dict:
    return jax.grad(lambda made: tuning.squared_error(net, made, None, batch, None)[0])(made)


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


def _of(rule: str, center: str, measure: Callable[[Outcome, int], np.ndarray]) -> Any:
    """Of runs from eps = 1, as the survey captions them, with one rule."""
    place = RULES.index(rule)

    def value(one: Outcome) -> np.ndarray:
        mine = one.point["init_scale"] == 1 and one.point["center"] == center
        return measure(one, place) if mine else np.zeros(0)

    return value


def _gap(one: Outcome, place: int) -> np.ndarray:
    return one.measured["gap"][:, place, -1]


def _angle(one: Outcome, place: int) -> np.ndarray:
    """Mean over the r largest and the r smallest values."""
    angles = one.measured["right_angle"][:, place, -1]
    return np.mean(angles[:, extremes(angles.shape[-1], one.point["rank"])], axis=-1)


def _findings(rule: str, text: str, center: str, more: str) -> tuple[Finding, Finding]:
    name = f"{rule}{more and '_centred'}"
    return (
        Finding(f"evolution_gap_{name}",
                f"{text}, eps = 1{more}: distance of the factors from Theorem 2's form, over how "
                "far they moved, at the end, largest over the factors",
                _of(rule, center, _gap), reads=("gap",)),
        Finding(f"evolution_angle_{name}",
                f"{text}, eps = 1{more}: angle of the right singular vectors of the r largest and "
                "r smallest values to the frame of one gradient, mean, degrees, at the end",
                _of(rule, center, _angle), reads=("right_angle",)),
    )  # fmt: skip


EVOLUTION = Scenario[Tuning](
    "evolution", tuning.make_tuning, measure=measure_evolution,
    dims={
        **dict.fromkeys(("sigma", "right_angle", "left_angle"), ("rule", "step", "index")),
        **dict.fromkeys(("gap", "moved", "pearson", "loss"), ("rule", "step")), "step": ("step",),
    },
    narrow=lambda settings: only("evolution", settings, "part") | {
        "method": settings["method"][:1], "rank": settings["rank"][:1],
        "examples": (max(settings["examples"]),),
    },
    diverged="diverged_at", trains=True, steps="steps",
    findings=tuple(
        finding
        for center, more in (("no", ""), ("yes", ", centred"))
        for rule, text in zip(RULES, ("Adam", "SGD"), strict=True)
        for finding in _findings(rule, text, center, more)
    ),
)  # fmt: skip
