"""Algorithm 1 by hand: loops in NumPy written from its text, and the runs that they are beside.

On the right side all is as on the left, transposed.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lrdyn as lr
from tests import oracles
from tests.oracles import Optimizer

M, N, EXAMPLES, RANK, ETA, STEPS = 5, 7, 9, 2, 0.1, 13
KEY = jax.random.key(3)
OPTIMIZERS = {
    "sgd": optax.sgd(ETA),
    "momentum": optax.sgd(ETA, momentum=0.9),
    "adam": optax.adam(ETA),
}
HOW = {"steps": STEPS, "size": 10 * N}
"""Of the tolerance: an error of the gradient grows by the condition of the projectors, 10 at most,
at each of five refreshes at most."""


def problem() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    X = draw.normal(size=(N, EXAMPLES)) / np.sqrt(EXAMPLES)
    return X, draw.normal(size=(M, EXAMPLES)), draw.normal(size=(M, N))


def loss(W: Any, X: Any, Y: Any) -> jax.Array:
    return 0.5 * jnp.sum((W @ X - Y) ** 2)


# Loops ----------------------------------------------------------------------------------------


class Task(NamedTuple):
    """What is trained by hand: gradients in W, and in b where there is a bias."""

    start: np.ndarray
    slopes: Callable[..., tuple[np.ndarray, Any]]
    rank: int
    eta: float
    steps: int


def regression() -> Task:
    X, Y, W = problem()

    def slopes(W: np.ndarray, b: Any = 0.0) -> tuple[np.ndarray, np.ndarray]:
        error = W @ X + np.reshape(b, (-1, 1)) - Y
        return error @ X.T, error.sum(axis=1)

    return Task(W, slopes, RANK, ETA, STEPS)


def vectors(G: np.ndarray, rank: int = RANK) -> np.ndarray:
    """Top left singular vectors as columns, the largest entry of each positive."""
    P = np.linalg.svd(G)[0][:, :rank]
    return P * np.sign(P[np.abs(P).argmax(0), range(rank)])


def full_by_hand(kind: str) -> np.ndarray:
    """Full training: the last weights."""
    task = regression()
    return oracles.optimise(kind, task.start, lambda W: task.slopes(W)[0], ETA, STEPS)


def turned(side: str) -> Callable[[np.ndarray], np.ndarray]:
    return np.transpose if side == "right" else np.asarray


def galore_by_hand(
    kind: str, *, period: int, side: str = "left", state: str = "keep", task: Task | None = None
) -> np.ndarray:
    """The gradient is projected: the weights at every step."""
    W, slopes, rank, eta, steps = task or regression()
    turn, opt = turned(side), Optimizer(kind, eta)
    path, P = [W], np.zeros(0)
    for t in range(steps):
        G = turn(slopes(W)[0])
        if t % period == 0:
            old, P = P, vectors(G, rank)
            if state == "reset":
                opt = Optimizer(kind, eta)
            elif state == "transport" and np.ndim(opt.first):
                opt.first = P.T @ old @ opt.first
        W = W + turn(P @ opt.update(P.T @ G))
        path.append(W)
    return np.array(path)


def adapters_by_hand(
    kind: str,
    start: Callable[[int, np.ndarray], np.ndarray] | None = None,
    *,
    period: int,
    side: str = "left",
    state: str = "reset",
    scale: float = 1.0,
    bias: np.ndarray | None = None,
    frozen: bool = False,
    merge: bool = True,
    restart: bool = True,
    rate: Callable[[int], float] = lambda t: ETA,
    task: Task | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """ReLoRA and LoRA, W + s B A + b 1^T: the weights and b at every step.

    ``start(t, G)`` is the factor P that is not 0 after a refresh, by default GaLore's; ``frozen``
    leaves it there. State ``moments``: they are reset, the count goes on; ``rate(t)`` is the step.
    The mistakes: no merge at a refresh, or the other factor R not set to 0.
    """
    W, slopes, rank, eta, steps = task or regression()
    turn, b = turned(side), np.zeros(len(W)) if bias is None else bias
    P, R = np.zeros((len(turn(W)), rank)), np.zeros((rank, turn(W).shape[1]))
    rules, path = [], [(W, b)]
    for t in range(steps):
        if t % period == 0:
            whole = W + scale * turn(P @ R)
            G = turn(slopes(whole, b)[0])
            P = start(t, G) if start else vectors(G, rank)
            W, R = whole if merge else W, R * (not restart)
            if t == 0:
                rules = [Optimizer(kind, eta) for _ in range(3)]
            # The bias is trained as it is: nothing of its state changes.
            elif state == "reset":
                rules = [Optimizer(kind, eta), Optimizer(kind, eta), rules[2]]
            elif state == "moments":
                for rule in rules[:2]:
                    rule.first = rule.second = 0.0
        for rule in rules:
            rule.eta = eta / ETA * rate(t)
        slope, of_bias = slopes(W + scale * turn(P @ R), b)
        G = turn(slope)
        moves = scale * G @ R.T, scale * P.T @ G, of_bias
        of_P, of_R, of_b = (rule.update(g) for rule, g in zip(rules, moves, strict=True))
        P, R = P if frozen else P + of_P, R + of_R
        b = b if bias is None else b + of_b
        path.append((W + scale * turn(P @ R), b))
    weights, shifts = zip(*path, strict=True)
    return np.array(weights), np.array(shifts)


# Runs -----------------------------------------------------------------------------------------


@functools.cache
def trajectories(
    method: lr.adapters.Method,
    kinds: tuple[str, ...] = tuple(OPTIMIZERS),
    dtype: str = "float64",
    **how: Any,
) -> dict[str, Any]:
    """A run by each optimiser, in one program; equal arguments share the results."""
    X, Y, W = (jnp.asarray(array, dtype) for array in problem())
    how = {"rank": RANK, "steps": tuple(range(STEPS + 1)), "key": KEY} | how

    def train(W):
        return {
            kind: lr.low_rank_descent(method, lambda W: loss(W, X, Y), W, OPTIMIZERS[kind], **how)
            for kind in kinds
        }

    return jax.jit(train)(W)


def runs(method: lr.adapters.Method, **how: Any) -> dict[str, jax.Array]:
    """The weights at every step, by each optimiser."""
    return {kind: found.records for kind, found in trajectories(method, **how).items()}


def run(method: lr.adapters.Method, kind: str, **how: Any) -> jax.Array:
    """The weights at every step."""
    return trajectories(method, (kind,), **how)[kind].records
