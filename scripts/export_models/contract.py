"""What the service and a model agree on: tensor names, types, dims, batch sizes and parameters.

The one place that says so. The PyTorch modules, the ONNX export and ``config.pbtxt`` follow it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final

from scripts.export_models.errors import ContractError

MAX_DETECTIONS: Final = 300
"""K, the detections that a detector gives for every image, however bad the last ones are."""

# A detector's maps are large (11 MB an image after YOLOv3's first layer at 416, in FP16); an
# embedder's are a quarter of that, and every photo has several crops.
DETECTOR_MAX_BATCH_SIZE: Final = 32
EMBEDDER_MAX_BATCH_SIZE: Final = 64

CROP_GEOMETRIES: Final = ("stretch", "square", "pad")
"""How the service may cut a box out for an embedder; the first where the config names none."""


class DataType(Enum):
    """Types that the contract uses; names as in Triton, values as in NumPy."""

    UINT8 = "uint8"
    INT32 = "int32"
    FP32 = "float32"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor; ``dims`` are without the batch, which always comes first and is free."""

    name: str
    data_type: DataType
    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One input, some outputs, and what the service must know besides (``parameters``)."""

    input: TensorSpec
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int
    parameters: Mapping[str, str] = field(default_factory=dict)


def _image(name: str, size: int) -> TensorSpec:
    return TensorSpec(name, DataType.UINT8, (size, size, 3))


def detector_spec(
    *, size: int, labels: Sequence[str], score_threshold: float, nms_threshold: float
) -> ModelSpec:
    """A detector's contract.

    Args:
        size: input width and height in pixels.
        labels: label of class 0, 1, …
        score_threshold: detections below are left out by default, 0..1.
        nms_threshold: IoU above which the worse of two boxes of a label goes, 0..1.

    Raises:
        ContractError: a threshold is outside 0..1, or a label could not be told from two.
    """
    for name, value in (("score", score_threshold), ("NMS", nms_threshold)):
        if not 0 <= value <= 1:
            raise ContractError(f"the {name} threshold {value:g} is outside 0..1")
    check_labels(labels)
    return ModelSpec(
        input=_image("images", size),
        outputs=(
            TensorSpec("boxes", DataType.FP32, (MAX_DETECTIONS, 4)),
            TensorSpec("scores", DataType.FP32, (MAX_DETECTIONS,)),
            TensorSpec("labels", DataType.INT32, (MAX_DETECTIONS,)),
        ),
        max_batch_size=DETECTOR_MAX_BATCH_SIZE,
        parameters={
            "labels": ",".join(labels),
            "score_threshold": f"{score_threshold:g}",
            "nms_threshold": f"{nms_threshold:g}",
        },
    )


def embedder_spec(
    *,
    size: int,
    dimension: int,
    crop_geometry: str = CROP_GEOMETRIES[0],
    crop_margin: float = 0.0,
) -> ModelSpec:
    """The contract of an embedder of ``size`` x ``size`` pixels to ``dimension`` numbers.

    Args:
        size: input width and height in pixels.
        dimension: length of an embedding.
        crop_geometry: how the service makes a square of a box, one of ``CROP_GEOMETRIES``.
        crop_margin: what it adds to the box on every side before, in parts of that side, 0..1.

    Raises:
        ContractError: there is no such geometry, or the margin is outside 0..1.
    """
    if crop_geometry not in CROP_GEOMETRIES:
        raise ContractError(
            f"the crop geometry {crop_geometry!r} is none of {', '.join(CROP_GEOMETRIES)}"
        )
    if not 0 <= crop_margin <= 1:
        raise ContractError(f"the crop margin {crop_margin:g} is outside 0..1")
    parameters = {}
    # Defaults are left out: a config from before there was a choice says the same as one of today.
    if crop_geometry != CROP_GEOMETRIES[0]:
        parameters["crop_geometry"] = crop_geometry
    if crop_margin:
        parameters["crop_margin"] = f"{crop_margin:g}"
    return ModelSpec(
        input=_image("crops", size),
        outputs=(TensorSpec("embeddings", DataType.FP32, (dimension,)),),
        max_batch_size=EMBEDDER_MAX_BATCH_SIZE,
        parameters=parameters,
    )


def check_labels(labels: Sequence[str]) -> None:
    """Raises ``ContractError`` for labels that a comma-separated list could not carry."""
    for number, label in enumerate(labels, start=1):
        if not label.strip() or label != label.strip():
            raise ContractError(f"label {number} {label!r} is empty, or has spaces around it")
        if "," in label or len(label.splitlines()) > 1:
            raise ContractError(f"label {number} {label!r} holds a comma or a line break")
        if label in labels[: number - 1]:
            raise ContractError(f"label {number} {label!r} is there twice")


def read_labels(path: Path, *, classes: int) -> tuple[str, ...]:
    """Labels of a text file, one a line, in the order of the network's classes.

    Raises:
        ContractError: the file cannot be read, or does not hold ``classes`` usable labels.
    """
    try:
        labels = tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ContractError(f"{path}: cannot be read as labels: {error}") from error
    try:
        check_labels(labels)
    except ContractError as error:
        raise ContractError(f"{path}: {error}") from error
    if len(labels) != classes:
        raise ContractError(f"{path}: {len(labels)} labels for a network of {classes} classes")
    return labels


def check_model_name(name: str) -> None:
    """Raises ``ContractError`` for a name that is not safe as a folder of the repository."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ContractError(f"the model name {name!r} must be letters, digits, '.', '_' and '-'")
