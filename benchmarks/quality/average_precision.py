"""Average precision of a detector, as PASCAL VOC defines it.

Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", IJCV 2010, section 4.2, with
the area under the whole interpolated curve, as the challenge has it since 2010, in place of the
mean at 11 recalls. An object is found by the detection with the best score among those of its
label that overlap it with an IoU of 0.5 or more; further ones count as false. Objects marked
difficult, and detections of them, count neither way. Pure arithmetic: knows no photo and no model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from backend.vision.detections import Detections
from benchmarks.voc import VocObject

__all__ = ["DetectorEvaluation", "PrecisionRecall", "average_precision", "iou"]

_MIN_IOU: Final = 0.5


@dataclass(frozen=True)
class PrecisionRecall:
    """Over all labels that are annotated: one count of true, false and missed."""

    precision: float
    recall: float

    @property
    def f1(self) -> float:
        """Harmonic mean of both."""
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / both if both else 0.0


class DetectorEvaluation:
    """Gathers what was detected in photo after photo beside what is in them."""

    def __init__(self, labels: Sequence[str]) -> None:
        """`labels` are the detector's, by index."""
        self._labels = tuple(labels)
        self._objects = dict.fromkeys(self._labels, 0)
        self._scores: dict[str, list[float]] = {label: [] for label in self._labels}
        self._correct: dict[str, list[bool]] = {label: [] for label in self._labels}

    def add(self, found: Detections, truth: Sequence[VocObject]) -> None:
        """One photo: its detections, best score first, and its objects, in the same pixels."""
        for index, label in enumerate(self._labels):
            objects = [item for item in truth if item.label == label]
            chosen = found.labels == index
            self._objects[label] += sum(not item.difficult for item in objects)
            verdicts = _verdicts(found.boxes[chosen], objects)
            for score, verdict in zip(found.scores[chosen].tolist(), verdicts, strict=True):
                if verdict is not None:
                    self._scores[label].append(score)
                    self._correct[label].append(verdict)

    def average_precisions(self) -> dict[str, float]:
        """AP of each label that any object has."""
        return {
            label: average_precision(self._scores[label], self._correct[label], objects)
            for label, objects in self._objects.items()
            if objects
        }

    def mean_average_precision(self) -> float:
        """Mean of `average_precisions`."""
        return float(np.mean(list(self.average_precisions().values())))

    def precision_recall(self) -> PrecisionRecall:
        """Of all detections that were added, whatever their scores.

        Labels that no object has are left out: a detector may know more than the photos' annotators
        have looked for.
        """
        labels = [label for label, objects in self._objects.items() if objects]
        detections = sum(len(self._correct[label]) for label in labels)
        correct = sum(sum(self._correct[label]) for label in labels)
        objects = sum(self._objects.values())
        return PrecisionRecall(
            precision=correct / detections if detections else 0.0,
            recall=correct / objects if objects else 0.0,
        )


def average_precision(scores: Sequence[float], correct: Sequence[bool], objects: int) -> float:
    """Area under the precision-recall curve of one label, its precision made monotone.

    Args:
        scores: of each detection.
        correct: whether it found an object that no better one had found.
        objects: how many there were to find.
    """
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    hits = np.asarray(correct, bool)[order]
    found = np.cumsum(hits)
    precision = found / np.arange(1, len(hits) + 1)
    # The precision at a recall is the best one at that recall or a higher one.
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    # Recall grows by one object at each hit.
    return float(precision[hits].sum() / objects)


def iou(box: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float64]:
    """Intersection over union of a box [4] with others [N, 4], all xyxy of edges: float64 [N]."""
    one, many = box.astype(np.float64), others.astype(np.float64)
    size = np.minimum(one[2:], many[:, 2:]) - np.maximum(one[:2], many[:, :2])
    shared: NDArray[np.float64] = np.clip(size, 0, None).prod(axis=1)
    area = (many[:, 2:] - many[:, :2]).prod(axis=1) + (one[2:] - one[:2]).prod()
    overlap: NDArray[np.float64] = shared / (area - shared)
    return overlap


def _verdicts(boxes: NDArray[np.float32], objects: Sequence[VocObject]) -> list[bool | None]:
    """Whether each box, best first, finds an object of its label; None where it does not count."""
    truth = np.array([item.box for item in objects], np.float32).reshape(-1, 4)
    taken: set[int] = set()
    verdicts: list[bool | None] = []
    for box in boxes:
        overlaps = iou(box, truth)
        nearest = int(overlaps.argmax()) if len(overlaps) else -1
        if nearest < 0 or overlaps[nearest] < _MIN_IOU:
            verdicts.append(False)
        elif objects[nearest].difficult:
            verdicts.append(None)
        else:
            verdicts.append(nearest not in taken)
            taken.add(nearest)
    return verdicts
