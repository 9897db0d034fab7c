"""Loads that several processes do together, on a catalog and engines that they share.

A load is cut into chunks in the catalog (`storage/shares.py`). Each process that runs takes chunk
after chunk, of the oldest load first, and says by its heartbeat that it is at work; what one has
taken that has died, or is frozen, or cut off, is taken over when its lease has run out. One that
comes back too late finds at its next write that its chunk is another's, and lets go of it. Each
follows in the catalog how far all have come, so that all of them can tell, and anyone can cancel.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import socket
import uuid
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, aclosing
from contextvars import Context
from dataclasses import astuple
from functools import partial
from typing import Any, Final, Protocol, TypeVar

import structlog

from backend.deadlines import deadline
from backend.errors import Conflict, EngineUnavailable, ServiceError
from backend.loads import Failure, Load, LoadCounts, Portion, first_cause
from backend.metrics import Metrics
from backend.scanning import FolderScan, FoundPhoto
from backend.storage.catalog import Catalog, Collection, LoadRow, path_key, utc_now
from backend.storage.shares import Chunk, ChunkCounts, ListedPhoto, NewShare, Share, ShareTable

__all__ = ["LoadWork", "SharedLoads"]

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")

_CHUNK_PHOTOS: Final = 32
"""Of a chunk: so few that several processes end together, and that one which is looked for, since
its owner has died, is soon taken; so many that leasing costs nothing beside the networks."""
_LISTED_TOGETHER: Final = 50
"""Chunks that are written with one transaction."""
_BUSY_SECONDS: Final = 0.5
"""Between two looks at the catalog while something is loaded."""
_IDLE_SECONDS: Final = 1.0
_HEARTBEATS: Final = 4
"""In the time of a lease, at least."""
_MISSED: Final = 16
"""Loads that begin and end between two looks, at most; earlier ones of them are not told of."""
_GOODBYE_SECONDS: Final = 2.0
"""For giving back what is leased, at the end."""


class LoadWork(Protocol):
    """What is to be done with loads, which knows how photos are read and written."""

    async def scan(self, root: str) -> FolderScan:
        """Lists a folder's photos; see `scan_folder`."""

    async def check_can_do(self, load: Load) -> None:
        """Raises ServiceError where this process cannot index the load's photos, others may."""

    async def index(self, load: Load, portions: AsyncIterator[Portion]) -> None:
        """Indexes photos."""

    async def prune(self, load: Load, present: set[str], unreadable: Mapping[str, str]) -> int:
        """Removes photos that are gone from the load's folder; returns how many."""

    async def patiently(self, load: Load | None, attempt: Callable[[], Awaitable[_T]]) -> _T:
        """Makes attempts, each after the engine that failed the one before is back."""

    def turn(self) -> AbstractAsyncContextManager[object]:
        """Keeps every other writer out."""

    def appeared(self, load: Load) -> None:
        """A load runs, begun by this process or by another."""

    def ended(self, load: Load) -> None:
        """It runs no more."""


class SharedLoads:
    """This process's part in the loads that run.

    Methods raise EngineUnavailable where the catalog is away, unless they say otherwise.
    """

    def __init__(
        self,
        catalog: Catalog,
        shares: ShareTable,
        work: LoadWork,
        figures: Metrics,
        *,
        lease_seconds: float,
    ) -> None:
        """Does nothing yet.

        Args:
            catalog: where the loads are.
            shares: its.
            work: does what is to be done.
            figures: what leasing takes.
            lease_seconds: after which what a process has taken is anybody's, unless it has said
                meanwhile that it is at work on it.
        """
        self.owner = f"{socket.gethostname()[:60]}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        """What this process is called in the catalog: unlike any other, also before and after."""
        self._catalog = catalog
        self._shares = shares
        self._work = work
        self._figures = figures
        self._seconds = lease_seconds
        self._loads: dict[int, Load] = {}
        self._latest: list[Share] = []
        self._newest: int | None = None
        """The id of the last load that any process had begun, when this one has last looked."""
        self._chunks: dict[int, _LeasedChunk] = {}
        self._led: set[int] = set()
        """Loads that this process lists or ends."""
        self._given_up: set[int] = set()
        """Loads that it cannot work on."""
        self._looking = asyncio.Lock()
        self._news = asyncio.Event()
        self._to_do = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._has_started = False

    def start(self) -> None:
        """Takes part from now on, until `stop`."""
        if not self._has_started:
            self._has_started = True
            self._run(self._say_alive(), "lease-loads")
            self._run(self._follow(), "follow-loads")
            self._run(self._take_part(), "share-loads")

    def _run(self, steps: Coroutine[Any, Any, None], name: str) -> None:
        # They are nobody's: neither the deadline nor the id of the request that they come from.
        task = asyncio.create_task(steps, name=name, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            _log.error("load.sharing_broke_off", task=task.get_name(), exc_info=failure)

    async def stop(self) -> None:
        """Gives back what this process has taken: others, or the next start, go on with it."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._has_started:
            with contextlib.suppress(EngineUnavailable), deadline(_GOODBYE_SECONDS):
                await self._shares.release(self.owner)
        for load in self._loads.values():
            load.interrupt()
        await asyncio.gather(
            *(load.task for load in self._loads.values() if load.task), return_exceptions=True
        )

    # For those who ask

    async def begin(self, collection: Collection, scan: FolderScan, *, prune: bool) -> Load:
        """Begins a load, or joins the one that runs of these very photos."""
        self.start()
        new = await _new_share(scan, prune=prune)
        load_id, is_new = await self._shares.begin(
            collection.id, new, utc_now(), owner=self.owner, seconds=self._seconds
        )
        return await self._begun(load_id, scan if is_new else None)

    async def begin_again(
        self, load_id: int, collection: Collection, scan: FolderScan, *, prune: bool
    ) -> Load:
        """Begins a load that has ended again; where it runs, it is that one."""
        self.start()
        new = await _new_share(scan, prune=prune)
        is_new = await self._shares.begin_again(
            load_id, new, owner=self.owner, seconds=self._seconds
        )
        return await self._begun(load_id, scan if is_new else None)

    async def _begun(self, load_id: int, scan: FolderScan | None) -> Load:
        """`scan`: where its photos are still to be listed."""
        if scan is not None:
            self._led.add(load_id)
        await self.look()
        load = self._loads.get(load_id)
        if load is None:
            self._led.discard(load_id)
            raise Conflict(f"load {load_id} was cancelled in the meantime: start it again")
        if scan is not None:
            self._run(self._guard(load, partial(self._list, load, scan)), f"list-{load_id}")
        return load

    async def cancel(self, loads: Sequence[Load]) -> None:
        """Ends loads for good, whoever works on them: nothing of them is written any more."""
        async with self._work.turn():
            for load in loads:
                await self._shares.end(load.id, "cancelled", utc_now())
        await self.look()

    async def look(self) -> None:
        """Takes over from the catalog what all processes have done."""
        async with self._looking:
            known = dict(self._loads)
            newest = await self._shares.newest()
            self._latest = await self._shares.running()
            for share in self._latest:
                load = self._loads.get(share.id) or await self._appear(share)
                if load is not None:
                    await self._follow_one(load, share)
            running = {share.id for share in self._latest}
            for load_id, load in known.items():
                if load_id not in running:
                    await self._see_end(load)
            if self._newest is not None:
                first = max(self._newest, newest - _MISSED) + 1
                await self._see_missed(set(range(first, newest + 1)) - running - known.keys())
            self._newest = newest
            if any(self._can_help(share) for share in self._latest):
                self._to_do.set()

    async def _see_missed(self, load_ids: set[int]) -> None:
        """Loads that have begun and ended since the last look are told of like any other."""
        for load_id in sorted(load_ids):
            row = await self._catalog.load(load_id)
            if row is not None and row.state != "running":
                load = await self._appear(row)
                if load is not None:
                    await self._see_end(load)
            self._newest = load_id  # told of once, should the catalog go away before the next one

    async def _appear(self, share: Share | LoadRow) -> Load | None:
        collection = await self._catalog.collection_by_id(share.collection_id)
        if collection is None or collection.state != "ready":
            return None
        load = Load(
            share.id,
            collection,
            share.root,
            share.prune,
            (),
            LoadCounts.of(share.counts),
            share.started_at,
        )
        self._loads[load.id] = load
        load.task = asyncio.create_task(_until_end(load), name=f"load-{load.id}", context=Context())
        # A load that nobody waits for must not warn of an exception that was never fetched.
        load.task.add_done_callback(lambda task: task.cancelled() or task.exception())
        self._work.appeared(load)
        return load

    async def _follow_one(self, load: Load, share: Share) -> None:
        counts, failures = LoadCounts.of(share.counts), None
        if counts.failed > len(load.failures):
            found = [Failure(*each) for each in await self._shares.failures(load.id)]
            failures = found if found != load.failures else None
        load.follow(counts, share.waiting_for, failures)

    async def _see_end(self, load: Load) -> None:
        row = await self._catalog.load(load.id)
        if row is not None and row.state == "running":
            return  # it was begun after the loads that run were read
        failures = await self._catalog.load_failures(load.id)
        del self._loads[load.id]
        self._given_up.discard(load.id)
        for chunk in self._chunks.values():
            if chunk.load is load:
                chunk.is_lost = True
        if row is None:  # its collection was dropped
            load.end("cancelled")
        else:
            load.counts = LoadCounts.of(row.counts)
            load.failures[:] = [Failure(*each) for each in failures]
            load.end(row.state, row.error, finished_at=row.finished_at)
        self._work.ended(load)

    # Heartbeat

    async def _follow(self) -> None:
        while True:
            try:
                await self.look()
            except ServiceError as trouble:
                _log.debug("load.not_followed", reason=str(trouble))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_BUSY_SECONDS if self._loads else _IDLE_SECONDS):
                    await self._news.wait()
            self._news.clear()

    async def _say_alive(self) -> None:
        while True:
            # It waits for nothing but the catalog, whatever else is away.
            try:
                await self._renew()
            except ServiceError as trouble:
                _log.debug("load.not_renewed", reason=str(trouble))
            await asyncio.sleep(min(_BUSY_SECONDS, self._seconds / _HEARTBEATS))

    async def _renew(self) -> None:
        chunks = {
            chunk.id: (chunk.progress, chunk.load.waiting_here)
            for chunk in self._chunks.values()
            if not chunk.is_lost
        }
        led = list(self._led)
        ours, leading = await self._shares.renew(self.owner, self._seconds, chunks, led)
        for chunk_id in chunks.keys() - ours:
            chunk = self._chunks.get(chunk_id)
            if chunk is not None:
                chunk.lose()
        self._led -= set(led) - leading

    # Work

    def _can_help(self, share: Share) -> bool:
        if share.id in self._given_up or share.id not in self._loads:
            return False
        if not share.is_listed:
            return share.is_free
        return share.free > 0 or (share.left == 0 and share.is_free)

    async def _take_part(self) -> None:
        while True:
            await self._to_do.wait()
            self._to_do.clear()
            for share in list(self._latest):
                load = self._loads.get(share.id)
                if load is not None and self._can_help(share):
                    await self._guard(load, partial(self._help, load, share))
            self._news.set()

    async def _guard(self, load: Load, work: Callable[[], Awaitable[None]]) -> None:
        """Does some work on a load, which fails where the work does."""
        try:
            await work()
        except Exception as failure:
            cause = first_cause(failure)
            load.cause = cause
            reason = f"{type(cause).__name__}: {cause}"
            _log.error("load.broke_off", load=load.id, error=reason, exc_info=cause)
            end = partial(self._shares.end, load.id, "failed", utc_now(), error=reason)
            with contextlib.suppress(EngineUnavailable):  # whose lease runs out: others try again
                await self._work.patiently(None, end)
        finally:
            self._led.discard(load.id)
            self._news.set()

    async def _help(self, load: Load, share: Share) -> None:
        try:
            await self._work.check_can_do(load)
        except ServiceError as reason:
            self._given_up.add(load.id)
            _log.warning("load.left_to_others", load=load.id, reason=str(reason))
            return
        if share.is_listed and share.left:
            await self._index(load)
            return
        claim = partial(self._shares.claim, load.id, self.owner, self._seconds)
        if await self._work.patiently(load, claim):
            self._led.add(load.id)
            await (self._end(load, share) if share.is_listed else self._list_again(load))

    async def _list_again(self, load: Load) -> None:
        """Lists the photos of a load whose beginner has died before all of them were listed."""
        scan = await self._work.scan(load.root)
        new = await _new_share(scan, prune=load.prune)
        again = partial(
            self._shares.list_again, load.id, new, owner=self.owner, seconds=self._seconds
        )
        if await self._work.patiently(load, again):
            _log.info("load.resumed", load=load.id, root=load.root)
            await self._list(load, scan)

    async def _list(self, load: Load, scan: FolderScan) -> None:
        for folder, reason in scan.unreadable.items():
            _log.warning("load.folder_unreadable", folder=folder, reason=reason)
        photos = scan.photos
        parts = [
            [ListedPhoto(*astuple(photo)) for photo in photos[start : start + _CHUNK_PHOTOS]]
            for start in range(0, len(photos), _CHUNK_PHOTOS)
        ]
        for first in range(0, len(parts), _LISTED_TOGETHER):
            some = parts[first : first + _LISTED_TOGETHER]
            add = partial(self._shares.add_chunks, load.id, self.owner, first, some)
            if not await self._work.patiently(load, add):
                return  # it was cancelled, or another has taken it over
        await self._work.patiently(load, partial(self._shares.finish_listing, load.id, self.owner))

    async def _index(self, load: Load) -> None:
        load.begin()
        mine: list[_LeasedChunk] = []

        async def take() -> AsyncGenerator[Portion]:
            lease = partial(self._shares.lease, load.id, self.owner, self._seconds)
            while load.state == "running":
                with self._figures.stage("lease"):
                    chunk = await self._work.patiently(load, lease)
                if chunk is None:
                    return
                if chunk.lost_by is not None:
                    _log.warning("load.chunk_taken_over", load=load.id, owner=chunk.lost_by)
                leased = _LeasedChunk(chunk, load, self._shares, self.owner, self._figures)
                mine.append(leased)
                self._chunks[chunk.id] = leased
                yield leased
                for done in [each for each in mine if each.is_over]:
                    self._forget(done)
                    mine.remove(done)

        try:
            async with aclosing(take()) as portions:
                await self._work.index(load, portions)
        finally:
            for chunk in mine:
                self._forget(chunk)

    def _forget(self, chunk: "_LeasedChunk") -> None:
        self._chunks.pop(chunk.id, None)
        self._news.set()

    async def _end(self, load: Load, share: Share) -> None:
        removed = 0
        if load.prune:
            present: set[str] = set()
            async for page in self._shares.photos(load.id):
                present.update(path_key(photo.path) for photo in page)
            removed = await self._work.patiently(
                load, partial(self._work.prune, load, present, share.unreadable)
            )
        end = partial(self._shares.end, load.id, "done", utc_now(), removed=removed)
        await self._work.patiently(load, end)


class _LeasedChunk(Portion):
    """A chunk that this process has leased."""

    def __init__(
        self, chunk: Chunk, load: Load, shares: ShareTable, owner: str, figures: Metrics
    ) -> None:
        self.id = chunk.id
        self.load = load
        self.is_lost = False
        self.is_over = False
        self._photos = [FoundPhoto(*photo) for photo in chunk.photos]
        self._shares = shares
        self._owner = owner
        self._figures = figures
        self._counts = LoadCounts()
        self._failures: list[Failure] = []

    @property
    def photos(self) -> Sequence[FoundPhoto]:
        """See `Portion.photos`."""
        return self._photos

    @property
    def progress(self) -> ChunkCounts:
        """What has become of the photos so far."""
        counts = self._counts
        return ChunkCounts(counts.indexed, counts.unchanged, counts.failed, counts.objects)

    def add(self, more: LoadCounts, failures: Sequence[Failure] = (), *, read: int = 0) -> None:
        """See `Portion.add`."""
        self._counts += more
        self._failures += failures

    def lose(self) -> None:
        """It is another's, or its load has ended."""
        if not self.is_lost and not self.is_over:
            self.is_lost = True
            _log.info("load.chunk_lost", load=self.load.id, chunk=self.id)

    async def is_ours(self) -> bool:
        """See `Portion.is_ours`."""
        with self._figures.stage("lease"):
            if not self.is_lost and not await self._shares.owns(self.id, self._owner):
                self.lose()
        return not self.is_lost

    async def finish(self) -> None:
        """See `Portion.finish`."""
        failures = [(each.path, each.reason) for each in self._failures]
        with self._figures.stage("lease"):
            if not self.is_lost:
                await self._shares.complete(self.id, self._owner, self.progress, failures)
        self.is_over = True


async def _until_end(load: Load) -> None:
    """Ends with the load; see `Load.wait`."""
    while load.state == "running":
        await load.next_change(load.version)
    if load.state == "cancelled":
        raise Conflict(f"the load of {load.root} was cancelled")
    if load.state == "failed":
        if isinstance(load.cause, ServiceError):
            raise load.cause
        raise ServiceError(
            f"the load of {load.root} broke off ({load.error}); the servers' logs have the cause."
            " Loading the folder again goes on from here"
        )


async def _new_share(scan: FolderScan, *, prune: bool) -> NewShare:
    return NewShare(
        root=scan.root,
        prune=prune,
        total=len(scan.photos),
        passed_over=scan.passed_over,
        photos_sha256=await asyncio.to_thread(_photos_sha256, scan),
        unreadable=scan.unreadable,
    )


def _photos_sha256(scan: FolderScan) -> str:
    digest = hashlib.sha256(os.fsencode(scan.root))
    for photo in scan.photos:
        digest.update(json.dumps(astuple(photo)).encode())
    return digest.hexdigest()
