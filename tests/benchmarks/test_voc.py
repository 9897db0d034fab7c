"""Annotations are read as they are written, and their objects are cut out and described."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from backend.vision.crops import crop_objects
from benchmarks.voc import VocObject, VocPhoto, describe_objects, objects_of, read_split
from tests.annotated_photos import write_split


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """Two photos, one red and one blue, with objects of every kind."""
    (tmp_path / "images").mkdir()
    lines = []
    for name, colour, objects in (
        (
            "red.png",
            (0, 0, 255),
            [
                {"label": "cat", "box": [0, 0, 16, 40], "difficult": 0},
                {"label": "dog", "box": [0, 0, 15.9, 40], "difficult": 0},
                {"label": "cow", "box": [10, 10, 40, 40], "difficult": 1},
            ],
        ),
        ("nothing.png", (0, 255, 0), []),
        ("blue.png", (255, 0, 0), [{"label": "bus", "box": [5, 5, 40, 30.5], "difficult": 0}]),
    ):
        path = tmp_path / "images" / name
        cv2.imwrite(str(path), np.full((40, 50, 3), colour, np.uint8))
        entry = {"file": f"images/{name}", "width": 50, "height": 40, "objects": objects}
        lines.append(json.dumps(entry) + "\n")
    (tmp_path / "annotations.jsonl").write_text("".join(lines), "utf-8")
    return tmp_path


async def mean_colour(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
    means: NDArray[Any] = crops.mean(axis=(1, 2))
    return means.astype(np.float32)


def small(photo: NDArray[np.uint8], boxes: NDArray[np.float32]) -> NDArray[np.uint8]:
    return crop_objects(photo, boxes, 4)


def test_a_split_is_read_in_its_order(split: Path) -> None:
    photos = read_split(split)
    assert [photo.path.name for photo in photos] == ["red.png", "nothing.png", "blue.png"]
    assert photos[2] == VocPhoto(
        split / "images" / "blue.png", (VocObject("bus", (5, 5, 40, 30.5), False),)
    )
    assert photos[0].objects[2].difficult
    assert photos[0].pixels()[0, 0].tolist() == [255, 0, 0]
    assert read_split(split, limit=1) == photos[:1]


def test_a_photos_labels_are_those_of_objects_that_are_not_difficult(split: Path) -> None:
    assert [photo.labels for photo in read_split(split)] == [{"cat", "dog"}, set(), {"bus"}]


@pytest.mark.parametrize(
    ("difficult", "labels", "photos"),
    [(True, ("cat", "cow", "bus"), [0, 0, 2]), (False, ("cat", "bus"), [0, 2])],
)
async def test_objects_that_are_large_enough_are_described(
    split: Path, difficult: bool, labels: tuple[str, ...], photos: list[int]
) -> None:
    objects = await describe_objects(read_split(split), mean_colour, cut=small, difficult=difficult)
    assert objects.labels == labels
    assert objects.photos.tolist() == photos
    colours = {0: [255, 0, 0], 2: [0, 0, 255]}
    assert objects.vectors.tolist() == [colours[photo] for photo in photos]
    chosen = objects_of(read_split(split), difficult=difficult)
    assert [(index, found.label) for index, found in chosen] == list(
        zip(photos, labels, strict=True)
    )


async def test_objects_of_many_photos_are_described_together_and_stay_in_order(
    tmp_path: Path,
) -> None:
    write_split(tmp_path, 70, seed=5)
    photos = read_split(tmp_path)
    batches = []

    async def mean(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        batches.append(len(crops))
        return await mean_colour(crops)

    objects = await describe_objects(photos, mean, cut=small, difficult=True)
    assert sorted(batches) == [12, 64, 64]
    assert objects.photos.tolist() == np.repeat(range(70), 2).tolist()
    for index in (0, 33, 69):
        boxes = np.array([found.box for found in photos[index].objects], np.float32)
        expected = await mean_colour(small(photos[index].pixels(), boxes))
        np.testing.assert_array_equal(objects.vectors[2 * index : 2 * index + 2], expected)
