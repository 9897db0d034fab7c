"""Thresholds and non-maximum suppression, against a plain implementation."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from backend.vision.detections import Detections, select_detections
from backend.vision.letterbox import Letterbox

SIDE = 200
AS_IT_IS = Letterbox(SIDE, SIDE, 1.0, 1.0, 0, 0)
"""A photo that is the square: boxes stay where they are."""

Box = tuple[float, float, float, float]


def _select(
    boxes: list[Box],
    scores: list[float],
    labels: list[int] | None = None,
    *,
    placement: Letterbox = AS_IT_IS,
    score_threshold: float = 0.1,
    nms_threshold: float = 0.5,
) -> Detections:
    return select_detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array([0] * len(scores) if labels is None else labels, np.int32),
        placement=placement,
        score_threshold=score_threshold,
        nms_threshold=nms_threshold,
    )


def _iou(one: NDArray[Any], other: NDArray[Any]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0.0, width) * max(0.0, height)
    areas = sum(float((box[2] - box[0]) * (box[3] - box[1])) for box in (one, other))
    return float(shared / (areas - shared))


def _plain_nms(
    boxes: NDArray[Any], scores: NDArray[Any], labels: NDArray[Any], threshold: float
) -> list[int]:
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        rivals = [other for other in kept if labels[other] == labels[index]]
        if all(_iou(boxes[index], boxes[other]) <= threshold for other in rivals):
            kept.append(int(index))
    return kept


@st.composite
def _candidates(draw: st.DrawFn) -> tuple[list[Box], list[float], list[int]]:
    count = draw(st.integers(0, 30))
    places = st.integers(0, SIDE - 60)
    sizes = st.integers(1, 60)
    corners = draw(
        st.lists(st.tuples(places, places, sizes, sizes), min_size=count, max_size=count)
    )
    boxes = [(float(x), float(y), float(x + w), float(y + h)) for x, y, w, h in corners]
    # Distinct scores: of two equal ones either may be the better.
    hundredths = st.integers(0, 1000)
    scores = draw(st.lists(hundredths, min_size=count, max_size=count, unique=True))
    labels = draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    return boxes, [score / 1000 for score in scores], labels


@settings(deadline=None)
@given(candidates=_candidates(), nms_threshold=st.sampled_from([0.0, 0.2713, 0.4519, 0.8001, 1.0]))
def test_the_best_box_of_every_cluster_stays_as_in_a_plain_implementation(
    candidates: tuple[list[Box], list[float], list[int]], nms_threshold: float
) -> None:
    boxes, scores, labels = candidates
    found = _select(boxes, scores, labels, score_threshold=0.25, nms_threshold=nms_threshold)
    strong = [index for index, score in enumerate(scores) if score >= 0.25]
    all_boxes = np.array([boxes[index] for index in strong])
    all_scores = np.array([scores[index] for index in strong], np.float32)
    all_labels = np.array([labels[index] for index in strong])
    order = _plain_nms(all_boxes, all_scores, all_labels, nms_threshold)
    assert found.scores.tolist() == all_scores[order].tolist()
    assert found.labels.tolist() == [int(all_labels[index]) for index in order]
    assert found.boxes.tolist() == [list(boxes[strong[index]]) for index in order]


@settings(deadline=None)
@given(candidates=_candidates())
def test_detections_come_best_first_with_their_documented_types(
    candidates: tuple[list[Box], list[float], list[int]],
) -> None:
    found = _select(*candidates)
    assert (np.diff(found.scores) <= 0).all()
    assert found.boxes.dtype == np.float32
    assert found.boxes.shape == (len(found), 4)
    assert found.scores.dtype == np.float32
    assert found.labels.dtype == np.int32
    assert len(found.labels) == len(found)


def test_boxes_of_different_labels_do_not_suppress_each_other() -> None:
    same = (10.0, 10.0, 50.0, 50.0)
    assert _select([same] * 3, [0.9, 0.8, 0.7], [1, 2, 1]).labels.tolist() == [1, 2]


def test_a_score_at_the_threshold_is_kept_and_one_below_is_dropped() -> None:
    threshold = 0.25  # has an exact float32
    below = float(np.nextafter(np.float32(threshold), np.float32(0)))
    boxes = [(0.0, 0.0, 10.0, 10.0), (50.0, 50.0, 60.0, 60.0)]
    found = _select(boxes, [threshold, below], score_threshold=threshold)
    assert found.scores.tolist() == [threshold]


def test_a_threshold_of_0_keeps_even_a_score_of_0() -> None:
    assert len(_select([(0.0, 0.0, 10.0, 10.0)], [0.0], score_threshold=0.0)) == 1


def test_an_overlap_at_the_threshold_is_kept_and_one_above_is_dropped() -> None:
    # 10 x 10 and 10 x 5 of it: IoU is exactly 0.5.
    boxes = [(0.0, 0.0, 10.0, 10.0), (0.0, 0.0, 10.0, 5.0)]
    assert len(_select(boxes, [0.9, 0.8], nms_threshold=0.5)) == 2
    assert len(_select(boxes, [0.9, 0.8], nms_threshold=0.4999)) == 1


def test_the_thresholds_extremes_keep_all_or_only_what_does_not_touch() -> None:
    boxes = [(0.0, 0.0, 10.0, 10.0), (9.0, 9.0, 20.0, 20.0), (30.0, 30.0, 40.0, 40.0)]
    scores = [0.9, 0.8, 0.7]
    assert len(_select(boxes, scores, nms_threshold=1.0)) == 3
    kept = _select(boxes, scores, nms_threshold=0.0).scores
    assert kept.tolist() == pytest.approx([0.9, 0.7])


def test_boxes_are_those_of_the_photo_not_of_the_square() -> None:
    # A photo of 400 x 200 in a square of 200: halved, with 50 of padding above and below.
    placement = Letterbox(400, 200, 0.5, 0.5, 0, 50)
    found = _select([(10.0, 60.0, 110.0, 160.0)], [0.9], placement=placement)
    assert found.boxes.tolist() == [[20, 20, 220, 200]]


def test_what_lies_wholly_on_the_padding_is_no_object() -> None:
    placement = Letterbox(400, 200, 0.5, 0.5, 0, 50)
    found = _select(
        [(10.0, 5.0, 110.0, 45.0), (0.0, 160.0, 50.0, 199.0)], [0.9, 0.8], placement=placement
    )
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)


@pytest.mark.parametrize(
    "box", [(10.0, 10.0, 10.0, 20.0), (10.0, 10.0, 20.0, 10.0), (20.0, 20.0, 10.0, 10.0)]
)
def test_a_box_without_an_area_is_no_object(box: Box) -> None:
    assert len(_select([box], [0.9])) == 0


def test_numbers_that_are_none_are_no_objects() -> None:
    nan = float("nan")
    found = _select([(0.0, 0.0, nan, 10.0), (0.0, 0.0, 9.0, 9.0)], [0.9, nan])
    assert len(found) == 0


def test_no_candidates_are_no_objects() -> None:
    found = _select([], [])
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)


def test_the_candidates_are_not_changed() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 1, 11, 11]], np.float32)
    scores = np.array([0.5, 0.9], np.float32)
    labels = np.zeros(2, np.int32)
    copies = boxes.copy(), scores.copy(), labels.copy()
    select_detections(
        boxes, scores, labels, placement=AS_IT_IS, score_threshold=0.1, nms_threshold=0.5
    )
    for array, copy in zip((boxes, scores, labels), copies, strict=True):
        assert (array == copy).all()
