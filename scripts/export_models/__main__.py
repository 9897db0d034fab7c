"""Command line: ``python -m scripts.export_models detector|embedder NAME …``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

from scripts.export_models import darknet
from scripts.export_models.contract import detector_spec, embedder_spec, read_labels
from scripts.export_models.errors import CfgError, ContractError, ExportError
from scripts.export_models.repository import Exported, export_model
from scripts.export_models.resnet50 import Embedder, load_resnet50
from scripts.export_models.yolov3 import Darknet, Detector

BAD_INPUT: Final = 2

# Darknet's own, where nothing else is asked for.
DEFAULT_SCORE_THRESHOLD: Final = 0.25
DEFAULT_NMS_THRESHOLD: Final = 0.45

MIN_EMBEDDER_SIZE: Final = 32
"""ResNet-50 halves its input five times; below, nothing but padding would be left."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: error: {message} (see --help)\n")


def _parser() -> _Parser:
    parser = _Parser(
        prog="python -m scripts.export_models",
        description="Writes models for the service: PyTorch definition + weights -> ONNX + config.",
    )
    common = _Parser(add_help=False)
    common.add_argument("name", metavar="NAME", help="of the model, and of its folder")
    common.add_argument(
        "--repository", type=Path, default=Path("model_repository"), metavar="FOLDER",
        help="model repository to write to (default: %(default)s)",
    )  # fmt: skip
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")

    detector = kinds.add_parser("detector", parents=[common], help="a YOLOv3 in darknet's formats")
    detector.add_argument("--cfg", type=Path, required=True, metavar="FILE")
    detector.add_argument("--weights", type=Path, required=True, metavar="FILE")
    detector.add_argument("--labels", type=Path, required=True, metavar="FILE", help="one a line")
    detector.add_argument(
        "--size", type=int, metavar="PIXELS", help="input width and height (default: the cfg's)"
    )
    detector.add_argument(
        "--score-threshold", type=float, default=DEFAULT_SCORE_THRESHOLD, metavar="0..1",
        help="detections below are left out (default: %(default)s)",
    )  # fmt: skip
    detector.add_argument(
        "--nms-threshold", type=float, default=DEFAULT_NMS_THRESHOLD, metavar="0..1",
        help="IoU above which the worse of two boxes of a label goes (default: %(default)s)",
    )  # fmt: skip
    detector.set_defaults(run=_detector, variable="DETECTOR_MODEL")

    embedder = kinds.add_parser("embedder", parents=[common], help="a ResNet-50 of any width")
    embedder.add_argument(
        "--weights", type=Path, required=True, metavar="FILE", help="PyTorch state dict"
    )
    embedder.add_argument(
        "--size", type=int, required=True, metavar="PIXELS", help="input width and height"
    )
    embedder.set_defaults(run=_embedder, variable="EMBEDDER_MODEL")
    return parser


def _detector(arguments: argparse.Namespace) -> Exported:
    try:
        text = arguments.cfg.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CfgError(f"{arguments.cfg}: cannot be read as a darknet cfg: {error}") from error
    try:
        network = darknet.parse_cfg(text, size=arguments.size)
    except CfgError as error:
        raise CfgError(f"{arguments.cfg}: {error}") from error
    spec = detector_spec(
        size=network.size,
        labels=read_labels(arguments.labels, classes=network.classes),
        score_threshold=arguments.score_threshold,
        nms_threshold=arguments.nms_threshold,
    )
    model = Darknet(network)
    model.load_darknet_weights(darknet.read_weights(arguments.weights, network))
    return export_model(arguments.repository, arguments.name, Detector(model), spec)


def _embedder(arguments: argparse.Namespace) -> Exported:
    if arguments.size < MIN_EMBEDDER_SIZE:
        raise ContractError(f"input size {arguments.size} is less than {MIN_EMBEDDER_SIZE}")
    model = load_resnet50(arguments.weights)
    spec = embedder_spec(size=arguments.size, dimension=model.dimension)
    return export_model(arguments.repository, arguments.name, Embedder(model), spec)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, or 2 for bad input."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        exported: Exported = arguments.run(arguments)
    except (ExportError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return BAD_INPUT
    for path, size in exported.sizes.items():
        print(f"wrote {path} ({size:,} bytes)")
    for output, difference in exported.differences.items():
        print(f"checked {output}: ONNX Runtime is within {difference:.2g} of PyTorch")
    print(f"to use it, set {arguments.variable}={arguments.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
