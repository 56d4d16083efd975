"""A study in one file: the update of a perceptron that learns a teacher of low rank."""

import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

import lrdyn as lr

RANK, INPUTS = 2, 20


# What carries the verdict: an identity, with one seed ------------------------------------------


class Step(NamedTuple):
    rest: Float[Array, "index"] = lr.ABSENT
    """Singular values of the gradient behind the fifth."""
    scale: Float[Array, ""] = lr.ABSENT
    """Its norm."""


def one_batch(key, *, width):
    keys = jax.random.split(key, 3)
    inputs = jax.random.normal(keys[0], (INPUTS, 5))
    return lr.networks.mlp(keys[1], (INPUTS, width, 3)), inputs, jax.random.normal(keys[2], (3, 5))


def one_step(case, l2=0.0):
    net, inputs, outputs = case

    def loss(net):
        decay = l2 * jnp.sum(net.weights[0] ** 2)
        return jnp.mean((net(inputs) - outputs) ** 2) + decay

    gradient = jax.grad(loss)(net).weights[0]
    return Step(rest=lr.singular_values(gradient)[5:], scale=jnp.linalg.norm(gradient))


ONE_STEP = lr.Scenario(
    "one_step",
    one_batch,
    measure=one_step,
    measured=Step,
    claims=(
        lr.Claim(
            "rank_of_a_step",
            "the gradient of a batch of 5 has rank 5",
            form=lambda outcome: lr.Zero(
                outcome.measured.rest,
                scale=outcome.measured.scale,
                # Each singular value of a matrix of this norm and of full rank, if all are equal.
                alternative=outcome.measured.scale / np.sqrt(INPUTS),
            ),
            reads=lambda theory, run: (run.rest, run.scale),
        ),
    ),
    controls=(
        lr.Control(
            "decayed_step",
            "with weight decay",
            "rank_of_a_step",
            measure=lambda case: one_step(case, l2=0.1),
        ),
    ),
)


# What is trained, and claimed over seeds -------------------------------------------------------


class Learned(NamedTuple):
    update: Float[np.ndarray, "step index"] = lr.ABSENT
    """Singular values of W(t) - W(0), of the first layer."""
    share: Float[np.ndarray, ""] = lr.ABSENT
    """Share of the last update in its first directions."""
    none: Float[np.ndarray, ""] = lr.ABSENT
    """Share in its last directions, as many."""
    step: Int[np.ndarray, "step"] = lr.ABSENT
    """Recorded steps."""
    diverged_at: Int[Array, ""] = lr.ABSENT
    """Step at which the training diverged, or -1."""


def student(key, *, width, steps, learning_rate):
    keys = jax.random.split(key, 4)
    teacher = jax.random.normal(keys[0], (3, RANK)) @ jax.random.normal(keys[1], (RANK, INPUTS))
    inputs = jax.random.normal(keys[2], (256, INPUTS))
    data = {"x": inputs, "y": inputs @ teacher.T / np.sqrt(INPUTS)}
    return keys[3], lr.networks.mlp(keys[2], (INPUTS, width, 3)), data, steps, learning_rate


def squared_error(net, state, batch, key):
    return jnp.mean((net(batch["x"].T) - batch["y"].T) ** 2), (state, {})


def learn(case, keeper):
    key, net, data, steps, learning_rate = case

    def look(now, state):
        return lr.singular_values(now.weights[0] - net.weights[0])

    steps = lr.recorded_steps(steps, 11)
    rule = optax.sgd(learning_rate)
    run = lr.training.train(
        key,
        squared_error,
        net,
        rule,
        lr.training.Batches(data, 32),
        steps,
        record=look,
        keeper=keeper,
    )
    squares = run.records[-1] ** 2
    return Learned(
        update=run.records,
        share=np.sum(squares[:RANK]) / np.sum(squares),
        none=np.sum(squares[-RANK:]) / np.sum(squares),
        step=steps,
        diverged_at=run.diverged_at,
    )


def share_over_steps(outcome, threshold):
    squares = outcome.measured.update**2
    shares = np.sum(squares[..., :RANK], axis=-1) / np.sum(squares, axis=-1)
    return lr.OverSteps(outcome.measured.step[0], shares, threshold, flag="steps")


LEARNED = lr.Scenario(
    "learned",
    student,
    train=learn,
    measured=Learned,
    claims=(
        lr.Claim(
            "in_the_teachers_rank",
            "more than .2 of the update is in its first 2 of 20 directions, at rest (seed 0 had "
            ".29; the alternative: .1)",
            kind="statistical",
            form=lambda outcome: lr.mean_exceeds(0.2, outcome.measured.share),
            reads=lambda theory, run: (run.share, run.update, run.step),
            tolerance=0.01,
            seeds=3,
            rest=lambda outcome: share_over_steps(outcome, 0.2),
        ),
    ),
    controls=(
        lr.Control(
            "last_directions",
            "the last 2 directions",
            "in_the_teachers_rank",
            swap=lambda theory, run: (run.share, run.none),
        ),
    ),
    steps="steps",
    diverged=lambda run: run.diverged_at,
    findings=(
        lr.Finding(
            "share",
            "share of the first 2 directions",
            lambda outcome: outcome.measured.share,
            reads=lambda theory, run: (run.share, run.update, run.step),
            above=0.9,
            rest=lambda outcome: share_over_steps(outcome, 0.9),
        ),
    ),
)

TEACHER = lr.Study(
    "teacher",
    "a perceptron that learns a teacher of low rank moves in few directions",
    (
        lr.Flag("width", (30,), lr.at_least(10), int, help="hidden units", shapes=True),
        lr.Flag("learning_rate", (0.6,), lr.POSITIVE, float, "eta", "step size"),
        lr.Flag("steps", (10_000,), lr.at_least(1), int, "t", "steps", swept=False),
    ),
    (ONE_STEP, LEARNED),
)

if __name__ == "__main__":
    sys.exit(lr.main(TEACHER))
