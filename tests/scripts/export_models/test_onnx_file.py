from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from scripts.export_models.contract import detector_spec, embedder_spec
from scripts.export_models.errors import ParityError
from scripts.export_models.formats import OPSETS, Precision
from scripts.export_models.onnx_file import (
    TOLERANCES,
    check_parity,
    differences,
    export_onnx,
    noise,
    scenes,
)
from scripts.export_models.resnet50 import Embedder
from scripts.export_models.yolov3 import Detector
from tests.scripts.export_models.runtimes import (
    RUNTIMES,
    assert_same_alone_and_among_eight,
    onnx_runtime,
    open_vino,
)
from tests.scripts.export_models.tiny_networks import (
    TINY_LABELS,
    MeanColour,
    tiny_darknet,
    tiny_resnet50,
)

MEAN_COLOUR_SPEC = embedder_spec(size=32, dimension=3)
EMBEDDER_SPEC = embedder_spec(size=64, dimension=64)
DETECTOR_SPEC = detector_spec(size=64, labels=TINY_LABELS, score_threshold=0.25, nms_threshold=0.45)


@pytest.fixture(scope="module")
def mean_colour() -> bytes:
    return export_onnx(MeanColour(), MEAN_COLOUR_SPEC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def detector(folder: Path) -> bytes:
    return export_onnx(Detector(tiny_darknet(folder)), DETECTOR_SPEC)


@pytest.fixture(scope="module")
def embedder() -> bytes:
    return export_onnx(Embedder(tiny_resnet50()), EMBEDDER_SPEC)


def test_the_file_is_valid_free_in_its_batch_and_self_contained(detector: bytes) -> None:
    model = onnx.load_from_string(detector)
    onnx.checker.check_model(model, full_check=True)
    assert [(x.domain, x.version) for x in model.opset_import] == [("", 18)]
    assert model.ir_version == 8
    assert [x.name for x in model.graph.input] == ["images"]
    assert [x.name for x in model.graph.output] == ["boxes", "scores", "labels"]
    for tensor in (*model.graph.input, *model.graph.output):
        assert tensor.type.tensor_type.shape.dim[0].dim_param
    assert not any(tensor.external_data for tensor in model.graph.initializer)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_image_gets_the_same_answer_alone_and_among_eight(
    detector: bytes, embedder: bytes, runtime: str
) -> None:
    for model, spec in ((detector, DETECTOR_SPEC), (embedder, EMBEDDER_SPEC)):
        run = RUNTIMES[runtime](model, spec)
        assert_same_alone_and_among_eight(run, spec, scenes(spec, 8, seed=0))


def test_runtimes_agree(detector: bytes, embedder: bytes) -> None:
    for model, spec in ((detector, DETECTOR_SPEC), (embedder, EMBEDDER_SPEC)):
        images = scenes(spec, 3, seed=1)
        expected, actual = (run(model, spec)(images) for run in (onnx_runtime, open_vino))
        differences(expected, actual, spec, TOLERANCES[Precision.FP32])


@pytest.mark.parametrize("opset", OPSETS)
def test_each_opset_gives_a_file_that_agrees(opset: int) -> None:
    model = export_onnx(MeanColour(), MEAN_COLOUR_SPEC, opset=opset)
    (written,) = onnx.load_from_string(model).opset_import
    assert (written.domain, written.version) == ("", opset)
    check_parity(MeanColour(), model, MEAN_COLOUR_SPEC)


def test_the_newest_opset_does_for_a_detector(folder: Path) -> None:
    module = Detector(tiny_darknet(folder))
    model = export_onnx(module, DETECTOR_SPEC, opset=OPSETS[-1])
    check_parity(module, model, DETECTOR_SPEC)


def test_the_file_does_not_tell_where_it_was_made(detector: bytes) -> None:
    assert str(Path.home()).encode() not in detector
    assert b".py" not in detector


def test_numbers_of_detections_are_divided_as_whole_numbers(detector: bytes) -> None:
    """FP16, which TensorRT may use for every float, has no 2049: neighbours would be swapped."""
    graph = onnx.load_from_string(detector).graph
    chosen = [node.output[1] for node in graph.node if node.op_type == "TopK"]
    casts = [node for node in graph.node if node.op_type == "Cast" and node.input[0] in chosen]
    assert len(chosen) == 2
    assert not casts


def test_onnx_runtime_agrees_with_pytorch(
    mean_colour: bytes, detector: bytes, folder: Path
) -> None:
    differences = check_parity(MeanColour(), mean_colour, MEAN_COLOUR_SPEC)
    assert set(differences) == {"embeddings"}
    assert differences["embeddings"] < 1e-6

    differences = check_parity(Detector(tiny_darknet(folder)), detector, DETECTOR_SPEC)
    assert set(differences) == {"boxes", "scores"}
    assert differences["boxes"] < 0.1
    assert differences["scores"] < 1e-5


class Shifted(nn.Module):
    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, crops: Tensor) -> Tensor:
        return crops.to(torch.float32).mean(dim=(1, 2)) / 255 + self.shift


def test_embeddings_may_differ_by_the_tolerance_and_no_more(mean_colour: bytes) -> None:
    check_parity(Shifted(0.9e-4), mean_colour, MEAN_COLOUR_SPEC)
    with pytest.raises(ParityError, match=r"embeddings are up to 0\.00011 from"):
        check_parity(Shifted(1.1e-4), mean_colour, MEAN_COLOUR_SPEC)
    with pytest.raises(ParityError, match="embeddings are up to nan from"):
        check_parity(Shifted(float("nan")), mean_colour, MEAN_COLOUR_SPEC)


class Changed(nn.Module):
    """A detector whose answers are a little off."""

    def __init__(self, detector: Detector, **shifts: float) -> None:
        super().__init__()
        self.detector = detector
        self.shifts = shifts

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        boxes, scores, labels = self.detector(images)
        boxes = boxes + self.shifts.get("boxes", 0)
        scores = scores + self.shifts.get("scores", 0)
        labels = (labels + int(self.shifts.get("labels", 0))) % len(TINY_LABELS)
        return boxes, scores, labels


def test_detections_may_differ_by_the_tolerances_and_no_more(detector: bytes, folder: Path) -> None:
    same = Detector(tiny_darknet(folder))
    for shifts in ({"boxes": 0.09}, {"scores": 0.9e-3}):
        check_parity(Changed(same, **shifts), detector, DETECTOR_SPEC)
    for name, shift in (("boxes", 0.11), ("scores", 1.1e-3), ("labels", 1)):
        with pytest.raises(ParityError, match=name):
            check_parity(Changed(same, **{name: shift}), detector, DETECTOR_SPEC)
    with pytest.raises(ParityError, match="scores"):
        check_parity(Detector(tiny_darknet(folder, seed=1)), detector, DETECTOR_SPEC)


class Listed(nn.Module):
    """A detector that gives a list by heart: neighbours' scores are ``gap`` apart, or swapped."""

    def __init__(self, *, gap: float = 0.0, swapped: bool = False) -> None:
        super().__init__()
        places = torch.arange(300)
        self.order = places + (1 - 2 * (places % 2)) if swapped else places
        self.listed = 1 - (places // 2) / 300 - gap * (places % 2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch = images.to(torch.float32).mean(dim=(1, 2, 3)).unsqueeze(1)
        rank = batch + self.order
        boxes = rank.unsqueeze(-1) + torch.arange(4)
        labels = (batch * 0).to(torch.int32) + (self.order % 3).to(torch.int32)
        return boxes, batch * 0 + self.listed, labels


@pytest.mark.parametrize("gap", [0.0, 1e-3])
def test_only_detections_of_equal_score_may_change_places(gap: float) -> None:
    model = export_onnx(Listed(gap=gap), DETECTOR_SPEC)
    check_parity(Listed(gap=gap), model, DETECTOR_SPEC)
    if gap:
        with pytest.raises(ParityError, match="labels"):
            check_parity(Listed(gap=gap, swapped=True), model, DETECTOR_SPEC)
    else:
        check_parity(Listed(gap=gap, swapped=True), model, DETECTOR_SPEC)


def test_a_model_that_breaks_the_contract_is_refused(mean_colour: bytes) -> None:
    spec = embedder_spec(size=32, dimension=4)
    with pytest.raises(ParityError, match=r"is float32 \[1, 3\], the contract says .* \[1, 4\]"):
        check_parity(MeanColour(), mean_colour, spec)


def test_images_to_check_with_differ_and_repeat() -> None:
    for images_of in (noise, scenes):
        images = images_of(DETECTOR_SPEC, 2, seed=3)
        assert images.shape == (2, 64, 64, 3)
        assert images.dtype == np.uint8
        assert (images[0] != images[1]).any()
        np.testing.assert_array_equal(images, images_of(DETECTOR_SPEC, 2, seed=3))
    bars = scenes(DETECTOR_SPEC, 1, seed=0)[0, [0, 7, 56, 63]]
    assert (bars == 114).all()
