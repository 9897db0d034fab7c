"""The write order, recovery, and what happens when things come at the same time."""

import asyncio
import hashlib
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
import pytest_asyncio
from numpy.typing import NDArray

from backend.analysis import AnalyzedPhoto
from backend.app import Services, open_services
from backend.checking import check_collections
from backend.errors import (
    Conflict,
    EngineUnavailable,
    InvalidImage,
    InvalidInput,
    NotFound,
    Unavailable,
)
from backend.indexing import AddedPhoto
from backend.loads import Failure, Load, LoadCounts
from backend.metrics import Metrics
from backend.readiness import EngineState
from backend.settings import Settings
from backend.storage.catalog import (
    Collection,
    Image,
    ImageState,
    LoadRow,
    NewImage,
    NewObject,
    StoredImage,
    path_key,
)
from backend.storage.vectors import ObjectVector
from backend.uploads import UploadFolder
from backend.writing import PhotoWriter, PreparedPhoto
from tests.engines.mariadb import MariaDBProcess
from tests.photos import draw_photo, encode, write_photos

_ALL: Sequence[ImageState] = ("pending", "indexed", "failed", "deleting")


async def _load(services: Services, folder: Path, *, prune: bool = False) -> None:
    load = await services.indexer.start_load(str(folder), "t", prune=prune)
    await load.wait()


async def _states(services: Services, name: str = "t") -> list[str]:
    collection = await services.catalog.collection(name)
    if collection is None:
        return []
    return [
        image.state async for page in services.catalog.images(collection.id, _ALL) for image in page
    ]


async def _assert_consistent(services: Services) -> None:
    for report in await check_collections(
        services.catalog, services.vectors, services.analyzer.embedder, services.writer
    ):
        assert (report.missing, report.orphaned) == (set(), set())


async def _image(services: Services, path: Path, name: str = "t") -> Image | None:
    collection = await services.catalog.collection(name)
    assert collection is not None
    key = path_key(str(path))
    return (await services.catalog.images_by_key(collection.id, [key])).get(key)


async def _upload(services: Services, photo: bytes) -> Image:
    """The row of an uploaded photo, in any state."""
    collection = await services.catalog.collection("t")
    assert collection is not None
    sha256 = hashlib.sha256(photo).hexdigest()
    [image] = (await services.catalog.images_by_sha256(collection.id, [sha256]))[sha256]
    return image


async def _row(services: Services, load: Load) -> LoadRow:
    row = await services.catalog.load(load.id)
    assert row is not None
    return row


def _files(settings: Settings) -> list[Path]:
    """The files of uploads."""
    return [path for path in settings.uploads.rglob("*") if path.is_file()]


def _engine(settings: Settings) -> psutil.Process:
    """The process of the vector engine."""
    [engine] = [
        child
        for child in psutil.Process().children()
        if child.name() == "milvus" and str(settings.data_dir) in " ".join(child.cmdline())
    ]
    return engine


@contextmanager
def _frozen_engine(settings: Settings) -> Iterator[None]:
    engine = _engine(settings)
    engine.suspend()
    try:
        yield
    finally:
        engine.resume()


async def _until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await holds():
            await asyncio.sleep(0.05)


def _new_image(path: str, objects: int = 2) -> NewImage:
    found = [NewObject("thing", 0.5, (0.0, 0.0, 1.0, 1.0))] * objects
    return NewImage(path, path_key(path), "0" * 64, 1, 1, 10, 10, found)


def _vectors(count: int) -> NDArray[np.float32]:
    return np.eye(512, dtype=np.float32)[:count]


@pytest.mark.every_combination
async def test_a_photo_left_pending_is_undone_with_its_vectors_or_before_there_are_any(
    settings: Settings, tmp_path: Path
) -> None:
    write_photos(tmp_path / "photos", 2)
    async with open_services(settings) as services:
        await _load(services, tmp_path / "photos")
        collection = await services.catalog.collection("t")
        assert collection is not None
        new = [_new_image("/without"), _new_image("/with")]
        [_, stored] = await services.catalog.begin_images(collection.id, new)
        rows = [
            ObjectVector(object_id, stored.id, "thing", 0.5, vector)
            for object_id, vector in zip(stored.object_ids, _vectors(2), strict=True)
        ]
        await services.vectors.upsert(collection.store, rows)
    async with open_services(settings) as services:
        assert await _states(services) == ["indexed"] * 2 + ["failed"] * 2
        assert await services.searcher.count("t") == 2
        await _assert_consistent(services)


@pytest.mark.every_combination
async def test_a_changed_photo_left_pending_is_indexed_by_the_next_load(
    settings: Settings, tmp_path: Path
) -> None:
    [photo] = write_photos(tmp_path / "photos", 1)
    async with open_services(settings) as services:
        await _load(services, tmp_path / "photos")
        collection = await services.catalog.collection("t")
        assert collection is not None
        # Step 1 of indexing it anew: its old objects' rows are gone, their vectors are not.
        await services.catalog.begin_images(collection.id, [_new_image(str(photo))])
    async with open_services(settings) as services:
        await _assert_consistent(services)
        await _load(services, tmp_path / "photos")
        assert await _states(services) == ["indexed"]
        await _assert_consistent(services)
        [hit] = await services.searcher.search(photo.read_bytes(), "t", 5)
        assert hit.distance < 1e-3


@pytest.mark.every_combination
async def test_a_photo_left_deleting_is_removed_with_its_vectors_or_after_them(
    settings: Settings, tmp_path: Path
) -> None:
    write_photos(tmp_path / "photos", 4)
    async with open_services(settings) as services:
        await _load(services, tmp_path / "photos")
        collection = await services.catalog.collection("t")
        assert collection is not None
        async for page in services.catalog.images(collection.id, ["indexed"]):
            gone = [image.id for image in page[:2]]
        await services.catalog.begin_delete_images(gone)
        objects = await services.catalog.object_ids_of_images(gone[1:])
        await services.vectors.delete(collection.store, objects)
    async with open_services(settings) as services:
        assert await _states(services) == ["indexed"] * 2
        await _assert_consistent(services)


@pytest.mark.every_combination
async def test_a_collection_left_deleting_is_removed_with_its_vectors_or_after_them(
    settings: Settings,
) -> None:
    async with open_services(settings) as services:
        for name in ("t", "u"):
            await services.indexer.add_photo(encode(draw_photo(1)), name)
            collection = await services.catalog.collection(name)
            assert collection is not None
            await services.catalog.begin_drop(collection.id)
            if name == "u":
                await services.vectors.drop(collection.store)
    async with open_services(settings) as services:
        assert await services.catalog.collections("deleting") == []
        assert [await services.searcher.count(name) for name in ("t", "u")] == [0, 0]
        assert [path for path in settings.uploads.rglob("*") if path.is_file()] == []
        await services.indexer.add_photo(encode(draw_photo(2)), "t")
        assert await services.searcher.count("t") == 1
        await _assert_consistent(services)


@pytest.mark.parametrize("combination", ["mysql"], indirect=True)
@pytest.mark.parametrize("state", ["pending", "deleting"])
async def test_mending_that_has_lost_its_turn_takes_nothing_back(
    services: Services,
    settings: Settings,
    mysql_server: MariaDBProcess,
    monkeypatch: pytest.MonkeyPatch,
    state: ImageState,
) -> None:
    await services.indexer.add_photo(encode(draw_photo(1)), "t")
    collection = await services.catalog.collection("t")
    assert collection is not None
    [stored] = await services.catalog.begin_images(collection.id, [_new_image("/new")])
    if state == "deleting":
        await services.catalog.begin_delete_images([stored.id])
    create = services.vectors.create

    async def create_and_lose_the_turn(store: str, dimension: int) -> None:
        await create(store, dimension)
        await asyncio.to_thread(mysql_server.drop_connections, settings.mysql_db)

    with monkeypatch.context() as patch:
        patch.setattr(services.vectors, "create", create_and_lose_the_turn)
        with pytest.raises(EngineUnavailable, match="MySQL"):
            await services.writer.recover()
    assert [image.state for image in await services.catalog.images_by_id([stored.id])] == [state]
    await services.writer.recover()
    assert await _states(services) == ["indexed"] + ["failed"] * (state == "pending")


@pytest_asyncio.fixture
async def another(services: Services, settings: Settings) -> AsyncIterator[PhotoWriter]:
    """One that writes beside the services, as another process does."""
    writer = PhotoWriter(
        services.catalog,
        services.vectors,
        services.analyzer,
        UploadFolder(settings.uploads, services.catalog.identity),
        Metrics(),
        metric="L2",
        owns=False,
    )
    yield writer
    await writer.close()


def _prepared(path: str, objects: int) -> PreparedPhoto:
    return PreparedPhoto(_new_image(path, objects), _vectors(objects))


@pytest.mark.parametrize("combination", ["mysql", "milvus+mysql"], indirect=True)
@pytest.mark.parametrize("objects", [0, 2])
@pytest.mark.parametrize("step", ["insert", "ids_of_images", "delete", "finish_images"])
async def test_one_that_has_lost_its_turn_leaves_what_another_has_written_since(
    services: Services,
    another: PhotoWriter,
    mysql_server: MariaDBProcess,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    objects: int,
) -> None:
    collection = await services.writer.ensure_collection("t")
    await services.writer.add(collection, [_prepared("/old", 1)])
    engine: object = services.catalog if step == "finish_images" else services.vectors
    do = getattr(engine, step)

    async def do_after_another(*args: object, **options: object) -> object:
        monkeypatch.setattr(engine, step, do)
        await asyncio.to_thread(mysql_server.drop_connections, settings.mysql_db)
        await another.add(collection, [_prepared("/old", objects)])
        return await do(*args, **options)

    monkeypatch.setattr(engine, step, do_after_another)
    with pytest.raises(EngineUnavailable, match="MySQL"):
        await services.writer.add(collection, [_prepared("/old", 3), _prepared("/new", 1)])

    async def mended() -> bool:
        return not services.writer.outages.engines

    await _until(mended)
    await _assert_consistent(services)
    [old, *_] = await _states(services)
    assert old == "indexed"
    await services.writer.add(collection, [_prepared("/new", 1)])  # as whoever brings it does
    await _assert_consistent(services)
    assert await _states(services) == ["indexed", "indexed"]
    assert len(await services.catalog.object_ids(collection.id)) == objects + 1


@pytest.mark.parametrize("combination", ["mysql"], indirect=True)
async def test_one_that_has_lost_its_turn_begins_nothing(
    services: Services, another: PhotoWriter, mysql_server: MariaDBProcess, settings: Settings
) -> None:
    collection = await services.writer.ensure_collection("t")

    async def choose_after_another() -> Sequence[PreparedPhoto]:
        await asyncio.to_thread(mysql_server.drop_connections, settings.mysql_db)
        await another.add(collection, [_prepared("/a", 2)])
        return [_prepared("/a", 3), _prepared("/b", 1)]

    with pytest.raises(EngineUnavailable, match="MySQL"):
        await services.writer.add_wanted(collection, choose_after_another)
    assert await _states(services) == ["indexed"]
    assert len(await services.catalog.object_ids(collection.id)) == 2
    await _assert_consistent(services)


@pytest.mark.parametrize("combination", ["mysql"], indirect=True)
async def test_one_that_has_lost_its_turn_removes_nothing(
    services: Services,
    another: PhotoWriter,
    mysql_server: MariaDBProcess,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collection = await services.writer.ensure_collection("t")
    await services.writer.add(collection, [_prepared("/a", 1)])
    [image] = [
        image async for page in services.catalog.images(collection.id, _ALL) for image in page
    ]
    look = services.catalog.images_by_id

    async def look_and_lose_the_turn(image_ids: Sequence[int]) -> list[Image]:
        monkeypatch.setattr(services.catalog, "images_by_id", look)
        found = await look(image_ids)
        await asyncio.to_thread(mysql_server.drop_connections, settings.mysql_db)
        await another.add(collection, [_prepared("/a", 2)])
        return found

    monkeypatch.setattr(services.catalog, "images_by_id", look_and_lose_the_turn)
    with pytest.raises(EngineUnavailable, match="MySQL"):
        await services.writer.delete(collection, [image.id])
    assert await _states(services) == ["indexed"]
    assert len(await services.catalog.object_ids(collection.id)) == 2
    await _assert_consistent(services)


async def test_an_uploads_file_that_was_never_acknowledged_is_removed_and_others_stay(
    settings: Settings,
) -> None:
    async with open_services(settings) as services:
        await services.indexer.add_photo(encode(draw_photo(1)), "t")
    [kept] = [path for path in settings.uploads.rglob("*") if path.is_file()]
    folder = kept.parent
    mine = folder / "holiday.jpg"
    mine.write_bytes(b"somebody's own")
    for orphan in (f"{'a' * 64}.jpeg", f"{'b' * 64}.png.part"):
        (folder / orphan).write_bytes(b"orphan")
    async with open_services(settings):
        assert set(folder.iterdir()) == {kept, mine}


@pytest.mark.every_combination
async def test_an_interrupted_load_goes_on_at_the_next_start(
    settings: Settings, tmp_path: Path
) -> None:
    write_photos(tmp_path / "photos", 16)
    async with open_services(settings) as services:
        load = await services.indexer.start_load(str(tmp_path / "photos"), "t")
        await services.indexer.stop_loads()
        with pytest.raises(Unavailable, match="goes on after its restart"):
            await load.wait()
        with pytest.raises(Unavailable):
            await services.indexer.start_load(str(tmp_path / "photos"), "t")
        done = await services.searcher.count("t")
        assert done < 16
    async with open_services(settings) as services:
        await services.indexer.resume_loads()
        # Asked for as well, it is the same load, whichever of the two comes first.
        joined = await services.indexer.start_load(str(tmp_path / "photos"), "t")
        await joined.wait()
        assert (joined.counts.indexed, joined.counts.unchanged) == (16 - done, done)
        while await services.catalog.running_loads():
            await asyncio.sleep(0.01)
        assert await _states(services) == ["indexed"] * 16
        await _assert_consistent(services)
    async with open_services(settings) as services:
        assert await services.catalog.running_loads() == []


async def test_a_load_whose_folder_is_gone_is_not_resumed_for_ever(
    settings: Settings, tmp_path: Path
) -> None:
    write_photos(tmp_path / "photos", 20)
    async with open_services(settings) as services:
        await services.indexer.start_load(str(tmp_path / "photos"), "t")
    shutil.rmtree(tmp_path / "photos")
    async with open_services(settings) as services:
        assert len(await services.catalog.running_loads()) == 1
        await services.indexer.resume_loads()
        while await services.catalog.running_loads():
            await asyncio.sleep(0.01)


@pytest.mark.every_combination
async def test_a_drop_ends_a_load_and_leaves_nothing(services: Services, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 40)
    load = await services.indexer.start_load(str(tmp_path / "photos"), "t")
    while not await services.searcher.count("t"):
        await asyncio.sleep(0.002)
    assert await services.indexer.drop("t")
    with pytest.raises(Conflict, match="cancelled"):
        await load.wait()
    assert load.state == "cancelled"
    assert await services.catalog.collection("t") is None
    assert not await services.indexer.drop("t")
    write_photos(tmp_path / "others", 5, start=38)
    await _load(services, tmp_path / "others")
    assert await services.searcher.count("t") == 5
    await _assert_consistent(services)


@pytest.mark.every_combination
async def test_uploads_loads_and_drops_at_the_same_time_leave_a_whole(
    services: Services, settings: Settings, tmp_path: Path
) -> None:
    write_photos(tmp_path / "photos", 8)

    async def upload(seed: int) -> None:
        try:
            await services.indexer.add_photo(encode(draw_photo(seed)), "t")
        except Conflict:  # the collection was dropped under it
            return

    async def load() -> None:
        try:
            await _load(services, tmp_path / "photos")
        except Conflict:
            return

    async with asyncio.TaskGroup() as group:
        for seed in range(100, 112):
            group.create_task(upload(seed))
            if seed % 4 == 0:
                group.create_task(load())
                group.create_task(services.indexer.drop("t"))
    await _assert_consistent(services)
    assert set(await _states(services)) <= {"indexed"}
    collection = await services.catalog.collection("t")
    files = [path for path in settings.uploads.rglob("*") if path.is_file()]
    uploaded = 0
    if collection is not None:
        async for page in services.catalog.images(collection.id, ["indexed"]):
            uploaded += sum(Path(image.path) in files for image in page)
    assert uploaded == len(files)


async def test_the_same_upload_many_times_at_once_is_one_photo(services: Services) -> None:
    photo = encode(draw_photo(1))
    added = await asyncio.gather(*(services.indexer.add_photo(photo, "t") for _ in range(8)))
    assert len({photo.id for photo in added}) == 1
    assert sorted(photo.created for photo in added) == [False] * 7 + [True]
    assert await services.searcher.count("t") == 1
    await _assert_consistent(services)


async def test_a_photo_has_the_same_perceptual_hash_however_it_comes(
    services: Services, tmp_path: Path
) -> None:
    write_photos(tmp_path / "photos", 2)
    await _load(services, tmp_path / "photos")
    await services.indexer.add_photo((tmp_path / "photos" / "photo 0001.jpg").read_bytes(), "t")
    collection = await services.catalog.collection("t")
    assert collection is not None
    found: dict[str, list[int | None]] = {}
    async for page in services.catalog.hashes(collection.id):
        for photo in page:
            found.setdefault(photo.sha256, []).append(photo.phash)
    [[loaded, uploaded], [other]] = sorted(found.values(), key=len, reverse=True)
    assert loaded is not None
    assert other is not None
    assert loaded == uploaded != other


async def test_a_refused_upload_keeps_nothing(services: Services, settings: Settings) -> None:
    with pytest.raises(InvalidImage):
        await services.indexer.add_photo(encode(draw_photo(1))[:2000], "t")
    assert list(settings.uploads.iterdir()) == []
    assert await services.catalog.collection("t") is None


async def test_two_loads_are_counted_together_and_run_one_after_the_other(
    services: Services, tmp_path: Path
) -> None:
    write_photos(tmp_path / "a", 10)
    write_photos(tmp_path / "b", 10, start=50)
    loads = [await services.indexer.start_load(str(tmp_path / name), "t") for name in "ab"]
    assert services.indexer.progress()[1] == 20
    await asyncio.gather(*(load.wait() for load in loads))
    assert services.indexer.progress() == (20, 20)
    await _load(services, tmp_path / "a")
    assert services.indexer.progress() == (10, 10)


async def test_a_file_over_the_limit_fails_alone(settings: Settings, tmp_path: Path) -> None:
    [small, large] = write_photos(tmp_path / "photos", 2)
    limit = small.stat().st_size
    large.write_bytes(encode(draw_photo(1, width=800, height=800)))
    async with open_services(settings.model_copy(update={"max_file_bytes": limit})) as services:
        load = await services.indexer.start_load(str(tmp_path / "photos"), "t")
        await load.wait()
        assert (load.counts.indexed, load.counts.failed) == (1, 1)
        [failure] = load.failures
        assert failure.path == str(large)
        assert f"{limit} bytes that MAX_FILE_BYTES allows" in failure.reason


async def test_pruning_keeps_what_the_scan_passes_over_but_is_there(
    services: Services, tmp_path: Path
) -> None:
    write_photos(tmp_path / "photos", 2)
    hidden = tmp_path / "photos" / ".hidden"
    [kept, gone] = write_photos(hidden, 2, start=10)
    await _load(services, hidden)
    await _load(services, tmp_path / "photos")
    gone.unlink()
    await _load(services, tmp_path / "photos", prune=True)
    assert await services.searcher.count("t") == 3
    assert (await services.searcher.search(kept.read_bytes(), "t", 1))[0].distance < 1e-3


async def test_photos_that_came_after_a_load_had_begun_are_in_the_next_ones_answer(
    services: Services, tmp_path: Path
) -> None:
    write_photos(tmp_path / "photos", 20)
    first = await services.indexer.start_load(str(tmp_path / "photos"), "t")
    write_photos(tmp_path / "photos", 1, start=90)
    await _load(services, tmp_path / "photos")
    assert first.state == "done"
    assert await services.searcher.count("t") == 21


@pytest.mark.every_combination
async def test_a_load_again_keeps_every_object(services: Services, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 5)
    await _load(services, tmp_path / "photos")
    collection = await services.catalog.collection("t")
    assert collection is not None
    before = await services.catalog.object_ids(collection.id)
    for photo in (tmp_path / "photos").iterdir():
        os.utime(photo)  # another time, the same bytes
    await _load(services, tmp_path / "photos")
    assert await services.catalog.object_ids(collection.id) == before


@pytest.mark.parametrize("moved", ["data folder", "data folder behind a link"])
async def test_uploads_follow_a_data_folder_that_is_moved(
    settings: Settings, tmp_path: Path, moved: str
) -> None:
    photo = encode(draw_photo(1))
    async with open_services(settings) as services:
        image_id = (await services.indexer.add_photo(photo, "t")).id
    elsewhere = tmp_path / "elsewhere"
    if moved == "data folder":
        settings.data_dir.rename(elsewhere)
    else:
        elsewhere.symlink_to(settings.data_dir)
    async with open_services(settings.model_copy(update={"data_dir": elsewhere})) as services:
        [hit] = await services.searcher.search(photo, "t", 5)
        assert Path(hit.object.path).read_bytes() == photo
        assert await services.indexer.add_photo(photo, "t") == AddedPhoto(image_id, created=False)
        assert await services.searcher.count("t") == 1


async def test_services_that_share_an_upload_folder_leave_each_others_photos(
    settings: Settings, tmp_path: Path
) -> None:
    shared = settings.model_copy(update={"upload_path": tmp_path / "shared"})
    async with open_services(shared) as services:
        await services.indexer.add_photo(encode(draw_photo(1)), "t")
    other = shared.model_copy(update={"data_dir": tmp_path / "other"})
    async with open_services(other) as services:
        await services.indexer.add_photo(encode(draw_photo(2)), "t")
    files = [path for path in (tmp_path / "shared").rglob("*") if path.is_file()]
    async with open_services(other) as services:
        await services.indexer.drop("t")
    left = [path for path in (tmp_path / "shared").rglob("*") if path.is_file()]
    assert (len(files), len(left)) == (2, 1)
    assert left[0].read_bytes() == encode(draw_photo(1))


async def test_an_uploads_file_that_is_gone_comes_back_with_the_same_upload(
    services: Services, settings: Settings
) -> None:
    photo = encode(draw_photo(1))
    image_id = (await services.indexer.add_photo(photo, "t")).id
    [file] = [path for path in settings.uploads.rglob("*") if path.is_file()]
    file.unlink()
    assert await services.indexer.add_photo(photo, "t") == AddedPhoto(image_id, created=False)
    assert file.read_bytes() == photo
    await _assert_consistent(services)


async def test_an_uploads_only_copy_outlives_an_upload_of_the_same_bytes_that_fails(
    settings: Settings,
) -> None:
    photo = encode(draw_photo(1))
    async with open_services(settings) as services:
        await services.indexer.add_photo(photo, "t")
    (settings.data_dir / "vectors.db").unlink()
    impatient = settings.model_copy(update={"engine_timeout": 1})
    async with open_services(impatient) as services:
        with _frozen_engine(settings), pytest.raises(EngineUnavailable, match="Milvus Lite"):
            await services.indexer.add_photo(photo, "t")
    async with open_services(settings) as services:
        [file] = [path for path in settings.uploads.rglob("*") if path.is_file()]
        assert file.read_bytes() == photo
        assert await _states(services) == ["failed"]
        assert (await services.indexer.add_photo(photo, "t")).created
        assert await services.searcher.count("t") == 1
        await _assert_consistent(services)


async def test_an_unacknowledged_uploads_file_goes_though_a_folder_has_the_same_bytes(
    settings: Settings, tmp_path: Path
) -> None:
    [photo] = write_photos(tmp_path / "photos", 1)
    async with open_services(settings) as services:
        await services.indexer.add_photo(encode(draw_photo(50)), "t")
        await _load(services, tmp_path / "photos")
    [kept] = [path for path in settings.uploads.rglob("*") if path.is_file()]
    sha256 = hashlib.sha256(photo.read_bytes()).hexdigest()
    (kept.parent / f"{sha256}.jpeg").write_bytes(photo.read_bytes())
    async with open_services(settings) as services:
        assert list(kept.parent.iterdir()) == [kept]
        assert await services.searcher.count("t") == 2


async def test_a_drop_that_an_engine_breaks_off_is_finished_when_it_is_back(
    settings: Settings,
) -> None:
    impatient = settings.model_copy(update={"engine_timeout": 1})
    async with open_services(impatient) as services:
        await services.indexer.add_photo(encode(draw_photo(1)), "t")
        with _frozen_engine(settings):
            for _ in range(2):  # not taken for done the second time
                with pytest.raises(EngineUnavailable, match="Milvus Lite"):
                    await services.indexer.drop("t")
            with pytest.raises(Conflict, match="drop it again"):
                await services.indexer.add_photo(encode(draw_photo(1)), "t")

        async def dropped() -> bool:
            return await services.catalog.collection_in_any_state("t") is None

        await _until(dropped)
        await services.indexer.add_photo(encode(draw_photo(1)), "t")
        assert await services.searcher.count("t") == 1
        await _assert_consistent(services)


async def test_a_collection_left_half_made_is_made_anew(settings: Settings) -> None:
    async with open_services(settings) as services:
        embedder = services.analyzer.embedder
        collection = await services.catalog.ensure_collection(
            "t",
            embedder=embedder.name,
            embedder_sha256=embedder.sha256,
            dim=embedder.dimension,
            metric="L2",
        )
        assert collection is not None
        assert await services.catalog.collection("t") is None  # not to be seen before it is ready
        await services.vectors.create(collection.store, collection.dim)
    async with open_services(settings) as services:
        await services.indexer.add_photo(encode(draw_photo(1)), "t")
        assert len(await services.searcher.search(encode(draw_photo(1)), "t", 1)) == 1
        await _assert_consistent(services)


async def test_vectors_that_are_lost_are_noticed_and_made_anew_by_a_load(
    settings: Settings, tmp_path: Path
) -> None:
    write_photos(tmp_path / "photos", 4)
    async with open_services(settings) as services:
        await _load(services, tmp_path / "photos")
    (settings.data_dir / "vectors.db").unlink()
    async with open_services(settings) as services:
        assert await services.searcher.count("t") == 0
        assert await _states(services) == ["failed"] * 4
        await _load(services, tmp_path / "photos")
        assert await services.searcher.count("t") == 4
        await _assert_consistent(services)


async def test_a_load_that_was_dropped_is_not_shown_as_under_way_for_ever(
    services: Services, tmp_path: Path
) -> None:
    write_photos(tmp_path / "photos", 20)
    await services.indexer.start_load(str(tmp_path / "photos"), "t")
    await services.indexer.drop("t")
    current, total = services.indexer.progress()
    assert current == total


@pytest.mark.every_combination
async def test_searches_under_a_drop_find_photos_or_nothing_and_never_fail(
    services: Services, tmp_path: Path
) -> None:
    photo = encode(draw_photo(1))
    for _ in range(3):
        await services.indexer.add_photo(photo, "t")
        searches = [asyncio.create_task(services.searcher.search(photo, "t", 1)) for _ in range(6)]
        await services.indexer.drop("t")
        assert all(len(hits) <= 1 for hits in await asyncio.gather(*searches))


async def test_a_start_that_is_cancelled_leaves_no_process(settings: Settings) -> None:
    async def start() -> None:
        async with open_services(settings):
            await asyncio.Event().wait()

    children = {child.pid for child in psutil.Process().children()}
    for delay in (0.05, 0.2, 0.4, 0.6):
        task = asyncio.create_task(start())
        await asyncio.wait([task], timeout=delay)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert {child.pid for child in psutil.Process().children()} == children
    async with open_services(settings):
        pass


async def test_a_load_goes_on_by_itself_when_the_vector_engine_dies(
    settings: Settings, tmp_path: Path
) -> None:
    write_photos(tmp_path / "photos", 40)
    async with open_services(settings) as services:
        await services.indexer.add_photo(encode(draw_photo(99)), "t")
        load = await services.indexer.start_load(str(tmp_path / "photos"), "t")

        async def begun() -> bool:
            return load.counts.indexed > 0

        await _until(begun)
        _engine(settings).kill()
        await load.wait()
        assert (load.counts.indexed, load.counts.failed) == (40, 0)
        assert await services.searcher.count("t") == 41
        [hit] = await services.searcher.search(encode(draw_photo(99)), "t", 1)
        assert hit.distance < 1e-3
        await _assert_consistent(services)


async def test_a_load_waits_while_the_vector_engine_is_frozen_and_says_so(
    settings: Settings, tmp_path: Path
) -> None:
    write_photos(tmp_path / "photos", 20)
    impatient = settings.model_copy(update={"engine_timeout": 1})
    async with open_services(impatient) as services:
        await services.indexer.add_photo(encode(draw_photo(99)), "t")
        with _frozen_engine(settings):
            load = await services.indexer.start_load(str(tmp_path / "photos"), "t")

            async def waiting() -> bool:
                return load.waiting_for == "Milvus Lite"

            await _until(waiting)
            assert services.indexer.waiting_loads() == [load]
        await load.wait()
        assert (load.counts.indexed, load.counts.failed) == (20, 0)
        assert services.indexer.waiting_loads() == []
        await _assert_consistent(services)


# Uploads that come again


async def test_an_upload_that_is_there_is_not_analysed_again(
    services: Services, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = encode(draw_photo(1))
    first = await services.indexer.add_photo(photo, "t")
    assert first.created
    analyze, analyses = services.analyzer.analyze, 0

    async def count(data: bytes) -> AnalyzedPhoto:
        nonlocal analyses
        analyses += 1
        return await analyze(data)

    monkeypatch.setattr(services.analyzer, "analyze", count)
    assert await services.indexer.add_photo(photo, "t") == AddedPhoto(first.id, created=False)
    assert analyses == 0
    assert (await services.indexer.add_photo(photo, "other")).created
    assert analyses == 1
    assert len(_files(settings)) == 2


async def test_an_upload_that_comes_again_before_what_was_broken_off_is_mended_stays(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient = settings.model_copy(update={"engine_timeout": 1})
    async with open_services(impatient) as services:
        outages, catalog = services.writer.outages, services.catalog
        check, finish = outages._readiness.check, catalog.finish_images
        come_again = asyncio.Event()

        async def check_later() -> list[EngineState]:
            await come_again.wait()
            return await check()

        async def finish_and_lose_the_answer(
            stored: Sequence[StoredImage], failed: Mapping[int, str], *, written: Mapping[int, int]
        ) -> list[int]:
            await finish(stored, failed, written=written)
            raise EngineUnavailable("SQLite", "the answer is lost")

        monkeypatch.setattr(outages._readiness, "check", check_later)
        broken: dict[ImageState, bytes] = {
            "deleting": encode(draw_photo(1)),
            "pending": encode(draw_photo(2)),
            "undoing": encode(draw_photo(3)),
            "indexed": encode(draw_photo(4)),
        }
        for state, photo in broken.items():
            if state == "deleting":
                removed = await services.indexer.add_photo(photo, "t")
                with (
                    _frozen_engine(settings),
                    pytest.raises(EngineUnavailable, match="Milvus Lite"),
                ):
                    await services.indexer.remove_photo(removed.id)
            elif state == "indexed":
                with monkeypatch.context() as patch:
                    patch.setattr(catalog, "finish_images", finish_and_lose_the_answer)
                    with pytest.raises(EngineUnavailable, match="the answer is lost"):
                        await services.indexer.add_photo(photo, "t")
            else:
                with (
                    _frozen_engine(settings),
                    pytest.raises(EngineUnavailable, match="Milvus Lite"),
                ):
                    await services.indexer.add_photo(photo, "t")
            before = await _upload(services, photo)
            if state == "undoing":  # by a mending that has been broken off itself
                assert await catalog.claim_undo([before.id]) == [before.id]
                before = await _upload(services, photo)
            assert before.state == state
            again = await services.indexer.add_photo(photo, "t")
            assert again == AddedPhoto(before.id, created=state != "indexed")
        assert outages.engines
        come_again.set()

        async def mended() -> bool:
            return not outages.engines

        await _until(mended)
        assert await _states(services) == ["indexed"] * 4
        for photo in broken.values():
            [hit] = await services.searcher.search(photo, "t", 1)
            assert Path(hit.object.path).read_bytes() == photo
            assert hit.distance < 1e-3
        assert len(_files(settings)) == 4
        await _assert_consistent(services)


# Removing photos


@pytest.mark.parametrize("combination", ["embedded", "milvus+mysql"], indirect=True)
async def test_a_photo_that_is_removed_is_gone_with_its_vectors_and_an_uploads_file(
    services: Services, settings: Settings, tmp_path: Path
) -> None:
    [file, _] = write_photos(tmp_path / "photos", 2)
    await _load(services, tmp_path / "photos")
    upload = encode(draw_photo(50))
    added = await services.indexer.add_photo(upload, "t")
    kept = await services.indexer.add_photo(encode(draw_photo(51)), "t")
    loaded = await _image(services, file)
    assert loaded is not None
    for image_id in (added.id, loaded.id):
        assert await services.indexer.remove_photo(image_id)
        assert not await services.indexer.remove_photo(image_id)
    assert not await services.indexer.remove_photo(10**9)
    assert await services.searcher.count("t") == 2
    await _assert_consistent(services)
    [stays] = await services.catalog.images_by_id([added.id, loaded.id, kept.id])
    assert [str(path) for path in _files(settings)] == [stays.path]
    for photo in (upload, file.read_bytes()):
        hits = await services.searcher.search(photo, "t", 10)
        assert len(hits) == 2
        assert all(Path(hit.object.path).read_bytes() != photo for hit in hits)
    again = await services.indexer.add_photo(upload, "t")
    assert again.created
    assert again.id > kept.id
    await _load(services, tmp_path / "photos")  # whose file is there still
    assert await services.searcher.count("t") == 4
    await _assert_consistent(services)


async def test_the_last_upload_that_is_removed_takes_its_folder_and_nobodys_file_with_it(
    services: Services, settings: Settings
) -> None:
    added = await services.indexer.add_photo(encode(draw_photo(1)), "t")
    [file] = _files(settings)
    [other] = write_photos(file.parent / "own", 1)
    assert await services.indexer.remove_photo(added.id)
    assert _files(settings) == [other]


async def test_another_collections_photo_of_the_same_bytes_stays(
    services: Services, settings: Settings
) -> None:
    photo = encode(draw_photo(1))
    added = await services.indexer.add_photo(photo, "t")
    await services.indexer.add_photo(photo, "other")
    # And one that has the very file, since it has loaded the folder of uploads.
    load = await services.indexer.start_load(str(settings.uploads), "third")
    await load.wait()
    [other] = [file for file in _files(settings) if await _image(services, file, "other")]
    image = await _image(services, other, "third")
    assert image is not None
    assert await services.indexer.remove_photo(image.id)
    assert other.exists()
    assert await services.indexer.remove_photo(added.id)
    assert _files(settings) == [other]
    assert [await services.searcher.count(name) for name in ("t", "other", "third")] == [0, 1, 1]
    await _assert_consistent(services)


@pytest.mark.parametrize("done", ["marked", "vectors removed", "file removed"])
async def test_the_removal_of_an_upload_that_a_crash_has_broken_off_is_finished(
    settings: Settings, done: str
) -> None:
    async with open_services(settings) as services:
        removed = await services.indexer.add_photo(encode(draw_photo(1)), "t")
        [file] = _files(settings)
        await services.indexer.add_photo(encode(draw_photo(2)), "t")
        collection = await services.catalog.collection("t")
        assert collection is not None
        await services.catalog.begin_delete_images([removed.id])
        if done != "marked":
            objects = await services.catalog.object_ids_of_images([removed.id])
            await services.vectors.delete(collection.store, objects)
        if done == "file removed":
            file.unlink()
    async with open_services(settings) as services:
        assert await services.catalog.images_by_id([removed.id]) == []
        assert not file.exists()
        assert len(_files(settings)) == 1
        assert await services.searcher.count("t") == 1
        await _assert_consistent(services)


async def test_a_removal_that_an_engine_breaks_off_is_finished_when_it_is_back(
    settings: Settings,
) -> None:
    impatient = settings.model_copy(update={"engine_timeout": 1})
    async with open_services(impatient) as services:
        added = await services.indexer.add_photo(encode(draw_photo(1)), "t")
        with _frozen_engine(settings):
            with pytest.raises(EngineUnavailable, match="Milvus Lite"):
                await services.indexer.remove_photo(added.id)
            assert await services.searcher.count("t") == 0

        async def removed() -> bool:
            return await services.catalog.images_by_id([added.id]) == []

        await _until(removed)
        assert _files(settings) == []
        assert not await services.indexer.remove_photo(added.id)
        await _assert_consistent(services)


async def test_a_photo_whose_file_cannot_be_removed_goes_all_the_same(
    services: Services, settings: Settings
) -> None:
    added = await services.indexer.add_photo(encode(draw_photo(1)), "t")
    [file] = _files(settings)
    file.unlink()
    file.mkdir()  # which no unlink removes, not even root's
    assert await services.indexer.remove_photo(added.id)
    assert await services.searcher.count("t") == 0
    await _assert_consistent(services)


async def test_photos_may_be_removed_while_they_are_loaded_and_uploaded(
    services: Services, settings: Settings, tmp_path: Path
) -> None:
    write_photos(tmp_path / "photos", 10)
    photos = [encode(draw_photo(seed)) for seed in range(50, 54)]
    await _load(services, tmp_path / "photos")
    collection = await services.catalog.collection("t")
    assert collection is not None
    for file in (tmp_path / "photos").iterdir():
        file.write_bytes(encode(draw_photo(100 + int(file.stem[-1]))))  # all are indexed anew

    async def upload_and_remove(photo: bytes) -> None:
        for _ in range(3):
            added = await services.indexer.add_photo(photo, "t")
            await services.indexer.remove_photo(added.id)

    async def remove_all() -> None:
        for _ in range(3):
            async for page in services.catalog.images(collection.id, _ALL):
                for image in page[:3]:
                    await services.indexer.remove_photo(image.id)

    async with asyncio.TaskGroup() as group:
        group.create_task(_load(services, tmp_path / "photos"))
        group.create_task(remove_all())
        for photo in photos * 2:
            group.create_task(upload_and_remove(photo))
    assert _files(settings) == []
    assert set(await _states(services)) <= {"indexed"}
    await _assert_consistent(services)
    await _load(services, tmp_path / "photos")
    assert await services.searcher.count("t") == 10
    await _assert_consistent(services)


# Collections


async def test_a_collection_is_made_once(services: Services) -> None:
    made, created = await services.indexer.make_collection("t")
    assert (made.name, made.state, created) == ("t", "ready", True)
    assert await services.indexer.make_collection("t") == (made, False)
    assert await services.searcher.search(encode(draw_photo(1)), "t", 1) == []
    with pytest.raises(InvalidInput, match="no name"):
        await services.indexer.make_collection("no name")
    several = await asyncio.gather(*(services.indexer.make_collection("many") for _ in range(5)))
    assert sorted(created for _, created in several) == [False] * 4 + [True]


# Loads that run again


async def _cancelled(services: Services, folder: Path) -> Load:
    load = await services.indexer.start_load(str(folder), "t")
    while not load.counts.indexed:
        await asyncio.sleep(0.002)
    await asyncio.gather(*(services.indexer.cancel_load(load) for _ in range(3)))
    assert (load.state, load.waiting_for) == ("cancelled", None)
    with pytest.raises(Conflict, match="cancelled"):
        await load.wait()
    await services.indexer.cancel_load(load)  # which changes nothing
    return load


async def test_a_cancelled_load_goes_on_under_its_id(services: Services, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 120)
    load = await _cancelled(services, tmp_path / "photos")
    row = await _row(services, load)
    assert (row.state, row.started_at) == ("cancelled", load.started_at)
    assert row.finished_at == load.finished_at is not None
    assert row.counts["indexed"] == load.counts.indexed < 120
    assert services.indexer.active_load(load.id) is load
    resumed, same = await asyncio.gather(*(services.indexer.resume_load(load.id) for _ in range(2)))
    assert resumed is same is services.indexer.active_load(load.id) is not load
    assert (resumed.id, resumed.started_at) == (load.id, load.started_at)
    assert (resumed.state, resumed.finished_at) == ("running", None)
    row = await _row(services, load)
    assert (row.state, row.counts, row.finished_at) == ("running", {}, None)
    assert await services.indexer.resume_load(load.id) is resumed
    await resumed.wait()
    done = await services.searcher.count("t")
    assert (resumed.counts.unchanged + resumed.counts.indexed, done) == (120, 120)
    row = await _row(services, load)
    assert (row.state, row.counts["total"]) == ("done", 120)
    assert row.finished_at == resumed.finished_at is not None
    assert len(await services.catalog.loads(None, before=None, limit=10)) == 1


async def test_a_load_that_was_done_looks_again_at_its_folder(
    services: Services, tmp_path: Path
) -> None:
    write_photos(tmp_path / "photos", 2)
    first = await services.indexer.start_load(str(tmp_path / "photos"), "t")
    await first.wait()
    write_photos(tmp_path / "photos", 1, start=50)
    again = await services.indexer.resume_load(first.id)
    await again.wait()
    assert (again.id, again.counts.unchanged, again.counts.indexed) == (first.id, 2, 1)


async def test_a_load_that_is_resumed_beside_another_of_its_folder_keeps_its_id(
    services: Services, tmp_path: Path
) -> None:
    write_photos(tmp_path / "photos", 60)
    load = await _cancelled(services, tmp_path / "photos")
    other = await services.indexer.start_load(str(tmp_path / "photos"), "t")
    resumed = await services.indexer.resume_load(load.id)
    assert (resumed.id, other.id) == (load.id, load.id + 1)
    await asyncio.gather(other.wait(), resumed.wait())
    assert resumed.counts.unchanged == 60


async def test_a_load_that_cannot_be_resumed_has_still_ended(
    services: Services, tmp_path: Path
) -> None:
    write_photos(tmp_path / "photos", 60)
    load = await _cancelled(services, tmp_path / "photos")
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    before = await _row(services, load)
    with pytest.raises(InvalidInput, match="does not exist"):
        await services.indexer.resume_load(load.id)
    assert await _row(services, load) == before
    with pytest.raises(NotFound, match="no load 99"):
        await services.indexer.resume_load(99)
    await services.indexer.drop("t")
    assert services.indexer.active_load(load.id) is None
    with pytest.raises(NotFound):
        await services.indexer.resume_load(load.id)


async def test_a_load_that_was_resumed_goes_on_after_a_restart(
    settings: Settings, tmp_path: Path
) -> None:
    write_photos(tmp_path / "photos", 40)
    async with open_services(settings) as services:
        load = await _cancelled(services, tmp_path / "photos")
        resumed = await services.indexer.resume_load(load.id)
        await services.indexer.stop_loads()
        with pytest.raises(Unavailable, match="after its restart"):
            await resumed.next_change(resumed.version)
    async with open_services(settings) as services:
        assert [row.id for row in await services.catalog.running_loads()] == [load.id]
        await services.indexer.resume_loads()
        again = await services.indexer.resume_load(load.id)
        await again.wait()
        assert (again.id, again.started_at) == (load.id, load.started_at)
        assert await services.searcher.count("t") == 40


# What loads tell of themselves


@pytest.fixture
def load() -> Load:
    """A load that nobody runs."""
    collection = Collection(1, "t", "e", "", 8, "L2", "ready", "t_1")
    return Load(7, collection, "/photos", False, [], LoadCounts(total=5000))


async def test_who_waits_for_a_change_is_woken_once_by_many_and_loses_none(load: Load) -> None:
    waiting = [asyncio.create_task(load.next_change(0)) for _ in range(3)]
    await asyncio.sleep(0)
    for _ in range(1000):
        load.add(LoadCounts(indexed=1, objects=2))
    assert await asyncio.gather(*waiting) == [1000] * 3
    assert (load.counts.indexed, load.counts.objects, load.counts.total) == (1000, 2000, 5000)
    assert await load.next_change(999) == 1000  # it was there before it was asked for
    later = asyncio.create_task(load.next_change(1000))
    await asyncio.sleep(0.01)
    assert not later.done()
    load.wait_for("Milvus")
    assert (await later, load.waiting_for) == (1001, "Milvus")


async def test_the_end_of_a_load_is_a_change_and_the_last(load: Load) -> None:
    waiting = asyncio.create_task(load.next_change(0))
    await asyncio.sleep(0)
    load.end("failed", "the disk is full")
    assert await waiting == await load.next_change(1) == await load.next_change(99) == 1
    assert (load.state, load.error) == ("failed", "the disk is full")
    assert load.finished_at is not None
    assert load.started_at <= load.finished_at


async def test_who_waits_for_a_change_is_told_that_the_service_stops(load: Load) -> None:
    waiting = asyncio.create_task(load.next_change(0))
    await asyncio.sleep(0)
    load.interrupt()
    with pytest.raises(Unavailable, match="goes on after its restart"):
        await waiting


def test_a_load_keeps_its_first_thousand_failures(load: Load) -> None:
    for number in range(0, 1200, 3):
        some = [Failure(f"/{number + i}", "bad") for i in range(3)]
        load.add(LoadCounts(failed=3), some)
    assert load.counts.failed == 1200
    assert [failure.path for failure in load.failures] == [f"/{i}" for i in range(1000)]


async def test_a_load_can_be_followed_to_its_end(services: Services, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 30)
    (tmp_path / "photos" / "bad.jpg").write_bytes(b"no photo")
    load = await services.indexer.start_load(str(tmp_path / "photos"), "t")
    assert (load.photos_per_second, load.seconds_left) == (None, None)
    seen = [load.counts]
    rates = []
    while load.state == "running":
        await load.next_change(load.version)
        seen.append(load.counts)
        rates.append((load.photos_per_second, load.seconds_left))
    assert [counts.processed for counts in seen] == sorted(counts.processed for counts in seen)
    assert (seen[-1].indexed, seen[-1].failed) == (30, 1)
    assert load.version <= 32  # one for each photo at most, and the end
    assert any(rate is not None and rate > 0 and left is not None for rate, left in rates)
    assert (load.photos_per_second, load.seconds_left) == (None, None)
    again = await services.indexer.start_load(str(tmp_path / "photos"), "t")
    await again.wait()
    assert again.version <= 3  # 30 unchanged ones are one change


async def test_loads_that_have_ended_are_kept_for_a_while_with_their_failures(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.indexing._ENDED_LOADS_KEPT", 2)
    write_photos(tmp_path / "photos", 1)
    (tmp_path / "photos" / "bad.jpg").write_bytes(b"no photo")
    loads = []
    for _ in range(3):
        loads.append(await services.indexer.start_load(str(tmp_path / "photos"), "t"))
        await loads[-1].wait()
    kept = [services.indexer.active_load(load.id) for load in loads]
    assert kept == [None, *loads[1:]]
    assert [failure.path for failure in loads[2].failures] == [str(tmp_path / "photos" / "bad.jpg")]
    assert list(loads[2].photos) == []
    resumed = await services.indexer.resume_load(loads[1].id)
    await resumed.wait()
    assert [services.indexer.active_load(load.id) for load in loads] == [None, resumed, loads[2]]
    collection = await services.catalog.collection("t")
    assert collection is not None
    [failed] = await services.catalog.list_images(
        collection.id, state="failed", label=None, after=0, limit=10
    )
    assert (failed.path, failed.error) == (loads[2].failures[0].path, loads[2].failures[0].reason)
