"""Searches beside the networks alone, a few of them."""

from benchmarks.speed import searching
from benchmarks.speed.bench import Bench


def test_the_report_has_latencies_and_ratios(bench: Bench) -> None:
    report = searching.measure(bench)
    assert report["objects"] == 400
    assert report["errors"] == 0
    assert list(report["latency"]) == ["1", "8", "32"]
    for row in (*report["latency"].values(), report["during_load"]):
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
    assert report["overhead_ms_p50"] < report["latency"]["1"]["p99_ms"]
    assert report["share_of_bare_32"] > 0
    assert report["p99_over_p50_32"] >= 1
    assert report["during_load_p95_over_quiet"] > 0
    parts = ["event_loop", "threads", "decoders", "vectors", "clients"]
    assert list(report["cpu_ms_32"]) == parts
    assert report["bare_cpu_ms"] > 0
    assert all(milliseconds >= 0 for milliseconds in report["cpu_ms_32"].values())
    assert set(report["stages_ms"]) == {"decode", "detect", "cut", "embed", "search", "lookup"}
    titles = [title for title, _, _ in searching.rows(report)]
    assert "search above bare, p50" in titles
