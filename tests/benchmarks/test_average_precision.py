"""Average precision against values worked out by hand and against the definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.vision.detections import Detections
from benchmarks.quality.average_precision import DetectorEvaluation, average_precision, iou
from benchmarks.voc import VocObject

CAT_BOX = (0.0, 0.0, 10.0, 10.0)
FAR_BOX = (50.0, 50.0, 60.0, 60.0)


def detections(*found: tuple[int, float, tuple[float, float, float, float]]) -> Detections:
    """From (label, score, box), best score first."""
    return Detections(
        boxes=np.array([box for _, _, box in found], np.float32).reshape(-1, 4),
        scores=np.array([score for _, score, _ in found], np.float32),
        labels=np.array([label for label, _, _ in found], np.int32),
    )


def cat(box: tuple[float, float, float, float] = CAT_BOX, *, difficult: bool = False) -> VocObject:
    return VocObject("cat", box, difficult)


def cats_and_dogs() -> DetectorEvaluation:
    return DetectorEvaluation(["cat", "dog"])


@pytest.mark.parametrize(
    ("correct", "objects", "expected"),
    [
        ([True, True], 2, 1.0),
        ([True], 2, 0.5),  # the other object is never found
        ([False, True], 1, 0.5),
        ([True, False, True], 2, 0.5 * 1 + 0.5 * 2 / 3),
        ([False, True, True], 2, 2 / 3),  # at recall 1/2 the better precision of recall 1 counts
        ([True, True, False, False], 2, 1.0),  # what is false after the last find costs nothing
        ([False, False], 3, 0.0),
        ([], 3, 0.0),
    ],
)
def test_the_area_under_the_monotone_curve(
    correct: list[bool], objects: int, expected: float
) -> None:
    scores = np.linspace(0.9, 0.1, len(correct)).tolist()
    assert average_precision(scores, correct, objects) == pytest.approx(expected)


def test_detections_are_ranked_by_their_scores_whatever_photo_came_first() -> None:
    assert average_precision([0.1, 0.9], [False, True], 1) == 1.0
    assert average_precision([0.9, 0.1], [False, True], 1) == 0.5


@given(st.lists(st.booleans(), max_size=30), st.integers(0, 5))
def test_it_is_the_integral_of_the_best_precision_at_each_recall_or_above(
    correct: list[bool], never_found: int
) -> None:
    objects = max(1, sum(correct) + never_found)
    points = [
        (sum(correct[:end]) / objects, sum(correct[:end]) / end)
        for end in range(1, len(correct) + 1)
    ]
    steps = [(step + 1) / objects for step in range(objects)]
    expected = sum(
        max((precision for recall, precision in points if recall >= step - 1e-9), default=0.0)
        for step in steps
    )
    scores = list(range(len(correct), 0, -1))
    assert average_precision(scores, correct, objects) == pytest.approx(expected / objects)


def test_iou_of_edges() -> None:
    box = np.array(CAT_BOX, np.float32)
    others = np.array([CAT_BOX, (5, 0, 15, 10), (0, 0, 5, 10), (10, 0, 20, 10)], np.float32)
    assert iou(box, others) == pytest.approx([1, 1 / 3, 1 / 2, 0])


def test_an_overlap_of_half_finds_and_less_does_not() -> None:
    half = cats_and_dogs()
    half.add(detections((0, 0.9, (0, 0, 5, 10))), [cat()])
    assert half.average_precisions() == {"cat": 1.0}
    less = cats_and_dogs()
    less.add(detections((0, 0.9, (0, 0, 4.9, 10))), [cat()])
    assert less.average_precisions() == {"cat": 0.0}


def test_an_object_is_found_once() -> None:
    evaluation = cats_and_dogs()
    evaluation.add(detections((0, 0.9, CAT_BOX), (0, 0.8, (0, 0, 10, 9))), [cat(), cat(FAR_BOX)])
    evaluation.add(detections((0, 0.7, FAR_BOX)), [cat(FAR_BOX)])
    # True, false, true of three objects.
    assert evaluation.average_precisions() == {"cat": pytest.approx(1 / 3 + 1 / 3 * 2 / 3)}


def test_a_detection_of_another_label_finds_nothing() -> None:
    evaluation = cats_and_dogs()
    evaluation.add(detections((1, 0.9, CAT_BOX)), [cat()])
    assert evaluation.average_precisions() == {"cat": 0.0}
    assert evaluation.precision_recall().precision == 0


def test_difficult_objects_count_neither_way() -> None:
    evaluation = cats_and_dogs()
    evaluation.add(
        detections((0, 0.9, FAR_BOX), (0, 0.8, FAR_BOX), (0, 0.7, CAT_BOX)),
        [cat(), cat(FAR_BOX, difficult=True)],
    )
    assert evaluation.average_precisions() == {"cat": 1.0}
    result = evaluation.precision_recall()
    assert (result.precision, result.recall) == (1.0, 1.0)


def test_labels_without_objects_are_left_out_of_the_mean() -> None:
    evaluation = cats_and_dogs()
    evaluation.add(detections((0, 0.9, CAT_BOX), (1, 0.9, FAR_BOX)), [cat()])
    assert evaluation.mean_average_precision() == 1.0


def test_precision_and_recall_over_all_labels() -> None:
    evaluation = cats_and_dogs()
    truth = [cat(), cat(FAR_BOX), VocObject("dog", FAR_BOX, False)]
    evaluation.add(detections((1, 0.9, FAR_BOX), (0, 0.8, CAT_BOX), (1, 0.7, CAT_BOX)), truth)
    evaluation.add(detections(), [cat()])
    result = evaluation.precision_recall()
    assert result.precision == pytest.approx(2 / 3)
    assert result.recall == pytest.approx(2 / 4)
    assert result.f1 == pytest.approx(4 / 7)


def test_labels_that_were_not_annotated_are_not_judged() -> None:
    evaluation = cats_and_dogs()
    evaluation.add(detections((1, 0.9, FAR_BOX), (0, 0.8, CAT_BOX)), [cat()])
    result = evaluation.precision_recall()
    assert (result.precision, result.recall) == (1, 1)


def test_nothing_detected_is_no_precision_rather_than_an_error() -> None:
    evaluation = cats_and_dogs()
    evaluation.add(detections(), [cat()])
    result = evaluation.precision_recall()
    assert (result.precision, result.recall, result.f1) == (0, 0, 0)
