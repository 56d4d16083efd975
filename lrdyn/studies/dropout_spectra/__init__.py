"""Figure 2: what dropout does to the spectrum of the last hidden activations."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrdyn.data import image_files, images, resolve
from lrdyn.studies import pictures
from lrdyn.studies.dropout_spectra.minimum import MINIMUM
from lrdyn.studies.dropout_spectra.raw import RAW
from lrdyn.studies.dropout_spectra.residual import RESIDUAL
from lrdyn.studies.dropout_spectra.synthetic import LINEAR, PERCEPTRON
from lrdyn.verification.stating.flags import FRACTION, POSITIVE, Flag, at_least, one_of
from lrdyn.verification.stating.statement import Study


def _prepare(settings: dict[str, Any], given: set[str]) -> dict[str, Any]:
    """Say which data ``auto`` means here; only the residual network reads images."""
    if {"dln", "mlp"} & set(settings["network"]):
        pictures.check_batch(settings, settings["synthetic_examples"])
    if "resnet" not in settings["network"]:
        return settings
    settings = settings | {"data": resolve(settings["data"], settings["data_dir"])}
    data_set = images(settings["data"], settings["data_dir"])
    pictures.check_batch(settings, min(settings["examples"], len(data_set.train_inputs)))
    return settings


def _about(settings: Mapping[str, Any]) -> str:
    if "resnet" not in settings["network"]:
        return "synthetic data"
    data_set = images(settings["data"], settings.get("data_dir", ""))
    return f"residual network on {data_set.described}"


def _files(settings: Mapping[str, Any]) -> tuple[Path, ...]:
    if "resnet" not in settings["network"]:
        return ()
    return image_files(settings["data"], settings.get("data_dir", ""))


NETWORKS = ("dln", "mlp", "resnet")

FLAGS = (
    Flag("network", NETWORKS, one_of(*NETWORKS), str, help="networks to train", shapes=True),
    Flag(
        "dropout",
        (0.6,),
        FRACTION,
        float,
        symbol="1 - theta",
        help="chance with which training hides a last hidden unit",
        swept=False,
    ),
    Flag("depth", (2, 3), at_least(2), int, symbol="L", help="layers of the identity", shapes=True),
    Flag("width", (8,), at_least(1), int, symbol="h", help="its hidden units", shapes=True),
    Flag("steps", (20_000,), at_least(1), int, symbol="t", help="its steps", swept=False),
    pictures.DATA,
    pictures.EXAMPLES,
    pictures.BATCH_SIZE,
    Flag(
        "synthetic_examples",
        (4000,),
        at_least(1000),
        int,
        help="examples of the linear network and of the perceptron",
        paper=(50_000,),
        swept=False,
    ),
    Flag(
        "synthetic_width", (128,), at_least(1), int, help="their width", paper=(512,), swept=False
    ),
    Flag("synthetic_depth", (3,), at_least(2), int, symbol="L", help="their layers", swept=False),
    Flag(
        "synthetic_rate",
        (1e-3,),
        POSITIVE,
        float,
        symbol="eta",
        help="their step size",
        swept=False,
    ),
    Flag(
        "synthetic_epochs",
        (300,),
        at_least(1),
        int,
        help="their epochs",
        paper=(1000,),
        swept=False,
    ),
    pictures.RESNET_WIDTH,
    pictures.RESNET_EPOCHS,
    pictures.WARMUP,
)

DROPOUT_SPECTRA = Study(
    "dropout_spectra",
    "Figure 2: dropout shrinks the spectrum of the last activations",
    FLAGS,
    (MINIMUM, RAW, LINEAR, PERCEPTRON, RESIDUAL),
    prepare=_prepare,
    data=_files,
    about=_about,
    title="Figure 2",
    page="docs/theorems/last_activations.md",
)
"""What ``python -m experiments.dropout_spectra`` runs."""
