"""Chunks of loads that several processes share: who has one, for how long, and what comes of it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import pytest

from backend.storage.catalog import Catalog, Collection
from backend.storage.reasons import FAILURES_KEPT
from backend.storage.shares import ChunkCounts, ListedPhoto, NewShare, ShareTable
from tests.engines.mariadb import MariaDBProcess
from tests.storage.catalogs import ensure, mysql_database

_LONG: Final = 60.0
_MIDDLING: Final = 2.0
_SHORT: Final = 0.2
_PHOTOS: Final = [ListedPhoto(f"/photos/{number}.jpg", number, 7, None) for number in range(12)]
_NEW: Final = NewShare("/photos", False, 12, 3, "ab" * 32)
_THEN: Final = "2026-01-01T00:00:00.000+00:00"
_SOME: Final = ChunkCounts(indexed=2, unchanged=1, failed=1, objects=5)


@pytest.fixture
async def catalog(mysql_server: MariaDBProcess) -> AsyncIterator[Catalog]:
    """An empty catalog."""
    with mysql_database(mysql_server) as options:
        opened = await Catalog.open_mysql(options, timeout=10)
        yield opened
        await opened.close()


@pytest.fixture
def shares(catalog: Catalog) -> ShareTable:
    """Its shared loads."""
    assert catalog.shares is not None
    return catalog.shares


@pytest.fixture
async def collection(catalog: Catalog) -> Collection:
    """A collection to load into."""
    return await ensure(catalog)


async def _begin(shares: ShareTable, collection: Collection, new: NewShare = _NEW) -> int:
    load_id, is_new = await shares.begin(collection.id, new, _THEN, owner="a", seconds=_LONG)
    assert is_new
    return load_id


@pytest.fixture
async def load_id(shares: ShareTable, collection: Collection) -> int:
    """A load of three chunks of four photos, which nobody has leased."""
    begun = await _begin(shares, collection)
    parts = [_PHOTOS[start : start + 4] for start in (0, 4, 8)]
    assert await shares.add_chunks(begun, "a", 0, parts)
    assert await shares.finish_listing(begun, "a")
    return begun


async def test_chunks_go_each_to_one_process_and_in_order(shares: ShareTable, load_id: int) -> None:
    chunks = [await shares.lease(load_id, owner, _LONG) for owner in "abca"]
    assert [chunk and chunk.photos for chunk in chunks] == [
        *(_PHOTOS[start : start + 4] for start in (0, 4, 8)),
        None,
    ]
    assert all(chunk is None or chunk.lost_by is None for chunk in chunks)


async def test_processes_that_ask_at_once_get_different_chunks(
    shares: ShareTable, collection: Collection
) -> None:
    load_id = await _begin(shares, collection)
    assert await shares.add_chunks(load_id, "a", 0, [_PHOTOS[:1]] * 24)
    assert await shares.finish_listing(load_id, "a")
    found: list[int] = []

    async def work(owner: str) -> None:
        while chunk := await shares.lease(load_id, owner, _LONG):
            found.append(chunk.id)

    await asyncio.gather(*(work(owner) for owner in "abcdef"))
    assert len(found) == len(set(found)) == 24


async def test_a_chunk_whose_owner_says_nothing_is_anybodys(
    shares: ShareTable, load_id: int
) -> None:
    first = await shares.lease(load_id, "a", _SHORT)
    assert first is not None
    await shares.renew("a", _SHORT, {first.id: (_SOME, None)}, [])
    await asyncio.sleep(2 * _SHORT)
    taken = await shares.lease(load_id, "b", _LONG)
    assert taken is not None
    assert (taken.id, taken.lost_by) == (first.id, "a")
    # What the one before has counted is not counted twice: the new owner looks at all photos.
    [share] = await shares.running()
    assert share.counts == {"total": 12, "passed_over": 3, **vars(ChunkCounts())}
    assert not await shares.owns(first.id, "a")
    assert await shares.owns(first.id, "b")
    assert await shares.renew("a", _LONG, {first.id: (_SOME, None)}, []) == (set(), set())
    assert not await shares.complete(first.id, "a", _SOME, [])
    assert await shares.complete(first.id, "b", _SOME, [])


async def test_a_chunk_whose_owner_is_at_work_stays_its_own(
    shares: ShareTable, load_id: int
) -> None:
    chunks = [await shares.lease(load_id, "a", _MIDDLING) for _ in range(3)]
    ids = [chunk.id for chunk in chunks if chunk is not None]
    for _ in range(5):
        await asyncio.sleep(_MIDDLING / 4)
        alive, _ = await shares.renew("a", _MIDDLING, dict.fromkeys(ids, (_SOME, None)), [])
        assert alive == set(ids)
        assert await shares.lease(load_id, "b", _LONG) is None


async def test_what_a_process_gives_back_is_anybodys_at_once(
    shares: ShareTable, load_id: int
) -> None:
    mine = await shares.lease(load_id, "a", _LONG)
    other = await shares.lease(load_id, "b", _LONG)
    assert mine is not None
    assert other is not None
    await shares.release("a")
    again = await shares.lease(load_id, "b", _LONG)
    assert again is not None
    assert (again.id, again.lost_by) == (mine.id, None)
    assert await shares.owns(other.id, "b")


async def test_all_see_how_far_a_load_has_come_and_who_waits(
    shares: ShareTable, load_id: int
) -> None:
    first, second = [await shares.lease(load_id, owner, _LONG) for owner in "ab"]
    assert first is not None
    assert second is not None
    assert await shares.complete(first.id, "a", _SOME, [("/photos/1.jpg", "it is grey")])
    await shares.renew("b", _LONG, {second.id: (ChunkCounts(indexed=1), "Milvus")}, [])
    [share] = await shares.running()
    assert (share.is_listed, share.left, share.free, share.is_free) == (True, 2, 1, True)
    assert share.waiting_for == "Milvus"
    assert (share.counts["indexed"], share.counts["failed"], share.counts["objects"]) == (3, 1, 5)
    assert await shares.failures(load_id) == [("/photos/1.jpg", "it is grey")]
    assert [photo async for page in shares.photos(load_id) for photo in page] == _PHOTOS


async def test_a_chunk_is_ended_once_though_the_answer_was_lost(
    shares: ShareTable, load_id: int
) -> None:
    chunk = await shares.lease(load_id, "a", _LONG)
    assert chunk is not None
    for _ in range(2):
        assert await shares.complete(chunk.id, "a", _SOME, [])
    [share] = await shares.running()
    assert (share.counts["indexed"], share.left) == (2, 2)


async def test_a_load_ends_with_what_its_chunks_have_counted(
    shares: ShareTable, catalog: Catalog, load_id: int
) -> None:
    for number in range(3):
        chunk = await shares.lease(load_id, "a", _LONG)
        assert chunk is not None
        assert await shares.complete(chunk.id, "a", _SOME, [(f"/{number}", "it is grey")])
    for state in ("done", "failed"):  # the second comes too late
        await shares.end(load_id, state, _THEN, removed=2)
    assert await shares.running() == []
    row = await catalog.load(load_id)
    assert row is not None
    assert (row.state, row.finished_at) == ("done", _THEN)
    counted = {"indexed": 6, "unchanged": 3, "failed": 3, "objects": 15}
    assert row.counts == {"total": 12, "passed_over": 3, "removed": 2, **counted}
    assert await catalog.load_failures(load_id) == [(f"/{n}", "it is grey") for n in range(3)]
    assert [page async for page in shares.photos(load_id)] == []


async def test_nothing_of_a_load_that_was_cancelled_is_anybodys(
    shares: ShareTable, load_id: int
) -> None:
    mine = await shares.lease(load_id, "a", _LONG)
    assert mine is not None
    await shares.end(load_id, "cancelled", _THEN)
    assert not await shares.owns(mine.id, "a")
    assert not await shares.complete(mine.id, "a", _SOME, [])
    assert await shares.lease(load_id, "b", _LONG) is None
    assert not await shares.claim(load_id, "b", _LONG)


async def test_the_same_photos_at_the_same_time_are_one_load(
    shares: ShareTable, collection: Collection
) -> None:
    begun = await asyncio.gather(
        *(
            shares.begin(collection.id, _NEW, _THEN, owner=owner, seconds=_LONG)
            for owner in "abcdef"
        )
    )
    assert len({load_id for load_id, _ in begun}) == 1
    assert [is_new for _, is_new in begun].count(True) == 1
    other = NewShare("/photos", False, 12, 3, "cd" * 32)
    more, is_new = await shares.begin(collection.id, other, _THEN, owner="a", seconds=_LONG)
    assert is_new
    assert more != begun[0][0]


async def test_a_load_is_listed_again_where_who_began_it_has_died(
    shares: ShareTable, collection: Collection
) -> None:
    load_id = await _begin(shares, collection)
    assert await shares.add_chunks(load_id, "a", 0, [_PHOTOS[:4]])
    assert await shares.lease(load_id, "b", _LONG) is None  # not before all of them are there
    assert not await shares.claim(load_id, "b", _LONG)
    assert await shares.claim(load_id, "a", _SHORT)  # from here on it says nothing
    await asyncio.sleep(2 * _SHORT)
    assert await shares.claim(load_id, "b", _LONG)
    assert not await shares.claim(load_id, "c", _LONG)
    assert await shares.list_again(load_id, _NEW, owner="b", seconds=_LONG)
    assert not await shares.add_chunks(load_id, "a", 1, [_PHOTOS[4:]])  # too late
    assert not await shares.finish_listing(load_id, "a")
    for _ in range(2):  # the first answer was lost
        assert await shares.add_chunks(load_id, "b", 0, [_PHOTOS[:6], _PHOTOS[6:]])
    for _ in range(2):
        assert await shares.finish_listing(load_id, "b")
    [share] = await shares.running()
    assert (share.is_listed, share.left) == (True, 2)
    assert [photo async for page in shares.photos(load_id) for photo in page] == _PHOTOS


async def test_a_load_that_has_ended_runs_again_without_what_it_was(
    shares: ShareTable, catalog: Catalog, load_id: int
) -> None:
    assert not await shares.begin_again(load_id, _NEW, owner="b", seconds=_LONG)  # it runs
    await shares.end(load_id, "failed", _THEN, error="the disk is full")
    for _ in range(2):
        assert await shares.begin_again(load_id, _NEW, owner="b", seconds=_LONG)
    row = await catalog.load(load_id)
    assert row is not None
    assert (row.state, row.error, row.finished_at) == ("running", None, None)
    assert row.counts == {"total": 12, "passed_over": 3}


async def test_a_load_keeps_its_first_failures_and_names_of_any_bytes(
    shares: ShareTable, catalog: Catalog, collection: Collection
) -> None:
    load_id = await _begin(shares, collection)
    odd = ListedPhoto("/photos/\udcff.jpg", 0, 0, "the file's name is not valid UTF-8: rename it")
    assert await shares.add_chunks(load_id, "a", 0, [[odd], _PHOTOS])
    assert await shares.finish_listing(load_id, "a")
    for number in range(2):
        chunk = await shares.lease(load_id, "a", _LONG)
        assert chunk is not None
        if not number:
            assert chunk.photos == [odd]
        failures = [(f"/{number}/{each}", "x" * 5000) for each in range(FAILURES_KEPT)]
        assert await shares.complete(chunk.id, "a", _SOME, failures)
    await shares.end(load_id, "done", _THEN)
    kept = await catalog.load_failures(load_id)
    assert [path for path, _ in kept] == [f"/0/{each}" for each in range(FAILURES_KEPT)]
    assert {len(reason) for _, reason in kept} == {4000}


async def test_a_collection_goes_with_its_loads_chunks(
    shares: ShareTable, catalog: Catalog, collection: Collection, load_id: int
) -> None:
    await catalog.begin_drop(collection.id)
    await catalog.finish_drop(collection.id)
    assert await shares.running() == []
    assert [page async for page in shares.photos(load_id)] == []
