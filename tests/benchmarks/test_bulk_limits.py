"""What bounds a bulk load, of few photos and vectors."""

from pathlib import Path

from benchmarks.bulk_limits import measure_limits, render_limits


def test_what_bounds_a_load_is_measured(tmp_path: Path) -> None:
    found = measure_limits(320, 40, tmp_path)
    assert found["spread"]["photos"] == 320
    assert found["spread"]["photos_per_s"] > 0
    assert (found["files"]["vectors"], found["files"]["files"]) == (40, 1)
    assert found["files"]["vectors_per_s"] > 0
    assert render_limits({"limits": found}).row_count == 9
