"""Names and addresses of machines, as `Host` and `Origin` headers and settings write them."""

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

__all__ = ["Origin", "is_address", "is_loopback", "read_host", "read_origin"]

_HOST: Final = re.compile(r"(\[[0-9a-fA-F:.]+\]|[a-zA-Z0-9._-]+)(?::([0-9]{1,5}))?", re.ASCII)
_ORIGIN: Final = re.compile(r"(https?)://([^/?#@\\]+)", re.IGNORECASE)
_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Origin:
    """Where a page comes from: scheme, host as `read_host` gives it, port."""

    scheme: str
    host: str
    port: int


def read_host(text: str) -> str | None:
    """The name or address of a `Host` header, in one way of writing; None where it is none."""
    found = _HOST.fullmatch(text)
    return None if found is None else _plain(found[1])


def read_origin(text: str) -> Origin | None:
    """An `Origin` header; None where it is none, such as `null`."""
    found = _ORIGIN.fullmatch(text)
    host = None if found is None else _HOST.fullmatch(found[2])
    if found is None or host is None:
        return None
    scheme = found[1].lower()
    name = _plain(host[1])
    return None if name is None else Origin(scheme, name, int(host[2] or _PORTS[scheme]))


def _plain(host: str) -> str | None:
    if not host.startswith("["):
        # A dot at the end says that the name is whole, as it is without.
        return host.lower().removesuffix(".") or None
    try:
        address = ipaddress.IPv6Address(host[1:-1])
    except ValueError:
        return None
    return str(address.ipv4_mapped or address)


def is_address(host: str) -> bool:
    """Whether it is an address, not a name: no server of names has had a say in it."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether it is this machine and reached from no other."""
    if is_address(host):
        return ipaddress.ip_address(host).is_loopback
    name = host.lower()
    return name == "localhost" or name.endswith(".localhost")  # RFC 6761, 6.3
