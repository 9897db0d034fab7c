from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from scripts.train_models.augmentation import change_colours, detection_sample, object_sample
from scripts.train_models.photos import Photo

SIZE = 128


def red_on_black(box: tuple[int, int, int, int], *, label: int = 0) -> Photo:
    """A photo with one red object: no change of colours makes that grey, or the rest coloured."""
    pixels = np.zeros((100, 140, 3), np.uint8)
    x1, y1, x2, y2 = box
    pixels[y1:y2, x1:x2, 0] = 255
    return Photo(pixels, np.array([box], np.float32), np.array([label]))


def is_red(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where the object is; its edge is half as red as its inside."""
    redness = pixels[..., 0].astype(int) - pixels[..., 1:].max(axis=2)
    red: NDArray[np.bool_] = redness > redness.max() / 2
    return red


@pytest.mark.parametrize("seed", range(20))
def test_boxes_go_where_their_pixels_go(seed: int) -> None:
    photo = red_on_black((40, 30, 90, 70), label=3)
    pixels, objects = detection_sample(
        [photo], 0, SIZE, mosaic=0, generator=np.random.default_rng(seed)
    )
    assert pixels.shape == (SIZE, SIZE, 3)
    [[label, *box]] = objects.tolist()
    assert label == 3
    rows, columns = np.nonzero(is_red(pixels))
    edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(edges, box, atol=1.01)


@pytest.mark.parametrize("seed", range(20))
def test_four_photos_share_an_input(seed: int) -> None:
    photos = [red_on_black((40, 30, 90, 70), label=label) for label in range(2)]
    pixels, objects = detection_sample(
        photos, 1, SIZE, mosaic=1, generator=np.random.default_rng(seed)
    )
    inside = np.zeros((SIZE, SIZE), bool)
    for x1, y1, x2, y2 in np.round(objects[:, 1:]).astype(int):
        assert is_red(pixels)[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1].all()
        inside[max(y1 - 1, 0) : y2 + 1, max(x1 - 1, 0) : x2 + 1] = True
    # What is red and in no box is only what too little is left of.
    assert is_red(pixels)[~inside].mean() < 0.04
    assert (objects[:, 1:] >= 0).all()
    assert (objects[:, 1:] <= SIZE).all()


def test_what_hardly_shows_is_not_learnt() -> None:
    photo = red_on_black((0, 0, 3, 100))  # three pixels wide
    for seed in range(10):
        _, objects = detection_sample(
            [photo], 0, 64, mosaic=0, generator=np.random.default_rng(seed)
        )
        assert not len(objects)


def test_photos_without_objects_are_seen_too() -> None:
    empty = Photo(
        np.zeros((80, 60, 3), np.uint8),
        np.empty((0, 4), np.float32),
        np.empty(0, np.int64),
    )
    for mosaic in (0, 1):
        _, objects = detection_sample(
            [empty], 0, SIZE, mosaic=mosaic, generator=np.random.default_rng(0)
        )
        assert objects.shape == (0, 5)


def test_the_generator_decides_all() -> None:
    photo = red_on_black((40, 30, 90, 70))
    for seed in range(5):
        first, again = (
            object_sample(photo, 0, 64, square=0.5, generator=np.random.default_rng(seed))
            for _ in range(2)
        )
        np.testing.assert_array_equal(first, again)


def test_a_crop_is_stretched_or_keeps_its_shape() -> None:
    photo = red_on_black((20, 10, 120, 30))  # five times as wide as high
    seen = {0.0: 0.0, 1.0: 0.0}
    for square in seen:
        for seed in range(100):
            crop = object_sample(photo, 0, 64, square=square, generator=np.random.default_rng(seed))
            assert crop.shape == (64, 64, 3)
            seen[square] += is_red(crop).mean() / 100
    assert 0.5 < seen[0.0] < 0.8  # all but margins and what is hidden
    assert 0.1 < seen[1.0] < 0.2


def test_no_change_of_colours_is_none() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    same = change_colours(pixels, np.random.default_rng(0), hue=0, saturation=0, value=0).astype(
        int
    )
    assert np.abs(same - pixels).max() <= 6  # hue has 180 steps
