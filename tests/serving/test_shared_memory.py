"""Memory that is shared with a server on this machine."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from backend.serving.shared_memory import SharedMemory

SHARED = Path("/dev/shm")


@pytest.fixture
def region() -> Iterator[SharedMemory]:
    made = SharedMemory(places=2, place_bytes=12)
    yield made
    made.close()


def test_batches_lie_one_behind_the_other(region: SharedMemory) -> None:
    batches = [np.arange(6, dtype=np.uint8).reshape(3, 2), np.full((1, 2), 9, np.uint8)]
    assert region.write([batch[::-1] for batch in batches]) == (12, 8)
    content = (SHARED / region.name).read_bytes()
    assert content[12:20] == bytes([4, 5, 2, 3, 0, 1, 9, 9])
    assert len(content) == region.size == 24


def test_a_place_is_taken_once_until_it_is_given_back(region: SharedMemory) -> None:
    batch = [np.zeros((1, 2), np.uint8)]
    assert {region.write(batch), region.write(batch)} == {(0, 2), (12, 2)}
    assert region.write(batch) is None
    region.release(12)
    assert region.write(batch) == (12, 2)


@pytest.mark.parametrize(("size", "fits"), [(12, True), (13, False)])
def test_what_is_larger_than_a_place_is_not_taken(
    region: SharedMemory, size: int, fits: bool
) -> None:
    assert (region.write([np.zeros(size, np.uint8)]) is not None) == fits


def test_only_its_owner_may_read_it_and_it_goes_with_him() -> None:
    region = SharedMemory(places=1, place_bytes=1)
    path = SHARED / region.name
    assert path.stat().st_mode & 0o777 == 0o600
    region.close()
    assert not path.exists()


def test_more_memory_than_there_is_is_refused_at_once() -> None:
    before = set(SHARED.iterdir())
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        SharedMemory(places=1, place_bytes=2**50)
    assert {path for path in set(SHARED.iterdir()) - before if "image-search" in path.name} == set()


def test_what_a_dead_owner_has_left_is_removed_and_no_other(region: SharedMemory) -> None:
    dying = (
        "import os; from backend.serving.shared_memory import SharedMemory;"
        "print(SharedMemory(1, 1).name, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", dying], stdout=subprocess.PIPE, text=True)
    left = done.stdout.strip()
    assert left
    SharedMemory.remove_abandoned()  # or another test that runs beside this one has done it
    assert not (SHARED / left).exists()
    assert (SHARED / region.name).exists()
