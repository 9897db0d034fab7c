"""A load: a folder's photos on their way into a collection, and what there is to tell of it."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields
from typing import Final, Protocol

from backend.errors import Unavailable
from backend.scanning import FoundPhoto
from backend.storage.catalog import Collection, LoadState, utc_now

__all__ = [
    "INTERRUPTED",
    "Failure",
    "Load",
    "LoadCounts",
    "Portion",
    "WholeFolder",
    "first_cause",
]

INTERRUPTED: Final = "the service is stopping; the load goes on after its restart"
_FAILURES_KEPT: Final = 1000
"""Failures that a load keeps in memory for its report; the catalog keeps all."""


@dataclass(frozen=True)
class LoadCounts:
    """What has become of a folder's photos so far."""

    total: int = 0
    indexed: int = 0
    unchanged: int = 0
    failed: int = 0
    removed: int = 0
    passed_over: int = 0
    objects: int = 0

    @classmethod
    def of(cls, kept: Mapping[str, int]) -> "LoadCounts":
        """Counts as the catalog keeps them."""
        return cls(**{each.name: kept.get(each.name, 0) for each in fields(cls)})

    @property
    def processed(self) -> int:
        """Photos that are done with, one way or another."""
        return self.indexed + self.unchanged + self.failed

    def __add__(self, more: "LoadCounts") -> "LoadCounts":
        """The counts of both together."""
        return LoadCounts(
            *(one + other for one, other in zip(astuple(self), astuple(more), strict=True))
        )


@dataclass(frozen=True)
class Failure:
    """A photo that could not be indexed, and why."""

    path: str
    reason: str


@dataclass(eq=False)
class Load:
    """A folder's photos on their way into a collection.

    What there is to tell of it changes by `add`, `follow`, `wait_for` and `end` alone: each counts
    up `version` and wakes those who await `next_change`.

    Attributes:
        photos: those that it is about, while it runs; none of one that is shared with other
            processes, which lists them in the catalog.
        failures: the first thousand.
        started_at: ISO 8601, UTC, like `finished_at`; of one that is gone on with, its first start.
        error: why it has failed as a whole.
        cause: the same, where this process has found it.
        waiting_here: an engine that is away, of those that this process works with.
    """

    id: int
    collection: Collection
    root: str
    prune: bool
    photos: Sequence[FoundPhoto]
    counts: LoadCounts
    started_at: str = field(default_factory=utc_now)
    failures: list[Failure] = field(default_factory=list)
    state: LoadState = "running"
    finished_at: str | None = None
    error: str | None = None
    cause: Exception | None = None
    task: "asyncio.Task[None] | None" = None
    version: int = 0
    waiting_here: str | None = None
    _waiting_elsewhere: str | None = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _working_since: float | None = None
    _files_read: int = 0

    def add(self, more: LoadCounts, failures: Sequence[Failure] = (), *, read: int = 0) -> None:
        """Adds to the counts; `read` of the photos' files have been read for that."""
        self.counts += more
        self.failures += failures[: _FAILURES_KEPT - len(self.failures)]
        self._files_read += read
        self._tell()

    def follow(
        self, counts: LoadCounts, waiting_for: str | None, failures: Sequence[Failure] | None = None
    ) -> None:
        """Takes over what all processes together have done; `failures`: where there are more."""
        if (counts, waiting_for, failures) == (self.counts, self._waiting_elsewhere, None):
            return
        before = self.counts.indexed + self.counts.failed
        self._files_read += max(0, counts.indexed + counts.failed - before)
        self.counts, self._waiting_elsewhere = counts, waiting_for
        if failures is not None:
            self.failures[:] = failures[:_FAILURES_KEPT]
        self._tell()

    def begin(self) -> None:
        """Its turn has come."""
        if self._working_since is None:
            self._working_since = asyncio.get_running_loop().time()

    @property
    def waiting_for(self) -> str | None:
        """An engine that is away, of those that some process works with."""
        return self.waiting_here or self._waiting_elsewhere

    def wait_for(self, engine: str | None) -> None:
        """It waits for an engine, or, with None, goes on."""
        self.waiting_here = engine
        self._tell()

    def end(
        self, state: LoadState, error: str | None = None, *, finished_at: str | None = None
    ) -> None:
        """It has ended, now unless a time is given."""
        self.state, self.error, self.finished_at = state, error, finished_at or utc_now()
        self.waiting_here = self._waiting_elsewhere = None
        self.photos = ()  # they may be very many, and the load is kept
        self._tell()

    def interrupt(self) -> None:
        """It goes on after the service's restart: nothing changes any more until then."""
        self.photos = ()
        self._changed.set()

    def _tell(self) -> None:
        self.version += 1
        # Whoever waits has the old one; however much changes until he is awake, he is woken once.
        self._changed.set()
        self._changed = asyncio.Event()

    async def next_change(self, known: int) -> int:
        """Returns `version` once it is above `known`: at once, where it is already.

        Of a load that has ended nothing changes: it returns at once.

        Raises:
            Unavailable: the service is stopping; the load goes on after its restart.
        """
        while self.version <= known and self.state == "running":
            if self._changed.is_set():
                raise Unavailable(INTERRUPTED)
            await self._changed.wait()
        return self.version

    @property
    def photos_per_second(self) -> float | None:
        """How fast it reads photos and does what they need; None while that is not known."""
        if self.state != "running" or self._working_since is None or not self._files_read:
            return None
        elapsed = asyncio.get_running_loop().time() - self._working_since
        return self._files_read / max(elapsed, 1e-3)

    @property
    def seconds_left(self) -> float | None:
        """How long it will take yet, going on like this; None while that is not known."""
        rate = self.photos_per_second
        return None if rate is None else (self.counts.total - self.counts.processed) / rate

    async def wait(self) -> None:
        """Returns when the load is done.

        Raises:
            ServiceError: it failed, was cancelled, or the service is stopping.
        """
        assert self.task is not None
        # Shielded: a client that goes away takes its wait with it, not the load.
        await asyncio.shield(self.task)


class Portion(Protocol):
    """Photos of a load that are worked on together."""

    @property
    def photos(self) -> Sequence[FoundPhoto]:
        """All of them."""

    def add(self, more: LoadCounts, failures: Sequence[Failure] = (), *, read: int = 0) -> None:
        """Counts what has become of some; see `Load.add`."""

    async def is_ours(self) -> bool:
        """Whether they are still to be written; asked within the turn to write."""

    async def finish(self) -> None:
        """All of them are done with."""


class WholeFolder(Portion):
    """All photos of a load that one process does alone."""

    def __init__(self, load: Load) -> None:
        self._load = load

    @property
    def photos(self) -> Sequence[FoundPhoto]:
        """See `Portion.photos`."""
        return self._load.photos

    def add(self, more: LoadCounts, failures: Sequence[Failure] = (), *, read: int = 0) -> None:
        """See `Portion.add`."""
        self._load.add(more, failures, read=read)

    async def is_ours(self) -> bool:
        """See `Portion.is_ours`."""
        return True

    async def finish(self) -> None:
        """See `Portion.finish`: the load itself goes on with what comes after."""


def first_cause(error: Exception) -> Exception:
    """What has broken a group of tasks off."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
