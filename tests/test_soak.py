"""Twelve seconds of what `python -m tests.soak` does for a quarter of an hour."""

from pathlib import Path

from tests.soak import soak


def test_nothing_is_lost_and_nothing_leaks_under_everything_at_once(tmp_path: Path) -> None:
    report = soak(tmp_path, seconds=12, seed=20)
    for kind in ("search", "load", "upload", "delete", "drop", "nonsense", "gone", "fault"):
        assert report.done[kind] > 0, report.done
