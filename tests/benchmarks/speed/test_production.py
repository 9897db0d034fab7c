"""Loading with real servers beside the networks alone."""

from benchmarks.speed import production
from benchmarks.speed.bench import Bench


def test_a_load_with_servers_is_measured_beside_the_networks_alone(bench: Bench) -> None:
    report = production.measure(bench)
    least, most = report["spread"]["share_of_bare"]
    assert 0 < least <= report["share_of_bare"] <= most
    assert report["rounds"] == 2
    assert len(production.rows(report)) == 1
