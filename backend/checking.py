"""Compares the catalog with the vector store and with where photos lie; changes nothing."""

from dataclasses import dataclass, field
from typing import Any

from backend.loads import Failure
from backend.places import THIS_MACHINE, PhotoPlaces
from backend.serving.models import Embedder
from backend.storage.catalog import Catalog, Collection, Image
from backend.storage.vectors import VectorStore
from backend.writing import PhotoWriter

__all__ = ["CollectionReport", "check_collections"]


@dataclass
class CollectionReport:
    """What was found in a collection.

    Attributes:
        missing: ids of objects that are in the catalog and not in the vector store.
        orphaned: ids in the vector store that are no object's.
        gone: indexed photos that are not on the disk any more, though their folders are.
        unreachable: indexed photos whose folders are gone as well, as on a disk that is not
            mounted, or whose store does not answer: nobody can tell whether they still exist.
        other_embedder: its vectors are not those of the embedder in use.
        dimension: of the vectors in the store, where it is not the one that the catalog has.
        lost: the vector engine does not have the store; all objects are missing.
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
    lost: bool = False

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
            "lost": self.lost,
            "missing": sorted(self.missing),
            "orphaned": sorted(self.orphaned),
            "gone": [image.path for image in self.gone],
            "unreachable": self.unreachable,
            "failures": [vars(failure) for failure in self.failures],
        }

    @property
    def needs_embedding(self) -> bool:
        """Whether all its vectors have to be made anew to be of use."""
        return self.other_embedder or self.dimension is not None or self.lost

    @property
    def is_consistent(self) -> bool:
        """Whether the catalog and the vector store hold the same objects."""
        return not (self.missing or self.orphaned or self.lost) and self.dimension is None


async def check_collections(
    catalog: Catalog,
    vectors: VectorStore,
    embedder: Embedder,
    writer: PhotoWriter,
    places: PhotoPlaces = THIS_MACHINE,
) -> list[CollectionReport]:
    """Compares every collection that is ready; photos may come and go meanwhile.

    `places`: where they may lie.
    """
    reports = []
    for collection in await catalog.collections("ready"):
        report = await _compare(collection, catalog, vectors, embedder, writer)
        if report is not None:
            await _look_at_photos(report, catalog, places)
            now = await catalog.collection_by_id(collection.id)
            if now is not None and now.state == "ready":  # else its files have gone under the look
                reports.append(report)
    return reports


async def _compare(
    collection: Collection,
    catalog: Catalog,
    vectors: VectorStore,
    embedder: Embedder,
    writer: PhotoWriter,
) -> CollectionReport | None:
    """Compares what the two hold at one moment; None where the collection was dropped."""
    async with writer.turn():  # a service beside this command writes nothing then
        now = await catalog.collection_by_id(collection.id)
        if now is None or now.state != "ready":
            return None
        report = CollectionReport(now)
        report.other_embedder = now.embedder_sha256 != embedder.sha256
        report.lost = not await vectors.exists(now.store)
        in_catalog = await catalog.object_ids(now.id)
        in_vectors: set[int] = set()
        if not report.lost:
            dimension = await vectors.dimension(now.store)
            if dimension != now.dim:
                report.dimension = dimension
            in_vectors = await vectors.ids(now.store)
        report.photos = await catalog.count_images(now.id)
    report.objects = len(in_catalog)
    report.missing = in_catalog - in_vectors
    report.orphaned = in_vectors - in_catalog
    return report


async def _look_at_photos(report: CollectionReport, catalog: Catalog, places: PhotoPlaces) -> None:
    async for page in catalog.images(report.collection.id, ["indexed"]):
        presences = await places.presences([image.path for image in page])
        missing = [
            image.id for image, presence in zip(page, presences, strict=True) if presence != "there"
        ]
        if missing:
            # One may have been removed, or have come again, since its row was read.
            now = await catalog.images_by_id(missing)
            indexed = [image for image in now if image.state == "indexed"]
            presences = await places.presences([image.path for image in indexed])
            for image, presence in zip(indexed, presences, strict=True):
                if presence == "gone":
                    report.gone.append(image)
                elif presence == "unknown":
                    report.unreachable.append(image.path)
    async for page in catalog.images(report.collection.id, ["failed"]):
        report.failures += [Failure(image.path, image.error or "") for image in page]
