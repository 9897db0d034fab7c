from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from scripts.export_models import darknet
from scripts.export_models.contract import MAX_DETECTIONS
from scripts.export_models.errors import ContractError
from scripts.export_models.yolov3 import Darknet, Detector
from tests.scripts.export_models.tiny_networks import (
    random_floats,
    tiny_darknet,
    tiny_network,
    write_weights,
)

Array: TypeAlias = NDArray[np.float64]


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def windows(padded: Array, size: int, stride: int) -> Array:
    """[C, H, W] to [C, rows, columns, size, size]."""
    view = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
    return view[:, ::stride, ::stride]


def darknet_forward(
    network: darknet.Network, weights: dict[int, darknet.ConvolutionalWeights], image: Array
) -> list[Array]:
    """Darknet's layers as its sources compute them, for one image [3, H, W], in FP64."""
    outputs: list[Array] = []
    heads: list[Array] = []
    x = image
    for index, layer in enumerate(network.layers):
        match layer:
            case darknet.Convolutional():
                learnt = weights[index]
                pad = layer.padding
                seen = windows(
                    np.pad(x, ((0, 0), (pad, pad), (pad, pad))), layer.size, layer.stride
                )
                x = np.einsum("crskl,fckl->frs", seen, learnt.kernel.astype(float))
                if learnt.batch_norm is not None:
                    norm = learnt.batch_norm
                    deviation = np.sqrt(norm.variance[:, None, None] + 1e-5)
                    x = (x - norm.mean[:, None, None]) / deviation * norm.scale[:, None, None]
                x = x + learnt.bias[:, None, None]
                x = np.where(x > 0, x, 0.1 * x) if layer.activation == "leaky" else x
            case darknet.MaxPool():
                # Output (i, j) is the maximum from pixel i * stride - padding / 2 on.
                before = layer.padding // 2
                sides = (before, layer.padding - before)
                padded = np.pad(x, ((0, 0), sides, sides), constant_values=-np.inf)
                x = windows(padded, layer.size, layer.stride).max((-1, -2))
            case darknet.Shortcut(source):
                x = x + outputs[source]
            case darknet.Route(sources):
                x = np.concatenate([outputs[source] for source in sources])
            case darknet.Upsample(stride):
                x = x.repeat(stride, 1).repeat(stride, 2)
            case darknet.Yolo():
                heads.append(x)
        outputs.append(x)
    return heads


def darknet_candidates(network: darknet.Network, heads: list[Array]) -> tuple[Array, Array]:
    """Boxes [A, 4] and scores [A, classes] of one image, decoded cell by cell as darknet does.

    Darknet's boxes are centre and size in parts of the image; here they are corners in pixels.
    """
    boxes, scores = [], []
    yolos = [layer for layer in network.layers if isinstance(layer, darknet.Yolo)]
    for yolo, head in zip(yolos, heads, strict=True):
        height, width = head.shape[1:]
        entries = head.reshape(len(yolo.anchors), 5 + yolo.classes, height, width)
        for n, (anchor_width, anchor_height) in enumerate(yolo.anchors):
            for i in range(height * width):
                row, column = divmod(i, width)
                t = entries[n, :, row, column]
                x = (column + sigmoid(t[0])) / width * network.size
                y = (row + sigmoid(t[1])) / height * network.size
                w = np.exp(t[2]) * anchor_width
                h = np.exp(t[3]) * anchor_height
                boxes.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
                scores.append(sigmoid(t[4]) * sigmoid(t[5:]))
    return np.array(boxes), np.array(scores)


def assert_best(
    detections: tuple[NDArray[Any], NDArray[Any], NDArray[Any]], boxes: Array, scores: Array
) -> None:
    """``detections`` of one image are the best pairs of a box and a class, best first."""
    got_boxes, got_scores, got_labels = detections
    np.testing.assert_allclose(
        got_scores, np.sort(scores, axis=None)[::-1][: len(got_scores)], rtol=0, atol=1e-6
    )
    assert (np.diff(got_scores) <= 0).all()
    # Each is a true candidate, and none comes twice: which of equal ones come is left open.
    apart = np.abs(got_boxes[:, None] - boxes[None]).max(-1)
    apart = np.where(np.abs(got_scores[:, None] - scores.T[got_labels]) < 1e-6, apart, np.inf)
    sources = apart.argmin(1)
    assert apart.min(1).max() < 1e-3
    assert len(set(zip(sources, got_labels, strict=True))) == len(got_scores)


def numpy_detections(outputs: tuple[Tensor, Tensor, Tensor], image: int) -> Any:
    return tuple(output[image].numpy() for output in outputs)


def test_every_layer_computes_what_darknets_does(tmp_path: Path) -> None:
    network = tiny_network()
    path = write_weights(tmp_path / "w", random_floats(network))
    images = np.random.default_rng(1).uniform(0, 1, (2, 3, 64, 64))

    with torch.inference_mode():
        heads = tiny_darknet(tmp_path)(torch.from_numpy(images).float())

    for number, image in enumerate(images):
        expected = darknet_forward(network, darknet.read_weights(path, network), image)
        assert [head.shape for head in expected] == [(24, 8, 8), (24, 16, 16)]
        for head, wanted in zip(heads, expected, strict=True):
            np.testing.assert_allclose(head[number].numpy(), wanted, rtol=0, atol=1e-4)


def test_detections_are_decoded_as_darknet_does(tmp_path: Path) -> None:
    model = tiny_darknet(tmp_path)
    images = np.random.default_rng(2).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)

    with torch.inference_mode():
        outputs = Detector(model)(torch.from_numpy(images))
        heads = model(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)

    boxes, scores, labels = outputs
    assert (boxes.shape, boxes.dtype) == ((2, MAX_DETECTIONS, 4), torch.float32)
    assert (scores.shape, scores.dtype) == ((2, MAX_DETECTIONS), torch.float32)
    assert (labels.shape, labels.dtype) == ((2, MAX_DETECTIONS), torch.int32)
    for number in range(2):
        one = [head[number].double().numpy() for head in heads]
        assert_best(numpy_detections(outputs, number), *darknet_candidates(model.network, one))


def test_channels_are_red_green_blue(tmp_path: Path) -> None:
    model = tiny_darknet(tmp_path)
    red = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    red[..., 0] = 255
    planes = torch.zeros(1, 3, 64, 64)
    planes[:, 0] = 1

    with torch.inference_mode():
        _, scores, _ = Detector(model)(red)
        heads = [head[0].double().numpy() for head in model(planes)]

    _, expected = darknet_candidates(model.network, heads)
    assert scores[0, 0].item() == pytest.approx(expected.max(), abs=1e-6)


class GivenHeads(nn.Module):
    """Stands where a network is, and gives these raw outputs whatever the image."""

    def __init__(self, heads: list[Tensor]) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.heads


def one_head_network(classes: int, size: int) -> darknet.Network:
    anchors = ((10.0, 13.0), (16.0, 30.0), (33.0, 23.0))
    layers = (
        darknet.Convolutional(3, 3 * (5 + classes), 8, 8, 0, False, "linear"),
        darknet.Yolo(anchors, classes),
    )
    return darknet.Network(size, layers, (darknet.Shape(3 * (5 + classes), size // 8),) * 2)


@settings(deadline=None, max_examples=60)
@given(
    classes=st.integers(1, 30),
    cells=st.integers(3, 14),
    spread=st.floats(0.1, 6),
    ties=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_two_steps_choose_what_sorting_all_candidates_would(
    classes: int, cells: int, spread: float, ties: bool, seed: int
) -> None:
    network = one_head_network(classes, 8 * cells)
    candidates = 3 * cells**2 * classes
    if candidates < MAX_DETECTIONS:
        with pytest.raises(ContractError, match=f"gives {candidates} candidates"):
            Detector(Darknet(network))
        return
    detector = Detector(Darknet(network))
    raw = np.random.default_rng(seed).normal(0, spread, (2, 3 * (5 + classes), cells, cells))
    # Boxes differ, so that equal scores can still be told apart.
    entries = raw.reshape(2, 3, 5 + classes, cells, cells)
    entries[:, :, 2:4] = entries[:, :, 2:4].clip(-2, 2)
    if ties:
        entries[:, :, 4:] = entries[:, :, 4:].round()
    raw = raw.astype(np.float32).astype(np.float64)
    detector.network = GivenHeads([torch.from_numpy(raw).float()])  # type: ignore[assignment]

    outputs = detector(torch.zeros(2, 8 * cells, 8 * cells, 3, dtype=torch.uint8))

    for image in range(2):
        boxes, scores = darknet_candidates(network, [raw[image]])
        assert_best(numpy_detections(outputs, image), boxes, scores)


def test_the_full_network_holds_the_published_number_of_weights() -> None:
    network = darknet.parse_cfg(darknet.yolov3_cfg(width=1, classes=80, size=416))
    with torch.device("meta"):  # counts without memory
        model = Darknet(network)
    learnt = [
        tensor
        for name, tensor in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    ]
    assert sum(tensor.numel() for tensor in learnt) == 62_001_757 == network.weight_count
