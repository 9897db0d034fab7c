"""Wires settings, engines, services and routes together, and does nothing else.

The one module that knows everyone.
"""

import asyncio
import importlib.metadata
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
from aiohttp import web

from backend.analysis import PhotoAnalyzer
from backend.errors import ConfigurationError
from backend.fetching import PhotoFetcher
from backend.files import lock_file
from backend.http import compat, docs, middlewares
from backend.http.services import CATALOG, FETCHER, INDEXER, SEARCHER, SETTINGS
from backend.indexing import Indexer
from backend.searching import Searcher
from backend.serving.models import Detector, Embedder, default_pair
from backend.serving.onnx import OnnxServer
from backend.settings import Settings
from backend.storage.catalog import Catalog
from backend.storage.vectors import MilvusLite, VectorStore

__all__ = ["Services", "create_app", "open_services"]

_DISTRIBUTION: Final = "image-similarity-search"
_MAX_BODY_BYTES: Final = 2**20
"""Of a JSON body; uploads are read part by part under their own limit."""


@dataclass(frozen=True)
class Services:
    """Everything that runs, opened and recovered."""

    catalog: Catalog
    vectors: VectorStore
    analyzer: PhotoAnalyzer
    indexer: Indexer
    searcher: Searcher


@asynccontextmanager
async def open_services(settings: Settings) -> AsyncIterator[Services]:
    """Opens engines and services, undoes what a crash has left, and closes all at the end.

    Raises:
        ConfigurationError: the models, the stored data and the settings do not fit together.
    """
    # Photos already run side by side; OpenCV splitting each over the cores would only add waits.
    cv2.setNumThreads(1)
    # A damaged photo is reported by us, with its name; OpenCV would print lines of its own.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    async with AsyncExitStack() as stack:
        stack.enter_context(_locked(settings.data_dir))
        _check_uploads(settings.uploads)
        models = OnnxServer(settings.model_repository)
        stack.push_async_callback(models.close)
        detector_name, embedder_name = default_pair(settings.model_repository)
        detector, embedder = await asyncio.gather(
            models.load(settings.detector_model or detector_name),
            models.load(settings.embedder_model or embedder_name),
        )
        analyzer = PhotoAnalyzer(
            Detector(detector),
            Embedder(embedder),
            whole_image=settings.whole_image,
            max_pixels=settings.max_pixels,
        )
        stack.push_async_callback(analyzer.close)
        _check_dimension(settings, analyzer.embedder)
        catalog = await Catalog.open(settings.data_dir)
        stack.push_async_callback(catalog.close)
        vectors = await MilvusLite.open(settings.data_dir)
        stack.push_async_callback(vectors.close)
        indexer = Indexer(settings, catalog, vectors, analyzer)
        stack.push_async_callback(indexer.close)
        await indexer.recover()
        searcher = Searcher(catalog, vectors, analyzer)
        yield Services(catalog, vectors, analyzer, indexer, searcher)


def create_app(settings: Settings) -> web.Application:
    """The service as an aiohttp application; its engines open when it starts."""
    app = web.Application(
        middlewares=[
            middlewares.log_requests,
            middlewares.answer_errors,
            middlewares.answer_preflights,
        ],
        client_max_size=_MAX_BODY_BYTES,
    )
    app[SETTINGS] = settings
    app.on_response_prepare.append(middlewares.allow_other_origins)
    app.cleanup_ctx.append(_run_services)
    app.on_shutdown.append(_stop_loads)
    for operation in compat.OPERATIONS:
        if operation.method == "GET":
            app.router.add_get(operation.path, operation.handler)  # HEAD as well
        else:
            app.router.add_route(operation.method, operation.path, operation.handler)
    version = importlib.metadata.version(_DISTRIBUTION)
    docs.add_documentation(app, compat.OPERATIONS, version)
    return app


async def _run_services(app: web.Application) -> AsyncIterator[None]:
    settings = app[SETTINGS]
    async with open_services(settings) as services:
        fetcher = PhotoFetcher(allowed=settings.may_fetch_urls, max_bytes=settings.max_upload_bytes)
        app[CATALOG] = services.catalog
        app[INDEXER] = services.indexer
        app[SEARCHER] = services.searcher
        app[FETCHER] = fetcher
        await services.indexer.resume_loads()
        try:
            yield
        finally:
            await fetcher.close()


async def _stop_loads(app: web.Application) -> None:
    # Before the server waits for its handlers: those that wait for a load can then answer.
    if INDEXER in app:  # not so where the start has failed
        await app[INDEXER].stop_loads()


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
            f"DATA_DIR={data_dir} is in use by process {owner}: stop it, or load through it with"
            " POST /img/load"
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
