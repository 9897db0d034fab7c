"""Picks the searches that went best and worst and makes a page of pictures of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from backend.vision.crops import crop_objects
from backend.vision.detections import Detections
from benchmarks.quality.photos import PhotoSearches
from benchmarks.quality.pictures import (
    DETECTED,
    QUERY,
    TRUTH,
    DrawnBox,
    Hit,
    Search,
    Section,
    draw_page,
    extremes,
)
from benchmarks.retrieval import TOP_K, Ranking
from benchmarks.voc import VocObject, VocPhoto, objects_of

__all__ = ["Examples"]

_ROWS: Final = 4
"""Of each section: a page that is read at a glance."""
_HIT_SIDE: Final = 260
"""Pixels of a hit's cut-out: twice what it is shown at."""
_HIT_MARGIN: Final = 0.15
"""What is shown around a found object, in parts of its sides."""
_MAX_DISTANCE: Final = 4.0
"""Squared L2 of two unit vectors, at most."""


class Examples:
    """What was searched in, what for, and what the detector has found in the latter."""

    def __init__(
        self,
        gallery: Sequence[VocPhoto],
        photos: Sequence[VocPhoto],
        found: Sequence[Detections],
        labels: Sequence[str],
    ) -> None:
        """`found` are the detections in `photos`, `labels` the detector's."""
        self._gallery = gallery
        self._photos = photos
        self._found = found
        self._labels = labels

    def draw(self, path: Path, subtitle: str, objects: Ranking, searches: PhotoSearches) -> None:
        """Writes the page of both as a PNG file."""
        sections = [*self._object_sections(objects), *self._photo_sections(searches)]
        draw_page("What is found", subtitle, sections, path)

    def _object_sections(self, ranking: Ranking) -> list[Section]:
        """Annotated objects of the photos among those of the gallery."""
        queries = objects_of(self._photos, difficult=False)
        gallery = objects_of(self._gallery, difficult=True)

        def search(row: int) -> Search:
            index, wanted = queries[row]
            precision = ranking.average_precisions[row]
            right = ranking.matches[row].sum()
            return Search(
                f"{wanted.label}: {right} of {TOP_K} right, average precision {precision:.3f}",
                self._photos[index].pixels(),
                [*self._boxes(index), DrawnBox(wanted.box, QUERY, line=4)],
                [
                    self._object_hit(*gallery[hit], distance=distance, right=matches)
                    for hit, distance, matches in zip(
                        ranking.nearest[row].tolist(),
                        ranking.distances[row].tolist(),
                        ranking.matches[row].tolist(),
                        strict=True,
                    )
                ],
            )

        best, worst = extremes(
            ranking.average_precisions.tolist(), [{found.label} for _, found in queries], _ROWS
        )
        text = (
            f"An annotated object of the photo among {len(gallery):,} annotated ones, one search a"
            " label; below each its label and its distance. By average precision over all of them."
        )
        return [
            Section("Objects: the best searches", text, list(map(search, best))),
            Section("Objects: the worst searches", text, list(map(search, worst))),
        ]

    def _photo_sections(self, searches: PhotoSearches) -> list[Section]:
        """Whole photos through the service."""

        def search(row: int) -> Search:
            index = searches.queries[row]
            labels = ", ".join(sorted(self._photos[index].labels))
            right = searches.matches[row].sum()
            return Search(
                f"{labels}: {right} of {TOP_K} right",
                self._photos[index].pixels(),
                self._boxes(index),
                [
                    self._photo_hit(hit, distance=distance, right=matches)
                    for hit, distance, matches in zip(
                        searches.nearest[row].tolist(),
                        searches.distances[row].tolist(),
                        searches.matches[row].tolist(),
                        strict=True,
                    )
                    if hit >= 0
                ],
            )

        # Of two that are equally good the one with the nearer hits goes first.
        nearness = 1 - searches.distances.mean(axis=1).clip(0, _MAX_DISTANCE) / _MAX_DISTANCE
        best, worst = extremes(
            (searches.precisions + nearness / (2 * TOP_K)).tolist(),
            [self._photos[index].labels for index in searches.queries],
            _ROWS,
        )
        text = (
            f"A photo through the running service among {len(self._gallery):,} photos: right is one"
            " that shares a label with it; below each its labels and its distance."
        )
        return [
            Section("Photos: the best searches", text, list(map(search, best))),
            Section("Photos: the worst searches", text, list(map(search, worst))),
        ]

    def _boxes(self, index: int) -> list[DrawnBox]:
        """What is in a query photo, and what was detected in it."""
        truth = [DrawnBox(item.box, TRUTH, item.label) for item in self._photos[index].objects]
        found = self._found[index]
        detected = [
            DrawnBox((x1, y1, x2, y2), DETECTED, f"{self._labels[label]} {score:.2f}")
            for (x1, y1, x2, y2), label, score in zip(
                found.boxes.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True
            )
        ]
        return truth + detected

    def _object_hit(self, index: int, found: VocObject, *, distance: float, right: bool) -> Hit:
        box = np.array([found.box], np.float32)
        [cut] = crop_objects(
            self._gallery[index].pixels(),
            box,
            _HIT_SIDE,
            geometry="square",
            margin=_HIT_MARGIN,
        )
        # The object is in the middle of its square.
        x1, y1, x2, y2 = found.box
        side = max(x2 - x1, y2 - y1) * (1 + 2 * _HIT_MARGIN)
        across, down = _HIT_SIDE * (x2 - x1) / side / 2, _HIT_SIDE * (y2 - y1) / side / 2
        middle = _HIT_SIDE / 2
        drawn = DrawnBox((middle - across, middle - down, middle + across, middle + down), QUERY)
        return Hit(cut, [drawn], found.label, distance, right)

    def _photo_hit(self, index: int, *, distance: float, right: bool) -> Hit:
        photo = self._gallery[index]
        return Hit(
            photo.pixels(),
            [DrawnBox(item.box, TRUTH) for item in photo.objects],
            ", ".join(sorted(photo.labels)),
            distance,
            right,
        )
