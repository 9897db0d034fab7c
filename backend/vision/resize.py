"""Makes photos and parts of them smaller or larger."""

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["resize_into"]


def resize_into(target: NDArray[np.uint8], photo: NDArray[np.uint8]) -> None:
    """Fills an image with a photo, stretched to it.

    Twice as large or more, a side is first brought down by the whole number that leaves it still
    large enough, each new pixel the mean of those that it covers; the rest is bilinear. OpenCV's
    INTER_AREA, which takes the exact mean of parts of pixels, takes five times as long, and serves
    the detector no better (benchmarks/README.md, "Speed").

    Args:
        target: RGB uint8 [h, w, 3]; may be a view.
        photo: RGB uint8 [H, W, 3]. Of a side that the number does not divide, the rest is left out
            on both ends: less than half of one of the target's pixels on each.
    """
    height, width = target.shape[:2]
    down, across = max(1, photo.shape[0] // height), max(1, photo.shape[1] // width)
    if down > 1 or across > 1:
        rows, columns = photo.shape[0] // down, photo.shape[1] // across
        top, left = (photo.shape[0] - rows * down) // 2, (photo.shape[1] - columns * across) // 2
        photo = np.asarray(
            cv2.resize(
                photo[top : top + rows * down, left : left + columns * across],
                (columns, rows),
                interpolation=cv2.INTER_AREA,
            ),
            np.uint8,
        )
    cv2.resize(photo, (width, height), dst=target, interpolation=cv2.INTER_LINEAR)
