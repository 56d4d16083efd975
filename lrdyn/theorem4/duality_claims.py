"""Theorem 4 for any linear map: projected descent is the training of an adapter."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from lrdyn.adapters.algorithm_1 import Method, begin, low_rank_descent
from lrdyn.adapters.maps import LinearMap
from lrdyn.adapters.methods import GALORE, RELORA_FROZEN
from lrdyn.core.initialization import gaussians
from lrdyn.core.recording import Recorded, recorded_steps
from lrdyn.engine.claims import on_each, on_scale
from lrdyn.engine.statement import Claim, Control, Outcome, Scenario

MOST_STEPS = 60
"""Most steps."""

SCALE = 2.0
"""s, of an adapter theta_0 + s S^T Lambda."""

EPSILON = 0.3
"""What Adam adds to the root of its second moment: not tiny, so that it is seen."""

PARTS = (1.0, 0.1, 0.01)
"""Parts of it, at which the gap between equal eps is measured."""

RATE = 0.05
"""Step size of Adam."""

Rules = Mapping[str, Callable[[Any], optax.GradientTransformation]]

LINEAR: Rules = {
    "sgd": lambda eps: optax.sgd(0.1),
    "momentum": lambda eps: optax.sgd(0.03, momentum=0.9),
}
"""Updates that are proportional to the gradients."""

ROOTS: Rules = {
    "adam": lambda eps: optax.adam(RATE, eps=eps),
    "rmsprop": lambda eps: optax.rmsprop(0.01, eps=eps**2),
    "adagrad": lambda eps: optax.adagrad(0.05, initial_accumulator_value=eps**2, eps=eps**2),
}
"""Updates that stay as they are if gradients and eps are multiplied by one number. Beside squares
of gradients stands the square of eps. Lion is one of them too, but it jumps where a sign changes,
so that rounding decides."""

OTHERS: Rules = {
    "adamw": lambda eps: optax.adamw(RATE, eps=eps, weight_decay=0.1),
    "lamb": lambda eps: optax.lamb(RATE, eps=eps),
}
"""Updates that look at the parameters."""

RULES = {**LINEAR, **ROOTS, **OTHERS}


class Dense(LinearMap):
    """Any matrix S on vectors of parameters, the rows of an array.

    Example:
        >>> import jax.numpy as jnp
        >>> S = Dense(jnp.array([[1.0, 2.0]]))
        >>> S.project(jnp.ones(2)).tolist(), S.lift(jnp.ones(1)).tolist()
        ([3.0], [1.0, 2.0])
    """

    matrix: Float[Array, "k n"]

    def project(self, gradient: Float[Array, "... n"]) -> Float[Array, "... k"]:
        """S g."""
        return gradient @ self.matrix.T

    def lift(self, coordinates: Float[Array, "... k"]) -> Float[Array, "... n"]:
        """S^T r."""
        return coordinates @ self.matrix


class Adapted(Recorded):
    """A regression whose loss is not quadratic, and a linear map of its parameters."""

    matrix: Float[Array, "k n"]
    """S."""
    inputs: Float[Array, "examples n"]
    outputs: Float[Array, "examples"]
    start: Float[Array, "n"]
    """theta_0."""
    rules: tuple[str, ...] = eqx.field(static=True)


def make_case(key: Key[Array, ""], *, rows: int, cols: int, rank: int, steps: int) -> Adapted:
    """Draw a map, a regression and where its parameters start."""
    shapes = [(rank, rows), (cols, rows), (1, cols), (1, rows)]
    matrix, inputs, outputs, start = gaussians(key, shapes)
    matrix, inputs = matrix / np.sqrt(rows), inputs / np.sqrt(rows)
    names, recorded = (*LINEAR, *ROOTS), np.union1d(1, recorded_steps(steps, 7))
    return Adapted(matrix, inputs, 3 * outputs[0], start[0], names, steps=recorded)


# Training ------------------------------------------------------------------------------------


def side_by_side(rules: Sequence[optax.GradientTransformation]) -> optax.GradientTransformation:
    """An optimiser for each row of an array; it is always given the parameters.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> rule, rows = side_by_side([optax.sgd(1.0), optax.sgd(2.0)]), jnp.ones((2, 1))
        >>> rule.update(rows, rule.init(rows), rows)[0].tolist()
        [[-1.0], [-2.0]]
    """

    def init(params: Any):
        return tuple(rule.init(row) for rule, row in zip(rules, params, strict=True))

    def update(updates: Any, state: Any, params: Any = None):
        rows = zip(rules, state, updates, params, strict=True)
        moves, state = zip(*(rule.update(g, s, w) for rule, s, g, w in rows), strict=True)
        return jnp.stack(moves), state

    return optax.GradientTransformation(init, update)


def _paths(
    method: Method, case: Adapted, settings: list[tuple[float, float]]
) -> Float[Array, "settings times rules n"]:
    """Train with every optimiser, for each scale and part of eps."""
    every = jnp.tile(case.start[None], (len(case.rules), 1))

    def train(scale: Array, part: Array):
        return low_rank_descent(
            method, lambda every: _huber(case, every), every, side_by_side(_rules(case, part)),
            choose=lambda key, gradients: Dense(case.matrix),
            period=case.steps[-1], steps=case.steps, scale=scale,
        ).records  # fmt: skip

    scales, parts = (jnp.asarray(column) for column in zip(*settings, strict=True))
    return jax.vmap(train)(scales, parts)


def _trained(method: Method, case: Adapted) -> Array:
    """How many numbers a method differentiates in, for one rule."""
    run = begin(method, optax.identity(), case.start, Dense(case.matrix))
    return jnp.asarray(sum(leaf.size for leaf in jax.tree.leaves(run.split.trained)), jnp.int32)


def _rules(case: Adapted, part: Any) -> list[optax.GradientTransformation]:
    return [RULES[name](EPSILON * part) for name in case.rules]


def _huber(case: Adapted, every: Float[Array, "rules n"]) -> Float[Array, ""]:
    """The sum over the rows, so that each has the gradient of its own loss."""
    distance = every @ case.inputs.T - case.outputs[None]
    return jnp.sum(jnp.sqrt(1 + distance**2)) / len(case.outputs)


# Theory and measurement ----------------------------------------------------------------------

ADAPTED, PROJECTED = RELORA_FROZEN, GALORE
"""The method of the adapters that predict, and of the projected gradients that are measured."""

ADAPTERS = [(1.0, 1.0), (SCALE, 1.0)]
"""Scale of the adapter, part of eps."""

MATCHED = [(1.0, 1.0), (SCALE**2, 1.0), (SCALE, 1 / SCALE)]
"""GaLore's alpha and part of eps: without a scale; for linear rules; for roots."""

EQUAL = [(SCALE, part) for part in PARTS]
DIVIDED = [(SCALE, part / SCALE) for part in PARTS]
"""The eps of the adapter, and these divided by s."""

FIRST, MIDDLE = len(LINEAR), len(LINEAR) + 1
"""Where Adam is found among the rules."""


def _scaled(linear: Array, roots: Array) -> dict[str, Array]:
    """Paths of linear rules from one run; of Adam, and of other rules with roots, from another."""
    return {
        "scale_linear": linear[:, :FIRST],
        "scale_adam": roots[:, FIRST:MIDDLE],
        "scale_roots": roots[:, MIDDLE:],
    }


def predict(case: Adapted) -> dict[str, Array]:
    """Train adapters by differentiating in Lambda; the gap of equal eps by hand."""
    plain, scaled = _paths(ADAPTED, case, ADAPTERS)
    gram = case.matrix @ case.matrix.T
    return _scaled(scaled, scaled) | {
        "duality": plain,
        "same_eps": _gap(case),
        "both_trained": jnp.array([len(case.matrix), len(case.start)], jnp.int32),
        "away_from_isometry": jnp.linalg.norm(gram - jnp.eye(len(gram), dtype=gram.dtype)),
    }


def _gap(case: Adapted) -> Float[Array, "parts 1 n"]:
    """The first step of Adam is - rate g / (|g| + eps)."""
    S = Dense(case.matrix)
    g = S.project(jax.grad(lambda theta: _huber(case, theta[None]))(case.start))

    def step(eps: Any):
        return S.lift(-SCALE * RATE * g / (jnp.abs(g) + eps))

    gaps = [step(EPSILON * part) - step(EPSILON * part / SCALE) for part in PARTS]
    return jnp.stack(gaps)[:, None]


def measure(case: Adapted) -> dict[str, Array]:
    """Project full gradients and lift the updates."""
    plain, linear, roots, *others = _paths(PROJECTED, case, MATCHED + EQUAL + DIVIDED)
    return _scaled(linear, roots) | {
        "duality": plain,
        "both_trained": jnp.stack([_trained(method, case) for method in (ADAPTED, PROJECTED)]),
        "same_eps": _first_steps_apart(case, others),
        "scale": jnp.max(jnp.abs(case.start)),
        "step": jnp.asarray(case.steps),
    }


# Claims and controls -------------------------------------------------------------------------


ISOMETRY = 0.01
"""||S S^T - I||_F below which S counts as one with orthonormal rows, which shows less."""


def _undecided(one: Outcome) -> str:
    isometry = one.predicted["away_from_isometry"] < ISOMETRY
    return "orthonormal map" if isometry else ""


CLAIMS = (
    Claim("duality",
          "theta <- theta + S^T opt(S g) is theta_0 + S^T Lambda with Lambda trained by opt, for "
          "any matrix S (judged where its rows are not orthonormal); SGD, momentum, Adam, RMSProp, "
          "Adagrad", residual=on_each("duality", 1), reads=("duality", "away_from_isometry"),
          undecided=_undecided),
    Claim("both_trained",
          "one differentiates in the k entries of Lambda and the other in the n of theta",
          kind="exact", carries=False, sides="shape of S against the arrays that are trained"),
    Claim("scale_linear",
          "theta_0 + s S^T Lambda is theta <- theta + s^2 S^T opt(S g) for SGD and momentum",
          residual=on_each("scale_linear", 1)),
    Claim("scale_adam",
          "it is theta <- theta + s S^T opt(S g) for Adam, whose eps is divided by s there",
          residual=on_each("scale_adam", 1)),
    Claim("scale_roots",
          "the same for RMSProp and Adagrad, whose constants in roots are divided by s^2",
          residual=on_each("scale_roots", 1)),
    Claim("same_eps",
          "with equal eps the first steps of Adam are s rate S^T [g/(|g| + eps/s) - g/(|g| + eps)] "
          "apart, in proportion to eps where it is small",
          residual=on_scale("same_eps", lambda one: one.measured["scale"]),
          reads=("same_eps", "scale"),
          sides="Adam's first step by hand against the difference of two paths"),
)  # fmt: skip


def _gradients_only(case: Adapted) -> Array:
    """Every optimiser makes the same update at two values of the parameters."""
    made = side_by_side(_rules(case, 1.0))
    row = Dense(case.matrix).project(case.start)
    gradients = jnp.tile(row[None], (len(case.rules), 1))

    def update(values: Array):
        return jnp.asarray(made.update(gradients, made.init(values), values)[0])

    both = jax.vmap(update)(jnp.stack([gradients, 1 - 2 * gradients]))
    return jnp.all(both[0] == both[1])


def _only(rule: str) -> Callable[[Array, Adapted, Array], Adapted]:
    return lambda key, case, amount: dataclasses.replace(case, rules=(rule,))


MULTIPLIED = [(SCALE, part * SCALE) for part in PARTS]
"""Those of the adapter times s, where they are to be divided."""


def _wrong_scales(case: Adapted) -> dict[str, Array]:
    """For linear rules alpha = s, for Adam s^2; in roots equal constants; without a scale s."""
    wrong = [(SCALE, 1.0), (SCALE**2, 1 / SCALE)]
    one, two, *others = _paths(PROJECTED, case, wrong + EQUAL + MULTIPLIED)
    return _scaled(one, one) | {
        "scale_adam": two[:, FIRST:MIDDLE],
        "duality": one,
        "same_eps": _first_steps_apart(case, others),
    }


def _first_steps_apart(case: Adapted, paths: list[Array]) -> Array:
    """The first steps of Adam in one half of the paths less those in the other half."""
    steps = jnp.stack(paths)[:, case.steps.index(1), FIRST:MIDDLE]
    return steps[: len(PARTS)] - steps[len(PARTS) :]


def _scales_exchanged(case: Adapted) -> dict[str, Array]:
    """The adapter of scale s where it has none, and that without a scale where it has s."""
    plain, scaled = _paths(ADAPTED, case, ADAPTERS)
    return _scaled(plain, plain) | {"duality": scaled}


CONTROLS = (
    Control("decoupled_decay", "AdamW, which decays the parameters that it is given", "duality",
            case=_only("adamw"), breaks="gradients_only"),
    Control("trust_ratio", "LAMB, whose step is proportional to the parameters that it is given",
            "duality", case=_only("lamb"), breaks="gradients_only"),
    Control("alpha_s_for_1", "alpha = s for adapters without a scale", "duality",
            measure=_wrong_scales),
    Control("adapter_of_scale_s", "adapters of scale s claimed for alpha = 1", "duality",
            predict=_scales_exchanged),
    Control[Adapted](
        "galore_for_both", "projected gradients on both sides", "both_trained",
        measure=lambda case: {"both_trained": jnp.stack([_trained(PROJECTED, case)] * 2)}),
    Control[Adapted](
        "adapters_for_both", "adapters claimed on both sides", "both_trained",
        predict=lambda case: {"both_trained": jnp.full(2, len(case.matrix), jnp.int32)}),
    *(Control(f"{name}_without_scale", "adapters without a scale claimed for s", f"scale_{name}",
              predict=_scales_exchanged) for name in ("linear", "adam", "roots")),
    Control("eps_multiplied", "eps multiplied by s in place of divided", "same_eps",
            measure=_wrong_scales),
    Control("alpha_s_for_sgd", "alpha = s for SGD and momentum", "scale_linear",
            measure=_wrong_scales),
    Control("alpha_squared_for_adam", "alpha = s^2 for Adam", "scale_adam", measure=_wrong_scales),
    Control("equal_constants_in_roots", "constants that are not divided by s^2", "scale_roots",
            measure=_wrong_scales),
    Control[Adapted]("no_gap_of_equal_eps", "the dictionary with equal eps: no gap", "same_eps",
                     predict=lambda case: {"same_eps": jnp.zeros_like(_gap(case))}),
)  # fmt: skip


def _narrow(settings: dict[str, Any]) -> dict[str, Any]:
    """The first rank, and not too many steps."""
    return settings | {"rank": settings["rank"][:1], "steps": min(settings["steps"], MOST_STEPS)}


DUALITY = Scenario(
    "duality", make_case, predict, measure, CLAIMS, CONTROLS,
    hypotheses={"gradients_only": _gradients_only},
    dims={
        "duality": ("step", "rule", "parameter"),
        "scale_linear": ("step", "linear_rule", "parameter"),
        "scale_adam": ("step", "adam_rule", "parameter"),
        "scale_roots": ("step", "root_rule", "parameter"),
        "same_eps": ("eps_part", "adam_rule", "parameter"),
        "both_trained": ("method",),
        "step": ("step",),
    },
    narrow=_narrow, steps="steps",
    sides="adapters trained by differentiation against projected gradients, lifted",
    at={"rows": 8, "cols": 6, "rank": 2, "steps": MOST_STEPS},
)  # fmt: skip
