"""Command line: ``python -m scripts.train_models detector|embedder --data FOLDER …``."""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import cv2
import torch

from benchmarks.voc import DATA_VARIABLE
from scripts.export_models import darknet
from scripts.export_models.contract import read_labels
from scripts.export_models.errors import ExportError
from scripts.export_models.resnet50 import BASE_WIDTH, ResNet50, load_resnet50
from scripts.export_models.yolov3 import Darknet, Detector
from scripts.train_models.backbone import BackboneTask
from scripts.train_models.detector import DetectorTask
from scripts.train_models.embedder import EmbedderTask
from scripts.train_models.training import (
    Options,
    Phase,
    Task,
    TrainingError,
    parse_phases,
    train,
)

BAD_INPUT: Final = 2
INTERRUPTED: Final = 130

_PHASES: Final = "SIZE:EPOCHS,…"
_DEFAULT: Final = "default: %(default)s"
_LABELS: Final = Path(__file__).parents[1] / "export_models" / "labels" / "voc.txt"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.train_models",
        description="Trains one of the small pair on photos with boxes.",
    )
    common = argparse.ArgumentParser(add_help=False)
    data = os.environ.get(DATA_VARIABLE)
    common.add_argument(
        "--data", type=Path, default=data and Path(data), required=not data, metavar="FOLDER",
        help=f"folder with train/ and val/ (default: the environment variable {DATA_VARIABLE})",
    )  # fmt: skip
    common.add_argument(
        "--labels", type=Path, default=_LABELS, metavar="FILE",
        help="one a line (default: those of VOC)",
    )  # fmt: skip
    common.add_argument(
        "--output", type=Path, default=Path("training"), metavar="FOLDER",
        help="weights and checkpoints go there; a run goes on from its checkpoint"
        " (default: %(default)s)",
    )  # fmt: skip
    common.add_argument("--start", type=Path, metavar="FILE", help="weights to start from")
    common.add_argument(
        "--width", type=_width, default=0.25, metavar="PART",
        help="of the published network's width (default: %(default)s)",
    )  # fmt: skip
    common.add_argument("--weight-decay", type=float, default=0.03, metavar="NUMBER")
    common.add_argument(
        "--evaluate-every", type=_positive, default=4, metavar="EPOCHS", help=_DEFAULT
    )
    common.add_argument("--seed", type=int, default=0, metavar="NUMBER")
    common.add_argument(
        "--device", choices=("cpu", "cuda"),
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="default: %(default)s, as there is here",
    )  # fmt: skip
    common.add_argument(
        "--threads", type=_positive, metavar="NUMBER", help="on the CPU (default: all cores)"
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    detector = kinds.add_parser("detector", parents=[common], help="YOLOv3 on photos")
    detector.add_argument(
        "--phases", type=_phases, default="192:60,256:30,320:10", metavar=_PHASES, help=_DEFAULT
    )
    detector.add_argument(
        "--backbone-phases", type=_phases, default="112:30", metavar=_PHASES,
        help="on crops, before the others, where there is no --start (default: %(default)s)",
    )  # fmt: skip
    detector.add_argument("--learning-rate", type=float, default=1.5e-3, metavar="NUMBER")
    embedder = kinds.add_parser("embedder", parents=[common], help="ResNet-50 on objects' crops")
    embedder.add_argument(
        "--phases", type=_phases, default="128:40,160:10", metavar=_PHASES, help=_DEFAULT
    )
    embedder.add_argument("--learning-rate", type=float, default=2e-3, metavar="NUMBER")
    embedder.add_argument(
        "--square", type=_part, default=0.5, metavar="0..1",
        help="part of the crops that are cut out as squares (default: %(default)s)",
    )  # fmt: skip
    return parser


def _detector(arguments: argparse.Namespace, labels: Sequence[str]) -> Task:
    def cfg(size: int) -> str:
        return darknet.yolov3_cfg(width=arguments.width, classes=len(labels), size=size)

    for phase in arguments.phases:
        # Whatever is wrong with a size is better known now than when its phase begins.
        network = Darknet(darknet.parse_cfg(cfg(phase.size)))
        Detector(network)
    options = {"seed": arguments.seed, "device": arguments.device}
    if arguments.start:
        network.load_darknet_weights(darknet.read_weights(arguments.start, network.network))
    else:
        backbone = BackboneTask(network, arguments.data, labels, **options)
        train(backbone, _options(arguments, arguments.backbone_phases, labels, "backbone"), _say)
    output = arguments.output / "yolov3-small"
    return DetectorTask(network, cfg, arguments.data, output, labels, **options)


def _embedder(arguments: argparse.Namespace, labels: Sequence[str]) -> Task:
    if arguments.start:
        network = load_resnet50(arguments.start)
    else:
        network = ResNet50(base_width=max(1, round(BASE_WIDTH * arguments.width)))
    return EmbedderTask(
        network,
        arguments.data,
        arguments.output / "resnet50-small",
        labels,
        square=arguments.square,
        seed=arguments.seed,
        device=arguments.device,
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


def _part(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{number:g} is not between 0 and 1")
    return number


def _width(text: str) -> float:
    number = float(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{number:g} is not above 0 and at most 1")
    return number


def _phases(text: str) -> tuple[Phase, ...]:
    try:
        return parse_phases(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _options(
    arguments: argparse.Namespace, phases: tuple[Phase, ...], labels: Sequence[str], name: str
) -> Options:
    run = hashlib.sha256()
    for part in (
        *(arguments.kind, arguments.seed, arguments.width, getattr(arguments, "square", None)),
        *labels,
    ):
        run.update(f"{part}\n".encode())
    files = [arguments.data / split / "annotations.jsonl" for split in ("train", "val")]
    for file in (*files, *([arguments.start] if arguments.start else [])):
        run.update(hashlib.sha256(file.read_bytes()).digest())
    return Options(
        phases=phases,
        learning_rate=arguments.learning_rate,
        weight_decay=arguments.weight_decay,
        evaluate_every=arguments.evaluate_every,
        makers=1 if arguments.device.type == "cpu" else os.cpu_count() or 1,
        checkpoint=arguments.output / f"{name}.checkpoint",
        run=run.hexdigest(),
    )


def _say(line: str) -> None:
    print(line, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, 2 for bad input, 130 for Ctrl-C."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        arguments.device = torch.device(arguments.device)
        if arguments.device.type == "cuda" and not torch.cuda.is_available():
            raise TrainingError("there is no GPU that PyTorch can use: leave out --device cuda")
        if arguments.threads:
            torch.set_num_threads(arguments.threads)
        cv2.setNumThreads(1)  # the network has the cores
        torch.manual_seed(arguments.seed)
        labels = arguments.labels.read_text(encoding="utf-8").splitlines()
        labels = read_labels(arguments.labels, classes=len(labels))
        task = (_detector if arguments.kind == "detector" else _embedder)(arguments, labels)
        train(task, _options(arguments, arguments.phases, labels, arguments.kind), _say)
    except (ExportError, TrainingError, OSError, ValueError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(f"{parser.prog}: stopped; the same command goes on from there", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
