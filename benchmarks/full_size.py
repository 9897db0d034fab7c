"""YOLOv3 and ResNet-50 at their published sizes, with random weights.

What a network costs is in its shapes, not in its weights; what a photo costs is also in how many
objects are found on it. So the weights are drawn, then normalised on photos as training would have
done, and the detector's threshold is put where it finds as many objects as are wanted.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from backend.vision.decode import decode
from backend.vision.detections import select_detections
from backend.vision.letterbox import Letterbox, letterbox
from scripts.export_models import darknet, resnet50, yolov3
from scripts.export_models.contract import ModelSpec, detector_spec, embedder_spec
from scripts.export_models.formats import Precision
from scripts.export_models.half_precision import half_precision
from scripts.export_models.onnx_file import export_onnx
from scripts.export_models.repository import CONFIG_FILES, MODEL_FILE
from scripts.export_models.triton_config import config_text

__all__ = ["DETECTOR", "EMBEDDER", "Detect", "random_detector", "write_detector", "write_embedder"]

DETECTOR: Final = "yolov3"
EMBEDDER: Final = "resnet50"
_DETECTOR_SIZE: Final = 416
_EMBEDDER_SIZE: Final = 224
_LABELS: Final = tuple(f"label {number}" for number in range(80))
_NMS_THRESHOLD: Final = 0.45
_MAX_PIXELS: Final = 100_000_000
_SEED: Final = 0
_STEPS: Final = 24
"""Of halving: scores of half precision have no more than 11 digits."""

Detect = Callable[[NDArray[np.uint8]], Sequence[NDArray[Any]]]
"""Boxes, scores and labels of squares, uint8 [N, S, S, 3], see `serving.models.Detector`."""


def random_detector(width: float = 1.0) -> yolov3.Detector:
    """YOLOv3 of 80 classes for 416 pixels, `width` times as wide as published."""
    torch.manual_seed(_SEED)
    text = darknet.yolov3_cfg(width=width, classes=len(_LABELS), size=_DETECTOR_SIZE)
    module = yolov3.Detector(yolov3.Darknet(darknet.parse_cfg(text))).eval()
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            # Values that fade from layer to layer end as denormal numbers, which are slow.
            nn.init.kaiming_normal_(layer.weight, a=yolov3.LEAKY_SLOPE)
    return module


def write_detector(
    repository: Path,
    photos: Sequence[bytes],
    *,
    objects: float,
    open_model: Callable[[Path], Detect],
    width: float = 1.0,
    precision: Precision = Precision.FP16,
) -> None:
    """Writes YOLOv3 into a model repository.

    Args:
        repository: a folder, made where there is none.
        photos: encoded ones, on which it is normalised.
        objects: that it is to find on them in the mean.
        open_model: of an ONNX file, what runs it.
        width: in parts of the published network's.
        precision: of the network.
    """
    module = random_detector(width)
    placed = [letterbox(decode(photo, max_pixels=_MAX_PIXELS), _DETECTOR_SIZE) for photo in photos]
    squares = np.stack([square for square, _ in placed])
    _normalise(module, squares)
    path = _write_model(repository / DETECTOR, module, _detector_spec(0.0), precision)
    detect = open_model(path)
    found = [detect(square[np.newaxis]) for square in squares]
    threshold = _threshold(found, [placement for _, placement in placed], objects)
    _write_configs(repository / DETECTOR, DETECTOR, _detector_spec(threshold))


def write_embedder(
    repository: Path,
    photos: Sequence[bytes],
    *,
    width: float = 1.0,
    precision: Precision = Precision.FP16,
) -> None:
    """Writes ResNet-50 into a model repository; arguments as `write_detector`'s."""
    torch.manual_seed(_SEED)
    network = resnet50.ResNet50(base_width=round(resnet50.BASE_WIDTH * width))
    module = resnet50.Embedder(network)
    squares = [
        letterbox(decode(photo, max_pixels=_MAX_PIXELS), _EMBEDDER_SIZE)[0] for photo in photos
    ]
    _normalise(module, np.stack(squares))
    spec = embedder_spec(size=_EMBEDDER_SIZE, dimension=network.dimension)
    _write_model(repository / EMBEDDER, module, spec, precision)
    _write_configs(repository / EMBEDDER, EMBEDDER, spec)


def _detector_spec(score_threshold: float) -> ModelSpec:
    return detector_spec(
        size=_DETECTOR_SIZE,
        labels=_LABELS,
        score_threshold=score_threshold,
        nms_threshold=_NMS_THRESHOLD,
    )


def _normalise(module: nn.Module, images: NDArray[np.uint8]) -> None:
    """Has the batch normalisations learn the means and variances of images, uint8 [N, S, S, 3]."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # all of what is seen, equally
            layer.reset_running_stats()
    module.train()
    with torch.no_grad():
        module(torch.from_numpy(images))
    module.eval()


def _write_model(folder: Path, module: nn.Module, spec: ModelSpec, precision: Precision) -> Path:
    content = export_onnx(
        half_precision(module) if precision is Precision.FP16 else module.eval(), spec
    )
    path = folder / MODEL_FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def _write_configs(folder: Path, name: str, spec: ModelSpec) -> None:
    sha256 = hashlib.sha256((folder / MODEL_FILE).read_bytes()).hexdigest()
    for placement, file in CONFIG_FILES.items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        text = config_text(name, spec, placement, source_sha256=sha256, model_sha256=sha256)
        path.write_text(text, "utf-8")


def _threshold(
    found: Sequence[Sequence[NDArray[Any]]], placements: Sequence[Letterbox], objects: float
) -> float:
    """The score from which on so many objects are found in the mean, by halving."""
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        count = sum(
            len(
                select_detections(
                    boxes[0],
                    scores[0],
                    labels[0],
                    placement=placement,
                    score_threshold=middle,
                    nms_threshold=_NMS_THRESHOLD,
                )
            )
            for (boxes, scores, labels), placement in zip(found, placements, strict=True)
        )
        if count > objects * len(found):
            low = middle
        else:
            high = middle
    return high
