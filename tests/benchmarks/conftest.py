"""What the tests of benchmarks share: annotated photos, and the small pair to measure with."""

from pathlib import Path

import pytest

from tests.annotated_photos import write_split
from tests.service import SMALL_PAIR


@pytest.fixture(autouse=True)
def _small_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SMALL_PAIR.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def annotated(tmp_path: Path) -> Path:
    """A folder with 14 photos in train/ and 5 in val/."""
    folder = tmp_path / "annotated"
    write_split(folder / "train", 14, seed=1)
    write_split(folder / "val", 5, seed=2)
    return folder
