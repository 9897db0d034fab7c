from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from backend.errors import InvalidImage
from scripts.train_models.photos import batch_starts, epoch_order, load_photos, repeat_factors
from tests.annotated_photos import LABELS, SIDE


def test_boxes_shrink_with_their_photo(annotated: Path) -> None:
    whole = load_photos(annotated / "train", LABELS, side=SIDE)
    half = load_photos(annotated / "train", LABELS, side=SIDE // 2)
    assert [photo.pixels.shape for photo in half] == [(SIDE // 2, SIDE // 2, 3)] * len(whole)
    for large, small in zip(whole, half, strict=True):
        np.testing.assert_allclose(small.boxes, large.boxes / 2)
        assert small.labels.tolist() == large.labels.tolist()


def test_photos_are_never_magnified(annotated: Path) -> None:
    [photo, *_] = load_photos(annotated / "val", LABELS, side=500)
    assert photo.pixels.shape == (SIDE, SIDE, 3)


def test_an_unknown_label_is_named(annotated: Path) -> None:
    with pytest.raises(ValueError, match=r"train: the label '(bus|sheep)' is not among"):
        load_photos(annotated / "train", ["cat"], side=SIDE)


def test_a_file_that_is_no_photo_is_named(annotated: Path) -> None:
    damaged = annotated / "train/images/003.jpg"
    damaged.write_bytes(b"no photo")
    with pytest.raises(InvalidImage, match=f"^{damaged}: "):
        load_photos(annotated / "train", LABELS, side=SIDE)


def test_no_photos_at_all_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "annotations.jsonl").touch()
    with pytest.raises(ValueError, match="names no photos"):
        load_photos(tmp_path, LABELS, side=SIDE)


def test_rare_classes_come_oftener() -> None:
    common, rare, both = np.array([0, 0]), np.array([1]), np.array([0, 1])
    factors = repeat_factors([common] * 8 + [rare, both, np.array([], np.int64)], classes=2)
    assert factors[:8].tolist() == [1.0] * 8
    assert factors[8] == factors[9] > 1  # as its rarest class
    assert factors[10] == 1.0  # a photo without objects


def test_an_epoch_sees_each_item_as_often_as_it_is_due() -> None:
    weights = np.array([1.0] * 90 + [3.0] * 10)
    counts = np.zeros(100)
    for seed in range(50):
        order = epoch_order(weights, np.random.default_rng(seed))
        assert len(order) == 100
        once = np.bincount(order, minlength=100)
        due = weights * 100 / weights.sum()
        assert (once >= np.floor(due)).all()
        assert (once <= np.ceil(due)).all()
        counts += once
    np.testing.assert_allclose(counts[90:].mean() / counts[:90].mean(), 3, rtol=0.05)


def test_an_epochs_order_is_its_seeds() -> None:
    weights = np.ones(50)
    first, again, other = (epoch_order(weights, np.random.default_rng(s)) for s in (1, 1, 2))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()
    assert sorted(first) == list(range(50))


def test_only_full_batches_unless_there_is_no_other() -> None:
    assert list(batch_starts(70, 32)) == [0, 32]
    assert list(batch_starts(64, 32)) == [0, 32]
    assert list(batch_starts(5, 32)) == [0]
