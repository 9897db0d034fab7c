"""What must be in the service for a scenario, and what must be gone from it afterwards."""

import os
import time
from pathlib import Path
from typing import Final

import gevent

from scripts.load_test.apis import APIS, Api
from scripts.load_test.errors import LoadTestError
from scripts.load_test.options import LOADING_SUFFIX
from scripts.load_test.photos import Photos
from scripts.load_test.scenarios import SCENARIOS
from scripts.load_test.service import Service

__all__ = ["Stage"]

_FIRST_LOAD_SECONDS: Final = 1.0
"""In which a service says whether it can load a folder at all."""


class Stage:
    """A collection of the load test's own, filled as the scenario needs it.

    Attributes:
        api: whose calls the users make.
        filling: what was done to fill the collection, in words; None where there was no need.
    """

    def __init__(
        self,
        scenario: str,
        *,
        api: str,
        url: str,
        collection: str,
        top_k: int,
        photos: Photos,
        folder: Path,
        at_most: int,
        keep: bool,
    ) -> None:
        self._scenario = SCENARIOS[scenario]
        if self._scenario.filled == "load" and photos.found > at_most:
            raise LoadTestError(
                f"{folder} holds {photos.found} photos, and {scenario} loads them all: name a"
                f" smaller folder, or allow it with --most-photos {photos.found}"
            )
        self.api = APIS[api](collection, top_k)
        self.filling: str | None = None
        self._service = Service(url)
        self._photos = photos
        # As the service sees it, which is on the same machine.
        self._folder = os.path.abspath(folder)
        self._keep = keep
        self._made: list[Api] = []
        self._loading: _Loading | None = None
        if self._scenario.while_loading:
            beside = APIS[api](collection + LOADING_SUFFIX, top_k)
            self._loading = _Loading(self._service, beside, self._folder)

    def prepare(self) -> None:
        """Fills the collection where it is empty.

        Raises:
            LoadTestError: the collection belongs to somebody, or the service cannot be asked.
        """
        count = self._claim(self.api, keep=self._keep)
        if count == 0 and self._scenario.filled is not None:
            begin = time.perf_counter()
            if self._scenario.filled == "load":
                self._service.load(self.api, self._folder)
            else:
                self._service.upload(self.api, self._photos)
            seconds = time.perf_counter() - begin
            count = self._service.count(self.api)
            done = "loaded" if self._scenario.filled == "load" else "uploaded"
            self.filling = (
                f"{count} photos {done} in {seconds:.1f} s, {count / seconds:.1f} a second"
            )
        if self._loading is not None:
            self._claim(self._loading.api, keep=False)

    def begin_load(self) -> None:
        """Has the service load the folder again and again, where the scenario says so.

        Raises:
            LoadTestError: the service cannot load it.
        """
        if self._loading is not None:
            self._loading.start()

    def end_load(self) -> int | None:
        """Ends the load that goes on meanwhile; how many photos it has brought, if there was one.

        Raises:
            LoadTestError: it had ended by itself.
        """
        return None if self._loading is None else self._loading.end()

    def clean(self) -> None:
        """Removes what is the load test's.

        Raises:
            LoadTestError: the service cannot be asked.
        """
        if self._loading is not None:
            self._loading.kill()
        while self._made:
            self._service.drop(self._made.pop())

    def _claim(self, api: Api, *, keep: bool) -> int:
        count = self._service.count(api)
        if keep:
            return count
        if count:
            raise LoadTestError(
                f"the collection {api.collection} has photos already, which would be lost at the"
                " end: name another with --collection, or use it as it is, and leave it there,"
                " with --keep"
            )
        self._made.append(api)
        return 0


class _Loading:
    """A service that loads a folder, forgets it and loads it again."""

    def __init__(self, service: Service, api: Api, folder: str) -> None:
        self.api = api
        self._service = service
        self._folder = folder
        self._loaded = 0
        self._error: LoadTestError | None = None
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def start(self) -> None:
        self._loaded = 0
        self._greenlet = gevent.spawn(self._run)
        self._greenlet.join(_FIRST_LOAD_SECONDS)
        if self._error is not None:
            raise self._error

    def end(self) -> int:
        self.kill()
        if self._error is not None:
            raise LoadTestError(f"the load has ended before the searches: {self._error}")
        loaded = self._loaded + self._service.count(self.api)
        self._service.drop(self.api)  # and with it the load that nobody waits for any more
        return loaded

    def kill(self) -> None:
        if self._greenlet is not None:
            self._greenlet.kill()

    def _run(self) -> None:
        try:
            while True:
                self._service.load(self.api, self._folder)
                count = self._service.count(self.api)
                self._service.drop(self.api)
                self._loaded += count
        except LoadTestError as error:
            self._error = error
