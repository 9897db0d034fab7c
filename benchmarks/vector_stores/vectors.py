"""Many objects' vectors out of few real ones.

Vectors drawn at random lie all equally far apart, which flatters or breaks an index; copies of
real embeddings with noise keep the clusters that real objects form.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.voc import DescribedObjects

__all__ = ["NOISE", "Queries", "expansion", "make_queries", "multiply", "nearest"]

NOISE: Final = 0.3
"""Length of the noise that is added to a unit vector: a copy's cosine with its original is about
1 / sqrt(1 + 0.3^2) = 0.96, that of two copies of one object 0.92."""

_BLOCK: Final = 16


@dataclass(frozen=True)
class Queries:
    """Vectors to search for, float32 [Q, D], and the label of each."""

    vectors: NDArray[np.float32]
    labels: tuple[str, ...]


def expansion(dimension: int, wanted: int, *, seed: int) -> NDArray[np.float32]:
    """A random orthonormal map, float32 [dimension, wanted], that keeps every distance.

    Stands in for an embedder of more dimensions. The noise that `multiply` adds afterwards fills
    those that the map leaves empty.
    """
    if wanted == dimension:
        return np.eye(dimension, dtype=np.float32)
    random = np.random.default_rng(seed).standard_normal((wanted, dimension))
    columns, _ = np.linalg.qr(random)
    return np.ascontiguousarray(columns.T, dtype=np.float32)


def multiply(
    objects: DescribedObjects, count: int, mapping: NDArray[np.float32], *, seed: int
) -> DescribedObjects:
    """`count` objects: noisy copies of real ones, copy after copy, each with photos of its own.

    Args:
        objects: real ones, with unit vectors of D dimensions.
        count: how many to make.
        mapping: from `expansion`, float32 [D, E].
        seed: of the noise.
    """
    random = np.random.default_rng(seed)
    mapped = objects.vectors @ mapping
    copy, source = np.divmod(np.arange(count), len(objects))
    vectors = mapped[source]
    # In place and a copy at a time: these arrays are the largest thing here.
    for start in range(0, count, len(objects)):
        part = vectors[start : start + len(objects)]
        noise = random.standard_normal(part.shape, np.float32)
        part += noise * np.float32(NOISE / np.sqrt(part.shape[1]))
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    photos = copy * (int(objects.photos.max()) + 1) + objects.photos[source]
    return DescribedObjects(tuple(objects.labels[index] for index in source), photos, vectors)


def make_queries(objects: DescribedObjects, count: int, mapping: NDArray[np.float32]) -> Queries:
    """At most `count` real objects that are not in the gallery, evenly taken, without noise."""
    chosen = np.linspace(0, len(objects) - 1, min(count, len(objects))).astype(int)
    return Queries(
        vectors=objects.vectors[chosen] @ mapping,
        labels=tuple(objects.labels[index] for index in chosen),
    )


def nearest(
    vectors: NDArray[np.float32], queries: NDArray[np.float32], top_k: int
) -> NDArray[np.int64]:
    """Rows of the `top_k` unit vectors nearest to each query, by exhaustive search: [Q, top_k]."""
    found = np.empty((len(queries), top_k), np.int64)
    for start in range(0, len(queries), _BLOCK):
        cosines = queries[start : start + _BLOCK] @ vectors.T
        found[start : start + _BLOCK] = np.argsort(-cosines, axis=1, kind="stable")[:, :top_k]
    return found
