"""What a check finds is mended, and a collection is embedded anew while it is searched."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from backend.app import Services, open_services
from backend.checking import CollectionReport, check_collections
from backend.deadlines import deadline
from backend.errors import EmbedderMismatch, EngineUnavailable, Forbidden
from backend.settings import Settings
from backend.storage.catalog import Collection, Image, ImageState, path_key
from backend.storage.vectors import ObjectVector
from tests.engines.mariadb import MariaDBProcess
from tests.forked import run_program
from tests.photos import draw_photo, encode, write_photos
from tests.service import REPOSITORY, Service, as_flags

_PHOTOS = 6


async def _load(services: Services, folder: Path) -> Collection:
    load = await services.indexer.start_load(str(folder), "t")
    await load.wait()
    return load.collection


async def _check_all(services: Services) -> list[CollectionReport]:
    return await check_collections(
        services.catalog, services.vectors, services.analyzer.embedder, services.writer
    )


async def _check(services: Services) -> CollectionReport:
    [report] = await _check_all(services)
    return report


async def _finds_itself(services: Services, photo: Path) -> bool:
    hits = await services.searcher.search(photo.read_bytes(), "t", 1)
    return bool(hits) and hits[0].object.path == str(photo) and hits[0].distance < 1e-3


@pytest.mark.every_combination
async def test_objects_without_vectors_get_them_again(services: Services, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", _PHOTOS)
    collection = await _load(services, tmp_path / "photos")
    lost = sorted(await services.vectors.ids(collection.store))[:2]
    await services.vectors.delete(collection.store, lost)
    report = await _check(services)
    assert (report.missing, report.orphaned, report.is_consistent) == (set(lost), set(), False)
    load = await services.repairer.index_again(report)
    assert load is not None
    await load.wait()
    report = await _check(services)
    assert report.is_consistent
    assert report.photos == _PHOTOS
    assert all([await _finds_itself(services, photo) for photo in photos])
    assert await services.repairer.index_again(report) is None


async def test_an_upload_gets_its_vectors_again_though_its_folder_is_none_to_load_from(
    settings: Settings, tmp_path: Path
) -> None:
    allowed = settings.model_copy(update={"allowed_roots": (tmp_path / "photos",)})
    async with open_services(allowed) as services:
        added = await services.indexer.add_photo(encode(draw_photo(1)), "t")
        collection = await services.catalog.collection("t")
        assert collection is not None
        lost = sorted(await services.vectors.ids(collection.store))
        await services.vectors.delete(collection.store, lost)
        load = await services.repairer.index_again(await _check(services))
        assert load is not None
        await load.wait()
        assert (load.counts.indexed, load.failures) == (1, [])
        assert (await _check(services)).is_consistent
        [image] = await services.catalog.images_by_id([added.id])
        with pytest.raises(Forbidden):
            await services.indexer.start_load(os.path.dirname(image.path), "t")


@pytest.mark.every_combination
async def test_vectors_of_no_object_are_removed(services: Services, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 2)
    collection = await _load(services, tmp_path / "photos")
    before = await services.vectors.ids(collection.store)
    [stray] = np.eye(1, collection.dim, dtype=np.float32)
    await services.vectors.upsert(collection.store, [ObjectVector(10**6, 10**6, "cat", 0.5, stray)])
    report = await _check(services)
    assert report.orphaned == {10**6}
    await services.repairer.remove_strays(report)
    assert await services.vectors.ids(collection.store) == before
    assert (await _check(services)).is_consistent


@pytest.mark.parametrize("combination", ["mysql"], indirect=True)
async def test_strays_stay_where_the_turn_was_lost(
    services: Services,
    settings: Settings,
    mysql_server: MariaDBProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_photos(tmp_path / "photos", 1)
    collection = await _load(services, tmp_path / "photos")
    [stray] = np.eye(1, collection.dim, dtype=np.float32)
    await services.vectors.upsert(collection.store, [ObjectVector(10**6, 10**6, "cat", 0.5, stray)])
    report = await _check(services)
    object_ids = services.catalog.object_ids

    async def object_ids_before_the_turn_is_lost(collection_id: int) -> set[int]:
        found = await object_ids(collection_id)
        await asyncio.to_thread(mysql_server.drop_connections, settings.mysql_db)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(services.catalog, "object_ids", object_ids_before_the_turn_is_lost)
        with pytest.raises(EngineUnavailable, match="MySQL"):
            await services.repairer.remove_strays(report)
    assert (await _check(services)).orphaned == {10**6}
    await services.repairer.remove_strays(report)
    assert (await _check(services)).is_consistent


async def test_photos_that_are_gone_are_removed_but_not_what_may_be_unmounted(
    services: Services, tmp_path: Path
) -> None:
    [kept, gone] = write_photos(tmp_path / "photos", 2)
    unmounted = write_photos(tmp_path / "photos" / "disk", 2, start=10)
    removed = write_photos(tmp_path / "photos" / "removed", 1, start=20)
    await _load(services, tmp_path / "photos")
    gone.unlink()
    for photo in unmounted:
        photo.unlink()
    shutil.rmtree(tmp_path / "photos" / "removed")
    report = await _check(services)
    assert [image.path for image in report.gone] == [str(gone)]
    assert set(report.unreachable) == {str(photo) for photo in (*unmounted, *removed)}
    await services.repairer.remove_strays(report)
    assert await services.searcher.count("t") == 4
    report = await _check(services)
    assert (report.gone, len(report.unreachable), report.is_consistent) == ([], 3, True)
    assert await _finds_itself(services, kept)


async def test_photos_come_and_go_while_a_check_looks_at_files(
    services: Services, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [_, gone, removed, back] = write_photos(tmp_path / "photos", 4)
    collection = await _load(services, tmp_path / "photos")
    photo = back.read_bytes()
    for path in (gone, removed, back):
        path.unlink()
    uploaded: list[int] = []
    images_by_id = services.catalog.images_by_id

    async def images_by_id_while_photos_come_and_go(image_ids: Sequence[int]) -> list[Image]:
        monkeypatch.setattr(services.catalog, "images_by_id", images_by_id)
        with deadline(10):  # it does not wait for the check
            added = await services.indexer.add_photo(encode(draw_photo(50)), "t")
            uploaded.append(added.id)
            rows = await services.catalog.images_by_key(collection.id, [path_key(str(removed))])
            await services.writer.delete(collection, [row.id for row in rows.values()])
        back.write_bytes(photo)
        return await images_by_id(image_ids)

    monkeypatch.setattr(services.catalog, "images_by_id", images_by_id_while_photos_come_and_go)
    report = await _check(services)
    assert len(uploaded) == 1
    assert [image.path for image in report.gone] == [str(gone)]
    assert (report.photos, report.is_consistent) == (4, True)


async def test_a_collection_that_is_dropped_under_a_check_is_not_reported(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await services.indexer.add_photo(encode(draw_photo(50)), "t")
    await services.indexer.add_photo(encode(draw_photo(51)), "other")
    images = services.catalog.images

    async def images_while_they_are_dropped(
        collection_id: int, states: Sequence[ImageState]
    ) -> AsyncIterator[list[Image]]:
        async for page in images(collection_id, states):
            with deadline(10):
                await services.indexer.drop("t")
            yield page

    monkeypatch.setattr(services.catalog, "images", images_while_they_are_dropped)
    [report] = await _check_all(services)
    assert (report.collection.name, report.gone) == ("other", [])


async def test_a_failed_photo_is_indexed_once_it_can_be_read(
    services: Services, tmp_path: Path
) -> None:
    write_photos(tmp_path / "photos", 1)
    bad = tmp_path / "photos" / "bad.jpg"
    bad.write_bytes(b"no photo")
    await _load(services, tmp_path / "photos")
    bad.write_bytes(encode(draw_photo(5)))
    report = await _check(services)
    assert [failure.path for failure in report.failures] == [str(bad)]
    load = await services.repairer.index_again(report)
    assert load is not None
    await load.wait()
    assert (await _check(services)).failures == []
    assert await _finds_itself(services, bad)


# Embedding anew


async def _forget_hashes(services: Services) -> None:
    """Makes the photos what they were before there were perceptual hashes."""

    async def forget(connection: AsyncConnection) -> None:
        await connection.execute(sa.text("UPDATE images SET phash = NULL"))

    await services.catalog._database.write(forget)


async def test_photos_from_before_there_were_hashes_get_theirs(
    services: Services, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    paths = write_photos(folder, 4)
    (folder / "plain.png").write_bytes(encode(np.full((80, 80, 3), 90, np.uint8), ".png"))
    collection = await _load(services, folder)

    async def hashes() -> dict[str, int | None]:
        pages = services.catalog.images(collection.id, ["indexed"])
        return {Path(image.path).name: image.phash async for page in pages for image in page}

    before = await hashes()
    assert before.pop("plain.png") is None
    assert len({*before.values()} - {None}) == 4
    assert await services.repairer.hash_photos(collection) == 0
    await _forget_hashes(services)
    changed, gone, *_ = paths
    changed.write_bytes(encode(draw_photo(99)))
    gone.unlink()
    assert await services.repairer.hash_photos(collection) == 2
    after = await hashes()
    assert after.pop("plain.png") is None
    assert after == before | {changed.name: None, gone.name: None}


@pytest.fixture
def other_embedder(tmp_path: Path) -> Path:
    """A model repository whose embedder cuts its crops differently: its vectors do not compare."""
    repository = tmp_path / "models"
    shutil.copytree(REPOSITORY / "model_repository", repository)
    for config in (
        repository / "resnet50-small" / "config.pbtxt",
        repository / "resnet50-small" / "configs" / "cpu.pbtxt",
    ):
        text = config.read_text()
        changed = re.sub(r'(key: "crop_margin"\s+value {\s+string_value: )"0.05"', r'\1"0.3"', text)
        assert changed != text
        config.write_text(changed)
    return repository


async def test_a_collection_of_another_embedder_is_embedded_anew(
    settings: Settings, other_embedder: Path, tmp_path: Path
) -> None:
    photos = write_photos(tmp_path / "photos", _PHOTOS)
    async with open_services(settings) as services:
        old = await _load(services, tmp_path / "photos")
    async with open_services(settings.model_copy(update={"model_repository": other_embedder})) as (
        services
    ):
        with pytest.raises(EmbedderMismatch, match="check --repair"):
            await services.searcher.search(photos[0].read_bytes(), "t", 1)
        report = await _check(services)
        assert (report.other_embedder, report.needs_embedding) == (True, True)
        progress: list[tuple[int, int]] = []
        done = await services.repairer.embed_anew(
            report.collection, lambda ready, total: progress.append((ready, total))
        )
        assert (done.photos, done.failures, progress[-1]) == (_PHOTOS, [], (_PHOTOS, _PHOTOS))
        report = await _check(services)
        assert (report.other_embedder, report.is_consistent) == (False, True)
        assert report.objects == done.objects
        assert all([await _finds_itself(services, photo) for photo in photos])
        assert not await services.vectors.exists(old.store)
        assert (report.collection.store != old.store, report.collection.other_store) == (True, None)
        # Nothing but the vectors is new.
        load = await services.indexer.start_load(str(tmp_path / "photos"), "t")
        await load.wait()
        assert load.counts.unchanged == _PHOTOS
    async with open_services(settings) as services:
        with pytest.raises(EmbedderMismatch):
            await services.searcher.search(photos[0].read_bytes(), "t", 1)


async def test_photos_that_have_changed_or_gone_fail_with_that_reason(
    settings: Settings, other_embedder: Path, tmp_path: Path
) -> None:
    [changed, gone, kept] = write_photos(tmp_path / "photos", 3)
    async with open_services(settings) as services:
        await _load(services, tmp_path / "photos")
    changed.write_bytes(encode(draw_photo(100)))
    gone.unlink()
    async with open_services(settings.model_copy(update={"model_repository": other_embedder})) as (
        services
    ):
        report = await _check(services)
        done = await services.repairer.embed_anew(report.collection)
        assert {failure.path for failure in done.failures} == {str(changed), str(gone)}
        report = await _check(services)
        assert report.is_consistent
        assert {failure.path for failure in report.failures} == {str(changed), str(gone)}
        assert all("load its folder" in failure.reason for failure in report.failures)
        load = await services.repairer.index_again(report)
        assert load is not None
        await load.wait()
        assert await _finds_itself(services, changed)
        assert await _finds_itself(services, kept)


async def test_embedding_anew_that_is_broken_off_leaves_the_old_vectors_and_begins_anew(
    settings: Settings, other_embedder: Path, tmp_path: Path
) -> None:
    photos = write_photos(tmp_path / "photos", 3)
    async with open_services(settings) as services:
        await _load(services, tmp_path / "photos")
    changed = settings.model_copy(update={"model_repository": other_embedder})
    async with open_services(changed) as services:
        report = await _check(services)

        def break_off(_ready: int, _total: int) -> None:
            raise asyncio.CancelledError

        with pytest.raises(asyncio.CancelledError):
            await services.repairer.embed_anew(report.collection, break_off)
        half = (await _check(services)).collection
        assert half.store == report.collection.store
        assert half.other_store is not None
        assert await services.vectors.exists(half.other_store)
    async with open_services(settings) as services:  # with the embedder that filled it
        assert await _finds_itself(services, photos[0])
    async with open_services(changed) as services:
        await services.repairer.embed_anew((await _check(services)).collection)
        assert not await services.vectors.exists(half.other_store)
        assert all([await _finds_itself(services, photo) for photo in photos])
        assert (await _check(services)).is_consistent


async def test_what_is_uploaded_or_removed_meanwhile_is_caught_up_with(
    settings: Settings, other_embedder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = write_photos(tmp_path / "photos", 3)
    uploads = [encode(draw_photo(number)) for number in (50, 51)]
    changed = settings.model_copy(update={"model_repository": other_embedder})
    async with open_services(settings) as services:
        collection = await _load(services, tmp_path / "photos")
        embed_page = services.repairer._embed
        pages = 0

        async def embed_page_and_change_photos(*arguments: Any) -> None:
            nonlocal pages
            pages += 1
            await embed_page(*arguments)
            if pages == 1:
                for upload in uploads:
                    await services.indexer.add_photo(upload, "t")
                rows = await services.catalog.images_by_key(
                    collection.id, [path_key(str(photos[0]))]
                )
                await services.writer.delete(collection, [row.id for row in rows.values()])

        monkeypatch.setattr(services.repairer, "_embed", embed_page_and_change_photos)
        # The service keeps its embedder; what embeds anew has the other one.
        elsewhere = changed.model_copy(update={"data_dir": tmp_path / "elsewhere"})
        async with open_services(elsewhere) as other:
            monkeypatch.setattr(services.repairer, "_analyzer", other.analyzer)
            done = await services.repairer.embed_anew(collection)
        assert done.failures == []
    async with open_services(changed) as services:
        report = await _check(services)
        assert (report.is_consistent, report.photos) == (True, 4)
        for upload in uploads:
            [hit] = await services.searcher.search(upload, "t", 1)
            assert hit.distance < 1e-3


@pytest.mark.parametrize("combination", ["milvus+mysql"], indirect=True)
async def test_what_another_process_writes_when_the_turn_is_lost_is_caught_up_with(
    settings: Settings,
    other_embedder: Path,
    mysql_server: MariaDBProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_photos(tmp_path / "photos", 3)
    upload = encode(draw_photo(50))
    changed = settings.model_copy(update={"model_repository": other_embedder})
    async with open_services(settings) as service, open_services(changed, owns=False) as command:
        collection = await _load(service, tmp_path / "photos")
        delete = command.vectors.delete
        deletes = 0

        async def delete_and_lose_the_turn(store: str, ids: Sequence[int]) -> None:
            nonlocal deletes
            deletes += 1
            await delete(store, ids)
            if deletes == 1:
                await asyncio.to_thread(mysql_server.drop_connections, settings.mysql_db)
                await service.indexer.add_photo(upload, "t")

        monkeypatch.setattr(command.vectors, "delete", delete_and_lose_the_turn)
        await command.repairer.embed_anew(collection)
        assert deletes == 2
        report = await _check(command)
        assert (report.is_consistent, report.photos) == (True, 4)
        [hit] = await command.searcher.search(upload, "t", 1)
        assert hit.distance < 1e-3


# The command


def _run_check(
    data_dir: Path, *flags: str, engine_settings: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    arguments = ("check", *flags, "--data-dir", str(data_dir), *as_flags(engine_settings or {}))
    return run_program(*arguments, timeout=120, environment={"COLUMNS": "200"})


def test_the_command_mends_and_says_what_it_has_found(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 3)
    settings = Settings.load(
        data_dir=tmp_path / "data",
        detector_model="yolov3-small",
        embedder_model="resnet50-small",
    )

    async def damage() -> None:
        async with open_services(settings) as services:
            collection = await _load(services, tmp_path / "photos")
            [lost, *_] = await services.vectors.ids(collection.store)
            await services.vectors.delete(collection.store, [lost])
            await _forget_hashes(services)

    asyncio.run(damage())
    done = _run_check(tmp_path / "data")
    assert done.returncode == 1
    assert "without vector" in done.stderr
    done = _run_check(tmp_path / "data", "--repair")
    assert done.returncode == 0, done.stderr
    assert "1 photos in collection t: 1 indexed" in done.stderr
    assert "t: 2 photos have got their perceptual hashes" in done.stderr
    done = _run_check(tmp_path / "data", "--json")
    [report] = json.loads(done.stdout)["collections"]
    assert (done.returncode, report["photos"], report["missing"]) == (0, 3, [])


@pytest.mark.parametrize("combination", ["milvus+mysql"], indirect=True)
def test_searches_go_on_against_the_old_vectors_until_the_new_take_their_place(
    start_service: Callable[..., Service],
    engine_settings: Mapping[str, str],
    other_embedder: Path,
    tmp_path: Path,
) -> None:
    photos = write_photos(tmp_path / "photos", 30)
    service = start_service()
    assert service.load(tmp_path / "photos").status_code == 200
    flags = as_flags(engine_settings)
    embedding = subprocess.Popen(
        [
            *(sys.executable, "-W", "ignore", "-m", "backend", "check", "--repair"),
            *("--data-dir", str(tmp_path / "other"), "--model-repository", str(other_embedder)),
            *("--upload-path", str(tmp_path / "data" / "uploads")),
            *flags,
        ],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
    )
    answered = 0
    photo = photos[0]
    with embedding:
        while (answer := service.search(photo.read_bytes(), 1)).status_code != 409:
            assert answer.status_code == 200, answer.text
            [[path, distance]] = answer.json()
            assert (path, distance < 1e-3) == (str(photo), True)
            answered += 1
            assert answered < 2000
        assert answered > 5
        _, printed = embedding.communicate(timeout=60)
    assert embedding.returncode == 0, printed
    assert "30 photos embedded anew with resnet50-small" in printed
    service.stop()
    service = start_service("--model-repository", str(other_embedder))
    for photo in photos:
        [[path, distance]] = service.search(photo.read_bytes(), 1).json()
        assert (path, distance < 1e-3) == (str(photo), True)
