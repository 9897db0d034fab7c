"""ResNet-50 at full size against MONAI's, whose code shares nothing with this one.

It bears the same names of parameters, torchvision's, and strides where v1.5 does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Final

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scripts.export_models.contract import embedder_spec
from scripts.export_models.onnx_file import export_onnx
from scripts.export_models.resnet50 import (
    BASE_WIDTH,
    BLOCKS,
    IMAGENET_DEVIATION,
    IMAGENET_MEAN,
    Bottleneck,
    Embedder,
    ResNet50,
)
from tests.scripts.export_models.lively_weights import busy_images, enliven
from tests.scripts.export_models.runtimes import RUNTIMES, assert_same_alone_and_among_eight

TOLERANCE: Final = 1e-4
CLASSES: Final = 10
PARAMETERS: Final = 161  # 53 kernels, scale and bias of 53 normalisations, both of the classifier


def crops(size: int, count: int, *, seed: int) -> NDArray[np.uint8]:
    return busy_images(embedder_spec(size=size, dimension=2048), count, seed=seed)


def normalised(images: NDArray[np.uint8]) -> Tensor:
    """As the published weights want it, FP32 [N, 3, S, S]; computed in FP64."""
    pixels = (images / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_DEVIATION)
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2)).float()


def monai_resnet50() -> nn.Module:
    # Imported here, for it takes seconds: only who runs these tests pays.
    from monai.networks.nets.resnet import ResNet

    return ResNet(
        "bottleneck",
        list(BLOCKS),
        [BASE_WIDTH * 2**stage for stage in range(4)],
        spatial_dims=2,
        n_input_channels=3,
        conv1_t_size=7,
        conv1_t_stride=2,
        shortcut_type="B",
        bias_downsample=False,
        num_classes=CLASSES,
    ).eval()


@pytest.fixture(scope="module")
def ours() -> ResNet50:
    network = ResNet50(classes=CLASSES)
    enliven(network, normalised(crops(224, 4, seed=0)), seed=0)
    return network


@pytest.fixture(scope="module")
def theirs(ours: ResNet50) -> nn.Module:
    """MONAI's, with the same weights; its classifier is taken off, for ours gives features."""
    network = monai_resnet50()
    network.load_state_dict(ours.state_dict())  # raises for a name that only one has, or a shape
    network.fc = None  # type: ignore[assignment]
    return network


def features(network: nn.Module, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    with torch.inference_mode():
        given: Tensor = network(normalised(images))
    pooled: NDArray[np.float32] = given.numpy()
    return pooled


def test_both_have_the_same_weights_and_statistics(ours: ResNet50) -> None:
    theirs = monai_resnet50()
    for tensors, count in (("named_parameters", PARAMETERS), ("named_buffers", 3 * 53)):
        shapes = [
            {name: tensor.shape for name, tensor in getattr(network, tensors)()}
            for network in (ours, theirs)
        ]
        assert shapes[0] == shapes[1]
        assert len(shapes[0]) == count


# The second is odd in every stage but one, where paddings that differ would show.
@pytest.mark.parametrize("size", [224, 197])
def test_features_are_the_same(ours: ResNet50, theirs: nn.Module, size: int) -> None:
    images = crops(size, 2, seed=1)
    found, expected = features(ours, images), features(theirs, images)
    assert found.shape == (2, 2048)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    # The agreement says something: features differ, from image to image as well.
    assert expected.std(axis=1).min() > 0.1
    assert np.corrcoef(expected).min() < 0.9


def stride_first(block: nn.Module) -> None:
    """As in v1, the network of the first paper."""
    assert isinstance(block, Bottleneck)
    block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride


def more_to_the_variance(block: nn.Module) -> None:
    assert isinstance(block, Bottleneck)
    for norm in (block.bn1, block.bn2, block.bn3):
        norm.eps = 0.1


def shortcut_shifted(block: nn.Module) -> None:
    """By a tenth, in one channel of two thousand."""
    assert isinstance(block, Bottleneck)
    assert isinstance(block.downsample, nn.Sequential)
    norm = block.downsample[1]
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        norm.bias[0] += 0.1


@pytest.mark.parametrize("change", [stride_first, more_to_the_variance, shortcut_shifted])
def test_a_difference_shows(
    ours: ResNet50, theirs: nn.Module, change: Callable[[nn.Module], None]
) -> None:
    changed = copy.deepcopy(ours)
    change(changed.layer4[0])
    images = crops(96, 1, seed=2)
    difference = np.abs(features(changed, images) - features(theirs, images)).max()
    assert difference > 2 * TOLERANCE


def test_the_onnx_file_gives_the_same_directions(ours: ResNet50, theirs: nn.Module) -> None:
    spec = embedder_spec(size=224, dimension=2048)
    network = ResNet50()
    without_classifier = {
        name: tensor for name, tensor in ours.state_dict().items() if not name.startswith("fc.")
    }
    network.load_state_dict(without_classifier)
    model = export_onnx(Embedder(network), spec)
    images = crops(224, 8, seed=3)
    expected = features(theirs, images[:3])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    for runtime in RUNTIMES.values():
        run = runtime(model, spec)
        found = run(images[:3])["embeddings"]
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=0, atol=1e-5)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
        assert_same_alone_and_among_eight(run, spec, images)
