"""The detector: a YOLOv3 of any width, on photos with boxes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from backend.vision.detections import select_detections
from backend.vision.letterbox import letterbox
from benchmarks.quality.average_precision import DetectorEvaluation
from benchmarks.voc import read_split
from scripts.export_models import darknet
from scripts.export_models.yolov3 import Darknet, Detector
from scripts.train_models.augmentation import detection_sample
from scripts.train_models.detection_loss import DetectionLoss
from scripts.train_models.photos import batch_starts, epoch_order, load_photos, repeat_factors
from scripts.train_models.training import Batch, Phase, placed

_BATCH: Final = 32
_MOSAIC: Final = 0.5
_LAST_MOSAIC: Final = 0.1
"""In the last phase, so that the network ends on photos as they are."""
_SPARE: Final = 1.4
"""Photos are kept at this many times the input size, since augmentation magnifies some."""
# As in benchmarks.quality.detection, which needs more packages than training does.
_SCORE_THRESHOLD: Final = 0.01
_NMS_THRESHOLD: Final = 0.45


class DetectorTask:
    """Trains a ``Darknet``; see ``training.Task``."""

    def __init__(
        self,
        network: Darknet,
        cfg: Callable[[int], str],
        data: Path,
        output: Path,
        labels: Sequence[str],
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        """Prepares.

        Args:
            network: what to train.
            cfg: its ``.cfg`` for an input size.
            data: folder with ``train`` and ``val``.
            output: ``.cfg`` and ``.weights`` go there; the path without suffix.
            labels: name of each class.
            seed: of everything random.
            device: where ``network`` is.
        """
        self._network = placed(network, device)
        self._cfg = cfg
        self._data = data
        self._output = output
        self._labels = labels
        self._seed = seed
        self._device = device
        self._loss = DetectionLoss(network.network)
        self._size = 0

    @property
    def network(self) -> nn.Module:
        return self._network

    def prepare(self, phase: Phase) -> None:
        self._size = phase.size
        side = round(phase.size * _SPARE)
        self._photos = load_photos(self._data / "train", self._labels, side=side)
        present = [photo.labels for photo in self._photos]
        self._weights = repeat_factors(present, len(self._labels))

    def batches(self, epoch: int, *, last_phase: bool) -> Sequence[Callable[[], Batch]]:
        order = epoch_order(self._weights, np.random.default_rng((self._seed, epoch)))
        mosaic = _LAST_MOSAIC if last_phase else _MOSAIC

        def make(start: int) -> Batch:
            pixels, objects = [], []
            for place, index in enumerate(order[start : start + _BATCH]):
                generator = np.random.default_rng((self._seed, epoch, 1 + start + place))
                sample, found = detection_sample(
                    self._photos, int(index), self._size, mosaic=mosaic, generator=generator
                )
                pixels.append(sample)
                centres = (found[:, 1:3] + found[:, 3:]) / 2
                sides = found[:, 3:] - found[:, 1:3]
                image = np.full((len(found), 1), place, np.float32)
                objects.append(np.hstack([image, found[:, :1], centres, sides]))
            return torch.from_numpy(np.stack(pixels)), torch.from_numpy(np.concatenate(objects))

        return [partial(make, start) for start in batch_starts(len(order), _BATCH)]

    def loss(self, batch: Batch) -> tuple[Tensor, Mapping[str, float]]:
        pixels, objects = (part.to(self._device) for part in batch)
        images = pixels.permute(0, 3, 1, 2).float().div(255)
        with torch.autocast(self._device.type, torch.bfloat16):
            outputs = self._network(images.contiguous(memory_format=torch.channels_last))
        losses = self._loss(outputs, objects, self._size)
        parts = {"box": losses.box, "object": losses.objectness, "class": losses.classes}
        return losses.total, {name: float(part.detach()) for name, part in parts.items()}

    def evaluate(self, network: nn.Module) -> Mapping[str, float]:
        """VOC's mAP@0.5 on ``val`` at the present input size."""
        sized = Darknet(darknet.parse_cfg(self._cfg(self._size)))
        sized.load_state_dict(network.state_dict())
        detector = placed(Detector(sized).eval(), self._device)
        evaluation = DetectorEvaluation(self._labels)
        photos = read_split(self._data / "val")
        for start in range(0, len(photos), _BATCH):
            chosen = photos[start : start + _BATCH]
            boxed = [letterbox(photo.pixels(), self._size) for photo in chosen]
            images = torch.from_numpy(np.stack([pixels for pixels, _ in boxed]))
            with torch.inference_mode(), torch.autocast(self._device.type, torch.bfloat16):
                answers = [x.float().cpu().numpy() for x in detector(images.to(self._device))]
            for photo, (_, placement), boxes, scores, labels in zip(
                chosen, boxed, *answers, strict=True
            ):
                found = select_detections(
                    boxes,
                    scores,
                    labels.astype(np.int32),
                    placement=placement,
                    score_threshold=_SCORE_THRESHOLD,
                    nms_threshold=_NMS_THRESHOLD,
                )
                evaluation.add(found, photo.objects)
        return {"mAP@0.5": evaluation.mean_average_precision()}

    def save(self, network: nn.Module) -> Sequence[Path]:
        assert isinstance(network, Darknet)
        cfg, weights = (self._output.with_suffix(end) for end in (".cfg", ".weights"))
        cfg.parent.mkdir(parents=True, exist_ok=True)
        cfg.write_text(self._cfg(self._size), encoding="utf-8")
        darknet.write_weights(weights, network.network, network.darknet_weights())
        return cfg, weights
