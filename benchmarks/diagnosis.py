"""What watching a training costs, and what a diagnosis of two checkpoints takes.

A perceptron is trained with Adam on full batches, compiled; every 100 steps it is looked at.
The checkpoints are safetensors files of Gaussian matrices, whose updates have rank 8 and a Gaussian
rest; each diagnosis is a process of its own, whose peak of memory is what the system says. Beside
it stand loops over the same files: SciPy's SVD, and a randomised one in NumPy of the same width.
Seconds of CPU are those of all threads: beside other work they say more than seconds do. Seconds
for 1 GB are those for 1 GB on each side.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax

import lrdyn
from benchmarks.common import table
from lrdyn.data import tensors

WATCHED = ("widths", "batch", "100 steps, ms", "one call, ms", "share")
DIAGNOSED = ("how", "matrices", "seconds", "CPU s", "CPU s for 1 GB", "peak, MiB")


class Case(NamedTuple):
    """Sizes."""

    widths: tuple[int, ...]
    batch: int
    calls: int
    matrices: int
    shape: tuple[int, int]
    large_matrices: int
    large: tuple[int, int]
    """Of those that are sketched."""


def watched(case: Case) -> tuple[float, float]:
    """Seconds of 100 steps and of one call of the recorder, the least of several."""
    keys = jax.random.split(jax.random.key(0), len(case.widths))
    inputs = jax.random.normal(keys[0], (case.batch, case.widths[0]), jnp.float32)
    pairs = zip(keys[1:], case.widths[1:], case.widths[:-1], strict=True)
    weights = [jax.random.normal(k, (m, n), jnp.float32) * n**-0.5 for k, m, n in pairs]
    rule = optax.adam(1e-3)

    def loss(weights: list[jax.Array]) -> jax.Array:
        hidden = inputs.T
        for W in weights[:-1]:
            hidden = jax.nn.relu(W @ hidden)
        return jnp.mean((weights[-1] @ hidden - 1) ** 2)

    @jax.jit
    def step(weights: list[jax.Array], state: optax.OptState):
        moves, state = rule.update(jax.grad(loss)(weights), state)
        return optax.apply_updates(weights, moves), state

    recorder, state = lrdyn.watch(weights), rule.init(weights)
    weights, state = step(weights, state)
    recorder(weights, 1)
    steps, calls = [], []
    for call in range(case.calls):
        begin = time.perf_counter()
        for _ in range(100):
            weights, state = step(weights, state)
        jax.block_until_ready(weights)
        middle = time.perf_counter()
        recorder(weights, 2 + call)
        steps.append(middle - begin)
        calls.append(time.perf_counter() - middle)
    return min(steps), min(calls)


PROGRAM = """
import pathlib, re, resource, sys, time
how, *files = sys.argv[1:]
import numpy as np
import lrdyn
from lrdyn.data import tensors

def difference(name):
    return after[name].astype(np.float32) - before[name].astype(np.float32)

def randomised(W, k=74):
    start = np.random.default_rng(0).standard_normal((W.shape[1], k), np.float32)
    basis = np.linalg.qr(W @ start)[0]
    for _ in range(2):
        basis = np.linalg.qr(W @ np.linalg.qr(W.T @ basis)[0])[0]
    return np.linalg.svd(basis.T @ W, full_matrices=False)

begin, used = time.perf_counter(), time.process_time()
if how.startswith("lrdyn"):
    found = lrdyn.diagnose(*files, sketch=64 if "sketch" in how else None)
    count = len(found.matrices)
else:
    import scipy.linalg
    before, after = map(tensors.opened, files)
    decompose = scipy.linalg.svd if how == "scipy" else randomised
    count = sum(len(decompose(difference(name))) == 3 for name in before)
seconds, used = time.perf_counter() - begin, time.process_time() - used
status = pathlib.Path("/proc/self/status")
if status.exists():  # where getrusage also counts the process that started this one
    peak = 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", status.read_text())[1])
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(count, seconds, used, peak)
"""
HOW = {
    "exact": ("lrdyn exact", "float32"),
    "scipy": ("scipy", "float32"),
    "sketch": ("lrdyn --sketch", "bfloat16"),
    "numpy": ("randomised", "bfloat16"),
}
"""What is measured -> its name in the table, and the type of the files."""


class Cost(NamedTuple):
    """What one diagnosis took."""

    count: int
    seconds: float
    used: float
    """Seconds of CPU, of all threads."""
    peak: float
    size: int
    """Bytes of one of the two files."""


def diagnosed(count: int, shape: tuple[int, int], hows: list[str]) -> dict[str, Cost]:
    """Costs of diagnoses of one pair of files, each in a process of its own."""
    rng = np.random.default_rng(0)
    m, n = shape

    def drawn(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    kind = HOW[hows[0]][1]
    stored = np.dtype(getattr(ml_dtypes, kind, kind))
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{name}.safetensors") for name in ("before", "after")]
        before = {f"layers.{i}.weight": drawn(m, n) for i in range(count)}
        tensors.write(files[0], {name: W.astype(stored) for name, W in before.items()})
        for name, W in before.items():
            W += 0.01 * drawn(m, 8) @ drawn(8, n) + 0.001 * drawn(m, n)
            before[name] = W
        tensors.write(files[1], {name: W.astype(stored) for name, W in before.items()})
        del before
        costs, size = {}, files[0].stat().st_size
        for how in hows:
            command = [sys.executable, "-c", PROGRAM, HOW[how][0], *map(str, files)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            number, *measured = done.stdout.split()
            assert int(number) == count
            costs[how] = Cost(count, *map(float, measured), size)
    return costs


LARGE = Case((784, 256, 256, 10), 128, 10, 32, (1024, 1024), 4, (4096, 4096))


def report(case: Case = LARGE) -> str:
    """Measure and lay out."""
    steps, call = watched(case)
    widths = "-".join(map(str, case.widths))
    times = (f"{1e3 * steps:.0f}", f"{1e3 * call:.1f}", f"{call / steps:.1%}")
    rows = []
    for count, shape, hows in (
        (case.matrices, case.shape, ["exact", "scipy"]),
        (case.large_matrices, case.large, ["sketch", "numpy"]),
    ):
        for how, cost in diagnosed(count, shape, hows).items():
            name, kind = HOW[how]
            rows.append(
                (
                    name,
                    f"{count} of {shape[0]}x{shape[1]} {kind}",
                    f"{cost.seconds:.1f}",
                    f"{cost.used:.1f}",
                    f"{cost.used * 1e9 / cost.size:.0f}",
                    f"{cost.peak / 2**20:.0f}",
                )
            )
    return f"{table(WATCHED, [(widths, str(case.batch), *times)])}\n\n{table(DIAGNOSED, rows)}"
