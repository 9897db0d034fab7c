"""What the service tells of itself to Prometheus: requests, stages of work, photos, loads, engines.

Whoever measures gets the application's `Metrics`; nothing is kept outside of it, so that several
applications in one process do not count into each other's figures.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final, Literal, NoReturn, get_args
from weakref import WeakSet

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from backend.errors import EngineUnavailable
from backend.tracing import Traces

__all__ = ["STAGES", "Limit", "LoadProgress", "Metrics", "Stage", "add_stage_times", "stage_times"]

Stage = Literal["decode", "detect", "cut", "embed", "search", "lookup", "write", "turn", "lease"]
"""Decoding and letterboxing, the detector, NMS and crops, the embedder; a search's vectors and its
rows of the catalog; what is written to both, and of that the wait for others who write; what a load
that backends share waits for its chunks."""

STAGES: Final[tuple[Stage, ...]] = get_args(Stage)

Limit = Literal["MAX_QUEUED", "MAX_UPLOADS_IN_MEMORY"]
"""The settings beyond which a request is refused."""
_LIMITS: Final[tuple[Limit, ...]] = get_args(Limit)

_NAMESPACE: Final = "image_search"
_LAG_SECONDS: Final = 0.1
"""Between two looks at how late the event loop is."""
_BUCKETS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0),
)
"""Seconds: from a query of the catalog to the longest that a request may take by default."""
_SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_BATCHED: Final[tuple[Literal["embed", "write"], ...]] = ("embed", "write")

_times: ContextVar[dict[Stage, float] | None] = ContextVar("times", default=None)
"""Of the request that this is done for; tasks inherit them as they do its deadline."""


@contextmanager
def stage_times() -> Iterator[dict[Stage, float]]:
    """The seconds of each stage that is gone through inside, in all."""
    times: dict[Stage, float] = {}
    token = _times.set(times)
    try:
        yield times
    finally:
        _times.reset(token)


def add_stage_times(times: Mapping[Stage, float]) -> None:
    """Adds the seconds of stages that a task of nobody's in particular has gone through.

    For each request that has waited for it.
    """
    if (own := _times.get()) is not None:
        for stage, seconds in times.items():
            own[stage] = own.get(stage, 0.0) + seconds


@dataclass(frozen=True)
class LoadProgress:
    """The loads that are under way, and the photos of those that `/progress` is about.

    `pace`: photos that may be in flight together.
    """

    running: int
    waiting: int
    found: int
    processed: int
    failed: int
    pace: int


class Metrics:
    """The figures of one application; what they are called begins with `image_search_`.

    A stage's time is what the one photo or search waits for it, its turn in the engine included.

    Attributes:
        traces: the application's.
    """

    def __init__(self, traces: Traces | None = None) -> None:
        self.traces = traces or Traces()
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._requests = self._counter(
            "requests_total", "Requests that were answered.", "method", "route", "status"
        )
        self._request_seconds = self._histogram(
            "request_duration_seconds", "Time from a request's head to its answer's end.", "route"
        )
        self._in_flight = self._gauge("requests_in_flight", "Requests that are being answered.")
        self._tasks = self._gauge("event_loop_tasks", "Tasks on the event loop.")
        self._loop_lag = Histogram(
            "event_loop_lag_seconds",
            "By how much the event loop is late to what it was to do at a time.",
            namespace=_NAMESPACE,
            registry=self._registry,
            buckets=_BUCKETS,
        )
        stages = self._histogram(
            "stage_duration_seconds", "Time of a stage, its turn in the engine included.", "stage"
        )
        # A series that begins with its first event would hide that event from rates.
        self._stages = {stage: stages.labels(stage) for stage in STAGES}
        batches = self._histogram(
            "batch_size", "Objects embedded, or photos written, together.", "stage", _SIZES
        )
        self._batches = {stage: batches.labels(stage) for stage in _BATCHED}
        self._places = self._gauge(
            "places_taken", "Photos of requests that are worked on, or wait for it."
        )
        self._upload_bytes = self._gauge(
            "upload_bytes", "Bytes of requests' photos that are in memory."
        )
        self._refused = self._counter(
            "requests_refused_total", "Requests beyond a limit, a setting.", "limit"
        )
        for limit in _LIMITS:
            self._refused.labels(limit)
        self._waiting = self._gauge("photos_waiting", "Photos that wait for their analysis.")
        self._analyzing = self._gauge("photos_analyzing", "Photos that are being analysed.")
        self._photos = self._counter("photos_indexed_total", "Photos that were indexed.")
        self._objects = self._counter("objects_indexed_total", "Objects that were indexed.")
        self._engine_errors = self._counter(
            "engine_errors_total",
            "Failures of an engine that reached a request or began an outage.",
            "engine",
        )
        self._counted_errors: WeakSet[EngineUnavailable] = WeakSet()
        self._loads_running = self._gauge(
            "loads_running", "Loads that are under way, those that wait for their turn included."
        )
        self._loads_waiting = self._gauge("loads_waiting", "Loads that wait for an engine.")
        of_loads = "of the loads under way, or else of the last ones"
        self._photos_found = self._gauge("load_photos_found", f"Photos {of_loads}.")
        self._photos_processed = self._gauge(
            "load_photos_processed", f"Photos that are done with, {of_loads}."
        )
        self._photos_failed = self._gauge(
            "load_photos_failed", f"Photos that could not be indexed, {of_loads}."
        )
        self._pace = self._gauge(
            "load_photos_in_flight_limit", "Photos of loads that may be in flight together."
        )

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(name, what, labels, namespace=_NAMESPACE, registry=self._registry)

    def _gauge(self, name: str, what: str) -> Gauge:
        return Gauge(name, what, namespace=_NAMESPACE, registry=self._registry)

    def _histogram(
        self, name: str, what: str, label: str, buckets: Sequence[float] = _BUCKETS
    ) -> Histogram:
        return Histogram(
            name, what, [label], namespace=_NAMESPACE, registry=self._registry, buckets=buckets
        )

    # Requests

    @contextmanager
    def request_in_flight(self) -> Iterator[None]:
        """A request is being answered inside."""
        with _counted(self._in_flight):
            yield

    def count_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts a request that was answered; each argument but the last has few values."""
        self._requests.labels(method, route, status).inc()
        self._request_seconds.labels(route).observe(seconds)

    def count_refused(self, limit: Limit) -> None:
        """Counts a request that one of the limits of admission keeps out."""
        self._refused.labels(limit).inc()

    def show_admitted(self, places: int, size: int) -> None:
        """Sets the figures of places that are taken, and of bytes in memory, at the moment."""
        self._places.set(places)
        self._upload_bytes.set(size)

    async def watch_event_loop(self) -> NoReturn:
        """Measures how late the event loop is, over and over."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _LAG_SECONDS
            await asyncio.sleep(_LAG_SECONDS)
            self._loop_lag.observe(loop.time() - due)

    def show_tasks(self) -> None:
        """Sets the figure of tasks on the event loop, which only it can count."""
        self._tasks.set(len(asyncio.all_tasks()))

    # Work

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """Times a stage, whether it comes to a good end or not."""
        start = time.perf_counter()
        try:
            with self.traces.stage(stage):
                yield
        finally:
            seconds = time.perf_counter() - start
            self._stages[stage].observe(seconds)
            if (times := _times.get()) is not None:
                times[stage] = times.get(stage, 0.0) + seconds

    @contextmanager
    def photo_waiting(self) -> Iterator[Callable[[], None]]:
        """A photo waits inside for its analysis, until the call that this gives, in any thread."""
        waits = threading.Lock()  # that is acquired once, by whoever comes first
        self._waiting.inc()

        def begin() -> None:
            if waits.acquire(blocking=False):
                self._waiting.dec()

        try:
            yield begin
        finally:
            begin()

    @contextmanager
    def photo_analyzing(self) -> Iterator[None]:
        """A photo is analysed inside."""
        with _counted(self._analyzing):
            yield

    def batch(self, stage: Literal["embed", "write"], size: int) -> None:
        """Notes how many objects are embedded, or photos written, together."""
        self._batches[stage].observe(size)

    def count_indexed(self, photos: int, objects: int) -> None:
        """Counts photos that can be found from now on, and their objects."""
        self._photos.inc(photos)
        self._objects.inc(objects)

    # Engines and loads

    def add_engine(self, engine: str) -> None:
        """Shows an engine that is in use, also before it fails."""
        self._engine_errors.labels(engine)

    def count_engine_error(self, error: EngineUnavailable) -> None:
        """Counts an engine's failure, once also where it ends a request and begins an outage."""
        if error not in self._counted_errors:
            self._counted_errors.add(error)
            self._engine_errors.labels(error.engine).inc()

    def show_loads(self, progress: LoadProgress) -> None:
        """Sets the figures of loads, which are of the moment."""
        self._loads_running.set(progress.running)
        self._loads_waiting.set(progress.waiting)
        self._photos_found.set(progress.found)
        self._photos_processed.set(progress.processed)
        self._photos_failed.set(progress.failed)
        self._pace.set(progress.pace)

    def exposition(self) -> bytes:
        """All figures in Prometheus' text format 0.0.4."""
        return generate_latest(self._registry)


@contextmanager
def _counted(gauge: Gauge) -> Iterator[None]:
    gauge.inc()
    try:
        yield
    finally:
        gauge.dec()
