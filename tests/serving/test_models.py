"""What a config.pbtxt says, and the contract that detectors and embedders keep."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.errors import ConfigurationError
from backend.serving.models import (
    Detector,
    Embedder,
    ModelSpec,
    TensorSpec,
    default_pair,
    read_spec,
)
from tests.serving.tiny_models import Port, config_text

SHA256 = "ab" * 32
IMAGES: Port = ("images", "UINT8", (32, 32, 3))
CROPS: Port = ("crops", "UINT8", (16, 16, 3))
EMBEDDINGS: Port = ("embeddings", "FP32", (8,))
DETECTIONS: tuple[Port, ...] = (
    ("boxes", "FP32", (5, 4)),
    ("scores", "FP32", (5,)),
    ("labels", "INT32", (5,)),
)
PARAMETERS = {"labels": "cat,potted plant", "score_threshold": "0.25", "nms_threshold": "0.45"}


@dataclass
class AnsweringModel:
    """A model that gives prepared answers and remembers what it was asked."""

    spec: ModelSpec
    answer: Mapping[str, NDArray[Any]]
    asked: int = 0

    async def infer(self, batch: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        self.asked += 1
        return {name: values[: len(batch)] for name, values in self.answer.items()}


def _tensor(port: Port) -> TensorSpec:
    name, dtype, dims = port
    return TensorSpec(name, dtype, tuple(dims))


def _model(
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    parameters: Mapping[str, str] | None = None,
    answer: Mapping[str, NDArray[Any]] | None = None,
) -> AnsweringModel:
    spec = ModelSpec(
        name="tiny",
        inputs=tuple(map(_tensor, inputs)),
        outputs=tuple(map(_tensor, outputs)),
        max_batch_size=4,
        parameters=parameters or {},
        sha256=SHA256,
    )
    return AnsweringModel(spec, answer or {})


def _outputs_with(port: Port) -> list[Port]:
    return [port if other[0] == port[0] else other for other in DETECTIONS]


# config.pbtxt


def test_a_configuration_is_read_in_full(tmp_path: Path) -> None:
    config = tmp_path / "config.pbtxt"
    config.write_text(
        config_text("tiny", [IMAGES], DETECTIONS, max_batch_size=7, parameters=PARAMETERS), "utf-8"
    )
    assert read_spec(config, sha256=SHA256) == ModelSpec(
        name="tiny",
        inputs=(TensorSpec("images", "UINT8", (32, 32, 3)),),
        outputs=(
            TensorSpec("boxes", "FP32", (5, 4)),
            TensorSpec("scores", "FP32", (5,)),
            TensorSpec("labels", "INT32", (5,)),
        ),
        max_batch_size=7,
        parameters=PARAMETERS,
        sha256=SHA256,
    )


def test_what_only_triton_needs_is_passed_over(tmp_path: Path) -> None:
    config = tmp_path / "config.pbtxt"
    text = config_text("tiny", [CROPS], [EMBEDDINGS])
    text += "dynamic_batching { max_queue_delay_microseconds: 1000 }\n"
    text += "instance_group { count: 1 kind: KIND_GPU }\n# a comment\n"
    config.write_text(text, "utf-8")
    assert read_spec(config, sha256=SHA256).outputs == (TensorSpec("embeddings", "FP32", (8,)),)


def test_a_dimension_of_any_size_and_names_in_any_script_are_read(tmp_path: Path) -> None:
    config = tmp_path / "config.pbtxt"
    text = config_text("tiny", [("crops", "UINT8", (-1, -1, 3))], [], parameters={"labels": "猫,é"})
    config.write_text(text, "utf-8")
    spec = read_spec(config, sha256=SHA256)
    assert spec.inputs[0].dims == (-1, -1, 3)
    assert spec.parameters == {"labels": "猫,é"}


def test_a_missing_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"config\.pbtxt: No such file"):
        read_spec(tmp_path / "config.pbtxt", sha256=SHA256)


@pytest.mark.parametrize(
    "content",
    [b"name: ", b"colour: 'red'", b"max_batch_size: many", b"input {", b"\xff\xfe\x00\x01"],
    ids=["cut off", "unknown field", "wrong type", "open bracket", "no text"],
)
def test_a_damaged_configuration_is_named(tmp_path: Path, content: bytes) -> None:
    config = tmp_path / "config.pbtxt"
    config.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"config\.pbtxt is no Triton model config"):
        read_spec(config, sha256=SHA256)


# The detector's contract


def test_a_detector_is_described_by_its_configuration() -> None:
    detector = Detector(_model([IMAGES], DETECTIONS, PARAMETERS))
    assert (detector.name, detector.size) == ("tiny", 32)
    assert detector.labels == ("cat", "potted plant")
    assert (detector.score_threshold, detector.nms_threshold) == (0.25, 0.45)


def test_outputs_may_come_in_any_order_and_others_beside_them() -> None:
    others: list[Port] = [("features", "FP32", (9, 9)), *reversed(DETECTIONS)]
    assert Detector(_model([IMAGES], others, PARAMETERS)).size == 32


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "model tiny: its input must be 'images' alone, not none"),
        ([CROPS], "model tiny: its input must be 'images' alone, not crops"),
        ([IMAGES, CROPS], "its input must be 'images' alone, not images, crops"),
        ([("images", "FP32", (32, 32, 3))], r"must be UINT8 \[S, S, 3\], not FP32 \[32, 32, 3\]"),
        ([("images", "UINT8", (3, 32, 32))], r"not UINT8 \[3, 32, 32\]"),
        ([("images", "UINT8", (32, 16, 3))], r"not UINT8 \[32, 16, 3\]"),
        ([("images", "UINT8", (32, 32, 4))], r"not UINT8 \[32, 32, 4\]"),
        ([("images", "UINT8", (32, 32))], r"not UINT8 \[32, 32\]"),
        ([("images", "UINT8", (-1, -1, 3))], r"not UINT8 \[-1, -1, 3\]"),
        ([("images", "UINT8", ())], r"not UINT8 \[\]"),
    ],
)
def test_a_detector_takes_square_rgb_images_alone(inputs: list[Port], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Detector(_model(inputs, DETECTIONS, PARAMETERS))


@pytest.mark.parametrize("missing", ["boxes", "scores", "labels"])
def test_a_detector_needs_each_of_its_outputs(missing: str) -> None:
    outputs = [port for port in DETECTIONS if port[0] != missing]
    with pytest.raises(ConfigurationError, match=f"model tiny has no output '{missing}'"):
        Detector(_model([IMAGES], outputs, PARAMETERS))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("boxes", "FP16", (5, 4)), r"'boxes' must be FP32 with 2 fixed dims, not FP16 \[5, 4\]"),
        (("boxes", "FP32", (20,)), r"'boxes' must be FP32 with 2 fixed dims, not FP32 \[20\]"),
        (("boxes", "FP32", (-1, 4)), r"'boxes' must be FP32 with 2 fixed dims, not FP32 \[-1, 4\]"),
        (("boxes", "FP32", (5, 5)), r"'boxes' must be \[5, 4\], not \[5, 5\]"),
        (("scores", "FP32", (6,)), r"'scores' must be \[5\], not \[6\]"),
        (("scores", "FP32", (5, 1)), r"'scores' must be FP32 with 1 fixed dims"),
        (("labels", "INT64", (5,)), r"'labels' must be INT32 with 1 fixed dims, not INT64 \[5\]"),
        (("labels", "INT32", (0,)), r"'labels' must be INT32 with 1 fixed dims, not INT32 \[0\]"),
    ],
)
def test_a_detector_s_outputs_are_typed_and_of_one_length(wrong: Port, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Detector(_model([IMAGES], _outputs_with(wrong), PARAMETERS))


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("empty", [True, False])
def test_a_detector_needs_each_of_its_parameters(name: str, empty: bool) -> None:
    parameters = {**PARAMETERS, name: ""}
    if not empty:
        del parameters[name]
    with pytest.raises(ConfigurationError, match=f"config.pbtxt has no parameter '{name}'"):
        Detector(_model([IMAGES], DETECTIONS, parameters))


@pytest.mark.parametrize("name", ["score_threshold", "nms_threshold"])
@pytest.mark.parametrize("value", ["-0.01", "1.01", "nan", "inf", "half", "0,5"])
def test_a_threshold_outside_0_to_1_is_refused(name: str, value: str) -> None:
    message = f"parameter '{name}' must be a number from 0 to 1, not '{value}'"
    with pytest.raises(ConfigurationError, match=message):
        Detector(_model([IMAGES], DETECTIONS, {**PARAMETERS, name: value}))


@pytest.mark.parametrize("value", ["0", "1", "0.0", "1.0", "1e-3"])
def test_a_threshold_from_0_to_1_is_taken(value: str) -> None:
    parameters = {**PARAMETERS, "score_threshold": value, "nms_threshold": value}
    detector = Detector(_model([IMAGES], DETECTIONS, parameters))
    assert detector.score_threshold == detector.nms_threshold == float(value)


async def test_a_detector_answers_image_by_image() -> None:
    random = np.random.default_rng(0)
    answer = {
        "boxes": random.random((2, 5, 4), np.float32),
        "scores": random.random((2, 5), np.float32),
        "labels": random.integers(0, 2, (2, 5), np.int32),
    }
    detector = Detector(_model([IMAGES], DETECTIONS, PARAMETERS, answer))
    found = await detector.detect(np.zeros((2, 32, 32, 3), np.uint8))
    assert len(found) == 2
    for index, candidates in enumerate(found):
        assert (candidates.boxes == answer["boxes"][index]).all()
        assert (candidates.scores == answer["scores"][index]).all()
        assert (candidates.labels == answer["labels"][index]).all()


# The embedder's contract


def test_an_embedder_is_described_by_its_configuration() -> None:
    embedder = Embedder(_model([CROPS], [EMBEDDINGS]))
    assert (embedder.name, embedder.size, embedder.dimension) == ("tiny", 16, 8)
    assert (embedder.crop_geometry, embedder.crop_margin) == ("stretch", 0)
    assert embedder.sha256 == SHA256


def test_an_embedder_says_how_its_crops_are_cut() -> None:
    parameters = {"crop_geometry": "pad", "crop_margin": "0.1"}
    embedder = Embedder(_model([CROPS], [EMBEDDINGS], parameters))
    assert (embedder.crop_geometry, embedder.crop_margin) == ("pad", 0.1)


def test_crops_that_are_cut_in_another_way_make_another_embedder() -> None:
    def identity(**parameters: str) -> str:
        return Embedder(_model([CROPS], [EMBEDDINGS], parameters)).sha256

    by_default = (
        identity(),
        identity(crop_geometry="stretch"),
        identity(crop_geometry="stretch", crop_margin="0.0"),
    )
    assert set(by_default) == {SHA256}
    others = [
        identity(crop_margin="0.1"),
        identity(crop_margin="0.2"),
        identity(crop_geometry="pad"),
        identity(crop_geometry="square"),
        identity(crop_geometry="square", crop_margin="0.1"),
    ]
    assert len({SHA256, *others}) == 6
    assert all(len(other) == len(SHA256) for other in others)
    # Written in another way, it is the same number.
    assert identity(crop_margin="0.10") == identity(crop_margin="1e-1") == others[0]


@pytest.mark.parametrize("value", ["", "Pad", "letterbox", "stretch,pad"])
def test_a_crop_geometry_that_there_is_not_is_refused(value: str) -> None:
    message = f"parameter 'crop_geometry' must be one of stretch, square, pad, not '{value}'"
    with pytest.raises(ConfigurationError, match=message):
        Embedder(_model([CROPS], [EMBEDDINGS], {"crop_geometry": value}))


@pytest.mark.parametrize("value", ["", "-0.01", "1.01", "nan", "10%"])
def test_a_crop_margin_outside_0_to_1_is_refused(value: str) -> None:
    message = f"parameter 'crop_margin' must be a number from 0 to 1, not '{value}'"
    with pytest.raises(ConfigurationError, match=message):
        Embedder(_model([CROPS], [EMBEDDINGS], {"crop_margin": value}))


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ([IMAGES], [EMBEDDINGS], "its input must be 'crops' alone, not images"),
        ([("crops", "UINT8", (16, 8, 3))], [EMBEDDINGS], r"must be UINT8 \[S, S, 3\]"),
        ([("crops", "INT8", (16, 16, 3))], [EMBEDDINGS], r"not INT8 \[16, 16, 3\]"),
        ([CROPS], [], "model tiny has no output 'embeddings'"),
        ([CROPS], [("vectors", "FP32", (8,))], "model tiny has no output 'embeddings'"),
        ([CROPS], [("embeddings", "FP64", (8,))], r"must be FP32 with 1 fixed dims, not FP64"),
        ([CROPS], [("embeddings", "FP32", (8, 1, 1))], r"1 fixed dims, not FP32 \[8, 1, 1\]"),
        ([CROPS], [("embeddings", "FP32", (-1,))], r"1 fixed dims, not FP32 \[-1\]"),
    ],
)
def test_an_embedder_takes_square_crops_and_gives_one_vector(
    inputs: list[Port], outputs: list[Port], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Embedder(_model(inputs, outputs))


async def test_an_embedder_gives_the_models_vectors() -> None:
    vectors = np.random.default_rng(0).random((3, 8), np.float32)
    embedder = Embedder(_model([CROPS], [EMBEDDINGS], answer={"embeddings": vectors}))
    assert (await embedder.embed(np.zeros((3, 16, 16, 3), np.uint8)) == vectors).all()


async def test_no_crops_make_no_vectors_and_do_not_trouble_the_model() -> None:
    model = _model([CROPS], [EMBEDDINGS])
    vectors = await Embedder(model).embed(np.empty((0, 16, 16, 3), np.uint8))
    assert vectors.shape == (0, 8)
    assert vectors.dtype == np.float32
    assert model.asked == 0


# The pair in use


def test_the_small_pair_is_used_until_both_full_models_are_exported(tmp_path: Path) -> None:
    small = ("yolov3-small", "resnet50-small")
    assert default_pair(tmp_path) == small
    for name in ("yolov3", "resnet50"):
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "config.pbtxt").touch()
    assert default_pair(tmp_path) == small
    (tmp_path / "yolov3" / "1" / "model.onnx").touch()
    assert default_pair(tmp_path) == small
    (tmp_path / "resnet50" / "1" / "model.onnx").touch()
    assert default_pair(tmp_path) == ("yolov3", "resnet50")
