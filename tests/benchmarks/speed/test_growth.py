"""Costs at growing sizes, of collections that are small."""

from benchmarks.speed import growth
from benchmarks.speed.bench import Bench


def test_the_report_has_a_row_for_each_size(bench: Bench) -> None:
    report = growth.measure(bench)
    assert report["objects"] == {"1k": 20, "10k": 100, "100k": 1000}
    assert report["errors"] == 0
    for row in report["sizes"].values():
        assert row["load_ms"] > 0
        assert 0 < row["vectors_ms"] < row["p99_ms"]
    for key in ("load_100k_over_1k", "search_100k_over_10k", "vectors_100k_over_10k"):
        least, most = report["spread"][key]
        assert 0 < least <= report[key] <= most
    assert len(growth.rows(report)) == 6
