from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lrdyn as lr
from lrdyn.core.factorization import regression_loss
from lrdyn.theorem2 import classifier, collapse
from lrdyn.theorem2.collapse_claims import COLLAPSE, CollapseMeasured, CollapseTheory
from lrdyn.verification.stating.statement import Outcome
from tests import oracles
from tests.oracles import assert_apart, assert_close, assert_zero, classification, double, normal

pytestmark = pytest.mark.usefixtures("strict")

ETA = 0.05
STEPS = np.array([0, 1, 10, 60])
HOW = {"steps": 60, "size": 10}

compiled = oracles.Compiled(classifier)
compiled_collapse = oracles.Compiled(collapse)


@jax.jit
def full_run(weights, inputs, outputs, eta, decay, steps):
    rule = lr.gradient_descent(eta, decay)
    return lr.simulate(lambda w: regression_loss(w, inputs, outputs), weights, rule, steps).records


@jax.jit
def measure(data, run):
    frame = classifier.classifier_frame(data.weights, data.outputs @ data.inputs.T)
    return jax.vmap(lambda w: classifier.classifier_blocks(frame, w, 2 * len(data.outputs)))(run)


def measured(data, decay):
    run = full_run(data.weights, data.inputs, data.outputs, ETA, np.array(decay), STEPS)
    return measure(data, run)


def test_the_frame_is_orthogonal_chained_and_leaves_the_null_spaces(dtype):
    """Those of the target and of the start."""
    W, X, Y, _, scales = jax.device_get(classification())
    U, V = jax.device_get(compiled.classifier_frame(W, Y @ X.T))
    assert U.shape == V.shape == (2, 10, 10)
    for Q in (*U, *V):
        assert_close(Q.T @ Q, np.eye(10), size=10, steps=len(W))
    assert_close(V[1:], U[:-1])
    assert_close(W[0] @ V[0], scales[0] * U[0], size=10)
    bulk = V[0][:, 4:]
    assert_zero((Y @ X.T @ bulk, np.linalg.multi_dot(W[::-1]) @ bulk), size=10, scale=1)


CASES = [(0, (0.0,) * 3), (1, (0.1,) * 3), (2, (0.0, 0.3, 0.1))]


@pytest.mark.parametrize(("seed", "decay"), CASES)
def test_off_blocks_vanish_and_the_bulk_only_decays(seed, decay, dtype):
    data = classification(seed)
    seen = measured(data, decay)
    assert seen.off_block.shape == (4, 3)
    assert_zero((seen.off_block, seen.bulk_deviation), scale=1, **HOW)
    expected = 0.5 * (1 - ETA * np.array(decay[:2])) ** STEPS[:, None]
    assert_close(seen.rho, expected, scale=1, **HOW)
    found = compiled.classifier_rho(data.scales[:-1], ETA, np.array(decay[:-1]), STEPS)
    assert_close(found, expected, steps=60)


def test_reduced_run_gives_the_moving_blocks(dtype):
    """Layers of 2K x 2K, the last K x 2K, on the target Phi V_{1,1}."""
    W, X, Y, _, _ = data = classification()
    decay = np.array([0.0, 0.1, 0.2])
    frame = compiled.classifier_frame(W, np.asarray(Y) @ np.asarray(X).T)
    start = compiled.classifier_start(frame, W, 4)
    U, V = jax.device_get(frame)
    reduced = full_run(start, V[0, :, :4].T @ np.asarray(X), Y, ETA, decay, STEPS)
    assert_close(np.stack(reduced[:-1], axis=1), measured(data, decay).inner, **HOW)
    last = full_run(W, X, Y, ETA, decay, STEPS)[-1]
    assert_close(np.asarray(reduced[-1]) @ U[-1, :, :4].T, last, **HOW)


def test_theorem_2_with_its_product_term_fails_here(dtype):
    data = classification()
    with_product = oracles.rho(data.scales, ETA, (0.0,) * 3, STEPS)
    assert_apart(measured(data, (0.0,) * 3).rho, with_product[:, :2])


@pytest.mark.parametrize("kind", ["data not white", "Gaussian start"])
def test_without_a_hypothesis_the_blocks_mix(kind, dtype):
    data = classification()
    if kind == "data not white":
        data = data._replace(inputs=data.inputs * jnp.linspace(0.9, 1.1, 10)[:, None])
    else:
        draws = normal(7, (10, 10), (10, 10), (2, 10))
        data = data._replace(weights=tuple(jnp.asarray(0.5 * W / np.sqrt(10)) for W in draws))
    final = np.asarray(measured(data, (0.0,) * 3).off_block[-1])
    assert np.all(final > np.sqrt(np.finfo(dtype).eps))


NARROW, SHAPE = (np.eye(4), np.eye(2, 4)), r"target: got shape \(2, 4\), wanted more than twice"
test_classifier_frame_refuses = oracles.refuses(
    (lambda: compiled.classifier_frame(NARROW, np.ones((2, 4))), SHAPE),
)


def test_collapse_metrics_agree_with_loops(dtype):
    W, X, _, labels, _ = classification()
    X, labels = np.asarray(X) + 0.3 * normal(6, X.shape)[0] + 1, np.asarray(labels)
    order = np.random.default_rng(4).permutation(10)
    found = compiled_collapse.collapse_metrics(W, X[:, order], labels[order], 2)
    layers = double(W)
    expected = [oracles.collapse(oracles.product(layers[:l], 10) @ X, labels) for l in range(3)]
    assert_close(found, expected, size=100)


@given(st.floats(-10, 10), st.floats(0.1, 10))
def test_collapse_ignores_shift_scale_and_rotation(shift, scale):
    (W, *_), X, _, labels, _ = jax.device_get(classification())
    metric = partial(compiled_collapse.collapse_metrics, (np.eye(10),), labels=labels, classes=2)
    # The mean of a shifted feature takes digits from the variance: shift / spread of them.
    size = 10 * (1 + int(shift / scale) ** 2) * 100
    assert_close(metric(scale * W @ X + shift), metric(X), size=size)


def test_collapsed_classes_have_no_variance_within():
    _, _, Y, labels, _ = classification()
    assert compiled_collapse.collapse_metrics((np.eye(2),), Y, labels, 2).tolist() == [0]


@partial(jax.jit, static_argnames=("depth", "per_class", "steps"))
def collapse_at_convergence(depth, per_class, scale, eta, steps):
    W, X, Y, labels, _ = classification(classes=5, per_class=per_class, depth=depth)
    W = tuple(w / 0.5 * scale for w in W)

    def loss(w):
        return regression_loss(w, X, Y)

    run = lr.simulate(loss, W, lr.gradient_descent(eta), np.array([steps]))
    return loss(run.params) / loss(W), collapse.collapse_metrics(run.params, X, labels, 5)


def measured_ratio(depth, per_class, scale, eta, steps):
    left, D = collapse_at_convergence(depth, per_class, scale, eta, steps)
    assert float(left) < np.finfo(float).eps
    return float((D[-1] / D[0]) ** (1 / (depth - 1))), double(D)


@pytest.mark.parametrize(
    ("depth", "eta", "steps", "figures"),
    [(6, 0.02, 1500, "0.170"), (8, 0.0125, 1500, "0.187"), (10, 0.01, 3000, "0.199")],
)
def test_collapse_ratio_is_approached_from_below(depth, eta, steps, figures):
    """At convergence ((d-2K)/(d-K))^{1/(L-1)} (1-p)^{1/L} <= ratio / p < 1, p = eps^2 / n^{1/L}.

    Of the d - K directions within classes, d - 2K are bulk and scale by eps exactly, the others by
    less; balance keeps the signal's squared gain between n^{1/L} and n^{1/L} (1-p)^{-1/L}.
    """
    ratio, D = measured_ratio(depth, 10, 0.5, eta, steps)
    p = collapse.collapse_ratio(0.5, 10, depth)
    assert f"{p:.3f}" == figures
    lowest = (40 / 45) ** (1 / (depth - 1)) * (1 - p) ** (1 / depth)
    assert lowest <= ratio / p < 1
    assert_close(collapse.collapse_lower_bound(jnp.asarray(p), 50, 5, depth), lowest)
    assert np.all(D[1:] / D[:-1] < p)


def test_gap_of_the_collapse_ratio_halves_with_twice_the_examples():
    gaps = [
        1 - measured_ratio(4, n, 0.25, eta, 1000)[0] / collapse.collapse_ratio(0.25, n, 4)
        for n, eta in ((5, 0.06), (10, 0.04))
    ]
    assert gaps[0] / gaps[1] == pytest.approx(2, abs=0.5)


@pytest.mark.parametrize(("left", "reason"), [(99, ""), (101, "too few steps")])
def test_collapse_is_claimed_once_the_loss_of_theory_is_rounding(left, reason):
    loss = np.array([2.0, 2.0 * left * np.finfo(float).eps])
    outcome = Outcome(
        {},
        CollapseTheory(collapse_loss=jnp.asarray(loss)),
        CollapseMeasured(),
        {},
        np.dtype(float),
        50,
        9,
    )
    at_convergence = [claim for claim in COLLAPSE.claims if claim.id != "collapse_loss"]
    assert [claim.undecided and claim.undecided(outcome) for claim in at_convergence] == [
        reason,
        reason,
    ]
