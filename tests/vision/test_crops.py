"""The squares that are cut out of a photo for the embedder."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from backend.vision.crops import crop_objects

WIDTH, HEIGHT = 64, 48


def _photo() -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def _boxes(*boxes: tuple[float, float, float, float]) -> NDArray[np.float32]:
    return np.array(boxes, np.float32).reshape(-1, 4)


def test_a_box_of_the_crop_s_own_size_is_copied_pixel_by_pixel() -> None:
    photo = _photo()
    [crop] = crop_objects(photo, _boxes((10, 5, 42, 37)), 32)
    assert (crop == photo[5:37, 10:42]).all()


def test_every_box_makes_a_crop_in_the_order_of_the_boxes() -> None:
    photo = _photo()
    crops = crop_objects(photo, _boxes((0, 0, 16, 16), (16, 16, 32, 32), (48, 32, 64, 48)), 16)
    assert crops.shape == (3, 16, 16, 3)
    assert crops.dtype == np.uint8
    for crop, (left, top) in zip(crops, [(0, 0), (16, 16), (48, 32)], strict=True):
        assert (crop == photo[top : top + 16, left : left + 16]).all()


def test_no_boxes_make_no_crops() -> None:
    assert crop_objects(_photo(), _boxes(), 16).shape == (0, 16, 16, 3)


def test_a_shrunk_crop_averages_the_pixels_under_each_of_its_own() -> None:
    photo = _photo()
    [crop] = crop_objects(photo, _boxes((0, 0, 48, 48)), 12)
    means = photo[:48, :48].reshape(12, 4, 12, 4, 3).mean(axis=(1, 3))
    assert np.abs(crop - means).max() <= 0.5 + 1e-6


def test_an_enlarged_crop_is_interpolated_between_its_pixels() -> None:
    photo = _photo()
    [crop] = crop_objects(photo, _boxes((8, 8, 16, 16)), 32)
    expected = cv2.resize(photo[8:16, 8:16], (32, 32), interpolation=cv2.INTER_LINEAR)
    assert (crop == expected).all()


def test_a_box_is_stretched_to_the_square_in_both_directions() -> None:
    photo = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    photo[:, 32:] = 255
    [crop] = crop_objects(photo, _boxes((0, 0, WIDTH, 12)), 16)
    assert (crop[:, :8] == 0).all()
    assert (crop[:, 8:] == 255).all()


@pytest.mark.parametrize(
    ("box", "pixel"),
    [
        ((10.2, 20.2, 10.3, 20.3), (10, 20)),  # thinner than a pixel
        ((10, 20, 10, 20), (10, 20)),  # no area at all
        ((WIDTH, HEIGHT, WIDTH, HEIGHT), (WIDTH - 1, HEIGHT - 1)),  # on the far corner
        ((500, 700, 600, 800), (WIDTH - 1, HEIGHT - 1)),  # beyond it
        ((-50, -50, -10, -10), (0, 0)),  # before the near corner
        ((30, 10, 20, 5), (30, 10)),  # inside out
    ],
)
def test_a_degenerate_box_is_widened_to_the_nearest_pixel(
    box: tuple[float, float, float, float], pixel: tuple[int, int]
) -> None:
    photo = _photo()
    [crop] = crop_objects(photo, _boxes(box), 8)
    x, y = pixel
    assert (crop == photo[y, x]).all()


def test_a_box_that_reaches_out_of_the_photo_is_cut_at_its_edges() -> None:
    photo = _photo()
    crops = crop_objects(photo, _boxes((-20, -20, 1000, 1000), (0, 0, WIDTH, HEIGHT)), 24)
    assert (crops[0] == crops[1]).all()


COORDINATES = st.floats(-1e6, 1e6, width=32)


@settings(deadline=None)
@given(
    box=st.tuples(COORDINATES, COORDINATES, COORDINATES, COORDINATES),
    size=st.sampled_from([1, 16, 160]),
    width=st.integers(1, 50),
    height=st.integers(1, 50),
)
def test_any_box_of_any_photo_makes_a_crop_of_that_photo_s_colours(
    box: tuple[float, float, float, float], size: int, width: int, height: int
) -> None:
    photo = np.full((height, width, 3), (10, 120, 250), np.uint8)
    crops = crop_objects(photo, _boxes(box), size)
    assert crops.shape == (1, size, size, 3)
    assert (crops == (10, 120, 250)).all()
