"""Problems, cases and runs of Theorem 4."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Key, PyTree

from lrdyn import linalg
from lrdyn.descent import Trajectory, recorded_steps
from lrdyn.initialization import gaussians
from lrdyn.networks import mlp, transformer
from lrdyn.projection import RELORA, Method, choose_projectors, low_rank_descent

Data = tuple[Array, Array]

# Problems --------------------------------------------------------------------------------------


def squared_loss(network: Callable[[Array], Array], data: Data) -> Float[Array, ""]:
    """1/2 ||f(X) - Y||_F^2."""
    inputs, outputs = data
    return 0.5 * jnp.sum((network(inputs) - outputs) ** 2)


def linear_loss(weights: Float[Array, "m n"], data: Data) -> Float[Array, ""]:
    """1/2 ||W X - Y||_F^2."""
    return squared_loss(lambda inputs: weights @ inputs, data)


def logistic_loss(weights: Float[Array, "m n"], data: Data) -> Float[Array, ""]:
    """Cross-entropy of softmax(W X) and the classes Y, one-hot, summed over the examples."""
    inputs, outputs = data
    return -jnp.sum(outputs * jax.nn.log_softmax(weights @ inputs, axis=0))


PROBLEMS = ("regression", "logistic", "mlp", "transformer")
TOKENS = 4
"""Tokens of an example of the transformer."""


def _linear(key: Key[Array, ""], rows: int, cols: int) -> tuple[PyTree, Data]:
    """W (m x n) and 2n examples whose second moments are near the identity."""
    count = 2 * cols
    weights, inputs, outputs = gaussians(key, [(rows, cols), (cols, count), (rows, count)])
    return weights / np.sqrt(cols), (inputs / np.sqrt(count), outputs / np.sqrt(count))


def _classes(key: Key[Array, ""], rows: int, cols: int) -> tuple[PyTree, Data]:
    """The same with m classes, drawn at random; each example counts 1/(2n)."""
    weights, (inputs, outputs) = _linear(key, rows, cols)
    count = 2 * cols
    classes = jax.nn.one_hot(jnp.argmax(outputs, axis=0), rows, axis=0, dtype=weights.dtype)
    return weights, (inputs * np.sqrt(count), classes / count)


def _perceptron(key: Key[Array, ""], rows: int, cols: int) -> tuple[PyTree, Data]:
    """n inputs, m hidden units, m outputs."""
    network_key, data_key = jax.random.split(key)
    _, data = _linear(data_key, rows, cols)
    return mlp(network_key, (cols, rows, rows)), data


def _transformer(key: Key[Array, ""], rows: int, cols: int) -> tuple[PyTree, Data]:
    """Tokens of n features, width m."""
    network_key, data_key = jax.random.split(key)
    network = transformer(network_key, features=cols, width=rows, hidden=2 * rows, outputs=rows)
    count = max(2 * cols // TOKENS, 1)
    inputs, outputs = gaussians(data_key, [(count * cols, TOKENS), (count * rows, TOKENS)])
    scale = np.sqrt(count * TOKENS)
    return network, (
        inputs.reshape(count, cols, TOKENS),
        outputs.reshape(count, rows, TOKENS) / scale,
    )


DRAW = {
    "regression": _linear,
    "logistic": _classes,
    "mlp": _perceptron,
    "transformer": _transformer,
}
LOSS = {
    "regression": linear_loss,
    "logistic": logistic_loss,
    "mlp": squared_loss,
    "transformer": squared_loss,
}
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "momentum": partial(optax.sgd, momentum=0.9),
    "adam": optax.adam,
}
"""Name -> optimiser of a step size; all of them look at gradients only."""


# Cases -----------------------------------------------------------------------------------------


class LowRankRun(eqx.Module):
    """A problem and how it is trained."""

    params: PyTree
    """W at the start: a matrix, or a network of which every matrix is projected."""
    data: Data
    learning_rate: Float[Array, ""]
    loss: Callable[[PyTree, Data], Array] = eqx.field(static=True)
    rank: int = eqx.field(static=True)
    period: int = eqx.field(static=True)
    optimizer: str = eqx.field(static=True)
    state: str = eqx.field(static=True)
    side: str = eqx.field(static=True)
    steps: tuple[int, ...] = eqx.field(static=True)
    """Recorded steps."""


def make_run(
    key: Key[Array, ""],
    *,
    rows: int,
    cols: int,
    rank: int,
    period: int,
    optimizer: str,
    state: str,
    side: str,
    problem: str,
    learning_rate: Any,
    steps: int,
    **flags: Any,
) -> LowRankRun:
    """Draw a problem from the flags."""
    params, data = DRAW[problem](key, rows, cols)
    return LowRankRun(
        params=params,
        data=data,
        learning_rate=jnp.asarray(learning_rate, data[0].dtype),
        loss=LOSS[problem],
        rank=rank,
        period=period,
        optimizer=optimizer,
        state=state,
        side=side,
        steps=tuple(recorded_steps(steps).tolist()),
    )


def refreshes(case: LowRankRun) -> np.ndarray:
    """Steps at which projectors are chosen."""
    return np.arange(0, case.steps[-1], case.period)


def times(case: LowRankRun) -> np.ndarray:
    """Recorded steps, and the refreshes."""
    return np.union1d(case.steps, refreshes(case))


def at(case: LowRankRun, wanted: Any) -> np.ndarray:
    """Where steps stand among the times."""
    return np.searchsorted(times(case), wanted)


def flat(params: PyTree) -> Float[Array, "entries"]:
    """All parameters in one vector."""
    return ravel_pytree(params)[0]


def train(
    case: LowRankRun, method: Method = RELORA, params_and_data: Any = None, **how: Any
) -> Trajectory:
    """Run Algorithm 1 and record all parameters at all times.

    Args:
        case: the problem.
        method: GaLore, ReLoRA or something else.
        params_and_data: start and data, if not those of the case.
        **how: further arguments of :func:`lrdyn.low_rank_descent`, if not those of the case;
            ``side`` and ``choose`` too.

    Returns:
        The trajectory.
    """
    params, data = params_and_data or (case.params, case.data)
    side = how.pop("side", case.side)
    choose = how.pop("choose", lambda G: choose_projectors(G, case.rank, side))
    return low_rank_descent(
        method,
        lambda weights: case.loss(weights, data),
        params,
        OPTIMIZERS[case.optimizer](case.learning_rate),
        choose,
        **{
            "period": case.period,
            "steps": tuple(times(case).tolist()),
            "state": case.state,
            "record": flat,
        }
        | how,
    )


def unflat(case: LowRankRun) -> Callable[[Array], PyTree]:
    """The inverse of :func:`flat`."""
    return ravel_pytree(case.params)[1]


def losses(case: LowRankRun, records: Float[Array, "times entries"]) -> Float[Array, "times"]:
    """Loss of each record."""
    return jax.vmap(lambda vector: case.loss(unflat(case)(vector), case.data))(records)


def first_matrix(params: PyTree) -> Float[Array, "m n"]:
    """The first weight matrix, m x n in every problem."""
    return next(leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 2)


# Hypotheses ------------------------------------------------------------------------------------


def singular_gaps(
    case: LowRankRun, records: Float[Array, "times entries"]
) -> Float[Array, "refresh matrix"]:
    """sigma_r - sigma_{r+1} of each matrix of the gradient at each refresh.

    Over the largest sigma_1 of the run, since a gradient is rounded on the scale of the data. A gap
    within rounding leaves the projector undetermined: two runs then choose different ones.
    """

    def of_matrix(G):
        values = jnp.append(linalg.svdvals(G), 0.0)
        rank = min(case.rank, *G.shape)
        return values[rank - 1] - values[rank], values[0]

    def of_record(vector):
        gradients = jax.grad(case.loss)(unflat(case)(vector), case.data)
        matrices = [G for G in jax.tree.leaves(gradients) if G.ndim == 2]
        gaps, largest = zip(*map(of_matrix, matrices), strict=True)
        return jnp.stack(gaps), jnp.stack(largest)

    gaps, largest = jax.lax.map(of_record, records[at(case, refreshes(case))])
    return gaps / jnp.max(largest, axis=0, keepdims=True)


def determined(gaps: Float[Array, "..."]) -> Array:
    """Whether all gaps are away from zero: half of the digits of a projector are left."""
    return jnp.min(gaps) >= np.sqrt(jnp.finfo(gaps.dtype).eps)


def with_static(case: LowRankRun, **fields: Any) -> LowRankRun:
    """The same problem, trained in another way."""
    return dataclasses.replace(case, **fields)


def sum_values(
    case: LowRankRun, records: Float[Array, "times entries"]
) -> Float[Array, "refreshes index"]:
    """Singular values of W(t) - W(0), the first matrix, after 1, 2, ... refreshes."""
    ends = np.append(refreshes(case)[1:], case.steps[-1])
    moved = records[at(case, ends)] - records[:1]
    return jax.lax.map(lambda vector: linalg.svdvals(first_matrix(unflat(case)(vector))), moved)


def ranks_of_sums(case: LowRankRun) -> Int[np.ndarray, "refreshes"]:
    """min(r K, m, n), K = 1, 2, ... refreshes."""
    return np.minimum(
        case.rank * np.arange(1, 1 + len(refreshes(case))), min(first_matrix(case.params).shape)
    )
