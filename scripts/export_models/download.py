"""Fetches a file of known size and SHA-256 over HTTP, from the first mirror that gives it.

Knows no models. What arrives goes into NAME.part, and NAME appears only when size and sum are
right: whatever bears that name is whole, whenever power, network or patience fail.

An interrupted download goes on where it stopped (``Range``), at any mirror, and in the next run as
well. That needs no ``If-Range``: the sum in the end says whether all pieces are of one file, better
than a server's ETag, which the next mirror would not know. Should they not be, the file is asked
for once more from its beginning. Proxies are taken from the environment (``HTTPS_PROXY``,
``NO_PROXY``, …), as ``requests`` does.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import requests
import urllib3

from scripts.export_models.errors import DiskError, DownloadError, DownloadInterrupted
from scripts.export_models.progress import Display

CONNECT_TIMEOUT_SECONDS: Final = 10
# Between two pieces of an answer, not for the whole of it.
READ_TIMEOUT_SECONDS: Final = 30

RETRY_DELAYS: Final = (0.5, 1.0, 2.0)
"""Seconds to wait before each further attempt at a mirror that has failed for the moment."""

# A connection that has carried so much before it broke is worth as many attempts as a new one.
RENEWING_BYTES: Final = 1 << 20

CHUNK_BYTES: Final = 1 << 20

_MOMENTARY_STATUSES: Final = frozenset({408, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file that servers hold under one name, the same bytes everywhere.

    ``folders`` are the URLs of the folders it is in, the best first; ``sha256`` is hexadecimal.
    """

    name: str
    size: int
    sha256: str
    folders: tuple[str, ...]


class _MirrorError(Exception):
    """A mirror does not give the file; the next one may."""


class _MomentaryError(_MirrorError):
    """A mirror does not give the file right now; it may if asked again."""


class _NotResumedError(_MirrorError):
    """A mirror does not go on where the download stopped; it may give the file from its start."""

    def __init__(self) -> None:
        super().__init__("it does not go on where the download stopped")


def file_sha256(*paths: Path) -> str:
    """SHA-256 of the files, one after the other, hexadecimal.

    Raises:
        OSError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def fetch(file: RemoteFile, folder: Path, *, mirrors: Sequence[str], display: Display) -> Path:
    """The path of ``file`` in ``folder``, downloaded unless it is there already.

    Of several processes that want the same file one downloads it, the others wait for it.

    Args:
        file: what to fetch.
        folder: made where it does not exist.
        mirrors: URLs of folders to try before the file's own.
        display: is told what goes on.

    Raises:
        DownloadError: no mirror gives it; what has arrived is kept unless its sum is wrong.
        DiskError: the folder cannot be written, or has too little space.
        DownloadInterrupted: Ctrl-C; what has arrived is kept.
    """
    target, part_path = folder / file.name, folder / f"{file.name}.part"
    there = f"{target} is there already, and its SHA-256 is right"
    try:
        # Without the lock, for a folder that may only be read has no room for it.
        if not part_path.exists() and _is_whole(target, file):
            display.line(there)
            return target
        folder.mkdir(parents=True, exist_ok=True)
        with _open_part(part_path, display) as part:
            if _is_whole(target, file):
                part.clear()
                display.line(there)
                return target
            _require_space(file, part)
            try:
                _fetch_into(part, file, [*mirrors, *file.folders], display)
                part.become(target)
            except KeyboardInterrupt:
                raise DownloadInterrupted(f"interrupted; {_state(part, file)}") from None
            except OSError as error:  # of the disk: those of the network have other names here
                words = error.strerror or error
                raise DiskError(f"{part.path}: {words}; {_state(part, file)}") from error
    except OSError as error:
        raise DiskError(f"{error.filename or folder}: {error.strerror}") from error
    return target


def _state(part: _Part, file: RemoteFile) -> str:
    if not part.size:
        return "nothing is kept"
    return (
        f"{part.path} keeps {part.size:,} of {file.size:,} bytes,"
        " and the same command goes on from there"
    )


def _is_whole(path: Path, file: RemoteFile) -> bool:
    try:
        return path.stat().st_size == file.size and file_sha256(path) == file.sha256
    except (FileNotFoundError, NotADirectoryError):
        return False


class _Part:
    """NAME.part, open and locked: this process alone writes to it."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    @property
    def size(self) -> int:
        """Bytes that are there."""
        return os.fstat(self._descriptor).st_size

    def write(self, data: bytes) -> None:
        """Appends."""
        view = memoryview(data)
        while view:
            view = view[os.pwrite(self._descriptor, view, self.size) :]

    def clear(self) -> None:
        """Forgets what is there."""
        os.ftruncate(self._descriptor, 0)

    def become(self, target: Path) -> None:
        """Takes its final name, and all that is in it reaches the disk before."""
        os.fsync(self._descriptor)
        os.replace(self.path, target)


@contextmanager
def _open_part(path: Path, display: Display) -> Iterator[_Part]:
    """Opens, locks and in the end unlocks a part; an empty one does not stay behind."""
    descriptor = _lock(path, display)
    part = _Part(path, descriptor)
    try:
        yield part
    finally:
        if part.size == 0 and _is_at(descriptor, path):
            path.unlink()
        os.close(descriptor)


def _lock(path: Path, display: Display) -> int:
    """Opens and locks the file at ``path``, making it where there is none, and not another one.

    Whoever held the lock before may have renamed or removed the file that was waited for.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                display.line(f"{path}: another process is downloading it: waiting for that")
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_at(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _require_space(file: RemoteFile, part: _Part) -> None:
    folder = part.path.parent
    needed, free = file.size - part.size, shutil.disk_usage(folder).free
    if needed > free:
        raise DiskError(
            f"{folder}: {needed:,} bytes are needed for {file.name} and {free:,} are free:"
            " free some, or name another folder with --downloads"
        )


def _fetch_into(part: _Part, file: RemoteFile, folders: Sequence[str], display: Display) -> None:
    """Fills ``part`` from the first of ``folders`` that gives the right bytes.

    What is in ``part`` is given up only when none of them goes on from there.
    """
    problems: list[str] = []
    urls = deque((f"{folder.rstrip('/')}/{file.name}", False) for folder in folders)
    with requests.Session() as session:
        while urls:
            url, anew = urls.popleft()
            display.line(f"downloading {url}" + _kept(part))
            try:
                _fetch_from(session, url, part, file, display, anew=anew)
            except _MirrorError as error:
                if isinstance(error, _NotResumedError):
                    urls.append((url, True))
                else:
                    problems.append(f"{url}: {error}")
                if urls:
                    next_step = "starting anew" if urls[0][1] else "trying the next mirror"
                    display.line(f"{url}: {error}; {next_step}")
            else:
                return
    raise DownloadError(
        f"{file.name} could not be downloaded ({'; '.join(problems)}): try again later, name"
        " another server with --mirror, or a file with --weights" + _kept(part)
    )


def _kept(part: _Part) -> str:
    return f" ({part.size:,} bytes are in {part.path})" if part.size else ""


def _fetch_from(
    session: requests.Session,
    url: str,
    part: _Part,
    file: RemoteFile,
    display: Display,
    *,
    anew: bool,
) -> None:
    """Fills ``part`` from one mirror, in several attempts if need be.

    Args:
        session: for all requests.
        url: of the file.
        part: what is there of it.
        file: what to fetch.
        display: is told what goes on.
        anew: whether ``part`` is cleared where the mirror does not go on from its end.

    Raises:
        _NotResumedError: it does not go on from the end of ``part``, which is as it was.
        _MirrorError: it does not give the file.
    """
    if part.size:
        _complete(session, url, part, file, display, anew=anew)
        if file_sha256(part.path) == file.sha256:
            return
        display.line(f"{part.path}: its pieces do not belong together: starting anew")
        part.clear()
    _complete(session, url, part, file, display, anew=anew)
    if (found := file_sha256(part.path)) != file.sha256:
        part.clear()
        raise _MirrorError(f"its SHA-256 is {found}, not {file.sha256}")


def _complete(
    session: requests.Session,
    url: str,
    part: _Part,
    file: RemoteFile,
    display: Display,
    *,
    anew: bool,
) -> None:
    """Appends to ``part`` until it has all bytes; ``anew`` as for ``_fetch_from``."""
    if part.size > file.size:
        part.clear()
    failures = 0
    with display.transfer(file.name, file.size) as show:
        show(part.size)
        while part.size < file.size:
            before = part.size
            try:
                _request(session, url, part, file, show, anew=anew)
            except _MomentaryError as error:
                failures = 1 if part.size >= before + RENEWING_BYTES else failures + 1
                if failures > len(RETRY_DELAYS):
                    raise
                delay = RETRY_DELAYS[failures - 1]
                display.line(f"{url}: {error}; once more in {delay:g} s{_kept(part)}")
                time.sleep(delay)


def _request(
    session: requests.Session,
    url: str,
    part: _Part,
    file: RemoteFile,
    show: Callable[[int], None],
    *,
    anew: bool,
) -> None:
    """Asks once for what ``part`` lacks, and appends what comes."""
    # Compressed on its way, a file would have other sizes than its own.
    headers = {"Accept-Encoding": "identity"}
    if part.size:
        headers["Range"] = f"bytes={part.size}-"
    try:
        with session.get(
            url,
            headers=headers,
            stream=True,
            timeout=(CONNECT_TIMEOUT_SECONDS, READ_TIMEOUT_SECONDS),
        ) as response:
            if not _continues(response, part, file, anew=anew):
                return
            # As it comes: to wait for a full chunk would lose up to one when the connection breaks.
            while chunk := response.raw.read1(CHUNK_BYTES):
                if part.size + len(chunk) > file.size:
                    part.clear()
                    raise _MirrorError(f"it sends more than {file.size:,} bytes")
                part.write(chunk)
                show(part.size)
    except (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError) as error:
        raise _MomentaryError("no answer in time") from error
    except requests.exceptions.ConnectionError as error:
        raise _connection_problem(error) from error
    except (requests.exceptions.RequestException, urllib3.exceptions.LocationValueError) as error:
        raise _MirrorError(str(error)) from error
    except urllib3.exceptions.HTTPError as error:  # in the body, which requests does not read here
        raise _MomentaryError(_cause(error)) from error
    if part.size < file.size:
        raise _MomentaryError("the connection ended early")


def _continues(response: requests.Response, part: _Part, file: RemoteFile, *, anew: bool) -> bool:
    """Whether an answer's body belongs at the end of ``part``; ``anew`` as for ``_fetch_from``.

    Where it does not, ``part`` is empty and the next request is one for the whole file.

    Raises:
        _NotResumedError: it belongs elsewhere, and ``part`` is not to be cleared.
        _MirrorError: the answer is not the file.
    """
    begun = part.size
    nothing_more = response.status_code == 416 and begun > 0
    if response.status_code not in (200, 206) and not nothing_more:
        problem = f"HTTP {response.status_code} {response.reason}".rstrip()
        if response.status_code in _MOMENTARY_STATUSES:
            raise _MomentaryError(problem)
        raise _MirrorError(problem)
    start = None if nothing_more else _start(response, begun, file)
    if start == begun:
        return True
    if not begun:
        raise _MirrorError("it answers with a part of the file, asked for all of it")
    if not anew:
        raise _NotResumedError
    part.clear()
    return start == 0


def _start(response: requests.Response, begun: int, file: RemoteFile) -> int:
    """Where in the file an answer's body begins, asked for what comes after ``begun`` bytes."""
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise _MirrorError("it answers with a web page")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise _MirrorError("it sends the file compressed, which was not asked for")
    start = begun
    if response.status_code == 200:
        start = 0
    elif match := re.match(r"bytes (\d+)-", response.headers.get("Content-Range", "")):
        start = int(match[1])
    length = response.headers.get("Content-Length", "")
    if length.isdecimal() and start + int(length) != file.size:
        raise _MirrorError(f"its file has {start + int(length):,} bytes, not {file.size:,}")
    return start


def _connection_problem(error: requests.exceptions.ConnectionError) -> _MirrorError:
    """What a connection that was not made, or broke before an answer came, says of its mirror."""
    if isinstance(error, requests.exceptions.ProxyError):
        words = f"the proxy: {_cause(error)}"
        refusal = re.search(r"Tunnel connection failed: (\d+)", words)
        if refusal and int(refusal[1]) not in _MOMENTARY_STATUSES:
            return _MirrorError(words)
        return _MomentaryError(words)
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in _causes(error)):
        return _MirrorError(f"its certificate is not accepted ({_cause(error)})")
    return _MomentaryError(_cause(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what is inside it, the outermost first."""
    waiting, seen = deque([error]), set()
    while waiting:
        cause = waiting.popleft()
        if id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        # urllib3 hands some on as an argument, without having raised them.
        inside = (cause.__cause__, cause.__context__, *cause.args)
        waiting.extend(x for x in inside if isinstance(x, BaseException))


def _cause(error: BaseException) -> str:
    """The system's own words for what broke a connection, of the many layers around them."""
    words = "the connection was lost"
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.strerror:
            words = cause.strerror
        elif isinstance(cause, TimeoutError):
            words = "no answer in time"
        elif type(cause) is OSError and str(cause):  # urllib3's, for what a proxy answers
            words = str(cause)
    return words
