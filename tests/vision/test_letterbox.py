"""The square that the detector sees, and the way back from it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from backend.vision.letterbox import PADDING, Letterbox, letterbox

SIDES = st.integers(1, 400)
SIZES = st.sampled_from([32, 320, 416])
FRACTIONS = st.tuples(*[st.floats(0, 1)] * 4)


def _grey(width: int, height: int, value: int = 200) -> NDArray[np.uint8]:
    return np.full((height, width, 3), value, np.uint8)


def _photo_area(square: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what is not padding."""
    rows, columns = np.nonzero((square != PADDING).any(axis=2))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def test_the_padding_is_grey_114_by_contract() -> None:
    assert PADDING == 114


@settings(deadline=None)
@given(width=SIDES, height=SIDES, size=SIZES)
def test_a_photo_lies_whole_and_in_the_middle_of_grey(width: int, height: int, size: int) -> None:
    square, placement = letterbox(_grey(width, height), size)
    assert square.shape == (size, size, 3)
    assert square.dtype == np.uint8
    left, top, right, bottom = _photo_area(square)
    assert (square[top:bottom, left:right] == 200).all()
    assert (placement.left, placement.top) == (left, top)
    assert max(right - left, bottom - top) == size
    # In the middle, but for the one pixel that cannot be halved.
    assert 0 <= (size - right) - left <= 1
    assert 0 <= (size - bottom) - top <= 1


@settings(deadline=None)
@given(width=SIDES, height=SIDES, size=SIZES)
def test_the_aspect_ratio_is_kept_to_half_a_pixel(width: int, height: int, size: int) -> None:
    square, _ = letterbox(_grey(width, height), size)
    left, top, right, bottom = _photo_area(square)
    scale = size / max(width, height)
    assert right - left == pytest.approx(max(1, width * scale), abs=0.5 + 1e-9)
    assert bottom - top == pytest.approx(max(1, height * scale), abs=0.5 + 1e-9)


@settings(deadline=None)
@given(
    width=st.integers(1, 20_000),
    height=st.integers(1, 20_000),
    size=SIZES,
    fractions=FRACTIONS,
)
def test_a_box_comes_back_from_the_square_as_it_went_in(
    width: int, height: int, size: int, fractions: tuple[float, float, float, float]
) -> None:
    # What `letterbox` says of a photo of this size, without the cost of the photo's pixels.
    scale = size / max(width, height)
    fitted = max(1, round(width * scale)), max(1, round(height * scale))
    placement = Letterbox(
        photo_width=width,
        photo_height=height,
        scale_x=fitted[0] / width,
        scale_y=fitted[1] / height,
        left=(size - fitted[0]) // 2,
        top=(size - fitted[1]) // 2,
    )
    box = np.array(fractions) * [width, height, width, height]
    in_square = _to_square(box, placement).astype(np.float32)
    back = placement.to_photo(in_square[np.newaxis])
    assert back.dtype == np.float32
    # The square's coordinates have 24 bits: of a side of 20,000 that leaves a hundredth.
    tolerance = max(1.0, max(width, height) / size) * size * 2.0**-22 + 1e-3
    np.testing.assert_allclose(back[0], box, atol=tolerance)


def _to_square(box: NDArray[np.float64], placement: Letterbox) -> NDArray[np.float64]:
    scale = np.array([placement.scale_x, placement.scale_y] * 2)
    return np.asarray(box * scale + np.array([placement.left, placement.top] * 2), np.float64)


@pytest.mark.parametrize(("width", "height"), [(640, 480), (480, 640), (33, 500), (320, 320)])
def test_a_mark_in_the_photo_is_found_again_through_the_square(width: int, height: int) -> None:
    x1, y1, x2, y2 = width // 4, height // 2, width // 4 + width // 3, height // 2 + height // 3
    photo = _grey(width, height, 0)
    photo[y1:y2, x1:x2] = 255
    square, placement = letterbox(photo, 320)
    rows, columns = np.nonzero(square[..., 0] > 180)
    seen = np.array([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]], np.float32)
    pixel = max(1.0, 1.5 * max(width, height) / 320)  # a pixel of the square, and its blur
    np.testing.assert_allclose(placement.to_photo(seen)[0], [x1, y1, x2, y2], atol=pixel)


@pytest.mark.parametrize(("width", "height"), [(1, 4000), (4000, 1), (3, 5000), (1, 1)])
def test_a_sliver_of_a_photo_still_fills_a_line(width: int, height: int) -> None:
    square, placement = letterbox(_grey(width, height), 320)
    left, top, right, bottom = _photo_area(square)
    assert (right - left >= 1, bottom - top >= 1) == (True, True)
    whole = np.array([[left, top, right, bottom]], np.float32)
    np.testing.assert_allclose(
        placement.to_photo(whole)[0], [0, 0, width, height], rtol=1e-5, atol=1e-2
    )


@settings(deadline=None)
@given(
    width=SIDES,
    height=SIZES,
    boxes=st.lists(st.tuples(*[st.floats(-1e4, 1e4, width=32)] * 4), min_size=1, max_size=8),
)
def test_boxes_are_clipped_to_the_photo(
    width: int, height: int, boxes: list[tuple[float, float, float, float]]
) -> None:
    _, placement = letterbox(_grey(width, height), 320)
    clipped = placement.to_photo(np.array(boxes, np.float32))
    assert clipped.shape == (len(boxes), 4)
    assert (clipped >= 0).all()
    assert (clipped <= [width, height, width, height]).all()


def test_no_boxes_stay_no_boxes() -> None:
    _, placement = letterbox(_grey(50, 40), 320)
    assert placement.to_photo(np.empty((0, 4), np.float32)).shape == (0, 4)


def test_the_photo_itself_is_not_changed() -> None:
    photo = _grey(60, 40)
    before = photo.copy()
    square, _ = letterbox(photo, 60)
    square[:] = 0
    assert (photo == before).all()


def test_a_reduced_copy_lies_where_its_photo_does() -> None:
    photo = np.random.default_rng(2).integers(0, 256, (601, 803, 3), np.uint8)
    _, whole = letterbox(photo, 128)
    square, placement = letterbox(photo[::2, ::2], 128, full_size=(803, 601))
    assert placement == whole
    assert placement.photo_of(square).shape == (96, 128, 3)


@settings(deadline=None)
@given(width=SIDES, height=SIDES, size=SIZES)
def test_what_a_square_shows_of_the_photo_is_all_but_the_grey(
    width: int, height: int, size: int
) -> None:
    square, placement = letterbox(_grey(width, height), size)
    shown = placement.photo_of(square)
    assert (shown == 200).all()
    assert (square == 200).all(axis=2).sum() == shown.shape[0] * shown.shape[1]
