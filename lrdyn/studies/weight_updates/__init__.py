"""Figure 1: weight updates of the penultimate layer are of low rank, exactly or in practice."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrdyn.data import AUTO, IMAGES, Images, image_files, images, resolve
from lrdyn.studies import pictures
from lrdyn.studies.weight_updates.classifiers import (
    CONFIGURATIONS,
    CONVOLUTIONAL,
    PERCEPTRON,
    RESIDUAL,
    TRANSFORMER,
)
from lrdyn.studies.weight_updates.edge import EDGE, EXAMPLES
from lrdyn.studies.weight_updates.figures import plot_reach
from lrdyn.studies.weight_updates.linear import LINEAR
from lrdyn.studies.weight_updates.narrow import NARROW
from lrdyn.studies.weight_updates.nonlinear import NONLINEAR
from lrdyn.verification.stating.flags import POSITIVE, Flag, at_least, one_of
from lrdyn.verification.stating.statement import Study

EDGE_WIDTH = 64
"""Principal coordinates of the quick preset, and of every control."""


def _prepare(settings: dict[str, Any], given: set[str]) -> dict[str, Any]:
    """Say which data ``auto`` means here: MNIST as vectors, for images the first set there is."""
    data, flat = settings["data"], settings["flat_data"]
    if flat == AUTO:
        flat = "mnist" if data == AUTO else data
    place = settings["data_dir"]
    settings = settings | {"data": resolve(data, place), "flat_data": resolve(flat, place)}
    _check(settings)
    return settings


def _check(settings: Mapping[str, Any]) -> None:
    """Refuse sizes that do not fit together, or not to the images."""
    flat, networks = _images(settings, "flat_data").train_inputs, settings["network"]
    most = min(EXAMPLES, len(flat), flat[0].size)
    if most < EDGE_WIDTH:
        raise ValueError(
            f"--flat-data: got {len(flat)} images of {flat[0].size} pixels, wanted {EDGE_WIDTH} or "
            "more of both: controls take so many principal coordinates"
        )
    if settings["edge_width"] > most:
        raise ValueError(
            f"--edge-width: got {settings['edge_width']}, wanted at most {most}, the principal "
            "coordinates that there are"
        )
    if "mlp" in networks:
        pictures.check_batch(settings, min(settings["examples"], len(flat)))
    if not {*PICTURED} & set(networks):
        return
    count, side, *_ = _images(settings, "data").train_inputs.shape
    pictures.check_batch(settings, min(settings["examples"], count))
    if "vit" in networks:
        patch, width, heads = (settings[f"vit_{name}"] for name in ("patch", "width", "heads"))
        if side % patch:
            raise ValueError(
                f"--vit-patch: got {patch}, wanted a divisor of {side}, the side of an image"
            )
        if width % heads:
            raise ValueError(f"--vit-heads: got {heads}, wanted a divisor of --vit-width {width}")


def _images(settings: Mapping[str, Any], flag: str) -> Images:
    """The set that a flag names, from where the settings look for it."""
    return images(settings[flag], settings.get("data_dir", ""))


def _sets(settings: Mapping[str, Any]) -> dict[str, str]:
    """Set -> how it is used: by the networks that were asked for, and by the identity."""
    flat, data = settings["flat_data"], settings["data"]
    pictured = {*PICTURED} & set(settings["network"])
    if not pictured or flat == data:
        return {flat: ""}
    return {flat: " as vectors", data: " as images"}


def _about(settings: Mapping[str, Any]) -> str:
    place = settings.get("data_dir", "")
    used = _sets(settings).items()
    return "on " + " and ".join(f"{images(name, place).described}{use}" for name, use in used)


def _files(settings: Mapping[str, Any]) -> list[Path]:
    place = settings.get("data_dir", "")
    return [path for name in _sets(settings) for path in image_files(name, place)]


NETWORKS = ("dln", "mlp", "vgg", "vit")
"""Networks of the quick preset."""
PICTURED = ("vgg", "resnet", "vit")
"""Networks that read images as images, not as vectors."""

FLAGS = (
    Flag(
        "network",
        NETWORKS,
        one_of("dln", "mlp", *PICTURED),
        str,
        help="networks to train",
        paper=("dln", "mlp", *PICTURED),
        shapes=True,
    ),
    pictures.DATA,
    Flag(
        "flat_data",
        (AUTO,),
        one_of(AUTO, *IMAGES),
        str,
        help="images of the networks that take them as vectors; auto takes those of --data if they "
        "are named, else MNIST",
        shapes=True,
        swept=False,
    ),
    pictures.EXAMPLES,
    Flag(
        "depth",
        (3,),
        at_least(2),
        int,
        symbol="L",
        help="layers of the linear network",
        swept=False,
    ),
    Flag(
        "linear_scale",
        (0.3,),
        POSITIVE,
        float,
        symbol="eps",
        help="init scale of the linear network",
        swept=False,
    ),
    Flag(
        "linear_rate",
        (0.05,),
        POSITIVE,
        float,
        symbol="eta",
        help="step size of the linear network",
        swept=False,
    ),
    Flag(
        "linear_steps",
        (2000,),
        at_least(1),
        int,
        symbol="t",
        help="steps of the linear network",
        paper=(20_000,),
        swept=False,
    ),
    pictures.BATCH_SIZE,
    Flag(
        "mlp_width",
        (256,),
        at_least(1),
        int,
        help="width of the perceptron",
        paper=(512,),
        swept=False,
    ),
    Flag("mlp_depth", (4,), at_least(2), int, symbol="L", help="its layers", swept=False),
    Flag("mlp_rate", (0.1,), POSITIVE, float, symbol="eta", help="its step size", swept=False),
    Flag("mlp_epochs", (10,), at_least(1), int, help="its epochs", paper=(50,), swept=False),
    Flag(
        "vgg_layers",
        ("11",),
        one_of(*CONFIGURATIONS),
        str,
        help="layers of VGG",
        paper=("16",),
        shapes=True,
        swept=False,
    ),
    Flag(
        "vgg_norm",
        ("no",),
        one_of("no", "yes"),
        str,
        help="whether batch normalisation follows its convolutions",
        paper=("yes",),
        shapes=True,
        swept=False,
    ),
    Flag("vgg_epochs", (4,), at_least(1), int, help="its epochs", paper=(100,), swept=False),
    pictures.RESNET_WIDTH,
    pictures.RESNET_EPOCHS,
    Flag(
        "shuffled_epochs",
        (1,),
        at_least(1),
        int,
        help="epochs of VGG, ResNet and the transformer on shuffled labels, at most those on true "
        "ones; the training goes on to the next step that is recorded",
        paper=(100,),
        swept=False,
    ),
    pictures.WARMUP,
    Flag(
        "augment",
        ("no",),
        one_of("no", "yes"),
        str,
        help="whether their images are moved by up to 4 pixels, and those in colour mirrored",
        paper=("yes",),
        shapes=True,
        swept=False,
    ),
    Flag(
        "vit_patch",
        (4,),
        at_least(1),
        int,
        help="side of a patch of the vision transformer, in pixels",
        swept=False,
    ),
    Flag("vit_width", (64,), at_least(1), int, help="its width", paper=(384,), swept=False),
    Flag("vit_depth", (4,), at_least(1), int, help="its blocks", paper=(12,), swept=False),
    Flag("vit_heads", (4,), at_least(1), int, help="its heads", paper=(6,), swept=False),
    Flag("vit_epochs", (10,), at_least(1), int, help="its epochs", paper=(100,), swept=False),
    Flag(
        "edge_width",
        (EDGE_WIDTH,),
        at_least(21),
        int,
        symbol="d",
        help="width of the identity on whitened images",
        swept=False,
    ),
    Flag("edge_scale", (0.3,), POSITIVE, float, symbol="eps", help="its init scale", swept=False),
    Flag("edge_steps", (200,), at_least(1), int, symbol="t", help="its steps", swept=False),
    Flag(
        "reach_width",
        (24, 30),
        at_least(9),
        int,
        symbol="d",
        help="widths of the nonlinear networks",
        shapes=True,
    ),
    Flag("reach_depth", (3, 4), at_least(2), int, symbol="L", help="their layers", shapes=True),
)

WEIGHT_UPDATES = Study(
    "weight_updates",
    "Figure 1: updates of the penultimate layer are of low rank",
    FLAGS,
    (EDGE, NARROW, NONLINEAR, LINEAR, PERCEPTRON, CONVOLUTIONAL, RESIDUAL, TRANSFORMER),
    plots={"reach": plot_reach},
    prepare=_prepare,
    data=_files,
    about=_about,
    title="Figure 1",
    page="docs/studies.md",
)
