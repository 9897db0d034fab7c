"""One store of photos elsewhere, such as a bucket or a folder of it, through fsspec.

Only what lies below the store's own address is ever asked for. The address, which is a setting,
says which library speaks with it and where; of what clients name, no more than the rest behind it
goes there. Credentials come from the environment, as each library reads it. Blocks: call it in a
thread.

What fails is told apart by asking for the store itself: where that answers, the one photo is what
is wrong; where it does not, everything is, and no photo shall be blamed for that.
"""

import errno
import hashlib
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final, TypeVar

import structlog

from backend.errors import (
    ConfigurationError,
    InvalidImage,
    ServiceError,
    StoreRefuses,
    StoreUnavailable,
    TooLarge,
)
from backend.photo_addresses import PhotoAddress
from backend.plain_text import printable, without_credentials
from backend.scanning import FoundPhoto

__all__ = ["Store", "StoredFile"]

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")

_EXTRAS: Final = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
"""Of this project, by the protocols that their libraries speak."""
_AWS: Final = frozenset({"s3", "s3a"})
_BLOCK_BYTES: Final = 4 * 2**20
"""Asked for at once while a photo is sent: most have less."""
_ATTEMPTS: Final = 2
"""Of s3fs, each with as many of botocore's: with the timeouts, a store that is silent is given up
within half a minute."""
_CONNECT_SECONDS: Final = 5
_READ_SECONDS: Final = 15
_REMEMBERED_SECONDS: Final = 1.0
"""That the store is away."""
_TIMES: Final = ("LastModified", "last_modified", "mtime", "updated", "modified", "created")
"""What stores' libraries call the time at which something was written."""
_TAGS: Final = ("ETag", "etag", "md5Hash", "crc32c")
"""What they call what tells bytes from others."""
_SECRET: Final = re.compile(r"(?i)key|secret|token|password|credential")
_QUERY: Final = re.compile(r"\?[^\s'\"]*")
_MISTAKES: Final = ("ParamValidationError", "ProfileNotFound", "RefreshError")
"""Of botocore and google-auth, that are neither of PermissionError nor of ValueError."""
_MAX_REASON: Final = 300
_MIN_SECRET: Final = 8
"""Characters of a secret: what is shorter may be part of any word."""


class StoredFile:
    """A file of a store that is open for reading: what comes are bytes of one state of it."""

    def __init__(self, store: "Store", file: Any, found: FoundPhoto) -> None:
        self._store = store
        self._file = file
        self.found = found

    def read(self, size: int) -> bytes:
        """The next bytes, at most so many.

        Raises:
            OSError: it was replaced or removed meanwhile.
            StoreUnavailable, StoreRefuses: as `Store.open`.
        """
        return bytes(self._store.ask(lambda _: self._file.read(size)))

    def seek(self, position: int) -> None:
        """Goes on reading from there."""
        self._file.seek(position)

    def close(self) -> None:
        """Ends it."""
        self._file.close()


class Store:
    """A store, or a part of it, that photos may be read from; many calls at a time."""

    def __init__(self, root: PhotoAddress) -> None:
        """Speaks with nobody yet."""
        self.root = root
        self.name = f"the photo store {root}"
        self._opening = threading.Lock()
        self._system: Any = None
        self._base = ""
        self._probing = threading.Lock()
        self._trouble: StoreUnavailable | StoreRefuses | None = None
        self._trouble_until = 0.0
        self._kind_logged: str | None = None
        self._answered = -math.inf  # when the last question was asked that it has answered

    def check_installed(self) -> None:
        """Raises ConfigurationError where the library that speaks the protocol is missing."""
        protocol = self.root.protocol
        try:
            import fsspec

            fsspec.get_filesystem_class(protocol)
        except ImportError:
            package = (
                f"'image-similarity-search[{_EXTRAS[protocol]}]'"
                if protocol in _EXTRAS
                else f"fsspec, and what speaks {protocol} for it"
            )
            raise ConfigurationError(
                f"{self.root}: what reads photos from {protocol}:// is not installed:"
                f" pip install {package}"
            ) from None
        except ValueError:
            raise ConfigurationError(
                f"{self.root}: fsspec knows no protocol {protocol!r}"
            ) from None

    def open(self, address: PhotoAddress) -> StoredFile:
        """Opens a photo.

        Raises:
            InvalidImage: this is a folder.
            OSError: there is no such photo, or it may not be read.
            StoreUnavailable: the store does not answer.
            StoreRefuses: it does not let us in, or is not there.
        """

        def open_it(system: Any) -> StoredFile:
            path = self._path(address)
            file = system.open(path, "rb", block_size=_BLOCK_BYTES)
            info = getattr(file, "details", None) or system.info(path)
            return StoredFile(self, file, _found(address, info))

        return self.ask(open_it)

    def read(self, address: PhotoAddress, max_bytes: int) -> bytes:
        """The bytes of a photo of which at most so many are asked for.

        Raises:
            TooLarge: it has more.
            InvalidImage, OSError, StoreUnavailable, StoreRefuses: as `open`.
        """
        try:
            # One byte past the limit tells that there are more.
            data = self.ask(
                lambda system: bytes(
                    system.cat_file(self._path(address), start=0, end=max_bytes + 1)
                )
            )
        except OSError:
            # Of nothing, some stores have no first byte to give.
            if self.look(address).size == 0:
                return b""
            raise
        if len(data) > max_bytes:
            raise TooLarge(
                f"the file has more than the {max_bytes} bytes that MAX_FILE_BYTES allows"
            )
        return data

    def look(self, address: PhotoAddress) -> FoundPhoto:
        """What there is to know of a photo without its bytes.

        Raises:
            InvalidImage, OSError, StoreUnavailable, StoreRefuses: as `open`.
        """
        return _found(address, self.ask(lambda system: system.info(self._path(address))))

    def files(self, folder: PhotoAddress) -> list[FoundPhoto]:
        """All files below a folder, photos or not, in no order.

        Raises:
            NotADirectoryError: this is a file.
            OSError, StoreUnavailable, StoreRefuses: as `open`.
        """
        return self.ask(lambda system: list(self._files(system, folder)))

    def probe(self) -> None:
        """Sees whether the store answers and lets us in.

        Raises:
            StoreUnavailable, StoreRefuses: as `open`.
        """
        asked = time.monotonic()
        with self._probing:
            if self._answered >= asked:  # others were told so while we waited for our turn
                return
            self._raise_trouble()
            asked = time.monotonic()
            try:
                system = self._opened()
                system.invalidate_cache()
                system.info(self._base)
            except Exception as error:
                if not self._is_empty(error):
                    self._trouble = self._explained(error)
                    self._trouble_until = time.monotonic() + _REMEMBERED_SECONDS
                    raise self._trouble from None
            self._trouble = None
            self._answered = asked
            if self._kind_logged is not None:
                self._kind_logged = None
                _log.info("store.answers", store=str(self.root))

    def close(self) -> None:
        """Ends the connections."""
        with self._opening:
            self._system = None  # s3fs and gcsfs close theirs with it

    def ask(self, question: Callable[[Any], _T]) -> _T:
        """Has the library answer something; what fails is an OSError, or the store's fault.

        Raises:
            ServiceError, OSError: as the question does, or as `open`.
        """
        self._raise_trouble()
        try:
            return question(self._opened())
        except ServiceError:
            raise
        except Exception as error:
            self.probe()
            # The store answers: this one thing is what is wrong.
            raise _as_os_error(error) from None

    def _raise_trouble(self) -> None:
        """Those who come while it is known to be away need not find out each for himself."""
        trouble = self._trouble
        if trouble is not None and time.monotonic() < self._trouble_until:
            raise trouble.with_traceback(None)

    def _opened(self) -> Any:
        with self._opening:
            if self._system is None:
                import fsspec

                # The one place where an address chooses what runs: this one is a setting.
                self._system, base = fsspec.url_to_fs(
                    str(self.root), skip_instance_cache=True, **_options(self.root.protocol)
                )
                if self.root.protocol in _AWS:
                    self._system.retries = _ATTEMPTS
                self._base = base.rstrip("/")
            return self._system

    def _path(self, address: PhotoAddress) -> str:
        """What the library calls an address below the root."""
        if not self.root.holds(address):
            raise AssertionError(f"{address} does not lie in {self.root}")
        return self._base + address.path[len(self.root.path) :]

    def _files(self, system: Any, folder: PhotoAddress) -> Iterator[FoundPhoto]:
        path = self._path(folder)
        system.invalidate_cache()
        for name, info in _walk(system, path):
            if name == path:
                raise NotADirectoryError(errno.ENOTDIR, "this is a file")
            # A name that ends in a slash is how some tools note a folder.
            if not name.startswith(f"{path}/") or name.endswith("/"):
                continue
            text = f"{folder}{name[len(path) :]}"
            try:
                address = PhotoAddress.parse(text)
            except ValueError as problem:
                yield FoundPhoto(text, problem=f"{problem}: rename it")
            else:
                yield _found(address, info)

    def _is_empty(self, error: Exception) -> bool:
        """Whether the store has answered that nothing lies at its address, as may well be."""
        return (
            isinstance(error, FileNotFoundError)
            and "/" in self.root.path  # else it is the bucket that is missing
            and _code(error) != "NoSuchBucket"
        )

    def _explained(self, error: Exception) -> StoreUnavailable | StoreRefuses:
        """What clients are told, who need not know where the store is; the log has the rest."""
        kind = _kind(error)
        if kind != self._kind_logged:  # who waits for the store asks every few seconds
            self._kind_logged = kind
            _log.warning("store.failed", store=str(self.root), kind=kind, reason=_reason(error))
        if isinstance(error, FileNotFoundError):
            return StoreRefuses(
                f"{self.name} does not exist: see ALLOWED_ROOTS and DATA_PATH, and which server the"
                " service's environment names for it"
            )
        if _is_refusal(error):
            return StoreRefuses(
                f"{self.name} refuses this service ({kind}): have its operator see to the"
                " credentials in the service's environment, and to what they allow, and start it"
                " again; the log says more"
            )
        return StoreUnavailable(
            self.name,
            f"{self.name} does not answer ({kind}): try again when it does; the log says more",
            self.probe,
        )


def _options(protocol: str) -> dict[str, Any]:
    """What a library is told beside what its environment says, which goes first."""
    if protocol not in _EXTRAS:
        return {}
    options: dict[str, Any] = {"use_listings_cache": False}  # a photo may come at any moment
    if protocol in _AWS:
        from fsspec.config import conf

        chosen = {**conf.get("s3", {}), **conf.get("s3a", {})}.get("config_kwargs", {})
        options["config_kwargs"] = {
            "connect_timeout": _CONNECT_SECONDS,
            "read_timeout": _READ_SECONDS,
            "retries": {"mode": "standard", "total_max_attempts": _ATTEMPTS},
            "max_pool_connections": 64,
            **chosen,
        }
    return options


def _walk(system: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every file below, by its name. Buckets are listed flat: a page of it is a thousand files."""
    from fsspec.asyn import AsyncFileSystem

    if isinstance(system, AsyncFileSystem) and type(system)._find is not AsyncFileSystem._find:
        yield from system.find(path, detail=True).items()
        return
    # Not `find`: it passes over folders that cannot be listed, as if they were empty.
    for _, _, files in system.walk(path, detail=True, on_error="raise"):
        for info in files.values():
            yield info["name"], info


def _found(address: PhotoAddress, info: Mapping[str, Any]) -> FoundPhoto:
    if info.get("type") != "file":
        raise InvalidImage("this is no regular file")
    return FoundPhoto(str(address), int(info.get("size") or 0), _written(info))


def _written(info: Mapping[str, Any]) -> int:
    """When a file was written, in nanoseconds since 1970, or what tells as much.

    Most stores know whole seconds. The fraction is then made of the store's own tag of the bytes,
    which tells apart what was written within one second. Where nobody knows anything it is now:
    whether the file has changed is seen when it is read.
    """
    written = next((stamp for name in _TIMES if (stamp := _nanoseconds(info.get(name)))), None)
    tag = next((str(info[name]) for name in _TAGS if info.get(name)), None)
    if tag is not None:
        # Listings and single files may be told in different fractions of a second.
        digest = hashlib.sha256(tag.encode()).digest()
        return (written or 0) // 10**9 * 10**9 + int.from_bytes(digest[:4]) % 10**9
    return time.time_ns() if written is None else written


def _nanoseconds(value: Any) -> int | None:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if isinstance(value, datetime):
        value = value.timestamp()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return int(value * 10**9) if value > 0 else None
    return None


def _code(error: BaseException) -> str:
    """What a store has answered, as botocore or an HTTP client tell it."""
    for each in (error, error.__cause__):
        response = getattr(each, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        for name in ("code", "status"):
            if isinstance(value := getattr(each, name, None), int | str):
                return str(value)
    return ""


def _is_refusal(error: Exception) -> bool:
    """Whether the store answers, and asking again as we do would not help."""
    return (
        isinstance(error, PermissionError | ValueError | TypeError)
        or (isinstance(error, OSError) and error.errno == errno.EINVAL)
        or "Credential" in type(error).__name__
        or type(error).__name__ in _MISTAKES
        or _code(error) in ("401", "403")
    )


def _as_os_error(error: Exception) -> OSError:
    """What is wrong with one photo, in our words."""
    if isinstance(error, NotADirectoryError):
        return error
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, "there is no such photo in the store any more")
    if isinstance(error, PermissionError):
        return PermissionError(errno.EACCES, "the store does not let this service read it")
    _log.warning("store.photo_not_read", kind=_kind(error), reason=_reason(error))
    return OSError(errno.EIO, f"the store has not given all of it ({_kind(error)}): try again")


def _kind(error: Exception) -> str:
    code = _code(error)
    return f"{type(error).__name__} {code}".strip() if code.isalnum() else type(error).__name__


def _reason(error: Exception) -> str:
    """What a library says, in one line and without secrets."""
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
    for secret in _secrets():
        text = text.replace(secret, "***")
    text = printable(_QUERY.sub("?…", without_credentials(text)))
    return text if len(text) <= _MAX_REASON else f"{text[:_MAX_REASON]}…"


def _secrets() -> set[str]:
    """Texts of the environment, and of fsspec's configuration, that nobody is to see."""
    from fsspec.config import conf

    return set(_secret_values([os.environ, conf]))


def _secret_values(values: Iterable[Any], *, secret: bool = False) -> Iterator[str]:
    for value in values:
        if isinstance(value, str):
            if secret and len(value) >= _MIN_SECRET:
                yield value
        elif isinstance(value, Mapping):
            for name, below in value.items():
                is_secret = secret or _SECRET.search(str(name)) is not None
                yield from _secret_values([below], secret=is_secret)
