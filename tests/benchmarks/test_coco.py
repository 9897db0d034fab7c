"""COCO's evaluation, fed by us, and VOC's, computed by us, check each other."""

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.vision.detections import Detections
from benchmarks.quality.average_precision import DetectorEvaluation
from benchmarks.quality.coco import coco_average_precisions, interpolated_precisions
from benchmarks.voc import VocObject

LABELS = ("cat", "dog", "cow")
SIDE, STEP = 60.0, 200.0
HALF = np.array([0.5])


def detections(*found: tuple[int, float, tuple[float, float, float, float]]) -> Detections:
    return Detections(
        boxes=np.array([box for _, _, box in found], np.float32).reshape(-1, 4),
        scores=np.array([score for _, score, _ in found], np.float32),
        labels=np.array([label for label, _, _ in found], np.int32),
    )


def random_photo(random: np.random.Generator) -> tuple[Detections, list[VocObject]]:
    """Objects that lie apart, and detections that find them, miss them, or come twice.

    No detection has two objects to choose from, and none lies in a difficult object without
    finding it: there, and there alone, VOC and COCO differ in what is found.
    """
    objects, found = [], []
    for place in range(int(random.integers(0, 8))):
        label = int(random.integers(len(LABELS)))
        left = place * STEP
        box = (left, 0.0, left + SIDE, SIDE)
        objects.append(VocObject(LABELS[label], box, random.random() < 0.2))
        # A difficult object takes a single detection in VOC's rules and any number in COCO's.
        for _ in range(int(random.integers(0, 2 if objects[-1].difficult else 4))):
            near = random.random() < 0.7
            shift = random.uniform(0, 0.25) if near else random.uniform(0.6, 0.9)
            guessed = label if random.random() < 0.8 else int(random.integers(len(LABELS)))
            moved = (left + shift * SIDE, 0.0, left + (1 + shift) * SIDE, SIDE)
            found.append((guessed, float(random.random()), moved))
    found.sort(key=lambda entry: -entry[1])
    return detections(*found), objects


def random_photos(
    count: int, *, seed: int
) -> tuple[list[Detections], list[list[VocObject]], dict[str, float]]:
    """Detections and objects of photos, and VOC's average precisions of them."""
    random = np.random.default_rng(seed)
    photos = [random_photo(random) for _ in range(count)]
    evaluation = DetectorEvaluation(LABELS)
    for found, truth in photos:
        evaluation.add(found, truth)
    founds, truths = [found for found, _ in photos], [truth for _, truth in photos]
    return founds, truths, evaluation.average_precisions()


def wanted(truths: list[list[VocObject]], label: str) -> int:
    return sum(item.label == label and not item.difficult for of in truths for item in of)


def every_recall(objects: int) -> NDArray[np.float64]:
    """The recalls that a curve can reach: the mean of its precisions there is the area under it."""
    return np.arange(1, objects + 1) / objects


@pytest.mark.parametrize("seed", range(5))
def test_vocs_area_is_cocos_curve_at_every_recall(seed: int) -> None:
    founds, truths, expected = random_photos(40, seed=seed)
    for label in LABELS:
        recalls = every_recall(wanted(truths, label))
        curve = interpolated_precisions(founds, truths, LABELS, ious=HALF, recalls=recalls)[label]
        assert curve.shape == (1, len(recalls))
        assert expected[label] == pytest.approx(curve.mean(), abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_vocs_area_is_within_a_step_of_cocos_101_recalls(seed: int) -> None:
    founds, truths, expected = random_photos(40, seed=seed)
    for label, curve in interpolated_precisions(founds, truths, LABELS, ious=HALF).items():
        # The curve falls from at most 1, and each step of recall is a 101st.
        assert expected[label] == pytest.approx(curve.mean(), abs=1 / 101)


def test_perfect_boxes_are_found_at_every_iou() -> None:
    box = (10.0, 20.0, 90.0, 70.0)
    truth = [[VocObject("cat", box, False)], [VocObject("dog", box, False)]]
    found = [detections((0, 0.9, box)), detections((1, 0.4, box))]
    assert coco_average_precisions(found, truth, LABELS) == {
        "cat": pytest.approx(1),
        "dog": pytest.approx(1),
    }


def test_a_box_counts_at_the_ious_that_it_reaches() -> None:
    # 72 of 100 pixels: at 0.50, 0.55, 0.60, 0.65 and 0.70, half of the ten.
    truth = [[VocObject("cat", (0, 0, 100, 1), False)]]
    found = [detections((0, 0.9, (0, 0, 72, 1)))]
    assert coco_average_precisions(found, truth, LABELS) == {"cat": pytest.approx(0.5)}


def test_difficult_objects_count_neither_way() -> None:
    box, far = (0.0, 0.0, 50.0, 50.0), (100.0, 100.0, 150.0, 150.0)
    truth = [[VocObject("cat", box, False), VocObject("cat", far, True)]]
    found = [detections((0, 0.9, far), (0, 0.8, far), (0, 0.7, box))]
    assert coco_average_precisions(found, truth, LABELS) == {"cat": pytest.approx(1)}
    only_difficult = [[VocObject("cat", far, True)]]
    assert coco_average_precisions(found, only_difficult, LABELS) == {}


def test_nothing_detected_and_labels_that_the_detector_lacks_are_no_errors() -> None:
    truth = [[VocObject("cat", (0, 0, 9, 9), False), VocObject("zebra", (0, 0, 9, 9), False)]]
    assert coco_average_precisions([detections()], truth, LABELS) == {"cat": 0}
