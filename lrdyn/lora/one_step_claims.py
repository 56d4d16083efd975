"""One step of LoRA, of DoRA and the start of PiSSA, by hand and by the adapters.

For W + s B A, any loss, and G its gradient in the whole matrix, a step of SGD with rates eta_A and
eta_B changes the product by

    d(s B A) = - eta_A s^2 B B^T G - eta_B s^2 G A^T A + eta_A eta_B s^3 G A^T B^T G.

DoRA multiplies by D V, V = W + s B A, D = diag(m / norms of the rows of V); with constant norms

    dL/dB = s D G A^T,    dL/dA = s B^T D G,    dL/dm = diag(G V^T) / norms.

At B = 0, where LoRA starts, the first step of SGD is - eta_B s^2 G A^T A, and that of Adam, whose
first step in B is the sign of the gradient, - eta_B s sign(G A^T) A. With each row of A c times, as
many ranks, these sums have c times the terms: the step of SGD is free of the rank iff s^2 r is, as
with s = alpha / sqrt(r), that of Adam iff s r is, as with alpha / r.

Each loss has a size of its own: for s = 1000 that of the squares is a million times that of others.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from lrdyn import adapters
from lrdyn.adapters import DirectedFactors, Factors
from lrdyn.core import linalg
from lrdyn.core.initialization import gaussians
from lrdyn.verification.stating.claims import tolerance
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.forms import Equal
from lrdyn.verification.stating.statement import Claim, Control, Outcome, Scenario

LOSSES = {
    "squares": lambda Z: 0.5 * jnp.sum(Z**2),
    "logistic": lambda Z: jnp.sum(jax.nn.softplus(Z)),
    "sines": lambda Z: jnp.sum(jnp.sin(Z)),
}
"""Losses of W X - Y, in the order of the axis ``loss``."""


class OneStep(eqx.Module):
    """A matrix with adapters away from their start, and data."""

    weight: Float[Array, "m n"]
    B: Float[Array, "m r"]
    A: Float[Array, "r n"]
    magnitude: Float[Array, "m"]
    scale: Float[Array, ""]
    rates: Float[Array, "2"]
    """eta_A and eta_B."""
    inputs: Float[Array, "n examples"]
    outputs: Float[Array, "m examples"]

    def loss(self, name: str, net: dict) -> Float[Array, ""]:
        """A loss of anything that multiplies as a matrix."""
        return LOSSES[name](net["W"] @ self.inputs - self.outputs)

    def slope(self, name: str, W: Float[Array, "m n"]) -> Float[Array, "m n"]:
        """G, the gradient in the whole matrix."""
        return jax.grad(lambda W: self.loss(name, {"W": W}))(W)


class StepTheory(NamedTuple):
    """The formulas, from the gradient in the whole matrix."""

    one_step: Float[Array, "loss row column"] = ABSENT
    """Change of s B A by one step of SGD on B and A."""
    step_scale: Float[Array, "loss"] = ABSENT
    """Largest entry of what is added up to that change, as G is rounded, and of s B A."""
    pissa_residual: Float[Array, "index"] = ABSENT
    """Singular values of W beyond the r-th, and zeros."""
    largest: Float[Array, ""] = ABSENT
    """Largest singular value of W."""
    dora_step: Float[Array, "loss entry"] = ABSENT
    """Gradients of DoRA in B, A and m with constant norms."""
    dora_scale: Float[Array, "loss"] = ABSENT
    """Largest entry of these gradients, as G is rounded."""
    zero_factors: Int[Array, ""] = ABSENT
    """Entries of the gradient that are not 0 where both factors are: none."""
    first_step: Float[Array, "loss row column"] = ABSENT
    """Change of s B A by the first step of SGD from B = 0."""
    first_scale: Float[Array, "loss"] = ABSENT
    """Its largest entry, as G is rounded."""
    first_adam: Float[Array, "loss row column"] = ABSENT
    """Change by the first step of Adam from B = 0."""
    first_adam_scale: Float[Array, "loss"] = ABSENT
    """Largest sum of what is added up to an entry of it."""
    sign_margin: Float[Array, ""] = ABSENT
    """Smallest entry of G A^T over the rounding of these entries, in units in the last place."""


class StepMeasured(NamedTuple):
    """Steps, starts and gradients of the adapters of this library."""

    one_step: Float[Array, "loss row column"] = ABSENT
    """Change of the merged adapter by one step."""
    pissa_residual: Float[Array, "index"] = ABSENT
    """Singular values of the base that PiSSA leaves."""
    dora_step: Float[Array, "loss entry"] = ABSENT
    """Gradients in the parts of the adapter, differentiated."""
    zero_factors: Int[Array, ""] = ABSENT
    """Entries of the gradient that are not 0, counted."""
    first_step: Float[Array, "loss row column"] = ABSENT
    """Change of the merged adapter of four times the rank, s^2 r as before, by SGD."""
    first_adam: Float[Array, "loss row column"] = ABSENT
    """Change of one of four times the rank, s r as before, by Adam."""


def make_step(
    key: Key[Array, ""],
    *,
    rows: int,
    cols: int,
    rank: int,
    adapter_scale: Array,
    learning_rate: Array,
    rate_ratio: Array,
) -> OneStep:
    """Draw a matrix, its adapters and data: B and A are not 0."""
    shapes = [(rows, cols), (rows, rank), (rank, cols), (cols, 7), (rows, 7), (1, rows)]
    W, B, A, X, Y, m = gaussians(key, shapes)
    return OneStep(
        weight=W / np.sqrt(cols),
        B=B / np.sqrt(rank),
        A=A / np.sqrt(cols),
        # Positive, and not the norms of the rows, which DoRA starts from.
        magnitude=1 + m[0] ** 2,
        scale=jnp.asarray(adapter_scale, W.dtype),
        rates=jnp.stack([learning_rate, rate_ratio * learning_rate]).astype(W.dtype),
        inputs=X / np.sqrt(7),
        outputs=Y,
    )


# Theory ------------------------------------------------------------------------------------------


def _terms(case: OneStep, name: str) -> Float[Array, "3 m n"]:
    """The three terms of the change of s B A."""
    (eta_A, eta_B), s, B, A = case.rates, case.scale, case.B, case.A
    G = case.slope(name, case.weight + s * B @ A)
    # dA = s B^T G and dB = s G A^T (lora.md, Why 1).
    of_A, of_B = -eta_A * s**2 * B @ (B.T @ G), -eta_B * s**2 * G @ A.T @ A
    return jnp.stack([of_A, of_B, eta_A * eta_B * s**3 * G @ A.T @ (B.T @ G)])


def _amplification(case: OneStep, name: str, V: Float[Array, "m n"]) -> Float[Array, ""]:
    """Rounding of G = f'(Z) X^T, Z = V X - Y, in units of that of its own size; at least 1.

    Z is rounded on the scale of what it is added up from, which moves f'(Z) by f''(Z) times that:
    a sine of 1000 has lost three digits.
    """
    Z = V @ case.inputs - case.outputs
    # f' acts entry by entry: one derivative in the direction of ones gives every f''.
    slope, bend = jax.jvp(jax.grad(LOSSES[name]), (Z,), (jnp.ones_like(Z),))
    moved = jnp.abs(bend) * (jnp.abs(V) @ jnp.abs(case.inputs) + jnp.abs(case.outputs))
    G = slope @ case.inputs.T
    return jnp.maximum(1.0, jnp.max(moved @ jnp.abs(case.inputs.T)) / jnp.max(jnp.abs(G)))


def _adapted_matrix(case: OneStep) -> Float[Array, "m n"]:
    """Adapted matrix, W + s B A."""
    return case.weight + case.scale * case.B @ case.A


def _dora_matrix(case: OneStep) -> Float[Array, "m n"]:
    """DoRA's matrix D V: each row of V = W + s B A scaled to its magnitude."""
    V = _adapted_matrix(case)
    return case.magnitude[:, None] / jnp.linalg.norm(V, axis=1)[:, None] * V


def _dora_gradients(case: OneStep, name: str) -> Float[Array, "entry"]:
    """The gradients in B, A and m where the norms are constants."""
    V = _adapted_matrix(case)
    norms = jnp.linalg.norm(V, axis=1)[:, None]
    G = case.slope(name, _dora_matrix(case))
    # The chain rule through D V with D held constant; `norms_differentiated` lets D vary.
    of_V = case.magnitude[:, None] / norms * G
    of_m = jnp.sum(G * V / norms, axis=1)
    return _ravel(case.scale * of_V @ case.A.T, case.scale * case.B.T @ of_V, of_m)


def _first_steps(case: OneStep, name: str) -> tuple[Array, Array]:
    """First steps of SGD and of Adam from B = 0."""
    G, s, rate = case.slope(name, case.weight), case.scale, case.rates[1]
    return -rate * s**2 * G @ case.A.T @ case.A, -rate * s * jnp.sign(G @ case.A.T) @ case.A


def _sign_margin(case: OneStep, name: str) -> Float[Array, ""]:
    """Smallest entry of G A^T over its rounding in units in the last place."""
    G = case.slope(name, case.weight)
    size = jnp.max(jnp.abs(G)) * _amplification(case, name, case.weight)
    return jnp.min(jnp.abs(G @ case.A.T)) / (size * jnp.max(jnp.sum(jnp.abs(case.A), axis=1)))


def _ravel(*arrays: Array) -> Float[Array, "entry"]:
    return jnp.concatenate([jnp.ravel(array) for array in arrays])


def _tail(values: Float[Array, "index"], rank: int) -> Float[Array, "index"]:
    """The values beyond the r-th, and as many zeros as that leaves out."""
    return jnp.pad(values[rank:], (0, len(values[:rank])))


def _amplifications(case: OneStep, V: Float[Array, "m n"]) -> Float[Array, "loss"]:
    return jnp.stack([_amplification(case, name, V) for name in LOSSES])


def predict_step(case: OneStep) -> StepTheory:
    """The formulas, from the gradient in the whole matrix."""
    terms = jnp.stack([_terms(case, name) for name in LOSSES])
    product = jnp.max(jnp.abs(case.scale * case.B @ case.A))
    sizes = jnp.max(jnp.sum(jnp.abs(terms), axis=1), axis=(1, 2))
    values = linalg.svdvals(case.weight)
    gradients = jnp.stack([_dora_gradients(case, name) for name in LOSSES])
    first, first_adam = (
        jnp.stack(x) for x in zip(*(_first_steps(case, n) for n in LOSSES), strict=True)
    )
    rows = jnp.max(jnp.sum(jnp.abs(case.A), axis=0))
    return StepTheory(
        one_step=jnp.sum(terms, axis=1),
        # The adapter's change is a difference of two products s B A, rounded like these.
        step_scale=sizes * _amplifications(case, _adapted_matrix(case)) + product,
        pissa_residual=_tail(values, case.A.shape[0]),
        largest=values[0],
        dora_step=gradients,
        dora_scale=jnp.max(jnp.abs(gradients), axis=1) * _amplifications(case, _dora_matrix(case)),
        zero_factors=jnp.zeros((), jnp.int32),
        first_step=first,
        first_scale=jnp.max(jnp.abs(first), axis=(1, 2)) * _amplifications(case, case.weight),
        first_adam=first_adam,
        first_adam_scale=jnp.full(len(LOSSES), case.rates[1] * case.scale * rows),
        sign_margin=jnp.min(jnp.stack([_sign_margin(case, name) for name in LOSSES])),
    )


# Measurement -------------------------------------------------------------------------------------


def _step_change(case: OneStep, name: str, rates: Float[Array, "2"]) -> Float[Array, "m n"]:
    """The change of s B A by one step of SGD on the adapters."""
    before: Any = {"W": Factors(case.B, case.A, case.scale)}
    rule = adapters.lora_plus(optax.sgd, rates[0], rates[1] / rates[0], before)
    net = {"W": case.weight}
    slope = jax.grad(lambda a: case.loss(name, adapters.apply(net, a)))(before)
    moves, _ = rule.update(slope, rule.init(before), before)
    after: Any = optax.apply_updates(before, moves)
    # Merged into 0: beside W the change would be rounded on the scale of W.
    zero = {"W": jnp.zeros_like(case.weight)}
    return adapters.merge(zero, after)["W"] - adapters.merge(zero, before)["W"]


def _dora_gradient(case: OneStep, name: str) -> Float[Array, "entry"]:
    adapter = DirectedFactors(case.B, case.A, case.scale, magnitude=case.magnitude)
    net = {"W": case.weight}
    slope = jax.grad(lambda a: case.loss(name, adapters.apply(net, a)))({"W": adapter})["W"]
    return _ravel(slope.B, slope.A, slope.magnitude)


def _moving_entries(case: OneStep, B: Float[Array, "m r"]) -> Int[Array, ""]:
    """Entries of the gradient that are not 0, of A = 0 and this B."""
    # With A = 0 the gradient in B is 0, and that in A is s B^T G.
    adapter = {"W": Factors(B, jnp.zeros_like(case.A), case.scale)}
    net = {"W": case.weight}
    slope = jax.grad(lambda a: case.loss("sines", adapters.apply(net, a)))(adapter)["W"]
    return jnp.sum(_ravel(slope.B, slope.A) != 0).astype(jnp.int32)


COPIES = 4
"""How often the wider adapter has each row of A."""
RULES = {
    "sgd": optax.sgd,
    # The first step depends on neither decay: with 0.999 the correction 1 - b2 is rounded by 6e-5
    # in float32. eps is next to no gradient; that in A is 0, and so is A's step.
    "adam": lambda rate: optax.adam(rate, b1=0.5, b2=0.5, eps=1e-30),
}


def first_changes(
    case: OneStep, rule: str, scale: Float[Array, ""]
) -> Float[Array, "loss row column"]:
    """Change of an adapter with each row of A :data:`COPIES` times, B = 0, by its first step.

    Args:
        case: with A.
        rule: one of :data:`RULES`.
        scale: s of the wider adapter.
    """
    A = jnp.concatenate([case.A] * COPIES)
    begun: Any = {"W": Factors(jnp.zeros((len(case.weight), len(A)), A.dtype), A, scale)}
    net, descent = {"W": case.weight}, RULES[rule](case.rates[1])

    def change(name: str) -> Array:
        slope = jax.grad(lambda a: case.loss(name, adapters.apply(net, a)))(begun)
        moves, _ = descent.update(slope, descent.init(begun), begun)
        after: Any = optax.apply_updates(begun, moves)
        return adapters.merge({"W": jnp.zeros_like(case.weight)}, after)["W"]

    return jnp.stack([change(name) for name in LOSSES])


def measure_step(case: OneStep, rates: Float[Array, "2"] | None = None) -> StepMeasured:
    """Step, start and differentiate the adapters, at the rates of the case or of a control."""
    rates = case.rates if rates is None else rates
    net, rank = {"W": case.weight}, case.A.shape[0]
    started = adapters.init(
        jax.random.key(0), net, rank=rank, method=adapters.PISSA, scale=case.scale
    )
    # PiSSA trains the top r values and freezes the rest, which `rebase` subtracts.
    base, _ = adapters.rebase(net, started)
    return StepMeasured(
        one_step=jnp.stack([_step_change(case, name, rates) for name in LOSSES]),
        pissa_residual=linalg.svdvals(base["W"]),
        dora_step=jnp.stack([_dora_gradient(case, name) for name in LOSSES]),
        zero_factors=_moving_entries(case, jnp.zeros_like(case.B)),
        first_step=first_changes(case, "sgd", case.scale / np.sqrt(COPIES)),
        first_adam=first_changes(case, "adam", case.scale / COPIES),
    )


# Claims ------------------------------------------------------------------------------------------


Side = Array | np.ndarray


def _compare_each_loss(predicted: Side, measured: Side, scales: Side) -> tuple[Equal, ...]:
    """Compare each loss on a scale of its own, so that each must agree by itself."""
    each = zip(predicted, measured, scales, strict=True)
    return tuple(Equal(theory, run, scale) for theory, run, scale in each)


def svd_cutoff(dtype: Any) -> float:
    """Relative size below which LAPACK's SVD takes an entry beside the diagonal for zero.

    It is ``max(10, min(100, u^{-1/8})) u`` with u = eps / 2 (``dbdsqr``, to which ``dgesdd`` comes
    for small matrices): 49 eps in float64, 5 eps in float32.

    Example:
        >>> eps = float(np.finfo("float64").eps)
        >>> round(svd_cutoff("float64") / eps, 1)
        49.4
    """
    unit = float(np.finfo(dtype).eps) / 2
    return max(10.0, min(100.0, unit**-0.125)) * unit


def _compare_residual(outcome: Outcome[StepTheory, StepMeasured]) -> Equal:
    """Compare the values of W beyond the r-th with those of the residual, on the scale of W.

    The SVD of which the residual is the rest is that of a matrix nearby: each of the n - 1 entries
    beside the diagonal is dropped once, at :func:`svd_cutoff` at most.
    """
    theory, run = outcome.predicted, outcome.measured
    rounding = tolerance("identity", outcome.dtype, steps=outcome.steps, size=outcome.size)
    dropped = (len(theory.pissa_residual) - 1) * svd_cutoff(outcome.dtype)
    scale = theory.largest * (1 + dropped / rounding)
    return Equal(theory.pissa_residual, run.pissa_residual, scale)


HEADROOM = 1e-6
"""Share of the largest number that theory may reach. The run multiplies in another order: what is
between may be larger than its product by 1/s, which is a thousand at most, and by sums over it."""


def _overflows(scales: Side, dtype: np.dtype) -> str:
    """Why a step is not judged: theory itself leaves the numbers of a precision, or nearly so."""
    within = np.all(scales <= HEADROOM * np.finfo(dtype).max)  # false of a NaN, too
    return "" if within else "overflows"


def _near_zero(outcome: Outcome[StepTheory, StepMeasured]) -> str:
    """Why Adam's first step is not judged: a sign that rounding decides, or numbers too large."""
    theory, eps = outcome.predicted, np.finfo(outcome.dtype).eps
    # An entry of G A^T is a sum over the columns, of entries that are sums themselves.
    sums = 8 * sum(theory.first_adam.shape[-2:])
    if not np.all(theory.sign_margin > sums * eps):
        return "below rounding"
    return _overflows(theory.first_scale, outcome.dtype)


# Controls ----------------------------------------------------------------------------------------


def _first_order(case: OneStep) -> StepTheory:
    """Change of s B A without the product of both steps."""
    terms = jnp.stack([_terms(case, name) for name in LOSSES])
    return StepTheory(one_step=jnp.sum(terms[:, :2], axis=1))


def _another_rank(case: OneStep) -> StepTheory:
    values = linalg.svdvals(case.weight)
    return StepTheory(pissa_residual=_tail(values, case.A.shape[0] + 1))


def _norms_differentiated(case: OneStep) -> StepMeasured:
    """Gradients of DoRA through its norms, which it holds constant."""

    def gradient(name: str) -> Array:
        def loss(B: Array, A: Array, m: Array) -> Array:
            V = case.weight + case.scale * B @ A
            return case.loss(name, {"W": m[:, None] / jnp.linalg.norm(V, axis=1)[:, None] * V})

        return _ravel(*jax.grad(loss, argnums=(0, 1, 2))(case.B, case.A, case.magnitude))

    return StepMeasured(dora_step=jnp.stack([gradient(name) for name in LOSSES]))


ONE_STEP = Scenario[OneStep, StepTheory, StepMeasured](
    "one_step",
    make_step,
    predict_step,
    measure_step,
    theory=StepTheory,
    measured=StepMeasured,
    claims=(
        Claim(
            "one_step",
            "a step of SGD with the rates eta_A and eta_B (LoRA+) changes s B A by - eta_A s^2 B "
            "B^T G - eta_B s^2 G A^T A + eta_A eta_B s^3 G A^T B^T G for any loss, G its "
            "gradient in W",
            form=lambda outcome: _compare_each_loss(
                outcome.predicted.one_step,
                outcome.measured.one_step,
                outcome.predicted.step_scale,
            ),
            reads=lambda theory, run: (theory.one_step, run.one_step, theory.step_scale),
            undecided=lambda outcome: _overflows(outcome.predicted.step_scale, outcome.dtype),
        ),
        Claim(
            "pissa_residual",
            "the matrix that PiSSA freezes has the singular values of W beyond the r-th",
            form=_compare_residual,
            reads=lambda theory, run: (theory.pissa_residual, run.pissa_residual, theory.largest),
            sides="the singular values of W against those of the base of the adapters",
        ),
        Claim(
            "dora_step",
            "with constant norms the gradients of DoRA are dB = s D G A^T, dA = s B^T D G and dm "
            "= diag(G V^T) / norms, V = W + s B A, D = diag(m / norms)",
            form=lambda outcome: _compare_each_loss(
                outcome.predicted.dora_step,
                outcome.measured.dora_step,
                outcome.predicted.dora_scale,
            ),
            reads=lambda theory, run: (theory.dora_step, run.dora_step, theory.dora_scale),
        ),
        Claim(
            "zero_factors",
            "if both factors of LoRA are 0, every entry of its gradient is exactly 0",
            kind="exact",
            carries=False,
            sides="0 against the entries that are not, counted",
        ),
        Claim(
            "first_step",
            "the first step of SGD from B = 0 is free of the rank iff s^2 r is: with each row of A "
            "four times and s halved it is - eta s^2 G A^T A of the narrow adapter",
            form=lambda outcome: _compare_each_loss(
                outcome.predicted.first_step,
                outcome.measured.first_step,
                outcome.predicted.first_scale,
            ),
            reads=lambda theory, run: (theory.first_step, run.first_step, theory.first_scale),
            undecided=lambda outcome: _overflows(outcome.predicted.first_scale, outcome.dtype),
        ),
        Claim(
            "first_adam",
            "the first step of Adam from B = 0 is free of the rank iff s r is: with each row of A "
            "four times and a fourth of s it is - eta s sign(G A^T) A of the narrow adapter",
            carries=False,
            form=lambda outcome: _compare_each_loss(
                outcome.predicted.first_adam,
                outcome.measured.first_adam,
                outcome.predicted.first_adam_scale,
            ),
            reads=lambda theory, run: (
                theory.first_adam,
                run.first_adam,
                theory.first_adam_scale,
                theory.first_scale,
                theory.sign_margin,
            ),
            undecided=_near_zero,
        ),
    ),
    controls=(
        Control(
            "rates_swapped",
            "the rates of A and B exchanged",
            "one_step",
            measure=lambda case: measure_step(case, case.rates[::-1]),
        ),
        Control(
            "ratio_one",
            "one rate for both where there are two",
            "one_step",
            measure=lambda case: measure_step(case, jnp.stack([case.rates[0]] * 2)),
        ),
        Control(
            "without_the_third_term",
            "the change to first order",
            "one_step",
            predict=_first_order,
        ),
        Control(
            "nothing_subtracted",
            "W in the place of the residual",
            "pissa_residual",
            measure=lambda case: StepMeasured(pissa_residual=linalg.svdvals(case.weight)),
        ),
        Control("another_rank", "the tail beyond r + 1", "pissa_residual", predict=_another_rank),
        Control(
            "norms_differentiated",
            "a gradient through the norms",
            "dora_step",
            measure=_norms_differentiated,
        ),
        Control(
            "one_factor_zero",
            "A = 0 alone",
            "zero_factors",
            measure=lambda case: StepMeasured(zero_factors=_moving_entries(case, case.B)),
        ),
        Control(
            "s_r_kept",
            "s r as before, as with alpha / r, under SGD",
            "first_step",
            measure=lambda case: StepMeasured(
                first_step=first_changes(case, "sgd", case.scale / COPIES)
            ),
        ),
        Control(
            "s_squared_r_kept",
            "s^2 r as before, as with alpha / sqrt(r), under Adam",
            "first_adam",
            measure=lambda case: StepMeasured(
                first_adam=first_changes(case, "adam", case.scale / np.sqrt(COPIES))
            ),
        ),
    ),
    sides="formulas in the gradient of the whole matrix against adapters, differentiated in "
    "factors",
    at={
        "rows": 6,
        "cols": 9,
        "rank": 2,
        "learning_rate": 0.1,
        "rate_ratio": 4.0,
        "adapter_scale": 2.0,
    },
)
