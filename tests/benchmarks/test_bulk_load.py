"""Bulk loads beside an ordinary one, of drawn photos: what comes of them is the same."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from benchmarks.bulk_load import Way, compare_loads, render
from tests.photos import write_photos

_PHOTOS: Final = 200
"""So many that a load is not over when it is to be killed."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photos, one file that is none, and one twice."""
    found = tmp_path / "photos"
    first, *_ = write_photos(found, _PHOTOS)
    (found / "bad.jpg").write_bytes(b"no photo")
    (found / "again.jpg").write_bytes(first.read_bytes())
    return found


def _check(found: Mapping[str, Any], way: Way) -> None:
    ordinary, bulk = found["ordinary"], found[way.replace(" ", "_")]
    assert (ordinary["photos"], ordinary["failed"]) == (_PHOTOS + 2, 1)
    for name in ("photos", "failed", "objects"):
        assert bulk[name] == ordinary[name] > 0
    assert bulk["rows_that_differ"] == 0
    assert bulk["largest_difference_of_vectors"] <= 1e-5
    assert (bulk["vectors_missing"], bulk["vectors_of_nobody"]) == (0, 0)


def test_an_actor_that_is_killed_makes_no_difference(folder: Path, tmp_path: Path) -> None:
    found = compare_loads(folder, tmp_path, {}, ["actor killed"])
    _check(found, "actor killed")
    assert render({"embedded": found}).row_count == 2


@pytest.mark.parametrize("combination", ["milvus+mysql"], indirect=True)
def test_a_load_that_is_killed_goes_on_where_it_was_and_milvus_imports_files(
    folder: Path, tmp_path: Path, engine_settings: Mapping[str, str]
) -> None:
    found = compare_loads(
        folder, tmp_path, engine_settings, ["killed"], commits=2, import_files=tmp_path / "import"
    )
    _check(found, "killed")
