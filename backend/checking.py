"""Compares the catalog with the vector store and with the disk; changes nothing."""

import asyncio
import os
from dataclasses import dataclass, field
from typing import Any

from backend.indexing import Failure
from backend.serving.models import Embedder
from backend.storage.catalog import Catalog, Collection, Image
from backend.storage.vectors import VectorStore

__all__ = ["CollectionReport", "check_collection"]


@dataclass
class CollectionReport:
    """What was found in a collection.

    Attributes:
        missing: ids of objects that are in the catalog and not in the vector store.
        orphaned: ids in the vector store that are no object's.
        gone: indexed photos that are not on the disk any more, though their folders are.
        unreachable: indexed photos whose folders are gone as well, as on a disk that is not
            mounted: nobody can tell whether they still exist.
        other_embedder: its vectors are not those of the embedder in use.
        dimension: of the vectors in the store, where it is not the one that the catalog has.
    """

    collection: Collection
    photos: int = 0
    objects: int = 0
    missing: set[int] = field(default_factory=set)
    orphaned: set[int] = field(default_factory=set)
    gone: list[Image] = field(default_factory=list)
    unreachable: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    other_embedder: bool = False
    dimension: int | None = None

    def as_json(self) -> dict[str, Any]:
        """The report for programs; ids in ascending order."""
        return {
            "name": self.collection.name,
            "embedder": self.collection.embedder,
            "other_embedder": self.other_embedder,
            "dimension": self.collection.dim,
            "dimension_in_store": self.dimension or self.collection.dim,
            "photos": self.photos,
            "objects": self.objects,
            "missing": sorted(self.missing),
            "orphaned": sorted(self.orphaned),
            "gone": [image.path for image in self.gone],
            "unreachable": self.unreachable,
            "failures": [vars(failure) for failure in self.failures],
        }

    @property
    def needs_embedding(self) -> bool:
        """Whether all its vectors have to be made anew to be of use."""
        return self.other_embedder or self.dimension is not None

    @property
    def is_consistent(self) -> bool:
        """Whether the catalog and the vector store hold the same objects."""
        return not self.missing and not self.orphaned and self.dimension is None


async def check_collection(
    collection: Collection, catalog: Catalog, vectors: VectorStore, embedder: Embedder
) -> CollectionReport:
    """Compares one collection; it must not be written to meanwhile."""
    report = CollectionReport(collection)
    report.other_embedder = collection.embedder_sha256 != embedder.sha256
    dimension = await vectors.dimension(collection.store)
    if dimension != collection.dim:
        report.dimension = dimension
    in_catalog = await catalog.object_ids(collection.id)
    in_vectors = await vectors.ids(collection.store)
    report.objects = len(in_catalog)
    report.missing = in_catalog - in_vectors
    report.orphaned = in_vectors - in_catalog
    async for page in catalog.images(collection.id, ["indexed"]):
        report.photos += len(page)
        gone, unreachable = await asyncio.to_thread(_gone, page)
        report.gone += gone
        report.unreachable += unreachable
    async for page in catalog.images(collection.id, ["failed"]):
        report.failures += [Failure(image.path, image.error or "") for image in page]
    return report


def _gone(images: list[Image]) -> tuple[list[Image], list[str]]:
    missing = [image for image in images if not os.path.exists(image.path)]
    # A folder that is empty may be the place where a disk is mounted at other times.
    return (
        [image for image in missing if _holds_something(os.path.dirname(image.path))],
        [image.path for image in missing if not _holds_something(os.path.dirname(image.path))],
    )


def _holds_something(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except OSError:
        return False
