"""Server-side request forgery: having the service fetch what only it can reach."""

import time
from functools import partial
from typing import Final
from urllib.parse import quote

from tests.attacks.cases import Attacks
from tests.attacks.target import Target

__all__ = ["ATTACKS"]

ATTACKS: Final = Attacks("server-side request forgery")
_REFUSED: Final = (400, 403, 415, 422)
"""Statuses of a server that has not even tried."""


def _heard(url: str, target: Target) -> bool:
    """Whether the internal server hears of it."""
    word = f"word-{time.monotonic_ns()}"
    sent = url.replace("{port}", str(target.canary.port)).replace("{word}", word)
    target.post(f"/img/upload?table_name=fetched&url={quote(sent, safe='')}")
    return target.canary.heard(word)


_HEARD: Final = (
    ("loopback", "http://127.0.0.1:{port}/{word}.jpg"),
    ("loopback's name", "http://localhost:{port}/{word}.jpg"),
    ("loopback's name with a dot", "http://localhost.:{port}/{word}.jpg"),
    ("loopback's name in capitals", "http://LocalHost:{port}/{word}.jpg"),
    ("IPv6 loopback", "http://[::1]:{port}/{word}.jpg"),
    ("IPv6 loopback in full", "http://[0:0:0:0:0:0:0:1]:{port}/{word}.jpg"),
    ("IPv4 mapped into IPv6", "http://[::ffff:127.0.0.1]:{port}/{word}.jpg"),
    ("IPv4 mapped, in hexadecimal", "http://[::ffff:7f00:1]:{port}/{word}.jpg"),
    ("address left out", "http://0:{port}/{word}.jpg"),
    ("unspecified address", "http://0.0.0.0:{port}/{word}.jpg"),
    ("unspecified IPv6 address", "http://[::]:{port}/{word}.jpg"),
    ("short address", "http://127.1:{port}/{word}.jpg"),
    ("decimal address", "http://2130706433:{port}/{word}.jpg"),
    ("hexadecimal address", "http://0x7f000001:{port}/{word}.jpg"),
    ("hexadecimal parts", "http://0x7f.0.0.0x1:{port}/{word}.jpg"),
    ("octal address", "http://0177.0.0.1:{port}/{word}.jpg"),
    ("octal number", "http://017700000001:{port}/{word}.jpg"),
    ("fullwidth digits", "http://１２７.０.０.１:{port}/{word}.jpg"),  # noqa: RUF001
    ("digits in circles", "http://①②⑦.⓪.⓪.①:{port}/{word}.jpg"),
    ("encoded address", "http://%31%32%37.0.0.1:{port}/{word}.jpg"),
    ("user before the host", "http://example.com@127.0.0.1:{port}/{word}.jpg"),
    ("user and password", "http://example.com:80@127.0.0.1:{port}/{word}.jpg"),
    ("backslash before the host", "http:\\\\127.0.0.1:{port}\\{word}.jpg"),
    ("scheme in capitals", "HTTP://127.0.0.1:{port}/{word}.jpg"),
    ("spaces around", " http://127.0.0.1:{port}/{word}.jpg "),
    ("no scheme", "//127.0.0.1:{port}/{word}.jpg"),
    ("Gopher", "gopher://127.0.0.1:{port}/{word}.jpg"),
    ("dict", "dict://127.0.0.1:{port}/{word}.jpg"),
    ("web socket", "ws://127.0.0.1:{port}/{word}.jpg"),
    # The first hop is allowed by the settings of the service under attack.
    ("redirect", "http://127.0.0.5:{port}/to/http://127.0.0.1:{port}/{word}.jpg"),
    ("redirect to a name", "http://127.0.0.5:{port}/to/http://localhost:{port}/{word}.jpg"),
    ("redirect to IPv6", "http://127.0.0.5:{port}/to/http://[::1]:{port}/{word}.jpg"),
    ("redirect to a number", "http://127.0.0.5:{port}/to/http://2130706433:{port}/{word}.jpg"),
    ("redirect without a scheme", "http://127.0.0.5:{port}/to///127.0.0.1:{port}/{word}.jpg"),
    (
        "redirect after a redirect",
        "http://127.0.0.5:{port}/to/http://127.0.0.5:{port}/to/http://127.0.0.1:{port}/{word}.jpg",
    ),
    ("neighbour of what is allowed", "http://127.0.0.4:{port}/{word}.jpg"),
)
for _name, _url in _HEARD:
    ATTACKS.add(f"fetch: {_name}", f"upload from {_url}", partial(_heard, _url))


def _tried(url: str, target: Target) -> bool:
    """Whether the server tries to reach an address that no client has any business with."""
    answer = target.post(f"/img/upload?table_name=fetched&url={quote(url, safe='')}")
    return answer.status not in _REFUSED


_TRIED: Final = (
    ("metadata of a cloud", "http://169.254.169.254/latest/meta-data/"),
    ("metadata of a cloud, mapped", "http://[::ffff:169.254.169.254]/latest/meta-data/"),
    ("metadata of a cloud by IPv6", "http://[fd00:ec2::254]/latest/meta-data/"),
    ("private network 10", "http://10.0.0.1/"),
    ("private network 172", "http://172.16.0.1/"),
    ("private network 192", "http://192.168.0.1/"),
    ("carrier's network", "http://100.64.0.1/"),
    ("broadcast", "http://255.255.255.255/"),
    ("multicast", "http://224.0.0.1/"),
    ("unique local IPv6", "http://[fc00::1]/"),
    ("link-local IPv6", "http://[fe80::1]/"),
    ("IPv4 behind NAT64", "http://[64:ff9b::7f00:1]/"),
    ("IPv4 behind 6to4", "http://[2002:7f00:1::]/"),
    ("IPv4-compatible IPv6", "http://[::127.0.0.1]/"),
)
for _name, _url in _TRIED:
    ATTACKS.add(f"reach: {_name}", f"upload from {_url}", partial(_tried, _url))


def _file(url: str, target: Target) -> bool:
    sent = url.replace("{secret}", str(target.world.secret))
    sent = sent.replace("{port}", str(target.canary.port))
    answer = target.post(f"/img/upload?table_name=fetched&url={quote(sent, safe='')}")
    return answer.done or answer.has_token()


_FILES: Final = (
    ("file", "file://{secret}"),
    ("file by a redirect", "http://127.0.0.5:{port}/to/file://{secret}"),
    ("data by a redirect", "http://127.0.0.5:{port}/to/data:text/plain,hello"),
    ("file on a host", "file://localhost{secret}"),
    ("data", "data:text/plain,hello"),
)
for _name, _url in _FILES:
    ATTACKS.add(f"scheme: {_name}", f"upload from {_url}", partial(_file, _url))


def _by_api(address: str, target: Target) -> bool:
    word = f"word-{time.monotonic_ns()}"
    url = f"http://127.0.0.1:{target.canary.port}/{word}.jpg"
    target.json(address, f'{{"url": "{url}"}}'.encode())
    return target.canary.heard(word)


for _address in ("/api/v1/images", "/api/v1/search", "/api/v1/detect"):
    ATTACKS.add(
        f"fetch: {_address}",
        f"POST {_address} with the URL of loopback",
        partial(_by_api, _address),
    )


def _scan(target: Target) -> bool:
    """Whether answers tell a host on which somebody listens from one on which nobody does."""
    told = set()
    for host in ("127.0.0.1", "127.0.0.2"):
        url = quote(f"http://{host}:{target.canary.port}/", safe="")
        answer = target.post(f"/img/upload?table_name=fetched&url={url}")
        told.add((answer.status, answer.text.replace(host, "HOST")))
    return len(told) > 1


ATTACKS.add("scan", "tell hosts of the server's network that listen from ones that do not", _scan)
