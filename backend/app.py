"""Wires settings, engines, services and routes together, and does nothing else.

The one module that knows everyone.
"""

import asyncio
import contextlib
import importlib.metadata
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import cv2
import structlog
from aiohttp import web
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from backend.admission import Admission
from backend.analysis import PhotoAnalyzer
from backend.backup import Backups
from backend.decoding.pool import Decoders
from backend.duplicates import DuplicateFinder
from backend.errors import ConfigurationError, EngineUnavailable
from backend.fetching import PhotoFetcher
from backend.files import PhotoFolders, lock_file
from backend.http import (
    access,
    compat,
    connections,
    docs,
    draining,
    health,
    limits,
    metrics,
    middlewares,
    perimeter,
)
from backend.http import services as http
from backend.http.page import add_page
from backend.http.perimeter import PERIMETER, Perimeter
from backend.http.services import ADMISSION, METRICS, RUNNING, SETTINGS, Running
from backend.http.v1 import routes
from backend.indexing import Indexer
from backend.keys import KeyRing
from backend.metrics import Metrics
from backend.places import PhotoPlaces
from backend.preparing import PhotoPreparer
from backend.queries import QueryPhotos
from backend.readiness import Readiness
from backend.repairing import Repairer
from backend.searching import Searcher
from backend.serving.engines import open_local_server
from backend.serving.local import LocalServer
from backend.serving.models import Detector, Embedder, ModelServer, default_pair
from backend.serving.triton import TritonServer
from backend.settings import Settings
from backend.storage.catalog import Catalog, MySQLOptions
from backend.storage.keys import KeyTable
from backend.storage.vectors import MilvusLite, MilvusOptions, MilvusServer, VectorStore
from backend.thumbnails import Thumbnails
from backend.tracing import Traces
from backend.uploads import UploadFolder
from backend.writing import PhotoWriter

__all__ = ["Services", "create_app", "open_keys", "open_services"]

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")

_DISTRIBUTION: Final = "image-similarity-search"
_SILENT_START_SECONDS: Final = 10.0
"""The embedded engines take one or two; only a server that is frozen says nothing for longer."""


@dataclass(frozen=True)
class Services:
    """Everything that runs, opened and recovered.

    Attributes:
        places: those that catalogued photos may lie in.
    """

    catalog: Catalog
    vectors: VectorStore
    analyzer: PhotoAnalyzer
    readiness: Readiness
    writer: PhotoWriter
    indexer: Indexer
    searcher: Searcher
    repairer: Repairer
    places: PhotoPlaces
    decoders: Decoders
    backups: Backups


OnWait = Callable[[str, str | None], None]
"""Is told of an engine that is waited for, and why, and, with None, of one that has come."""


@asynccontextmanager
async def open_services(
    settings: Settings,
    *,
    on_wait: OnWait = lambda engine, problem: None,
    owns: bool = True,
    repairs: bool = False,
    figures: Metrics | None = None,
) -> AsyncIterator[Services]:
    """Opens engines and services, undoes what a crash has left, and closes all at the end.

    Waits for engines that are not there yet, each for itself. A command that may run beside the
    service does not own what it writes to: it neither removes uploaded files that it does not know
    nor gives up photos whose vectors it does not find. One that repairs opens though all are lost.
    What is measured goes into `figures`; without them traces are sent all the same.

    Raises:
        ConfigurationError: the models, the stored data and the settings do not fit together.
    """
    # Photos already run side by side; OpenCV splitting each over the cores would only add waits.
    cv2.setNumThreads(1)
    async with AsyncExitStack() as stack:
        if figures is None:
            figures = Metrics(_traces(settings))
            await stack.enter_async_context(figures.traces.sending())
        if settings.milvus_host is None or settings.mysql_host is None:
            stack.enter_context(_locked(settings.data_dir))
        _check_uploads(settings.uploads)
        decoders = _open_decoders(settings, stack)
        try:
            async with asyncio.TaskGroup() as opening:
                models = opening.create_task(
                    _when_available(
                        partial(_open_models, settings, figures, decoders, stack), on_wait
                    )
                )
                catalogs = opening.create_task(
                    _when_available(partial(_open_catalog, settings, stack), on_wait)
                )
                stores = opening.create_task(
                    _when_available(partial(_open_vectors, settings, stack), on_wait)
                )
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        analyzer, catalog, vectors = models.result(), catalogs.result(), stores.result()
        for engine in (analyzer.engine_name, catalog.engine_name, vectors.engine_name):
            figures.add_engine(engine)
        uploads = UploadFolder(settings.uploads, catalog.identity)
        writer = PhotoWriter(
            catalog,
            vectors,
            analyzer,
            uploads,
            figures,
            metric=settings.metric_type,
            owns=owns,
        )
        stack.push_async_callback(writer.close)
        loadable = _open_loadable(settings, stack)
        places = loadable.with_folder(settings.uploads)
        indexer = Indexer(
            settings,
            catalog,
            analyzer,
            uploads,
            writer,
            figures,
            folders=loadable,
            catalogued=places,
        )
        stack.push_async_callback(indexer.close)
        await _when_available(partial(writer.recover, repairs=repairs), on_wait)
        if owns:
            await _when_available(writer.sweep_uploads, on_wait)
        yield Services(
            catalog=catalog,
            vectors=vectors,
            analyzer=analyzer,
            readiness=Readiness(catalog, vectors, analyzer),
            writer=writer,
            indexer=indexer,
            searcher=Searcher(catalog, vectors, analyzer, figures),
            repairer=Repairer(catalog, vectors, analyzer, writer, indexer, places=places),
            places=places,
            decoders=decoders,
            backups=Backups(
                catalog,
                vectors,
                analyzer,
                writer,
                indexer,
                uploads,
                partial(places.read_file, max_bytes=settings.max_file_bytes),
                max_photo_bytes=settings.max_file_bytes,
            ),
        )


@asynccontextmanager
async def open_preparer(
    settings: Settings, *, on_wait: OnWait = lambda engine, problem: None
) -> AsyncIterator[tuple[PhotoPreparer, PhotoAnalyzer, PhotoPlaces]]:
    """What prepares photos, what it has analyse them, and the places that they may lie in.

    Neither catalog nor vectors are opened.

    Raises:
        ConfigurationError: the models and the settings do not fit together.
    """
    cv2.setNumThreads(1)  # as in `open_services`
    async with AsyncExitStack() as stack:
        figures = Metrics(_traces(settings))
        await stack.enter_async_context(figures.traces.sending())
        decoders = _open_decoders(settings, stack)
        places = _open_loadable(settings, stack)
        analyzer = await _when_available(
            partial(_open_models, settings, figures, decoders, stack), on_wait
        )
        preparer = PhotoPreparer(analyzer, max_file_bytes=settings.max_file_bytes)
        yield preparer, analyzer, places


@asynccontextmanager
async def open_keys(settings: Settings) -> AsyncIterator[KeyTable]:
    """The catalog's API keys, and nothing else: also while a service runs on the same data.

    Raises:
        ConfigurationError: the catalog and the settings do not fit together.
        EngineUnavailable: the catalog does not answer.
    """
    async with AsyncExitStack() as stack:
        if settings.mysql_host is None:
            try:
                settings.data_dir.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigurationError(
                    f"DATA_DIR={settings.data_dir}: {error.strerror}"
                ) from None
        yield (await _open_catalog(settings, stack)).keys


def _traces(settings: Settings) -> Traces:
    return Traces(settings.otel_exporter_otlp_endpoint, settings.otel_service_name)


def _open_decoders(settings: Settings, stack: AsyncExitStack) -> Decoders:
    decoders = Decoders(
        max_pixels=settings.max_pixels,
        max_frames=settings.max_frames,
        max_bytes=max(settings.max_file_bytes, settings.max_upload_bytes),
        seconds=settings.decode_timeout,
    )
    stack.push_async_callback(asyncio.to_thread, decoders.close)
    return decoders


def _open_loadable(settings: Settings, stack: AsyncExitStack) -> PhotoPlaces:
    # What others have uploaded, or searched with, is nobody's to load into a collection.
    ours = (settings.uploads, settings.thumbnails, settings.queries)
    loadable = PhotoPlaces(
        PhotoFolders(settings.photo_roots, without=ours),
        settings.photo_stores,
        max_file_bytes=settings.max_file_bytes,
    )
    loadable.check_installed()
    stack.push_async_callback(loadable.close)
    return loadable


async def _open_models(
    settings: Settings, figures: Metrics, decoders: Decoders, stack: AsyncExitStack
) -> PhotoAnalyzer:
    async with AsyncExitStack() as attempt:
        models = await _model_server(settings)
        attempt.push_async_callback(models.close)
        detector_name, embedder_name = default_pair(settings.model_repository)
        detector, embedder = await asyncio.gather(
            models.load(settings.detector_model or detector_name),
            models.load(settings.embedder_model or embedder_name),
        )
        analyzer = PhotoAnalyzer(
            Detector(detector),
            Embedder(embedder),
            figures,
            engine_name=models.engine_name,
            whole_image=settings.whole_image,
            decoders=decoders,
            workers=models.workers if isinstance(models, LocalServer) else None,
        )
        attempt.push_async_callback(analyzer.close)
        _check_dimension(settings, analyzer.embedder)
        stack.push_async_callback(attempt.pop_all().aclose)
    return analyzer


async def _model_server(settings: Settings) -> ModelServer:
    if settings.triton_url is not None:
        return TritonServer(
            [url.strip() for url in settings.triton_url.split(",")],
            timeout=settings.engine_timeout,
            tls=settings.triton_tls,
            ca=settings.triton_ca,
        )
    return await open_local_server(settings.inference_engine, settings.model_repository)


async def _open_catalog(settings: Settings, stack: AsyncExitStack) -> Catalog:
    if settings.mysql_host is None:
        catalog = await Catalog.open_sqlite(settings.data_dir, timeout=settings.engine_timeout)
    else:
        options = MySQLOptions(
            host=settings.mysql_host,
            port=settings.mysql_port,
            user=settings.mysql_user,
            password=settings.mysql_pwd.get_secret_value(),
            database=settings.mysql_db,
            pool_size=settings.mysql_pool_size,
            tls=settings.mysql_tls,
            ca=settings.mysql_ca,
        )
        catalog = await Catalog.open_mysql(options, timeout=settings.engine_timeout)
    stack.push_async_callback(catalog.close)
    return catalog


async def _open_vectors(settings: Settings, stack: AsyncExitStack) -> VectorStore:
    vectors: VectorStore
    if settings.milvus_host is None:
        vectors = await MilvusLite.open(settings.data_dir, timeout=settings.engine_timeout)
    else:
        options = MilvusOptions(
            host=settings.milvus_host,
            port=settings.milvus_port,
            token=settings.milvus_token.get_secret_value(),
            database=settings.milvus_db,
            tls=settings.milvus_tls,
            ca=settings.milvus_ca,
            index=settings.milvus_index,
            index_params=settings.milvus_index_params,
            search_params=settings.milvus_search_params,
        )
        vectors = await MilvusServer.open(options, timeout=settings.engine_timeout)
    stack.push_async_callback(vectors.close)
    return vectors


async def _when_available(attempt: Callable[[], Awaitable[_T]], on_wait: OnWait) -> _T:
    """Makes attempts until the engine is there."""
    awaited: dict[str, str] = {}

    def tell(state: RetryCallState) -> None:
        trouble = state.outcome.exception() if state.outcome else None
        assert isinstance(trouble, EngineUnavailable)
        for engine in set(awaited) - {trouble.engine}:  # it is another's turn to be waited for
            del awaited[engine]
            on_wait(engine, None)
        if trouble.engine not in awaited:
            _log.warning("engine.awaited", engine=trouble.engine, problem=str(trouble))
        awaited[trouble.engine] = str(trouble)
        on_wait(trouble.engine, str(trouble))

    async for trial in AsyncRetrying(
        retry=retry_if_exception_type(EngineUnavailable),
        wait=wait_random_exponential(multiplier=0.5, max=3),
        before_sleep=tell,
    ):
        with trial:
            result = await attempt()
    for engine in awaited:
        _log.info("engine.came", engine=engine)
        on_wait(engine, None)
    return result


def create_app(settings: Settings) -> web.Application:
    """The service as an aiohttp application.

    It starts with the engines that are there, and answers 503 until all of them are.

    Raises:
        ConfigurationError: what is to send its traces is not installed.
    """
    app = web.Application(
        middlewares=[
            connections.notice_requests,
            middlewares.identify_requests,
            middlewares.log_requests,
            middlewares.answer_errors,
            perimeter.refuse_other_hosts,
            perimeter.limit_addresses,
            perimeter.answer_preflights,
            perimeter.refuse_other_origins,
            limits.refuse_many_parameters,
        ],
        client_max_size=limits.MAX_BODY_BYTES,  # uploads are read under a limit of their own
    )
    app[SETTINGS] = settings
    app[RUNNING] = Running()
    app[METRICS] = Metrics(_traces(settings))
    app[PERIMETER] = Perimeter(settings)
    app[ADMISSION] = Admission(
        app[METRICS],
        places=settings.max_queued,
        max_bytes=settings.max_uploads_in_memory * settings.max_upload_bytes,
        body_timeout=settings.upload_timeout,
        longest_wait=settings.request_timeout,
    )
    app[connections.CONNECTIONS] = connections.Connections(
        settings.max_connections, settings.send_timeout
    )
    app[draining.DRAINING] = draining.Draining()
    app.on_response_prepare.append(middlewares.tell_request_id)
    app.on_response_prepare.append(draining.close_connections)
    app.on_response_prepare.append(connections.hide_versions)
    app.on_response_prepare.append(perimeter.allow_other_origins)
    app.cleanup_ctx.append(_send_traces)
    app.cleanup_ctx.append(_watch_event_loop)
    app.cleanup_ctx.append(connections.watch_connections)
    app.cleanup_ctx.append(_run_services)
    app.on_shutdown.append(_stop_loads)
    operations = (
        *compat.OPERATIONS,
        *routes.OPERATIONS,
        *health.OPERATIONS,
        *metrics.operations(is_open=settings.open_metrics),
    )
    for operation in operations:
        handler = operation.handler
        if operation.admitted:
            handler = http.admitted(handler)
        elif operation.body is not None:
            handler = connections.body_in_time(handler)
        if operation.scope is not None:
            handler = access.guarded(
                handler, operation.scope, takes_session=operation.takes_session
            )
        if operation.method == "GET":
            app.router.add_get(operation.path, handler)  # HEAD as well
        else:
            app.router.add_route(operation.method, operation.path, handler)
    version = importlib.metadata.version(_DISTRIBUTION)
    docs.add_documentation(app, operations, version, demands_keys=settings.demands_keys)
    add_page(app)
    return app


async def _send_traces(app: web.Application) -> AsyncIterator[None]:
    async with app[METRICS].traces.sending():
        yield


async def _watch_event_loop(app: web.Application) -> AsyncIterator[None]:
    watching = asyncio.create_task(app[METRICS].watch_event_loop(), name="event-loop-lag")
    yield
    watching.cancel()
    await asyncio.wait([watching])


async def _run_services(app: web.Application) -> AsyncIterator[None]:
    running = app[RUNNING]
    news = asyncio.Event()
    stop = asyncio.Event()

    def wait(engine: str, problem: str | None) -> None:
        if problem is None:
            running.waiting.pop(engine, None)
        else:
            running.waiting[engine] = problem
            news.set()

    running.task = asyncio.create_task(_run_until(stop, app, wait, news), name="services")
    try:
        # Engines that are there at once are waited for, so that a mistake in the settings ends the
        # start; one that is not must not keep the service from listening, and saying so.
        telling = asyncio.create_task(news.wait())
        await asyncio.wait(
            [running.task, telling],
            timeout=_SILENT_START_SECONDS,
            return_when=asyncio.FIRST_COMPLETED,
        )
        telling.cancel()
        if running.task.done():
            await running.task
        yield
    finally:
        if running.services is None:
            running.task.cancel()
        stop.set()
        with contextlib.suppress(asyncio.CancelledError, ConfigurationError):
            await asyncio.shield(running.task)


async def _run_until(
    stop: asyncio.Event, app: web.Application, on_wait: OnWait, news: asyncio.Event
) -> None:
    settings, running = app[SETTINGS], app[RUNNING]
    async with open_services(settings, on_wait=on_wait, figures=app[METRICS]) as opened:
        await _when_available(opened.indexer.resume_loads, on_wait)
        fetcher = PhotoFetcher(
            allowed=settings.url_fetch,
            max_bytes=settings.max_upload_bytes,
            networks=settings.url_fetch_networks,
            ports=settings.url_fetch_ports,
        )
        queries = QueryPhotos(
            settings.queries, opened.analyzer, max_bytes=settings.query_cache_bytes
        )
        thumbnails = Thumbnails(
            settings.thumbnails,
            max_bytes=settings.thumbnail_cache_bytes,
            decoders=opened.decoders,
            photos=opened.places,
        )
        duplicates = DuplicateFinder(opened.catalog, opened.vectors)
        keys = KeyRing(opened.catalog.keys)
        try:
            running.services = http.Services(
                catalog=opened.catalog,
                analyzer=opened.analyzer,
                indexer=opened.indexer,
                searcher=opened.searcher,
                duplicates=duplicates,
                fetcher=fetcher,
                queries=queries,
                thumbnails=thumbnails,
                readiness=opened.readiness,
                places=opened.places,
                keys=keys,
                backups=opened.backups,
            )
            running.ready.set()
            news.set()
            await stop.wait()
        finally:
            running.services = None
            closing = (fetcher, queries, thumbnails, duplicates, keys)
            await asyncio.gather(*(each.close() for each in closing))


async def _stop_loads(app: web.Application) -> None:
    # Before the server waits for its handlers: those that wait for a load can then answer.
    services = app[RUNNING].services
    if services is not None:
        await services.indexer.stop_loads()


def _check_dimension(settings: Settings, embedder: Embedder) -> None:
    wanted = settings.vector_dimension
    if wanted is not None and wanted != embedder.dimension:
        raise ConfigurationError(
            f"VECTOR_DIMENSION={wanted}, but the embedder {embedder.name!r} makes vectors of"
            f" {embedder.dimension}: unset VECTOR_DIMENSION or name another EMBEDDER_MODEL"
        )


@contextmanager
def _locked(data_dir: Path) -> Iterator[None]:
    """Keeps a second process out of the data folder for as long as this one has it open."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        descriptor = lock_file(data_dir / "lock")
    except BlockingIOError as owner:
        raise ConfigurationError(
            f"DATA_DIR={data_dir} is in use by process {owner}: stop it, or ask it with"
            " POST /img/load or /img/search"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"DATA_DIR={data_dir}: {error.strerror}") from None
    try:
        yield
    finally:
        os.close(descriptor)


def _check_uploads(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"UPLOAD_PATH={folder}: {error.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigurationError(f"UPLOAD_PATH={folder}: it cannot be written to")
