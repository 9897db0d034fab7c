"""What is asked of stores, and what mends and copies photos that lie in one."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final

import fsspec
import pytest

from backend.app import Services, open_services
from backend.checking import CollectionReport, check_collections
from backend.errors import (
    ConfigurationError,
    Forbidden,
    InvalidImage,
    InvalidInput,
    StoreUnavailable,
    TooLarge,
)
from backend.files import EVERYWHERE, PhotoFolders
from backend.photo_addresses import PhotoAddress
from backend.places import THIS_MACHINE, PhotoPlaces
from backend.settings import Settings
from backend.storage.catalog import path_key
from tests.object_store import ObjectStore, object_store
from tests.photos import draw_photo, encode, write_photos

ROOT: Final = "s3://bucket/photos"
_PHOTOS: Final = {f"photos/{number}.jpg": encode(draw_photo(number)) for number in range(4)}


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """A store with a few photos, that the environment leads to."""
    with object_store() as opened:
        for name, value in opened.environment.items():
            monkeypatch.setenv(name, value)
        opened.fill("bucket", _PHOTOS)
        yield opened


@pytest.fixture
async def services(settings: Settings, store: ObjectStore) -> AsyncIterator[Services]:
    """Services that may load from the store."""
    root = PhotoAddress.parse(ROOT)
    async with open_services(settings.model_copy(update={"allowed_roots": (root,)})) as opened:
        yield opened


@pytest.fixture
async def places(store: ObjectStore) -> AsyncIterator[PhotoPlaces]:
    """The store, and nothing of this machine."""
    opened = PhotoPlaces(PhotoFolders([]), [PhotoAddress.parse(ROOT)], max_file_bytes=10**6)
    yield opened
    await opened.close()


async def _until_it_answers(services: Services) -> None:
    """That it does not is remembered for a second."""
    async with asyncio.timeout(20):
        while await services.places.presences([f"{ROOT}/1.jpg"]) != ["there"]:
            await asyncio.sleep(0.05)


async def _check(services: Services) -> CollectionReport:
    [report] = await check_collections(
        services.catalog,
        services.vectors,
        services.analyzer.embedder,
        services.writer,
        services.places,
    )
    return report


async def test_photos_of_a_store_are_checked_mended_embedded_anew_and_exported(
    services: Services, store: ObjectStore, tmp_path: Path
) -> None:
    store.fill("bucket", {"photos/bad.jpg": b"no photo"})
    load = await services.indexer.start_load(ROOT, "t")
    await load.wait()
    assert (load.counts.indexed, load.counts.failed) == (len(_PHOTOS), 1)
    store.remove("bucket", "photos/0.jpg")
    store.fill("bucket", {"photos/bad.jpg": encode(draw_photo(9))})
    key = path_key(f"{ROOT}/3.jpg")
    image = (await services.catalog.images_by_key(load.collection.id, [key]))[key]
    objects = await services.catalog.objects_of_images([image.id])
    lost = [place.id for place in objects[image.id]]
    await services.vectors.delete(load.collection.store, lost)

    store.stop()
    away = await _check(services)
    assert (away.gone, len(away.unreachable)) == ([], len(_PHOTOS))
    with pytest.raises(StoreUnavailable):
        await services.repairer.index_again(away)
    with TemporaryFile(dir=tmp_path) as file, pytest.raises(StoreUnavailable):
        await services.backups.export("t", file, scratch=tmp_path, photos=True)
    assert await services.repairer.hash_photos(load.collection) == 0
    store.start()

    await _until_it_answers(services)
    report = await _check(services)
    assert [image.path for image in report.gone] == [f"{ROOT}/0.jpg"]
    assert (report.unreachable, report.missing) == ([], set(lost))
    await services.repairer.remove_strays(report)
    again = await services.repairer.index_again(report)
    assert again is not None
    await again.wait()
    assert again.counts.indexed == 2
    mended = await _check(services)
    assert (mended.is_consistent, mended.photos, mended.gone) == (True, len(_PHOTOS), [])

    done = await services.repairer.embed_anew(mended.collection)
    assert (done.photos, done.objects, done.failures) == (len(_PHOTOS), mended.objects, [])
    with TemporaryFile(dir=tmp_path) as file:
        exported = await services.backups.export("t", file, scratch=tmp_path, photos=True)
    assert exported.without_file == 0
    assert exported.manifest.photos is not None
    assert exported.manifest.photos.files == len(_PHOTOS)


async def test_a_path_of_the_catalog_is_looked_at_when_it_is_used(
    places: PhotoPlaces, store: ObjectStore
) -> None:
    """Whoever has written it there: an import may say any."""
    store.fill("bucket", {"secret.jpg": b"secret", "photos2/secret.jpg": b"secret"})
    before = len(store.requests)
    for path in (
        "s3://bucket/secret.jpg",
        "s3://bucket/photos/../secret.jpg",
        "s3://bucket/photos/%2e%2e/secret.jpg",
        "s3://bucket/photos2/secret.jpg",
        "s3://bucket/photos//0.jpg",
        "s3://bucket/photos/0.jpg?versionId=1",
        "simplecache::s3://bucket/photos/0.jpg",
        "file:///etc/passwd",
        "local:///etc/passwd",
        "http://127.0.0.1/0.jpg",
        "/etc/passwd",
    ):
        with pytest.raises(Forbidden):
            places.read_file(path, 100)
        with pytest.raises(Forbidden):
            places.open_file(path)
        assert places.find(path) is None or path == "/etc/passwd"
        assert places.is_gone(path) is False
    for path in (f"{ROOT}/0.jpg", "file:///etc/passwd"):
        with pytest.raises(Forbidden):
            THIS_MACHINE.open_file(path)
    assert len(store.requests) == before


async def test_what_is_read_is_one_photo_as_it_is(places: PhotoPlaces, store: ObjectStore) -> None:
    path = f"{ROOT}/1.jpg"
    content = _PHOTOS["photos/1.jpg"]
    assert places.read_file(path, len(content)) == content
    with pytest.raises(TooLarge):
        places.read_file(path, len(content) - 1)
    store.fill("bucket", {"photos/empty.jpg": b"", "photos/large.jpg": b"x" * (10**6 + 1)})
    assert places.read_file(f"{ROOT}/empty.jpg", 10) == b""
    with pytest.raises(InvalidImage):
        places.open_file(ROOT)
    with pytest.raises(FileNotFoundError):
        places.open_file(f"{ROOT}/none.jpg")
    with places.open_file(f"{ROOT}/large.jpg") as file:
        assert file.read_if("0" * 64) is None  # larger than any photo may be: not taken to memory
    with places.open_file(path) as file:
        assert file.size == len(content)
        store.fill("bucket", {"photos/1.jpg": content[::-1]})
        with pytest.raises(OSError, match="not given all of it"):
            file.read(10)


async def test_where_a_photo_is_cannot_be_told_of_a_store_that_is_away(
    places: PhotoPlaces, store: ObjectStore, tmp_path: Path
) -> None:
    [photo] = write_photos(tmp_path / "photos", 1)
    paths = [f"{ROOT}/0.jpg", f"{ROOT}/none.jpg", str(photo), f"{photo}.none", "/none/a.jpg"]
    here = ["there", "gone", "unknown"]
    assert await places.presences(paths) == ["there", "gone", *here]
    found = await places.find_all(paths)
    assert [(each.path, each.size) for each in found] == [
        (paths[0], len(_PHOTOS["photos/0.jpg"])),
        (paths[2], photo.stat().st_size),
    ]
    store.stop()
    assert await places.presences(paths) == ["unknown", "unknown", *here]
    with pytest.raises(StoreUnavailable):
        places.is_gone(paths[1])


async def test_another_protocol_of_fsspecs_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that neither lists all at once, nor has tags, nor times but the one of its making."""
    system = fsspec.filesystem("memory", skip_instance_cache=True)
    monkeypatch.setattr(type(system), "store", {})
    monkeypatch.setattr(type(system), "pseudo_dirs", [""])
    system.pipe({"/a/b/1.jpg": b"one", "/a/b/c/2.png": b"two", "/a/b2/3.jpg": b"three"})
    places = PhotoPlaces(EVERYWHERE, [PhotoAddress.parse("memory://a/b")])
    scan = await places.scan("c/..", start=PhotoAddress.parse("memory://a/b"))
    assert [(photo.path, photo.size) for photo in scan.photos] == [
        ("memory://a/b/1.jpg", 3),
        ("memory://a/b/c/2.png", 3),
    ]
    assert all(0 <= time.time_ns() - photo.mtime_ns < 60 * 10**9 for photo in scan.photos)
    assert places.find("memory://a/b/1.jpg") == scan.photos[0]
    with places.open_file("memory://a/b/1.jpg") as file:
        file.seek(1)
        assert file.read(10) == b"ne"
    for folder, problem in (("memory://a/b/1.jpg", "is a file"), ("memory://a/b/d", "no photo")):
        with pytest.raises(InvalidInput, match=problem):
            await places.scan(folder, start=Path())
    await places.close()


async def test_what_speaks_with_a_store_must_be_installed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    for address, problem in (
        ("gs://bucket", r"pip install 'image-similarity-search\[gs\]'"),
        ("nobodys://bucket", "no protocol 'nobodys'"),
    ):
        root = PhotoAddress.parse(address)
        with pytest.raises(ConfigurationError, match=problem):
            async with open_services(settings.model_copy(update={"data_path": root})):
                pass
