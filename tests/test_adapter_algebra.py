"""Adapters as matrices: what they add, scale, take back and stand for, in NumPy."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrdyn import adapters
from lrdyn.adapters import memory, methods, projectors
from lrdyn.adapters.adapter import Frozen
from lrdyn.adapters.array_like import Adapted
from tests.oracles import normal

KEY = jax.random.key(5)
WIDE, TALL, SQUARE, FLAT = (jnp.asarray(x) for x in normal(3, (4, 6), (6, 4), (4, 4), (2, 6)))
B, B_0, A, A_0 = WIDE[:, :2], jnp.ones((4, 2)) / 3, FLAT, FLAT / 2
MIDDLE, MAGNITUDE = SQUARE[:2, :2], jnp.arange(1.0, 5.0)


def rows_of_norm(matrix, norms):
    return np.asarray(norms)[:, None] * matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


ADAPTERS = {
    "LoRA": (
        adapters.Factors(B, A, jnp.asarray(1.7)),
        lambda W, c: W + c * 1.7 * np.asarray(B @ A),
    ),
    "with a start": (
        adapters.Factors(B, A, jnp.asarray(1.7), start=(B_0, A_0)),
        lambda W, c: W + c * 1.7 * np.asarray(B @ A - B_0 @ A_0),
    ),
    "DoRA": (
        adapters.DirectedFactors(B, A, jnp.asarray(0.6), magnitude=MAGNITUDE),
        lambda W, c: rows_of_norm(W + c * 0.6 * np.asarray(B @ A), MAGNITUDE),
    ),
    "Deep LoRA": (
        adapters.DeepFactors((B, MIDDLE, A), jnp.asarray(1.3), (B_0, A_0)),
        lambda W, c: W + c * 1.3 * np.asarray(B @ MIDDLE @ A - B_0 @ A_0),
    ),
}


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("factor", [1.0, 0.4])
def test_a_scaled_adapter_adds_so_many_times_its_product(name, factor):
    adapter, whole = ADAPTERS[name]
    W = np.asarray(WIDE)
    np.testing.assert_allclose(adapter.scaled(factor).onto(WIDE), whole(W, factor), atol=1e-12)


@pytest.mark.parametrize("name", ["LoRA", "with a start", "Deep LoRA"])
def test_what_was_merged_is_taken_off_again(name):
    adapter, _ = ADAPTERS[name]
    np.testing.assert_allclose(adapter.unmerge(adapter.onto(WIDE)), WIDE, atol=1e-12)
    # What is subtracted goes into W: the sum stays.
    rebased = adapter.without_start().onto(adapter.base(WIDE))
    np.testing.assert_allclose(rebased, adapter.onto(WIDE), atol=1e-12)


@pytest.mark.parametrize("name", ADAPTERS)
def test_what_stands_for_a_matrix_multiplies_as_it(name):
    adapter, whole = ADAPTERS[name]
    W, dense = Adapted(WIDE, adapter), whole(np.asarray(WIDE), 1.0)
    for found, expected in (
        (W @ TALL, dense @ TALL),
        (W @ FLAT[0], dense @ FLAT[0]),
        (FLAT[0] @ W.T, FLAT[0] @ dense.T),
        (W.T @ WIDE[:, 0], dense.T @ WIDE[:, 0]),
        (W.T @ WIDE, dense.T @ WIDE),
        (SQUARE @ W, SQUARE @ dense),
        (SQUARE[0] @ W, SQUARE[0] @ dense),
        (TALL.T @ W.T, TALL.T @ dense.T),
        (W[jnp.array([0, 3])], dense[[0, 3]]),
    ):
        np.testing.assert_allclose(found, expected, atol=1e-12)
    for wrong in (lambda: W[0, 1], lambda: W.T[jnp.array(0)]):
        with pytest.raises(TypeError, match="ids: got"):
            wrong()


def test_a_parameter_that_is_not_trained_stays_and_takes_no_start():
    assert Frozen().onto(WIDE) is WIDE
    wrong: Any = Frozen
    with pytest.raises(TypeError, match="start"):
        wrong(start=None)


def test_the_frame_of_a_compressed_network_is_labelled_apart():
    four = (B, MIDDLE, MIDDLE, A)
    plain, framed = (adapters.DeepFactors(four, 1.0, framed=framed) for framed in (False, True))
    assert jax.tree.leaves(adapters.labels({"W": plain})["W"].factors) == ["factors"] * 4
    outer_and_inner = ["frame", "inner", "inner", "frame"]
    assert jax.tree.leaves(adapters.labels({"W": framed})["W"].factors) == outer_and_inner


# Methods --------------------------------------------------------------------------------------


def chosen(method, shape, rank=2):
    (gradient,) = normal(7, shape)
    return method.choose(KEY, {"W": jnp.asarray(gradient)}, rank, method.side)["W"], gradient


def spectrum(matrix):
    return np.linalg.svd(np.asarray(matrix), compute_uv=False)


CHOICES = [*itertools.product([(4, 6), (6, 4)], [2, 3, 4], [False, True])]


@pytest.mark.parametrize(("shape", "depth", "centred"), CHOICES)
def test_deep_lora_begins_with_scaled_orthogonal_factors(shape, depth, centred):
    method = methods.deep_lora(depth=depth, init_scale=0.2, centred=centred)
    adapter, _ = chosen(method, shape)
    (m, n), inner = shape, [(2, 2)] * (depth - 2)
    assert [F.shape for F in adapter.factors] == [(m, 2), *inner, (2, n)]
    for F in adapter.factors:
        np.testing.assert_allclose(spectrum(F), [0.2, 0.2], rtol=1e-12)
    assert (adapter.start is not None) is centred
    weight = jnp.zeros(shape)
    moved = np.linalg.norm(adapter.onto(weight))
    np.testing.assert_allclose(moved, 0.0 if centred else 2**0.5 * 0.2**depth, atol=1e-14)
    assert (method.once, method.gradients, method.side) == (True, False, "right")


@pytest.mark.parametrize(("shape", "depth", "centred"), CHOICES)
def test_compressed_deep_lora_has_orthonormal_frames_around_layers_eps_i(shape, depth, centred):
    """U (eps I) ... (eps I) V^T, with orthonormal U and V."""
    method = methods.compressed_deep_lora(depth=depth, init_scale=0.2, centred=centred)
    adapter, _ = chosen(method, shape)
    left, *inner, right = (np.asarray(F) for F in adapter.factors)
    assert (left.shape, right.shape, len(inner)) == ((shape[0], 2), (2, shape[1]), depth)
    for frame in (left.T @ left, right @ right.T):
        np.testing.assert_allclose(frame, np.eye(2), atol=1e-12)
    for layer in inner:
        np.testing.assert_allclose(layer, 0.2 * np.eye(2), atol=1e-12)
    assert (adapter.start is not None) is centred
    np.testing.assert_allclose(
        spectrum(adapter.onto(jnp.zeros(shape)))[:2], 0.0 if centred else 0.2**depth, atol=1e-14
    )
    assert (method.once, adapter.framed) == (True, True)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4)])
@pytest.mark.parametrize("depth", [2, 3, 5])
def test_full_width_layers_are_as_wide_as_the_shorter_side(shape, depth):
    layers = methods.full_width_layers(KEY, shape, depth, 0.3)
    width = min(shape)
    sizes = [shape[1], *[width] * (depth - 1), shape[0]]
    assert [W.shape for W in layers] == list(zip(sizes[1:], sizes[:-1], strict=True))
    for W in layers:
        np.testing.assert_allclose(spectrum(W), np.full(width, 0.3), rtol=1e-12)


@pytest.mark.parametrize("shape", [(5, 4), (4, 4), (4, 5)])
@pytest.mark.parametrize("rank", [2, 4])
def test_compressed_factors_span_the_gradient_of_the_first_layer(shape, rank):
    layers = methods.full_width_layers(KEY, shape, 3, 0.3)
    (gradient,) = normal(9, shape)
    factors, _ = methods.compressed_factors(layers, jnp.asarray(gradient), rank)
    left, *inner, right = (np.asarray(F) for F in factors)
    whole = np.asarray(layers[2] @ layers[1] @ layers[0])
    network = left @ inner[0] @ inner[1] @ inner[2] @ right
    # The network is that of full width, on the basis of its longer side.
    onto = left @ left.T @ whole if shape[0] < shape[1] else whole @ right.T @ right
    np.testing.assert_allclose(network, onto, atol=1e-12)
    half = rank // 2
    if shape[0] < shape[1]:  # of the last layer's transposed gradient
        slope = gradient @ np.asarray(layers[1] @ layers[0]).T
        frame, first = left, np.linalg.svd(slope)[0][:, :half]
    else:
        slope = np.asarray(layers[2] @ layers[1]).T @ gradient
        frame, first = right.T, np.linalg.svd(slope)[2][:half].T
    np.testing.assert_allclose(frame @ frame.T @ first, first, atol=1e-10)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("make", [methods.deep_lora, methods.compressed_deep_lora])
def test_a_deep_adapter_holds_as_many_weights_as_the_page_says(make, depth, centred):
    method = make(depth=depth, init_scale=0.2, centred=centred)
    adapter, gradient = chosen(method, (4, 6))
    held = gradient.size + sum(np.size(x) for x in jax.tree.leaves(adapter))
    assert memory.weights_held(method, 4, 6, 2) == held
    trained = sum(F.size for F in adapter.factors)
    assert memory.adam_state(method, 4, 6, 2) == 2 * trained


@pytest.mark.parametrize("side", ["left", "right"])
def test_dora_begins_at_w_with_the_norms_of_its_rows(side):
    basis = (SQUARE if side == "left" else TALL)[:, :2]
    drawn = methods.directed_factors(projectors.Projector(basis, side), WIDE, jnp.ones(()))
    np.testing.assert_allclose(drawn.magnitude, np.linalg.norm(WIDE, axis=1), rtol=1e-12)
    np.testing.assert_allclose(drawn.onto(WIDE), WIDE, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize(("side", "basis"), [("left", 0), ("right", 2)])
def test_a_projector_is_on_the_leading_singular_vectors(rank, side, basis):
    found = np.asarray(projectors.top_singular_projector(WIDE, rank, side).basis)
    u, _, v = np.linalg.svd(np.asarray(WIDE), full_matrices=False)
    leading = (u, None, v.T)[basis][:, :rank]
    assert found.shape == leading.shape
    np.testing.assert_allclose(np.abs(found.T @ leading), np.eye(rank), atol=1e-12)


NEGATIVE = "depth: got 1, wanted at least 2"


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: methods.deep_lora(depth=1), NEGATIVE),
        (lambda: methods.compressed_deep_lora(depth=1), NEGATIVE),
        (lambda: methods.full_width_layers(KEY, (3, 5), 1, 0.1), NEGATIVE),
        (lambda: methods.deep_lora(init_scale=-1.0), "init_scale: got -1.0, wanted > 0"),
        (lambda: methods.compressed_deep_lora(init_scale=0.0), "init_scale: got 0.0, wanted > 0"),
        (
            lambda: methods.full_width_layers(KEY, (3, 5), 2, -0.1),
            "init_scale: got -0.1, wanted > 0",
        ),
        (
            lambda: methods.full_width_layers(KEY, (3, 5), 2**50, 0.1),
            "depth: got 1125899906842624, for which",
        ),
        (
            lambda: methods.jagged(lambda t: 1.0, period=4, warmup=2, start=-1),
            "start: got -1, wanted at least 0",
        ),
        (lambda: projectors.adapter_of("text", FLAT, 1.0), "got type str"),  # type: ignore[arg-type]
        (
            lambda: methods.directed_factors(
                projectors.Projector(SQUARE[:, :2], "left"), TALL, jnp.ones(())
            ),
            r"weight: got shape \(6, 4\), wanted \(4, n\)",
        ),
    ],
)
def test_a_call_that_makes_no_sense_names_its_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()
