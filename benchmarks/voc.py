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

from backend.vision.decode import decode

__all__ = [
    "DATA_VARIABLE",
    "MAX_PIXELS",
    "MIN_SIDE",
    "Cut",
    "DescribedObjects",
    "VocObject",
    "VocPhoto",
    "describe_objects",
    "objects_of",
    "read_split",
]

DATA_VARIABLE: Final = "VOC_DATA"
"""Environment variable that names the folder of the splits."""

MAX_PIXELS: Final = 100_000_000
"""As the service's own default; the photos here are far smaller."""

MIN_SIDE: Final = 16
"""Pixels of a box's shorter side: a smaller crop shows too little to be told apart."""

Cut = Callable[[NDArray[np.uint8], NDArray[np.float32]], NDArray[np.uint8]]
"""Makes crops, uint8 [N, …], of a photo, RGB uint8 [H, W, 3], and boxes in it, float32 [N, 4]."""

_PHOTOS_PER_BATCH: Final = 32
"""Whose objects are described together: more than a model's largest batch."""
_IN_FLIGHT: Final = 1 + (os.cpu_count() or 1)
"""Batches that are cut and described at a time: enough that no core waits."""


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

    @property
    def labels(self) -> frozenset[str]:
        """Those of its objects that are not marked difficult."""
        return frozenset(found.label for found in self.objects if not found.difficult)

    def pixels(self) -> NDArray[np.uint8]:
        """The photo as the service sees it: RGB uint8 [H, W, 3], upright."""
        return decode(self.path.read_bytes(), max_pixels=MAX_PIXELS)


@dataclass(frozen=True)
class DescribedObjects:
    """N objects and a vector for each.

    `photos` int64 [N] are indices of the photos they are in, `vectors` is float32 [N, D], or of
    several crops of each, [N, crops, D].
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


def objects_of(photos: Sequence[VocPhoto], *, difficult: bool) -> list[tuple[int, VocObject]]:
    """The objects that count in retrieval, each with its photo's index, in the photos' order.

    They are those whose shorter side has at least MIN_SIDE pixels; `difficult` says whether ones
    that are marked so take part.
    """
    return [
        (index, found)
        for index, photo in enumerate(photos)
        for found in photo.objects
        if found.short_side >= MIN_SIDE and (difficult or not found.difficult)
    ]


async def describe_objects(
    photos: Sequence[VocPhoto],
    describe: Callable[[NDArray[np.uint8]], Awaitable[NDArray[np.float32]]],
    *,
    cut: Cut,
    difficult: bool,
) -> DescribedObjects:
    """A vector, or several, for each of `objects_of`, in the same order.

    Args:
        photos: where to look.
        describe: makes float32 [N, …] of what `cut` gives.
        cut: makes uint8 [N, …] of a photo and its boxes.
        difficult: whether objects that are marked so take part.
    """
    turn = asyncio.Semaphore(_IN_FLIGHT)
    chosen = objects_of(photos, difficult=difficult)
    boxes: dict[int, list[tuple[float, float, float, float]]] = {}
    for index, found in chosen:
        boxes.setdefault(index, []).append(found.box)

    def crops(index: int) -> NDArray[np.uint8]:
        return cut(photos[index].pixels(), np.array(boxes[index], np.float32))

    async def batch(indices: Sequence[int]) -> NDArray[np.float32]:
        async with turn:
            parts = await asyncio.gather(*(asyncio.to_thread(crops, index) for index in indices))
            return await describe(np.concatenate(parts))

    indices = list(boxes)
    parts = await asyncio.gather(
        *(
            batch(indices[start : start + _PHOTOS_PER_BATCH])
            for start in range(0, len(indices), _PHOTOS_PER_BATCH)
        )
    )
    return DescribedObjects(
        tuple(found.label for _, found in chosen),
        np.array([index for index, _ in chosen], np.int64),
        np.concatenate(parts),
    )
