"""ReLoRA on a model of flax's NNX: ``python docs/examples/relora_nnx.py``.

The kernels go to ReLoRA and all else to Adam, by ``optax.partition``.
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from lrdyn import adapters

keys = jax.random.split(jax.random.key(0), 3)
x = jax.random.normal(keys[0], (256, 16))
y = jnp.argmax(x @ jax.random.normal(keys[1], (16, 5)), axis=1)
rngs = nnx.Rngs(0)
model = nnx.Sequential(nnx.Linear(16, 64, rngs=rngs), nnx.relu, nnx.Linear(64, 5, rngs=rngs))

# The rate falls to 0 at each refresh and comes back within 10 steps.
rate = adapters.jagged(optax.constant_schedule(1e-2), period=50, warmup=10)
relora = adapters.relora(optax.adam(rate), rank=4, refresh_every=50, key=keys[2])


def kind_of(leaf):
    """Which optimiser trains an array."""
    return "matrix" if leaf.ndim == 2 else "other"


rules = {"matrix": relora, "other": optax.adam(1e-2)}
optimizer = optax.partition(rules, lambda params: jax.tree.map(kind_of, params))
training = nnx.Optimizer(model, optimizer, wrt=nnx.Param)


@nnx.jit
def step(model, training):
    """One step on all examples; the model has its adapters merged, always."""

    def loss(model):
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(model(x), y))

    value, grads = nnx.value_and_grad(loss)(model)
    training.update(model, grads)
    return value


values = [float(step(model, training)) for _ in range(200)]
print(f"{values[0]:.2f} -> {values[-1]:.2f}")
assert values[-1] < 0.2 * values[0]
