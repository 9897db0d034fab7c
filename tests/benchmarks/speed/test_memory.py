"""Memory and the event loop over a long load."""

import pytest

from benchmarks.speed import memory
from benchmarks.speed.bench import Bench


def test_memory_is_watched_from_the_first_photos_to_the_last(bench: Bench) -> None:
    report = memory.measure(bench)
    assert report["photos"] == 200
    first, most = report["service_mb"]
    assert most >= first > 50
    assert report["service_growth_mb"] == pytest.approx(most - first)
    assert 0 < report["loop_lag_p99_ms"] < 1000
    assert len(memory.rows(report)) == 2
