"""From a detector's raw candidates to the objects of a photo."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.vision.letterbox import Letterbox

__all__ = ["Detections", "select_detections"]


@dataclass(frozen=True)
class Detections:
    """Objects of one photo, best score first.

    `boxes` float32 [N, 4] xyxy in pixels of the upright photo, `scores` float32 [N] in 0..1,
    `labels` int32 [N], indices into the detector's labels.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.scores)


def select_detections(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    labels: NDArray[np.int32],
    *,
    placement: Letterbox,
    score_threshold: float,
    nms_threshold: float,
) -> Detections:
    """Greedy non-maximum suppression within each label, then boxes in pixels of the photo.

    Args:
        boxes: float32 [K, 4] xyxy, pixels of the detector's letterboxed input.
        scores: float32 [K].
        labels: int32 [K].
        placement: where the photo lies in that input.
        score_threshold: candidates below it are dropped.
        nms_threshold: of two boxes of one label whose IoU is above it, the better one stays.
    """
    likely = scores >= score_threshold
    boxes, scores, labels = placement.to_photo(boxes[likely]), scores[likely], labels[likely]
    size = boxes[:, 2:] - boxes[:, :2]
    # What lies wholly on the padding is left without an area once it is clipped to the photo.
    kept = (size > 0).all(axis=1)
    boxes, scores, labels, size = boxes[kept], scores[kept], labels[kept], size[kept]
    if len(scores):
        chosen = cv2.dnn.NMSBoxesBatched(
            np.hstack([boxes[:, :2], size]).astype(np.float64).tolist(),
            scores.tolist(),
            labels.tolist(),
            -1.0,  # it drops what is not above this; ours has been applied, and counts as kept
            nms_threshold,
        )
        order = np.asarray(chosen, np.intp).reshape(-1)
        order = order[np.argsort(-scores[order], kind="stable")]
        boxes, scores, labels = boxes[order], scores[order], labels[order]
    return Detections(
        boxes=boxes.astype(np.float32),
        scores=scores.astype(np.float32),
        labels=labels.astype(np.int32),
    )
