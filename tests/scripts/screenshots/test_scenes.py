"""Scenes for pictures of the page."""

from pathlib import Path

import cv2
import numpy as np

from scripts.screenshots.scenes import draw_scene, write_scenes


def test_a_seed_is_a_scene() -> None:
    first, again, other = draw_scene(4), draw_scene(4), draw_scene(5)
    assert first.dtype == np.uint8
    assert first.shape[2] == 3
    assert np.array_equal(first, again)
    assert first.shape != other.shape or not np.array_equal(first, other)


def test_every_fourth_scene_is_a_sky(tmp_path: Path) -> None:
    paths = write_scenes(tmp_path / "scenes", 4)
    assert [path.name for path in paths] == [
        "street 000.jpg",
        "street 001.jpg",
        "street 002.jpg",
        "sky 003.jpg",
    ]
    for path in paths:
        assert cv2.imread(str(path)) is not None
