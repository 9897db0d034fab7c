"""What the parts of the benchmark of speed are tested with: drawn photos, a little of all."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from benchmarks.speed.bench import Bench
from tests.photos import write_photos


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    write_photos(tmp_path / "photos" / "images", 6)
    write_photos(tmp_path / "val" / "images", 12, start=100)
    # Not below tmp_path, which pytest keeps: data folders are large.
    with TemporaryDirectory() as scratch:
        yield Bench(tmp_path, Path(scratch), 0.01, lambda message: None, is_measured=False)
