"""Cuts objects out of a photo, as an embedder's input."""

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["crop_objects"]


def crop_objects(
    photo: NDArray[np.uint8], boxes: NDArray[np.float32], size: int
) -> NDArray[np.uint8]:
    """Each box of the photo, stretched to a square.

    Args:
        photo: RGB uint8 [H, W, 3].
        boxes: float32 [N, 4] xyxy in pixels of the photo.
        size: the side of the squares in pixels.

    Returns:
        RGB uint8 [N, size, size, 3]. A box thinner than a pixel is widened to one.
    """
    height, width = photo.shape[:2]
    crops = np.empty((len(boxes), size, size, 3), np.uint8)
    for crop, (x1, y1, x2, y2) in zip(crops, boxes, strict=True):
        left, top = min(int(max(x1, 0)), width - 1), min(int(max(y1, 0)), height - 1)
        right = max(left + 1, min(round(float(x2)), width))
        bottom = max(top + 1, min(round(float(y2)), height))
        shrinks = (right - left) * (bottom - top) > size * size
        cv2.resize(
            photo[top:bottom, left:right],
            (size, size),
            dst=crop,
            interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR,
        )
    return crops
