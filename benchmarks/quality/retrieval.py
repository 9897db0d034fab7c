"""Measures what a search is for: whether the nearest objects are of the same kind.

Label precision@k: of the k nearest gallery objects of a query object, the part that has its label.
Both kinds of vectors go through the service's own store, so that its search is measured too.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.storage.vectors import MilvusLite, ObjectVector
from benchmarks.voc import DescribedObjects

__all__ = [
    "TOP_K",
    "LabelPrecision",
    "chance_precision",
    "colour_histograms",
    "label_matches",
    "label_precision",
]

TOP_K: Final = 10

_BINS: Final = 8
"""Of each channel, so that a histogram has 512 values, as many as a small embedding."""
_QUERIES_PER_REQUEST: Final = 64


@dataclass(frozen=True)
class LabelPrecision:
    """Means over queries, each from 0 to 1."""

    p_at_1: float
    p_at_10: float


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


async def label_matches(
    folder: Path, gallery: DescribedObjects, queries: DescribedObjects
) -> NDArray[np.bool_]:
    """Whether each of the TOP_K nearest gallery objects has the query's label: bool [Q, TOP_K].

    The gallery is written into a Milvus Lite database of its own in `folder`; hits that a small
    gallery cannot fill count as misses.
    """
    folder.mkdir(parents=True)
    store = await MilvusLite.open(folder)
    try:
        await store.create("gallery", gallery.vectors.shape[1])
        rows = [
            ObjectVector(index, int(photo), label, 1.0, vector)
            for index, (photo, label, vector) in enumerate(
                zip(gallery.photos, gallery.labels, gallery.vectors, strict=True)
            )
        ]
        await store.upsert("gallery", rows)
        matches = np.zeros((len(queries), TOP_K), bool)
        for start in range(0, len(queries), _QUERIES_PER_REQUEST):
            vectors = queries.vectors[start : start + _QUERIES_PER_REQUEST]
            answers = await store.search("gallery", vectors, TOP_K)
            for query, hits in enumerate(answers, start):
                for rank, hit in enumerate(hits):
                    matches[query, rank] = gallery.labels[hit.object_id] == queries.labels[query]
        return matches
    finally:
        await store.close()


def label_precision(
    matches: NDArray[np.bool_], labels: Iterable[str]
) -> tuple[LabelPrecision, dict[str, LabelPrecision]]:
    """Precision over all queries, and over those of each label, from `label_matches`."""
    of = np.array(list(labels))
    per_label = {str(label): _mean(matches[of == label]) for label in np.unique(of)}
    return _mean(matches), per_label


def chance_precision(
    gallery: Iterable[str], queries: Iterable[str]
) -> tuple[float, Mapping[str, float]]:
    """What gallery objects drawn at random would reach: over all queries, and for each label."""
    share = Counter(gallery)
    total = share.total()
    of = list(queries)
    per_label = {label: share[label] / total for label in sorted(set(of))}
    return float(np.mean([per_label[label] for label in of])), per_label


def _mean(matches: NDArray[np.bool_]) -> LabelPrecision:
    return LabelPrecision(float(matches[:, 0].mean()), float(matches.mean()))
