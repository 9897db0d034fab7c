"""Whether every engine really does its work, found out by giving it some.

A server that answers a health check may still have lost the process that runs a model, or the
segments of a collection: only an inference, a search and a query tell.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import structlog

from backend.analysis import PhotoAnalyzer
from backend.deadlines import deadline, time_left
from backend.errors import EngineUnavailable, ServiceError
from backend.single_flight import SingleFlight
from backend.storage.catalog import Catalog
from backend.storage.vectors import VectorStore

__all__ = ["EngineState", "Readiness"]

_log = structlog.get_logger(__name__)

_PROBE_SECONDS: Final = 5.0
"""Well above what a busy engine takes, and short enough for whoever waits for the answer."""


@dataclass(frozen=True)
class EngineState:
    """What a probe has found: the milliseconds that it took, or the reason why it failed."""

    engine: str
    milliseconds: float
    problem: str | None

    @property
    def is_ready(self) -> bool:
        """Whether the engine has done what it was asked."""
        return self.problem is None


class Readiness:
    """Probes the engines; those who ask while a probe is in flight share it."""

    def __init__(self, catalog: Catalog, vectors: VectorStore, analyzer: PhotoAnalyzer) -> None:
        self._catalog = catalog
        self._vectors = vectors
        self._analyzer = analyzer
        self._checks: SingleFlight[list[EngineState]] = SingleFlight()
        self._found: list[EngineState] = []
        self._found_at = -math.inf

    async def check(self, *, max_age: float = 0.0) -> list[EngineState]:
        """Each engine's state, after an inference, a vector search and a query.

        `max_age`: seconds that it may be old.
        """
        if time.monotonic() - self._found_at < max_age:
            return self._found
        return await self._checks.run("engines", self._check)

    async def _check(self) -> list[EngineState]:
        found = list(
            await asyncio.gather(
                _probe(self._analyzer.engine_name, self._analyzer.probe),
                _probe(self._vectors.engine_name, self._search),
                _probe(self._catalog.engine_name, self._catalog.ping),
            )
        )
        self._found, self._found_at = found, time.monotonic()
        return found

    async def _search(self) -> None:
        collections = []
        with contextlib.suppress(EngineUnavailable):  # the catalog's own probe tells
            collections = await self._catalog.collections("ready")
        if not collections:
            await self._vectors.exists("readiness")
            return
        # One collection that can be searched is enough: that another cannot is its own trouble. It
        # is given half of the time that is left, so that the others have their turn.
        trouble: EngineUnavailable | None = None
        for collection in collections:
            share = 1.0 if collection is collections[-1] else 0.5
            try:
                with deadline(time_left(_PROBE_SECONDS) * share):
                    await self._vectors.search(
                        collection.store, np.eye(1, collection.dim, dtype=np.float32), limit=1
                    )
                return
            except EngineUnavailable as error:
                # It may have been dropped or replaced under the search. And an engine that works
                # but has lost the collection is not away: it is for the mending to find that out.
                if await self._vectors.exists(collection.store):
                    trouble = error
        if trouble is not None:
            raise trouble


async def _probe(engine: str, work: Callable[[], Awaitable[object]]) -> EngineState:
    start = time.perf_counter()
    problem: str | None = None
    try:
        with deadline(_PROBE_SECONDS):
            async with asyncio.timeout(_PROBE_SECONDS):
                await work()
    except TimeoutError:
        problem = f"{engine} has not answered within {_PROBE_SECONDS:g} s"
    except ServiceError as error:
        problem = str(error)
    except Exception as error:
        _log.exception("readiness.probe_broke", engine=engine)
        problem = f"{engine}: {type(error).__name__}"
    return EngineState(engine, round((time.perf_counter() - start) * 1000, 1), problem)
