"""Fits a photo into a detector's square input and brings its boxes back."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from backend.vision.resize import resize_into

__all__ = ["PADDING", "Letterbox", "letterbox"]

PADDING: Final = 114
"""Grey of the borders, all three channels: part of the detector's contract."""


@dataclass(frozen=True)
class Letterbox:
    """Where a photo lies in its letterboxed square, in pixels of the square."""

    photo_width: int
    photo_height: int
    scale_x: float
    scale_y: float
    left: int
    top: int

    def photo_of(self, square: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """What the square, uint8 [S, S, 3], shows of the photo: all but the grey. A view."""
        width = round(self.photo_width * self.scale_x)
        height = round(self.photo_height * self.scale_y)
        return square[self.top : self.top + height, self.left : self.left + width]

    def to_photo(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Boxes [N, 4] xyxy, from pixels of the square to pixels of the photo, clipped to it."""
        offset = np.array([self.left, self.top] * 2, np.float32)
        scale = np.array([self.scale_x, self.scale_y] * 2, np.float32)
        limit = np.array([self.photo_width, self.photo_height] * 2, np.float32)
        clipped: NDArray[np.float32] = np.clip((boxes - offset) / scale, 0, limit)
        return clipped


def letterbox(
    photo: NDArray[np.uint8], size: int, *, full_size: tuple[int, int] | None = None
) -> tuple[NDArray[np.uint8], Letterbox]:
    """The photo, its aspect ratio kept, in the middle of a grey square.

    Args:
        photo: RGB uint8 [H, W, 3].
        size: the square's side in pixels.
        full_size: width and height of the photo itself, where `photo` is a reduced copy of it.

    Returns:
        The square, RGB uint8 [size, size, 3], and where the photo lies in it.
    """
    width, height = full_size or (photo.shape[1], photo.shape[0])
    scale = size / max(width, height)
    # A sliver of a photo still fills one row or column.
    fitted_width, fitted_height = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (size - fitted_width) // 2, (size - fitted_height) // 2
    square = np.full((size, size, 3), PADDING, np.uint8)
    resize_into(square[top : top + fitted_height, left : left + fitted_width], photo)
    return square, Letterbox(
        photo_width=width,
        photo_height=height,
        scale_x=fitted_width / width,
        scale_y=fitted_height / height,
        left=left,
        top=top,
    )
