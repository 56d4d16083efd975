"""Convolutions, and batch normalisation whose running statistics are a plain PyTree."""

import itertools
from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from lrdyn.core import checks
from lrdyn.core.checks import checked
from lrdyn.networks.network import AXIS

State = tuple[tuple[Float[Array, "_"], Float[Array, "_"]], ...]
"""Running mean and variance of each layer of batch normalisation."""
MOMENTUM = 0.1
"""Share of the newest batch in the running statistics."""


class BatchNorm(eqx.Module):
    """g * (h - mean) / sqrt(variance + 1e-5) + b of each channel.

    In training the mean and the variance are those of the batch, over examples and pixels; in
    evaluation running means of them, r <- 0.9 r + 0.1 new, that of the variance of its unbiased
    estimate, from mean 0 and variance 1. (These are PyTorch's. ``equinox.nn.BatchNorm`` 0.13.8 of
    mode "batch" counts its first running variance of 1 as if it were 0, so that it evaluates a
    network of few steps far too small.)

    Args:
        gain: g.
        bias: b.
        place: which of the running statistics are its own.
    """

    gain: Float[Array, "channels"]
    bias: Float[Array, "channels"]
    place: int = eqx.field(static=True)

    def __call__(
        self, hidden: Float[Array, "channels height width"], *, training: bool, state: State | None
    ) -> tuple[Float[Array, "channels height width"], State]:
        """Normalise the channels of one example.

        In training it runs inside ``jax.vmap(..., axis_name="batch")``, over which means are taken.
        """
        if not isinstance(state, tuple) or len(state) <= self.place:
            checks.refuse("state", type(state).__name__, "initial_state(network), or a later one")
        mean, variance = state[self.place]
        if training:
            mean = jax.lax.pmean(jnp.mean(hidden, axis=(1, 2)), AXIS)
            # Centred first: a mean of squares less a square of the mean would cancel.
            centred = hidden - mean[:, None, None]
            variance = jax.lax.pmean(jnp.mean(centred**2, axis=(1, 2)), AXIS)
            count = hidden.shape[1] * hidden.shape[2] * jax.lax.axis_size(AXIS)
            # A single number has no unbiased variance; its variance of 0 stands in.
            of_batch = jax.lax.stop_gradient((mean, variance * (count / max(count - 1, 1))))
            new_mean, new_variance = (
                (1 - MOMENTUM) * old + MOMENTUM * new
                for old, new in zip(state[self.place], of_batch, strict=True)
            )
            others = state[: self.place], state[self.place + 1 :]
            state = (*others[0], (new_mean, new_variance), *others[1])
        # 1e-5, as everywhere: a channel that is the same for all has no spread to divide by.
        scale = self.gain / jnp.sqrt(variance + 1e-5)
        mean, scale, bias = (x[:, None, None] for x in (mean, scale, self.bias))
        return (hidden - mean) * scale + bias, state


def initial_state(network: PyTree) -> State:
    """Running statistics at the start, means 0 and variances 1; () without batch normalisation.

    Example:
        >>> from lrdyn.networks import vgg
        >>> how = {"size": 4, "batch_norm": True}
        >>> [mean.shape for mean, _ in initial_state(vgg(jax.random.key(0), (3, "pool", 5), **how))]
        [(3,), (5,)]
    """
    leaves = jax.tree.leaves(network, is_leaf=lambda x: isinstance(x, BatchNorm))
    norms = sorted((x for x in leaves if isinstance(x, BatchNorm)), key=lambda x: x.place)
    return tuple((jnp.zeros_like(norm.gain), jnp.ones_like(norm.gain)) for norm in norms)


class Convolution(eqx.Module):
    """A convolution and the batch normalisation of what comes out, if there is one."""

    convolution: eqx.nn.Conv2d
    norm: BatchNorm | None

    def __call__(
        self, hidden: Float[Array, "_ _ _"], *, training: bool, state: PyTree
    ) -> tuple[Float[Array, "_ _ _"], PyTree]:
        """Channels behind the convolution, normalised if it has a norm, and the new state."""
        channels = apply_convolution(self.convolution, hidden)
        if self.norm is None:
            return channels, state
        return self.norm(channels, training=training, state=state)


def apply_convolution(
    convolution: eqx.nn.Conv2d, hidden: Float[Array, "_ _ _"]
) -> Float[Array, "_ _ _"]:
    """Apply a convolution whose padding is half its kernel, as ``convolution(hidden)`` does.

    An image that is smaller than the kernel is multiplied place by place of the kernel: for it XLA
    has no fast convolution on a CPU, and takes up to a hundred times as long for 512 channels of
    2 x 2 pixels, the last ones of a VGG on images of 32 x 32.

    Args:
        convolution: kernels and bias.
        hidden: channels of one example.

    Example:
        >>> layer = convolution(jax.random.key(0), 3, 5).convolution
        >>> apply_convolution(layer, jnp.ones((3, 2, 2))).shape
        (5, 2, 2)
    """
    hidden = checks.floats("hidden", hidden, ("channels", "rows", "columns"))
    kernel, stride = convolution.kernel_size[0], convolution.stride[0]
    sides, reach = hidden.shape[1:], kernel // 2
    if min(sides) >= kernel:
        return convolution(hidden)
    padded = jnp.pad(hidden, ((0, 0), (reach, reach), (reach, reach)))
    counts = [(side + 2 * reach - kernel) // stride + 1 for side in sides]
    channels = jnp.zeros((len(convolution.weight), *counts), hidden.dtype)
    for place in itertools.product(range(kernel), repeat=2):
        read = [range(p, p + stride * n, stride) for p, n in zip(place, counts, strict=True)]
        image = [range(reach, reach + side) for side in sides]
        if all(set(pixels) & set(there) for pixels, there in zip(read, image, strict=True)):
            pixels = padded[:, *(slice(one.start, one.stop, stride) for one in read)]
            channels += jnp.tensordot(convolution.weight[:, :, *place], pixels, 1)
    return channels if convolution.bias is None else channels + convolution.bias


@checked
def convolution(
    key: Key[Array, ""],
    inputs: int,
    outputs: int,
    *,
    kernel: int = 3,
    stride: int = 1,
    bias: bool = False,
    places: Iterator[int] | None = None,
) -> Convolution:
    """A kernel that keeps the size at stride 1, normalised where there are places for statistics.

    Args:
        key: random key.
        inputs: channels that come in.
        outputs: channels that come out.
        kernel: pixels of a side of the kernel.
        stride: pixels from one place of the kernel to the next.
        bias: whether each channel has a bias.
        places: numbers of the running statistics, of which the next one is taken; no norm if None.

    Example:
        >>> layer = convolution(jax.random.key(0), 3, 5)
        >>> layer(jnp.ones((3, 4, 4)), training=False, state=None)[0].shape
        (5, 4, 4)
    """
    given = {"inputs": inputs, "outputs": outputs, "kernel": kernel, "stride": stride}
    for name, number in given.items():
        checks.integer(name, number)
    checks.instance("bias", bias, bool)
    checks.allocation(given, (outputs, inputs, kernel, kernel))
    kernels = eqx.nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, use_bias=bias, key=key)
    if places is None:
        return Convolution(kernels, None)
    return Convolution(kernels, BatchNorm(jnp.ones(outputs), jnp.zeros(outputs), next(places)))
