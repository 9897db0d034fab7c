"""Which addresses of a network are everybody's, and which are somebody's own.

What a service fetches for its clients it fetches from where it stands: behind the firewall, beside
the engines, on a machine of a cloud that hands out credentials to whoever asks from inside.
"""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, TypeAlias

__all__ = ["Address", "Network", "may_connect"]

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

_METADATA: Final[frozenset[Address]] = frozenset(
    {
        IPv4Address("169.254.169.254"),  # AWS, Azure, Google, and most others
        IPv4Address("169.254.170.2"),  # AWS, of containers
        IPv4Address("169.254.170.23"),
        IPv4Address("100.100.100.200"),  # Alibaba
        IPv4Address("168.63.129.16"),  # Azure's, a public one
        IPv4Address("192.0.0.192"),  # Oracle
        IPv6Address("fd00:ec2::254"),  # AWS
        IPv6Address("fd00:ec2::23"),
        IPv6Address("fd20:ce::254"),  # Google
        IPv6Address("fd00:c1::a9fe:a9fe"),  # Oracle
    }
)
"""Where clouds tell a machine who it is, and give it its credentials: never reached."""

_SPECIAL_V4: Final = tuple(
    map(
        IPv4Network,
        (
            *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
            *("172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24"),
            *("192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24"),
            *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
            *("224.0.0.0/4", "240.0.0.0/4"),  # multicast; reserved, and broadcast
        ),
    )
)
"""IANA's registry of special addresses, whole: `ipaddress` has changed its mind about some."""

_GLOBAL_V6: Final = IPv6Network("2000::/3")
"""All that is given out to networks; loopback, mapped, local and multicast lie outside."""
_SPECIAL_V6: Final = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # Teredo, benchmarks, ORCHID and other protocols'
            "2001:db8::/32",
            "2002::/16",  # 6to4
            "2620:4f:8000::/48",
            "3fff::/20",
        ),
    )
)
_NAT64: Final = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"))
_6TO4: Final = IPv6Network("2002::/16")
_TEREDO: Final = IPv6Network("2001::/32")
_ISATAP: Final = frozenset({0x0000_5EFE, 0x0200_5EFE})
_LOW: Final = 2**32 - 1


def may_connect(address: Address, allowed: Iterable[Network] = ()) -> bool:
    """Whether a connection that a client has asked for may go to this address.

    It may to what is public, and to the networks that are allowed besides, but in no case to a
    cloud's metadata. An IPv4 address within an IPv6 one counts as what it leads to; of all ways to
    put one there only that of NAT64, by which a network without IPv4 reaches what is public, is
    taken.
    """
    carried = _carried(address) if isinstance(address, IPv6Address) else []
    if not _METADATA.isdisjoint((address, *carried)):
        return False
    if getattr(address, "scope_id", None) is not None:
        return False
    if any(address in network for network in allowed):
        return True
    if isinstance(address, IPv6Address):
        if address not in _NAT64[0]:
            return address in _GLOBAL_V6 and not any(address in each for each in _SPECIAL_V6)
        [address] = carried
    return not any(address in network for network in _SPECIAL_V4)


def _carried(address: IPv6Address) -> list[IPv4Address]:
    """The IPv4 addresses that packets to this one may end at."""
    number = int(address)
    low = IPv4Address(number & _LOW)
    if number >> 48 == 0 or any(address in network for network in _NAT64):
        return [low]  # mapped, translated or compatible
    if address in _6TO4:
        return [IPv4Address(number >> 80 & _LOW)]
    if address in _TEREDO:
        return [IPv4Address(number >> 64 & _LOW), IPv4Address(~number & _LOW)]
    if number >> 32 & _LOW in _ISATAP:
        return [low]
    return []
