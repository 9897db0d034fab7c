"""YOLOv3 and its relatives at full size, against OpenCV's: both read the same darknet files.

OpenCV shares no line with this code: parser of the ``.cfg``, reader of the ``.weights``, layers,
decoding of boxes are its own. The weights are made up, and pixels and scores still have to agree.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scripts.export_models import darknet, yolov3
from scripts.export_models.contract import MAX_DETECTIONS, ModelSpec, detector_spec
from scripts.export_models.official import CATALOGUE, OfficialDetector
from scripts.export_models.onnx_file import export_onnx
from scripts.export_models.yolov3 import Darknet, Detector
from tests.scripts.export_models.lively_weights import busy_images, enliven
from tests.scripts.export_models.opencv_darknet import Predictions, opencv_predictions
from tests.scripts.export_models.runtimes import RUNTIMES, assert_same_alone_and_among_eight
from tests.scripts.export_models.tiny_networks import TINY_CFG

BOX_TOLERANCE: Final = 0.1
"""In pixels of the input."""

SCORE_TOLERANCE: Final = 1e-3

# Raw values of a head, over all its cells: of the box's place, of its size, of objectness, of the
# classes. Few objects and few classes to each, so that the best pairs go from near 1 to near 0.
PLACE_DEVIATION: Final = 1.5
SIZE_DEVIATION: Final = 0.5
OBJECTNESS_DEVIATION: Final = 5.0
CLASS_DEVIATION: Final = 5.0
CLASS_MEAN: Final = -10.0
LIKELY_OBJECTS: Final = 3
"""Predictions of each anchor whose objectness is 1/2 or more."""


@dataclass(frozen=True, slots=True)
class Detections:
    """What a ``Detector`` gives for one image."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int32]


def spec_of(network: darknet.Network) -> ModelSpec:
    labels = [f"class {number}" for number in range(network.classes)]
    return detector_spec(size=network.size, labels=labels, score_threshold=0.25, nms_threshold=0.45)


def as_pixels(image: NDArray[np.uint8]) -> Tensor:
    """What ``Darknet`` takes."""
    return torch.from_numpy(image).permute(2, 0, 1).unsqueeze(0) / 255


def lively_network(network: darknet.Network, image: NDArray[np.uint8]) -> Darknet:
    """The network with weights that find something in ``image``, with each head and each anchor."""
    model = Darknet(network)
    heads = enliven(model, as_pixels(image), seed=0)
    places = [i for i, layer in enumerate(network.layers) if isinstance(layer, darknet.Yolo)]
    for place, head in zip(places, heads, strict=True):
        last = model.blocks[place - 1]
        assert isinstance(last, nn.Sequential)
        _set_spread(last[0], head[0].flatten(1), network.classes)
    return model


def _set_spread(last: nn.Module, raw: Tensor, classes: int) -> None:
    """Changes a head's ``last`` convolution, which gave ``raw`` [channels, cells]."""
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    deviation = torch.full((len(raw) // (5 + classes), 5 + classes), CLASS_DEVIATION)
    deviation[:, :2] = PLACE_DEVIATION
    deviation[:, 2:4] = SIZE_DEVIATION
    deviation[:, 4] = OBJECTNESS_DEVIATION
    mean = torch.full_like(deviation, CLASS_MEAN)
    mean[:, :4] = 0
    standard = (raw - raw.mean(1, keepdim=True)) / raw.std(1, keepdim=True)
    objectness = standard.view(*deviation.shape, -1)[:, 4]
    mean[:, 4] = -OBJECTNESS_DEVIATION * objectness.topk(LIKELY_OBJECTS).values[:, -1]
    factor = deviation.flatten() / raw.std(1)
    with torch.no_grad():
        last.weight.mul_(factor.view(-1, 1, 1, 1))
        last.bias.copy_(mean.flatten() + (last.bias - raw.mean(1)) * factor)


def detections(outputs: Any) -> Detections:
    return Detections(*(np.asarray(output[0]) for output in outputs))


def torch_detections(model: Darknet, image: NDArray[np.uint8]) -> Detections:
    with torch.inference_mode():
        return detections(Detector(model).eval()(torch.from_numpy(image)[None]))


def check_same(found: Detections, expected: Predictions) -> NDArray[np.int64]:
    """Asserts that ``found`` are the best of what is expected, each once.

    Returns:
        Which of the predictions each of the detections is.
    """
    near = np.abs(expected.scores[:, found.labels].T - found.scores[:, None]) <= SCORE_TOLERANCE
    apart = np.abs(found.boxes[:, None] - expected.boxes[None]).max(-1)
    apart = np.where(near, apart, np.inf)
    sources: NDArray[np.int64] = apart.argmin(1)
    # Written so that NaN fails.
    assert apart.min(1).max() <= BOX_TOLERANCE, "a detection is none of OpenCV's"
    chosen = np.zeros(expected.scores.shape, bool)
    chosen[sources, found.labels] = True
    assert chosen.sum() == MAX_DETECTIONS, "a detection comes twice"
    assert expected.scores[~chosen].max() <= found.scores[-1] + SCORE_TOLERANCE, "one is missing"
    return sources


OFFICIAL: Final = {
    name: model for name, model in CATALOGUE.items() if isinstance(model, OfficialDetector)
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_opencv_finds_the_same(name: str, tmp_path: Path) -> None:
    official = OFFICIAL[name]
    network = darknet.parse_cfg(official.cfg)
    spec = spec_of(network)
    image = busy_images(spec, 1, seed=0)[0]
    path = tmp_path / "made.weights"
    try:
        darknet.write_weights(path, network, lively_network(network, image).darknet_weights())
        assert path.stat().st_size == official.weights.size
        model = Darknet(network).eval()
        model.load_darknet_weights(darknet.read_weights(path, network))
        expected = opencv_predictions(official.cfg, path, image)
    finally:
        path.unlink(missing_ok=True)  # a quarter of a gigabyte

    found = torch_detections(model, image)
    sources = check_same(found, expected)
    # The agreement says something: sure and doubtful ones, of every anchor, of most classes.
    assert found.scores[0] > 0.9
    assert found.scores[-1] < 0.2
    every_anchor = np.arange(expected.anchors.max() + 1)
    np.testing.assert_array_equal(np.unique(expected.anchors[sources]), every_anchor)
    assert len(np.unique(found.labels)) > network.classes / 2

    onnx = export_onnx(Detector(model), spec)
    for runtime in RUNTIMES.values():
        run = runtime(onnx, spec)
        answer = run(image[None])
        check_same(detections(answer[output.name] for output in spec.outputs), expected)
        if name == "yolov3-tiny":  # the others would take minutes
            assert_same_alone_and_among_eight(run, spec, busy_images(spec, 8, seed=1))


@dataclass(frozen=True, slots=True)
class Small:
    """A small network with sections of every kind, and what OpenCV makes of it."""

    model: Darknet
    image: NDArray[np.uint8]
    expected: Predictions


def small(folder: Path, *, kernel_factor: float = 1.0) -> Small:
    """With ``kernel_factor`` on every kernel that normalisation follows, and on what it expects."""
    network = darknet.parse_cfg(TINY_CFG)
    image = busy_images(spec_of(network), 1, seed=0)[0]
    model = lively_network(network, image)
    with torch.no_grad():
        for block in model.blocks:
            if not isinstance(block, nn.Sequential):
                continue
            kernel, norm = block[0].weight, block[1]
            if isinstance(norm, nn.BatchNorm2d):
                assert isinstance(kernel, Tensor)
                assert norm.running_mean is not None
                assert norm.running_var is not None
                kernel.mul_(kernel_factor)
                norm.running_mean.mul_(kernel_factor)
                norm.running_var.mul_(kernel_factor**2)
    path = folder / "made.weights"
    darknet.write_weights(path, network, model.darknet_weights())
    return Small(model, image, opencv_predictions(TINY_CFG, path, image))


@pytest.fixture(scope="module")
def agreed(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small(tmp_path_factory.mktemp("small"))


def test_opencv_finds_the_same_in_a_small_network(agreed: Small) -> None:
    check_same(torch_detections(agreed.model, agreed.image), agreed.expected)


def another_cfg(old: str, new: str) -> Callable[[Darknet], Darknet]:
    def change(model: Darknet) -> Darknet:
        assert old in TINY_CFG
        changed = Darknet(darknet.parse_cfg(TINY_CFG.replace(old, new)))
        changed.load_state_dict(model.state_dict())
        return changed.eval()

    return change


def each(kind: type[nn.Module], name: str, value: object) -> Callable[[Darknet], Darknet]:
    def change(model: Darknet) -> Darknet:
        changed = copy.deepcopy(model)
        modules = [module for module in changed.modules() if isinstance(module, kind)]
        assert modules
        for module in modules:
            assert hasattr(module, name)
            setattr(module, name, value)
        return changed

    return change


def pooling_padded_before(model: Darknet) -> Darknet:
    changed = copy.deepcopy(model)
    last = [block for block in changed.blocks if hasattr(block, "pool")][-1]
    assert last.padding == (0, 1, 0, 1)
    last.padding = (1, 0, 1, 0)  # type: ignore[assignment]
    return changed


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(another_cfg("30,30", "31,30"), id="an anchor a pixel wider"),
        pytest.param(another_cfg("mask=0,1,2", "mask=1,2,3"), id="other anchors"),
        pytest.param(another_cfg("layers=-1,-2", "layers=-2,-1"), id="a route turned round"),
        pytest.param(another_cfg("layers=-1,4", "layers=-1,3"), id="a route from another layer"),
        pytest.param(another_cfg("from=-3", "from=-2"), id="a shortcut from another layer"),
        pytest.param(pooling_padded_before, id="a pooling padded before, not after"),
        pytest.param(each(nn.LeakyReLU, "negative_slope", 0.11), id="a steeper leak"),
        pytest.param(each(nn.Upsample, "mode", "bilinear"), id="a smooth upsampling"),
        pytest.param(each(nn.BatchNorm2d, "eps", 0.1), id="more added to the variance"),
    ],
)
def test_a_difference_shows(agreed: Small, change: Callable[[Darknet], Darknet]) -> None:
    with pytest.raises(AssertionError, match=r"none of OpenCV's|comes twice|is missing"):
        check_same(torch_detections(change(agreed.model), agreed.image), agreed.expected)


def test_channels_in_another_order_show(agreed: Small) -> None:
    bgr = np.ascontiguousarray(agreed.image[..., ::-1])
    with pytest.raises(AssertionError, match="none of OpenCV's"):
        check_same(torch_detections(agreed.model, bgr), agreed.expected)


def test_what_is_added_to_the_variance_is_all_that_differs(tmp_path: Path) -> None:
    """OpenCV adds 1e-6, darknet on a GPU 1e-5, and so does cuDNN, which it trains with.

    Darknet on a CPU adds 1e-6 too, but to the root. It only matters to channels whose variance is
    tiny, as these are made to be.
    """
    assert yolov3.BATCH_NORM_EPSILON == 1e-5
    faint = small(tmp_path, kernel_factor=1e-3)
    with pytest.raises(AssertionError, match="none of OpenCV's"):
        check_same(torch_detections(faint.model, faint.image), faint.expected)
    for module in faint.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-6
    check_same(torch_detections(faint.model, faint.image), faint.expected)
