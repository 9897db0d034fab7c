"""Fetches a photo that a client names by its URL, from nowhere but where that is allowed.

A name is resolved once. Every address that it has is looked at, and only these are connected to:
who answers the next look-up of the name otherwise gains nothing. Whatever the addresses came from
(a name, a number in the URL, a redirect), each is looked at once more right before its connection
is made. Clients are told nothing that only somebody on this network can know: not whether a name is
unknown or leads to an address of its own, nor where a redirect leads.
"""

import asyncio
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Final, NoReturn

import aiohttp
import structlog
import yarl
from aiohttp import hdrs
from aiohttp.abc import AbstractResolver, ResolveResult

from backend.addresses import Address, Network, may_connect
from backend.errors import (
    BadGateway,
    Forbidden,
    InvalidImage,
    InvalidInput,
    Overloaded,
    TooLarge,
)
from backend.vision.decode import SNIFF_BYTES, sniff

__all__ = ["PhotoFetcher"]

_log = structlog.get_logger(__name__)

_SECONDS: Final = 30.0
"""Of a fetch in all, however its server goes about it: 32 MiB at 10 Mbit/s take 27."""
_CONNECT_SECONDS: Final = 5.0
_AT_ONCE: Final = 32
"""Fetches: each may hold a connection for all of its time."""
_LOOKUPS: Final = 8
"""Names that are resolved at a time, in threads of their own: an answer may never come, and the
threads that read files must not wait for it."""
_MAX_REDIRECTS: Final = 5
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_MAX_URL: Final = 8192
_SHOWN: Final = 200
"""Characters of a URL that a message repeats."""
_CHUNK_BYTES: Final = 2**16
_HEADERS: Final = {
    hdrs.ACCEPT: "image/*",
    # Photos are compressed already, and what is not decompressed cannot grow.
    hdrs.ACCEPT_ENCODING: "identity",
    hdrs.USER_AGENT: "image-similarity-search",
}
_BYTES: Final = frozenset({"application/octet-stream", "binary/octet-stream"})
"""Media types of servers that do not know what they serve; the second is S3's."""
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,253}")
_NUMBER: Final = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")

_NO_ADDRESS: Final = (
    "its host is not known, or leads to an address that is neither public nor in a network that"
    " URL_FETCH_NETWORKS names"
)
_REASONS: Final[dict[type[Exception], str]] = {
    aiohttp.ClientConnectorCertificateError: "its certificate is not trusted",
    aiohttp.ClientConnectorDNSError: _NO_ADDRESS,
    UnicodeError: _NO_ADDRESS,
    aiohttp.ClientConnectorError: "no connection to it can be made",
    aiohttp.ClientError: "it breaks off, or does not speak HTTP as it should",
}
"""What a client is told of an error of the first class that it is of."""


class _NotAllowed(OSError):
    """An address that must not be connected to; aiohttp goes on from an OSError to the next."""


class PhotoFetcher:
    """Downloads photos over HTTP and HTTPS, where the settings allow it."""

    def __init__(
        self,
        *,
        allowed: bool,
        max_bytes: int,
        networks: Sequence[Network] = (),
        ports: Iterable[tuple[int, int]] = ((80, 80), (443, 443)),
        seconds: float = _SECONDS,
    ) -> None:
        """Connects to nobody yet.

        Args:
            allowed: whether anything is fetched.
            max_bytes: of a photo.
            networks: that may be fetched from beside what is public.
            ports: that may be fetched from: ranges, from the first to the last.
            seconds: that a fetch may take.
        """
        self._max_bytes = max_bytes
        self._networks = tuple(networks)
        self._ports = tuple(ports)
        self._seconds = seconds
        self._fetches = 0
        self._session = self._open() if allowed else None

    def _open(self) -> aiohttp.ClientSession:
        self._resolver = _Resolver(self._allows)
        connector = aiohttp.TCPConnector(
            resolver=self._resolver,
            use_dns_cache=False,
            socket_factory=self._socket,
            force_close=True,
            limit=0,  # _AT_ONCE is the limit
        )
        return aiohttp.ClientSession(
            connector=connector,
            headers=_HEADERS,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,  # no proxies, no .netrc
        )

    async def fetch(self, url: str, hold: Callable[[int], None] = lambda size: None) -> bytes:
        """The bytes behind a URL.

        `hold` is told of bytes that are in memory from now on; it may refuse.

        Raises:
            Forbidden: fetching is switched off, or not allowed from that port or address.
            InvalidInput: this is no http or https URL.
            InvalidImage: what is there is no photo.
            TooLarge: more than MAX_UPLOAD_BYTES.
            BadGateway: the other server cannot be reached, is too slow, answers an error, or
                something else than a photo, or redirects to what may not be fetched.
            Overloaded: as much is fetched already as is at once.
        """
        if self._session is None:
            raise Forbidden(
                "fetching photos by URL is off: upload the file, or start with URL_FETCH=true"
            )
        target = self._check(url)
        shown = _shown(target)
        if self._fetches >= _AT_ONCE:
            raise Overloaded(
                f"{_AT_ONCE} photos are being fetched, and no more are at once: try again in"
                f" {_CONNECT_SECONDS:g} s",
                int(_CONNECT_SECONDS),
            )
        self._fetches += 1
        try:
            async with asyncio.timeout(self._seconds):
                with _explained(shown):
                    return await self._follow(self._session, target, shown, hold)
        except TimeoutError:
            raise BadGateway(
                f"{shown} was not fetched in time: {_CONNECT_SECONDS:g} s to connect,"
                f" {self._seconds:g} s in all"
            ) from None
        finally:
            self._fetches -= 1

    async def close(self) -> None:
        """Closes the connections."""
        if self._session is not None:
            await self._session.close()
            await self._resolver.close()
            # aiohttp closes TLS transports on the loop's next turns.
            await asyncio.sleep(0)

    # Where to

    def _check(self, text: str) -> yarl.URL:
        """The URL, where it is one that may be fetched, as far as can be told from its text."""
        try:
            if len(text) > _MAX_URL:
                raise ValueError
            url = yarl.URL(text)
            port, host = url.port, url.raw_host  # both may be refused only here
        except ValueError:  # also of a host's name that IDNA does not allow
            _refuse(text)
        if url.scheme not in ("http", "https") or not host or port is None:
            _refuse(text)
        if url.raw_user is not None or url.raw_password is not None:
            raise InvalidInput("a URL with a user or a password in it is not fetched: leave it out")
        address = _literal(host, text)
        if not any(low <= port <= high for low, high in self._ports):
            raise Forbidden(
                f"{_shown(url)}: nothing is fetched from port {port}: URL_FETCH_PORTS names those"
                " that are allowed"
            )
        if address is not None and not self._allows(address):
            raise Forbidden(
                f"{_shown(url)}: nothing is fetched from this address, which is not public: where"
                " it is to be, URL_FETCH_NETWORKS must name its network"
            )
        return url

    def _allows(self, address: Address) -> bool:
        return may_connect(address, self._networks)

    def _socket(self, info: aiohttp.AddrInfoType) -> socket.socket:
        """A socket for just this address: the last look at it."""
        family, kind, protocol, _, where = info
        if not self._allows(ip_address(where[0])):
            raise _NotAllowed("the address may not be connected to")
        return socket.socket(family, kind, protocol)

    # What comes

    async def _follow(
        self,
        session: aiohttp.ClientSession,
        target: yarl.URL,
        shown: str,
        hold: Callable[[int], None],
    ) -> bytes:
        for _ in range(_MAX_REDIRECTS + 1):
            async with session.get(target, allow_redirects=False) as response:
                if response.status not in _REDIRECTS:
                    return await self._read(response, shown, hold)
                location = response.headers.get(hdrs.LOCATION, "")
            target = self._redirected(target, location, shown)
        raise BadGateway(f"{shown} redirects more than {_MAX_REDIRECTS} times")

    def _redirected(self, source: yarl.URL, location: str, shown: str) -> yarl.URL:
        try:
            return self._check(str(source.join(yarl.URL(location))))
        except (InvalidInput, Forbidden, ValueError) as refused:
            _log.warning("fetch.not_redirected", url=shown, reason=str(refused))
            raise BadGateway(
                f"{shown} cannot be fetched: it redirects to what may not be"
            ) from None

    async def _read(
        self, response: aiohttp.ClientResponse, shown: str, hold: Callable[[int], None]
    ) -> bytes:
        if response.status != 200:
            raise BadGateway(f"{shown} answers {response.status}")
        if response.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
            raise BadGateway(f"{shown} answers with what is compressed, which was not asked for")
        if not (response.content_type.startswith("image/") or response.content_type in _BYTES):
            raise BadGateway(f"{shown} answers with something else than an image")
        data = bytearray()
        looked_at = False
        async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
            hold(len(chunk))
            data += chunk
            if len(data) > self._max_bytes:
                raise TooLarge(
                    f"the photo at {shown} has more than the {self._max_bytes} bytes that"
                    " MAX_UPLOAD_BYTES allows"
                )
            if not looked_at and len(data) >= SNIFF_BYTES:
                _check_photo(data, shown)
                looked_at = True
        if not looked_at:
            _check_photo(data, shown)
        return bytes(data)


class _Resolver(AbstractResolver):
    """Looks a name up as the system does, and gives out addresses that are allowed, all or none."""

    def __init__(self, allows: Callable[[Address], bool]) -> None:
        self._allows = allows
        self._threads = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="lookup")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """See `AbstractResolver.resolve`.

        Raises:
            OSError: there are none, or there is one that is not allowed.
        """
        found = await asyncio.get_running_loop().run_in_executor(
            self._threads, _look_up, host, port, family
        )
        if not found:
            raise _NotAllowed("the name has no address")
        for each in found:
            if not self._allows(ip_address(each["host"])):
                raise _NotAllowed(f"it leads to {each['host']}, which is not allowed")
        return found

    async def close(self) -> None:
        """Gives the threads up; one that waits for an answer ends with it."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _look_up(host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
    infos = socket.getaddrinfo(
        host, port, family, socket.SOCK_STREAM, socket.IPPROTO_TCP, socket.AI_ADDRCONFIG
    )
    return [
        ResolveResult(
            hostname=host,
            host=str(where[0]),  # with its zone, where it has one
            port=port,
            family=kind,
            proto=protocol,
            flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
        )
        for kind, _, protocol, _, where in infos
    ]


def _literal(host: str, text: str) -> Address | None:
    """The address that a host is written as; None of a name.

    Numbers that are not four decimal ones between dots (2130706433, 0x7f.1, 0177.0.0.1, 127.1) are
    read differently by whom one asks.
    """
    try:
        return ip_address(host)
    except ValueError:
        last = host.rstrip(".").rpartition(".")[2]
        if not _NAME.fullmatch(host) or _NUMBER.fullmatch(last):
            _refuse(text)
        return None


def _refuse(text: str) -> NoReturn:
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
    raise InvalidInput(f"{shown!r} is no http:// or https:// address of a photo") from None


def _shown(url: yarl.URL) -> str:
    """The URL for messages and the log: what is behind a ? may be a key to what it leads to."""
    text = str(url.with_query(None).with_fragment(None))
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _check_photo(data: bytearray, shown: str) -> None:
    if sniff(bytes(data[:SNIFF_BYTES])) is None:
        raise InvalidImage(f"what is at {shown} is no JPEG, PNG, WebP, BMP or TIFF")


@contextmanager
def _explained(shown: str) -> Iterator[None]:
    """Turns the client's errors into ours; their own words are for the log."""
    try:
        yield
    except (aiohttp.ClientError, UnicodeError) as error:  # the latter of a name that is none
        if isinstance(error, TimeoutError):
            raise
        _log.warning("fetch.failed", url=shown, reason=str(error))
        reason = next(reason for kind, reason in _REASONS.items() if isinstance(error, kind))
        raise BadGateway(f"{shown} cannot be fetched: {reason}") from None
