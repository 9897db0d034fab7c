"""Which connections NetworkPolicies allow, as Kubernetes documents it.

A pod that no policy of a direction selects is open in that direction; one that some select is open
to what any of them allows. A connection needs the consent of both ends that are pods here.
"""

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Address", "Pod", "allows"]


@dataclass(frozen=True)
class Pod:
    """A pod: its labels, its namespace, and that one's labels."""

    labels: Mapping[str, str]
    namespace: str
    namespace_labels: Mapping[str, str]


@dataclass(frozen=True)
class Address:
    """What is no pod."""

    ip: str


End = Pod | Address


def allows(policies: Iterable[Mapping[str, Any]], source: End, target: End, port: int) -> bool:
    """Whether a TCP connection from `source` to `target` may be made."""
    policies = list(policies)
    return _consents(policies, "Egress", source, target, port) and _consents(
        policies, "Ingress", target, source, port
    )


def _consents(
    policies: Sequence[Mapping[str, Any]], direction: str, own: End, other: End, port: int
) -> bool:
    if isinstance(own, Address):
        return True
    selecting = [
        policy["spec"]
        for policy in policies
        if policy["metadata"]["namespace"] == own.namespace
        and direction in policy["spec"]["policyTypes"]
        and _selects(policy["spec"]["podSelector"], own.labels)
    ]
    peers = "to" if direction == "Egress" else "from"
    return not selecting or any(
        _is_peer(rule.get(peers), other, own.namespace) and _is_port(rule.get("ports"), port)
        for spec in selecting
        for rule in spec.get(direction.lower(), ())
    )


def _is_peer(peers: Sequence[Mapping[str, Any]] | None, end: End, namespace: str) -> bool:
    return not peers or any(_matches(peer, end, namespace) for peer in peers)


def _matches(peer: Mapping[str, Any], end: End, namespace: str) -> bool:
    if isinstance(end, Address):
        block = peer.get("ipBlock")
        return block is not None and _is_within(end.ip, block)
    if "ipBlock" in peer:
        return False
    if "namespaceSelector" in peer:
        if not _selects(peer["namespaceSelector"], end.namespace_labels):
            return False
    elif end.namespace != namespace:
        return False
    return _selects(peer.get("podSelector", {}), end.labels)


def _is_within(ip: str, block: Mapping[str, Any]) -> bool:
    address = ipaddress.ip_address(ip)
    return address in ipaddress.ip_network(block["cidr"]) and not any(
        address in ipaddress.ip_network(each) for each in block.get("except", ())
    )


def _is_port(ports: Sequence[Mapping[str, Any]] | None, port: int) -> bool:
    return not ports or any(
        each.get("protocol", "TCP") == "TCP" and each["port"] == port for each in ports
    )


def _selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    for requirement in selector.get("matchExpressions", ()):
        assert requirement["operator"] == "In", requirement
        if labels.get(requirement["key"]) not in requirement["values"]:
            return False
    wanted: Mapping[str, str] = selector.get("matchLabels", {})
    return wanted.items() <= labels.items()
