"""Fetches a photo that a client names by its URL."""

import asyncio
from collections.abc import Callable
from typing import Final

import aiohttp
import yarl

from backend.errors import BadGateway, Forbidden, InvalidInput, TooLarge

__all__ = ["PhotoFetcher"]

_TIMEOUT: Final = aiohttp.ClientTimeout(total=30, connect=5)
"""Seconds: a photo of 32 MiB at 10 Mbit/s takes 27."""
_MAX_REDIRECTS: Final = 5
_CHUNK_BYTES: Final = 2**16


class PhotoFetcher:
    """Downloads photos over HTTP and HTTPS, where the settings allow it."""

    def __init__(self, *, allowed: bool, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._session = aiohttp.ClientSession(timeout=_TIMEOUT) if allowed else None

    async def fetch(self, url: str, hold: Callable[[int], None] = lambda size: None) -> bytes:
        """The bytes behind a URL.

        `hold` is told of bytes that are in memory from now on; it may refuse.

        Raises:
            Forbidden: fetching is switched off.
            InvalidInput: this is no http or https URL.
            TooLarge: more than MAX_UPLOAD_BYTES.
            BadGateway: the other server cannot be reached, is too slow, or answers an error.
        """
        if self._session is None:
            raise Forbidden(
                "fetching photos by URL is off: upload the file, or start with URL_FETCH=true"
            )
        try:
            target = yarl.URL(url)
            usable = target.scheme in ("http", "https") and bool(target.host)
        except ValueError:  # also of a host's name that IDNA does not allow
            usable = False
        if not usable:
            raise InvalidInput(f"{url!r} is no http:// or https:// address of a photo")
        try:
            async with self._session.get(target, max_redirects=_MAX_REDIRECTS) as response:
                if response.status != 200:
                    raise BadGateway(f"{url} answers {response.status} {response.reason}")
                data = bytearray()
                async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                    hold(len(chunk))
                    data += chunk
                    if len(data) > self._max_bytes:
                        raise TooLarge(
                            f"the photo at {url} has more than the {self._max_bytes} bytes that"
                            " MAX_UPLOAD_BYTES allows"
                        )
                return bytes(data)
        except TimeoutError:
            raise BadGateway(
                f"{url} was not fetched in time: {_TIMEOUT.connect:.0f} s to connect,"
                f" {_TIMEOUT.total:.0f} s in all"
            ) from None
        except aiohttp.TooManyRedirects:
            raise BadGateway(f"{url} redirects more than {_MAX_REDIRECTS} times") from None
        except (aiohttp.ClientError, UnicodeError) as error:  # a host's name that is none
            raise BadGateway(f"{url} cannot be fetched: {error}") from None

    async def close(self) -> None:
        """Closes the connections."""
        if self._session is not None:
            await self._session.close()
            # aiohttp closes TLS transports on the loop's next turns.
            await asyncio.sleep(0)
