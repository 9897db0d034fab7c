"""Networks small enough to build, fill and export within a test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scripts.export_models.darknet import Convolutional, Network, parse_cfg, read_weights
from scripts.export_models.resnet50 import ResNet50
from scripts.export_models.yolov3 import Darknet

# Every kind of section, two heads, and each way that YOLOv3 and its relatives (tiny, SPP) pool.
TINY_CFG = """
[net]
# Testing
batch=1
width=64
height=64
channels=3

[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=leaky

[maxpool]
size=2
stride=2

[convolutional]
batch_normalize=1
filters=8
size=1
stride=1
pad=1
activation=leaky

[convolutional]
batch_normalize=1
filters=8
size=3
stride=1
pad=1
activation=leaky

[shortcut]
from=-3
activation=linear

[convolutional]
batch_normalize=1
filters=16
size=3
stride=2
padding=1
activation=leaky

[maxpool]
size=5
stride=1

[route]
layers=-1,-2

[convolutional]
filters=24
size=1
stride=1
pad=1
activation=linear

[yolo]
mask=3,4,5
anchors=4,6, 8,8, 12,7, 20,14, 30,30, 50,40
classes=3
num=6
jitter=.3

[route]
layers=7

[convolutional]
batch_normalize=1
filters=4
size=1
activation=leaky

[upsample]
stride=2

[route]
layers=-1,4

[maxpool]
size=2
stride=1

[convolutional]
filters=24
size=1
activation=linear

[yolo]
mask=0,1,2
anchors=4,6, 8,8, 12,7, 20,14, 30,30, 50,40
classes=3
num=6
"""
TINY_LABELS = ("cat", "dog", "potted plant")


def tiny_network() -> Network:
    return parse_cfg(TINY_CFG)


def random_floats(network: Network, *, seed: int = 0) -> NDArray[np.float32]:
    """What a ``.weights`` file of a trained ``network`` might hold after its header."""
    generator = np.random.default_rng(seed)
    parts: list[NDArray[np.float64]] = []
    for layer in network.layers:
        if isinstance(layer, Convolutional):
            n = layer.filters
            parts.append(generator.normal(0, 0.5, n))  # bias
            if layer.batch_normalize:
                parts.append(generator.uniform(0.5, 1.5, n))  # scale
                parts.append(generator.normal(0, 0.5, n))  # mean
                parts.append(generator.uniform(0.5, 1.5, n))  # variance
            fan_in = layer.in_channels * layer.size**2
            shape = layer.kernel_shape
            parts.append(generator.normal(0, (2 / fan_in) ** 0.5, shape).ravel())
    return np.concatenate(parts).astype(np.float32)


def write_weights(
    path: Path, floats: NDArray[np.float32], *, version: tuple[int, int, int] = (0, 2, 0)
) -> Path:
    seen = np.array([32_013_312], "<i8" if version[0] * 10 + version[1] >= 2 else "<i4")
    path.write_bytes(
        np.array(version, "<i4").tobytes() + seen.tobytes() + floats.astype("<f4").tobytes()
    )
    return path


def tiny_darknet(folder: Path, *, seed: int = 0) -> Darknet:
    network = tiny_network()
    path = write_weights(folder / f"{seed}.weights", random_floats(network, seed=seed))
    model = Darknet(network)
    model.load_darknet_weights(read_weights(path, network))
    return model.eval()


def tiny_resnet50() -> ResNet50:
    """Random, with batch normalisations as if it had been trained."""
    generator = torch.Generator().manual_seed(0)
    network = ResNet50(base_width=2)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                fan_in = module.weight[0].numel()
                module.weight.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
            elif isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.weight.uniform_(0.5, 1.0, generator=generator)
                module.bias.normal_(0, 0.2, generator=generator)
                module.running_mean.normal_(0, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
    return network.eval()


class MeanColour(nn.Module):
    """The smallest embedder there is: crops to the mean of each channel, 0..1."""

    def forward(self, crops: Tensor) -> Tensor:
        return crops.to(torch.float32).mean(dim=(1, 2)) / 255
