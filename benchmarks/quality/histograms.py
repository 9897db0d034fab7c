"""Colour histograms: what a search by colour alone would find, for comparison."""

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["colour_histograms"]

_BINS: Final = 8
"""Of each channel, so that a histogram has 512 values, as many as a small embedding."""


def colour_histograms(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Joint HSV histograms of 8 x 8 x 8 bins, as unit vectors: float32 [N, 512].

    The square root of a histogram that sums to one is a unit vector, and the L2 distance of two
    such vectors is their Hellinger distance but for a constant.

    Args:
        crops: RGB uint8 [N, S, S, 3].
    """
    histograms = np.empty((len(crops), _BINS**3), np.float32)
    for histogram, crop in zip(histograms, crops, strict=True):
        hsv = cv2.cvtColor(crop, cv2.COLOR_RGB2HSV)
        ranges = [0, 180, 0, 256, 0, 256]  # OpenCV's hue has 180 steps of 2 degrees
        counts = cv2.calcHist([hsv], [0, 1, 2], None, [_BINS] * 3, ranges)
        histogram[:] = np.sqrt(counts.reshape(-1) / counts.sum())
    return histograms
