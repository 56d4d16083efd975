"""A false conjecture: gradient descent conserves the balance of neighbouring layers, exactly."""

import dataclasses
import sys
from itertools import pairwise
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

import lrdyn as lr


class Run(eqx.Module):
    """Everything that decides one run."""

    weights: tuple[jax.Array, ...]
    target: jax.Array
    learning_rate: jax.Array
    weight_decay: jax.Array
    steps: tuple[int, ...] = eqx.field(static=True)  # decides shapes: not traced


FLAGS = (
    lr.Flag("dim", (6, 10), lr.at_least(1), int, "d", "width of the layers", (10, 30), shapes=True),
    lr.Flag("depth", (2, 3), lr.at_least(2), int, "L", "number of layers", (2, 3, 5), shapes=True),
    lr.Flag("learning_rate", (0.0001,), lr.POSITIVE, float, "eta", "step size for 1/2 ||.||_F^2"),
    lr.Flag(
        "steps", (100,), lr.at_least(1), int, "t", "steps of gradient descent", (500,), swept=False
    ),
)


def make_case(key, *, dim, depth, learning_rate, steps):
    """Draw a run that meets the hypotheses."""
    weights_key, target_key = jax.random.split(key)
    return Run(
        weights=lr.gaussian_layers(weights_key, (dim,) * (depth + 1), jnp.ones(depth)),
        target=lr.low_rank_target(target_key, (dim, dim), jnp.ones(dim)),
        learning_rate=jnp.asarray(learning_rate),
        weight_decay=jnp.zeros(()),
        steps=tuple(lr.recorded_steps(steps, at_most=11).tolist()),
    )


def balance(weights):
    """D_l = W_{l+1}^T W_{l+1} - W_l W_l^T, one matrix for each pair of neighbours."""
    return jnp.stack([above.T @ above - below @ below.T for below, above in pairwise(weights)])


class Theory(NamedTuple):
    """What is predicted."""

    balance: Float[Array, "step pair row column"] = lr.ABSENT
    """D_l of each pair of neighbours at the recorded steps."""


class Measured(NamedTuple):
    """What a run leaves."""

    balance: Float[Array, "step pair row column"] = lr.ABSENT
    """D_l of each pair of neighbours at the recorded steps."""
    scale: Float[Array, ""] = lr.ABSENT
    """Largest diagonal entry of any W_l W_l^T."""
    diverged_at: Int[Array, ""] = lr.ABSENT
    """Step at which the run diverged, or -1."""
    step: Int[Array, "step"] = lr.ABSENT
    """Recorded steps."""


def predict(case):
    """D_l(t) = D_l(0): right for gradient flow."""
    start = balance(case.weights)
    return Theory(balance=jnp.broadcast_to(start, (len(case.steps), *start.shape)))


def measure(case, optimizer=None):
    """Train with automatic gradients and look at the weights."""
    trajectory = lr.simulate(
        lambda weights: lr.factorization_loss(weights, case.target),
        case.weights,
        optimizer or lr.gradient_descent(case.learning_rate, case.weight_decay),
        np.asarray(case.steps),
        record=lambda weights: (balance(weights), jnp.stack(weights)),
    )
    balances, weights = trajectory.records
    return Measured(
        balance=balances,
        scale=jnp.max(jnp.sum(weights**2, axis=-1)),
        diverged_at=trajectory.diverged_at,
        step=jnp.asarray(case.steps),
    )


def momentum(case):
    """Another algorithm."""
    return measure(case, optax.sgd(case.learning_rate, momentum=0.9))


def add_decay(key, case, amount):
    """Leave a hypothesis: train with weight decay ``amount``."""
    return dataclasses.replace(case, weight_decay=case.weight_decay + amount)


# Where a break is plain to see: a large step.
AT = {"dim": 6, "depth": 3, "learning_rate": 0.03, "steps": 100}

FACTORIZATION = lr.Scenario[Run, Theory, Measured](
    "factorization",
    make_case,
    predict,
    measure,
    theory=Theory,
    measured=Measured,
    claims=(
        lr.Claim(
            "balance",
            "W_{l+1}^T W_{l+1} - W_l W_l^T is the same at all t",
            form=lambda outcome: lr.Zero(
                outcome.measured.balance - outcome.predicted.balance,
                # A difference of two Gram matrices is rounded on the scale of a Gram matrix.
                scale=outcome.measured.scale,
                # What is not conserved moves by about its own size.
                alternative=outcome.predicted.balance,
            ),
            reads=lambda theory, run: (theory.balance, run.balance, run.scale),
        ),
    ),
    controls=(
        lr.Control(
            "weight_decay",
            "weight decay",
            "balance",
            case=add_decay,
            breaks="no_weight_decay",
            at=AT,
            amount=0.1,
            amounts=(1e-8, 1e-6, 1e-4, 1e-2, 0.1, 1.0),
            amount_label="lambda",
        ),
        lr.Control("momentum", "momentum", "balance", measure=momentum, at=AT),
    ),
    hypotheses={"no_weight_decay": lambda case: case.weight_decay == 0},
    steps="steps",
    diverged=lambda run: run.diverged_at,
)

BALANCE_FALSE = lr.Theorem(
    "balance_false",
    "gradient descent conserves the balance of neighbouring layers",
    FLAGS,
    (FACTORIZATION,),
)

if __name__ == "__main__":
    sys.exit(lr.main(BALANCE_FALSE))
