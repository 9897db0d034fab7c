"""Where photos lie: in folders of this machine, and in stores. Who reads one need not know.

A path that is an address leads to a store that the settings name, or nowhere; any other leads into
the folders. Both are looked at when they are used, whoever has said the path and whenever.
"""

import asyncio
import hashlib
import os
import posixpath
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Final, Literal, Self, TypeAlias, TypeVar, TypeVarTuple

from backend.deadlines import before_deadline
from backend.errors import Forbidden, InvalidImage, InvalidInput, StoreRefuses, StoreUnavailable
from backend.files import EVERYWHERE, PhotoFolders
from backend.photo_addresses import PhotoAddress, is_address
from backend.scanning import FolderScan, FoundPhoto, nothing_found, scan_folder
from backend.stores import Store, StoredFile
from backend.vision.decode import EXTENSIONS

__all__ = ["THIS_MACHINE", "PhotoFile", "PhotoPlaces", "Presence"]

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

Presence: TypeAlias = Literal["there", "gone", "unknown"]
"""Of a photo's file: unknown where the folder or the store that it was in cannot be asked."""

_STORE_THREADS: Final = 32
"""That wait for stores: what is far away answers late, and many at a time."""


class PhotoFile:
    """A photo's file, open for reading. Blocks.

    Attributes:
        size: bytes.
        mtime_ns: when it was written, as `FoundPhoto` has it.
    """

    def __init__(self, file: BufferedReader | StoredFile, *, max_bytes: int) -> None:
        """`max_bytes`: of those that are taken into memory together."""
        self._file = file
        self._max_bytes = max_bytes
        self.size, self.mtime_ns = self._state()

    def _state(self) -> tuple[int, int]:
        if isinstance(self._file, StoredFile):
            return self._file.found.size, self._file.found.mtime_ns
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns

    def read(self, size: int) -> bytes:
        """The next bytes, at most so many.

        Raises:
            OSError: they cannot be read, or, in a store, are not of the same file any more.
            StoreUnavailable, StoreRefuses: as `PhotoPlaces.open_file`.
        """
        return self._file.read(size)

    def seek(self, position: int) -> None:
        """Goes on reading from there."""
        self._file.seek(position)

    def read_if(self, sha256: str) -> bytes | None:
        """All of its bytes, where they are those of that hash.

        Raises:
            OSError, StoreUnavailable, StoreRefuses: as `read`.
        """
        if isinstance(self._file, BufferedReader):
            # First in pieces: what has taken the photo's place may be larger than the memory.
            if hashlib.file_digest(self._file, "sha256").hexdigest() != sha256:
                return None
            self._file.seek(0)
            data = self._file.read()
            return data if self._state() == (self.size, self.mtime_ns) else None
        if self.size > self._max_bytes:  # none that was indexed has more
            return None
        data = self._file.read(self.size)
        return data if hashlib.sha256(data).hexdigest() == sha256 else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class PhotoPlaces:
    """The places that photos may be read from: folders and stores, each with all that is below.

    What its methods raise is the same for both, and for stores besides:
        StoreUnavailable: the store does not answer: no photo is to blame.
        StoreRefuses: it refuses this service as a whole.
    """

    def __init__(
        self,
        folders: PhotoFolders,
        stores: Iterable[PhotoAddress] = (),
        *,
        max_file_bytes: int = 2**30,
    ) -> None:
        """Looks at nothing yet.

        Args:
            folders: of this machine.
            stores: addresses of stores, or of folders in them.
            max_file_bytes: of a photo.
        """
        self._folders = folders
        self._stores = tuple(map(Store, stores))
        self._max_bytes = max_file_bytes
        self._threads = (
            ThreadPoolExecutor(_STORE_THREADS, thread_name_prefix="stores")
            if self._stores
            else None
        )

    def with_folder(self, folder: Path) -> "PhotoPlaces":
        """These places and one folder more; who closes one of the two has closed both."""
        more = PhotoPlaces(self._folders.with_folder(folder), max_file_bytes=self._max_bytes)
        more._stores, more._threads = self._stores, self._threads
        return more

    def check_installed(self) -> None:
        """Raises ConfigurationError where what speaks with a store is not installed."""
        for store in self._stores:
            store.check_installed()

    async def run(
        self,
        path: str,
        function: Callable[[*_Ts], _T],
        *arguments: *_Ts,
        here: Executor | None = None,
    ) -> _T:
        """What a function that reads a path returns: it is called in a thread that may wait for it.

        Those who wait for a store keep nobody waiting who reads this machine's files.

        Args:
            path: what is read.
            function, arguments: what is called.
            here: threads for files of this machine; None for the event loop's own.

        Raises:
            StoreUnavailable: also where the store does not answer before the deadline.
        """
        loop = asyncio.get_running_loop()
        if not is_address(path):
            if here is None:
                return await asyncio.to_thread(function, *arguments)
            return await loop.run_in_executor(here, function, *arguments)
        try:
            async with before_deadline():
                return await loop.run_in_executor(self._threads, function, *arguments)
        except TimeoutError:
            store, _ = self._store(path)
            raise StoreUnavailable(
                store.name, f"{store.name} has not answered in time: try again later", store.probe
            ) from None

    async def scan(
        self, folder: str, *, start: Path | PhotoAddress, here: Executor | None = None
    ) -> FolderScan:
        """Lists a folder's photos recursively, in the order of their names.

        Args:
            folder: a path, an address, or what is to be found below `start`.
            start: the folder, or the address, that relative ones are taken from.
            here: threads, as of `run`.

        Raises:
            Forbidden: it lies elsewhere, or would if there were one.
            InvalidInput: there is no such folder, or it cannot be read, or it holds no photo.
        """
        if isinstance(start, PhotoAddress):
            if not _is_absolute(folder):
                folder = _below(start, folder)
            start = Path()
        if is_address(folder):
            return await self.run(folder, self._scan_store, folder)
        scan = partial(scan_folder, folder, start=start, within=self._folders)
        return await self.run(folder, scan, here=here)

    # Each of these blocks

    def open_file(self, path: str) -> PhotoFile:
        """Opens a photo's file, and nothing but a file in one of the places.

        Raises:
            Forbidden: the path leads out of them.
            InvalidImage: it leads to what is no regular file.
            OSError: it leads nowhere, or may not be read.
        """
        file: BufferedReader | StoredFile
        if is_address(path):
            store, address = self._store(path)
            file = store.open(address)
        else:
            file = self._folders.open_file(path)
        return PhotoFile(file, max_bytes=self._max_bytes)

    def check_folder(self, path: str) -> None:
        """Sees whether a folder that photos were found in is one for this process too.

        Raises:
            Forbidden: it lies outside of the places.
            OSError: it is not there, or may not be read.
        """
        if is_address(path):
            self._store(path)
        else:
            os.close(self._folders.open_folder(path, may_be_link=True))

    def read_file(self, path: str, max_bytes: int) -> bytes:
        """The bytes of a file of which at most so many are taken into memory.

        Raises:
            Forbidden, InvalidImage, OSError: as `open_file`.
            TooLarge: it has more.
        """
        if is_address(path):
            store, address = self._store(path)
            return store.read(address, max_bytes)
        return self._folders.read_file(path, max_bytes)

    def is_gone(self, path: str) -> bool:
        """Whether nothing of that name is there any more, so far as that can be told."""
        if is_address(path):
            return self.presence(path) == "gone"
        return not os.path.lexists(path)

    def presence(self, path: str) -> Presence:
        """Whether a photo's file is there. Raises no Forbidden: nobody can tell then."""
        if not is_address(path):
            if os.path.exists(path):
                return "there"
            # A folder that is empty may be the place where a disk is mounted at other times.
            return "gone" if _holds_something(os.path.dirname(path)) else "unknown"
        try:
            store, address = self._store(path)
            store.look(address)
        except FileNotFoundError:
            return "gone"
        except Forbidden:
            return "unknown"
        except (InvalidImage, OSError):
            return "there"
        return "there"

    def find(self, path: str) -> FoundPhoto | None:
        """A photo's file as a scan finds it; None where there is none to index."""
        try:
            if is_address(path):
                store, address = self._store(path)
                return store.look(address)
            status = os.stat(path)
        except (OSError, Forbidden, InvalidImage):
            return None
        return FoundPhoto(path, status.st_size, status.st_mtime_ns)

    # Many at a time

    async def presences(self, paths: Sequence[str]) -> list[Presence]:
        """Of each path what `presence` says; unknown, too, where its store does not answer."""

        def of(path: str) -> Presence:
            try:
                return self.presence(path)
            except (StoreUnavailable, StoreRefuses):
                return "unknown"

        return await self._each(paths, of)

    async def find_all(self, paths: Sequence[str]) -> list[FoundPhoto]:
        """Those of the paths that lead to files, as `find` says."""
        return [found for found in await self._each(paths, self.find) if found is not None]

    async def _each(self, paths: Sequence[str], function: Callable[[str], _T]) -> list[_T]:
        here = [path for path in paths if not is_address(path)]
        found = dict(zip(here, await asyncio.to_thread(_map, function, here), strict=True))
        elsewhere = [path for path in paths if is_address(path)]
        answers = await asyncio.gather(*(self.run(path, function, path) for path in elsewhere))
        found |= zip(elsewhere, answers, strict=True)
        return [found[path] for path in paths]

    async def close(self) -> None:
        """Ends connections and threads."""
        if self._threads is not None:
            await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)
        for store in self._stores:
            store.close()

    def _store(self, path: str) -> tuple[Store, PhotoAddress]:
        """The store that an address lies in.

        Raises:
            Forbidden: in none of them, or there are several ways to read it.
        """
        try:
            address = PhotoAddress.parse(path)
        except ValueError as problem:
            raise Forbidden(str(problem)) from None
        for store in self._stores:
            if store.root.holds(address):
                return store, address
        raise Forbidden(
            "it lies outside of the stores that photos may be taken from: see ALLOWED_ROOTS and"
            " DATA_PATH"
        )

    def _scan_store(self, folder: str) -> FolderScan:
        try:
            store, address = self._store(folder)
            files = store.files(address)
        except Forbidden as reason:
            raise Forbidden(f"the folder {folder} cannot be read: {reason}") from None
        except FileNotFoundError:
            files = []
        except NotADirectoryError:
            raise InvalidInput(f"{folder} is a file: name the folder that it is in") from None
        except OSError as error:
            raise InvalidInput(f"the folder {folder} cannot be read: {error.strerror}") from None
        scan = FolderScan(str(address))
        for file in sorted(files, key=lambda file: file.path):
            names = file.path[len(scan.root) + 1 :].split("/")
            if any(name.startswith(".") and name not in (".", "..") for name in names):
                scan.passed_over += 1
            elif os.path.splitext(names[-1])[1].lower() in EXTENSIONS:
                scan.photos.append(file)
            else:
                scan.passed_over += 1
        if not scan.photos:
            raise nothing_found(folder, scan)
        return scan


THIS_MACHINE: Final = PhotoPlaces(EVERYWHERE)
"""All that this machine has, and no store."""


def _is_absolute(folder: str) -> bool:
    return is_address(folder) or os.path.isabs(os.path.expanduser(folder))


def _below(start: PhotoAddress, folder: str) -> str:
    """A relative folder's address; what leads out of `start` is left as it is, to be refused."""
    if not folder:
        raise InvalidInput("'' is no folder's name")
    relative = posixpath.normpath(folder)
    return str(start) if relative == "." else f"{start}/{relative}"


def _holds_something(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except OSError:
        return False


def _map(function: Callable[[str], _T], paths: Sequence[str]) -> list[_T]:
    return list(map(function, paths))
