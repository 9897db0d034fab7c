from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import nn

from backend.vision.crops import crop_objects
from backend.vision.detections import Detections, select_detections
from backend.vision.letterbox import letterbox
from benchmarks.voc import DATA_VARIABLE, VocPhoto, read_split
from scripts.export_models.contract import ModelSpec, detector_spec, embedder_spec
from scripts.export_models.errors import WeightsError
from scripts.export_models.formats import Precision
from scripts.export_models.half_precision import HalfPrecision, half_precision
from scripts.export_models.onnx_file import (
    TOLERANCES,
    check_parity,
    differences,
    export_onnx,
    scenes,
)
from scripts.export_models.resnet50 import Embedder
from scripts.export_models.yolov3 import Detector
from tests.scripts.export_models.committed_models import SPECS, committed_module, model_path
from tests.scripts.export_models.runtimes import Run, onnx_runtime, open_vino
from tests.scripts.export_models.tiny_networks import TINY_LABELS, tiny_darknet, tiny_resnet50

DETECTOR_SPEC = detector_spec(size=64, labels=TINY_LABELS, score_threshold=0.25, nms_threshold=0.45)
EMBEDDER_SPEC = embedder_spec(size=64, dimension=64)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[nn.Module, bytes, ModelSpec]]:
    """Tiny models in PyTorch, their ONNX files in FP16, their contracts."""
    detector = Detector(tiny_darknet(tmp_path_factory.mktemp("weights")))
    embedder = Embedder(tiny_resnet50())
    return [
        (module, export_onnx(half_precision(module), spec), spec)
        for module, spec in ((detector, DETECTOR_SPEC), (embedder, EMBEDDER_SPEC))
    ]


def element_types(model: bytes) -> dict[str, int]:
    """Types of all tensors of a graph."""
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(model), strict_mode=True).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        types[value.name] = value.type.tensor_type.elem_type
    return types


def test_the_network_is_in_fp16_and_what_surrounds_it_as_before(
    models: list[tuple[nn.Module, bytes, ModelSpec]],
) -> None:
    for _, model, spec in models:
        graph = onnx.load_from_string(model)
        onnx.checker.check_model(graph, full_check=True)
        types = element_types(model)
        convolutions = [node for node in graph.graph.node if node.op_type == "Conv"]
        assert convolutions
        for node in convolutions:
            assert {types[name] for name in (*node.input, *node.output)} == {TensorProto.FLOAT16}
        for node in graph.graph.node:
            if node.op_type in ("Sigmoid", "Exp", "TopK", "ReduceL2", "Div", "Mul"):
                assert TensorProto.FLOAT16 not in {types[name] for name in node.output}, node.name
        assert types[spec.input.name] == TensorProto.UINT8
        onnx_types = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32}
        for output in spec.outputs:
            assert types[output.name] == onnx_types[output.data_type.value]


def test_runtimes_give_nearly_what_pytorch_gives_in_fp32(
    models: list[tuple[nn.Module, bytes, ModelSpec]],
) -> None:
    for module, model, spec in models:
        check_parity(module, model, spec, precision=Precision.FP16)
        images = scenes(spec, 3, seed=1)
        expected, actual = (run(model, spec)(images) for run in (onnx_runtime, open_vino))
        differences(expected, actual, spec, TOLERANCES[Precision.FP16])


def test_the_model_itself_stays_in_fp32() -> None:
    embedder = Embedder(tiny_resnet50())
    before = {name: tensor.clone() for name, tensor in embedder.state_dict().items()}
    halved = half_precision(embedder)
    assert isinstance(halved.get_submodule("network"), HalfPrecision)
    assert {name: tensor.dtype for name, tensor in halved.named_buffers()} == {
        "scale": torch.float32,
        "offset": torch.float32,
    }
    after = embedder.state_dict()
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=0)


def test_a_weight_may_be_as_large_as_fp16_allows_and_no_larger() -> None:
    for value, fits in ((65504.0, True), (65536.0, False)):
        convolution = nn.Conv2d(3, 1, 1)
        convolution.weight.data.fill_(value)
        network = nn.Sequential(convolution)
        if fits:
            HalfPrecision(network)
        else:
            with pytest.raises(WeightsError, match=r"0\.weight .* beyond FP16's 65,504: .*fp32"):
                HalfPrecision(network)


def test_a_small_variance_is_no_harm() -> None:
    """Below FP16's smallest number on its own, but it is not on its own."""
    norm = nn.BatchNorm2d(1)
    assert norm.running_var is not None
    norm.running_var.fill_(1e-9)
    convolution = nn.Conv2d(1, 1, 1, bias=False)
    convolution.weight.data.fill_(0.5)
    pixels = torch.full((1, 1, 1, 1), 0.25)
    answer = HalfPrecision(nn.Sequential(convolution, norm))(pixels)
    assert isinstance(answer, torch.Tensor)
    assert answer.item() == pytest.approx(0.125 / (1e-9 + 1e-5) ** 0.5, rel=1e-3)


# Enough for hundreds of detections, few enough for seconds.
PHOTOS = 100
CROPS = 300

real_photos = pytest.mark.skipif(
    DATA_VARIABLE not in os.environ, reason=f"{DATA_VARIABLE} names no folder of photos"
)


@pytest.fixture(scope="module")
def photos() -> list[VocPhoto]:
    return read_split(Path(os.environ[DATA_VARIABLE]) / "val", limit=PHOTOS)


def both_precisions(name: str) -> tuple[Run, Run]:
    """One of the small pair as it lies in the repository, and in FP16."""
    spec = SPECS[name]
    half = export_onnx(half_precision(committed_module(name)), spec)
    return onnx_runtime(model_path(name).read_bytes(), spec), onnx_runtime(half, spec)


def found(run: Run, image: NDArray[np.uint8], placement: Any) -> Detections:
    answer = run(image[None])
    parameters = SPECS["yolov3-small"].parameters
    return select_detections(
        answer["boxes"][0],
        answer["scores"][0],
        answer["labels"][0],
        placement=placement,
        score_threshold=float(parameters["score_threshold"]),
        nms_threshold=float(parameters["nms_threshold"]),
    )


@real_photos
def test_in_real_photos_the_same_objects_are_found(photos: list[VocPhoto]) -> None:
    """As the service finds them, to a pixel of the detector's input."""
    full, half = both_precisions("yolov3-small")
    size = SPECS["yolov3-small"].input.dims[0]
    total = agreeing = 0
    for photo in photos:
        pixels = photo.pixels()
        image, placement = letterbox(pixels, size)
        expected, actual = (found(run, image, placement) for run in (full, half))
        pixel = max(pixels.shape[:2]) / size  # of the input, in pixels of the photo
        for box, label in zip(expected.boxes, expected.labels, strict=True):
            near = (np.abs(actual.boxes - box) <= pixel).all(axis=1)
            agreeing += bool((near & (actual.labels == label)).any())
        total += len(expected)
    assert total >= 200
    assert agreeing >= 0.99 * total


@real_photos
def test_real_objects_have_the_same_embeddings(photos: list[VocPhoto]) -> None:
    full, half = both_precisions("resnet50-small")
    size = SPECS["resnet50-small"].input.dims[0]
    crops = np.concatenate(
        [
            crop_objects(photo.pixels(), np.array([x.box for x in photo.objects], np.float32), size)
            for photo in photos
        ]
    )[:CROPS]
    assert len(crops) >= CROPS / 2
    cosines = (full(crops)["embeddings"] * half(crops)["embeddings"]).sum(axis=1)
    assert cosines.min() > 0.9999
