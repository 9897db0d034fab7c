"""Costs at growing sizes of a Milvus server, of collections that are small."""

from benchmarks.speed import million
from benchmarks.speed.bench import Bench


def test_the_sizes_of_a_milvus_server_are_compared(bench: Bench) -> None:
    report = million.measure(bench)
    assert report["objects"] == {"100k": 1000, "1m": 10_000}
    assert report["errors"] == 0
    assert report["index_seconds"] > 0
    for row in report["sizes"].values():
        assert row["load_ms"] > 0
        assert 0 < row["vectors_ms"] < row["p99_ms"]
    for key in ("load_1m_over_100k", "search_1m_over_100k", "vectors_1m_over_100k"):
        least, most = report["spread"][key]
        assert 0 < least <= report[key] <= most
    assert len(million.rows(report)) == 6
    assert bench.lags.keys() == {"million-100k", "million-1m"}
