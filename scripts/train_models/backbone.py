"""The detector's backbone: YOLOv3 up to its last residual block, on objects' crops.

What tells classes apart is learnt faster from crops than from photos, so that a detector which is
trained from nothing starts from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from scripts.export_models import darknet
from scripts.export_models.yolov3 import Darknet
from scripts.train_models.crops import BATCH, Crops
from scripts.train_models.training import Batch, Phase, placed

_SQUARE: Final = 0.5
_LABEL_SMOOTHING: Final = 0.05


class BackboneNetwork(nn.Module):
    """A classifier on a detector's sections up to its last ``[shortcut]``."""

    def __init__(self, detector: Darknet, classes: int) -> None:
        super().__init__()
        self.detector = detector
        layers = detector.network.layers
        last = max(i for i, layer in enumerate(layers) if isinstance(layer, darknet.Shortcut))
        self.count = last + 1
        self.fc = nn.Linear(detector.network.shapes[last].channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Scores of classes, [N, classes], not squashed, of RGB FP32 [N, 3, S, S], 0..1."""
        features = self.detector.outputs(images, self.count)[-1]
        scores: Tensor = self.fc(features.mean(dim=(2, 3)))
        return scores


class BackboneTask:
    """Trains a ``Darknet``'s backbone, in place; see ``training.Task``."""

    def __init__(
        self,
        detector: Darknet,
        data: Path,
        labels: Sequence[str],
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        """Prepares; arguments as of ``DetectorTask``."""
        self._network = placed(BackboneNetwork(detector, len(labels)), device)
        self._data = data
        self._labels = labels
        self._seed = seed
        self._device = device
        self._size = 0
        self._crops: Crops | None = None

    @property
    def network(self) -> nn.Module:
        return self._network

    def prepare(self, phase: Phase) -> None:
        self._size = phase.size
        self._crops = self._crops or Crops(self._data / "train", self._labels)

    def batches(self, epoch: int, *, last_phase: bool) -> Sequence[Callable[[], Batch]]:
        assert self._crops is not None
        return self._crops.batches(epoch, self._size, square=_SQUARE, seed=self._seed)

    def loss(self, batch: Batch) -> tuple[Tensor, Mapping[str, float]]:
        crops, labels = (part.to(self._device) for part in batch)
        with torch.autocast(self._device.type, torch.bfloat16):
            scores = self._network(_images(crops))
        loss = functional.cross_entropy(scores.float(), labels, label_smoothing=_LABEL_SMOOTHING)
        return loss, {"loss": float(loss.detach())}

    def evaluate(self, network: nn.Module) -> Mapping[str, float]:
        """The part of ``val``'s objects whose class is the best-scored one."""
        crops = Crops(self._data / "val", self._labels)
        correct = 0
        for start in range(0, len(crops), BATCH):
            numbers = range(start, min(start + BATCH, len(crops)))
            pixels, labels = crops.plain(numbers, self._size, "stretch")
            with torch.inference_mode(), torch.autocast(self._device.type, torch.bfloat16):
                scores = network(_images(torch.from_numpy(pixels).to(self._device)))
            correct += int((scores.argmax(dim=1).cpu().numpy() == labels).sum())
        return {"accuracy": correct / max(1, len(crops))}

    def save(self, network: nn.Module) -> Sequence[Path]:
        """Gives the averaged weights to the detector that this was made of; writes nothing."""
        assert isinstance(network, BackboneNetwork)
        self._network.detector.load_state_dict(network.detector.state_dict())
        return ()


def _images(crops: Tensor) -> Tensor:
    images = crops.permute(0, 3, 1, 2).float().div(255)
    return images.contiguous(memory_format=torch.channels_last)
