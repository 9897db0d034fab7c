"""Which addresses a connection may go to that a client has asked for."""

from ipaddress import ip_address, ip_network

import pytest

from backend.addresses import may_connect

PUBLIC = [
    *("1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0"),
    *("126.255.255.255", "128.0.0.0", "169.253.255.255", "169.255.0.0"),
    *("172.15.255.255", "172.32.0.0", "192.0.1.0", "192.167.255.255", "192.169.0.0"),
    *("198.17.255.255", "198.20.0.0", "223.255.255.255"),
    *("2000::", "2001:200::1", "2003::1", "2606:4700:4700::1111", "2a00:1450:4001:81b::200e"),
    *("3ffe::1", "64:ff9b::808:808"),
]
OWN = [
    *("0.0.0.0", "0.255.255.255", "10.0.0.0", "10.255.255.255", "100.64.0.0", "100.127.255.255"),
    *("127.0.0.0", "127.0.0.1", "127.255.255.255", "169.254.0.0", "169.254.255.255"),
    *("172.16.0.0", "172.31.255.255", "192.0.0.0", "192.0.0.9", "192.0.0.255", "192.0.2.1"),
    *("192.88.99.1", "192.168.0.0", "192.168.255.255", "198.18.0.0", "198.19.255.255"),
    *("198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1"),
    "255.255.255.255",
    *("::", "::1", "100::1", "fc00::1", "fdff::1", "fe80::1", "febf::1", "fec0::1", "ff02::1"),
    *("ff0e::1", "2001::1", "2001:2::1", "2001:20::1", "2001:db8::1", "3fff::1", "4000::1"),
    *("5f00::1", "1fff::1"),
]
METADATA = ["169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "fd00:ec2::254"]
EVERYTHING = [ip_network("0.0.0.0/0"), ip_network("::/0")]


@pytest.mark.parametrize("address", PUBLIC)
def test_what_is_public_may_be_connected_to(address: str) -> None:
    assert may_connect(ip_address(address))


@pytest.mark.parametrize("address", OWN)
def test_what_is_somebody_s_own_may_be_connected_to_only_where_its_network_is_named(
    address: str,
) -> None:
    found = ip_address(address)
    assert not may_connect(found)
    assert may_connect(found, [ip_network(address)])
    assert not may_connect(found, [ip_network("203.0.113.7"), ip_network("fd12:3456::/32")])


@pytest.mark.parametrize("address", METADATA)
def test_metadata_of_a_cloud_is_never_connected_to(address: str) -> None:
    found = ip_address(address)
    assert not may_connect(found)
    assert not may_connect(found, [ip_network(address), *EVERYTHING])


@pytest.mark.parametrize(
    "within",
    [
        "::ffff:{}",  # mapped
        "::{}",  # compatible
        "64:ff9b::{}",  # NAT64
        "64:ff9b:1::{}",
        "2a00:1450::5efe:{}",  # ISATAP
    ],
)
def test_metadata_is_not_connected_to_within_another_address(within: str) -> None:
    found = ip_address(within.format("169.254.169.254"))
    assert not may_connect(found)
    assert not may_connect(found, EVERYTHING)


@pytest.mark.parametrize(
    "address",
    [
        "2002:a9fe:a9fe::1",  # 6to4
        "2001:0:a9fe:a9fe::1",  # Teredo: its server
        "2001:0:102:304:0:0:5601:5601",  # and its client, each bit turned round
    ],
)
def test_metadata_is_not_connected_to_through_a_tunnel(address: str) -> None:
    assert not may_connect(ip_address(address))
    assert not may_connect(ip_address(address), EVERYTHING)


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "192.168.1.1", "0.0.0.0", "8.8.8.8"])
@pytest.mark.parametrize("within", ["::ffff:{}", "::{}", "64:ff9b:1::{}"])
def test_an_address_within_another_is_not_connected_to(within: str, address: str) -> None:
    assert not may_connect(ip_address(within.format(address)))


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "192.168.1.1", "0.0.0.0"])
def test_what_nat64_leads_to_is_what_counts(address: str) -> None:
    assert not may_connect(ip_address(f"64:ff9b::{address}"))


@pytest.mark.parametrize("address", ["2002:808:808::1", "2001:0:808:808::1"])
def test_a_tunnel_to_what_is_public_is_not_gone_through(address: str) -> None:
    assert not may_connect(ip_address(address))


def test_an_address_with_a_zone_is_of_this_machine_s_links() -> None:
    assert not may_connect(ip_address("2606:4700::1%eth0"))
    assert not may_connect(ip_address("fe80::1%eth0"), EVERYTHING)
