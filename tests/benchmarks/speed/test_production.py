"""Loading with real servers beside the networks alone."""

from benchmarks.speed import production
from benchmarks.speed.bench import Bench


def test_a_load_with_servers_is_measured_beside_the_networks_alone(bench: Bench) -> None:
    report = production.measure(bench)
    least, most = report["spread"]["share_of_bare"]
    assert 0 < least <= report["share_of_bare"] <= most
    assert report["rounds"] == 2
    assert all(report["servers"].values())
    servers = {"triton", "milvus", "mysql"}
    assert servers | {"event_loop", "threads", "decoders"} <= report["cpu_ms_by"].keys()
    assert report["cpu_ms_by"]["triton"] > report["cpu_ms_by"]["mysql"] > 0
    assert report["search"]["errors"] == 0
    assert servers <= report["search"]["cpu_ms_32"].keys()
    assert len(production.rows(report)) == 3
