"""Cuts objects out of a photo, as an embedder's input."""

from typing import Final, Literal, NamedTuple, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.vision.letterbox import PADDING

__all__ = ["CropGeometry", "crop_objects"]

CropGeometry = Literal["stretch", "square", "pad"]
"""How a box becomes a square, see `crop_objects`; the names in an embedder's config.pbtxt."""

_CHANNELS: Final = 3


class _Region(NamedTuple):
    """A rectangle of whole pixels of the photo, `right` and `bottom` exclusive."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top

    def widened(self, margin: float) -> Self:
        """With `margin` of its own sides added on each of them."""
        across, down = round(margin * self.width), round(margin * self.height)
        return self._replace(
            left=self.left - across,
            top=self.top - down,
            right=self.right + across,
            bottom=self.bottom + down,
        )

    def squared(self) -> Self:
        """The smallest square around its centre that holds it all."""
        side = max(self.width, self.height)
        left = self.left - (side - self.width) // 2
        top = self.top - (side - self.height) // 2
        return self._replace(left=left, top=top, right=left + side, bottom=top + side)

    def within(self, width: int, height: int) -> Self:
        """The part of it that lies in a photo of that size."""
        return self._replace(
            left=max(self.left, 0),
            top=max(self.top, 0),
            right=min(self.right, width),
            bottom=min(self.bottom, height),
        )


def crop_objects(
    photo: NDArray[np.uint8],
    boxes: NDArray[np.float32],
    size: int,
    *,
    geometry: CropGeometry = "stretch",
    margin: float = 0.0,
) -> NDArray[np.uint8]:
    """Each box of the photo as a square.

    Args:
        photo: RGB uint8 [H, W, 3].
        boxes: float32 [N, 4] xyxy in pixels of the photo.
        size: the side of the squares in pixels.
        geometry: `stretch` resizes the box without keeping its aspect ratio. `square` takes the
            square around the box's centre that holds it, with the photo's own pixels, grey where
            it reaches over the photo's edges. `pad` takes the box alone, its aspect ratio kept, in
            the middle of grey. The grey is the letterbox's.
        margin: what is added to the box on every side before, in parts of its width and height;
            `stretch` and `pad` add no more than there is of the photo.

    Returns:
        RGB uint8 [N, size, size, 3]. Of a box that reaches out of the photo the part inside counts;
        one thinner than a pixel is widened to one.
    """
    height, width = photo.shape[:2]
    crops = np.full((len(boxes), size, size, _CHANNELS), PADDING, np.uint8)
    for crop, box in zip(crops, boxes, strict=True):
        region = _whole_pixels(box, width, height).widened(margin)
        if geometry == "square":
            window = region.squared()
            _paint(crop, photo, window.within(width, height), window)
        else:
            region = region.within(width, height)
            _paint(crop, photo, region, region.squared() if geometry == "pad" else region)
    return crops


def _whole_pixels(box: NDArray[np.float32], width: int, height: int) -> _Region:
    """The pixels of a box, at least one, in a photo of that size."""
    x1, y1, x2, y2 = box.tolist()
    left, top = min(int(max(x1, 0)), width - 1), min(int(max(y1, 0)), height - 1)
    right, bottom = max(left + 1, min(round(x2), width)), max(top + 1, min(round(y2), height))
    return _Region(left, top, right, bottom)


def _paint(
    crop: NDArray[np.uint8], photo: NDArray[np.uint8], source: _Region, window: _Region
) -> None:
    """Resizes `window` to the crop, and of it only the `source` that the photo has to give."""
    left, right = _resized(
        source.left - window.left, source.right - window.left, window.width, crop
    )
    top, bottom = _resized(source.top - window.top, source.bottom - window.top, window.height, crop)
    shrinks = source.width * source.height > (right - left) * (bottom - top)
    cv2.resize(
        photo[source.top : source.bottom, source.left : source.right],
        (right - left, bottom - top),
        dst=crop[top:bottom, left:right],
        interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR,
    )


def _resized(start: int, end: int, side: int, crop: NDArray[np.uint8]) -> tuple[int, int]:
    """Where start and end, of `side` pixels, come to lie in a crop: a pixel apart or more."""
    size = len(crop)
    first = min(round(start * size / side), size - 1)
    return first, max(first + 1, round(end * size / side))
