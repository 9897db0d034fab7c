"""The catalog: which collections, photos, objects and loads there are, and in which state.

It is the truth; the vectors are an index over it. A photo's row is `pending` from before its
vectors are written until after, `undoing` while what was begun is taken back, and `deleting` from
before they are removed until after, so that whatever a crash leaves in one of these states can be
undone or finished (see `writing.py`).

SQLAlchemy's Core on SQLite or MySQL. Every method is one transaction, or says that it is several,
and may be repeated without harm: an EngineUnavailable leaves open whether it has been done.
`databases.py` says how transactions are isolated, rerun and bounded in time.
"""

import hashlib
import json
import os
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from backend.errors import ConfigurationError
from backend.storage import migrations
from backend.storage.databases import (
    Database,
    EnsureHeld,
    MySQLDatabase,
    MySQLOptions,
    SQLiteDatabase,
)
from backend.storage.keys import KeyTable
from backend.storage.reasons import Failed, keep_failures, keep_reason, read_failures
from backend.storage.shares import ShareTable
from backend.storage.tables import answers as _answers
from backend.storage.tables import collections as _collections
from backend.storage.tables import identity as _identity
from backend.storage.tables import images as _images
from backend.storage.tables import load_chunks as _load_chunks
from backend.storage.tables import loads as _loads
from backend.storage.tables import objects as _objects

__all__ = [
    "BEGUN",
    "Catalog",
    "Collection",
    "CollectionState",
    "CountedCollection",
    "EnsureHeld",
    "Image",
    "ImageState",
    "KeptAnswer",
    "LoadRow",
    "LoadState",
    "MySQLOptions",
    "NewImage",
    "NewObject",
    "ObjectPlace",
    "PhotoHashes",
    "StoredImage",
    "TouchedImage",
    "new_store",
    "path_key",
    "utc_now",
]

CollectionState = Literal["creating", "importing", "ready", "deleting"]
ImageState = Literal["pending", "undoing", "indexed", "failed", "deleting"]
BEGUN: Final[tuple[ImageState, ...]] = ("pending", "undoing")
"""Photos that are being written, or whose writing was broken off."""
LoadState = Literal["running", "done", "failed", "cancelled"]

_DATABASE: Final = "catalog.db"
_TIMEOUT: Final = 30.0
_IDS_PER_QUERY: Final = 500
"""Values of one IN list: well under SQLite's 32,766 and MySQL's packet size."""
_IDS_PER_PAGE: Final = 10_000
"""Ids of a query that returns nothing but ids."""
_HASHES_PER_PAGE: Final = 1000
"""Few enough that making rows of them keeps the event loop for some milliseconds."""
_PLACE: Final = (_objects, _images.c.path, _images.c.sha256, _images.c.width, _images.c.height)
"""The columns of an ObjectPlace."""


@dataclass(frozen=True)
class Collection:
    """A set of photos whose objects one embedder has embedded.

    It is `creating` until the vector store has its part, and `deleting` until that has gone. While
    it is `importing` its name is none that a collection can have: it gets its own when it is whole.

    Attributes:
        store: name of the Milvus collection that holds its vectors. No two are ever the same, so
            that a name may be used again while old vectors go, and catalogs may share a Milvus.
        other_store: name of one that is being filled to take its place, or that has had its place
            and is to go.
        written: the vector engine's timestamp of the last write of photos that are indexed, which
            every search of them waits for, also that of another process; 0 where it has none.
    """

    id: int
    name: str
    embedder: str
    embedder_sha256: str
    dim: int
    metric: str
    state: CollectionState
    store: str
    other_store: str | None = None
    written: int = 0


@dataclass(frozen=True)
class CountedCollection:
    """A collection, and how many of its photos are indexed and how many have failed."""

    collection: Collection
    indexed: int
    failed: int


@dataclass(frozen=True)
class Image:
    """A photo's row. `size` in bytes; `width` and `height` of the upright photo, 0 if unknown.

    `phash` is None for a photo that has none (`vision.perceptual_hash`), that has failed, or that
    was indexed before there were such hashes.
    """

    id: int
    collection_id: int
    path: str
    path_key: str
    sha256: str
    size: int
    mtime_ns: int
    width: int
    height: int
    state: ImageState
    error: str | None
    phash: int | None


@dataclass(frozen=True)
class NewObject:
    """An object to be stored. `box` is xyxy in pixels of the upright photo."""

    label: str
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class NewImage:
    """A photo to be stored with its objects, or, where `error` is set, with its failure."""

    path: str
    path_key: str
    sha256: str
    size: int
    mtime_ns: int
    width: int = 0
    height: int = 0
    objects: Sequence[NewObject] = field(default=())
    error: str | None = None
    phash: int | None = None


@dataclass(frozen=True)
class StoredImage:
    """What `begin_images` made of a NewImage: its ids, and whether a row of it was there before."""

    id: int
    object_ids: Sequence[int]
    replaced: bool


@dataclass(frozen=True)
class TouchedImage:
    """A photo whose file has a new size or time but the bytes that are indexed."""

    id: int
    size: int
    mtime_ns: int


class PhotoHashes(NamedTuple):
    """By what an indexed photo is told to be the same as another, or like it.

    A tuple: 100,000 of them are read for one answer.
    """

    id: int
    sha256: str
    phash: int | None


@dataclass(frozen=True)
class ObjectPlace:
    """An indexed object and the photo it is in.

    `box` is xyxy in pixels of the upright photo, which has `width` x `height` of them.
    """

    id: int
    image_id: int
    path: str
    sha256: str
    width: int
    height: int
    label: str
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class LoadRow:
    """A load as it is kept. `counts` are of its end; times are ISO 8601, UTC."""

    id: int
    collection_id: int
    collection: str
    root: str
    prune: bool
    state: LoadState
    counts: Mapping[str, int]
    error: str | None
    started_at: str
    finished_at: str | None


@dataclass(frozen=True)
class KeptAnswer:
    """The answer to a request that its client has named by a key, so that it may ask again.

    Attributes:
        key: the client's.
        fingerprint: SHA-256, in hex, of what was asked: another request must not use the key.
        status: of HTTP.
        answer: what JSON can hold.
        created_at: ISO 8601, UTC.
    """

    key: str
    fingerprint: str
    status: int
    answer: Mapping[str, Any]
    created_at: str


def path_key(path: str) -> str:
    """SHA-256, in hex, of a path's bytes: what makes a photo's path unique.

    Collations of databases take `A.jpg` for `a.jpg` and ignore trailing spaces; this does not.
    """
    return hashlib.sha256(os.fsencode(path)).hexdigest()


def utc_now() -> str:
    """The time, ISO 8601 in UTC with milliseconds: such times sort as they follow each other."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def new_store(name: str) -> str:
    """A name for a store of vectors of the collection of that name, unlike any other."""
    return f"{name}_{uuid.uuid4().hex[:12]}"


async def _held_anyway() -> None:
    """For whoever has no turn that could be lost."""


class Catalog:
    """The catalog. `identity` is its own, 32 hex digits, for as long as it exists.

    `keys` are the API keys that it keeps; `shares` are its loads as several processes share them,
    or None where no other process can open it (SQLite).

    Every method raises EngineUnavailable where the database does not answer within the timeout
    that the catalog was opened with, or within the deadline (`deadlines.py`), or says that it
    cannot at the moment.
    """

    def __init__(self, database: Database) -> None:
        self.identity = ""
        self.keys = KeyTable(database)
        self.shares = ShareTable(database) if isinstance(database, MySQLDatabase) else None
        self._database = database

    @classmethod
    async def open_sqlite(cls, folder: Path, *, timeout: float = _TIMEOUT) -> "Catalog":
        """Opens the catalog in `folder`, making it where there is none.

        Raises:
            ConfigurationError: the file is no catalog, or a newer version's, or cannot be written.
            EngineUnavailable: the disk is full, or another process holds the file.
        """
        return await cls._open(
            await SQLiteDatabase.open(folder.absolute() / _DATABASE, timeout=timeout)
        )

    @classmethod
    async def open_mysql(cls, options: MySQLOptions, *, timeout: float = _TIMEOUT) -> "Catalog":
        """Opens the catalog on a MySQL or MariaDB server; makes database and tables if need be.

        Services that start at the same time wait for the one that makes or changes the tables.

        Raises:
            ConfigurationError: the server refuses us, or the tables are not ours.
            EngineUnavailable: the server does not answer; try again.
        """
        return await cls._open(await MySQLDatabase.open(options, timeout))

    @classmethod
    async def _open(cls, database: Database) -> "Catalog":
        catalog = cls(database)
        catalog.identity = await database.prepare(partial(_prepare, where=database.where))
        return catalog

    async def close(self) -> None:
        """Closes every connection."""
        await self._database.close()

    @property
    def engine_name(self) -> str:
        """What people call the engine: MySQL or SQLite."""
        return self._database.name

    def exclusive(self) -> AbstractAsyncContextManager[EnsureHeld]:
        """Keeps every other process that asks for the same out, for as long as it is open.

        On MySQL it is a lock of the server's, held by one of the pool's connections. It goes with
        that connection, which may be lost unnoticed: whoever comes next may then begin before this
        one has ended. What it gives is to be called right before what cannot be taken back: it
        raises EngineUnavailable where the lock is lost. On SQLite the lock on the data folder does
        it already, and this does nothing.

        Raises:
            EngineUnavailable: others did not let go of it in time.
        """
        return self._database.exclusive()

    def holding(self, name: str) -> AbstractAsyncContextManager[EnsureHeld | None]:
        """Tells other processes that this one is at work on something; None where another is.

        `name` has at most 18 characters. What it gives raises EngineUnavailable where others do not
        know it any more. On SQLite there are no others: the lock on the data folder sees to that.
        """
        return self._database.holding(name)

    async def ping(self) -> None:
        """Reads a row. Raises EngineUnavailable where the catalog cannot be read."""
        await self._rows(sa.select(_identity.c.uuid))

    async def _rows(self, *queries: sa.Select[Any]) -> list[sa.Row[Any]]:
        """The rows of all the queries."""

        async def read(connection: AsyncConnection) -> list[sa.Row[Any]]:
            return [row for query in queries for row in await connection.execute(query)]

        return await self._database.read(read)

    async def _change(self, *statements: sa.Executable) -> None:
        """Runs the statements in one transaction."""

        async def write(connection: AsyncConnection) -> None:
            for statement in statements:
                await connection.execute(statement)

        if statements:
            await self._database.write(write)

    # Collections

    async def collection(self, name: str) -> Collection | None:
        """The collection of that name, where it is ready."""
        found = await self.collection_in_any_state(name)
        return found if found is not None and found.state == "ready" else None

    async def collection_in_any_state(self, name: str) -> Collection | None:
        """The collection of that name, also where it is being made or dropped."""
        return await self._collection(_collections.c.name == name)

    async def collection_by_id(self, collection_id: int) -> Collection | None:
        """The collection of that id, in any state."""
        return await self._collection(_collections.c.id == collection_id)

    async def _collection(self, condition: sa.ColumnElement[bool]) -> Collection | None:
        rows = await self._rows(sa.select(_collections).where(condition))
        return Collection(**rows[0]._mapping) if rows else None

    async def collections(self, state: CollectionState) -> list[Collection]:
        """All collections in a state."""
        query = sa.select(_collections).where(_collections.c.state == state)
        rows = await self._rows(query.order_by(_collections.c.id))
        return [Collection(**row._mapping) for row in rows]

    async def collections_with_counts(self) -> list[CountedCollection]:
        """All collections that are ready, by name, with how many photos they have; one query."""

        def count(state: ImageState) -> sa.ScalarSelect[int]:
            mine = (_images.c.collection_id == _collections.c.id, _images.c.state == state)
            return sa.select(sa.func.count()).select_from(_images).where(*mine).scalar_subquery()

        query = (
            sa.select(count("indexed").label("n1"), count("failed").label("n2"), _collections)
            .where(_collections.c.state == "ready")
            .order_by(_collections.c.name)
        )
        rows = [dict(row._mapping) for row in await self._rows(query)]
        return [
            CountedCollection(
                indexed=row.pop("n1"), failed=row.pop("n2"), collection=Collection(**row)
            )
            for row in rows
        ]

    async def ensure_collection(
        self, name: str, *, embedder: str, embedder_sha256: str, dim: int, metric: str
    ) -> Collection | None:
        """The collection of that name; where there is none, it is made, as `creating`.

        None while it is being dropped.
        """
        query = sa.select(_collections).where(_collections.c.name == name).with_for_update()
        values = {
            "name": name,
            "embedder": embedder,
            "embedder_sha256": embedder_sha256,
            "dim": dim,
            "metric": metric,
            "state": "creating",
            "store": new_store(name),
        }

        async def write(connection: AsyncConnection) -> Collection | None:
            row = (await connection.execute(query)).one_or_none()
            if row is None:
                await connection.execute(sa.insert(_collections).values(values))
                row = (await connection.execute(query)).one()
            return Collection(**row._mapping) if row.state != "deleting" else None

        return await self._database.write(write)

    async def finish_collection(self, collection_id: int) -> None:
        """Ends `creating`: the vector store has its part."""
        change = sa.update(_collections).where(
            _collections.c.id == collection_id, _collections.c.state == "creating"
        )
        await self._change(change.values(state="ready"))

    async def begin_import(
        self, store: str, *, embedder: str, embedder_sha256: str, dim: int, metric: str
    ) -> Collection:
        """Makes a collection, `importing`, whose vectors are in this store, which is new."""
        query = sa.select(_collections).where(_collections.c.store == store)
        values = {
            "name": f"~ {store[-12:]}",  # what `new_store` has put there
            "embedder": embedder,
            "embedder_sha256": embedder_sha256,
            "dim": dim,
            "metric": metric,
            "state": "importing",
            "store": store,
        }

        async def write(connection: AsyncConnection) -> Collection:
            row = (await connection.execute(query)).one_or_none()
            if row is None:
                await connection.execute(sa.insert(_collections).values(values))
                row = (await connection.execute(query)).one()
            return Collection(**row._mapping)

        return await self._database.write(write)

    async def finish_import(self, collection: Collection, name: str, *, replace: bool) -> bool:
        """Ends `importing`: the collection gets its name, and takes the place of one that has it.

        All in one transaction; what was there before is `deleting` then. Returns False, and changes
        nothing, where there is one that is not to be replaced, or this is `importing` no more.
        """
        mine = _collections.c.id == collection.id

        async def write(connection: AsyncConnection) -> bool:
            now = (
                await connection.execute(sa.select(_collections).where(mine).with_for_update())
            ).one_or_none()
            if now is None or now.state != "importing":
                # The answer to an earlier attempt may have been lost.
                return now is not None and (now.state, now.name) == ("ready", name)
            named = _collections.c.name == name
            there = (
                await connection.execute(sa.select(_collections).where(named).with_for_update())
            ).one_or_none()
            if there is not None:
                if not replace:
                    return False
                hidden = f"~ {there.id}"
                await connection.execute(
                    sa.update(_collections)
                    .where(_collections.c.id == there.id)
                    .values(name=hidden, state="deleting")
                )
            await connection.execute(
                sa.update(_collections).where(mine).values(name=name, state="ready")
            )
            return True

        return await self._database.write(write)

    async def begin_drop(self, collection_id: int) -> None:
        """Marks a collection `deleting`: from here on it is not seen any more."""
        change = sa.update(_collections).where(_collections.c.id == collection_id)
        await self._change(change.values(state="deleting"))

    async def begin_replacement(self, collection_id: int, store: str) -> None:
        """Notes the store that is going to take the place of the one in use."""
        change = sa.update(_collections).where(_collections.c.id == collection_id)
        await self._change(change.values(other_store=store))

    async def replace_vectors(
        self, collection: Collection, *, store: str, embedder: str, embedder_sha256: str, dim: int
    ) -> bool:
        """Turns to the vectors in the other store, made by this embedder; the old one becomes it.

        Returns False, and changes nothing, where the collection is not as it is given any more, or
        another store than this was begun meanwhile.
        """
        values = {
            "store": store,
            "other_store": collection.store,
            "embedder": embedder,
            "embedder_sha256": embedder_sha256,
            "dim": dim,
        }
        change = sa.update(_collections).where(
            _collections.c.id == collection.id,
            _collections.c.state == "ready",
            _collections.c.store == collection.store,
            _collections.c.other_store == store,
        )
        done = sa.select(_collections.c.id).where(
            _collections.c.id == collection.id,
            *(_collections.c[name] == value for name, value in values.items()),
        )

        async def write(connection: AsyncConnection) -> bool:
            if (await connection.execute(change.values(values))).rowcount:
                return True
            # The answer to an earlier attempt may have been lost.
            return (await connection.execute(done)).one_or_none() is not None

        return await self._database.write(write)

    async def finish_replacement(self, collection_id: int, store: str) -> None:
        """Forgets the other store, which is no more."""
        change = sa.update(_collections).where(
            _collections.c.id == collection_id, _collections.c.other_store == store
        )
        await self._change(change.values(other_store=None))

    async def finish_drop(self, collection_id: int) -> None:
        """Removes a collection with its photos, objects and loads.

        In several transactions: one for all would take longer than any deadline.
        """
        query = (
            sa.select(_images.c.id)
            .where(_images.c.collection_id == collection_id)
            .limit(_IDS_PER_QUERY)
        )
        while rows := await self._rows(query):
            await self._change(*_removals([row.id for row in rows]))
        loads = sa.select(_loads.c.id).where(_loads.c.collection_id == collection_id)
        await self._change(
            sa.delete(_load_chunks).where(_load_chunks.c.load_id.in_(loads)),
            sa.delete(_loads).where(_loads.c.collection_id == collection_id),
            sa.delete(_collections).where(_collections.c.id == collection_id),
        )

    # Photos

    async def images_by_key(self, collection_id: int, path_keys: Sequence[str]) -> dict[str, Image]:
        """The rows, in any state, of the photos with these path keys."""
        mine = _images.c.collection_id == collection_id
        images = await self._images(_images.c.path_key, path_keys, mine)
        return {image.path_key: image for image in images}

    async def images_by_id(self, image_ids: Sequence[int]) -> list[Image]:
        """The rows, in any state, of the photos with these ids, in the order of their ids."""
        return await self._images(_images.c.id, sorted(image_ids))

    async def images_by_sha256(
        self, collection_id: int, hashes: Sequence[str]
    ) -> dict[str, list[Image]]:
        """The rows, in any state, of the photos whose bytes have these hashes."""
        found: dict[str, list[Image]] = {}
        mine = _images.c.collection_id == collection_id
        for image in await self._images(_images.c.sha256, hashes, mine):
            found.setdefault(image.sha256, []).append(image)
        return found

    async def _images(
        self, column: sa.Column[Any], values: Sequence[Any], *conditions: sa.ColumnElement[bool]
    ) -> list[Image]:
        rows = await self._rows(
            *(
                sa.select(_images).where(column.in_(chunk), *conditions).order_by(_images.c.id)
                for chunk in _chunks(values)
            )
        )
        return [Image(**row._mapping) for row in rows]

    async def indexed_image(
        self, path_keys: Sequence[str], only: Sequence[str] | None = None
    ) -> Image | None:
        """The indexed photo for the first of these keys that has one.

        Of any collection, or of those of the names in `only`.
        """
        query = (
            sa.select(_images)
            .join(_collections, _collections.c.id == _images.c.collection_id)
            .where(
                _images.c.path_key.in_(path_keys),
                _images.c.state == "indexed",
                _collections.c.state == "ready",
            )
        )
        if only is not None:
            query = query.where(_collections.c.name.in_(only))
        rows = {row.path_key: row for row in await self._rows(query)}
        for key in path_keys:
            if key in rows:
                return Image(**rows[key]._mapping)
        return None

    async def begin_images(
        self,
        collection_id: int,
        images: Sequence[NewImage],
        ensure_held: EnsureHeld = _held_anyway,
    ) -> list[StoredImage]:
        """Stores photos as `pending` with their objects, in one transaction.

        Whenever it is run, also again, `ensure_held` comes first: what another has just written
        would not be found any more.

        Objects that an earlier row of the same path had are removed with it; their vectors are
        the caller's to remove. Paths must be distinct.
        """
        rows = [_image_row(collection_id, image) for image in images]
        objects = {
            image.path_key: [_object_row(found) for found in image.objects] for image in images
        }

        async def write(connection: AsyncConnection) -> list[StoredImage]:
            await ensure_held()
            before = await _ids_by_key(connection, collection_id, list(objects))
            for chunk in _chunks(sorted(before.values())):
                await connection.execute(sa.delete(_objects).where(_objects.c.image_id.in_(chunk)))
                # Made anew under their ids: an UPDATE for each would be as many round trips.
                await connection.execute(sa.delete(_images).where(_images.c.id.in_(chunk)))
            fresh = [row for row in rows if row["path_key"] not in before]
            changed = [
                row | {"id": before[row["path_key"]]} for row in rows if row["path_key"] in before
            ]
            for some in (fresh, changed):
                if some:
                    await connection.execute(sa.insert(_images), some)
            ids = await _ids_by_key(connection, collection_id, list(objects))
            object_rows = [
                {"image_id": ids[key], **row} for key, some in objects.items() for row in some
            ]
            if object_rows:
                await connection.execute(sa.insert(_objects), object_rows)
            object_ids = await _object_ids(connection, list(ids.values()))
            return [
                StoredImage(
                    id=ids[key], object_ids=object_ids.get(ids[key], []), replaced=key in before
                )
                for key in objects
            ]

        return await self._database.write(write) if rows else []

    async def finish_images(
        self,
        stored: Sequence[StoredImage],
        failed: Mapping[int, str],
        *,
        written: Mapping[int, int] | None = None,
    ) -> list[int]:
        """Ends `pending`: photos whose vectors are written are indexed, but for those that failed.

        Args:
            stored: what `begin_images` has returned.
            failed: why, by the ids of those that have failed.
            written: by collection the vector engine's timestamp of the write.

        Returns the ids of those that are not indexed or failed now, as was asked: somebody else
        has written them again, or begun to undo or delete them, or they are gone.
        """
        images = {image.id: image for image in stored}

        async def write(connection: AsyncConnection) -> list[int]:
            ours = await _ids_with_objects(connection, images)
            indexed, broken = sorted(ours - failed.keys()), sorted(ours & failed.keys())
            by_error: dict[str, list[int]] = {}
            for image_id in broken:
                by_error.setdefault(keep_reason(failed[image_id]), []).append(image_id)
            changes = [
                *_changes(indexed, "pending", state="indexed", error=None),
                *(
                    change
                    for error, image_ids in by_error.items()
                    for change in _changes(image_ids, "pending", state="failed", error=error)
                ),
                *(
                    sa.update(_collections)
                    .where(_collections.c.id == collection_id, _collections.c.written < timestamp)
                    .values(written=timestamp)
                    for collection_id, timestamp in (written or {}).items()
                ),
            ]
            for change in changes:
                await connection.execute(change)
            done = {
                *await _ids_in_state(connection, indexed, "indexed"),
                *await _ids_in_state(connection, broken, "failed"),
            }
            return [image_id for image_id in images if image_id not in done]

        return await self._database.write(write) if images else []

    async def claim_undo(self, image_ids: Sequence[int]) -> list[int]:
        """Moves those of the photos that are `pending` to `undoing`: none can be finished then.

        Returns the ids of those that are `undoing` now.
        """
        changes = _changes(image_ids, "pending", state="undoing")

        async def write(connection: AsyncConnection) -> list[int]:
            for change in changes:
                await connection.execute(change)
            return await _ids_in_state(connection, image_ids, "undoing")

        return await self._database.write(write) if changes else []

    async def undo_images(self, image_ids: Sequence[int], error: str) -> None:
        """Ends `undoing`: the photos' objects go, the photos count as failed."""
        await self._fail(image_ids, "undoing", error)

    async def touch_images(self, images: Sequence[TouchedImage]) -> None:
        """Remembers the new file times of photos whose bytes are the same."""
        change = (
            sa.update(_images)
            .where(_images.c.id == sa.bindparam("image_id"))
            .values(size=sa.bindparam("new_size"), mtime_ns=sa.bindparam("new_mtime_ns"))
        )
        rows = [
            {"image_id": image.id, "new_size": image.size, "new_mtime_ns": image.mtime_ns}
            for image in images
        ]

        async def write(connection: AsyncConnection) -> None:
            await connection.execute(change, rows)

        if rows:
            await self._database.write(write)

    async def move_image(self, image_id: int, path: str) -> None:
        """Remembers that a photo's file lies elsewhere."""
        _check_text(path)
        change = sa.update(_images).where(_images.c.id == image_id)
        await self._change(change.values(path=path, path_key=path_key(path)))

    async def fail_images(self, collection_id: int, error: str) -> int:
        """Turns all indexed photos of a collection into failed ones; returns how many.

        In several transactions.
        """
        count = 0
        async for page in self.images(collection_id, ["indexed"]):
            await self.fail_photos([image.id for image in page], error)
            count += len(page)
        return count

    async def fail_photos(self, image_ids: Sequence[int], error: str) -> None:
        """Turns those of the photos that are indexed into failed ones: their objects go."""
        await self._fail(image_ids, "indexed", error)

    async def _fail(self, image_ids: Sequence[int], before: ImageState, error: str) -> None:
        reason = keep_reason(error)

        async def write(connection: AsyncConnection) -> None:
            found = await _ids_in_state(connection, image_ids, before)
            for chunk in _chunks(found):
                await connection.execute(sa.delete(_objects).where(_objects.c.image_id.in_(chunk)))
            for change in _changes(found, before, state="failed", error=reason):
                await connection.execute(change)

        if image_ids:
            await self._database.write(write)

    async def begin_delete_images(
        self, image_ids: Sequence[int], ensure_held: EnsureHeld = _held_anyway
    ) -> None:
        """Marks photos `deleting`: from here on they are not found any more.

        `ensure_held`: as in `begin_images`.
        """

        async def write(connection: AsyncConnection) -> None:
            await ensure_held()
            for change in _changes(image_ids, state="deleting"):
                await connection.execute(change)

        await self._database.write(write)

    async def finish_delete_images(self, image_ids: Sequence[int]) -> None:
        """Removes the rows of photos that are `deleting`, and those of their objects."""

        async def write(connection: AsyncConnection) -> None:
            gone = await _ids_in_state(connection, image_ids, "deleting")
            for removal in _removals(gone):
                await connection.execute(removal)

        await self._database.write(write)

    async def images(
        self, collection_id: int, states: Sequence[ImageState]
    ) -> AsyncIterator[list[Image]]:
        """All photos of a collection in these states, page by page in the order of their ids."""
        last = 0
        while True:
            rows = await self._rows(
                sa.select(_images)
                .where(
                    _images.c.collection_id == collection_id,
                    _images.c.state.in_(states),
                    _images.c.id > last,
                )
                .order_by(_images.c.id)
                .limit(_IDS_PER_QUERY)
            )
            if not rows:
                return
            yield [Image(**row._mapping) for row in rows]
            last = rows[-1].id

    async def list_images(
        self, collection_id: int, *, state: ImageState, label: str | None, after: int, limit: int
    ) -> list[Image]:
        """The first `limit` photos in a state whose ids are above `after`, in the order of ids.

        Where `label` is given, only those that hold an object of it. The last page is found as fast
        as the first: there is an index for either, which goes on with the photo's id.
        """
        query = sa.select(_images)
        if label is None:
            query = query.where(
                _images.c.collection_id == collection_id,
                _images.c.state == state,
                _images.c.id > after,
            ).limit(limit)
        else:
            found = _page_of_images(collection_id, state, label, after, limit).subquery()
            query = query.join(found, found.c.image_id == _images.c.id)
        return [Image(**row._mapping) for row in await self._rows(query.order_by(_images.c.id))]

    async def label_counts(self, collection_id: int) -> list[tuple[str, int]]:
        """The labels of the collection's indexed photos, each with how many objects bear it.

        Most frequent first, then in the order of the labels.
        """
        number = sa.func.count().label("number")
        rows = await self._rows(
            _indexed_objects(_objects.c.label, number)
            .where(_images.c.collection_id == collection_id)
            .group_by(_objects.c.label)
            .order_by(number.desc(), _objects.c.label)
        )
        return [(row.label, int(row.number)) for row in rows]

    async def count_images(self, collection_id: int, state: ImageState = "indexed") -> int:
        """How many photos of the collection are in the state."""
        [row] = await self._rows(
            sa.select(sa.func.count()).where(
                _images.c.collection_id == collection_id, _images.c.state == state
            )
        )
        return int(row[0])

    async def has_begun_images(self, collection_id: int) -> bool:
        """Whether a photo of the collection was begun, and neither finished nor taken back.

        Within a turn to write nobody is at work on such a one. False where the collection is not
        ready: it is removed as a whole.
        """
        query = (
            sa.select(_images.c.id)
            .join(_collections, _collections.c.id == _images.c.collection_id)
            .where(
                _images.c.collection_id == collection_id,
                _images.c.state.in_(BEGUN),
                _collections.c.state == "ready",
            )
        )
        return bool(await self._rows(query.limit(1)))

    async def hashes(self, collection_id: int) -> AsyncIterator[list[PhotoHashes]]:
        """Those of a collection's indexed photos, page by page in the order of their ids."""
        last = 0
        while True:
            rows = await self._rows(
                sa.select(_images.c.id, _images.c.sha256, _images.c.phash)
                .where(
                    _images.c.collection_id == collection_id,
                    _images.c.state == "indexed",
                    _images.c.id > last,
                )
                .order_by(_images.c.id)
                .limit(_HASHES_PER_PAGE)
            )
            if not rows:
                return
            yield list(map(PhotoHashes._make, rows))
            last = rows[-1].id

    async def set_phashes(self, hashes: Mapping[PhotoHashes, int]) -> None:
        """Stores perceptual hashes of photos whose bytes are still the same."""
        change = (
            sa.update(_images)
            .where(
                _images.c.id == sa.bindparam("image_id"),
                _images.c.sha256 == sa.bindparam("of_bytes"),
            )
            .values(phash=sa.bindparam("new_phash"))
        )
        rows = [
            {"image_id": photo.id, "of_bytes": photo.sha256, "new_phash": phash}
            for photo, phash in hashes.items()
        ]

        async def write(connection: AsyncConnection) -> None:
            await connection.execute(change, rows)

        if rows:
            await self._database.write(write)

    # Objects

    async def places(self, object_ids: Sequence[int]) -> dict[int, ObjectPlace]:
        """Where these objects are; ids of no object, or of no indexed photo, are left out."""
        rows = await self._rows(
            *(
                _indexed_objects(*_PLACE).where(_objects.c.id.in_(chunk))
                for chunk in _chunks(object_ids)
            )
        )
        return {row.id: _place(row) for row in rows}

    async def objects_of_images(self, image_ids: Sequence[int]) -> dict[int, list[ObjectPlace]]:
        """The objects of those of the photos that are indexed, in the order they were given in."""
        found: dict[int, list[ObjectPlace]] = {}
        rows = await self._rows(
            *(
                _indexed_objects(*_PLACE)
                .where(_objects.c.image_id.in_(chunk))
                .order_by(_objects.c.id)
                for chunk in _chunks(image_ids)
            )
        )
        for row in rows:
            found.setdefault(row.image_id, []).append(_place(row))
        return found

    async def collections_of_objects(self, object_ids: Sequence[int]) -> dict[int, int]:
        """The ids of the objects' collections; ids of no object, or of no indexed photo, are left
        out."""
        rows = await self._rows(
            *(
                _indexed_objects(_objects.c.id, _images.c.collection_id).where(
                    _objects.c.id.in_(chunk)
                )
                for chunk in _chunks(object_ids)
            )
        )
        return {row.id: row.collection_id for row in rows}

    async def labels_among(self, collection_id: int, labels: Sequence[str]) -> set[str]:
        """Those of the labels that objects of the collection's indexed photos bear."""
        # Where two labels differ in trailing spaces alone, MySQL's DISTINCT takes them for one;
        # their lengths tell them apart.
        rows = await self._rows(
            *(
                _indexed_objects(_objects.c.label, sa.func.length(_objects.c.label))
                .where(_images.c.collection_id == collection_id, _objects.c.label.in_(chunk))
                .distinct()
                for chunk in _chunks(labels)
            )
        )
        return {row.label for row in rows}.intersection(labels)

    async def object_ids_of_images(self, image_ids: Sequence[int]) -> list[int]:
        """The ids of all objects of these photos, whatever state they are in."""
        rows = await self._rows(
            *(
                sa.select(_objects.c.id).where(_objects.c.image_id.in_(chunk))
                for chunk in _chunks(image_ids)
            )
        )
        return [row.id for row in rows]

    async def object_ids(self, collection_id: int) -> set[int]:
        """The ids of all objects of the collection's indexed photos, read in several pages."""
        found: set[int] = set()
        after = 0
        while True:
            query = _page(_indexed_objects(_objects.c.id), collection_id, after)
            ids = [row.id for row in await self._rows(query)]
            if not ids:
                return found
            found.update(ids)
            after = ids[-1]

    # Loads

    async def begin_load(
        self, collection_id: int, root: str, *, prune: bool, started_at: str | None = None
    ) -> int:
        """Stores a running load, started now unless a time is given, and returns its id."""
        _check_text(root)
        values = {
            "collection_id": collection_id,
            "root": root,
            "prune": prune,
            "state": "running",
            "counts": {},
            "started_at": started_at or utc_now(),
            "token": uuid.uuid4().hex,
        }
        begun = sa.select(_loads.c.id).where(_loads.c.token == values["token"])

        async def write(connection: AsyncConnection) -> int:
            row = (await connection.execute(begun)).one_or_none()
            if row is None:
                await connection.execute(sa.insert(_loads).values(values))
                row = (await connection.execute(begun)).one()
            return int(row.id)

        return await self._database.write(write)

    async def end_load(
        self,
        load_id: int,
        state: LoadState,
        counts: Mapping[str, int],
        error: str | None = None,
        *,
        finished_at: str | None = None,
        failures: Sequence[Failed] = (),
    ) -> None:
        """Stores how a load ended, now unless a time is given; of its failures the first."""
        values = {
            "state": state,
            "counts": dict(counts),
            "failures": keep_failures(failures),
            "error": None if error is None else keep_reason(error),
            "finished_at": finished_at or utc_now(),
        }
        await self._change(sa.update(_loads).where(_loads.c.id == load_id).values(values))

    async def running_loads(self) -> list[LoadRow]:
        """The loads that have not ended, oldest first."""
        return await self._load_rows(
            _load_rows().where(_loads.c.state == "running").order_by(_loads.c.id)
        )

    async def loads(
        self,
        collection_id: int | None,
        *,
        before: int | None,
        limit: int,
        only: Sequence[str] | None = None,
    ) -> list[LoadRow]:
        """The last `limit` loads whose ids are below `before`, newest first.

        Of one collection, or of all that are ready; `only` of those of these names.
        """
        query = _load_rows().where(_collections.c.state == "ready")
        if collection_id is not None:
            query = query.where(_loads.c.collection_id == collection_id)
        if only is not None:
            query = query.where(_collections.c.name.in_(only))
        if before is not None:
            query = query.where(_loads.c.id < before)
        return await self._load_rows(query.order_by(_loads.c.id.desc()).limit(limit))

    async def load(self, load_id: int) -> LoadRow | None:
        """The load of that id, where its collection is ready."""
        query = _load_rows().where(_loads.c.id == load_id, _collections.c.state == "ready")
        return next(iter(await self._load_rows(query)), None)

    async def load_failures(self, load_id: int) -> list[Failed]:
        """The first failures of a load that has ended."""
        rows = await self._rows(sa.select(_loads.c.failures).where(_loads.c.id == load_id))
        return read_failures(rows[0].failures) if rows else []

    async def _load_rows(self, query: sa.Select[Any]) -> list[LoadRow]:
        return [LoadRow(**row._mapping) for row in await self._rows(query)]

    async def resume_load(self, load_id: int) -> None:
        """Lets a load that has ended run again, as if it never had."""
        change = sa.update(_loads).where(_loads.c.id == load_id)
        nothing: dict[str, Any] = {
            "counts": {},
            "failures": None,
            "error": None,
            "finished_at": None,
        }
        await self._change(change.values(state="running", **nothing))

    # Answers

    async def kept_answer(self, key: str) -> KeptAnswer | None:
        """The answer that is kept under a key."""
        return _kept(key, await self._rows(_answer_of(key)))

    async def keep_answer(self, answer: KeptAnswer) -> KeptAnswer:
        """Keeps an answer under its key, unless there is one; returns the one that is kept."""
        query = _answer_of(answer.key).with_for_update()
        values = {
            "key_sha256": _key_sha256(answer.key),
            "fingerprint": answer.fingerprint,
            "status": answer.status,
            "answer": json.dumps(answer.answer),
            "created_at": answer.created_at,
        }

        async def write(connection: AsyncConnection) -> KeptAnswer | None:
            there = _kept(answer.key, (await connection.execute(query)).all())
            if there is None:
                await connection.execute(sa.insert(_answers).values(values))
            return there

        return await self._database.write(write) or answer

    async def forget_answers(self, before: str) -> None:
        """Removes the answers that were made before a time, in several transactions."""
        old = (
            sa.select(_answers.c.key_sha256)
            .where(_answers.c.created_at < before)
            .limit(_IDS_PER_QUERY)
        )
        while rows := await self._rows(old):
            keys = sorted(row.key_sha256 for row in rows)
            await self._change(sa.delete(_answers).where(_answers.c.key_sha256.in_(keys)))


async def _prepare(connection: AsyncConnection, where: str) -> str:
    """Brings the tables up to date, and returns the catalog's identity."""
    try:
        await connection.run_sync(migrations.upgrade)
    except ConfigurationError as error:
        raise ConfigurationError(f"{where} cannot be opened: {error}") from None
    query = sa.select(_identity.c.uuid)
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        await connection.execute(sa.insert(_identity).values(uuid=uuid.uuid4().hex))
        row = (await connection.execute(query)).one()
    return str(row.uuid)


def _chunks(items: Sequence[Any]) -> Iterable[Sequence[Any]]:
    for start in range(0, len(items), _IDS_PER_QUERY):
        yield items[start : start + _IDS_PER_QUERY]


def _check_text(*texts: str) -> None:
    """Raises UnicodeEncodeError for what is not Unicode: MySQL's driver would pass it on."""
    for text in texts:
        text.encode()


def _image_row(collection_id: int, image: NewImage) -> dict[str, Any]:
    _check_text(image.path)
    return {
        "collection_id": collection_id,
        "path": image.path,
        "path_key": image.path_key,
        "sha256": image.sha256,
        "size": image.size,
        "mtime_ns": image.mtime_ns,
        "width": image.width,
        "height": image.height,
        "state": "pending",
        "error": None,
        "phash": image.phash,
    }


def _object_row(found: NewObject) -> dict[str, Any]:
    # MySQL's driver knows Python's own numbers alone.
    x1, y1, x2, y2 = map(float, found.box)
    return {
        "label": found.label,
        "score": float(found.score),
        "x1": x1,
        "y1": y1,
        "x2": x2,
        "y2": y2,
    }


def _place(row: sa.Row[Any]) -> ObjectPlace:
    return ObjectPlace(
        id=row.id,
        image_id=row.image_id,
        path=row.path,
        sha256=row.sha256,
        width=row.width,
        height=row.height,
        label=row.label,
        score=row.score,
        box=(row.x1, row.y1, row.x2, row.y2),
    )


def _changes(
    image_ids: Sequence[int], before: ImageState | None = None, **values: Any
) -> list[sa.Update]:
    """Changes of photos that are in the state `before`, or in any.

    In the order of their ids, so that two writers do not wait for each other.
    """
    changes = [
        sa.update(_images).where(_images.c.id.in_(chunk)).values(values)
        for chunk in _chunks(sorted(image_ids))
    ]
    return [change.where(_images.c.state == before) for change in changes] if before else changes


def _removals(image_ids: Sequence[int]) -> list[sa.Delete]:
    """Removals of photos' rows, and before them of their objects'; in the order of their ids."""
    return [
        removal
        for chunk in _chunks(sorted(image_ids))
        for removal in (
            sa.delete(_objects).where(_objects.c.image_id.in_(chunk)),
            sa.delete(_images).where(_images.c.id.in_(chunk)),
        )
    ]


async def _ids_with_objects(
    connection: AsyncConnection, images: Mapping[int, StoredImage]
) -> set[int]:
    """Those of the photos that still have the objects that they were stored with.

    Their rows stay as they are until the transaction ends.
    """
    rows: dict[int, int | None] = {}
    for chunk in _chunks(sorted(images)):
        # The lock comes first: whoever writes a photo again makes its row anew.
        lock = sa.select(_images.c.id).where(_images.c.id.in_(chunk)).with_for_update()
        rows.update((row.id, None) for row in await connection.execute(lock))
        first = (
            sa.select(_objects.c.image_id, sa.func.min(_objects.c.id).label("id"))
            .where(_objects.c.image_id.in_(chunk))
            .group_by(_objects.c.image_id)
        )
        rows.update((row.image_id, row.id) for row in await connection.execute(first))
    return {
        image_id
        for image_id, first_object in rows.items()
        if first_object == min(images[image_id].object_ids, default=None)
    }


def _indexed_objects(*columns: Any) -> sa.Select[Any]:
    return (
        sa.select(*columns)
        .join_from(_objects, _images, _images.c.id == _objects.c.image_id)
        .where(_images.c.state == "indexed")
    )


def _page(query: sa.Select[Any], collection_id: int, after: int) -> sa.Select[Any]:
    # Along the objects' ids, whatever the engines' planners think: by way of the collection's
    # photos, all of its objects would be sorted for every page.
    mine = _images.c.collection_id + 0 == collection_id
    return (
        query.where(mine, _objects.c.id > after)
        .order_by(_objects.c.id)
        .limit(_IDS_PER_PAGE)
        .prefix_with("STRAIGHT_JOIN", dialect="mysql")
    )


def _page_of_images(
    collection_id: int, state: ImageState, label: str, after: int, limit: int
) -> sa.Select[Any]:
    """The ids of photos that hold a label, along its index, whatever the engines' planners think.

    By way of the collection's photos, those without the label would all be looked at.
    """
    return (
        sa.select(_objects.c.image_id)
        .join_from(_objects, _images, _images.c.id == _objects.c.image_id)
        .where(
            _objects.c.label == label,
            _objects.c.image_id > after,
            _images.c.collection_id + 0 == collection_id,
            _images.c.state == state,
        )
        .group_by(_objects.c.image_id)
        .order_by(_objects.c.image_id)
        .limit(limit)
        .prefix_with("STRAIGHT_JOIN", dialect="mysql")
    )


def _load_rows() -> sa.Select[Any]:
    columns = [
        _collections.c.name.label(name) if name == "collection" else _loads.c[name]
        for name in LoadRow.__dataclass_fields__
    ]
    return sa.select(*columns).join_from(
        _loads, _collections, _collections.c.id == _loads.c.collection_id
    )


def _key_sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _answer_of(key: str) -> sa.Select[Any]:
    return sa.select(_answers).where(_answers.c.key_sha256 == _key_sha256(key))


def _kept(key: str, rows: Sequence[sa.Row[Any]]) -> KeptAnswer | None:
    for row in rows:
        answer = json.loads(row.answer)
        return KeptAnswer(key, row.fingerprint, row.status, answer, row.created_at)
    return None


async def _ids_in_state(
    connection: AsyncConnection, image_ids: Sequence[int], state: ImageState
) -> list[int]:
    """Those of the photos that are in the state; they stay so until the transaction ends."""
    ids: list[int] = []
    for chunk in _chunks(sorted(image_ids)):
        query = sa.select(_images.c.id).where(_images.c.id.in_(chunk), _images.c.state == state)
        ids += (await connection.execute(query.with_for_update())).scalars()
    return ids


async def _ids_by_key(
    connection: AsyncConnection, collection_id: int, path_keys: Sequence[str]
) -> dict[str, int]:
    """Ids by path key; the rows stay as they are until the transaction ends."""
    ids: dict[str, int] = {}
    for chunk in _chunks(sorted(path_keys)):
        query = sa.select(_images.c.path_key, _images.c.id).where(
            _images.c.collection_id == collection_id, _images.c.path_key.in_(chunk)
        )
        rows = await connection.execute(query.with_for_update())
        ids.update((row.path_key, row.id) for row in rows)
    return ids


async def _object_ids(
    connection: AsyncConnection, image_ids: Sequence[int]
) -> dict[int, list[int]]:
    """Ids of each image's objects in the order in which they were inserted."""
    ids: dict[int, list[int]] = {}
    for chunk in _chunks(image_ids):
        query = (
            sa.select(_objects.c.image_id, _objects.c.id)
            .where(_objects.c.image_id.in_(chunk))
            .order_by(_objects.c.image_id, _objects.c.id)
        )
        for row in await connection.execute(query):
            ids.setdefault(row.image_id, []).append(row.id)
    return ids
