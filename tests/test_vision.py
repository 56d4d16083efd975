"""Networks of images: parameters; outputs and gradients of torchvision and timm; training."""

from functools import partial
from pathlib import Path
from typing import Any

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lrdyn.networks import (
    VGG11,
    apply,
    cross_entropy,
    enough_classes,
    initial_state,
    matrices,
    mlp,
    penultimate,
    resnet,
    vgg,
    vit,
)
from lrdyn.networks.convolution import apply_convolution, convolution
from lrdyn.training import Batches, train
from tests.oracles import refuses

pytestmark = pytest.mark.usefixtures("strict")

KEY = jax.random.key(0)
STORED = np.load(Path(__file__).with_name("data") / "networks.npz")
LABELS = jnp.arange(4) % 5


@pytest.mark.parametrize(
    ("make", "named", "count"),
    [
        (vgg, {}, 14_719_818),
        (vgg, {"hidden": (512,)}, 14_982_474),
        (vgg, {"batch_norm": True}, 14_728_266),
        (vgg, {"hidden": (512,), "batch_norm": True}, 14_990_922),
        (vgg, {"layers": VGG11}, 9_225_610),
        (resnet, {}, 11_173_962),
        (resnet, {"stem": "imagenet", "classes": 1000}, 11_689_512),
        (vit, {}, 85_806_346),
        (vit, {"classes": 1000}, 86_567_656),
    ],
)
def test_parameters(make, named, count):
    network = eqx.filter_eval_shape(lambda: make(KEY, **named))
    assert sum(leaf.size for leaf in jax.tree.leaves(network)) == count


# Against torchvision and timm -------------------------------------------------------------------


def drawn(rng, shape):
    """As in tests/data/make_networks.py."""
    found = rng.standard_normal(shape)
    return found / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.5 + found / 4


def convolutions(network):
    """Parameters in the order and the shapes of PyTorch; biases of channels are vectors."""
    return [x.ravel() if x.ndim == 3 else x for x in jax.tree.leaves(network)]


def layers(network):
    return [x for pair in zip(network.weights, network.biases, strict=True) for x in pair]


def norm(norm):
    return [norm.gain, norm.bias]


def transformer(network):
    def block(one):
        at = one.attention
        together = [at.query, at.key, at.value], at.biases[:3]
        attention = [*map(jnp.concatenate, together), at.output, at.biases[3]]
        return [*norm(one.first), *attention, *norm(one.second), *layers(one.mlp)]

    start = [network.token[None, None], network.position]
    patches = [network.patches.weight, network.patches.bias.ravel()]
    blocks = [x for one in network.blocks for x in block(one)]
    return [*start, *patches, *blocks, *norm(network.norm), network.head.weight, network.head.bias]


SMALL_VGG = {"layers": (4, "pool", 6, 5, "pool"), "size": 8, "hidden": (7,), "classes": 5}
NORMED = SMALL_VGG | {"batch_norm": True}
SMALL_RESNET = {"blocks": (2, 1), "widths": (4, 6), "classes": 5}
LARGE_STEM = SMALL_RESNET | {"stem": "imagenet"}
SMALL_VIT = {
    "size": 8,
    "patch": 4,
    "width": 6,
    "depth": 2,
    "heads": 3,
    "hidden": 12,
    "classes": 5,
}
SMALL = {
    "mlp": (mlp, {"sizes": (4, 6, 7, 5)}, layers, (4,)),
    "vgg": (vgg, SMALL_VGG, convolutions, (3, 8, 8)),
    "vgg_training": (vgg, NORMED, convolutions, (3, 8, 8)),
    "vgg_evaluation": (vgg, NORMED, convolutions, (3, 8, 8)),
    "resnet_training": (resnet, SMALL_RESNET, convolutions, (3, 6, 6)),
    "resnet_evaluation": (resnet, SMALL_RESNET, convolutions, (3, 6, 6)),
    "resnet_imagenet": (resnet, LARGE_STEM, convolutions, (3, 12, 12)),
    "vit": (vit, SMALL_VIT, transformer, (3, 8, 8)),
}


def zeros(make, named):
    like = eqx.filter_eval_shape(lambda: make(KEY, **named))
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)


def filled(network, ordered, rng):
    """The network with drawn parameters: what turns a permutation back is its transpose."""
    values = [jnp.asarray(drawn(rng, x.shape)) for x in jax.eval_shape(ordered, network)]
    return jax.jit(lambda values: jax.linear_transpose(ordered, network)(values)[0])(values)


def assert_stored(found, name):
    """At 1e-9 of the largest entry, the accuracy that the references are asked for."""
    expected = STORED[name]
    assert found.shape == expected.shape
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize("name", SMALL)
def test_outputs_and_gradients_are_those_of_torch(name):
    make, named, ordered, shape = SMALL[name]
    rng = np.random.default_rng(0)
    network = filled(zeros(make, named), ordered, rng)
    state = jax.tree.map(lambda x: drawn(rng, x.shape), initial_state(network))
    state = tuple((jnp.asarray(mean), jnp.exp(variance)) for mean, variance in state)
    images = jnp.asarray(drawn(rng, (4, *shape)) * np.sqrt(np.prod(shape)))
    training = f"{name}.statistics" in STORED

    def loss(network, state):
        outputs, after = apply(network, images, key=KEY if training else None, state=state)
        return cross_entropy(outputs, LABELS), (outputs, after)

    gradient, (outputs, after) = jax.jit(jax.grad(loss, has_aux=True))(network, state)
    assert_stored(outputs, f"{name}.outputs")
    flat = [x.ravel() for x in ordered(gradient)]
    assert_stored(np.concatenate(flat), f"{name}.gradient")
    if training:
        assert_stored(np.concatenate(jax.tree.leaves(after)), f"{name}.statistics")
    else:
        assert all(map(np.array_equal, jax.tree.leaves(after), jax.tree.leaves(state)))


# Training -----------------------------------------------------------------------------------------

TRAINED = {
    "mlp": (mlp, {"sizes": (192, 6, 5), "dropout": 0.2}),
    "vgg": (vgg, NORMED | {"layers": (4, "pool"), "hidden": ()}),
    "resnet": (resnet, SMALL_RESNET | {"blocks": (1,), "widths": (4,)}),
    "vit": (vit, SMALL_VIT | {"depth": 1}),
}


@pytest.mark.parametrize("name", TRAINED)
def test_a_training_lowers_the_loss_and_renews_the_statistics(name):
    make, named = TRAINED[name]
    network, rng = make(KEY, **named), np.random.default_rng(0)
    state = initial_state(network)
    images, labels = rng.standard_normal((10, 3, 8, 8)), np.arange(10) % 5

    def loss(network, state, batch, key):
        logits, state = apply(network, batch["images"], key=key, state=state)
        return cross_entropy(logits, batch["labels"]), (state, {})

    batches = Batches({"images": images, "labels": labels})
    how = {"state": state, "record": lambda params, state: jnp.zeros(())}
    with jax.numpy_dtype_promotion("standard"):  # for optax's Adam
        run = train(KEY, loss, network, optax.adam(0.01), batches, (0, 1, 30), **how)
    _, first, last = run.metrics["loss"]
    assert last < 0.8 * first
    assert run.diverged_at == -1
    moved = [
        np.abs(new - old).max()
        for new, old in zip(jax.tree.leaves(run.state), jax.tree.leaves(state), strict=True)
    ]
    assert bool(moved) == (name in ("vgg", "resnet"))
    assert all(change > 0 for change in moved)


def test_dropout_acts_on_the_last_hidden_activations_in_training_alone():
    network = mlp(KEY, (6, 400, 3), dropout=0.6)
    x, key = jnp.ones(6), jax.random.key(1)

    @jax.jit
    def looked(net):
        hidden = net.features(x)
        # The gradient of a sum of outputs with respect to W_L is what W_L gets.
        got = jax.grad(lambda net: jnp.sum(net(x, key=key)))(net).weights[1][0]
        return hidden, net.features(x, key=key), net(x), net.last(hidden), got

    hidden, noisy, outputs, expected, got = map(np.asarray, looked(network))
    assert np.array_equal(noisy, hidden)
    np.testing.assert_allclose(outputs, expected, rtol=1e-12)
    kept = got != 0
    np.testing.assert_allclose(got[kept], hidden[kept] / 0.4, rtol=1e-12)
    assert abs(np.mean(kept) - 0.4) < 4 * np.sqrt(0.24 / 400)


def test_dropout_of_a_batch_differs_between_examples_and_keys():
    network = vit(KEY, **SMALL_VIT | {"depth": 1}, dropout=0.5)
    images = jnp.ones((2, 3, 8, 8))
    call = jax.jit(lambda net, key: apply(net, images, key=key))
    one, other = (np.asarray(call(network, jax.random.key(k))) for k in (1, 2))
    assert not np.allclose(one[0], one[1])
    assert not np.allclose(one, other)
    plain = np.asarray(jax.jit(lambda net: apply(net, images))(network))
    np.testing.assert_allclose(plain[0], plain[1], rtol=1e-12)


def test_a_traced_label_without_an_output_costs_nan():
    logits, labels = jnp.ones((2, 3)), jnp.array([0, 3])
    assert np.isnan(jax.jit(cross_entropy)(logits, labels))


# Weights ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "named", "count", "shape"),
    [
        (mlp, {"sizes": (784, 512, 256, 10)}, 3, (256, 512)),
        (vgg, {"hidden": (512,)}, 15, (512, 512)),
        (vgg, {}, 14, (512, 512 * 9)),
        (resnet, {}, 21, (512, 512 * 9)),
        (vit, {}, 12 * 6 + 2, (768, 3072)),
    ],
)
def test_matrices_and_the_penultimate_one(make, named, count, shape):
    network = eqx.filter_eval_shape(lambda: make(KEY, **named))
    found = eqx.filter_eval_shape(matrices, network)
    assert len(found) == count
    assert found[penultimate(network)].shape == shape


def test_a_kernel_as_a_matrix_maps_a_patch():
    network = vgg(KEY, (4, "pool", 6), size=4, channels=2)
    layer = network.layers[2]
    assert layer is not None
    patch = np.random.default_rng(0).standard_normal((4, 3, 3))
    expected = [np.sum(one * patch) for one in np.asarray(layer.convolution.weight)]
    found = np.asarray(matrices(network)["layers[2].convolution.weight"]) @ patch.ravel()
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("sides", "kernel", "stride"), [((2, 2), 3, 1), ((1, 5), 3, 2), ((4, 1), 5, 1)]
)
def test_images_smaller_than_a_kernel_are_convolved_as_others_are(sides, kernel, stride):
    """Values and both gradients, where XLA's own convolution is slow on a CPU."""
    layer = convolution(KEY, 3, 4, kernel=kernel, stride=stride, bias=True).convolution
    image = jax.random.normal(KEY, (3, *sides))

    @partial(jax.jit, static_argnums=0)
    def both(apply, layer, image):
        values, pull = jax.vjp(apply, layer, image)
        return values, pull(jnp.sin(values))

    plain = both(lambda layer, image: layer(image), layer, image)
    chex.assert_trees_all_close(both(apply_convolution, layer, image), plain, atol=1e-13)


def test_how_weights_start():
    """Mean squares times inputs, whose relative standard error is sqrt(2 / n)."""
    network = vgg(KEY, (30, "pool", 40), size=4, hidden=(50,), classes=60)
    for path, W in jax.device_get(matrices(network)).items():
        variance = (1 if path == "head.weight" else 2) / W.shape[1]
        assert abs(np.mean(W**2) / variance - 1) < 4 * np.sqrt(2 / W.size), path
    small = vit(KEY, **SMALL_VIT | {"depth": 1})
    entries = np.concatenate([np.ravel(W) for W in matrices(small).values()])
    assert abs(np.mean(entries**2) / 0.02**2 - 1) < 4 * np.sqrt(2 / entries.size)
    assert all(not np.any(b) for b in jax.tree.leaves(small.blocks[0].attention.biases))
    assert small.norm.gain.tolist() == [1] * 6


LARGE: Any = {"stem": "large"}
TINY_VGG: Any = {"layers": (2, "pool"), "size": 4}
test_networks_of_images_refuse = refuses(
    (lambda: vgg(KEY, size=16), "size: got 16, wanted at least 32, so that 5 poolings"),
    (lambda: vgg(KEY, (4, 0)), r"layers: got \[4, 0\], wanted 1 or more integers >= 1"),
    (lambda: vgg(KEY, (4, "mean")), "layers: got .*'mean'.* wanted numbers of channels and 'pool'"),
    (lambda: vgg(KEY, hidden=(0,)), r"hidden: got \(0,\), wanted"),
    (lambda: vgg(KEY, dropout=-0.1), "dropout: got -0.1, wanted at least 0, below 1"),
    (lambda: vgg(KEY, **TINY_VGG)(jnp.ones((3, 2, 2))), r"image: got shape \(3, 2, 2\), wanted"),
    (lambda: resnet(KEY, dropout=1.0), "dropout: got 1.0, wanted at least 0, below 1"),
    (lambda: resnet(KEY, (1,), widths=(0,)), r"widths: got \(0,\), wanted"),
    (lambda: resnet(KEY, (1,), widths=(4, 4)), r"widths: got \(4, 4\), wanted"),
    (lambda: resnet(KEY, **LARGE), "stem: got 'large', wanted one of"),
    (lambda: vit(KEY, **SMALL_VIT)(jnp.ones((3, 2, 2))), r"image: got shape \(3, 2, 2\), wanted"),
    (lambda: vit(KEY, size=8, patch=16), "size: got 8 with patch 16, wanted a multiple of the"),
    (lambda: vit(KEY, width=0), "width: got 0, wanted at least 1"),
    (lambda: vit(KEY, width=10, heads=3), "heads: got 3 with width 10, wanted a divisor"),
    (lambda: vit(KEY, dropout=1.5), "dropout: got 1.5, wanted at least 0, below 1"),
    (lambda: vit(KEY, classes=0), "classes: got 0, wanted at least 1"),
    (lambda: enough_classes(5, np.array([0, 7])), "classes: got 5, wanted at least 8: there is a"),
    (lambda: cross_entropy(jnp.ones((2, 3)), jnp.array([0, 3])), "classes: got 3, wanted at least"),
    (
        lambda: apply(vgg(KEY, **TINY_VGG, batch_norm=True), jnp.ones((1, 3, 4, 4))),
        "state: got NoneType, wanted initial_state",
    ),
    (lambda: mlp(KEY, (4, 3))(jnp.ones((1, 2, 3))), r"image: got shape \(1, 2, 3\), wanted 4 entr"),
    (lambda: penultimate(mlp(KEY, (3, 2))), "network: got a single layer, wanted two or more"),
)
