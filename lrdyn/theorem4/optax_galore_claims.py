"""Theorem 4, the implementation: ``optax.contrib.galore`` is Algorithm 1 on the larger side."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.custom_batching import sequential_vmap
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key, PyTree

from lrdyn.adapters import maps
from lrdyn.adapters.algorithm_1 import low_rank_descent
from lrdyn.adapters.maps import Identity, LinearMap, Projector, Side, choose_projectors
from lrdyn.adapters.methods import GALORE
from lrdyn.core import linalg
from lrdyn.core.condition import with_condition
from lrdyn.core.descent import divergence_limit, simulate
from lrdyn.core.initialization import gaussians
from lrdyn.core.recording import Recorded, recorded_steps
from lrdyn.engine.claims import RESOLVED, ROUNDING_SAFETY, on_scale, relative_difference, tolerance
from lrdyn.engine.statement import Claim, Control, Outcome, Scenario
from lrdyn.theorem4.problems import OPTIMIZERS, flat, lost_at

DECAY = 0.1
"""lambda of the claim about decay."""

THEIRS: dict[str, optax.GradientTransformation | None] = {
    "sgd": optax.identity(),
    "momentum": optax.trace(0.9),
    "adam": None,
}
"""Those of :data:`OPTIMIZERS` as ``base_optimizer``, without a step size; None is Adam, optax's own
choice."""


class Training(Recorded):
    """A network with a tall and a wide layer and a bias, as a user trains it."""

    weights: dict[str, Array]
    """``first`` m x n, ``second`` n x m, ``bias``."""
    inputs: Float[Array, "n examples"]
    outputs: Float[Array, "n examples"]
    learning_rate: Float[Array, ""]
    optimizer: str = eqx.field(static=True)
    rank: int = eqx.field(static=True)
    period: int = eqx.field(static=True)

    def loss(self, weights: PyTree) -> Float[Array, ""]:
        """:func:`training_loss` on the data."""
        return training_loss(weights, self.inputs, self.outputs)


def make_case(
    key: Key[Array, ""], *, rows: int, cols: int, rank: int, period: int, optimizer: str,
    learning_rate: Any, steps: int,
) -> Training:  # fmt: skip
    """Draw a start and data."""
    shapes = [(rows, cols), (cols, rows), (1, rows), (cols, cols), (cols, cols)]
    first, second, bias, inputs, outputs = gaussians(key, shapes)
    scale, rate = np.sqrt(rows + cols), jnp.asarray(learning_rate, first.dtype)
    return Training(
        {"first": first / scale, "second": second / scale, "bias": 0.1 * bias[0]},
        inputs / np.sqrt(4 * cols), outputs / np.sqrt(cols), rate,
        optimizer, rank, period,
        steps=np.union1d(min(period, steps), recorded_steps(steps, 11)).astype(np.int32),
    )  # fmt: skip


def training_loss(weights: PyTree, inputs: Array, outputs: Array) -> Float[Array, ""]:
    """1/2 ||W_2 (W_1 X + b 1^T) - Y||_F^2."""
    hidden = weights["first"] @ inputs + weights["bias"][:, None]
    return jnp.sum((weights["second"] @ hidden - outputs) ** 2) / 2


def _alone(function: Callable[[PyTree], PyTree], data: PyTree) -> PyTree:
    """One run at a time: a batched SVD can deadlock when it is spread over devices (JAX 0.10)."""
    arrays, rest = eqx.partition(data, eqx.is_array)
    return sequential_vmap(lambda arrays: function(eqx.combine(arrays, rest)))(arrays)


# Theory: Algorithm 1 --------------------------------------------------------------------------


def single_precision_projector(gradient: Float[Array, "m n"], rank: int, side: Side) -> Projector:
    """P from an SVD in float32, with the signs that LAPACK gives it: that of optax.

    Example:
        >>> import jax.numpy as jnp
        >>> G = jnp.array([[0.0, 0.0], [3.0, 0.0], [0.0, 2.0]])
        >>> P = single_precision_projector(G, 1, "larger")
        >>> P.side, jnp.abs(P.basis).tolist()
        ('left', [[0.0], [1.0], [0.0]])
    """
    left, _, right = linalg.svd(gradient.astype(jnp.float32))
    side = maps.resolve_side(gradient.shape, side)
    vectors = (left if side == "left" else right.T)[:, :rank]
    return Projector(vectors.astype(gradient.dtype), side)


def aligned(projector: Projector, other: Projector) -> Projector:
    """The same subspace, each column with the sign of that of a projector close to it.

    Example:
        >>> import jax.numpy as jnp
        >>> P, Q = (Projector(sign * jnp.eye(2), "left") for sign in (1.0, -1.0))
        >>> bool(jnp.all(aligned(P, Q).basis == Q.basis))
        True
    """
    signs = jnp.sign(jnp.sum(projector.basis * other.basis, axis=0, keepdims=True))
    return Projector(projector.basis * signs, projector.side)


def galore_path(case: Training, choose: Callable[[PyTree], PyTree]) -> Float[Array, "step weight"]:
    """Algorithm 1 with a choice of projectors."""
    rule = OPTIMIZERS[case.optimizer](case.learning_rate)
    return low_rank_descent(
        GALORE, case.loss, case.weights, rule, choose=lambda key, G: choose(G),
        period=case.period, steps=case.steps, record=flat,
    ).records  # fmt: skip


def _single(gradients: PyTree, rank: int, side: Side) -> PyTree:
    """Projectors of optax, or on another side."""

    def choose(G: Array) -> LinearMap:
        return single_precision_projector(G, rank, side) if G.ndim == 2 else Identity()

    return jax.tree.map(choose, gradients)


def _precise_if(precise: Any, gradients: PyTree, rank: int) -> PyTree:
    """Projectors of optax, or those in the precision of the run with the same signs."""

    def choose(G: Array, single: Any):
        if G.ndim != 2:
            return single
        ours = aligned(maps.top_singular_projector(G, rank, "larger"), single)
        return Projector(jnp.where(precise, ours.basis, single.basis), single.side)

    return jax.tree.map(choose, gradients, _single(gradients, rank, "larger"))


def _paths(case: Training) -> tuple[Array, Array]:
    """Algorithm 1 with SVDs in float32 and in the run's precision, and the latter's condition."""
    ones = jax.tree.map(jnp.ones_like, case.weights)
    data = (case.weights, case.inputs, case.outputs, ones)

    def path(lane: Any):
        case, seen, precise = lane
        # What the SVD sees has rounding errors of its own: a twin sees another matrix.
        return galore_path(
            case, lambda G: _precise_if(precise, jax.tree.map(jnp.multiply, G, seen), case.rank)
        )

    def run(disturbed: PyTree):
        def lane(precise: Array):
            # The other lane has no twin: its float32 would respond by more than the disturbance.
            own = jax.tree.map(lambda d, plain: jnp.where(precise, d, plain), disturbed, data)
            weights, inputs, outputs, seen = own
            one = dataclasses.replace(case, weights=weights, inputs=inputs, outputs=outputs)
            return _alone(path, (one, seen, precise))

        return jax.vmap(lane)(jnp.array([False, True]))

    return with_condition(run, data)


def predict(case: Training) -> dict[str, Array]:
    """Algorithm 1, and what is read off it."""
    (single, double), condition = _paths(case)
    return {
        "optax_same": single,
        "optax_precise": double,
        "condition": condition,
        "galore_diverges_at": _diverges(case, single),
        "optax_decay": -case.learning_rate * DECAY * flat(case.weights),
    }


def _diverges(case: Training, path: Float[Array, "step weight"]) -> Array:
    """First recorded step at which the loss of a path is no number, or past its limit; or -1."""
    whole = ravel_pytree(case.weights)[1]
    losses = jax.vmap(lambda vector: case.loss(whole(vector)))(path)
    return lost_at(losses, divergence_limit(case.loss(case.weights)), np.asarray(case.steps))


# Measurement: optax ---------------------------------------------------------------------------


def rule_of(case: Training, **options: Any) -> optax.GradientTransformation:
    """``optax.contrib.galore`` at the settings of a case."""
    return optax.contrib.galore(
        case.learning_rate, rank=case.rank, update_proj_gap=case.period,
        base_optimizer=THEIRS[case.optimizer], **options,
    )  # fmt: skip


def _train(case: Training, **options: Any) -> tuple[Array, Array]:
    rule = rule_of(case, **options)
    found = simulate(case.loss, case.weights, rule, case.times, record=flat)
    return found.records, found.diverged_at


def _decayed(case: Training) -> tuple[Array, Array]:
    """What a decay of the wrapper adds to its first update, and the largest entry of that."""
    rule = rule_of(case, weight_decay=DECAY)
    gradient = jax.grad(case.loss)(case.weights)

    def update(share: Array):
        # The gradient and the projector are the same: only the decay sees these weights.
        decayed = jax.tree.map(lambda W: share * W, case.weights)
        return flat(rule.update(gradient, rule.init(case.weights), decayed)[0])

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
    chosen = tolerance("identity", "float32", steps=refreshes, size=one.size) / ROUNDING_SAFETY
    own = tolerance("identity", one.dtype, steps=one.steps, size=one.size)
    return float(one.predicted["condition"]) * (chosen + own)


def _known(one: Outcome) -> np.ndarray:
    """Which records are compared: in float32, where there is a state, those of the first period.

    Runs in float64 give LAPACK the same numbers of float32. In float32 they differ in the last
    digit, and by that LAPACK may choose another sign, which a kept state notices.
    """
    steps = one.measured["step"]
    every = one.dtype == np.float64 or one.point["optimizer"] == "sgd"
    return steps <= (one.steps if every else int(one.point["period"]))


FLIPS = 1e-3
"""Chance that a digit which the SVD is given in float32 differs between two equal runs."""


def _unflipped(one: Outcome) -> np.ndarray:
    """Which of these are compared to round-off in float64, with that chance or less.

    Two runs that agree to the rounding of float64, times the condition, give the SVD another last
    digit of float32 where theirs lie on two sides of its rounding: at each refresh, for each entry,
    with the chance of that rounding over the one of float32.
    """
    apart = np.finfo(one.dtype).eps * float(one.predicted["condition"]) / np.finfo("float32").eps
    each = one.measured["optax_same"].shape[-1] * apart if one.dtype == np.float64 else 0.0
    steps = one.measured["step"]
    return _known(one) & (steps * each <= FLIPS * int(one.point["period"]))


def _same_as(name: str, compared: Callable[[Outcome], np.ndarray]) -> Callable[[Outcome], float]:
    def residual(one: Outcome) -> float:
        sides = (side[name][compared(one)] for side in (one.predicted, one.measured))
        return relative_difference(*sides)

    return residual


def _in_units(one: Outcome) -> float:
    return float(np.divide(_same_as("optax_precise", _known)(one), _unit(one)))


def _signs(one: Outcome) -> str:
    return "" if np.any(_known(one)[1:]) else "signs by rounding"


def _digits(one: Outcome) -> str:
    return _signs(one) or ("" if np.any(_unflipped(one)[1:]) else "digits of float32 by rounding")


CLAIMS = (
    Claim("optax_same",
          "optax.contrib.galore takes the path of Algorithm 1 on the larger side, state kept, if "
          "both take P from an SVD in float32 with LAPACK's signs (a run in float32 is compared "
          "for one period, unless it is SGD: then rounding decides on signs; one in float64 as "
          "long as rounding decides on a last digit of float32 with a chance below .001)",
          residual=_same_as("optax_same", _unflipped), reads=("optax_same", "step", "condition"),
          undecided=_digits,
          condition="condition"),
    Claim("optax_precise",
          "and with P from an SVD in the precision of the run, of the same signs, up to the "
          "rounding of float32 at each refresh times the run's response to it: the residual is in "
          "units of an eighth of the tolerance of an identity in float32 of t/T steps, plus that "
          "of the run itself, times the condition", kind="limit", residual=_in_units,
          reads=("optax_precise", "condition", "step"), tolerance=1.0,
          undecided=lambda one: _signs(one) if _unit(one) <= RESOLVED else "ill-conditioned"),
    Claim("optax_decay",
          "weight_decay of the wrapper adds -eta lambda W to an update, in all directions",
          residual=on_scale("optax_decay", lambda one: one.measured["update_scale"]),
          reads=("optax_decay", "update_scale"),
          sides="-eta lambda W against the difference of two updates"),
)  # fmt: skip


def _path_of(name: str, choose: Callable[[PyTree, int], PyTree]) -> Callable[[Training], dict]:
    """Predict a path of Algorithm 1 with other projectors."""

    def path(case: Training) -> Array:
        return galore_path(case, lambda gradients: choose(gradients, case.rank))

    return lambda case: {name: _alone(path, case)}


def _decay_in_coordinates(case: Training) -> dict[str, Array]:
    """What a base optimiser could decay: the part of W in r directions (any: here the first)."""

    def seen(W: Array):
        axes = Projector(jnp.eye(len(W), case.rank, dtype=W.dtype), "left")
        return axes.lift(axes.project(W)) if W.ndim == 2 else W

    return {"optax_decay": -case.learning_rate * DECAY * flat(jax.tree.map(seen, case.weights))}


def _another_run(case: Training) -> dict[str, Array]:
    """Optax with a refresh each T + 1 steps; a decay that the optimiser sees in its gradients."""

    def both(case: Training) -> tuple[Array, Array]:
        later = dataclasses.replace(case, period=case.period + 1)
        return _train(later)[0], _decay_in_gradients(case)

    path, decay = _alone(both, case)
    return {"optax_same": path, "optax_precise": path, "optax_decay": decay}


def _decay_in_gradients(case: Training) -> Array:
    rule, gradient = rule_of(case), jax.grad(case.loss)(case.weights)
    decayed = jax.tree.map(lambda G, W: G + DECAY * W, gradient, case.weights)

    def update(seen: PyTree) -> Array:
        return flat(rule.update(seen, rule.init(case.weights), case.weights)[0])

    return update(decayed) - update(gradient)


CONTROLS = (
    Control("smaller_side", "GaLore on the smaller side, as published", "optax_same",
            predict=_path_of("optax_same", lambda G, rank: _single(G, rank, "smaller"))),
    Control("signs_by_rule", "P with its largest entries positive, while Adam's state is kept",
            "optax_precise", predict=_path_of(
                "optax_precise", lambda G, rank: choose_projectors(G, rank, "larger")),
            precision="float64"),
    Control("another_period", "optax with a refresh each T + 1 steps", "optax_same",
            measure=_another_run, precision="float64"),
    Control("another_period_precise", "the same", "optax_precise", measure=_another_run,
            precision="float64"),
    Control("decay_in_coordinates", "a decay of the part of W in r directions", "optax_decay",
            predict=_decay_in_coordinates),
    Control("decay_in_gradients", "lambda W added to the gradient, which Adam then divides",
            "optax_decay", measure=_another_run),
)  # fmt: skip

AT = {
    "rows": 8, "cols": 5, "rank": 2, "period": 5, "optimizer": "adam", "learning_rate": 0.01,
    "steps": 30,
}  # fmt: skip


def one_optimizer(settings: dict[str, Any]) -> dict[str, Any]:
    """Adam, optax's default, unless another is asked for."""
    known = settings["optimizer"]
    return settings | {"optimizer": ("adam",) if "adam" in known else known[:1]}


OPTAX = Scenario(
    "optax", make_case, predict, measure, CLAIMS, CONTROLS,
    dims={
        "optax_same": ("step", "weight"),
        "optax_precise": ("step", "weight"),
        "optax_decay": ("weight",),
        "step": ("step",),
    },
    narrow=one_optimizer, steps="steps", diverges="galore_diverges_at", diverged="diverged_at",
    sides="Algorithm 1 against optax, initialised, updated and applied as its users do",
    at=AT,
)  # fmt: skip
