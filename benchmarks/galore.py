"""GaLore for a batch of runs: optax's, a NumPy loop, and the nested scan of this library.

16 least-squares problems, 1/2 ||W X - Y||_F^2 with W of 80 x 60, take 500 steps of GaLore with Adam
(r = 4, a new projector every T = 50 steps, larger side) in float64.

*optax, vmap(init)*: :func:`optax.contrib.galore` with a state from ``vmap(init)``. Its counter is
batched with everything else, so the ``cond`` around its SVD becomes a select, and the SVD runs at
every step. *optax, init inside*: the state is made inside the function that is batched; its counter
is one for all runs, and the SVD runs once in T steps. *optax, one by one*: no batch, a loop over
the runs on each of two host devices. *NumPy*: a loop over steps for all runs at once as an expert
writes it, gradient by hand, buffers that exist, one BLAS thread on one core. *lrdyn*:
:data:`lrdyn.GALORE` under ``vmap``, on one host device and on two.

All take the same steps: the last column is the largest difference of final weights over the largest
weight. Adam's state is kept at a refresh, so a path depends on the signs of the singular vectors.
lrdyn has a rule for them and LAPACK has not: for that column lrdyn takes the projectors of optax
(float32, LAPACK's signs) and is compared with the first row. What is timed takes lrdyn's own
(float64, the rule); NumPy takes those too and is compared with them.

``compile`` holds tracing and compilation, ``run`` the best of the calls after it.
"""

import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import PyTree

import lrdyn
from benchmarks.common import blas_threads, table, timed
from benchmarks.early_stopping import compilation_cache
from lrdyn.adapters.algorithm_1 import Choice
from lrdyn.galore import single_precision_projector

RATE = 0.01
HEADER = ("compile", "run", "per step and run", "faster", "with compile", "differ")
OURS, NUMPY = "lrdyn, two devices", "NumPy, one core"


class Case(NamedTuple):
    """One size."""

    rows: int = 80
    cols: int = 60
    rank: int = 4
    period: int = 50
    steps: int = 500
    runs: int = 16


def problem(case: Case, seed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """X and Y."""
    for_inputs, for_outputs = jax.random.split(jax.random.key(seed))
    inputs = jax.random.normal(for_inputs, (case.cols, case.cols)) / np.sqrt(case.cols)
    return inputs, jax.random.normal(for_outputs, (case.rows, case.cols))


def start(case: Case, seed: jax.Array) -> tuple[Callable[[jax.Array], jax.Array], jax.Array]:
    """The loss and the first weights."""
    X, Y = problem(case, seed)
    return lambda W: jnp.sum((W @ X - Y) ** 2) / 2, jnp.zeros_like(Y)


# Rivals --------------------------------------------------------------------------------------


def optax_rule(case: Case) -> optax.GradientTransformation:
    """GaLore as optax has it."""
    return optax.contrib.galore(RATE, rank=case.rank, update_proj_gap=case.period)


def descend(case: Case, seed: jax.Array, state: PyTree) -> jax.Array:
    """A user's loop over optax's rule."""
    loss, W = start(case, seed)
    rule = optax_rule(case)

    def step(_: jax.Array, current: tuple[jax.Array, PyTree]) -> tuple[Any, PyTree]:
        W, state = current
        updates, state = rule.update(jax.grad(loss)(W), state, W)
        return optax.apply_updates(W, updates), state

    return jax.lax.fori_loop(0, case.steps, step, (W, state))[0]


def with_batched_state(case: Case) -> Callable[[jax.Array], jax.Array]:
    """optax, every part batched, the counter too."""
    init = optax_rule(case).init

    def run(seeds: jax.Array) -> jax.Array:
        states = jax.vmap(lambda seed: init(start(case, seed)[1]))(seeds)
        return jax.vmap(lambda seed, state: descend(case, seed, state))(seeds, states)

    return run


def by_optax(case: Case) -> Callable[[jax.Array], jax.Array]:
    """optax, one run; the state is made inside."""
    return lambda seed: descend(case, seed, optax_rule(case).init(start(case, seed)[1]))


def by_lrdyn(case: Case, choose: Choice | None = None) -> Callable[[jax.Array], jax.Array]:
    """Algorithm 1 of this library, one run."""
    choose = choose or (lambda key, G: lrdyn.adapters.choose_projectors(G, case.rank, "larger"))

    def run(seed: jax.Array) -> jax.Array:
        loss, W = start(case, seed)
        # The step size as alpha, as in optax: XLA then adds the lifted update in one pass.
        return lrdyn.low_rank_descent(
            lrdyn.GALORE,
            loss,
            W,
            optax.scale_by_adam(),
            choose=choose,
            period=case.period,
            steps=np.array([case.steps]),
            scale=-RATE,
            record=lambda W: (),
        ).params

    return run


def top_vectors(gradients: np.ndarray, rank: int) -> np.ndarray:
    """Leading left singular vectors of a batch, the largest entry of each positive."""
    vectors = np.linalg.svd(gradients, full_matrices=False)[0][..., :rank]
    # The rule of signs of this library: a momentum that is kept at a refresh depends on it.
    largest = np.argmax(np.abs(vectors), axis=1)[:, None]
    return vectors * np.sign(np.take_along_axis(vectors, largest, axis=1))


def by_numpy(case: Case, seeds: jax.Array) -> Callable[[], np.ndarray]:
    """A loop over steps, all runs at once, in place (rows >= cols)."""
    X, Y = (np.asarray(array) for array in jax.vmap(lambda seed: problem(case, seed))(seeds))

    def run():
        with blas_threads(1):
            return numpy_galore(case, X, Y)

    return run


def numpy_galore(case: Case, X: np.ndarray, Y: np.ndarray) -> np.ndarray:
    """GaLore with Adam on ``1/2 ||W X - Y||^2``, the left side projected."""
    W, error, slope = (np.zeros_like(Y) for _ in range(3))
    projected, first, second, update = (np.zeros((len(Y), case.rank, case.cols)) for _ in range(4))
    X_t = np.swapaxes(X, 1, 2)
    for t in range(case.steps):
        np.matmul(W, X, out=error)
        error -= Y
        np.matmul(error, X_t, out=slope)
        if t % case.period == 0:
            P = top_vectors(slope, case.rank)
            P_t = np.swapaxes(P, 1, 2)
        # Moments in place, each product into a buffer that exists: allocations would cost as much.
        np.matmul(P_t, slope, out=projected)
        first *= 0.9
        first += np.multiply(projected, 0.1, out=update)
        second *= 0.999
        np.multiply(projected, projected, out=update)
        update *= 0.001
        second += update
        np.multiply(second, 1 / (1 - 0.999 ** (t + 1)), out=update)
        np.sqrt(update, out=update)
        update += 1e-8
        np.divide(first, update, out=update)
        update *= -RATE / (1 - 0.9 ** (t + 1))
        W += np.matmul(P, update, out=slope)
    return W


# Measuring -----------------------------------------------------------------------------------


def spread(run: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """The same on every device, each with its part of the runs."""
    mesh, part = Mesh(np.asarray(jax.local_devices()), ("run",)), PartitionSpec("run")
    return jax.shard_map(run, mesh=mesh, in_specs=part, out_specs=part, check_vma=False)


def one_by_one(run: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """A loop in place of a batch."""
    return lambda seeds: jax.lax.map(run, seeds)


def programs(case: Case) -> dict[str, Callable[[jax.Array], jax.Array]]:
    """Functions of the seeds of all runs."""
    return {
        "optax, vmap(init)": with_batched_state(case),
        "optax, init inside": jax.vmap(by_optax(case)),
        "optax, one by one, two devices": spread(one_by_one(by_optax(case))),
        "lrdyn": jax.vmap(by_lrdyn(case)),
        OURS: spread(jax.vmap(by_lrdyn(case))),
    }


def compiled(run: Callable[[jax.Array], jax.Array], seeds: jax.Array):
    """A compiled function, and the seconds that tracing and compilation took."""
    begin = time.perf_counter()
    done = jax.jit(run).lower(seeds).compile()
    return done, time.perf_counter() - begin


def difference(weights: object, reference: object) -> float:
    """Largest difference over the largest weight."""
    expected = np.asarray(reference)
    return float(np.max(np.abs(np.asarray(weights) - expected)) / np.max(np.abs(expected)))


def differences(
    case: Case, calls: dict[str, Callable[[], object]], seeds: jax.Array
) -> dict[str, float]:
    """How far final weights are from those of the rival that takes the same projectors."""
    first, *_ = calls
    projectors = by_lrdyn(case, lambda key, G: single_precision_projector(G, case.rank, "larger"))
    ours = difference(jax.jit(one_by_one(projectors))(seeds), calls[first]())
    gaps = {name: difference(call(), calls[first]()) for name, call in calls.items()}
    return gaps | {"lrdyn": ours, OURS: ours, NUMPY: difference(calls[NUMPY](), calls[OURS]())}


def report(case: Case | None = None, *, repeats: int = 7) -> str:
    """Measure and lay out."""
    case = case or Case()
    seeds = jnp.arange(case.runs)
    with tempfile.TemporaryDirectory() as cache, compilation_cache(cache):
        built = {name: compiled(run, seeds) for name, run in programs(case).items()}
    calls = {name: (lambda done=done: done(seeds)) for name, (done, _) in built.items()}
    calls[NUMPY] = by_numpy(case, seeds)
    times = timed(calls, repeats)
    first, *_ = calls
    apart = differences(case, calls, seeds)
    whole = {n: t.best + (built[n][1] if n in built else 0.0) for n, t in times.items()}
    rows = [
        (
            name,
            f"{built[name][1]:.2f} s" if name in built else "",
            f"{took.best:.3f} s (+{took.spread:.0%})",
            f"{1e6 * took.best / case.steps / case.runs:.3g} us",
            f"{times[first].best / took.best:.1f}x",
            f"{whole[first] / whole[name]:.1f}x",
            f"{apart[name]:.1e}",
        )
        for name, took in times.items()
    ]
    title = (
        f"GaLore with Adam: {case.runs} runs of {case.steps} steps, {case.rows} x {case.cols}, "
        f"r = {case.rank}, T = {case.period}, float64\n"
        f"best of {repeats} calls; in brackets: how far the median lies above; ratios to row 1"
    )
    return f"{title}\n{table(('', *HEADER), rows)}"
