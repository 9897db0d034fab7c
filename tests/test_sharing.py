"""Backends that share engines do loads together: what one has begun all work on, see and end."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import pytest

from backend import sharing
from backend.app import Services, open_services
from backend.checking import check_collections
from backend.errors import Conflict, Unavailable
from backend.loads import LoadCounts
from backend.settings import Settings
from backend.storage.shares import ListedPhoto, NewShare, ShareTable
from tests.photos import draw_photo, encode, write_photos

_THEN: Final = "2026-01-01T00:00:00.000+00:00"

pytestmark = pytest.mark.parametrize("combination", ["milvus+mysql"], indirect=True)


@pytest.fixture
async def backends(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[list[Services]]:
    """Two that take part in loads, of chunks of four photos, one photo at a time."""
    monkeypatch.setattr(sharing, "_CHUNK_PHOTOS", 4)
    async with AsyncExitStack() as stack:
        opened = []
        for name in ("one", "two"):
            own = {
                "data_dir": tmp_path / name,
                "upload_path": tmp_path / "uploads",
                # So that a load lasts until all have seen it, and some of it is done.
                "load_concurrency": 1,
            }
            services = await stack.enter_async_context(
                open_services(settings.model_copy(update=own))
            )
            await services.indexer.resume_loads()
            opened.append(services)
        yield opened


def _shares(services: Services) -> ShareTable:
    assert services.catalog.shares is not None
    return services.catalog.shares


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.02)


async def _is_whole(services: Services, photos: int) -> None:
    """Every photo is there once, and catalog and vectors agree."""
    [report] = await check_collections(
        services.catalog, services.vectors, services.analyzer.embedder, services.writer
    )
    assert (report.missing, report.orphaned) == (set(), set())
    paths = [
        image.path
        async for page in services.catalog.images(report.collection.id, ["indexed"])
        for image in page
    ]
    assert len(paths) == len(set(paths)) == photos


async def test_a_load_is_done_by_all_and_all_tell_of_it(
    backends: list[Services], tmp_path: Path
) -> None:
    one, two = backends
    folder = tmp_path / "photos"
    write_photos(folder, 40)
    (folder / "bad.jpg").write_bytes(b"no photo")
    load = await one.indexer.start_load(str(folder), "t")
    await two.indexer.refresh()
    other = two.indexer.active_load(load.id)
    assert other is not None
    assert other is not load
    owners: set[str] = set()
    while load.state == "running":
        async with one.catalog._database.engine.connect() as connection:
            rows = await connection.exec_driver_sql("SELECT DISTINCT owner FROM load_chunks")
            owners.update(row.owner for row in rows if row.owner is not None)
        await asyncio.sleep(0.01)
    await load.wait()
    assert len(owners) == 2
    await asyncio.wait_for(other.wait(), 5)
    for seen in (load, other):
        assert (seen.state, seen.counts.total, seen.counts.indexed) == ("done", 41, 40)
        assert [failure.path for failure in seen.failures] == [str(folder / "bad.jpg")]
    for services in backends:
        assert services.indexer.progress() == (41, 41)
        row = await services.catalog.load(load.id)
        assert row is not None
        assert LoadCounts.of(row.counts) == load.counts
        assert [path for path, _ in await services.catalog.load_failures(load.id)] == [
            str(folder / "bad.jpg")
        ]
    await _is_whole(two, 40)


async def test_a_load_that_ended_before_another_looked_is_told_of_there(
    backends: list[Services], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = backends
    await two.indexer.refresh()
    monkeypatch.setattr(sharing, "_IDLE_SECONDS", 3600)
    await asyncio.sleep(1.1)  # until it looks only where it is asked
    for count in (1, 2):
        folder = tmp_path / str(count)
        write_photos(folder, count)
        (folder / "bad.jpg").write_bytes(b"no photo")
        await (await one.indexer.start_load(str(folder), "t")).wait()
    assert two.indexer.progress() == (0, 0)
    await two.indexer.refresh()
    assert two.indexer.progress() == one.indexer.progress() == (3, 3)


async def test_what_one_has_acknowledged_the_others_find_at_once(
    backends: list[Services],
) -> None:
    one, two = backends
    for seed in range(6):
        photo = encode(draw_photo(seed))
        added = await one.indexer.add_photo(photo, "t")
        [hit] = await two.searcher.search(photo, "t", 1)
        assert (hit.object.image_id, round(hit.distance, 4)) == (added.id, 0)


async def test_the_same_folder_is_one_load_wherever_it_is_asked_for(
    backends: list[Services], tmp_path: Path
) -> None:
    write_photos(tmp_path / "photos", 12)
    loads = await asyncio.gather(
        *(each.indexer.start_load(str(tmp_path / "photos"), "t") for each in backends)
    )
    assert loads[0].id == loads[1].id
    await asyncio.gather(*(load.wait() for load in loads))
    again = await backends[1].indexer.start_load(str(tmp_path / "photos"), "t")
    await again.wait()
    assert again.id != loads[0].id
    assert (again.counts.unchanged, again.counts.indexed) == (12, 0)
    await _is_whole(backends[0], 12)


async def test_a_chunk_that_its_owner_has_died_with_is_taken_over(
    backends: list[Services], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, _ = backends
    photos = write_photos(tmp_path / "photos", 8)
    shares = _shares(one)
    collection, _ = await one.indexer.make_collection("t")
    listed = [
        ListedPhoto(str(path), (stat := path.stat()).st_size, stat.st_mtime_ns, None)
        for path in photos
    ]
    # As one that is killed leaves it.
    new = NewShare(str(tmp_path / "photos"), False, 8, 0, "ab" * 32)
    load_id, _ = await shares.begin(collection.id, new, _THEN, owner="dead", seconds=1)
    assert await shares.add_chunks(load_id, "dead", 0, [listed])
    assert await shares.finish_listing(load_id, "dead")
    assert await shares.lease(load_id, "dead", 1) is not None
    await _until(lambda: one.indexer.active_load(load_id) is not None)
    load = one.indexer.active_load(load_id)
    assert load is not None
    await asyncio.wait_for(load.wait(), 20)
    assert (load.state, load.counts.indexed) == ("done", 8)
    assert "load.chunk_taken_over" in capsys.readouterr().out
    await _is_whole(one, 8)


async def test_a_load_that_nobody_has_listed_to_the_end_is_listed_again(
    backends: list[Services], tmp_path: Path
) -> None:
    one, two = backends
    write_photos(tmp_path / "photos", 8)
    collection, _ = await one.indexer.make_collection("t")
    new = NewShare(str(tmp_path / "photos"), False, 99, 0, "ab" * 32)
    load_id, _ = await _shares(one).begin(collection.id, new, _THEN, owner="dead", seconds=1)
    await two.indexer.refresh()
    load = two.indexer.active_load(load_id)
    assert load is not None
    await asyncio.wait_for(load.wait(), 20)
    assert (load.state, load.counts.total, load.counts.indexed) == ("done", 8, 8)
    await _is_whole(one, 8)


async def test_one_that_has_lost_its_chunk_writes_nothing_more_of_it(
    backends: list[Services], tmp_path: Path
) -> None:
    one, two = backends
    write_photos(tmp_path / "photos", 24)
    load = await one.indexer.start_load(str(tmp_path / "photos"), "t")
    # All that is leased becomes somebody else's, who does nothing about it.
    for _ in range(20):
        async with one.catalog._database.engine.connect() as connection:
            await connection.exec_driver_sql(
                "UPDATE load_chunks SET owner = 'thief', leased_until = UNIX_TIMESTAMP() + 1"
                " WHERE owner IS NOT NULL AND is_done = 0"
            )
            await connection.commit()
        await asyncio.sleep(0.02)
    await asyncio.wait_for(load.wait(), 30)
    assert load.counts.indexed + load.counts.unchanged == 24
    await _is_whole(two, 24)


async def test_a_load_is_cancelled_from_any_and_nothing_of_it_is_written_any_more(
    backends: list[Services], tmp_path: Path
) -> None:
    one, two = backends
    write_photos(tmp_path / "photos", 40)
    load = await one.indexer.start_load(str(tmp_path / "photos"), "t")
    await _until(lambda: load.counts.indexed > 0)
    await two.indexer.refresh()
    other = two.indexer.active_load(load.id)
    assert other is not None
    await two.indexer.cancel_load(other)
    count = await two.searcher.count("t")
    assert 0 < count < 40
    with pytest.raises(Conflict, match="was cancelled"):
        await load.wait()
    await asyncio.sleep(0.5)
    assert await one.searcher.count("t") == count
    assert one.indexer.active_load(load.id) is None
    await _is_whole(one, count)
    # It goes on, wherever that is asked for, under its id.
    again = await one.indexer.resume_load(load.id)
    assert again.id == load.id
    await again.wait()
    assert (again.counts.indexed, again.counts.unchanged) == (40 - count, count)
    await _is_whole(two, 40)


async def test_a_drop_from_any_ends_the_loads_of_all(
    backends: list[Services], tmp_path: Path
) -> None:
    one, two = backends
    write_photos(tmp_path / "photos", 40)
    load = await one.indexer.start_load(str(tmp_path / "photos"), "t")
    await _until(lambda: load.counts.indexed > 0)
    assert await two.indexer.drop("t")
    with pytest.raises(Conflict):
        await load.wait()
    for services in backends:
        assert await services.catalog.collections_with_counts() == []
        assert await services.catalog.load(load.id) is None


async def test_what_one_has_not_done_when_it_stops_another_does(
    backends: list[Services], tmp_path: Path
) -> None:
    one, two = backends
    write_photos(tmp_path / "photos", 24)
    load = await one.indexer.start_load(str(tmp_path / "photos"), "t")
    await two.indexer.refresh()
    other = two.indexer.active_load(load.id)
    assert other is not None
    await one.indexer.stop_loads()
    with pytest.raises(Unavailable, match="stopping"):
        await load.wait()
    await asyncio.wait_for(other.wait(), 20)
    assert other.counts.indexed + other.counts.unchanged == 24
    await _is_whole(two, 24)


async def test_photos_that_are_gone_are_removed_once_all_chunks_are_done(
    backends: list[Services], tmp_path: Path
) -> None:
    one, two = backends
    photos = write_photos(tmp_path / "photos", 10)
    await (await one.indexer.start_load(str(tmp_path / "photos"), "t")).wait()
    for path in photos[:3]:
        path.unlink()
    load = await two.indexer.start_load(str(tmp_path / "photos"), "t", prune=True)
    await load.wait()
    assert (load.counts.unchanged, load.counts.removed) == (7, 3)
    await _is_whole(one, 7)


async def test_one_that_may_not_read_a_folder_leaves_its_load_to_others(
    settings: Settings, tmp_path: Path
) -> None:
    write_photos(tmp_path / "photos", 8)
    (tmp_path / "elsewhere").mkdir()
    blind = settings.model_copy(
        update={"data_dir": tmp_path / "one", "allowed_roots": (tmp_path / "elsewhere",)}
    )
    seeing = settings.model_copy(update={"data_dir": tmp_path / "two"})
    async with open_services(blind) as one, open_services(seeing) as two:
        await one.indexer.resume_loads()
        load = await two.indexer.start_load(str(tmp_path / "photos"), "t")
        await one.indexer.refresh()
        await asyncio.wait_for(load.wait(), 20)
        assert (load.counts.indexed, load.counts.failed) == (8, 0)
        await one.indexer.refresh()
        assert one.indexer.progress() == (8, 8)  # which it sees all the same
