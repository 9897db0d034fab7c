"""Collections that the vector engine has lost, or cannot load, beside others that it has."""

import asyncio
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from pymilvus import MilvusClient

from backend.app import Services, open_services
from backend.checking import CollectionReport, check_collections
from backend.errors import ConfigurationError, EngineUnavailable, StillWriting, VectorsLost
from backend.settings import Settings
from backend.storage.catalog import Collection, ImageState, NewImage, NewObject, path_key
from backend.storage.vectors import ObjectVector
from tests.engines.milvus import MilvusProcess
from tests.forked import run_program
from tests.photos import draw_photo, encode, write_photos
from tests.service import SMALL_PAIR, Service, as_flags

_PHOTOS = 3
_UPLOAD = encode(draw_photo(100))


async def _load(services: Services, folder: Path, name: str) -> None:
    load = await services.indexer.start_load(str(folder), name)
    await load.wait()


async def _collection(services: Services, name: str) -> Collection:
    collection = await services.catalog.collection(name)
    assert collection is not None
    return collection


async def _photos(services: Services, name: str) -> dict[int, ImageState]:
    """The states of a collection's photos by their ids."""
    collection = await _collection(services, name)
    pages = services.catalog.images(collection.id, ["pending", "indexed", "failed", "deleting"])
    return {image.id: image.state async for page in pages for image in page}


async def _finds_itself(services: Services, photo: bytes, name: str) -> bool:
    [hit] = await services.searcher.search(photo, name, 1)
    return Path(hit.object.path).read_bytes() == photo and hit.distance < 1e-3


async def _check(services: Services) -> dict[str, CollectionReport]:
    reports = await check_collections(
        services.catalog, services.vectors, services.analyzer.embedder, services.writer
    )
    return {report.collection.name: report for report in reports}


async def _all_ready(services: Services) -> bool:
    return all(state.is_ready for state in await services.readiness.check())


async def _fill(settings: Settings, folder: Path) -> list[bytes]:
    """Loads photos into the collection `t`, uploads one into `other`; returns the former."""
    photos = write_photos(folder, _PHOTOS)
    async with open_services(settings) as services:
        await _load(services, folder, "t")
        await services.indexer.add_photo(_UPLOAD, "other")
    return [photo.read_bytes() for photo in photos]


def _run(command: str, settings: Settings, *flags: str) -> subprocess.CompletedProcess[str]:
    """Runs a command with these settings until it ends."""
    chosen = {
        name: str(getattr(settings, name))
        for name in settings.model_fields_set
        if name not in ("mysql_pwd", "milvus_token")
    }
    return run_program(
        command, *flags, *as_flags(chosen), timeout=120, environment={"COLUMNS": "200"}
    )


# Settings that lead to a Milvus that has none


@pytest.fixture
def elsewhere(settings: Settings, milvus_server: MilvusProcess) -> Iterator[Settings]:
    """The same settings, but for an empty database of Milvus."""
    name = f"t{uuid4().hex[:12]}"
    yield settings.model_copy(update={"milvus_db": name})
    address = f"http://{milvus_server.host}:{milvus_server.port}"
    with closing(MilvusClient(address)) as client:
        if name in client.list_databases():
            with closing(MilvusClient(address, db_name=name)) as there:
                for store in there.list_collections():
                    there.drop_collection(store)
            client.drop_database(name)


@pytest.mark.parametrize("combination", ["milvus"], indirect=True)
async def test_settings_that_lead_to_another_milvus_are_refused_and_lose_nothing(
    settings: Settings, elsewhere: Settings, tmp_path: Path
) -> None:
    photos = await _fill(settings, tmp_path / "photos")
    for owns in (True, False):
        with pytest.raises(
            ConfigurationError, match=r"MILVUS_DB=.* Milvus .*none.*t, other"
        ) as told:
            async with open_services(elsewhere, owns=owns):
                pass
        assert "check --repair" in str(told.value)
    done = await asyncio.to_thread(_run, "serve", elsewhere)
    assert done.returncode == 2, done.stderr
    assert f"MILVUS_DB={elsewhere.milvus_db}" in done.stderr.splitlines()[-1]
    done = await asyncio.to_thread(_run, "check", elsewhere)
    assert done.returncode == 1
    assert "The vectors of t are lost, or the settings lead to another" in done.stderr
    async with open_services(settings) as services:
        assert set((await _photos(services, "t")).values()) == {"indexed"}
        assert all([await _finds_itself(services, photo, "t") for photo in photos])
        assert await _finds_itself(services, _UPLOAD, "other")
        assert all(report.is_consistent for report in (await _check(services)).values())


@pytest.mark.parametrize("combination", ["milvus"], indirect=True)
async def test_a_milvus_without_vectors_is_none_too_few_where_there_are_no_photos(
    settings: Settings, elsewhere: Settings
) -> None:
    async with open_services(settings) as services:
        await services.writer.ensure_collection("t")
    async with open_services(elsewhere) as services:
        await services.indexer.add_photo(_UPLOAD, "t")
        assert await _finds_itself(services, _UPLOAD, "t")


# A collection that is lost


@pytest.mark.parametrize("combination", ["milvus"], indirect=True)
async def test_a_lost_collection_is_told_of_and_made_anew_by_a_repair(
    settings: Settings, tmp_path: Path
) -> None:
    photos = await _fill(settings, tmp_path / "photos")
    async with open_services(settings) as services:
        lost = await _collection(services, "t")
        before = await _photos(services, "t")
        object_ids = await services.catalog.object_ids(lost.id)
        await services.vectors.drop(lost.store)
    async with open_services(settings) as services:
        assert await _all_ready(services)
        assert await _finds_itself(services, _UPLOAD, "other")
        await services.indexer.add_photo(encode(draw_photo(101)), "other")
        for use in (
            services.searcher.search(photos[0], "t", 1),
            services.indexer.add_photo(_UPLOAD, "t"),
            services.indexer.start_load(str(tmp_path / "photos"), "t"),
        ):
            with pytest.raises(VectorsLost, match=r"Milvus .*'t'.*check --repair"):
                await use
        assert await _photos(services, "t") == before
        report = (await _check(services))["t"]
        assert (report.lost, report.missing, report.is_consistent) == (True, object_ids, False)
    done = await asyncio.to_thread(_run, "check", settings, "--repair")
    assert done.returncode == 0, done.stderr
    assert f"t: {len(object_ids)} objects of {_PHOTOS} photos embedded anew" in done.stderr
    async with open_services(settings) as services:
        assert await _photos(services, "t") == before
        assert await services.catalog.object_ids(lost.id) == object_ids
        assert all([await _finds_itself(services, photo, "t") for photo in photos])
        assert all(report.is_consistent for report in (await _check(services)).values())


@pytest.mark.parametrize("combination", ["milvus+mysql"], indirect=True)
async def test_a_collection_that_is_lost_under_the_service_is_told_of_and_made_anew_beside_it(
    settings: Settings, tmp_path: Path
) -> None:
    photos = await _fill(settings, tmp_path / "photos")
    new = write_photos(tmp_path / "photos", 1, start=50)[0].read_bytes()
    async with open_services(settings) as services:
        lost = await _collection(services, "t")
        before = await _photos(services, "t")
        await services.vectors.drop(lost.store)
        with pytest.raises(VectorsLost, match="check --repair"):
            await services.searcher.search(photos[0], "t", 1)
        with pytest.raises(VectorsLost, match="check --repair"):  # after an outage, which mends
            await _load(services, tmp_path / "photos", "t")
        assert (await _photos(services, "t")).items() >= before.items()
        assert await _all_ready(services)
        await services.indexer.add_photo(encode(draw_photo(101)), "other")
        async with open_services(settings, owns=False, repairs=True) as command:
            await command.repairer.embed_anew((await _check(command))["t"].collection)
        assert all([await _finds_itself(services, photo, "t") for photo in photos])
        await _load(services, tmp_path / "photos", "t")
        assert await _finds_itself(services, new, "t")
        assert set((await _photos(services, "t")).values()) == {"indexed"}
        assert all(report.is_consistent for report in (await _check(services)).values())


@pytest.mark.parametrize("combination", ["milvus"], indirect=True)
def test_clients_are_told_of_a_lost_collection(
    start_service: Callable[..., Service],
    engine_settings: Mapping[str, str],
    milvus_server: MilvusProcess,
    tmp_path: Path,
) -> None:
    [photo] = write_photos(tmp_path / "photos", 1)
    service = start_service()
    for table in ("t", "other"):
        body = {"File": str(tmp_path / "photos"), "Table": table}
        assert service.post("/img/load", json=body).status_code == 200
    service.stop()
    address = f"http://{milvus_server.host}:{milvus_server.port}"
    with closing(MilvusClient(address)) as client:
        [store] = [name for name in client.list_collections() if name.startswith("t_")]
        client.drop_collection(store)
    service = start_service()
    assert "event=recovery.vectors_lost collection=t " in service.log.read_text()
    answer = service.search(photo.read_bytes(), 1, "t")
    assert (answer.status_code, "check --repair" in answer.json()["msg"]) == (500, True)
    assert service.search(photo.read_bytes(), 1, "other").status_code == 200
    assert service.get("/readyz").status_code == 200


async def test_a_check_makes_embedded_vectors_anew_that_are_lost(
    settings: Settings, tmp_path: Path
) -> None:
    photos = await _fill(settings, tmp_path / "photos")
    (settings.data_dir / "vectors.db").unlink()
    done = await asyncio.to_thread(_run, "load", settings, str(tmp_path / "photos"))
    assert (done.returncode, "DATA_DIR=" in done.stderr.splitlines()[-1]) == (2, True)
    done = await asyncio.to_thread(_run, "check", settings, "--repair")
    assert done.returncode == 0, done.stderr
    async with open_services(settings) as services:
        assert set((await _photos(services, "t")).values()) == {"indexed"}
        assert all([await _finds_itself(services, photo, "t") for photo in photos])
        assert await _finds_itself(services, _UPLOAD, "other")


# A collection that cannot be loaded


@pytest.fixture
def own_milvus(tmp_path: Path) -> Iterator[MilvusProcess]:
    """A server of the test's own, whose files are taken away."""
    process = MilvusProcess(tmp_path / "server", options={"common.session.ttl": "3"})
    process.start()
    yield process
    process.remove()


def _own_settings(milvus: MilvusProcess, tmp_path: Path) -> Settings:
    small_pair = {name.lower(): model for name, model in SMALL_PAIR.items()}
    return Settings.load(
        port=0,
        data_dir=tmp_path / "data",
        milvus_host=milvus.host,
        milvus_port=milvus.port,
        engine_timeout=4,
        **small_pair,
    )


async def test_a_collection_that_cannot_be_loaded_holds_up_nobody_else(
    own_milvus: MilvusProcess, tmp_path: Path
) -> None:
    settings = _own_settings(own_milvus, tmp_path)
    photos = await _fill(settings, tmp_path / "photos")
    async with open_services(settings.model_copy(update={"engine_timeout": 30})) as services:
        bad = await _collection(services, "t")
        await services.vectors._ask("flush", [bad.store])  # type: ignore[attr-defined]
        await services.vectors._ask("release_collection", bad.store)  # type: ignore[attr-defined]
        new = NewImage("/new", path_key("/new"), "0" * 64, 1, 1)
        [broken_off] = await services.catalog.begin_images(bad.id, [new])
    own_milvus.kill()
    # Its vectors lie there; the other collection's are in Milvus' log still.
    (own_milvus.folder / "data" / "insert_log").rename(tmp_path / "insert_log")
    await asyncio.to_thread(own_milvus.start)
    async with open_services(settings) as services:
        assert await _finds_itself(services, _UPLOAD, "other")
        await services.indexer.add_photo(encode(draw_photo(101)), "other")
        assert await _all_ready(services)
        for use in (
            services.searcher.search(photos[0], "t", 1),
            services.indexer.add_photo(_UPLOAD, "t"),
        ):
            with pytest.raises(EngineUnavailable, match="Milvus"):
                await use
        assert (await _photos(services, "t"))[broken_off.id] == "pending"
        await services.indexer.drop("other")
        with pytest.raises(EngineUnavailable, match="Milvus"):  # nothing there can be searched
            await services.writer.recover()
        files = own_milvus.folder / "data" / "insert_log"
        await asyncio.to_thread(shutil.copytree, tmp_path / "insert_log", files, dirs_exist_ok=True)
        async with asyncio.timeout(60):
            while True:
                try:
                    await services.indexer.add_photo(_UPLOAD, "t")
                    break
                except EngineUnavailable:
                    await asyncio.sleep(0.5)
        assert (await _photos(services, "t"))[broken_off.id] == "failed"
        assert all([await _finds_itself(services, photo, "t") for photo in (*photos, _UPLOAD)])
        own_milvus.kill()
        with pytest.raises(EngineUnavailable, match="Milvus"):
            await services.writer.recover()


@pytest.mark.parametrize("combination", ["milvus"], indirect=True)
async def test_an_import_that_goes_on_keeps_nobody_waiting_but_who_writes_there(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = await _fill(settings, tmp_path / "photos")
    async with open_services(settings) as services:
        busy = await _collection(services, "t")
        new = NewImage("/new", path_key("/new"), "0" * 64, 1, 1)
        [broken_off] = await services.catalog.begin_images(busy.id, [new])

        async def import_on(store: str) -> None:
            raise StillWriting("Milvus", "Milvus still imports")

        with monkeypatch.context() as patch:
            patch.setattr(services.vectors, "settle", import_on)
            await services.writer.recover()
            await services.indexer.add_photo(encode(draw_photo(101)), "other")
            assert await _finds_itself(services, photos[0], "t")
            with pytest.raises(StillWriting):
                await services.indexer.add_photo(_UPLOAD, "t")
            assert services.writer.outages.engines == ()
            assert (await _photos(services, "t"))[broken_off.id] == "pending"
        await services.indexer.add_photo(_UPLOAD, "t")
        assert (await _photos(services, "t"))[broken_off.id] == "failed"
        assert await _finds_itself(services, _UPLOAD, "t")


@pytest.mark.parametrize("combination", ["embedded", "milvus+mysql"], indirect=True)
@pytest.mark.parametrize("what", ["loaded", "deleted"])
async def test_nothing_is_done_to_a_photo_before_what_another_has_broken_off_there_is_settled(
    what: str, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a bulk load is killed while Milvus imports its vectors."""
    await _fill(settings, tmp_path / "photos")
    [path] = write_photos(tmp_path / "more", 1, start=50)
    async with open_services(settings) as services:
        collection = await _collection(services, "t")
        objects = [NewObject("chair", 0.5, (0.0, 0.0, 9.0, 9.0))]
        new = NewImage(str(path), path_key(str(path)), "0" * 64, 1, 1, objects=objects)
        [begun] = await services.catalog.begin_images(collection.id, [new])
        vector = np.zeros(collection.dim, np.float32)
        vector[0] = 1
        on_their_way = [ObjectVector(begun.object_ids[0], begun.id, "chair", 0.5, vector)]
        settle = services.vectors.settle

        async def until_imported(store: str) -> None:
            if on_their_way:
                await services.vectors.insert(store, [on_their_way.pop()])
            await settle(store)

        monkeypatch.setattr(services.vectors, "settle", until_imported)
        if what == "loaded":
            await _load(services, path.parent, "t")
            assert (await _photos(services, "t"))[begun.id] == "indexed"
            assert await _finds_itself(services, path.read_bytes(), "t")
        else:
            assert await services.writer.remove(begun.id)
            assert begun.id not in await _photos(services, "t")
        await services.vectors.insert(collection.store, on_their_way)  # too late: nobody has waited
        report = (await _check(services))["t"]
        assert (report.missing, report.orphaned) == (set(), set())


async def test_a_load_waits_for_an_import_that_goes_on_longer_than_for_a_step_that_fails(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _fill(settings, tmp_path / "photos")
    folder = tmp_path / "more"
    write_photos(folder, 1, start=50)
    monkeypatch.setattr("backend.indexing._ATTEMPTS", 1)
    monkeypatch.setattr("backend.indexing._PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr("backend.outages._LONGEST_DELAY_SECONDS", 0.05)
    async with open_services(settings) as services:
        add, told = services.writer.add_wanted, list[str | None]()
        left = 5

        async def add_later(*arguments: Any) -> None:
            nonlocal left
            told.append(load.waiting_for)
            if left:
                left -= 1
                raise StillWriting("Milvus", "Milvus still imports")
            await add(*arguments)

        monkeypatch.setattr(services.writer, "add_wanted", add_later)
        load = await services.indexer.start_load(str(folder), "t")
        await load.wait()
        assert load.state == "done"
        assert told == [None, *["Milvus"] * 5]
        assert load.waiting_for is None

        monkeypatch.setattr("backend.indexing._WRITING_PATIENCE_SECONDS", 0.0)
        left = 1
        write_photos(folder, 1, start=60)
        load = await services.indexer.start_load(str(folder), "t")
        with pytest.raises(StillWriting):
            await load.wait()
        assert (load.state, load.error) == ("failed", "StillWriting: Milvus still imports")
