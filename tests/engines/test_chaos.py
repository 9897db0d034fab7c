"""A few rounds of faults drawn at random; `python -m tests.chaos` runs as many as asked for."""

from pathlib import Path

import pytest

from tests.chaos import chaos_rounds


@pytest.mark.timeout(900)
def test_nothing_is_lost_doubled_or_wrong_whatever_engine_fails(tmp_path: Path) -> None:
    report = chaos_rounds(tmp_path, rounds=4, seed=20)
    assert sum(report.faults.values()) == 4
    assert report.searches > report.unavailable
