"""Images as the networks of the studies read them, and how well they are classified."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, Key, PyTree, UInt8

from lrdyn import networks
from lrdyn.data import AUTO, IMAGES
from lrdyn.verification.stating.flags import Domain, Flag, at_least, one_of

TESTED = 1000
"""Images that a network is tested on."""
RATE = 1e-3
"""Largest step size of Adam, its own default; no decay."""

DATA = Flag(
    "data",
    (AUTO,),
    one_of(AUTO, *IMAGES),
    str,
    help="images; auto takes the first found",
    shapes=True,
    swept=False,
)
EXAMPLES = Flag(
    "examples", (4000,), at_least(30), int, "n", "images to train on", (50_000,), swept=False
)
BATCH_SIZE = Flag(
    "batch_size", (128,), at_least(1), int, help="examples of a mini-batch", swept=False
)
RESNET_WIDTH = Flag(
    "resnet_width",
    (16,),
    at_least(1),
    int,
    help="channels of the residual network's first stage; the last one has eight times as many",
    paper=(64,),
    swept=False,
)
RESNET_EPOCHS = Flag(
    "resnet_epochs", (4,), at_least(1), int, help="its epochs", paper=(100,), swept=False
)
WARMUP = Flag(
    "warmup",
    (0.0,),
    Domain(0, 1, high_open=True),
    help="share of the steps of networks of images over which Adam's rate rises, to fall as a "
    "cosine after it; 0 keeps it constant",
    paper=(0.05,),
    swept=False,
)


def spread_out(count: int, total: int) -> np.ndarray:
    """Choose places, evenly spread over all of them: a file can be sorted by class.

    Example:
        >>> spread_out(3, 9).tolist(), spread_out(5, 2).tolist()
        ([0, 4, 8], [0, 1])
    """
    return np.linspace(0, total - 1, min(count, total)).astype(int)


def adam(warmup: float) -> Callable[[int], optax.GradientTransformation]:
    """Adam at a constant rate, or at one that rises in a line and falls as a cosine.

    Args:
        warmup: share of the steps over which the rate rises from 0; at 0 it is constant.
    """

    def rule(steps: int) -> optax.GradientTransformation:
        if not warmup:
            return optax.adam(RATE)
        rises = max(1, round(warmup * steps))
        # optax wants one step at least after the rise.
        falling = optax.warmup_cosine_decay_schedule(0.0, RATE, rises, max(steps, rises + 1))
        return optax.adam(falling)

    return rule


def check_batch(settings: Mapping[str, Any], examples: int) -> None:
    """Refuse batches that are larger than what there is to train on."""
    batch = settings["batch_size"]
    if batch > examples:
        raise ValueError(f"--batch-size: got {batch}, wanted at most the {examples} examples")


def read(pixels: Array, net: networks.Network) -> Array:
    """Bytes as a network reads them: channels x height x width, in [0, 1], in its precision."""
    precision = jax.tree.leaves(eqx.filter(net, eqx.is_inexact_array))[0].dtype
    return jnp.moveaxis(pixels.astype(precision) / 255, -1, 1)


def evaluate(
    call: Callable[..., Array], net: networks.Network, inputs: np.ndarray, state: PyTree = None
) -> np.ndarray:
    """Apply ``call(net, image, state)`` to all images, some at a time."""

    @eqx.filter_jit
    def evaluate_part(net: networks.Network, state: PyTree, pixels: Array) -> Array:
        return jax.vmap(lambda image: call(net, image, state))(read(pixels, net))

    # So many at a time: activations of all images at once may not fit into memory.
    size = min(250, len(inputs))
    full = len(inputs) - len(inputs) % size
    pieces = [inputs[i : i + size] for i in range(0, full, size)] + [inputs[full:]]
    # Of one full size but for the last: two programs are compiled at most.
    pieces = [piece for piece in pieces if len(piece)]
    return np.concatenate(
        [np.asarray(evaluate_part(net, state, jnp.asarray(piece))) for piece in pieces]
    )


def outputs(net: networks.Network, image: Array, state: PyTree) -> Array:
    """Outputs f(x) of a network in evaluation, without its new state."""
    returned = net(image, state=state)
    return returned if state is None else returned[0]


def features(net: networks.Network, image: Array, state: PyTree) -> Array:
    """Last hidden activations h(x) of a network in evaluation, without its new state."""
    returned = net.features(image, state=state)
    return returned if state is None else returned[0]


def accuracy(
    net: networks.Network, inputs: np.ndarray, labels: Int[np.ndarray, "n"], state: PyTree = None
) -> float:
    """Share of images that are classified correctly, in evaluation."""
    return float(np.mean(np.argmax(evaluate(outputs, net, inputs, state), axis=-1) == labels))


def cross_entropy(net: networks.Network, state: PyTree, batch: dict[str, Array], key: Any) -> Any:
    """Mean cross-entropy of a batch, and the share of it that is classified correctly."""
    returned = networks.apply(net, read(batch["x"], net), key=key, state=state)
    logits, after = (returned, None) if state is None else returned
    correct = jnp.mean(1.0 * (jnp.argmax(logits, axis=-1) == batch["y"]))
    return networks.cross_entropy(logits, batch["y"]), (after, {"accuracy": correct})


FARTHEST = 4
"""Pixels by which a training moves images, at most, to each side."""


def augment(images: UInt8[Array, "n height width channels"], key: Key[Array, ""]) -> Array:
    """Move each image by up to :data:`FARTHEST` pixels, and mirror it with probability 1/2.

    What moves in is black. Images of one channel are not mirrored: a mirrored digit is none.

    Example:
        >>> augment(jnp.ones((5, 8, 8, 3), jnp.uint8), jax.random.key(0)).shape
        (5, 8, 8, 3)
    """
    count, height, width, channels = images.shape
    of_places, of_mirrors = jax.random.split(key)
    border = ((0, 0), (FARTHEST, FARTHEST), (FARTHEST, FARTHEST), (0, 0))
    places = jax.random.randint(of_places, (count, 2), 0, 2 * FARTHEST + 1, jnp.int32)

    def crop(image: Array, place: Array) -> Array:
        begin = (*place, jnp.int32(0))  # one type for all, also with 64 bits
        return jax.lax.dynamic_slice(image, begin, (height, width, channels))

    moved = jax.vmap(crop)(jnp.pad(images, border), places)
    mirrored = jax.random.bernoulli(of_mirrors, 0.5, (count, 1, 1, 1)) & (channels > 1)
    return jnp.where(mirrored, moved[:, :, ::-1], moved)


def augmented_cross_entropy(
    net: networks.Network, state: PyTree, batch: dict[str, Array], key: Key[Array, ""]
) -> Any:
    """:func:`cross_entropy` of images that are :func:`augment` anew at each step."""
    inputs = augment(batch["x"], jax.random.fold_in(key, 1))  # dropout has the key itself
    return cross_entropy(net, state, batch | {"x": inputs}, key)
