"""Balance of neighbouring layers under gradient descent: the false conjecture, repaired."""

import dataclasses
import sys

import jax.numpy as jnp
import numpy as np
from balance_false import AT, FACTORIZATION, FLAGS, Theory, balance
from balance_false import predict as conserved

import lrdyn as lr


def gradients(weights, target):
    """G_l = (W_L ... W_{l+1})^T (W_L ... W_1 - Phi) (W_{l-1} ... W_1)^T, written by hand."""
    before, after = [jnp.eye(len(target))], [jnp.eye(len(target))]
    for W in weights[:-1]:
        before.append(W @ before[-1])
    for W in reversed(weights[1:]):
        after.insert(0, after[0] @ W)
    error = lr.end_to_end(weights) - target
    return tuple(A.T @ error @ B.T for A, B in zip(after, before, strict=True))


def predict(case):
    """D_l(t) = D_l(0) + eta^2 sum_{s < t} (G_{l+1}(s)^T G_{l+1}(s) - G_l(s) G_l(s)^T)."""

    def step(_, state):
        weights, drift = state
        G = gradients(weights, case.target)
        moved = tuple(W - case.learning_rate * g for W, g in zip(weights, G, strict=True))
        return moved, drift + balance(G)

    start = balance(case.weights)
    at_rest = (case.weights, jnp.zeros_like(start))
    _, drift = lr.core.iterate(step, at_rest, np.asarray(case.steps), record=lambda state: state[1])
    return Theory(balance=start + case.learning_rate**2 * drift)


REPAIRED = dataclasses.replace(
    FACTORIZATION,
    predict=predict,
    claims=(
        dataclasses.replace(
            FACTORIZATION.claims[0],
            statement="D_l(t) = D_l(0) + eta^2 sum_{s<t} (G_{l+1}^T G_{l+1} - G_l G_l^T)(s)",
            form=lambda outcome: lr.Equal(
                outcome.predicted.balance,
                outcome.measured.balance,
                scale=outcome.measured.scale,
                null=lr.start_of(outcome.predicted.balance),  # conserved, as it was conjectured
            ),
        ),
    ),
    controls=(
        *FACTORIZATION.controls,
        lr.Control("conserved", "D_l(t) = D_l(0)", "balance", predict=conserved, at=AT),
    ),
)

BALANCE = lr.Theorem(
    "balance",
    "gradient descent moves the balance of two layers by eta^2 times that of their gradients",
    tuple(
        dataclasses.replace(flag, quick=(0.0001, 0.03)) if flag.name == "learning_rate" else flag
        for flag in FLAGS
    ),
    (REPAIRED,),
)

if __name__ == "__main__":
    sys.exit(lr.main(BALANCE))
