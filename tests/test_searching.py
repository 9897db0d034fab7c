"""Which photos come back, and in which order."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.app import Services, open_services
from backend.errors import EmbedderMismatch, InvalidImage, InvalidInput
from backend.settings import Settings
from backend.storage.catalog import Collection, NewImage, NewObject, path_key
from backend.storage.vectors import ObjectVector
from tests.photos import draw_photo, encode, write_photos

_WHOLE = (0.0, 0.0, 1.0, 1.0)


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(
        np.float32
    )
    return unit


async def _store(
    services: Services, objects_of_photos: list[NDArray[np.float32]], *, sha256: str = ""
) -> Collection:
    """Stores photos whose objects have these vectors, as an indexer would."""
    embedder = services.analyzer.embedder
    collection = await services.catalog.ensure_collection(
        "made",
        embedder=embedder.name,
        embedder_sha256=sha256 or embedder.sha256,
        dim=embedder.dimension,
        metric="L2",
    )
    assert collection is not None
    await services.vectors.create(collection.store, embedder.dimension)
    await services.catalog.finish_collection(collection.id)
    stored = await services.catalog.begin_images(
        collection.id,
        [
            NewImage(
                path=f"/{number}",
                path_key=path_key(f"/{number}"),
                sha256="",
                size=0,
                mtime_ns=0,
                objects=[NewObject("thing", 0.5, _WHOLE)] * len(vectors),
            )
            for number, vectors in enumerate(objects_of_photos)
        ],
    )
    rows = [
        ObjectVector(object_id, image.id, "thing", 0.5, vector)
        for image, vectors in zip(stored, objects_of_photos, strict=True)
        for object_id, vector in zip(image.object_ids, vectors, strict=True)
    ]
    await services.vectors.upsert(collection.store, rows)
    await services.catalog.finish_images([image.id for image in stored], {})
    return collection


def _brute_force(
    photos: list[NDArray[np.float32]], queries: NDArray[np.float32], top_k: int
) -> list[tuple[str, float]]:
    nearest = [
        (f"/{number}", float(((vectors[:, None] - queries[None]) ** 2).sum(axis=2).min()))
        for number, vectors in enumerate(photos)
        if len(vectors)
    ]
    return sorted(nearest, key=lambda hit: hit[1])[:top_k]


@pytest.mark.every_combination
@pytest.mark.parametrize("query_objects", [1, 3])
@pytest.mark.parametrize("top_k", [1, 7, 60, 1000])
async def test_photos_come_in_the_order_of_brute_force(
    services: Services, query_objects: int, top_k: int
) -> None:
    random = np.random.default_rng(1)
    dimension = services.analyzer.embedder.dimension
    # A photo that fills the first answers alone with its hundreds of near objects, photos with
    # several, one or no objects.
    crowd = random.normal(size=dimension) + 0.01 * random.normal(size=(700, dimension))
    photos = [_unit(crowd)] + [
        _unit(random.normal(size=(random.integers(0, 5), dimension))) for _ in range(80)
    ]
    collection = await _store(services, photos)
    queries = _unit(np.vstack([crowd[:1], random.normal(size=(query_objects - 1, dimension))]))
    hits = await services.searcher.nearest(collection, queries, top_k)
    expected = _brute_force(photos, queries, top_k)
    assert [hit.object.path for hit in hits] == [path for path, _ in expected]
    assert [hit.distance for hit in hits] == pytest.approx([d for _, d in expected], abs=1e-5)


@pytest.mark.every_combination
async def test_what_the_catalog_does_not_call_indexed_is_no_hit(services: Services) -> None:
    random = np.random.default_rng(2)
    photos = [_unit(random.normal(size=(1, 512))) for _ in range(5)]
    collection = await _store(services, photos)
    hits = await services.searcher.nearest(collection, photos[0], 5)
    await services.catalog.begin_delete_images([hits[0].object.image_id])
    left = await services.searcher.nearest(collection, photos[0], 5)
    assert [hit.object.id for hit in left] == [hit.object.id for hit in hits[1:]]


async def test_another_embedders_collection_is_refused_in_words(services: Services) -> None:
    await _store(services, [_unit(np.ones((1, 512)))], sha256="0" * 64)
    photo = encode(draw_photo(1))
    for refused in (
        services.searcher.search(photo, "made", 3),
        services.indexer.add_photo(photo, "made"),
    ):
        with pytest.raises(EmbedderMismatch, match=r"run python -m backend check --repair"):
            await refused
    assert await services.searcher.count("made") == 1


async def test_a_bad_query_is_refused_though_there_is_nothing_to_search(
    services: Services,
) -> None:
    with pytest.raises(InvalidImage):
        await services.searcher.search(b"no photo", "nothing", 3)
    with pytest.raises(InvalidInput):
        await services.searcher.search(encode(draw_photo(1)), "no name", 3)


@pytest.mark.parametrize(
    ("whole_image", "objects_of_plain"), [("fallback", 1), ("always", 1), ("never", 0)]
)
async def test_a_photo_without_objects_counts_as_one_unless_told_otherwise(
    settings: Settings, tmp_path: Path, whole_image: str, objects_of_plain: int
) -> None:
    plain = encode(np.full((100, 150, 3), 90, np.uint8), ".png")
    chosen = settings.model_copy(update={"whole_image": whole_image})
    async with open_services(chosen) as services:
        analyzed = await services.analyzer.analyze(plain)
        assert len(analyzed.objects) == len(analyzed.embeddings) == objects_of_plain
        if objects_of_plain:
            [whole] = analyzed.objects
            assert (whole.label, whole.score, whole.box) == ("image", 1.0, (0, 0, 150, 100))
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "plain.png").write_bytes(plain)
        load = await services.indexer.start_load(str(tmp_path / "photos"), "t")
        await load.wait()
        assert await services.searcher.count("t") == 1
        assert len(await services.searcher.search(plain, "t", 3)) == objects_of_plain


@pytest.mark.every_combination
async def test_searches_see_each_photo_as_soon_as_it_is_counted(
    services: Services, tmp_path: Path
) -> None:
    photos = write_photos(tmp_path / "photos", 30)
    load = await services.indexer.start_load(str(tmp_path / "photos"), "t")
    while load.state == "running":
        indexed = await services.searcher.count("t")
        hits = await services.searcher.search(photos[0].read_bytes(), "t", 50)
        assert len(hits) >= indexed
    await load.wait()
    assert len(await services.searcher.search(photos[0].read_bytes(), "t", 50)) == 30
