"""Exports a collection into one file (`archive`), and makes one of such a file.

An export is the collection at one moment, while loads, uploads and deletes go on. Objects never
change and their ids are never given out twice, so most of them are copied before that moment comes;
then, in a turn to write, in which every photo is whole, what has come meanwhile is added, and what
has gone is left out. An import is read twice: once to see that it is right, before anything is
written, and once to write it, into a collection that nobody sees until all of it is there.
"""

import contextlib
import os
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import structlog
from numpy.typing import NDArray

from backend.analysis import PhotoAnalyzer
from backend.archive import (
    Archive,
    ArchivedCollection,
    ArchivedPhoto,
    ArchiveWriter,
    ImageRow,
    ImageTable,
    Manifest,
    ObjectRows,
    check_installed,
    check_photo,
    photo_name,
)
from backend.errors import (
    Conflict,
    EmbedderMismatch,
    InvalidInput,
    NotFound,
    Overloaded,
    ServiceError,
    StoreRefuses,
    StoreUnavailable,
    TooLarge,
    VectorsLost,
)
from backend.indexing import Indexer
from backend.names import check_collection_name
from backend.storage.catalog import Catalog, Collection, Image, NewImage, ObjectPlace, path_key
from backend.storage.vectors import VectorStore
from backend.threads import in_steps, in_thread
from backend.uploads import UploadFolder
from backend.writing import PhotoWriter, PreparedPhoto

__all__ = ["Backups", "Exported", "Imported"]

_log = structlog.get_logger(__name__)

_OBJECTS_TOGETHER: Final = 1024
"""Whose vectors are in memory together: 8 MB of 2048-d."""
_OBJECTS_CAUGHT_UP: Final = _OBJECTS_TOGETHER
_PHOTOS_CAUGHT_UP: Final = 100
"""So much that has come meanwhile is copied while others wait for their turn."""
_ROUNDS: Final = 10
"""Of catching up with a load before others are made to wait."""
_PHOTOS_TOGETHER: Final = 64
"""Of a turn to write, in which others wait: each file is two disk syncs."""
_FILES_TOGETHER: Final = 64 * 2**20
"""Bytes of photos that are in memory together while they are imported."""

_RETRY_SECONDS: Final = 10

OnProgress = Callable[[int, int], None]
"""Is told how many objects are done, and of how many."""


CheckRoom = Callable[[int], None]
"""Is asked whether so many bytes more may be written; raises where they may not. Blocks."""


def _ignore(_done: int, _total: int) -> None:
    pass


def _all_there_is(_size: int) -> None:
    pass


@dataclass(frozen=True)
class Exported:
    """What an export has taken along. `without_file`: photos whose files are gone or changed."""

    manifest: Manifest
    without_file: int = 0


@dataclass(frozen=True)
class Imported:
    """What an import has brought. `files`: photos that are uploads now."""

    collection: str
    images: int
    failed: int
    objects: int
    files: int


class Backups:
    """Exports and imports collections, beside everything else that goes on."""

    def __init__(
        self,
        catalog: Catalog,
        vectors: VectorStore,
        analyzer: PhotoAnalyzer,
        writer: PhotoWriter,
        indexer: Indexer,
        uploads: UploadFolder,
        read_photo: Callable[[str], bytes],
        *,
        max_photo_bytes: int,
    ) -> None:
        """`read_photo` reads a photo's file, where it may; see `places.PhotoPlaces.read_file`."""
        self._catalog = catalog
        self._vectors = vectors
        self._analyzer = analyzer
        self._writer = writer
        self._indexer = indexer
        self._uploads = uploads
        self._read_photo = read_photo
        self._max_photo_bytes = max_photo_bytes
        self._is_busy = False

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Lets one client at a time export or import: each takes disk and time.

        Raises:
            Overloaded: there is one.
        """
        if self._is_busy:
            raise Overloaded(
                "another export or import is under way: try again when it is done", _RETRY_SECONDS
            )
        self._is_busy = True
        try:
            yield
        finally:
            self._is_busy = False

    # Out

    async def export(
        self,
        name: str,
        file: BinaryIO,
        *,
        scratch: Path,
        photos: bool = False,
        check_room: CheckRoom = _all_there_is,
        on_progress: OnProgress = _ignore,
    ) -> Exported:
        """Writes a collection into a file that is empty, and can be read and sought in.

        Args:
            name: the collection's.
            file: the file.
            scratch: a folder on a disk that has as much room as the export takes. What is made
                there has no name, and goes with the process.
            photos: whether the files of folders' photos are taken along; uploads' always are.
            check_room: see CheckRoom; of `scratch` and `file`.
            on_progress: see OnProgress.

        Raises:
            NotFound: there is no such collection.
            VectorsLost: the vector engine does not have it.
            Conflict: objects lack their vectors; or it was dropped or embedded anew meanwhile.
            StoreUnavailable, StoreRefuses: the store that photos lie in cannot be asked for them.
        """
        check_installed()
        collection = await self._catalog.collection(check_collection_name(name))
        if collection is None:
            raise NotFound(f"there is no collection {name!r}")
        if not await self._vectors.exists(collection.store):
            raise VectorsLost(self._vectors.engine_name, collection.name)
        with contextlib.ExitStack() as stack:
            spool = _Spool(stack.enter_context(_nameless(scratch)), collection.dim, check_room)
            copies = _Copies(
                stack.enter_context(_nameless(scratch)),
                self._read_photo,
                # An upload's file is nowhere else, and goes with its collection.
                lambda image: photos or self._uploads.is_upload(Path(image.path), collection.id),
                check_room,
            )
            return await self._export(
                collection, file, spool, copies, photos, check_room, on_progress
            )

    async def _export(
        self,
        collection: Collection,
        file: BinaryIO,
        spool: "_Spool",
        copies: "_Copies",
        photos: bool,
        check_room: CheckRoom,
        on_progress: OnProgress,
    ) -> Exported:
        for _ in range(_ROUNDS):
            there = await self._catalog.object_ids(collection.id)
            missing = sorted(there - spool.ids.keys())
            await self._copy_objects(collection, missing, spool, on_progress)
            copied = 0
            async for page in self._catalog.images(collection.id, ["indexed"]):
                copied += await in_thread(copies.add, page)
            if len(missing) <= _OBJECTS_CAUGHT_UP and copied <= _PHOTOS_CAUGHT_UP:
                break
        archive = ArchiveWriter(
            file,
            ArchivedCollection(
                name=collection.name,
                embedder=collection.embedder,
                embedder_sha256=collection.embedder_sha256,
                dimension=collection.dim,
                metric=collection.metric,
            ),
        )
        async with self._writer.turn():
            await self._check_same(collection)
            there = await self._catalog.object_ids(collection.id)
            missing = sorted(there - spool.ids.keys())
            await self._copy_objects(collection, missing, spool, on_progress)
            if lacking := len(there - spool.ids.keys()):
                raise Conflict(
                    f"{lacking} objects of collection {collection.name!r} have no vectors: python"
                    " -m backend check --repair makes them"
                )
            with archive.images() as table:
                numbers = await self._write_images(collection, table, copies)
        with archive.objects() as objects:
            done = 0
            async for rows in in_steps(spool.rows(there, numbers)):
                await in_thread(check_room, rows.vectors.nbytes)
                await in_thread(objects.write, rows)
                done += len(rows.image_ids)
                on_progress(done, len(there))
        if done != len(there):
            raise AssertionError("objects of photos that were not written")
        async for photo_file, data in in_steps(copies.files()):
            await in_thread(check_room, len(data))
            await in_thread(archive.photo, photo_file, data)
        async for _ in in_steps(archive.finish(photos=photos)):
            pass
        _log.info("collection.exported", collection=collection.name, objects=done)
        return Exported(archive.manifest, copies.missing)

    async def _check_same(self, collection: Collection) -> None:
        now = await self._catalog.collection_by_id(collection.id)
        if now is None or now.state != "ready" or now.store != collection.store:
            raise Conflict(
                f"collection {collection.name!r} was dropped or embedded anew meanwhile: export it"
                " again"
            )

    async def _copy_objects(
        self,
        collection: Collection,
        object_ids: Sequence[int],
        spool: "_Spool",
        on_progress: OnProgress,
    ) -> None:
        total = len(spool.ids) + len(object_ids)
        for start in range(0, len(object_ids), _OBJECTS_TOGETHER):
            chunk = object_ids[start : start + _OBJECTS_TOGETHER]
            places = await self._catalog.places(chunk)
            vectors = await self._vectors.vectors(collection.store, sorted(places))
            # What is in one alone has been removed in between.
            found = [places[object_id] for object_id in sorted(places.keys() & vectors.keys())]
            await in_thread(spool.add, found, [vectors[place.id] for place in found])
            on_progress(len(spool.ids), total)

    async def _write_images(
        self, collection: Collection, table: ImageTable, copies: "_Copies"
    ) -> NDArray[np.int64]:
        """Writes all photos; returns their ids, ascending: each is at its row's number."""
        ids = array("q")
        async for page in self._catalog.images(collection.id, ["indexed", "failed"]):
            indexed = [image for image in page if image.state == "indexed"]
            await in_thread(copies.add, indexed)
            copies.want(indexed)
            rows = [
                ImageRow(_as_new(image), copies.name(image) if image.state == "indexed" else None)
                for image in page
            ]
            await in_thread(table.write, rows)
            ids.extend(image.id for image in page)
        return np.array(ids, np.int64)

    # In

    async def restore(
        self,
        file: BinaryIO,
        *,
        name: str | None = None,
        replace: bool = False,
        check_room: CheckRoom = _all_there_is,
        on_progress: OnProgress = _ignore,
    ) -> Imported:
        """Makes a collection of an export's file, wholly or not at all.

        Args:
            file: the export.
            name: of the new collection; None for that of the one that was exported.
            replace: whether one that is there may be replaced.
            check_room: see CheckRoom; of wherever uploads, catalog and vectors are kept.
            on_progress: see OnProgress.

        Raises:
            InvalidInput: the file is damaged, or not an export.
            EmbedderMismatch: its vectors are not those of the embedder in use.
            Conflict: there is a collection of that name, which is not to be replaced.
        """
        check_installed()
        archive = Archive(file, max_photo_bytes=self._max_photo_bytes)
        with _about_the_file():
            async for _ in in_steps(archive.open()):
                pass
        manifest = archive.manifest
        name = manifest.collection.name if name is None else check_collection_name(name)
        self._check_embedder(manifest.collection)
        before = await self._catalog.collection_in_any_state(name)
        if before is not None and not replace:
            raise Conflict(
                f"there is a collection {name!r}: import into another, or say that it is to be"
                " replaced"
            )
        with _about_the_file():
            async for _ in in_steps(archive.verify()):
                pass
        done, failed, files = 0, 0, 0
        async with self._writer.importing(name) as (collection, ensure_held):
            named: Counter[str] = Counter()
            async for batch in in_steps(archive.photos()):
                for part in _parts(batch, archive):
                    content = {
                        photo: await in_thread(archive.read_photo, photo)
                        for photo in {each.photo for each in part if each.photo is not None}
                    }
                    await in_thread(
                        check_room,
                        sum(map(len, content.values()))
                        + sum(each.embeddings.nbytes for each in part),
                    )
                    if before is not None:
                        await in_thread(self._check_keeps_uploads, before, part)
                    # An export has such photos of uploads whose files were gone. Whoever makes one
                    # up would have us show what has been uploaded to another collection.
                    astray = await in_thread(
                        self._uploads.names, [each.image.path for each in part if not each.photo]
                    )
                    prepared, uploads = self._prepare(collection, part, content, astray, named)
                    await ensure_held()
                    await self._writer.add_imported(collection, prepared, uploads)
                    done += sum(len(each.embeddings) for each in part)
                    failed += sum(each.image.error is not None for each in part)
                    files += len(uploads)
                    on_progress(done, manifest.objects.rows)
            await ensure_held()
            await self._check_counts(collection, manifest, failed)
            await self._indexer.finish_import(collection, name, replace=replace)
        return Imported(name, manifest.images.rows - failed, failed, done, files)

    def _check_embedder(self, exported: ArchivedCollection) -> None:
        embedder = self._analyzer.embedder
        if exported.embedder_sha256 != embedder.sha256:
            raise EmbedderMismatch(
                f"the export of collection {exported.name!r} has vectors of the embedder"
                f" {exported.embedder!r} ({exported.dimension}-d, identity"
                f" {exported.embedder_sha256[:12]}…), the one in use is {embedder.name!r}"
                f" ({embedder.dimension}-d, identity {embedder.sha256[:12]}…): their vectors do not"
                " compare. Import it with EMBEDDER_MODEL set to the embedder that made them"
            )
        if exported.dimension != embedder.dimension or exported.metric != self._writer.metric:
            raise InvalidInput(
                f"the export says that its vectors are {exported.dimension}-d and compared by"
                f" {exported.metric!r}; those of {embedder.name!r} here are {embedder.dimension}-d"
                f" and compared by {self._writer.metric!r}"
            )

    def _prepare(
        self,
        collection: Collection,
        photos: Sequence[ArchivedPhoto],
        content: dict[str, bytes],
        astray: Mapping[str, str],
        named: "Counter[str]",
    ) -> tuple[list[PreparedPhoto], dict[Path, bytes]]:
        """The photos, those with a file as uploads; and what the uploads' files hold.

        Photos whose paths lead to others' uploads, which `astray` has the names of, become uploads
        too, whose files are gone.
        """
        prepared, uploads = [], {}
        for each in photos:
            image = each.image
            if each.photo is not None or image.path in astray:
                name = each.photo or astray[image.path]
                sha256 = image.sha256 or name[:64]  # that of one that has failed may not be known
                image_format = name.removesuffix(".part").rpartition(".")[2]
                kept_as = photo_name(sha256, image_format)
                named[kept_as] += 1
                path = self._uploads.path(
                    collection.id, sha256, image_format, number=named[kept_as]
                )
                if each.photo is not None:
                    uploads[path] = content[each.photo]
                fields = {"path": str(path), "path_key": path_key(str(path)), "mtime_ns": 0}
                image = NewImage(**{**vars(image), **fields})
            prepared.append(PreparedPhoto(image, each.embeddings))
        return prepared, uploads

    def _check_keeps_uploads(self, before: Collection, photos: Sequence[ArchivedPhoto]) -> None:
        """Refuses photos without a file whose file goes with the collection that is replaced."""
        for each in photos:
            path = Path(each.image.path)
            if each.photo is None and self._uploads.is_upload(path, before.id) and path.exists():
                raise Conflict(
                    f"{path.name} was uploaded to the collection that would be replaced, and its"
                    " file is not in the export: import it under another name"
                )

    async def _check_counts(self, collection: Collection, manifest: Manifest, failed: int) -> None:
        there = (
            await self._catalog.count_images(collection.id),
            await self._catalog.count_images(collection.id, "failed"),
            len(await self._catalog.object_ids(collection.id)),
        )
        if there != (manifest.images.rows - failed, failed, manifest.objects.rows):
            raise Conflict("the import was broken off, and is undone: import the file again")


def _nameless(folder: Path) -> BinaryIO:
    """A file without a name: it goes with the process."""
    return tempfile.TemporaryFile(dir=folder)


@contextlib.contextmanager
def _about_the_file() -> Iterator[None]:
    """Says of what is wrong with a file that nothing of it was taken."""
    try:
        yield
    except InvalidInput as error:
        raise InvalidInput(f"nothing was imported: {error}") from None
    except TooLarge as error:
        raise TooLarge(f"nothing was imported: {error}") from None


def _as_new(image: Image) -> NewImage:
    return NewImage(
        path=image.path,
        path_key=image.path_key,
        sha256=image.sha256,
        size=image.size,
        mtime_ns=image.mtime_ns,
        width=image.width,
        height=image.height,
        error=(image.error or "") if image.state == "failed" else None,
        phash=image.phash,
    )


def _parts(batch: Sequence[ArchivedPhoto], archive: Archive) -> Iterator[list[ArchivedPhoto]]:
    """The photos, so many at a time as may be in memory with their files."""
    part: list[ArchivedPhoto] = []
    held = 0
    for each in batch:
        size = 0 if each.photo is None else archive.photo_bytes(each.photo)
        if part and (held + size > _FILES_TOGETHER or len(part) == _PHOTOS_TOGETHER):
            yield part
            part, held = [], 0
        part.append(each)
        held += size
    yield part


class _Spool:
    """Objects with their vectors, in a file, in the order in which they were copied."""

    def __init__(self, file: BinaryIO, dimension: int, check_room: CheckRoom) -> None:
        self.ids: dict[int, int] = {}
        """Which record each object is."""
        self._file = file
        self._check_room = check_room
        self._labels: dict[str, int] = {}
        self._image_ids = array("q")
        self._object_ids = array("q")
        self._record = np.dtype(
            [
                ("label", np.int64),
                ("score", np.float64),
                ("box", np.float64, (4,)),
                ("vector", np.float32, (dimension,)),
            ]
        )

    def add(self, places: Sequence[ObjectPlace], vectors: Sequence[NDArray[np.float32]]) -> None:
        """Copies objects."""
        self._check_room(len(places) * self._record.itemsize)
        records = np.zeros(len(places), self._record)
        for number, (place, vector) in enumerate(zip(places, vectors, strict=True)):
            label = self._labels.setdefault(place.label, len(self._labels))
            records[number] = (label, place.score, place.box, vector)
            self.ids[place.id] = len(self._object_ids)
            self._object_ids.append(place.id)
            self._image_ids.append(place.image_id)
        self._file.write(records.tobytes())

    def rows(self, wanted: set[int], image_ids: NDArray[np.int64]) -> Iterator[ObjectRows]:
        """Those of the objects that are wanted, for photos whose ids these are, ascending."""
        self._file.flush()
        if not wanted:
            return
        owners = np.array(self._image_ids, np.int64)
        objects = np.array(self._object_ids, np.int64)
        order = np.lexsort((objects, owners))
        order = order[np.isin(objects[order], np.fromiter(wanted, np.int64, len(wanted)))]
        labels = list(self._labels)
        for start in range(0, len(order), _OBJECTS_TOGETHER):
            chosen = order[start : start + _OBJECTS_TOGETHER]
            found = self._read(chosen)
            numbers = np.searchsorted(image_ids, owners[chosen])
            if (image_ids[np.minimum(numbers, len(image_ids) - 1)] != owners[chosen]).any():
                raise AssertionError("an object of a photo that is not there")
            yield ObjectRows(
                numbers.astype(np.int64),
                [labels[number] for number in found["label"]],
                found["score"],
                found["box"],
                found["vector"],
            )

    def _read(self, numbers: NDArray[np.int64]) -> NDArray[np.void]:
        """Records, those that follow each other at once."""
        found = np.empty(len(numbers), self._record)
        starts = np.flatnonzero(np.diff(numbers, prepend=-2) != 1)
        for start, end in zip(starts, [*starts[1:], len(numbers)], strict=True):
            size, place = (end - start) * self._record.itemsize, numbers[start]
            data = os.pread(self._file.fileno(), size, place * self._record.itemsize)
            found[start:end] = np.frombuffer(data, self._record)
        return found


class _Copies:
    """Photos' files, copied one behind the other: they may be removed before they are needed."""

    def __init__(
        self,
        file: BinaryIO,
        read_photo: Callable[[str], bytes],
        takes: Callable[[Image], bool],
        check_room: CheckRoom,
    ) -> None:
        """`takes`: whether a photo's file is to be copied."""
        self.missing = 0
        """Photos that are wanted whose files are gone or have changed."""
        self._file = file
        self._read_photo = read_photo
        self._takes = takes
        self._check_room = check_room
        self._places: dict[str, tuple[str, int, int]] = {}
        self._wanted: set[str] = set()
        self._useless: set[tuple[int, str]] = set()
        """Photos whose files are not what they were, by id and hash: they are not read again."""
        self._end = 0

    def add(self, images: Sequence[Image]) -> int:
        """Copies those that are not yet; returns how many it has read."""
        read = 0
        for image in filter(self._takes, images):
            if image.sha256 in self._places or (image.id, image.sha256) in self._useless:
                continue
            read += 1
            image_format = None
            try:
                data = self._read_photo(image.path)
                image_format = check_photo(data, image.sha256)
            except (StoreUnavailable, StoreRefuses):
                raise  # it is not the photo that is missing
            except (OSError, ServiceError):
                pass
            if image_format is None:
                self._useless.add((image.id, image.sha256))
                continue
            self._check_room(len(data))
            self._file.write(data)
            name = photo_name(image.sha256, image_format)
            self._places[image.sha256] = (name, self._end, len(data))
            self._end += len(data)
        return read

    def want(self, images: Sequence[Image]) -> None:
        """Says which photos the export has."""
        for image in filter(self._takes, images):
            if image.sha256 in self._places:
                self._wanted.add(image.sha256)
            else:
                self.missing += 1

    def name(self, image: Image) -> str | None:
        """What a photo is called in the archive; None where there is no copy."""
        place = self._places.get(image.sha256) if self._takes(image) else None
        return None if place is None else place[0]

    def files(self) -> Iterator[tuple[str, bytes]]:
        """The names and bytes of the photos that are wanted, in the order of their names."""
        self._file.flush()
        for sha256 in sorted(self._wanted):
            name, start, size = self._places[sha256]
            self._file.seek(start)
            yield name, self._file.read(size)
