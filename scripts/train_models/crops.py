"""Crops of annotated objects, as the backbone's and the embedder's training see them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from backend.vision.crops import CropGeometry, crop_objects
from benchmarks.voc import MIN_SIDE
from scripts.train_models.augmentation import object_sample
from scripts.train_models.photos import (
    Pixels,
    batch_starts,
    epoch_order,
    load_photos,
    repeat_factors,
)
from scripts.train_models.training import Batch

BATCH: Final = 64
_SIDE: Final = 336
"""Pixels of a photo's longer side: a crop is a part of it, and networks see few more."""


class Crops:
    """The objects of a split: ``objects[i]`` is the photo's number and the object's in it."""

    def __init__(self, folder: Path, labels: Sequence[str]) -> None:
        """Loads the photos; errors as ``load_photos``."""
        self.photos = load_photos(folder, labels, side=_SIDE)
        self.objects = [
            (number, index)
            for number, photo in enumerate(self.photos)
            for index, (x1, y1, x2, y2) in enumerate(photo.boxes.tolist())
            if min(x2 - x1, y2 - y1) >= MIN_SIDE
        ]
        self.labels = np.array(
            [self.photos[number].labels[index] for number, index in self.objects], np.int64
        )
        self._weights = repeat_factors([np.array([x]) for x in self.labels], len(labels))

    def batches(
        self, epoch: int, size: int, *, square: float, seed: int
    ) -> Sequence[Callable[[], Batch]]:
        """What makes an epoch's batches: crops UINT8 [BATCH, size, size, 3], classes [BATCH]."""
        order = epoch_order(self._weights, np.random.default_rng((seed, epoch)))

        def make(start: int) -> Batch:
            chosen = order[start : start + BATCH]
            crops = [
                self._sample(number, size, square, np.random.default_rng((seed, epoch, place)))
                for place, number in enumerate(chosen, 1 + start)
            ]
            return torch.from_numpy(np.stack(crops)), torch.from_numpy(self.labels[chosen])

        return [partial(make, start) for start in batch_starts(len(order), BATCH)]

    def plain(
        self, numbers: Sequence[int], size: int, geometry: CropGeometry
    ) -> tuple[Pixels, NDArray[np.int64]]:
        """Crops as the service makes them, UINT8 [N, size, size, 3], and their classes [N]."""
        crops = []
        for number in numbers:
            photo, index = self.objects[number]
            found = self.photos[photo]
            crops.append(
                crop_objects(found.pixels, found.boxes[[index]], size, geometry=geometry)[0]
            )
        return np.stack(crops), self.labels[list(numbers)]

    def __len__(self) -> int:
        return len(self.objects)

    def _sample(
        self, number: int, size: int, square: float, generator: np.random.Generator
    ) -> Pixels:
        photo, index = self.objects[number]
        return object_sample(self.photos[photo], index, size, square=square, generator=generator)
