"""Command line: ``python -m scripts.deploy.provide_models``.

Puts the models in use into the model repository that Triton and the service share. What the
repository in git holds is copied, official models are fetched and exported, and what is there
already stays: an exported model made anew would be another embedder to the collections that it
has filled. Triton does not look whether an ONNX file is the one that a model's configuration
belongs to. That is done here, each time before Triton starts.

``DETECTOR_MODEL`` and ``EMBEDDER_MODEL`` name the models; ``WEIGHTS_MIRROR`` names a folder on a
server that is asked for weights first. Exit codes are the exporter's.
"""

from __future__ import annotations

import argparse
import filecmp
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

SHIPPED: Final = Path(__file__).resolve().parents[2] / "model_repository"
FAILED: Final = 1

_MODEL: Final = Path("1", "model.onnx")
# The two that an exporter writes; Triton reads one or the other.
_CONFIGS: Final = (Path("config.pbtxt"), Path("configs", "cpu.pbtxt"))
_STATED: Final = re.compile(
    r'key:\s*"sha256"\s*value:?\s*\{\s*string_value:\s*"([0-9a-f]{64})"', re.IGNORECASE
)
"""The parameter in a config.pbtxt. The image of the small pair has no package that reads it."""

Export = Callable[[list[str]], int]


def main(argv: Sequence[str] | None = None, *, export: Export | None = None) -> int:
    """Runs the command line; returns its exit code.

    Args:
        argv: without the program's name; the process's own if None.
        export: runs the exporter's command line; the exporter itself if None.
    """
    parser = argparse.ArgumentParser(
        prog="python -m scripts.deploy.provide_models",
        description="Puts DETECTOR_MODEL and EMBEDDER_MODEL into a model repository.",
    )
    parser.add_argument("--repository", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--downloads", type=Path, required=True, metavar="FOLDER", help="keeps fetched weights"
    )
    arguments = parser.parse_args(argv)
    names = [os.environ.get("DETECTOR_MODEL", ""), os.environ.get("EMBEDDER_MODEL", "")]
    if not all(names):
        parser.error("DETECTOR_MODEL and EMBEDDER_MODEL must name the models")
    missing = [name for name in names if not _provide(name, arguments.repository)]
    there = [name for name in names if name not in missing]
    problems = [problem for name in there for problem in _problems(arguments.repository / name)]
    for problem in problems:
        print(f"{parser.prog}: error: {problem}", file=sys.stderr)
    if problems:
        return FAILED
    if not missing:
        return 0
    mirror = os.environ.get("WEIGHTS_MIRROR", "")
    command = [
        *missing,
        *("--repository", str(arguments.repository)),
        *("--downloads", str(arguments.downloads)),
        *(("--mirror", mirror) if mirror else ()),
    ]
    return (export or _exporter())(command)


def _provide(name: str, repository: Path) -> bool:
    """Whether a model is in ``repository``, copied there if git holds it."""
    shipped = SHIPPED / name
    if (shipped / _MODEL).is_file():
        changed = _copy(shipped, repository / name)
        print(f"{name}: {'copied' if changed else 'there already'}")
        return True
    if (repository / name / _MODEL).is_file():  # an export appears as a whole, or not at all
        print(f"{name}: there already")
        return True
    return False


def _problems(folder: Path) -> list[str]:
    """What is wrong with a model: an ONNX file that its configurations do not belong to."""
    with (folder / _MODEL).open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    problems = []
    for config in (folder / each for each in _CONFIGS):
        if not config.is_file():
            continue
        stated = _STATED.search(config.read_text("utf-8"))
        if stated is None:
            problems.append(
                f"{config} does not say which ONNX file it belongs to; if {folder / _MODEL} is what"
                f' it should be, add to it: parameters {{ key: "sha256" value {{ string_value:'
                f' "{sha256}" }} }}'
            )
        elif stated[1].lower() != sha256:
            problems.append(
                f"{folder / _MODEL} is not the ONNX file that {config} belongs to: its SHA-256 is"
                f" {sha256}, not {stated[1].lower()}; if nobody meant to change the model, remove"
                f" {folder}: it is made anew"
            )
    return problems


def _copy(source: Path, target: Path) -> bool:
    """Makes ``target`` hold the files of ``source``; whether anything had to be written.

    Each file appears as a whole. Killed between two, it is called again before anybody reads.
    """
    changed = False
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        copy = target / file.relative_to(source)
        if copy.is_file() and filecmp.cmp(file, copy, shallow=False):
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        part = copy.with_name(f".{copy.name}.part")
        shutil.copyfile(file, part)
        os.replace(part, copy)
        changed = True
    return changed


def _exporter() -> Export:
    # Its packages are installed only where something is to be exported.
    from scripts.export_models.__main__ import main as export

    return export


if __name__ == "__main__":
    sys.exit(main())
