"""Studies at settings of seconds: every number that a training leaves is as it was once.

Trainings have no oracle. What they left once is kept in ``tests/data/studies``, and so are the
findings, the numbers and the captions that are made of such arrays: a change of what is trained,
measured or drawn changes one of them. ``pytest --record tests/test_study_numbers.py`` writes those
anew that CHANGELOG.md names under *Numbers that moved*.
"""

import json
from typing import Any

import jax
import numpy as np
import pytest
import xarray as xr

from lrdyn.data import sets
from lrdyn.figures import exhibits
from lrdyn.studies.adapter_training import ADAPTERS
from lrdyn.studies.adapter_training.few_shot import FewShotMeasured
from lrdyn.studies.adapter_training.ranks import RanksMeasured
from lrdyn.studies.dropout_spectra import DROPOUT_SPECTRA
from lrdyn.studies.dropout_spectra.activations import TrainedDropoutMeasured
from lrdyn.studies.dropout_spectra.minimum import MinimumMeasured, MinimumTheory
from lrdyn.studies.dropout_spectra.raw import RawMeasured, RawTheory
from lrdyn.studies.weight_updates import WEIGHT_UPDATES, classifiers
from lrdyn.studies.weight_updates.edge import EdgeMeasured
from lrdyn.studies.weight_updates.updates import UpdateMeasured
from lrdyn.verification.stating import fields
from lrdyn.verification.stating.statement import Outcome
from paper_figs import EXHIBITS
from tests.datasets import write_npz
from tests.kept_numbers import as_kept, kept

# Trainings ---------------------------------------------------------------------------------------

IMAGES = {"data": "mnist", "data_dir": "."}
FLAT = {"flat_data": "mnist", "data_dir": "."}
TRAINED = {"examples": 240, "batch_size": 40}
SYNTHETIC = {
    "dropout": 0.6,
    "synthetic_examples": 200,
    "synthetic_width": 24,
    "synthetic_depth": 3,
    "synthetic_rate": 1e-2,
    "synthetic_epochs": 4,
    "batch_size": 50,
}
DIGITS = {
    **dict.fromkeys(("encoder", "text_file", "train_file", "dev_file"), "auto"),
    "data_dir": "",
    "task": "digits",
    "dev_pairs": 200,
    "layers": 1,
    "length": 14,
    "pool": "mean",
    "steps": 20,
    "rate_seeds": 1,
    "init_scale": 1.0,
    "center": "no",
}
SHUFFLED = {"shuffled_epochs": 1}
VGG = {"vgg_layers": "11", "vgg_epochs": 1}
TINY: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "linear_network": (
        WEIGHT_UPDATES,
        "dln",
        {**FLAT, "examples": 240, "depth": 3}
        | {"linear_scale": 0.3, "linear_rate": 0.05, "linear_steps": 20},
    ),
    "perceptron": (
        WEIGHT_UPDATES,
        "mlp",
        {**FLAT, **TRAINED, "mlp_width": 40, "mlp_depth": 3, "mlp_rate": 0.1, "mlp_epochs": 3},
    ),
    "vgg": (
        WEIGHT_UPDATES,
        "vgg",
        {**IMAGES, **TRAINED, **VGG, **SHUFFLED}
        | {"vgg_norm": "no", "warmup": 0.0, "augment": "no"},
    ),
    "residual_network": (
        WEIGHT_UPDATES,
        "resnet",
        {**IMAGES, **TRAINED, **SHUFFLED, "resnet_width": 2, "resnet_epochs": 1}
        | {"warmup": 0.5, "augment": "no"},
    ),
    "vision_transformer": (
        WEIGHT_UPDATES,
        "vit",
        {**IMAGES, **TRAINED, **SHUFFLED}
        | {"vit_patch": 4, "vit_width": 24, "vit_depth": 1, "vit_heads": 2}
        | {"vit_epochs": 3, "warmup": 0.0, "augment": "yes"},
    ),
    "dropout_linear": (DROPOUT_SPECTRA, "dln", SYNTHETIC),
    "dropout_perceptron": (DROPOUT_SPECTRA, "mlp", SYNTHETIC),
    "dropout_residual": (
        DROPOUT_SPECTRA,
        "resnet",
        {**IMAGES, **TRAINED, "dropout": 0.6, "resnet_width": 2, "resnet_epochs": 2, "warmup": 0.5},
    ),
    "factors": (ADAPTERS, "factors", {**DIGITS, "method": "lora", "rank": 2, "examples": 16}),
    "few_shot": (
        ADAPTERS,
        "few_shot",
        {**DIGITS, "method": ("lora", "deep_lora"), "rank": 2, "examples": (8, 24)},
    ),
    "ranks": (
        ADAPTERS,
        "ranks",
        {**DIGITS, "method": ("lora", "deep_lora"), "rank": (2, 4), "examples": 8},
    ),
}
"""Name -> a study, its scenario, and the arguments of a case."""


def write_images(folder, monkeypatch, *, trained=240, tested=60, side=8, classes=10):
    """Noisy images of ten classes, a fifth of the labels wrong, as MNIST of a reader's own."""
    rng, count = np.random.default_rng(0), trained + tested
    means, labels = rng.integers(40, 200, (classes, side, side)), np.arange(count) % classes
    pixels = np.clip(means[labels] + 60 * rng.normal(size=(count, side, side)), 0, 255)
    wrong = rng.random(count) < 0.2
    labels = np.where(wrong, rng.integers(0, classes, count), labels)
    known = sets.KNOWN["mnist"]._replace(train=trained, test=tested, shape=(side, side, 1))
    monkeypatch.setitem(sets.KNOWN, "mnist", known)
    images = pixels.astype(np.uint8)
    parts = (images[:trained], labels[:trained], images[trained:], labels[trained:])
    write_npz(folder / "mnist.npz", parts, described="made up")


def scenario_of(study, id):
    return next(scenario for scenario in study.scenarios if scenario.id == id)


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_training_leaves_the_numbers_that_are_kept(name, tmp_path, monkeypatch):
    study, id, settings = TINY[name]
    write_images(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(classifiers.CONFIGURATIONS, "11", (6, "pool", 8, 8, "pool"))
    scenario = scenario_of(study, id)
    with jax.enable_x64(False):
        measured = scenario.train(scenario.case(jax.random.key(1), **settings))
    arrays = fields.arrays_in(measured)
    # Of a share near 1 what is left tells more.
    arrays |= {f"1 - {n}": 1 - x for n, x in arrays.items() if n.startswith("share_")}
    as_kept(f"training_{name}", {n: kept(x) for n, x in arrays.items()})


# What is made of them ----------------------------------------------------------------------------

SEEDS = np.array([0, 1, 2])
SIZES = {"step": 4, "index": 30, "rule": 2, "rank": 2}
"""Of axes; of others 3."""
VALUES = {
    "step": np.array([0, 5, 20, 100]),
    "method": np.array([0, 1, 2]),
    "examples": np.array([16, 64, 256]),
    "rank": np.array([8, 64]),
    "rate": np.array([0.3, 0.15, 0.075]),
}
"""Of fields that count something."""


def made_up(kind, rng):
    """Arrays of every field of a NamedTuple, of all seeds, decreasing along an index."""
    found = {}
    for name, axes in fields.axes_of(kind).items():
        shape = tuple(SIZES.get(axis, 3) for axis in axes)
        draws = rng.uniform(0.1, 0.9, (len(SEEDS), *shape))
        draws = -np.sort(-draws, axis=-1) if axes[-1:] == ("index",) else draws
        if name in VALUES and axes == (name,):
            draws = np.broadcast_to(VALUES[name], draws.shape)
        found[name] = (("seed", *axes), draws)
    return found


@pytest.mark.parametrize("study", [WEIGHT_UPDATES, DROPOUT_SPECTRA, ADAPTERS], ids=lambda s: s.name)
def test_findings_are_made_of_arrays_as_they_were(study, unchecked):
    """Of seeds 1 and 2, as judges leave them."""
    rng, found = np.random.default_rng(3), {}
    for scenario in study.scenarios:
        if not scenario.trains:
            continue
        arrays = {n: x[1:] for n, (_, x) in made_up(scenario.measured, rng).items()}
        nothing = fields.Read({}, KeyError)
        outcome = Outcome(
            {
                "seed": SEEDS[1:],
                "init_scale": 1.0,
                "center": "no",
                "rank": 2,
                "task": "digits",
                "examples": 64,
            },
            predicted=nothing,
            measured=fields.Read(arrays, KeyError),
            hypotheses={},
            dtype=np.dtype("float32"),
            size=1,
            steps=1,
        )
        for finding in scenario.findings:
            expected = finding.expected
            found[finding.id] = kept(finding.value(outcome)) | {
                "expected": str(expected) if expected.sides else ""
            }
    as_kept(f"findings_{study.name}", found)


def group(kind, rng, **attrs):
    """A group of ``results.nc`` of one scenario, of seeds 0 to 2."""
    return xr.Dataset(made_up(kind, rng), {"seed": SEEDS}, attrs=attrs)


def results_made_up():
    """What the scripts of Figures 1 and 2 read."""
    rng = np.random.default_rng(4)
    config = {"dtype": "float32", "dropout": 0.6, "resnet_width": 4, "layers": 2, "pool": "mean"}
    config |= {"train_file": "auto", "length": 14, "steps": 6}
    config |= {"vgg_norm": "yes", "warmup": 0.1}
    attrs = {"about": "on a few images", "config": json.dumps(config)}
    root = group(EdgeMeasured, rng, **attrs)
    updates = {"/": root.assign(classes=("seed", [10, 10, 10]))}
    updates["/"] = indexed(updates["/"], "step")
    for name in ("dln", "mlp", "vgg", "vit"):
        shape = {"rows": ("seed", [30] * 3), "columns": ("seed", [40] * 3)}
        updates[f"/{name}"] = indexed(group(UpdateMeasured, rng), "step").assign(shape)
    spectra = {}
    for name in ("dln", "mlp", "resnet"):
        spectra[f"/{name}"] = indexed(group(TrainedDropoutMeasured, rng), "step")
    predicted = group(MinimumTheory, rng).rename(balanced="balanced_predicted")
    minimum = group(MinimumMeasured, rng, **attrs).rename(balanced="balanced_measured")
    predicted = predicted[["balanced_predicted"]]
    minimum = minimum.assign(predicted).expand_dims(depth=[2, 3])
    spectra["/"] = minimum
    raw = indexed(group(RawMeasured, rng), "rate")
    spectra["/raw"] = raw.assign(limit=group(RawTheory, rng)["limit"])
    tasks = ["digits", "similarity"]
    config |= {"rate_seeds": 2, "task": tasks}
    few = [indexed(group(FewShotMeasured, rng), "method", "examples") for _ in tasks]
    ranks = [indexed(group(RanksMeasured, rng), "method", "rank") for _ in tasks]
    adapters = {
        "/": xr.Dataset(attrs={**attrs, "config": json.dumps(config)}),
        "/few_shot": xr.concat(few, "task").assign_coords(task=tasks, rank=8),
        "/ranks": xr.concat([one.isel(kind_of_rate=slice(2)) for one in ranks], "task")
        .expand_dims(examples=[16])
        .assign_coords(task=tasks),
    }
    return {"weight_updates": updates, "dropout_spectra": spectra, "adapters": adapters}


def indexed(dataset, *names):
    """Fields that count something as the coordinates of their axes, as ``whole`` makes them."""
    places = {name: dataset[name].values[0] for name in names}
    return dataset.drop_vars(names).assign_coords(places)


@pytest.mark.parametrize("name", ["fig01_networks", "fig02", "fig07", "fig08"])
def test_figures_are_made_of_results_as_they_were(name, unchecked):
    """Seed 0 is in the results, and in no mean."""
    (exhibit,) = (one for one in EXHIBITS if one.name == name)
    dataset = exhibit.numbers(results_made_up(), **exhibit.presets["quick"])
    found = {str(n): kept(x) for n, x in dataset.data_vars.items() if x.dtype.kind in "fi"}
    caption = exhibits.caption(exhibit, dataset.assign_attrs(settings="{}"))
    as_kept(f"numbers_of_{name}", found | {"caption": {"text": caption}})
