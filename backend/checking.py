"""Compares the catalog with the vector store and with the disk; changes neither."""

import asyncio
import os
from dataclasses import dataclass, field
from typing import Any

from backend.indexing import Failure
from backend.storage.catalog import Catalog, Collection
from backend.storage.vectors import VectorStore

__all__ = ["CollectionReport", "check_collection"]


@dataclass
class CollectionReport:
    """What was found in a collection.

    `missing` objects are in the catalog and not in the vector store, `orphaned` the reverse,
    `gone` photos are indexed and not on the disk any more.
    """

    collection: Collection
    photos: int = 0
    objects: int = 0
    missing: set[int] = field(default_factory=set)
    orphaned: set[int] = field(default_factory=set)
    gone: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The report for programs; ids in ascending order."""
        return {
            "name": self.collection.name,
            "embedder": self.collection.embedder,
            "photos": self.photos,
            "objects": self.objects,
            "missing": sorted(self.missing),
            "orphaned": sorted(self.orphaned),
            "gone": self.gone,
            "failures": [vars(failure) for failure in self.failures],
        }

    @property
    def is_consistent(self) -> bool:
        """Whether the catalog and the vector store hold the same objects."""
        return not self.missing and not self.orphaned


async def check_collection(
    collection: Collection, catalog: Catalog, vectors: VectorStore
) -> CollectionReport:
    """Compares one collection; it must not be written to meanwhile."""
    report = CollectionReport(collection)
    in_catalog = await catalog.object_ids(collection.id)
    in_vectors = await vectors.ids(collection.store)
    report.objects = len(in_catalog)
    report.missing = in_catalog - in_vectors
    report.orphaned = in_vectors - in_catalog
    async for page in catalog.images(collection.id, ["indexed"]):
        report.photos += len(page)
        report.gone += await asyncio.to_thread(_gone, [image.path for image in page])
    async for page in catalog.images(collection.id, ["failed"]):
        report.failures += [Failure(image.path, image.error or "") for image in page]
    return report


def _gone(paths: list[str]) -> list[str]:
    return [path for path in paths if not os.path.exists(path)]
