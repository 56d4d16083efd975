"""A training with flax and optax, judged by Theorem 2: ``python docs/examples/judge_flax.py``."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import lrdyn

d, r, eta = 12, 2, 0.1


class Deep(nn.Module):
    """Three square layers without biases."""

    @nn.compact
    def __call__(self, x):
        """x W_1^T W_2^T W_3^T: a kernel of flax is the transpose of a layer."""
        for _ in range(3):
            start = nn.initializers.orthogonal(0.5)
            x = nn.Dense(d, use_bias=False, kernel_init=start, precision="highest")(x)
        return x


model, keys = Deep(), jax.random.split(jax.random.key(0), 3)
target = jax.random.normal(keys[0], (d, r)) @ jax.random.normal(keys[1], (r, d)) / d
optimizer = optax.sgd(eta)
params = model.init(keys[2], jnp.eye(d))
state, weights = optimizer.init(params), []


@jax.jit
def step(params, state):
    """One step of descent on 1/2 ||W_3 W_2 W_1 - Phi||_F^2."""
    grads = jax.grad(lambda p: jnp.sum((model.apply(p, jnp.eye(d)) - target.T) ** 2) / 2)(params)
    updates, state = optimizer.update(grads, state)
    return optax.apply_updates(params, updates), state


for t in range(201):
    if t % 20 == 0:
        weights.append((t, params))
    params, state = step(params, state)

found = lrdyn.judge_run("theorem2", weights=weights, target=target, step_size=eta)
print(found)
assert found.holds
