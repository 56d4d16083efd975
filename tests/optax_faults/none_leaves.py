"""optax 0.2.8: contrib.galore fails on a tree with None, as equinox.filter makes; adam does not."""

from typing import Any

import jax.numpy as jnp
import optax

params = {"weight": jnp.ones((4, 3)), "activation": None}
optax.adam(0.1).init(params)
rule = optax.contrib.galore(0.1, rank=2)
updates: Any
updates, _ = rule.update(params, rule.init(params), params)
assert updates["activation"] is None
