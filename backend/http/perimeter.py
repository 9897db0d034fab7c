"""Who may call at all: by which name, from which page, how often. Before any key is looked at.

- By which name: a page whose name has been turned to our address (DNS rebinding) counts to its
  browser as ours, and only the `Host` header tells. A server that only this machine reaches goes by
  loopback's names; one on a network also by any address, since an address cannot be turned, and by
  its own name. Others are listed in ALLOWED_HOSTS.
- From which page: pages of the same host, on any port, and of ALLOWED_ORIGINS. Browsers name the
  origin of whatever changes something, and of what a page's code asks for; of the rest those that
  know Fetch Metadata say whether it is another's, and `Referer` whose. Programs say nothing. Any
  page may have a link to what shows something, none of another host to what is for admins.
- How often: RATE_LIMIT_ADDRESS, a network of 64 bits being one address of IPv6.
"""

import ipaddress
import math
import socket
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import hdrs, web

from backend.errors import Forbidden, Misdirected, RateLimited
from backend.hosts import is_address, is_loopback, read_host, read_origin
from backend.http.request_ids import ID_HEADER
from backend.rates import RateLimiter
from backend.settings import Settings

__all__ = [
    "PERIMETER",
    "Perimeter",
    "allow_other_origins",
    "answer_preflights",
    "limit_addresses",
    "refuse_other_hosts",
    "refuse_other_origins",
]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_PREFLIGHT_SECONDS: Final = "600"
"""How long a browser may remember a preflight's answer; Chromium's own limit is 7,200."""
_SAFE: Final = frozenset({"GET", "HEAD"})
_ALWAYS_ANSWERED: Final = "/healthz"
"""Costs nothing, and who asks for it ends a service that does not answer."""
_PREFIX_BITS: Final = 64


class Perimeter:
    """What the settings say of who may call, and how often they have."""

    def __init__(self, settings: Settings) -> None:
        own = socket.gethostname().lower()
        self._is_local = settings.is_local
        self._names = {own, f"{own}.local", *settings.allowed_hosts}
        self._origins = settings.origins
        self._proxies = settings.proxies
        self.per_address = RateLimiter(settings.requests_per_address)
        self.per_key = RateLimiter(settings.requests_per_key)

    def goes_by(self, request: web.Request) -> bool:
        """Whether the name that the request is to is the service's."""
        given = request.headers.getall(hdrs.HOST, [])
        if not given:
            # Programs alone; a browser always sends it.
            return request.version < (1, 1)
        host = read_host(given[0])
        if host is None or len(given) > 1:
            return False
        if is_loopback(host) or host in self._names:
            return True
        return not self._is_local and is_address(host)

    def is_foreign(self, request: web.Request, *, links: bool = True) -> bool:
        """Whether the request comes from a page of another host that is not listed.

        `links`: whether a page of anybody's may lead a browser there.
        """
        headers = request.headers
        if (origin := headers.get(hdrs.ORIGIN)) is not None:
            return not self.lets_call(origin, request)
        site = headers.get("Sec-Fetch-Site")
        referer = headers.get(hdrs.REFERER)
        if site in ("same-origin", "none"):
            return False
        if site is None:
            # A browser from before 2020, if any: it names what has sent a form.
            known = referer is None or (links and request.method in _SAFE)
            return not known and not self.lets_call(_origin_of(referer or ""), request)
        # A link that is followed shows something, and changes nothing.
        is_followed = (
            links
            and request.method in _SAFE
            and headers.get("Sec-Fetch-Mode") == "navigate"
            and headers.get("Sec-Fetch-Dest", "document") == "document"
        )
        return not is_followed and not self.lets_call(_origin_of(referer or ""), request)

    def lets_call(self, text: str, request: web.Request) -> bool:
        """Whether a page of that origin may call."""
        origin = read_origin(text)
        if origin is None:
            return False
        if origin in self._origins:
            return True
        ours = read_host(request.headers.get(hdrs.HOST, ""))
        if ours is None:
            return False
        return origin.host == ours or (is_loopback(origin.host) and is_loopback(ours))

    def client(self, request: web.Request) -> str:
        """The address that a request comes from; of what a trusted proxy passes on, its client's.

        X-Forwarded-For is believed from its end, as far as proxies are trusted that have written
        it: what stands before that anybody may have sent.
        """
        address = _address(request.remote or "")
        if address is None or not self._trusts(address):
            return str(address)
        hops = ",".join(request.headers.getall(hdrs.X_FORWARDED_FOR, [])).split(",")
        for hop in reversed(hops):
            before = _address(hop.strip())
            if before is None:
                break
            address = before
            if not self._trusts(address):
                break
        return str(address)

    def is_encrypted(self, request: web.Request) -> bool:
        """Whether the client speaks TLS, with us or with a trusted proxy."""
        peer = _address(request.remote or "")
        if peer is None or not self._trusts(peer):
            return request.secure
        return request.headers.get(hdrs.X_FORWARDED_PROTO, request.scheme) == "https"

    def _trusts(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        return any(address in network for network in self._proxies)


PERIMETER: Final = web.AppKey("perimeter", Perimeter)


@web.middleware
async def refuse_other_hosts(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuses requests to names that are not the service's."""
    if not request.app[PERIMETER].goes_by(request):
        raise Misdirected(
            "the service does not go by the name in the request's Host header: call it by its"
            " address, or have its operator list the name in ALLOWED_HOSTS"
        )
    return await handler(request)


@web.middleware
async def limit_addresses(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuses the requests of an address that has made too many."""
    perimeter = request.app[PERIMETER]
    if request.path != _ALWAYS_ANSWERED and perimeter.per_address.per_minute:
        check_rate(perimeter.per_address, _network(perimeter.client(request)), "address")
    return await handler(request)


def check_rate(limiter: RateLimiter, who: str, what: str) -> None:
    """Counts a request. Raises RateLimited where there have been too many."""
    seconds = math.ceil(limiter.take(who))
    if seconds:
        raise RateLimited(
            f"this {what} may make {limiter.per_minute} requests a minute: try again in"
            f" {seconds} s",
            seconds,
        )


@web.middleware
async def refuse_other_origins(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuses requests that pages of other hosts make: any page may send forms anywhere."""
    if request.app[PERIMETER].is_foreign(request):
        raise Forbidden(
            "pages of other hosts may not call this service: open its own page, call it from a"
            " program, or have its operator list the page's origin in ALLOWED_ORIGINS"
        )
    return await handler(request)


@web.middleware
async def answer_preflights(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answers a browser that asks whether a page of another origin may call (Fetch, 4.8)."""
    origin = request.headers.get(hdrs.ORIGIN)
    asked = request.headers.get("Access-Control-Request-Method")
    if request.method != "OPTIONS" or origin is None or asked is None:
        return await handler(request)
    if not request.app[PERIMETER].lets_call(origin, request):
        return await handler(request)  # and is refused
    return web.Response(
        status=204,
        headers={
            "Access-Control-Allow-Methods": "GET, HEAD, POST, DELETE",
            "Access-Control-Allow-Headers": request.headers.get(
                "Access-Control-Request-Headers", "Content-Type"
            ),
            "Access-Control-Max-Age": _PREFLIGHT_SECONDS,
        },
    )


async def allow_other_origins(request: web.Request, response: web.StreamResponse) -> None:
    """Lets pages that may call read what they are answered.

    Without cookies: such pages bear a key of their own. A signal rather than a middleware, since
    files are answered from the handler.
    """
    vary = response.headers.get(hdrs.VARY)
    response.headers[hdrs.VARY] = f"{vary}, Origin" if vary else "Origin"
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is not None:
        perimeter = request.app[PERIMETER]
        if perimeter.goes_by(request) and perimeter.lets_call(origin, request):
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = (
                f"{hdrs.LOCATION}, {hdrs.RETRY_AFTER}, {hdrs.WWW_AUTHENTICATE}, {ID_HEADER}"
            )


def _origin_of(url: str) -> str:
    scheme, mark, rest = url.partition("://")
    return f"{scheme}{mark}{rest.partition('/')[0]}"


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _network(address: str) -> str:
    """What counts as one address: who has one of IPv6 has 2^64."""
    if ":" not in address:
        return address
    return str(ipaddress.ip_network(f"{address.partition('%')[0]}/{_PREFIX_BITS}", strict=False))
