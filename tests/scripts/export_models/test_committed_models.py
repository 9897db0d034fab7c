"""The small pair, as it lies in the repository."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from scripts.export_models.contract import (
    DataType,
    ModelSpec,
    detector_spec,
    embedder_spec,
    read_labels,
)
from scripts.export_models.onnx_file import scenes
from scripts.export_models.triton_config import Placement, config_text

ROOT = Path(__file__).parents[3]
REPOSITORY = ROOT / "model_repository"
LABELS = read_labels(ROOT / "scripts/export_models/labels/voc.txt", classes=20)
SPECS = {
    "yolov3-small": detector_spec(
        size=320, labels=LABELS, score_threshold=0.05, nms_threshold=0.45
    ),
    "resnet50-small": embedder_spec(size=160, dimension=512),
}
MEGABYTE = 1_000_000

pair = pytest.mark.parametrize("name", SPECS)


def model_path(name: str) -> Path:
    return REPOSITORY / name / "1" / "model.onnx"


def session(name: str) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model_path(name), providers=["CPUExecutionProvider"])


def config(path: Path) -> Any:
    return text_format.Parse(path.read_text(encoding="utf-8"), pb.ModelConfig())


@pair
def test_the_onnx_file_is_valid(name: str) -> None:
    onnx.checker.check_model(str(model_path(name)), full_check=True)


def test_the_pair_is_small_enough_for_git() -> None:
    assert sum(model_path(name).stat().st_size for name in SPECS) < 25 * MEGABYTE


@pair
def test_the_configs_are_what_the_exporter_writes(name: str) -> None:
    """An edit by hand would be lost with the next export, and with it whatever it was for."""
    sha256 = hashlib.sha256(model_path(name).read_bytes()).hexdigest()
    for placement, file in (
        (Placement.GPU, "config.pbtxt"),
        (Placement.CPU, "configs/cpu.pbtxt"),
    ):
        text = config_text(name, SPECS[name], placement, model_sha256=sha256)
        assert (REPOSITORY / name / file).read_text(encoding="utf-8") == text


@pair
@pytest.mark.parametrize("file", ["config.pbtxt", "configs/cpu.pbtxt"])
def test_config_and_onnx_file_agree(name: str, file: str) -> None:
    described = config(REPOSITORY / name / file)
    types = {
        "tensor(uint8)": pb.TYPE_UINT8,
        "tensor(int32)": pb.TYPE_INT32,
        "tensor(float)": pb.TYPE_FP32,
    }
    model = session(name)
    for tensors, wanted in (
        (model.get_inputs(), described.input),
        (model.get_outputs(), described.output),
    ):
        assert [(x.name, types[x.type], x.shape[1:]) for x in tensors] == [
            (x.name, x.data_type, list(x.dims)) for x in wanted
        ]
        assert all(isinstance(x.shape[0], str) for x in tensors)


def run(model: onnxruntime.InferenceSession, spec: ModelSpec, images: Any) -> dict[str, Any]:
    names = [output.name for output in spec.outputs]
    return dict(zip(names, model.run(names, {spec.input.name: images}), strict=True))


@pair
def test_an_image_gets_the_same_answer_alone_and_among_eight(name: str) -> None:
    spec, model = SPECS[name], session(name)
    images = scenes(spec, 8, seed=0)
    together = run(model, spec, images)
    for index in range(8):
        alone = run(model, spec, images[index : index + 1])
        for output in spec.outputs:
            # Boxes in parts of the input: FP32 does not resolve 1e-5 of a pixel.
            unit = spec.input.dims[0] if output.name == "boxes" else 1
            got, wanted = alone[output.name][0] / unit, together[output.name][index] / unit
            assert alone[output.name].dtype == np.dtype(output.data_type.value)
            if output.data_type is DataType.INT32:
                np.testing.assert_array_equal(got, wanted)
            else:
                np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)


def test_detections_are_best_first_and_labelled() -> None:
    spec = SPECS["yolov3-small"]
    answer = run(session("yolov3-small"), spec, scenes(spec, 2, seed=1))
    assert (np.diff(answer["scores"], axis=1) <= 0).all()
    assert ((answer["scores"] >= 0) & (answer["scores"] <= 1)).all()
    assert ((answer["labels"] >= 0) & (answer["labels"] < len(LABELS))).all()
    boxes = answer["boxes"]
    assert (boxes[..., 2:] > boxes[..., :2]).all()


def test_embeddings_have_length_1_and_tell_images_apart() -> None:
    spec = SPECS["resnet50-small"]
    vectors = run(session("resnet50-small"), spec, scenes(spec, 4, seed=2))["embeddings"]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    similarity = vectors @ vectors.T
    assert (similarity[~np.eye(4, dtype=bool)] < 0.999).all()
