"""The catalog: which collections, photos, objects and loads there are, and in which state.

It is the truth; the vectors are an index over it. A photo's row is `pending` from before its
vectors are written until after, and `deleting` from before they are removed until after, so that
whatever a crash leaves in one of these states can be undone or finished (see `indexing.py`).

SQLAlchemy's Core on SQLite: WAL, so that readers and the one writer do not wait for each other;
synchronous=FULL, so that what was acknowledged survives a power cut; BEGIN IMMEDIATE for every
transaction that writes, so that what it read cannot have changed by the time it writes.
"""

import asyncio
import contextlib
import hashlib
import os
import sqlite3
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from backend.errors import ConfigurationError

__all__ = [
    "Catalog",
    "Collection",
    "CollectionState",
    "Image",
    "ImageState",
    "LoadRow",
    "LoadState",
    "NewImage",
    "NewObject",
    "ObjectPlace",
    "StoredImage",
    "TouchedImage",
    "path_key",
]

CollectionState = Literal["creating", "ready", "deleting"]
ImageState = Literal["pending", "indexed", "failed", "deleting"]
LoadState = Literal["running", "done", "failed", "cancelled"]

_DATABASE: Final = "catalog.db"
_IDS_PER_QUERY: Final = 500
"""Values of one IN list: well under SQLite's 32,766 and MySQL's packet size."""

_metadata = sa.MetaData()
# SQLite counts up, and never hands an id out twice, for INTEGER PRIMARY KEY AUTOINCREMENT alone.
_Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

# MySQL would take `Cats` for `cats`.
_Name = sa.String(200).with_variant(mysql.VARCHAR(200, collation="utf8mb4_bin"), "mysql", "mariadb")

_identity = sa.Table("identity", _metadata, sa.Column("uuid", sa.String(32), primary_key=True))
_collections = sa.Table(
    "collections",
    _metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("name", _Name, nullable=False, unique=True),
    sa.Column("embedder", sa.String(200), nullable=False),
    sa.Column("embedder_sha256", sa.String(64), nullable=False),
    sa.Column("dim", sa.Integer, nullable=False),
    sa.Column("metric", sa.String(16), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sqlite_autoincrement=True,
)
_images = sa.Table(
    "images",
    _metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("collection_id", _Id, sa.ForeignKey("collections.id"), nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("path_key", sa.String(64), nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("mtime_ns", sa.BigInteger, nullable=False),
    sa.Column("width", sa.Integer, nullable=False),
    sa.Column("height", sa.Integer, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("error", sa.Text),
    sa.UniqueConstraint("collection_id", "path_key"),
    sa.Index("images_by_state", "collection_id", "state"),
    sa.Index("images_by_path", "path_key"),
    sqlite_autoincrement=True,
)
_objects = sa.Table(
    "objects",
    _metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("image_id", _Id, sa.ForeignKey("images.id"), nullable=False, index=True),
    sa.Column("label", sa.String(200), nullable=False),
    sa.Column("score", sa.Float, nullable=False),
    sa.Column("x1", sa.Float, nullable=False),
    sa.Column("y1", sa.Float, nullable=False),
    sa.Column("x2", sa.Float, nullable=False),
    sa.Column("y2", sa.Float, nullable=False),
    sqlite_autoincrement=True,
)
_loads = sa.Table(
    "loads",
    _metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("collection_id", _Id, sa.ForeignKey("collections.id"), nullable=False),
    sa.Column("root", sa.Text, nullable=False),
    sa.Column("prune", sa.Boolean, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("counts", sa.JSON, nullable=False),
    sa.Column("error", sa.Text),
    sa.Column("started_at", sa.String(32), nullable=False),
    sa.Column("finished_at", sa.String(32)),
    sqlite_autoincrement=True,
)


@dataclass(frozen=True)
class Collection:
    """A set of photos whose objects one embedder has embedded.

    It is `creating` until the vector store has its part, and `deleting` until that has gone.
    """

    id: int
    name: str
    embedder: str
    embedder_sha256: str
    dim: int
    metric: str
    state: CollectionState

    @property
    def store(self) -> str:
        """Name of the Milvus collection: with the id, so that a name may be dropped and reused."""
        return f"{self.name}_{self.id}"


@dataclass(frozen=True)
class Image:
    """A photo's row. `size` in bytes; `width` and `height` of the upright photo, 0 if unknown."""

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


@dataclass(frozen=True)
class ObjectPlace:
    """An indexed object and the photo it is in."""

    id: int
    image_id: int
    path: str
    label: str
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class LoadRow:
    """A load as it is kept."""

    id: int
    collection_id: int
    root: str
    prune: bool
    state: LoadState
    counts: Mapping[str, int]
    error: str | None


def path_key(path: str) -> str:
    """SHA-256, in hex, of a path's bytes: what makes a photo's path unique.

    Collations of databases take `A.jpg` for `a.jpg` and ignore trailing spaces; this does not.
    """
    return hashlib.sha256(os.fsencode(path)).hexdigest()


class Catalog:
    """The catalog on SQLite. `identity` is its own, 32 hex digits, for as long as it exists."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.identity = ""
        self._engine = engine
        self._writer = engine.execution_options(writes=True)

    @classmethod
    async def open(cls, folder: Path) -> "Catalog":
        """Opens the catalog in `folder`, making it where there is none.

        Raises:
            ConfigurationError: the file is no catalog or cannot be written.
        """
        database = folder.absolute() / _DATABASE
        try:
            await asyncio.to_thread(_probe, database)
        except sqlite3.Error as error:
            raise ConfigurationError(f"{database} cannot be opened: {error}") from None
        engine = create_async_engine(sa.URL.create("sqlite+aiosqlite", database=str(database)))
        sa.event.listen(engine.sync_engine, "connect", _configure)
        sa.event.listen(engine.sync_engine, "begin", _begin)
        catalog = cls(engine)
        try:
            async with catalog._write() as connection:
                await connection.run_sync(_metadata.create_all)
                await connection.execute(
                    sa.insert(_identity).from_select(
                        ["uuid"],
                        sa.select(sa.literal(uuid.uuid4().hex)).where(
                            ~sa.exists(sa.select(_identity.c.uuid))
                        ),
                    )
                )
                identity = await connection.execute(sa.select(_identity.c.uuid))
                catalog.identity = identity.scalar_one()
        except BaseException as error:
            await engine.dispose()
            if not isinstance(error, sa.exc.DBAPIError):
                raise
            raise ConfigurationError(f"{database} cannot be opened: {error.orig}") from None
        return catalog

    async def close(self) -> None:
        """Closes every connection."""
        await self._engine.dispose()

    def _write(self) -> Any:
        return self._writer.begin()

    def _read(self) -> Any:
        return self._engine.connect()

    # Collections

    async def collection(self, name: str) -> Collection | None:
        """The collection of that name, where it is ready."""
        query = sa.select(_collections).where(
            _collections.c.name == name, _collections.c.state == "ready"
        )
        async with self._read() as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else Collection(**row._mapping)

    async def collection_in_any_state(self, name: str) -> Collection | None:
        """The collection of that name, also where it is being made or dropped."""
        query = sa.select(_collections).where(_collections.c.name == name)
        async with self._read() as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else Collection(**row._mapping)

    async def collections(self, state: CollectionState) -> list[Collection]:
        """All collections in a state."""
        query = sa.select(_collections).where(_collections.c.state == state)
        async with self._read() as connection:
            rows = (await connection.execute(query.order_by(_collections.c.id))).all()
        return [Collection(**row._mapping) for row in rows]

    async def collection_by_id(self, collection_id: int) -> Collection | None:
        """The collection of that id, in any state."""
        query = sa.select(_collections).where(_collections.c.id == collection_id)
        async with self._read() as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else Collection(**row._mapping)

    async def ensure_collection(
        self, name: str, *, embedder: str, embedder_sha256: str, dim: int, metric: str
    ) -> Collection | None:
        """The collection of that name; where there is none, it is made, as `creating`.

        None while it is being dropped.
        """
        async with self._write() as connection:
            query = sa.select(_collections).where(_collections.c.name == name)
            row = (await connection.execute(query)).one_or_none()
            if row is None:
                values = {
                    "name": name,
                    "embedder": embedder,
                    "embedder_sha256": embedder_sha256,
                    "dim": dim,
                    "metric": metric,
                    "state": "creating",
                }
                await connection.execute(sa.insert(_collections).values(values))
                row = (await connection.execute(query)).one()
        return Collection(**row._mapping) if row.state != "deleting" else None

    async def finish_collection(self, collection_id: int) -> None:
        """Ends `creating`: the vector store has its part."""
        await self._set_collection_state(collection_id, "ready")

    async def begin_drop(self, collection_id: int) -> None:
        """Marks a collection `deleting`: from here on it is not seen any more."""
        await self._set_collection_state(collection_id, "deleting")

    async def _set_collection_state(self, collection_id: int, state: CollectionState) -> None:
        change = sa.update(_collections).where(_collections.c.id == collection_id)
        async with self._write() as connection:
            await connection.execute(change.values(state=state))

    async def finish_drop(self, collection_id: int) -> None:
        """Removes a collection with its photos, objects and loads."""
        images = sa.select(_images.c.id).where(_images.c.collection_id == collection_id)
        async with self._write() as connection:
            await connection.execute(sa.delete(_objects).where(_objects.c.image_id.in_(images)))
            for table in (_images, _loads):
                mine = table.c.collection_id == collection_id
                await connection.execute(sa.delete(table).where(mine))
            await connection.execute(
                sa.delete(_collections).where(_collections.c.id == collection_id)
            )

    # Photos

    async def images_by_key(self, collection_id: int, path_keys: Sequence[str]) -> dict[str, Image]:
        """The rows, in any state, of the photos with these path keys."""
        found: dict[str, Image] = {}
        async with self._read() as connection:
            for chunk in _chunks(path_keys):
                query = sa.select(_images).where(
                    _images.c.collection_id == collection_id, _images.c.path_key.in_(chunk)
                )
                for row in await connection.execute(query):
                    found[row.path_key] = Image(**row._mapping)
        return found

    async def indexed_image(self, path_keys: Sequence[str]) -> Image | None:
        """The indexed photo, of any collection, for the first of these keys that has one."""
        query = (
            sa.select(_images)
            .join(_collections, _collections.c.id == _images.c.collection_id)
            .where(
                _images.c.path_key.in_(path_keys),
                _images.c.state == "indexed",
                _collections.c.state == "ready",
            )
        )
        async with self._read() as connection:
            rows = {row.path_key: row for row in await connection.execute(query)}
        for key in path_keys:
            if key in rows:
                return Image(**rows[key]._mapping)
        return None

    async def begin_images(
        self, collection_id: int, images: Sequence[NewImage]
    ) -> list[StoredImage]:
        """Stores photos as `pending` with their objects, in one transaction.

        Objects that an earlier row of the same path had are removed with it; their vectors are
        the caller's to remove. Paths must be distinct.
        """
        keys = [image.path_key for image in images]
        async with self._write() as connection:
            before = await _ids_by_key(connection, collection_id, keys)
            for chunk in _chunks(list(before.values())):
                await connection.execute(sa.delete(_objects).where(_objects.c.image_id.in_(chunk)))
            fresh = [_image_row(collection_id, i) for i in images if i.path_key not in before]
            changed = [_image_row(collection_id, i) for i in images if i.path_key in before]
            if fresh:
                await connection.execute(sa.insert(_images), fresh)
            for row in changed:
                await connection.execute(
                    sa.update(_images).where(_images.c.id == before[row["path_key"]]).values(row)
                )
            ids = await _ids_by_key(connection, collection_id, keys)
            rows = [
                _object_row(ids[image.path_key], found)
                for image in images
                for found in image.objects
            ]
            if rows:
                await connection.execute(sa.insert(_objects), rows)
            object_ids = await _object_ids(connection, list(ids.values()))
        return [
            StoredImage(
                id=ids[image.path_key],
                object_ids=object_ids.get(ids[image.path_key], []),
                replaced=image.path_key in before,
            )
            for image in images
        ]

    async def finish_images(self, indexed: Sequence[int], failed: Mapping[int, str]) -> None:
        """Ends `pending`: photos whose vectors are written, and photos with their failures."""
        async with self._write() as connection:
            for chunk in _chunks(list(indexed)):
                await connection.execute(
                    sa.update(_images)
                    .where(_images.c.id.in_(chunk), _images.c.state == "pending")
                    .values(state="indexed", error=None)
                )
            for image_id, error in failed.items():
                await connection.execute(
                    sa.update(_images)
                    .where(_images.c.id == image_id, _images.c.state == "pending")
                    .values(state="failed", error=error)
                )

    async def undo_images(self, image_ids: Sequence[int], error: str) -> None:
        """Ends `pending` without success: the photos' objects go, the photos count as failed."""
        async with self._write() as connection:
            for chunk in _chunks(image_ids):
                await connection.execute(sa.delete(_objects).where(_objects.c.image_id.in_(chunk)))
                await connection.execute(
                    sa.update(_images)
                    .where(_images.c.id.in_(chunk), _images.c.state == "pending")
                    .values(state="failed", error=error)
                )

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
        if not rows:
            return
        async with self._write() as connection:
            await connection.execute(change, rows)

    async def images_by_sha256(
        self, collection_id: int, hashes: Sequence[str]
    ) -> dict[str, list[Image]]:
        """The rows, in any state, of the photos whose bytes have these hashes."""
        found: dict[str, list[Image]] = {}
        async with self._read() as connection:
            for chunk in _chunks(hashes):
                query = sa.select(_images).where(
                    _images.c.collection_id == collection_id, _images.c.sha256.in_(chunk)
                )
                for row in await connection.execute(query):
                    found.setdefault(row.sha256, []).append(Image(**row._mapping))
        return found

    async def move_image(self, image_id: int, path: str) -> None:
        """Remembers that a photo's file lies elsewhere."""
        change = sa.update(_images).where(_images.c.id == image_id)
        async with self._write() as connection:
            await connection.execute(change.values(path=path, path_key=path_key(path)))

    async def fail_images(self, collection_id: int, error: str) -> int:
        """Turns all indexed photos of a collection into failed ones; returns how many."""
        mine = sa.and_(_images.c.collection_id == collection_id, _images.c.state == "indexed")
        async with self._write() as connection:
            await connection.execute(
                sa.delete(_objects).where(
                    _objects.c.image_id.in_(sa.select(_images.c.id).where(mine))
                )
            )
            change = sa.update(_images).where(mine).values(state="failed", error=error)
            return int((await connection.execute(change)).rowcount)

    async def begin_delete_images(self, image_ids: Sequence[int]) -> None:
        """Marks photos `deleting`: from here on they are not found any more."""
        async with self._write() as connection:
            for chunk in _chunks(image_ids):
                await connection.execute(
                    sa.update(_images).where(_images.c.id.in_(chunk)).values(state="deleting")
                )

    async def finish_delete_images(self, image_ids: Sequence[int]) -> None:
        """Removes the rows of photos and of their objects."""
        async with self._write() as connection:
            for chunk in _chunks(image_ids):
                await connection.execute(sa.delete(_objects).where(_objects.c.image_id.in_(chunk)))
                await connection.execute(sa.delete(_images).where(_images.c.id.in_(chunk)))

    async def images(
        self, collection_id: int, states: Sequence[ImageState]
    ) -> AsyncIterator[list[Image]]:
        """All photos of a collection in these states, page by page in the order of their ids."""
        last = 0
        while True:
            query = (
                sa.select(_images)
                .where(
                    _images.c.collection_id == collection_id,
                    _images.c.state.in_(states),
                    _images.c.id > last,
                )
                .order_by(_images.c.id)
                .limit(_IDS_PER_QUERY)
            )
            async with self._read() as connection:
                rows = (await connection.execute(query)).all()
            if not rows:
                return
            yield [Image(**row._mapping) for row in rows]
            last = rows[-1].id

    async def count_images(self, collection_id: int, state: ImageState = "indexed") -> int:
        """How many photos of the collection are in the state."""
        query = sa.select(sa.func.count()).where(
            _images.c.collection_id == collection_id, _images.c.state == state
        )
        async with self._read() as connection:
            return int((await connection.execute(query)).scalar_one())

    # Objects

    async def places(self, object_ids: Sequence[int]) -> dict[int, ObjectPlace]:
        """Where these objects are; ids of no object, or of no indexed photo, are left out."""
        found: dict[int, ObjectPlace] = {}
        async with self._read() as connection:
            for chunk in _chunks(object_ids):
                query = (
                    sa.select(_objects, _images.c.path)
                    .join(_images, _images.c.id == _objects.c.image_id)
                    .where(_objects.c.id.in_(chunk), _images.c.state == "indexed")
                )
                for row in await connection.execute(query):
                    found[row.id] = ObjectPlace(
                        id=row.id,
                        image_id=row.image_id,
                        path=row.path,
                        label=row.label,
                        score=row.score,
                        box=(row.x1, row.y1, row.x2, row.y2),
                    )
        return found

    async def object_ids(self, collection_id: int) -> set[int]:
        """The ids of all objects of the collection's indexed photos."""
        query = (
            sa.select(_objects.c.id)
            .join(_images, _images.c.id == _objects.c.image_id)
            .where(_images.c.collection_id == collection_id, _images.c.state == "indexed")
        )
        async with self._read() as connection:
            return set((await connection.execute(query)).scalars())

    # Loads

    async def begin_load(self, collection_id: int, root: str, *, prune: bool) -> int:
        """Stores a running load and returns its id."""
        values = {
            "collection_id": collection_id,
            "root": root,
            "prune": prune,
            "state": "running",
            "counts": {},
            "started_at": _now(),
        }
        async with self._write() as connection:
            result = await connection.execute(sa.insert(_loads).values(values))
            return int(result.inserted_primary_key[0])

    async def end_load(
        self, load_id: int, state: LoadState, counts: Mapping[str, int], error: str | None = None
    ) -> None:
        """Stores how a load ended."""
        change = sa.update(_loads).where(_loads.c.id == load_id)
        values = {
            "state": state,
            "counts": dict(counts),
            "error": error,
            "finished_at": _now(),
        }
        async with self._write() as connection:
            await connection.execute(change.values(values))

    async def running_loads(self) -> list[LoadRow]:
        """The loads that have not ended, oldest first."""
        columns = [_loads.c[name] for name in LoadRow.__dataclass_fields__]
        query = sa.select(*columns).where(_loads.c.state == "running").order_by(_loads.c.id)
        async with self._read() as connection:
            return [LoadRow(**row._mapping) for row in await connection.execute(query)]


def _probe(database: Path) -> None:
    """Raises sqlite3.Error where the file is no database: the asynchronous driver, failing to
    connect, would leave its thread behind."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA schema_version").fetchone()


def _configure(connection: Any, _record: Any) -> None:
    # The driver's own BEGIN comes too late, before the first write: ours are in `_begin`.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        "foreign_keys=ON",
        "journal_mode=WAL",
        "synchronous=FULL",
        "busy_timeout=10000",  # milliseconds; a writer waits for the one before it
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _chunks(items: Sequence[Any]) -> Iterable[Sequence[Any]]:
    for start in range(0, len(items), _IDS_PER_QUERY):
        yield items[start : start + _IDS_PER_QUERY]


def _image_row(collection_id: int, image: NewImage) -> dict[str, Any]:
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
    }


def _object_row(image_id: int, found: NewObject) -> dict[str, Any]:
    x1, y1, x2, y2 = found.box
    return {
        "image_id": image_id,
        "label": found.label,
        "score": found.score,
        "x1": x1,
        "y1": y1,
        "x2": x2,
        "y2": y2,
    }


async def _ids_by_key(
    connection: AsyncConnection, collection_id: int, path_keys: Sequence[str]
) -> dict[str, int]:
    ids: dict[str, int] = {}
    for chunk in _chunks(path_keys):
        query = sa.select(_images.c.path_key, _images.c.id).where(
            _images.c.collection_id == collection_id, _images.c.path_key.in_(chunk)
        )
        ids.update((row.path_key, row.id) for row in await connection.execute(query))
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
