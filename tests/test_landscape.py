"""Critical points and Hessians, against gradients by hand and exact finite differences."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrdyn as lr
from tests import oracles

INSTANCES = [
    # k, d, r, singular values, lambda
    (5, 4, 2, (1.0, 0.8, 0.6, 0.5), 0.0),
    (5, 4, 2, (1.0, 0.8, 0.6, 0.5), 0.1),
    (4, 4, 3, (1.0, 0.8, 0.6, 0.5), 0.7),
    (3, 5, 1, (1.0, 0.7, 0.4), 0.2),
    (3, 5, 1, (1.0, 0.7, 0.4), 0.0),
    (4, 3, 3, (1.0, 0.7, 0.0), 0.2),
    (3, 3, 2, (1.0, 0.0, 0.0), 0.0),
]


def make(k, d, values, seed=0):
    return lr.low_rank_target(jax.random.key(seed), (k, d), jnp.array(values))


def points(k, d, r, values, decay):
    """Every admissible critical point by a NumPy loop over bit masks, with its set."""
    left, found, right = np.linalg.svd(oracles.double(make(k, d, values)), full_matrices=False)
    for mask in range(2 ** len(values)):
        chosen = [i for i in range(len(values)) if mask >> i & 1]
        if len(chosen) <= r and all(values[i] > decay for i in chosen):
            first, last = np.zeros((r, d)), np.zeros((k, r))
            for slot, i in enumerate(chosen):
                first[slot] = np.sqrt(found[i] - decay) * right[i]
                last[:, slot] = np.sqrt(found[i] - decay) * left[:, i]
            yield chosen, first, last


def slope(x, Phi, r, decay):
    """Gradient by hand, of all entries in a row."""
    k, d = Phi.shape
    weights = x[: r * d].reshape(r, d), x[r * d :].reshape(k, r)
    slopes = oracles.gradients(weights, oracles.sum_slope(Phi))
    return np.concatenate([(G + decay * W).ravel() for G, W in zip(slopes, weights, strict=True)])


def differences(x, Phi, r, decay):
    """Hessian: the gradient is cubic, so that the five-point rule with step 1 is exact."""
    g = partial(slope, Phi=Phi, r=r, decay=decay)
    rows = [
        (8 * (g(x + e) - g(x - e)) - (g(x + 2 * e) - g(x - 2 * e))) / 12 for e in np.eye(len(x))
    ]
    return np.array(rows)


@pytest.mark.parametrize("instance", INSTANCES)
def test_the_family_is_what_a_loop_finds(instance):
    k, d, r, values, decay = instance
    Phi = make(k, d, values)
    sets = lr.landscape.index_sets(len(values), r)
    known = lr.singular_values(Phi)
    kept = sets[np.asarray(lr.landscape.admissible(sets, known, decay))]
    expected = list(points(*instance))
    assert sorted(tuple(i for i in s if i >= 0) for s in kept) == sorted(
        tuple(chosen) for chosen, _, _ in expected
    )
    first, last = lr.landscape.critical_points(Phi, kept, decay)
    products = {
        tuple(i for i in s if i >= 0): np.asarray(b @ a)
        for s, a, b in zip(kept, first, last, strict=True)
    }
    losses = dict(zip(products, lr.landscape.critical_values(known, kept, decay), strict=True))
    for chosen, a, b in expected:
        oracles.assert_close(jnp.asarray(products[tuple(chosen)]), b @ a, size=5, scale=1.0)
        squares = (a**2).sum() + (b**2).sum()
        loss = ((b @ a - oracles.double(Phi)) ** 2).sum() / 2 + decay / 2 * squares
        oracles.assert_close(losses[tuple(chosen)], loss, size=25, scale=1.0)


@pytest.mark.parametrize("instance", INSTANCES)
def test_spectra_agree_with_differences_of_a_gradient_by_hand(instance):
    k, d, r, values, decay = instance
    Phi = oracles.double(make(k, d, values))
    for chosen, first, last in points(*instance):
        x = np.concatenate([first.ravel(), last.ravel()])
        oracles.assert_zero(jnp.asarray(slope(x, Phi, r, decay)), size=5, scale=1.0)
        expected = np.linalg.eigvalsh(differences(x, Phi, r, decay))
        a_set = np.array([[*chosen, *[-1] * (r - len(chosen))]])
        found = lr.landscape.hessian_spectrum(jnp.array(values), a_set, (k, d), decay)[0]
        oracles.assert_close(found, expected, size=len(x), steps=12)
        least = lr.landscape.smallest_curvature(jnp.array(values), a_set, decay)[0]
        oracles.assert_close(least, expected[0], size=len(x), steps=12, scale=1.0)


@pytest.mark.float32
def test_the_hessian_of_jax_agrees_with_differences(dtype):
    Phi = make(4, 3, (1.0, 0.8, 0.5))
    weights = lr.gaussian_layers(jax.random.key(1), (3, 2, 4), jnp.ones(2))
    found = lr.landscape.hessian(lambda w: lr.shrinkage.decayed_loss(w, Phi, 0.3), weights)
    x = np.concatenate([np.asarray(W, np.float64).ravel() for W in weights])
    expected = differences(x, oracles.double(Phi), 2, 0.3)
    oracles.assert_close(found, expected, size=14)


@pytest.mark.parametrize("decay", [0.0, 0.05, 0.3, 0.75])
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_every_critical_point_but_one_is_a_strict_saddle(decay, rank):
    values = jnp.array([1.0, 0.9, 0.6, 0.4, 0.1])
    sets = lr.landscape.index_sets(5, rank)
    sets = sets[np.asarray(lr.landscape.admissible(sets, values, decay))]
    curvature = np.asarray(lr.landscape.smallest_curvature(values, sets, decay))
    (best,) = np.nonzero(curvature >= 0)
    expected = [i for i in range(rank) if values[i] > decay]
    assert [[i for i in sets[b] if i >= 0] for b in best] == [expected]
    losses = np.asarray(lr.landscape.critical_values(values, sets, decay))
    assert losses.argmin() == best[0]
    spectra = lr.landscape.hessian_spectrum(values, sets, (7, 5), decay)
    oracles.assert_close(spectra[:, 0], curvature, scale=1.0)


@pytest.mark.parametrize("decay", [0.05, 0.3])
def test_the_search_ends_at_critical_points_of_every_kind(decay):
    Phi = make(4, 4, (1.0, 0.8, 0.5, 0.2))
    sets = lr.landscape.index_sets(4, 2)
    sets = sets[np.asarray(lr.landscape.admissible(sets, lr.singular_values(Phi), decay))]
    first, last = lr.landscape.critical_points(Phi, sets, decay)
    starts = jax.vmap(lambda key: lr.gaussian_layers(key, (4, 2, 4), jnp.ones(2)))(
        jax.random.split(jax.random.key(0), 24)
    )
    find = partial(
        lr.landscape.find_critical_point, lambda w: lr.shrinkage.decayed_loss(w, Phi, decay)
    )
    found = jax.jit(jax.vmap(find))(starts)
    done = np.asarray(found.gradient) < np.finfo(float).eps ** 0.9
    assert done.mean() > 0.8
    products = np.asarray(found.weights[1] @ found.weights[0])[done]
    apart = np.abs(products[:, None] - np.asarray(last @ first)[None]).max((2, 3))
    # The least curvature, 0.05, divides what is left of the gradient.
    assert apart.min(1).max() < lr.tolerance("identity", float, size=4) / 0.05
    assert len(set(apart.argmin(1).tolist())) >= 4  # minima and saddles


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lr.landscape.index_sets(3, 4), "rank: got 4, wanted 1 to 3"),
        (lambda: lr.landscape.index_sets(3, 0), "rank: got 0, wanted 1 to 3"),
        (
            lambda: lr.landscape.hessian_spectrum(
                jnp.ones(3), lr.landscape.index_sets(3, 1), (4, 4)
            ),
            r"values: got 3, wanted 4 for shape \(4, 4\)",
        ),
    ],
)
def test_landscape_refuses(call, message, unchecked):
    with pytest.raises(ValueError, match=message):
        call()
