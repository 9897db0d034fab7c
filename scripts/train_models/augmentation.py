"""Photos and crops, changed at random as the world changes them: place, size, side, light.

Pure: every function draws from the generator that it is given. Pixels are RGB UINT8, boxes FP32
xyxy in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np

from backend.vision.crops import CropGeometry, crop_objects
from scripts.train_models.photos import Floats, Photo, Pixels

GREY: Final = 114
"""What lies beyond a photo, as in the service's letterbox."""

_MIN_SIDE: Final = 4
"""Pixels; what is left of a box must have them to be learnt."""
_MIN_VISIBLE: Final = 0.25
"""Of a box's area; what shows less of its object is not learnt."""

_MOST_CUT: Final = 0.22
_MOST_ADDED: Final = 0.25
"""Of a box's width or height, at each of its sides: a detector's boxes are no better."""


def detection_sample(
    photos: Sequence[Photo],
    index: int,
    size: int,
    *,
    mosaic: float,
    generator: np.random.Generator,
) -> tuple[Pixels, Floats]:
    """A photo as a detector's training sees it: placed at random, alone or with three others.

    Args:
        photos: all photos.
        index: the photo that it is about.
        size: input width and height in pixels.
        mosaic: probability that four photos share the input (A. Bochkovskiy et al., "YOLOv4"
            (2020), section 3.3).
        generator: source of all that is random.

    Returns:
        Pixels [size, size, 3]; FP32 [M, 5], class, then box, of what is visible.
    """
    canvas = np.full((size, size, 3), GREY, np.uint8)
    if generator.random() < mosaic:
        others = generator.integers(0, len(photos), 3)
        parts = _mosaic([photos[i] for i in (index, *others)], canvas, generator)
    else:
        parts = [_alone(photos[index], canvas, generator)]
    objects = np.concatenate(parts)
    if generator.random() < 0.5:
        canvas = np.ascontiguousarray(canvas[:, ::-1])
        objects[:, [1, 3]] = size - objects[:, [3, 1]]
    return change_colours(canvas, generator), objects


def _alone(photo: Photo, canvas: Pixels, generator: np.random.Generator) -> Floats:
    size = canvas.shape[0]
    height, width = photo.pixels.shape[:2]
    scale = size / max(height, width) * generator.uniform(0.6, 1.6)
    stretch = generator.uniform(0.85, 1.18) ** 0.5
    scale_x, scale_y = scale * stretch, scale / stretch
    shift_x, shift_y = generator.uniform(-0.2, 0.2, 2) * size
    left = size / 2 - width / 2 * scale_x + shift_x
    top = size / 2 - height / 2 * scale_y + shift_y
    return _place(photo, canvas, (scale_x, scale_y), (left, top))


def _mosaic(
    photos: Sequence[Photo], canvas: Pixels, generator: np.random.Generator
) -> list[Floats]:
    """Four photos around a point, then the whole zoomed and shifted."""
    size = canvas.shape[0]
    zoom = generator.uniform(0.5, 1.0)
    corner_x, corner_y = size / 2 + generator.uniform(-0.3, 0.3, 2) * size
    parts = []
    for place, photo in enumerate(photos):
        height, width = photo.pixels.shape[:2]
        scale = size / max(height, width) * generator.uniform(0.8, 1.2) * zoom
        left = corner_x - (width * scale if place in (0, 2) else 0)
        top = corner_y - (height * scale if place in (0, 1) else 0)
        parts.append(_place(photo, canvas, (scale, scale), (left, top)))
    return parts


def _place(
    photo: Photo, canvas: Pixels, scale: tuple[float, float], corner: tuple[float, float]
) -> Floats:
    """Draws a photo onto the canvas, and returns its visible objects: class, then box."""
    height, width = photo.pixels.shape[:2]
    sides = np.array([width, height]) * scale
    first = np.clip(np.round(corner), 0, canvas.shape[0]).astype(int)
    last = np.clip(np.round(corner + sides), 0, canvas.shape[0]).astype(int)
    if (last <= first).any():
        return np.empty((0, 5), np.float32)
    # Pixel centres lie at halves: the centre of a source pixel must land where its edges say.
    offset = np.array(corner) - first + np.array(scale) / 2 - 0.5
    matrix = np.array([[scale[0], 0, offset[0]], [0, scale[1], offset[1]]])
    canvas[first[1] : last[1], first[0] : last[0]] = cv2.warpAffine(
        photo.pixels,
        matrix,
        (int(last[0] - first[0]), int(last[1] - first[1])),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    boxes = photo.boxes * np.tile(np.array(scale), 2) + np.tile(np.array(corner), 2)
    window = np.concatenate([first, last])
    visible = np.clip(boxes, np.tile(window[:2], 2), np.tile(window[2:], 2))
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    seen = visible[:, 2:] - visible[:, :2]
    kept = (seen.min(axis=1, initial=np.inf) >= _MIN_SIDE) & (
        seen.prod(axis=1) >= _MIN_VISIBLE * area
    )
    objects: Floats = np.column_stack([photo.labels, visible])[kept].astype(np.float32)
    return objects


def change_colours(
    pixels: Pixels,
    generator: np.random.Generator,
    *,
    hue: float = 0.015,
    saturation: float = 0.6,
    value: float = 0.4,
) -> Pixels:
    """Multiplies hue, saturation and value, each by 1 plus or minus at most what is given."""
    factors = 1 + generator.uniform(-1, 1, 3) * (hue, saturation, value)
    levels = np.arange(256)
    tables = np.stack([levels * factors[0] % 180, levels * factors[1], levels * factors[2]], -1)
    table = np.clip(tables, 0, 255).astype(np.uint8)[None]
    changed = cv2.LUT(cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV), table)
    return cv2.cvtColor(changed, cv2.COLOR_HSV2RGB).astype(np.uint8)


def object_sample(
    photo: Photo,
    index: int,
    size: int,
    *,
    square: float,
    generator: np.random.Generator,
) -> Pixels:
    """An object's crop as an embedder's training sees it.

    Args:
        photo: where the object is.
        index: which of its objects.
        size: side of the crop in pixels.
        square: probability that the box is cut out as a square, with what is around it;
            otherwise it is stretched to one, see ``crop_objects``.
        generator: source of all that is random.

    Returns:
        Pixels [size, size, 3].
    """
    crop: Pixels
    geometry: CropGeometry = "square" if generator.random() < square else "stretch"
    x1, y1, x2, y2 = photo.boxes[index]
    width, height = x2 - x1, y2 - y1
    grown = generator.uniform(-_MOST_CUT, _MOST_ADDED, 4) * (-width, -height, width, height)
    box = (photo.boxes[index] + grown).astype(np.float32)
    [crop] = crop_objects(photo.pixels, box[None], size, geometry=geometry)
    if generator.random() < 0.5:
        crop = np.ascontiguousarray(crop[:, ::-1])
    crop = change_colours(crop, generator, hue=0.05, saturation=0.5, value=0.4)
    if generator.random() < 0.15:
        grey = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)
        crop = cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB).astype(np.uint8)
    if generator.random() < 0.35:
        crop = _hide(crop, generator)
    return crop


def _hide(crop: Pixels, generator: np.random.Generator) -> Pixels:
    """Greys a rectangle (Z. Zhong et al., "Random Erasing Data Augmentation" (2017))."""
    size = crop.shape[0]
    height, width = (generator.uniform(0.15, 0.5, 2) * size).astype(int)
    y, x = (generator.random(2) * (size - height, size - width)).astype(int)
    hidden = crop.copy()
    hidden[y : y + height, x : x + width] = GREY
    return hidden
