from __future__ import annotations

from pathlib import Path

import pytest

from scripts.export_models.contract import (
    DataType,
    TensorSpec,
    check_model_name,
    detector_spec,
    embedder_spec,
    read_labels,
)
from scripts.export_models.errors import ContractError


def test_a_detector_takes_pixels_and_gives_boxes_scores_and_labels() -> None:
    spec = detector_spec(
        size=416, labels=("cat", "potted plant"), score_threshold=0.25, nms_threshold=0.45
    )
    assert spec.input == TensorSpec("images", DataType.UINT8, (416, 416, 3))
    assert spec.outputs == (
        TensorSpec("boxes", DataType.FP32, (300, 4)),
        TensorSpec("scores", DataType.FP32, (300,)),
        TensorSpec("labels", DataType.INT32, (300,)),
    )
    assert spec.parameters == {
        "labels": "cat,potted plant",
        "score_threshold": "0.25",
        "nms_threshold": "0.45",
    }


def test_an_embedder_takes_pixels_and_gives_a_vector() -> None:
    spec = embedder_spec(size=224, dimension=2048)
    assert spec.input == TensorSpec("crops", DataType.UINT8, (224, 224, 3))
    assert spec.outputs == (TensorSpec("embeddings", DataType.FP32, (2048,)),)
    assert spec.parameters == {}


def test_an_embedder_says_how_its_crops_are_cut_where_that_is_not_the_default() -> None:
    assert embedder_spec(
        size=224, dimension=8, crop_geometry="stretch", crop_margin=0
    ) == embedder_spec(size=224, dimension=8)
    for geometry in ("square", "pad"):
        spec = embedder_spec(size=224, dimension=8, crop_geometry=geometry, crop_margin=0.125)
        assert spec.parameters == {"crop_geometry": geometry, "crop_margin": "0.125"}
    assert embedder_spec(size=224, dimension=8, crop_margin=1).parameters == {"crop_margin": "1"}


def test_crops_are_cut_in_a_way_that_the_service_knows() -> None:
    with pytest.raises(ContractError, match="crop geometry 'fit' is none of stretch, square, pad"):
        embedder_spec(size=224, dimension=8, crop_geometry="fit")
    for margin in (-0.01, 1.01, float("nan")):
        with pytest.raises(ContractError, match=r"crop margin .* is outside 0\.\.1"):
            embedder_spec(size=224, dimension=8, crop_margin=margin)


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan")])
def test_thresholds_lie_between_0_and_1(value: float) -> None:
    for edge in (0.0, 1.0):
        detector_spec(size=64, labels=("a",), score_threshold=edge, nms_threshold=edge)
    with pytest.raises(ContractError, match="score threshold"):
        detector_spec(size=64, labels=("a",), score_threshold=value, nms_threshold=0.5)
    with pytest.raises(ContractError, match="NMS threshold"):
        detector_spec(size=64, labels=("a",), score_threshold=0.5, nms_threshold=value)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("knife, fork", "comma"),
        ("knife\nfork", "line break"),
        ("knife\u2028fork", "line break"),
        ("", "empty"),
        (" ", "empty"),
        ("knife ", "spaces"),
        ("cat", "twice"),
    ],
)
def test_a_label_that_a_list_could_not_carry_is_refused(label: str, message: str) -> None:
    with pytest.raises(ContractError, match=f"label 2 .*{message}"):
        detector_spec(size=64, labels=("cat", label), score_threshold=0.5, nms_threshold=0.5)


def test_labels_are_read_a_line_each(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("cat\r\npotted plant\nKüche\n", encoding="utf-8")
    assert read_labels(path, classes=3) == ("cat", "potted plant", "Küche")

    with pytest.raises(ContractError, match="3 labels for a network of 4 classes"):
        read_labels(path, classes=4)
    path.write_text("cat\n\ndog\n", encoding="utf-8")
    with pytest.raises(ContractError, match=r"labels\.txt: label 2 '' is empty"):
        read_labels(path, classes=3)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ContractError, match="cannot be read as labels"):
        read_labels(path, classes=1)
    with pytest.raises(ContractError, match="cannot be read as labels"):
        read_labels(tmp_path / "absent", classes=1)


def test_a_models_name_is_safe_as_a_folder() -> None:
    for name in ("yolov3", "yolov3-small", "A_1.b"):
        check_model_name(name)
    for name in ("", ".", "..", ".hidden", "a/b", "a b", "-x", "a\n"):
        with pytest.raises(ContractError, match="model name"):
            check_model_name(name)
