"""What is written to the catalog and to the vector store together, and how it stays the same.

The order of writes makes every moment safe to die at, for this process and for each engine.
Adding: (1) the photo's row `pending` with its objects, in one transaction; (2) the vectors; (3) the
row `indexed`. Removing: `deleting`, the vectors, an upload's file, the rows. What was broken off in
between is mended at the next start, or, where an engine was away, as soon as it is back: what is
`pending` is undone and counts as failed, until the load that brought it, or its uploader, tries
again; what is `deleting` is finished. A collection that is imported is not seen until all of it is
written; where its import was broken off, it goes. A collection that cannot be mended, since the
vector engine has lost it or cannot load it, holds up nobody else: it is tried again before it is
next written to. So is one in which another process has broken something off: nothing is written
over what is half done, whose vectors may still come.

A process that stands still for long, or that MySQL does not hear of, loses its turn to write, and
goes on without knowing. Then the catalog decides: of two that write a photo, that one has written
it whose objects the row has; the other is told so at its last step, and its photos are tried again.
Vectors are removed by their own ids, of those that were there while the turn was held for certain:
none that another has written since is among them.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar, TypeVarTuple

import numpy as np
import structlog
from numpy.typing import NDArray

from backend.analysis import PhotoAnalyzer
from backend.deadlines import acquire
from backend.errors import (
    ConfigurationError,
    Conflict,
    EngineUnavailable,
    ServiceError,
    StillWriting,
    Unavailable,
    VectorsLost,
)
from backend.metrics import Metrics
from backend.outages import Outages
from backend.readiness import Readiness
from backend.storage.catalog import (
    BEGUN,
    Catalog,
    Collection,
    CollectionState,
    EnsureHeld,
    Image,
    LoadState,
    NewImage,
    new_store,
    path_key,
    utc_now,
)
from backend.storage.reasons import Failed
from backend.storage.vectors import ObjectVector, VectorStore
from backend.uploads import UploadFolder

__all__ = ["AddedPhoto", "PhotoWriter", "PreparedPhoto"]

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

_BROKEN_OFF: Final = "indexing it was broken off: load its folder, or upload it, again"
_VECTORS_GONE: Final = "its vectors are gone: load its folder, or upload it, again"
_SETTLE_SECONDS: Final = 1.0
"""A write that an engine had received when its answer came too late may be done after all, when
the engine is back: then it is done by now."""
_UNFINISHED: Final[tuple[CollectionState, ...]] = ("deleting", "creating")


@dataclass(frozen=True)
class PreparedPhoto:
    """A photo that is ready to be written, with the embeddings of its objects, float32 [N, D]."""

    image: NewImage
    embeddings: NDArray[np.float32]


@dataclass(frozen=True)
class AddedPhoto:
    """An uploaded photo that can be found; `created`: it was not indexed there before."""

    id: int
    created: bool


class PhotoWriter:
    """Writes photos into the catalog and the vector store, and takes them out again.

    Every method may be repeated without harm, and ends what it has begun: a cancellation comes
    after it. Each raises EngineUnavailable where an engine does not answer; an outage then runs
    (`outages`), at whose end the catalog and the vector store are the same again.
    """

    def __init__(
        self,
        catalog: Catalog,
        vectors: VectorStore,
        analyzer: PhotoAnalyzer,
        uploads: UploadFolder,
        figures: Metrics,
        *,
        metric: str,
        owns: bool,
    ) -> None:
        """`owns`: it writes for the service, not for a command that may run beside it."""
        self._gives_up = owns and not vectors.is_server
        """Whether photos fail whose vectors are lost; on a server they may be elsewhere."""
        self.outages = Outages(Readiness(catalog, vectors, analyzer), self._mend, figures)
        self._catalog = catalog
        self._vectors = vectors
        self._analyzer = analyzer
        self._uploads = uploads
        self._figures = figures
        self.metric = metric
        """By which the vectors of new collections are compared."""
        self._files = ThreadPoolExecutor(1, thread_name_prefix="uploads")
        self._writing = asyncio.Lock()
        self._unsure: dict[int, set[int]] = {}
        """Photos of each collection of which a commit has failed: their vectors may still come."""
        self._unmended: set[int] = set()
        """Collections that were not mended, while the engines worked for others."""
        self._importing: set[str] = set()
        """Stores of collections that this process imports."""
        self._ended_loads: dict[int, Callable[[], Awaitable[None]]] = {}
        self._noting = asyncio.Lock()  # the ends of loads, and that one runs again
        self._unsettled = False  # whether a commit has been begun and not ended
        self._unfinished: set[asyncio.Task[Any]] = set()

    async def ensure_collection(self, name: str) -> Collection:
        """The collection of that name, ready; it is made where there is none.

        Raises:
            EmbedderMismatch: it was filled by another embedder.
            VectorsLost: the vector engine does not have it.
        """
        collection, _ = await self.make_collection(name)
        return collection

    async def make_collection(self, name: str) -> tuple[Collection, bool]:
        """As `ensure_collection`; and whether this has made it."""
        return await self.finish(self._make_collection(name))

    async def _make_collection(self, name: str) -> tuple[Collection, bool]:
        embedder = self._analyzer.embedder
        async with self.turn():
            collection = await self._catalog.ensure_collection(
                name,
                embedder=embedder.name,
                embedder_sha256=embedder.sha256,
                dim=embedder.dimension,
                metric=self.metric,
            )
            if collection is None:
                raise Conflict(f"the drop of collection {name!r} is not finished: drop it again")
            self._analyzer.check_collection(collection)
            is_new = collection.state == "creating"
            if is_new:
                await self._vectors.create(collection.store, collection.dim)
                await self._catalog.finish_collection(collection.id)
                collection = replace(collection, state="ready")
        await self._mend_before_use(collection)
        return collection, is_new

    async def drop(self, collection: Collection) -> None:
        """Removes a collection: its photos' rows, their vectors and uploaded files."""
        await self.finish(self._drop(collection, ("ready", *_UNFINISHED)))

    async def _drop(self, collection: Collection, states: Sequence[CollectionState]) -> None:
        async with self.turn():
            now = await self._catalog.collection_by_id(collection.id)
            if now is None or now.state not in states:
                return
            await self._catalog.begin_drop(collection.id)
            for store in (now.store, now.other_store):
                if store is not None:
                    await self._vectors.drop(store)
            await self._in_file_thread(self._uploads.remove_collection, collection.id)
            await self._catalog.finish_drop(collection.id)

    async def add(self, collection: Collection, photos: Sequence[PreparedPhoto]) -> None:
        """Writes photos, or their failures; returns once they can be found."""

        async def all_of_them() -> Sequence[PreparedPhoto]:
            return photos

        await self.add_wanted(collection, all_of_them)

    async def add_wanted(
        self, collection: Collection, choose: Callable[[], Awaitable[Sequence[PreparedPhoto]]]
    ) -> None:
        """As `add`, of what is still to be written: that is asked within the turn to write."""
        with self._figures.stage("write"):
            await self.finish(self._add(collection, choose))

    async def kept(self, collection: Collection, path: Path) -> int | None:
        """The id of an uploaded photo that is indexed, where its file is there too.

        Raises:
            VectorsLost: the vector engine does not have the collection.
        """
        known = await self._upload(collection, path)
        if known is None or known.state != "indexed":
            return None
        await self.finish(self._mend_before_use(collection))
        return known.id if await self._in_file_thread(path.exists) else None

    async def _upload(self, collection: Collection, path: Path) -> Image | None:
        key = path_key(str(path))
        return (await self._catalog.images_by_key(collection.id, [key])).get(key)

    async def keep(
        self, collection: Collection, photo: PreparedPhoto, path: Path, data: bytes
    ) -> AddedPhoto:
        """Writes an uploaded photo's file, and the photo where it is not indexed already."""
        with self._figures.stage("write"):
            return await self.finish(self._keep(collection, photo, path, data))

    async def _keep(
        self, collection: Collection, photo: PreparedPhoto, path: Path, data: bytes
    ) -> AddedPhoto:
        async with self._turn_at(collection) as ensure_held:
            await self._check_ready(collection)
            known = await self._upload(collection, path)
            is_new = known is None or known.state != "indexed"
            if known is not None and not is_new and await self._in_file_thread(path.exists):
                return AddedPhoto(known.id, created=False)
            try:
                await self._in_file_thread(self._uploads.write, path, data)
            except OSError as error:
                _log.error("upload.not_kept", path=str(path), error=str(error))
                raise ServiceError(
                    f"the photo cannot be kept in UPLOAD_PATH: {error.strerror}"
                ) from None
            [image_id] = await self._write(collection, [photo], ensure_held)
            return AddedPhoto(image_id, created=is_new)

    async def _add(
        self, collection: Collection, choose: Callable[[], Awaitable[Sequence[PreparedPhoto]]]
    ) -> None:
        async with self._turn_at(collection) as ensure_held:
            if photos := await choose():
                await self._check_ready(collection)
                await self._write(collection, photos, ensure_held)

    async def _write(
        self, collection: Collection, photos: Sequence[PreparedPhoto], ensure_held: EnsureHeld
    ) -> list[int]:
        """The three steps of adding photos; see the module's docstring."""
        self._unsettled = True
        self._figures.batch("write", len(photos))
        stored = await self._catalog.begin_images(
            collection.id, [photo.image for photo in photos], ensure_held
        )
        rows = [
            ObjectVector(object_id, image.id, found.label, found.score, vector)
            for image, photo in zip(stored, photos, strict=True)
            for object_id, found, vector in zip(
                image.object_ids, photo.image.objects, photo.embeddings, strict=True
            )
        ]
        failed = {
            image.id: photo.image.error
            for image, photo in zip(stored, photos, strict=True)
            if photo.image.error is not None
        }
        replaced = [image for image in stored if image.replaced]
        try:
            # The catalog's ids are new.
            written = await self._vectors.insert(collection.store, rows) if rows else 0
            if replaced:
                await self._remove_vectors(
                    collection,
                    [image.id for image in replaced],
                    ensure_held,
                    keep=[object_id for image in replaced for object_id in image.object_ids],
                )
            undone = await self._catalog.finish_images(
                stored, failed, written={collection.id: written}
            )
            if undone:
                # The turn was lost, and another process has written or mended meanwhile.
                raise EngineUnavailable(
                    self._catalog.engine_name,
                    f"{self._catalog.engine_name} was away while photos were written, and another"
                    " process has undone them, or written them again: try again",
                )
        except BaseException:
            self._unsure.setdefault(collection.id, set()).update(image.id for image in stored)
            raise
        self._unsettled = False
        self._figures.count_indexed(len(stored) - len(failed), len(rows))
        return [image.id for image in stored]

    # Imports

    @contextlib.asynccontextmanager
    async def importing(self, name: str) -> AsyncIterator[tuple[Collection, EnsureHeld]]:
        """A collection that nobody sees, for `add_imported`; `finish_import` gives it its name.

        Where that has not been called, it goes at the end; after a crash, at the next start. Other
        processes know by a lock that somebody is at work on it; what is given raises
        EngineUnavailable where that is lost.
        """
        store = new_store(name)
        self._importing.add(store)
        try:
            async with self._catalog.holding(_import_lock(store)) as ensure_held:
                assert ensure_held is not None  # nobody else knows the store yet
                try:
                    collection = await self.finish(self._begin_import(store))
                    yield collection, ensure_held
                finally:
                    await self.finish(self._undo_import(store))
        finally:
            self._importing.discard(store)

    async def _begin_import(self, store: str) -> Collection:
        embedder = self._analyzer.embedder
        async with self.turn():
            collection = await self._catalog.begin_import(
                store,
                embedder=embedder.name,
                embedder_sha256=embedder.sha256,
                dim=embedder.dimension,
                metric=self.metric,
            )
            await self._vectors.create(store, collection.dim)
            return collection

    async def _undo_import(self, store: str) -> None:
        """Removes what an import has written, unless it has got its name."""
        try:
            for collection in await self._catalog.collections("importing"):
                if collection.store == store:
                    await self._drop(collection, ("importing",))
        except EngineUnavailable as trouble:  # the end of the outage, or the next start, sees to it
            _log.warning("import.not_undone", store=store, reason=str(trouble))
            self.outages.begin(trouble)

    async def add_imported(
        self,
        collection: Collection,
        photos: Sequence[PreparedPhoto],
        files: Mapping[Path, bytes],
    ) -> None:
        """Writes photos of an import, and the files of those that become uploads."""
        await self.finish(self._add_imported(collection, photos, files))

    async def _add_imported(
        self,
        collection: Collection,
        photos: Sequence[PreparedPhoto],
        files: Mapping[Path, bytes],
    ) -> None:
        async with self.turn() as ensure_held:
            now = await self._catalog.collection_by_id(collection.id)
            if now is None or now.state != "importing":
                raise Conflict("the import was broken off, and is undone: import the file again")
            for path, data in files.items():
                try:
                    await self._in_file_thread(self._uploads.write, path, data)
                except OSError as error:
                    raise ServiceError(
                        f"a photo cannot be kept in UPLOAD_PATH: {error.strerror}"
                    ) from None
            await self._write(collection, photos, ensure_held)

    async def finish_import(
        self, collection: Collection, name: str, *, replace: bool
    ) -> Collection | None:
        """Gives an imported collection its name, all at once; returns the one that had it before.

        That one is removed, where `replace` says that it may be.

        Raises:
            Conflict: there is one of that name by now.
        """
        return await self.finish(self._finish_import(collection, name, replace))

    async def _finish_import(
        self, collection: Collection, name: str, replace: bool
    ) -> Collection | None:
        async with self.turn():
            before = await self._catalog.collection_in_any_state(name)
            if not await self._catalog.finish_import(collection, name, replace=replace):
                raise Conflict(
                    f"there is a collection {name!r} by now: import into another, or replace it"
                )
        if before is not None and before.id != collection.id:
            try:
                await self._drop(before, ("deleting",))
            except EngineUnavailable as trouble:  # it is not seen any more: the rest can wait
                self.outages.begin(trouble)
        return before

    async def _undo_imports(self) -> None:
        """Removes what imports have left that nobody is at work on any more."""
        for collection in await self._catalog.collections("importing"):
            if collection.store in self._importing:
                continue
            async with self._catalog.holding(_import_lock(collection.store)) as ours:
                if ours is None:
                    continue  # another process imports it
                try:
                    await self._drop(collection, ("importing",))
                    _log.info("recovery.import_undone", store=collection.store)
                except EngineUnavailable as trouble:
                    await self._leave(collection, trouble)

    async def delete(self, collection: Collection, image_ids: Sequence[int]) -> None:
        """Removes photos: their rows, their vectors, and the files of uploads."""
        await self.finish(self._delete(collection, image_ids))

    async def _delete(self, collection: Collection, image_ids: Sequence[int]) -> bool:
        async with self._turn_at(collection) as ensure_held:
            now = await self._catalog.collection_by_id(collection.id)
            images = await self._catalog.images_by_id(image_ids)
            if now is None or now.state != "ready" or not images:
                return False
            await self._catalog.begin_delete_images([image.id for image in images], ensure_held)
            await self._finish_delete(now, images, ensure_held)
        return True

    async def remove(self, image_id: int) -> bool:
        """Removes a photo of any collection, as `delete`; returns whether there was one.

        One whose removal an engine has broken off is there still, and its removal is finished.

        Raises:
            VectorsLost: the vector engine does not have its collection.
        """
        for image in await self._catalog.images_by_id([image_id]):
            collection = await self._catalog.collection_by_id(image.collection_id)
            if collection is not None and collection.state == "ready":
                return await self.finish(self._delete(collection, [image_id]))
        return False

    async def _finish_delete(
        self, collection: Collection, images: Sequence[Image], ensure_held: EnsureHeld
    ) -> None:
        image_ids = [image.id for image in images]
        await self._remove_vectors(collection, image_ids, ensure_held)
        paths = [Path(image.path) for image in images]
        if uploads := [path for path in paths if self._uploads.is_upload(path, collection.id)]:
            await ensure_held()
            await self._in_file_thread(self._remove_uploads, uploads)
        await self._catalog.finish_delete_images(image_ids)

    async def _remove_vectors(
        self,
        collection: Collection,
        image_ids: Sequence[int],
        ensure_held: EnsureHeld,
        *,
        keep: Sequence[int] = (),
    ) -> None:
        """Removes the vectors of these photos, but for those of the objects in `keep`."""
        found = await self._vectors.ids_of_images(collection.store, image_ids)
        await ensure_held()  # a photo that another has written since has its old id
        await self._vectors.delete(collection.store, sorted(found.difference(keep)))

    def _remove_uploads(self, paths: Sequence[Path]) -> None:
        for path in paths:
            try:
                self._uploads.remove(path)
            except OSError as error:
                # The photo goes all the same: the next start removes the file, which is nobody's.
                _log.warning("upload.not_removed", path=str(path), reason=str(error))

    async def end_load(
        self,
        load_id: int,
        state: LoadState,
        counts: Mapping[str, int],
        error: str | None = None,
        *,
        finished_at: str | None = None,
        failures: Sequence[Failed] = (),
    ) -> None:
        """Notes how a load has ended; where the catalog is away, as soon as it is back."""
        self._ended_loads[load_id] = partial(
            self._catalog.end_load,
            load_id,
            state,
            counts,
            error,
            finished_at=finished_at or utc_now(),
            failures=failures,
        )
        with contextlib.suppress(EngineUnavailable):
            await self.finish(self._note_ended_loads())

    async def resume_load(self, load_id: int) -> None:
        """Notes that a load that has ended runs again."""
        await self.finish(self._note_ended_loads(resumed=load_id))

    async def _note_ended_loads(self, resumed: int | None = None) -> None:
        async with self._noting:  # no end that is noted late ends a load that runs again
            for load_id, note_end in list(self._ended_loads.items()):
                await note_end()
                self._ended_loads.pop(load_id, None)
            if resumed is not None:
                await self._catalog.resume_load(resumed)

    async def _check_ready(self, collection: Collection) -> None:
        now = await self._catalog.collection_by_id(collection.id)
        if now is None or now.state != "ready":
            raise Conflict(f"collection {collection.name!r} was dropped in the meantime")
        if now.store != collection.store:
            raise Conflict(
                f"collection {collection.name!r} was embedded anew in the meantime, with"
                f" {now.embedder!r}: try again, with EMBEDDER_MODEL set to it"
            )

    # Mending

    async def recover(self, *, repairs: bool = False) -> None:
        """Undoes or finishes what a crash has left; call it once, before anything else.

        `repairs`: for a command that makes vectors anew, though all of them may be lost.

        Raises:
            ConfigurationError: the settings lead to a vector engine that has none of the vectors.
        """
        if not (self._gives_up or repairs):
            await self._check_settings()
        await self._mend_collections()

    async def _check_settings(self) -> None:
        lost = []
        for collection in await self._catalog.collections("ready"):
            if await self._catalog.count_images(collection.id):
                if await self._vectors.exists(collection.store):
                    return
                lost.append(collection.name)
        if lost:
            raise ConfigurationError(
                f"{self._vectors.where}: {self._vectors.engine_name} there has the vectors of none"
                f" of the catalog's collections that hold photos ({', '.join(lost)}): correct these"
                " settings so that they lead to the engine that has; if the vectors are lost,"
                " python -m backend check --repair makes them anew"
            )

    async def sweep_uploads(self) -> None:
        """Removes the files of uploads that were never acknowledged; for the service alone.

        Another process may see the folder elsewhere, or another one.
        """
        async with self.turn() as ensure_held:  # in which every upload's file is written
            await self._sweep_uploads(ensure_held)

    async def _mend(self) -> None:
        """Undoes or finishes what an outage has left."""
        await self._note_ended_loads()
        if self._unsettled:
            await asyncio.sleep(_SETTLE_SECONDS)
        await self._mend_collections()

    async def _mend_collections(self) -> None:
        for state in _UNFINISHED:
            for collection in await self._catalog.collections(state):
                try:
                    await self._drop(collection, _UNFINISHED)
                    _log.info("recovery.dropped", collection=collection.name)
                except EngineUnavailable as trouble:
                    await self._leave(collection, trouble)
        await self._undo_imports()
        ready = await self._catalog.collections("ready")
        for collection_id in set(self._unsure) - {collection.id for collection in ready}:
            del self._unsure[collection_id]
        mended, troubles = 0, []
        for collection in ready:
            try:
                await self._mend_collection(collection)
                mended += 1
            except VectorsLost as loss:
                self._unmended.add(collection.id)
                _log.error("recovery.vectors_lost", collection=collection.name, reason=str(loss))
            except StillWriting as reason:  # nobody else shall wait for that
                self._unmended.add(collection.id)
                _log.warning("recovery.postponed", collection=collection.name, reason=str(reason))
            except EngineUnavailable as trouble:
                await self._leave(collection, trouble)
                self._unmended.add(collection.id)
                troubles.append(trouble)
        if troubles and not mended:
            raise troubles[0]  # it is not one collection's: the engine is waited for

    async def _leave(self, collection: Collection, trouble: EngineUnavailable) -> None:
        """Goes on without a collection; raises where an engine is away, for others too."""
        if trouble.engine != self._vectors.engine_name:
            raise trouble
        await self._vectors.exists(collection.store)
        _log.error("recovery.not_mended", collection=collection.name, reason=str(trouble))

    async def _mend_before_use(self, collection: Collection) -> None:
        if collection.id in self._unmended:
            await self._mend_collection(collection)

    async def _mend_collection(self, collection: Collection) -> None:
        if await self._vectors.exists(collection.store):
            # Either may take long, or never end: others may write meanwhile.
            await self._vectors.load(collection.store)
            if collection.id in self._unsure or await self._catalog.has_begun_images(collection.id):
                await self._vectors.settle(collection.store)
        async with self.turn() as ensure_held:
            now = await self._catalog.collection_by_id(collection.id)
            if now is not None and now.state == "ready":
                await self._mend_photos(now, ensure_held)
        self._unmended.discard(collection.id)

    async def _mend_photos(self, collection: Collection, ensure_held: EnsureHeld) -> None:
        # Within a turn to write, no row is `pending` or `deleting` but those that were broken off.
        if not await self._vectors.exists(collection.store) and (
            await self._catalog.count_images(collection.id)
        ):
            if not self._gives_up:
                raise VectorsLost(self._vectors.engine_name, collection.name)
            await ensure_held()
            await self._forget_vectors(collection)
        await self._vectors.create(collection.store, collection.dim)
        async for page in self._catalog.images(collection.id, ["deleting"]):
            await self._finish_delete(collection, page, ensure_held)
            _log.info("recovery.deleted", collection=collection.name, photos=len(page))
        async for page in self._catalog.images(collection.id, BEGUN):
            await ensure_held()
            await self._undo(collection, [image.id for image in page], ensure_held)
            _log.info("recovery.undone", collection=collection.name, photos=len(page))
        unsure = sorted(self._unsure.get(collection.id, ()))
        if unsure:
            object_ids = await self._catalog.object_ids_of_images(unsure)
            await self._remove_vectors(collection, unsure, ensure_held, keep=object_ids)
            del self._unsure[collection.id]

    async def _undo(
        self, collection: Collection, image_ids: Sequence[int], ensure_held: EnsureHeld
    ) -> None:
        """Takes back photos that were begun; whoever brought them tries again.

        Their rows stay: they may have been indexed before. One whose last step was done after all,
        its answer lost, is left as it is.
        """
        claimed = await self._catalog.claim_undo(image_ids)
        await self._vectors.settle(collection.store)
        await self._remove_vectors(collection, claimed, ensure_held)
        await self._catalog.undo_images(claimed, _BROKEN_OFF)

    async def _forget_vectors(self, collection: Collection) -> None:
        """Brings the catalog down to a vector store that has lost a collection."""
        failed = await self._catalog.fail_images(collection.id, _VECTORS_GONE)
        if failed:
            _log.error("recovery.vectors_gone", collection=collection.name, photos=failed)

    async def _sweep_uploads(self, ensure_held: EnsureHeld) -> None:
        """Removes the files of uploads that were never acknowledged.

        A file is known by the hash that it is named by. Where the catalog has it at another path,
        that is gone, UPLOAD_PATH has been moved, and the catalog follows.
        """
        ready = {collection.id for collection in await self._catalog.collections("ready")}
        importing = {each.id for each in await self._catalog.collections("importing")}
        for collection_id in await self._in_file_thread(self._uploads.collections):
            if collection_id in importing:  # by another process
                continue
            if collection_id not in ready:
                await ensure_held()
                await self._in_file_thread(self._uploads.remove_collection, collection_id)
                continue
            files = await self._in_file_thread(self._uploads.files, collection_id)
            hashes = {path: self._uploads.sha256(path) for path in files}
            known = await self._catalog.images_by_sha256(
                collection_id, [sha256 for sha256 in hashes.values() if sha256]
            )
            for path, sha256 in hashes.items():
                # The name tells an upload from a photo of a folder that has the same bytes.
                rows = [
                    row
                    for row in known.get(sha256 or "", [])
                    if os.path.basename(row.path) == path.name
                ]
                if not rows:
                    await ensure_held()
                    await self._in_file_thread(self._uploads.remove, path)
                    _log.info("recovery.upload_removed", path=str(path))
                elif all(row.path != str(path) for row in rows):
                    await self._follow(path, rows)

    async def _follow(self, path: Path, rows: Sequence[Image]) -> None:
        for row in rows:
            if await self._in_file_thread(_is_or_was, row.path, path):
                await self._catalog.move_image(row.id, str(path))
                _log.info("recovery.upload_moved", image=row.id, path=str(path))
                return

    # Turns and ends

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[EnsureHeld]:
        """Keeps every other writer out, those of other processes included.

        What it gives is to be called before what cannot be taken back; see `Catalog.exclusive`.

        Raises:
            Unavailable: the others take longer than the deadline.
        """
        async with contextlib.AsyncExitStack() as stack:
            with self._figures.stage("turn"):
                try:
                    await acquire(self._writing)
                except TimeoutError:
                    # Whoever is writing waits for an engine, and says himself that it is away.
                    engine = (*self.outages.engines, self._vectors.engine_name)[0]
                    raise Unavailable(
                        f"other photos are still being written to {engine}: try again later"
                    ) from None
                stack.callback(self._writing.release)
                ensure_held = await stack.enter_async_context(self._catalog.exclusive())
            yield ensure_held

    @contextlib.asynccontextmanager
    async def _turn_at(self, collection: Collection) -> AsyncIterator[EnsureHeld]:
        """As `turn`, with nothing in the collection that was begun and broken off.

        Raises:
            StillWriting: the vector engine is not done with something that was.
            VectorsLost: the vector engine does not have the collection.
        """
        while True:
            await self._mend_before_use(collection)
            async with self.turn() as ensure_held:
                if not await self._catalog.has_begun_images(collection.id):
                    yield ensure_held
                    return
            # Whoever has begun it may be gone since a moment.
            await asyncio.sleep(_SETTLE_SECONDS)
            self._unmended.add(collection.id)

    async def finish(self, steps: Coroutine[Any, Any, _T]) -> _T:
        """Awaits steps that must not be left half done; a cancellation comes after them."""
        task = asyncio.create_task(steps)
        self._unfinished.add(task)
        task.add_done_callback(self._ended)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            raise

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._unfinished.discard(task)
        trouble = None if task.cancelled() else task.exception()
        if isinstance(trouble, EngineUnavailable) and not isinstance(trouble, StillWriting):
            self.outages.begin(trouble)

    async def close(self) -> None:
        """Ends the outage and the thread, after the writes that are under way."""
        if self._unfinished:
            await asyncio.wait(self._unfinished)
        await self.outages.close()
        await asyncio.to_thread(self._files.shutdown, cancel_futures=True)

    def _in_file_thread(
        self, function: Callable[[*_Ts], _T], *arguments: *_Ts
    ) -> "asyncio.Future[_T]":
        return asyncio.get_running_loop().run_in_executor(self._files, function, *arguments)


def _import_lock(store: str) -> str:
    return f"import{store[-12:]}"  # what tells stores apart


def _is_or_was(old: str, new: Path) -> bool:
    """Whether a file's old path leads to where it is now, or nowhere any more."""
    return not os.path.exists(old) or os.path.samefile(old, new)
