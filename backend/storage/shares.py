"""Loads that several processes share, as the catalog keeps them: cut into chunks, which are leased.

A process takes a chunk for a while (`lease`), says again and again that it is at work on it
(`renew`), and ends it (`complete`). A chunk whose owner has said nothing for the time of its lease
is anybody's. What is not any chunk's is leased in the same way, as the load's own: to list its
photos, and to end it. Times are the database's clock alone: those of the processes may differ.

Every method is one transaction unless it says otherwise, and may be repeated without harm.
"""

import json
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from backend.storage.databases import Database
from backend.storage.reasons import FAILURES_KEPT, Failed, keep_failures, keep_reason, read_failures
from backend.storage.tables import collections as _collections
from backend.storage.tables import load_chunks as _chunks
from backend.storage.tables import loads as _loads

__all__ = [
    "Chunk",
    "ChunkCounts",
    "Ending",
    "ListedPhoto",
    "NewShare",
    "Share",
    "ShareTable",
]

Ending: TypeAlias = Literal["done", "failed", "cancelled"]

_NOW: Final = sa.literal_column(
    "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) / 1000000", sa.Double
)
"""Seconds; in UTC, so that no hour comes twice."""
_CHUNKS_PER_PAGE: Final = 500


class ListedPhoto(NamedTuple):
    """A file that a load is about; `problem`: why it cannot be read as a photo."""

    path: str
    size: int
    mtime_ns: int
    problem: str | None


@dataclass(frozen=True)
class ChunkCounts:
    """What has become of a chunk's photos."""

    indexed: int = 0
    unchanged: int = 0
    failed: int = 0
    objects: int = 0


@dataclass(frozen=True)
class NewShare:
    """A folder that is to be loaded.

    Attributes:
        photos_sha256: of the list of its photos: the same list is the same load.
        unreadable: folders in it that could not be listed, and why.
    """

    root: str
    prune: bool
    total: int
    passed_over: int
    photos_sha256: str
    unreadable: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Chunk:
    """A part of a load that the caller has leased.

    `lost_by`: who had leased it before, and has said nothing for too long.
    """

    id: int
    load_id: int
    photos: Sequence[ListedPhoto]
    lost_by: str | None


@dataclass(frozen=True)
class Share:
    """A load that runs, and how far all who work on it have come.

    Attributes:
        collection_id, root, prune, started_at: see `LoadRow`.
        counts: of all its photos, as `LoadRow`'s.
        unreadable: see `NewShare`.
        waiting_for: an engine that somebody waits for who works on it.
        is_listed: whether all of its chunks are there.
        free: chunks that nobody has leased.
        left: chunks that are not done.
        is_free: whether nobody has leased the load itself.
    """

    id: int
    collection_id: int
    root: str
    prune: bool
    started_at: str
    counts: Mapping[str, int]
    unreadable: Mapping[str, str]
    waiting_for: str | None
    is_listed: bool
    free: int
    left: int
    is_free: bool


class ShareTable:
    """The shared loads of a catalog on a server. Errors are those of the catalog."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # Beginning

    async def begin(
        self, collection_id: int, new: NewShare, started_at: str, *, owner: str, seconds: float
    ) -> tuple[int, bool]:
        """The id of the load that runs of these very photos, or of a new one; whether it is new.

        A new one is leased by the owner, to list its photos.
        """
        token = uuid.uuid4().hex
        # Whoever begins a load of the same collection at the same moment waits here.
        lock = sa.select(_collections.c.id).where(_collections.c.id == collection_id)
        same = sa.select(_loads.c.id, _loads.c.token).where(
            _loads.c.collection_id == collection_id,
            _loads.c.state == "running",
            _loads.c.photos_sha256 == new.photos_sha256,
            _loads.c.prune == new.prune,
        )
        values = {
            **_values(new, owner, seconds),
            "collection_id": collection_id,
            "root": new.root,
            "prune": new.prune,
            "started_at": started_at,
            "token": token,
        }

        async def write(connection: AsyncConnection) -> tuple[int, bool]:
            await connection.execute(lock.with_for_update())
            there = (await connection.execute(same.order_by(_loads.c.id))).first()
            if there is None:
                await connection.execute(sa.insert(_loads).values(values))
                there = (await connection.execute(same.where(_loads.c.token == token))).one()
            # By the token: the answer to an earlier attempt may have been lost.
            return int(there.id), there.token == token

        return await self._database.write(write)

    async def begin_again(self, load_id: int, new: NewShare, *, owner: str, seconds: float) -> bool:
        """Lets a load that has ended run again; returns whether it runs by this call."""
        values = _values(new, owner, seconds) | {"error": None, "finished_at": None}
        change = sa.update(_loads).where(_loads.c.id == load_id)

        async def write(connection: AsyncConnection) -> bool:
            row = await _locked(connection, load_id)
            if row is None or row.state == "running":
                return row is not None and row.owner == owner
            await connection.execute(sa.delete(_chunks).where(_chunks.c.load_id == load_id))
            await connection.execute(change.values(values))
            return True

        return await self._database.write(write)

    async def list_again(self, load_id: int, new: NewShare, *, owner: str, seconds: float) -> bool:
        """Takes over a load whose photos somebody has not listed to the end; False where others do.

        What was listed so far goes.
        """
        change = sa.update(_loads).where(_loads.c.id == load_id)

        async def write(connection: AsyncConnection) -> bool:
            row = await _locked(connection, load_id)
            if row is None or row.state != "running" or row.is_listed or row.owner != owner:
                return False
            await connection.execute(sa.delete(_chunks).where(_chunks.c.load_id == load_id))
            await connection.execute(change.values(_values(new, owner, seconds)))
            return True

        return await self._database.write(write)

    async def add_chunks(
        self, load_id: int, owner: str, first: int, parts: Sequence[Sequence[ListedPhoto]]
    ) -> bool:
        """Adds chunks, numbered from `first`; False where the owner's lease is lost."""
        numbers = range(first, first + len(parts))
        rows = [
            {
                "load_id": load_id,
                "number": number,
                "photos": json.dumps(photos),
                "is_done": False,
                "indexed": 0,
                "unchanged": 0,
                "failed": 0,
                "objects": 0,
            }
            for number, photos in zip(numbers, parts, strict=True)
        ]

        async def write(connection: AsyncConnection) -> bool:
            row = await _locked(connection, load_id)
            if row is None or row.state != "running" or row.is_listed or row.owner != owner:
                return False
            there = (_chunks.c.load_id == load_id, _chunks.c.number.in_(numbers))
            await connection.execute(sa.delete(_chunks).where(*there))
            await connection.execute(sa.insert(_chunks), rows)
            return True

        return await self._database.write(write)

    async def finish_listing(self, load_id: int, owner: str) -> bool:
        """Gives the load's chunks to all; False where the owner's lease is lost."""

        async def write(connection: AsyncConnection) -> bool:
            row = await _locked(connection, load_id)
            if row is None or row.state != "running":
                return False
            if row.is_listed:  # the answer to an earlier attempt may have been lost
                return True
            if row.owner != owner:
                return False
            change = sa.update(_loads).where(_loads.c.id == load_id)
            await connection.execute(change.values(is_listed=True, owner=None, leased_until=None))
            return True

        return await self._database.write(write)

    # Working

    async def claim(self, load_id: int, owner: str, seconds: float) -> bool:
        """Leases the load itself, to list its photos or to end it; False where another has it."""
        free = sa.or_(_is_free(_loads), _loads.c.owner == owner)
        change = sa.update(_loads).where(_loads.c.id == load_id, _loads.c.state == "running", free)
        values = {"owner": owner, "leased_until": _NOW + seconds}
        return await self._change(change.values(values))

    async def lease(self, load_id: int, owner: str, seconds: float) -> Chunk | None:
        """Leases the first chunk that nobody has; None where there is none."""
        # What others are just taking is passed over, not waited for.
        query = (
            sa.select(_chunks)
            .where(_chunks.c.load_id == load_id, _chunks.c.is_done == sa.false(), _is_free(_chunks))
            .order_by(_chunks.c.number)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        runs = sa.select(_loads.c.id).where(
            _loads.c.id == load_id, _loads.c.state == "running", _loads.c.is_listed == sa.true()
        )
        values = {"owner": owner, "leased_until": _NOW + seconds, "waiting_for": None}
        values |= vars(ChunkCounts()) | {"failures": None}

        async def write(connection: AsyncConnection) -> Chunk | None:
            if (await connection.execute(runs)).first() is None:
                return None
            row = (await connection.execute(query)).first()
            if row is None:
                return None
            change = sa.update(_chunks).where(_chunks.c.id == row.id)
            await connection.execute(change.values(values))
            photos = [ListedPhoto(*photo) for photo in json.loads(row.photos)]
            return Chunk(row.id, load_id, photos, row.owner)

        return await self._database.write(write)

    async def renew(
        self,
        owner: str,
        seconds: float,
        chunks: Mapping[int, tuple[ChunkCounts, str | None]],
        loads: Sequence[int],
    ) -> tuple[set[int], set[int]]:
        """Says that the owner is at work still: how far, and which engine it waits for.

        Returns those of the chunks and of the loads that are its own still.
        """

        async def write(connection: AsyncConnection) -> tuple[set[int], set[int]]:
            ours = set()
            for chunk_id, (counts, waiting_for) in sorted(chunks.items()):
                change = sa.update(_chunks).where(*_owned(chunk_id, owner))
                values = vars(counts) | {"waiting_for": waiting_for, "leased_until": _NOW + seconds}
                if (await connection.execute(change.values(values))).rowcount:
                    ours.add(chunk_id)
            led = set()
            for load_id in sorted(loads):
                change = sa.update(_loads).where(
                    _loads.c.id == load_id, _loads.c.state == "running", _loads.c.owner == owner
                )
                until = {"leased_until": _NOW + seconds}
                done = await connection.execute(change.values(until))
                if done.rowcount:
                    led.add(load_id)
            return ours, led

        return await self._database.write(write) if chunks or loads else (set(), set())

    async def owns(self, chunk_id: int, owner: str) -> bool:
        """Whether a chunk is that owner's still, and its load runs."""
        query = (
            sa.select(_chunks.c.id)
            .join(_loads, _loads.c.id == _chunks.c.load_id)
            .where(*_owned(chunk_id, owner), _loads.c.state == "running")
        )

        async def read(connection: AsyncConnection) -> bool:
            return (await connection.execute(query)).first() is not None

        return await self._database.read(read)

    async def complete(
        self, chunk_id: int, owner: str, counts: ChunkCounts, failures: Sequence[Failed]
    ) -> bool:
        """Ends a chunk: all of its photos are done with. False where it is not the owner's."""
        values = vars(counts) | {
            "is_done": True,
            "leased_until": None,
            "waiting_for": None,
            "failures": keep_failures(failures),
        }
        # The owner stays: the answer to an earlier attempt may have been lost.
        mine = (_chunks.c.id == chunk_id, _chunks.c.owner == owner)
        return await self._change(sa.update(_chunks).where(*mine).values(values))

    async def release(self, owner: str) -> None:
        """Gives back all that the owner has leased: others need not wait for it."""
        mine = sa.select(_chunks.c.id).where(
            _chunks.c.is_done == sa.false(), _chunks.c.owner == owner
        )
        nobody: dict[str, Any] = {"owner": None, "leased_until": None}
        idle = {**nobody, "waiting_for": None}

        async def write(connection: AsyncConnection) -> None:
            for chunk_id in (await connection.execute(mine)).scalars().all():
                change = sa.update(_chunks).where(*_owned(chunk_id, owner))
                await connection.execute(change.values(idle))
            led = sa.update(_loads).where(_loads.c.state == "running", _loads.c.owner == owner)
            await connection.execute(led.values(nobody))

        await self._database.write(write)

    # Seeing

    async def newest(self) -> int:
        """The highest id of all loads that were ever begun; 0 where none was."""

        async def read(connection: AsyncConnection) -> int:
            return (await connection.scalar(sa.select(sa.func.max(_loads.c.id)))) or 0

        return await self._database.read(read)

    async def running(self) -> list[Share]:
        """The loads that run, oldest first."""
        open_ = _chunks.c.is_done == sa.false()
        sums: sa.Select[Any] = (
            sa.select(
                _chunks.c.load_id,
                *(sa.func.sum(_chunks.c[name]).label(name) for name in vars(ChunkCounts())),
                sa.func.max(_chunks.c.waiting_for).label("waiting_for"),
                sa.func.sum(sa.case((open_, 1), else_=0)).label("left"),
                sa.func.sum(sa.case((sa.and_(open_, _is_free(_chunks)), 1), else_=0)).label("free"),
            )
            .join(_loads, _loads.c.id == _chunks.c.load_id)
            .where(_loads.c.state == "running")
            .group_by(_chunks.c.load_id)
        )
        loads = (
            sa.select(_loads, sa.case((_is_free(_loads), 1), else_=0).label("is_free"))
            .where(_loads.c.state == "running")
            .order_by(_loads.c.id)
        )

        async def read(connection: AsyncConnection) -> list[Share]:
            rows = (await connection.execute(loads)).all()
            if not rows:
                return []
            found = {row.load_id: row for row in await connection.execute(sums)}
            return [_share(row, found.get(row.id)) for row in rows]

        return await self._database.read(read)

    async def failures(self, load_id: int) -> list[Failed]:
        """The first failures of a load that runs, of the chunks that are done."""

        async def read(connection: AsyncConnection) -> list[Failed]:
            return await _failures(connection, load_id)

        return await self._database.read(read)

    async def photos(self, load_id: int) -> AsyncIterator[list[ListedPhoto]]:
        """All photos of a load that runs, page by page, in several transactions."""
        last = -1

        async def read(connection: AsyncConnection) -> Sequence[sa.Row[Any]]:
            query: sa.Select[Any] = (
                sa.select(_chunks.c.number, _chunks.c.photos)
                .where(_chunks.c.load_id == load_id, _chunks.c.number > last)
                .order_by(_chunks.c.number)
                .limit(_CHUNKS_PER_PAGE)
            )
            rows: Sequence[sa.Row[Any]] = (await connection.execute(query)).all()
            return rows

        while rows := await self._database.read(read):
            yield [ListedPhoto(*photo) for row in rows for photo in json.loads(row.photos)]
            last = rows[-1].number

    # Ending

    async def end(
        self,
        load_id: int,
        state: Ending,
        finished_at: str,
        *,
        error: str | None = None,
        removed: int = 0,
    ) -> None:
        """Ends a load that runs, with the counts and failures of its chunks, which go.

        In several transactions; from the first on nobody works on it any more.
        """
        counts = sa.select(
            *(sa.func.sum(_chunks.c[name]).label(name) for name in vars(ChunkCounts()))
        ).where(_chunks.c.load_id == load_id)

        async def write(connection: AsyncConnection) -> None:
            row = await _locked(connection, load_id)
            if row is None or row.state != "running":
                return
            found = (await connection.execute(counts)).one()
            values = {
                "state": state,
                "counts": dict(row.counts)
                | {name: int(value or 0) for name, value in found._mapping.items()}
                | {"removed": removed},
                "failures": keep_failures(await _failures(connection, load_id)),
                "error": None if error is None else keep_reason(error),
                "finished_at": finished_at,
                "owner": None,
                "leased_until": None,
            }
            await connection.execute(sa.update(_loads).where(_loads.c.id == load_id).values(values))

        await self._database.write(write)
        await self._forget_chunks(load_id)

    async def _forget_chunks(self, load_id: int) -> None:
        some = (
            sa.select(_chunks.c.id)
            .join(_loads, _loads.c.id == _chunks.c.load_id)
            .where(_chunks.c.load_id == load_id, _loads.c.state != "running")
            .limit(_CHUNKS_PER_PAGE)
        )

        async def write(connection: AsyncConnection) -> bool:
            ids = (await connection.execute(some)).scalars().all()
            await connection.execute(sa.delete(_chunks).where(_chunks.c.id.in_(ids)))
            return bool(ids)

        while await self._database.write(write):
            pass

    async def _change(self, change: sa.Update) -> bool:
        async def write(connection: AsyncConnection) -> bool:
            return bool((await connection.execute(change)).rowcount)

        return await self._database.write(write)


def _values(new: NewShare, owner: str, seconds: float) -> dict[str, Any]:
    return {
        "state": "running",
        "counts": {"total": new.total, "passed_over": new.passed_over},
        "photos_sha256": new.photos_sha256,
        "unreadable": json.dumps(dict(new.unreadable)),
        "failures": None,
        "is_listed": False,
        "owner": owner,
        "leased_until": _NOW + seconds,
    }


def _is_free(table: sa.Table) -> sa.ColumnElement[bool]:
    return sa.or_(table.c.leased_until.is_(None), table.c.leased_until < _NOW)


def _owned(chunk_id: int, owner: str) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        _chunks.c.id == chunk_id,
        _chunks.c.owner == owner,
        _chunks.c.is_done == sa.false(),
    )


async def _locked(connection: AsyncConnection, load_id: int) -> sa.Row[Any] | None:
    query = sa.select(_loads).where(_loads.c.id == load_id).with_for_update()
    return (await connection.execute(query)).one_or_none()


async def _failures(connection: AsyncConnection, load_id: int) -> list[Failed]:
    """The first failures of a load, of the chunks that are done."""
    query = (
        sa.select(_chunks.c.failures)
        .where(_chunks.c.load_id == load_id, _chunks.c.failures.is_not(None))
        .order_by(_chunks.c.number)
        .limit(FAILURES_KEPT)
    )
    found: list[Failed] = []
    for kept in (await connection.execute(query)).scalars():
        found += read_failures(kept)
    return found[:FAILURES_KEPT]


def _share(row: sa.Row[Any], sums: sa.Row[Any] | None) -> Share:
    def number(name: str) -> int:
        return 0 if sums is None else int(sums._mapping[name] or 0)

    return Share(
        id=row.id,
        collection_id=row.collection_id,
        root=row.root,
        prune=row.prune,
        started_at=row.started_at,
        counts=dict(row.counts) | {name: number(name) for name in vars(ChunkCounts())},
        unreadable=json.loads(row.unreadable or "{}"),
        waiting_for=None if sums is None else sums.waiting_for,
        is_listed=bool(row.is_listed),
        free=number("free"),
        left=number("left"),
        is_free=bool(row.is_free),
    )
