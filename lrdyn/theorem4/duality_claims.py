"""Theorem 4 for any linear map S: projected descent is the training of an adapter.

With opt an optimiser of gradients alone, and g the gradient at theta,

    theta <- theta + S^T opt(S g)    and
    theta = theta_0 + S^T Lambda,    Lambda <- Lambda + opt(S g),

are one path. An adapter theta_0 + s S^T Lambda sees s twice, in the gradient and in the merge: it
is theta <- theta + alpha S^T opt(S g) with alpha = s^2 for SGD and momentum, and with alpha = s
for Adam, RMSProp and Adagrad, whose constant eps beside the root is divided by s there.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from lrdyn.adapters.algorithm_1 import Method, begin, low_rank_descent
from lrdyn.adapters.decay import in_coordinates
from lrdyn.adapters.methods import GALORE, RELORA_FROZEN
from lrdyn.adapters.projectors import LinearMap
from lrdyn.core.initialization import gaussians
from lrdyn.core.recording import Recorded, recorded_steps
from lrdyn.verification.stating.fields import ABSENT, both_sides
from lrdyn.verification.stating.forms import Equal, start_of
from lrdyn.verification.stating.statement import Claim, Control, Outcome, Scenario

MOST_STEPS = 60
"""Most steps of a run, whatever --steps says."""

SCALE = 2.0
"""s, of an adapter theta_0 + s S^T Lambda."""

EPSILON = 0.3
"""Number that Adam adds to the root of its second moment; it is not tiny, so that it shows."""

PARTS = (1.0, 0.1, 0.01)
"""Parts of it, at which the gap between equal eps is measured."""

RATE = 0.05
"""Step size of Adam."""

RATES = {"sgd": 0.1, "momentum": 0.03, "adam": RATE, "rmsprop": 0.01, "adagrad": 0.05}
"""Step size of each optimiser, in the order of their paths."""

Rules = Mapping[str, Callable[[Any], optax.GradientTransformation]]

LINEAR: Rules = {
    "sgd": lambda eps: optax.sgd(RATES["sgd"]),
    "momentum": lambda eps: optax.sgd(RATES["momentum"], momentum=0.9),
}
"""Updates that are proportional to the gradients."""

ROOTS: Rules = {
    "adam": lambda eps: optax.adam(RATE, eps=eps),
    "rmsprop": lambda eps: optax.rmsprop(RATES["rmsprop"], eps=eps**2),
    "adagrad": lambda eps: optax.adagrad(
        RATES["adagrad"], initial_accumulator_value=eps**2, eps=eps**2
    ),
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
        """Coordinates S g of a gradient."""
        return gradient @ self.matrix.T

    def lift(self, coordinates: Float[Array, "... k"]) -> Float[Array, "... n"]:
        """Parameters S^T r of coordinates."""
        return coordinates @ self.matrix


class DualRegression(Recorded):
    """A regression whose loss is not quadratic, and a linear map of its parameters."""

    matrix: Float[Array, "k n"]
    """S."""
    inputs: Float[Array, "examples n"]
    outputs: Float[Array, "examples"]
    start: Float[Array, "n"]
    """theta_0."""
    rules: tuple[str, ...] = eqx.field(static=True)
    # Constants of all runs, saved with the case for whoever computes them again.
    rates: tuple[float, ...] = eqx.field(static=True, default=tuple(RATES.values()))
    scale: float = eqx.field(static=True, default=SCALE)
    epsilon: float = eqx.field(static=True, default=EPSILON)

    def loss(self, every: Float[Array, "rules n"]) -> Float[Array, ""]:
        """The sum over the rows, so that each has the gradient of its own loss."""
        distance = every @ self.inputs.T - self.outputs[None]
        return jnp.sum(jnp.sqrt(1 + distance**2)) / len(self.outputs)

    def optimizers(self, part: Any) -> list[optax.GradientTransformation]:
        """The optimisers with a part of :data:`EPSILON`."""
        return [RULES[name](EPSILON * part) for name in self.rules]


class DualityTheory(NamedTuple):
    """Adapters, trained by differentiating in Lambda."""

    duality: Float[Array, "step rule parameter"] = ABSENT
    """theta_0 + S^T Lambda."""
    scale_linear: Float[Array, "step linear_rule parameter"] = ABSENT
    """theta_0 + s S^T Lambda by SGD and momentum."""
    scale_adam: Float[Array, "step adam_rule parameter"] = ABSENT
    """theta_0 + s S^T Lambda by Adam."""
    scale_roots: Float[Array, "step root_rule parameter"] = ABSENT
    """theta_0 + s S^T Lambda by RMSProp and Adagrad."""
    same_eps: Float[Array, "eps_part adam_rule parameter"] = ABSENT
    """Difference of two first steps of Adam by hand, for each part of eps."""
    both_trained: Int[Array, "method"] = ABSENT
    """Entries of Lambda and of theta."""
    away_from_isometry: Float[Array, ""] = ABSENT
    """||S S^T - I||_F."""


class DualityMeasured(NamedTuple):
    """Projected gradients, and updates that are lifted."""

    duality: Float[Array, "step rule parameter"] = ABSENT
    """theta with alpha = 1."""
    scale_linear: Float[Array, "step linear_rule parameter"] = ABSENT
    """theta by SGD and momentum with alpha = s^2."""
    scale_adam: Float[Array, "step adam_rule parameter"] = ABSENT
    """theta by Adam with alpha = s and eps / s."""
    scale_roots: Float[Array, "step root_rule parameter"] = ABSENT
    """theta by RMSProp and Adagrad with alpha = s and eps / s."""
    same_eps: Float[Array, "eps_part adam_rule parameter"] = ABSENT
    """First step of Adam with eps less that with eps / s, for each part of eps."""
    both_trained: Int[Array, "method"] = ABSENT
    """Entries in which each method differentiates."""
    scale: Float[Array, ""] = ABSENT
    """Largest entry of theta_0."""
    step: Int[Array, "step"] = ABSENT
    """Recorded steps."""


DualityOutcome = Outcome[DualityTheory, DualityMeasured]


def make_regression(
    key: Key[Array, ""], *, rows: int, cols: int, rank: int, steps: int
) -> DualRegression:
    """Draw a map, a regression and where its parameters start."""
    shapes = [(rank, rows), (cols, rows), (1, cols), (1, rows)]
    matrix, inputs, outputs, start = gaussians(key, shapes)
    return DualRegression(
        matrix=matrix / np.sqrt(rows),
        inputs=inputs / np.sqrt(rows),
        # Large residuals: there the loss, (1 + x^2)^{1/2}, is far from quadratic.
        outputs=3 * outputs[0],
        start=start[0],
        rules=(*LINEAR, *ROOTS),
        # The first step, by which the gap of equal eps is measured, is recorded.
        steps=np.union1d(1, recorded_steps(steps, 7)),
    )


# Training ------------------------------------------------------------------------------------


def stack_optimizers(rules: Sequence[optax.GradientTransformation]) -> optax.GradientTransformation:
    """An optimiser for each row of an array; it is always given the parameters.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> rule, rows = stack_optimizers([optax.sgd(1.0), optax.sgd(2.0)]), jnp.ones((2, 1))
        >>> rule.update(rows, rule.init(rows), rows)[0].tolist()
        [[-1.0], [-2.0]]
    """

    def init(params: Any) -> tuple[Any, ...]:
        return tuple(rule.init(row) for rule, row in zip(rules, params, strict=True))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        rows = zip(rules, state, updates, params, strict=True)
        moves, state = zip(*(rule.update(g, s, w) for rule, s, g, w in rows), strict=True)
        return jnp.stack(moves), state

    return optax.GradientTransformation(init, update)


def paths(
    method: Method, case: DualRegression, settings: list[tuple[float, float]]
) -> Float[Array, "settings times rules n"]:
    """Train with every optimiser, for each scale and part of eps.

    Args:
        method: of the adapters, or of projected gradients.
        case: the regression and its map.
        settings: pairs of a scale (of the adapter, or alpha) and a part of eps.
    """
    every = jnp.tile(case.start[None], (len(case.rules), 1))

    def train(scale: Array, part: Array) -> Array:
        return low_rank_descent(
            method,
            case.loss,
            every,
            # AdamW and LAMB see on both sides what is trained in coordinates.
            in_coordinates(stack_optimizers(case.optimizers(part))),
            choose=lambda key, gradients: Dense(case.matrix),
            # One period: S is given, and never refreshed.
            period=case.steps[-1],
            steps=case.steps,
            scale=scale,
        ).records

    scales, parts = (jnp.asarray(column) for column in zip(*settings, strict=True))
    return jax.vmap(train)(scales, parts)


def _count_trained(method: Method, case: DualRegression) -> Int[Array, ""]:
    """How many numbers a method differentiates in, for one rule."""
    run = begin(method, optax.identity(), case.start, Dense(case.matrix))
    return jnp.asarray(sum(leaf.size for leaf in jax.tree.leaves(run.split.trained)), jnp.int32)


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
MULTIPLIED = [(SCALE, part * SCALE) for part in PARTS]
"""Those of the adapter times s, where they are to be divided: a mistake."""

FIRST, MIDDLE = len(LINEAR), len(LINEAR) + 1
"""Place of Adam among the rules, and that of the first of the other rules with roots."""


def predict_duality(case: DualRegression) -> DualityTheory:
    """Train adapters by differentiating in Lambda; the gap of equal eps by hand."""
    plain, scaled = paths(ADAPTED, case, ADAPTERS)
    gram = case.matrix @ case.matrix.T
    return DualityTheory(
        duality=plain,
        scale_linear=scaled[:, :FIRST],
        scale_adam=scaled[:, FIRST:MIDDLE],
        scale_roots=scaled[:, MIDDLE:],
        same_eps=gap_of_equal_eps(case),
        both_trained=jnp.array([len(case.matrix), len(case.start)], jnp.int32),
        away_from_isometry=jnp.linalg.norm(gram - jnp.eye(len(gram), dtype=gram.dtype)),
    )


def gap_of_equal_eps(case: DualRegression) -> Float[Array, "parts 1 n"]:
    """First steps of Adam with eps less those with eps / s: a step is - rate g / (|g| + eps)."""
    S = Dense(case.matrix)
    g = S.project(jax.grad(lambda theta: case.loss(theta[None]))(case.start))

    def step(eps: float) -> Array:
        return S.lift(-SCALE * RATE * g / (jnp.abs(g) + eps))

    gaps = [step(EPSILON * part) - step(EPSILON * part / SCALE) for part in PARTS]
    return jnp.stack(gaps)[:, None]


def measure_duality(case: DualRegression) -> DualityMeasured:
    """Project full gradients and lift the updates."""
    plain, linear, roots, *others = paths(PROJECTED, case, MATCHED + EQUAL + DIVIDED)
    return DualityMeasured(
        duality=plain,
        scale_linear=linear[:, :FIRST],
        scale_adam=roots[:, FIRST:MIDDLE],
        scale_roots=roots[:, MIDDLE:],
        same_eps=_first_step_gaps(case, others),
        both_trained=jnp.stack([_count_trained(method, case) for method in (ADAPTED, PROJECTED)]),
        scale=jnp.max(jnp.abs(case.start)),
        step=jnp.asarray(case.steps),
    )


def _first_step_gaps(case: DualRegression, others: list[Array]) -> Float[Array, "parts 1 n"]:
    """The first steps of Adam in one half of the paths less those in the other half."""
    steps = jnp.stack(others)[:, case.steps.index(1), FIRST:MIDDLE]
    return steps[: len(PARTS)] - steps[len(PARTS) :]


# Claims and controls -------------------------------------------------------------------------


ISOMETRY = 0.01
"""||S S^T - I||_F below which S counts as one with orthonormal rows, which shows less."""


def _compare_each_rule(
    compares: Callable[[DualityTheory, DualityMeasured], tuple[Array, Array]],
) -> Callable[[DualityOutcome], tuple[Equal, ...]]:
    """Make a comparison of the paths of each rule, the second axis, on a scale of its own."""

    def forms(outcome: DualityOutcome) -> tuple[Equal, ...]:
        both = compares(outcome.predicted, outcome.measured)
        predicted, measured = (np.moveaxis(np.asarray(side), 1, 0) for side in both)
        return tuple(
            # Who knows nothing says that theta stays; so each path must move by itself.
            Equal(path, run, null=start_of(path))
            for path, run in zip(predicted, measured, strict=True)
        )

    return forms


def _scale_claim(id: str, statement: str) -> Claim[DualityTheory, DualityMeasured]:
    return Claim(id, statement, form=_compare_each_rule(both_sides(id)))


def _gradients_only(case: DualRegression) -> Array:
    """Whether every optimiser makes the same update at two values of the parameters."""
    rules = stack_optimizers(case.optimizers(1.0))
    row = Dense(case.matrix).project(case.start)
    gradients = jnp.tile(row[None], (len(case.rules), 1))

    def update(values: Array) -> Array:
        return jnp.asarray(rules.update(gradients, rules.init(values), values)[0])

    # Parameters of another norm and other signs, which decay and trust ratios would notice.
    both = jax.vmap(update)(jnp.stack([gradients, 1 - 2 * gradients]))
    return jnp.all(both[0] == both[1])


def _replace_rules(rule: str) -> Callable[[Array, DualRegression, Array], DualRegression]:
    """Make a departure to one optimiser, which breaks the hypothesis."""
    return lambda key, case, amount: dataclasses.replace(case, rules=(rule,))


def _wrong_scales(case: DualRegression) -> DualityMeasured:
    """Train with wrong alphas: s for linear rules and without a scale, s^2 for Adam.

    Rules with roots have the constants of the adapters, not divided.
    """
    wrong = [(SCALE, 1.0), (SCALE**2, 1 / SCALE)]
    once, squared, *others = paths(PROJECTED, case, wrong + EQUAL + MULTIPLIED)
    return DualityMeasured(
        duality=once,
        scale_linear=once[:, :FIRST],
        scale_adam=squared[:, FIRST:MIDDLE],
        scale_roots=once[:, MIDDLE:],
        same_eps=_first_step_gaps(case, others),
    )


def _exchange_scales(case: DualRegression) -> DualityTheory:
    """The adapter of scale s where it has none, and that without a scale where it has s."""
    plain, scaled = paths(ADAPTED, case, ADAPTERS)
    return DualityTheory(
        duality=scaled,
        scale_linear=plain[:, :FIRST],
        scale_adam=plain[:, FIRST:MIDDLE],
        scale_roots=plain[:, MIDDLE:],
    )


def _narrow(settings: dict[str, Any]) -> dict[str, Any]:
    """The first rank, and not too many steps."""
    return settings | {"rank": settings["rank"][:1], "steps": min(settings["steps"], MOST_STEPS)}


DUALITY = Scenario[DualRegression, DualityTheory, DualityMeasured](
    "duality",
    make_regression,
    predict_duality,
    measure_duality,
    theory=DualityTheory,
    measured=DualityMeasured,
    claims=(
        Claim(
            "duality",
            "projected descent theta <- theta + S^T opt(S g) is the adapter theta_0 + S^T Lambda "
            "with Lambda trained by opt, for any matrix S (judged where its rows are not "
            "orthonormal) and SGD, momentum, Adam, RMSProp, Adagrad",
            form=_compare_each_rule(lambda theory, run: (theory.duality, run.duality)),
            reads=lambda theory, run: (theory.duality, run.duality, theory.away_from_isometry),
            undecided=lambda outcome: (
                "orthonormal map" if outcome.predicted.away_from_isometry < ISOMETRY else ""
            ),
        ),
        Claim(
            "both_trained",
            "the adapter differentiates in the k entries of Lambda, projected descent in the n "
            "of theta",
            kind="exact",
            carries=False,
            sides="shape of S against the arrays that are trained",
        ),
        _scale_claim(
            "scale_linear",
            "for SGD and momentum the adapter theta_0 + s S^T Lambda is theta <- theta + s^2 S^T "
            "opt(S g)",
        ),
        _scale_claim(
            "scale_adam",
            "for Adam the adapter theta_0 + s S^T Lambda is theta <- theta + s S^T opt(S g), "
            "with eps divided by s there",
        ),
        _scale_claim(
            "scale_roots",
            "for RMSProp and Adagrad the adapter theta_0 + s S^T Lambda is theta <- theta + s "
            "S^T opt(S g), with the constants in roots divided by s^2 there",
        ),
        Claim(
            "same_eps",
            "with equal eps the first steps of Adam for the adapter theta_0 + s S^T Lambda and "
            "for theta <- theta + s S^T opt(S g) are s eta S^T [g/(|g| + eps/s) - g/(|g| + eps)] "
            "apart, in proportion to eps where it is small",
            # Differences of two values of theta after a step are rounded like theta.
            form=lambda outcome: Equal(
                outcome.predicted.same_eps,
                outcome.measured.same_eps,
                outcome.measured.scale,
            ),
            reads=lambda theory, run: (theory.same_eps, run.same_eps, run.scale),
            sides="Adam's first step by hand against the difference of two paths",
        ),
    ),
    controls=(
        Control(
            "decoupled_decay",
            "AdamW, which decays the parameters that it is given",
            "duality",
            case=_replace_rules("adamw"),
            breaks="gradients_only",
        ),
        Control(
            "trust_ratio",
            "LAMB, whose step is proportional to the parameters that it is given",
            "duality",
            case=_replace_rules("lamb"),
            breaks="gradients_only",
        ),
        Control(
            "alpha_s_for_1",
            "alpha = s for adapters without a scale",
            "duality",
            measure=_wrong_scales,
        ),
        Control(
            "adapter_of_scale_s",
            "adapters of scale s claimed for alpha = 1",
            "duality",
            predict=_exchange_scales,
        ),
        Control(
            "galore_for_both",
            "projected gradients on both sides",
            "both_trained",
            measure=lambda case: DualityMeasured(
                both_trained=jnp.stack([_count_trained(PROJECTED, case)] * 2)
            ),
        ),
        Control(
            "adapters_for_both",
            "adapters claimed on both sides",
            "both_trained",
            predict=lambda case: DualityTheory(
                both_trained=jnp.full(2, len(case.matrix), jnp.int32)
            ),
        ),
        *(
            Control(
                f"{name}_without_scale",
                "adapters without a scale claimed for s",
                f"scale_{name}",
                predict=_exchange_scales,
            )
            for name in ("linear", "adam", "roots")
        ),
        Control(
            "eps_multiplied",
            "eps multiplied by s in place of divided",
            "same_eps",
            measure=_wrong_scales,
        ),
        Control(
            "alpha_s_for_sgd",
            "alpha = s for SGD and momentum",
            "scale_linear",
            measure=_wrong_scales,
        ),
        Control(
            "alpha_squared_for_adam", "alpha = s^2 for Adam", "scale_adam", measure=_wrong_scales
        ),
        Control(
            "equal_constants_in_roots",
            "constants that are not divided by s^2",
            "scale_roots",
            measure=_wrong_scales,
        ),
        Control(
            "no_gap_of_equal_eps",
            "the dictionary with equal eps: no gap",
            "same_eps",
            predict=lambda case: DualityTheory(same_eps=jnp.zeros_like(gap_of_equal_eps(case))),
        ),
    ),
    hypotheses={"gradients_only": _gradients_only},
    narrow=_narrow,
    steps="steps",
    sides="adapters trained by differentiation against projected gradients, lifted",
    at={"rows": 8, "cols": 6, "rank": 2, "steps": MOST_STEPS},
)
