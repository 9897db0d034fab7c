"""The squares that are cut out of a photo for the embedder."""

from typing import get_args

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from backend.vision.crops import CropGeometry, crop_objects

WIDTH, HEIGHT = 64, 48
GREY = 114
GEOMETRIES: tuple[CropGeometry, ...] = get_args(CropGeometry)


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


# Squares around a box


def test_a_square_is_taken_around_the_box_from_the_photo_itself() -> None:
    photo = _photo()
    wide, high = crop_objects(
        photo, _boxes((16, 20, 48, 28), (20, 8, 28, 40)), 32, geometry="square"
    )
    assert (wide == photo[8:40, 16:48]).all()
    assert (high == photo[8:40, 8:40]).all()


@pytest.mark.parametrize(
    ("box", "at"),
    [
        ((0, 16, 8, 48), (-12, 16)),  # over the left edge
        ((56, 8, 64, 40), (44, 8)),  # over the right one
        ((8, 0, 40, 4), (8, -14)),  # over the top
        ((8, 44, 40, 48), (8, 30)),  # over the bottom
        ((0, 0, 32, 4), (0, -14)),  # in a corner
    ],
)
def test_a_square_is_grey_where_it_reaches_over_the_photo_s_edges(
    box: tuple[float, float, float, float], at: tuple[int, int]
) -> None:
    photo = _photo()
    beyond = np.full((HEIGHT + 64, WIDTH + 64, 3), GREY, np.uint8)
    beyond[32 : 32 + HEIGHT, 32 : 32 + WIDTH] = photo
    [crop] = crop_objects(photo, _boxes(box), 32, geometry="square")
    x, y = at
    assert (crop == beyond[32 + y : 64 + y, 32 + x : 64 + x]).all()


def test_a_square_of_the_whole_photo_is_its_letterbox() -> None:
    photo = np.full((HEIGHT, WIDTH, 3), 200, np.uint8)
    [crop] = crop_objects(photo, _boxes((0, 0, WIDTH, HEIGHT)), 32, geometry="square")
    assert (crop[:4] == GREY).all()
    assert (crop[4:28] == 200).all()
    assert (crop[28:] == GREY).all()


# The box alone, its aspect ratio kept


def test_a_padded_box_lies_alone_in_the_middle_of_grey() -> None:
    photo = _photo()
    wide, high = crop_objects(photo, _boxes((16, 20, 48, 28), (20, 8, 28, 40)), 32, geometry="pad")
    assert (wide[12:20] == photo[20:28, 16:48]).all()
    assert (wide[:12] == GREY).all()
    assert (wide[20:] == GREY).all()
    assert (high[:, 12:20] == photo[8:40, 20:28]).all()
    assert (high[:, :12] == GREY).all()
    assert (high[:, 20:] == GREY).all()


def test_a_padded_box_is_resized_with_its_aspect_ratio() -> None:
    photo = np.full((HEIGHT, WIDTH, 3), 200, np.uint8)
    [crop] = crop_objects(photo, _boxes((0, 0, 60, 20)), 24, geometry="pad")
    assert (crop[8:16] == 200).all()
    assert (crop[:8] == GREY).all()
    assert (crop[16:] == GREY).all()


@pytest.mark.parametrize("geometry", ["stretch", "square", "pad"])
def test_a_square_box_is_the_same_in_every_geometry(geometry: CropGeometry) -> None:
    photo = _photo()
    [crop] = crop_objects(photo, _boxes((10, 5, 42, 37)), 32, geometry=geometry)
    assert (crop == photo[5:37, 10:42]).all()


# The margin around a box


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_margin_is_a_part_of_the_box_s_side_on_every_side(geometry: CropGeometry) -> None:
    photo = _photo()
    [crop] = crop_objects(photo, _boxes((20, 12, 40, 32)), 30, geometry=geometry, margin=0.25)
    assert (crop == photo[7:37, 15:45]).all()


def test_a_margin_of_a_stretched_box_follows_each_side_s_own_length() -> None:
    photo = _photo()
    box, widened = _boxes((20, 20, 40, 30)), _boxes((16, 18, 44, 32))
    assert (crop_objects(photo, box, 16, margin=0.2) == crop_objects(photo, widened, 16)).all()


@pytest.mark.parametrize("geometry", ["stretch", "pad"])
def test_a_margin_ends_at_the_photo_s_edges(geometry: CropGeometry) -> None:
    photo = _photo()
    corner, widened = _boxes((0, 0, 20, 10)), _boxes((0, 0, 30, 15))
    assert (
        crop_objects(photo, corner, 16, geometry=geometry, margin=0.5)
        == crop_objects(photo, widened, 16, geometry=geometry)
    ).all()


def test_a_square_keeps_the_box_in_its_middle_at_the_photo_s_edges_too() -> None:
    photo = np.full((HEIGHT, WIDTH, 3), 200, np.uint8)
    [crop] = crop_objects(photo, _boxes((0, 0, 20, 20)), 40, geometry="square", margin=0.5)
    assert (crop[10:, 10:] == 200).all()
    assert (crop[:10] == GREY).all()
    assert (crop[:, :10] == GREY).all()


# Boxes that are hardly any


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize(
    ("box", "pixel"),
    [
        ((10, 20, 11, 21), (10, 20)),
        ((0, 0, 1, 1), (0, 0)),
        ((WIDTH - 1, HEIGHT - 1, WIDTH, HEIGHT), (WIDTH - 1, HEIGHT - 1)),
        ((500, 700, 600, 800), (WIDTH - 1, HEIGHT - 1)),
        ((-50, -50, -10, -10), (0, 0)),
    ],
)
def test_a_box_of_one_pixel_fills_the_crop(
    geometry: CropGeometry, box: tuple[float, float, float, float], pixel: tuple[int, int]
) -> None:
    photo = _photo()
    [crop] = crop_objects(photo, _boxes(box), 8, geometry=geometry)
    x, y = pixel
    assert (crop == photo[y, x]).all()


@pytest.mark.parametrize("width", [5000, 300])
def test_a_sliver_still_fills_a_line_of_its_padded_crop(width: int) -> None:
    photo = np.full((1, width, 3), 200, np.uint8)
    for geometry in ("square", "pad"):
        [crop] = crop_objects(photo, _boxes((0, 0, width, 1)), 32, geometry=geometry)
        rows = np.flatnonzero((crop == 200).all(axis=(1, 2)))
        assert len(rows) == 1
        assert (np.delete(crop, rows, axis=0) == GREY).all()


COORDINATES = st.floats(-1e6, 1e6, width=32)
BOXES = st.tuples(COORDINATES, COORDINATES, COORDINATES, COORDINATES)
SIZES = st.sampled_from([1, 16, 160])
SIDES = st.integers(1, 50)


@settings(deadline=None)
@given(box=BOXES, size=SIZES, width=SIDES, height=SIDES)
def test_any_box_of_any_photo_makes_a_crop_of_that_photo_s_colours(
    box: tuple[float, float, float, float], size: int, width: int, height: int
) -> None:
    photo = np.full((height, width, 3), (10, 120, 250), np.uint8)
    crops = crop_objects(photo, _boxes(box), size)
    assert crops.shape == (1, size, size, 3)
    assert (crops == (10, 120, 250)).all()


@settings(deadline=None)
@given(
    box=BOXES,
    size=SIZES,
    width=SIDES,
    height=SIDES,
    geometry=st.sampled_from(GEOMETRIES),
    margin=st.floats(0, 1),
)
def test_any_geometry_shows_the_photo_in_the_midst_of_grey(
    box: tuple[float, float, float, float],
    size: int,
    width: int,
    height: int,
    geometry: CropGeometry,
    margin: float,
) -> None:
    photo = np.full((height, width, 3), (10, 120, 250), np.uint8)
    [crop] = crop_objects(photo, _boxes(box), size, geometry=geometry, margin=margin)
    assert crop.shape == (size, size, 3)
    shown = (crop == (10, 120, 250)).all(axis=2)
    assert (crop[~shown] == GREY).all()
    rows, columns = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
    assert shown[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
