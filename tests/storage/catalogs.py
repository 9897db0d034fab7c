"""Catalogs for tests: on SQLite and on MySQL, and what they are filled with."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest

from backend.storage.catalog import (
    Catalog,
    Collection,
    Image,
    ImageState,
    MySQLOptions,
    NewImage,
    NewObject,
    path_key,
)
from tests.engines.mariadb import MariaDBProcess

__all__ = [
    "CAT",
    "DOG",
    "EVERY_STATE",
    "OpenCatalog",
    "all_images",
    "catalogs",
    "ensure",
    "index",
    "mysql_database",
    "new_photo",
]

EVERY_STATE: tuple[ImageState, ...] = ("pending", "undoing", "indexed", "failed", "deleting")
CAT = NewObject("cat", 0.75, (1.0, 2.0, 30.5, 40.25))
DOG = NewObject("dog", 0.5, (0.0, 0.0, 8.0, 8.0))

OpenCatalog = Callable[[], Awaitable[Catalog]]
"""Opens the same catalog each time."""


@contextmanager
def mysql_database(server: MariaDBProcess) -> Iterator[MySQLOptions]:
    """The address of a database of the test's own, which does not exist yet."""
    options = replace(server.address, database=f"t{uuid4().hex[:12]}")
    yield options
    server.execute(f"DROP DATABASE IF EXISTS {options.database}")


def catalogs(request: pytest.FixtureRequest, folder: Path) -> Iterator[OpenCatalog]:
    """A catalog of the test's own on the engine that the fixture's parameter names."""
    if request.param == "sqlite":
        yield partial(Catalog.open_sqlite, folder)
        return
    with mysql_database(request.getfixturevalue("mysql_server")) as options:
        yield partial(Catalog.open_mysql, options)


async def ensure(catalog: Catalog, name: str = "photos") -> Collection:
    """The collection of that name, ready."""
    collection = await catalog.ensure_collection(
        name, embedder="tiny", embedder_sha256="ab" * 32, dim=8, metric="L2"
    )
    assert collection is not None
    await catalog.finish_collection(collection.id)
    ready = await catalog.collection(name)
    assert ready is not None
    return ready


def new_photo(
    path: str, objects: Sequence[NewObject] = (CAT,), error: str | None = None
) -> NewImage:
    """A photo to be stored."""
    return NewImage(
        path=path,
        path_key=path_key(path),
        sha256="cd" * 32,
        size=1000,
        mtime_ns=1_700_000_000_123_456_789,
        width=640,
        height=480,
        objects=objects,
        error=error,
    )


async def index(
    catalog: Catalog, collection: Collection, paths: Sequence[str], objects: Sequence[NewObject]
) -> list[int]:
    """Stores photos as indexed ones; returns their ids."""
    stored = await catalog.begin_images(collection.id, [new_photo(path, objects) for path in paths])
    ids = [image.id for image in stored]
    assert await catalog.finish_images(stored, {}) == []
    return ids


async def all_images(
    catalog: Catalog, collection: Collection, states: Sequence[ImageState] = EVERY_STATE
) -> list[Image]:
    """The collection's photos in these states."""
    return [image async for page in catalog.images(collection.id, states) for image in page]
