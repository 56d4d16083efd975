"""GaLore on a model of flax, with a schedule and decay: ``python docs/examples/galore_flax.py``."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState

from lrdyn import adapters

keys = jax.random.split(jax.random.key(0), 3)
x = jax.random.normal(keys[0], (256, 16))
y = jnp.argmax(x @ jax.random.normal(keys[1], (16, 5)), axis=1)
model = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(64), nn.relu, nn.Dense(5)])
params = model.init(keys[2], x)

optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    adapters.galore(optax.scale_by_adam(), rank=4, refresh_every=50),
    optax.add_decayed_weights(1e-3),
    optax.scale_by_learning_rate(optax.cosine_decay_schedule(1e-2, 200)),
)
state = TrainState.create(apply_fn=model.apply, params=params, tx=optimizer)


@jax.jit
def step(state):
    """One step on all examples."""

    def loss(params):
        logits = state.apply_fn(params, x)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))

    value, grads = jax.value_and_grad(loss)(state.params)
    return value, state.apply_gradients(grads=grads)


values = []
for _ in range(200):
    value, state = step(state)
    values.append(float(value))

moments = state.opt_state[1].inner.mu["params"]["layers_2"]["kernel"]
print(f"{values[0]:.2f} -> {values[-1]:.2f}, moments of a 64 x 64 kernel: {moments.shape}")
assert values[-1] < 0.2 * values[0]
