"""Under which licences the packages of the images are, and which may be.

The tables of `docs/licences.md` are written from the packages' own metadata, in the words of SPDX.
What metadata do not say in these words, or not at all, is told here.
"""

import functools
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any, Final

from license_expression import get_spdx_licensing
from packaging.utils import canonicalize_name
from packaging.version import Version

from scripts.supply.errors import SupplyError
from scripts.supply.locks import IMAGES, ROOT, Locked, read_lock

__all__ = [
    "ALLOWED",
    "ALLOWED_IN_WHEELS",
    "FILE",
    "Licensed",
    "bundled",
    "installed",
    "is_allowed",
    "licence_of",
    "locked_packages",
    "read",
    "with_tables",
    "write",
]

FILE: Final = ROOT / "docs" / "licences.md"

ALLOWED: Final = frozenset(
    {
        "0BSD",
        "Apache-2.0",
        "Apache-2.0 WITH LLVM-exception",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "BSL-1.0",
        "CC0-1.0",
        "MIT",
        "MIT-0",
        "MIT-CMU",
        "MPL-2.0",
        "PSF-2.0",
        "Zlib",
    }
)
"""What a package may be under. MPL-2.0 asks for the source of changed files of its own alone."""

ALLOWED_IN_WHEELS: Final = ALLOWED | {
    "FTL",
    "GPL-3.0-or-later WITH GCC-exception-3.1",
    "HPND-sell-variant",
    "IJG",
    "LGPL-2.1-or-later",
    "MIT-open-group",
    "OpenSSL",
    "libpng-2.0",
    "libtiff",
}
"""What a shared library that lies in a package's wheel may be under: also the LGPL, since it is a
file of its own that anybody can exchange, and the GPL with the exception for GCC's run-time."""

# By what a licence is called in metadata from before PEP 639. `BSD` says not which one.
_NAMES: Final[Mapping[str, str]] = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "MIT License": "MIT",
    "License :: OSI Approved :: Apache Software License": "Apache-2.0",
    "License :: OSI Approved :: MIT License": "MIT",
    "License :: OSI Approved :: Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "License :: OSI Approved :: Python Software Foundation License": "PSF-2.0",
}

_READ_ELSEWHERE: Final[Mapping[str, str]] = {
    "jinja2": "BSD-3-Clause",  # its LICENSE.txt
    "milvus-lite": "Apache-2.0",  # LICENSE of github.com/milvus-io/milvus-lite
    "mpmath": "BSD-3-Clause",  # its LICENSE
    "rich-pixels": "MIT",  # its LICENSE
    "s3fs": "BSD-3-Clause",  # its LICENSE.txt
    "sympy": "BSD-3-Clause",  # its LICENSE
}

# Shared libraries by the beginnings of their names. What belongs to the package itself has its
# licence, and is not here.
_LIBRARIES: Final[Mapping[str, str]] = {
    "libX": "MIT-open-group",
    "libaom": "BSD-2-Clause",
    "libav": "LGPL-2.1-or-later",  # FFmpeg
    "libavif": "BSD-2-Clause",
    "libbrotli": "MIT",
    "libcrypto": "OpenSSL",
    "libdouble-conversion": "BSD-3-Clause",
    "libdrm": "MIT",
    "libfreetype": "FTL",
    "libgcc_s": "GPL-3.0-or-later WITH GCC-exception-3.1",
    "libgflags": "BSD-3-Clause",
    "libgfortran": "GPL-3.0-or-later WITH GCC-exception-3.1",
    "libglog": "BSD-3-Clause",
    "libgomp": "GPL-3.0-or-later WITH GCC-exception-3.1",
    "libharfbuzz": "MIT",
    "libjpeg": "IJG",
    "liblcms2": "MIT",
    "liblzma": "0BSD",
    "libm.": "LGPL-2.1-or-later",  # glibc
    "libopenblas": "BSD-3-Clause",
    "libopenjp2": "BSD-2-Clause",
    "libpng16": "libpng-2.0",
    "libquadmath": "LGPL-2.1-or-later",
    "libscipy_openblas": "BSD-3-Clause",
    "libsharpyuv": "BSD-3-Clause",
    "libssl": "OpenSSL",
    "libsw": "LGPL-2.1-or-later",  # FFmpeg
    "libtbb": "Apache-2.0",
    "libtiff": "libtiff",
    "libvpx": "BSD-3-Clause",
    "libwebp": "BSD-3-Clause",
    "libxcb": "MIT",
    "libz.": "Zlib",
    "libzstd": "BSD-3-Clause",
}
_OWN: Final = {
    "milvus-lite": ("libknowhere",),
    "onnxruntime": ("libonnxruntime",),
    "pyarrow": ("libarrow", "libparquet"),
    "torch": ("libaoti_", "libbackend_", "libc10", "libjit", "libshm", "libtorch"),
}
# Python's own extension modules bear the interpreter's name in front of `.so`.
_LIBRARY: Final = re.compile(r"lib(?!\.cpython-)[^/]+\.so(\.[^/]*)?")
_ROW: Final = re.compile(r"\| (?P<name>\S+) \| (?P<version>\S+) \| (?P<licence>[^|]+) \| [^|]+ \|")


# Made once: it reads the list of all licences.
_spdx: Final = functools.cache(get_spdx_licensing)


@dataclass(frozen=True)
class Licensed:
    """A locked package, the SPDX expression of its licence, and the images that hold it."""

    name: str
    version: Version
    licence: str
    images: tuple[str, ...]


def locked_packages(*, root: Path = ROOT) -> dict[str, tuple[Locked, tuple[str, ...]]]:
    """Every package of the locks with the images that hold it.

    Raises:
        SupplyError: two images hold two versions of one.
    """
    found: dict[str, tuple[Locked, tuple[str, ...]]] = {}
    for image, described in IMAGES.items():
        for each in read_lock(root / described.lock):
            known, images = found.get(each.name, (each, ()))
            if known.version != each.version:
                raise SupplyError(
                    f"{each.name} is {known.version} in one image and {each.version} in another:"
                    " run make lock"
                )
            found[each.name] = (known, (*images, image))
    return dict(sorted(found.items()))


def installed(path: Sequence[str] | None = None) -> dict[str, Distribution]:
    """What is installed, by canonical name; in some folders only, if given."""
    found = distributions() if path is None else distributions(path=list(path))
    return {canonicalize_name(each.metadata["Name"]): each for each in found}


def licence_of(distribution: Distribution) -> str:
    """SPDX expression of a package's licence.

    Raises:
        SupplyError: its metadata do not say it, and neither does this module.
    """
    name = canonicalize_name(distribution.metadata["Name"])
    metadata: Any = distribution.metadata
    stated = metadata.get("License-Expression")
    if not stated:
        field = (metadata.get("License") or "").strip()
        classifiers = [each for each in metadata.get_all("Classifier") or () if "License" in each]
        names = [_NAMES[each] for each in (field, *classifiers) if each in _NAMES]
        stated = _READ_ELSEWHERE.get(name) or (names[0] if names else field)
    licensing = _spdx()
    if not stated or licensing.validate(stated).errors:
        raise SupplyError(
            f"the metadata of {name} {distribution.version} name no licence in SPDX's words but"
            f" {stated.splitlines()[:1]}: look it up and write it into scripts/supply/licences.py"
        )
    return str(licensing.parse(stated).render())


def is_allowed(licence: str, allowed: Iterable[str] = ALLOWED) -> bool:
    """Whether an SPDX expression can be kept to by keeping to allowed licences alone."""
    licensing = _spdx()
    known = {licensing.parse(each) for each in allowed}

    def holds(node: Any) -> bool:
        if isinstance(node, licensing.AND):
            return all(map(holds, node.args))
        if isinstance(node, licensing.OR):
            return any(map(holds, node.args))
        return node in known

    return holds(licensing.parse(licence, validate=True))


def bundled(distribution: Distribution) -> dict[str, str]:
    """Shared libraries of others in a package, and the SPDX expressions of their licences.

    Raises:
        SupplyError: one is not known.
    """
    name = canonicalize_name(distribution.metadata["Name"])
    own = _OWN.get(name, ())
    found = {}
    for file in distribution.files or ():
        if not _LIBRARY.fullmatch(file.name) or file.name.startswith(own):
            continue
        # The longest beginning counts: libavif is none of FFmpeg's libav….
        matching = [each for each in _LIBRARIES if file.name.startswith(each)]
        if not matching:
            raise SupplyError(
                f"{name} {distribution.version} brings {file.name}: look up its licence and write"
                " it into scripts/supply/licences.py"
            )
        found[re.split(r"-[0-9a-f]{8}|\.so", file.name, maxsplit=1)[0]] = _LIBRARIES[
            max(matching, key=len)
        ]
    return found


def write(*, root: Path = ROOT) -> None:
    """Writes `docs/licences.md`. What is not installed here in its locked version is fetched.

    Raises:
        SupplyError: a package cannot be fetched, or its licence is not known.
    """
    packages = locked_packages(root=root)
    here = installed()
    missing = [
        locked
        for name, (locked, _) in packages.items()
        if name not in here or Version(here[name].version) != locked.version
    ]
    with tempfile.TemporaryDirectory() as folder:
        _fetch(missing, Path(folder))
        found = here | installed([folder])
        licensed = [
            Licensed(name, locked.version, licence_of(found[name]), images)
            for name, (locked, images) in packages.items()
        ]
        libraries = {name: bundled(found[name]) for name in packages}
    file = root / FILE.relative_to(ROOT)
    file.write_text(with_tables(file.read_text("utf-8"), licensed, libraries), "utf-8")


def _fetch(packages: Sequence[Locked], folder: Path) -> None:
    if not packages:
        return
    requirements = folder / "requirements.txt"
    requirements.write_text(
        "".join(
            f"{each.name}=={each.version} {' '.join(f'--hash=sha256:{h}' for h in each.hashes)}\n"
            for each in packages
        ),
        "utf-8",
    )
    command = [
        *(sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps"),
        *("--require-hashes", "--target", str(folder), "--requirement", str(requirements)),
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SupplyError(
            f"uv cannot fetch {', '.join(each.name for each in packages)} to read their licences:"
            f" {done.stderr.strip()}; PyTorch's build for CPUs must be installed here"
            " (make models, or make test)"
        )


def with_tables(
    document: str, packages: Iterable[Licensed], libraries: Mapping[str, Mapping[str, str]]
) -> str:
    """The document with its two tables made anew.

    Args:
        document: as it is.
        packages: the locked ones.
        libraries: for each package, the licences of the shared libraries that it holds.
    """
    rows = [
        f"| {each.name} | {each.version} | {each.licence} | {', '.join(each.images)} |"
        for each in packages
    ]
    inside = [
        f"| {name} | {', '.join(sorted(files))} | {licence} |"
        for name, held in libraries.items()
        for licence, files in sorted(_by_licence(held).items())
    ]
    for name, columns, lines in (
        ("packages", ("package", "version", "licence", "in"), rows),
        ("libraries", ("package", "library", "licence"), inside),
    ):
        start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
        before, _, rest = document.partition(start)
        _, _, after = rest.partition(end)
        header = [f"| {' | '.join(columns)} |", f"| {' | '.join(['---'] * len(columns))} |"]
        table = "".join(f"{line}\n" for line in [*header, *lines])
        document = f"{before}{start}{table}{end}{after}"
    return document


def _by_licence(held: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for library, licence in held.items():
        found.setdefault(licence, []).append(library)
    return found


def read(file: Path | None = None) -> dict[str, tuple[Version, str]]:
    """Version and licence of every package of a document; without one, of the repository's."""
    lines = (file or FILE).read_text("utf-8").splitlines()
    rows = [found for line in lines if (found := _ROW.fullmatch(line))]
    return {
        row["name"]: (Version(row["version"]), row["licence"])
        for row in rows
        if row["name"] not in ("package", "---")
    }
