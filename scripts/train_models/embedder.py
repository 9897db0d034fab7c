"""The embedder: a ResNet-50 of any width, on objects' crops."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, get_args

import torch
from pytorch_metric_learning.losses import CosFaceLoss
from torch import Tensor, nn
from torch.nn import functional

from backend.vision.crops import CropGeometry
from scripts.export_models.resnet50 import IMAGENET_DEVIATION, IMAGENET_MEAN, ResNet50
from scripts.train_models.crops import BATCH, Crops
from scripts.train_models.training import Batch, Phase, placed

_NEAREST: Final = 10

# The margin's and the scale's effect: the cosine with an object's own class has to exceed those
# with all others by the margin. H. Wang et al., "CosFace" (2018).
_MARGIN: Final = 0.1
_SCALE: Final = 16.0


class EmbedderNetwork(nn.Module):
    """A ResNet-50 and, for training alone, a direction for each class."""

    def __init__(self, network: ResNet50, classes: int) -> None:
        super().__init__()
        self.network = network
        self.classes = CosFaceLoss(classes, network.dimension, margin=_MARGIN, scale=_SCALE)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(images)
        return features


class EmbedderTask:
    """Trains a ``ResNet50``; see ``training.Task``."""

    def __init__(
        self,
        network: ResNet50,
        data: Path,
        output: Path,
        labels: Sequence[str],
        *,
        square: float,
        seed: int,
        device: torch.device,
    ) -> None:
        """Prepares.

        Args:
            network: what to train.
            data: folder with ``train`` and ``val``.
            output: the state dict goes there; the path without suffix.
            labels: name of each class.
            square: part of the crops that are cut out as squares, see ``object_sample``.
            seed: of everything random.
            device: where to train.
        """
        torch.manual_seed(seed)
        self._network = placed(EmbedderNetwork(network, len(labels)), device)
        self._data = data
        self._output = output
        self._labels = labels
        self._square = square
        self._seed = seed
        self._device = device
        self._size = 0
        self._crops: Crops | None = None
        self._mean = torch.tensor(IMAGENET_MEAN, device=device).view(1, 3, 1, 1)
        self._deviation = torch.tensor(IMAGENET_DEVIATION, device=device).view(1, 3, 1, 1)

    @property
    def network(self) -> nn.Module:
        return self._network

    def prepare(self, phase: Phase) -> None:
        self._size = phase.size
        self._crops = self._crops or Crops(self._data / "train", self._labels)

    def batches(self, epoch: int, *, last_phase: bool) -> Sequence[Callable[[], Batch]]:
        assert self._crops is not None
        return self._crops.batches(epoch, self._size, square=self._square, seed=self._seed)

    def loss(self, batch: Batch) -> tuple[Tensor, Mapping[str, float]]:
        crops, labels = (part.to(self._device) for part in batch)
        with torch.autocast(self._device.type, torch.bfloat16):
            features = self._network(self._normalised(crops))
        loss: Tensor = self._network.classes(features.float(), labels)
        return loss, {"loss": float(loss.detach())}

    def evaluate(self, network: nn.Module) -> Mapping[str, float]:
        """Of the nearest objects of ``train``, the part with the label of one of ``val``.

        Objects marked difficult are queries too, so that figures are a little below those of
        ``benchmarks.quality``.
        """
        assert self._crops is not None
        network.eval()
        val = Crops(self._data / "val", self._labels)
        answers: dict[str, float] = {}
        for geometry in get_args(CropGeometry):
            gallery, labels = self._describe(network, self._crops, geometry)
            queries, wanted = self._describe(network, val, geometry)
            nearest = (queries @ gallery.T).topk(_NEAREST, dim=1).indices
            hits = (labels[nearest] == wanted[:, None]).float()
            answers[f"p@{_NEAREST} {geometry}"] = float(hits.mean())
        return answers

    def save(self, network: nn.Module) -> Sequence[Path]:
        assert isinstance(network, EmbedderNetwork)
        file = self._output.with_suffix(".pt")
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(network.network.state_dict(), file)
        return (file,)

    def _describe(
        self, network: nn.Module, crops: Crops, geometry: CropGeometry
    ) -> tuple[Tensor, Tensor]:
        vectors = []
        for start in range(0, len(crops), BATCH):
            numbers = range(start, min(start + BATCH, len(crops)))
            pixels = torch.from_numpy(crops.plain(numbers, self._size, geometry)[0])
            with torch.inference_mode(), torch.autocast(self._device.type, torch.bfloat16):
                features = network(self._normalised(pixels.to(self._device)))
            vectors.append(functional.normalize(features.float()).cpu())
        return torch.cat(vectors), torch.from_numpy(crops.labels)

    def _normalised(self, crops: Tensor) -> Tensor:
        images = (crops.permute(0, 3, 1, 2).float() / 255 - self._mean) / self._deviation
        return images.contiguous(memory_format=torch.channels_last)
