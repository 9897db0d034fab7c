"""Command line: ``python -m scripts.supply lock | audit | sbom``.

Exit codes: 0; 1 where something is not as it should be, which is said in a line for each thing.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from scripts.supply import advisories, licences, locks, sbom
from scripts.supply.errors import SupplyError

FAILED: Final = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code.

    Args:
        argv: without the program's name; the process's own if None.
    """
    parser = argparse.ArgumentParser(
        prog="python -m scripts.supply",
        description="What the images are made of: locked, licensed, checked and listed.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    lock = commands.add_parser("lock", help="write the locks and docs/licences.md anew")
    lock.add_argument("--upgrade", action="store_true", help="to the newest versions")
    audit = commands.add_parser("audit", help="look for known holes, licences and stale locks")
    audit.add_argument(
        "--online", action="store_true", help="also ask PyPI's database, through pip-audit"
    )
    bill = commands.add_parser("sbom", help="write a bill of materials (CycloneDX, JSON)")
    bill.add_argument("--image", choices=locks.IMAGES, default="service", help="%(default)s")
    bill.add_argument("file", type=Path, help="where to")
    arguments = parser.parse_args(argv)
    try:
        match arguments.command:
            case "lock":
                for image in locks.IMAGES.values():
                    locks.remake(image, upgrade=arguments.upgrade)
                licences.write()
                return 0
            case "audit":
                return _audit(online=arguments.online)
            case _:
                arguments.file.parent.mkdir(parents=True, exist_ok=True)
                arguments.file.write_text(sbom.document(arguments.image), "utf-8")
                print(f"wrote {arguments.file}")
                return 0
    except SupplyError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return FAILED


def _audit(*, online: bool) -> int:
    known = advisories.read_advisories()
    parts = [
        *advisories.locked_parts(),
        *advisories.served_parts(),
        *advisories.lower_bounds(),
    ]
    found = [problem for image in locks.IMAGES.values() for problem in locks.problems(image)]
    found += advisories.affected(parts, known)
    found += [
        f"{name} {version} is under {licence}, which is not allowed"
        for name, (version, licence) in licences.read().items()
        if not licences.is_allowed(licence)
    ]
    for problem in found:
        print(problem, file=sys.stderr)
    if not found:
        print(f"{len(parts)} parts, {len(known)} advisories: none applies")
    passed = [not found]
    if online:
        passed += [_pip_audit(image) for image in locks.IMAGES.values()]
    return 0 if all(passed) else FAILED


def _pip_audit(image: locks.Image) -> bool:
    """Whether pip-audit knows of no hole; a database that cannot be asked is no good news."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        # PyTorch's holes are listed by its own version, not by that of a build.
        file.write((locks.ROOT / image.lock).read_text("utf-8").replace("+cpu", ""))
        file.flush()
        command = [
            *(sys.executable, "-m", "pip_audit", "--strict", "--progress-spinner", "off"),
            *("--require-hashes", "--disable-pip", "--requirement", file.name),
        ]
        return subprocess.run(command).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
