"""Theorem 4, the implementation: ``optax.contrib.galore`` is Algorithm 1 on the larger side."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.custom_batching import sequential_vmap
from jaxtyping import Array, Float, Int, Key, PyTree

from lrdyn import linalg
from lrdyn.adapters.descent import low_rank_descent
from lrdyn.adapters.galore import GALORE
from lrdyn.adapters.maps import (
    Identity,
    Projector,
    Side,
    choose_projectors,
    resolve_side,
    top_singular_projector,
)
from lrdyn.claims import RESOLVED, relative_difference, tolerance
from lrdyn.descent import recorded_steps, simulate
from lrdyn.engine.jaxprs import equations
from lrdyn.initialization import gaussians
from lrdyn.theorem import Claim, Control, Outcome, Statement, with_condition
from lrdyn.theorems.theorem4.problems import OPTIMIZERS

DECAY = 0.1
"""lambda of the claim about decay."""

THEIRS: dict[str, optax.GradientTransformation | None] = {
    "sgd": optax.identity(),
    "momentum": optax.trace(0.9),
    "adam": None,
}
"""Those of :data:`OPTIMIZERS` as ``base_optimizer``, without a step size; None is Adam, optax's own
choice."""


class Training(eqx.Module):
    """A network with a tall and a wide layer and a bias, as a user trains it."""

    weights: dict[str, Array]
    """``first`` m x n, ``second`` n x m, ``bias``."""
    inputs: Float[Array, "n examples"]
    outputs: Float[Array, "n examples"]
    learning_rate: Float[Array, ""]
    optimizer: str = eqx.field(static=True)
    rank: int = eqx.field(static=True)
    period: int = eqx.field(static=True)
    steps: tuple[int, ...] = eqx.field(static=True)
    """Those that are recorded."""


def make_training(
    key: Key[Array, ""],
    *,
    rows: int,
    cols: int,
    rank: int,
    period: int,
    optimizer: str,
    learning_rate: Any,
    steps: int,
) -> Training:
    """Draw a start and data."""
    shapes = [(rows, cols), (cols, rows), (1, rows), (cols, cols), (cols, cols)]
    first, second, bias, inputs, outputs = gaussians(key, shapes)
    return Training(
        weights={
            "first": first / np.sqrt(rows + cols),
            "second": second / np.sqrt(rows + cols),
            "bias": 0.1 * bias[0],
        },
        inputs=inputs / np.sqrt(4 * cols),
        outputs=outputs / np.sqrt(cols),
        learning_rate=jnp.asarray(learning_rate, first.dtype),
        optimizer=optimizer,
        rank=rank,
        period=period,
        steps=tuple(recorded_steps(steps, 11).tolist()),
    )


def training_loss(weights: PyTree, inputs: Array, outputs: Array) -> Float[Array, ""]:
    """1/2 ||W_2 (W_1 X + b 1^T) - Y||_F^2."""
    hidden = weights["first"] @ inputs + weights["bias"][:, None]
    return jnp.sum((weights["second"] @ hidden - outputs) ** 2) / 2


def _flat(weights: PyTree) -> Float[Array, "weight"]:
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(weights)])


def _alone(function: Callable[[PyTree], PyTree], data: PyTree) -> PyTree:
    """One run at a time: a batched SVD can deadlock when it is spread over devices (JAX 0.10)."""
    arrays, rest = eqx.partition(data, eqx.is_array)
    return sequential_vmap(lambda arrays: function(eqx.combine(arrays, rest)))(arrays)


# Theory: Algorithm 1 --------------------------------------------------------------------------


def single_precision_projector(gradient: Float[Array, "m n"], rank: int, side: Side) -> Projector:
    """P from an SVD in float32, with the signs that LAPACK gives it: that of optax.

    Args:
        gradient: G.
        rank: r.
        side: see :func:`lrdyn.adapters.maps.resolve_side`.

    Returns:
        The :class:`~lrdyn.adapters.Projector`.

    Example:
        >>> import jax.numpy as jnp
        >>> G = jnp.array([[0.0, 0.0], [3.0, 0.0], [0.0, 2.0]])
        >>> P = single_precision_projector(G, 1, "larger")
        >>> P.side, jnp.abs(P.basis).tolist()
        ('left', [[0.0], [1.0], [0.0]])
    """
    left, _, right = linalg.svd(gradient.astype(jnp.float32))
    side = resolve_side(gradient.shape, side)
    vectors = (left if side == "left" else right.T)[:, :rank]
    return Projector(vectors.astype(gradient.dtype), side)


def aligned(projector: Projector, other: Projector) -> Projector:
    """The same subspace, each column with the sign of that of another projector.

    Args:
        projector: P.
        other: another P of the same shape, close to it up to signs.

    Returns:
        The :class:`~lrdyn.adapters.Projector`.

    Example:
        >>> import jax.numpy as jnp
        >>> P, Q = (Projector(sign * jnp.eye(2), "left") for sign in (1.0, -1.0))
        >>> bool(jnp.all(aligned(P, Q).basis == Q.basis))
        True
    """
    signs = jnp.sign(jnp.sum(projector.basis * other.basis, axis=0, keepdims=True))
    return Projector(projector.basis * signs, projector.side)


def _path(case: Training, choose: Callable[[PyTree], PyTree]) -> Float[Array, "step weight"]:
    """Algorithm 1 with a choice of projectors."""
    return low_rank_descent(
        GALORE, lambda weights: training_loss(weights, case.inputs, case.outputs), case.weights,
        OPTIMIZERS[case.optimizer](case.learning_rate), choose=lambda key, G: choose(G),
        period=case.period, steps=case.steps, record=_flat,
    ).records  # fmt: skip


def _single(gradients: PyTree, rank: int, side: Side) -> PyTree:
    """Projectors of optax, or on another side."""
    return jax.tree.map(
        lambda G: single_precision_projector(G, rank, side) if G.ndim == 2 else Identity(),
        gradients,
    )


def _precise_if(precise: Any, gradients: PyTree, rank: int) -> PyTree:
    """Projectors of optax, or those in the precision of the run with the same signs."""

    def choose(G, single):
        if G.ndim != 2:
            return single
        ours = aligned(top_singular_projector(G, rank, "larger"), single)
        return Projector(jnp.where(precise, ours.basis, single.basis), single.side)

    return jax.tree.map(choose, gradients, _single(gradients, rank, "larger"))


def _paths(case: Training) -> tuple[Array, Array]:
    """Algorithm 1 with SVDs in float32 and in the run's precision, and the latter's condition."""
    ones = jax.tree.map(jnp.ones_like, case.weights)
    data = (case.weights, case.inputs, case.outputs, ones)

    def path(lane):
        case, seen, precise = lane
        # What the SVD sees has rounding errors of its own: a twin sees another matrix.
        return _path(
            case,
            lambda G: _precise_if(precise, jax.tree.map(jnp.multiply, G, seen), case.rank),
        )

    def run(disturbed):
        def lane(precise):
            # The other lane has no twin: its float32 would respond by more than the disturbance.
            own = jax.tree.map(lambda d, plain: jnp.where(precise, d, plain), disturbed, data)
            weights, inputs, outputs, seen = own
            one = dataclasses.replace(case, weights=weights, inputs=inputs, outputs=outputs)
            return _alone(path, (one, seen, precise))

        return jax.vmap(lane)(jnp.array([False, True]))

    return with_condition(run, data)


def _one_gradient(case: Training) -> PyTree:
    return jax.grad(training_loss)(case.weights, case.inputs, case.outputs)


def predict(case: Training) -> dict[str, Array]:
    """Algorithm 1, and what is read off it."""
    (single, double), condition = _paths(case)
    return {
        "optax_same": single,
        "optax_precise": double,
        "condition": condition,
        "optax_decay": -case.learning_rate * DECAY * _flat(case.weights),
    }


# Measurement: optax ---------------------------------------------------------------------------


def rule_of(case: Training, **options: Any) -> optax.GradientTransformation:
    """``optax.contrib.galore`` at the settings of a case.

    Args:
        case: the case.
        **options: further arguments of optax.

    Returns:
        The transformation.
    """
    return optax.contrib.galore(
        case.learning_rate, rank=case.rank, update_proj_gap=case.period,
        base_optimizer=THEIRS[case.optimizer], **options,
    )  # fmt: skip


def _train(case: Training, **options: Any) -> tuple[Array, Array]:
    found = simulate(
        lambda weights: training_loss(weights, case.inputs, case.outputs),
        case.weights, rule_of(case, **options), np.asarray(case.steps), record=_flat,
    )  # fmt: skip
    return found.records, found.diverged_at


def _decayed(case: Training) -> tuple[Array, Array]:
    """What a decay of the wrapper adds to its first update, and the largest entry of that."""
    rule, gradient = rule_of(case, weight_decay=DECAY), _one_gradient(case)

    def update(share):
        # The gradient and the projector are the same: only the decay sees these weights.
        decayed = jax.tree.map(lambda W: share * W, case.weights)
        return _flat(rule.update(gradient, rule.init(case.weights), decayed)[0])

    whole, plain = jax.vmap(update)(jnp.array([1.0, 0.0], case.inputs.dtype))
    return whole - plain, jnp.max(jnp.abs(plain))


def measure(case: Training) -> dict[str, Array]:
    """Run optax as its users do: init, update, apply."""
    (path, diverged_at), (decay, scale) = _alone(lambda c: (_train(c), _decayed(c)), case)
    return {
        "optax_same": path,
        "optax_precise": path,
        "optax_decay": decay,
        "update_scale": scale,
        "diverged_at": diverged_at,
        "step": jnp.asarray(case.steps),
    }


# Claims and controls --------------------------------------------------------------------------


def _unit(one: Outcome) -> float:
    """Error that an SVD in float32 causes: one rounding at each refresh, and those of the steps."""
    refreshes = -(-one.steps // int(one.point["period"]))
    chosen = tolerance("identity", "float32", steps=refreshes, size=one.size)
    own = tolerance("identity", one.dtype, steps=one.steps, size=one.size)
    return float(one.predicted["condition"]) * (chosen + own)


def _in_units(one: Outcome) -> float:
    apart = relative_difference(one.predicted["optax_precise"], one.measured["optax_precise"])
    return float(np.divide(apart, _unit(one)))


CLAIMS = (
    Claim(
        "optax_same",
        "optax.contrib.galore takes the path of Algorithm 1 on the larger side, state kept, if "
        "both take P from an SVD in float32 with LAPACK's signs",
    ),
    Claim(
        "optax_precise",
        "and with P from an SVD in the precision of the run, of the same signs, up to the rounding "
        "of float32 at each refresh times the run's response to it: the residual is in units of "
        "the tolerance of an identity in float32 of t/T steps, plus that of the run itself, times "
        "the condition",
        kind="limit",
        residual=_in_units,
        reads=("optax_precise", "condition"),
        tolerance=1.0,
        applies=lambda one: _unit(one) <= RESOLVED,
    ),
    Claim(
        "optax_decay",
        "weight_decay of the wrapper adds -eta lambda W to an update, in all directions",
        residual=lambda one: relative_difference(
            one.predicted["optax_decay"], one.measured["optax_decay"], one.measured["update_scale"]
        ),
        reads=("optax_decay", "update_scale"),
        sides="-eta lambda W against the difference of two updates",
    ),
)


def _published(case: Training) -> dict[str, Array]:
    """GaLore on the smaller side, as published."""

    def path(case):
        return _path(case, lambda G: _single(G, case.rank, "smaller"))

    return {"optax_same": _alone(path, case)}


def _own_signs(case: Training) -> dict[str, Array]:
    def path(case):
        return _path(case, lambda G: choose_projectors(G, case.rank, "larger"))

    return {"optax_precise": _alone(path, case)}


def _decay_in_coordinates(case: Training) -> dict[str, Array]:
    """What a base optimiser could decay: the part of W in r directions (any: here the first)."""

    def seen(W):
        axes = Projector(jnp.eye(len(W), case.rank, dtype=W.dtype), "left")
        return axes.lift(axes.project(W)) if W.ndim == 2 else W

    decay = -case.learning_rate * DECAY * _flat(jax.tree.map(seen, case.weights))
    return {"optax_decay": decay, "update_scale": jnp.max(jnp.abs(decay))}


AT = {
    "rows": 8, "cols": 5, "rank": 2, "period": 5, "optimizer": "adam", "learning_rate": 0.01,
    "steps": 30,
}  # fmt: skip


def _one_optimizer(settings: dict[str, Any]) -> dict[str, Any]:
    """Adam, optax's default, unless another is asked for."""
    known = settings["optimizer"]
    return settings | {"optimizer": ("adam",) if "adam" in known else known[:1]}


OPTAX = Statement(
    "optax",
    make_training,
    predict,
    measure,
    CLAIMS,
    controls=(
        Control(
            "smaller_side",
            "GaLore on the smaller side, as published",
            "optax_same",
            measure=_published,
            at=AT,
        ),
        Control(
            "signs_by_rule",
            "P with its largest entries positive, while Adam's state is kept",
            "optax_precise",
            measure=_own_signs,
            at=AT,
        ),
        Control(
            "decay_in_coordinates",
            "a decay of the part of W in r directions",
            "optax_decay",
            measure=_decay_in_coordinates,
            at=AT,
        ),
    ),
    dims={
        "optax_same": ("step", "weight"),
        "optax_precise": ("step", "weight"),
        "optax_decay": ("weight",),
        "step": ("step",),
    },
    narrow=_one_optimizer,
    steps="steps",
    condition="condition",
    diverged="diverged_at",
    sides="Algorithm 1 against optax, initialised, updated and applied as its users do",
)


# What comes from tracing ----------------------------------------------------------------------


def _sized(rows: int, cols: int, rank: int, period: int, optimizer: str) -> Training:
    """A case of which nothing but the shapes is used."""
    return Training(
        {"first": jnp.ones((rows, cols)), "second": jnp.ones((cols, rows)), "bias": jnp.ones(rows)},
        jnp.ones((cols, cols)), jnp.ones((cols, cols)), jnp.ones(()),
        optimizer, rank, period, (0, period),
    )  # fmt: skip


def _case_of_programs(
    key: Key[Array, ""],
    *,
    rows: int,
    cols: int,
    rank: int,
    period: int,
    optimizer: str,
) -> Training:
    return _sized(rows, cols, rank, period, optimizer)


def predict_programs(case: Training) -> dict[str, Array]:
    """Shapes of projector and moments of each layer, and where SVDs stand in each program."""

    def of(m, n):
        r = min(case.rank, m, n)
        return [m, r, r, n] if m >= n else [n, r, m, r]

    shapes = [of(*case.weights[name].shape) for name in ("first", "second")]
    return {
        "optax_shapes": jnp.asarray(shapes),
        "optax_svds": jnp.asarray([[0, 2], [0, 2], [2, 0], [0, 2]]),
    }


def measure_programs(case: Training) -> dict[str, Array]:
    """Shapes in the state that optax makes, and SVDs counted in traced programs."""
    moment = optax.contrib.galore(1.0, rank=case.rank)
    state = jax.eval_shape(moment.init, case.weights)[0]
    projectors, moments = state.projector, state.base_optimizer_state.mu
    shapes = [projectors[name].shape + moments[name].shape for name in ("first", "second")]
    return {"optax_shapes": jnp.asarray(shapes), "optax_svds": _svds(case)}


def svds(function: Callable, *arguments: Any) -> tuple[int, int]:
    """Count the SVDs in a program.

    Args:
        function: a function of arrays.
        *arguments: what it is traced with.

    Returns:
        How many stand outside of every ``cond``, and how many within one.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> def choose(x):
        ...     return jax.lax.cond(x[0, 0] > 0, lambda x: jnp.linalg.svd(x)[0], lambda x: x, x)
        >>> svds(choose, jnp.ones((2, 2))), svds(jax.vmap(choose), jnp.ones((3, 2, 2)))
        ((0, 1), (1, 0))
    """
    program = jax.make_jaxpr(function)(*arguments).jaxpr
    places = [within for one, within in equations(program) if one.primitive.name == "svd"]
    return places.count(False), places.count(True)


@functools.lru_cache
def _svds_of_programs(
    rows: int, cols: int, rank: int, period: int, optimizer: str
) -> tuple[tuple[int, int], ...]:
    """SVDs of one step of a run and of two batches, and of a whole batched run of ours.

    The first batch makes its states itself, the other one has them from ``vmap(init)``.
    """
    # Shapes decide: the same numbers for all seeds and precisions, and tracing takes time.
    case = _sized(rows, cols, rank, period, optimizer)
    batch = jax.tree.map(lambda array: jnp.stack([array, array]), case)

    def init(case):
        return rule_of(case).init(case.weights)

    def update(case, state):
        return rule_of(case).update(case.weights, state, case.weights)

    def from_the_start(case):
        return update(case, init(case))

    def ours(case):
        return _path(case, lambda G: choose_projectors(G, case.rank, "larger"))

    return (
        svds(from_the_start, case),
        svds(jax.vmap(from_the_start), batch),
        svds(jax.vmap(update), batch, jax.eval_shape(jax.vmap(init), batch)),
        svds(jax.vmap(ours), batch),
    )


def _svds(case: Training, order: tuple[int, ...] = (0, 1, 2, 3)) -> Int[Array, "program 2"]:
    counts = _svds_of_programs(*case.weights["first"].shape, case.rank, case.period, case.optimizer)
    return jnp.asarray([counts[program] for program in order])


def _published_shapes(case: Training) -> dict[str, Array]:
    """Those of GaLore on the smaller side, as published."""

    def seen(weights):
        maps = choose_projectors(weights, case.rank, "smaller")
        return {n: (maps[n].basis, maps[n].project(weights[n])) for n in ("first", "second")}

    pairs = jax.eval_shape(seen, case.weights).values()
    return {"optax_shapes": jnp.asarray([basis.shape + moment.shape for basis, moment in pairs])}


def _init_inside(case: Training) -> dict[str, Array]:
    return {"optax_svds": _svds(case, order=(0, 1, 1, 3))}


OPTAX_PROGRAMS = Statement(
    "optax_programs",
    _case_of_programs,
    predict_programs,
    measure_programs,
    (
        Claim(
            "optax_shapes",
            "its state holds P of max(m, n) x r and moments of r x min(m, n) (transposed if m < n)",
            kind="exact",
            sides="r times the sides against the arrays of optax's state",
        ),
        Claim(
            "optax_svds",
            "its SVDs stand within a cond in a run and in a batch whose states are made inside the "
            "batched function, outside of any cond (at every step) with a state from vmap(init); "
            "those of the nested scan stand within a cond",
            kind="exact",
        ),
    ),
    controls=(
        Control(
            "published_shapes",
            "the state of GaLore as published",
            "optax_shapes",
            measure=_published_shapes,
            at=AT,
        ),
        Control(
            "state_made_inside",
            "a batch whose states are made inside, in place of vmap(init)",
            "optax_svds",
            measure=_init_inside,
            at=AT,
        ),
    ),
    dims={"optax_shapes": ("layer", "size"), "optax_svds": ("program", "place")},
    narrow=_one_optimizer,
    traced=False,
    sides="reasoning on `cond` under `vmap` against SVDs counted in traced programs",
)
