"""The embeddings in Milvus, one Milvus collection for each of ours.

Rows are `id` (= `objects.id` of the catalog), `image_id`, `label`, `score`, `vector`. Every write
may be repeated without harm: rows are upserted by the catalog's ids, deletes name what is to go.
"""

import asyncio
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol, TypeAlias, TypeVar

import grpc
import numpy as np
import structlog
from numpy.typing import NDArray
from pymilvus import AsyncMilvusClient, CollectionSchema, DataType, MilvusException
from pymilvus.client.async_grpc_handler import AsyncGrpcHandler
from pymilvus.client.call_context import CallContext, _api_level_md
from pymilvus.client.prepare import Prepare
from pymilvus.client.types import BulkInsertState
from pymilvus.client.utils import check_status
from pymilvus.decorators import retry_on_rpc_failure
from pymilvus.exceptions import DataNotMatchException, ErrorCode, ParamError

from backend.deadlines import time_left
from backend.errors import (
    ConfigurationError,
    EngineUnavailable,
    InvalidInput,
    ServiceError,
    StillWriting,
)
from backend.storage.milvus_lite import LiteProcess

__all__ = [
    "MAX_HITS",
    "MilvusLite",
    "MilvusOptions",
    "MilvusServer",
    "ObjectFilter",
    "ObjectVector",
    "Stage",
    "StoreMissing",
    "VectorHit",
    "VectorStore",
    "collection_schema",
]

MAX_HITS: Final = 16_384
"""Milvus' limit on the rows that one search or query returns."""

_TIMEOUT_SECONDS: Final = 30.0
_MAX_LABEL_BYTES: Final = 800
"""The catalog takes 200 characters, which UTF-8 spends up to four bytes on; Milvus counts bytes."""
_UPSERT_BYTES: Final = 4 * 2**20
"""Of vectors in one request: above 7 MB Milvus Lite 2.5.1 takes ten times as long for each."""
_VECTORS_PER_QUERY: Final = 100
"""0.8 MB of 2048-d: above 2 MB Milvus Lite 2.5.1 takes many times as long for each, and what is
parsed is parsed on the event loop, 10 ms."""
_IMAGES_PER_QUERY: Final = 1000
_WIDER: Final = 16
"""How many times as wide the next range of ids is, where one has held next to none."""
_DATABASE: Final = "vectors.db"
_RETRIES: Final = 3
"""Of a call whose connection breaks, in 0.1 s together: the next connection may be fine."""
_CHANNEL: Final = {
    # A server that has come back is found within a second, not within gRPC's two minutes.
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.min_reconnect_backoff_ms": 2000,  # the time that one attempt to connect gets
    "grpc.max_reconnect_backoff_ms": 1000,
    # Channels to one address would share their attempts, and so one's backoff holds up the other.
    "grpc.use_local_subchannel_pool": 1,
}
_HITS_PARAMETERS: Final = ("ef", "search_list", "reorder_k")
"""Of searching an index: how many candidates it looks at, which must not be less than the hits."""

_IMPORT_POLL_SECONDS: Final = 0.2
_STANDSTILL_SECONDS: Final = 900.0
"""After which an import, or what brings it into memory, is given up that gets no further. It is
long: Milvus lets imports of all its users wait for one another."""
_ALL_LOADED: Final = 100
_IMPORT_OVER: Final = (
    BulkInsertState.ImportCompleted,
    BulkInsertState.ImportFailed,
    BulkInsertState.ImportFailedAndCleaned,
)

_T = TypeVar("_T")

_READS: Final = frozenset({"search", "query"})
_NOT_LOADED: Final = frozenset({101, 103})
_ACCESS_DENIED: Final = range(1400, 1500)
_INVALID: Final = range(1100, 1200)
_UNEXPECTED: Final = frozenset({1, 65535})
_ABOUT_PARAMETERS: Final = re.compile(
    r"\b(invalid|illegal|out of range|divide the dim|not a number|expr plan|Assert)\b"
)
"""Milvus 2.3 reports several invalid parameters as unexpected errors."""

_SPECIAL: Final = re.compile(r'"|\\|\r\n|\r|\n')
"""What cannot stand in a string literal as it is."""

_DENIED: Final = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})
_NEVER: Final = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class ObjectVector:
    """A row. `id` and `image_id` are the catalog's, `vector` is float32 [D] of unit length."""

    id: int
    image_id: int
    label: str
    score: float
    vector: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class VectorHit:
    """An object near a query vector. `distance` is squared L2: 2 - 2 cos for unit vectors."""

    object_id: int
    image_id: int
    distance: float


@dataclass(frozen=True)
class ObjectFilter:
    """Which rows a search is about: those that meet every condition.

    Attributes:
        labels: any of them; none is no condition.
        min_score: the least score. Milvus keeps scores in 32 bits, to which this is rounded too: it
            means what comparing both as 32-bit numbers does.
        not_image_ids: no rows of these photos.
    """

    labels: tuple[str, ...] = ()
    min_score: float | None = None
    not_image_ids: tuple[int, ...] = ()


_EVERY_OBJECT: Final = ObjectFilter()


class VectorStore(Protocol):
    """What the services ask of a vector engine. `store` is the engine's name of a collection.

    `engine_name` is what people call the engine, `where` the settings that lead to it, with their
    values. Wrong settings may lead to another engine where it is a server.
    """

    engine_name: str
    where: str
    is_server: ClassVar[bool]

    async def create(self, store: str, dimension: int) -> None:
        """Makes the collection where it does not exist."""
        ...

    async def exists(self, store: str) -> bool:
        """Whether there is such a collection."""
        ...

    async def load(self, store: str) -> None:
        """Brings the collection into memory, where searches find it."""
        ...

    async def dimension(self, store: str) -> int:
        """Of the collection's vectors."""
        ...

    async def drop(self, store: str) -> None:
        """Removes the collection where it exists."""
        ...

    async def upsert(self, store: str, rows: Sequence[ObjectVector]) -> int:
        """Writes rows, replacing those of the same ids; they are found by the next search.

        Returns the engine's timestamp of that, for `catch_up`; 0 where it has none.
        """
        ...

    async def insert(self, store: str, rows: Sequence[ObjectVector]) -> int:
        """As `upsert`, of rows whose ids the store has never been given, and is given this once.

        After a failure some or all of them may be there, or still come.
        """
        ...

    async def settle(self, store: str) -> None:
        """Returns when no write is under way any more that was broken off.

        Raises:
            StillWriting: it takes longer than the deadline.
        """
        ...

    def catch_up(self, store: str, written: int) -> None:
        """Reads from now on see what any process had written up to that timestamp of `upsert`."""
        ...

    async def delete(self, store: str, ids: Sequence[int]) -> None:
        """Removes the rows of these ids."""
        ...

    async def search(
        self,
        store: str,
        vectors: NDArray[np.float32],
        limit: int,
        where: ObjectFilter = _EVERY_OBJECT,
    ) -> list[list[VectorHit]]:
        """The nearest of the rows that `where` is about to each query vector, float32 [Q, D],
        nearest first.

        `limit` is at most MAX_HITS.

        Raises:
            InvalidInput: the engine has no way to say a label of `where`.
        """
        ...

    async def vectors(self, store: str, ids: Sequence[int]) -> dict[int, NDArray[np.float32]]:
        """The vectors, float32 [D], of those of the rows that are there."""
        ...

    async def ids(self, store: str) -> set[int]:
        """The ids of all rows."""
        ...

    async def ids_of_images(self, store: str, image_ids: Sequence[int]) -> set[int]:
        """The ids of the rows of these images, whoever has written them until now."""
        ...

    async def close(self) -> None:
        """Gives up connections, threads and processes."""
        ...


@dataclass(frozen=True)
class MilvusOptions:
    """Where a Milvus server is, and how its collections are indexed and searched."""

    host: str
    port: int = 19530
    token: str = field(default="", repr=False)
    database: str = "default"
    tls: bool = False
    ca: Path | None = None
    index: str = "HNSW"
    index_params: Mapping[str, Any] = field(
        default_factory=lambda: {"M": 16, "efConstruction": 200}
    )
    search_params: Mapping[str, Any] = field(default_factory=lambda: {"ef": 128})

    @property
    def address(self) -> str:
        """Host and port, as gRPC takes them."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


Stage: TypeAlias = Callable[
    [CollectionSchema, Sequence[ObjectVector]], AbstractAsyncContextManager[list[str]]
]
"""Lays rows down as Parquet files where a Milvus server reads them, and gives the names by which it
knows them; afterwards they go."""


class StoreMissing(EngineUnavailable):
    """The engine says that it does not have a collection; starting, it may not have it yet."""


class _NotLoaded(EngineUnavailable):
    """A collection is in storage, but not in memory, where searches find it."""


class _Handler(AsyncGrpcHandler):  # type: ignore[misc]  # pymilvus has no types
    """pymilvus' calls, and its connection, which gRPC makes again by itself where it breaks.

    Its AsyncMilvusClient would hold up all calls while one of them makes a new connection, and
    has no way to ask for a timestamp.
    """

    @retry_on_rpc_failure()  # type: ignore[untyped-decorator]
    async def delete(self, *args: Any, **kwargs: Any) -> Any:
        """The one call that pymilvus neither repeats nor looks at whether it failed."""
        answer = await super().delete(*args, **kwargs)
        check_status(answer._raw.status)
        return answer

    # What its client for asyncio lacks.

    async def bulk_insert(
        self, collection: str, file: str, *, context: CallContext, **_: Any
    ) -> int:
        """Has Milvus import a file, all or nothing; returns the import's id."""
        await self.ensure_channel_ready()
        request = Prepare.do_bulk_insert(collection, "", [file])  # Milvus 2.3 takes no more
        answer = await self._async_stub.Import(request, metadata=_api_level_md(context))
        check_status(answer.status)
        return int(answer.tasks[0])

    @retry_on_rpc_failure()  # type: ignore[untyped-decorator]
    async def begin_refresh(self, collection: str, *, context: CallContext, **_: Any) -> None:
        """Has Milvus bring what was imported into memory; `get_loading_progress` tells when."""
        await self.ensure_channel_ready()
        request = Prepare.load_collection(collection, refresh=True)
        check_status(
            await self._async_stub.LoadCollection(request, metadata=_api_level_md(context))
        )

    @retry_on_rpc_failure()  # type: ignore[untyped-decorator]
    async def bulk_insert_state(
        self, number: int, *, context: CallContext, **_: Any
    ) -> BulkInsertState:
        """How far an import has come."""
        await self.ensure_channel_ready()
        request = Prepare.get_bulk_insert_state(number)
        answer = await self._async_stub.GetImportState(request, metadata=_api_level_md(context))
        check_status(answer.status)
        return BulkInsertState(
            number, answer.state, answer.row_count, answer.id_list, answer.infos, answer.create_ts
        )

    @retry_on_rpc_failure()  # type: ignore[untyped-decorator]
    async def bulk_inserts(
        self, collection: str, *, context: CallContext, **_: Any
    ) -> list[BulkInsertState]:
        """All imports into a collection that Milvus remembers."""
        await self.ensure_channel_ready()
        request = Prepare.list_bulk_insert_tasks(0, collection)
        answer = await self._async_stub.ListImportTasks(request, metadata=_api_level_md(context))
        check_status(answer.status)
        return [
            BulkInsertState(each.id, each.state, each.row_count, [], each.infos, each.create_ts)
            for each in answer.tasks
        ]


class _Milvus(ABC):
    """What Milvus and Milvus Lite have in common: a `VectorStore` over gRPC.

    A search sees all that was acknowledged before it. It does not ask for Strong consistency,
    which makes every search wait for the server's clock to tick: it names the timestamp of the
    collection's last write, which after a tick is past and costs nothing.
    """

    is_server: ClassVar[bool]
    _line_breaks: ClassVar[Mapping[str, str]]
    """How string literals say each end of a line; see `_string`."""

    def __init__(
        self,
        name: str,
        timeout: float,
        *,
        where: str,
        database: str = "",
        index: str,
        index_params: Mapping[str, Any],
        search_params: Mapping[str, Any],
    ) -> None:
        self.engine_name = name
        self.where = where
        self._timeout = timeout
        self._context = CallContext(db_name=database)
        self._index = {"index_type": index, "metric_type": "L2", "params": dict(index_params)}
        self._search_params = dict(search_params)
        self._written: dict[str, int] = {}
        """By collection: the timestamp that the next search must wait for."""

    @abstractmethod
    async def _connection(self) -> "_Handler":
        """What to ask."""

    @abstractmethod
    def _says(self, what: str) -> str:
        """A sentence that names the engine and, where it has one, its setting."""

    async def create(self, store: str, dimension: int) -> None:
        """See `VectorStore.create`. It is loaded and can be searched when this returns."""
        # Each of the three steps is taken where it is missing: a crash may have come between them.
        if not await self.exists(store):
            await self._ask("create_collection", store, fields=collection_schema(dimension))
        if not await self._ask("list_indexes", store):
            try:
                await self._ask("create_index", store, "vector", params=self._index)
            except EngineUnavailable:
                raise
            except ServiceError as error:
                raise ServiceError(
                    self._says(
                        f"refuses the index {self._index}: check MILVUS_INDEX and"
                        " MILVUS_INDEX_PARAMS"
                    )
                ) from error
        await self.load(store)

    async def load(self, store: str) -> None:
        """See `VectorStore.load`."""
        await self._ask("load_collection", store)

    async def exists(self, store: str) -> bool:
        """See `VectorStore.exists`."""
        return bool(await self._ask("has_collection", store))

    async def dimension(self, store: str) -> int:
        """See `VectorStore.dimension`."""
        description = await self._ask("describe_collection", store)
        [dimension] = [
            int(field["params"]["dim"])
            for field in description["fields"]
            if field["name"] == "vector"
        ]
        return dimension

    async def drop(self, store: str) -> None:
        """See `VectorStore.drop`."""
        if await self.exists(store):
            await self._ask("drop_collection", store)
        self._written.pop(store, None)

    async def upsert(self, store: str, rows: Sequence[ObjectVector]) -> int:
        """See `VectorStore.upsert`."""
        return await self._write("upsert_rows", store, rows)

    async def insert(self, store: str, rows: Sequence[ObjectVector]) -> int:
        """See `VectorStore.insert`."""
        # A call whose connection breaks is made again, which must not write a row twice.
        return await self._write("upsert_rows", store, rows)

    async def _write(
        self, call: str, store: str, rows: Sequence[ObjectVector], **options: Any
    ) -> int:
        latest = 0
        if not rows:
            return latest
        for chunk in _chunks(rows, max(1, _UPSERT_BYTES // rows[0].vector.nbytes)):
            answer = await self._ask(call, store, [vars(row) for row in chunk], **options)
            latest = max(latest, answer.timestamp)
            self._note(store, latest)
        return latest

    def catch_up(self, store: str, written: int) -> None:
        """See `VectorStore.catch_up`."""
        if store in self._written:  # else the first look sees all that there is
            self._note(store, written)

    async def delete(self, store: str, ids: Sequence[int]) -> None:
        """See `VectorStore.delete`."""
        for chunk in _chunks(ids, MAX_HITS):
            await self._delete(store, f"id in {_integers(chunk)}")

    async def _delete(self, store: str, expression: str) -> None:
        # Strong: it must meet rows of which it was never known whether they were written.
        await self._ask_loaded("delete", store, expression, consistency_level="Strong")
        # The answer carries no timestamp in Milvus 2.3.
        self._note(store, await self._ask("alloc_timestamp"))

    async def search(
        self,
        store: str,
        vectors: NDArray[np.float32],
        limit: int,
        where: ObjectFilter = _EVERY_OBJECT,
    ) -> list[list[VectorHit]]:
        """See `VectorStore.search`."""
        conditions = []
        if where.labels:
            literals = ",".join(
                _string(label, self._line_breaks, self.engine_name) for label in where.labels
            )
            conditions.append(f"label in [{literals}]")
        if where.min_score is not None:
            # As the field holds it: what a longer number is rounded to is left to no engine.
            conditions.append(f"score >= {float(np.float32(where.min_score))}")
        if where.not_image_ids:
            conditions.append(f"image_id not in {_integers(where.not_image_ids)}")
        params = {
            name: max(value, limit) if name in _HITS_PARAMETERS else value
            for name, value in self._search_params.items()
        }
        answers = await self._ask_loaded(
            "search",
            store,
            anns_field="vector",
            param={"metric_type": "L2", "params": params},
            limit=limit,
            data=list(vectors),
            expression=" and ".join(conditions),
            output_fields=["image_id"],
            consistency_level="Customized",
            guarantee_timestamp=await self._look_at(store),
        )
        return [
            [VectorHit(hit["id"], hit["entity"]["image_id"], hit["distance"]) for hit in hits]
            for hits in answers
        ]

    async def vectors(self, store: str, ids: Sequence[int]) -> dict[int, NDArray[np.float32]]:
        """See `VectorStore.vectors`."""
        found = await self._vectors(store, ids)
        if missing := [each for each in ids if each not in found]:
            # They are gone, or another process has written them just now.
            self._note(store, await self._ask("alloc_timestamp"))
            found |= await self._vectors(store, missing)
        return found

    async def _vectors(self, store: str, ids: Sequence[int]) -> dict[int, NDArray[np.float32]]:
        found: dict[int, NDArray[np.float32]] = {}
        for chunk in _chunks(ids, _VECTORS_PER_QUERY):
            now = await self._look_at(store)
            named = f"id in {_integers(chunk)}"
            for row in await self._rows(store, named, now, ["id", "vector"], len(chunk)):
                found[row["id"]] = np.array(row["vector"], np.float32)
        return found

    async def ids(self, store: str) -> set[int]:
        """See `VectorStore.ids`."""
        found: set[int] = set()
        # One timestamp for all queries: only the first of them has to wait for it.
        now = await self._ask("alloc_timestamp")
        lower, width = 0, MAX_HITS
        # A query returns no more than MAX_HITS rows, in no order that is promised: ask for one
        # range of ids after another, wider ones where ids are far apart, until none lies above.
        while await self._query(store, f"id >= {lower}", now, limit=1):
            ids = await self._query(store, f"id >= {lower} and id < {lower + width}", now)
            if len(ids) == MAX_HITS and width > MAX_HITS:  # there may be more
                width = MAX_HITS
                continue
            found.update(ids)
            lower += width
            if len(ids) < MAX_HITS // _WIDER:
                width *= _WIDER
        return found

    async def ids_of_images(self, store: str, image_ids: Sequence[int]) -> set[int]:
        """See `VectorStore.ids_of_images`."""
        if not image_ids:
            return set()
        now = await self._ask("alloc_timestamp")
        found: set[int] = set()
        waiting = [*_chunks(image_ids, _IMAGES_PER_QUERY)]
        while waiting:
            some = waiting.pop()
            ids = await self._query(store, f"image_id in {_integers(some)}", now)
            found.update(ids)
            if len(ids) == MAX_HITS and len(some) > 1:  # there may be more
                waiting += _chunks(some, len(some) // 2)
        return found

    async def _query(
        self, store: str, expression: str, timestamp: int, *, limit: int = MAX_HITS
    ) -> list[int]:
        return [row["id"] for row in await self._rows(store, expression, timestamp, ["id"], limit)]

    async def _rows(
        self, store: str, expression: str, timestamp: int, fields: list[str], limit: int
    ) -> Iterable[Mapping[str, Any]]:
        rows: Iterable[Mapping[str, Any]] = await self._ask_loaded(
            "query",
            store,
            expr=expression,
            output_fields=fields,
            limit=limit,
            consistency_level="Customized",
            guarantee_timestamp=timestamp,
        )
        return rows

    async def _look_at(self, store: str) -> int:
        """The timestamp that whoever reads the collection must wait for."""
        if store not in self._written:
            # Written by a process before this one.
            self._note(store, await self._ask("alloc_timestamp"))
        return self._written[store]

    def _note(self, store: str, timestamp: int) -> None:
        self._written[store] = max(timestamp, self._written.get(store, 0))

    async def _ask_loaded(self, call: str, store: str, *args: Any, **kwargs: Any) -> Any:
        """What Milvus answers; a collection that is not loaded is loaded first."""
        try:
            return await self._ask(call, store, *args, **kwargs)
        except _NotLoaded:
            await self._ask("load_collection", store)
            return await self._ask(call, store, *args, **kwargs)

    async def _ask(self, call: str, *args: Any, **kwargs: Any) -> Any:
        """What Milvus answers, within the deadline.

        Raises:
            EngineUnavailable: it is too slow, not there, or cannot do it at the moment.
            ServiceError: it will never do it.
        """
        try:
            async with asyncio.timeout(time_left(self._timeout)):
                milvus = await self._connection()
                options = {"context": self._context, "retry_times": _RETRIES, **kwargs}
                return await getattr(milvus, call)(*args, **options)
        except (MilvusException, grpc.RpcError, TimeoutError) as error:
            await self._failed(call, error)
            raise self._problem(error) from error

    async def _failed(self, call: str, error: Exception) -> None:
        # What Milvus says may name files and addresses: that is for the log.
        _log.error("vectors.failed", engine=self.engine_name, call=call, error=_describe(error))

    def _problem(self, error: Exception) -> ServiceError:
        code = _code(error)
        if isinstance(error, ParamError | DataNotMatchException) or code in _INVALID:
            return ServiceError(self._says("refuses what it was asked: see the service's log"))
        if code in _UNEXPECTED and _ABOUT_PARAMETERS.search(str(error)):
            return ServiceError(self._says("refuses what it was asked: see the service's log"))
        if code in _ACCESS_DENIED or code in _DENIED:
            return ServiceError(self._says("denies access: check the token"))
        if code in _NEVER:
            return ServiceError(self._says("cannot do what it was asked: see the service's log"))
        if code == ErrorCode.COLLECTION_NOT_FOUND:
            return StoreMissing(
                self.engine_name,
                self._says("has lost the vectors of this collection: try again in a few seconds"),
            )
        if code in _NOT_LOADED:
            return _NotLoaded(
                self.engine_name,
                self._says("is loading this collection: try again in a few seconds"),
            )
        return EngineUnavailable(
            self.engine_name, self._says("does not answer: try again in a few seconds")
        )


class MilvusServer(_Milvus):
    """A Milvus server, 2.3 or later."""

    is_server = True
    # It reads literals as Go does.
    _line_breaks: ClassVar = {"\n": "\\n", "\r": "\\r", "\r\n": "\\r\\n"}

    def __init__(self, handler: _Handler, options: MilvusOptions, timeout: float) -> None:
        super().__init__(
            "Milvus",
            timeout,
            where=f"MILVUS_HOST={options.host}, MILVUS_PORT={options.port},"
            f" MILVUS_DB={options.database}",
            database=options.database,
            index=options.index,
            index_params=options.index_params,
            search_params=options.search_params,
        )
        self._handler = handler
        self._stage: Stage | None = None

    @classmethod
    async def open(
        cls, options: MilvusOptions, *, timeout: float = _TIMEOUT_SECONDS
    ) -> "MilvusServer":
        """Connects to the server, and makes its database where it does not exist.

        Raises:
            ConfigurationError: the server denies access, or its certificate is not trusted.
            EngineUnavailable: it is not there, or not ready: try again.
        """
        if options.ca is not None and not _is_readable(options.ca):
            raise ConfigurationError(f"MILVUS_CA={options.ca}: this file cannot be read")
        handler = _Handler(
            address=options.address,
            token=options.token,
            secure=options.tls,
            server_pem_path=str(options.ca or ""),
            grpc_options=_CHANNEL,
        )
        milvus = cls(handler, options, timeout)
        try:
            await milvus._make_database(options)
        except BaseException:
            await milvus.close()
            raise
        return milvus

    async def _make_database(self, options: MilvusOptions) -> None:
        # Neither call is made in the database, which may not be there yet.
        context, self._context = self._context, CallContext(db_name="")
        try:
            if options.database not in await self._ask("list_database"):
                await self._ask("create_database", options.database)
        except EngineUnavailable as error:
            if reason := _tls_problem(str(error.__cause__)):
                raise ConfigurationError(f"Milvus at {options.address}: {reason}") from error
            if options.tls:
                # gRPC says nothing of TLS where a handshake is not answered, and tells only of the
                # last address that it has tried: of localhost's two, say, the one where nobody is.
                raise EngineUnavailable(
                    error.engine,
                    f"{error}; if it never answers, see whether it speaks TLS, which MILVUS_TLS"
                    " asks for",
                ) from error
            raise
        except ServiceError as error:
            raise ConfigurationError(
                f"Milvus at {options.address} denies access, or its database"
                f" {options.database!r} may not be made: check MILVUS_TOKEN and MILVUS_DB"
                f" ({_describe(error.__cause__)})"
            ) from error
        self._context = context

    def import_through(self, stage: Stage) -> None:
        """From now on `insert` has Milvus import files, which is for very many rows at a time."""
        self._stage = stage

    async def insert(self, store: str, rows: Sequence[ObjectVector]) -> int:
        """See `VectorStore.insert`."""
        if self._stage is None or not rows:
            return await super().insert(store, rows)
        async with self._stage(collection_schema(rows[0].vector.size), rows) as files:
            imports = [await self._ask("bulk_insert", store, file) for file in files]
            states = [await self._until_over(each) for each in imports]
        for state in states:
            if state.state != BulkInsertState.ImportCompleted:
                _log.error("vectors.import_failed", task=state.task_id, reason=state.failed_reason)
                why = state.failed_reason or "it gives no reason"
                raise ServiceError(self._says(f"could not import the vectors: {why}"))
        imported = sum(state.row_count for state in states)
        if imported != len(rows):
            raise ServiceError(self._says(f"has imported {imported} of {len(rows)} vectors"))
        await self._load_imported(store)
        written: int = await self._ask("alloc_timestamp")
        self._note(store, written)
        return written

    async def _load_imported(self, store: str) -> None:
        """Imported rows are found, and can be deleted, when they are in memory."""
        await self._ask("begin_refresh", store)
        # Many take longer than an answer may.
        await self._until(
            lambda: self._ask("get_loading_progress", store, is_refresh=True),
            lambda progress: progress >= _ALL_LOADED,
        )

    async def _until_over(self, number: int) -> BulkInsertState:
        return await self._until(
            lambda: self._ask("bulk_insert_state", number),
            lambda state: state.state in _IMPORT_OVER,
        )

    async def _until(self, look: Callable[[], Awaitable[_T]], is_over: Callable[[_T], bool]) -> _T:
        """What Milvus says when it is over.

        Raises:
            EngineUnavailable: it says the same for very long.
        """
        before, since = "", time.monotonic()
        while not is_over(seen := await look()):
            now = time.monotonic()
            if str(seen) != before:
                before, since = str(seen), now
            elif now - since > _STANDSTILL_SECONDS:
                _log.error("vectors.import_stands_still", seen=before, seconds=round(now - since))
                raise EngineUnavailable(
                    self.engine_name,
                    self._says(
                        f"has come no further with an import for {_STANDSTILL_SECONDS / 60:.0f}"
                        " minutes: see its log"
                    ),
                )
            await asyncio.sleep(_IMPORT_POLL_SECONDS)
        return seen

    async def settle(self, store: str) -> None:
        """See `VectorStore.settle`; an import goes on though whoever has begun it is gone."""
        try:
            imports = await self._ask("bulk_inserts", store)
        except EngineUnavailable:
            raise
        except ServiceError as error:
            # Whoever has no such thing has begun none; others may have.
            _log.warning("vectors.imports_not_listed", reason=str(error))
            return
        try:
            async with asyncio.timeout(time_left(self._timeout)):
                for each in imports:
                    if each.state not in _IMPORT_OVER:
                        await self._until_over(each.task_id)
                if imports:
                    await self._load_imported(store)
        except TimeoutError:
            raise StillWriting(
                self.engine_name,
                self._says("still imports vectors of this collection: try again later"),
            ) from None

    async def _connection(self) -> _Handler:
        return self._handler

    def _says(self, what: str) -> str:
        return f"Milvus (MILVUS_HOST) {what}"

    async def close(self) -> None:
        """See `VectorStore.close`."""
        await self._handler.close()


class MilvusLite(_Milvus):
    """Milvus Lite on a local file: a process of its own behind a Unix socket.

    A process that has died is started again by the next call. The index is FLAT, which is exact
    and the fastest to write; benchmarks/README.md has the comparison.
    """

    is_server = False
    # It takes the character behind a backslash for itself, but for that of a lone "\r".
    _line_breaks: ClassVar = {"\n": "\\\n", "\r\n": "\\\r\n"}

    def __init__(self, process: LiteProcess, timeout: float, folder: Path) -> None:
        super().__init__(
            "Milvus Lite",
            timeout,
            where=f"DATA_DIR={folder}",
            index="FLAT",
            index_params={},
            search_params={},
        )
        self._process = process
        self._handler = _lite_handler(process)
        self._restart: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, folder: Path, *, timeout: float = _TIMEOUT_SECONDS) -> "MilvusLite":
        """Opens, or makes, the database in `folder`.

        Raises:
            ConfigurationError: it cannot be opened, or another process has it open.
        """
        database = folder.absolute() / _DATABASE
        starting = asyncio.ensure_future(asyncio.to_thread(LiteProcess.start, database))
        try:
            process = await asyncio.shield(starting)
        except asyncio.CancelledError:
            # The thread goes on; its process must not be left behind.
            await asyncio.wait([starting])
            if starting.exception() is None:
                await asyncio.to_thread(starting.result().stop)
            raise
        return cls(process, timeout, folder)

    async def insert(self, store: str, rows: Sequence[ObjectVector]) -> int:
        """See `VectorStore.insert`."""
        # It looks through the whole collection for what an upsert is to replace: at 60,000 rows
        # that takes ten times as long as this. Tried once: no row must be there twice.
        return await self._write("insert_rows", store, rows, retry_times=0)

    async def settle(self, store: str) -> None:
        """See `VectorStore.settle`: what it has received it does before what comes next."""

    async def _connection(self) -> _Handler:
        if self._restart is None and not self._process.is_running:
            _log.warning("vectors.restarting", engine=self.engine_name)
            self._restart = asyncio.create_task(self._start_again())
        if self._restart is not None:
            # All calls wait for one restart, and none that gives up takes it along.
            await asyncio.shield(self._restart)
        if not self._process.is_running:
            raise MilvusException(message="its process could not be started again")
        return self._handler

    async def _failed(self, call: str, error: Exception) -> None:
        await super()._failed(call, error)
        # It could not store a write, as when the disk is full, but goes on with the rows in
        # memory: searches would find what the file does not have.
        if call not in _READS and _code(error) == grpc.StatusCode.UNKNOWN:
            await asyncio.to_thread(self._process.kill)

    async def _start_again(self) -> None:
        try:
            await asyncio.to_thread(self._process.restart)
            await self._handler.close()
            self._handler = _lite_handler(self._process)
        except ConfigurationError as error:
            _log.error("vectors.not_restarted", engine=self.engine_name, error=str(error))
        finally:
            self._restart = None

    def _says(self, what: str) -> str:
        return f"the vector engine (Milvus Lite) {what}"

    async def close(self) -> None:
        """See `VectorStore.close`."""
        if self._restart is not None:
            await asyncio.wait([self._restart])
        await self._handler.close()
        await asyncio.to_thread(self._process.stop)


def collection_schema(dimension: int) -> CollectionSchema:
    """Of every collection in Milvus, for vectors of so many dimensions."""
    schema = AsyncMilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("image_id", DataType.INT64)
    schema.add_field("label", DataType.VARCHAR, max_length=_MAX_LABEL_BYTES)
    schema.add_field("score", DataType.FLOAT)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dimension)
    return schema


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _integers(ids: Iterable[int]) -> str:
    """A list literal; int() makes sure that nothing but numbers ever reaches an expression."""
    return "[" + ",".join(str(int(item)) for item in ids) + "]"


def _string(text: str, line_breaks: Mapping[str, str], engine: str) -> str:
    """A string literal of Milvus' expressions, from which no text can break out.

    Both engines share the grammar: between the quotes anything may stand but a quote, a backslash
    and the ends of lines, and the first two may stand behind a backslash. How they read an end of
    line differs: `line_breaks` says how each of those is written that the engine can read.

    Raises:
        InvalidInput: there is one that it cannot.
    """

    def escaped(found: re.Match[str]) -> str:
        special = found[0]
        if special in ('"', "\\"):
            return f"\\{special}"
        try:
            return line_breaks[special]
        except KeyError:
            raise InvalidInput(
                f"{engine} cannot search for the label {text!r}: it has no way to say the"
                f" {special!r} in it; leave this label out"
            ) from None

    return f'"{_SPECIAL.sub(escaped, text)}"'


def _lite_handler(process: LiteProcess) -> _Handler:
    return _Handler(address=process.address, grpc_options=_CHANNEL)


def _code(error: BaseException) -> Any:
    """Milvus' number, or gRPC's status, whichever there is."""
    if isinstance(error, MilvusException):
        return error.code
    return error.code() if isinstance(error, grpc.RpcError) else None


def _describe(error: BaseException | None) -> str:
    if isinstance(error, grpc.RpcError):
        return f"{error.code().name}: {error.details()}"
    # gRPC's debug string says the same once more.
    return str(error).partition(", debug=")[0] or type(error).__name__


def _tls_problem(details: str) -> str | None:
    """What to do where the two sides will never agree on TLS; None where that is not it."""
    if "CERTIFICATE_VERIFY_FAILED" in details or "Hostname Verification" in details:
        return "its certificate is not trusted, or names another host: check MILVUS_CA"
    if "WRONG_VERSION_NUMBER" in details:
        return "it does not speak TLS: unset MILVUS_TLS"
    return None


def _is_readable(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError:
        return False
    return True
