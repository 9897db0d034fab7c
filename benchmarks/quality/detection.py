"""Measures the detector through the service's own path, from a photo's bytes to its objects."""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from backend.serving.models import Candidates, Detector
from backend.vision.detections import Detections, select_detections
from backend.vision.letterbox import Letterbox, letterbox
from benchmarks.quality.average_precision import DetectorEvaluation, PrecisionRecall
from benchmarks.quality.coco import coco_average_precisions
from benchmarks.voc import VocPhoto

__all__ = ["CURVE_NMS_THRESHOLD", "CURVE_SCORE_THRESHOLD", "DetectorQuality", "measure_detector"]

CURVE_SCORE_THRESHOLD: Final = 0.01
"""In place of the model's own: average precision needs the whole curve, this is its tail's end."""
CURVE_NMS_THRESHOLD: Final = 0.45
"""The same whatever a model is set to, so that curves of different models compare."""

_IN_FLIGHT: Final = 4 * (os.cpu_count() or 1)


@dataclass(frozen=True)
class DetectorQuality:
    """What `measure_detector` finds.

    `ap50` is VOC's average precision of each label at IoU 0.5, `ap` COCO's, the mean over IoUs from
    0.5 to 0.95; both over the whole curve. `operating_point` and `found`, what was detected in each
    photo, are at the model's own thresholds. `saturated_photos` counts the photos whose last
    candidate was still above CURVE_SCORE_THRESHOLD: there the model's limit on candidates has cut
    the curve short.
    """

    ap50: dict[str, float]
    ap: dict[str, float]
    operating_point: PrecisionRecall
    found: list[Detections]
    saturated_photos: int

    @property
    def map50(self) -> float:
        """mAP@0.5, the mean of `ap50`."""
        return float(np.mean(list(self.ap50.values())))

    @property
    def map(self) -> float:
        """mAP@[.5:.95], the mean of `ap`."""
        return float(np.mean(list(self.ap.values())))


async def measure_detector(photos: Sequence[VocPhoto], detector: Detector) -> DetectorQuality:
    """Average precision, and precision and recall as the service is set."""
    turn = asyncio.Semaphore(_IN_FLIGHT)

    async def detect(photo: VocPhoto) -> tuple[Candidates, Letterbox]:
        async with turn:
            pixels = await asyncio.to_thread(photo.pixels)
            square, placement = await asyncio.to_thread(letterbox, pixels, detector.size)
            [candidates] = await detector.detect(square[np.newaxis])
            return candidates, placement

    def select(score_threshold: float, nms_threshold: float) -> list[Detections]:
        return [
            select_detections(
                candidates.boxes,
                candidates.scores,
                candidates.labels,
                placement=placement,
                score_threshold=score_threshold,
                nms_threshold=nms_threshold,
            )
            for candidates, placement in answers
        ]

    answers = await asyncio.gather(*map(detect, photos))
    truth = [photo.objects for photo in photos]
    on_curve = select(CURVE_SCORE_THRESHOLD, CURVE_NMS_THRESHOLD)
    found = select(detector.score_threshold, detector.nms_threshold)
    curve, operating = DetectorEvaluation(detector.labels), DetectorEvaluation(detector.labels)
    for evaluation, detections in ((curve, on_curve), (operating, found)):
        for of_photo, objects in zip(detections, truth, strict=True):
            evaluation.add(of_photo, objects)
    return DetectorQuality(
        ap50=curve.average_precisions(),
        ap=coco_average_precisions(on_curve, truth, detector.labels),
        operating_point=operating.precision_recall(),
        found=found,
        saturated_photos=sum(
            bool(candidates.scores[-1] >= CURVE_SCORE_THRESHOLD) for candidates, _ in answers
        ),
    )
