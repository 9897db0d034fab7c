"""Reads annotated photos and describes their objects, for every benchmark that needs real ones.

A split is a folder with `images/` and `annotations.jsonl`, a line for each photo:
`{"file", "width", "height", "objects": [{"label", "box", "difficult"}]}`.
"""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from backend.vision.crops import crop_objects
from backend.vision.decode import decode

__all__ = [
    "DATA_VARIABLE",
    "MAX_PIXELS",
    "MIN_SIDE",
    "DescribedObjects",
    "VocObject",
    "VocPhoto",
    "describe_objects",
    "read_split",
]

DATA_VARIABLE: Final = "VOC_DATA"
"""Environment variable that names the folder of the splits."""

MAX_PIXELS: Final = 100_000_000
"""As the service's own default; the photos here are far smaller."""

MIN_SIDE: Final = 16
"""Pixels of a box's shorter side: a smaller crop shows too little to be told apart."""

_IN_FLIGHT: Final = 4 * (os.cpu_count() or 1)
"""Photos that are decoded and described together: enough that no core waits."""


@dataclass(frozen=True)
class VocObject:
    """An annotated object. `box` is xyxy, edges in pixels of its photo, 0-based."""

    label: str
    box: tuple[float, float, float, float]
    difficult: bool

    @property
    def short_side(self) -> float:
        """The box's shorter side in pixels."""
        x1, y1, x2, y2 = self.box
        return min(x2 - x1, y2 - y1)


@dataclass(frozen=True)
class VocPhoto:
    """A photo's file and its annotated objects."""

    path: Path
    objects: tuple[VocObject, ...]

    def pixels(self) -> NDArray[np.uint8]:
        """The photo as the service sees it: RGB uint8 [H, W, 3], upright."""
        return decode(self.path.read_bytes(), max_pixels=MAX_PIXELS)


@dataclass(frozen=True)
class DescribedObjects:
    """N objects and a vector for each.

    `photos` int64 [N] are indices of the photos they are in, `vectors` is float32 [N, D].
    """

    labels: tuple[str, ...]
    photos: NDArray[np.int64]
    vectors: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.labels)


def read_split(folder: Path, *, limit: int | None = None) -> list[VocPhoto]:
    """The annotated photos of a split, in the order of its file, at most `limit` of them."""
    lines = (folder / "annotations.jsonl").read_text("utf-8").splitlines()
    photos = []
    for line in lines[:limit]:
        entry = json.loads(line)
        objects = tuple(
            VocObject(found["label"], (x1, y1, x2, y2), bool(found["difficult"]))
            for found in entry["objects"]
            for x1, y1, x2, y2 in [found["box"]]
        )
        photos.append(VocPhoto(folder / entry["file"], objects))
    return photos


async def describe_objects(
    photos: Sequence[VocPhoto],
    describe: Callable[[NDArray[np.uint8]], Awaitable[NDArray[np.float32]]],
    *,
    crop_size: int,
    difficult: bool,
) -> DescribedObjects:
    """A vector for each annotated object whose shorter side has at least MIN_SIDE pixels.

    Args:
        photos: where to look.
        describe: makes float32 [N, D] of crops, RGB uint8 [N, crop_size, crop_size, 3].
        crop_size: side of the crops in pixels.
        difficult: whether objects that are marked so take part.
    """
    turn = asyncio.Semaphore(_IN_FLIGHT)

    async def one(photo: VocPhoto, objects: Sequence[VocObject]) -> NDArray[np.float32]:
        async with turn:
            return await describe(await asyncio.to_thread(_crops, photo, objects, crop_size))

    labels: list[str] = []
    indices: list[int] = []
    waiting = []
    for index, photo in enumerate(photos):
        chosen = [
            found
            for found in photo.objects
            if found.short_side >= MIN_SIDE and (difficult or not found.difficult)
        ]
        if chosen:
            labels += [found.label for found in chosen]
            indices += [index] * len(chosen)
            waiting.append(one(photo, chosen))
    vectors = np.concatenate(await asyncio.gather(*waiting))
    return DescribedObjects(tuple(labels), np.array(indices, np.int64), vectors)


def _crops(photo: VocPhoto, objects: Sequence[VocObject], size: int) -> NDArray[np.uint8]:
    boxes = np.array([found.box for found in objects], np.float32)
    return crop_objects(photo.pixels(), boxes, size)
