"""Dropout of linear networks, against enumeration, brute force and descent in NumPy."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import numpy as np
import pytest
import scipy.optimize

import lrdyn as lr
from lrdyn.theorem3 import dropblock, dropout_minimiser_claims, dropout_penalties
from lrdyn.theorem3.dropout_minimiser_claims import MinimiserMeasured, MinimiserTheory
from lrdyn.theorem3.dropout_penalty_claims import DropoutMeasured, DropoutTheory
from lrdyn.theorem3.network import lower_bound, odds_condition
from lrdyn.verification.stating.claims import tolerance
from lrdyn.verification.stating.statement import Outcome
from tests import oracles
from tests.oracles import assert_apart, assert_close, assert_zero, double, normal, rotated

pytestmark = pytest.mark.usefixtures("strict")

KEY = jax.random.key(3)
dropout, masking = oracles.Compiled(lr.theorem3), oracles.Compiled(lr.core)


def nuclear(matrix):
    return np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False).sum()


def enumerated(loss, size, theta):
    """Expectation over all masks of independent entries."""
    return sum(chance * loss(mask) for mask, chance in oracles.masks_of(range(size), theta))


# Penalties ------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 2, 4])
def test_the_penalty_is_what_masks_add(block, dtype):
    (U, V, Y), theta = normal(0, (4, 4), (4, 5), (4, 5)), 0.3

    def loss(blocks):
        mask = np.repeat(blocks, block) / theta
        return np.sum((Y - U @ np.diag(mask) @ V) ** 2)

    expected, fit = enumerated(loss, 4 // block, theta), np.sum((Y - U @ V) ** 2)
    assert_close(dropout.dropout_loss(U, V, Y, theta, block=block), expected, size=20)
    computed = dropout.dropout_penalty(U, V, theta, block=block)
    assert_close(computed, expected - fit, size=20, scale=fit)


def test_several_layers_of_dropout(dtype):
    """Widths that differ from layer to layer, two masks between three layers."""
    first, second, third, X = normal(0, (3, 4), (2, 3), (5, 2), (4, 6))
    theta = 0.6
    computed = dropout.layers_penalty((first, second, third), X @ X.T, theta)

    def loss(mask):
        return np.sum((third @ np.diag(mask[3:]) @ second @ np.diag(mask[:3]) @ first @ X) ** 2)

    expected = enumerated(lambda mask: loss(mask / theta), 5, theta) - loss(np.ones(5))
    assert_close(computed, expected, size=64)
    # The widths: (1 + odds / 3) (1 + odds / 2) - 1.
    strength = (1 + 0.4 / 0.6 / 3) * (1 + 0.4 / 0.6 / 2) - 1
    assert_close(dropout.layers_strength(theta, (3, 2)), strength, size=4)
    assert float(computed) >= strength * nuclear(third @ second @ first @ X) ** 2


def test_one_layer_of_dropout_is_the_plain_penalty(dtype):
    first, second, X = normal(0, (3, 4), (2, 3), (4, 6))
    one = dropout.layers_penalty((first, second), X @ X.T, 0.3)
    assert_close(one, dropout.dropout_penalty(second, first @ X, 0.3), size=64)
    assert_close(dropout.layers_strength(0.3, (3,)), dropout.dropout_strength(0.3, 3))


def test_a_rank_one_map_attains_the_bound_of_layers(dtype):
    (u, v, X), hidden = normal(0, (4,), (4,), (4, 6)), (3, 5, 2)
    weights = dropout.equalized_layers(u, v, hidden)
    assert_close(np.linalg.multi_dot(weights[::-1]), np.outer(u, v), size=5)
    computed = dropout.layers_penalty(weights, X @ X.T, 0.4)
    bound = np.asarray(dropout.layers_strength(0.4, hidden)) * nuclear(np.outer(u, v) @ X) ** 2
    assert_close(computed, bound, size=64)


def test_the_bound_of_layers_is_not_attained_at_rank_two():
    """Descent on three layers with product diag(1, 1), from many starts, ends above the bound."""
    width, theta = 2, 0.5
    odds = (1 - theta) / theta

    def penalty(flat):
        first, second = flat.reshape(2, width, width)
        third = np.linalg.inv(second @ first)  # the product is the identity
        spread = first @ first.T
        for W in (second, third):
            spread = W @ (spread + odds * np.diag(np.diag(spread))) @ W.T
        return np.trace(spread) - width

    rng = np.random.default_rng(0)
    computed = min(
        scipy.optimize.minimize(penalty, rng.standard_normal(2 * width**2), method="BFGS").fun
        for _ in range(20)
    )
    bound = float(dropout.layers_strength(theta, (width, width))) * width**2
    assert 1.01 < computed / bound < 1.3
    refined = dropout.layers_schatten_bound(np.ones(2), theta, (width, width))
    assert_close(np.float32(computed), float(refined), steps=10)


@pytest.mark.parametrize("units", [(2, 2), (3, 5), (4, 2)])
@pytest.mark.parametrize("theta", [0.2, 0.9, 1 - 1e-7])
def test_no_layers_are_below_the_bound_of_their_rank(units, theta):
    for seed in range(20):
        weights = tuple(normal(seed, (units[0], 3), units[::-1], (3, units[1])))
        computed = float(dropout.layers_penalty(weights, np.eye(3), theta))
        values = np.linalg.svd(np.linalg.multi_dot(weights[::-1]), compute_uv=False)
        values = values[: min(units)]
        refined = float(dropout.layers_schatten_bound(values, theta, units))
        plain = float(dropout.layers_strength(theta, units)) * values.sum() ** 2
        assert computed >= refined >= plain > 0


def test_penalties_of_layers_do_not_cancel():
    """Near theta = 1 they are lambda times a sum over units, and not a difference of traces."""
    first, second, third, X = normal(0, (3, 4), (2, 3), (5, 2), (4, 6))
    theta = 1 - 2.0**-50
    computed = dropout.layers_penalty((first, second, third), X @ X.T, theta)
    hidden = first @ X, second @ first @ X
    out = third @ second, third
    pairs = zip(out, hidden, strict=True)
    units = sum(np.sum(np.sum(W**2, axis=0) * np.sum(H**2, axis=1)) for W, H in pairs)
    assert_close(np.asarray(computed) / 2.0**-50, units, size=10**4)
    assert_close(dropout.layers_strength(theta, (3, 2)), 2.0**-50 * 5 / 6, size=10)


@pytest.mark.parametrize("layer", [1, 2])
def test_masks_on_weights(layer, dtype):
    W1, W2, X, Y = normal(0, (2, 3), (2, 2), (3, 4), (2, 4))
    theta = 0.4
    computed = dropout.dropconnect_penalty((W1, W2), X, theta, layer=layer)

    def loss(mask):
        mask = mask / theta
        product = W2 @ (W1 * mask.reshape(2, 3)) if layer == 1 else (W2 * mask.reshape(2, 2)) @ W1
        return np.sum((Y - product @ X) ** 2)

    fit = np.sum((Y - W2 @ W1 @ X) ** 2)
    assert_close(computed, enumerated(loss, 6 if layer == 1 else 4, theta) - fit, size=12)


# Factorisations -------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 4, 7])
def test_equalised_factors(width, dtype):
    Z = rotated(0, (4, 5), [3.0, 1.0, 0.2][:width])
    U, V = jax.device_get(dropout.equalized_factors(Z, width))
    how = {"size": width, "steps": width}
    assert U.shape == (4, width)
    assert_close(U @ V, Z, **how)
    # Also from balanced factors whose Gram matrix is not diagonal.
    (turn, _), one = np.linalg.qr(normal(1, (width, width))[0]), nuclear(Z) / width
    for left, right in ((U, V), jax.device_get(dropout.equalize(U @ turn, turn.T @ V))):
        sizes = np.linalg.norm(left, axis=0) * np.linalg.norm(right, axis=1)
        assert_close(sizes, np.full(width, one), **how)
    least = nuclear(Z) ** 2 * 0.7 / (0.3 * width)
    assert_close(dropout.dropout_penalty(U, V, 0.3), least, **how)
    assert_close(np.asarray(dropout.dropout_strength(0.3, width)) * nuclear(Z) ** 2, least)


def test_no_factorisation_has_a_smaller_penalty():
    """Descent on the factors of a fixed product, from many starts, ends at the nuclear norm."""
    Z = np.diag([3.0, 1.0])
    rng = np.random.default_rng(0)

    def penalty(flat):
        G = flat.reshape(2, 2)
        left, right = Z @ G, np.linalg.inv(G)
        return np.sum(np.sum(left**2, axis=0) * np.sum(right**2, axis=1))

    ends = [scipy.optimize.minimize(penalty, rng.standard_normal(4)).fun for _ in range(8)]
    least = nuclear(Z) ** 2 / 2
    assert min(ends) > least * (1 - tolerance("identity", "float32"))
    assert_close(np.float32(min(ends)), least, steps=10)


def test_equalising_leaves_equal_units_alone():
    U = np.eye(3)
    assert np.array_equal(dropout.equalize(U, U)[0], U)
    assert np.array_equal(dropout.equalize(0 * U, 0 * U)[0], 0 * U)


@pytest.mark.parametrize("block", [1, 2, 3])
def test_the_width_free_probability(block, dtype):
    for width in (6, 12):
        theta = np.asarray(dropout.width_free_keep_prob(0.3, width, block=block))
        assert_close((1 - theta) / theta, width / block * 0.7 / 0.3)
    assert_close(dropout.width_free_keep_prob(0.3, block, block=block), 0.3)


# Minimisers -----------------------------------------------------------------------------------


def brute_force(values, strength, width):
    """Least ``sum (sigma_i - s_i)^2 + c (sum s_i)^2`` over s >= 0 on every choice of h entries."""
    # Non-negative least squares: the penalty is one more row of zeros to be fitted.
    rows = np.vstack([np.eye(len(values)), np.full(len(values), np.sqrt(strength))])
    ends = []
    for chosen in itertools.combinations(range(len(values)), min(width, len(values))):
        computed, rest = scipy.optimize.nnls(rows[:, chosen], np.append(values, 0.0))
        ends.append((rest, (np.eye(len(values))[:, chosen] @ computed).tolist()))
    return np.array(min(ends)[1])


@pytest.mark.parametrize("width", [1, 2, 3, 5, 24])
@pytest.mark.parametrize("strength", [0.0, 0.05, 0.3, 2.0])
def test_the_minimiser_is_the_best_of_all_spectra(strength, width, dtype):
    Y = rotated(0, (5, 6), [2.0, 1.3, 1.1, 0.4, 0.1])
    left, values, right = np.linalg.svd(Y, full_matrices=False)
    computed = dropout.shrink_squared(Y, strength, width)
    expected = brute_force(values, strength, width)
    assert_close(computed.values, expected, size=36)
    assert int(computed.rank) == np.count_nonzero(expected > 1e-9)
    assert_close(computed.product, (left * expected) @ right, size=36)


def test_nothing_is_left_of_nothing(dtype):
    computed = dropout.shrink_squared(np.zeros((5, 6)), 0.5, 2)
    assert int(computed.rank) == 0
    assert np.array_equal(computed.product, np.zeros((5, 6)))


def test_the_minimiser_on_data_is_found_by_proximal_descent():
    """Proximal gradient on ``||Y - A X||^2 + c ||A X||_*^2`` as a problem in Z = A X alone."""
    X, Y = normal(0, (3, 7), (4, 7))
    theta, width = 0.4, 5
    computed = dropout.dropout_minimiser(Y, X, theta, width)
    onto = np.linalg.pinv(X) @ X
    strength = (1 - theta) / (theta * width)
    Z = np.zeros((4, 7))
    for _ in range(400):
        # A subgradient step on the squared nuclear norm is a soft threshold at c t ||Z||_*, here
        # with the norm of the last iterate: its fixed point is the minimum, as c t is small.
        left, values, right = np.linalg.svd(Z - 0.2 * (Z - Y @ onto), full_matrices=False)
        norm = np.linalg.svd(Z, compute_uv=False).sum()
        Z = (left * np.maximum(values - 0.2 * strength * norm, 0)) @ right
    assert_close(computed.product, Z, size=28)


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (4, 4)])
def test_the_part_of_a_target_that_a_network_reaches(shape, dtype):
    X, Y = normal(0, shape, (2, shape[1]))
    X[0] = 0.0  # a direction without data
    assert_close(dropout.project_rows(Y, X), Y @ np.linalg.pinv(X) @ X, size=64)
    V = np.asarray(dropout.project_rows(Y, X))
    assert_close(np.asarray(dropout.input_layer(V, X)) @ X, V, size=256)
    assert_close(dropout.input_layer(Y, X), Y @ np.linalg.pinv(X), size=256)


@pytest.mark.parametrize("theta", [0.5, 1.0])
def test_dropout_descent_is_a_numpy_loop(theta, dtype):
    """For theta = 1 it is gradient descent."""
    W1, W2, X, Y = normal(0, (2, 3), (2, 2), (3, 4), (2, 4))
    eta, steps = 0.02, 40
    computed = dropout.dropout_descent(KEY, (W1, W2), X, Y, theta, eta, steps, halve_after=10)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, np.arange(steps))
    for t, key in enumerate(keys):
        mask = double(masking.draw_mask(key, 2, theta)) / theta
        hidden = W1 @ X
        error = (W2 * mask) @ hidden - Y
        slopes = (W2 * mask).T @ error @ X.T, error @ (mask[:, None] * hidden).T
        rate = eta * theta / (1 + t / 10)
        W1, W2 = W1 - rate * slopes[0], W2 - rate * slopes[1]
    assert_close(computed, (W1, W2), steps=steps, size=4)


# The judges -----------------------------------------------------------------------------------


def outcome(width=2, steps=400, dtype="float64", predicted: Any = (), **measured: Any):
    """What a judge gets of a run, at a learning rate and a keep probability of 1/2."""
    point = {"width": width, "rows": 3, "cols": 4, "learning_rate": 0.5, "keep_prob": 0.5}
    arrays: list[dict[str, Any]] = [
        {n: np.asarray(a, float) for n, a in dict(side).items()} for side in (predicted, measured)
    ]
    theory, run = MinimiserTheory(**arrays[0]), MinimiserMeasured(**arrays[1])
    return Outcome(point, theory, run, {}, np.dtype(dtype), size=4, steps=steps)


@pytest.mark.parametrize(
    ("width", "threshold", "gap"),
    [
        (3, 0.75, 0.125),  # 1 is the nearest of 2, 1, 0.5 to the threshold
        (2, 0.75, 0.125),
        (2, 0.125, 0.25),  # q = h: 1 and 0.5 could be exchanged
        (1, 2.5, 0.25),
        (2, np.nan, np.nan),
    ],
)
def test_the_gap_is_how_clear_the_choice_of_q_is(width, threshold, gap):
    choice = outcome(width=width, predicted={"spectrum": [2.0, 1.0, 0.5], "threshold": threshold})
    np.testing.assert_equal(dropout_minimiser_claims.gap(choice), gap)


def test_descent_that_has_not_ended_is_not_judged():
    limit = tolerance("identity", "float64", size=4)
    theory = {"spectrum": [2.0, 1.0], "threshold": 0.5, "curvature": 3.0}  # of gap 1/4
    ended = functools.partial(outcome, predicted=theory)
    reason = dropout_minimiser_claims.not_at_the_end
    assert reason(ended(gradient=0.24 * limit)) == ""
    assert reason(ended(gradient=0.26 * limit)) == "still moving"
    assert reason(ended(gradient=limit, dtype="float32")) == ""
    # Nothing is excused by a divergence, unless the step is too large from the beginning.
    assert reason(ended(gradient=np.nan)) == ""
    theory["curvature"] = 4.1
    assert reason(ended(gradient=np.nan)) == "step too large"


def test_stochastic_runs_that_are_too_short_or_of_rare_masks_are_not_judged():
    def reasons(**theory):
        run = outcome(predicted={"transient": 10.0, "rare_masks": [1e5, 1e5]} | theory)
        return dropout_minimiser_claims.too_short(run), dropout_minimiser_claims.too_rare(run)

    assert reasons() == ("", "")
    assert reasons(transient=9.9) == ("too few steps", "")
    assert reasons(rare_masks=[10.0, 1e5]) == ("masks too rare", "")
    assert reasons(rare_masks=[1e5, 10.0]) == ("", "masks too rare")
    assert not dropout_minimiser_claims.is_noisy(outcome(width=1))


def test_the_skewness_of_rare_masks_is_bounded_as_the_pages_say():
    """2.5 over the root of their number, which was 2.2 at most where it was measured."""
    run = outcome(predicted={"rare_masks": [25.0, 10**4]})
    claims = dropout_minimiser_claims
    assert [claims._skewness(run, training) for training in (claims.LAST, claims.BOTH)] == [
        0.5,
        0.025,
    ]
    # Of a product of two steps: the square of that of one step, which is RUNS * DRIFT times larger.
    summed = claims.RUNS * claims.DRIFT
    assert claims._skewness_of_products(run) == pytest.approx(6.25 * summed**0.5 / 10**4)


@pytest.mark.parametrize(("rows", "cols", "width"), [(7, 9, 5), (9, 7, 8)])
def test_the_regression_that_is_drawn_has_the_spectra_that_it_says(rows, cols, width):
    rank, sizes = min(rows, cols), {"rows": rows, "cols": cols, "width": width}
    rates = {"keep_prob": 0.6, "learning_rate": 0.1, "steps": 3}
    with jax.enable_x64():
        case = dropout_minimiser_claims.make_case(jax.random.key(3), **sizes, **rates)
        X, Y = np.asarray(case.inputs), np.asarray(case.target)
    assert X.shape == Y.shape == (rows, cols)  # as many examples as columns
    _, of_X, right = np.linalg.svd(X, full_matrices=False)
    np.testing.assert_allclose(of_X[:rank], np.linspace(4 / 3, 2 / 3, rank), rtol=1e-12)
    assert np.all(of_X[rank:] < 1e-12)
    # What a network can reach of Y, and that the noise lies beside it.
    reached = Y @ right[:rank].T
    of_Y = np.linalg.svd(reached, compute_uv=False)
    np.testing.assert_allclose(of_Y, np.linspace(1, 1 / rank, rank), rtol=1e-12)
    beside = np.linalg.norm(Y - reached @ right[:rank])
    assert beside > 0.1 if cols > rank else beside < 1e-12


def test_a_bound_is_judged_in_every_entry():
    def compares(theory: DropoutTheory, run: DropoutMeasured):
        return theory.factorisations, run.factorisations

    def residual(penalties: Any):
        sides: Any = np.array([1.0, 2.0]), np.asarray(penalties)
        theory, run = (
            DropoutTheory(factorisations=sides[0]),
            DropoutMeasured(factorisations=sides[1]),
        )
        outcome = Outcome({}, theory, run, {}, np.dtype("float64"), size=4, steps=1)
        form = lower_bound("factorisations", "is above", compares).form
        assert form is not None
        bound: Any = form(outcome)
        return bound.residual()

    assert residual([1.0, 2.0]) == residual([3.0, 2.5]) == 0
    assert residual([0.75, 2.0]) == residual([1.0, 1.5]) == 0.25
    assert np.isnan(residual([np.nan, 2.0]))


# DropBlock ------------------------------------------------------------------------------------


def support_norm_by_duality(values, support):
    """Largest <w, u> over u whose k largest entries have norm 1, by a quadratic program."""
    size = len(values)
    constraints = [
        {"type": "ineq", "fun": lambda u, c=list(c): 1 - np.sum(u[c] ** 2)}
        for c in itertools.combinations(range(size), support)
    ]
    start = np.full(size, 0.5 / np.sqrt(support))
    optimum = scipy.optimize.minimize(
        lambda u: -values @ u,
        start,
        constraints=constraints,
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    )
    return -optimum.fun


@pytest.mark.parametrize("support", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "values", [[4.0, 3.0, 2.0, 1.0], [9.0, 1.0, 1.0, 0.5], [1.0, 1.0, 1.0, 1.0], [3.0, 2.0, 0.0, 0]]
)
def test_the_support_norm_is_the_dual_of_the_largest_entries(values, support):
    computed = dropout.support_norm(np.array(values, np.float32), support)
    # A general solver reaches about half of the digits of float64, those of float32.
    assert_close(computed, support_norm_by_duality(np.array(values), support), size=100)


def test_the_ends_of_the_support_norm(dtype):
    (Z,) = normal(0, (4, 5))
    for support, norm in ((1, nuclear(Z)), (4, np.linalg.norm(Z)), (9, np.linalg.norm(Z))):
        assert_close(dropout.spectral_support_norm(Z, support), norm, size=20)
    assert_apart(dropout.spectral_support_norm(Z, 2), nuclear(Z))


@pytest.mark.parametrize("spectrum", [[1.0, 0.8, 0.7, 0.6, 0.5], [9.0, 1.0, 0.9, 0.5], [2.0, 1.0]])
@pytest.mark.parametrize("block", [1, 2, 3])
def test_blocks_that_attain_the_support_norm(block, spectrum, dtype):
    Z, blocks = rotated(0, (5, 6), spectrum), 60
    how = {"size": blocks * block}
    assert bool(dropout.enough_blocks(Z, block, blocks))
    U, V = jax.device_get(dropout.support_factors(Z, block, blocks))
    assert_close(U @ V, Z, **how)
    norm = np.asarray(dropout.spectral_support_norm(Z, block))
    parts = np.split(U, blocks, 1), np.split(V, blocks, 0)
    sizes = np.array([np.linalg.norm(left @ right) for left, right in zip(*parts, strict=True)])
    assert_close(sizes, np.full(blocks, norm / blocks), **how)
    theta = dropout.width_free_keep_prob(0.3, blocks * block, block=block)
    penalty = dropout.dropout_penalty(U, V, theta, block=block)
    assert_close(penalty, 0.7 / 0.3 * double(norm) ** 2, **how)


def test_too_few_blocks_are_noticed():
    Z = rotated(0, (5, 6), [1.0, 0.8, 0.7, 0.6, 0.5])
    assert not bool(dropout.enough_blocks(Z, 2, 3))
    U, V = dropout.support_factors(Z, 2, 3)
    theta = dropout.width_free_keep_prob(0.5, 6, block=2)
    penalty = float(dropout.dropout_penalty(U, V, theta, block=2))
    attained = penalty <= float(dropout.spectral_support_norm(Z, 2)) ** 2
    assert not attained or np.linalg.norm(np.asarray(U @ V) - Z) > 0.01


def test_blocks_wider_than_the_matrix(dtype):
    (Z,) = normal(0, (2, 3))
    U, V = jax.device_get(dropout.support_factors(Z, 4, 3))
    assert (U.shape, V.shape) == ((2, 12), (12, 3))
    assert_close(U @ V, Z, size=12)
    assert_zero(U[:, 2:4], scale=1.0)


WIDE, EYE, ROWS = np.ones((2, 3)), np.eye(3), r"right: got shape \(2, 3\), wanted \(3, n\)"
penalty, masked = dropout.dropout_penalty, dropout.dropconnect_penalty
test_dropout_refuses = oracles.refuses(
    (lambda: penalty(WIDE, WIDE, 0.5), ROWS),
    (lambda: penalty(WIDE, EYE, 0.5, block=2), "block: got 2, wanted a divisor of the width 3"),
    (lambda: dropout.equalize(WIDE, WIDE), ROWS),
    (lambda: dropout.equalized_factors(EYE, 0), "width: got 0, wanted at least 1"),
    (lambda: dropout.support_norm(np.ones(3), 4), "support: got 4, wanted 1 to 3"),
    (lambda: masked((EYE,), EYE, 0.5, layer=1), "weights: got a tuple of 1, wanted a tuple of 2"),
    (lambda: masked((EYE,) * 2, EYE, 0.5, layer=3), "layer: got 3, wanted 1 to 2"),
)


@pytest.mark.parametrize("width", [1, 3, 7])
def test_rounding_of_a_width_free_probability_is_amplified_by_what_is_left_to_one(width):
    theta = dropout_penalties.width_free_keep_prob(0.7, width)
    assert_close(odds_condition(jax.numpy.asarray(0.7), width), 1 / (1 - theta))


@pytest.mark.parametrize("support", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "values", [[1.9, 1.1, 0.7, 0.2], [5.0, 0.4, 0.3, 0.2], [1.0, 0.5, 0.4, 0.3]]
)
def test_shares_of_the_support_norm_are_the_best_of_their_sum(values, support):
    """``||w||^2 = min sum_i w_i^2 / p_i`` over 0 <= p <= 1 of sum k, by splitting and bisection."""
    w = np.array(values)
    with jax.enable_x64():
        _, split = dropblock._support_split(jax.numpy.asarray(w), support)
        shares = np.asarray(dropblock._shares(jax.numpy.asarray(w), support))
    np.testing.assert_allclose(split, shares, rtol=1e-12)
    assert np.all(shares <= 1)
    assert shares.sum() == pytest.approx(support)
    squared_norm = support_norm_by_duality(w, support) ** 2
    assert np.sum(w**2 / shares) == pytest.approx(squared_norm, rel=1e-6)


@pytest.mark.parametrize("weights", [[3.0, 2.3, 3.7], [2.0, 3.0], [1.5, 2.5, 1.3, 3.7]])
def test_unit_vectors_add_up_to_their_weights(weights):
    count = round(sum(weights))
    with jax.enable_x64():
        units = np.asarray(dropblock._tetris(jax.numpy.asarray(weights), count))
    np.testing.assert_allclose(np.linalg.norm(units, axis=1), np.ones(count), rtol=1e-12)
    np.testing.assert_allclose(units.T @ units, np.diag(weights), atol=1e-12)


def test_where_no_direction_is_kept_there_is_no_threshold():
    """A strength of 1e17 rounds the threshold to the value itself."""
    values = jax.numpy.array([1.0, 0.5])
    shrunk, threshold, rank = dropout.shrink_squared_values(values, 1e17, 2)
    assert (shrunk.tolist(), float(threshold), int(rank)) == ([0.0, 0.0], 0.0, 0)


@pytest.mark.parametrize("theta", [(0.4, 0.4), (0.4, 0.9)])
def test_masks_of_a_chain_of_single_units_multiply(theta):
    """Of numbers w_l: E(w_3 r_2 w_2 r_1 w_1 x)^2 less the square of the mean."""
    w_1, w_2, w_3, moment = 1.5, -0.7, 2.0, 1.3
    layers = tuple(jax.numpy.full((1, 1), w) for w in (w_1, w_2, w_3))
    keep_prob = theta[0] if theta[0] == theta[1] else jax.numpy.asarray(theta)
    found = dropout.layers_penalty(layers, jax.numpy.full((1, 1), moment), keep_prob)
    assert_close(found, (w_1 * w_2 * w_3) ** 2 * moment * (1 / np.prod(theta) - 1))


def case_of_dropout(**changes):
    sizes = {"rows": 4, "cols": 5, "width": 3, "keep_prob": 0.6} | changes
    with jax.enable_x64():
        case = dropout_minimiser_claims.make_case(
            jax.random.key(5), **sizes, learning_rate=0.1, steps=10
        )
    return case, [np.asarray(x) for x in (case.inputs, case.target, *case.weights)]


def expected_slope(first, second, X, Y, odds):
    """Gradient of ``1/2 (||Y - W_2 W_1 X||^2 + odds sum_i ||w_2i||^2 ||v_i||^2)`` by hand."""
    V = first @ X
    rest = second @ V - Y
    of_V = second.T @ rest + odds * (second**2).sum(0)[:, None] * V
    of_second = rest @ V.T + odds * second * (V**2).sum(1)[None]
    return np.concatenate([(of_V @ X.T).ravel(), of_second.ravel()])


@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_the_curvature_of_dropout_bounds_the_hessian_of_the_expected_loss(scale):
    """And is the formula of the pages, of spectral norms, or the curvature of the minimum."""
    case, (X, Y, first, second) = case_of_dropout()
    first, second, odds, norm = scale * first, scale * second, 0.4 / 0.6, 4 / 3
    V = first @ X
    fit = np.linalg.norm(V, 2) ** 2 + (norm * np.linalg.norm(second, 2)) ** 2
    fit += norm * np.linalg.norm(Y - second @ V, 2)
    units = max((V**2).sum(1).max(), norm**2 * (second**2).sum(0).max())
    with jax.enable_x64():
        weights = tuple(jax.numpy.asarray(W) for W in (first, second))
        found = float(
            dropout_minimiser_claims._curvature(dataclasses.replace(case, weights=weights))
        )
    assert found == pytest.approx(max(fit + 3 * odds * units, 1 + norm**2), rel=1e-12)
    point, parts = np.concatenate([first.ravel(), second.ravel()]), (first.shape, second.shape)

    def slope(x):
        split = np.split(x, [first.size])
        W_1, W_2 = (W.reshape(shape) for W, shape in zip(split, parts, strict=True))
        return expected_slope(W_1, W_2, X, Y, odds)

    # The gradient is cubic: the five-point rule with step 1 is exact.
    hessian = np.array(
        [
            (
                8 * (slope(point + e) - slope(point - e))
                - slope(point + 2 * e)
                + slope(point - 2 * e)
            )
            / 12
            for e in np.eye(len(point))
        ]
    )
    assert 0.1 * found < np.linalg.norm(hessian, 2) <= found


@pytest.mark.parametrize("keep_prob", [0.3, 0.9])
def test_a_start_of_dropout_is_as_small_as_its_curvature_asks(keep_prob):
    """Of large Gaussian layers the norm is ``1 + sqrt(h / m)``: fit and penalty add up to 0.3."""
    _, (_, _, _, second) = case_of_dropout(rows=400, cols=3, width=100, keep_prob=keep_prob)
    units = (second**2).sum(0).mean()
    found = np.linalg.norm(second, 2) ** 2 + 2 * (1 - keep_prob) / keep_prob * units
    assert found == pytest.approx(0.3, rel=0.05)
