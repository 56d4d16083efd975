# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # On a hosted GPU
#
# For a machine that somebody lends with a card and a notebook: which device is there, how exact it
# is, and one theorem judged on it. **Not run on a GPU or TPU so far**, for none was at hand; on a
# CPU every cell runs (`make notebooks`), and the first one says which device it found.
#
# In a fresh notebook there, install first, in a cell of its own, and restart the kernel:
# `%pip install "lrdyn[cuda12] @ git+ADDRESS"`, or a checkout and `%pip install ".[cuda12]"`.

# %%
import jax
import jax.numpy as jnp
import numpy as np

import lrdyn
from lrdyn.cli import setup
from lrdyn.corollary1.statement import COROLLARY1
from lrdyn.verification.machine import accelerators

print("before JAX starts:", accelerators.accelerator() or "no accelerator")
accelerators.share_memory()  # another notebook may use the same card
setup()  # float64; before the first computation
device = jax.local_devices()[0]
print("found:", device.platform, "-", device.device_kind)

# %% [markdown]
# ## How exact its arithmetic is
#
# A product of matrices in float32, at JAX's default and at the precision that `setup` chose, beside
# NumPy's in float64. On a CPU both are near $10^{-7}$; where a card rounds the inputs to TF32 the
# default is near $10^{-3}$, and the verdicts of theorems would be wrong.

# %%
rng = np.random.default_rng(0)
A, B = rng.normal(size=(2, 256, 256)).astype(np.float32)
exact = A.astype(np.float64) @ B.astype(np.float64)
for precision in ("default", "highest"):
    product = jnp.matmul(jnp.asarray(A), jnp.asarray(B), precision=precision)
    error = np.linalg.norm(np.asarray(product) - exact) / np.linalg.norm(exact)
    print(f"{precision}: relative error {error:.0e}")

# %% [markdown]
# ## A verdict on it
#
# Corollary 1 at a tiny size, in float64 with float32 beside it; on a TPU, which has no float64 of
# its own, in float32.

# %%
dtype = "float32" if device.platform == "tpu" else "float64"
verification = lrdyn.verify(
    COROLLARY1, dim=9, depth=2, rank=1, init_scale=0.5, steps=100, seeds=1, dtype=dtype
)
verification

# %% [markdown]
# ## One thing to change
#
# Make `steps` 2,000 and `dim` 30, and run the cell a second time: compiled programs are kept for
# this kind of device and driver.
