"""VGG and a vision transformer on images: Adam on the cross-entropy of mini-batches."""

from collections.abc import Callable

import optax
from jaxtyping import Array, Key

from lrdyn.data import Images
from lrdyn.engine.statement import Scenario
from lrdyn.networks import VGG, VGG11, VGG16, ViT, vgg, vit
from lrdyn.studies.over_seeds import only
from lrdyn.studies.weight_updates import trained
from lrdyn.studies.weight_updates.classify import Classifier, classifier, measure_classifier

RATE = 1e-3
"""Step size of Adam, its own default; no schedule, no decay."""
CONFIGURATIONS = {"11": VGG11, "16": VGG16}


def pools(side: int) -> int:
    """How many poolings an image allows: five, but for smaller ones than 32 x 32.

    Example:
        >>> pools(32), pools(28)
        (5, 4)
    """
    return min(5, side.bit_length() - 1)


def make_vgg(
    key: Key[Array, ""], *, data: str, examples: int, vgg_layers: str, vgg_epochs: int,
    batch_size: int,
) -> Classifier:  # fmt: skip
    """The variant with a hidden layer of 512 x 512, without batch normalisation."""

    def draw(key: Key[Array, ""], found: Images) -> VGG:
        _, side, _, channels = found.train_inputs.shape
        kept, layers = pools(side), []
        for layer in CONFIGURATIONS[vgg_layers]:
            kept -= layer == "pool"
            if layer != "pool" or kept >= 0:
                layers.append(layer)
        return vgg(
            key, tuple(layers), size=side, channels=channels, hidden=(512,), classes=found.classes
        )

    return classifier(
        key, draw, data=data, examples=examples, batch=batch_size, epochs=vgg_epochs,
        optimizer=optax.adam(RATE),
    )  # fmt: skip


def make_vit(
    key: Key[Array, ""], *, data: str, examples: int, vit_patch: int, vit_width: int,
    vit_depth: int, vit_heads: int, vit_epochs: int, batch_size: int,
) -> Classifier:  # fmt: skip
    """Pre-norm blocks with perceptrons four times as wide."""

    def draw(key: Key[Array, ""], found: Images) -> ViT:
        _, side, _, channels = found.train_inputs.shape
        return vit(
            key, size=side, patch=vit_patch, channels=channels, width=vit_width, depth=vit_depth,
            heads=vit_heads, hidden=4 * vit_width, classes=found.classes,
        )  # fmt: skip

    return classifier(
        key, draw, data=data, examples=examples, batch=batch_size, epochs=vit_epochs,
        optimizer=optax.adam(RATE),
    )  # fmt: skip


def _scenario(
    name: str, make: Callable[..., Classifier], threshold: float, seed0: str
) -> Scenario[Classifier]:
    return Scenario[Classifier](
        name, make, measure=measure_classifier,
        claims=(trained.share_claim(name, threshold, seed0),),
        controls=(trained.share_control(name),),
        dims=trained.DIMS,
        narrow=lambda settings: only(name, settings),
        diverged="diverged_at", trains=True, findings=trained.findings(name),
    )  # fmt: skip


CONVOLUTIONAL = _scenario("vgg", make_vgg, 0.5, "0.78 on MNIST, 0.86 on CIFAR-10")
TRANSFORMER = _scenario("vit", make_vit, 0.75, "0.984 on MNIST, 0.980 on CIFAR-10")
