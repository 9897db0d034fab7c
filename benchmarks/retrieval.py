"""Measures what a search is for: whether the nearest objects are of the same kind.

Exact: every query is compared with every object of the gallery. Knows vectors and labels, and
neither photos nor models.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from benchmarks.voc import DescribedObjects

__all__ = [
    "TOP_K",
    "Chance",
    "Ranking",
    "RetrievalQuality",
    "chance_of",
    "rank_objects",
    "retrieval_quality",
]

TOP_K: Final = 10

_QUERIES_PER_BLOCK: Final = 256
"""Whose similarities with the whole gallery are held at once: 16 MB with 15,000 objects."""


@dataclass(frozen=True)
class Ranking:
    """What each of Q queries has found.

    `nearest` int64 [Q, K] are the gallery's nearest objects, nearest first, K being TOP_K or, where
    there are fewer, all of them; `distances` float32 [Q, K] are squared L2 as in the service, and
    `matches` bool [Q, K] says which have the query's label. `average_precisions` float64 [Q] are
    over the ranking of the whole gallery, 0 where it holds nothing of that label.
    """

    nearest: NDArray[np.int64]
    distances: NDArray[np.float32]
    matches: NDArray[np.bool_]
    average_precisions: NDArray[np.float64]

    @property
    def precisions(self) -> NDArray[np.float64]:
        """Precision@TOP_K of each query, float64 [Q]; what a small gallery lacks are misses."""
        precisions: NDArray[np.float64] = self.matches.sum(axis=1) / TOP_K
        return precisions


@dataclass(frozen=True)
class RetrievalQuality:
    """Means over queries, each from 0 to 1.

    `p_at_1` and `p_at_10`: of the nearest one and ten, the part with the query's label; `map`: mean
    average precision, of the ranking of the whole gallery.
    """

    p_at_1: float
    p_at_10: float
    map: float


@dataclass(frozen=True)
class Chance:
    """What a gallery in random order is expected to reach: precision at any rank, and mAP."""

    precision: float
    map: float


def rank_objects(gallery: DescribedObjects, queries: DescribedObjects) -> Ranking:
    """Ranks the gallery for each query; vectors are of unit length."""
    of_gallery, of_queries = np.array(gallery.labels), np.array(queries.labels)
    blocks = [
        _rank(gallery.vectors, of_gallery, queries.vectors[block], of_queries[block])
        for start in range(0, len(queries), _QUERIES_PER_BLOCK)
        for block in [slice(start, start + _QUERIES_PER_BLOCK)]
    ]
    return Ranking(
        np.concatenate([block.nearest for block in blocks]),
        np.concatenate([block.distances for block in blocks]),
        np.concatenate([block.matches for block in blocks]),
        np.concatenate([block.average_precisions for block in blocks]),
    )


def retrieval_quality(
    ranking: Ranking, labels: Iterable[str]
) -> tuple[RetrievalQuality, dict[str, RetrievalQuality]]:
    """Over all queries, and over those of each label; `labels` are the queries'."""
    of = np.array(list(labels))
    per_label = {str(label): _mean(ranking, of == label) for label in np.unique(of)}
    return _mean(ranking, np.ones(len(of), bool)), per_label


def chance_of(
    gallery: Iterable[str], queries: Iterable[str]
) -> tuple[Chance, Mapping[str, Chance]]:
    """Over all queries and over those of each label, from the labels of both."""
    counts, of = Counter(gallery), list(queries)
    total = counts.total()
    per_label = {label: _chance(counts[label], total) for label in sorted(set(of))}
    return Chance(
        float(np.mean([per_label[label].precision for label in of])),
        float(np.mean([per_label[label].map for label in of])),
    ), per_label


def _rank(
    gallery: NDArray[np.float32],
    of_gallery: NDArray[np.str_],
    queries: NDArray[np.float32],
    of_queries: NDArray[np.str_],
) -> Ranking:
    similarities = queries @ gallery.T
    nearest = np.argsort(-similarities, axis=1, kind="stable")[:, :TOP_K]
    relevant = of_gallery[np.newaxis] == of_queries[:, np.newaxis]
    precisions = [
        # Where nothing is to be found, it is not defined.
        float(average_precision_score(found, similarity)) if found.any() else 0.0
        for found, similarity in zip(relevant, similarities, strict=True)
    ]
    return Ranking(
        nearest,
        2 - 2 * np.take_along_axis(similarities, nearest, axis=1),
        np.take_along_axis(relevant, nearest, axis=1),
        np.array(precisions),
    )


def _mean(ranking: Ranking, chosen: NDArray[np.bool_]) -> RetrievalQuality:
    return RetrievalQuality(
        float(ranking.matches[chosen, 0].mean()),
        float(ranking.precisions[chosen].mean()),
        float(ranking.average_precisions[chosen].mean()),
    )


def _chance(relevant: int, total: int) -> Chance:
    """The mean average precision of all orders of `total` objects, `relevant` of them wanted.

    Y. Bestgen, "Exact expected average precision of the random baseline for system evaluation",
    The Prague Bulletin of Mathematical Linguistics 103 (2015).
    """
    if not relevant:
        return Chance(0.0, 0.0)
    if total == 1:
        return Chance(1.0, 1.0)
    harmonic = math.fsum(1 / rank for rank in range(1, total + 1))
    others = (relevant - 1) / (total - 1)
    return Chance(relevant / total, (others * (total - harmonic) + harmonic) / total)
