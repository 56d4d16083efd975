"""A sweep of runs that stop early: 38 runs of compressed completion, each until its tolerance.

Matrix completion by a compressed network, as in the step-ratio study of Kwon et al.: d = 100,
r = 5 (inner layer 10 x 10), 20 % of the entries observed, L = 3, eps = 1e-2, spectral start,
eta = 10 for the inner layer and alpha eta for the outer factors, alpha = 0.5, 0.75 ... 9.75. A run
stops when the loss is at most 1e-10, looked at every 1,000 steps, or after 100,000 steps. All
rivals call the same training function:

*compile per point*: the authors' way, a Python loop that builds and compiles a function for each
alpha. *compile once*: the same loop over one compiled function with alpha as an argument. *vmap*:
one batch of all alphas, in which every run lasts as long as the slowest. *sweep*:
:func:`lrdyn.sweep` with ``lanes=1``, points dealt out to two host devices, one after another on
each.

A time is that of the whole call. ``cold``: nothing was compiled before. ``warm``: a later call in
the same process; the rivals keep their compiled functions, the sweep finds its program in the
persistent cache (it traces and lowers it anew each time).
"""

import tempfile
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

import lrdyn
from benchmarks.common import table
from lrdyn.verification.running.sweep import sweep
from lrdyn.verification.stating.points import product

ALPHAS = tuple(np.arange(0.5, 10.0, 0.25).tolist())
RANK, SCALE, RATE, OBSERVED, TOLERANCE = 5, 1e-2, 10.0, 0.2, 1e-10
HEADER = ("38 runs", "cold", "warm", "faster, cold", "faster, warm", "steps")


def training(dim: int, check_every: int, max_steps: int) -> Callable:
    """The training function of all rivals: alpha -> steps taken and loss reached."""
    for_target, for_mask = jax.random.split(jax.random.key(0))
    target = lrdyn.completion.spread_target(for_target, (dim, dim), RANK)
    mask = lrdyn.core.observe(for_mask, (dim, dim), OBSERVED)
    start = lrdyn.completion.spectral_network(
        lrdyn.completion.surrogate(target, mask), 2 * RANK, SCALE
    )

    def run(alpha: float | jax.Array) -> dict[str, jax.Array]:
        result = lrdyn.core.simulate_until(
            lambda network: lrdyn.completion.completion_loss(network, target, mask),
            start,
            lrdyn.completion.discrepant_rates(RATE, alpha),
            TOLERANCE,
            check_every=check_every,
            max_steps=max_steps,
        )
        return {"steps": result.steps, "loss": result.loss}

    return run


def per_point(run: Callable, alphas: Sequence[float]) -> Callable[[], list[int]]:
    """Compile for each alpha; the compiled functions are kept for the second call."""
    compiled = {}

    def work():
        steps = []
        for alpha in alphas:
            if alpha not in compiled:
                # A number of Python's is built into the program: that is why authors' scripts
                # compile each time.
                compiled[alpha] = jax.jit(lambda alpha=alpha: run(alpha))
            steps.append(int(compiled[alpha]()["steps"]))
        return steps

    return work


def once(run: Callable, alphas: Sequence[float]) -> Callable[[], list[int]]:
    """Compile once, loop."""
    compiled = jax.jit(run)
    return lambda: [int(compiled(jnp.asarray(alpha))["steps"]) for alpha in alphas]


def batched(run: Callable, alphas: Sequence[float]) -> Callable[[], list[int]]:
    """Compile once, all at a time."""
    compiled = jax.jit(jax.vmap(run))
    return lambda: compiled(jnp.asarray(alphas))["steps"].tolist()


def swept(run: Callable, alphas: Sequence[float]) -> Callable[[], list[int]]:
    """The sweep under test, as a user writes it."""
    points = product(alpha=alphas)
    return lambda: sweep(run, points, lanes=1)["steps"].values.astype(int).tolist()


RIVALS = {
    "compile per point": per_point,
    "compile once": once,
    "vmap": batched,
    "sweep": swept,
}


def clocked(work: Callable[[], list[int]]) -> tuple[float, list[int]]:
    """Seconds of a call and what it returned."""
    begin = time.perf_counter()
    returned = work()
    return time.perf_counter() - begin, returned


def report(
    dim: int = 100,
    alphas: Sequence[float] = ALPHAS,
    check_every: int = 1000,
    max_steps: int = 100_000,
    repeats: int = 2,
) -> str:
    """Measure and lay out."""
    run = training(dim, check_every, max_steps)
    times, counts = {}, {}
    with tempfile.TemporaryDirectory() as cache, compilation_cache(cache):
        for name, rival in RIVALS.items():
            work = rival(run, alphas)
            cold, counts[name] = clocked(work)
            times[name] = cold, min(clocked(work)[0] for _ in range(repeats))
    (first_cold, _), expected = times["compile per point"], counts["compile per point"]
    rows = [
        (
            name,
            f"{cold:.2f} s",
            f"{warm:.2f} s",
            f"{first_cold / cold:.2f}x",
            f"{first_cold / warm:.2f}x",
            "equal" if counts[name] == expected else "DIFFERENT",
        )
        for name, (cold, warm) in times.items()
    ]
    title = (
        f"runs that stop early: compressed completion, d = {dim}, {len(alphas)} step ratios, "
        f"{min(expected):,} to {max(expected):,} steps\n"
        "faster: than the first one when cold, for it compiles whenever it runs, as the authors' "
        "scripts do"
    )
    return f"{title}\n{table((f'{len(alphas)} runs', *HEADER[1:]), rows)}"


class compilation_cache:
    """An empty persistent cache for a block, so that cold is cold and warm is warm."""

    def __init__(self, folder: str):
        self.folder = folder

    def _use(self, folder: str | None) -> None:
        from jax.experimental.compilation_cache import compilation_cache as cache

        jax.config.update("jax_compilation_cache_dir", folder)
        cache.reset_cache()

    def __enter__(self) -> None:
        self.before = jax.config.jax_compilation_cache_dir
        self.least = jax.config.jax_persistent_cache_min_compile_time_secs
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        self._use(self.folder)

    def __exit__(self, *_: object) -> None:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", self.least)
        self._use(self.before)
