"""A collection goes into a file and comes out again: the same, whole or not at all."""

import asyncio
import hashlib
import os
import shutil
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from backend.app import Services, open_services
from backend.archive import ArchivedCollection
from backend.backup import Exported, Imported
from backend.checking import check_collections
from backend.errors import (
    Conflict,
    EmbedderMismatch,
    EngineUnavailable,
    InvalidInput,
    NotFound,
    Overloaded,
    VectorsLost,
)
from backend.settings import Settings
from backend.storage.catalog import Collection, CollectionState, Image, path_key
from tests.archives import content, flips, member_bytes, read_all
from tests.engines.mariadb import MariaDBProcess
from tests.photos import draw_photo, encode, write_photos
from tests.service import SMALL_PAIR

_PHOTOS = 6
_UPLOAD = encode(draw_photo(100))
_QUERIES = [encode(draw_photo(seed)) for seed in (0, 3, 100, 200)]
_ENGINES = pytest.mark.parametrize(
    "combination", ["embedded", "milvus", "mysql", "milvus+mysql"], indirect=True
)


async def _export(
    services: Services, path: Path, name: str = "t", *, photos: bool = False
) -> Exported:
    with path.open("w+b") as file:
        return await services.backups.export(name, file, scratch=path.parent, photos=photos)


async def _restore(services: Services, path: Path, **options: Any) -> Imported:
    with path.open("rb") as file:
        return await services.backups.restore(file, **options)


async def _load(services: Services, folder: Path, name: str = "t") -> Collection:
    load = await services.indexer.start_load(str(folder), name)
    await load.wait()
    return load.collection


async def _found(services: Services, name: str, *, paths: bool = True) -> list[Any]:
    """What searches answer, but for ids and the order of what is equally near.

    Engines differ in the last digits of a distance.
    """
    answers = []
    for number, photo in enumerate(_QUERIES):
        hits = await services.searcher.search(photo, name, 10)
        assert [hit.distance for hit in hits] == sorted(hit.distance for hit in hits)
        for hit in hits:
            place = hit.object
            # What is an upload becomes another one.
            has_place = paths and "/uploads/" not in place.path
            where = place.path if has_place else place.sha256
            answers.append(
                (number, where, place.label, place.score, place.box, round(hit.distance, 5))
            )
    return sorted(answers)


async def _images(services: Services, name: str) -> list[Image]:
    collection = await services.catalog.collection(name)
    assert collection is not None
    pages = services.catalog.images(
        collection.id, ["pending", "undoing", "indexed", "failed", "deleting"]
    )
    return [image async for page in pages for image in page]


async def _is_consistent(services: Services) -> bool:
    reports = await check_collections(
        services.catalog, services.vectors, services.analyzer.embedder, services.writer
    )
    return all(report.is_consistent for report in reports)


@dataclass(frozen=True)
class _Source:
    """An export of a collection on embedded engines, one with photos, and what is found in it."""

    plain: Path
    with_photos: Path
    found: Sequence[Any]
    found_by_bytes: Sequence[Any]


def _embedded(folder: Path) -> Settings:
    small_pair = {name.lower(): model for name, model in SMALL_PAIR.items()}
    return Settings.load(port=0, data_dir=folder, **small_pair)


async def _make_source(folder: Path) -> _Source:
    photos = write_photos(folder / "photos", _PHOTOS)
    shutil.copy(photos[0], folder / "photos" / "a copy of it.jpg")
    (folder / "photos" / "no photo.jpg").write_bytes(b"no photo")
    made = [folder / "plain.tar", folder / "photos.tar"]
    async with open_services(_embedded(folder / "data")) as services:
        await services.indexer.add_photo(_UPLOAD, "t")
        await _load(services, folder / "photos")
        for path in made:
            done = await _export(services, path, photos=path is made[1])
            assert done.without_file == 0
        return _Source(
            made[0], made[1], await _found(services, "t"), await _found(services, "t", paths=False)
        )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> _Source:
    folder = tmp_path_factory.mktemp("source")
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, _make_source(folder)).result()


# Round trips


@_ENGINES
async def test_it_goes_from_engines_to_engines_and_back_with_the_same_answers(
    services: Services, source: _Source, tmp_path: Path, combination: str
) -> None:
    done = await _restore(services, source.plain)
    assert (done.collection, done.images, done.failed, done.files) == ("t", _PHOTOS + 2, 1, 1)
    assert await _found(services, "t") == source.found
    assert await _is_consistent(services)
    [failed] = [image for image in await _images(services, "t") if image.state == "failed"]
    assert failed.path.endswith("no photo.jpg")
    assert failed.error
    await _export(services, tmp_path / "again.tar")
    # Bit for bit: labels, boxes, scores and vectors.
    first, again = read_all(source.plain)[0].manifest, read_all(tmp_path / "again.tar")[0].manifest
    assert (again.images.rows, again.objects) == (first.images.rows, first.objects)
    if combination == "milvus+mysql":
        async with open_services(_embedded(tmp_path / "back")) as embedded:
            await _restore(embedded, tmp_path / "again.tar", name="back")
            assert await _found(embedded, "back") == source.found


@pytest.mark.parametrize("combination", ["embedded", "milvus+mysql"], indirect=True)
async def test_photos_that_are_taken_along_become_uploads(
    services: Services, source: _Source, settings: Settings, tmp_path: Path
) -> None:
    done = await _restore(services, source.with_photos, name="other")
    assert (done.images, done.files) == (_PHOTOS + 2, _PHOTOS + 2)
    images = [image for image in await _images(services, "other") if image.state == "indexed"]
    assert len({image.path for image in images}) == _PHOTOS + 2
    for image in images:
        path = Path(image.path)
        assert settings.uploads in path.parents
        assert hashlib.sha256(path.read_bytes()).hexdigest() == image.sha256
    assert await _found(services, "other", paths=False) == source.found_by_bytes
    # They are uploads in every way: known again, kept by a start, and gone when they are deleted.
    assert not (await services.indexer.add_photo(_UPLOAD, "other")).created
    await services.writer.sweep_uploads()
    assert all(Path(image.path).exists() for image in images)
    await services.indexer.remove_photo(images[0].id)
    assert not Path(images[0].path).exists()
    await services.indexer.drop("other")
    assert not list(settings.uploads.rglob("*.*"))


async def test_uploads_are_always_taken_along_and_outlive_the_collection_that_they_replace(
    services: Services, tmp_path: Path
) -> None:
    data = encode(draw_photo(70))
    await services.indexer.add_photo(data, "uploaded")
    done = await _export(services, tmp_path / "export.tar", "uploaded")
    assert done.manifest.photos is not None
    assert done.manifest.photos.files == 1
    await _restore(services, tmp_path / "export.tar", replace=True)
    now = await services.catalog.collection("uploaded")
    assert now is not None
    [[image]] = [page async for page in services.catalog.images(now.id, ["indexed"])]
    assert Path(image.path).read_bytes() == data


async def test_an_import_does_not_take_uploads_away_whose_files_it_has_not(
    services: Services, tmp_path: Path
) -> None:
    data = encode(draw_photo(71))
    await services.indexer.add_photo(data, "uploaded")
    collection = await services.catalog.collection("uploaded")
    assert collection is not None
    [[image]] = [page async for page in services.catalog.images(collection.id, ["indexed"])]
    path = Path(image.path)
    path.rename(tmp_path / "away")
    await _export(services, tmp_path / "export.tar", "uploaded")
    (tmp_path / "away").rename(path)
    with pytest.raises(Conflict, match="its file is not in the export"):
        await _restore(services, tmp_path / "export.tar", replace=True)
    assert path.read_bytes() == data


async def test_a_row_that_names_another_collections_upload_does_not_get_it(
    services: Services, settings: Settings, tmp_path: Path
) -> None:
    await services.indexer.add_photo(_UPLOAD, "theirs")
    [theirs] = await _images(services, "theirs")
    made = content(_of(services), 4)
    around = theirs.path.replace("/uploads/", "/uploads/../uploads/")
    for number, path in enumerate((theirs.path, around)):
        known = {"path": path, "path_key": path_key(path), "sha256": theirs.sha256}
        made.change_image(number, **known)
    made.change_image(2, sha256=theirs.sha256)  # of a folder, whatever its bytes
    with (tmp_path / "export.tar").open("w+b") as file:
        made.write(file)
    await _restore(services, tmp_path / "export.tar")
    mine = await services.catalog.collection("t")
    assert mine is not None
    paths = [Path(image.path) for image in await _images(services, "t")]
    assert paths[2:] == [Path("/photos/2.jpg"), Path("/photos/3.jpg")]
    for mine_now in paths[:2]:
        assert mine_now.parent == settings.uploads / services.catalog.identity / str(mine.id)
        assert not mine_now.exists()
    assert len(set(paths)) == 4
    # As an upload whose file is gone: it comes back with its bytes.
    await services.indexer.add_photo(_UPLOAD, "t")
    assert [each.exists() for each in paths[:2]].count(True) == 1
    await services.indexer.drop("t")
    assert Path(theirs.path).read_bytes() == _UPLOAD


async def test_photos_whose_files_are_gone_or_changed_are_exported_without(
    services: Services, tmp_path: Path
) -> None:
    gone, changed, kept = write_photos(tmp_path / "photos", 3)
    await _load(services, tmp_path / "photos")
    gone.unlink()
    changed.write_bytes(_UPLOAD)
    done = await _export(services, tmp_path / "export.tar", photos=True)
    assert done.without_file == 2
    assert done.manifest.photos is not None
    assert done.manifest.photos.files == 1
    _, photos = read_all(tmp_path / "export.tar")
    assert {Path(each.image.path) for each in photos if each.photo is not None} == {kept}
    await services.indexer.drop("t")
    done_again = await _restore(services, tmp_path / "export.tar")
    assert done_again.files == 1
    assert {image.path for image in await _images(services, "t")} > {str(gone), str(changed)}


async def test_an_empty_collection_comes_back_empty(services: Services, tmp_path: Path) -> None:
    await services.writer.ensure_collection("t")
    await _export(services, tmp_path / "export.tar", photos=True)
    done = await _restore(services, tmp_path / "export.tar", name="u")
    assert (done.images, done.objects) == (0, 0)
    await services.indexer.add_photo(_UPLOAD, "u")
    assert await services.searcher.count("u") == 1


# What is refused


@dataclass(frozen=True)
class _State:
    collections: Sequence[Any]
    stores: frozenset[str]
    files: frozenset[Path]
    """Uploads."""


async def _state(services: Services, settings: Settings) -> _State:
    """All that an import may write."""
    states: tuple[CollectionState, ...] = ("creating", "importing", "ready", "deleting")
    collections = [each for state in states for each in await services.catalog.collections(state)]
    vectors: Any = services.vectors
    stores = frozenset(await vectors._ask("list_collections"))
    files = frozenset(path for path in settings.uploads.rglob("*") if path.is_file())
    return _State(collections, stores, files)


async def test_a_damaged_file_is_refused_whole_and_nothing_is_written(
    services: Services, settings: Settings, source: _Source, tmp_path: Path
) -> None:
    before = await _state(services, settings)
    whole = source.with_photos.read_bytes()
    damaged = tmp_path / "damaged.tar"
    every_member = [data for _, data in flips(source.with_photos, every=len(whole) // 12)][::23]
    cut = [whole[: len(whole) * part // 8] for part in range(8)]
    for data in (*every_member, *cut, whole + b"\0" * 512):
        damaged.write_bytes(data)
        with pytest.raises(InvalidInput, match="nothing was imported"):
            await _restore(services, damaged)
    assert await _state(services, settings) == before


def _of(services: Services, **values: Any) -> ArchivedCollection:
    embedder = services.analyzer.embedder
    known = {"embedder": embedder.name, "embedder_sha256": embedder.sha256, "metric": "L2"}
    about = {"name": "t", "dimension": embedder.dimension, **known, **values}
    return ArchivedCollection(**about)


async def test_vectors_of_another_embedder_are_refused(
    services: Services, settings: Settings, tmp_path: Path
) -> None:
    before = await _state(services, settings)
    for values, kind in (
        ({"embedder_sha256": "0" * 64, "embedder": "another"}, EmbedderMismatch),
        ({"dimension": 8}, InvalidInput),
        ({"metric": "IP"}, InvalidInput),
    ):
        with (tmp_path / "export.tar").open("w+b") as file:
            content(_of(services, **values), 2).write(file)
        with pytest.raises(kind):
            await _restore(services, tmp_path / "export.tar")
    assert await _state(services, settings) == before


async def test_a_collection_that_is_there_is_replaced_only_where_that_is_said(
    services: Services, settings: Settings, source: _Source
) -> None:
    await services.indexer.add_photo(encode(draw_photo(7)), "t")
    before = await _state(services, settings)
    with pytest.raises(Conflict, match="there is a collection 't'"):
        await _restore(services, source.plain)
    assert await _state(services, settings) == before
    await _restore(services, source.with_photos, replace=True)
    after = await _state(services, settings)
    assert [each.name for each in after.collections] == ["t"]
    assert after.collections[0].id != before.collections[0].id
    assert len(after.stores) == 1
    assert after.stores.isdisjoint(before.stores)
    assert after.files.isdisjoint(before.files)
    assert await _found(services, "t", paths=False) == source.found_by_bytes


async def test_a_load_into_a_collection_that_is_replaced_ends(
    services: Services, source: _Source, tmp_path: Path
) -> None:
    write_photos(tmp_path / "many", 60)
    load = await services.indexer.start_load(str(tmp_path / "many"), "t")
    await _restore(services, source.plain, replace=True)
    assert load.state != "running"
    assert await _found(services, "t") == source.found
    assert await _is_consistent(services)


async def test_one_that_has_come_meanwhile_is_not_touched(
    services: Services, settings: Settings, source: _Source
) -> None:
    def make_another(_done: int, _total: int) -> None:
        making.append(asyncio.ensure_future(services.indexer.add_photo(_UPLOAD, "t")))

    making: list[asyncio.Future[Any]] = []
    check_counts = services.backups._check_counts

    async def check_counts_when_it_is_made(*arguments: Any) -> None:
        await asyncio.gather(*making)
        await check_counts(*arguments)

    services.backups._check_counts = check_counts_when_it_is_made  # type: ignore[method-assign, assignment]
    with pytest.raises(Conflict, match="by now"):
        await _restore(services, source.with_photos, on_progress=make_another)
    assert await services.searcher.count("t") == 1
    after = await _state(services, settings)
    assert [each.name for each in after.collections] == ["t"]
    assert len(after.stores) == 1
    assert len(after.files) == 1


async def test_nothing_is_seen_before_all_is_there_and_a_cancelled_import_leaves_nothing(
    services: Services, settings: Settings, source: _Source
) -> None:
    before = await _state(services, settings)
    seen: list[Any] = []

    async def look() -> None:
        seen.append(await services.catalog.collections_with_counts())
        seen.append(await services.catalog.collection("t"))
        [hidden] = await services.catalog.collections("importing")
        assert await services.catalog.collection_in_any_state("t") is None
        assert not hidden.name.isidentifier()  # so that nobody can ask for it
        importing.cancel()

    def begin_to_look(_done: int, _total: int) -> None:
        looking.append(asyncio.ensure_future(look()))

    looking: list[asyncio.Future[None]] = []
    check_counts = services.backups._check_counts

    async def check_counts_late(*arguments: Any) -> None:
        await asyncio.gather(*looking)
        await asyncio.sleep(30)  # until the look has cancelled it
        await check_counts(*arguments)

    services.backups._check_counts = check_counts_late  # type: ignore[method-assign, assignment]
    importing = asyncio.ensure_future(
        _restore(services, source.with_photos, on_progress=begin_to_look)
    )
    with pytest.raises(asyncio.CancelledError):
        await importing
    assert seen == [[], None]
    assert await _state(services, settings) == before


async def test_what_cannot_be_exported_is_said(services: Services, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        await _export(services, tmp_path / "export.tar")
    with pytest.raises(InvalidInput):
        await _export(services, tmp_path / "export.tar", name="../t")
    write_photos(tmp_path / "photos", 2)
    collection = await _load(services, tmp_path / "photos")
    lost = min(await services.vectors.ids(collection.store))
    await services.vectors.delete(collection.store, [lost])
    with pytest.raises(Conflict, match=r"1 objects .* have no vectors: .*--repair"):
        await _export(services, tmp_path / "export.tar")
    await services.vectors.drop(collection.store)
    with pytest.raises(VectorsLost):
        await _export(services, tmp_path / "export.tar")


async def test_one_client_at_a_time(services: Services) -> None:
    with services.backups.at_work(), pytest.raises(Overloaded), services.backups.at_work():
        pass
    with services.backups.at_work():
        pass


# While photos come and go


async def test_an_export_is_the_collection_as_it_is_at_one_moment(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Photos come, change and go between its steps; what is in it is what was there in the end."""
    photos = write_photos(tmp_path / "photos", 6)
    collection = await _load(services, tmp_path / "photos")
    ids = {image.path: image.id for image in await _images(services, "t")}
    uploaded = await services.indexer.add_photo(_UPLOAD, "t")
    copies_add = services.backups._read_photo
    read: list[str] = []

    def read_photo(path: str) -> bytes:
        read.append(path)
        return copies_add(path)

    monkeypatch.setattr(services.backups, "_read_photo", read_photo)
    monkeypatch.setattr("backend.backup._ROUNDS", 1)  # what comes late meets those who wait
    catalog_images = services.catalog.images
    changed = False

    async def images_after_a_change(*arguments: Any) -> AsyncIterator[list[Image]]:
        nonlocal changed
        if not changed:  # the objects are copied, the photos are about to be
            changed = True
            await services.indexer.remove_photo(ids[str(photos[0])])
            photos[1].write_bytes(encode(draw_photo(50)))
            photos[2].write_bytes(b"no photo any more")
            write_photos(tmp_path / "photos", 2, start=20)
            await services.indexer.remove_photo(uploaded.id)
            os.rename(photos[0], tmp_path / "gone.jpg")
            await _load(services, tmp_path / "photos")
        async for page in catalog_images(*arguments):
            yield page

    monkeypatch.setattr(services.catalog, "images", images_after_a_change)
    done = await _export(services, tmp_path / "export.tar", photos=True)
    assert changed
    assert done.without_file == 0
    _, exported = read_all(tmp_path / "export.tar")
    now = await _images(services, "t")
    assert [each.image.path for each in exported] == [image.path for image in now]
    assert [each.image.sha256 for each in exported] == [image.sha256 for image in now]
    assert sum(each.image.error is not None for each in exported) == 1
    places = await services.catalog.objects_of_images([image.id for image in now])
    for image, each in zip(now, exported, strict=True):
        mine = places.get(image.id, [])
        assert [(p.label, p.score, p.box) for p in mine] == [
            (found.label, found.score, found.box) for found in each.image.objects
        ]
        kept = await services.vectors.vectors(collection.store, [place.id for place in mine])
        assert [kept[place.id].tobytes() for place in mine] == [
            vector.tobytes() for vector in each.embeddings
        ]
    names = member_bytes(tmp_path / "export.tar").keys()
    assert sum(name.startswith("photos/") for name in names) == len(now) - 1
    assert not any(hashlib.sha256(_UPLOAD).hexdigest() in name for name in names)


async def test_exports_while_a_load_runs_have_each_photo_whole(
    services: Services, tmp_path: Path
) -> None:
    write_photos(tmp_path / "photos", 40)
    load = await services.indexer.start_load(str(tmp_path / "photos"), "t")
    exported: list[Path] = []
    while load.state == "running" or not exported:
        path = tmp_path / f"{len(exported)}.tar"
        await _export(services, path)
        exported.append(path)
    await load.wait()
    assert len(exported) > 2
    now = {image.path: image.id for image in await _images(services, "t")}
    places = await services.catalog.objects_of_images(list(now.values()))
    sizes = []
    for path in exported:
        _, photos = read_all(path)
        sizes.append(len(photos))
        for each in photos:
            objects = [(place.label, place.box) for place in places[now[each.image.path]]]
            assert [(found.label, found.box) for found in each.image.objects] == objects
    assert sizes == sorted(sizes)
    assert any(0 < size < 40 for size in sizes), sizes
    await _restore(services, exported[-1], name="u")
    assert await _is_consistent(services)


async def test_a_collection_that_is_dropped_meanwhile_is_no_export(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photos(tmp_path / "photos", 1)
    await _load(services, tmp_path / "photos")
    copy_objects = services.backups._copy_objects

    async def copy_objects_and_drop(*arguments: Any) -> None:
        await copy_objects(*arguments)
        await services.indexer.drop("t")

    monkeypatch.setattr(services.backups, "_copy_objects", copy_objects_and_drop)
    with pytest.raises(Conflict, match="meanwhile"):
        await _export(services, tmp_path / "export.tar")


# Beside other processes


@asynccontextmanager
async def _held_up(services: Services, path: Path) -> AsyncIterator["asyncio.Future[Imported]"]:
    """An import that has written everything, and waits before it becomes visible."""
    arrived, may_go_on = asyncio.Event(), asyncio.Event()
    check_counts = services.backups._check_counts

    async def check_counts_later(*arguments: Any) -> None:
        arrived.set()
        await may_go_on.wait()
        await check_counts(*arguments)

    services.backups._check_counts = check_counts_later  # type: ignore[method-assign, assignment]
    importing = asyncio.ensure_future(_restore(services, path))
    await asyncio.wait(
        [importing, asyncio.ensure_future(arrived.wait())], return_when=asyncio.FIRST_COMPLETED
    )
    yield importing
    may_go_on.set()


@pytest.mark.parametrize("combination", ["milvus+mysql"], indirect=True)
async def test_a_service_that_starts_leaves_an_import_of_another_process_alone(
    services: Services, settings: Settings, source: _Source
) -> None:
    async with (
        _held_up(services, source.with_photos) as importing,
        open_services(settings) as other,
    ):
        assert len(await other.catalog.collections("importing")) == 1
        assert len([path for path in settings.uploads.rglob("*") if path.is_file()]) > _PHOTOS
    assert (await importing).images == _PHOTOS + 2
    assert await _found(services, "t", paths=False) == source.found_by_bytes


@pytest.mark.parametrize("combination", ["mysql"], indirect=True)
async def test_an_import_that_others_do_not_know_of_any_more_is_undone(
    services: Services, settings: Settings, source: _Source, mysql_server: MariaDBProcess
) -> None:
    before = await _state(services, settings)
    async with _held_up(services, source.with_photos) as importing:
        await asyncio.to_thread(mysql_server.drop_connections, settings.mysql_db)
        # What another process does at its start; vectors and files it would find elsewhere.
        services.writer._importing.clear()
        await services.writer.recover()
        assert await services.catalog.collections("importing") == []
    with pytest.raises((EngineUnavailable, Conflict)):
        await importing
    await services.writer.sweep_uploads()
    assert await _state(services, settings) == before
    await _restore(services, source.plain)
    assert await _found(services, "t") == source.found
