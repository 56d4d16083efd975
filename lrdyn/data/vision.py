"""Pretrained networks of images: torchvision's VGG and ResNet, timm's ViT, from safetensors.

Files hold what ``state_dict`` gives, by its names. Images are as those packages take them: channels
x height x width, each channel shifted and scaled as the weights' page says.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from lrdyn.core import checks
from lrdyn.core.selection import Patterns, checked_patterns, fits, name_of, named_arrays
from lrdyn.data.pretrained import Source, filled
from lrdyn.data.tensors import opened
from lrdyn.networks.convolution import BatchNorm, initial_state
from lrdyn.networks.network import Network
from lrdyn.networks.residual_network import ResNet
from lrdyn.networks.vgg_network import VGG
from lrdyn.networks.vision_transformer import ViT


class Pretrained(NamedTuple):
    """A network and the running statistics of its batch normalisation."""

    network: Any
    """The VGG, ResNet or ViT."""
    state: PyTree
    """Running statistics, in the form of :func:`lrdyn.networks.initial_state`."""


def read(path: str | Path, network: Network, *, keep: Patterns = ()) -> Pretrained:
    """Give a network the weights of a file, in float32.

    ImageNet's networks of these packages are ``vgg(key, layers, size=224, pool=7,
    hidden=(4096, 4096), classes=1000)``, with or without batch normalisation; ``resnet(key, blocks,
    stem="imagenet", classes=1000)`` of basic blocks; and ``vit(key, ..., classes=1000)`` with a
    class token. Arguments that make another stem, pooling or head need ``keep`` for what has other
    shapes.

    Args:
        path: a safetensors file, the index of a sharded checkpoint, or a folder with either.
        network: the network; where nothing is kept, its shapes under ``equinox.filter_eval_shape``
            are enough.
        keep: which leaves stay as they are, by their paths: ``"head.*"`` for a new head,
            ``["stem.*", "head.*"]`` for ResNet's other stem too.

    Raises:
        Refused: a tensor is missing, has another shape or type, or is one too many.
        ValueError: it is another kind of network, a pattern fits nothing, or of what is kept there
            are shapes alone.
    """
    places = _places(network)
    unchanged = _unchanged(network, places, checked_patterns("keep", keep))
    given = {place.path: place.source for label, place in places.items() if label not in unchanged}
    others = {places[label].source.name for label in unchanged}
    return filled(
        Pretrained(network, initial_state(network)),
        given,
        opened(path),
        ignored=lambda name: name in others or name.endswith(".num_batches_tracked"),
    )


class _Place(NamedTuple):
    """A leaf of :class:`Pretrained`, and its tensor."""

    path: str
    source: Source


def _places(network: Network) -> dict[str, _Place]:
    """Places in the file by the path of a leaf; running statistics by the path of their norm."""
    if not isinstance(network, VGG | ResNet | ViT):
        checks.refuse("network", f"type {type(network).__name__}", "a VGG, ResNet or ViT")
    if isinstance(network, ViT):
        modules = {"patches": "patch_embed.proj", "norm": "norm", "head": "head"}
        for i in range(len(network.blocks)):
            modules[f"blocks.{i}.first"] = f"blocks.{i}.norm1"
            modules[f"blocks.{i}.second"] = f"blocks.{i}.norm2"
        sources = _vit_leaves(network)
    else:
        modules = _vgg_modules(network) if isinstance(network, VGG) else _resnet_modules(network)
        sources = {}
    for path, leaf in named_arrays(network):
        module, _, kind = path.rpartition(".")
        if path not in sources:
            # In equinox a bias of channels has the axes of an image.
            shape = leaf.shape[:1] if kind == "bias" else leaf.shape
            name = f"{modules[module]}.{'weight' if kind == 'gain' else kind}"
            sources[path] = Source(name, shape)
    places = {path: _Place(f"network.{path}", source) for path, source in sources.items()}
    is_norm = lambda node: isinstance(node, BatchNorm)  # noqa: E731
    for place, norm in jax.tree_util.tree_leaves_with_path(network, is_leaf=is_norm):
        if not isinstance(norm, BatchNorm):
            continue
        path = name_of(place)
        for i, (kind, name) in enumerate((("mean", "mean"), ("variance", "var"))):
            source = Source(f"{modules[path]}.running_{name}")
            places[f"{path}.{kind}"] = _Place(f"state.{norm.place}.{i}", source)
    return places


def _unchanged(network: Network, places: dict[str, _Place], keep: Patterns) -> set[str]:
    unchanged = {label for label in places if fits(label, keep)}
    for pattern in [keep] if isinstance(keep, str | re.Pattern) else keep:
        if not any(fits(label, pattern) for label in places):
            some = ", ".join(list(places)[:4])
            checks.refuse("keep", repr(pattern), f"a pattern of some arrays among {some}, ...")
    for path, leaf in named_arrays(network):
        if path in unchanged and isinstance(leaf, jax.ShapeDtypeStruct):
            checks.refuse("keep", f"the shape of {path} alone", "an array in the network")
    return unchanged


# Modules of the network -> modules of the files ---------------------------------------------------


def _vgg_modules(network: VGG) -> dict[str, str]:
    modules, at = {}, 0
    for j, layer in enumerate(network.layers):
        modules[f"layers.{j}.convolution"] = f"features.{at}"
        modules[f"layers.{j}.norm"] = f"features.{at + 1}"
        # A relu behind each convolution counts too.
        at += 1 if layer is None else 2 + (layer.norm is not None)
    count = len(network.classifier)
    modules |= {f"classifier.{k}": f"classifier.{3 * k}" for k in range(count)}
    return modules | {"head": f"classifier.{3 * count}"}  # behind each a relu and a dropout


def _resnet_modules(network: ResNet) -> dict[str, str]:
    modules = {"stem.convolution": "conv1", "stem.norm": "bn1", "head": "fc"}
    names = {
        "first.convolution": "conv1",
        "first.norm": "bn1",
        "second.convolution": "conv2",
        "second.norm": "bn2",
        "shortcut.convolution": "downsample.0",
        "shortcut.norm": "downsample.1",
    }
    for s, stage in enumerate(network.stages):
        for b in range(len(stage)):
            for mine, name in names.items():
                modules[f"stages.{s}.{b}.{mine}"] = f"layer{s + 1}.{b}.{name}"
    return modules


def _vit_leaves(network: ViT) -> dict[str, Source]:
    """Leaves with another name or shape: timm has queries, keys and values in one matrix."""
    width = len(network.token)
    sources = {"token": Source("cls_token", (1, 1, width)), "position": Source("pos_embed")}
    for i in range(len(network.blocks)):
        mine, theirs = f"blocks.{i}.attention", f"blocks.{i}.attn"
        for j, name in enumerate(("query", "key", "value")):
            rows = slice(j * width, (j + 1) * width)
            sources[f"{mine}.{name}"] = Source(f"{theirs}.qkv.weight", (3 * width, width), rows)
            sources[f"{mine}.biases.{j}"] = Source(f"{theirs}.qkv.bias", (3 * width,), rows)
        sources[f"{mine}.output"] = Source(f"{theirs}.proj.weight")
        sources[f"{mine}.biases.3"] = Source(f"{theirs}.proj.bias")
        for j in (0, 1):
            sources[f"blocks.{i}.mlp.weights.{j}"] = Source(f"blocks.{i}.mlp.fc{j + 1}.weight")
            sources[f"blocks.{i}.mlp.biases.{j}"] = Source(f"blocks.{i}.mlp.fc{j + 1}.bias")
    return sources
