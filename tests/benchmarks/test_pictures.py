"""The page of searches: what is on it, and that it is drawn as it should be."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.quality.pictures import (
    DETECTED,
    RIGHT,
    TRUTH,
    WRONG,
    DrawnBox,
    Hit,
    Search,
    Section,
    draw_page,
    extremes,
)

BACKGROUND = (1, 2, 3)


def photo(width: int, height: int) -> NDArray[np.uint8]:
    return np.full((height, width, 3), BACKGROUND, np.uint8)


def hits(right: int, wrong: int) -> list[Hit]:
    return [
        Hit(photo(80, 50), [], "a label that is far too long for its hit", 0.25, index < right)
        for index in range(right + wrong)
    ]


def drawn(path: Path, *sections: Section) -> NDArray[np.uint8]:
    draw_page("Title", "subtitle", sections, path)
    page = cv2.imread(str(path))
    assert page is not None
    return cv2.cvtColor(page, cv2.COLOR_BGR2RGB).astype(np.uint8)


def pixels(page: NDArray[np.uint8], colour: tuple[int, int, int]) -> int:
    return int((page == colour).all(axis=2).sum())


def test_right_and_wrong_hits_are_told_apart_by_their_colour(tmp_path: Path) -> None:
    pages = [
        drawn(
            tmp_path / f"{right}.png",
            Section("heading", "text", [Search("query", photo(400, 300), [], hits(right, wrong))]),
        )
        for right, wrong in ((10, 0), (0, 10), (5, 5))
    ]
    assert len({page.shape for page in pages}) == 1
    # In the legend both are there once.
    for colour, all_of_it, none_of_it in ((RIGHT, 0, 1), (WRONG, 1, 0)):
        most, least, half = (pixels(pages[index], colour) for index in (all_of_it, none_of_it, 2))
        assert 0 < least < half < most
        assert half - least == pytest.approx((most - least) / 2, rel=0.01)


def test_boxes_are_drawn_on_the_query_where_they_are(tmp_path: Path) -> None:
    boxes = [
        DrawnBox((100, 75, 300, 225), TRUTH, "cat"),
        DrawnBox((0, 0, 400, 300), DETECTED, "cat 0.50"),
    ]
    plain, boxed = (
        drawn(
            tmp_path / "page.png",
            Section("heading", "text", [Search("query", photo(400, 300), given, [])]),
        )
        for given in ([], boxes)
    )
    rows, columns = np.nonzero((plain == BACKGROUND).all(axis=2))
    top, left, bottom, right = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
    assert (right - left, bottom - top) == (360, 270)
    query = boxed[top:bottom, left:right]
    assert (query[-1, 100:-100] == DETECTED).all()
    assert (query[100:-100, -1] == DETECTED).all()
    x1, y1, x2, y2 = (round(0.9 * edge) for edge in boxes[0].box)
    for inside in (query[y1 + 30 : y2 - 5, x1], query[y2 - 1, x1 + 5 : x2 - 5]):
        assert (inside == TRUTH).all()
    # Nothing is drawn beside the query.
    changed = (plain != boxed).any(axis=2)
    changed[top:bottom, left:right] = False
    assert not changed.any()


def test_a_page_grows_with_its_searches(tmp_path: Path) -> None:
    search = Search("query", photo(400, 300), [], hits(1, 2))
    upright = Search("query", photo(30, 300), [], hits(2, 1))
    one = drawn(tmp_path / "1.png", Section("heading", "text", [search]))
    three = drawn(tmp_path / "3.png", Section("heading", "text", [search, upright, search]))
    assert three.shape[1] == one.shape[1]
    assert three.shape[0] > one.shape[0] + 2 * 270


def test_crowded_labels_stay_within_the_photo(tmp_path: Path) -> None:
    boxes = [DrawnBox((380, 290, 400, 300), TRUTH, "a long label")] * 30
    page = drawn(
        tmp_path / "page.png",
        Section("heading", "text", [Search("query", photo(400, 300), boxes, [])]),
    )
    assert pixels(page, TRUTH) > 500


def test_the_best_and_the_worst_share_no_label_among_themselves_and_no_index() -> None:
    scores = [0.9, 0.8, 0.7, 0.6, 0.5, 0.1, 0.2]
    labels = [{"cat"}, {"cat", "dog"}, {"dog"}, {"cow"}, {"cow", "dog"}, {"cat"}, {"bus"}]
    assert extremes(scores, labels, 2) == ([0, 2], [5, 6])
    assert extremes(scores, labels, 9) == ([0, 2, 3, 6], [5, 4])
    assert extremes([0.5, 0.5], [{"cat"}, {"dog"}], 1) == ([0], [1])
