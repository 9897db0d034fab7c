"""The packages of the two images: each by its version and the hashes of its files.

A lock is a requirements file that `uv pip compile` writes and `pip install --require-hashes` takes,
for Python 3.11 on Linux, x86-64 and ARM alike: where the two would differ, it is not written.
"""

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from scripts.supply.errors import SupplyError

__all__ = [
    "IMAGES",
    "ROOT",
    "Image",
    "Locked",
    "direct_requirements",
    "problems",
    "read_lock",
    "remake",
]

ROOT: Final = Path(__file__).resolve().parents[2]
PLATFORMS: Final = ("x86_64-manylinux_2_28", "aarch64-manylinux_2_28")

_PYTHON: Final = "3.11"
_PROJECT: Final = "image-similarity-search"
_ENTRY: Final = re.compile(r"(?P<name>[a-z0-9][a-z0-9.-]*)==(?P<version>[^\s;]+)( \\)?")
_HASH: Final = re.compile(r" {4}--hash=sha256:(?P<hash>[0-9a-f]{64})( \\)?")
_WANTED_BY: Final = re.compile(r" {4}#(?: via)?(?P<names>.*)")


@dataclass(frozen=True)
class Image:
    """An image that pip fills.

    Attributes:
        dockerfile, lock: relative to the repository's root.
        extras: of the project, that are installed.
    """

    dockerfile: Path
    lock: Path
    extras: tuple[str, ...]


IMAGES: Final[Mapping[str, Image]] = MappingProxyType(
    {
        "service": Image(
            Path("backend/Dockerfile"),
            Path("requirements.lock"),
            ("backup", "s3", "tracing"),
        ),
        "models": Image(
            Path("scripts/export_models/Dockerfile"),
            Path("scripts/export_models/requirements.lock"),
            ("export",),
        ),
    }
)


@dataclass(frozen=True)
class Locked:
    """A package of a lock.

    Attributes:
        hashes: SHA-256 of the files that may be installed, in hex.
        wanted_by: packages that require it; the project itself by its own name.
    """

    name: str
    version: Version
    hashes: tuple[str, ...]
    wanted_by: tuple[str, ...]

    @property
    def is_direct(self) -> bool:
        """Whether the project itself requires it."""
        return _PROJECT in self.wanted_by


@dataclass(frozen=True)
class _CpuBuild:
    """PyTorch without CUDA. PyPI has none for x86-64: it comes from an index of PyTorch's own.

    Attributes:
        requires: what its metadata says, for uv is not to ask that index.
        hashes: SHA-256 of the wheels for CPython 3.11 on Linux, x86-64 and ARM, as that index
            states them behind each file's address.
    """

    version: str
    requires: tuple[str, ...]
    hashes: tuple[str, ...]


_TORCH: Final = _CpuBuild(
    version="2.13.0",
    requires=(
        "filelock",
        "fsspec>=0.8.5",
        "jinja2",
        "networkx>=2.5.1",
        "setuptools>=77.0.3",
        "sympy>=1.13.3",
        "typing-extensions>=4.10.0",
    ),
    hashes=(
        "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",
        "84453b69508ec79902f899c5ed9495acb9e2bbe9fda5f1d5d6f19e3c3842e1a7",
    ),
)


_LIMITS: Final = ["python-dateutil<3"]
"""Of packages that one image has by way of one of its own, botocore: the other shall have them
alike."""


def read_lock(path: Path) -> list[Locked]:
    """The packages of a lock, in its order.

    Raises:
        SupplyError: a line is none that a lock has, such as an index or a file's address, or a
            package has no version or no hash.
    """
    return list(_parse(path.read_text("utf-8").splitlines(), str(path)))


def _parse(lines: Sequence[str], where: str) -> Iterator[Locked]:
    name, version = "", Version("0")
    hashes: list[str] = []
    wanted_by: list[str] = []
    for number, line in enumerate([*lines, ""], start=1):
        entry = _ENTRY.fullmatch(line)
        if name and (entry or not line):
            if not hashes:
                raise SupplyError(f"{where}: {name} has no hash")
            yield Locked(name, version, tuple(hashes), tuple(wanted_by))
            name, hashes, wanted_by = "", [], []
        if entry:
            name, version = entry["name"], Version(entry["version"])
        elif name and (found := _HASH.fullmatch(line)):
            hashes.append(found["hash"])
        elif name and (found := _WANTED_BY.fullmatch(line)):
            names = [each.strip() for each in found["names"].split(",")]
            # `-c` is what bounds a version, and wants none.
            wanted_by += [each.split()[0] for each in names if each and not each.startswith("-c ")]
        elif line and not line.startswith("#"):
            raise SupplyError(
                f"{where}, line {number}: {line.strip()!r} is neither a package by its version nor"
                " a hash"
            )


def direct_requirements(extras: Sequence[str], *, root: Path = ROOT) -> list[Requirement]:
    """What pyproject.toml requires, with some of its extras."""
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    texts = [*project["dependencies"]]
    for extra in extras:
        texts += project["optional-dependencies"][extra]
    return [Requirement(text) for text in texts]


def problems(image: Image, *, root: Path = ROOT) -> list[str]:
    """Where a lock is not what pyproject.toml asks for, in sentences.

    Raises:
        SupplyError: it is no lock.
    """
    locked = {each.name: each for each in read_lock(root / image.lock)}
    found = []
    wanted: set[str] = set()
    for requirement in direct_requirements(image.extras, root=root):
        name = canonicalize_name(requirement.name)
        wanted.add(name)
        if name not in locked:
            found.append(f"{image.lock} lacks {name}, which pyproject.toml requires")
        elif not requirement.specifier.contains(locked[name].version.public, prereleases=True):
            found.append(
                f"{image.lock} has {name} {locked[name].version}, pyproject.toml requires"
                f" {requirement}"
            )
    found += [
        f"{image.lock} has {name} for pyproject.toml, which does not require it"
        for name, each in locked.items()
        if each.is_direct and name not in wanted
    ]
    return [f"{problem}: run make lock" for problem in found]


def remake(image: Image, *, upgrade: bool) -> None:
    """Writes a lock anew, from PyPI.

    Args:
        image: whose.
        upgrade: to the newest versions; without it, those that still fit stay.

    Raises:
        SupplyError: it cannot be, for a reason that is said.
    """
    torch = [each for each in direct_requirements(image.extras) if each.name == "torch"]
    for requirement in torch:
        if not requirement.specifier.contains(_TORCH.version):
            raise SupplyError(
                f"pyproject.toml requires {requirement}, and scripts/supply/locks.py has the hashes"
                f" of PyTorch {_TORCH.version}: write down the new one's, which are in PyTorch's"
                " index for CPUs"
            )
    first, *others = (_compiled(image, platform, upgrade) for platform in PLATFORMS)
    for platform, other in zip(PLATFORMS[1:], others, strict=True):
        if other != first:
            raise SupplyError(f"{image.lock} would be another for {platform} than {PLATFORMS[0]}")
    (ROOT / image.lock).write_text(_with_cpu_torch(first), "utf-8")


def _compiled(image: Image, platform: str, upgrade: bool) -> str:
    with tempfile.TemporaryDirectory() as folder:
        config, output = Path(folder, "uv.toml"), Path(folder, "lock")
        requires = ", ".join(f'"{each}"' for each in _TORCH.requires)
        config.write_text(
            f"constraint-dependencies = {json.dumps(_LIMITS)}\n"
            f'[[dependency-metadata]]\nname = "torch"\nversion = "{_TORCH.version}"\n'
            f"requires-dist = [{requires}]\n",
            "utf-8",
        )
        lock = ROOT / image.lock
        if lock.is_file() and not upgrade:
            # uv keeps to the versions that it finds where it writes.
            output.write_text(lock.read_text("utf-8").replace("+cpu", ""), "utf-8")
        command = [
            *(sys.executable, "-m", "uv", "pip", "compile", "--quiet"),
            *("--config-file", str(config), "--output-file", str(output)),
            *("--python-version", _PYTHON, "--python-platform", platform),
            *("--generate-hashes", "--only-binary", ":all:"),
            *("--custom-compile-command", "make lock"),
            *(word for extra in image.extras for word in ("--extra", extra)),
            "pyproject.toml",
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise SupplyError(
                f"{image.lock}: uv ended with {done.returncode}: {done.stderr.strip()}"
            )
        return output.read_text("utf-8")


def _with_cpu_torch(text: str) -> str:
    """The lock with PyTorch's build for CPUs in place of PyPI's."""
    hashes = " \\\n".join(f"    --hash=sha256:{each}" for each in _TORCH.hashes)
    pinned = re.escape(f"torch=={_TORCH.version}")
    return re.sub(
        rf"^{pinned} \\\n(?: {{4}}--hash=\S+(?: \\)?\n)+",
        lambda _: f"torch=={_TORCH.version}+cpu \\\n{hashes}\n",
        text,
        flags=re.MULTILINE,
    )
