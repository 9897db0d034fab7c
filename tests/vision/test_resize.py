"""How photos are made smaller and larger."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from backend.vision.resize import resize_into

SIDES = st.integers(1, 200)


def _noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)


def _resized(photo: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    target = np.empty((height, width, 3), np.uint8)
    resize_into(target, photo)
    return target


def test_a_photo_of_the_target_s_size_is_copied() -> None:
    photo = _noise(31, 47)
    assert (_resized(photo, 31, 47) == photo).all()


@pytest.mark.parametrize(("down", "across"), [(2, 2), (3, 5), (1, 4), (7, 1)])
def test_by_whole_numbers_each_pixel_is_the_mean_of_those_that_it_covers(
    down: int, across: int
) -> None:
    photo = _noise(10 * down, 12 * across)
    means = photo.reshape(10, down, 12, across, 3).mean(axis=(1, 3))
    assert np.abs(_resized(photo, 10, 12) - means).max() <= 0.5 + 1e-6


def test_a_larger_one_is_interpolated() -> None:
    photo = _noise(20, 30)
    expected = cv2.resize(photo, (71, 45), interpolation=cv2.INTER_LINEAR)
    assert (_resized(photo, 45, 71) == expected).all()


@given(height=SIDES, width=SIDES, target=st.tuples(SIDES, SIDES))
def test_a_plain_photo_stays_plain_at_any_size(
    height: int, width: int, target: tuple[int, int]
) -> None:
    photo = np.full((height, width, 3), (12, 130, 250), np.uint8)
    assert (_resized(photo, *target) == (12, 130, 250)).all()


@given(width=st.integers(8, 1500), to=st.integers(8, 200))
def test_what_the_photo_shows_stays_in_its_place(width: int, to: int) -> None:
    # A ramp over the whole width: a pixel's value says where in the photo it comes from.
    ramp = np.linspace(0, 255, 2 * width + 1)[1::2]
    photo = np.repeat(np.rint(ramp).astype(np.uint8)[None, :, None], 3, axis=2)
    centres = np.linspace(0, 255, 2 * to + 1)[1::2]
    half_a_pixel = 255 / to / 2
    shown = _resized(photo, 1, to)[0, :, 0].astype(float)
    inside = (centres > ramp[0]) & (centres < ramp[-1])  # beyond, the edge goes on
    assert np.abs(shown - centres)[inside].max(initial=0) <= half_a_pixel + 1


def test_fine_stripes_become_grey_not_coarse_ones() -> None:
    photo = np.zeros((600, 600, 3), np.uint8)
    photo[:, ::2] = 255
    assert np.ptp(_resized(photo, 128, 128)) <= 2


def test_a_part_of_an_image_is_filled_and_nothing_else() -> None:
    image = np.full((20, 20, 3), 9, np.uint8)
    resize_into(image[5:10, 4:12], _noise(50, 50))
    image[5:10, 4:12] = 9
    assert (image == 9).all()
