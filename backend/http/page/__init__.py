"""The web page at `/`: plain ES modules, HTML and CSS, served from memory.

Everything that the page needs lies in this package; it asks no other origin for anything, and its
Content-Security-Policy has the browser see to that.
"""

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

from aiohttp import ETag, hdrs, web

__all__ = ["add_page"]

_INDEX: Final = "index.html"
_TYPES: Final = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}
_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
        " img-src 'self' blob: data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none';"
        " require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    # A copy may be kept, but is asked for each time: after an update, no module meets an older one.
    "Cache-Control": "no-cache",
    "Vary": "Accept-Encoding",
}


@dataclass(frozen=True)
class _Asset:
    content_type: str
    plain: bytes
    compressed: bytes
    digest: str


def add_page(app: web.Application) -> None:
    """Adds `/` and `/page/NAME`, whose files are read here, once.

    The answers bear an ETag of their content and are compressed for whoever takes gzip.
    """
    assets = _read_assets()

    async def index(request: web.Request) -> web.Response:
        return _answer(request, assets[_INDEX])

    async def asset(request: web.Request) -> web.Response:
        found = assets.get(request.match_info["name"])
        if found is None:
            raise web.HTTPNotFound
        return _answer(request, found)

    app.router.add_get("/", index)
    app.router.add_get("/page/{name}", asset)


def _read_assets() -> Mapping[str, _Asset]:
    assets = {}
    for file in files(__name__).iterdir():
        suffix = file.name[file.name.rfind(".") :]
        if suffix in _TYPES:
            plain = file.read_bytes()
            assets[file.name] = _Asset(
                content_type=_TYPES[suffix],
                plain=plain,
                compressed=gzip.compress(plain, mtime=0),
                digest=hashlib.sha256(plain).hexdigest()[:32],
            )
    return assets


def _answer(request: web.Request, asset: _Asset) -> web.Response:
    packed = _takes_gzip(request.headers.get(hdrs.ACCEPT_ENCODING, ""))
    tag = f"{asset.digest}-gzip" if packed else asset.digest  # other bytes, another tag
    known = request.if_none_match
    if known is not None and any(each.value in (tag, "*") for each in known):
        response = web.Response(status=304, headers=_HEADERS)
    else:
        response = web.Response(
            body=asset.compressed if packed else asset.plain,
            content_type=asset.content_type,
            charset="utf-8",
            headers=_HEADERS,
        )
        if packed:
            response.headers[hdrs.CONTENT_ENCODING] = "gzip"
    response.etag = ETag(tag)
    return response


def _takes_gzip(accept_encoding: str) -> bool:
    """Whether `gzip`, or `*`, is listed with a weight above zero (RFC 9110, 12.5.3)."""
    weights = {}
    for item in accept_encoding.lower().split(","):
        coding, _, parameter = (part.strip() for part in item.partition(";"))
        weight = parameter.removeprefix("q=") if parameter else "1"
        try:
            weights[coding] = float(weight)
        except ValueError:
            weights[coding] = 0.0
    return weights.get("gzip", weights.get("*", 0.0)) > 0
