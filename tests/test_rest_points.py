"""Rest points of three layers and more, against roots, Hessians and descents in NumPy."""

from fractions import Fraction
from itertools import combinations, product

import jax.numpy as jnp
import numpy as np
import pytest

from lrdyn.theorem1 import rest_points, shrinkage
from lrdyn.theorem1.rest_points_claims import BASINS, BasinsMeasured, BasinsTheory, modes_kept
from lrdyn.verification.stating.statement import Outcome
from tests import oracles

compiled = oracles.Compiled(rest_points)


def roots(sigma, decay, depth):
    """Positive roots w of w^{2L-2} - sigma w^{L-2} + lambda, increasing."""
    polynomial = np.zeros(2 * depth - 1)
    polynomial[0] += 1
    polynomial[depth] -= sigma
    polynomial[-1] += decay
    found = np.roots(polynomial)
    return np.sort(found[(abs(found.imag) < 1e-9) & (found.real > 1e-12)].real)


def cost(w, sigma, decay, depth):
    return (w**depth - sigma) ** 2 / 2 + decay * depth / 2 * w**2


def critical_points(values, rank, decay, depth):
    """All sets of modes with a choice of roots: pairs of an index and w."""
    each = [roots(sigma, decay, depth) for sigma in values]
    for size in range(rank + 1):
        for chosen in combinations(range(len(values)), size):
            for w in product(*(each[i] for i in chosen)):
                yield list(zip(chosen, w, strict=True))


def value(point, values, decay, depth):
    kept = dict(point)
    return sum(
        cost(kept[i], sigma, decay, depth) if i in kept else sigma**2 / 2
        for i, sigma in enumerate(values)
    )


def layers_at(point, shape, rank, depth):
    """Balanced layers at a critical point of a diagonal target."""
    widths = (shape[1], *(rank,) * (depth - 1), shape[0])
    layers = [np.zeros(size) for size in zip(widths[1:], widths[:-1], strict=True)]
    for unit, (mode, w) in enumerate(point):
        for number, layer in enumerate(layers):
            row = mode if number == depth - 1 else unit
            layer[row, mode if number == 0 else unit] = w
    return layers


def diagonal(shape, values):
    Phi = np.zeros(shape)
    np.fill_diagonal(Phi, values)
    return Phi


def gradients(layers, Phi, decay):
    slopes = oracles.gradients(layers, oracles.sum_slope(Phi))
    return [G + decay * W for G, W in zip(slopes, layers, strict=True)]


def hessian(layers, Phi, decay):
    """By differences of the gradient."""
    shapes, flat = [W.shape for W in layers], np.concatenate([W.ravel() for W in layers])
    ends = np.cumsum([W.size for W in layers])[:-1]

    def slope(x):
        parts = zip(np.split(x, ends), shapes, strict=True)
        return np.concatenate(
            [G.ravel() for G in gradients([W.reshape(s) for W, s in parts], Phi, decay)]
        )

    steps = 1e-3 * np.eye(len(flat))
    rows = [
        (8 * (slope(flat + e) - slope(flat - e)) - (slope(flat + 2 * e) - slope(flat - 2 * e)))
        / 12e-3
        for e in steps
    ]
    return (np.array(rows) + np.transpose(rows)) / 2


CASES = [
    ((3, 3), 2, (1.1, 0.8, 0.5), 0.05, 3),
    ((4, 3), 2, (1.1, 0.8, 0.5), 0.1, 3),
    ((2, 3), 2, (0.9, 0.6), 0.02, 4),
    ((3, 3), 1, (1.3, 0.9, 0.2), 0.1, 4),
    ((2, 2), 2, (0.9, 0.05), 0.1, 3),
    ((2, 2), 1, (0.3, 0.2), 0.4, 3),
    # The mode that is left out is close: it decides the least curvature.
    ((2, 2), 1, (2.0, 1.9), 0.1, 3),
]


@pytest.mark.parametrize(("shape", "rank", "values", "decay", "depth"), CASES)
def test_all_but_these_points_have_a_direction_down(shape, rank, values, decay, depth):
    """And the curvature at the best of them is that of the closed form."""
    Phi, local, least, away = diagonal(shape, values), [], np.inf, np.zeros(1)
    for point in critical_points(values, rank, decay, depth):
        layers = layers_at(point, shape, rank, depth)
        assert max(abs(G).max() for G in gradients(layers, Phi, decay)) < 1e-9
        spectrum = np.linalg.eigvalsh(hessian(layers, Phi, decay))
        leading = [i for i, _ in point] == list(range(len(point)))
        large = all(w == roots(values[i], decay, depth)[-1] for i, w in point)
        assert (spectrum[0] > -1e-7) == (leading and large)
        if leading and large:
            local.append(value(point, values, decay, depth))
        if leading and large and local[-1] < least:
            least, away = local[-1], spectrum[abs(spectrum) > 1e-6]
    losses = compiled.rest_losses(jnp.array(values), rank, decay, depth)
    local += [local[-1]] * (rank + 1 - len(local))  # what has no root is no other point
    oracles.assert_close(losses, np.array(local), size=20)
    shrunk = shrinkage.shrink(jnp.array(values), decay, depth)
    curvature = rest_points.deep_curvature(
        np.array(values), np.asarray(shrunk), rank, shape, decay, depth
    )
    np.testing.assert_allclose(curvature, (away[0], away[-1]), rtol=1e-8)


@pytest.mark.parametrize("depth", [3, 4, 7])
@pytest.mark.parametrize("w", [Fraction(1, 2), Fraction(5, 3)])
def test_a_double_root_is_no_local_minimum(depth, w):
    """In rational numbers: sigma has one root there, and the loss goes down below it."""
    value = w**depth * Fraction(2 * depth - 2, depth - 2)
    decay = w ** (2 * depth - 2) * Fraction(depth, depth - 2)

    def gradient(w):
        return w ** (2 * depth - 2) - value * w ** (depth - 2) + decay

    def loss(w):
        return (w**depth - value) ** 2 / 2 + decay * depth * w**2 / 2

    assert gradient(w) == 0
    places = [w * Fraction(k, 100) for k in range(1, 300) if k != 100]
    assert all(gradient(place) > 0 for place in places)
    assert loss(w * Fraction(99, 100)) < loss(w) < loss(w * Fraction(101, 100))


@pytest.mark.parametrize(
    ("rank", "values", "decay", "depth"),
    [
        *(case[1:] for case in CASES),
        (2, (1.0, 0.8, 0.75), 0.1, 3),  # exchanged for the next one
        (3, (1.0, 0.9, 0.51), 0.1, 3),  # the next one costs something
        (3, (1.0, 0.9, 0.33), 0.1, 3),  # more than nothing: 0 is the better minimum
        (2, (1.4, 0.2), 0.002, 3),  # the smaller root
        (1, (0.3,), 0.4, 3),  # no other critical point
        (1, (0.8, 0.8), 0.05, 4),  # a tie
    ],
)
def test_the_second_lowest_critical_value_is_that_of_all_sets_and_roots(rank, values, decay, depth):
    every = [value(p, values, decay, depth) for p in critical_points(values, rank, decay, depth)]
    expected = sorted(every)[1] if len(every) > 1 else np.inf
    found = compiled.next_critical_value(jnp.array(values), rank, decay, depth)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def loss_of(layers, Phi, decay):
    rest = oracles.product(layers, Phi.shape[1]) - Phi
    return (rest**2).sum() / 2 + decay / 2 * sum((W**2).sum() for W in layers)


@pytest.mark.parametrize(("shape", "rank", "values", "decay", "depth"), CASES)
def test_the_hessian_is_within_its_bound_wherever_the_loss_is(shape, rank, values, decay, depth):
    rng, share = np.random.default_rng(0), 0.0
    Phi, best = (
        diagonal(shape, values),
        min(
            critical_points(values, rank, decay, depth),
            key=lambda p: value(p, values, decay, depth),
        ),
    )
    for size in (0.01, 0.1, 0.5):
        layers = [W + size * rng.normal(size=W.shape) for W in layers_at(best, shape, rank, depth)]
        loss = loss_of(layers, Phi, decay)
        bound = compiled.sublevel_curvature(loss, jnp.array(values), rank, decay, depth)
        share = max(share, np.linalg.norm(hessian(layers, Phi, decay), 2) / float(bound))
    assert 0.05 < share < 1


@pytest.mark.parametrize(("shape", "rank", "values", "decay", "depth"), CASES[:4])
def test_descent_from_near_arrives_in_the_number_of_steps(shape, rank, values, decay, depth):
    """And not long before: the slowest mode, of the balance, is of second order in the product."""
    rng, tolerance = np.random.default_rng(1), 1e-7
    points = critical_points(values, rank, decay, depth)
    best = min(points, key=lambda p: value(p, values, decay, depth))
    Phi, minimum = diagonal(shape, values), layers_at(best, shape, rank, depth)
    layers = [W + 0.03 * rng.normal(size=W.shape) for W in minimum]
    target, loss = oracles.product(minimum, shape[1]), loss_of(layers, Phi, decay)
    sigma = jnp.array(values)
    assert loss < compiled.next_critical_value(sigma, rank, decay, depth)
    rate = 1 / float(compiled.sublevel_curvature(loss, sigma, rank, decay, depth))
    shrunk = np.asarray(shrinkage.shrink(sigma, decay, depth))
    curvature = rest_points.deep_curvature(np.array(values), shrunk, rank, shape, decay, depth)
    distance = float(np.linalg.norm(oracles.product(layers, shape[1]) - target))
    steps = int(rest_points.steps_to_approach(distance, curvature, rate, tolerance))
    errors, losses = [], []
    for _ in range(steps + 1):
        errors.append(np.linalg.norm(oracles.product(layers, shape[1]) - target))
        losses.append(loss_of(layers, Phi, decay))
        slopes = gradients(layers, Phi, decay)
        layers = [W - rate * G for W, G in zip(layers, slopes, strict=True)]
    assert errors[-1] < tolerance < errors[steps // 6]
    assert (np.diff(losses) < 1e-15).all()


@pytest.mark.parametrize("size", [1.0, 64.0])
def test_a_small_gradient_leaves_no_more_than_the_condition_says(size):
    """Near a local minimum, in every direction but that of the hidden bases; at two scales."""
    rng, depth, rank, ratios = np.random.default_rng(2), 3, 2, []
    values, decay = size * np.array([1.0, 0.9, 0.3]), 0.1 * size ** (4 / 3)
    condition = float(compiled.rest_condition(jnp.array(values), rank, (3, 3), decay, depth, 1e-14))
    Phi = diagonal((3, 3), values)
    for count in range(rank + 1):
        point = [(i, roots(values[i], decay, depth)[-1]) for i in range(count)]
        minimum = layers_at(point, (3, 3), rank, depth)
        for _ in range(10):
            noise = [1e-6 * size ** (1 / 3) * rng.normal(size=W.shape) for W in minimum]
            layers = [W + N for W, N in zip(minimum, noise, strict=True)]
            slope = np.sqrt(sum((G**2).sum() for G in gradients(layers, Phi, decay)))
            apart = oracles.product(layers, 3) - oracles.product(minimum, 3)
            ratios.append(abs(apart).max() / size / (slope / size ** (5 / 3)))
    assert max(ratios) < condition < 30
    assert condition > 9  # the gap of .1


def test_what_is_ill_conditioned_is_said_by_theory_alone():
    def condition(values, decay, rank=1):
        return float(compiled.rest_condition(jnp.array(values), rank, (2, 2), decay, 3, 1e-14))

    turn = (0.8 / 4) ** (1 / 3)
    double = 0.8 * turn - turn**4  # lambda of a double root
    assert condition((0.8, 0.3), 0.1) < 5
    assert condition((0.8, 0.8 - 1e-6), 0.1) > 1e5
    assert condition((0.8, 0.8), 0.1) < 5  # a tie has a family and no slow direction
    assert condition((0.8, 0.3), double * (1 - 1e-10)) > 1e4
    assert condition((0.8, 0.3), double * (1 + 1e-10)) > 1e4
    assert condition((0.8, 0.3), 2 * double) < 5
    assert condition((0.8, 0.0), 0.0, rank=2) > 1e9  # 0 is approached like a power of time


@pytest.mark.parametrize(("loss", "below"), [(0.99, True), (1.0, False), (20.0, False)])
def test_an_end_is_claimed_of_starts_below_every_other_critical_value(loss, below):
    theory = BasinsTheory(near_losses=jnp.array([0.5, loss]), next_value=jnp.array(1.0))
    outcome = Outcome({}, theory, BasinsMeasured(), {}, np.dtype(float), 6, 9)
    assert [claim.applies and claim.applies(outcome) for claim in BASINS.claims] == [below, below]


def test_a_run_is_where_all_of_its_modes_are_nearest():
    """One mode fits two minima to the digit; the other tells them apart."""
    ends = np.array([[1.0, 0.4], [1.0, 0.1], [0.1, 0.0]])
    sigma, local_values = np.array([1.2, 0.7]), np.array([1.0, 0.5])
    kept, most = modes_kept(sigma, local_values, ends, np.zeros(3), 3, "float64")
    assert (kept.tolist(), most) == ([2, 1, 0], 2)


@pytest.mark.parametrize("gradient", [1e-14, 0.3])
@pytest.mark.parametrize(("depth", "decay"), [(3, 0.1), (4, 0.067)])  # a little above a root
@pytest.mark.parametrize("size", [1.0, 64.0])
def test_the_condition_of_a_value_without_a_root_is_that_of_its_polynomial(
    gradient, depth, decay, size
):
    """``(w / sigma_1^{1/L})^{L-1} sigma_1^{2-2/L} / m``: m is searched on a fine grid."""
    sigma, decay = 0.3 * size, decay * size ** (2 - 2 / depth)
    grid = np.linspace(0, 2, 2 * 10**5) * sigma ** (1 / depth)
    polynomial = grid ** (2 * depth - 2) - sigma * grid ** (depth - 2) + decay
    least = polynomial.min()
    assert least > 0
    w = max(grid[polynomial.argmin()] / sigma ** (1 / depth), gradient ** (1 / (2 * depth - 1)))
    expected = w ** (depth - 1) * sigma ** (2 - 2 / depth) / least
    assert expected > 1
    found = compiled.rest_condition(jnp.array([sigma]), 1, (1, 1), decay, depth, gradient)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("shape", [(3, 3), (3, 4)])
@pytest.mark.parametrize("depth", [3, 4])
def test_the_condition_of_kept_values_by_hand(shape, depth):
    """Along a mode, and across to each value that is left out: 0 too, if the sides differ."""
    values, decay, rank = np.array([1.0, 0.9, 0.3]), 0.2, 3
    w = np.array([roots(sigma, decay, depth)[-1] for sigma in values[:2]])
    kept = roots(values[2], decay, depth)
    assert not len(kept)  # the third has no root
    along = depth * w ** (depth - 1) / (depth * w ** (2 * depth - 2) - (depth - 2) * decay)
    others = [*values, 0.0] if shape[0] != shape[1] else values
    across = [x / (v - o) for x, v in zip(w, values, strict=False) for o in others if v > o]
    turn = (0.3 * (depth - 2) / (2 * depth - 2)) ** (1 / depth)
    least = turn ** (2 * depth - 2) - 0.3 * turn ** (depth - 2) + decay
    gone = turn ** (depth - 1) / least
    found = compiled.rest_condition(jnp.array(values), rank, shape, decay, depth, 1e-14)
    np.testing.assert_allclose(found, max(1.0, *along, *across, gone), rtol=1e-9)


@pytest.mark.parametrize(("shape", "rank", "values", "decay", "depth"), CASES[:3])
def test_two_kept_modes_are_a_block_of_the_hessian(shape, rank, values, decay, depth):
    point = [(i, roots(values[i], decay, depth)[-1]) for i in range(rank)]
    layers = layers_at(point, shape, rank, depth)
    spectrum = np.linalg.eigvalsh(hessian(layers, diagonal(shape, values), decay))
    w = np.array([root for _, root in point])
    block = rest_points._two_mode_hessian(w, np.array(values[:2]), decay, depth)
    for eigenvalue in np.linalg.eigvalsh(block):
        assert np.min(np.abs(spectrum - eigenvalue)) < 1e-7


def test_the_bound_of_the_hessian_by_hand():
    """The first derivative squared, the second one times ``||P - Phi|| = (2 f)^{1/2}``, lambda."""
    loss, values, decay, depth = 0.6, np.array([1.0, 0.5]), 0.1, 4
    x = 2 * (loss - values[1] ** 2 / 2) / decay / depth
    first, second = np.sqrt(depth * x**3), np.sqrt(depth * (depth - 1) * x**2)
    found = compiled.sublevel_curvature(loss, jnp.array(values), 1, decay, depth)
    np.testing.assert_allclose(found, first**2 + np.sqrt(2 * loss) * second + decay, rtol=1e-12)
