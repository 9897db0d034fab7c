from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.annotated_photos import write_split


@pytest.fixture
def annotated(tmp_path: Path) -> Path:
    """A folder with 8 photos in train/ and 4 in val/."""
    folder = tmp_path / "annotated"
    write_split(folder / "train", 8, seed=1)
    write_split(folder / "val", 4, seed=2)
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small lose more to threads that wait for each other than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
