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
from lrdyn.claims import scales_with_epsilon
from tests import oracles
from tests.oracles import assert_apart, assert_close, assert_zero, double, problem, residual

ETA = 0.1
STEPS = np.array([0, 1, 2, 10, 60])
LATE = np.array([10**3, 10**4, 10**5])
rho = jax.jit(lr.rho)
HIGH_PRECISION = json.loads(
    Path(__file__).with_name("data").joinpath("deep_factorization_5x5.json").read_text()
)

CASES = {
    "equal scales": ({}, 0.0),
    "a scale for each layer": ({"spread": 4.0}, 0.0),
    "decay": ({"seed": 1}, 0.05),
    "a decay for each layer": ({"spread": 0.3, "seed": 2}, [0.0, 0.05, 0.2]),
    "two layers, no spare room": ({"dim": 5, "depth": 2, "spread": 2.0}, [0.1, 0.0]),
    "five layers, rank 1": ({"dim": 6, "rank": 1, "depth": 5}, 0.01),
}


@pytest.fixture(params=CASES)
def case(request, dtype):
    """A problem that meets the hypotheses, its decays and its rank."""
    options, decay = CASES[request.param]
    chosen = problem(**options)
    return (
        chosen,
        jnp.broadcast_to(jnp.asarray(decay, dtype), chosen.scales.shape),
        options.get("rank", 2),
    )


@partial(jax.jit, static_argnames="loss")
def full_run(weights, target, eta, decay, steps, loss=lr.factorization_loss):
    optimizer = lr.gradient_descent(eta, decay)
    return lr.simulate(lambda w: loss(w, target), weights, optimizer, steps).records


@jax.jit
def reduced_run(target, scales, eta, decay, steps):
    return lr.reduced_dynamics(target, scales, eta, decay, steps).records


@partial(jax.jit, static_argnames="size")
def measure(frame, trajectory, size):
    """Blocks at each recorded step."""
    return jax.vmap(lambda weights: lr.subspace.blocks(frame, weights, size))(trajectory)


frame_of = jax.jit(lr.frame, static_argnames="rank")
expand_all = jax.jit(jax.vmap(lr.expand, (None, 0, 0)))
losses_of = jax.jit(jax.vmap(lr.factorization_loss, (0, None)))


@partial(jax.jit, static_argnames="dim")
def spectra_of(inner, bulk, dim):
    return jax.vmap(lambda w, b: lr.subspace.reduced_spectra(jnp.stack(w), b, dim))(inner, bulk)


def assert_theorem_holds(chosen, rank, decay, steps=STEPS, eta=ETA):
    """Off-diagonal blocks vanish and the bulk is rho I with the recursion's rho."""
    W, Phi, scales = chosen
    seen = measure(frame_of(W, Phi, rank), full_run(W, Phi, eta, decay, steps), 2 * rank)
    how = {"steps": int(steps[-1]), "size": len(Phi), "scale": float(scales.max())}
    assert_zero((seen.off_block, seen.bulk_deviation), **how)
    assert_close(seen.rho, oracles.rho(double(scales), eta, double(decay), steps), **how)


# The frame ------------------------------------------------------------------------------------


def test_frame_is_orthogonal_and_chained(case):
    (W, Phi, scales), _, rank = case
    U, V = frame_of(W, Phi, rank)
    for Q in (*U, *V):
        assert_close(Q.T @ Q, np.eye(len(Phi)), size=len(Phi), steps=len(W))
    assert_close(V[1:], U[:-1])
    carried = jnp.stack([w @ v for w, v in zip(W, V, strict=True)])
    assert_close(U * scales[:, None, None], carried, size=len(Phi))


def test_frame_leaves_the_intersection_of_the_null_spaces(case):
    (W, Phi, _), _, rank = case
    still = oracles.still_directions(W, Phi)
    assert still.shape[1] == len(Phi) - 2 * rank
    bulk = frame_of(W, Phi, rank).right[0][:, 2 * rank :]
    assert_close(bulk @ bulk.T, still @ still.T, size=len(Phi), steps=10)


def padded(kind):
    W, Phi, scales = problem(rank=1 if kind == "rank below r" else 2, spread=2.0)
    if kind == "the two spaces meet":
        W = tuple(scale * jnp.eye(9) for scale in scales)
        Phi = Phi @ Phi.T
    if kind == "they meet in a line":
        # Row and column space of Phi share one direction of two.
        u, v, w = jnp.eye(9)[:, :1], jnp.eye(9)[:, 1:2], jnp.eye(9)[:, 2:3]
        W, Phi = tuple(scale * jnp.eye(9) for scale in scales), u @ u.T + 0.5 * v @ w.T
    return oracles.Problem(W, 0 * Phi if kind == "no target" else Phi, scales)


PADDED = {"rank below r": 2, "the two spaces meet": 2, "they meet in a line": 3, "no target": 0}


@pytest.mark.parametrize(("kind", "span"), PADDED.items())
def test_frame_is_padded(kind, span, dtype):
    chosen = padded(kind)
    still = oracles.still_directions(*chosen[:2])
    assert still.shape[1] == 9 - span
    bulk = frame_of(*chosen[:2], 2).right[0][:, 4:]
    assert_close(still @ (still.T @ bulk), bulk, size=9, steps=10, scale=1)
    assert_theorem_holds(chosen, 2, jnp.array([0.0, 0.1, 0.2]))


# The theorem ----------------------------------------------------------------------------------


def test_full_run_agrees_with_numpy(case):
    (W, Phi, _), decay, _ = case
    expected = oracles.descend(W, oracles.sum_slope(double(Phi)), ETA, double(decay), STEPS)
    assert_close(full_run(W, Phi, ETA, decay, STEPS), tuple(expected), steps=60, size=len(Phi))


def test_off_blocks_vanish_and_the_bulk_follows_rho(case):
    chosen, decay, rank = case
    assert_theorem_holds(chosen, rank, decay)


def test_blocks_are_those_of_the_rotated_layers():
    W, Phi, _ = problem()
    U, V = double(frame_of(W, Phi, 2))
    moved = tuple(w + 0.1 * jax.random.normal(jax.random.key(9), w.shape) for w in W)
    seen = lr.subspace.blocks(frame_of(W, Phi, 2), moved, 4)
    for l, w in enumerate(double(moved)):
        rotated = U[l].T @ w @ V[l]
        bulk = rotated[4:, 4:]
        mean = np.mean(np.diag(bulk))
        off = max(np.abs(rotated[:4, 4:]).max(), np.abs(rotated[4:, :4]).max())
        expected = (rotated[:4, :4], off, mean, np.abs(bulk - mean * np.eye(5)).max())
        assert_close(jax.tree.map(lambda x, l=l: x[l], tuple(seen)), expected, size=9)


def test_at_the_start_the_blocks_are_multiples_of_the_identity(case):
    (W, Phi, scales), _, rank = case
    seen = lr.subspace.blocks(frame_of(W, Phi, rank), W, 2 * rank)
    how = {"size": len(Phi), "steps": len(W), "scale": float(scales.max())}
    assert_close(seen.rho, scales, **how)
    assert_close(seen.inner, double(scales)[:, None, None] * np.eye(2 * rank), **how)
    assert_zero((seen.off_block, seen.bulk_deviation), **how)


def test_rho_agrees_with_python_scalars(case):
    (_, _, scales), decay, _ = case
    expected = oracles.rho(double(scales), ETA, double(decay), STEPS)
    assert_close(rho(scales, ETA, decay, STEPS), expected, steps=60)


def test_reduced_run_determines_the_full_one(case):
    """Weights, loss and spectra of d x d layers out of 2r x 2r blocks and L scalars."""
    (W, Phi, scales), decay, rank = case
    frame, d, s = frame_of(W, Phi, rank), len(Phi), 2 * rank
    full = full_run(W, Phi, ETA, decay, STEPS)
    small = lr.reduced_target(frame, Phi, s)
    inner, bulk = reduced_run(small, scales, ETA, decay, STEPS), rho(scales, ETA, decay, STEPS)
    how = {"steps": 60, "size": d}
    assert_close(expand_all(frame, inner, bulk), full, **how)
    losses, full_losses = losses_of(inner, small), losses_of(full, Phi)
    assert_close(losses + 0.5 * (d - s) * jnp.prod(bulk**2, axis=1), full_losses, **how)
    expected = np.stack([np.linalg.svd(w, compute_uv=False) for w in double(full)], axis=1)
    assert_close(spectra_of(inner, bulk, d), expected, **how)


def test_agrees_with_fifty_digits(dtype):
    inputs, records = HIGH_PRECISION["inputs"], HIGH_PRECISION["records"]

    def read(name):
        return jnp.asarray(np.array(inputs[name], np.float64), dtype)

    W, Phi, scales, decay = (read(n) for n in ("weights", "target", "scales", "weight_decay"))
    steps, eta = np.array([r["step"] for r in records]), float(inputs["learning_rate"])

    def expect(name):
        return np.array([r[name] for r in records], np.float64)

    frame = frame_of(tuple(W), Phi, inputs["rank"])
    run = full_run(tuple(W), Phi, eta, decay, steps)
    how = {"steps": 40, "size": 5, "scale": 1}
    assert_close(jnp.stack(run, axis=1), expect("weights"), **how)
    assert_close(losses_of(run, Phi), expect("loss"), **how)
    assert_close(rho(scales, eta, decay, steps), expect("rho"), **how)
    assert_close(measure(frame, run, 4).rho, expect("rho"), **how)
    assert_zero(measure(frame, run, 4).off_block, **how)
    still = np.array(inputs["bulk_direction"], np.float64)
    assert_close(frame.right[0][:, 4:] ** 2, still[:, None] ** 2, **how)
    inner = reduced_run(lr.reduced_target(frame, Phi, 4), scales, eta, decay, steps)
    assert_close(
        spectra_of(inner, rho(scales, eta, decay, steps), 5), expect("singular_values"), **how
    )


def test_still_true_after_a_long_time(dtype):
    assert_theorem_holds(problem(spread=2.0), 2, jnp.zeros(3), np.array([0, 5000]))


def test_in_the_end_the_moving_part_fits_the_target():
    W, Phi, scales = problem()
    small = lr.reduced_target(frame_of(W, Phi, 2), Phi, 4)
    losses = double(losses_of(reduced_run(small, scales, ETA, jnp.zeros(3), LATE), small))
    # Two of the four directions have singular value 0 and fade like powers of t, no faster.
    assert np.all(losses[1:] < losses[:-1] / 10)


def test_without_decay_rho_fades_like_the_differential_equation():
    """rho' = -eta rho^{2L-1}: rho ~ (2 (L-1) eta t)^{-1/(2(L-1))}, up to 1 / t."""
    found = double(rho(jnp.full(3, 0.8), ETA, 0.0, LATE))[:, 0]
    errors = np.abs(found * (4 * ETA * LATE) ** 0.25 - 1)
    assert np.all(errors[1:] < errors[:-1] / 5)


def test_with_decay_rho_falls_to_zero():
    assert_zero(rho(jnp.full(3, 0.8), ETA, 0.5, np.array([2000])), scale=1)


def test_figure_3_bulk_after_fifty_steps():
    """d = 30, r = 3, L = 3, eps = 1, mean loss with eta = 1."""
    (final,) = rho(jnp.ones(3), 1 / 30**2, 0.0, np.array([50]))
    assert [f"{x:.3f}" for x in final] == ["0.951"] * 3


# One computation, many ways --------------------------------------------------------------------


def test_array_of_times_is_a_loop_of_times():
    _, _, scales = problem(spread=2.0)
    together = rho(scales, ETA, 0.1, STEPS)
    for row, t in zip(together, STEPS, strict=True):
        assert_close(rho(scales, ETA, 0.1, np.array([t]))[0], row, steps=int(t))


def test_restart_is_straight_through():
    W, Phi, scales = problem(spread=2.0)
    decay, once = jnp.full(3, 0.1), np.array([0, 20])
    last = partial(jax.tree.map, lambda x: x[-1])
    halfway = last(full_run(W, Phi, ETA, decay, once))
    again, straight = (
        full_run(halfway, Phi, ETA, decay, once),
        full_run(W, Phi, ETA, decay, 2 * once),
    )
    assert_close(last(again), last(straight), steps=40, size=9)
    values = rho(rho(scales, ETA, decay, once)[-1], ETA, decay, once)[-1]
    assert_close(values, rho(scales, ETA, decay, 2 * once)[-1], steps=40)


def test_batch_is_a_loop_and_jit_changes_nothing(dtype):
    """Frame, reduction and expansion over seeds, scales, decays and step sizes at once."""
    problems = [problem(seed, spread=spread) for seed, spread in ((0, 1.0), (1, 3.0), (2, 0.5))]
    decays, rates = jnp.array([[0.0] * 3, [0.1] * 3, [0.0, 0.1, 0.2]]), jnp.array([0.1, 0.05, 0.02])

    def predict(chosen, decay, eta):
        frame = frame_of(chosen.weights, chosen.target, 2)
        small = lr.reduced_target(frame, chosen.target, 4)
        run = lr.reduced_dynamics(small, chosen.scales, eta, decay, STEPS)
        bulk = rho(chosen.scales, eta, decay, STEPS)
        return lr.expand(frame, run.params, bulk[-1]), bulk

    batch = jax.jit(jax.vmap(predict))(
        jax.tree.map(lambda *x: jnp.stack(x), *problems), decays, rates
    )
    for i, chosen in enumerate(problems):
        alone = predict(chosen, decays[i], rates[i])
        assert_close(jax.tree.map(lambda x, i=i: x[i], batch), alone, steps=60, size=9)


def test_nothing_is_promoted():
    def everything(chosen, eta, decay):
        W, Phi, scales = chosen
        frame = lr.frame(W, Phi, 2)
        run = lr.reduced_dynamics(lr.reduced_target(frame, Phi, 4), scales, eta, decay, STEPS)
        bulk = lr.rho(scales, eta, decay, STEPS)
        return lr.subspace.blocks(frame, lr.expand(frame, run.params, bulk[-1]), 4)

    chosen = problem()
    with jax.numpy_dtype_promotion("strict"):
        jax.eval_shape(everything, chosen, jnp.array(ETA), jnp.zeros(3))


def test_mean_loss_rescales_the_step_and_the_decay(dtype):
    W, Phi, _ = problem()
    decay, n = jnp.array([0.0, 0.05, 0.1]), Phi.size
    total = full_run(W, Phi, ETA, decay, STEPS)

    def mean(decay):
        return full_run(
            W, Phi, ETA * n, decay, STEPS, loss=lr.factorization.mean_factorization_loss
        )

    assert_close(mean(decay / n), total, steps=60, size=9)
    assert_apart(mean(decay), total)


def test_residuals_shrink_like_machine_epsilon():
    def residuals(double_precision):
        with jax.enable_x64(double_precision):
            W, Phi, scales = problem(spread=2.0)
            decay = jnp.full(3, 0.05)
            seen = measure(frame_of(W, Phi, 2), full_run(W, Phi, ETA, decay, STEPS), 4)
            expected = oracles.rho(double(scales), ETA, double(decay), STEPS)
            return residual(seen.off_block, 0 * seen.off_block, 1), residual(seen.rho, expected)

    for in_double, in_single in zip(residuals(True), residuals(False), strict=True):
        assert scales_with_epsilon(in_double, in_single)
        assert in_single > np.finfo(np.float64).eps * 1e4


# Hypotheses broken ----------------------------------------------------------------------------


def broken(kind):
    """Final layers of a run that breaks one hypothesis, and the frame that the theorem names."""
    W, Phi, scales = problem()
    loss, optimizer = lr.factorization_loss, lr.gradient_descent(ETA)
    if kind == "Gaussian start":
        W = lr.gaussian_layers(jax.random.key(7), (9,) * 4, scales)
    if kind == "one layer not orthogonal":
        W = (W[0], W[1] * jnp.linspace(0.9, 1.1, 9)[:, None], W[2])
    if kind == "rank above r":
        Phi = problem(rank=3).target
    if kind == "masked":
        mask = lr.masking.observe(jax.random.key(8), (9, 9), 0.7)
        loss = partial(lr.masking.masked_loss, mask=mask)
    if kind == "Adam":
        optimizer = optax.adam(0.01)
    run = lr.simulate(lambda w: loss(w, Phi), W, optimizer, STEPS)
    return frame_of(W, Phi, 2), run.params


@pytest.mark.parametrize(
    "kind", ["Gaussian start", "one layer not orthogonal", "rank above r", "masked", "Adam"]
)
def test_without_a_hypothesis_the_blocks_mix(kind, dtype):
    seen = lr.subspace.blocks(*broken(kind), 4)
    assert np.all(np.asarray(seen.off_block) > np.sqrt(np.finfo(dtype).eps))


def test_the_same_run_with_all_hypotheses_does_not_mix(dtype):
    assert_zero(lr.subspace.blocks(*broken("none"), 4).off_block, steps=60, size=9, scale=1)


@pytest.mark.parametrize(
    ("power", "decays"), [(0, (0, 0, 0)), (1, (0, 0, 0)), (2, (0.1, 0.1, 0.1))]
)
def test_wrong_recursions_fail(power, decays, dtype):
    """Without the product, with the product not squared, with the mean decay for every layer."""
    W, Phi, scales = problem(spread=2.0)
    true = (0.0, 0.1, 0.2) if any(decays) else decays
    seen = measure(frame_of(W, Phi, 2), full_run(W, Phi, ETA, jnp.asarray(true, dtype), STEPS), 4)
    wrong = oracles.rho(double(scales), ETA if power else 0.0, decays, STEPS, power)
    assert_apart(seen.rho, wrong)


@pytest.mark.parametrize("scale", [1.0, 0.5, 2.0])
def test_start_scales(scale, dtype):
    W = problem(scale=scale, spread=3.0)
    assert_close(lr.subspace.start_scales(W.weights), W.scales, size=81)
    (rectangular,) = lr.orthogonal_layers(jax.random.key(0), (6, 2), jnp.full(1, scale))
    assert_close(lr.subspace.start_scales((rectangular,)), [scale], size=12)


@given(st.lists(st.floats(-10, 10), min_size=4, max_size=4))
def test_product_of_others(values):
    expected = [np.prod(values[:l] + values[l + 1 :]) for l in range(4)]
    assert_close(lr.subspace.product_of_others(jnp.array(values)), expected, scale=10.0**3)


def test_reduced_spectra_counts_a_negative_bulk():
    found = lr.subspace.reduced_spectra(jnp.diag(jnp.array([3.0, 1.0]))[None], jnp.array([-2.0]), 5)
    assert found.tolist() == [[3, 2, 2, 2, 1]]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "rank", "message"),
    [
        ({}, 3, r"rank: got 3 with dim 6, wanted rank >= 1 and dim > 2 rank"),
        ({}, 0, r"rank: got 0 with dim 6"),
        ({"target": jnp.ones((5, 6))}, 2, r"weights, target: got shapes .*\(5, 6\)"),
        ({"weights": (jnp.ones((6, 6)), jnp.ones((5, 6)))}, 2, r"wanted all \(6, 6\)"),
    ],
)
def test_bad_input(change, rank, message):
    arguments = {"weights": (jnp.eye(6), jnp.eye(6)), "target": jnp.eye(6), **change}
    with pytest.raises(ValueError, match=message):
        lr.frame(**arguments, rank=rank)


# Many reduced runs at once


@pytest.mark.parametrize("depth", [2, 4])
def test_reduced_lanes_are_reduced_runs(depth, dtype):
    """Each lane against plain NumPy descent from its own scales, step size and decays."""
    rng, steps = np.random.default_rng(0), np.array([0, 7, 40])
    targets = rng.normal(size=(5, 3, 3)) / 2
    scales, eta = rng.uniform(0.2, 0.8, (5, depth)), rng.uniform(0.02, 0.1, 5)
    for decay in (rng.uniform(0, 0.1, 5), rng.uniform(0, 0.1, (5, depth))):
        run = lr.subspace.reduced_lanes(
            jnp.asarray(targets),
            jnp.asarray(scales),
            jnp.asarray(eta),
            jnp.asarray(decay),
            steps,
        )
        for lane in range(5):
            expected = oracles.descend(
                [eps * np.eye(3) for eps in scales[lane]],
                oracles.sum_slope(targets[lane]),
                eta[lane],
                np.broadcast_to(decay[lane], depth),
                steps.tolist(),
            )
            found = tuple(np.asarray(layer[lane]) for layer in run.records)
            assert found[0].dtype == dtype
            assert_close(found, tuple(expected), steps=40, size=3)
            last = tuple(layer[-1] for layer in found)
            assert_close(tuple(np.asarray(W[lane]) for W in run.params), last)
    assert run.diverged_at.tolist() == [-1] * 5


def test_reduced_lanes_in_a_sweep_equal_a_sweep_of_reduced_runs():
    target = jnp.diag(jnp.array([1.0, 0.5]))
    steps, points = np.array([0, 30]), lr.product(eps=np.linspace(0.2, 1.0, 9))

    def batched(eps):
        copies = jnp.broadcast_to(target[None], (len(eps), 2, 2))
        scales = jnp.broadcast_to(eps[:, None], (len(eps), 3))
        run = lr.subspace.reduced_lanes(copies, scales, jnp.full_like(eps, 0.1), 0 * eps, steps)
        return {"layers": jnp.stack(run.records, axis=1)}

    def single(eps):
        run = lr.reduced_dynamics(target, jnp.full(3, eps), 0.1, 0.0, steps)
        return {"layers": jnp.stack(run.records)}

    found = lr.sweep(batched, points, batched=True, lanes=4)["layers"].values
    expected = lr.sweep(single, points)["layers"].values
    assert_close(found, expected, steps=30, size=2)


def test_the_layout_puts_the_runs_last():
    """No array of the loop has the runs first: that is what makes it fast."""
    ones = jnp.ones(64)

    def final(targets):
        scales = jnp.ones((64, 3))
        return lr.subspace.reduced_lanes(targets, scales, ones, 0 * ones, np.array([5])).params

    jaxpr = str(jax.make_jaxpr(final)(jnp.ones((64, 6, 6))))
    _, loop = jaxpr.split("scan[")
    body = loop.split("while[")[1]
    assert "[6,6,64]" in body
    assert "[64,6,6]" not in body.split("]\n", 1)[0]
    assert "dot_general" not in body
