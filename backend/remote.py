"""Asks a running service for what a command cannot do beside it: exports and imports over HTTP."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, BinaryIO, Final

import aiohttp

from backend.errors import ServiceError

__all__ = ["fetch_export", "send_import"]

_CHUNK_BYTES: Final = 2**20
_KEY_VARIABLE: Final = "API_KEY"
"""A key of the service's; in the environment, since every user sees a command's arguments."""
_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, connect=30)
"""What is asked for takes as long as the collection is large."""


async def fetch_export(url: str, collection: str, file: BinaryIO, *, photos: bool) -> None:
    """Writes an export of the service's into a file.

    Raises:
        ServiceError: what the service says, or that it is not there.
    """
    path = f"/api/v1/collections/{collection}/export"
    async with _asked(url, "GET", path, params={"photos": str(photos).lower()}) as answer:
        async for chunk in answer.content.iter_chunked(_CHUNK_BYTES):
            await asyncio.to_thread(file.write, chunk)
        await asyncio.to_thread(_keep, file)


async def send_import(
    url: str, file: BinaryIO, collection: str, *, replace: bool
) -> dict[str, Any]:
    """Has the service import a file; returns what it says of that.

    Raises:
        ServiceError: what the service says, or that it is not there.
    """
    path = f"/api/v1/collections/{collection}/import"
    headers = {"Content-Type": "application/x-tar"}
    headers["Content-Length"] = str(os.fstat(file.fileno()).st_size)
    query = {"replace": str(replace).lower()}
    async with _asked(
        url, "POST", path, params=query, headers=headers, data=_chunks(file)
    ) as answer:
        body: dict[str, Any] = await answer.json()
    return body


async def _chunks(file: BinaryIO) -> AsyncIterator[bytes]:
    while chunk := await asyncio.to_thread(file.read, _CHUNK_BYTES):
        yield chunk


def _keep(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


@asynccontextmanager
async def _asked(
    url: str, method: str, path: str, *, headers: dict[str, str] | None = None, **options: Any
) -> AsyncIterator[aiohttp.ClientResponse]:
    headers = dict(headers or {})
    if key := os.environ.get(_KEY_VARIABLE):
        headers["Authorization"] = f"Bearer {key}"
    try:
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT) as client,
            client.request(method, url.rstrip("/") + path, headers=headers, **options) as answer,
        ):
            if answer.status != 200:
                raise ServiceError(f"the service at {url}: {await _reason(answer)}")
            yield answer
    except (aiohttp.ClientError, ValueError) as error:
        raise ServiceError(f"the service at {url} does not answer as it should: {error}") from None


async def _reason(answer: aiohttp.ClientResponse) -> str:
    try:
        body = await answer.json(content_type=None)
        return str(body["detail"])
    except (aiohttp.ClientError, ValueError, KeyError, TypeError):
        return f"{answer.status} {answer.reason}"
