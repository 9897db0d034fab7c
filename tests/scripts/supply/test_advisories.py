"""Nothing that is shipped, started or allowed has a hole that is known here."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from scripts.supply import advisories
from scripts.supply.advisories import (
    Advisory,
    Part,
    affected,
    locked_parts,
    lower_bounds,
    read_advisories,
    served_parts,
)
from scripts.supply.errors import SupplyError
from scripts.supply.locks import IMAGES
from tests.service import REPOSITORY

FLOORS = {"aiohttp": "3.13.4", "aiomysql": "0.3.0", "torch": "2.10"}
MILVUS = "github.com/milvus-io/milvus"


@pytest.fixture(scope="module")
def known() -> list[Advisory]:
    return read_advisories()


def part(name: str, version: str, ecosystem: str = "PyPI") -> Part:
    return Part(ecosystem, name, Version(version), "here")


def record(events: list[dict[str, str]], **changes: Any) -> dict[str, Any]:
    """A record of OSV about the package `thing`."""
    return {
        "id": "TEST-1",
        "summary": "a hole",
        "affected": [
            {
                "package": {"ecosystem": "PyPI", "name": "Thing"},
                "ranges": [{"type": "ECOSYSTEM", "events": events}],
            }
        ],
    } | changes


def from_record(folder: Path, content: dict[str, Any]) -> Advisory:
    file = folder / "advisories.json"
    file.write_text(json.dumps([content]), "utf-8")
    [found] = read_advisories(file)
    return found


# The repository's own


def test_nothing_that_is_locked_has_a_known_hole(known: list[Advisory]) -> None:
    parts = list(locked_parts())
    assert {each.where for each in parts} == {str(image.lock) for image in IMAGES.values()}
    assert affected(parts, known) == []


def test_no_program_of_the_compose_file_has_a_known_hole(known: list[Advisory]) -> None:
    [milvus] = served_parts()
    assert milvus.name == MILVUS
    assert affected([milvus], known) == []


def test_no_range_of_pyproject_begins_in_a_known_hole(known: list[Advisory]) -> None:
    """So that whoever installs the oldest versions that are allowed has none either."""
    parts = list(lower_bounds())
    assert {"aiohttp", "pillow", "torch", "opentelemetry-sdk"} <= {each.name for each in parts}
    assert affected(parts, known) == []


@pytest.mark.parametrize(("name", "floor"), FLOORS.items())
def test_versions_are_above_the_floors(known: list[Advisory], name: str, floor: str) -> None:
    parts = [each for each in (*locked_parts(), *lower_bounds()) if each.name == name]
    assert parts
    for each in parts:
        assert each.version >= Version(floor)


@pytest.mark.parametrize(
    ("name", "last", "first"),
    [
        ("aiohttp", "3.13.3", "3.14.3"),
        ("aiomysql", "0.2.0", "0.3.0"),
        ("torch", "2.9.1", "2.10.0"),
        ("torch", "2.9.1+cpu", "2.10.0+cpu"),
        ("setuptools", "78.1.0", "78.1.1"),
        ("protobuf", "6.33.4", "6.33.5"),
        ("protobuf", "5.29.5", "5.29.6"),
        ("pillow", "12.2.0", "12.3.0"),
    ],
)
def test_the_file_knows_the_last_version_with_a_hole_and_the_first_without(
    known: list[Advisory], name: str, last: str, first: str
) -> None:
    assert affected([part(name, last)], known)
    assert not affected([part(name, first)], known)


@pytest.mark.parametrize(
    ("version", "has_hole"),
    [
        ("2.3.5", True),
        ("2.5.26", True),
        ("2.5.27", False),
        ("2.5.30", False),
        ("2.6.0", True),
        ("2.6.9", True),
        ("2.6.10", False),
        ("2.7.0", False),
    ],
)
def test_two_lines_of_milvus_are_mended_each_from_a_version_of_its_own_on(
    known: list[Advisory], version: str, has_hole: bool
) -> None:
    found = affected([part(MILVUS, version, "Go")], known)
    assert any("CVE-2026-26190" in line for line in found) == has_hole


def test_a_lower_version_in_the_compose_file_is_found(
    known: list[Advisory], tmp_path: Path
) -> None:
    text = (REPOSITORY / "docker-compose.yml").read_text("utf-8")
    older = re.sub(r"milvusdb/milvus:\S+", "milvusdb/milvus:v2.6.9", text)
    (tmp_path / "docker-compose.yml").write_text(older, "utf-8")
    [problem] = affected(served_parts(root=tmp_path), known)
    assert "docker-compose.yml" in problem
    assert "CVE-2026-26190" in problem
    unpinned = re.sub(r"milvusdb/milvus:\S+", "milvusdb/milvus:latest", text)
    (tmp_path / "docker-compose.yml").write_text(unpinned, "utf-8")
    with pytest.raises(SupplyError, match="milvus:latest is no version"):
        list(served_parts(root=tmp_path))


def test_every_record_says_where_to_read_more(known: list[Advisory]) -> None:
    records = json.loads(advisories.FILE.read_text("utf-8"))
    assert len({each.id for each in known}) == len(known) == len(records)
    for each in records:
        assert re.fullmatch(r"(GHSA|CVE|PYSEC)-[\w-]+", each["id"])
        assert each["schema_version"]
        assert each["modified"]
        assert all(url["url"].endswith(each["id"]) for url in each["references"])
        assert each["references"]


# Reading and matching


@pytest.mark.parametrize(
    ("events", "with_hole", "without"),
    [
        ([{"introduced": "0"}, {"fixed": "2"}], ["0", "1.9.9", "2rc1"], ["2", "3"]),
        ([{"introduced": "1.2"}, {"fixed": "1.4"}], ["1.2", "1.3"], ["1.1", "1.4"]),
        ([{"introduced": "1.2"}], ["1.2", "99"], ["1.1"]),
        (
            [{"introduced": "1"}, {"fixed": "2"}, {"introduced": "3"}, {"fixed": "4"}],
            ["1", "3.5"],
            ["0.9", "2", "2.5", "4"],
        ),
    ],
)
def test_a_hole_is_from_its_introduction_up_to_its_fix(
    tmp_path: Path, events: list[dict[str, str]], with_hole: list[str], without: list[str]
) -> None:
    advisory = from_record(tmp_path, record(events))
    assert all(advisory.concerns(part("thing", version)) for version in with_hole)
    assert not any(advisory.concerns(part("thing", version)) for version in without)
    assert not advisory.concerns(part("other", with_hole[0]))
    assert not advisory.concerns(part("thing", with_hole[0], "Go"))


def test_what_has_a_hole_is_named_with_it(tmp_path: Path) -> None:
    content = record([{"introduced": "0"}], aliases=["CVE-2026-1"])
    [line] = affected([part("thing", "1.5")], [from_record(tmp_path, content)])
    assert line == "here: thing 1.5 has TEST-1 CVE-2026-1 (a hole)"


def unreadable() -> Iterator[tuple[str, str]]:
    """Files that must not pass as files without advisories."""
    yield "not JSON", "no JSON"
    yield "an object", json.dumps({"id": "TEST-1"})
    yield "no package", json.dumps([record([{"introduced": "0"}], affected=[])])
    yield "no range", json.dumps([record([])])
    yield "a fix of nothing", json.dumps([record([{"fixed": "1"}])])
    yield (
        "the last that has it",
        json.dumps([record([{"introduced": "0"}, {"last_affected": "1"}])]),
    )
    yield "no version", json.dumps([record([{"introduced": "0"}, {"fixed": "soon"}])])
    commits = record([{"introduced": "0"}, {"fixed": "1"}])
    commits["affected"][0]["ranges"][0]["type"] = "GIT"
    yield "commits", json.dumps([commits])
    listed = record([{"introduced": "0"}, {"fixed": "1"}])
    listed["affected"][0]["versions"] = ["1.0"]
    yield "a list of versions", json.dumps([listed])


@pytest.mark.parametrize("text", [*dict(unreadable()).values()], ids=[*dict(unreadable())])
def test_what_is_not_understood_does_not_pass(tmp_path: Path, text: str) -> None:
    (tmp_path / "advisories.json").write_text(text, "utf-8")
    with pytest.raises(SupplyError, match=r"advisories\.json"):
        read_advisories(tmp_path / "advisories.json")


def test_a_missing_file_does_not_pass(tmp_path: Path) -> None:
    with pytest.raises(SupplyError, match="FileNotFoundError"):
        read_advisories(tmp_path / "advisories.json")
