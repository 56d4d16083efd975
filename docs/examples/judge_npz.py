"""A loop of NumPy that writes its records to files: ``python docs/examples/judge_npz.py``.

Then ``lrdyn judge-run theorem2 recorded --target phi.npy --step-size 0.1``.
"""

from pathlib import Path

import numpy as np

d, r, eta = 12, 2, 0.1
rng = np.random.default_rng(0)
target = rng.normal(size=(d, r)) @ rng.normal(size=(r, d)) / d
W1, W2 = (np.linalg.qr(rng.normal(size=(d, d)))[0] / 2 for _ in range(2))
folder = Path("recorded")
folder.mkdir(exist_ok=True)
for t in range(201):
    if t % 20 == 0:
        np.savez(folder / f"step_{t:06}.npz", W1=W1, W2=W2)
    residual = W2 @ W1 - target
    W1, W2 = W1 - eta * W2.T @ residual, W2 - eta * residual @ W1.T
np.save("phi.npy", target)
print(f"{len(list(folder.iterdir()))} records in {folder}/, the target in phi.npy")
