"""Make the folder vision: small networks of torchvision and timm in their own files.

Run ``python tests/data/make_vision.py [--out DIR]`` in an environment of its own with torch,
torchvision and timm; it takes seconds. Of each of :data:`NETWORKS` NAME.safetensors is the
``state_dict`` in float32, drawn as in ``make_networks.py``; ``outputs.safetensors`` holds
NAME.images and NAME.outputs, in evaluation. ``full.json`` has the names and shapes of the tensors
of :data:`FULL`, networks of ImageNet, of which nothing is drawn.
"""

# pyright: reportMissingImports=false
import argparse
import json
from pathlib import Path

import numpy as np
import timm
import torch
from make_networks import CLASSES, drawn, small_resnet, small_vit
from safetensors.torch import save_file
from torch import nn
from torchvision import models

HERE = Path(__file__).with_name("vision")


def small_vgg(batch_norm: bool) -> nn.Module:
    """Torchvision's pooling to 7 x 7 and its classifier with two hidden layers, on 5 x 5 pixels."""
    features = models.vgg.make_layers([3, "M", 4, 2, "M"], batch_norm=batch_norm)
    net = models.VGG(features, num_classes=CLASSES, init_weights=False)
    one, _, _, two, _, _, head = net.classifier
    for layer, sizes in ((one, (2 * 7 * 7, 6)), (two, (6, 7)), (head, (7, CLASSES))):
        layer.weight = nn.Parameter(torch.empty(sizes[::-1]))
        layer.bias = nn.Parameter(torch.empty(sizes[1]))
    return net


NETWORKS = {
    "vgg": (lambda: small_vgg(False), (3, 20, 20)),
    "vgg_bn": (lambda: small_vgg(True), (3, 20, 20)),
    "resnet": (lambda: small_resnet(True), (3, 12, 12)),
    "resnet_cifar": (lambda: small_resnet(False), (3, 6, 6)),
    "vit": (small_vit, (3, 8, 8)),
}
FULL = {
    "vgg16": models.vgg16,
    "vgg16_bn": models.vgg16_bn,
    "resnet18": models.resnet18,
    "resnet34": models.resnet34,
    "resnet50": models.resnet50,
    "vit_base_patch16_224": lambda: timm.create_model("vit_base_patch16_224"),
    "vit_tiny_patch16_224": lambda: timm.create_model("vit_tiny_patch16_224"),
}


def results(name: str, out: Path) -> dict[str, torch.Tensor]:
    """Write a network; images, and what comes out."""
    make, shape = NETWORKS[name]
    net, rng = make().eval(), np.random.default_rng(0)
    with torch.no_grad():
        for key, array in net.state_dict().items():
            if array.is_floating_point():
                found = torch.from_numpy(drawn(rng, tuple(array.shape)))
                array.copy_(found.exp() if key.endswith("running_var") else found)
        images = torch.from_numpy(rng.standard_normal((2, *shape))).float()
        outputs = net(images)
    save_file(net.state_dict(), out / f"{name}.safetensors")
    return {f"{name}.images": images, f"{name}.outputs": outputs}


def main() -> None:
    words = argparse.ArgumentParser(description="Small networks in the files of their packages.")
    words.add_argument("--out", type=Path, default=HERE)
    out = words.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    found = {key: x for name in NETWORKS for key, x in results(name, out).items()}
    save_file(found, out / "outputs.safetensors")
    with torch.device("meta"):
        full = {name: make().state_dict() for name, make in FULL.items()}
    shapes = {name: {key: list(x.shape) for key, x in net.items()} for name, net in full.items()}
    (out / "full.json").write_text(json.dumps(shapes, separators=(",", ":")) + "\n")
    for file in out.iterdir():
        print(file.name, file.stat().st_size)


if __name__ == "__main__":
    main()
