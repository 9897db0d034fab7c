"""What some number of objects takes: measured on a small catalog, computed from kept reports."""

import math
from pathlib import Path

import pytest

from benchmarks import scale


def test_what_a_catalog_s_rows_take_is_measured(tmp_path: Path) -> None:
    report = scale.measure(tmp_path, objects=500)
    assert "MariaDB" in report["mysql"]
    assert report["catalog"]["images"]["rows"] == 100
    assert report["catalog"]["objects"]["rows"] == 500
    for found in report["catalog"].values():
        assert found["bytes_a_row"] > 50


def test_the_document_has_the_tables_of_the_reports_that_are_kept() -> None:
    text = scale.DOCUMENT.read_text("utf-8")
    made = scale.tables(scale.read_results())
    assert scale.with_tables(text, made) == text, "run python -m benchmarks.scale --tables"


def test_memory_grows_with_vectors_and_their_dimensions() -> None:
    rows = [
        [cell.strip() for cell in line.strip("| \n").split("|")]
        for line in scale.tables(scale.read_results())["indexes"].splitlines()[2:]
    ]
    hnsw = {(row[0], row[1]): row[3] for row in rows if row[2].startswith("HNSW")}
    # 4 x 2048 bytes, 32 links of 4 bytes, and a little.
    assert (
        hnsw["1 billion", "2048"] == f"{1e9 * (8192 + 128 + 64 / math.log(16) + 8) / 2**40:.1f} TiB"
    )
    assert float(hnsw["1 billion", "512"].split()[0]) == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize(("dimensions", "size"), [(512, 4096), (100, 4096 / 6), (2048, 3 * 4096)])
def test_nodes_on_disk_lie_in_whole_sectors(dimensions: int, size: float) -> None:
    assert scale._vamana(dimensions) == size
