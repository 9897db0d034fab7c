"""Measures the detector through the service's own path, from a photo's bytes to its objects."""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from backend.serving.models import Candidates, Detector
from backend.vision.detections import select_detections
from backend.vision.letterbox import Letterbox, letterbox
from benchmarks.quality.average_precision import DetectorEvaluation, PrecisionRecall
from benchmarks.voc import VocPhoto

__all__ = ["CURVE_NMS_THRESHOLD", "CURVE_SCORE_THRESHOLD", "DetectorQuality", "measure_detector"]

CURVE_SCORE_THRESHOLD: Final = 0.01
"""In place of the model's own: average precision needs the whole curve, this is its tail's end."""
CURVE_NMS_THRESHOLD: Final = 0.45
"""As in the evaluation that the training script ran."""

_IN_FLIGHT: Final = 4 * (os.cpu_count() or 1)


@dataclass(frozen=True)
class DetectorQuality:
    """What `measure_detector` finds.

    `average_precisions` are those of each label at IoU 0.5 over the whole curve, `map50` their
    mean; `operating_point` is at the model's own thresholds. `saturated_photos` counts the photos
    whose last candidate was still above CURVE_SCORE_THRESHOLD: there the model's limit on
    candidates has cut the curve short.
    """

    map50: float
    average_precisions: dict[str, float]
    operating_point: PrecisionRecall
    saturated_photos: int


async def measure_detector(photos: Sequence[VocPhoto], detector: Detector) -> DetectorQuality:
    """VOC's mean average precision, and precision and recall as the service is set."""
    turn = asyncio.Semaphore(_IN_FLIGHT)

    async def detect(photo: VocPhoto) -> tuple[Candidates, Letterbox]:
        async with turn:
            pixels = await asyncio.to_thread(photo.pixels)
            square, placement = await asyncio.to_thread(letterbox, pixels, detector.size)
            [candidates] = await detector.detect(square[np.newaxis])
            return candidates, placement

    answers = await asyncio.gather(*map(detect, photos))
    curve, operating = DetectorEvaluation(detector.labels), DetectorEvaluation(detector.labels)
    settings = (
        (curve, CURVE_SCORE_THRESHOLD, CURVE_NMS_THRESHOLD),
        (operating, detector.score_threshold, detector.nms_threshold),
    )
    for photo, (candidates, placement) in zip(photos, answers, strict=True):
        for evaluation, score_threshold, nms_threshold in settings:
            found = select_detections(
                candidates.boxes,
                candidates.scores,
                candidates.labels,
                placement=placement,
                score_threshold=score_threshold,
                nms_threshold=nms_threshold,
            )
            evaluation.add(found, photo.objects)
    return DetectorQuality(
        map50=curve.mean_average_precision(),
        average_precisions=curve.average_precisions(),
        operating_point=operating.precision_recall(),
        saturated_photos=sum(
            bool(candidates.scores[-1] >= CURVE_SCORE_THRESHOLD) for candidates, _ in answers
        ),
    )
