"""The small pair as it lies in the repository: its contract, its files, and its networks again."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scripts.export_models import darknet
from scripts.export_models.contract import ModelSpec, detector_spec, embedder_spec, read_labels
from scripts.export_models.resnet50 import Embedder, ResNet50
from scripts.export_models.yolov3 import Darknet, Detector

ROOT: Final = Path(__file__).parents[3]
REPOSITORY: Final = ROOT / "model_repository"
LABELS: Final = read_labels(ROOT / "scripts/export_models/labels/voc.txt", classes=20)
SPECS: Final[dict[str, ModelSpec]] = {
    "yolov3-small": detector_spec(size=256, labels=LABELS, score_threshold=0.2, nms_threshold=0.45),
    "resnet50-small": embedder_spec(size=128, dimension=512, crop_margin=0.05),
}

# SHA-256 of what they were made of: the detector's weights followed by its cfg, the embedder's
# weights.
SOURCES: Final = {
    "yolov3-small": "f1044e561df0519da593bebb616e7af2f05079f2993908cba9e3a4035e96496c",
    "resnet50-small": "b5f3b123834d27e89dc01c3fe357ebd367d93ecbba8d84c9e173493d109aff44",
}


def model_path(name: str) -> Path:
    """The ONNX file of one of the pair."""
    return REPOSITORY / name / "1" / "model.onnx"


def committed_module(name: str) -> Detector | Embedder:
    """What the ONNX file was exported from: its values, put back into PyTorch's network."""
    initializers = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load(str(model_path(name))).graph.initializer
    }
    spec = SPECS[name]
    if name == "resnet50-small":
        embedder = Embedder(ResNet50(base_width=len(initializers["network.conv1.weight"])))
        _fill(embedder.network, initializers, prefix="network")
        return embedder.eval()
    width = len(initializers["network.blocks.0.0.weight"]) / 32
    cfg = darknet.yolov3_cfg(width=width, classes=len(LABELS), size=spec.input.dims[0])
    detector = Detector(Darknet(darknet.parse_cfg(cfg)))
    _fill(detector.network, initializers, prefix="network")
    detector.places = torch.from_numpy(initializers["places"].copy())
    return detector.eval()


def _fill(network: nn.Module, initializers: dict[str, NDArray[np.float32]], prefix: str) -> None:
    """Fills convolutions; batch normalisations, folded into them, are left with nothing to do."""

    def take(name: str) -> Tensor:
        return torch.from_numpy(initializers[f"{prefix}.{name}"].copy())

    with torch.no_grad():
        for path, module in network.named_modules():
            children = [*module.named_children(), ("", nn.Identity())]
            for (name, convolution), (_, following) in pairwise(children):
                if not isinstance(convolution, nn.Conv2d):
                    continue
                address = f"{path}.{name}" if path else name
                convolution.weight.copy_(take(f"{address}.weight"))
                if convolution.bias is not None:
                    convolution.bias.copy_(take(f"{address}.bias"))
                else:
                    assert isinstance(following, nn.BatchNorm2d)
                    following.weight.fill_((1 + following.eps) ** 0.5)
                    following.bias.copy_(take(f"{address}.weight_bias"))
