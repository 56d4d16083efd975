"""VGG: 3 x 3 convolutions and poolings in a row, then a classifier of fully connected layers."""

from collections.abc import Sequence
from itertools import count, pairwise
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from lrdyn.core import checks
from lrdyn.core.checks import checked
from lrdyn.networks.convolution import Convolution, convolution
from lrdyn.networks.network import Network, checked_dropout
from lrdyn.networks.weights import draw_weights

VGG11 = (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool")
"""Layers of configuration A: eight convolutions."""
VGG16 = (
    *(64, 64, "pool"),
    *(128, 128, "pool"),
    *(256, 256, 256, "pool"),
    *(512, 512, 512, "pool"),
    *(512, 512, 512, "pool"),
)
"""Layers of configuration D: thirteen convolutions."""


class VGG(Network):
    """f(x) = W_L relu(W_{L-1} ... c(x)), c = relu of a convolution, or a maximum over 2 x 2 pixels.

    Args:
        layers: the convolutions, None for each pooling.
        classifier: the hidden layers after them, relu behind each.
        head: W_L.
        size: pixels of a side of an image.
        pool: pixels of a side that :func:`mean_pool` leaves for the classifier; None leaves all.
        dropout: chance with which training hides an entry of what the last layer gets.
    """

    layers: tuple[Convolution | None, ...]
    classifier: tuple[eqx.nn.Linear, ...]
    head: eqx.nn.Linear
    size: int = eqx.field(static=True)
    pool: int | None = eqx.field(static=True, default=None)

    def hidden(
        self, image: Float[Array, "channels height width"], key: Any, state: PyTree
    ) -> tuple[Float[Array, "features"], PyTree]:
        """What the last layer gets, and the new state."""
        channels = next(layer for layer in self.layers if layer).convolution.in_channels
        hidden = checks.floats("image", image, (channels, self.size, self.size))
        for layer in self.layers:
            if layer is None:
                hidden = eqx.nn.MaxPool2d(2, 2)(hidden)
            else:
                hidden, state = layer(hidden, training=key is not None, state=state)
                hidden = jax.nn.relu(hidden)
        hidden = (hidden if self.pool is None else mean_pool(hidden, self.pool)).ravel()
        for linear in self.classifier:
            hidden = jax.nn.relu(linear(hidden))
        return hidden, state

    def last(self, features: Float[Array, "features"]) -> Float[Array, "classes"]:
        """Outputs of the last layer, W_L h + b_L."""
        return self.head(features)

    @property
    def penultimate(self) -> str:
        """Path of the last hidden layer of the classifier, or of the last kernel."""
        if self.classifier:
            return f"classifier[{len(self.classifier) - 1}].weight"
        return f"layers[{max(i for i, x in enumerate(self.layers) if x)}].convolution.weight"


@checked
def mean_pool(
    hidden: Float[Array, "channels height width"], size: int
) -> Float[Array, "channels size size"]:
    """Means over rectangles, so that size x size pixels come out (PyTorch's adaptive pooling).

    Of n pixels of a side the i-th rectangle holds those from floor(i n / size) to before
    ceil((i + 1) n / size): neighbours overlap if size does not divide n.

    Args:
        hidden: channels.
        size: pixels of a side, of what comes out.

    Example:
        >>> mean_pool(jnp.arange(6.0).reshape(1, 1, 6), 2).tolist()
        [[[1.0, 4.0], [1.0, 4.0]]]
    """
    checks.integer("size", size)

    def means(n: int) -> Float[Array, "size n"]:
        first, pixel = np.arange(size)[:, None], np.arange(n)
        # Floor and ceiling in integers: in floating point a border could fall on either side.
        inside = (pixel >= first * n // size) & (pixel < -(-(first + 1) * n // size))
        return jnp.asarray(inside / inside.sum(axis=1, keepdims=True), hidden.dtype)

    channels, *sides = hidden.shape
    pooled = channels, size, size
    checks.allocation({"size": size}, pooled, *((size, n) for n in sides), dtype=hidden.dtype)
    rows, columns = map(means, sides)
    return jnp.einsum("ai,cij,bj->cab", rows, hidden, columns)


@checked
def vgg(
    key: Key[Array, ""],
    layers: Sequence[int | str] = VGG16,
    *,
    size: int = 32,
    channels: int = 3,
    hidden: Sequence[int] = (),
    classes: int = 10,
    batch_norm: bool = False,
    pool: int | None = None,
    dropout: float = 0.0,
) -> VGG:
    """Draw a VGG: Gaussian weights of variance 2 / inputs, 1 / inputs in the last layer, biases 0.

    Args:
        key: random key.
        layers: channels of each convolution, and ``"pool"``; :data:`VGG11` and :data:`VGG16`.
        size: pixels of a side of an image.
        channels: of an image.
        hidden: widths of the classifier's hidden layers: () for 512-10, (512,) for 512-512-10.
        classes: number of outputs.
        batch_norm: whether convolutions, whose biases stay, are followed by batch normalisation.
        pool: see :class:`VGG`; torchvision's networks have 7.
        dropout: see :class:`VGG`.

    Raises:
        ValueError: a width is 0, the poolings leave no pixel of an image, or the dropout is outside
            [0, 1).

    Example:
        >>> net = vgg(jax.random.key(0), (4, "pool", 6, "pool"), size=8, hidden=(5,), classes=2)
        >>> net.classifier[0].weight.shape, net.penultimate
        ((5, 24), 'classifier[0].weight')
    """
    if not isinstance(layers, tuple | list):
        checks.refuse("layers", type(layers).__name__, "a tuple")
    widths = [layer for layer in layers if not isinstance(layer, str)]
    if not widths or {layer for layer in layers if isinstance(layer, str)} - {"pool"}:
        checks.refuse("layers", layers, "numbers of channels and 'pool'")
    checks.sizes("layers", widths, 1)
    checks.sizes("hidden", hidden, 0)
    given = {"size": size, "channels": channels, "classes": classes}
    given |= {} if pool is None else {"pool": pool}
    for name, number in given.items():
        checks.integer(name, number)
    checks.instance("batch_norm", batch_norm, bool)
    rate, pools = checked_dropout(dropout), len(layers) - len(widths)
    if size < 2**pools:
        checks.refuse("size", size, f"at least {2**pools}, so that {pools} poolings leave a pixel")
    flat = widths[-1] * (size // 2**pools if pool is None else pool) ** 2
    kernels = [(after, before, 3, 3) for before, after in pairwise((channels, *widths))]
    checks.allocation(
        {**given, "layers": widths, "hidden": (0, *hidden)},
        *kernels,
        *pairwise((flat, *hidden, classes)),
    )

    def build(key: Key[Array, ""]) -> VGG:
        into, places = iter((channels, *widths)), count() if batch_norm else None
        convolutions = [
            None
            if isinstance(n, str)
            else convolution(key, next(into), n, bias=True, places=places)
            for n in layers
        ]
        *before, head = (
            eqx.nn.Linear(m, n, key=key) for m, n in pairwise((flat, *hidden, classes))
        )
        return VGG(tuple(convolutions), tuple(before), head, size, pool, dropout=rate)

    return draw_weights(
        key, build, lambda path, inputs: np.sqrt((2 - path.startswith("head")) / inputs)
    )
