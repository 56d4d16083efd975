"""How much of an update's low rank comes from what the labels say, and why it has an edge at K."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrdyn.data import AUTO, IMAGES, image_files, images, resolve
from lrdyn.studies import pictures
from lrdyn.studies.labels.cells import CELLS, PERCEPTRONS, RESNET
from lrdyn.studies.labels.head import BELOW, HEAD, RATES
from lrdyn.studies.labels.trainings import TRAININGS
from lrdyn.verification.stating.flags import (
    POSITIVE,
    Domain,
    Flag,
    at_least,
    between,
    one_of,
    option_string,
)
from lrdyn.verification.stating.statement import Study

SETS = {"flat_data": {*PERCEPTRONS}, "data": {RESNET}}
"""Flag of a set of images -> cells that are made of it."""


def _prepare(settings: dict[str, Any], given: set[str]) -> dict[str, Any]:
    """Say which images ``auto`` means here: digits as vectors, for the ResNet the first set."""
    place = settings["data_dir"]
    wanted = {"flat_data": "mnist", "data": AUTO}
    for flag, cells in SETS.items():
        if cells & {*settings["cell"]}:
            name = wanted[flag] if settings[flag] == AUTO else settings[flag]
            settings |= {flag: resolve(name, place)}
            count = len(images(settings[flag], place).train_labels)
            pictures.check_batch(settings, min(settings["examples"], count))
    classes = [PERCEPTRONS[cell].classes for cell in settings["cell"] if cell != RESNET]
    sides = {"mlp_width": (settings["mlp_width"], 2 * max(classes, default=0))}
    if RESNET in settings["cell"]:
        sides["resnet_width"] = (8 * settings["resnet_width"], 2 * 10)
    for flag, (side, both) in sides.items():
        if side <= both:
            raise ValueError(
                f"{option_string(flag)}: got {settings[flag]}, wanted more directions than {both}, "
                "twice the classes of the cells"
            )
    if max(settings["head_width"]) > BELOW:
        raise ValueError(f"--head-width: got {max(settings['head_width'])}, wanted at most {BELOW}")
    return settings


def _used(settings: Mapping[str, Any]) -> list[str]:
    """The sets that the cells are made of."""
    return [settings[flag] for flag, cells in SETS.items() if cells & {*settings["cell"]}]


def _about(settings: Mapping[str, Any]) -> str:
    place = settings.get("data_dir", "")
    sets = dict.fromkeys(images(name, place).described for name in _used(settings))
    return f"on {' and '.join(sets)}" if sets else "synthetic data"


def _files(settings: Mapping[str, Any]) -> list[Path]:
    place = settings.get("data_dir", "")
    return [path for name in _used(settings) for path in image_files(name, place)]


FLAGS = (
    Flag(
        "cell",
        ("base", "random50"),
        one_of(*CELLS),
        str,
        help="trainings to run: the base cell, and others that differ from it in one factor",
        paper=tuple(PERCEPTRONS),
        shapes=True,
    ),
    Flag("head_loss", tuple(RATES), one_of(*RATES), str, help="loss of the head", shapes=True),
    Flag("head_width", (8, 16), at_least(6), int, symbol="m", help="rows of W_{L-1}", shapes=True),
    Flag(
        "head_classes",
        (2, 4),
        Domain(2, 5, integer=True),
        int,
        symbol="K",
        help="rows of W_L",
        shapes=True,
    ),
    Flag("head_scale", (0.1, 1.0), between(1e-2, 1.0), symbol="eps", help="scale of both layers"),
    Flag("head_steps", (400,), at_least(1), int, symbol="t", help="their steps", swept=False),
    Flag(
        "flat_data",
        (AUTO,),
        one_of(AUTO, *IMAGES),
        str,
        help="images of the perceptron; auto takes MNIST",
        shapes=True,
        swept=False,
    ),
    pictures.DATA,
    Flag(
        "examples",
        (600,),
        at_least(30),
        int,
        symbol="n",
        help="images to train on",
        paper=(4000,),
        swept=False,
    ),
    pictures.BATCH_SIZE,
    Flag("mlp_width", (128,), at_least(1), int, help="width", paper=(512,), swept=False),
    Flag("mlp_depth", (4,), at_least(2), int, symbol="L", help="layers", swept=False),
    Flag("mlp_rate", (0.1,), POSITIVE, float, symbol="eta", help="step size", swept=False),
    Flag("mlp_epochs", (300,), at_least(1), int, help="epochs", paper=(200,), swept=False),
    pictures.RESNET_WIDTH,
    pictures.RESNET_EPOCHS,
)

LABELS = Study(
    "labels",
    "Figure 1: what labels decide of an update, and the edge at K",
    FLAGS,
    (HEAD, *TRAININGS),
    prepare=_prepare,
    data=_files,
    about=_about,
    title="Figure 1, labels",
    page="docs/studies.md",
)
"""What ``python -m experiments.labels`` runs."""
