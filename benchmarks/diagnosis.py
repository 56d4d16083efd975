"""What watching a training costs, and what a diagnosis of two checkpoints takes.

A perceptron is trained with Adam on full batches, compiled; every 100 steps it is looked at.
The checkpoints are safetensors files of Gaussian matrices, whose updates have rank 8 and a Gaussian
rest; they are diagnosed in a process of their own, whose peak of memory is what the system says.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lrdyn
from benchmarks.common import table
from lrdyn.data import tensors

WATCHED = ("widths", "batch", "100 steps, ms", "one call, ms", "share")
DIAGNOSED = ("matrices", "of", "seconds", "peak, MiB")


class Case(NamedTuple):
    """Sizes."""

    widths: tuple[int, ...]
    batch: int
    calls: int
    matrices: int
    shape: tuple[int, int]


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
import lrdyn
begin = time.perf_counter()
found = lrdyn.diagnose(*sys.argv[1:])
seconds = time.perf_counter() - begin
status = pathlib.Path("/proc/self/status")
if status.exists():  # where getrusage also counts the process that started this one
    peak = 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", status.read_text())[1])
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(found.matrices), seconds, peak)
"""


def diagnosed(case: Case) -> tuple[float, float]:
    """Seconds, and bytes at most."""
    rng = np.random.default_rng(0)
    m, n = case.shape

    def drawn(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{name}.safetensors") for name in ("before", "after")]
        before = {f"layers.{i}.weight": drawn(m, n) for i in range(case.matrices)}
        tensors.write(files[0], before)
        after = before
        for name, W in before.items():
            after[name] = W + 0.01 * drawn(m, 8) @ drawn(8, n) + 0.001 * drawn(m, n)
        tensors.write(files[1], after)
        del before, after
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *files], check=True, capture_output=True, text=True
        )
    count, seconds, peak = done.stdout.split()
    assert int(count) == case.matrices
    return float(seconds), float(peak)


LARGE = Case((784, 256, 256, 10), 128, 10, 100, (768, 3072))


def report(case: Case = LARGE) -> str:
    """Measure and lay out."""
    steps, call = watched(case)
    widths = "-".join(map(str, case.widths))
    times = (f"{1e3 * steps:.0f}", f"{1e3 * call:.1f}", f"{call / steps:.1%}")
    seconds, peak = diagnosed(case)
    shape = f"{case.shape[0]}x{case.shape[1]}"
    other = (str(case.matrices), shape, f"{seconds:.1f}", f"{peak / 2**20:.0f}")
    return f"{table(WATCHED, [(widths, str(case.batch), *times)])}\n\n{table(DIAGNOSED, [other])}"
