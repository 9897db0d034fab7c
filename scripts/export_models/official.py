"""The published models that the exporter knows by name: where their weights are, what is in them.

Facts and where they are from; what is done with them is ``plans``'. Each SHA-256 is one that
several public projects state for that file; sizes follow from the network's count of floats
(darknet) or are stated beside the sum (torchvision).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeAlias

from scripts.export_models import darknet
from scripts.export_models.download import RemoteFile

DEFAULT_PAIR: Final = ("yolov3", "resnet50")
"""What the service uses where nothing is set, as soon as both are exported."""


@dataclass(frozen=True, slots=True)
class OfficialDetector:
    """A YOLOv3 in darknet's formats. The input size is the ``.cfg``'s unless another is chosen."""

    cfg: str
    labels: Path
    weights: RemoteFile


@dataclass(frozen=True, slots=True)
class OfficialEmbedder:
    """A ResNet-50: its checkpoints by name, the default one first."""

    size: int
    checkpoints: Mapping[str, RemoteFile]


Catalogue: TypeAlias = Mapping[str, OfficialDetector | OfficialEmbedder]

_FOLDER: Final = Path(__file__).parent
_COCO: Final = _FOLDER / "labels" / "coco.txt"
"""``data/coco.names`` of https://github.com/pjreddie/darknet, byte for byte."""

# The author's server as his site links to it today, then as it did before: since 2025 those
# addresses lead to a web page at times (https://github.com/pjreddie/darknet/issues/2655).
_REDMON: Final = "https://data.pjreddie.com/files"
_REDMON_BEFORE: Final = "https://pjreddie.com/media/files"
# Copies that the maintainers of Darknet keep; their MD5 in
# https://github.com/hank-ai/darknet/issues/21 are those of the author's files.
_HANK_AI: Final = "https://github.com/hank-ai/darknet/releases/download/v2.0"
_PYTORCH: Final = "https://download.pytorch.org/models"

CATALOGUE: Final[Catalogue] = MappingProxyType(
    {
        "yolov3": OfficialDetector(
            # Published for 320, 416 and 608 pixels with the same weights: 416 is the middle way.
            cfg=darknet.yolov3_cfg(width=1, classes=80, size=416),
            labels=_COCO,
            weights=RemoteFile(
                "yolov3.weights",
                248_007_048,
                "523e4e69e1d015393a1b0a441cef1d9c7659e3eb2d7e15f793f060a21b32f297",
                (_REDMON, _HANK_AI, _REDMON_BEFORE),
            ),
        ),
        "yolov3-tiny": OfficialDetector(
            cfg=(_FOLDER / "cfg" / "yolov3-tiny.cfg").read_text(encoding="utf-8"),
            labels=_COCO,
            weights=RemoteFile(
                "yolov3-tiny.weights",
                35_434_956,
                "dccea06f59b781ec1234ddf8d1e94b9519a97f4245748a7d4db75d5b7080a42c",
                (_REDMON, _HANK_AI, _REDMON_BEFORE),
            ),
        ),
        "yolov3-spp": OfficialDetector(
            cfg=darknet.yolov3_cfg(width=1, classes=80, size=608, spp=True),
            labels=_COCO,
            weights=RemoteFile(
                "yolov3-spp.weights",
                252_209_544,
                "87a1e8c85c763316f34e428f2295e1db9ed4abcec59dd9544f8052f50de327b4",
                (_REDMON, _REDMON_BEFORE),
            ),
        ),
        "resnet50": OfficialEmbedder(
            size=224,
            # V1 is the default although V2 classifies better (80.9 % against 76.1 %): V2 owes that
            # to label smoothing, mixup and cutmix, and objectives of that kind make features that
            # serve less for anything but the classes trained on (S. Kornblith et al., "Why Do
            # Better Loss Functions Lead to Less Transferable Features?", 2021). In similarity
            # search it shows: almost identical pictures have a cosine above 0.95 with V1 and
            # below 0.7 with V2 (https://github.com/pytorch/vision/issues/8382).
            checkpoints=MappingProxyType(
                {
                    "v1": RemoteFile(
                        "resnet50-0676ba61.pth",
                        102_530_333,
                        "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
                        (_PYTORCH,),
                    ),
                    "v2": RemoteFile(
                        "resnet50-11ad3fa6.pth",
                        102_540_417,
                        "11ad3fa62ca79e40addfd354a8ec4b7c75143b3038b8d2a807fbc68deab379ca",
                        (_PYTORCH,),
                    ),
                }
            ),
        ),
    }
)
