"""ResNet: blocks of two convolutions that are added to what they got."""

from collections.abc import Sequence
from itertools import count
from typing import Any, Literal, get_args

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

Stem = Literal["cifar", "imagenet"]
"""3 x 3 at stride 1; or 7 x 7 at stride 2 and a maximum over 3 x 3 pixels at stride 2."""


class ResidualBlock(eqx.Module):
    """relu(s(h) + N_2 C_2 relu(N_1 C_1 h)), s(h) = N C h or h.

    C are convolutions, N batch normalisations; where the shape changes, s has a kernel of 1 x 1.
    """

    first: Convolution
    second: Convolution
    shortcut: Convolution | None

    def __call__(
        self, hidden: Float[Array, "_ _ _"], *, training: bool, state: PyTree
    ) -> tuple[Float[Array, "_ _ _"], PyTree]:
        """Channels behind the block, and the new state of its normalisations."""
        inner, state = self.first(hidden, training=training, state=state)
        inner, state = self.second(jax.nn.relu(inner), training=training, state=state)
        if self.shortcut is not None:
            hidden, state = self.shortcut(hidden, training=training, state=state)
        return jax.nn.relu(inner + hidden), state


class ResNet(Network):
    """f(x) = W_L h + b_L, h the mean over pixels of what the last block returns.

    Args:
        stem: the first convolution.
        stages: the blocks; each stage but the first begins with stride 2.
        head: W_L and b_L.
        pool: whether the stem ends in a pooling.
        dropout: chance with which training hides an entry of h.
    """

    stem: Convolution
    stages: tuple[tuple[ResidualBlock, ...], ...]
    head: eqx.nn.Linear
    pool: bool = eqx.field(static=True)

    def hidden(
        self, image: Float[Array, "channels height width"], key: Any, state: PyTree
    ) -> tuple[Float[Array, "features"], PyTree]:
        """Means h of the last channels over pixels, and the new state."""
        axes = (self.stem.convolution.in_channels, "height", "width")
        image, training = checks.floats("image", image, axes), key is not None
        hidden, state = self.stem(image, training=training, state=state)
        hidden = jax.nn.relu(hidden)
        if self.pool:
            hidden = eqx.nn.MaxPool2d(3, 2, 1)(hidden)
        for block in (block for stage in self.stages for block in stage):
            hidden, state = block(hidden, training=training, state=state)
        return jnp.mean(hidden, axis=(1, 2)), state

    def last(self, features: Float[Array, "features"]) -> Float[Array, "classes"]:
        """Outputs of the last layer, W_L h + b_L."""
        return self.head(features)

    @property
    def penultimate(self) -> str:
        """Path of the last kernel."""
        stage, block = len(self.stages) - 1, len(self.stages[-1]) - 1
        return f"stages[{stage}][{block}].second.convolution.weight"


@checked
def resnet(
    key: Key[Array, ""],
    blocks: Sequence[int] = (2, 2, 2, 2),
    *,
    widths: Sequence[int] = (64, 128, 256, 512),
    stem: Stem = "cifar",
    channels: int = 3,
    classes: int = 10,
    dropout: float = 0.0,
) -> ResNet:
    """Draw a ResNet of basic blocks, ResNet-18 by default, with batch normalisation.

    Weights are Gaussian of variance 2 / inputs, 1 / inputs in the last layer; convolutions have no
    biases.

    Args:
        key: random key.
        blocks: number of blocks of each stage; (3, 4, 6, 3) is ResNet-34.
        widths: channels of each stage.
        stem: see :data:`Stem`.
        channels: of an image.
        classes: number of outputs.
        dropout: see :class:`ResNet`.

    Raises:
        ValueError: a width is 0, there are not as many widths as stages, the stem has no such name,
            or the dropout is outside [0, 1).

    Example:
        >>> net = resnet(jax.random.key(0), (1, 1), widths=(4, 6), classes=2)
        >>> net.penultimate
        'stages[1][0].second.convolution.weight'
    """
    checks.sizes("blocks", blocks, 1)
    checks.sizes("widths", widths, len(blocks), len(blocks))
    for name, number in {"channels": channels, "classes": classes}.items():
        checks.integer(name, number)
    if stem not in get_args(Stem):
        checks.refuse("stem", repr(stem), f"one of {get_args(Stem)}")
    rate, large = checked_dropout(dropout), stem == "imagenet"
    stages = zip(blocks, widths, (widths[0], *widths), strict=False)
    checks.allocation(
        {"blocks": blocks, "widths": widths, "channels": channels, "classes": classes},
        (widths[0], channels),
        # The first block of a stage has the channels of the stage before.
        *((after, before + (2 * number - 1) * after, 3, 3) for number, after, before in stages),
        (classes, widths[-1]),
    )

    def build(key: Key[Array, ""]) -> ResNet:
        places = count()
        kernel, stride = (7, 2) if large else (3, 1)
        first = convolution(key, channels, widths[0], kernel=kernel, stride=stride, places=places)
        stages, width = [], widths[0]
        for stage, (number, after) in enumerate(zip(blocks, widths, strict=True)):
            strides = [2 if stage else 1] + [1] * (number - 1)
            befores = [width] + [after] * (number - 1)
            pairs = zip(befores, strides, strict=True)
            stages.append(tuple(_block(key, n, after, stride, places) for n, stride in pairs))
            width = after
        head = eqx.nn.Linear(width, classes, key=key)
        return ResNet(first, tuple(stages), head, large, dropout=rate)

    return draw_weights(
        key, build, lambda path, inputs: np.sqrt((2 - path.startswith("head")) / inputs)
    )


def _block(
    key: Key[Array, ""], inputs: int, outputs: int, stride: int, places: Any
) -> ResidualBlock:
    first = convolution(key, inputs, outputs, stride=stride, places=places)
    second = convolution(key, outputs, outputs, places=places)
    if stride == 1 and inputs == outputs:
        return ResidualBlock(first, second, None)
    return ResidualBlock(
        first, second, convolution(key, inputs, outputs, kernel=1, stride=stride, places=places)
    )
