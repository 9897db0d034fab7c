"""Command line: ``python -m scripts.deploy.provide_models``.

Puts the models in use into the model repository that Triton and the service share. What the
repository in git holds is copied, official models are fetched and exported, and what is there
already stays: an exported model made anew would be another embedder to the collections that it
has filled.

``DETECTOR_MODEL`` and ``EMBEDDER_MODEL`` name the models; ``WEIGHTS_MIRROR`` names a folder on a
server that is asked for weights first. Exit codes are the exporter's.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

SHIPPED: Final = Path(__file__).resolve().parents[2] / "model_repository"
_MODEL: Final = Path("1", "model.onnx")

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
