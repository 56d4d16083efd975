import math
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lrdyn as lr
from lrdyn.core.descent import iterate, mark_batched, simulate_lanes, simulate_until
from tests import oracles
from tests.oracles import assert_close, refuses

pytestmark = pytest.mark.usefixtures("strict")

CURVATURE = {"a": np.array([0.5, 2.0]), "b": (np.array(1.0), [np.full((2, 2), 0.25)])}
START = jax.tree.map(np.ones_like, CURVATURE)
STEPS = np.array([0, 1, 5, 12])


def quadratic(x):
    """1/2 sum c x^2 over a dict of a vector, a tuple with a scalar and a list with a matrix."""
    terms = jax.tree.map(lambda c, v: jnp.sum(c.astype(v.dtype) * v**2), CURVATURE, x)
    return 0.5 * jnp.stack(jax.tree.leaves(terms)).sum()


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


@jax.jit
def run(eta, decay, steps):
    return lr.simulate(quadratic, START, lr.gradient_descent(eta, decay), steps)


@given(st.integers(1, 10**6), st.integers(2, 60))
def test_recorded_steps(steps, at_most):
    chosen = lr.recorded_steps(steps, at_most)
    assert (chosen[0], chosen[-1]) == (0, steps)
    assert len(chosen) == min(at_most, steps + 1)
    assert np.all(np.diff(chosen) >= 1)
    assert np.ptp(np.diff(chosen)) <= 1


test_recorded_steps_refuses = refuses(
    (lambda: lr.recorded_steps(0), "steps: got 0, wanted 1 to 2147483647"),
    (lambda: lr.recorded_steps(-3), "steps: got -3, wanted 1 to 2147483647"),
    (lambda: lr.recorded_steps(10, 1), "at_most: got 1, wanted at least 2"),
)


def test_iterate_tells_the_step_its_number():
    """And need not record the start."""
    for steps, expected in (([0, 1, 4, 9], [0, 0, 6, 36]), ([3], [3])):
        final, sums = iterate(lambda t, x: x + t, jnp.asarray(0), np.array(steps), lambda x: x)
        assert (sums.tolist(), int(final)) == (expected, expected[-1])


def test_array_of_times_is_a_loop_of_times():
    together = run(0.1, 0.0, STEPS).records
    for i in range(len(STEPS)):
        alone = run(0.1, 0.0, STEPS[i : i + 1]).params
        assert_close(alone, jax.tree.map(lambda x, i=i: x[i], together), steps=int(STEPS[i]))


def test_recorder_runs_at_the_recorded_steps_only():
    seen = []

    def record(x):
        jax.debug.callback(lambda a: seen.append(float(a)), x)
        return x

    run = lr.simulate(lambda x: 0.5 * x**2, jnp.array(1.0), optax.sgd(0.5), STEPS, record=record)
    jax.effects_barrier()
    assert seen == [0.5**t for t in STEPS.tolist()] == run.records.tolist()


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
    with jax.numpy_dtype_promotion("standard" if kind == "adam" else "strict"):
        run = jax.jit(lambda start: lr.simulate(quadratic, start, optimizer, STEPS))(start)
    c = flat(CURVATURE)
    expected = oracles.optimise(kind, flat(START), lambda x: c * x, 0.1, 12)
    chex.assert_trees_all_equal_dtypes(run.params, start)
    assert_close(flat(run.params), expected, steps=12, size=size, scale=1)
    assert_close(jax.tree.map(lambda x: x[-1], run.records), run.params)


def test_decay_per_layer_reaches_every_leaf_of_a_layer(dtype):
    """W_l <- (1 - eta lambda_l) W_l - eta grad_l, layers being trees themselves."""
    layers = tuple({"kernel": np.full((2, 2), 3.0), "bias": np.ones(2)} for _ in range(2))

    @jax.jit
    def update(layers, slopes):
        rule = lr.gradient_descent(0.1, jnp.array([0.5, 1.0]))
        return optax.apply_updates(layers, rule.update(slopes, rule.init(layers), layers)[0])

    expected = tuple(
        jax.tree.map(lambda w, decay=decay: (1 - 0.1 * decay) * w - 0.1 * 2 * w, layer)
        for decay, layer in zip((0.5, 1.0), layers, strict=True)
    )
    assert_close(update(layers, jax.tree.map(lambda x: 2 * x, layers)), expected)


@jax.jit
def factorize(weights, target, decay):
    rule = lr.gradient_descent(0.1, decay)
    return lr.simulate(lambda w: lr.factorization_loss(w, target), weights, rule, STEPS).params


def test_one_decay_serves_all_layers():
    W, Phi, _ = oracles.problem()
    assert_close(factorize(W, Phi, 0.3), factorize(W, Phi, np.full(3, 0.3)), steps=12, size=9)


def test_decays_must_match_the_layers():
    rule, layers = lr.gradient_descent(0.1, jnp.ones(3)), (jnp.ones(1), jnp.ones(1))
    with pytest.raises(ValueError, match=r"3.*2"):
        rule.update(layers, rule.init(layers), layers)


def test_steps_rates_and_decays_do_not_recompile():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(steps, eta, decay):
        return lr.simulate(quadratic, START, lr.gradient_descent(eta, decay), steps).params

    eager = lr.simulate(quadratic, START, lr.gradient_descent(0.3, 0.2), np.array([0, 7])).params
    run(jnp.array([0, 1]), 0.1, 0.0)
    run(jnp.array([0, 1000]), 0.2, 0.1)
    assert_close(run(jnp.array([0, 7]), 0.3, 0.2), eager, steps=7)


def test_batch_is_a_loop():
    rates = np.array([0.1, 0.5, 0.9])
    batch = jax.jit(jax.vmap(run, (0, None, None)))(rates, 0.0, STEPS)
    alone = [run(eta, 0.0, STEPS).records for eta in rates]
    assert_close(batch.records, jax.tree.map(lambda *x: np.stack(x), *alone), steps=12)


@jax.jit
def parabola(eta, steps, start=1.0):
    """w <- (1 - eta) w: the loss falls for eta < 2 and grows by (1 - eta)^2 a step beyond."""
    times = jnp.stack([0 * steps, steps])
    rule = lr.gradient_descent(eta)
    return lr.simulate(lambda w: 0.5 * w**2, jnp.asarray(start), rule, times)


def first_lost_step(eta, dtype):
    return math.floor(-math.log(np.finfo(dtype).eps) / math.log((1 - eta) ** 2)) + 1


@pytest.mark.parametrize("start", [1.0, 1e-6, 1e6])
def test_divergence_is_reported_with_its_step(start, dtype):
    assert int(parabola(3.1, 200, start).diverged_at) == first_lost_step(3.1, dtype)


def test_divergence_counts_up_to_the_last_step_and_from_where_digits_are_lost():
    lost = first_lost_step(3.1, float)
    for eta, steps, expected in (
        (3.1, lost, lost),
        (3.1, lost - 1, -1),
        (2, 100, -1),
        (2.1, 10, -1),
    ):
        assert int(parabola(float(eta), steps).diverged_at) == expected


def test_divergence_leaves_the_neighbours_alone():
    rates = np.array([0.5, 3.1, 0.1])
    batch = jax.jit(jax.vmap(parabola, (0, None)))(rates, 2000)
    assert batch.diverged_at.tolist() == [-1, first_lost_step(3.1, float), -1]
    assert not np.isfinite(batch.params[1])
    for i in (0, 2):
        assert_close(batch.records[i], parabola(rates[i], 2000).records, steps=2000)


STEP_DOWN = optax.stateless(lambda g, _: jax.tree.map(lambda x: -jnp.ones_like(x), g))


@pytest.mark.parametrize(
    ("loss", "rule", "expected"),
    [
        (lambda w: jnp.sqrt(w + 1.5) + 1, STEP_DOWN, 3),
        (lambda w: 0.5 * w**2 - 1, lr.gradient_descent(0.5), -1),
        (lambda w: 0.5 * (w - 1) ** 2, lr.gradient_descent(0.5, 0.1), -1),
    ],
    ids=["NaN from step 3 on", "a negative loss", "it starts at 0 and decay makes it rise"],
)
def test_nan_is_divergence_and_small_losses_are_not(loss, rule, expected):
    run = lr.simulate(loss, jnp.array(1.0), rule, np.array([0, 9]))
    assert int(run.diverged_at) == expected


def bowl(w):
    return 0.5 * jnp.sum(w**2)


@partial(jax.jit, static_argnames=("check_every", "max_steps"))
def until(start, eta, tolerance, check_every, max_steps):
    rule, how = lr.gradient_descent(eta), {"check_every": check_every, "max_steps": max_steps}
    return simulate_until(bowl, start, rule, tolerance, **how)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-6, 0.7])
def test_until_stops_at_the_first_look_below_the_tolerance(tolerance):
    """The loss is multiplied by .81 at every step."""
    stopped = until(np.ones(2), 0.1, tolerance, 3, 300)
    needed, steps = int(np.ceil(np.log(tolerance) / np.log(0.81))), int(stopped.steps)
    assert steps == 3 * -(-needed // 3)
    assert bool(stopped.converged)
    assert float(stopped.loss) == pytest.approx(0.81**steps)
    assert_close(stopped.params, np.full(2, 0.9**steps), steps=steps)


@pytest.mark.parametrize(
    ("start", "eta", "steps"),
    [(0.0, 0.1, 0), (1.0, 1e-6, 20), (1.0, 3.0, 20), (1.0, 1e200, 10)],
    ids=["nothing to do", "too slow", "growing", "beyond all numbers"],
)
def test_until_stops_early_or_gives_up(start, eta, steps):
    stopped = until(np.full(2, start), eta, start * 1e-9, 10, 20)
    assert (int(stopped.steps), bool(stopped.converged)) == (steps, start == 0)


test_until_refuses = refuses(
    (lambda: until(np.ones(1), 1.0, 0.1, 0, 10), "check_every: got 0, wanted at least 1"),
    (lambda: until(np.ones(1), 1.0, 0.1, 3, 10), "max_steps: got 10, wanted a multiple of 3"),
    (lambda: until(np.ones(1), 1.0, 0.1, 5, 0), "max_steps: got 0, wanted at least 5"),
)


@pytest.mark.parametrize("optimizer", [lr.gradient_descent, optax.adam])
def test_lanes_are_the_same_as_one_by_one(optimizer):
    steps = np.array([0, 3, 10])
    rates, targets = jnp.array([0.05, 0.1, 0.2]), jnp.arange(3.0)
    start = {"a": jnp.array([0.5, 1.0])}

    def problem(one):
        rate, target = one
        return (lambda w: jnp.sum((w["a"] ** 2 - target) ** 2)), start, optimizer(rate)

    @jax.jit
    def alone(*one):
        return lr.simulate(*problem(one), steps, record=lambda w: w["a"].sum())

    with jax.numpy_dtype_promotion("standard" if optimizer is optax.adam else "strict"):
        found = simulate_lanes(problem, (rates, targets), steps, record=lambda w: w["a"].sum())
        expected = [alone(*one) for one in zip(rates, targets, strict=True)]
    expected = jax.tree.map(lambda *x: np.stack(x), *expected)
    assert_close((found.params, found.records), (expected.params, expected.records), steps=10)
    assert np.array_equal(found.diverged_at, expected.diverged_at)


@pytest.mark.parametrize(("count", "at_once"), [(64, 64), (65, 40), (130, 48), (1000, 64)])
def test_many_runs_are_taken_some_at_a_time_on_a_cpu(count, at_once):
    rates = jnp.linspace(0.05, 0.2, count)

    def problem(rate):
        return bowl, jnp.ones(2), lr.gradient_descent(rate)

    @jax.jit
    def run(rates):
        return simulate_lanes(problem, rates, np.array([0, 3, 7]), record=jnp.sum)

    text = run.lower(rates).as_text()
    assert f"tensor<2x{at_once}xf64>" in text  # the weights in the loop
    found, powers = run(rates), np.array([0, 3, 7])
    assert_close(found.records, 2 * (1 - np.asarray(rates))[:, None] ** powers, steps=7)
    assert_close(found.params[:, 0], (1 - np.asarray(rates)) ** 7, steps=7)
    assert found.diverged_at.tolist() == [-1] * count


test_arrays_of_unequal_numbers_of_runs_are_refused = refuses(
    (
        lambda: simulate_lanes(
            lambda data: (bowl, data[0], lr.gradient_descent(0.1)),
            (jnp.ones((3, 2)), jnp.ones(2)),
            np.array([1]),
        ),
        "data: got arrays with first axes",
    ),
    (
        lambda: simulate_lanes(
            lambda rate: (bowl, rate, lr.gradient_descent(0.1)), jnp.ones(()), np.array([1])
        ),
        "data: got arrays with first axes",
    ),
)


def test_a_lane_that_diverges_is_marked_alone():
    def problem(rate):
        return bowl, jnp.ones(1), lr.gradient_descent(rate)

    found = simulate_lanes(problem, jnp.array([0.1, 1e9, 0.1]), np.array([0, 50]))
    assert found.diverged_at.tolist() == [-1, 1, -1]


def test_a_loop_from_constants_is_batched_once():
    batched = []

    @jax.custom_batching.custom_vmap
    def added(total, x):
        return total + x

    @added.def_vmap
    def _(size, in_batched, total, x):
        batched.append(in_batched)
        return total + x, True

    def summed(tied, x):
        start = {"sum": jnp.zeros(()), "count": 0}
        start = mark_batched(start, x) if tied else start

        def step(state, _):
            return {"sum": added(state["sum"], x), "count": state["count"] + 1}, None

        return jax.lax.scan(step, start, length=3)[0]

    runs = jnp.array([1.0, jnp.nan, -2.0])
    plain = jax.vmap(partial(summed, False))(runs)
    assert batched == [[False, True], [True, True]]  # as a constant, and as one for each run
    batched.clear()
    tied = jax.vmap(partial(summed, True))(runs)
    assert batched == [[True, True]]
    chex.assert_trees_all_equal(plain, tied)


@jax.numpy_dtype_promotion("standard")
def test_a_large_state_is_not_kept_at_every_recorded_step():
    """Whichever array of it is the large one: only what is recorded is kept."""
    huge = 2**27

    def run(small, large):
        step = lambda t, state: (state[0] + t, 2 * state[1])  # noqa: E731
        return iterate(step, (small, large), np.array([0, 3, 4]), lambda s: s[0])

    shapes = jax.ShapeDtypeStruct((), "float64"), jax.ShapeDtypeStruct((huge,), "float64")
    assert f"[3,{huge}]" not in str(jax.make_jaxpr(run)(*shapes))
