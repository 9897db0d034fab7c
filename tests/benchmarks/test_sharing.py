"""Three backends beside one, on a handful of drawn photos."""

from pathlib import Path

from benchmarks.sharing import measure, render
from tests.photos import write_photos


def test_the_report_says_what_three_reach_and_wait_for(tmp_path: Path) -> None:
    write_photos(tmp_path / "data" / "photos" / "images", 4)
    (tmp_path / "scratch").mkdir()
    report = measure(
        tmp_path / "data", tmp_path / "scratch", photos=40, rounds=1, log=lambda _: None
    )
    assert report["three_over_one"] > 0
    assert 0 <= report["row_locks"] < 1
    assert report["lease"] > 0
    assert report["turn"] > 0
    assert render(report).row_count == 4
