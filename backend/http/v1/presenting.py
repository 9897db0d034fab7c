"""Makes answers of what the services know."""

from collections.abc import Sequence
from typing import Any, cast

from aiohttp import web
from pydantic import BaseModel

from backend.http.v1 import schemas
from backend.loads import Load
from backend.storage.catalog import Image, LoadRow, NewObject, ObjectPlace

__all__ = [
    "answer",
    "detections",
    "image_detail",
    "image_summary",
    "load_detail",
    "load_row",
    "object_detail",
]


def answer(body: BaseModel, *, status: int = 200, headers: Any = None) -> web.Response:
    """A model as JSON."""
    return web.Response(
        text=body.model_dump_json(),
        status=status,
        headers=headers,
        content_type="application/json",
    )


def detections(objects: Sequence[NewObject | ObjectPlace]) -> list[schemas.Detection]:
    """Objects of a photo."""
    return [schemas.Detection(label=each.label, score=each.score, box=each.box) for each in objects]


def object_detail(place: ObjectPlace) -> schemas.ObjectDetail:
    """An indexed object."""
    return schemas.ObjectDetail(id=place.id, label=place.label, score=place.score, box=place.box)


def image_summary(image: Image, collection: str) -> schemas.ImageSummary:
    """A photo of the collection of that name."""
    return schemas.ImageSummary(**_of_image(image, collection))


def image_detail(
    image: Image, collection: str, objects: Sequence[ObjectPlace]
) -> schemas.ImageDetail:
    """The same with its objects."""
    return schemas.ImageDetail(
        **_of_image(image, collection), objects=[object_detail(each) for each in objects]
    )


def _of_image(image: Image, collection: str) -> dict[str, Any]:
    return {
        "id": image.id,
        "collection": collection,
        "path": image.path,
        "sha256": image.sha256,
        "bytes": image.size,
        "width": image.width,
        "height": image.height,
        "state": image.state,
        "error": image.error,
    }


def load_detail(load: Load, *, failures: int | None = None) -> schemas.LoadDetail:
    """A load of this process, with so many of its failures, or all."""
    counts = load.counts
    return schemas.LoadDetail(
        id=load.id,
        collection=load.collection.name,
        folder=load.root,
        prune=load.prune,
        state=load.state,
        waiting_for=load.waiting_for,
        counts=_counts({**vars(counts), "processed": counts.processed}),
        photos_per_second=load.photos_per_second,
        seconds_left=load.seconds_left,
        started_at=load.started_at,
        finished_at=load.finished_at,
        error=load.error,
        failures=[
            schemas.Failure(path=each.path, reason=each.reason) for each in load.failures[:failures]
        ],
    )


def load_row(row: LoadRow, failures: Sequence[tuple[str, str]] = ()) -> schemas.LoadDetail:
    """A load as the catalog keeps it, and its failures."""
    counts = dict(row.counts)
    done = sum(counts.get(name, 0) for name in ("indexed", "unchanged", "failed"))
    return schemas.LoadDetail(
        id=row.id,
        collection=row.collection,
        folder=row.root,
        prune=row.prune,
        state=row.state,
        counts=_counts({**counts, "processed": done}),
        started_at=row.started_at,
        finished_at=row.finished_at,
        error=row.error,
        failures=[schemas.Failure(path=path, reason=reason) for path, reason in failures],
    )


def _counts(counts: dict[str, Any]) -> schemas.LoadCounts:
    names = schemas.LoadCounts.model_fields
    return schemas.LoadCounts(**{name: cast(int, counts.get(name, 0)) for name in names})
