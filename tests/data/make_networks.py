"""Make networks.npz: outputs and gradients of small networks of torchvision and timm.

Run ``python tests/data/make_networks.py [--out FILE]`` in an environment of its own with torch,
torchvision and timm; it takes seconds. All numbers are float64. Every array is drawn from
``numpy.random.default_rng(0)``, anew for each network, by :func:`drawn`: parameters in the order of
``named_parameters``, then running means and variances, then the images; so only what comes out is
stored. The loss is the mean cross-entropy against the labels 0, 1, ... modulo the classes.

For each network NAME: ``NAME.outputs``, ``NAME.gradient`` (of all parameters in that order, in one
vector) and, of batch normalisation in training, ``NAME.statistics`` (all running means and
variances after the call, in order).
"""

# pyright: reportMissingImports=false
import argparse
from pathlib import Path

import numpy as np
import timm
import torch
import torchvision
from torch import nn
from torchvision.models import resnet, vgg

CLASSES = 5


def drawn(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Variance 1 / inputs; vectors are around 1/2."""
    found = rng.standard_normal(shape)
    return found / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.5 + found / 4


def perceptron() -> nn.Module:
    """4-6-7-5 with tanh."""
    return nn.Sequential(
        nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, CLASSES)
    )


def small_vgg(batch_norm: bool) -> nn.Module:
    """On 8 x 8 pixels, with a hidden layer in the classifier."""
    features = vgg.make_layers([4, "M", 6, 5, "M"], batch_norm=batch_norm)
    net = vgg.VGG(features, num_classes=CLASSES, init_weights=False)
    net.avgpool = nn.Identity()
    net.classifier = nn.Sequential(nn.Linear(5 * 2 * 2, 7), nn.ReLU(), nn.Linear(7, CLASSES))
    return net


def small_resnet(large: bool) -> nn.Module:
    """Stages of 2 and 1 blocks, 4 and 6 channels, on 6 x 6 pixels; or torchvision's stem on 12."""
    net = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=CLASSES)
    net.inplanes = 4
    kernel, stride, padding = (7, 2, 3) if large else (3, 1, 1)
    net.conv1 = nn.Conv2d(3, 4, kernel, stride, padding, bias=False)
    net.bn1 = nn.BatchNorm2d(4)
    net.layer1 = net._make_layer(resnet.BasicBlock, 4, 2)
    net.layer2 = net._make_layer(resnet.BasicBlock, 6, 1, stride=2)
    net.layer3 = net.layer4 = nn.Identity()
    net.fc = nn.Linear(6, CLASSES)
    if not large:
        net.maxpool = nn.Identity()
    return net


def small_vit() -> nn.Module:
    """Patches of 4 x 4 of 8 x 8 pixels, width 6, two blocks, three heads."""
    return timm.models.VisionTransformer(
        img_size=8,
        patch_size=4,
        num_classes=CLASSES,
        embed_dim=6,
        depth=2,
        num_heads=3,
        mlp_ratio=2,
    )


NETWORKS = {
    "mlp": (perceptron, (4,), False),
    "vgg": (lambda: small_vgg(False), (3, 8, 8), False),
    "vgg_training": (lambda: small_vgg(True), (3, 8, 8), True),
    "vgg_evaluation": (lambda: small_vgg(True), (3, 8, 8), False),
    "resnet_training": (lambda: small_resnet(False), (3, 6, 6), True),
    "resnet_evaluation": (lambda: small_resnet(False), (3, 6, 6), False),
    "resnet_imagenet": (lambda: small_resnet(True), (3, 12, 12), True),
    "vit": (small_vit, (3, 8, 8), False),
}
"""Name -> network, shape of an image, whether it is called as in training."""


def results(name: str) -> dict[str, np.ndarray]:
    """What is stored of a network."""
    make, shape, training = NETWORKS[name]
    net, rng = make().double().train(training), np.random.default_rng(0)
    statistics = [b for key, b in net.named_buffers() if "running" in key]
    with torch.no_grad():
        for array in [*net.parameters(), *statistics]:
            array.copy_(torch.from_numpy(drawn(rng, tuple(array.shape))))
        for key, array in net.named_buffers():
            if key.endswith("running_var"):
                array.copy_(array.exp())
    images = torch.from_numpy(drawn(rng, (4, *shape)) * np.sqrt(np.prod(shape)))
    outputs = net(images)
    nn.functional.cross_entropy(outputs, torch.arange(4) % CLASSES).backward()
    gradient = torch.cat([p.grad.ravel() for p in net.parameters()])
    found = {"outputs": outputs.detach().numpy(), "gradient": gradient.numpy()}
    if training:
        found["statistics"] = torch.cat([b.ravel() for b in statistics]).numpy()
    return {f"{name}.{key}": array for key, array in found.items()}


def main() -> None:
    words = argparse.ArgumentParser(description="Reference outputs of small networks.")
    words.add_argument("--out", type=Path, default=Path(__file__).with_name("networks.npz"))
    out = words.parse_args().out
    found = {key: array for name in NETWORKS for key, array in results(name).items()}
    versions = [f"{m.__name__} {m.__version__}" for m in (torch, torchvision, timm)]
    np.savez_compressed(out, made_by=np.array(versions), **found)  # pyright: ignore


if __name__ == "__main__":
    main()
