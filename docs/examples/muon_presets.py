"""Which of optax's Muons conserves differences of singular values, and how far others are off."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lrdyn as lr
from lrdyn.equivariance import muon_law, muon_law_claims

RATE, STEPS = 1e-3, 200
MUONS = {
    "exact": muon_law.polar_muon(RATE),
    "default": optax.contrib.muon(RATE),
    "10 steps": optax.contrib.muon(RATE, ns_steps=10),
    "spectral": optax.contrib.muon(RATE, preconditioning="spectral"),
    "schatten": optax.contrib.muon(RATE, preconditioning="schatten"),
    "aol": optax.contrib.muon(RATE, preconditioning="aol"),
    "adaptive": optax.contrib.muon(RATE, adaptive=True),
    "dion": optax.contrib.muon(RATE, ns_coeffs="dion"),
    "descent": optax.sgd(RATE),
}


def main() -> None:
    """Train two aligned 6 x 6 layers, and print the largest change of a difference."""
    case = muon_law_claims.make_case(
        jax.random.key(1), dim=6, depth=2, learning_rate=RATE, steps=STEPS
    )
    after, before = case.bases[1:], case.bases[:-1]
    for name, rule in MUONS.items():
        run = lr.simulate(case.loss, case.weights, rule, np.array([0, STEPS]), record=jnp.stack)
        turned = jnp.swapaxes(after, 1, 2)[None] @ run.records @ before[None]
        values = jnp.diagonal(turned, axis1=2, axis2=3)
        differences = values[:, 1] - values[:, 0]
        changed = jnp.max(jnp.abs(differences[1] - differences[0]))
        moved = jnp.max(jnp.abs(values[1] - values[0]))
        print(f"{name:9} differences change by {changed:.0e}, values by up to {moved:.2f}")


if __name__ == "__main__":
    lr.cli.setup()
    main()
