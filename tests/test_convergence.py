"""Curvatures, numbers of steps and bounds of Theorem 1, against descents and Hessians in NumPy."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from lrdyn.theorem1 import convergence, setting
from tests import oracles
from tests.test_landscape import differences

CLOSE = 1e-8
"""From here on singular values are told apart."""


# Curvature -----------------------------------------------------------------------------------


def minimum(Phi, rank, decay):
    """Balanced layers at the global minimum."""
    left, values, right = np.linalg.svd(Phi, full_matrices=False)
    root = np.sqrt(np.maximum(values[:rank] - decay, 0.0))
    return root[:, None] * right[:rank], left[:, :rank] * root


def extremes(spectrum):
    """Least eigenvalue that is not 0, and the largest; the minimum has no negative one."""
    scale = abs(spectrum).max()
    assert spectrum.min() > -1e-12 * scale
    return spectrum[spectrum > 1e-9 * scale].min(), spectrum.max()


@pytest.mark.parametrize(
    ("shape", "rank", "values", "decay"),
    [
        ((5, 4), 2, (1.0, 0.8, 0.7, 0.5), 0.0),  # sigma_q - sigma_{q+1}
        ((5, 4), 2, (1.0, 0.8, 0.3, 0.1), 0.15),  # 2 lambda
        ((5, 4), 2, (1.0, 0.8, 0.3, 0.1), 0.75),  # 2 (sigma_q - lambda)
        ((4, 4), 3, (1.0, 0.8, 0.6, 0.5), 0.65),  # lambda - sigma_{q+1}
        ((4, 4), 3, (1.0, 0.8, 0.6, 0.5), 1.2),  # q = 0
        ((3, 3), 3, (1.0, 0.8, 0.6), 0.0),  # q = k = d: no sigma_{q+1}
        ((3, 5), 3, (1.0, 0.8, 0.6), 0.0),  # q = k < d: sigma_{q+1} is 0
        ((3, 3), 3, (1.0, 0.8, 0.6), 0.05),
        ((4, 3), 2, (1.0, 0.8, 0.8), 0.3),  # a tie
        ((4, 4), 2, (0.8, 0.8, 0.8, 0.1), 0.0),
        ((4, 4), 2, (1.0, 0.5, 0.0, 0.0), 0.0),  # rank Phi = r
        ((2, 2), 1, (1.0, 0.1), 0.9),  # mu_max = 2 lambda
        ((2, 2), 1, (1.0, 0.1), 0.1),  # mu_max = 2 (sigma_1 - lambda)
        ((1, 1), 1, (1.0,), 0.2),
        ((1, 4), 1, (1.0,), 0.0),
    ],
)
def test_the_curvature_is_that_of_the_hessian(shape, rank, values, decay):
    Phi = oracles.rotated(0, shape, values)
    first, last = minimum(Phi, rank, decay)
    point = np.concatenate([first.ravel(), last.ravel()])
    least, largest = extremes(np.linalg.eigvalsh(differences(point, Phi, rank, decay)))
    found = convergence.curvature_at_minimum(np.array(values), rank, shape, decay, close=CLOSE)
    np.testing.assert_allclose(found, (least, largest), rtol=1e-11)


def autoencoder_slope(x, X, width, decay):
    """Gradient by hand, of all entries of encoder and decoder in a row."""
    d = len(X)
    encoder, decoder = x[: width * d].reshape(width, d), x[width * d :].reshape(d, width)
    rest = (decoder @ encoder - np.eye(d)) @ X @ X.T
    slopes = decoder.T @ rest + decay * encoder, rest @ encoder.T + decay * decoder
    return 2 * np.concatenate([G.ravel() for G in slopes])


def autoencoder_differences(x, X, width, decay):
    """Hessian: the gradient is cubic, so that the five-point rule with step 1 is exact."""
    g = partial(autoencoder_slope, X=X, width=width, decay=decay)
    rows = [
        (8 * (g(x + e) - g(x - e)) - (g(x + 2 * e) - g(x - 2 * e))) / 12 for e in np.eye(len(x))
    ]
    return np.array(rows)


@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("decay", [0.0, 0.05, 0.3, 0.6, 1.2])
def test_the_curvature_of_an_autoencoder_is_that_of_the_hessian(width, decay):
    values = np.array([1.0, 0.8, 0.7, 0.5])
    X = oracles.rotated(0, (4, 6), values)
    left, found, _ = np.linalg.svd(X, full_matrices=False)
    decoder = left[:, :width] * np.sqrt(np.maximum(1 - decay / found[:width] ** 2, 0.0))
    point = np.concatenate([decoder.T.ravel(), decoder.ravel()])
    least, largest = extremes(np.linalg.eigvalsh(autoencoder_differences(point, X, width, decay)))
    curvature = convergence.autoencoder_curvature(values, width, decay, close=CLOSE)
    np.testing.assert_allclose(curvature, (least, largest), rtol=1e-10)


@pytest.mark.parametrize(
    ("rank", "values", "decay"),
    [(2, (1.0, 0.5, 0.1), 0.5), (2, (1.0, 0.0, 0.0), 0.0), (2, (1.0, 0.5, 0.1), 1.0)],
)
def test_a_minimum_without_curvature_takes_for_ever(rank, values, decay):
    values, start = np.array(values), start_of(*oracles.normal(0, (rank, 3), (3, rank)))
    found = convergence.curvature_at_minimum(values, rank, (3, 3), decay, close=CLOSE)
    assert found.least == 0
    small = convergence.Start(*(1e-2 * array for array in start))
    steps = convergence.steps_to_arrive(small, values, (3, 3), decay, 0.1, 1e-6, close=CLOSE)
    assert steps == np.inf
    squares = convergence.autoencoder_curvature(np.sqrt(values), rank, decay, close=CLOSE)
    assert squares.least == 0


# Steps ---------------------------------------------------------------------------------------


def start_of(first, last):
    """A start in the singular bases of a diagonal target."""
    n = min(first.shape[1], len(last))
    return convergence.Start((last[:n] + first[:, :n].T) / 2, first @ first.T, last.T @ last)


def diagonal(shape, values):
    Phi = np.zeros(shape)
    np.fill_diagonal(Phi, values)
    return Phi


def settings(seed, count, *, zero):
    """Random shapes, targets with ties and zeros, decays, starts and steps."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        k, d = rng.integers(1, 6, 2)
        n = min(k, d)
        rank = int(rng.integers(1, n + 1))
        values = np.sort(np.append(rng.uniform(0.3, 0.9, n - 1), 1.0))[::-1]
        if rank < n and rng.random() < 0.3:
            values[rank] = values[rank - 1]
        decay = 0.0 if zero else 10 ** rng.uniform(-1.3, 0.1)
        scale = 10 ** rng.uniform(-3, 0.3)
        first, last = rng.normal(size=(rank, d)), rng.normal(size=(k, rank))
        rate = 10 ** rng.uniform(-1, 0)
        yield values, scale * first, scale * last * 10 ** -rng.uniform(0, 0.5), decay, rate


def descend(Phi, first, last, decay, rate, steps):
    slope = oracles.sum_slope(Phi)
    for _ in range(steps):
        g, h = oracles.gradients((first, last), slope)
        first, last = (1 - rate * decay) * first - rate * g, (1 - rate * decay) * last - rate * h
    return first, last


def value_of(P, Phi, first, last, decay):
    return ((P - Phi) ** 2).sum() / 2 + decay / 2 * ((first**2).sum() + (last**2).sum())


@pytest.mark.parametrize("zero", [False, True])
def test_descent_has_arrived_after_the_number_of_steps(zero):
    """At the minimum, ties and zeros too; after a 12th of the number most have not."""
    early, runs = 0, 0
    for values, first, last, decay, rate in settings(0, 60, zero=zero):
        shape, rank, tolerance = (len(last), first.shape[1]), len(first), 1e-7
        start, Phi = start_of(first, last), diagonal(shape, values)
        steps = convergence.steps_to_arrive(
            start, values, shape, decay, rate, tolerance, close=CLOSE
        )
        if steps is None or steps > 600:
            continue
        runs += 1
        kept = np.arange(len(values)) < rank
        shrunk = np.where(kept, np.maximum(values - decay, 0.0), 0.0)
        best = np.sum(np.where(shrunk > 0, decay * values - decay**2 / 2, values**2 / 2))
        for share, bound in ((12, np.inf), (1, tolerance)):
            end = descend(Phi, first, last, decay, rate, int(np.ceil(steps / share)))
            excess = value_of(end[1] @ end[0], Phi, *end, decay) - best
            # The loss is quadratic in the distance, with a curvature of 1 or so.
            assert excess <= bound**2 + 1e-15
            early += share > 1 and excess > tolerance**2 + 1e-15
    assert runs > 9
    assert early > 0.9 * runs


@pytest.mark.parametrize("smaller", [10.0, 1000.0])
def test_a_smaller_start_waits_for_its_growth(smaller):
    """Factors of one mode grow by 1 + eta (sigma - lambda) a step until they have their size."""
    decay, rate = 0.1, 0.05

    def of_layers(start):
        return convergence.steps_to_arrive(start, np.ones(1), (1, 1), decay, rate, 1e-6)

    def of_autoencoder(start):
        return convergence.autoencoder_steps(start, np.ones(1), decay, rate, 1e-6)

    def start(scale):
        factor = np.full((1, 1), scale)
        return convergence.Start(factor, factor**2, factor**2)

    for steps, growth in ((of_layers, 1 - decay), (of_autoencoder, 2 * (1 - decay))):
        late, early = steps(start(1e-2 / smaller)), steps(start(1e-2))
        assert late is not None
        assert early is not None
        waited = late - early
        expected = convergence.SAFETY * np.log(smaller) / np.log1p(rate * growth)
        assert waited == pytest.approx(expected, rel=1e-2)


def test_an_autoencoder_has_arrived_after_the_number_of_steps():
    runs = 0
    for values, first, last, decay, rate in settings(1, 90, zero=False):
        d, width = len(values), len(first)
        # Squares apart, of which ties make a degenerate minimum here.
        values = values - 0.02 * np.arange(d)
        first, last = first[:, :d], last[:d]
        steps = convergence.autoencoder_steps(
            start_of(first, last), values, decay, rate, 1e-9, close=CLOSE
        )
        if steps is None or steps > 600:
            continue
        runs += 1
        point, X = np.concatenate([first.ravel(), last.ravel()]), np.diag(values)
        for _ in range(int(np.ceil(steps))):
            point = point - rate * autoencoder_slope(point, X, width, decay)
        first, last = point[: width * d].reshape(width, d), point[width * d :].reshape(d, width)
        kept = np.arange(d) < width
        gains = np.where(kept, np.maximum(1 - decay / values**2, 0.0), 0.0)
        np.testing.assert_allclose(last @ first, np.diag(gains), atol=1e-8)
        np.testing.assert_allclose(first, last.T, atol=1e-8)
    assert runs > 9


def test_the_sharpness_bounds_the_hessian_along_a_descent():
    """With small steps, from starts of every size and balance."""
    share = 0.0
    for values, first, last, decay, _ in settings(2, 15, zero=True):
        decay = 0.1 * decay
        Phi = diagonal((len(last), first.shape[1]), values)
        bound = convergence.sharpness(start_of(first, last), 1.0, decay)
        for _ in range(8):
            point = np.concatenate([first.ravel(), last.ravel()])
            hessian = differences(point, Phi, len(first), decay)
            share = max(share, np.linalg.norm(hessian, 2) / bound)
            first, last = descend(Phi, first, last, decay, 0.02, 12)
    assert 0.4 < share < 1


def test_where_theory_has_no_number_it_says_so():
    values, shape = np.array([1.0, 0.8, 0.5]), (3, 3)
    first, last = oracles.normal(0, (2, 3), (3, 2))

    def steps(scale, decay, rate, unbalance=1.0):
        start = start_of(scale * first, scale * unbalance * last)
        return convergence.steps_to_arrive(start, values, shape, decay, rate, 1e-9, close=CLOSE)

    assert steps(0.1, 0.1, 0.1) is not None
    assert steps(0.1, 0.1, 0.1, 3.0) is not None
    assert steps(1.0, 0.1, 1.2) is None  # beyond 2 / mu_max
    assert steps(3.0, 0.1, 0.1) is None  # stable at the end, not at the start
    assert steps(0.1, 0.0, 0.1) is not None
    assert steps(0.4, 0.0, 0.1, 2.0) is None  # unbalanced for good
    assert steps(0.4, 0.01, 0.1, 2.0) is not None
    # A start without the mode that must grow stays at the saddle.
    assert steps(0.0, 0.1, 0.1) == np.inf
    start = start_of(0.1 * first, 0.1 * last)
    assert convergence.autoencoder_steps(start, values, 0.0, 0.1, 1e-9) is None
    assert convergence.autoencoder_steps(start, values, 0.1, 0.6, 1e-9) is None
    assert convergence.autoencoder_steps(start, values, 0.1, 0.1, 1e-9) is not None
    large = start_of(3.0 * first, 3.0 * last)  # stable at the end, not at the start
    assert convergence.autoencoder_steps(large, values, 0.1, 0.1, 1e-9) is None


def test_a_mode_that_rounding_drowns_has_no_number_of_steps():
    """The second mode is 1e-9 when the first has grown, and grows by 1e-10 at each step."""
    values, layers = np.array([2.5, 1.87]), 1e-12 * np.eye(2)
    start = convergence.Start(layers, layers @ layers, layers @ layers)
    steps = partial(convergence.steps_to_arrive, start, values, (2, 2), 1.62, 0.23, 1e-6)
    exact = steps()
    assert exact is not None
    assert 0 < exact < 2000
    assert steps(rounding=float(np.finfo("float64").eps)) == exact
    assert steps(rounding=float(np.finfo("float32").eps)) is None
    of_autoencoder = partial(
        convergence.autoencoder_steps, start, np.sqrt(values), 1.62, 0.11, 1e-6
    )
    assert of_autoencoder(rounding=float(np.finfo("float64").eps)) == of_autoencoder()
    assert of_autoencoder(rounding=float(np.finfo("float32").eps)) is None
    one = convergence.Start(layers[:, :1], np.zeros((1, 1)), np.zeros((1, 1)))
    alone = partial(convergence.steps_to_arrive, one, values, (2, 2), 1.62, 0.23, 1e-6)
    assert alone(rounding=1e-7) == alone()  # from nothing but itself a mode grows


@pytest.mark.parametrize("lost", [np.nan, np.inf])
def test_one_entry_that_is_lost_leaves_no_bound(lost):
    root, zero = np.eye(2), np.zeros((2, 2))
    wrong = zero.copy()
    wrong[0, 1] = lost
    end = convergence.End(root, root, 0.1 * root, zero, root)
    assert np.isfinite(convergence.distance_bound(end, 0.9 * root, 1))
    assert convergence.distance_bound(end._replace(last_gradient=wrong), 0.9 * root, 1) == np.inf
    assert convergence.distance_bound(end, 0.9 * root + wrong, 1) == np.inf


def test_a_large_mode_of_the_start_decides_what_rounding_drowns():
    """A step adds 2.5e-16 to a mode: less than a digit of 3, more than one of where it ends."""
    values, modes = np.array([2.5, 1.87]), np.diag([3.0, 1e-12])
    start = convergence.Start(modes, modes @ modes, modes @ modes)
    steps = partial(convergence.steps_to_arrive, start, values, (2, 2), 1.62, 1e-3, 1e-6)
    assert steps() is not None
    assert steps(rounding=float(np.finfo("float64").eps)) is None
    assert steps(rounding=float(np.finfo("float64").eps) / 5) == steps()


def test_a_slow_approach_at_the_edge_of_stability_is_counted():
    """There ``eta mu_max - 1`` decides, not ``1 - eta mu``: W_1 = -W_2 turns at every step."""
    first, decay, rate = np.full((1, 1), 1e-3), 1.5, 0.79
    values, start = np.ones(1), start_of(first, -first)
    steps = convergence.steps_to_arrive(start, values, (1, 1), decay, rate, 1e-9)
    assert steps is not None
    early = descend(np.ones((1, 1)), first, -first, decay, rate, int(steps / 3))
    assert abs(early[0]).item() > 1e-9 > 1e-3 * 0.975**steps


# Distance ------------------------------------------------------------------------------------


def end_of(weights, Phi, decay):
    slopes = [
        G + decay * W
        for G, W in zip(oracles.gradients(weights, oracles.sum_slope(Phi)), weights, strict=True)
    ]
    product = oracles.product(weights, Phi.shape[1])
    return convergence.End(weights[0], weights[-1], slopes[0], slopes[-1], product)


def balanced(values, shape, rank, decay, depth):
    """Balanced layers at the minimum of a diagonal target, and the singular values they keep."""
    kept = np.zeros(len(values))
    for i in range(rank):
        if values[i] > convergence.threshold(decay, depth):
            polynomial = np.zeros(2 * depth - 1)
            polynomial[0] += 1
            polynomial[depth] -= values[i]
            polynomial[-1] += decay
            roots = np.roots(polynomial)
            kept[i] = roots[abs(roots.imag) < 1e-9].real.max() ** depth
    sizes = (shape[1], *(rank,) * (depth - 1), shape[0])
    layers = zip(sizes[1:], sizes[:-1], strict=True)
    return [diagonal(size, kept[: min(size)] ** (1 / depth)) for size in layers], kept


def nearest(P, values, kept, rank):
    """The nearest minimiser, to first order: of a tied space the top part of P in it."""
    tied = abs(values - values[rank - 1]) < CLOSE
    best = diagonal(P.shape, np.where(tied, 0.0, kept))
    (at,) = np.nonzero(tied)
    block = P[np.ix_(at, at)]
    basis = np.linalg.eigh(block + block.T)[1][:, len(at) - int(np.sum(tied[:rank])) :]
    best[np.ix_(at, at)] = kept[rank - 1] * basis @ basis.T
    return best


@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("decay", [0.0, 1e-6, 0.02, 0.15])
@pytest.mark.parametrize(
    ("shape", "rank", "values"),
    [
        ((3, 3), 2, (1.0, 0.9, 0.6)),
        ((4, 3), 3, (1.0, 0.9, 0.05)),
        ((3, 4), 2, (1.0, 0.9, 0.9)),  # a tie
        ((3, 3), 1, (0.9, 0.9, 0.9)),
        ((4, 4), 2, (1.0, 0.2, 0.1, 0.0)),
    ],
)
def test_the_distance_from_the_minimiser_is_within_its_bound(shape, rank, values, decay, depth):
    """At points around it and on the way to it; the bound is no more than some times larger."""
    values, rng, ratios = np.array(values), np.random.default_rng(0), []
    Phi, (best, kept) = diagonal(shape, values), balanced(values, shape, rank, decay, depth)
    if decay == 0 and kept[rank - 1] < CLOSE:
        return
    for size in np.append(10 ** rng.uniform(-6, -4, 20), 10 ** rng.uniform(-4, -1, 20)):
        weights = [W + size * rng.normal(size=W.shape) for W in best]
        turn = np.linalg.qr(rng.normal(size=(rank, rank)))[0]
        weights[:2] = [turn @ weights[0], weights[1] @ turn.T]
        end = end_of(weights, Phi, decay)
        bound = convergence.distance_bound(end, Phi, rank, decay, depth, close=CLOSE)
        distance = np.linalg.norm(end.product - nearest(end.product, values, kept, rank))
        assert distance <= bound * (1 + 1e-9) + 1e-14
        ratios.append(bound / distance)
    assert np.median(ratios[:20]) < 300


def test_the_bound_of_two_layers_holds_anywhere():
    """Not only nearby: random points, without a tie."""
    rng, finite = np.random.default_rng(0), 0
    for _ in range(120):
        values = np.sort(rng.uniform(0, 1, 3))[::-1]
        decay, size = rng.choice([0.0, 0.01, 0.3]), 10 ** rng.uniform(-3, 0.3)
        rank = int(rng.integers(1, 4))
        best, kept = balanced(values, (3, 4), rank, decay, 2)
        weights = [W + size * rng.normal(size=W.shape) for W in best]
        end, Phi = end_of(weights, diagonal((3, 4), values), decay), diagonal((3, 4), values)
        bound = convergence.distance_bound(end, Phi, rank, decay)
        assert np.linalg.norm(end.product - diagonal((3, 4), kept)) <= bound * (1 + 1e-9)
        finite += np.isfinite(bound)
    assert finite > 50


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_saddles_have_no_bound(depth, decay):
    """However small the gradient: at the origin, with an index swapped, with one missing."""
    values, shape = np.array([1.0, 0.8, 0.5]), (3, 3)
    Phi, (best, _) = diagonal(shape, values), balanced(values, shape, 2, decay, depth)
    origin = [1e-13 * W for W in best]
    missing = [W * (np.arange(W.shape[-1]) < 1) for W in best]
    other, _ = balanced(values[[0, 2, 1]], shape, 2, decay, depth)
    swap = np.eye(3)[[0, 2, 1]]
    swapped = [other[0] @ swap, *other[1:-1], swap @ other[-1]]
    nothing = convergence.End(*end_of(best, Phi, decay)[:4], np.full(shape, np.nan))
    for weights in (origin, missing, swapped):
        end = end_of(weights, Phi, decay)
        assert max(abs(end.first_gradient).max(), abs(end.last_gradient).max()) < 1e-12
        assert convergence.distance_bound(end, Phi, 2, decay, depth, close=CLOSE) == np.inf
    assert convergence.distance_bound(nothing, Phi, 2, decay, depth) == np.inf
    there = end_of(best, Phi, decay)
    assert convergence.distance_bound(there, Phi, 2, decay, depth, close=CLOSE) < 1e-13


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_at_the_threshold_both_minima_cost_the_same(depth):
    edge = convergence.threshold(0.1, depth)
    _, kept = balanced(np.array([edge * (1 + 1e-12)]), (1, 1), 1, 0.1, depth)
    s = kept[0]
    cost = (s - edge) ** 2 / 2 + 0.1 * depth / 2 * s ** (2 / depth)
    assert abs(cost - edge**2 / 2) < 1e-10
    assert (s > 1e-3) == (depth > 2)


def test_the_sharpness_by_hand():
    """``3/2 z + Delta + sigma_1 + lambda``: z is the start's, or what it can grow to."""
    first, last, one = 4.0 * np.eye(2), np.eye(2), np.eye(2)
    start = convergence.Start(one, first, last)
    assert convergence.sharpness(start, 1.0, 0.2) == pytest.approx(1.5 * 5 + 3 + 1.2)
    assert convergence.sharpness(start, 7.2, 0.2) == pytest.approx(
        1.5 * (7 + np.hypot(7, 3)) + 3 + 7.4
    )


def test_a_distance_is_that_of_two_layers_unless_more_are_named():
    one = np.eye(2)
    end = convergence.End(one, one, 1e-6 * one, 1e-6 * one, one)
    found = convergence.distance_bound(end, 1.5 * one, 2, 0.5)
    assert found == convergence.distance_bound(end, 1.5 * one, 2, 0.5, depth=2)
    assert found != convergence.distance_bound(end, 1.5 * one, 2, 0.5, depth=3)


# By hand, at the edges of what a formula says -------------------------------------------------


def test_equal_values_are_a_tie_without_being_told_how_close_they_are():
    """A tie makes a manifold of minimisers and no slow direction: the next gap decides."""
    tied = convergence.curvature_at_minimum(np.array([1.0, 0.8, 0.8, 0.3]), 2, (4, 4), 0.3)
    assert tied == pytest.approx((0.2, 1.8))


@pytest.mark.parametrize("side", [-1, 1])
def test_a_gain_near_the_threshold_has_no_curvature_from_either_side(side):
    """Near counts ``|sigma^2 - lambda|``, whether the value is kept or not."""
    values, decay = np.array([2.0, 0.5]), 0.25 + 0.09 * side
    assert convergence.autoencoder_curvature(values, 2, decay, close=0.1).least == 0
    assert convergence.autoencoder_curvature(values, 2, decay, close=0.08).least > 0


BALANCED = 1e-2 * np.diag([3.0, 2.0])
"""Of a balanced start in the basis of the target: W_1 = W_2^T."""


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_the_number_of_steps_by_hand(rate):
    """Twice the wait of the slowest mode, and the approach at the rate of the least curvature."""
    square = BALANCED @ BALANCED
    start, decay, tolerance = convergence.Start(BALANCED, square, square), 0.3, 1e-5
    # Hessian: 2 (sigma_q - lambda), 2 lambda; sigma_1 + sigma_2.
    least, largest, end = min(2 * 0.7, 2 * decay), 1.4 + 1.0, 1.0 - decay
    approach = np.log(1 / tolerance) / -np.log(max(1 - rate * least, rate * largest - 1))
    wait = np.log(np.sqrt(end) / 0.02) / np.log(1 + rate * end)
    steps = convergence.steps_to_arrive(start, np.array([1.4, 1.0]), (2, 2), decay, rate, tolerance)
    assert steps == pytest.approx(2 * (wait + approach), rel=1e-12)


def test_the_number_of_steps_of_an_autoencoder_by_hand():
    """Gains end at ``1 - lambda / sigma^2``, and a mode grows by ``2 eta (sigma^2 - lambda)``."""
    square, values, decay = BALANCED @ BALANCED, np.sqrt([1.4, 1.0]), 0.3
    start = convergence.Start(BALANCED, square, square)
    # A step below 2 over 2 sigma_1^2 times the bound of target I: 3/2 z + 1 + lambda / sigma_1^2.
    bound = 2 * 1.4 * (1.5 * 2 * (1 - decay / 1.4) + 1 + decay / 1.4)
    steps = partial(convergence.autoencoder_steps, start, values, decay, tolerance=1e-5)
    assert steps(rate=2 / bound * 1.001) is None
    rate = 2 / bound * 0.999
    curvature = convergence.autoencoder_curvature(values, 2, decay)
    slowest = max(1 - rate * curvature.least, rate * curvature.largest - 1)
    wait = np.log(np.sqrt(1 - decay) / 0.02) / np.log(1 + 2 * rate * 0.7)
    expected = 2 * (wait + np.log(1e5) / -np.log(slowest))
    assert steps(rate=rate) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("rate", "slowest"), [(0.1, 0.95), (0.44, 0.78), (0.45, 0.8), (0.6, None), (3.0, None)]
)
def test_the_approach_is_that_of_the_slowest_eigenvalue(rate, slowest):
    """``c = max(1 - eta mu, eta mu_max - 1)``, with mu = 1/2 and mu_max = 4."""
    found = convergence._arrival_steps(7.0, convergence.Curvature(0.5, 4.0), rate, 1e3)
    expected = None if slowest is None else 2 * (7 + np.log(1e3) / -np.log(slowest))
    assert found == (expected if expected is None else pytest.approx(expected, rel=1e-12))


@pytest.mark.parametrize("decay", [0.5, 3.0])
@pytest.mark.parametrize("depth", [2, 3])
def test_where_nothing_is_kept_the_distance_is_the_product_itself(decay, depth):
    values, product = np.array([0.19, 0.11]), oracles.normal(3, (2, 2))[0]
    first, last, *gradients = oracles.normal(4, *[(2, 2)] * 4)
    end = convergence.End(first, last, gradients[0], gradients[1], product)
    found = convergence.distance_bound(end, np.diag(values), 2, decay, depth)
    assert found == pytest.approx(np.linalg.norm(product), rel=1e-12)


def kept_value(sigma, decay, depth):
    """The larger root of ``s + lambda s^{2/L - 1} = sigma``, by bisection from its least."""
    low, high = (decay * (1 - 2 / depth)) ** (depth / (2 * depth - 2)), sigma
    for _ in range(200):
        middle = (low + high) / 2
        below = middle + decay * middle ** (2 / depth - 1) < sigma
        low, high = (middle, high) if below else (low, middle)
    return low


@pytest.mark.parametrize(
    ("values", "rank", "decay", "depth"),
    [
        ((1.9, 1.1, 0.7, 0.2), 2, 0.0, 2),  # s_q over the gap
        ((1.9, 1.1, 0.7, 0.2), 2, 0.4, 2),
        ((1.9, 1.1, 0.3, 0.2), 2, 0.4, 2),  # the rest is below the threshold: a proximal map
        ((1.9, 1.1, 1.1, 0.2), 2, 0.0, 2),  # a tie, which has no gap of its own
        ((1.9, 1.1, 0.7, 0.2), 2, 0.05, 3),
        ((1.9, 1.1, 0.7, 0.2), 2, 0.1, 4),
        ((1.9, 0.9, 0.1, 0.05), 2, 0.3, 3),  # the slope of s(sigma) decides
        ((1.9, 0.9, 0.1, 0.05), 2, 0.2, 4),
    ],
)
def test_the_bound_of_the_distance_by_hand(values, rank, decay, depth):
    """A gradient inside and one across: the target is off by e, and the minimiser by C e."""
    shift, inside, across = 1e-6, 2e-5, 3e-5
    s = np.array([kept_value(v, decay, depth) for v in values[:rank]])
    root = s ** (1 / depth)
    first, last = np.zeros((rank, 4)), np.zeros((4, rank))
    first[:, :rank], last[:rank] = np.diag(root), np.diag(root)
    first_gradient, last_gradient = np.zeros((rank, 4)), np.zeros((4, rank))
    first_gradient[0, 0] = inside  # h = V^T W_1^T g_1 V has the one entry w_1 times it
    last_gradient[3, 1] = across  # o_L = s_2^{-1} w_2 times it
    product = np.diag([*s, shift, 0.0])
    error = np.hypot(root[0] * inside / (2 * s[-1]), root[1] * across / s[1])
    step = 1e-6
    slopes = [
        (kept_value(v + step, decay, depth) - kept_value(v - step, decay, depth)) / (2 * step)
        for v in values[:rank]
    ]
    gap = values[rank - 1] - values[rank]
    if depth == 2 and values[rank] <= decay:
        constant = 1.0
    elif depth == 2 and gap > 0:
        constant = max(1.0, (values[rank - 1] - decay + error) / (gap - 2 * error))
    else:
        shares = [
            kept / (value - other)
            for kept, value in zip(s, values, strict=False)
            for other in (*values[rank:], 0.0)
            if value - other > 1e-9
        ]
        constant = 2 * max(1.0, *slopes, *shares)
    end = convergence.End(first, last, first_gradient, last_gradient, product)
    found = convergence.distance_bound(end, np.diag(values), rank, decay, depth)
    assert found == pytest.approx(shift + constant * error, rel=1e-6)


def test_the_fields_of_a_start_are_in_the_singular_bases_of_the_target():
    """Turned with the target, layers have the modes that they had before."""
    first, last = oracles.normal(5, (2, 4), (5, 2))
    left, right = (np.linalg.qr(x)[0] for x in oracles.normal(6, (5, 5), (4, 4)))
    turned = (first @ right.T, left @ last)
    found = setting.start_fields(
        tuple(jnp.asarray(W) for W in turned), jnp.asarray(left[:, :4]), jnp.asarray(right.T)
    )
    for field, expected in zip(found, start_of(first, last), strict=True):
        np.testing.assert_allclose(field, expected, atol=1e-13)
