"""Photos in: the load pipeline and uploads. Knows services below, no HTTP.

A load is a stream: photos are read, analysed and written with bounded concurrency. A bad photo is
recorded and counted; an engine that is away is waited for, and the load goes on by itself. Where
other processes may open the catalog, they do it together (`sharing.py`).
"""

import asyncio
import contextlib
import hashlib
import math
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from contextvars import Context
from dataclasses import asdict
from functools import partial
from itertools import chain
from typing import Final, TypeAlias, TypeVar, TypeVarTuple

import structlog

from backend.analysis import PhotoAnalyzer
from backend.cores import count_cores
from backend.deadlines import acquire, deadline, time_left
from backend.errors import (
    Conflict,
    EngineUnavailable,
    NotFound,
    ServiceError,
    StillWriting,
    Unavailable,
)
from backend.loads import (
    INTERRUPTED,
    Failure,
    Load,
    LoadCounts,
    Portion,
    WholeFolder,
    first_cause,
)
from backend.metrics import LoadProgress, Metrics
from backend.names import check_collection_name
from backend.pace import Pace
from backend.places import PhotoPlaces
from backend.preparing import PhotoPreparer, is_unchanged
from backend.scanning import FolderScan, FoundPhoto
from backend.settings import Settings
from backend.sharing import SharedLoads
from backend.storage.catalog import (
    Catalog,
    Collection,
    Image,
    LoadRow,
    NewImage,
    TouchedImage,
    path_key,
    utc_now,
)
from backend.uploads import UploadFolder
from backend.vision.decode import SNIFF_BYTES, sniff
from backend.writing import AddedPhoto, PhotoWriter, PreparedPhoto

__all__ = ["AddedPhoto", "Indexer"]

_log = structlog.get_logger(__name__)
_Outcome: TypeAlias = tuple[Portion, PreparedPhoto | TouchedImage]
_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

_LOWEST_PACE: Final = 2 * count_cores()
"""Photos of a load in flight at least: on each core one, and one that is read meanwhile."""
_HIGHEST_PACE: Final = 256
"""At most: a GPU's batches are full with fewer."""
_LOOKUP_CHUNK: Final = 500
"""Photos whose rows are looked up with one query."""
_COMMIT_PHOTOS: Final = 64
"""Photos of one commit at most: it costs two disk syncs however many there are."""
_COMMIT_SECONDS: Final = 0.25
"""That the first photo of a commit waits at most for others to come."""
_FILE_THREADS: Final = 4
"""Threads that read and hash files: enough to keep one disk busy."""
_ENDED_LOADS_KEPT: Final = 100
"""Loads that have ended and are kept in memory with their failures."""
_ATTEMPTS: Final = 10
_PATIENCE_SECONDS: Final = 300.0
"""With a step for which an engine fails again and again though it is ready in between: after so
many attempts and so long the step, not the engine, is what is wrong."""
_WRITING_PATIENCE_SECONDS: Final = 3600.0
"""With an engine that is not done with what a load before has begun; each attempt waits itself."""


class Indexer:
    """Brings folders and single photos into collections, and takes collections out."""

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        analyzer: PhotoAnalyzer,
        uploads: UploadFolder,
        writer: PhotoWriter,
        figures: Metrics,
        *,
        folders: PhotoPlaces,
        catalogued: PhotoPlaces,
    ) -> None:
        """Nothing is loaded yet.

        Args:
            settings: limits, and where relative folders start.
            catalog, analyzer, uploads, writer, figures: what it works with.
            folders: places that loads may take photos from.
            catalogued: those that photos of the catalog may lie in, uploads among them.
        """
        self._settings = settings
        self._folders = folders
        self._catalogued = catalogued
        self._catalog = catalog
        self._analyzer = analyzer
        self._uploads = uploads
        self._writer = writer
        self._traces = figures.traces
        fixed = settings.load_concurrency
        self._pace = Pace(fixed or _LOWEST_PACE, fixed or _HIGHEST_PACE)
        self._files = ThreadPoolExecutor(_FILE_THREADS, thread_name_prefix="files")
        self._preparer = PhotoPreparer(
            analyzer, max_file_bytes=settings.max_file_bytes, files=self._files
        )
        self._starting = asyncio.Lock()  # one load at a time is looked up and registered
        self._turn = asyncio.Lock()  # one load at a time runs: the networks are the work
        self._active: list[Load] = []
        self._ended: dict[int, Load] = {}  # by their ids, in the order of their ends
        self._shown: list[Load] = []  # the loads that `progress` is about
        self._background: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._shared = None
        if catalog.shares is not None:
            self._shared = SharedLoads(
                catalog, catalog.shares, self, figures, lease_seconds=settings.load_lease_seconds
            )

    # Loads

    async def start_load(self, folder: str, name: str, *, prune: bool = False) -> Load:
        """Starts loading a folder; returns once its photos are counted and the load runs.

        A folder that is being loaded into the same collection already, with the very photos that
        are in it now, is joined.

        Args:
            folder: absolute, or relative to DATA_PATH, or the address of one in a store.
            name: the collection; it is made where there is none.
            prune: afterwards, remove the photos under the folder that are not in it any more.

        Raises:
            InvalidInput: no such folder, no photo in it, or no collection's name.
            Forbidden: the folder lies outside of those that photos may be loaded from.
            EmbedderMismatch: the collection was filled by another embedder.
            Unavailable: the service is stopping.
        """
        check_collection_name(name)
        scan = await self._scan(folder)
        # A large folder takes its time; what comes now are the engines.
        with deadline(self._settings.request_timeout):
            return await self._register(scan, name, prune=prune)

    async def _scan(self, folder: str) -> FolderScan:
        start = self._settings.data_path
        return await self._folders.scan(folder, start=start, here=self._files)

    async def resume_load(self, load_id: int) -> Load:
        """Loads the folder of a load that has ended again, under the same id.

        Where it runs, it is that one. What it had indexed is skipped as in every load.

        Raises:
            NotFound: no such load, or its collection was dropped.
            InvalidInput, Forbidden, EmbedderMismatch, Unavailable: see `start_load`; it has ended
                still.
        """
        await self.refresh()
        last = self.active_load(load_id)
        if last is not None and last.state == "running":
            return last
        with deadline(self._settings.request_timeout):
            if last is not None:
                await self._wait_for_end([last])
            row = await self._catalog.load(load_id)
        if row is None:
            raise NotFound(f"there is no load {load_id}: start one")
        scan = await self._scan(row.root)
        with deadline(self._settings.request_timeout):
            return await self._register(
                scan, row.collection, prune=row.prune, resumed=row, joins=False
            )

    async def refresh(self) -> None:
        """Takes over what other processes have done for loads, where there may be others."""
        if self._shared is not None:
            with contextlib.suppress(EngineUnavailable):  # then what is known has to do
                await self._shared.look()

    def active_load(self, load_id: int) -> Load | None:
        """A load that runs, or one of the last hundred that have ended in this process.

        Of those that processes share, the catalog alone has what have ended.
        """
        running = (load for load in self._active if load.id == load_id)
        return next(running, self._ended.get(load_id))

    async def _register(
        self,
        scan: FolderScan,
        name: str,
        *,
        prune: bool,
        resumed: LoadRow | None = None,
        joins: bool = True,
    ) -> Load:
        """`joins`: another load of the same photos will do."""
        async with self._starting_turn():
            if self._stopping:
                raise Unavailable("the service is stopping; load the folder after its restart")
            if resumed is not None:
                now = await self._catalog.collection_by_id(resumed.collection_id)
                if now is None or now.state != "ready":
                    raise Conflict(f"collection {name!r} was dropped in the meantime")
            if self._shared is not None and not (resumed and self.active_load(resumed.id)):
                collection = await self._writer.ensure_collection(name)
                if resumed is None:
                    return await self._shared.begin(collection, scan, prune=prune)
                return await self._shared.begin_again(resumed.id, collection, scan, prune=prune)
            for load in self._active:
                same = (load.collection.name, load.root, load.prune) == (name, scan.root, prune)
                if (joins and same and load.photos == scan.photos) or (
                    resumed is not None and load.id == resumed.id
                ):
                    return load
            collection = await self._writer.ensure_collection(name)
            if resumed is None:
                started_at = utc_now()
                load_id = await self._catalog.begin_load(
                    collection.id, scan.root, prune=prune, started_at=started_at
                )
            else:
                load_id, started_at = resumed.id, resumed.started_at
                if resumed.state != "running":
                    await self._writer.resume_load(load_id)
            counts = LoadCounts(total=len(scan.photos), passed_over=scan.passed_over)
            load = Load(load_id, collection, scan.root, prune, scan.photos, counts, started_at)
            self.appeared(load)
            # It outlives the request that it was started by: neither its deadline nor its id.
            load.task = asyncio.create_task(
                self._run_traced(load, scan.unreadable),
                name=f"load-{load_id}",
                context=Context(),
            )
            # A load that nobody waits for must not warn of an exception that was never fetched.
            load.task.add_done_callback(lambda task: task.cancelled() or task.exception())
            # A task that is cancelled before its first step would never tidy up after itself.
            await asyncio.sleep(0)
            return load

    def appeared(self, load: Load) -> None:
        """See `LoadWork.appeared`."""
        if not self._active:
            self._shown = []
        self._active.append(load)
        self._shown.append(load)

    def ended(self, load: Load) -> None:
        """See `LoadWork.ended`."""
        self._active.remove(load)
        if load.state in ("failed", "cancelled"):
            # Whoever polls until current = total would poll for ever.
            self._shown.remove(load)
        log = _log.bind(load=load.id, collection=load.collection.name)
        log.info(f"load.{load.state}", **asdict(load.counts))

    def index_again(self, collection: Collection, photos: Sequence[FoundPhoto]) -> Load:
        """Starts indexing photos of a collection whose rows have failed; a load of no folder."""
        root = f"collection {collection.name}"
        load = Load(0, collection, root, False, photos, LoadCounts(total=len(photos)))
        load.task = asyncio.create_task(self._index_again(load), name=f"again-{collection.name}")
        return load

    async def _index_again(self, load: Load) -> None:
        try:
            await self._index(load, _whole(load), self._catalogued)
        except ExceptionGroup as failures:
            raise first_cause(failures) from None

    async def cancel_load(self, load: Load) -> None:
        """Ends a load at a safe point and for good; what it has indexed stays.

        Returns when it has ended, also where it had before.
        """
        if load in self._active:
            await self._cancel([load])
        else:
            await self._wait_for_end([load])

    def progress(self, only: Sequence[str] | None = None) -> tuple[int, int]:
        """Photos done and photos found, of the loads under way or else of the last ones.

        `only`: the names of the collections that count; all, where there are none.
        """
        counts = [
            load.counts for load in self._shown if only is None or load.collection.name in only
        ]
        return sum(count.processed for count in counts), sum(count.total for count in counts)

    def load_progress(self) -> LoadProgress:
        """What there is to tell of loads at the moment."""
        processed, found = self.progress()
        return LoadProgress(
            running=len(self._active),
            waiting=len(self.waiting_loads()),
            found=found,
            processed=processed,
            failed=sum(load.counts.failed for load in self._shown),
            pace=self._pace.level,
        )

    def waiting_loads(self) -> list[Load]:
        """The loads that wait for an engine to come back."""
        return [load for load in self._active if load.waiting_for is not None]

    async def _run_traced(self, load: Load, unreadable: Mapping[str, str]) -> None:
        with self._traced(load):
            await self._run(load, unreadable)

    def _traced(self, load: Load) -> AbstractContextManager[object]:
        attributes = {"load.collection": load.collection.name, "load.root": load.root}
        return self._traces.work("load", **attributes, **{"load.id": load.id})

    async def _run(self, load: Load, unreadable: Mapping[str, str]) -> None:
        log = _log.bind(load=load.id, collection=load.collection.name)
        try:
            async with self._turn:
                load.begin()
                log.info("load.started", root=load.root, photos=load.counts.total)
                for folder, reason in unreadable.items():
                    log.warning("load.folder_unreadable", folder=folder, reason=reason)
                await self._index(load, _whole(load), self._folders)
                if load.prune:
                    present = {path_key(photo.path) for photo in load.photos}
                    prune = partial(self.prune, load, present, unreadable)
                    load.add(LoadCounts(removed=await self.patiently(load, prune)))
            load.end("done")
        except asyncio.CancelledError:
            if self._stopping:
                # Left `running` in the catalog, so that the next start goes on with it.
                log.info("load.interrupted", **asdict(load.counts))
                load.interrupt()
                raise Unavailable(INTERRUPTED) from None
            load.end("cancelled")
            raise Conflict(f"the load of {load.root} was cancelled") from None
        except Exception as failure:
            cause = first_cause(failure)
            load.end("failed", f"{type(cause).__name__}: {cause}")
            log.error("load.broke_off", error=load.error, exc_info=cause)
            if isinstance(cause, ServiceError):
                raise cause from None
            raise ServiceError(
                f"the load of {load.root} broke off; the server's log has the cause. Loading the"
                " folder again goes on from here"
            ) from cause
        finally:
            if load.state == "running":  # it was interrupted
                self._active.remove(load)
            else:
                self.ended(load)
                self._keep_ended(load)
                await self._writer.end_load(
                    load.id,
                    load.state,
                    asdict(load.counts),
                    load.error,
                    finished_at=load.finished_at,
                    failures=[(each.path, each.reason) for each in load.failures],
                )

    def _keep_ended(self, load: Load) -> None:
        self._ended.pop(load.id, None)  # it was resumed since it had ended before
        self._ended[load.id] = load
        while len(self._ended) > _ENDED_LOADS_KEPT:
            del self._ended[next(iter(self._ended))]

    async def patiently(self, load: Load | None, attempt: Callable[[], Awaitable[_T]]) -> _T:
        """Makes attempts, each after the engine that failed the one before is back."""
        loop = asyncio.get_running_loop()
        first = start = loop.time()
        attempts, still_writes = 0, False
        while True:
            try:
                done = await attempt()
            except EngineUnavailable as trouble:
                now = loop.time()
                still_writes = isinstance(trouble, StillWriting)
                if still_writes:
                    # It works, and comes to its end without us: no attempt was wrong.
                    start, attempts = now, 0
                    if now - first >= _WRITING_PATIENCE_SECONDS:
                        raise
                else:
                    attempts += 1
                    if attempts >= _ATTEMPTS and now - start >= _PATIENCE_SECONDS:
                        raise
                if load is not None and load.waiting_here is None:
                    load.wait_for(trouble.engine)
                    _log.warning(
                        "load.waiting", load=load.id, engine=trouble.engine, reason=str(trouble)
                    )
                await self._writer.outages.over(trouble)
                self._pace.go_on()
                if not still_writes:
                    self._go_on(load)
            else:
                if still_writes:
                    self._go_on(load)
                return done

    def _go_on(self, load: Load | None) -> None:
        if load is not None and load.waiting_here is not None:
            load.wait_for(None)
            _log.info("load.going_on", load=load.id)

    async def index(self, load: Load, portions: AsyncIterator[Portion]) -> None:
        """See `LoadWork.index`."""
        with self._traced(load):
            await self._index(load, portions, self._folders)

    async def _index(
        self, load: Load, portions: AsyncIterator[Portion], within: PhotoPlaces
    ) -> None:
        """`within`: the folders that its photos may lie in."""
        # As many as a commit takes: while one is made, the photos of the next go on.
        ready: asyncio.Queue[_Outcome | None] = asyncio.Queue(_COMMIT_PHOTOS)
        left: dict[Portion, int] = {}

        async def done(portion: Portion, photos: int) -> None:
            left[portion] -= photos
            if not left[portion]:
                del left[portion]
                await self.patiently(load, portion.finish)

        async def read() -> None:
            async with asyncio.TaskGroup() as photos:
                async for portion in portions:
                    left[portion] = len(portion.photos)
                    for start in range(0, len(portion.photos), _LOOKUP_CHUNK):
                        chunk = portion.photos[start : start + _LOOKUP_CHUNK]
                        keys = [path_key(photo.path) for photo in chunk]
                        look_up = partial(self._catalog.images_by_key, load.collection.id, keys)
                        rows = await self.patiently(load, look_up)
                        known = [
                            (photo, rows.get(key)) for photo, key in zip(chunk, keys, strict=True)
                        ]
                        changed = [pair for pair in known if not is_unchanged(*pair)]
                        if unchanged := len(known) - len(changed):
                            portion.add(LoadCounts(unchanged=unchanged))
                            await done(portion, unchanged)
                        for pair in changed:
                            await self._pace.enter()
                            task = photos.create_task(work(portion, *pair))
                            # A task that is cancelled before its first step would never leave.
                            task.add_done_callback(lambda _: self._pace.leave())
            await ready.put(None)

        async def patiently(attempt: Callable[[], Awaitable[_T]]) -> _T:
            return await self.patiently(load, attempt)

        async def work(portion: Portion, photo: FoundPhoto, known: Image | None) -> None:
            with self._traces.work("photo", **{"photo.path": photo.path}):
                prepared = await self._preparer.prepare(photo, known, within, patiently)
            await ready.put((portion, prepared))

        async def write() -> None:
            batch: list[_Outcome | None] = []
            while not batch or batch[-1] is not None:
                batch = [await ready.get()]
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_COMMIT_SECONDS):
                        while batch[-1] is not None and len(batch) < _COMMIT_PHOTOS:
                            batch.append(await ready.get())
                outcomes = [outcome for outcome in batch if outcome is not None]
                await self._write_batch(load, outcomes)
                for portion, photos in Counter(portion for portion, _ in outcomes).items():
                    await done(portion, photos)

        self._pace.begin()
        async with asyncio.TaskGroup() as group:
            group.create_task(read())
            group.create_task(write())

    async def _write_batch(self, load: Load, batch: Sequence[_Outcome]) -> None:
        touched: dict[Portion, list[TouchedImage]] = {}
        prepared: dict[Portion, list[PreparedPhoto]] = {}
        for portion, outcome in batch:
            if isinstance(outcome, TouchedImage):
                touched.setdefault(portion, []).append(outcome)
            else:
                prepared.setdefault(portion, []).append(outcome)
        touch = partial(self._catalog.touch_images, list(chain(*touched.values())))
        await self.patiently(load, touch)
        for portion, images in touched.items():
            portion.add(LoadCounts(unchanged=len(images)), read=len(images))
        if not prepared:
            return

        async def choose() -> list[PreparedPhoto]:
            for portion in list(prepared):
                if not await portion.is_ours():
                    del prepared[portion]
            return list(chain(*prepared.values()))

        await self.patiently(load, partial(self._writer.add_wanted, load.collection, choose))
        for portion, photos in prepared.items():
            self._count_written(load, portion, [photo.image for photo in photos])

    def _count_written(self, load: Load, portion: Portion, images: Sequence[NewImage]) -> None:
        failures = [Failure(image.path, image.error) for image in images if image.error is not None]
        indexed = [image for image in images if image.error is None]
        counts = LoadCounts(
            indexed=len(indexed),
            failed=len(failures),
            objects=sum(len(image.objects) for image in indexed),
        )
        portion.add(counts, failures, read=len(images))
        for failure in failures:
            _log.warning(
                "load.photo_failed", load=load.id, path=failure.path, reason=failure.reason
            )

    async def scan(self, root: str) -> FolderScan:
        """See `LoadWork.scan`."""
        return await self._scan(root)

    async def check_can_do(self, load: Load) -> None:
        """See `LoadWork.check_can_do`."""
        self._analyzer.check_collection(load.collection)
        root = load.root
        try:
            await self._folders.run(root, self._folders.check_folder, root, here=self._files)
        except OSError as error:
            raise NotFound(f"the folder {root} cannot be opened: {error.strerror}") from None

    def turn(self) -> AbstractAsyncContextManager[object]:
        """See `LoadWork.turn`."""
        return self._writer.turn()

    async def prune(self, load: Load, present: set[str], unreadable: Iterable[str]) -> int:
        """See `LoadWork.prune`; `present`: keys of the photos that the folder holds."""
        below = os.path.join(load.root, "")
        # What lies in a folder that could not be listed may well still be there.
        unknown = tuple(os.path.join(folder, "") for folder in unreadable)
        removed = 0

        def gone(images: Sequence[Image]) -> list[int]:
            # A photo that the scan passes over, in a hidden folder say, is there all the same.
            return [image.id for image in images if self._folders.is_gone(image.path)]

        async for page in self._catalog.images(load.collection.id, ["indexed", "failed"]):
            unseen = [
                image
                for image in page
                if image.path.startswith(below)
                and not image.path.startswith(unknown)
                and image.path_key not in present
            ]
            image_ids = await self._folders.run(load.root, gone, unseen, here=self._files)
            if image_ids and load.state == "running":
                await self._writer.delete(load.collection, image_ids)
                removed += len(image_ids)
        return removed

    # Single photos and whole collections

    async def add_photo(self, data: bytes, name: str) -> AddedPhoto:
        """Keeps and indexes an uploaded photo; returns once it can be found.

        The same bytes in the same collection are the same photo, however often they come.

        Raises:
            InvalidImage, UnsupportedFormat, TooLarge: see `Decoders.decode`; nothing is kept.
            EmbedderMismatch: the collection was filled by another embedder.
        """
        check_collection_name(name)
        image_format = sniff(data[:SNIFF_BYTES])
        sha256 = await self._in_file_thread(_sha256, data)
        there = await self._catalog.collection(name)
        if there is not None and image_format is not None:
            self._analyzer.check_collection(there)
            path = self._uploads.path(there.id, sha256, image_format)
            if (known := await self._writer.kept(there, path)) is not None:
                return AddedPhoto(known, created=False)
        analyzed = await self._analyzer.analyze(data)
        assert image_format is not None  # what it is instead, or that it is none, has been said
        collection = await self._writer.ensure_collection(name)
        path = self._uploads.path(collection.id, sha256, image_format)
        image = NewImage(
            path=str(path),
            path_key=path_key(str(path)),
            sha256=sha256,
            size=len(data),
            mtime_ns=0,  # ours: it never changes
            width=analyzed.width,
            height=analyzed.height,
            objects=analyzed.objects,
            phash=analyzed.phash,
        )
        photo = PreparedPhoto(image, analyzed.embeddings)
        added = await self._writer.keep(collection, photo, path, data)
        _log.info("photo.added", collection=name, image=added.id, objects=len(analyzed.objects))
        return added

    async def remove_photo(self, image_id: int) -> bool:
        """Removes a photo of any collection: its row, its vectors and, of an upload, its file.

        Returns whether there was one. The file of a loaded folder's photo is not touched: the next
        load of the folder brings it back.

        Raises:
            VectorsLost: the vector engine does not have its collection.
        """
        removed = await self._writer.remove(image_id)
        if removed:
            _log.info("photo.removed", image=image_id)
        return removed

    async def make_collection(self, name: str) -> tuple[Collection, bool]:
        """The collection of that name, and whether it was made, since there was none.

        Raises:
            InvalidInput: no collection's name.
            EmbedderMismatch: it was filled by another embedder.
            Conflict: it is being dropped.
        """
        check_collection_name(name)
        return await self._writer.make_collection(name)

    async def drop(self, name: str) -> bool:
        """Removes a collection: its photos' rows, vectors and uploaded files. Loads into it end.

        Returns whether there was one. The photos of loaded folders are not touched.
        """
        check_collection_name(name)
        async with self._starting_turn():  # no load into it begins meanwhile
            # In any state: a drop that an engine has broken off is finished by the next.
            collection = await self._catalog.collection_in_any_state(name)
            if collection is None:
                return False
            await self._cancel(await self._loads_into(name))
            await self._writer.drop(collection)
            self._forget_ended(collection)
        _log.info("collection.dropped", collection=name)
        return True

    async def finish_import(self, collection: Collection, name: str, *, replace: bool) -> None:
        """Gives an imported collection its name. Loads into the one that it replaces end.

        Raises:
            Conflict: there is one of that name, which is not to be replaced.
        """
        async with self._starting_turn():
            if replace:
                await self._cancel(await self._loads_into(name))
            replaced = await self._writer.finish_import(collection, name, replace=replace)
            if replaced is not None:
                self._forget_ended(replaced)
        _log.info("collection.imported", collection=name, replaced=replaced is not None)

    async def _loads_into(self, name: str) -> list[Load]:
        if self._shared is not None:
            await self._shared.look()
        return [load for load in self._active if load.collection.name == name]

    def _forget_ended(self, collection: Collection) -> None:
        for load in list(self._ended.values()):
            if load.collection.id == collection.id:
                del self._ended[load.id]

    async def _cancel(self, loads: Sequence[Load]) -> None:
        if self._shared is not None:
            await self._shared.cancel(loads)
            return
        for load in loads:
            # Cancelled twice, it would not await what it must not leave half done.
            if load.task is not None and not load.task.cancelling():
                load.task.cancel()
        await self._wait_for_end(loads)

    async def _wait_for_end(self, loads: Sequence[Load]) -> None:
        tasks = [load.task for load in loads if load.task is not None]
        if not tasks:
            return
        left = time_left(math.inf)
        _, ending = await asyncio.wait(tasks, timeout=None if left == math.inf else left)
        if ending:
            raise self._busy()

    @asynccontextmanager
    async def _starting_turn(self) -> AsyncIterator[None]:
        try:
            await acquire(self._starting)
        except TimeoutError:
            raise self._busy() from None
        try:
            yield
        finally:
            self._starting.release()

    def _busy(self) -> Unavailable:
        awaited = [load.waiting_for for load in self._active if load.waiting_for is not None]
        engine = (*self._writer.outages.engines, *awaited, self._catalog.engine_name)[0]
        return Unavailable(f"what came before is still being written to {engine}: try again later")

    # Start and end

    async def resume_loads(self) -> None:
        """Goes on with the loads that a stop or a crash has interrupted, in the background.

        Where other processes may open the catalog, takes part in those that run from now on.
        """
        if self._shared is not None:
            self._shared.start()
            return
        for row in await self._catalog.running_loads():
            task = asyncio.create_task(self._resume(row), name=f"resume-{row.id}")
            self._background.add(task)
            task.add_done_callback(self._resumed)

    def _resumed(self, task: "asyncio.Task[None]") -> None:
        self._background.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            _log.error("load.not_resumed", error=str(failure), exc_info=failure)

    async def _resume(self, row: LoadRow) -> None:
        try:
            await self.patiently(None, partial(self._resume_once, row))
        except Unavailable as error:  # the next start tries again
            _log.info("load.not_resumed", load=row.id, root=row.root, reason=str(error))
        except ServiceError as error:
            _log.warning("load.not_resumed", load=row.id, root=row.root, reason=str(error))
            await self._writer.end_load(row.id, "failed", row.counts, str(error))

    async def _resume_once(self, row: LoadRow) -> None:
        collection = await self._catalog.collection_by_id(row.collection_id)
        if collection is None:
            return
        scan = await self._scan(row.root)
        load = await self._register(scan, collection.name, prune=row.prune, resumed=row)
        if load.id == row.id:
            _log.info("load.resumed", load=row.id, root=row.root)
        else:
            # Somebody has asked for the same folder before we came to it.
            await self._catalog.end_load(row.id, "cancelled", row.counts)

    async def stop_loads(self) -> None:
        """Ends the loads at a safe point, to be gone on with at the next start; takes no more."""
        self._stopping = True
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        async with self._starting:
            if self._shared is not None:
                await self._shared.stop()
            else:
                await self._cancel(list(self._active))

    async def close(self) -> None:
        """Ends loads and threads."""
        await self.stop_loads()
        await asyncio.to_thread(self._files.shutdown, cancel_futures=True)

    def _in_file_thread(
        self, function: Callable[[*_Ts], _T], *arguments: *_Ts
    ) -> "asyncio.Future[_T]":
        return asyncio.get_running_loop().run_in_executor(self._files, function, *arguments)


async def _whole(load: Load) -> AsyncIterator[Portion]:
    yield WholeFolder(load)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
