"""optax 0.2.8: contrib.galore fails on bfloat16 parameters with float32 gradients; not so adam."""

from typing import Any

import jax.numpy as jnp
import optax

params, gradients = jnp.ones((4, 3), jnp.bfloat16), jnp.ones((4, 3), jnp.float32)
optax.adam(0.1).update(gradients, optax.adam(0.1).init(params), params)
rule = optax.contrib.galore(0.1, rank=2)
updates, _ = rule.update(gradients, rule.init(params), params)
moved: Any = optax.apply_updates(params, updates)
assert moved.dtype == jnp.bfloat16
