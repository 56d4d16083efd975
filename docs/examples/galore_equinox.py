"""GaLore on stacked layers of equinox: ``python docs/examples/galore_equinox.py``."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import lrdyn
from lrdyn import adapters

keys = jax.random.split(jax.random.key(0), 5)
x = jax.random.normal(keys[0], (256, 16))
y = jnp.argmax(x @ jax.random.normal(keys[1], (16, 5)), axis=1)


class Net(eqx.Module):
    """Four layers with skips, whose weights are one array of shape (4, 32, 32)."""

    embed: eqx.nn.Linear
    blocks: eqx.nn.Linear
    head: eqx.nn.Linear

    def __init__(self, keys):
        self.embed = eqx.nn.Linear(16, 32, key=keys[0])
        self.blocks = eqx.filter_vmap(lambda key: eqx.nn.Linear(32, 32, key=key))(
            jax.random.split(keys[1], 4)
        )
        self.head = eqx.nn.Linear(32, 5, key=keys[2])

    def __call__(self, x):
        """Logits of one input."""
        arrays, rest = eqx.partition(self.blocks, eqx.is_array)
        hidden, _ = jax.lax.scan(
            lambda hidden, one: (hidden + jax.nn.relu(eqx.combine(one, rest)(hidden)), None),
            self.embed(x),
            arrays,
        )
        return self.head(hidden)


net = Net(keys[2:])
# Each of the stacked matrices has a projector of its own. The stacked biases are an array of two
# axes, and no matrix: they are trained as they are, like embedding and head.
choose = adapters.choose_by_path(
    lrdyn.GALORE, rank=4, select="blocks.weight", stacks="blocks.weight", extra="*"
)
optimizer = adapters.galore(optax.adamw(3e-3, weight_decay=1e-3), choose=choose, refresh_every=50)
state = optimizer.init(eqx.filter(net, eqx.is_inexact_array))


@eqx.filter_value_and_grad
def loss(net):
    """Cross-entropy on all examples."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(jax.vmap(net)(x), y))


@eqx.filter_jit
def step(net, state):
    """One step; what is no array of the model is None for the optimiser."""
    value, grads = loss(net)
    updates, state = optimizer.update(grads, state, eqx.filter(net, eqx.is_inexact_array))
    return value, eqx.apply_updates(net, updates), state


values = []
for _ in range(200):
    value, net, state = step(net, state)
    values.append(float(value))

print(f"{values[0]:.2f} -> {values[-1]:.2f}, projectors: {state.projectors[0].shape}")
assert values[-1] < 0.2 * values[0]
