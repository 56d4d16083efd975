"""Why there is an edge at K: a last layer of K rows, whatever the labels say.

f(x) = W_L W_{L-1} h(x), with no activation between the last two layers and any differentiable
network h below. Let ``D = W_{L-1} W_{L-1}^T - W_L^T W_L``. The gradients G of W_{L-1} and H of W_L
have ``G W_{L-1}^T = W_L^T H``, so that a step of descent with any loss, any data and any batch is

    D(t+1) = D(t) + eta^2 (G G^T - H^T H).

``W_L^T W_L`` has rank K. By Weyl's inequality ``sigma_{K+j}(W_{L-1}(t))^2 <= lambda_j(D(t))``: K
singular values grow as the labels ask for (under the cross-entropy K - 1 of them, for its gradients
in the outputs sum to 0), the others never leave what the start and the square of the step allow. If
each step lowers the loss by eta / 2 times the squared gradient at least, as it does below the
inverse of the smoothness, then by summing

    sigma_{K+1}(W_{L-1}(t))^2 <= lambda_1(D(0)) + 2 eta (loss(0) - loss(t)),

and the update has ``sigma_{K+1}(W(t) - W(0)) <= sigma_{K+1}(W(t)) + ||W(0)||_2``. With a last layer
that is frozen the update has rank K at most, its left side in the rows of W_L.

In gradient flow D is conserved (Arora, Cohen, Golowich, Hu 2018; Du, Hu, Lee 2018). That gradients
and Hessians of classifiers concentrate in K directions is known from experiments (Gur-Ari, Roberts,
Dyer 2018). These are cited from memory. An activation in between leaves the diagonal of D alone.
"""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from lrdyn import networks
from lrdyn.core import linalg
from lrdyn.core.descent import gradient_descent, iterate, simulate
from lrdyn.core.initialization import gaussians
from lrdyn.core.recording import Recorded, recorded_steps
from lrdyn.core.spectra import singular_values
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.forms import AtMost, Equal, Zero, start_of
from lrdyn.verification.stating.statement import Claim, Control, Outcome, Scenario

INPUTS, BELOW, EXAMPLES = 12, 20, 24
"""Entries of an example, units of the layer below W_{L-1}, examples."""
RATES = {"squared": 0.03, "cross_entropy": 0.2}
"""Loss -> step size: large enough for the square of the step to be seen beside rounding."""
SIZE = 3.0
"""Of the one-hot labels of the squared error."""


class Layers(NamedTuple):
    """Three layers, a ReLU behind the first."""

    below: Float[Array, "p d"]
    """W_1."""
    second: Float[Array, "m p"]
    """W_2 = W_{L-1}."""
    last: Float[Array, "k m"]
    """W_3 = W_L."""


class Head(Recorded):
    """A classifier of three layers on random labels, and how it descends."""

    weights: Layers
    inputs: Float[Array, "d n"]
    one_hot: Float[Array, "k n"]
    learning_rate: Float[Array, ""]
    kink: Float[Array, ""]
    """By how much the slope between the last two layers is less for negative entries; 0: none."""
    name: str = eqx.field(static=True)
    """Of the loss."""

    def loss(self, weights: Layers) -> Float[Array, ""]:
        """Mean cross-entropy, or half the mean squared error."""
        first, second, last = weights
        between = second @ jax.nn.relu(first @ self.inputs)
        between = jnp.where(between > 0, between, (1 - self.kink) * between)
        scores = last @ between
        if self.name == "squared":
            return 0.5 * jnp.mean(jnp.sum((scores - SIZE * self.one_hot) ** 2, axis=0))
        return networks.cross_entropy(scores.T, jnp.argmax(self.one_hot, axis=0))


class HeadTheory(NamedTuple):
    """What is predicted of the last two layers."""

    balance: Float[Array, "step unit other_unit"] = ABSENT
    """D at the recorded steps, by its recursion."""
    head_edge: Float[Array, "step beyond"] = ABSENT
    """lambda_j(D), j = 1, 2, ...; 0 where it is below 0, which no squared singular value is."""
    bound: Float[Array, "step"] = ABSENT
    """lambda_1(D(0)) + 2 eta (loss(0) - loss(t))."""
    start: Float[Array, ""] = ABSENT
    """||W_{L-1}(0)||_2."""


class HeadMeasured(NamedTuple):
    """What is measured of the last two layers."""

    balance: Float[Array, "step unit other_unit"] = ABSENT
    """D at the recorded steps, of the weights."""
    head_edge: Float[Array, "step beyond"] = ABSENT
    """sigma_{K+j}(W_{L-1})^2, j = 1, 2, ..."""
    update_edge: Float[Array, "step"] = ABSENT
    """sigma_{K+1}(W_{L-1}(t) - W_{L-1}(0))."""
    last_moved: Float[Array, "step"] = ABSENT
    """sigma_K(W_{L-1}(t))^2, the last one that labels decide."""
    scale: Float[Array, ""] = ABSENT
    """Largest sigma_1^2 of both layers over the steps."""
    head_frozen: Float[Array, "unmoved"] = ABSENT
    """Singular values of the update behind the K-th, W_L being frozen, and the norm of what lies
    off the rows of W_L."""
    frozen_moved: Float[Array, ""] = ABSENT
    """Largest singular value of that update."""
    step: Int[Array, "step"] = ABSENT
    """Recorded steps."""
    diverged_at: Int[Array, ""] = ABSENT
    """Step at which the run diverged, or -1."""


def make_head(
    key: Key[Array, ""],
    *,
    head_loss: str,
    head_width: int,
    head_classes: int,
    head_scale: Any,
    head_steps: int,
) -> Head:
    """Gaussian examples with labels that say nothing of them, and Gaussian layers."""
    sizes = ((BELOW, INPUTS), (head_width, BELOW), (head_classes, head_width))
    inputs, *layers = gaussians(key, [(INPUTS, EXAMPLES), *sizes])
    scales = (1.0, head_scale, head_scale)
    weights = Layers(
        *(scale * W / jnp.sqrt(1.0 * W.shape[1]) for scale, W in zip(scales, layers, strict=True))
    )
    # Each label as often, in the order of examples that have none.
    labels = jnp.arange(EXAMPLES) % head_classes
    return Head(
        weights=weights,
        inputs=inputs,
        one_hot=1.0 * (labels[None, :] == jnp.arange(head_classes)[:, None]),
        learning_rate=jnp.asarray(RATES[head_loss], inputs.dtype),
        kink=jnp.zeros((), inputs.dtype),
        name=head_loss,
        steps=recorded_steps(head_steps, at_most=21),
    )


def difference(second: Float[Array, "m p"], last: Float[Array, "k m"]) -> Float[Array, "m m"]:
    """D = W_{L-1} W_{L-1}^T - W_L^T W_L."""
    return second @ second.T - last.T @ last


def gradients(case: Head, weights: Layers) -> Layers:
    """Gradients of the loss by hand, for layers without an activation in between."""
    first, second, last = weights
    inner = first @ case.inputs
    hidden = jnp.maximum(inner, 0.0)
    scores = last @ (second @ hidden)
    if case.name == "squared":
        error = scores - SIZE * case.one_hot
    else:
        error = jax.nn.softmax(scores, axis=0) - case.one_hot
    error /= case.one_hot.shape[1]
    back = last.T @ error
    below = jnp.where(inner > 0, second.T @ back, 0.0)
    return Layers(below @ case.inputs.T, back @ hidden.T, error @ (second @ hidden).T)


def descend(case: Head, weights: Layers, slopes: Layers) -> Layers:
    """The layers after a step along these gradients."""
    return jax.tree.map(lambda W, slope: W - case.learning_rate * slope, weights, slopes)


class _Descent(NamedTuple):
    """Theory's own run: the layers and D by its recursion."""

    weights: Layers
    balance: Float[Array, "m m"]


def predict_head(case: Head) -> HeadTheory:
    """D by its recursion along theory's own run, and what follows of the spectrum of W_{L-1}."""
    eta = case.learning_rate

    def step(t: Any, now: _Descent) -> _Descent:
        slopes = gradients(case, now.weights)
        _, G, H = slopes
        change = eta**2 * (G @ G.T - H.T @ H)
        return _Descent(descend(case, now.weights, slopes), now.balance + change)

    def look(now: _Descent) -> tuple[Array, Array]:
        return now.balance, case.loss(now.weights)

    _, second, last = case.weights
    start = _Descent(case.weights, difference(second, last))
    _, (balance, losses) = iterate(step, start, case.times, look)
    # The largest first.
    eigenvalues = jax.vmap(lambda D: linalg.eigh(D)[0])(balance)[:, ::-1]
    beyond = min(second.shape) - len(last)
    return HeadTheory(
        balance=balance,
        head_edge=jnp.maximum(eigenvalues[:, :beyond], 0.0),
        bound=jnp.maximum(eigenvalues[0, 0], 0.0) + 2 * eta * (losses[0] - losses),
        start=singular_values(second)[0],
    )


def measure_head(
    case: Head, optimizer: optax.GradientTransformation | None = None, trains_head: bool = False
) -> HeadMeasured:
    """Spectra of W_{L-1} along a run by automatic gradients.

    Args:
        case: what is trained.
        optimizer: another rule than gradient descent.
        trains_head: whether the last layer moves where it should be frozen.
    """
    rule = gradient_descent(case.learning_rate) if optimizer is None else optimizer
    first, second, last = case.weights
    classes = len(last)

    def look(weights: Layers) -> tuple[Array, Array, Array, Array]:
        _, W, head = weights
        return (
            difference(W, head),
            singular_values(W),
            singular_values(W - second)[classes],
            singular_values(head)[0],
        )

    run = simulate(case.loss, case.weights, rule, case.times, record=look)
    balance, values, update_edge, of_last = run.records
    squares = values**2

    def frozen_loss(moving: tuple[Array, Array]) -> Array:
        return case.loss(Layers(*moving, last))

    if trains_head:
        end = run.params
    else:
        end = simulate(frozen_loss, (first, second), rule, case.times[-1:]).params
    update = end[1] - second
    sizes = singular_values(update)
    rows = linalg.orthogonal_factor(last.T)
    off = jnp.linalg.norm(update - rows @ (rows.T @ update))
    return HeadMeasured(
        balance=balance,
        head_edge=squares[:, classes:],
        update_edge=update_edge,
        last_moved=squares[:, classes - 1],
        scale=jnp.maximum(jnp.max(squares), jnp.max(of_last**2)),
        head_frozen=jnp.append(sizes[classes:], off),
        frozen_moved=sizes[0],
        step=jnp.asarray(case.times),
        diverged_at=run.diverged_at,
    )


def _is_linear(case: Head) -> Array:
    return case.kink == 0


def _falls_enough(case: Head) -> Array:
    """Whether each step of theory's own run lowers the loss by eta / 2 times |gradient|^2."""
    eta = case.learning_rate

    def step(t: Any, now: tuple[Layers, Array]) -> tuple[Layers, Array]:
        weights, falls = now
        slopes = gradients(case, weights)
        after = descend(case, weights, slopes)
        size = optax.tree.norm(slopes, squared=True)
        before = case.loss(weights)
        # Both losses are rounded.
        slack = 8 * jnp.finfo(before.dtype).eps * before
        return after, falls & (before - case.loss(after) >= eta / 2 * size - slack)

    (_, falls), _ = iterate(
        step, (case.weights, jnp.asarray(True)), case.times[-1:], lambda now: now[1]
    )
    return falls


HeadOutcome = Outcome[HeadTheory, HeadMeasured]


def _bounds_from_start(outcome: HeadOutcome) -> tuple[AtMost, AtMost]:
    theory, run = outcome.predicted, outcome.measured
    root = (theory.bound**0.5) + theory.start
    return (
        AtMost(run.head_edge[:, 0], theory.bound, scale=run.scale),
        AtMost(run.update_edge, root, scale=run.scale**0.5),
    )


def _kinked(key: Key[Array, ""], case: Head, amount: Array) -> Head:
    """An activation between the last two layers: a leaky slope, at 1 a ReLU."""
    return dataclasses.replace(case, kink=amount * jnp.ones_like(case.kink))


HEAD = Scenario[Head, HeadTheory, HeadMeasured](
    "head",
    make_head,
    predict_head,
    measure_head,
    theory=HeadTheory,
    measured=HeadMeasured,
    claims=(
        Claim(
            "head_balance",
            "W_{L-1} W_{L-1}^T - W_L^T W_L changes by eta^2 (G G^T - H^T H) in a step, G and H the "
            "gradients of W_{L-1} and W_L, whatever lies below and whatever the labels are (the "
            "null: it is conserved)",
            form=lambda outcome: Equal(
                outcome.predicted.balance,
                outcome.measured.balance,
                scale=outcome.measured.scale,
                null=start_of(outcome.predicted.balance),
            ),
            reads=lambda theory, run: (theory.balance, run.balance, run.scale),
        ),
        Claim(
            "head_edge",
            "sigma_{K+j}(W_{L-1}(t))^2 <= lambda_j(D(t)): the values behind the K-th stay below "
            "what D allows",
            kind="bound",
            form=lambda outcome: AtMost(
                outcome.measured.head_edge,
                outcome.predicted.head_edge,
                scale=outcome.measured.scale,
            ),
            reads=lambda theory, run: (theory.head_edge, run.head_edge, run.scale),
        ),
        Claim(
            "head_bound",
            "sigma_{K+1}(W_{L-1}(t))^2 <= lambda_1(D(0)) + 2 eta (loss(0) - loss(t)), and "
            "sigma_{K+1} of the update <= its root + ||W_{L-1}(0)||_2, where each step lowers the "
            "loss by eta / 2 times the squared gradient",
            kind="bound",
            form=_bounds_from_start,
            reads=lambda theory, run: (
                theory.bound,
                theory.start,
                run.head_edge,
                run.update_edge,
                run.scale,
            ),
        ),
        Claim(
            "head_frozen",
            "with W_L frozen the update of W_{L-1} has rank K, its left side in the rows of W_L "
            "(the other side is 0)",
            form=lambda outcome: Zero(
                outcome.measured.head_frozen,
                scale=outcome.measured.frozen_moved,
                alternative=outcome.measured.frozen_moved,
            ),
            reads=lambda theory, run: (run.head_frozen, run.frozen_moved),
        ),
    ),
    controls=(
        Control(
            "head_activated",
            "a ReLU between the last two layers",
            "head_balance",
            case=_kinked,
            breaks="no_activation_before_the_head",
            amounts=(0.1, 0.3, 1.0),
            amount_label="1 - slope",
        ),
        Control(
            "head_adam",
            "Adam",
            "head_balance",
            measure=lambda case: measure_head(case, optax.adam(case.learning_rate / 10)),
        ),
        Control(
            "head_momentum",
            "momentum .9",
            "head_balance",
            measure=lambda case: measure_head(case, optax.sgd(case.learning_rate, 0.9)),
        ),
        Control(
            "head_too_early",
            "sigma_K in the place of sigma_{K+1}",
            "head_edge",
            measure=lambda case: HeadMeasured(head_edge=_from_the_last_moved(case)),
        ),
        Control(
            "head_bound_too_early",
            "sigma_K in the place of sigma_{K+1}",
            "head_bound",
            measure=lambda case: HeadMeasured(head_edge=_from_the_last_moved(case)),
        ),
        Control(
            "head_trained",
            "a last layer that is trained",
            "head_frozen",
            measure=lambda case: measure_head(case, trains_head=True),
        ),
    ),
    hypotheses={
        "no_activation_before_the_head": _is_linear,
        "each_step_lowers_the_loss_enough": _falls_enough,
    },
    steps="head_steps",
    diverged=lambda run: run.diverged_at,
    sides="a recursion by hand and Weyl's inequality against the SVD of a run by automatic "
    "gradients",
)


def _from_the_last_moved(case: Head) -> Float[Array, "step beyond"]:
    """sigma_{K+j-1}^2 in the place of sigma_{K+j}^2."""
    run = measure_head(case)
    return jnp.concatenate([run.last_moved[:, None], run.head_edge[:, :-1]], axis=1)
