"""The error tree. Each class carries the HTTP status that it becomes.

    ServiceError                 500
    ├── VectorsLost              500  a collection's vectors are not where they should be
    ├── InvalidInput             400  a value that the caller sent is not usable
    │   └── InvalidImage         400  bytes that are no readable photo
    ├── Unauthorized             401  no API key, or none that is good
    ├── Forbidden                403  the operator has switched this off, or lets others alone do it
    │   └── InsufficientScope    403  the API key is for other things
    ├── NotFound                 404
    ├── TooSlow                  408  a body that does not come in
    ├── Conflict                 409  something else was asked for at the same time
    │   └── EmbedderMismatch     409  a collection was filled by another embedder
    ├── TooLarge                 413  more bytes or pixels than allowed
    ├── UnsupportedFormat        415  an image, but of a format that is not read
    ├── UnsupportedMediaType     415  a body of another kind than the endpoint takes
    ├── RangeNotSatisfiable      416  bytes that lie behind a file's end
    ├── Misdirected              421  a request to a name that is not the service's
    ├── IdempotencyKeyReused     422  a key that belongs to another request
    ├── Overloaded               429  too much to do already; asking again later helps
    │   └── RateLimited          429  this client has asked for too much already
    ├── BadGateway               502  a server that the caller pointed to misbehaved
    ├── StoreRefuses             502  a store of photos that answers, and does not let us in
    ├── Unavailable              503  not now: the service is starting or stopping
    │   ├── OutOfProcesses       503  the machine has none to give
    │   ├── EngineGone           503  an engine has been away for as long as anybody waits
    │   └── EngineUnavailable    503  an engine does not answer, or cannot do what it is asked
    │       ├── StillWriting     503  it works, and is not done with what was begun before
    │       └── StoreUnavailable 503  a store of photos that does not answer
    └── InsufficientStorage      507  what was sent, or asked for, would fill the disk
    ConfigurationError           settings or models that cannot work; never over HTTP, exit code 2

Messages are sentences for the caller: what was wrong, with which value, and what to do next.
"""

from collections.abc import Callable
from typing import ClassVar, Final

__all__ = [
    "BadGateway",
    "ConfigurationError",
    "Conflict",
    "EmbedderMismatch",
    "EngineGone",
    "EngineUnavailable",
    "Forbidden",
    "InsufficientScope",
    "InsufficientStorage",
    "InvalidImage",
    "InvalidInput",
    "Misdirected",
    "NotFound",
    "IdempotencyKeyReused",
    "Overloaded",
    "RangeNotSatisfiable",
    "RateLimited",
    "ServiceError",
    "StillWriting",
    "StoreRefuses",
    "StoreUnavailable",
    "TooLarge",
    "TooSlow",
    "Unauthorized",
    "Unavailable",
    "UnsupportedFormat",
    "UnsupportedMediaType",
    "VectorsLost",
]


class ServiceError(Exception):
    """Base of all errors that a client is told about."""

    status: ClassVar[int] = 500


class VectorsLost(ServiceError):
    """The vector engine does not have a collection of the catalog's; waiting does not help."""

    def __init__(self, engine: str, collection: str) -> None:
        super().__init__(
            f"{engine} has no vectors of collection {collection!r}: see that the settings lead to"
            " the engine that has; if they are lost, python -m backend check --repair makes them"
            " anew"
        )


class InvalidInput(ServiceError, ValueError):
    """A parameter, body or path that the caller can correct."""

    status = 400


class InvalidImage(InvalidInput):
    """Bytes that are not a readable photo: empty, truncated, damaged, or no image at all."""


class Unauthorized(ServiceError):
    """A request without an API key, or with one that is not good."""

    status = 401

    def __init__(self, message: str, challenge: str) -> None:
        """`challenge`: for the header `WWW-Authenticate`."""
        super().__init__(message)
        self.challenge = challenge


class NotFound(ServiceError):
    """Something named by the caller does not exist."""

    status = 404


class Forbidden(ServiceError):
    """Something that the settings, or the caller's API key, do not allow."""

    status = 403


class InsufficientScope(Forbidden):
    """A request that its API key is not made for."""

    def __init__(self, message: str, challenge: str) -> None:
        """`challenge`: for the header `WWW-Authenticate`."""
        super().__init__(message)
        self.challenge = challenge


class TooSlow(ServiceError):
    """A body that has not come in within the time that the settings allow."""

    status = 408


class Conflict(ServiceError):
    """What was asked for cannot be had together with what else is there or going on."""

    status = 409


class EmbedderMismatch(Conflict):
    """A collection holds vectors of another embedder: distances between them mean nothing."""


class TooLarge(ServiceError):
    """A photo of more bytes or pixels than the settings allow."""

    status = 413


class UnsupportedFormat(ServiceError):
    """A recognisable image of a format that this program does not read."""

    status = 415


class UnsupportedMediaType(ServiceError):
    """A body of a kind that the endpoint does not take."""

    status = 415


class RangeNotSatisfiable(ServiceError):
    """Bytes of a file that it does not have."""

    status = 416

    def __init__(self, size: int) -> None:
        """`size`: how many bytes there are."""
        super().__init__(f"the file has {size} bytes, none of them in the range that is asked for")
        self.size = size


class Misdirected(ServiceError):
    """A request to a name that the service does not go by."""

    status = 421


class IdempotencyKeyReused(ServiceError):
    """An Idempotency-Key that came with another request before."""

    status = 422


class Overloaded(ServiceError):
    """The service has as much to do as it takes on at once; nothing of the request was done."""

    status = 429

    def __init__(self, message: str, retry_after: int) -> None:
        """`retry_after`: whole seconds, for the header `Retry-After`."""
        super().__init__(message)
        self.retry_after = retry_after


class RateLimited(Overloaded):
    """A client has made as many requests as it may for now; nothing of this one was done."""


class BadGateway(ServiceError):
    """A photo's URL could not be fetched."""

    status = 502


class StoreRefuses(ServiceError):
    """A store of photos that answers, and refuses us as a whole; waiting does not help."""

    status = 502


class Unavailable(ServiceError):
    """The service is starting or stopping; the same request may be tried again."""

    status = 503
    retry_after: Final = 5
    """Seconds after which trying again makes sense, for the header `Retry-After`."""


class OutOfProcesses(Unavailable):
    """The machine has no process, or no memory for one, to give at the moment."""


class EngineUnavailable(Unavailable):
    """An engine does not answer, answers too late, or says that it cannot at the moment.

    What has been asked of it may or may not have been done. Waiting and asking again is right.
    """

    def __init__(self, engine: str, message: str) -> None:
        """`engine` as people call it: Triton, Milvus, MySQL, Milvus Lite, SQLite."""
        super().__init__(message)
        self.engine = engine


class StillWriting(EngineUnavailable):
    """An engine that works, and is not done with what was begun in one collection before."""


class EngineGone(Unavailable):
    """An engine that has been away for as long as anybody waits: no photo is to blame."""


class StoreUnavailable(EngineUnavailable):
    """A store of photos that does not answer: no fault of the photo's that was asked for."""

    def __init__(self, store: str, message: str, probe: Callable[[], None]) -> None:
        """`probe` blocks; it raises this again for as long as the store does not answer."""
        super().__init__(store, message)
        self.probe = probe


class InsufficientStorage(ServiceError):
    """A disk has no room for what is to be written to it, and for what is kept free."""

    status = 507


class ConfigurationError(Exception):
    """Settings, models or stored data that contradict each other, found at start."""
