"""`/api/v1/collections/{name}/export` and `/import`: a collection as one file."""

import asyncio
import contextlib
import errno
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

import structlog
from aiohttp import hdrs, web

from backend.errors import (
    InsufficientStorage,
    NotFound,
    ServiceError,
    TooLarge,
    TooSlow,
    Unauthorized,
    UnsupportedMediaType,
)
from backend.files import check_room
from backend.http.access import (
    check_reaches,
    check_still_welcome,
    reaches,
)
from backend.http.openapi import BINARY, Operation, Parameter
from backend.http.services import SETTINGS, UNHURRIED, in_time, services
from backend.http.v1.presenting import answer
from backend.http.v1.requests import read_query
from backend.http.v1.schemas import ExportQuery, ImportQuery, ImportResult
from backend.names import MAX_NAME_LENGTH, NAME_PATTERN, check_collection_name
from backend.threads import in_thread

__all__ = ["OPERATIONS"]

_log = structlog.get_logger(__name__)

_MEDIA_TYPE: Final = "application/x-tar"
_PIECE_BYTES: Final = 2**18
_PIECE_SECONDS: Final = 60.0
"""That a piece may take to be sent or to come: whoever is slower keeps others from their turn."""
_PACE_BYTES: Final = 10**5
"""A second, that all pieces must have gone at by their deadline, which gives the first as long."""
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class _Pace:
    """How long a client may take for what it sends or reads, piece by piece and altogether."""

    def __init__(self) -> None:
        self._begun = asyncio.get_running_loop().time()
        self._moved = 0

    def piece(self) -> asyncio.Timeout:
        """Ends what moves a piece where that takes too long, or all until then has."""
        now = asyncio.get_running_loop().time()
        begun = min(now, self._begun + self._moved / _PACE_BYTES)
        return asyncio.timeout_at(begun + _PIECE_SECONDS)

    def add(self, size: int) -> None:
        """Counts a piece's bytes."""
        self._moved += size


async def export_collection(request: web.Request) -> web.StreamResponse:
    """A collection as it is at one moment, while photos come and go."""
    request[UNHURRIED] = True
    name = check_collection_name(request.match_info["name"])
    wanted = read_query(request, ExportQuery)
    if not reaches(request, name):
        raise NotFound(f"there is no collection {name!r}")
    here = services(request)
    headers = {
        hdrs.CONTENT_TYPE: _MEDIA_TYPE,
        hdrs.CONTENT_DISPOSITION: f'attachment; filename="{name}.tar"',
        "X-Content-Type-Options": "nosniff",
    }
    if request.method == "HEAD":
        with in_time(request):
            if await here.catalog.collection(name) is None:
                raise NotFound(f"there is no collection {name!r}")
        return web.Response(headers=headers)
    with here.backups.at_work(), _scratch(request) as (folder, file):
        with _written_to(folder):
            await here.backups.export(
                name,
                file,
                scratch=folder,
                photos=wanted.photos,
                check_room=partial(check_room, folder),
            )
            size = await in_thread(file.seek, 0, 2)
            await in_thread(file.seek, 0)
        await check_still_welcome(request)
        pace = _Pace()
        response = web.StreamResponse(headers=headers)
        response.content_length = size
        try:
            await response.prepare(request)
            while piece := await in_thread(file.read, _PIECE_BYTES):
                await check_still_welcome(request)
                async with pace.piece():
                    await response.write(piece)
                pace.add(len(piece))
            async with pace.piece():
                await response.write_eof()
        except (OSError, TimeoutError, Unauthorized) as error:
            # The answer has begun: only the connection's end can tell that it is not whole.
            _log.info("export.broken_off", collection=name, reason=str(error) or "too slow")
            if request.transport is not None:
                request.transport.abort()
    return response


async def import_collection(request: web.Request) -> web.Response:
    """Makes a collection of an export, wholly or not at all."""
    request[UNHURRIED] = True
    name = check_collection_name(request.match_info["name"])
    wanted = read_query(request, ImportQuery)
    check_reaches(request, name)
    if request.content_type != _MEDIA_TYPE:
        raise UnsupportedMediaType(
            f"{request.path} takes an export, {_MEDIA_TYPE}, not {request.content_type}: say so in"
            " Content-Type"
        )
    here = services(request)
    with here.backups.at_work(), _scratch(request) as (folder, file):
        await _receive(request, folder, file)

        def has_room(size: int) -> None:
            for each in (folder, request.app[SETTINGS].uploads):
                check_room(each, size)

        with _written_to(folder):
            done = await here.backups.restore(
                file, name=name, replace=wanted.replace, check_room=has_room
            )
    return answer(ImportResult(**vars(done)))


async def _receive(request: web.Request, folder: Path, file: BinaryIO) -> None:
    limit = request.app[SETTINGS].max_import_bytes
    size = told = request.content_length or 0
    pace, received = _Pace(), 0
    while size <= limit:
        with _written_to(folder):
            await in_thread(check_room, folder, max(told - received, _PIECE_BYTES))
        piece = await _piece(request, pace)
        # A piece at most was taken of whoever is not welcome any more.
        await check_still_welcome(request)
        with _written_to(folder):
            if not piece:
                await in_thread(file.flush)
                return
            await in_thread(file.write, piece)
        received += len(piece)
        size = max(size, received)
    raise TooLarge(f"the export has more than the {limit} bytes that MAX_IMPORT_BYTES allows")


async def _piece(request: web.Request, pace: _Pace) -> bytes:
    piece = bytearray()
    try:
        async with pace.piece():
            while len(piece) < _PIECE_BYTES and (data := await request.content.readany()):
                piece += data
    except TimeoutError:
        raise TooSlow(
            f"the export comes too slowly: {_PIECE_BYTES} bytes within {_PIECE_SECONDS:g} s, and"
            f" {_PACE_BYTES} a second altogether, are the least; send it again"
        ) from None
    pace.add(len(piece))
    return bytes(piece)


@contextlib.contextmanager
def _scratch(request: web.Request) -> Iterator[tuple[Path, BinaryIO]]:
    """A folder for files without names, and one of them, which goes when it is closed."""
    folder = request.app[SETTINGS].data_dir
    with _written_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed below)
    try:
        yield folder, file
    finally:
        with contextlib.suppress(OSError):  # of what nobody wants any more
            file.close()


@contextlib.contextmanager
def _written_to(folder: Path) -> Iterator[None]:
    """Says what is wrong with a disk; to be put around what reads and writes files alone."""
    try:
        yield
    except OSError as error:
        _log.error("backup.failed", folder=str(folder), reason=str(error))
        if error.errno in _FULL:
            raise InsufficientStorage(
                "the service's disk is full: have its operator make room in DATA_DIR, and try again"
            ) from None
        raise ServiceError(f"DATA_DIR cannot be used for it: {error.strerror}") from None


_NAME: Final = (
    Parameter(
        "name",
        "of the collection",
        {"type": "string", "pattern": f"^{NAME_PATTERN}$", "maxLength": MAX_NAME_LENGTH},
        required=True,
    ),
)

OPERATIONS: Final = (
    Operation(
        "GET",
        "/api/v1/collections/{name}/export",
        export_collection,
        "A collection as one file: Parquet tables and, if asked for, photos",
        scope="admin",
        answer=BINARY,
        media_types=(_MEDIA_TYPE,),
        path_parameters=_NAME,
        query=ExportQuery,
        errors=(400, 403, 404, 409, 429, 500, 502, 503, 507),
        problems=True,
        tag="collections",
    ),
    Operation(
        "POST",
        "/api/v1/collections/{name}/import",
        import_collection,
        "Make a collection of such a file, wholly or not at all",
        scope="admin",
        answer=ImportResult,
        path_parameters=_NAME,
        query=ImportQuery,
        file=_MEDIA_TYPE,
        errors=(400, 403, 408, 409, 413, 415, 429, 500, 503, 507),
        problems=True,
        tag="collections",
    ),
)
