"""`python -m backend load`: a folder again and again, and what has changed in it."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.forked import run_program
from tests.photos import draw_photo, encode, write_photos
from tests.service import AS_A_USER

_COUNTS = re.compile(r"event=load\.done .*?(total=.*)")


def _load(
    folder: Path, data_dir: Path, *flags: str, exit_code: int = 0, prefix: Sequence[str] = ()
) -> tuple[dict[str, int], str]:
    """Runs a load in a process of its own; returns its counts and what it printed."""
    arguments = ("load", str(folder), "--data-dir", str(data_dir), *flags)
    done = run_program(*arguments, timeout=120, prefix=prefix)
    assert done.returncode == exit_code, done.stderr
    counts = _COUNTS.search(done.stderr)
    pairs = [] if counts is None else [pair.split("=") for pair in counts[1].split()]
    return {name: int(value) for name, value in pairs}, done.stderr


def test_a_folder_loaded_again_is_left_as_it_is(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 20)
    first, _ = _load(tmp_path / "photos", tmp_path / "data")
    assert (first["indexed"], first["unchanged"]) == (20, 0)
    again, _ = _load(tmp_path / "photos", tmp_path / "data")
    assert (again["indexed"], again["unchanged"], again["objects"]) == (0, 20, 0)


def test_what_has_changed_is_picked_up_alone(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 6)
    nested = tmp_path / "photos" / "nested"
    write_photos(nested, 2, start=50)
    _load(tmp_path / "photos", tmp_path / "data")

    photos[0].write_bytes(encode(draw_photo(100)))  # changed
    photos[1].touch()  # another time, the same bytes
    photos[2].unlink()  # removed
    (nested / "added.png").write_bytes(encode(draw_photo(101), ".png"))
    counts, _ = _load(tmp_path / "photos", tmp_path / "data")
    assert counts["total"] == 8
    assert (counts["indexed"], counts["unchanged"], counts["removed"]) == (2, 6, 0)

    counts, printed = _load(tmp_path / "photos", tmp_path / "data", "--prune")
    assert (counts["indexed"], counts["unchanged"], counts["removed"]) == (0, 8, 1)
    assert "1 removed" in printed
    counts, _ = _load(tmp_path / "photos", tmp_path / "data", "--prune")
    assert (counts["unchanged"], counts["removed"]) == (8, 0)
    _assert_consistent(tmp_path / "data", photos=8)


def test_pruning_a_folder_touches_no_other(tmp_path: Path) -> None:
    [gone, _] = write_photos(tmp_path / "a", 2)
    write_photos(tmp_path / "a b", 2, start=10)
    for name in ("a", "a b"):
        _load(tmp_path / name, tmp_path / "data")
    gone.unlink()
    counts, _ = _load(tmp_path / "a", tmp_path / "data", "--prune")
    assert counts["removed"] == 1
    _assert_consistent(tmp_path / "data", photos=3)


def test_pruning_never_empties_a_folder_that_may_only_be_unmounted(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 2)
    _load(tmp_path / "photos", tmp_path / "data")
    for photo in photos:
        photo.unlink()
    _, printed = _load(tmp_path / "photos", tmp_path / "data", "--prune", exit_code=1)
    assert "holds no photo" in printed
    _assert_consistent(tmp_path / "data", photos=2, unreachable=2)


def test_pruning_keeps_what_lies_in_a_folder_that_cannot_be_listed(tmp_path: Path) -> None:
    [gone, _] = write_photos(tmp_path / "photos", 2)
    closed = tmp_path / "photos" / "closed"
    write_photos(closed, 2, start=10)
    _load(tmp_path / "photos", tmp_path / "data")
    gone.unlink()
    closed.chmod(0)
    try:
        counts, printed = _load(tmp_path / "photos", tmp_path / "data", "--prune", prefix=AS_A_USER)
    finally:
        closed.chmod(0o700)
    assert (counts["total"], counts["removed"]) == (1, 1)
    assert f"folder={closed} " in printed
    _assert_consistent(tmp_path / "data", photos=3)


def test_failures_are_listed_with_their_reasons_and_tried_again(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 2)
    bad = tmp_path / "photos" / "bad.jpg"
    bad.write_bytes(b"no photo")
    counts, printed = _load(tmp_path / "photos", tmp_path / "data", exit_code=1)
    assert (counts["indexed"], counts["failed"]) == (2, 1)
    assert f"1 photos failed:\n  {bad}: the content is no image that can be read" in printed
    counts, _ = _load(tmp_path / "photos", tmp_path / "data", exit_code=1)
    assert (counts["unchanged"], counts["failed"]) == (2, 1)
    bad.write_bytes(encode(draw_photo(9)))
    counts, _ = _load(tmp_path / "photos", tmp_path / "data")
    assert (counts["unchanged"], counts["indexed"], counts["failed"]) == (2, 1, 0)


@pytest.mark.parametrize("missing", ["nowhere", "nowhere/at all"])
def test_a_folder_that_does_not_exist_is_an_error_of_one_line(tmp_path: Path, missing: str) -> None:
    _, printed = _load(tmp_path / missing, tmp_path / "data", exit_code=1)
    assert printed.splitlines()[-1].startswith("error: the folder")


def _assert_consistent(data_dir: Path, *, photos: int, unreachable: int = 0) -> None:
    done = run_program("check", "--json", "--data-dir", str(data_dir), timeout=60)
    assert done.returncode == 0, done.stderr
    [collection] = json.loads(done.stdout)["collections"]
    assert collection["photos"] == photos
    assert collection["gone"] == []
    assert len(collection["unreachable"]) == unreachable
    assert collection["missing"] == collection["orphaned"] == []
