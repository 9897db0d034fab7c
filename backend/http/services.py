"""The services that handlers use, under typed keys of the application."""

import asyncio
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from backend.admission import Admission, Place
from backend.analysis import PhotoAnalyzer
from backend.backup import Backups
from backend.deadlines import deadline
from backend.duplicates import DuplicateFinder
from backend.errors import EngineUnavailable, Unavailable
from backend.fetching import PhotoFetcher
from backend.indexing import Indexer
from backend.keys import KeyRing
from backend.metrics import Metrics
from backend.places import PhotoPlaces
from backend.queries import QueryPhotos
from backend.readiness import Readiness
from backend.searching import Searcher
from backend.settings import Settings
from backend.storage.catalog import Catalog
from backend.thumbnails import Thumbnails

__all__ = [
    "ADMISSION",
    "METRICS",
    "PLACE",
    "RUNNING",
    "SETTINGS",
    "UNHURRIED",
    "Running",
    "Services",
    "admitted",
    "in_time",
    "services",
]


@dataclass(frozen=True)
class Services:
    """What handlers call, with its engines open.

    Attributes:
        places: those that catalogued photos may lie in.
    """

    catalog: Catalog
    analyzer: PhotoAnalyzer
    indexer: Indexer
    searcher: Searcher
    duplicates: DuplicateFinder
    fetcher: PhotoFetcher
    queries: QueryPhotos
    thumbnails: Thumbnails
    readiness: Readiness
    places: PhotoPlaces
    keys: KeyRing
    backups: Backups


class Running:
    """Where the services are, once they are there: they start in any order with their engines.

    Attributes:
        services: None until every engine has answered.
        waiting: why each engine that is waited for is not there yet, by its name.
        task: runs the services; it ends before its time where they cannot work.
    """

    def __init__(self) -> None:
        self.services: Services | None = None
        self.waiting: dict[str, str] = {}
        self.ready = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    async def wait_until_ready(self) -> Services:
        """The services, once they are there.

        Raises:
            ConfigurationError: they cannot work with the engines that they have found.
        """
        assert self.task is not None
        waiting = asyncio.create_task(self.ready.wait())
        try:
            await asyncio.wait([self.task, waiting], return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if self.services is None:
            await asyncio.shield(self.task)
        assert self.services is not None
        return self.services


SETTINGS: Final = web.AppKey("settings", Settings)
RUNNING: Final = web.AppKey("running", Running)
METRICS: Final = web.AppKey("metrics", Metrics)
ADMISSION: Final = web.AppKey("admission", Admission)
PLACE: Final = web.RequestKey("place", Place)
"""Of a request to an operation that is `admitted`."""
UNHURRIED: Final = web.RequestKey("unhurried", bool)
"""Set by a handler that answers when long work is done: that it takes long is no news."""


def services(request: web.Request) -> Services:
    """The services.

    Raises:
        Unavailable: they have not started yet; it names the engines that they wait for.
    """
    running = request.app[RUNNING]
    if running.services is not None:
        return running.services
    for engine, reason in running.waiting.items():
        raise EngineUnavailable(engine, f"the service is starting and waits: {reason}")
    raise Unavailable("the service is starting: try again in a few seconds")


def in_time(request: web.Request) -> AbstractContextManager[None]:
    """The deadline of what a request asks for; to be entered when its body has been read."""
    return deadline(request.app[SETTINGS].request_timeout)


def admitted(handler: Handler) -> Handler:
    """A handler that gets a request only where there is a place for it.

    That is decided before its body is read, so that whoever is refused costs next to nothing.
    """

    async def admit(request: web.Request) -> web.StreamResponse:
        with request.app[ADMISSION].place() as place:
            request[PLACE] = place
            return await handler(request)

    return admit
