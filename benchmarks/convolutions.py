"""Convolutions of small images on a CPU, with the gradient, against XLA's own.

``lrdyn.networks`` convolves an image that is smaller than the kernel by a matrix product for each
place of the kernel; the rival is ``equinox.nn.Conv2d``, which is XLA's convolution. Kernels of
3 x 3, float32. *VGG-16* is a step's loss and gradient on images of 32 x 32, the last three of its
13 convolutions being of 2 x 2 pixels; its rival is the same network with XLA's convolution in all
of them.
"""

from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import equinox as eqx
import jax
import jax.numpy as jnp

from benchmarks.common import table, timed
from lrdyn import networks
from lrdyn.networks import convolution

HEADER = ("pixels", "channels", "images", "XLA ms", "ms", "of XLA's")
SIDES = (1, 2, 4)


def single(tree: Any) -> Any:
    """Every array in float32."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)


def xla(layer: eqx.nn.Conv2d, image: jax.Array) -> jax.Array:
    """The convolution of XLA."""
    return layer(image)


def layer_calls(side: int, channels: int, images: int) -> dict[str, Callable[[], Any]]:
    """Loss and gradient of one layer, by XLA and as the networks have it."""
    layer = single(convolution.convolution(jax.random.key(0), channels, channels).convolution)
    batch = jnp.ones((images, channels, side, side), jnp.float32)

    def call(apply: Callable[..., jax.Array]) -> Callable[[], Any]:
        def loss(layer: eqx.nn.Conv2d, batch: jax.Array) -> jax.Array:
            return jnp.sum(jax.vmap(lambda image: apply(layer, image))(batch) ** 2)

        step = jax.jit(jax.grad(loss, argnums=(0, 1)))
        return lambda: step(layer, batch)

    return {"XLA": call(xla), "ours": call(convolution.apply_convolution)}


def network_calls(layers: Sequence[Any], side: int, images: int) -> dict[str, Callable[[], Any]]:
    """Loss and gradient of a VGG with batch normalisation, with either."""
    drawn = networks.vgg(jax.random.key(0), layers, size=side, hidden=(512,), batch_norm=True)
    net, state = single((drawn, networks.initial_state(drawn)))
    batch = jnp.ones((images, 3, side, side), jnp.float32)
    labels = jnp.zeros(images, jnp.int32)

    def loss(net: networks.VGG) -> jax.Array:
        outputs, _ = networks.apply(net, batch, key=jax.random.key(1), state=state)
        return networks.cross_entropy(outputs, labels)

    def compiled(apply: Callable[..., jax.Array]) -> Callable[[], Any]:
        with mock.patch.object(convolution, "apply_convolution", apply):
            program = jax.jit(jax.grad(lambda net: loss(net))).lower(net).compile()
        return lambda: program(net)

    return {"XLA": compiled(xla), "ours": compiled(convolution.apply_convolution)}


def report(
    sides: Sequence[int] = SIDES,
    channels: int = 512,
    images: int = 128,
    *,
    layers: Sequence[Any] = networks.VGG16,
    side: int = 32,
    repeats: int = 3,
) -> str:
    """Milliseconds of a gradient, by XLA and by the networks, and their ratio."""
    rows = []
    for small in sides:
        times = timed(layer_calls(small, channels, images), repeats)
        rows.append((f"{small} x {small}", channels, images, times))
    rows.append(("VGG-16", "3-512", images, timed(network_calls(layers, side, images), repeats)))
    cells = [
        (
            *map(str, where),
            f"{1000 * times['XLA'].best:,.0f}",
            f"{1000 * times['ours'].best:,.0f}",
            f"{times['ours'].best / times['XLA'].best:.2f}",
        )
        for *where, times in rows
    ]
    return table(HEADER, cells)
