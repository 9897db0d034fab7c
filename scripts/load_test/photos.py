"""The photos that a load test sends, read once and kept in memory."""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backend.errors import InvalidInput, ServiceError
from backend.files import EVERYWHERE
from backend.scanning import scan_folder
from scripts.load_test.errors import LoadTestError

__all__ = ["MOST_BYTES", "Photo", "Photos", "read_photos"]

MOST_BYTES: Final = 256 * 1024 * 1024
"""Of all photos together."""
_TAIL_BYTES: Final = 16


@dataclass(frozen=True)
class Photo:
    """A photo's bytes, and the ending of its file's name."""

    data: bytes
    ending: str


class Photos:
    """Photos by turns, each time with other bytes.

    Attributes:
        read: how many there are.
        found: how many the folder holds.
    """

    def __init__(self, photos: Sequence[Photo], found: int) -> None:
        self.read = len(photos)
        self.found = found
        self._turns = itertools.cycle(photos)

    def fresh(self) -> Photo:
        """The next photo, as one that the service has never seen.

        The same pixels: every format of ours ends before the tail. Sent as they are, photos would
        be answered from the service's caches, and uploaded only once.
        """
        photo = next(self._turns)
        return Photo(photo.data + os.urandom(_TAIL_BYTES), photo.ending)


def read_photos(folder: Path, at_most: int, *, most_bytes: int = MOST_BYTES) -> Photos:
    """Reads the first photos of a folder, by name, and of the folders in it.

    Raises:
        LoadTestError: there is no such folder, it holds no photo, or none that can be read.
    """
    try:
        folder.stat()
        scan = scan_folder(str(folder), start=Path.cwd(), within=EVERYWHERE)
    except OSError as error:
        raise LoadTestError(f"the folder {folder} cannot be read: {error.strerror}") from None
    except InvalidInput as error:
        raise LoadTestError(str(error)) from None
    photos: list[Photo] = []
    left, reason = most_bytes, ""
    for found in scan.photos:
        if len(photos) == at_most:
            break
        try:
            data = EVERYWHERE.read_file(found.path, left)
        except (OSError, ServiceError) as error:
            reason = str(error)
            continue
        photos.append(Photo(data, os.path.splitext(found.path)[1]))
        left -= len(data)
    if not photos:
        raise LoadTestError(f"no photo of {folder} can be read: {reason}")
    return Photos(photos, len(scan.photos))
