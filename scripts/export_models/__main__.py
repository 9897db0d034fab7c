"""Command line: ``python -m scripts.export_models NAME [NAME …] [options]``.

Exit codes: 0; 2 for bad input; 1 where network, disk or the check of the result fail; 130 for
Ctrl-C, 143 and 129 for the signals that end a process and that a closed terminal sends. Whatever
goes wrong is said in one line.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final, NoReturn

from scripts.export_models.contract import CROP_GEOMETRIES
from scripts.export_models.download import RemoteFile, fetch
from scripts.export_models.errors import ExportError
from scripts.export_models.formats import DEFAULT_OPSET, OPSETS, Precision
from scripts.export_models.official import CATALOGUE, DEFAULT_PAIR, Catalogue
from scripts.export_models.plans import (
    DEFAULT_NMS_THRESHOLD,
    DEFAULT_SCORE_THRESHOLD,
    Options,
    Plan,
    make_plans,
)
from scripts.export_models.progress import Display

if TYPE_CHECKING:
    from scripts.export_models.repository import Exported

BAD_INPUT: Final = 2
SIGNALLED: Final = 128
"""And the signal's number: as a shell counts a process that one has ended."""

DEFAULT_REPOSITORY: Final = Path("model_repository")

_DESCRIPTION: Final = """\
Writes models for the service: network and weights -> ONNX and config.pbtxt.
Official are {}; their weights are downloaded.
Any other NAME is a model of your own: a YOLOv3 in darknet's formats, or a ResNet-50 in PyTorch's.
"""

_EXAMPLES: Final = """\
examples:
  python -m scripts.export_models yolov3 resnet50
  python -m scripts.export_models yolov3 --size 608 --precision fp16
  python -m scripts.export_models resnet50 --weights resnet50-0676ba61.pth
  python -m scripts.export_models birds --weights birds.weights --cfg birds.cfg --labels birds.txt
  python -m scripts.export_models faces --weights faces.safetensors --size 160
"""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: error: {message} (see --help)\n")


def _default_downloads() -> Path:
    """Where caches belong (XDG Base Directory Specification): a relative path is to be ignored."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache.is_absolute():
        cache = Path.home() / ".cache"
    return cache / "image-similarity-search"


def _mirror(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{url!r} does not begin with http:// or https://")
    return url


def _parser(catalogue: Catalogue) -> _Parser:
    parser = _Parser(
        prog="python -m scripts.export_models",
        description=_DESCRIPTION.format(", ".join(catalogue)),
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", metavar="NAME", nargs="+", help="of a model, and of its folder")
    parser.add_argument(
        "--weights", type=Path, metavar="FILE",
        help="a file at hand: darknet's .weights, a PyTorch state dict or .safetensors",
    )  # fmt: skip
    parser.add_argument("--cfg", type=Path, metavar="FILE", help="of a YOLOv3 of your own")
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="of a YOLOv3 of your own, one a line"
    )
    parser.add_argument(
        "--size", type=int, metavar="PIXELS",
        help="input width and height, for detectors a multiple of 32 (default: as the cfg says,"
        " yolov3 416, resnet50 224)",
    )  # fmt: skip
    parser.add_argument(
        "--checkpoint", choices=("v1", "v2"), help="of the official resnet50 (default: v1)"
    )
    parser.add_argument(
        "--precision", choices=[x.value for x in Precision], default=Precision.FP32.value,
        help="of the network's weights and inner values (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--opset", type=int, choices=OPSETS, default=DEFAULT_OPSET, metavar="VERSION",
        help=f"of ONNX' operators, {OPSETS[0]} to {OPSETS[-1]} (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--score-threshold", type=float, metavar="0..1",
        help=f"detections below are left out (default: {DEFAULT_SCORE_THRESHOLD})",
    )  # fmt: skip
    parser.add_argument(
        "--nms-threshold", type=float, metavar="0..1",
        help="IoU above which the worse of two boxes of a label goes"
        f" (default: {DEFAULT_NMS_THRESHOLD})",
    )  # fmt: skip
    parser.add_argument(
        "--crop-geometry", choices=CROP_GEOMETRIES,
        help=f"how boxes become an embedder's square crops (default: {CROP_GEOMETRIES[0]})",
    )  # fmt: skip
    parser.add_argument(
        "--crop-margin", type=float, metavar="0..1",
        help="what those crops show around a box, in parts of its sides (default: 0)",
    )  # fmt: skip
    parser.add_argument(
        "--repository", type=Path, default=DEFAULT_REPOSITORY, metavar="FOLDER",
        help="model repository to write to (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--downloads", type=Path, default=_default_downloads(), metavar="FOLDER",
        help="where downloaded weights are kept (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--mirror", type=_mirror, action="append", default=[], metavar="URL", dest="mirrors",
        help="folder on a server that is asked for weights first; may be given several times",
    )  # fmt: skip
    return parser


def _run(arguments: argparse.Namespace, catalogue: Catalogue, display: Display) -> None:
    plans = make_plans(_options(arguments), catalogue)
    weights = {
        plan.name: fetch(
            plan.weights, arguments.downloads, mirrors=arguments.mirrors, display=display
        )
        if isinstance(plan.weights, RemoteFile)
        else plan.weights
        for plan in plans
    }
    # Imports PyTorch, which takes seconds: after whatever may fail without it.
    from scripts.export_models.repository import export_model

    for plan in plans:
        display.line(f"exporting {plan.name} …")
        module, spec = plan.build(weights[plan.name])
        exported = export_model(
            arguments.repository,
            plan.name,
            module,
            spec,
            source_sha256=plan.source_sha256(weights[plan.name]),
            precision=Precision(arguments.precision),
            opset=arguments.opset,
        )
        _report(exported, display)
    for line in _next_steps(plans, arguments.repository):
        display.line(line)


def _options(arguments: argparse.Namespace) -> Options:
    return Options(
        names=tuple(arguments.names),
        weights=arguments.weights,
        cfg=arguments.cfg,
        labels=arguments.labels,
        size=arguments.size,
        checkpoint=arguments.checkpoint,
        score_threshold=arguments.score_threshold,
        nms_threshold=arguments.nms_threshold,
        crop_geometry=arguments.crop_geometry,
        crop_margin=arguments.crop_margin,
    )


def _report(exported: Exported, display: Display) -> None:
    for path, size in exported.sizes.items():
        display.line(f"wrote {path} ({size:,} bytes)")
    for output, difference in exported.differences.items():
        display.line(f"checked {output}: ONNX Runtime is within {difference:.2g} of PyTorch")


def _next_steps(plans: Sequence[Plan], repository: Path) -> list[str]:
    """What to set so that the service uses the models."""
    elsewhere = repository.resolve() != DEFAULT_REPOSITORY.resolve()
    where = f"MODEL_REPOSITORY={repository} " if elsewhere else ""
    pair = all((repository / name / "1" / "model.onnx").is_file() for name in DEFAULT_PAIR)
    steps = [
        f"to use {plan.name}, set {where}{plan.setting}={plan.name}"
        for plan in plans
        if not pair or plan.name not in DEFAULT_PAIR
    ]
    if pair and any(plan.name in DEFAULT_PAIR for plan in plans):
        needed = f"set {where.strip()}" if where else "nothing needs to be set"
        steps.append(f"to use {' and '.join(DEFAULT_PAIR)}, {needed}: they are the default")
    if any(plan.setting == "EMBEDDER_MODEL" for plan in plans):
        steps.append(
            "a collection that another embedder filled keeps to that one: set EMBEDDER_MODEL to it"
            " (resnet50-small, if it was the small one), or drop it and load its photos again"
        )
    return steps


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """Has the signals that would end the process do what Ctrl-C does, so that it clears up.

    Gives a list that gets their numbers. One that is ignored stays so, as ``nohup`` wants it.
    """
    numbers: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        numbers.append(number)
        raise KeyboardInterrupt

    ending = [
        number
        for number in (signal.SIGTERM, signal.SIGHUP)
        # In another thread than the main one, Python cannot set what a signal does.
        if threading.current_thread() is threading.main_thread()
        and signal.getsignal(number) is signal.SIG_DFL
    ]
    try:
        for number in ending:
            signal.signal(number, interrupt)
        yield numbers
    finally:
        for number in ending:
            signal.signal(number, signal.SIG_DFL)


def main(argv: Sequence[str] | None = None, *, catalogue: Catalogue = CATALOGUE) -> int:
    """Runs the command line; returns its exit code.

    Args:
        argv: without the program's name; the process's own if None.
        catalogue: the official models.
    """
    parser = _parser(catalogue)
    arguments = parser.parse_args(argv)
    with _interruptible() as numbers:
        try:
            _run(arguments, catalogue, Display())
        except ExportError as error:
            print(f"{parser.prog}: error: {error}", file=sys.stderr)
            return error.exit_code
        except KeyboardInterrupt as interrupt:
            print(f"{parser.prog}: {str(interrupt) or 'interrupted'}", file=sys.stderr)
            return SIGNALLED + (numbers[0] if numbers else signal.SIGINT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
