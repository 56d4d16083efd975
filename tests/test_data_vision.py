"""Pretrained networks of images: files of torchvision and timm, what they compute, refusals."""

import json
import math
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrdyn.data import Refused, tensors, vision
from lrdyn.networks import VGG16, apply, initial_state, mlp, resnet, vgg, vit
from lrdyn.networks.vgg_network import mean_pool
from tests.oracles import refuses

KEY = jax.random.key(0)
DATA = Path(__file__).with_name("data") / "vision"
STORED = tensors.opened(DATA / "outputs.safetensors")
FULL = json.loads((DATA / "full.json").read_text())

VGG = {"layers": (3, "pool", 4, 2, "pool"), "size": 20, "pool": 7, "hidden": (6, 7), "classes": 5}
RESNET = {"blocks": (2, 1), "widths": (4, 6), "classes": 5}
VIT = {"size": 8, "patch": 4, "width": 6, "depth": 2, "heads": 3, "hidden": 12, "classes": 5}
SMALL = {
    "vgg": (vgg, VGG),
    "vgg_bn": (vgg, VGG | {"batch_norm": True}),
    "resnet": (resnet, RESNET | {"stem": "imagenet"}),
    "resnet_cifar": (resnet, RESNET),
    "vit": (vit, VIT),
}


def shapes(make, named):
    return eqx.filter_eval_shape(lambda: make(KEY, **named))


def small(name, **changes):
    make, named = SMALL[name]
    return shapes(make, named | changes)


def file(name):
    return DATA / f"{name}.safetensors"


@pytest.mark.parametrize("name", SMALL)
def test_outputs_are_those_of_torchvision_and_timm(name):
    network, state = vision.read(file(name), small(name))
    images, expected = jnp.asarray(STORED[f"{name}.images"]), STORED[f"{name}.outputs"]
    found, _ = jax.jit(lambda net, state: apply(net, images, state=state))(network, state)
    assert found.dtype == np.float32
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


IMAGENET = {"size": 224, "pool": 7, "hidden": (4096, 4096), "classes": 1000}
LARGE = {"stem": "imagenet", "classes": 1000}
WHOLE = {
    "vgg16": (vgg, {"layers": VGG16, **IMAGENET}),
    "vgg16_bn": (vgg, {"layers": VGG16, **IMAGENET, "batch_norm": True}),
    "resnet18": (resnet, LARGE),
    "resnet34": (resnet, LARGE | {"blocks": (3, 4, 6, 3)}),
    "vit_base_patch16_224": (vit, {"classes": 1000}),
    "vit_tiny_patch16_224": (vit, {"width": 192, "heads": 3, "classes": 1000}),
}


class Reached(Exception):
    """The names and shapes of all tensors were right."""


class Unread(tensors.Tensors):
    """Tensors of these shapes, none of which can be read."""

    def __init__(self, name):
        path, kinds = Path(name), {"num_batches_tracked": "int64"}
        infos = {
            key: tensors.Info(path, kinds.get(key.rpartition(".")[2], "float32"), tuple(shape))
            for key, shape in FULL[name].items()
        }
        super().__init__(path, infos, {})

    def __getitem__(self, name):
        raise Reached


@pytest.mark.parametrize("name", WHOLE)
def test_tensors_of_imagenet_have_the_names_and_shapes_that_are_asked_for(name, monkeypatch):
    monkeypatch.setattr(vision, "opened", Unread)
    network = shapes(*WHOLE[name])
    with pytest.raises(Reached):
        vision.read(name, network)
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    sizes = [math.prod(x) for key, x in FULL[name].items() if not key.endswith(statistics)]
    assert sum(leaf.size for leaf in jax.tree.leaves(network)) == sum(sizes)


def test_other_networks_of_imagenet_are_refused_in_a_line(monkeypatch):
    monkeypatch.setattr(vision, "opened", Unread)
    bottlenecks = shapes(resnet, LARGE | {"blocks": (3, 4, 6, 3)})
    message = r"resnet50: layer1.0.conv1.weight: got shape \(64, 64, 1, 1\), wanted \(64, 64, 3,"
    with pytest.raises(Refused, match=message):
        vision.read("resnet50", bottlenecks)


def test_another_head_and_another_stem():
    make, named = SMALL["resnet"]
    large, given = vision.read(file("resnet"), small("resnet"))
    mine = jax.jit(lambda: make(KEY, **named | {"classes": 3, "stem": "cifar"}))()
    found, state = vision.read(file("resnet"), mine, keep=["head.*", "stem.*"])
    fresh = initial_state(mine)
    for one, other in (
        (found.stages, large.stages),
        (found.head, mine.head),
        (found.stem, mine.stem),
        (state[0], fresh[0]),
        (state[1:], given[1:]),
    ):
        assert jax.tree.all(jax.tree.map(np.array_equal, one, other))
    assert not np.array_equal(given[0][0], fresh[0][0])


def test_means_over_rectangles():
    """As torch's adaptive pooling: more pixels than come out, as many, and fewer."""
    hidden = np.random.default_rng(0).standard_normal((2, 9, 4))
    for size in (3, 4, 7):
        found = np.asarray(mean_pool(jnp.asarray(hidden), size))
        for i in range(size):
            for j in range(size):
                rows = hidden[:, math.floor(i * 9 / size) : math.ceil((i + 1) * 9 / size)]
                part = rows[:, :, math.floor(j * 4 / size) : math.ceil((j + 1) * 4 / size)]
                np.testing.assert_allclose(found[:, i, j], part.mean(axis=(1, 2)), rtol=1e-12)


# Refusals -----------------------------------------------------------------------------------------


def altered(tmp_path, name, **changes):
    """The file with other tensors; None leaves one out."""
    found = dict(tensors.opened(file(name))) | changes
    path = tmp_path / "a.safetensors"
    tensors.write(path, {key: x for key, x in found.items() if x is not None})
    return path


LINE: dict[str, Any] = {
    "missing": (
        "vgg",
        {"classifier.3.bias": None},
        r"classifier\.3\.bias: got no tensor of this name",
    ),
    "shape": ("vit", {"pos_embed": np.ones((1, 4, 6))}, r"pos_embed: got shape \(1, 4, 6\), want"),
    "fused": ("vit", {"blocks.1.attn.qkv.bias": np.ones(6)}, r"qkv.bias: got shape \(6,\), wanted"),
    "type": ("resnet", {"bn1.running_var": np.ones(4, int)}, "bn1.running_var: got type int64"),
    "extra": ("vit", {"fc_norm.weight": np.ones(6)}, "fc_norm.weight: got an extra tensor"),
    "name": ("resnet", {"layer1.0.bn1.gain": np.ones(4)}, "bn1.gain: got an extra tensor"),
}


@pytest.mark.parametrize("kind", LINE)
def test_a_wrong_tensor_is_named(kind, tmp_path):
    name, changes, message = LINE[kind]
    path = altered(tmp_path, name, **changes)
    with pytest.raises(Refused, match=message) as caught:
        vision.read(path, small(name))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def head(name="vgg", **how):
    return vision.read(file(name), small(name, classes=3), **how)


test_readers_refuse = refuses(
    (lambda: head(), r"classifier.6.weight: got shape \(5, 7\), wanted \(3, 7\)"),
    (lambda: head(keep="head.*"), "keep: got the shape of head.weight alone, wanted an array in"),
    (lambda: head(keep="tail.*"), "keep: got 'tail.*', wanted a pattern of some arrays among"),
    (lambda: head("vit", keep=3), "keep: got 3, wanted a glob, a regular expression"),
    (lambda: vision.read(file("vgg"), mlp(KEY, (3, 2))), "network: got type MLP, wanted a VGG,"),
    (lambda: vision.read(file("vgg"), small("resnet")), "conv1.weight: got no tensor of this name"),
    (lambda: vgg(KEY, size=32, pool=0), "pool: got 0, wanted at least 1"),
)
