from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import nn

from backend.vision.crops import crop_objects
from backend.vision.detections import Detections, select_detections
from backend.vision.letterbox import Letterbox, letterbox
from benchmarks.voc import DATA_VARIABLE, VocPhoto, read_split
from scripts.export_models.contract import ModelSpec, detector_spec, embedder_spec
from scripts.export_models.errors import WeightsError
from scripts.export_models.formats import Precision
from scripts.export_models.half_precision import HalfPrecision, half_precision
from scripts.export_models.onnx_file import (
    TOLERANCES,
    Arrays,
    check_parity,
    differences,
    export_onnx,
    scenes,
)
from scripts.export_models.resnet50 import Embedder
from scripts.export_models.yolov3 import Detector
from tests.scripts.export_models.committed_models import SPECS, committed_module, model_path
from tests.scripts.export_models.runtimes import (
    RUNTIMES,
    Run,
    assert_same_alone_and_among_eight,
    onnx_runtime,
    open_vino,
)
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


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_image_gets_the_same_answer_alone_and_among_eight(
    models: list[tuple[nn.Module, bytes, ModelSpec]], runtime: str
) -> None:
    for _, model, spec in models:
        run = RUNTIMES[runtime](model, spec)
        assert_same_alone_and_among_eight(run, spec, scenes(spec, 8, seed=0))


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

SCORE_THRESHOLD = float(SPECS["yolov3-small"].parameters["score_threshold"])

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


@dataclass(frozen=True, slots=True)
class Agreement:
    """How what both precisions find in photos goes together; boxes in pixels of the input.

    ``furthest`` is of all candidates above the score threshold, of either precision, the largest
    difference from the other's. Of the objects that NMS leaves, each goes with one at most:
    ``differences`` are those of the boxes of each such pair.
    """

    in_full: int
    in_half: int
    same_label: int
    furthest: float
    differences: NDArray[np.float64]


def furthest(wanted: Arrays, found: Arrays) -> float:
    """Of candidates above the threshold, the furthest from the nearest of its label in another."""
    sure = wanted["scores"] >= SCORE_THRESHOLD
    apart = np.abs(wanted["boxes"][sure][:, None] - found["boxes"][None]).max(-1)
    same_label = wanted["labels"][sure][:, None] == found["labels"][None]
    return float(np.where(same_label, apart, np.inf).min(1).max(initial=0))


def objects(candidates: Arrays, placement: Letterbox) -> Detections:
    """As the service chooses them."""
    return select_detections(
        candidates["boxes"],
        candidates["scores"],
        candidates["labels"],
        placement=placement,
        score_threshold=SCORE_THRESHOLD,
        nms_threshold=float(SPECS["yolov3-small"].parameters["nms_threshold"]),
    )


def pairs(expected: Detections, actual: Detections) -> list[tuple[int, int]]:
    """Which goes with which, each with one at most: the nearest first, of one label before others.

    What is further than half of a box's shorter side is another object.
    """
    apart = np.abs(expected.boxes[:, None] - actual.boxes[None]).max(-1).astype(np.float64)
    sides = (expected.boxes[:, 2:] - expected.boxes[:, :2]).min(1, keepdims=True)
    apart[apart > sides / 2] = np.inf
    other_label = expected.labels[:, None] != actual.labels[None]
    chosen: list[tuple[int, int]] = []
    for place in np.lexsort((apart.ravel(), other_label.ravel())):
        row, column = (int(x) for x in np.unravel_index(place, apart.shape))
        if np.isfinite(apart[row, column]):
            chosen.append((row, column))
            apart[row], apart[:, column] = np.inf, np.inf
    return chosen


def agreement(photos: Sequence[VocPhoto]) -> Agreement:
    """Of the small detector in FP32 and in FP16, for as many photos as one has patience for."""
    runs = both_precisions("yolov3-small")
    size = SPECS["yolov3-small"].input.dims[0]
    in_full = in_half = same_label = 0
    largest = 0.0
    differences: list[float] = []
    for photo in photos:
        pixels = photo.pixels()
        image, placement = letterbox(pixels, size)
        full, half = ({k: v[0] for k, v in run(image[None]).items()} for run in runs)
        largest = max(largest, furthest(full, half), furthest(half, full))
        expected, actual = objects(full, placement), objects(half, placement)
        in_full, in_half = in_full + len(expected), in_half + len(actual)
        pixel = max(pixels.shape[:2]) / size  # of the input, in pixels of the photo
        for one, other in pairs(expected, actual):
            same_label += int(expected.labels[one] == actual.labels[other])
            apart = np.abs(expected.boxes[one] - actual.boxes[other]).max() / pixel
            differences.append(float(apart))
    return Agreement(in_full, in_half, same_label, largest, np.array(differences))


@real_photos
def test_in_real_photos_the_same_objects_are_found(photos: list[VocPhoto]) -> None:
    """The network's boxes are the same to a pixel, and so the objects of nearly every photo.

    Not of every one: of two boxes around an object whose scores are all but alike, NMS may keep one
    here and the other there.
    """
    both = agreement(photos)
    assert both.in_full >= 150
    assert both.furthest <= 1
    at_least = 0.99 * max(both.in_full, both.in_half)
    assert both.same_label >= at_least
    assert (both.differences <= 1).sum() >= at_least


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
