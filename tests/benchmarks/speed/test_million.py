"""A million objects: `grow`, which measures them, is tested with fewer, in test_growth."""

import json

from benchmarks.speed import million
from tests.service import REPOSITORY


def test_the_report_that_is_kept_is_told_in_rows() -> None:
    path = REPOSITORY / "benchmarks" / "results" / "speed_million.json"
    report = json.loads(path.read_text("utf-8"))["million"]
    assert report["objects"] == {"100k": 100_000, "1m": 1_000_000}
    assert report["errors"] == 0
    shown = {what: figure for what, figure, _ in million.rows(report)}
    assert shown["load at 1,000,000 over 100,000"] == f"{report['load_1m_over_100k']:.3f}"
    assert shown["until the index was built"] == f"{report['index_seconds']:.0f} s"
    assert any(what.startswith("Milvus server, 1,000,000 objects") for what in shown)
