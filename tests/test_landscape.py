"""Critical points and Hessians, against gradients by hand and exact finite differences."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrdyn as lr
from lrdyn.theorem1 import landscape, shrinkage
from lrdyn.theorem1.balanced_minimum import balanced_spectrum, least_sharpness
from lrdyn.theorem1.critical_points_claims import CRITICAL_POINTS
from lrdyn.verification.judging.judging import forms_of
from lrdyn.verification.stating.fields import Read
from lrdyn.verification.stating.statement import Outcome
from tests import oracles
from tests.oracles import assert_close, assert_zero, normal

pytestmark = pytest.mark.usefixtures("strict")

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


@partial(jax.jit, static_argnames=("rank", "shape"))
def of_all_sets(values, rank, shape, decay):
    sets = landscape.index_sets(len(values), rank)
    return (
        landscape.admissible(sets, values, decay),
        landscape.critical_values(values, sets, decay),
        landscape.smallest_curvature(values, sets, decay),
        landscape.hessian_spectrum(values, sets, shape, decay),
    )


def family(values, rank, shape, decay):
    """Which sets are admissible; their indices, losses, least curvatures and spectra."""
    kept, *arrays = map(np.asarray, of_all_sets(values, rank, shape, decay))
    sets = landscape.index_sets(len(values), rank)[kept]
    return kept, [tuple(i for i in s if i >= 0) for s in sets], *(array[kept] for array in arrays)


@partial(jax.jit, static_argnames="rank")
def products(Phi, rank, decay):
    """Of the layers at the point of every set."""
    sets = landscape.index_sets(min(Phi.shape), rank)
    first, last = landscape.critical_points(Phi, sets, decay)
    return last @ first


def points(Phi, r, values, decay):
    """Every admissible critical point by a NumPy loop over bit masks, with its set."""
    (k, d), (left, found, right) = Phi.shape, np.linalg.svd(Phi, full_matrices=False)
    for mask in range(2 ** len(values)):
        chosen = tuple(i for i in range(len(values)) if mask >> i & 1)
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


@pytest.mark.parametrize(("k", "d", "r", "values", "decay"), INSTANCES)
def test_the_family_is_what_a_loop_finds(k, d, r, values, decay):
    """The points, their losses, their Hessians by differences of a gradient by hand."""
    Phi = oracles.rotated(0, (k, d), values)
    known = np.linalg.svd(Phi, compute_uv=False)
    kept, sets, *rest = family(known, r, (k, d), decay)
    rest = zip(sets, np.asarray(products(Phi, r, decay))[kept], *rest, strict=True)
    found = {chosen: of_it for chosen, *of_it in rest}
    expected = list(points(Phi, r, values, decay))
    assert sorted(found) == sorted(chosen for chosen, _, _ in expected)
    for chosen, a, b in expected:
        product, loss, least, spectrum = found[chosen]
        assert_close(product, b @ a, size=5, scale=1.0)
        squares = (a**2).sum() + (b**2).sum()
        by_hand = ((b @ a - Phi) ** 2).sum() / 2 + decay / 2 * squares
        assert_close(loss, by_hand, size=25, scale=1.0)
        x = np.concatenate([a.ravel(), b.ravel()])
        assert_zero(slope(x, Phi, r, decay), size=5, scale=1.0)
        by_hand = np.linalg.eigvalsh(differences(x, Phi, r, decay))
        assert_close(spectrum, by_hand, size=len(x), steps=12)
        assert_close(least, by_hand[0], size=len(x), steps=12, scale=1.0)


@pytest.mark.float32
def test_the_hessian_of_jax_agrees_with_differences(dtype):
    Phi, *weights = normal(1, (4, 3), (2, 3), (4, 2))

    @jax.jit
    def hessian(weights, Phi):
        return landscape.hessian(lambda w: shrinkage.decayed_loss(w, Phi, 0.3), weights)

    x = np.concatenate([W.ravel() for W in weights])
    assert_close(hessian(tuple(weights), Phi), differences(x, Phi, 2, 0.3), size=14)


@pytest.mark.parametrize("decay", [0.0, 0.05, 0.3, 0.75])
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_every_critical_point_but_one_is_a_strict_saddle(decay, rank):
    values = np.array([1.0, 0.9, 0.6, 0.4, 0.1])
    _, chosen, losses, curvature, spectrum = family(values, rank, (7, 5), decay)
    (best,) = np.flatnonzero(curvature >= 0)
    assert chosen[best] == tuple(i for i in range(rank) if values[i] > decay)
    assert losses.argmin() == best
    assert_close(spectrum[:, 0], curvature, scale=1.0)


@jax.jit
def search(starts, Phi, decay):
    loss = partial(shrinkage.decayed_loss, target=Phi, decay=decay)
    return jax.vmap(partial(landscape.find_critical_point, loss))(starts)


@pytest.mark.parametrize("decay", [0.05, 0.3])
def test_the_search_ends_at_critical_points_of_every_kind(decay):
    values = (1.0, 0.8, 0.5, 0.2)
    Phi = oracles.rotated(0, (4, 4), values)
    expected = np.stack([last @ first for _, first, last in points(Phi, 2, values, decay)])
    found = search(tuple(normal(0, (24, 2, 4), (24, 4, 2))), Phi, decay)
    done = np.asarray(found.gradient) < np.finfo(float).eps ** 0.9
    assert done.mean() > 0.8
    ends = np.asarray(found.weights[1] @ found.weights[0])[done]
    apart = np.abs(ends[:, None] - expected[None]).max((2, 3))
    # The least curvature, 0.05, divides what is left of the gradient.
    assert apart.min(1).max() < lr.tolerance("identity", float, size=4) / 0.05
    assert len(set(apart.argmin(1).tolist())) >= 4  # minima and saddles


test_landscape_refuses = oracles.refuses(
    (lambda: landscape.index_sets(3, 4), "rank: got 4, wanted 1 to 3"),
    (lambda: landscape.index_sets(3, 0), "rank: got 0, wanted 1 to 3"),
    (
        lambda: landscape.hessian_spectrum(jnp.ones(3), landscape.index_sets(3, 1), (4, 4)),
        r"values: got shape \(3,\), wanted \(4,\)",
    ),
)


def test_a_mistake_at_critical_points_would_leave_the_slope_halfway_to_the_origin():
    """Layers at half of ``(sigma_1 - lambda)^{1/2}`` have the gradient ``3/8`` of its cube."""
    (claim,) = (c for c in CRITICAL_POINTS.claims if c.id == "critical_gradient")
    sigma, decay = 1.3, 0.2
    half = np.full((1, 1), np.sqrt(sigma - decay) / 2)
    slope = oracles.gradients((half, half), oracles.sum_slope(np.full((1, 1), sigma)))[0]
    theory: Any = Read({"target_values": np.array([sigma])}, KeyError)
    run: Any = Read({"critical_gradient": np.zeros(1)}, KeyError)
    outcome = Outcome({"weight_decay": decay}, theory, run, {}, np.dtype(float), 6, 1)
    form: Any
    (form,) = forms_of(claim, CRITICAL_POINTS, outcome)
    assert form.alternative == pytest.approx(abs(slope + decay * half).item())


# Balanced minima of any depth ---------------------------------------------------------------------


def product_of(layers):
    whole = layers[0]
    for W in layers[1:]:
        whole = W @ whole
    return whole


def derivative_of_product(layers):
    """The derivative of the product in every entry of every layer, one entry at a time."""
    columns = []
    for l, W in enumerate(layers):
        for place in np.ndindex(W.shape):
            unit = np.zeros(W.shape)
            unit[place] = 1.0
            columns.append(product_of([*layers[:l], unit, *layers[l + 1 :]]).ravel())
    return np.array(columns).T


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_eigenvalues_at_a_balanced_minimum_are_those_of_its_derivative(depth):
    rng = np.random.default_rng(depth)
    values = np.array([1.7, 0.6, 0.0])
    bases = [np.linalg.qr(rng.standard_normal((3, 3)))[0] for _ in range(depth + 1)]
    roots = np.diag(values ** (1 / depth))
    layers = [bases[l + 1] @ roots @ bases[l].T for l in range(depth)]
    J = derivative_of_product(layers)
    mu = np.sort(np.asarray(balanced_spectrum(jnp.asarray(values), depth)).ravel())
    np.testing.assert_allclose(mu, np.linalg.eigvalsh(J @ J.T), atol=1e-12)
    assert np.sum(mu > 1e-12) == 3**2 - (3 - 2) ** 2
    np.testing.assert_allclose(mu[-1], least_sharpness(1.7, depth), rtol=1e-12)


@pytest.mark.parametrize("depth", [2, 3])
def test_no_factorisation_is_less_sharp(depth):
    """Random layers of width 4, of which the last is solved for: their product is Phi."""
    rng = np.random.default_rng(depth)
    target = np.diag([1.7, 0.6, 0.0])
    for _ in range(50):
        first = rng.standard_normal((4, 3))
        inner = [rng.standard_normal((4, 4)) for _ in range(depth - 2)]
        layers = [first, *inner, target @ np.linalg.pinv(product_of([first, *inner]))]
        np.testing.assert_allclose(product_of(layers), target, atol=1e-9)
        sharpness = np.linalg.norm(derivative_of_product(layers), 2) ** 2
        assert sharpness >= least_sharpness(1.7, depth)
