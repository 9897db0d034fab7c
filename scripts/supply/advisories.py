"""Known holes, and who has them.

`security/advisories.json` holds records of OSV (https://ossf.github.io/osv-schema/): holes below
which no version may come back. They are looked up without a network, in the tests; pip-audit, which
asks the databases, knows more.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from scripts.supply.errors import SupplyError
from scripts.supply.images import compose_images
from scripts.supply.locks import IMAGES, ROOT, direct_requirements, read_lock

__all__ = [
    "Advisory",
    "Part",
    "affected",
    "locked_parts",
    "lower_bounds",
    "read_advisories",
    "served_parts",
]

FILE: Final = ROOT / "security" / "advisories.json"

# Milvus' image bears the version of the program in it, which the databases know by its Go module.
_PROGRAMS: Final[Mapping[str, tuple[str, str]]] = {
    "milvusdb/milvus": ("Go", "github.com/milvus-io/milvus")
}


@dataclass(frozen=True)
class Part:
    """Something that may have a hole: `name` as OSV's `ecosystem` spells it, `where` it is used."""

    ecosystem: str
    name: str
    version: Version
    where: str


@dataclass(frozen=True)
class Advisory:
    """One record.

    Attributes:
        affected: for each package, by ecosystem and name, the ranges of versions that have the
            hole: the first that has it, the first that has not, or None where all later ones have.
    """

    id: str
    aliases: tuple[str, ...]
    summary: str
    affected: Mapping[tuple[str, str], tuple[tuple[Version, Version | None], ...]]

    def concerns(self, part: Part) -> bool:
        """Whether the part has the hole."""
        ranges = self.affected.get((part.ecosystem, part.name), ())
        # A build's own suffix, as of 2.13.0+cpu, says nothing of holes.
        version = Version(part.version.public)
        return any(
            introduced <= version and (fixed is None or version < fixed)
            for introduced, fixed in ranges
        )


def read_advisories(file: Path | None = None) -> list[Advisory]:
    """The records of a file; without one, of the repository's.

    Raises:
        SupplyError: it holds something that is no record, or of a kind that is not understood here:
            what cannot be judged must not pass.
    """
    file = file or FILE
    try:
        return [_advisory(record) for record in json.loads(file.read_text("utf-8"))]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SupplyError(f"{file}: {type(error).__name__}: {error}") from None


def _advisory(record: Mapping[str, Any]) -> Advisory:
    where: dict[tuple[str, str], tuple[tuple[Version, Version | None], ...]] = {}
    for each in record["affected"]:
        ecosystem, name = each["package"]["ecosystem"], each["package"]["name"]
        if ecosystem == "PyPI":
            name = canonicalize_name(name)
        if "versions" in each:
            raise ValueError(f"{record['id']}: only ranges are understood, not lists of versions")
        ranges = tuple(found for part in each["ranges"] for found in _ranges(record["id"], part))
        if not ranges:
            raise ValueError(f"{record['id']}: names no range of {name}")
        where[ecosystem, name] = (*where.get((ecosystem, name), ()), *ranges)
    if not where:
        raise ValueError(f"{record['id']}: affects nothing")
    return Advisory(record["id"], tuple(record.get("aliases", ())), record["summary"], where)


def _ranges(name: str, part: Mapping[str, Any]) -> Iterator[tuple[Version, Version | None]]:
    if part["type"] not in ("ECOSYSTEM", "SEMVER"):
        raise ValueError(f"{name}: ranges of the type {part['type']} are not understood")
    introduced: Version | None = None
    for event in part["events"]:
        [(kind, text)] = event.items()
        match kind:
            case "introduced" if introduced is None:
                introduced = _version(text)
            case "fixed" if introduced is not None:
                yield introduced, _version(text)
                introduced = None
            case _:
                raise ValueError(f"{name}: the event {kind!r} is not understood where it stands")
    if introduced is not None:
        yield introduced, None


def _version(text: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion as error:
        raise ValueError(str(error)) from None


def locked_parts(*, root: Path = ROOT) -> Iterator[Part]:
    """The packages of both images."""
    for image in IMAGES.values():
        for each in read_lock(root / image.lock):
            yield Part("PyPI", each.name, each.version, str(image.lock))


def served_parts(*, root: Path = ROOT) -> Iterator[Part]:
    """The programs of docker-compose.yml of which advisories are known by another name.

    Raises:
        SupplyError: the tag of such an image is no version.
    """
    for image in compose_images(root / "docker-compose.yml"):
        if image.name in _PROGRAMS:
            ecosystem, name = _PROGRAMS[image.name]
            try:
                version = Version(image.tag)
            except InvalidVersion:
                raise SupplyError(
                    f"docker-compose.yml: the tag of {image.name}:{image.tag} is no version"
                ) from None
            yield Part(ecosystem, name, version, "docker-compose.yml")


def lower_bounds(*, root: Path = ROOT) -> Iterator[Part]:
    """The oldest version of each package that pyproject.toml allows; 0 where any may be."""
    extras = {extra for image in IMAGES.values() for extra in image.extras}
    for requirement in direct_requirements(sorted(extras), root=root):
        oldest = Version("0")
        for specifier in requirement.specifier:
            if specifier.operator in ("==", ">=", "~="):
                oldest = max(oldest, Version(specifier.version.removesuffix(".*")))
        yield Part("PyPI", canonicalize_name(requirement.name), oldest, "pyproject.toml")


def affected(parts: Iterable[Part], advisories: Iterable[Advisory]) -> list[str]:
    """Who has a known hole, in sentences."""
    known = list(advisories)
    return [
        f"{part.where}: {part.name} {part.version} has {' '.join((each.id, *each.aliases))}"
        f" ({each.summary})"
        for part in parts
        for each in known
        if each.concerns(part)
    ]
