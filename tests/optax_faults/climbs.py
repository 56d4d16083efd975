"""optax 0.2.8: contrib.galore climbs if base_optimizer has a rate, used as its docstring says."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

# "If the base optimizer includes a learning rate, set learning_rate=1.0 here": both negate.
rule = optax.contrib.galore(1.0, rank=2, base_optimizer=optax.sgd(0.1))
W: Any = jax.random.normal(jax.random.key(0), (4, 3))
state, before = rule.init(W), jnp.sum(W**2) / 2
for _ in range(5):
    updates, state = rule.update(W, state, W)  # the gradient of ||W||^2 / 2 is W
    W = optax.apply_updates(W, updates)
after = jnp.sum(W**2) / 2
assert after < before, f"||W||^2 / 2 rose from {before:.2f} to {after:.2f}"
