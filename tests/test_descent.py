import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lrdyn as lr
from tests import oracles
from tests.oracles import assert_close, double

CURVATURE = {"a": jnp.array([0.5, 2.0]), "b": (jnp.array(1.0), [jnp.full((2, 2), 0.25)])}
START = jax.tree.map(jnp.ones_like, CURVATURE)
STEPS = np.array([0, 1, 5, 12])


def quadratic(x):
    """1/2 sum c x^2 over a dict of a vector, a tuple with a scalar and a list with a matrix."""
    terms = jax.tree.map(lambda c, v: jnp.sum(c.astype(v.dtype) * v**2), CURVATURE, x)
    return 0.5 * jnp.stack(jax.tree.leaves(terms)).sum()


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(double(tree))])


# Which steps ----------------------------------------------------------------------------------


@given(st.integers(1, 10**6), st.integers(2, 60))
def test_recorded_steps(steps, at_most):
    chosen = lr.recorded_steps(steps, at_most)
    assert (chosen[0], chosen[-1]) == (0, steps)
    assert len(chosen) == min(at_most, steps + 1)
    assert np.all(np.diff(chosen) >= 1)
    assert np.ptp(np.diff(chosen)) <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), r"steps: got 0, wanted at least 1"),
        ((-3,), r"steps: got -3, wanted at least 1"),
        ((10, 1), r"at_most: got 1, wanted at least 2"),
    ],
)
def test_recorded_steps_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        lr.recorded_steps(*arguments)


def test_iterate_tells_the_step_its_number():
    final, sums = lr.descent.iterate(
        lambda t, x: x + t, jnp.asarray(0), np.array([0, 1, 4, 9]), lambda x: x
    )
    assert sums.tolist() == [0, 0, 6, 36]
    assert int(final) == 36


def test_iterate_need_not_record_the_start():
    assert lr.descent.iterate(lambda t, x: 2 * x, jnp.asarray(1), np.array([3]), lambda x: x)[
        1
    ].tolist() == [8]


def test_array_of_times_is_a_loop_of_times():
    def run(steps):
        return lr.simulate(quadratic, START, lr.gradient_descent(0.1), steps)

    together = run(STEPS).records
    for i, t in enumerate(STEPS):
        alone = run(STEPS[i : i + 1])
        assert_close(jax.tree.map(lambda x, i=i: x[i], together), alone.params, steps=int(t))


def test_recorder_runs_at_the_recorded_steps_only():
    seen = []

    def record(x):
        jax.debug.callback(lambda a: seen.append(float(a)), x)
        return x

    run = lr.simulate(lambda x: 0.5 * x**2, jnp.array(1.0), optax.sgd(0.5), STEPS, record=record)
    jax.effects_barrier()
    assert seen == [0.5**t for t in STEPS.tolist()] == run.records.tolist()


def test_recorder_may_return_any_tree():
    def record(x):
        return {"loss": quadratic(x), "x": (x["a"], x["b"][0])}

    records = lr.simulate(quadratic, START, optax.sgd(0.1), STEPS, record=record).records
    assert jax.tree.map(jnp.shape, records) == {"loss": (4,), "x": ((4, 2), (4,))}


# Optimisers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "optimizer", "size"),
    [
        ("sgd", optax.sgd(0.1), 1),
        ("sgd", lr.gradient_descent(0.1), 1),
        ("momentum", optax.sgd(0.1, momentum=0.9), 1),
        ("adam", optax.adam(0.1), 1000**2),  # 1 - 0.999^t loses three digits
    ],
    ids=["sgd", "gradient_descent", "momentum", "adam"],
)
def test_any_tree_and_any_optimiser(kind, optimizer, size, dtype):
    start = jax.tree.map(lambda x: jnp.asarray(x, dtype), START)
    run = lr.simulate(quadratic, start, optimizer, STEPS)
    c = flat(CURVATURE)
    expected = oracles.optimise(kind, flat(start), lambda x: c * x, 0.1, 12)
    assert {leaf.dtype for leaf in jax.tree.leaves(run.params)} == {np.dtype(dtype)}
    assert_close(jnp.asarray(flat(run.params), dtype), expected, steps=12, size=size, scale=1)
    assert_close(jax.tree.map(lambda x: x[-1], run.records), run.params)


def test_decay_per_layer_reaches_every_leaf_of_a_layer(dtype):
    """W_l <- (1 - eta lambda_l) W_l - eta grad_l, layers being trees themselves."""
    layers = tuple({"kernel": jnp.full((2, 2), 3.0), "bias": jnp.ones(2)} for _ in range(2))
    slopes = jax.tree.map(lambda x: 2 * x, layers)
    rule = lr.gradient_descent(0.1, jnp.array([0.5, 1.0]))
    updates, _ = rule.update(slopes, rule.init(layers), layers)
    new = optax.apply_updates(layers, updates)
    expected = tuple(
        jax.tree.map(lambda w, decay=decay: (1 - 0.1 * decay) * w - 0.1 * 2 * w, double(layer))
        for decay, layer in zip((0.5, 1.0), layers, strict=True)
    )
    assert_close(new, expected)


def test_one_decay_serves_all_layers():
    W, Phi, _ = oracles.problem()

    def run(decay):
        return lr.simulate(
            lambda w: lr.factorization_loss(w, Phi), W, lr.gradient_descent(0.1, decay), STEPS
        )

    assert_close(run(0.3).params, run(jnp.full(3, 0.3)).params, steps=12, size=9)


def test_decays_must_match_the_layers():
    rule, layers = lr.gradient_descent(0.1, jnp.ones(3)), (jnp.ones(1), jnp.ones(1))
    with pytest.raises(ValueError, match=r"3.*2"):
        rule.update(layers, rule.init(layers), layers)


# Tracing --------------------------------------------------------------------------------------


def test_steps_rates_and_decays_do_not_recompile():
    traces = []

    @jax.jit
    def run(steps, eta, decay):
        traces.append(steps)
        return lr.simulate(quadratic, START, lr.gradient_descent(eta, decay), steps).params

    eager = lr.simulate(quadratic, START, lr.gradient_descent(0.3, 0.2), np.array([0, 7])).params
    run(jnp.array([0, 1]), 0.1, 0.0)
    run(jnp.array([0, 1000]), 0.2, 0.1)
    assert_close(run(jnp.array([0, 7]), 0.3, 0.2), eager, steps=7)
    assert len(traces) == 1


def test_batch_is_a_loop():
    rates = jnp.array([0.1, 0.5, 0.9])

    def run(eta):
        return lr.simulate(quadratic, START, lr.gradient_descent(eta), STEPS)

    batch = jax.vmap(run)(rates)
    for i, eta in enumerate(rates):
        assert_close(jax.tree.map(lambda x, i=i: x[i], batch.records), run(eta).records, steps=12)


# Divergence -----------------------------------------------------------------------------------


def parabola(eta, steps, start=1.0):
    """w <- (1 - eta) w: the loss falls for eta < 2 and grows by (1 - eta)^2 a step beyond."""
    return lr.simulate(
        lambda w: 0.5 * w**2, jnp.asarray(start), lr.gradient_descent(eta), np.array([0, steps])
    )


def first_lost_step(eta, dtype):
    return math.floor(-math.log(np.finfo(dtype).eps) / math.log((1 - eta) ** 2)) + 1


@pytest.mark.parametrize("start", [1.0, 1e-6, 1e6])
def test_divergence_is_reported_with_its_step(start, dtype):
    assert int(parabola(3.1, 200, start).diverged_at) == first_lost_step(3.1, dtype)


def test_divergence_at_the_last_step_counts_and_beyond_it_does_not():
    lost = first_lost_step(3.1, float)
    assert int(parabola(3.1, lost).diverged_at) == lost
    assert int(parabola(3.1, lost - 1).diverged_at) == -1


def test_rise_that_keeps_its_digits_is_no_divergence():
    assert int(parabola(2.0, 100).diverged_at) == -1
    assert int(parabola(2.1, 10).diverged_at) == -1


def test_nan_is_divergence():
    """x - 1 each step, so that sqrt(x) is NaN from step 3 on."""

    def loss(x):
        return jnp.sqrt(x) + 1

    step_down = optax.stateless(lambda g, _: jax.tree.map(lambda x: -jnp.ones_like(x), g))
    assert int(lr.simulate(loss, jnp.array(2.5), step_down, np.array([0, 9])).diverged_at) == 3


def test_divergence_leaves_the_neighbours_alone():
    rates = jnp.array([0.5, 3.1, 0.1])
    batch = jax.vmap(lambda eta: parabola(eta, 2000))(rates)
    assert batch.diverged_at.tolist() == [-1, first_lost_step(3.1, float), -1]
    assert not np.isfinite(batch.params[1])
    for i in (0, 2):
        assert_close(batch.records[i], parabola(rates[i], 2000).records, steps=2000)


def test_loss_may_be_negative():
    run = lr.simulate(
        lambda w: 0.5 * w**2 - 1, jnp.array(1.0), lr.gradient_descent(0.5), np.array([0, 9])
    )
    assert int(run.diverged_at) == -1


def test_start_at_the_minimum_is_no_divergence():
    """The loss starts at 0 and decay makes it rise."""
    run = lr.simulate(
        lambda w: 0.5 * (w - 1) ** 2,
        jnp.array(1.0),
        lr.gradient_descent(0.5, 0.1),
        np.array([0, 9]),
    )
    assert int(run.diverged_at) == -1


# Until a tolerance -----------------------------------------------------------------------------


def bowl(w):
    return 0.5 * jnp.sum(w**2)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-6, 0.7])
def test_until_stops_at_the_first_look_below_the_tolerance(tolerance):
    """The loss is multiplied by .81 at every step."""
    run = lr.descent.simulate_until(
        bowl, jnp.ones(2), lr.gradient_descent(0.1), tolerance, check_every=3, max_steps=300
    )
    needed = 0 if tolerance > 1 else int(np.ceil(np.log(tolerance) / np.log(0.81)))
    assert int(run.steps) == 3 * -(-needed // 3)
    assert bool(run.converged)
    assert float(run.loss) == pytest.approx(0.81 ** int(run.steps))
    oracles.assert_close(run.params, 0.9 ** int(run.steps) * np.ones(2), steps=int(run.steps))


def test_until_takes_no_step_where_there_is_nothing_to_do():
    run = lr.descent.simulate_until(
        bowl, jnp.zeros(2), lr.gradient_descent(0.1), 0.0, check_every=1, max_steps=5
    )
    assert (int(run.steps), bool(run.converged)) == (0, True)


@pytest.mark.parametrize(("eta", "steps"), [(1e-6, 20), (3.0, 20), (1e200, 10)])
def test_until_gives_up(eta, steps):
    """Too slow, growing, and beyond all numbers."""
    run = lr.descent.simulate_until(
        bowl, jnp.ones(2), lr.gradient_descent(eta), 1e-9, check_every=10, max_steps=20
    )
    assert (int(run.steps), bool(run.converged)) == (steps, False)


@pytest.mark.parametrize(("every", "most"), [(0, 10), (3, 10), (5, 0)])
def test_until_refuses(every, most, unchecked):
    with pytest.raises(ValueError, match=f"max_steps: got {most}, wanted a multiple of {every}"):
        lr.descent.simulate_until(
            bowl, jnp.ones(1), lr.gradient_descent(1.0), 0.1, check_every=every, max_steps=most
        )


# Many at once ----------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [lr.gradient_descent, optax.adam])
def test_lanes_are_the_same_as_one_by_one(optimizer):
    steps = np.array([0, 3, 10])
    rates, targets = jnp.array([0.05, 0.1, 0.2]), jnp.arange(3.0)

    def problem(one):
        rate, target = one
        return (lambda w: jnp.sum((w["a"] ** 2 - target) ** 2)), start, optimizer(rate)

    start = {"a": jnp.array([0.5, 1.0])}
    found = lr.descent.simulate_lanes(
        problem, (rates, targets), steps, record=lambda w: w["a"].sum()
    )
    for lane in range(3):
        loss, _, rule = problem((rates[lane], targets[lane]))
        alone = lr.simulate(loss, start, rule, steps, record=lambda w: w["a"].sum())
        oracles.assert_close(found.records[lane], np.asarray(alone.records), steps=10)
        oracles.assert_close(found.params["a"][lane], np.asarray(alone.params["a"]), steps=10)
        assert int(found.diverged_at[lane]) == int(alone.diverged_at)


def test_a_lane_that_diverges_is_marked_alone():
    def problem(rate):
        return bowl, jnp.ones(1), lr.gradient_descent(rate)

    run = lr.descent.simulate_lanes(problem, jnp.array([0.1, 1e9, 0.1]), np.array([0, 50]))
    assert run.diverged_at.tolist()[::2] == [-1, -1]
    assert int(run.diverged_at[1]) == 1
