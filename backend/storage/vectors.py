"""The embeddings in Milvus, one Milvus collection for each of ours.

Rows are `id` (= `objects.id` of the catalog), `image_id`, `label`, `score`, `vector`. Every write
may be repeated without harm: rows are upserted by the catalog's ids, deletes name what is to go.
"""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import structlog
from numpy.typing import NDArray
from pymilvus import AsyncMilvusClient, CollectionSchema, DataType, MilvusException

from backend.errors import ConfigurationError, Unavailable
from backend.files import lock_file

__all__ = ["MAX_HITS", "MilvusLite", "ObjectVector", "VectorHit", "VectorStore"]

MAX_HITS: Final = 16_384
"""Milvus' limit on the rows that one search or query returns."""

_DEADLINE_SECONDS: Final = 60
"""For one call. A search takes milliseconds; building a collection on a busy disk takes longest."""
_MAX_LABEL_BYTES: Final = 512
_UPSERT_BYTES: Final = 4 * 2**20
"""Of vectors in one request: above 7 MB Milvus Lite 2.5.1 takes ten times as long for each."""
_IDS_PER_DELETE: Final = 1000
_RETRY_SECONDS: Final = 0.5
_OPEN_SECONDS: Final = 3.0
"""For the database of a process that has just been killed to come free: 15 ms were measured."""
_DATABASE: Final = "vectors.db"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class ObjectVector:
    """A row. `id` and `image_id` are the catalog's, `vector` is float32 [D] of unit length."""

    id: int
    image_id: int
    label: str
    score: float
    vector: NDArray[np.float32]


@dataclass(frozen=True)
class VectorHit:
    """An object near a query vector. `distance` is squared L2: 2 - 2 cos for unit vectors."""

    object_id: int
    image_id: int
    distance: float


class VectorStore(Protocol):
    """What the services ask of a vector engine. `store` is the engine's name of a collection."""

    async def create(self, store: str, dimension: int) -> None:
        """Makes the collection where it does not exist."""
        ...

    async def exists(self, store: str) -> bool:
        """Whether there is such a collection."""
        ...

    async def drop(self, store: str) -> None:
        """Removes the collection where it exists."""
        ...

    async def upsert(self, store: str, rows: Sequence[ObjectVector]) -> None:
        """Writes rows, replacing those of the same ids; they are found by the next search."""
        ...

    async def delete_images(
        self, store: str, image_ids: Sequence[int], *, keep: Sequence[int] = ()
    ) -> None:
        """Removes the rows of these images but for the objects in `keep`."""
        ...

    async def search(
        self, store: str, vectors: NDArray[np.float32], limit: int
    ) -> list[list[VectorHit]]:
        """The nearest rows of each query vector, float32 [Q, D], nearest first.

        `limit` is at most MAX_HITS.
        """
        ...

    async def ids(self, store: str) -> set[int]:
        """The ids of all rows."""
        ...

    async def close(self) -> None:
        """Gives up connections, threads and processes."""
        ...


class MilvusLite:
    """Milvus Lite on a local file: a process of its own behind a Unix socket.

    The index is FLAT, which is exact and the fastest to write; benchmarks/README.md has the
    comparison.
    """

    def __init__(self, client: AsyncMilvusClient, database: Path, lock: int) -> None:
        self._client = client
        self._database = database
        self._lock = lock

    @classmethod
    async def open(cls, folder: Path) -> "MilvusLite":
        """Opens, or makes, the database in `folder`.

        Raises:
            ConfigurationError: it cannot be opened, or another process has it open.
        """
        database = folder.absolute() / _DATABASE
        starting = asyncio.ensure_future(asyncio.to_thread(_start, database))
        try:
            uri, lock = await asyncio.shield(starting)
        except asyncio.CancelledError:
            # The thread goes on; its process must not be left behind.
            await asyncio.wait([starting])
            if starting.exception() is None:
                await asyncio.to_thread(_stop, database, starting.result()[1])
            raise
        return cls(AsyncMilvusClient(uri), database, lock)

    async def create(self, store: str, dimension: int) -> None:
        """See `VectorStore.create`."""
        # Each of the three steps is taken where it is missing: a crash may have come between them.
        if not await self.exists(store):
            await self._answer(self._client.create_collection(store, schema=_schema(dimension)))
        if not await self._answer(self._client.list_indexes(store)):
            index = AsyncMilvusClient.prepare_index_params()
            index.add_index("vector", index_type="FLAT", metric_type="L2")
            await self._answer(self._client.create_index(store, index))
        await self._answer(self._client.load_collection(store))

    async def exists(self, store: str) -> bool:
        """See `VectorStore.exists`."""
        return bool(await self._answer(self._client.has_collection(store)))

    async def drop(self, store: str) -> None:
        """See `VectorStore.drop`."""
        if await self.exists(store):
            await self._answer(self._client.drop_collection(store))

    async def upsert(self, store: str, rows: Sequence[ObjectVector]) -> None:
        """See `VectorStore.upsert`."""
        if not rows:
            return
        for chunk in _chunks(rows, max(1, _UPSERT_BYTES // rows[0].vector.nbytes)):
            await self._answer(self._client.upsert(store, [vars(row) for row in chunk]))

    async def delete_images(
        self, store: str, image_ids: Sequence[int], *, keep: Sequence[int] = ()
    ) -> None:
        """See `VectorStore.delete_images`."""
        for chunk in _chunks(image_ids, _IDS_PER_DELETE):
            expression = f"image_id in {_integers(chunk)}"
            if keep:
                expression += f" and id not in {_integers(keep)}"
            await self._answer(self._client.delete(store, filter=expression))

    async def search(
        self, store: str, vectors: NDArray[np.float32], limit: int
    ) -> list[list[VectorHit]]:
        """See `VectorStore.search`."""
        answers = await self._answer(
            self._client.search(store, data=list(vectors), limit=limit, output_fields=["image_id"])
        )
        return [
            [VectorHit(hit["id"], hit["entity"]["image_id"], hit["distance"]) for hit in hits]
            for hits in answers
        ]

    async def ids(self, store: str) -> set[int]:
        """See `VectorStore.ids`."""
        found: set[int] = set()
        lower = 0
        # A query returns no more than MAX_HITS rows, in no order that is promised: ask for one
        # range of ids after another until no row lies above.
        while await self._query(store, f"id >= {lower}", limit=1):
            upper = lower + MAX_HITS
            rows = await self._query(store, f"id >= {lower} and id < {upper}", limit=MAX_HITS)
            found.update(rows)
            lower = upper
        return found

    async def _query(self, store: str, expression: str, *, limit: int) -> list[int]:
        rows = await self._answer(
            self._client.query(store, filter=expression, output_fields=["id"], limit=limit)
        )
        return [row["id"] for row in rows]

    async def _answer(self, call: Awaitable[Any]) -> Any:
        """What Milvus answers, within a deadline.

        Raises:
            Unavailable: it is too slow, or not there any more.
        """
        try:
            async with asyncio.timeout(_DEADLINE_SECONDS):
                return await call
        except (MilvusException, TimeoutError) as error:
            # What Milvus says may name files and addresses: that is for the log.
            _log.error("vectors.failed", error=str(error) or type(error).__name__)
            raise Unavailable(
                "the vector engine (Milvus Lite) does not answer: try again; if it stays so,"
                " restart the service, which loses nothing"
            ) from error

    async def close(self) -> None:
        """See `VectorStore.close`."""
        await self._client.close()
        await asyncio.to_thread(_stop, self._database, self._lock)


def _schema(dimension: int) -> CollectionSchema:
    schema = AsyncMilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("image_id", DataType.INT64)
    schema.add_field("label", DataType.VARCHAR, max_length=_MAX_LABEL_BYTES)
    schema.add_field("score", DataType.FLOAT)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dimension)
    return schema


def _start(database: Path) -> tuple[str, int]:
    """Starts Milvus Lite's process; returns its address and the lock on its database."""
    # Its own lock file does not keep a second process out: a refused attempt deletes it.
    try:
        lock = lock_file(database.with_suffix(".lock"))
    except BlockingIOError as owner:
        raise ConfigurationError(
            f"Milvus Lite cannot open {database}: another process has it open ({owner})"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"Milvus Lite cannot open {database}: {error.strerror}") from None
    try:
        return _start_process(database), lock
    except BaseException:
        os.close(lock)
        raise


def _start_process(database: Path) -> str:
    # Imported late: it is the one dependency that warns (of pkg_resources) on import.
    from milvus_lite.server_manager import server_manager_instance

    # Ctrl-C in a terminal reaches the whole process group. The engine must outlive the writes
    # that are finished after it, so it starts, and stays, with SIGINT blocked; it ends when its
    # parent lets go of the file's lock, however the parent ends.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    # It would take our LOG_LEVEL for its own and print to our standard output.
    log_level = os.environ.pop("LOG_LEVEL", None)
    try:
        end = time.monotonic() + _OPEN_SECONDS
        uri: str | None = server_manager_instance.start_and_get_uri(str(database))
        while uri is None and time.monotonic() < end:
            time.sleep(_RETRY_SECONDS)
            uri = server_manager_instance.start_and_get_uri(str(database))
    except (OSError, RuntimeError) as error:
        raise ConfigurationError(f"Milvus Lite cannot open {database}: {error}") from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        if log_level is not None:
            os.environ["LOG_LEVEL"] = log_level
    if uri is None:
        raise ConfigurationError(
            f"Milvus Lite cannot open {database}: its process ends at once; the file may be damaged"
        )
    return uri


def _stop(database: Path, lock: int) -> None:
    from milvus_lite.server_manager import server_manager_instance

    server_manager_instance.release_server(str(database))
    os.close(lock)


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _integers(ids: Iterable[int]) -> str:
    """A list literal; int() makes sure that nothing but numbers ever reaches an expression."""
    return "[" + ",".join(str(int(item)) for item in ids) + "]"
