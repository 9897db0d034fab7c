"""Average precision of a detector, as COCO defines it, by COCO's own evaluation code.

The mean over the IoUs 0.50, 0.55, …, 0.95 of the interpolated precision at 101 recalls
(https://cocodataset.org/#detection-eval), of at most 100 detections of a label in a photo. Objects
marked difficult are given as COCO's crowds, its form of what counts neither way. Knows no photo and
no model.
"""

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from backend.vision.detections import Detections
from benchmarks.voc import VocObject

__all__ = ["coco_average_precisions", "interpolated_precisions"]


def coco_average_precisions(
    found: Sequence[Detections], truth: Sequence[Sequence[VocObject]], labels: Sequence[str]
) -> dict[str, float]:
    """AP@[.5:.95] of each label that any object has that is not difficult.

    Args:
        found: what was detected in each photo.
        truth: what is in it, in the same pixels.
        labels: the detector's, by index.
    """
    precisions = interpolated_precisions(found, truth, labels)
    return {label: float(values.mean()) for label, values in precisions.items()}


def interpolated_precisions(
    found: Sequence[Detections],
    truth: Sequence[Sequence[VocObject]],
    labels: Sequence[str],
    *,
    ious: NDArray[np.float64] | None = None,
    recalls: NDArray[np.float64] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Precision of each label that any object has, [IoUs, recalls]; COCO's own where not given."""
    objects = _dataset(
        labels,
        len(truth),
        (
            (photo, labels.index(item.label), item.box, {"iscrowd": int(item.difficult)})
            for photo, items in enumerate(truth)
            for item in items
            if item.label in labels
        ),
    )
    detections = _dataset(
        labels,
        len(found),
        (
            (photo, label, box, {"score": score})
            for photo, items in enumerate(found)
            for box, score, label in zip(
                items.boxes.tolist(), items.scores.tolist(), items.labels.tolist(), strict=True
            )
        ),
    )
    with contextlib.redirect_stdout(io.StringIO()):  # it tells of its progress
        evaluation = COCOeval(objects, detections, "bbox")
        parameters = evaluation.params
        parameters.areaRng, parameters.areaRngLbl = parameters.areaRng[:1], ["all"]
        if ious is not None:
            parameters.iouThrs = ious
        if recalls is not None:
            parameters.recThrs = recalls
        evaluation.evaluate()
        evaluation.accumulate()
    # [IoUs, recalls, labels, sizes of objects, limits on detections], -1 where there is no object.
    precisions: NDArray[np.float64] = evaluation.eval["precision"][:, :, :, 0, -1]
    return {
        label: precisions[:, :, index]
        for index, label in enumerate(labels)
        if precisions[0, 0, index] >= 0
    }


def _dataset(
    labels: Sequence[str],
    photos: int,
    annotations: Iterable[tuple[int, int, Sequence[float], Mapping[str, Any]]],
) -> COCO:
    """COCO's form of boxes xyxy, each with its photo, its label and what else there is to say."""
    dataset = COCO()
    dataset.dataset = {
        "images": [{"id": photo} for photo in range(photos)],
        "categories": [{"id": index, "name": label} for index, label in enumerate(labels)],
        "annotations": [
            {
                "id": number,
                "image_id": photo,
                "category_id": label,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                **others,
            }
            # 0 is its word for no object.
            for number, (photo, label, (x1, y1, x2, y2), others) in enumerate(annotations, start=1)
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        dataset.createIndex()
    return dataset
