"""optax 0.2.8: contrib.galore climbs if base_optimizer has a rate, used as its docstring says."""

import jax
import jax.numpy as jnp
import optax


def f(W):
    return jnp.sum(W**2) / 2


# "If the base optimizer includes a learning rate, set learning_rate=1.0 here": both negate.
rule = optax.contrib.galore(1.0, rank=2, base_optimizer=optax.sgd(0.1))
W = jax.random.normal(jax.random.key(0), (4, 3))
state, before = rule.init(W), f(W)
for _ in range(5):
    updates, state = rule.update(jax.grad(f)(W), state, W)
    W = optax.apply_updates(W, updates)
assert f(W) < before, f"f rose from {before:.2f} to {f(W):.2f}"
