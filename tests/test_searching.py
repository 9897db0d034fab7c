"""Which photos come back, and in which order."""

import asyncio
import itertools
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.app import Services, open_services
from backend.errors import EmbedderMismatch, InvalidImage, InvalidInput, NotFound, VectorsLost
from backend.searching import Hit, Position, Wanted
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
    services: Services,
    objects_of_photos: Sequence[NDArray[np.float32]],
    objects: Sequence[Sequence[NewObject]] | None = None,
    *,
    name: str = "made",
    sha256: str = "",
) -> Collection:
    """Stores photos of 100 x 100 pixels whose objects have these vectors, as an indexer would."""
    embedder = services.analyzer.embedder
    collection = await services.catalog.ensure_collection(
        name,
        embedder=embedder.name,
        embedder_sha256=sha256 or embedder.sha256,
        dim=objects_of_photos[0].shape[1],
        metric="L2",
    )
    assert collection is not None
    await services.vectors.create(collection.store, collection.dim)
    await services.catalog.finish_collection(collection.id)
    if objects is None:
        objects = [[NewObject("thing", 0.5, _WHOLE)] * len(group) for group in objects_of_photos]
    stored = await services.catalog.begin_images(
        collection.id,
        [
            NewImage(
                path=f"/{number}",
                path_key=path_key(f"/{number}"),
                sha256="",
                size=0,
                mtime_ns=0,
                width=100,
                height=100,
                objects=group,
            )
            for number, group in enumerate(objects)
        ],
    )
    rows = [
        ObjectVector(object_id, image.id, new.label, new.score, vector)
        for image, group, vectors in zip(stored, objects, objects_of_photos, strict=True)
        for object_id, new, vector in zip(image.object_ids, group, vectors, strict=True)
    ]
    await services.vectors.upsert(collection.store, rows)
    await services.catalog.finish_images(stored, {})
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
async def test_photos_come_in_the_order_of_brute_force(services: Services) -> None:
    random = np.random.default_rng(1)
    dimension = services.analyzer.embedder.dimension
    # A photo that fills the first answers alone with its hundreds of near objects, photos with
    # several, one or no objects.
    crowd = random.normal(size=dimension) + 0.01 * random.normal(size=(700, dimension))
    photos = [_unit(crowd)] + [
        _unit(random.normal(size=(random.integers(0, 5), dimension))) for _ in range(80)
    ]
    collection = await _store(services, photos)
    for query_objects, top_k in itertools.product((1, 3), (1, 7, 60, 1000)):
        queries = _unit(np.vstack([crowd[:1], random.normal(size=(query_objects - 1, dimension))]))
        hits = await services.searcher.nearest(collection, queries, top_k)
        expected = _brute_force(photos, queries, top_k)
        asked = f"{query_objects} objects, the {top_k} nearest"
        assert [hit.object.path for hit in hits] == [path for path, _ in expected], asked
        distances = [hit.distance for hit in hits]
        assert distances == pytest.approx([d for _, d in expected], abs=1e-5), asked


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


async def test_nothing_goes_on_behind_the_refusal_of_a_bad_query(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def takes_its_time(_name: str) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(services.catalog, "collection", takes_its_time)
    before = asyncio.all_tasks()
    with pytest.raises(InvalidImage):
        await services.searcher.search(b"no photo", "nothing", 3)
    assert asyncio.all_tasks() <= before


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
    photos = write_photos(tmp_path / "photos", 15)
    load = await services.indexer.start_load(str(tmp_path / "photos"), "t")
    while load.state == "running":
        indexed = await services.searcher.count("t")
        hits = await services.searcher.search(photos[0].read_bytes(), "t", 50)
        assert len(hits) >= indexed
    await load.wait()
    assert len(await services.searcher.search(photos[0].read_bytes(), "t", 50)) == 15


# Pages of hits, with conditions

_LABELS = ("cat", "dog", "bus", "tree", 'a "b" or id > 0 or "', "it's\\", "100%_\n", "漢")


@dataclass(frozen=True)
class _Objects:
    """What is stored, an object a row: ids of objects and photos, and what conditions are about."""

    ids: NDArray[np.int64]
    photos: NDArray[np.int64]
    labels: NDArray[np.str_]
    scores: NDArray[np.float64]
    areas: NDArray[np.float64]
    vectors: NDArray[np.float32]

    def allowed(self, wanted: Wanted) -> NDArray[np.bool_]:
        """[N], whether the object meets the conditions that are about single objects."""
        met = ~np.isin(self.photos, wanted.exclude_images)
        if wanted.labels:
            met &= np.isin(self.labels, wanted.labels)
        if wanted.min_score is not None:
            met &= self.scores.astype(np.float32) >= np.float32(wanted.min_score)
        if wanted.min_area is not None:
            met &= self.areas >= wanted.min_area
        return met

    def ranking(
        self, queries: NDArray[np.float32], wanted: Wanted
    ) -> list[tuple[float, tuple[int, ...]]]:
        """By brute force: each hit's distance and matching objects, nearest first."""
        [rows] = np.nonzero(self.allowed(wanted))
        if not len(rows):
            return []
        difference = self.vectors[rows].astype(np.float64) - queries[:, None].astype(np.float64)
        distances = np.square(difference).sum(axis=2)
        hits: list[tuple[float, tuple[int, ...]]] = []
        if wanted.group_by == "object":
            nearest = distances.min(axis=0)
            hits = [(float(d), (int(self.ids[row]),)) for d, row in zip(nearest, rows, strict=True)]
        elif wanted.match == "any":
            best: dict[int, tuple[float, tuple[int, ...]]] = {}
            for d, row in zip(distances.min(axis=0).tolist(), rows.tolist(), strict=True):
                hit = (d, (int(self.ids[row]),))
                photo = int(self.photos[row])
                best[photo] = min(hit, best.get(photo, hit))
            hits = list(best.values())
        else:
            for photo in np.unique(self.photos[rows]):
                [mine] = np.nonzero(self.photos[rows] == photo)
                columns = mine[distances[:, mine].argmin(axis=1)]
                mean = math.fsum(distances[:, mine].min(axis=1).tolist()) / len(queries)
                hits.append((mean, tuple(self.ids[rows[columns]].tolist())))
        if wanted.max_distance is not None:
            hits = [hit for hit in hits if hit[0] <= wanted.max_distance]
        return sorted(hits, key=lambda hit: (hit[0], hit[1][0]))


async def _store_many(
    services: Services, random: np.random.Generator, *, objects: int, dimension: int = 32
) -> _Objects:
    """Stores objects around a hundred centres, some of them copies of others; one photo is a
    crowd of 300 that are much alike."""
    centres = random.normal(size=(100, dimension))
    vectors = centres[random.integers(0, 100, objects)] + 0.5 * random.normal(
        size=(objects, dimension)
    )
    vectors[:300] = centres[0] + 0.02 * random.normal(size=(300, dimension))
    copies = random.choice(objects, objects // 20, replace=False)
    vectors[copies] = vectors[random.integers(0, objects, len(copies))]
    units = _unit(vectors)
    sizes = [300]
    while sum(sizes) < objects:
        sizes.append(min(int(random.integers(1, 5)), objects - sum(sizes)))
    labels = random.choice(len(_LABELS), objects, p=[0.4, 0.2, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05])
    # Scores are no 32-bit numbers here. Both are met exactly by some of the thresholds.
    scores = random.integers(20, 101, objects) / 100
    sides = random.integers(5, 101, objects).astype(np.float64)
    made = [
        NewObject(_LABELS[label], score, (0.0, 0.0, side, side))
        for label, score, side in zip(labels, scores.tolist(), sides.tolist(), strict=True)
    ]
    edges = np.cumsum([0, *sizes])
    groups = [slice(a, b) for a, b in itertools.pairwise(edges)]
    collection = await _store(
        services, [units[group] for group in groups], [made[group] for group in groups]
    )
    ids = np.array(sorted(await services.catalog.object_ids(collection.id)))
    places = await services.catalog.places(ids.tolist())
    return _Objects(
        ids=ids,
        photos=np.array([places[id_].image_id for id_ in ids.tolist()]),
        labels=np.array([place.label for place in places.values()]),
        scores=np.array([place.score for place in places.values()]),
        areas=sides * sides / 10_000,
        vectors=units,
    )


def _draw_wanted(random: np.random.Generator, stored: _Objects) -> Wanted:
    """Conditions, each there or not; thresholds are often values of the objects themselves."""

    def maybe(value: Any, chance: float = 0.35) -> Any:
        return value if random.random() < chance else None

    match, group_by = [("any", "image"), ("any", "object"), ("all", "image")][random.integers(3)]
    labels = random.choice([*_LABELS, "no such thing", "' or '1"], random.integers(1, 4), False)
    return Wanted(
        labels=tuple(maybe(tuple(map(str, labels)), 0.5) or ()),
        min_score=maybe(float(random.choice(stored.scores))),
        min_area=maybe(float(random.choice(stored.areas)) ** 2),
        max_distance=maybe(float(random.uniform(0.1, 1.5))),
        exclude_images=tuple(maybe(tuple(random.choice(stored.photos, 40).tolist())) or ()),
        match=match,  # type: ignore[arg-type]
        group_by=group_by,  # type: ignore[arg-type]
    )


def _draw_queries(random: np.random.Generator, stored: _Objects) -> NDArray[np.float32]:
    """Vectors of objects, of the crowd's too, moved a little or not at all."""
    count = int(random.choice([1, 2, 3, 22], p=[0.4, 0.3, 0.25, 0.05]))
    rows = random.integers(0, len(stored.ids), count)
    rows[random.random(count) < 0.2] = 7
    moved = random.choice([0.0, 0.1]) * random.normal(size=(count, stored.vectors.shape[1]))
    return _unit(stored.vectors[rows] + moved)


async def _pages(
    services: Services, queries: NDArray[np.float32], wanted: Wanted, top_k: int, most: int
) -> tuple[list[Hit], bool]:
    """The hits of the first pages, and whether there are no more."""
    hits: list[Hit] = []
    after: Position | None = None
    for _ in range(most):
        page = await services.searcher.find("made", queries, wanted, top_k, after)
        hits += page.hits
        after = page.next
        if after is None:
            assert len(page.hits) <= top_k
            return hits, True
        assert len(page.hits) == top_k
        assert after.seen == len(hits)
    return hits, False


@pytest.mark.parametrize("combination", ["embedded", "milvus", "mysql"], indirect=True)
async def test_pages_joined_are_the_ranking_of_brute_force(
    settings: Settings, combination: str
) -> None:
    exact = settings.model_copy(
        update={"milvus_index": "FLAT", "milvus_index_params": {}, "milvus_search_params": {}}
    )
    random = np.random.default_rng(3)
    ended = paged = 0
    async with open_services(exact) as services:
        stored = await _store_many(services, random, objects=5000)
        for case in range({"embedded": 50, "milvus": 20, "mysql": 8}[combination]):
            wanted, queries = _draw_wanted(random, stored), _draw_queries(random, stored)
            expected = stored.ranking(queries, wanted)
            top_k = int(random.choice([1, 3, 20, 200]))
            hits, end = await _pages(services, queries, wanted, top_k, most=8 if top_k < 20 else 3)
            told = f"case {case}: {len(queries)} vectors, {wanted}, pages of {top_k}"
            found = [tuple(each.object.id for each in hit.matches) for hit in hits]
            assert found == [ids for _, ids in expected[: len(hits)]], told
            np.testing.assert_allclose(
                [hit.distance for hit in hits],
                [distance for distance, _ in expected[: len(hits)]],
                atol=1e-12,
                err_msg=told,
            )
            assert end == (len(hits) == len(expected)), told
            ended += end
            paged += len(hits) > top_k
    # The cases are worth something: many rankings were seen to their end, many in several pages.
    assert ended > case / 4
    assert paged > case / 4


async def test_photos_near_to_one_query_alone_come_where_their_mean_says(
    services: Services,
) -> None:
    random = np.random.default_rng(10)
    queries = np.eye(2, 16, dtype=np.float32)
    # Each photo is as near to one of the two as it is far from the other: the lists of the two
    # have not a photo in common before they are long.
    photos = []
    for number in range(400):
        angle = random.uniform(0, np.pi / 2)
        turned = np.cos(angle) * queries[number % 2] + np.sin(angle) * queries[2 - 1 - number % 2]
        photos.append(_unit((turned + 0.4 * random.normal(size=16))[np.newaxis]))
    await _store(services, photos)
    expected = [
        np.square(photo.astype(np.float64) - queries).sum(axis=1).mean() for photo in photos
    ]
    hits, _ = await _pages(services, queries, Wanted(match="all"), 3, most=20)
    order = np.argsort(expected)[:60]
    assert [hit.matches[0].object.path for hit in hits] == [f"/{number}" for number in order]


async def test_matches_tell_which_query_vector_is_how_far_from_which_object(
    services: Services,
) -> None:
    [a, b, c] = np.eye(3, 16, dtype=np.float32)
    near_b = _unit(np.array([b + 0.1 * c], np.float64))[0]
    await _store(services, [np.stack([near_b, a]), np.stack([c, b])])
    [first, second] = (await services.searcher.find("made", np.stack([a, b]), Wanted(), 5)).hits
    assert [(each.query, each.distance) for each in first.matches] == [(0, 0.0)]
    assert [(each.query, each.distance) for each in second.matches] == [(1, 0.0)]
    assert (first.matches[0].object.path, second.matches[0].object.path) == ("/0", "/1")
    together = (await services.searcher.find("made", np.stack([a, b]), Wanted(match="all"), 5)).hits
    [(first_a, first_b), (second_a, second_b)] = [hit.matches for hit in together]
    assert (first_a.query, first_b.query, first_a.distance) == (0, 1, 0.0)
    assert first_b.distance == pytest.approx(2 - 2 / math.sqrt(1.01), abs=1e-6)
    assert together[0].distance == pytest.approx(first_b.distance / 2)
    assert (second_a.distance, second_b.distance, together[1].distance) == (2.0, 0.0, 1.0)
    assert first_a.object.id == first_b.object.id + 1  # one photo, two objects


async def test_copies_of_one_photo_come_in_the_order_of_their_ids_over_pages(
    services: Services,
) -> None:
    unit = _unit(np.ones((1, 16)))
    await _store(services, [unit] * 100)
    for match in ("any", "all"):
        hits, end = await _pages(services, unit, Wanted(match=match), 9, most=20)
        assert end
        assert [hit.matches[0].object.path for hit in hits] == [f"/{n}" for n in range(100)]
        assert {hit.distance for hit in hits} == {0.0}


async def test_there_is_no_next_page_exactly_where_there_are_no_more_hits(
    services: Services,
) -> None:
    units = _unit(np.random.default_rng(5).normal(size=(6, 16)))
    await _store(services, [units[[index]] for index in range(6)])
    for top_k, pages in ((1, 6), (2, 3), (3, 2), (5, 2), (6, 1), (7, 1)):
        after = None
        for number in range(pages):
            page = await services.searcher.find("made", units[:1], Wanted(), top_k, after)
            after = page.next
            assert (after is None) == (number == pages - 1)
    page = await services.searcher.find("made", units[:1], Wanted(max_distance=0), 1)
    assert (len(page.hits), page.next) == (1, None)


async def test_pages_end_with_the_most_hits_that_the_engine_gives(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.searching.MAX_HITS", 64)
    units = _unit(np.random.default_rng(6).normal(size=(300, 16)))
    await _store(services, [units[[index]] for index in range(300)])
    order = np.square(units - units[0]).sum(axis=1).argsort(kind="stable")
    hits, end = await _pages(services, units[:1], Wanted(), 10, most=50)
    assert end
    assert [hit.matches[0].object.path for hit in hits] == [f"/{n}" for n in order[:64]]


async def test_an_object_of_a_photo_of_unknown_size_has_no_part_of_it(services: Services) -> None:
    unit = _unit(np.ones((1, 16)))
    collection = await _store(services, [unit, unit])
    found = (await services.searcher.find("made", unit, Wanted(min_area=0.0), 5)).hits
    assert [(hit.matches[0].object.width, hit.matches[0].object.height) for hit in found] == [
        (100, 100)
    ] * 2
    nowhere = NewImage("/1", path_key("/1"), "", 0, 0, objects=[NewObject("thing", 0.5, _WHOLE)])
    [again] = await services.catalog.begin_images(collection.id, [nowhere])
    await services.vectors.upsert(
        collection.store, [ObjectVector(again.object_ids[0], again.id, "thing", 0.5, unit[0])]
    )
    await services.catalog.finish_images([again], {})
    for wanted, paths in ((Wanted(min_area=0.0), ["/0"]), (Wanted(), ["/0", "/1"])):
        hits = (await services.searcher.find("made", unit, wanted, 5)).hits
        assert [hit.matches[0].object.path for hit in hits] == paths


async def test_labels_that_nothing_bears_match_nothing_and_never_reach_the_engine(
    services: Services,
) -> None:
    unit = _unit(np.ones((1, 16)))
    collection = await _store(services, [unit])
    absent = ['" or id > 0 or "', "thing ", "Thing", "", "a\rb"]
    for labels, hits in ((absent, 0), ([*absent, "thing"], 1)):
        page = await services.searcher.find("made", unit, Wanted(labels=tuple(labels)), 5)
        assert (len(page.hits), page.next) == (hits, None)
    # One that has come since is found.
    later = NewImage("/2", path_key("/2"), "", 0, 0, objects=[NewObject("", 0.5, _WHOLE)])
    [image] = await services.catalog.begin_images(collection.id, [later])
    await services.vectors.upsert(
        collection.store, [ObjectVector(image.object_ids[0], image.id, "", 0.5, unit[0])]
    )
    await services.catalog.finish_images([image], {})
    [hit] = (await services.searcher.find("made", unit, Wanted(labels=("", "none")), 5)).hits
    assert hit.matches[0].object.path == "/2"


async def test_what_is_being_deleted_is_no_hit_of_any_kind(services: Services) -> None:
    units = _unit(np.random.default_rng(8).normal(size=(4, 16)))
    await _store(services, [units[[0, 1]], units[[2, 3]]])
    hits = (await services.searcher.find("made", units[:1], Wanted(), 5)).hits
    await services.catalog.begin_delete_images([hits[0].matches[0].object.image_id])
    for wanted in (Wanted(), Wanted(match="all"), Wanted(group_by="object")):
        left = (await services.searcher.find("made", units[:2], wanted, 5)).hits
        assert {hit.matches[0].object.path for hit in left} == {"/1"}


async def test_a_query_without_objects_has_no_hits(services: Services) -> None:
    await _store(services, [_unit(np.ones((1, 16)))])
    page = await services.searcher.find("made", np.empty((0, 16), np.float32), Wanted(), 5)
    assert (page.hits, page.next) == ([], None)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"wanted": Wanted(match="all", group_by="object")}, "match=all .*group_by=image"),
        ({"wanted": Wanted(min_score=math.nan)}, "min_score is nan: it must be from 0 to 1"),
        ({"wanted": Wanted(min_score=1.5)}, "min_score is 1.5"),
        ({"wanted": Wanted(min_area=-0.1)}, "min_area is -0.1"),
        ({"wanted": Wanted(max_distance=math.inf)}, "max_distance is inf: .* from 0 to 4"),
        ({"wanted": Wanted(labels=("\udc80",))}, "label .*is not Unicode"),
        ({"top_k": 0}, "top_k is 0"),
        ({"after": Position(math.nan, 1, 1)}, "no such place"),
        ({"vectors": np.zeros((1, 8), np.float32)}, "shape .*16 dimensions"),
        ({"vectors": np.zeros(16, np.float32)}, "shape .*16 dimensions"),
        ({"vectors": np.full((1, 16), np.nan, np.float32)}, "no numbers"),
        ({"name": "no name"}, "no collection's name"),
    ],
)
async def test_what_cannot_be_searched_for_is_refused_in_words(
    services: Services, changes: dict[str, Any], told: str
) -> None:
    unit = _unit(np.ones((1, 16)))
    await _store(services, [unit])
    asked: dict[str, Any] = {"name": "made", "vectors": unit, "wanted": Wanted(), "top_k": 3}
    with pytest.raises(InvalidInput, match=told):
        await services.searcher.find(**asked | changes)


async def test_a_collection_that_is_not_there_or_not_comparable_is_told_of(
    services: Services,
) -> None:
    unit = _unit(np.ones((1, 16)))
    with pytest.raises(NotFound, match="no collection 'nothing'"):
        await services.searcher.find("nothing", unit, Wanted(), 3)
    collection = await _store(services, [unit], sha256="0" * 64)
    with pytest.raises(EmbedderMismatch, match="check --repair"):
        await services.searcher.find("made", unit, Wanted(), 3)
    with pytest.raises(EmbedderMismatch, match="check --repair"):
        await services.searcher.object_vectors(
            sorted(await services.catalog.object_ids(collection.id))
        )


# What happens to a collection under a search


async def _drop(services: Services, collection: Collection) -> None:
    await services.indexer.drop(collection.name)


async def _lose(services: Services, collection: Collection) -> None:
    await services.vectors.drop(collection.store)


async def _replace(services: Services, collection: Collection) -> None:
    """Embeds the collection's objects anew: here, with the vectors that they have."""
    ids = sorted(await services.catalog.object_ids(collection.id))
    places = await services.catalog.places(ids)
    vectors = await services.vectors.vectors(collection.store, ids)
    store = f"{collection.store}_new"
    await services.catalog.begin_replacement(collection.id, store)
    await services.vectors.create(store, collection.dim)
    rows = [
        ObjectVector(id_, place.image_id, place.label, place.score, vectors[id_])
        for id_, place in places.items()
    ]
    await services.vectors.upsert(store, rows)
    embedder = services.analyzer.embedder
    assert await services.catalog.replace_vectors(
        collection,
        store=store,
        embedder=embedder.name,
        embedder_sha256=embedder.sha256,
        dim=collection.dim,
    )
    await services.vectors.drop(collection.store)


@pytest.mark.parametrize(
    ("change", "refusal"), [(_drop, NotFound), (_lose, VectorsLost), (_replace, None)]
)
async def test_a_search_copes_with_what_happens_to_its_collection_meanwhile(
    services: Services,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Services, Collection], Awaitable[None]],
    refusal: type[Exception] | None,
) -> None:
    unit = _unit(np.ones((1, 16)))
    collection = await _store(services, [unit])
    look_up = services.catalog.labels_among

    async def look_up_late(collection_id: int, labels: Sequence[str]) -> set[str]:
        found = await look_up(collection_id, labels)
        await change(services, collection)
        return found

    # A search looks its labels up when it has its collection, before it asks the engine.
    monkeypatch.setattr(services.catalog, "labels_among", look_up_late)
    search = services.searcher.find("made", unit, Wanted(labels=("thing",)), 3)
    if refusal is None:
        assert len((await search).hits) == 1
    else:
        with pytest.raises(refusal, match="made"):
            await search


# The vectors of objects


async def test_the_vectors_of_objects_come_in_the_order_that_was_asked_for(
    services: Services,
) -> None:
    units = _unit(np.random.default_rng(9).normal(size=(5, 16)))
    collection = await _store(services, [units[:2], units[2:]])
    ids = sorted(await services.catalog.object_ids(collection.id))
    found = await services.searcher.object_vectors([ids[3], ids[0], ids[3]])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, units[[3, 0, 3]])
    page = await services.searcher.find("made", found[:1], Wanted(), 1)
    assert (page.hits[0].distance, page.hits[0].matches[0].object.id) == (0.0, ids[3])


async def test_vectors_of_objects_that_are_not_there_are_refused_in_words(
    services: Services,
) -> None:
    unit = _unit(np.ones((1, 16)))
    one = await _store(services, [unit, unit, unit])
    two = await _store(services, [unit], name="other")
    [first, second, third] = sorted(await services.catalog.object_ids(one.id))
    [elsewhere] = await services.catalog.object_ids(two.id)
    ask = services.searcher.object_vectors
    with pytest.raises(NotFound, match="no indexed object 424242"):
        await ask([first, 424_242])
    for ids in ([], [first, elsewhere]):
        with pytest.raises(InvalidInput, match="one collection"):
            await ask(ids)
    [place] = (await services.catalog.places([second])).values()
    await services.catalog.begin_delete_images([place.image_id])
    with pytest.raises(NotFound, match=f"no indexed object {second}"):
        await ask([second])
    await services.vectors.delete(one.store, [third])
    with pytest.raises(VectorsLost, match="'made'"):
        await ask([first, third])
    await services.vectors.drop(one.store)
    with pytest.raises(VectorsLost, match="'made'"):
        await ask([first])
    await services.catalog.begin_drop(two.id)
    with pytest.raises(NotFound, match=f"no indexed object {elsewhere}"):
        await ask([elsewhere])
