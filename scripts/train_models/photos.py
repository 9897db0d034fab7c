"""Annotated photos in memory, and the order in which training sees them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.errors import InvalidImage
from benchmarks.voc import VocPhoto, read_split

Pixels: TypeAlias = NDArray[np.uint8]
Floats: TypeAlias = NDArray[np.float32]

_READERS = 2


@dataclass(frozen=True, slots=True)
class Photo:
    """A photo and its objects.

    ``pixels`` is RGB UINT8 [H, W, 3], ``boxes`` FP32 [N, 4] xyxy in its pixels, ``labels`` INT64
    [N] are classes.
    """

    pixels: Pixels
    boxes: Floats
    labels: NDArray[np.int64]


def load_photos(folder: Path, labels: Sequence[str], *, side: int) -> list[Photo]:
    """The photos of a split, the longer side at most ``side`` pixels.

    Raises:
        ValueError: there are no photos, or an object's label is not among ``labels``.
        OSError: a file cannot be read.
        InvalidImage: a file is no photo.
    """
    numbers = {label: number for number, label in enumerate(labels)}

    def class_of(label: str) -> int:
        if label not in numbers:
            raise ValueError(f"{folder}: the label {label!r} is not among those of --labels")
        return numbers[label]

    def load(photo: VocPhoto) -> Photo:
        try:
            pixels = photo.pixels()
        except InvalidImage as error:
            raise InvalidImage(f"{photo.path}: {error}") from None
        height, width = pixels.shape[:2]
        scale = min(1.0, side / max(height, width))
        if scale < 1:
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
        boxes = np.array([found.box for found in photo.objects], np.float32).reshape(-1, 4)
        return Photo(
            pixels,
            boxes * np.float32(scale),
            np.array([class_of(found.label) for found in photo.objects], np.int64),
        )

    listed = read_split(folder)
    if not listed:
        raise ValueError(f"{folder}: annotations.jsonl names no photos")
    with ThreadPoolExecutor(_READERS) as readers:
        return list(readers.map(load, listed))


def repeat_factors(labels: Sequence[NDArray[np.int64]], classes: int) -> NDArray[np.float64]:
    """How much oftener than once an item should be seen, so that rare classes are not forgotten.

    An item's factor is that of its rarest class: sqrt(mean share / share), at least 1. Source:
    A. Gupta et al., "LVIS" (2019), section 3.2, with the mean share as the threshold.

    Args:
        labels: for each item the classes in it.
        classes: number of classes.
    """
    share = np.zeros(classes)
    for present in labels:
        share[np.unique(present)] += 1
    share /= max(1, len(labels))
    mean = share[share > 0].mean() if share.any() else 1.0
    factor = np.sqrt(np.maximum(1.0, mean / np.maximum(share, 1e-12)))
    return np.array([factor[present].max() if len(present) else 1.0 for present in labels])


def epoch_order(weights: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.int64]:
    """As many items as there are, shuffled, each about as often as its share of ``weights``.

    Drawn systematically: an item that is due 1.3 times comes once or twice, never not at all.
    """
    count = len(weights)
    edges = np.cumsum(weights) * (count / weights.sum())
    points = np.arange(count) + generator.random()
    order = np.minimum(np.searchsorted(edges, points, side="right"), count - 1)
    shuffled: NDArray[np.int64] = generator.permutation(order).astype(np.int64)
    return shuffled


def batch_starts(count: int, size: int) -> range:
    """Where each of an epoch's batches starts: full ones alone, or one of all that there is."""
    return range(0, max(1, count - size + 1), size)
