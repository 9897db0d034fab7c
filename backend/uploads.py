"""The files of uploaded photos: where they lie, how they come and go.

UPLOAD_PATH/CATALOG/COLLECTION/SHA256.EXTENSION, the first two by their ids: names of ours, the same
for the same bytes. Copies, which an import may bring, are numbered: SHA256-2.EXTENSION. Only files
named so, in the folder of this very catalog, are ever removed, so that an UPLOAD_PATH may be shared
and may hold other files.
"""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from backend.files import sync_folder

__all__ = ["UploadFolder"]

_NAME: Final = re.compile(r"[0-9a-f]{64}(?:-[1-9]\d*)?\.(?:jpeg|png|webp|bmp|tiff)(?:\.part)?")


class UploadFolder:
    """Uploaded photos of one catalog. Every method blocks: call it in a thread."""

    def __init__(self, folder: Path, catalog_identity: str) -> None:
        self._folder = folder / catalog_identity

    def path(self, collection_id: int, sha256: str, image_format: str, *, number: int = 1) -> Path:
        """Where a photo of these bytes is, or would be, kept; `number` of several of them."""
        name = sha256 if number == 1 else f"{sha256}-{number}"
        return self._folder / str(collection_id) / f"{name}.{image_format.lower()}"

    def write(self, path: Path, data: bytes) -> None:
        """Stores a photo: wholly, durably, or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        try:
            with part.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            sync_folder(path.parent)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def remove(self, path: Path) -> None:
        """Removes a photo where it exists, and its folder where nothing else is in it."""
        path.unlink(missing_ok=True)
        _remove_empty(path.parent)

    def is_upload(self, path: Path, collection_id: int) -> bool:
        """Whether a photo of a collection is an upload of ours: by its path, unlike a folder's."""
        return (
            path.parent == self._folder / str(collection_id)
            and _NAME.fullmatch(path.name) is not None
        )

    def names(self, paths: Iterable[str]) -> dict[str, str]:
        """Of those paths that lead to uploads, of whichever catalog, by whatever way: their names.

        Whether the files are there does not matter.
        """
        root = os.path.realpath(self._folder.parent)
        found = {}
        for path in paths:
            leads_to = Path(os.path.realpath(path))
            if leads_to.parents[2:3] == (Path(root),) and _NAME.fullmatch(leads_to.name):
                found[path] = leads_to.name
        return found

    def remove_collection(self, collection_id: int) -> None:
        """Removes a collection's photos, and its folder where nothing else is in it."""
        for path in self._files(self._folder / str(collection_id)):
            path.unlink(missing_ok=True)
        _remove_empty(self._folder / str(collection_id))

    def collections(self) -> list[int]:
        """Ids of the collections that have a folder."""
        if not self._folder.is_dir():
            return []
        return [int(entry.name) for entry in self._folder.iterdir() if entry.name.isdecimal()]

    def files(self, collection_id: int) -> list[Path]:
        """A collection's files, unfinished ones included."""
        return list(self._files(self._folder / str(collection_id)))

    @staticmethod
    def sha256(path: Path) -> str | None:
        """The hash of the bytes that a file of ours says to hold; None of an unfinished one."""
        return None if path.suffix == ".part" else path.name[:64]

    def _files(self, folder: Path) -> Iterator[Path]:
        if folder.is_dir():
            yield from (entry for entry in folder.iterdir() if _NAME.fullmatch(entry.name))


def _remove_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:  # never there, or something of somebody else's is in it
        return
