"""ResNet-50 in PyTorch, and the embedder that the service calls.

Sources: K. He et al., "Deep Residual Learning for Image Recognition" (2015), in the form known as
v1.5: a stage's stride is on the 3 x 3 convolution of its first block, not on the 1 x 1 before it.
Parameters bear torchvision's names, so its published weights load as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from scripts.export_models.errors import WeightsError

BASE_WIDTH: Final = 64
EXPANSION: Final = 4
BLOCKS: Final = (3, 4, 6, 3)

# Of ImageNet's training photos, RGB scaled to 0..1: what the published weights were trained with.
IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION: Final = (0.229, 0.224, 0.225)

# Shorter vectors stay as they are, so that a zero vector gives zeros, not NaN. Large enough for
# FP16 to tell it from zero (its smallest number is 6e-8), far below any real vector's length.
NORM_EPSILON: Final = 1e-6


class Bottleneck(nn.Module):
    """1 x 1 to ``width``, 3 x 3, 1 x 1 to four times ``width``; plus what came in."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = EXPANSION * width
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample = (
            nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
            if stride != 1 or channels != out
            else nn.Identity()
        )

    def forward(self, features: Tensor) -> Tensor:
        inner = functional.relu(self.bn1(self.conv1(features)))
        inner = functional.relu(self.bn2(self.conv2(inner)))
        inner = self.bn3(self.conv3(inner))
        return functional.relu(inner + self.downsample(features))


class ResNet50(nn.Module):
    """ResNet-50, ``base_width`` / 64 times as wide as published.

    With ``classes`` it has the classifier ``fc`` that training needs; embeddings do without.
    """

    def __init__(self, *, base_width: int = BASE_WIDTH, classes: int | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, base_width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(base_width)
        stages = []
        channels = base_width
        for stage, blocks in enumerate(BLOCKS):
            width = base_width * 2**stage
            layers = []
            for block in range(blocks):
                layers.append(Bottleneck(channels, width, 2 if stage and not block else 1))
                channels = EXPANSION * width
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.dimension = channels
        if classes is not None:
            self.fc = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Features of normalised RGB, FP32 [N, 3, S, S], pooled over the image: FP32 [N, D]."""
        features = functional.relu(self.bn1(self.conv1(images)))
        features = functional.max_pool2d(features, 3, 2, 1)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            features = layer(features)
        pooled: Tensor = features.mean(dim=(2, 3))
        return pooled


class Embedder(nn.Module):
    """Pixels in, unit vectors out."""

    scale: Tensor
    offset: Tensor

    def __init__(self, network: ResNet50) -> None:
        super().__init__()
        self.network = network
        mean = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
        deviation = torch.tensor(IMAGENET_DEVIATION).view(1, 3, 1, 1)
        # (x / 255 - mean) / deviation, as one multiplication and one addition.
        self.register_buffer("scale", 1 / (255 * deviation))
        self.register_buffer("offset", -mean / deviation)

    def forward(self, crops: Tensor) -> Tensor:
        """Embeds.

        Args:
            crops: UINT8 [N, S, S, 3], RGB.

        Returns:
            FP32 [N, D] of length 1; zeros where the features are all zero.
        """
        pixels = crops.to(torch.float32).permute(0, 3, 1, 2)
        features: Tensor = self.network(pixels * self.scale + self.offset)
        length: Tensor = torch.linalg.vector_norm(features, dim=1, keepdim=True)
        return features / length.clamp_min(NORM_EPSILON)


def _listed(keys: Iterable[str]) -> str:
    names = sorted(keys)
    shown = ", ".join(names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _read_state_dict(path: Path) -> object:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (OSError, safetensors.SafetensorError) as error:
            raise WeightsError(f"{path}: cannot be read as safetensors: {error}") from error
    problem = f"{path}: cannot be read as a PyTorch state dict"
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"{problem}: {error.strerror or error}") from error
    # Of a damaged file, PyTorch's reader runs its instructions until something fails: an
    # IndexError, a KeyError, whatever. Where it understands, it advises what would run code.
    except Exception as error:
        raise WeightsError(
            f"{problem}: it holds more than tensors, is damaged or no checkpoint: save what"
            " model.state_dict() gives"
        ) from error


def load_resnet50(path: Path) -> ResNet50:
    """A ResNet-50 without classifier, from a state dict with torchvision's names.

    A file whose name ends in ``.safetensors`` is read as that, any other one by PyTorch. The width
    is that of ``conv1.weight``. Passed over are ``fc`` and, since only training needs them, batch
    normalisation's step counters, which older files lack.

    Raises:
        WeightsError: the file is no state dict, or that of another network.
    """
    state = _read_state_dict(path)
    if not isinstance(state, dict) or not all(isinstance(x, Tensor) for x in state.values()):
        raise WeightsError(f"{path}: is not a state dict (names to tensors)")
    given = {
        name: tensor
        for name, tensor in state.items()
        if not name.startswith("fc.") and not name.endswith(".num_batches_tracked")
    }
    stem = given.get("conv1.weight")
    if stem is None or stem.ndim != 4:
        raise WeightsError(f"{path}: has no conv1.weight of four dimensions, so is no ResNet")
    network = ResNet50(base_width=stem.shape[0])
    expected = {
        name: tensor
        for name, tensor in network.state_dict().items()
        if not name.endswith(".num_batches_tracked")
    }
    if missing := expected.keys() - given.keys():
        raise WeightsError(f"{path}: lacks {_listed(missing)} of ResNet-50")
    if extra := given.keys() - expected.keys():
        raise WeightsError(f"{path}: has {_listed(extra)}, which ResNet-50 does not")
    for name, tensor in given.items():
        if tensor.shape != expected[name].shape:
            raise WeightsError(
                f"{path}: {name} is {list(tensor.shape)}, ResNet-50 of base width"
                f" {stem.shape[0]} needs {list(expected[name].shape)}"
            )
        if not tensor.isfinite().all():
            raise WeightsError(f"{path}: {name} holds values that are not finite: it is damaged")
    network.load_state_dict(given, strict=False)
    return network
