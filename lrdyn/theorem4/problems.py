"""Problems that Theorem 4 is tried on, their runs, and what is looked at in a run.

Algorithm 1 refreshes P each T steps, at t = 0, T, 2T, ...; after K refreshes the sum of all
updates, W(t) - W(0), has rank r K or less.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Key, PyTree

from lrdyn.adapters.algorithm_1 import Choice, Method, begin, low_rank_descent
from lrdyn.adapters.methods import RELORA_FROZEN
from lrdyn.adapters.projectors import Side, choose_projectors
from lrdyn.core import linalg
from lrdyn.core.descent import divergence_limit
from lrdyn.core.initialization import gaussians
from lrdyn.core.recording import Recorded, recorded_steps
from lrdyn.core.spectra import half_of_the_digits
from lrdyn.networks import mlp, transformer
from lrdyn.verification.stating.claims import CLEARLY, roundings, tolerance
from lrdyn.verification.stating.flags import Flag, one_of
from lrdyn.verification.stating.hypotheses import Extent, above
from lrdyn.verification.stating.statement import Claim, Outcome, longest_axis

Data = tuple[Array, Array]
M = TypeVar("M")

# Problems --------------------------------------------------------------------------------------


def linear_loss(weights: Float[Array, "m n"], data: Data) -> Float[Array, ""]:
    """1/2 ||W X - Y||_F^2."""
    inputs, outputs = data
    return 0.5 * jnp.sum((weights @ inputs - outputs) ** 2)


def logistic_loss(weights: Float[Array, "m n"], data: Data) -> Float[Array, ""]:
    """Mean cross-entropy of softmax(W X) and the classes Y, one-hot."""
    inputs, outputs = data
    return -jnp.sum(outputs * jax.nn.log_softmax(weights @ inputs, axis=0)) / inputs.shape[1]


def network_loss(network: Callable[[Array], Array], data: Data) -> Float[Array, ""]:
    """||f(X) - Y||_F^2 / 2, the mean over examples and tokens."""
    inputs, outputs = data
    return 0.5 * jnp.sum(jnp.mean((network(inputs) - outputs) ** 2, axis=EXAMPLES[inputs.ndim]))


EXAMPLES = {2: (1,), 3: (0, 2)}
"""Axes of X other than its features: columns of a matrix, or examples and tokens."""

PROBLEMS = ("regression", "logistic", "mlp", "transformer")
TOKENS = 4
"""Tokens of an example of the transformer."""


def _draw_regression(key: Key[Array, ""], rows: int, cols: int) -> tuple[PyTree, Data]:
    """W (m x n) and 2n examples: the second moments of X are near the identity."""
    count = 2 * cols
    weights, inputs, outputs = gaussians(key, [(rows, cols), (cols, count), (rows, count)])
    return weights / np.sqrt(cols), (inputs / np.sqrt(count), outputs / np.sqrt(count))


def _draw_unscaled(key: Key[Array, ""], rows: int, cols: int) -> tuple[PyTree, Data]:
    """W and examples with entries of size 1, for losses that are means over examples."""
    weights, data = _draw_regression(key, rows, cols)
    inputs, outputs = (np.sqrt(2 * cols) * array for array in data)
    return weights, (inputs, outputs)


def _draw_classes(key: Key[Array, ""], rows: int, cols: int) -> tuple[PyTree, Data]:
    """As many classes as rows, drawn at random."""
    weights, (inputs, outputs) = _draw_unscaled(key, rows, cols)
    return weights, (inputs, jax.nn.one_hot(outputs.argmax(0), rows, axis=0, dtype=inputs.dtype))


def _draw_perceptron(key: Key[Array, ""], rows: int, cols: int) -> tuple[PyTree, Data]:
    """Draw a network with n inputs, m hidden units and m outputs."""
    network_key, data_key = jax.random.split(key)
    return mlp(network_key, (cols, rows, rows)), _draw_unscaled(data_key, rows, cols)[1]


def _draw_transformer(key: Key[Array, ""], rows: int, cols: int) -> tuple[PyTree, Data]:
    """Draw a transformer of width m on tokens of n features."""
    network_key, data_key = jax.random.split(key)
    network = transformer(network_key, features=cols, width=rows, hidden=2 * rows, outputs=rows)
    count = -(-2 * cols // TOKENS)
    inputs, outputs = gaussians(data_key, [(count * cols, TOKENS), (count * rows, TOKENS)])
    return network, (inputs.reshape(count, cols, TOKENS), outputs.reshape(count, rows, TOKENS))


DRAW = {
    "regression": _draw_regression,
    "logistic": _draw_classes,
    "mlp": _draw_perceptron,
    "transformer": _draw_transformer,
}
LOSS = {
    "regression": linear_loss,
    "logistic": logistic_loss,
    "mlp": network_loss,
    "transformer": network_loss,
}
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "momentum": partial(optax.sgd, momentum=0.9),
    "adam": optax.adam,
}
"""Name -> optimiser of a step size; all of them look at gradients only."""
OPTIMIZER = Flag(
    "optimizer",
    tuple(OPTIMIZERS),
    one_of(*OPTIMIZERS),
    str,
    symbol="opt",
    help="what sees the coordinates of the gradient: sgd, momentum 0.9, or Adam",
    shapes=True,
)


def outputs_with_gap(
    outputs: Float[Array, "m examples"],
    products: Float[Array, "m examples"],
    inputs: Float[Array, "n examples"],
    rank: int,
    gap: Any,
) -> Float[Array, "m examples"]:
    """Outputs Y with which two singular values of a gradient are nearer to each other.

    The gradient of 1/2 ||W X - Y||_F^2 is G = (W X - Y) X^T. With

        Y - c (sigma_r - sigma_{r+1}) u_{r+1} v_{r+1}^T (X^T)^+,    c = 1 - gap,

    for Y it is the same but for sigma_{r+1}, which is raised by c (sigma_r - sigma_{r+1}).

    Args:
        outputs: Y, as drawn.
        products: W X.
        inputs: X.
        rank: r. Where G has no value beyond it nothing is changed.
        gap: of sigma_r and sigma_{r+1}, over that of the outputs as drawn; 0 is a tie, and 1
            leaves them as they are.
    """
    if rank >= min(len(outputs), len(inputs)):
        return outputs
    left, values, right = linalg.svd((products - outputs) @ inputs.T)
    # u v^T is added to G through Y: (X^T)^+ undoes the product with X^T.
    raised = (1 - gap) * (values[rank - 1] - values[rank])
    of_inputs, sizes, examples = linalg.svd(inputs)
    inverse = (right[rank] @ of_inputs / sizes) @ examples
    return jnp.where(gap == 1, outputs, outputs - raised * jnp.outer(left[:, rank], inverse))


# Cases -----------------------------------------------------------------------------------------


class Refreshed(Recorded):
    """A case whose projectors are chosen each T steps."""

    period: int = eqx.field(static=True, kw_only=True)
    """T."""


class LowRankRun(Refreshed):
    """A problem and how it is trained."""

    params: PyTree
    """W at the start: a matrix, or a network of which every matrix is projected."""
    data: Data
    learning_rate: Float[Array, ""]
    loss: Callable[[PyTree, Data], Array] = eqx.field(static=True)
    rank: int = eqx.field(static=True)
    optimizer: str = eqx.field(static=True)
    state: str = eqx.field(static=True)
    side: Side = eqx.field(static=True)


def make_run(
    key: Key[Array, ""],
    *,
    rows: int,
    cols: int,
    rank: int,
    period: int,
    optimizer: str,
    state: str,
    side: Side,
    problem: str,
    learning_rate: Any,
    steps: int,
    gradient_gap: Any = 1.0,
) -> LowRankRun:
    """Draw a problem from the flags."""
    params, data = DRAW[problem](key, rows, cols)
    if problem == "regression":
        inputs, outputs = data
        data = inputs, outputs_with_gap(outputs, params @ inputs, inputs, rank, gradient_gap)
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
        steps=recorded_steps(steps),
    )


def refresh_steps(case: Refreshed) -> np.ndarray:
    """Steps at which projectors are chosen."""
    return np.arange(0, case.steps[-1], case.period)


def record_times(case: Refreshed) -> np.ndarray:
    """Recorded steps, and the refreshes."""
    return np.union1d(case.steps, refresh_steps(case))


def time_indices(case: Refreshed, wanted: Any) -> np.ndarray:
    """Places of steps among the times.

    Indices are int32 throughout: two threads, one of them in float64, can share a trace of int64.
    """
    return np.searchsorted(record_times(case), wanted).astype(np.int32)


def ravel(params: PyTree) -> Float[Array, "entries"]:
    """All parameters in one vector."""
    return ravel_pytree(params)[0]


class RunRecord(NamedTuple):
    """Parameters of a run at recorded steps and refreshes, and what it trains."""

    records: Float[Array, "times entries"]
    """All parameters at the recorded steps and the refreshes."""
    diverged_at: Int[Array, ""]
    """Step at which the run diverged, or -1."""
    trained: Int[Array, ""]
    """Number of entries in which its method differentiates: it tells GaLore and ReLoRA apart."""


def train(
    case: LowRankRun, method: Method = RELORA_FROZEN, params_and_data: Any = None, **how: Any
) -> RunRecord:
    """Algorithm 1 with the settings of the case unless others are given.

    Args:
        case: the problem and its settings.
        method: GaLore, ReLoRA, ...
        params_and_data: start and data in the place of those of the case.
        **how: ``rank``, ``side``, or an argument of :func:`lrdyn.low_rank_descent`.
    """
    params, data = params_and_data or (case.params, case.data)
    rank, side = how.pop("rank", case.rank), how.pop("side", case.side)
    settings: dict[str, Any] = {
        # For all methods alike: P as published for GaLore.
        "choose": lambda key, G: choose_projectors(G, rank, side),
        "period": case.period,
        "steps": record_times(case),
        "state": case.state,
        "record": ravel,
    } | how
    rule = OPTIMIZERS[case.optimizer](case.learning_rate)
    run = low_rank_descent(
        method, lambda weights: case.loss(weights, data), params, rule, **settings
    )
    return RunRecord(
        run.records, run.diverged_at, _count_trained(method, params, settings["choose"])
    )


def _count_trained(method: Method, params: PyTree, choose: Choice) -> Int[Array, ""]:
    """Count the entries in which a method differentiates, by the shapes at its start."""

    def trained_leaves(W: PyTree) -> PyTree:
        return begin(method, optax.identity(), W, choose(None, W)).split.trained

    shapes = jax.tree.leaves(jax.eval_shape(trained_leaves, params))
    return jnp.asarray(sum(leaf.size for leaf in shapes), jnp.int32)


def factor_entries(case: LowRankRun) -> Int[Array, ""]:
    """Numbers that ReLoRA with a frozen factor trains: r n (or m r) for each m x n, and biases."""

    def count(leaf: Array) -> int:
        if leaf.ndim != 2:
            return leaf.size
        m, n = leaf.shape
        return min(case.rank, m, n) * (n if case.side == "left" else m)

    return jnp.asarray(sum(map(count, jax.tree.leaves(case.params))), jnp.int32)


def unravel(case: LowRankRun) -> Callable[[Array], PyTree]:
    """Function that makes the parameters of a case from a vector: the inverse of :func:`ravel`."""
    return ravel_pytree(case.params)[1]


def losses(case: LowRankRun, records: Float[Array, "times entries"]) -> Float[Array, "times"]:
    """Loss of the parameters in each record, on the data of the case."""
    return jax.vmap(lambda vector: case.loss(unravel(case)(vector), case.data))(records)


def first_matrix(params: PyTree) -> Float[Array, "m n"]:
    """The first weight matrix, m x n in every problem."""
    return next(leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 2)


def roundings_of(case: Recorded) -> float:
    """By how many roundings two runs of a case may differ: an identity's, for one entry."""
    return roundings(case.steps[-1], longest_axis(case))


# What is looked at in a run --------------------------------------------------------------------


def first_lost_step(
    losses: Float[Array, "times"], limit: Float[Array, ""], steps: np.ndarray
) -> Int[Array, ""]:
    """First of the steps at which the loss is no number, or past its limit; -1 if there is none."""
    beyond = ~(jnp.abs(losses) < limit)  # true of a NaN, too
    first = jnp.asarray(steps, jnp.int32)[jnp.argmax(beyond)]
    return jnp.where(jnp.any(beyond), first, -1)


def divergence_step(case: LowRankRun, losses: Float[Array, "times"]) -> Int[Array, ""]:
    """First recorded step at which a case has diverged, from its losses; -1 if it has not."""
    start = case.loss(case.params, case.data)
    # Half of the digits: where weights explode further, the next step may hang on a pre-activation
    # of size 1 that is a difference of terms of size 1e5. Twins show less than its rounding does.
    limit = divergence_limit(start) * half_of_the_digits(start.dtype)
    return first_lost_step(losses, limit, np.asarray(case.steps))


def relative_change(records: Float[Array, "*lanes times entries"]) -> Float[Array, ""]:
    """Largest change of a parameter since the start, over the largest one; least over all lanes."""
    way = jnp.max(jnp.abs(records - records[..., :1, :]), axis=(-2, -1))
    return jnp.min(way / jnp.max(jnp.abs(records), axis=(-2, -1)))


@above("sigma_r of the gradient of each matrix at the start")
def full_rank_gradient(case: LowRankRun) -> Extent:
    """Whether the gradient of every matrix has rank r or more at the start."""
    gradients = jax.grad(case.loss)(case.params, case.data)
    spectra = [linalg.svdvals(G) for G in jax.tree.leaves(gradients) if G.ndim == 2]
    digits = half_of_the_digits(spectra[0].dtype)
    least = [values[min(case.rank, len(values)) - 1] for values in spectra]
    return Extent(jnp.stack(least), digits * jnp.stack([values[0] for values in spectra]))


class Refreshes(NamedTuple):
    """The gradients at which projectors were chosen."""

    gaps: Float[Array, "refresh matrix"]
    """sigma_r - sigma_{r+1} of each matrix, over its largest sigma_1 in the run: a gradient is
    rounded on the scale of the data."""
    least: Float[Array, "refresh matrix"]
    """sigma_r of each matrix over its sigma_1."""
    bases: Float[Array, "refresh length rank"]
    """P of the first matrix."""


def examine_refreshes(case: LowRankRun, records: Float[Array, "times entries"]) -> Refreshes:
    """Look at the gradients of a recorded run once more."""

    def examine_matrix(G: Array):
        left, values, right = linalg.svd(G)
        rank = min(case.rank, len(values))
        # With r = min(m, n) the r-th value has no neighbour: its gap is that to 0.
        values = jnp.append(values, 0.0)
        vectors = left if case.side == "left" else right.T
        gap, largest = values[rank - 1] - values[rank], values[0]
        least = values[rank - 1] / jnp.where(largest == 0, 1.0, largest)
        return gap, least, largest, vectors[:, :rank]

    def examine_record(vector: Array):
        gradients = jax.grad(case.loss)(unravel(case)(vector), case.data)
        matrices = [G for G in jax.tree.leaves(gradients) if G.ndim == 2]
        gaps, least, largest, bases = zip(*map(examine_matrix, matrices), strict=True)
        return jnp.stack(gaps), jnp.stack(least), jnp.stack(largest), bases[0]

    gaps, least, largest, bases = jax.lax.map(
        examine_record, records[time_indices(case, refresh_steps(case))]
    )
    return Refreshes(gaps / jnp.max(largest, axis=0, keepdims=True), least, bases)


@runtime_checkable
class Watched(Protocol):
    """Fields of theory about a run of GaLore that decide whether paths can be compared."""

    @property
    def singular_gap(self) -> Array:
        """Gaps of the singular values at the refreshes, see :class:`Refreshes`."""
        ...

    @property
    def rank_margin(self) -> Array:
        """sigma_r over sigma_1 at the refreshes."""
        ...

    @property
    def moved(self) -> Array:
        """How far the run moves, see :func:`relative_change`."""
        ...

    @property
    def condition(self) -> Array:
        """By how much the run amplifies a small error of its start and data."""
        ...


T = TypeVar("T", bound=Watched)


def watched_fields(theory: Any) -> tuple[Any, ...]:
    """The fields that :func:`undecided` reads of a :class:`Watched`, or their names."""
    return theory.singular_gap, theory.rank_margin, theory.moved, theory.condition


LOW_RANK = "gradients of rank below r"
"""Why nothing is shown where a run has all but arrived: rounding chooses the rest of P."""


def low_rank_reason(outcome: Outcome[T, M]) -> str:
    """:data:`LOW_RANK` where theory's run has such a gradient at a refresh; empty elsewhere."""
    low = np.any(outcome.predicted.rank_margin <= half_of_the_digits(outcome.dtype))
    return LOW_RANK if low else ""


def undecided(outcome: Outcome[T, M]) -> str:
    """Why a case shows nothing of equal paths.

    With a tie the singular vectors are not determined, and two runs can choose different ones: all
    gaps must be so far from 0 that half of the digits of a projector are left. A run of GaLore that
    moves by no more than 10 tolerances would agree with one that stays.
    """
    theory = outcome.predicted
    if low := low_rank_reason(outcome):
        return low
    if not np.min(theory.singular_gap) >= half_of_the_digits(outcome.dtype):
        return "tied singular values"
    limit = tolerance("identity", outcome.dtype, steps=outcome.steps, size=outcome.size)
    if not theory.moved > CLEARLY * limit * theory.condition:
        return "hardly moves"
    return ""


S = TypeVar("S")


def trained_claim(
    id: str, compares: Callable[[S, M], tuple[Any, Any]], more: str = ""
) -> Claim[S, M]:
    """Claim, by a count, that what is measured is not another run of GaLore.

    Args:
        id: of the claim.
        compares: the number of trained entries, by theory and in the run.
        more: text behind the statement.
    """
    return Claim(
        id,
        "ReLoRA differentiates in the r n (m r on the right) entries of A for each m x n, and in "
        "biases: what is measured is not GaLore again" + more,
        kind="exact",
        compares=compares,
        carries=False,
        sides="r times the sides against the arrays that are trained",
    )


def refresh_changes(
    case: LowRankRun, records: Float[Array, "times entries"]
) -> Float[Array, "refreshes m n"]:
    """Change of the first matrix between each refresh and the next, or the end."""
    ends = np.append(refresh_steps(case)[1:], case.steps[-1])
    # Merged weights, not A: at a refresh A begins anew, and W goes on.
    matrices = jax.vmap(lambda vector: first_matrix(unravel(case)(vector)))(records)
    return matrices[time_indices(case, ends)] - matrices[time_indices(case, refresh_steps(case))]


def deficient_refreshes(case: LowRankRun) -> int:
    """K_max: refreshes after which r K < min(m, n) still holds; at least 1."""
    # A sum of full rank would show nothing: there must be a singular value to be 0.
    room = (min(first_matrix(case.params).shape) - 1) // case.rank
    return int(np.clip(room, 1, len(refresh_steps(case))))


def sum_values(
    case: LowRankRun, records: Float[Array, "times entries"]
) -> Float[Array, "refreshes index"]:
    """Singular values of W(t) - W(0), the first matrix, after K = 1, ..., K_max refreshes."""
    ends = np.append(refresh_steps(case)[1:], case.steps[-1])[: deficient_refreshes(case)]
    moved = records[time_indices(case, ends)] - records[:1]
    return jax.lax.map(lambda vector: linalg.svdvals(first_matrix(unravel(case)(vector))), moved)


def sum_rounding(
    case: LowRankRun, records: Float[Array, "times entries"], values: Float[Array, "refreshes k"]
) -> Float[Array, ""]:
    """Largest entry of the first matrix over the largest singular value of W(t) - W(0); at least 1.

    W(t) - W(0) is rounded like W, however small it is.
    """
    largest = jax.vmap(lambda vector: jnp.max(jnp.abs(first_matrix(unravel(case)(vector)))))
    return jnp.maximum(1.0, jnp.max(largest(records)) / jnp.min(values[:, 0]))


def sum_spread(case: LowRankRun, values: Float[Array, "refreshes k"]) -> Float[Array, "refreshes"]:
    """sigma_{rK} over sigma_1 of each sum."""
    places = jnp.minimum(sum_ranks(case), values.shape[1])[:, None] - 1
    least = jnp.take_along_axis(values, places, axis=1)[:, 0]
    return least / jnp.where(values[:, 0] == 0, 1.0, values[:, 0])


def sum_ranks(case: LowRankRun) -> Int[Array, "refreshes"]:
    """Predicted ranks r K, K = 1, ..., K_max."""
    return jnp.asarray(case.rank * np.arange(1, 1 + deficient_refreshes(case), dtype=np.int32))


def independence(
    case: LowRankRun, bases: Float[Array, "refresh length rank"]
) -> Float[Array, "refreshes"]:
    """Smallest singular value of [P_1 ... P_K] for each K; 0 if the subspaces meet."""
    chosen = jnp.concatenate(list(bases[: deficient_refreshes(case)]), axis=1)
    count = case.rank * np.arange(1, 1 + deficient_refreshes(case), dtype=np.int32)
    # The columns to come are put to zero, and their zeros left out.
    present = jnp.asarray(np.arange(chosen.shape[1]) < count[:, None], chosen.dtype)
    values = jax.lax.map(lambda ours: linalg.svdvals(chosen * ours[None, :]), present)
    return values[np.arange(len(count), dtype=np.int32), count - 1]


def distance(
    path: Float[Array, "*lanes entries"], other: Float[Array, "*lanes entries"]
) -> Float[Array, "*lanes"]:
    """Largest difference of two runs at each time, over their largest weight."""
    return jnp.max(jnp.abs(path - other), axis=-1) / jnp.max(jnp.abs(path))
