"""A sweep of full gradient descent runs: against the machine's GEMM rate and against NumPy.

32 runs of deep factorisation (L = 3, float64, four learning rates by eight scales of the start) go
through :func:`lrdyn.sweep` itself, spread over two host devices; only the final loss and the norm
of the weights are recorded.

*Time.* The sweep compiles inside the call, and tracing, compilation and labelling do not depend on
the number of steps. So two sweeps are timed, of 1 and of ``steps`` + 1 steps, and the difference is
what the steps cost; the time of the short one is the column ``set-up``. (Repeats find the compiled
program in the persistent cache, unless LRDYN_CACHE turns it off.) The best repeats are subtracted;
many short repeats find a quiet moment of a shared machine more easily than a few long ones.

*Rate.* A step of one run is six products of d x d matrices: two for W_3 W_2 W_1 and four for the
gradients, e P^T, W_3^T e, (W_3^T e) W_1^T and W_2^T (W_3^T e), with e the residual and P = W_2 W_1.
That is 12 d^3 floating-point operations. The d^2 terms (loss, update) are not counted, though their
time is. The machine's rate is the best that a product of two 2000 x 2000 matrices reaches on all
cores, by JAX or by NumPy, measured between the sweeps.

*Rival.* A NumPy loop as an expert writes it: gradients by hand, every product into a buffer that
exists (``out=``), no temporaries, one BLAS thread (at these sizes more are slower or unused). It
takes one run after another, so the sweep has two cores to its one: the column ``one device`` is the
same sweep on a single device. The final losses of the two are compared before the clock starts.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lrdyn
from benchmarks.common import Times, blas_threads, gemm, table, timed
from lrdyn.core.factorization import Weights
from lrdyn.verification.running.sweep import sweep
from lrdyn.verification.stating.points import product

DEPTH = 3
HEADER = (
    "d",
    "set-up",
    "sweep",
    "rate",
    "of GEMM",
    "one device",
    "NumPy loop",
    "NumPy / sweep",
)


class Case(NamedTuple):
    """One size."""

    dim: int
    steps: int
    """Steps of each run of the sweep."""
    numpy_steps: int
    """Steps of the NumPy loop."""
    lanes: int | None = None
    """Runs batched at a time on each device; as the library chooses if None."""


CASES = (
    Case(2, 100_000, 10_000),
    Case(10, 20_000, 5000),
    Case(30, 1500, 2000),
    Case(60, 400, 500),
    Case(100, 400, 150),
    Case(150, 120, 60),
    Case(200, 60, 30),
    Case(300, 20, 10),
    Case(500, 4, 3),
    Case(1000, 2, 1),
)
LEARNING_RATES, SCALES = np.linspace(0.01, 0.02, 4), np.linspace(0.5, 1.0, 8)


def problem(dim: int) -> tuple[Weights, jax.Array]:
    """Layers of scale 1 and a target."""
    for_weights, for_target = jax.random.split(jax.random.key(0))
    weights = lrdyn.orthogonal_layers(for_weights, (dim,) * (DEPTH + 1), jnp.ones(DEPTH))
    values = lrdyn.spaced_singular_values(min(3, dim), 5.0)
    return weights, lrdyn.low_rank_target(for_target, (dim, dim), values)


def run_sweep(dim: int, steps: int, lanes: int | None, devices: Sequence[Any] | None = None):
    """The sweep under test, as a user writes it."""
    weights, target = problem(dim)
    loss = partial(lrdyn.factorization_loss, target=target)

    def record(weights: Weights) -> dict[str, Any]:
        return {"loss": loss(weights), "norm": sum(jnp.sum(W**2) for W in weights)}

    def run(learning_rate: jax.Array, scale: jax.Array) -> dict[str, jax.Array]:
        start = tuple(scale * W for W in weights)
        rule, last = lrdyn.gradient_descent(learning_rate), np.array([steps])
        result = lrdyn.simulate(loss, start, rule, last, record=record)
        return jax.tree.map(lambda values: values[0], result.records)

    points = product(learning_rate=LEARNING_RATES, scale=SCALES)
    return sweep(run, points, lanes=lanes, devices=devices)


def numpy_descent(
    weights: Sequence[np.ndarray], target: np.ndarray, learning_rate: float, steps: int
) -> float:
    """Gradient descent on ``1/2 ||W_3 W_2 W_1 - target||^2`` in place; returns the final loss."""
    first, second, third = (np.array(W) for W in weights)
    inner, error, back, slope = (np.empty_like(target) for _ in range(4))
    first_t, second_t, third_t, inner_t = first.T, second.T, third.T, inner.T
    for _ in range(steps):
        np.matmul(second, first, out=inner)
        np.matmul(third, inner, out=error)
        error -= target
        error *= learning_rate  # once here, not once for each layer
        np.matmul(third_t, error, out=back)
        np.matmul(error, inner_t, out=slope)
        third -= slope
        np.matmul(back, first_t, out=slope)
        np.matmul(second_t, back, out=error)
        second -= slope
        # The first layer last: its own gradient, in ``error``, was made of the second one before
        # its step.
        first -= error
    residual = third @ (second @ first) - target
    return 0.5 * float(np.vdot(residual, residual))


def rival(case: Case) -> Callable[[int], float]:
    """The NumPy loop at the first point of the sweep, as a function of the number of steps."""
    weights, target = problem(case.dim)
    start, goal = [SCALES[0] * np.asarray(W) for W in weights], np.asarray(target)

    def run(steps: int) -> float:
        with blas_threads(1):
            return numpy_descent(start, goal, LEARNING_RATES[0], steps)

    return run


def check(case: Case, loop: Callable[[int], float], steps: int = 20) -> None:
    """Both sides do the same work: their losses agree."""
    ours = float(run_sweep(case.dim, steps, case.lanes)["loss"][0, 0])
    np.testing.assert_allclose(loop(steps), ours, rtol=1e-10)


def measure(case: Case, repeats: int, gemm_size: int) -> dict[str, Times]:
    """Time everything that a row of the table needs."""
    loop = rival(case)
    check(case, loop, min(20, 4 * case.steps))
    one_device = jax.local_devices()[:1]
    work = {
        **gemm(gemm_size),
        "long": lambda: run_sweep(case.dim, case.steps + 1, case.lanes),
        "short": lambda: run_sweep(case.dim, 1, case.lanes),
        "one long": lambda: run_sweep(case.dim, case.steps + 1, case.lanes, one_device),
        "one short": lambda: run_sweep(case.dim, 1, case.lanes, one_device),
        "numpy": lambda: loop(case.numpy_steps),
    }
    return timed(work | {f"{name} after": call for name, call in gemm(gemm_size).items()}, repeats)


def row(case: Case, repeats: int, gemm_size: int) -> tuple[tuple[str, ...], float]:
    """One row of the table, and the GEMM rate in GF/s."""
    times = measure(case, repeats, gemm_size)
    # A product of two n x n matrices has 2 n^3 operations.
    peak = 2e-9 * gemm_size**3 / min(t.best for name, t in times.items() if "gemm" in name)
    runs = case.steps * len(LEARNING_RATES) * len(SCALES)
    ours = 1e6 * (times["long"].best - times["short"].best) / runs
    single = 1e6 * (times["one long"].best - times["one short"].best) / runs
    theirs = 1e6 * times["numpy"].best / case.numpy_steps
    # 12 d^3 operations in ``ours`` microseconds, as 1e9 operations a second.
    rate = 12e-3 * case.dim**3 / ours
    cells = (
        str(case.dim),
        f"{times['short'].best:.2f} s",
        f"{ours:.3g} us (+{times['long'].spread:.0%})",
        f"{rate:.0f} GF/s",
        f"{rate / peak:.0%}",
        f"{single:.3g} us",
        f"{theirs:.3g} us (+{times['numpy'].spread:.0%})",
        f"{theirs / ours:.2f}x",
    )
    return cells, peak


def report(cases: Sequence[Case] = CASES, *, repeats: int = 3, gemm_size: int = 2000) -> str:
    """Measure and lay out."""
    rows = [row(case, repeats, gemm_size) for case in cases]
    peaks = ", ".join(
        f"{peak:.0f} GF/s at d = {c.dim}" for c, (_, peak) in zip(cases, rows, strict=True)
    )
    title = (
        f"sweep of {len(LEARNING_RATES) * len(SCALES)} runs, L = {DEPTH}, float64, over "
        f"{len(jax.local_devices())} devices: time a step and run, 12 d^3 operations each\n"
        f"GEMM of size {gemm_size} in the same run: {peaks}\n"
        "wanted: 60% of GEMM at d = 100, 65% from 150 on, 75% at 200, and 1x NumPy at every d\n"
        f"best of {repeats} runs without compilation; in brackets: how far the median lies above"
    )
    return f"{title}\n{table(HEADER, [cells for cells, _ in rows])}"
