"""The locks are what pyproject.toml asks for, and hold nothing without a hash."""

import re
from importlib.metadata import Distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from scripts.supply.errors import SupplyError
from scripts.supply.licences import installed
from scripts.supply.locks import IMAGES, Image, problems, read_lock
from tests.service import REPOSITORY

EACH_IMAGE = pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
SUM = "0" * 64

PROJECT = """
[project]
dependencies = ["aiohttp>=3.14,<4", "Pillow>=12"]
[project.optional-dependencies]
tracing = ["opentelemetry-sdk>=1.45,<2"]
"""
LOCK = f"""\
# This file was made by a command.
aiohttp==3.14.5 \\
    --hash=sha256:{SUM} \\
    --hash=sha256:{"1" * 64}
    # via image-similarity-search (pyproject.toml)
opentelemetry-sdk==1.45.2 \\
    --hash=sha256:{SUM}
    # via image-similarity-search (pyproject.toml)
pillow==13.0.0 \\
    --hash=sha256:{SUM}
    # via
    #   image-similarity-search (pyproject.toml)
    #   rich-pixels
yarl==1.25.1 \\
    --hash=sha256:{SUM}
    # via aiohttp
"""
IMAGE = Image(Path("Dockerfile"), Path("lock"), ("tracing",))


def written(root: Path, *, lock: str = LOCK, project: str = PROJECT) -> Path:
    """A repository of those two files."""
    (root / "pyproject.toml").write_text(project, "utf-8")
    (root / "lock").write_text(lock, "utf-8")
    return root


# The repository's own


@EACH_IMAGE
def test_a_lock_is_what_pyproject_asks_for(image: Image) -> None:
    assert problems(image) == []


@EACH_IMAGE
def test_a_lock_names_no_index_and_no_place(image: Image) -> None:
    """Neither is needed: whatever server a file comes from, its hash must be one of these."""
    text = (REPOSITORY / image.lock).read_text("utf-8")
    assert "://" not in text
    assert not re.search(r"^\s*-(?!-hash)", text, re.MULTILINE)
    assert "/" not in re.sub(r"^#.*", "", text, flags=re.MULTILINE)


@EACH_IMAGE
def test_a_lock_holds_all_that_its_packages_require(image: Image) -> None:
    """`pip install --require-hashes` fails otherwise. Told by those that are installed here."""
    locked = {each.name: each.version for each in read_lock(REPOSITORY / image.lock)}
    here = installed()
    compared = 0
    for name, version in locked.items():
        if name in here and Version(here[name].version) == version:
            for requirement in requirements(here[name]):
                needed = canonicalize_name(requirement.name)
                assert needed in locked, f"{name} requires {requirement}"
                assert requirement.specifier.contains(locked[needed], prereleases=True)
            compared += 1
    assert compared, "not one locked version is installed here"


def requirements(distribution: Distribution) -> list[Requirement]:
    """What a package requires without its extras, on Linux and CPython 3.11."""
    machine = {
        "extra": "",
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": "3.11.16",
        "python_version": "3.11",
        "sys_platform": "linux",
    }
    found = [Requirement(text) for text in distribution.requires or ()]
    return [each for each in found if each.marker is None or each.marker.evaluate(machine)]


@EACH_IMAGE
def test_every_package_is_there_for_a_reason(image: Image) -> None:
    names = {each.name for each in read_lock(REPOSITORY / image.lock)}
    for each in read_lock(REPOSITORY / image.lock):
        assert each.wanted_by, each.name
        assert {*each.wanted_by} <= names | {"image-similarity-search"}, each.name


# Reading and comparing


def test_packages_hashes_and_who_wants_them_are_read(tmp_path: Path) -> None:
    aiohttp, sdk, pillow, yarl = read_lock(written(tmp_path) / "lock")
    assert (aiohttp.name, str(aiohttp.version)) == ("aiohttp", "3.14.5")
    assert aiohttp.hashes == (SUM, "1" * 64)
    assert pillow.wanted_by == ("image-similarity-search", "rich-pixels")
    assert [each.is_direct for each in (aiohttp, sdk, pillow, yarl)] == [True, True, True, False]
    assert problems(IMAGE, root=tmp_path) == []


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        (f"    --hash=sha256:{SUM}\n    # via aiohttp", "    # via aiohttp"),
        (f"    --hash=sha256:{SUM}\n    # via aiohttp", "    --hash=sha256:0123"),
        (f"    --hash=sha256:{SUM}\n    # via aiohttp", f"    --hash=md5:{SUM[:32]}"),
        ("yarl==1.25.1", "yarl>=1.25.1"),
        ("yarl==1.25.1", "yarl @ https://files.example/yarl.whl"),
        ("# This file", "--index-url https://packages.example/simple\n# This file"),
        ("# This file", "--extra-index-url https://packages.example/simple\n# This file"),
        ("# This file", "-r other.lock\n# This file"),
        ("# This file", f"    --hash=sha256:{SUM}\n# This file"),
    ],
)
def test_what_pip_would_not_check_is_no_lock(tmp_path: Path, line: str, instead: str) -> None:
    assert line in LOCK
    with pytest.raises(
        SupplyError, match=r"has no hash|neither a package by its version nor a hash"
    ):
        read_lock(written(tmp_path, lock=LOCK.replace(line, instead)) / "lock")


@pytest.mark.parametrize(
    ("project", "problem"),
    [
        (PROJECT.replace('"Pillow', '"numpy>=2", "Pillow'), "lacks numpy"),
        (PROJECT.replace("1.45,<2", "1.46,<2"), "has opentelemetry-sdk 1.45.2, .* requires .*1.46"),
        (PROJECT.replace(",<4", ",<3.14.5"), "has aiohttp 3.14.5"),
        (PROJECT.replace(', "Pillow>=12"', ""), "has pillow for .*, which does not require it"),
    ],
)
def test_a_lock_of_other_requirements_is_told(tmp_path: Path, project: str, problem: str) -> None:
    [found] = problems(IMAGE, root=written(tmp_path, project=project))
    assert re.search(problem, found)
    assert found.endswith("run make lock")
