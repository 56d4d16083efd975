import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lrdyn as lr
from lrdyn.core import masking
from lrdyn.core.factorization import mean_factorization_loss
from lrdyn.theorem2 import subspace
from lrdyn.verification.running.programs import equations
from lrdyn.verification.stating.claims import scales_with_epsilon
from tests import oracles
from tests.oracles import assert_apart, assert_close, assert_zero, double, problem, residual
from tests.runs import python

pytestmark = pytest.mark.usefixtures("strict")

ETA = 0.1
STEPS = np.array([0, 1, 2, 10, 60])
LATE = np.array([10**3, 10**4, 10**5])
HOW = {"steps": 60, "size": 9}
"""Of the tolerance after the last of the steps."""
HIGH_PRECISION = Path(__file__).parent / "data/deep_factorization_5x5.json"

CASES = {
    "equal scales": ({}, 0.0),
    "a scale for each layer": ({"spread": 4.0}, 0.0),
    "decay": ({"seed": 1}, 0.05),
    "a decay for each layer": ({"spread": 0.3, "seed": 2}, [0.0, 0.05, 0.2]),
    "five layers, rank 1, no spare room": (
        {"dim": 3, "rank": 1, "depth": 5, "spread": 2.0},
        [0.1, 0.0, 0.0, 0.05, 0.01],
    ),
}


@pytest.fixture(params=CASES)
def case(request, dtype):
    """A problem that meets the hypotheses, its decays and its rank."""
    options, decay = CASES[request.param]
    chosen = problem(**options)
    decays = jnp.asarray(np.broadcast_to(decay, chosen.scales.shape), dtype)
    return chosen, decays, options.get("rank", 2)


@partial(jax.jit, static_argnames=("loss", "rule"))
def full_run(W, Phi, eta, decay, steps, loss=lr.factorization_loss, rule=lr.gradient_descent):
    return lr.simulate(lambda W: loss(W, Phi), W, rule(eta, decay), steps).records


@jax.jit
def reduced_run(target, scales, eta, decay, steps):
    return lr.reduced_dynamics(target, scales, eta, decay, steps).records


@partial(jax.jit, static_argnames="size")
def measure(frame, trajectory, size):
    """Blocks at each recorded step."""
    return jax.vmap(lambda weights: subspace.blocks(frame, weights, size))(trajectory)


@partial(jax.jit, static_argnames="dim")
def spectra_of(inner, bulk, dim):
    return jax.vmap(lambda w, b: subspace.reduced_spectra(jnp.stack(w), b, dim))(inner, bulk)


compiled = oracles.Compiled(subspace)
expand_all = jax.jit(jax.vmap(lr.expand, (None, 0, 0)))
losses_of = jax.jit(jax.vmap(lr.factorization_loss, (0, None)))


def assert_theorem_holds(chosen, rank, decay, steps=STEPS):
    """Off-diagonal blocks vanish and the bulk is rho I with the recursion's rho."""
    W, Phi, scales = chosen
    seen = measure(compiled.frame(W, Phi, rank), full_run(W, Phi, ETA, decay, steps), 2 * rank)
    how = {"steps": int(steps[-1]), "size": len(Phi), "scale": np.max(scales)}
    assert_zero((seen.off_block, seen.bulk_deviation), **how)
    assert_close(seen.rho, oracles.rho(double(scales), ETA, double(decay), steps), **how)
    return seen


# The frame ------------------------------------------------------------------------------------


def test_frame_is_orthogonal_and_chained(case):
    (W, Phi, scales), _, rank = case
    U, V = jax.device_get(compiled.frame(W, Phi, rank))
    for Q in (*U, *V):
        assert_close(Q.T @ Q, np.eye(len(Phi)), size=len(Phi), steps=len(W))
    assert_close(V[1:], U[:-1])
    assert_close(U * np.asarray(scales)[:, None, None], np.stack(W) @ V, size=len(Phi))


def test_frame_leaves_the_intersection_of_the_null_spaces(case):
    (W, Phi, _), _, rank = case
    still = oracles.still_directions(W, Phi)
    assert still.shape[1] == len(Phi) - 2 * rank
    bulk = np.asarray(compiled.frame(W, Phi, rank).right)[0, :, 2 * rank :]
    assert_close(bulk @ bulk.T, still @ still.T, size=len(Phi), steps=10)


def padded(kind):
    W, Phi, scales = problem(spread=2.0)
    if kind == "rank below r":
        Phi = jnp.asarray(oracles.rotated(0, (9, 9), [1.0]))
    if kind == "the two spaces meet":
        W, Phi = tuple(scale * jnp.eye(9) for scale in scales), Phi @ Phi.T
    if kind == "they meet in a line":
        # Row and column space of Phi share one direction of two.
        W = tuple(scale * jnp.eye(9) for scale in scales)
        Phi = jnp.zeros((9, 9)).at[0, 0].set(1.0).at[1, 2].set(0.5)
    return oracles.Problem(W, 0 * Phi if kind == "no target" else Phi, scales)


PADDED = {"rank below r": 2, "the two spaces meet": 2, "they meet in a line": 3, "no target": 0}


@pytest.mark.parametrize(("kind", "span"), PADDED.items())
def test_frame_is_padded(kind, span, dtype):
    chosen = padded(kind)
    still = oracles.still_directions(*chosen[:2])
    assert still.shape[1] == 9 - span
    bulk = np.asarray(compiled.frame(*chosen[:2], 2).right)[0, :, 4:]
    assert_close(still @ (still.T @ bulk), bulk, size=9, steps=10, scale=1)
    assert_theorem_holds(chosen, 2, jnp.array([0.0, 0.1, 0.2]))


# The theorem ----------------------------------------------------------------------------------


def test_full_run_agrees_with_numpy(case):
    (W, Phi, _), decay, _ = case
    expected = oracles.descend(W, oracles.sum_slope(double(Phi)), ETA, double(decay), STEPS)
    assert_close(full_run(W, Phi, ETA, decay, STEPS), tuple(expected), steps=60, size=len(Phi))


def test_off_blocks_vanish_and_the_bulk_follows_rho(case):
    """From the start on, where the moving blocks are multiples of the identity as well."""
    chosen, decay, rank = case
    inner = assert_theorem_holds(chosen, rank, decay).inner[0]
    dim, scales = len(chosen.target), double(chosen.scales)
    expected = scales[:, None, None] * np.eye(2 * rank)
    assert_close(inner, expected, size=dim, steps=len(scales), scale=scales.max())
    expected = oracles.rho(scales, ETA, double(decay), STEPS)
    assert_close(compiled.rho(chosen.scales, ETA, decay, STEPS), expected, steps=60)


def test_blocks_are_those_of_the_rotated_layers():
    W, Phi, _ = problem()
    frame = compiled.frame(W, Phi, 2)
    moved = np.stack(W) + 0.1 * np.random.default_rng(9).standard_normal((3, 9, 9))
    (found,) = zip(*measure(frame, tuple(map(jnp.asarray, moved[:, None])), 4), strict=True)
    rotated = np.swapaxes(frame.left, 1, 2) @ moved @ frame.right
    bulk = rotated[:, 4:, 4:]
    mean = np.array([np.mean(np.diag(block)) for block in bulk])
    off = [max(np.abs(R[:4, 4:]).max(), np.abs(R[4:, :4]).max()) for R in rotated]
    rest = np.abs(bulk - mean[:, None, None] * np.eye(5)).max((1, 2))
    assert_close(found, (rotated[:, :4, :4], off, mean, rest), size=9)


def test_reduced_run_determines_the_full_one(case):
    """Weights, loss and spectra of d x d layers out of 2r x 2r blocks and L scalars."""
    (W, Phi, scales), decay, rank = case
    frame, d, s = compiled.frame(W, Phi, rank), len(Phi), 2 * rank
    full, small = full_run(W, Phi, ETA, decay, STEPS), compiled.reduced_target(frame, Phi, s)
    inner = reduced_run(small, scales, ETA, decay, STEPS)
    bulk, how = compiled.rho(scales, ETA, decay, STEPS), {"steps": 60, "size": d}
    assert_close(expand_all(frame, inner, bulk), full, **how)
    still = 0.5 * (d - s) * np.prod(np.square(bulk), axis=1)
    assert_close(np.asarray(losses_of(inner, small)) + still, losses_of(full, Phi), **how)
    expected = np.stack([np.linalg.svd(w, compute_uv=False) for w in double(full)], axis=1)
    assert_close(spectra_of(inner, bulk, d), expected, **how)


def test_agrees_with_fifty_digits(dtype):
    stored = json.loads(HIGH_PRECISION.read_text())
    inputs, records = stored["inputs"], stored["records"]

    def read(name):
        return jnp.asarray(np.array(inputs[name], np.float64), dtype)

    W, Phi, scales, decay = (read(n) for n in ("weights", "target", "scales", "weight_decay"))
    steps, eta = np.array([r["step"] for r in records]), float(inputs["learning_rate"])
    expected = {
        name: np.array([r[name] for r in records], np.float64)
        for name in ("weights", "loss", "rho", "singular_values")
    }

    frame = compiled.frame(tuple(W), Phi, inputs["rank"])
    run, bulk = full_run(tuple(W), Phi, eta, decay, steps), compiled.rho(scales, eta, decay, steps)
    seen = measure(frame, run, 4)
    inner = reduced_run(compiled.reduced_target(frame, Phi, 4), scales, eta, decay, steps)
    found = {"weights": np.stack(run, axis=1), "loss": losses_of(run, Phi), "rho": bulk}
    for name, array in (found | {"singular_values": spectra_of(inner, bulk, 5)}).items():
        assert_close(array, expected[name], steps=40, size=5, scale=1)
    still = np.array(inputs["bulk_direction"], np.float64)
    found = seen.rho, np.square(frame.right[0])[:, 4:]
    assert_close(found, (expected["rho"], still[:, None] ** 2), steps=40, size=5, scale=1)
    assert_zero(seen.off_block, steps=40, size=5, scale=1)


def test_still_true_after_a_long_time(dtype):
    assert_theorem_holds(problem(spread=2.0), 2, jnp.zeros(3), np.array([0, 5000]))


def test_in_the_end_the_moving_part_fits_the_target():
    W, Phi, scales = problem()
    small = compiled.reduced_target(compiled.frame(W, Phi, 2), Phi, 4)
    losses = double(losses_of(reduced_run(small, scales, ETA, jnp.zeros(3), LATE), small))
    # Two of the four directions have singular value 0 and fade like powers of t, no faster.
    assert np.all(losses[1:] < losses[:-1] / 10)


def test_without_decay_rho_fades_like_the_differential_equation():
    """rho' = -eta rho^{2L-1}: rho ~ (2 (L-1) eta t)^{-1/(2(L-1))}, up to 1 / t."""
    found = double(compiled.rho(jnp.full(3, 0.8), ETA, 0.0, LATE))[:, 0]
    errors = np.abs(found * (4 * ETA * LATE) ** 0.25 - 1)
    assert np.all(errors[1:] < errors[:-1] / 5)


def test_with_decay_rho_falls_to_zero():
    assert_zero(compiled.rho(jnp.full(3, 0.8), ETA, 0.5, np.array([2000])), scale=1)


# One computation, many ways --------------------------------------------------------------------


def test_array_of_times_is_a_loop_of_times():
    scales = problem(spread=2.0).scales
    together = compiled.rho(scales, ETA, 0.1, STEPS)
    alone = [compiled.rho(scales, ETA, 0.1, STEPS[i : i + 1])[0] for i in range(len(STEPS))]
    assert_close(np.stack(alone), together, steps=60)


def test_restart_is_straight_through():
    W, Phi, scales = problem(spread=2.0)
    decay, once = jnp.full(3, 0.1), np.array([0, 20])
    last = partial(jax.tree.map, lambda x: x[-1])
    halfway = last(full_run(W, Phi, ETA, decay, once))
    again = last(full_run(halfway, Phi, ETA, decay, once))
    assert_close(again, last(full_run(W, Phi, ETA, decay, 2 * once)), steps=40, size=9)
    values = compiled.rho(compiled.rho(scales, ETA, decay, once)[-1], ETA, decay, once)[-1]
    assert_close(values, compiled.rho(scales, ETA, decay, 2 * once)[-1], steps=40)


def test_batch_is_a_loop_and_jit_changes_nothing():
    """Frame, reduction and expansion over seeds, scales, decays and step sizes at once."""
    problems = [problem(seed, spread=spread) for seed, spread in ((0, 1.0), (1, 3.0), (2, 0.5))]
    decays, rates = jnp.array([[0.0] * 3, [0.1] * 3, [0.0, 0.1, 0.2]]), jnp.array([0.1, 0.05, 0.02])

    def predict(chosen, decay, eta):
        frame = lr.frame(chosen.weights, chosen.target, 2)
        small = lr.reduced_target(frame, chosen.target, 4)
        run = lr.reduced_dynamics(small, chosen.scales, eta, decay, STEPS)
        bulk = lr.rho(chosen.scales, eta, decay, STEPS)
        return lr.expand(frame, run.params, bulk[-1]), bulk

    together = jax.tree.map(lambda *x: jnp.stack(x), *problems), decays, rates
    batch, alone = jax.jit(jax.vmap(predict))(*together), jax.jit(predict)
    for i in range(3):
        mine = jax.tree.map(lambda x, i=i: x[i], (together, batch))
        assert_close(mine[1], (alone if i else predict)(*mine[0]), **HOW)


def test_mean_loss_rescales_the_step_and_the_decay(dtype):
    W, Phi, _ = problem()
    decay, n = jnp.array([0.0, 0.05, 0.1]), Phi.size
    total = full_run(W, Phi, ETA, decay, STEPS)
    mean = partial(full_run, W, Phi, ETA * n, steps=STEPS, loss=mean_factorization_loss)
    assert_close(mean(decay / n), total, **HOW)
    assert_apart(mean(decay), total)


def test_residuals_shrink_like_machine_epsilon():
    def residuals(double_precision):
        with jax.enable_x64(double_precision):
            W, Phi, scales = problem(spread=2.0)
            decay = jnp.full(3, 0.05)
            seen = measure(compiled.frame(W, Phi, 2), full_run(W, Phi, ETA, decay, STEPS), 4)
            expected = oracles.rho(double(scales), ETA, double(decay), STEPS)
            return oracles.largest(seen.off_block), residual(seen.rho, expected)

    for in_double, in_single in zip(residuals(True), residuals(False), strict=True):
        assert scales_with_epsilon(in_double, in_single)
        assert in_single > np.finfo(np.float64).eps * 1e4


# Hypotheses broken ----------------------------------------------------------------------------


def masked_loss(weights, target):
    mask = masking.observe(jax.random.key(8), (9, 9), 0.7)
    return masking.masked_loss(weights, target, mask)


def off_blocks(kind):
    """Of the final layers of a run that breaks one hypothesis, in the frame of the theorem."""
    W, Phi, scales = problem()
    how = {}
    if kind == "Gaussian start":
        W = lr.gaussian_layers(jax.random.key(7), (9,) * 4, scales)
    if kind == "one layer not orthogonal":
        W = (W[0], W[1] * jnp.linspace(0.9, 1.1, 9)[:, None], W[2])
    if kind == "rank above r":
        Phi = jnp.asarray(oracles.rotated(0, (9, 9), [1.0, 0.75, 0.5]))
    if kind == "masked":
        how["loss"] = masked_loss
    if kind == "Adam":
        how["rule"] = adam
    with jax.numpy_dtype_promotion("standard" if kind == "Adam" else "strict"):
        run = full_run(W, Phi, 0.01 if kind == "Adam" else ETA, jnp.zeros(3), STEPS, **how)
    return measure(compiled.frame(W, Phi, 2), run, 4).off_block[-1]


def adam(eta, _):
    return optax.adam(eta)


BROKEN = ["Gaussian start", "one layer not orthogonal", "rank above r", "masked", "Adam"]


@pytest.mark.parametrize("kind", ["none", *BROKEN])
def test_without_a_hypothesis_the_blocks_mix(kind, dtype):
    found = off_blocks(kind)
    if kind == "none":
        assert_zero(found, scale=1, **HOW)
    else:
        assert np.all(np.asarray(found) > np.sqrt(np.finfo(dtype).eps))


@pytest.mark.parametrize(("power", "decay"), [(0, 0.0), (1, 0.0), (2, 0.1)])
def test_wrong_recursions_fail(power, decay, dtype):
    """Without the product, with the product not squared, with the mean decay for every layer."""
    W, Phi, scales = problem(spread=2.0)
    true, decays = jnp.asarray([0.0, decay, 2 * decay], dtype), [decay] * 3
    seen = measure(compiled.frame(W, Phi, 2), full_run(W, Phi, ETA, true, STEPS), 4)
    wrong = oracles.rho(double(scales), ETA if power else 0.0, decays, STEPS, power)
    assert_apart(seen.rho, wrong)


@pytest.mark.parametrize("scale", [1.0, 0.5, 2.0])
def test_start_scales(scale, dtype):
    W = problem(scale=scale, spread=3.0)
    assert_close(compiled.start_scales(W.weights), W.scales, size=81)
    rectangular = scale * np.eye(6, 2, dtype=dtype)
    assert_close(compiled.start_scales((rectangular,)), [scale], size=12)


@given(st.lists(st.floats(-10, 10), min_size=4, max_size=4))
def test_product_of_others(values):
    expected = [np.prod(values[:l] + values[l + 1 :]) for l in range(4)]
    assert_close(compiled.product_of_others(np.array(values)), expected, scale=10.0**3)


def test_reduced_spectra_counts_a_negative_bulk():
    found = subspace.reduced_spectra(jnp.diag(jnp.array([3.0, 1.0]))[None], jnp.array([-2.0]), 5)
    assert found.tolist() == [[3, 2, 2, 2, 1]]


EYE, WIDE, SHAPES = np.eye(6), np.ones((5, 6)), r"target: got shape \(5, 6\), wanted \(6, 6\)"
test_frame_refuses = oracles.refuses(
    (lambda: compiled.frame((EYE,) * 2, EYE, 3), "got 3 with dim 6, wanted dim > 2 rank"),
    (lambda: compiled.frame((EYE,) * 2, EYE, 0), "rank: got 0, wanted at least 1"),
    (lambda: compiled.frame((EYE,) * 2, WIDE, 2), SHAPES),
    (
        lambda: compiled.frame((EYE, WIDE), EYE, 2),
        r"weights\[1\]: got shape \(5, 6\), wanted \(6, 6\)",
    ),
)


# Many reduced runs at once


# Blocks of 44 x 44 are multiplied as matrices, 8 runs at a time, in float32 16.
@pytest.mark.parametrize(
    ("depth", "decays", "size"),
    [(2, (5,), 3), (2, (5, 2), 3), (4, (5,), 3), (2, (20, 2), 44)],
)
def test_reduced_lanes_are_reduced_runs(depth, decays, size, dtype):
    """Each lane against plain NumPy descent from its own scales, step size and decays."""
    rng, steps, lanes = np.random.default_rng(0), np.array([0, 7, 40]), decays[0]
    targets, scales = rng.normal(size=(lanes, size, size)), rng.uniform(0.2, 0.8, (lanes, depth))
    targets *= np.sqrt(3 / size) / 2  # as large for each size
    eta, decay = rng.uniform(0.02, 0.1, lanes), rng.uniform(0, 0.1, decays)
    given = (jnp.asarray(x, dtype) for x in (targets, scales, eta, decay))
    run = compiled.reduced_lanes(*given, steps)
    for lane in range(lanes):
        start = [eps * np.eye(size) for eps in scales[lane]]
        slope = oracles.sum_slope(targets[lane])
        layers = np.broadcast_to(decay[lane], depth)
        expected = oracles.descend(start, slope, eta[lane], layers, steps)
        found = tuple(np.asarray(layer)[lane] for layer in run.records)
        assert {layer.dtype for layer in found} == {np.dtype(dtype)}
        assert_close(found, tuple(expected), steps=40, size=size)
    assert_close(run.params, tuple(layer[:, -1] for layer in double(run.records)))
    assert run.diverged_at.tolist() == [-1] * lanes


def test_the_layout_puts_the_runs_last():
    """What the loop hands on has the runs last, and it multiplies no matrices: so it is fast."""
    ones = jnp.ones(64)

    def final(targets):
        scales = jnp.ones((64, 3))
        return subspace.reduced_lanes(targets, scales, ones, 0 * ones, np.array([5])).params

    jaxpr = jax.make_jaxpr(final)(jnp.ones((64, 6, 6))).jaxpr
    scans = (e for e, _ in equations(jaxpr) if e.primitive.name == "scan")
    (loop,) = (scan for scan in scans if scan.params["length"] == 5)  # of a known number of steps
    assert [v.aval.shape for v in loop.outvars if v.aval.ndim > 1] == [(6, 6, 64)] * 3
    body = loop.params["jaxpr"].jaxpr
    assert "dot_general" not in {e.primitive.name for e, _ in equations(body)}


ON_TWO_DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from lrdyn import cli
cli.setup(host_devices=2)
from lrdyn.verification.machine.compiler_options import compiler_options
from lrdyn.theorem2 import reduced_lanes

ones, spec = jnp.ones(64), jax.sharding.PartitionSpec("run")

def final(targets):
    return reduced_lanes(targets, jnp.ones((64, 3)), ones, 0 * ones, np.array([5])).params

over_both = jax.shard_map(
    lambda chunks: jax.lax.map(final, chunks),
    mesh=jax.sharding.Mesh(np.array(jax.devices()), ("run",)),
    in_specs=spec, out_specs=spec, check_vma=False,
)
lowered = jax.jit(over_both).lower(jnp.ones((4, 64, 6, 6)))
print(lowered.compile(compiler_options=compiler_options("cpu")).as_text())
"""


def test_a_program_that_is_spread_over_devices_keeps_runs_side_by_side():
    """Left to itself XLA puts them outermost in its loop, and a step takes 2.5 times as long."""
    done = python("-c", ON_TWO_DEVICES)
    assert done.returncode == 0, done.stderr
    loops = [line for line in done.stdout.splitlines() if " while(" in line and "[6,6,64]" in line]
    assert loops
    assert all("[6,6,64]{2,1,0}" in line for line in loops)
    assert not any("[6,6,64]{1,0,2}" in line for line in loops)


@pytest.mark.parametrize("dim", [4, 9])
def test_the_bulk_counts_as_often_as_the_dimension_leaves_room(dim):
    found = subspace.reduced_spectra(jnp.eye(2)[None] * 0.5, jnp.array([0.7]), dim)
    assert found.tolist() == [[0.7] * (dim - 2) + [0.5] * 2]
