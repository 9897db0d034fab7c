"""What the images hold is under licences that are allowed, and the list of them is true."""

from importlib.metadata import PathDistribution
from pathlib import Path

import pytest
from packaging.version import Version

from scripts.supply.errors import SupplyError
from scripts.supply.licences import (
    ALLOWED,
    ALLOWED_IN_WHEELS,
    FILE,
    Licensed,
    bundled,
    installed,
    is_allowed,
    licence_of,
    locked_packages,
    read,
    with_tables,
)

DOCUMENT = FILE.read_text("utf-8")


def distribution(folder: Path, *lines: str, files: tuple[str, ...] = ()) -> PathDistribution:
    """A package of the name `thing` with these lines in its metadata."""
    info = folder / "thing-1.0.dist-info"
    info.mkdir()
    text = "\n".join(("Metadata-Version: 2.1", "Name: thing", "Version: 1.0", *lines))
    (info / "METADATA").write_text(f"{text}\n", "utf-8")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files), "utf-8")
    return PathDistribution(info)


# The repository's own


def test_every_locked_package_is_listed_with_its_version_and_the_images_that_hold_it() -> None:
    packages = locked_packages()
    assert {name: version for name, (version, _) in read().items()} == {
        name: locked.version for name, (locked, _) in packages.items()
    }
    for name, (_, images) in packages.items():
        [row] = [line for line in DOCUMENT.splitlines() if line.startswith(f"| {name} | ")][:1]
        assert row.endswith(f"| {', '.join(images)} |")


@pytest.mark.parametrize("name", read())
def test_a_packages_licence_is_allowed(name: str) -> None:
    _, licence = read()[name]
    assert is_allowed(licence), licence


def test_licences_are_those_of_the_packages_metadata() -> None:
    """Told by what is installed here in the version that is locked."""
    here = installed()
    listed = read()
    same = [n for n in listed if n in here and Version(here[n].version) == listed[n][0]]
    assert same
    for name in same:
        assert licence_of(here[name]) == listed[name][1], name


def test_libraries_inside_packages_are_listed_and_allowed() -> None:
    here = installed()
    for name, (locked, _) in locked_packages().items():
        if name in here and Version(here[name].version) == locked.version:
            for library, licence in bundled(here[name]).items():
                assert is_allowed(licence, ALLOWED_IN_WHEELS), f"{name}: {library}"
                rows = [line for line in DOCUMENT.splitlines() if line.startswith(f"| {name} | ")]
                assert any(library in row and f"| {licence} |" in row for row in rows), library


def test_neither_gpl_nor_agpl_is_allowed() -> None:
    copyleft = {each for each in ALLOWED if "GPL" in each}
    assert not copyleft
    in_wheels = {each for each in ALLOWED_IN_WHEELS if "GPL" in each}
    assert in_wheels == {"GPL-3.0-or-later WITH GCC-exception-3.1", "LGPL-2.1-or-later"}


# Deciding


@pytest.mark.parametrize(
    ("licence", "allowed"),
    [
        ("MIT", True),
        ("MIT AND Apache-2.0", True),
        ("GPL-3.0-only OR MIT", True),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", True),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("GPL-3.0-only", False),
        ("AGPL-3.0-or-later", False),
        ("MIT AND GPL-2.0-only", False),
        ("MIT AND (GPL-2.0-only OR LGPL-3.0-only)", False),
        ("GPL-2.0-only WITH Classpath-exception-2.0", False),
        ("LGPL-2.1-or-later", False),
    ],
)
def test_an_expression_is_allowed_where_allowed_licences_fulfil_it(
    licence: str, allowed: bool
) -> None:
    assert is_allowed(licence) == allowed


@pytest.mark.parametrize(
    ("lines", "licence"),
    [
        (["License-Expression: MIT AND Zlib", "License: GPL"], "MIT AND Zlib"),
        (["License: Apache-2.0"], "Apache-2.0"),
        (["License: Apache 2.0"], "Apache-2.0"),
        (["Classifier: License :: OSI Approved :: MIT License"], "MIT"),
        (
            ["License: see LICENSE", "Classifier: License :: OSI Approved :: MIT License"],
            "MIT",
        ),
    ],
)
def test_metadata_of_any_age_are_understood(tmp_path: Path, lines: list[str], licence: str) -> None:
    assert licence_of(distribution(tmp_path, *lines)) == licence


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["License: BSD"],
        ["License: UNKNOWN"],
        ["License: MIT", "License-Expression: Proprietary Stuff"],
        ["Classifier: License :: OSI Approved :: BSD License"],
        ["Classifier: License :: Other/Proprietary License"],
    ],
)
def test_a_licence_that_is_not_plain_has_to_be_looked_up(tmp_path: Path, lines: list[str]) -> None:
    with pytest.raises(SupplyError, match=r"thing 1\.0 name no licence"):
        licence_of(distribution(tmp_path, *lines))


def test_libraries_of_others_are_found_in_a_package(tmp_path: Path) -> None:
    files = ("thing/core.so", "thing.libs/libavif-43e630fc.so.16.4.2", "thing.libs/libz.so.1")
    assert bundled(distribution(tmp_path, files=files)) == {
        "libavif": "BSD-2-Clause",
        "libz": "Zlib",
    }


def test_a_library_that_is_not_known_has_to_be_looked_up(tmp_path: Path) -> None:
    with pytest.raises(SupplyError, match=r"brings libsecret-00000000\.so\.1: look up its licence"):
        bundled(distribution(tmp_path, files=("thing.libs/libsecret-00000000.so.1",)))


def test_the_tables_are_written_and_read(tmp_path: Path) -> None:
    packages = [Licensed("one", Version("1.2+cpu"), "MIT OR Zlib", ("service", "models"))]
    document = with_tables(DOCUMENT, packages, {"one": {"libb": "MIT", "liba": "MIT"}})
    (tmp_path / "licences.md").write_text(document, "utf-8")
    assert read(tmp_path / "licences.md") == {"one": (Version("1.2+cpu"), "MIT OR Zlib")}
    assert "| one | liba, libb | MIT |" in document
    assert document.count("<!-- ") == DOCUMENT.count("<!-- ")
    assert "## Models" in document
