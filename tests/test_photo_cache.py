"""A folder that is kept below a size."""

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from backend.photo_cache import PhotoCache
from tests.limits import files_limited_to
from tests.service import REPOSITORY

NAME = re.compile(r"[0-9]+")
LIMIT = 1000


def _open(folder: Path, max_bytes: int = LIMIT) -> PhotoCache:
    return PhotoCache(folder, max_bytes=max_bytes, name=NAME)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the cache will be."""
    return tmp_path / "data" / "cache"


@pytest.fixture
def cache(folder: Path) -> PhotoCache:
    """Of LIMIT bytes, with nothing in it, and without a folder."""
    return _open(folder)


def _names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder), key=int)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_what_is_written_is_read(cache: PhotoCache, folder: Path) -> None:
    assert cache.read("1") is None
    assert cache.write("1", b"one")
    assert cache.write("1", b"other")
    assert cache.read("1") == b"other"
    assert cache.read("2") is None
    assert _names(folder) == ["1"]


def test_only_its_owner_may_read_a_file(cache: PhotoCache, folder: Path) -> None:
    cache.write("1", b"somebody's photo")
    assert (folder / "1").stat().st_mode & 0o777 == 0o600


def test_what_is_removed_is_gone_and_removing_it_again_is_fine(cache: PhotoCache) -> None:
    cache.write("1", b"one")
    cache.remove("1")
    cache.remove("1")
    assert cache.read("1") is None


@pytest.mark.parametrize("name", ["", "x", "../1", "1/2", "/1", "1\n", "1.part"])
def test_a_name_that_is_none_of_ours_is_a_mistake_in_the_program(
    cache: PhotoCache, name: str
) -> None:
    for use in (cache.read, cache.remove, lambda name: cache.write(name, b"")):
        with pytest.raises(ValueError, match="is no name of this cache"):
            use(name)


# The limit


def test_what_fits_exactly_is_kept_and_one_byte_more_is_not(
    cache: PhotoCache, folder: Path
) -> None:
    assert cache.write("1", bytes(LIMIT))
    assert not cache.write("2", bytes(LIMIT + 1))
    assert _names(folder) == ["1"]
    assert cache.write("3", b"x")
    assert _names(folder) == ["3"]


def test_the_least_recently_used_goes_first_and_the_limit_always_holds(
    cache: PhotoCache, folder: Path
) -> None:
    for number in range(10):
        cache.write(str(number), bytes(100))
    assert cache.read("0") is not None
    cache.write("10", bytes(100))
    # An eighth of the limit is made free at once.
    assert _names(folder) == ["0", *map(str, range(4, 11))]
    for number in range(11, 200):
        assert cache.write(str(number), bytes(100))
        assert cache.read("0") is not None
        assert _bytes(folder) <= LIMIT


def test_a_cache_of_no_bytes_keeps_none(folder: Path) -> None:
    cache = _open(folder, 0)
    assert not cache.write("1", b"x")
    assert cache.read("1") is None
    assert not folder.exists()


def test_a_restart_knows_what_there_is_and_what_was_used_last(
    cache: PhotoCache, folder: Path
) -> None:
    for number in range(10):
        cache.write(str(number), bytes(100))
    cache.read("2")
    again = _open(folder)
    assert again.read("0") == bytes(100)
    again.write("10", bytes(100))
    assert _names(folder) == ["0", "2", *map(str, range(5, 11))]


@pytest.mark.parametrize("limit", [0, 350])
def test_a_limit_that_was_lowered_holds_from_the_first_write(folder: Path, limit: int) -> None:
    cache = _open(folder)
    for number in range(10):
        cache.write(str(number), bytes(100))
    _open(folder, limit).write("10", bytes(100))
    assert _bytes(folder) <= limit
    assert ("10" in _names(folder)) == (limit > 0)


def test_many_threads_at_once_stay_below_the_limit(folder: Path) -> None:
    cache = _open(folder, 20_000)

    def use(number: int) -> None:
        assert cache.write(str(number), str(number).encode() * 100)
        assert _bytes_if_there(folder) <= 20_000
        assert cache.read(str(number)) in (None, str(number).encode() * 100)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(use, range(400)))
    assert len(_names(folder)) > 20


def _bytes_if_there(folder: Path) -> int:
    total = 0
    for entry in os.scandir(folder):
        try:
            total += entry.stat().st_size
        except FileNotFoundError:
            continue
    return total


def test_what_another_process_writes_is_counted_before_long(
    cache: PhotoCache, folder: Path
) -> None:
    other = _open(folder)
    other.write("0", bytes(100))
    for number in range(1, 9):
        cache.write(str(number), bytes(100))
    for number in range(9, 17):
        other.write(str(number), bytes(100))
        assert _bytes(folder) <= LIMIT


def test_several_processes_share_a_folder(folder: Path) -> None:
    program = (
        "import re, sys; from pathlib import Path; from backend.photo_cache import PhotoCache\n"
        "cache = PhotoCache(Path(sys.argv[1]), max_bytes=100_000, name=re.compile('[0-9]+'))\n"
        "for n in range(int(sys.argv[2]), 900, 3):\n"
        "    assert cache.write(str(n), str(n).encode() * 300)\n"
        "    assert cache.read(str(n)) in (None, str(n).encode() * 300)\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", program, str(folder), str(start)], cwd=REPOSITORY)
        for start in range(3)
    ]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    # A sixteenth of the limit for each, less what the last write of each has counted.
    assert _bytes(folder) <= 100_000 * (1 + 3 / 16) + 3 * 900
    cache = _open(folder, 100_000)
    assert cache.write("1000", b"x")
    assert _bytes(folder) <= 100_000
    assert len(_names(folder)) > 50


# What else may lie in the folder


def test_what_is_not_ours_is_neither_counted_nor_removed(cache: PhotoCache, folder: Path) -> None:
    folder.mkdir(parents=True)
    others = [folder / name for name in ("notes", "1.txt", "x1", "12.abc.part", "1.abcdefgh.tmp")]
    for path in others:
        path.write_bytes(bytes(LIMIT))
    (folder / "77").mkdir()
    (folder / "78").symlink_to(others[0])
    for number in range(30):
        assert cache.write(str(number), bytes(100))
    assert all(path.stat().st_size == LIMIT for path in others)
    assert (folder / "77").is_dir()
    assert (folder / "78").is_symlink()


def test_what_is_no_file_of_ours_is_not_read(cache: PhotoCache, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "1").mkdir()
    os.mkfifo(folder / "2")  # whoever opens it in the usual way waits for ever
    (folder / "3").write_bytes(bytes(LIMIT + 1))
    (folder / "4").symlink_to("nowhere")
    for name in "1234":
        assert cache.read(name) is None
    assert not cache.write("1", b"x")
    cache.remove("1")
    assert (folder / "1").is_dir()
    assert cache.write("2", b"x")
    assert cache.read("2") == b"x"


def test_what_a_crash_left_half_written_is_removed_once_it_is_old(
    cache: PhotoCache, folder: Path
) -> None:
    folder.mkdir(parents=True)
    old, new = folder / "1.abcdefgh.part", folder / "2.abcdefgh.part"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    cache.write("3", b"x")
    assert not old.exists()
    assert new.exists()


def test_a_folder_that_is_removed_under_it_is_made_again(cache: PhotoCache, folder: Path) -> None:
    cache.write("1", b"one")
    (folder / "1").unlink()
    folder.rmdir()
    assert cache.read("1") is None
    assert cache.write("1", b"one")
    assert cache.read("1") == b"one"


# A disk that takes nothing


def test_a_full_disk_keeps_nothing_half_written_and_is_logged_once(
    cache: PhotoCache, folder: Path
) -> None:
    cache.write("1", bytes(100))
    with capture_logs() as log, files_limited_to(50):
        assert not cache.write("2", bytes(100))
        assert not cache.write("3", bytes(100))
        assert cache.read("1") == bytes(100)
    assert [entry["event"] for entry in log] == ["cache.unusable"]
    assert _names(folder) == ["1"]
    # What was not written does not count.
    for number in range(4, 13):
        assert cache.write(str(number), bytes(100))
    assert _names(folder) == ["1", *map(str, range(4, 13))]


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = _open(tmp_path / "file" / "cache")
    with capture_logs() as log:
        assert not cache.write("1", b"x")
        assert cache.read("1") is None
    assert "Not a directory" in log[0]["problem"]
