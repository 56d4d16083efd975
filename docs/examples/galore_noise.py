"""How GaLore stops under gradient noise, in the example of docs/theorems/galore_noise.md."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lrdyn.adapters.algorithm_1 import algorithm1
from lrdyn.adapters.methods import GALORE
from lrdyn.cli import setup
from lrdyn.galore_noise import last_moving_step, setting, stall_exponent

setup()  # float64
ETA, LONG, REFRESHES = 3e-3, 100, 60


def slope(case: setting.NoisyExample) -> tuple[float, int]:
    """||grad f||_2 at the end of a run of Algorithm 1, and the last step that moved true rows."""
    run, k = setting.run(case, GALORE), len(case.target)
    gradient = run.weights[-1, :k].at[:, :k].add(case.target)
    return float(jnp.linalg.norm(gradient, 2)), int(setting.last_move(case, run.moved))


for seed in range(3):
    sizes = {"dim": 8, "rank": 2, "period": 10, "learning_rate": 0.02, "steps": 1500}
    case = setting.make_case(jax.random.key(seed), side="left", noise=1.0, **sizes)
    with_noise, last = slope(case)
    without, _ = slope(dataclasses.replace(case, noise=jnp.asarray(0.0)))
    theory = int(last_moving_step(case.values, 1.0, 0.02, 10, 2))
    print(
        f"seed {seed}: stops at step {last} (predicted {theory}), ||grad f|| = {with_noise:.2f};",
        f"without noise {without:.0e}",
    )


def largest_beside(value: float) -> float:
    """Largest entry of Y over a run in rotated bases, from a stall with one value near sigma."""
    n, rank = 6, 2
    k = n - rank
    U, V = jnp.linalg.qr(jax.random.normal(jax.random.key(1), (2, n, n)))[0]
    rule = algorithm1(GALORE, optax.sgd(ETA), rank=rank, period=LONG, side="left")
    D = jnp.diag(jnp.array([value, 0.5, 0.4, 0.3]))
    signs = jax.random.rademacher(jax.random.key(0), (REFRESHES, LONG), D.dtype)
    zeros = jnp.zeros((n, n))
    case = setting.NoisyExample(D, zeros, signs, jnp.array(1.0), jnp.array(ETA), rank, LONG, "left")

    def cost_at(sign):
        return lambda X: (case.cost(U.T @ X @ V, sign), None)

    def period(state, signs):
        state = rule.refresh(jax.random.key(0), cost_at(signs[0]), state)
        state, _ = jax.lax.scan(lambda s, z: (rule.step(cost_at(z), s)[2], None), state, signs)
        Y = (U.T @ rule.weights(state) @ V)[:k, k:]
        return state, jnp.max(jnp.abs(Y))

    return float(np.max(jax.lax.scan(period, rule.begin(zeros), signs)[1]))


for value in (0.9, 0.96, 0.985, 0.994, 0.998):
    exponent = float(stall_exponent(jnp.array([value]), 1.0, ETA, LONG)[0])
    print(
        f"s = {value:g} sigma: exponent {exponent:+.3f} a refresh,",
        f"|Y| up to {largest_beside(value):.0e} in {REFRESHES} refreshes",
    )
