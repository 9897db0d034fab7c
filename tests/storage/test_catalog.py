"""The catalog on SQLite and MySQL: states, ids, and what is left when a process dies in between."""

import asyncio
import os
import re
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncConnection

from backend.deadlines import deadline
from backend.errors import ConfigurationError, EngineUnavailable, ServiceError
from backend.storage.catalog import (
    Catalog,
    Collection,
    CountedCollection,
    Image,
    KeptAnswer,
    LoadRow,
    NewImage,
    NewObject,
    PhotoHashes,
    StoredImage,
    TouchedImage,
    new_store,
    path_key,
    utc_now,
)
from backend.storage.tables import answers
from tests.storage.catalogs import (
    CAT,
    DOG,
    OpenCatalog,
    all_images,
    catalogs,
    ensure,
    index,
    new_photo,
)


@pytest.fixture(params=["sqlite", "mysql"])
def open_catalog(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenCatalog]:
    """Opens the test's own catalog, each time it is called."""
    yield from catalogs(request, tmp_path)


@pytest.fixture
async def catalog(open_catalog: OpenCatalog) -> AsyncIterator[Catalog]:
    """An empty catalog of the test's own."""
    opened = await open_catalog()
    yield opened
    await opened.close()


@pytest.fixture
async def on_sqlite(tmp_path: Path) -> AsyncIterator[Catalog]:
    """An empty catalog in the test's own folder."""
    opened = await Catalog.open_sqlite(tmp_path)
    yield opened
    await opened.close()


# Collections


async def test_a_collection_is_made_once_and_found_by_its_name_and_its_id(catalog: Catalog) -> None:
    assert await catalog.collection("photos") is None
    made = await ensure(catalog)
    assert (made.name, made.embedder, made.dim, made.metric) == ("photos", "tiny", 8, "L2")
    assert (made.embedder_sha256, made.state) == ("ab" * 32, "ready")
    assert await ensure(catalog) == made
    assert await catalog.collection("photos") == made
    assert await catalog.collection_by_id(made.id) == made
    assert await catalog.collection_by_id(made.id + 1) is None


async def test_a_collection_keeps_the_embedder_that_made_it(catalog: Catalog) -> None:
    made = await ensure(catalog)
    again = await catalog.ensure_collection(
        "photos", embedder="other", embedder_sha256="ef" * 32, dim=16, metric="L2"
    )
    assert again == made


async def test_names_of_collections_differ_by_case(catalog: Catalog) -> None:
    small, large = await ensure(catalog, "photos"), await ensure(catalog, "Photos")
    assert small.id != large.id
    assert await catalog.collections("ready") == [small, large]


async def test_a_collection_that_is_being_dropped_is_not_seen_any_more(catalog: Catalog) -> None:
    collection = await ensure(catalog)
    await catalog.begin_drop(collection.id)
    assert await catalog.collection("photos") is None
    assert await catalog.collections("ready") == []
    [deleting] = await catalog.collections("deleting")
    assert (deleting.id, deleting.state) == (collection.id, "deleting")
    again = await catalog.ensure_collection(
        "photos", embedder="tiny", embedder_sha256="ab" * 32, dim=8, metric="L2"
    )
    assert again is None


async def test_a_drop_takes_photos_objects_and_loads_and_nothing_of_other_collections(
    catalog: Catalog,
) -> None:
    dropped, kept = await ensure(catalog, "dropped"), await ensure(catalog, "kept")
    await index(catalog, dropped, ["/a.jpg", "/b.jpg"], [CAT, DOG])
    await index(catalog, kept, ["/a.jpg"], [CAT])
    await catalog.begin_load(dropped.id, "/", prune=False)
    load = await catalog.begin_load(kept.id, "/", prune=False)
    await catalog.begin_drop(dropped.id)
    await catalog.finish_drop(dropped.id)
    assert await catalog.collection_by_id(dropped.id) is None
    assert await all_images(catalog, dropped) == []
    assert await catalog.object_ids(dropped.id) == set()
    assert await catalog.count_images(kept.id) == 1
    assert len(await catalog.object_ids(kept.id)) == 1
    assert [row.id for row in await catalog.running_loads()] == [load]


async def test_a_name_may_be_used_again_after_a_drop_and_gets_another_store(
    catalog: Catalog,
) -> None:
    first = await ensure(catalog)
    await catalog.begin_drop(first.id)
    await catalog.finish_drop(first.id)
    second = await ensure(catalog)
    assert second.id > first.id
    assert second.store != first.store
    assert second.store.startswith("photos_")


async def test_dropping_twice_does_no_harm(catalog: Catalog) -> None:
    collection = await ensure(catalog)
    for _ in range(2):
        await catalog.begin_drop(collection.id)
        await catalog.finish_drop(collection.id)
    assert await catalog.collections("ready") == []


def test_no_two_stores_have_the_same_name() -> None:
    names = {new_store("photos") for _ in range(1000)}
    assert len(names) == 1000
    assert all(re.fullmatch(r"photos_[0-9a-f]{12}", name) for name in names)


async def test_new_vectors_are_turned_to_once_and_the_old_ones_stay_known(
    catalog: Catalog,
) -> None:
    collection, other = await ensure(catalog), await ensure(catalog, "other")
    assert collection.other_store is None
    new: dict[str, Any] = {"embedder": "large", "embedder_sha256": "ef" * 32, "dim": 16}
    assert not await catalog.replace_vectors(collection, store="new", **new)  # it was not begun
    await catalog.begin_replacement(collection.id, "new")
    assert not await catalog.replace_vectors(collection, store="newer", **new)
    assert not await catalog.replace_vectors(other, store="new", **new)
    assert await catalog.replace_vectors(collection, store="new", **new)
    now = await catalog.collection("photos")
    assert now is not None
    assert (now.embedder, now.embedder_sha256, now.dim) == (*new.values(),)
    assert (now.store, now.other_store) == ("new", collection.store)
    await catalog.finish_replacement(collection.id, "another")
    assert (await catalog.collection("photos")) == now
    await catalog.finish_replacement(collection.id, collection.store)
    now = await catalog.collection("photos")
    assert now is not None
    assert (now.store, now.other_store) == ("new", None)
    assert await catalog.collection("other") == other


async def test_a_collection_that_is_dropped_does_not_turn_to_new_vectors(catalog: Catalog) -> None:
    collection = await ensure(catalog)
    await catalog.begin_replacement(collection.id, "new")
    await catalog.begin_drop(collection.id)
    assert not await catalog.replace_vectors(
        collection, store="new", embedder="e", embedder_sha256="", dim=4
    )


async def test_of_many_that_turn_to_new_vectors_one_succeeds(catalog: Catalog) -> None:
    collection = await ensure(catalog)
    await catalog.begin_replacement(collection.id, "new")
    done = await asyncio.gather(
        *(
            catalog.replace_vectors(
                collection, store="new", embedder=f"e{i}", embedder_sha256="", dim=i
            )
            for i in range(8)
        )
    )
    assert sorted(done) == [False] * 7 + [True]
    now = await catalog.collection("photos")
    assert now is not None
    assert now.embedder == f"e{done.index(True)}"


async def test_collections_come_by_name_with_how_many_photos_they_have(catalog: Catalog) -> None:
    assert await catalog.collections_with_counts() == []
    full, empty = await ensure(catalog, "full"), await ensure(catalog, "Empty")
    gone = await ensure(catalog, "gone")
    await index(catalog, gone, ["/a"], [CAT])
    await catalog.begin_drop(gone.id)
    _, _, deleting = await index(catalog, full, ["/a", "/b", "/c"], [CAT, DOG])
    await catalog.begin_delete_images([deleting])
    stored = await catalog.begin_images(collection_id=full.id, images=[new_photo("/d", [], "bad")])
    await catalog.begin_images(full.id, [new_photo("/pending")])
    await catalog.finish_images(stored[:1], {stored[0].id: "bad"})
    assert await catalog.collections_with_counts() == [
        CountedCollection(empty, indexed=0, failed=0),
        CountedCollection(full, indexed=2, failed=1),
    ]


async def test_labels_are_counted_most_frequent_first_in_indexed_photos_alone(
    catalog: Catalog,
) -> None:
    collection, other = await ensure(catalog), await ensure(catalog, "other")
    assert await catalog.label_counts(collection.id) == []
    ant = NewObject("ant", 0.5, (0.0, 0.0, 8.0, 8.0))
    [_, deleting] = await index(catalog, collection, ["/a", "/b"], [CAT, DOG, DOG])
    await index(catalog, collection, ["/c"], [CAT, ant])
    await index(catalog, other, ["/a"], [CAT])
    await catalog.begin_images(collection.id, [new_photo("/pending", [CAT])])
    assert await catalog.label_counts(collection.id) == [("dog", 4), ("cat", 3), ("ant", 1)]
    await catalog.begin_delete_images([deleting])
    assert await catalog.label_counts(collection.id) == [("cat", 2), ("dog", 2), ("ant", 1)]


async def _begin_import(catalog: Catalog, store: str) -> Collection:
    return await catalog.begin_import(
        store, embedder="tiny", embedder_sha256="ab" * 32, dim=8, metric="L2"
    )


async def test_an_import_is_not_seen_before_it_has_its_name(catalog: Catalog) -> None:
    begun = await _begin_import(catalog, store := new_store("photos"))
    assert (begun.state, begun.store) == ("importing", store)
    assert await _begin_import(catalog, store) == begun  # its answer was lost
    assert await catalog.collection("photos") is None
    assert await catalog.collection_in_any_state("photos") is None
    assert await catalog.collections_with_counts() == []
    for _ in range(2):  # again, its answer lost
        assert await catalog.finish_import(begun, "photos", replace=False)
        assert await catalog.collection("photos") == replace(begun, name="photos", state="ready")


async def test_an_import_takes_a_name_that_is_taken_only_where_it_may(catalog: Catalog) -> None:
    there = await ensure(catalog)
    begun = await _begin_import(catalog, new_store("photos"))
    assert not await catalog.finish_import(begun, "photos", replace=False)
    assert await catalog.collection("photos") == there
    assert await catalog.finish_import(begun, "photos", replace=True)
    now = await catalog.collection("photos")
    assert now is not None
    assert now.id == begun.id
    [before] = await catalog.collections("deleting")
    assert before.id == there.id
    await catalog.finish_drop(before.id)
    assert [each.collection for each in await catalog.collections_with_counts()] == [now]


async def test_an_import_that_was_undone_gets_no_name(catalog: Catalog) -> None:
    begun = await _begin_import(catalog, new_store("photos"))
    await catalog.begin_drop(begun.id)
    assert not await catalog.finish_import(begun, "photos", replace=True)
    await catalog.finish_drop(begun.id)
    assert not await catalog.finish_import(begun, "photos", replace=True)
    assert await catalog.collection_in_any_state("photos") is None


# Photos: adding


async def test_a_photo_is_pending_with_its_objects_until_it_is_finished(catalog: Catalog) -> None:
    collection = await ensure(catalog)
    [stored] = await catalog.begin_images(collection.id, [new_photo("/a.jpg", [CAT, DOG])])
    assert len(stored.object_ids) == 2
    assert not stored.replaced
    [image] = await all_images(catalog, collection)
    assert image.state == "pending"
    assert await catalog.count_images(collection.id) == 0
    assert await catalog.count_images(collection.id, "pending") == 1
    assert await catalog.indexed_image([path_key("/a.jpg")]) is None
    await catalog.finish_images([stored], {})
    [image] = await all_images(catalog, collection)
    assert image == Image(
        id=stored.id,
        collection_id=collection.id,
        path="/a.jpg",
        path_key=path_key("/a.jpg"),
        sha256="cd" * 32,
        size=1000,
        mtime_ns=1_700_000_000_123_456_789,
        width=640,
        height=480,
        state="indexed",
        error=None,
        phash=None,
    )
    assert await catalog.count_images(collection.id) == 1
    assert await catalog.indexed_image([path_key("/a.jpg")]) == image


async def test_fresh_and_changed_photos_may_come_together_in_any_order(catalog: Catalog) -> None:
    collection = await ensure(catalog)
    old_b, old_d = await index(catalog, collection, ["/b", "/d"], [CAT, CAT, CAT])
    old_objects = await catalog.object_ids(collection.id)
    several = [NewObject(f"label {i}", i / 10, (i, i, i + 1.0, i + 1.0)) for i in range(4)]
    news = [
        new_photo("/a", several),
        new_photo("/b", [DOG]),
        new_photo("/c", []),
        new_photo("/d", several[:2]),
    ]
    stored = await catalog.begin_images(collection.id, news)
    assert [image.replaced for image in stored] == [False, True, False, True]
    assert (stored[1].id, stored[3].id) == (old_b, old_d)
    assert [len(image.object_ids) for image in stored] == [4, 1, 0, 2]
    await catalog.finish_images(stored, {})
    fresh = [object_id for image in stored for object_id in image.object_ids]
    assert await catalog.object_ids(collection.id) == set(fresh)
    assert old_objects.isdisjoint(fresh)
    places = await catalog.places(fresh)
    for new, image in zip(news, stored, strict=True):
        # In the order in which they were given: the caller pairs them with embeddings.
        assert [places[object_id].label for object_id in image.object_ids] == [
            found.label for found in new.objects
        ]
        assert {places[object_id].path for object_id in image.object_ids} <= {new.path}


async def test_a_changed_photo_takes_all_its_new_values_and_is_pending_again(
    catalog: Catalog,
) -> None:
    collection = await ensure(catalog)
    await index(catalog, collection, ["/a"], [CAT])
    changed = NewImage("/a", path_key("/a"), "ef" * 32, 2000, 5, 10, 20)
    [stored] = await catalog.begin_images(collection.id, [changed])
    [image] = await all_images(catalog, collection)
    assert (image.id, image.state) == (stored.id, "pending")
    assert (image.sha256, image.size, image.mtime_ns) == ("ef" * 32, 2000, 5)
    assert (image.width, image.height) == (10, 20)


_PHASHES = (0, 1, -1, 2**63 - 1, -(2**63), None)


async def _hashes(catalog: Catalog, collection: Collection) -> list[PhotoHashes]:
    return [photo async for page in catalog.hashes(collection.id) for photo in page]


async def test_perceptual_hashes_are_kept_to_the_bit(catalog: Catalog) -> None:
    collection = await ensure(catalog)
    news = [replace(new_photo(f"/{value}"), phash=value) for value in _PHASHES]
    stored = await catalog.begin_images(collection.id, news)
    ids = [image.id for image in stored]
    assert await _hashes(catalog, collection) == []  # while they are pending
    await catalog.finish_images(stored, {})
    assert [image.phash for image in await catalog.images_by_id(ids)] == list(_PHASHES)
    assert await _hashes(catalog, collection) == [
        PhotoHashes(image_id, "cd" * 32, phash)
        for image_id, phash in zip(ids, _PHASHES, strict=True)
    ]


async def test_hashes_are_those_of_a_collection_s_indexed_photos_in_pages_of_any_size(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.storage.catalog._HASHES_PER_PAGE", 3)
    collection, other = await ensure(catalog), await ensure(catalog, "other")
    ids = await index(catalog, collection, [f"/{number}" for number in range(8)], [CAT])
    await index(catalog, other, ["/0"], [CAT])
    await catalog.begin_delete_images(ids[2:3])
    await catalog.fail_photos(ids[5:6], "gone")
    left = [ids[number] for number in (0, 1, 3, 4, 6, 7)]
    pages = [[photo.id for photo in page] async for page in catalog.hashes(collection.id)]
    assert pages == [left[:3], left[3:]]


async def test_hashes_that_were_found_later_are_kept_of_the_same_bytes_only(
    catalog: Catalog,
) -> None:
    collection = await ensure(catalog)
    first, second, third = await index(catalog, collection, ["/a", "/b", "/c"], [CAT])
    for _ in range(2):
        await catalog.set_phashes(
            {PhotoHashes(first, "cd" * 32, None): -5, PhotoHashes(second, "ef" * 32, None): 6}
        )
    assert [(photo.id, photo.phash) for photo in await _hashes(catalog, collection)] == [
        (first, -5),
        (second, None),
        (third, None),
    ]
    await catalog.set_phashes({})


async def test_the_same_path_in_two_collections_is_two_photos(catalog: Catalog) -> None:
    one, two = await ensure(catalog, "one"), await ensure(catalog, "two")
    [first] = await index(catalog, one, ["/a"], [CAT])
    [second] = await index(catalog, two, ["/a"], [CAT])
    assert first != second
    assert await catalog.count_images(one.id) == await catalog.count_images(two.id) == 1


async def test_more_photos_than_one_query_holds_are_stored_in_order(catalog: Catalog) -> None:
    collection = await ensure(catalog)
    paths = [f"/{number}" for number in range(1201)]
    for _ in range(2):  # the second time every one is a changed one
        stored = await catalog.begin_images(
            collection.id, [new_photo(path, [CAT]) for path in paths]
        )
        await catalog.finish_images(stored, {})
    assert all(image.replaced for image in stored)
    places = await catalog.places([image.object_ids[0] for image in stored])
    assert [place.path for place in places.values()] == paths
    assert await catalog.count_images(collection.id) == 1201
    known = await catalog.images_by_key(collection.id, [path_key(path) for path in paths])
    assert [known[path_key(path)].path for path in paths] == paths


async def test_a_failure_is_kept_with_its_reason_and_ends_with_the_next_success(
    catalog: Catalog,
) -> None:
    collection = await ensure(catalog)
    [stored] = await catalog.begin_images(collection.id, [new_photo("/a", [], "the file is empty")])
    await catalog.finish_images([stored], {stored.id: "the file is empty"})
    [image] = await all_images(catalog, collection, ["failed"])
    assert image.error == "the file is empty"
    assert await catalog.count_images(collection.id) == 0
    assert await catalog.count_images(collection.id, "failed") == 1
    assert await catalog.indexed_image([path_key("/a")]) is None
    await index(catalog, collection, ["/a"], [CAT])
    [image] = await all_images(catalog, collection)
    assert (image.state, image.error) == ("indexed", None)


async def test_only_what_is_pending_can_be_finished_and_what_was_not_is_told(
    catalog: Catalog,
) -> None:
    collection = await ensure(catalog)
    indexed, deleting = await index(catalog, collection, ["/a", "/b"], [CAT])
    await catalog.begin_delete_images([deleting])
    [cat, dog] = await catalog.object_ids_of_images([indexed, deleting])
    stored = [
        StoredImage(deleting, [dog], replaced=False),
        StoredImage(10**9, [dog + 1], replaced=False),
        StoredImage(indexed, [cat], replaced=False),
    ]
    undone = await catalog.finish_images(stored, {indexed: "too late"})
    assert undone == [deleting, 10**9, indexed]
    states = {
        image.id: (image.state, image.error) for image in await all_images(catalog, collection)
    }
    assert states == {indexed: ("indexed", None), deleting: ("deleting", None)}
    assert await catalog.finish_images(stored[2:], {}) == []


@pytest.mark.parametrize("objects", [[], [CAT, DOG]])
async def test_of_two_that_write_a_photo_the_later_one_finishes_it(
    catalog: Catalog, objects: list[NewObject]
) -> None:
    collection = await ensure(catalog)
    [earlier] = await catalog.begin_images(collection.id, [new_photo("/a", [CAT])])
    [later] = await catalog.begin_images(collection.id, [new_photo("/a", objects)])
    assert earlier.id == later.id
    assert not {*earlier.object_ids} & {*later.object_ids}
    for failed in ({}, {earlier.id: "bad"}):
        assert await catalog.finish_images([earlier], failed) == [earlier.id]
        [image] = await all_images(catalog, collection)
        assert (image.state, image.error) == ("pending", None)
    assert await catalog.finish_images([later], {}) == []
    assert await catalog.finish_images([earlier], {}) == [earlier.id]
    [image] = await all_images(catalog, collection)
    assert image.state == "indexed"


async def test_a_collection_knows_when_its_vectors_were_last_written(catalog: Catalog) -> None:
    collection, other = await ensure(catalog), await ensure(catalog, "other")
    assert collection.written == 0
    hybrid = 469_000_000_000_000_000  # Milvus': milliseconds and a counter, in 64 bits
    for timestamp, last in ((hybrid, hybrid), (5, hybrid), (hybrid + 1, hybrid + 1)):
        [stored] = await catalog.begin_images(collection.id, [new_photo(f"/{timestamp}", [CAT])])
        await catalog.finish_images([stored], {}, written={collection.id: timestamp})
        now = await catalog.collection_by_id(collection.id)
        assert now is not None
        assert now.written == last
    assert await catalog.collection_by_id(other.id) == other


# Photos: undoing


async def test_what_is_pending_can_be_undone_and_is_failed_without_objects_then(
    catalog: Catalog,
) -> None:
    collection = await ensure(catalog)
    [kept] = await index(catalog, collection, ["/kept"], [CAT])
    pending = await catalog.begin_images(
        collection.id, [new_photo(path, [CAT, DOG]) for path in ("/a", "/b")]
    )
    ids = [image.id for image in pending]
    assert await catalog.claim_undo([*ids, kept, 10**9]) == ids
    assert await catalog.claim_undo(ids) == ids
    assert {image.state for image in await catalog.images_by_id(ids)} == {"undoing"}
    await catalog.undo_images([*ids, kept], "broken off")
    await catalog.undo_images(ids, "again")
    assert [(image.state, image.error) for image in await catalog.images_by_id(ids)] == [
        ("failed", "broken off")
    ] * 2
    assert await catalog.object_ids_of_images(ids) == []
    assert await catalog.count_images(collection.id) == 1
    assert len(await catalog.object_ids(collection.id)) == 1


async def test_what_nobody_has_claimed_is_not_undone(catalog: Catalog) -> None:
    collection = await ensure(catalog)
    [stored] = await catalog.begin_images(collection.id, [new_photo("/a", [CAT, DOG])])
    await catalog.undo_images([stored.id], "not claimed")
    assert await catalog.object_ids_of_images([stored.id]) == stored.object_ids
    assert await catalog.finish_images([stored], {}) == []
    assert await catalog.claim_undo([stored.id]) == []
    await catalog.undo_images([stored.id], "too late")
    assert await catalog.object_ids(collection.id) == set(stored.object_ids)


async def test_a_finish_that_comes_after_a_claim_is_told_and_does_nothing(
    catalog: Catalog,
) -> None:
    collection = await ensure(catalog)
    stored = await catalog.begin_images(
        collection.id, [new_photo(path, [CAT]) for path in ("/undone", "/done", "/bad")]
    )
    undone, done, bad = (image.id for image in stored)
    assert await catalog.claim_undo([undone]) == [undone]
    assert await catalog.finish_images(stored, {bad: "bad"}) == [undone]
    await catalog.undo_images([undone], "broken off")
    assert await catalog.finish_images(stored[:1], {}) == [undone]
    states = {image.id: image.state for image in await all_images(catalog, collection)}
    assert states == {undone: "failed", done: "indexed", bad: "failed"}


async def test_a_finish_and_a_claim_at_the_same_time_agree_on_every_photo(
    catalog: Catalog,
) -> None:
    collection = await ensure(catalog)
    for number in range(10):
        photos = [new_photo(f"/{number}/{i}", [CAT]) for i in range(10)]
        stored = await catalog.begin_images(collection.id, photos)
        ids = [image.id for image in stored]
        late, claimed = await asyncio.gather(
            catalog.finish_images(stored, {}), catalog.claim_undo(list(reversed(ids)))
        )
        assert sorted(late) == claimed
        assert {image.id for image in await all_images(catalog, collection, ["undoing"])} == set(
            claimed
        )
        await catalog.undo_images(claimed, "broken off")


async def test_indexed_photos_can_be_made_failed_ones(catalog: Catalog) -> None:
    collection = await ensure(catalog)
    ids = await index(catalog, collection, [f"/{i}" for i in range(4)], [CAT, DOG])
    [pending] = await catalog.begin_images(collection.id, [new_photo("/pending")])
    await catalog.fail_photos([ids[0], pending.id, 10**9], "its file is gone")
    assert [image.error for image in await all_images(catalog, collection, ["failed"])] == [
        "its file is gone"
    ]
    assert await catalog.object_ids_of_images([ids[0]]) == []
    assert len(await catalog.object_ids_of_images(ids)) == 6
    assert await catalog.fail_images(collection.id, "its vectors are gone") == 3
    assert await catalog.fail_images(collection.id, "its vectors are gone") == 0
    assert await catalog.object_ids(collection.id) == set()
    assert await catalog.count_images(collection.id, "pending") == 1
    assert await catalog.object_ids_of_images([pending.id]) == pending.object_ids


async def test_a_reason_of_any_length_and_any_characters_is_kept(catalog: Catalog) -> None:
    collection = await ensure(catalog)
    [stored] = await catalog.begin_images(collection.id, [new_photo("/a", [])])
    reason = "\N{CAT FACE} /caf\udce9 " + "\N{PILE OF POO}" * 100_000
    assert await catalog.finish_images([stored], {stored.id: reason}) == []
    [image] = await all_images(catalog, collection)
    assert image.error is not None
    assert image.error.startswith("\N{CAT FACE} /caf\\udce9 \N{PILE OF POO}")
    assert image.error.endswith("\N{PILE OF POO}…")
    load = await catalog.begin_load(collection.id, "/", prune=False)
    await catalog.end_load(load, "failed", {}, reason)


async def test_a_photo_whose_bytes_are_the_same_gets_its_file_s_new_time(catalog: Catalog) -> None:
    collection = await ensure(catalog)
    touched, other = await index(catalog, collection, ["/a", "/b"], [CAT])
    objects = await catalog.object_ids(collection.id)
    await catalog.touch_images([TouchedImage(touched, 1000, 2**62)])
    times = {
        image.id: image.mtime_ns for image in await all_images(catalog, collection, ["indexed"])
    }
    assert times == {touched: 2**62, other: 1_700_000_000_123_456_789}
    assert await catalog.object_ids(collection.id) == objects


async def test_nothing_to_do_is_done(catalog: Catalog) -> None:
    collection = await ensure(catalog)
    assert await catalog.begin_images(collection.id, []) == []
    await catalog.finish_images([], {})
    await catalog.begin_delete_images([])
    await catalog.finish_delete_images([])
    assert await catalog.images_by_key(collection.id, []) == {}
    assert await catalog.indexed_image([]) is None
    assert await catalog.places([]) == {}
    assert await all_images(catalog, collection) == []


async def test_touching_no_photo_does_nothing(catalog: Catalog) -> None:
    collection = await ensure(catalog)
    await index(catalog, collection, ["/a"], [CAT])
    before = await all_images(catalog, collection)
    await catalog.touch_images([])
    assert await all_images(catalog, collection) == before


# Photos: removing


async def test_a_photo_that_is_being_deleted_is_not_found_any_more(catalog: Catalog) -> None:
    collection = await ensure(catalog)
    gone, kept = await index(catalog, collection, ["/a", "/b"], [CAT])
    all_objects = await catalog.object_ids(collection.id)
    await catalog.begin_delete_images([gone])
    assert await catalog.indexed_image([path_key("/a")]) is None
    assert await catalog.count_images(collection.id) == 1
    assert {place.image_id for place in (await catalog.places(list(all_objects))).values()} == {
        kept
    }
    await catalog.finish_delete_images([gone])
    assert [image.id for image in await all_images(catalog, collection)] == [kept]
    assert len(await catalog.object_ids(collection.id)) == 1


async def test_no_id_is_ever_used_twice(catalog: Catalog) -> None:
    collection = await ensure(catalog)
    used_images: set[int] = set()
    used_objects: set[int] = set()
    for _ in range(4):
        [image_id] = await index(catalog, collection, ["/a"], [CAT, DOG])
        objects = await catalog.object_ids(collection.id)
        assert image_id not in used_images
        assert used_objects.isdisjoint(objects)
        used_images.add(image_id)
        used_objects |= objects
        await catalog.begin_delete_images([image_id])
        await catalog.finish_delete_images([image_id])


async def test_no_id_is_used_again_after_a_restart(open_catalog: OpenCatalog) -> None:
    catalog = await open_catalog()
    collection = await ensure(catalog)
    ids = await index(catalog, collection, ["/a", "/b"], [CAT])
    objects = await catalog.object_ids(collection.id)
    await catalog.begin_delete_images(ids)
    await catalog.finish_delete_images(ids)
    await catalog.close()
    catalog = await open_catalog()
    [fresh] = await index(catalog, collection, ["/a"], [CAT])
    [fresh_object] = await catalog.object_ids(collection.id)
    await catalog.close()
    assert fresh > max(ids)
    assert fresh_object > max(objects)


async def test_deleting_many_and_deleting_twice_does_no_harm(catalog: Catalog) -> None:
    collection = await ensure(catalog)
    ids = await index(catalog, collection, [f"/{i}" for i in range(1100)], [CAT])
    for _ in range(2):
        await catalog.begin_delete_images(ids[:-1])
        await catalog.finish_delete_images(ids[:-1])
    assert [image.id for image in await all_images(catalog, collection)] == ids[-1:]


# Reading


async def test_photos_come_page_by_page_in_the_order_of_their_ids(catalog: Catalog) -> None:
    collection = await ensure(catalog)
    ids = await index(catalog, collection, [f"/{i}" for i in range(1050)], [])
    pages = [page async for page in catalog.images(collection.id, ["indexed"])]
    assert len(pages) > 2
    assert [image.id for page in pages for image in page] == sorted(ids)


async def _ids_listed(catalog: Catalog, collection: Collection, **wanted: Any) -> list[list[int]]:
    """The ids of all pages of two photos."""
    pages: list[list[int]] = []
    after = 0
    while page := await catalog.list_images(
        collection.id, **({"state": "indexed", "label": None} | wanted), after=after, limit=2
    ):
        pages.append([image.id for image in page])
        after = page[-1].id
    return pages


async def test_photos_are_listed_in_pages_by_their_state_and_by_a_label(catalog: Catalog) -> None:
    collection, other = await ensure(catalog), await ensure(catalog, "other")
    both = await index(catalog, collection, ["/a", "/b"], [CAT, DOG, CAT])
    await index(catalog, other, ["/a", "/c"], [CAT])
    cats = await index(catalog, collection, ["/c", "/d", "/e"], [CAT])
    [failing] = await catalog.begin_images(collection.id, [new_photo("/f", [], "bad")])
    await catalog.finish_images([failing], {failing.id: "bad"})
    [deleting] = await index(catalog, collection, ["/g"], [CAT])
    await catalog.begin_delete_images([deleting])
    await catalog.begin_images(collection.id, [new_photo("/h", [CAT])])
    assert await _ids_listed(catalog, collection) == [both, cats[:2], cats[2:]]
    assert await _ids_listed(catalog, collection, label="cat") == [both, cats[:2], cats[2:]]
    assert await _ids_listed(catalog, collection, label="dog") == [both]
    assert await _ids_listed(catalog, collection, label="Cat") == []
    assert await _ids_listed(catalog, collection, state="failed") == [[failing.id]]
    assert await _ids_listed(catalog, collection, state="failed", label="cat") == []
    [failed] = await catalog.list_images(
        collection.id, state="failed", label=None, after=0, limit=500
    )
    assert (failed.path, failed.error) == ("/f", "bad")
    [image] = await catalog.list_images(
        collection.id, state="indexed", label="dog", after=both[0], limit=1
    )
    assert image == (await catalog.images_by_id(both))[1]


async def test_a_page_of_photos_is_found_by_an_index_and_sorts_nothing(on_sqlite: Catalog) -> None:
    collection = await ensure(on_sqlite)
    statements: list[tuple[str, Any]] = []
    sa.event.listen(
        on_sqlite._database.engine.sync_engine,
        "before_cursor_execute",
        lambda _c, _cursor, statement, values, *_: statements.append((statement, values)),
    )
    for label in (None, "cat"):
        await on_sqlite.list_images(collection.id, state="indexed", label=label, after=5, limit=9)
    [(by_state, first), (by_label, second)] = [
        (statement, values) for statement, values in statements if "SELECT images" in statement
    ]
    plans = []
    async with on_sqlite._database.engine.connect() as connection:
        for statement, values in ((by_state, first), (by_label, second)):
            rows = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)
            plans.append("; ".join(row.detail for row in rows))
    assert "images_by_state (collection_id=? AND state=? AND rowid>?)" in plans[0]
    assert "TEMP B-TREE" not in plans[0]
    assert "objects_by_label (label=? AND image_id>?)" in plans[1]


async def test_photos_may_be_deleted_while_they_are_paged_through(catalog: Catalog) -> None:
    collection = await ensure(catalog)
    ids = await index(catalog, collection, [f"/{i}" for i in range(1050)], [])
    seen: list[int] = []
    async for page in catalog.images(collection.id, ["indexed"]):
        seen += [image.id for image in page]
        await catalog.begin_delete_images([image.id for image in page])
        await catalog.finish_delete_images([image.id for image in page])
    assert seen == sorted(ids)
    assert await all_images(catalog, collection) == []


async def test_places_are_those_of_indexed_photos_alone(catalog: Catalog) -> None:
    collection = await ensure(catalog)
    paths = ["/indexed", "/pending", "/failed", "/deleting"]
    stored = await catalog.begin_images(collection.id, [new_photo(path, [CAT]) for path in paths])
    objects = [object_id for image in stored for object_id in image.object_ids]
    finished = [stored[0], stored[2], stored[3]]
    await catalog.finish_images(finished, {stored[2].id: "bad"})
    await catalog.begin_delete_images([stored[3].id])
    places = await catalog.places([*objects, 10**9])
    assert list(places) == [objects[0]]
    place = places[objects[0]]
    assert (place.image_id, place.path, place.label) == (stored[0].id, "/indexed", "cat")
    assert (place.score, place.box) == (0.75, (1.0, 2.0, 30.5, 40.25))
    assert (place.sha256, place.width, place.height) == ("cd" * 32, 640, 480)
    assert await catalog.collections_of_objects([*objects, 10**9]) == {objects[0]: collection.id}
    assert await catalog.object_ids(collection.id) == {objects[0]}


async def test_labels_are_those_of_the_collections_indexed_photos_to_the_letter(
    catalog: Catalog,
) -> None:
    one, two = await ensure(catalog, "one"), await ensure(catalog, "two")
    labels = ["cat", "cat ", "Dog", "é", "it's", '" or 1=1 --', ""]
    await index(catalog, one, ["/a", "/b"], [NewObject(label, 0.5, CAT.box) for label in labels])
    await index(catalog, two, ["/a"], [NewObject("bus", 0.5, CAT.box)])
    hidden = [NewObject("hidden", 0.5, CAT.box)]
    await catalog.begin_images(one.id, [new_photo("/pending", hidden)])
    others = ["bus", "hidden", "Cat", "dog", "e\u0301", "e", "it", " cat", "cat  ", "%", "' or '"]
    assert await catalog.labels_among(one.id, [*others, *labels]) == set(labels)
    assert await catalog.labels_among(one.id, ["cat "]) == {"cat "}
    assert await catalog.labels_among(two.id, labels) == set()
    assert await catalog.labels_among(two.id, ["bus"]) == {"bus"}
    assert await catalog.labels_among(one.id, []) == set()


async def test_the_first_key_that_is_indexed_wins(catalog: Catalog) -> None:
    collection = await ensure(catalog)
    await index(catalog, collection, ["/a", "/b"], [])
    keys = [path_key(path) for path in ("/missing", "/b", "/a")]
    found = await catalog.indexed_image(keys)
    assert found is not None
    assert found.path == "/b"


async def test_a_photo_of_any_collection_is_found_by_its_key(catalog: Catalog) -> None:
    one, two = await ensure(catalog, "one"), await ensure(catalog, "two")
    [in_one] = await index(catalog, one, ["/a"], [])
    [in_two] = await index(catalog, two, ["/a"], [])
    await catalog.begin_delete_images([in_one])
    found = await catalog.indexed_image([path_key("/a")])
    assert found is not None
    assert found.id == in_two


async def test_the_objects_of_photos_come_in_their_order(catalog: Catalog) -> None:
    collection = await ensure(catalog)
    several = [NewObject(f"label {i}", i / 10, (i, i, i + 1, i + 1)) for i in range(4)]
    ids = await index(catalog, collection, ["/a", "/b"], several)
    [pending] = await catalog.begin_images(collection.id, [new_photo("/pending")])
    found = await catalog.objects_of_images([ids[1], pending.id, ids[0]])
    assert set(found) == set(ids)
    for places in found.values():
        assert [place.label for place in places] == [some.label for some in several]
    assert {place.path for place in found[ids[0]]} == {"/a"}
    assert set(await catalog.object_ids_of_images([pending.id, ids[0]])) == {
        *pending.object_ids,
        *(place.id for place in found[ids[0]]),
    }


async def test_photos_are_found_by_their_ids_in_any_state(catalog: Catalog) -> None:
    collection = await ensure(catalog)
    ids = await index(catalog, collection, [f"/{i}" for i in range(600)], [])
    [pending] = await catalog.begin_images(collection.id, [new_photo("/pending")])
    found = await catalog.images_by_id([*reversed(ids), pending.id, 10**9])
    assert [image.id for image in found] == [*ids, pending.id]
    assert (found[0].path, found[-1].state) == ("/0", "pending")


async def test_numbers_come_back_as_they_were_put_in(catalog: Catalog) -> None:
    collection = await ensure(catalog)
    numbers = (0.1, 1 / 3, 2**53 - 1.0, 5e-324, 1.7976931348623157e308, 0.1 + 0.2, -0.0, 123456.789)
    objects = [NewObject("x", number, (number, -number, number / 7, 1.0)) for number in numbers]
    [image_id] = await index(catalog, collection, ["/a"], objects)
    [places] = (await catalog.objects_of_images([image_id])).values()
    assert [(place.score, place.box) for place in places] == [
        (found.score, found.box) for found in objects
    ]


# Paths


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("/a.jpg", "/A.jpg"),
        ("/a.jpg", "/a.jpg "),
        ("/a.jpg", "/a.jpg\n"),
        ("/é.jpg", "/e\u0301.jpg"),
        ("/ß.jpg", "/ss.jpg"),
        ("/a%20b.jpg", "/a b.jpg"),
        ("/\N{DIGIT ONE}.jpg", "/\N{SUPERSCRIPT ONE}.jpg"),
        ("/\N{PILE OF POO}.jpg", "/\N{CAT FACE}.jpg"),
    ],
)
async def test_paths_that_databases_like_to_confuse_are_two_photos(
    catalog: Catalog, one: str, other: str
) -> None:
    collection = await ensure(catalog)
    await index(catalog, collection, [one, other], [CAT])
    assert [image.path for image in await all_images(catalog, collection)] == [one, other]
    known = await catalog.images_by_key(collection.id, [path_key(one), path_key(other)])
    assert {image.path for image in known.values()} == {one, other}


async def test_a_path_as_long_as_a_file_system_allows_is_kept(catalog: Catalog) -> None:
    collection = await ensure(catalog)
    path = "/" + "ü/" * 1300 + 'photo\'s "name"; -- %_\\.jpg'
    await index(catalog, collection, [path], [CAT])
    found = await catalog.indexed_image([path_key(path)])
    assert found is not None
    assert found.path == path


@settings(deadline=None)
@given(one=st.text(), other=st.text())
def test_only_equal_paths_have_equal_keys(one: str, other: str) -> None:
    one, other = (text.encode("utf-8", "replace").decode() for text in (one, other))
    assert (path_key(one) == path_key(other)) == (one == other)
    assert len(path_key(one)) == 64


def test_a_path_that_is_not_utf_8_has_a_key_of_its_bytes() -> None:
    latin = os.fsdecode(b"/caf\xe9.jpg")
    assert path_key(latin) != path_key("/café.jpg")
    assert len(path_key(latin)) == 64


async def test_a_path_that_is_not_utf_8_is_kept_escaped_under_the_key_of_its_bytes(
    catalog: Catalog,
) -> None:
    collection = await ensure(catalog)
    latin = os.fsdecode(b"/caf\xe9.jpg")
    shown = "/caf\\xe9.jpg"
    new = NewImage(shown, path_key(latin), "", 1, 1, error="rename it")
    [stored] = await catalog.begin_images(collection.id, [new])
    await catalog.finish_images([stored], {stored.id: "rename it"})
    [image] = (await catalog.images_by_key(collection.id, [path_key(latin)])).values()
    assert (image.path, image.state) == (shown, "failed")


async def test_a_photo_that_cannot_be_stored_takes_the_whole_batch_with_it(
    catalog: Catalog,
) -> None:
    collection = await ensure(catalog)
    surrogate = os.fsdecode(b"/\xff.jpg")
    with pytest.raises(UnicodeEncodeError):
        await catalog.begin_images(collection.id, [new_photo("/good"), new_photo(surrogate)])
    assert await all_images(catalog, collection) == []
    await index(catalog, collection, ["/good"], [CAT])
    assert await catalog.count_images(collection.id) == 1


# Loads


async def test_a_load_runs_until_it_is_ended(catalog: Catalog) -> None:
    collection = await ensure(catalog)
    first = await catalog.begin_load(collection.id, "/photos/é", prune=False)
    second = await catalog.begin_load(collection.id, "/more", prune=True)
    rows = await catalog.running_loads()
    assert [(row.id, row.root, row.prune, row.state) for row in rows] == [
        (first, "/photos/é", False, "running"),
        (second, "/more", True, "running"),
    ]
    assert rows[0].collection_id == collection.id
    await catalog.end_load(first, "done", {"total": 3, "indexed": 3})
    assert [row.id for row in await catalog.running_loads()] == [second]
    await catalog.end_load(second, "failed", {}, "the disk is full")
    assert await catalog.running_loads() == []


async def test_how_a_load_ended_is_kept(catalog: Catalog) -> None:
    collection = await ensure(catalog)
    load = await catalog.begin_load(collection.id, "/", prune=False)
    await catalog.end_load(load, "failed", {"total": 3}, "the disk is full")
    query = sa.text("SELECT state, counts, error, finished_at FROM loads")
    async with catalog._database.engine.connect() as connection:
        [row] = (await connection.execute(query)).all()
    assert tuple(row)[:3] == ("failed", '{"total": 3}', "the disk is full")
    assert row[3]


async def test_loads_are_listed_newest_first_page_by_page(catalog: Catalog) -> None:
    collection, other = await ensure(catalog), await ensure(catalog, "other")
    ids = [await catalog.begin_load(collection.id, f"/{i}", prune=False) for i in range(3)]
    more = await catalog.begin_load(other.id, "/more", prune=True)
    everything = await catalog.loads(None, before=None, limit=10)
    assert [(row.id, row.collection) for row in everything] == [
        (more, "other"),
        *((load_id, "photos") for load_id in reversed(ids)),
    ]
    assert await catalog.loads(None, before=None, limit=2) == everything[:2]
    assert await catalog.loads(None, before=ids[2], limit=2) == everything[2:]
    assert await catalog.loads(collection.id, before=None, limit=10) == everything[1:]
    assert await catalog.loads(collection.id, before=ids[0], limit=10) == []
    assert [await catalog.load(row.id) for row in everything] == everything
    assert await catalog.load(more + 1) is None
    await catalog.begin_drop(other.id)
    assert await catalog.load(more) is None
    assert await catalog.loads(None, before=None, limit=10) == everything[1:]


async def test_a_load_has_its_times_and_may_run_again_after_its_end(catalog: Catalog) -> None:
    collection = await ensure(catalog)
    begun = "2024-01-02T03:04:05.678+00:00"
    load_id = await catalog.begin_load(collection.id, "/", prune=False, started_at=begun)
    running = LoadRow(
        id=load_id,
        collection_id=collection.id,
        collection="photos",
        root="/",
        prune=False,
        state="running",
        counts={},
        error=None,
        started_at=begun,
        finished_at=None,
    )
    assert await catalog.load(load_id) == running
    ended = utc_now()
    await catalog.end_load(load_id, "failed", {"total": 2}, "no disk", finished_at=ended)
    assert await catalog.load(load_id) == replace(
        running, state="failed", counts={"total": 2}, error="no disk", finished_at=ended
    )
    await catalog.resume_load(load_id)
    assert await catalog.load(load_id) == running
    assert await catalog.running_loads() == [running]
    new_id = await catalog.begin_load(collection.id, "/", prune=False)
    new = await catalog.load(new_id)
    assert new is not None
    assert ended <= new.started_at <= utc_now()


async def test_a_load_that_is_begun_twice_with_one_token_is_one_load(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = await ensure(catalog)
    write = catalog._database.write

    async def write_twice(transaction: Any) -> Any:
        first = await write(transaction)
        assert await write(transaction) == first
        return first

    monkeypatch.setattr(catalog._database, "write", write_twice)
    load = await catalog.begin_load(collection.id, "/", prune=False)
    assert [row.id for row in await catalog.running_loads()] == [load]


# Answers


def _answer(key: str, **values: Any) -> KeptAnswer:
    return replace(KeptAnswer(key, "ab" * 32, 201, {"results": []}, utc_now()), **values)


async def test_an_answer_is_kept_as_it_was_given(catalog: Catalog) -> None:
    key = "k" * 255
    objects = [{"label": "é🐈", "score": 0.1, "box": [0.1, 2.0, 3e-9, 4], "id": 2**62}] * 300
    large = {"z": None, "a": [{"objects": objects, "more": {}}] * 64}
    answer = _answer(key, answer=large)
    assert await catalog.kept_answer(key) is None
    assert await catalog.keep_answer(answer) == answer
    kept = await catalog.kept_answer(key)
    assert kept == answer
    assert list(kept.answer) == ["z", "a"]


async def test_keys_that_databases_like_to_confuse_are_two(catalog: Catalog) -> None:
    keys = ["key", "Key", "key ", "", " "]
    for status, key in enumerate(keys):
        await catalog.keep_answer(_answer(key, status=status))
    kept = [await catalog.kept_answer(key) for key in keys]
    assert [answer and (answer.key, answer.status) for answer in kept] == [
        (key, status) for status, key in enumerate(keys)
    ]


async def test_of_many_answers_to_one_key_the_first_is_kept_and_given_to_all(
    catalog: Catalog,
) -> None:
    several = [_answer("key", fingerprint=f"{i:064x}", status=200 + i) for i in range(12)]
    given = await asyncio.gather(*map(catalog.keep_answer, several))
    kept = await catalog.kept_answer("key")
    assert kept in several
    assert given == [kept] * 12


async def test_answers_are_forgotten_by_their_age(catalog: Catalog) -> None:
    for second in range(4):
        await catalog.keep_answer(_answer(f"{second}", created_at=f"2024-01-01T00:00:0{second}"))
    for _ in range(2):
        await catalog.forget_answers("2024-01-01T00:00:02")
        kept = [await catalog.kept_answer(f"{second}") for second in range(4)]
        assert [answer is not None for answer in kept] == [False, False, True, True]
    again = _answer("0", status=409)
    assert await catalog.keep_answer(again) == again


async def test_more_answers_than_one_query_holds_are_forgotten(on_sqlite: Catalog) -> None:
    values = {"fingerprint": "", "status": 200, "answer": "{}", "created_at": "2024"}
    rows = [values | {"key_sha256": f"{i:064x}"} for i in range(501)]

    async def write(connection: AsyncConnection) -> None:
        await connection.execute(sa.insert(answers), rows)

    await on_sqlite._database.write(write)
    await on_sqlite.forget_answers("2025")
    async with on_sqlite._database.engine.connect() as connection:
        assert (await connection.execute(sa.select(answers))).all() == []


# Many at once


async def test_many_writers_at_once_lose_nothing(catalog: Catalog) -> None:
    collections = await asyncio.gather(*(ensure(catalog, f"c{i % 3}") for i in range(30)))
    assert len({collection.id for collection in collections}) == 3

    async def write(number: int) -> list[int]:
        paths = [f"/{number}/{i}" for i in range(5)]
        return await index(catalog, collections[number], paths, [CAT, DOG])

    ids = [image_id for part in await asyncio.gather(*map(write, range(30))) for image_id in part]
    assert len(set(ids)) == 150
    for collection in collections[:3]:
        assert await catalog.count_images(collection.id) == 50
        assert len(await catalog.object_ids(collection.id)) == 100


async def test_many_writers_of_one_photo_leave_one_photo(catalog: Catalog) -> None:
    collection = await ensure(catalog)

    async def write() -> tuple[int, list[int]]:
        [stored] = await catalog.begin_images(collection.id, [new_photo("/a", [CAT])])
        return stored.id, await catalog.finish_images([stored], {})

    written = await asyncio.gather(*(write() for _ in range(20)))
    [image_id] = {image_id for image_id, _ in written}
    assert [] in [undone for _, undone in written]
    assert [image.state for image in await catalog.images_by_id([image_id])] == ["indexed"]
    assert await catalog.count_images(collection.id) == 1
    assert len(await catalog.object_ids(collection.id)) == 1


async def test_readers_go_on_while_a_write_is_under_way_and_see_nothing_of_it(
    on_sqlite: Catalog, tmp_path: Path
) -> None:
    catalog = on_sqlite
    collection = await ensure(catalog)
    await index(catalog, collection, ["/a"], [CAT])
    writer = sqlite3.connect(tmp_path / "catalog.db", isolation_level=None)
    try:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("UPDATE images SET state = 'deleting'")
        assert await catalog.count_images(collection.id) == 1
        assert await catalog.indexed_image([path_key("/a")]) is not None
        waiting = asyncio.ensure_future(catalog.begin_load(collection.id, "/", prune=False))
        assert await catalog.running_loads() == []
        writer.execute("COMMIT")
        await waiting
    finally:
        writer.close()
    assert await catalog.count_images(collection.id) == 0
    assert len(await catalog.running_loads()) == 1


async def test_a_catalog_that_can_be_read_answers_a_ping(catalog: Catalog) -> None:
    await catalog.ping()


async def test_writing_goes_on_while_others_are_kept_out(catalog: Catalog) -> None:
    async with catalog.exclusive():
        collection = await ensure(catalog)
        await index(catalog, collection, ["/a"], [CAT])
    async with catalog.exclusive() as ensure_held:
        await ensure_held()
        assert await catalog.count_images(collection.id) == 1


async def test_a_fault_in_what_is_stored_is_no_outage(catalog: Catalog) -> None:
    with pytest.raises(ServiceError, match="refused") as caught:
        await catalog.begin_images(10**9, [new_photo("/of/no/collection")])
    assert not isinstance(caught.value, EngineUnavailable)


async def test_a_writer_of_another_process_that_does_not_end_is_an_outage(tmp_path: Path) -> None:
    catalog = await Catalog.open_sqlite(tmp_path, timeout=1)
    collection = await ensure(catalog)
    writer = sqlite3.connect(tmp_path / "catalog.db", isolation_level=None)
    try:
        writer.execute("BEGIN IMMEDIATE")
        start = time.monotonic()
        with pytest.raises(EngineUnavailable, match=r"SQLite \(DATA_DIR\) .*try again"):
            await index(catalog, collection, ["/a"], [CAT])
        assert time.monotonic() - start < 3
        with pytest.raises(EngineUnavailable), deadline(0.1):
            await index(catalog, collection, ["/a"], [CAT])
    finally:
        writer.close()
    await index(catalog, collection, ["/a"], [CAT])
    await catalog.close()


async def test_a_full_disk_is_an_outage_and_loses_nothing(on_sqlite: Catalog) -> None:
    collection = await ensure(on_sqlite)
    await index(on_sqlite, collection, ["/a"], [CAT])
    limits: list[int] = []

    def limit(connection: Any, _record: object, _proxy: object) -> None:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA max_page_count = {limits[-1]}")
        cursor.close()

    sa.event.listen(on_sqlite._database.engine.sync_engine, "checkout", limit)
    limits.append(1)  # SQLite takes it for the pages that there are
    with pytest.raises(EngineUnavailable, match=r"SQLite \(DATA_DIR\) cannot at the moment"):
        await index(on_sqlite, collection, [f"/{i}" for i in range(1000)], [CAT])
    assert await on_sqlite.count_images(collection.id) == 1
    limits.append(2**30)
    await index(on_sqlite, collection, [f"/{i}" for i in range(1000)], [CAT])


async def test_a_cancelled_write_is_not_done_and_blocks_nobody(catalog: Catalog) -> None:
    collection = await ensure(catalog)
    for delay in (0.0, 0.001, 0.002, 0.005, 0.01, 0.02):
        photos = [new_photo(f"/{delay}/{i}", [CAT] * 4) for i in range(200)]
        task = asyncio.create_task(catalog.begin_images(collection.id, photos))
        await asyncio.sleep(delay)
        if task.cancel():  # it has not ended yet
            with pytest.raises(asyncio.CancelledError):
                await task
        # All of it or nothing: the cancellation may have come after the commit.
        keys = [photo.path_key for photo in photos]
        assert len(await catalog.images_by_key(collection.id, keys)) in (0, 200)
        await index(catalog, collection, [f"/{delay}/{i}" for i in range(200)], [CAT])


# Files, restarts and crashes


async def test_a_cancelled_write_lets_go_while_its_frames_are_still_referred_to(
    tmp_path: Path,
) -> None:
    catalog = await Catalog.open_sqlite(tmp_path, timeout=3)
    begun = asyncio.Event()
    rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 1000000)"

    async def write(connection: AsyncConnection) -> None:
        begun.set()
        # The lock is held, and a cursor has more rows to give, when the cancellation has come.
        await connection.execute(sa.text(f"{rows} SELECT i FROM n WHERE i % 500000 = 0"))

    writing = asyncio.create_task(catalog._database.write(write))
    await begun.wait()
    await asyncio.sleep(0.02)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError) as cancelled:
        await writing
    await ensure(catalog)
    assert cancelled.tb is not None  # as a debugger, or a cycle of references, may keep it
    await catalog.close()


async def test_everything_is_there_after_reopening(open_catalog: OpenCatalog) -> None:
    catalog = await open_catalog()
    collection = await ensure(catalog)
    ids = await index(catalog, collection, ["/a", "/b"], [CAT, DOG])
    objects = await catalog.object_ids(collection.id)
    load = await catalog.begin_load(collection.id, "/", prune=True)
    await catalog.close()
    catalog = await open_catalog()
    try:
        assert await catalog.collection("photos") == collection
        assert [image.id for image in await all_images(catalog, collection)] == ids
        assert await catalog.object_ids(collection.id) == objects
        assert [row.id for row in await catalog.running_loads()] == [load]
    finally:
        await catalog.close()


async def test_what_was_not_finished_is_still_pending_or_deleting_after_a_restart(
    open_catalog: OpenCatalog,
) -> None:
    catalog = await open_catalog()
    collection, dropping = await ensure(catalog), await ensure(catalog, "dropping")
    [indexed, deleting] = await index(catalog, collection, ["/indexed", "/deleting"], [CAT])
    [pending] = await catalog.begin_images(collection.id, [new_photo("/pending")])
    await catalog.begin_delete_images([deleting])
    await catalog.begin_drop(dropping.id)
    await catalog.close()
    catalog = await open_catalog()
    try:
        states = {image.id: image.state for image in await all_images(catalog, collection)}
        assert states == {indexed: "indexed", deleting: "deleting", pending.id: "pending"}
        assert [row.id for row in await catalog.collections("deleting")] == [dropping.id]
        # One that is not marked has come again since.
        await catalog.finish_delete_images([pending.id, deleting])
        await catalog.finish_drop(dropping.id)
        left = [image.id for image in await all_images(catalog, collection)]
        assert left == [indexed, pending.id]
        assert await catalog.collections("deleting") == []
    finally:
        await catalog.close()


async def test_what_was_committed_survives_without_closing(tmp_path: Path) -> None:
    catalog = await Catalog.open_sqlite(tmp_path)
    collection = await ensure(catalog)
    await index(catalog, collection, ["/a"], [CAT])
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in tmp_path.glob("catalog.db*"):  # as a crash would leave them, the log unmerged
        (copy / file.name).write_bytes(file.read_bytes())
    await catalog.close()
    survivor = await Catalog.open_sqlite(copy)
    try:
        assert await survivor.count_images(collection.id) == 1
    finally:
        await survivor.close()


@pytest.mark.parametrize(
    "content",
    [b"this is no database at all" * 100, b"SQLite format 3\0" + b"\xff" * 8000],
    ids=["text", "header"],
)
async def test_a_damaged_file_is_refused_by_its_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "catalog.db").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"catalog\.db cannot be opened: \S+"):
        await Catalog.open_sqlite(tmp_path)


async def test_a_file_that_cannot_be_opened_is_refused_by_its_name(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    (tmp_path / "catalog.db").mkdir()
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ConfigurationError, match=r"catalog\.db cannot be opened: \S+"):
            await Catalog.open_sqlite(folder)
    # The driver's thread ends after its error, and must find the event loop still open.
    for thread in set(threading.enumerate()) - before:
        if not thread.name.startswith("asyncio"):  # a pool's own would be joined by itself
            await asyncio.to_thread(thread.join)


async def test_an_acknowledged_write_is_on_the_disk_not_in_a_buffer(
    on_sqlite: Catalog, tmp_path: Path
) -> None:
    catalog = on_sqlite
    await ensure(catalog)
    async with catalog._database.engine.connect() as connection:
        mode = (await connection.exec_driver_sql("PRAGMA journal_mode")).scalar_one()
        synchronous = (await connection.exec_driver_sql("PRAGMA synchronous")).scalar_one()
        foreign_keys = (await connection.exec_driver_sql("PRAGMA foreign_keys")).scalar_one()
    assert (mode, synchronous, foreign_keys) == ("wal", 2, 1)
