"""A software bill of materials of an image, in CycloneDX's JSON.

It names every package with version, licence, the hashes of its files and what requires it, the
models with their SHA-256, and the image that the image begins with. All of it is read from the
repository: nothing has to be installed, and no network is needed.
"""

import hashlib
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import License, LicenseAcknowledgement
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.version import Version

from scripts.supply import licences
from scripts.supply.errors import SupplyError
from scripts.supply.images import base_image
from scripts.supply.locks import IMAGES, ROOT, Locked, read_lock

__all__ = ["bill_of_materials", "document"]

MODELS: Final = Path("model_repository")


def document(image: str, *, root: Path = ROOT) -> str:
    """The bill of materials of an image, as JSON of CycloneDX 1.6."""
    text: str = JsonV1Dot6(bill_of_materials(image, root=root)).output_as_string(indent=2)
    return f"{text}\n"


def bill_of_materials(image: str, *, root: Path = ROOT) -> Bom:
    """What is in an image of `locks.IMAGES`.

    Raises:
        SupplyError: `docs/licences.md` is of other versions than the lock.
    """
    described = IMAGES[image]
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    ourselves = Component(
        type=ComponentType.APPLICATION,
        name=project["name"],
        version=project["version"],
        bom_ref=project["name"],
        licenses=[_licence(project["license"])],
        purl=PackageURL("pypi", None, project["name"], project["version"]),
        description=f"the image {image!r}, as {described.dockerfile} makes it",
    )
    bom = Bom()
    bom.metadata.component = ourselves
    locked = read_lock(root / described.lock)
    stated = licences.read(root / licences.FILE.relative_to(ROOT))
    packages = {each.name: _package(each, stated) for each in locked}
    models = list(_models(root))
    base = base_image(root / described.dockerfile)
    container = Component(
        type=ComponentType.CONTAINER,
        name=base.name,
        version=base.tag,
        bom_ref=f"{base.name}:{base.tag}",
        purl=PackageURL("docker", None, base.name, base.tag),
    )
    for component in (*packages.values(), *models, container):
        bom.components.add(component)
    wanted: dict[str, list[Component]] = {}
    for each in locked:
        for name in each.wanted_by:
            wanted.setdefault(name, []).append(packages[each.name])
    direct = wanted.pop(project["name"], [])
    bom.register_dependency(ourselves, [*direct, *models, container])
    for name, component in packages.items():
        bom.register_dependency(component, wanted.get(name, ()))
    return bom


def _package(each: Locked, stated: Mapping[str, tuple[Version, str]]) -> Component:
    version, licence = stated.get(each.name, (None, ""))
    if version != each.version:
        raise SupplyError(f"docs/licences.md lacks {each.name} {each.version}: run make lock")
    purl = PackageURL("pypi", None, each.name, str(each.version))
    return Component(
        type=ComponentType.LIBRARY,
        name=each.name,
        version=str(each.version),
        bom_ref=f"{each.name}=={each.version}",
        licenses=[_licence(licence)],
        purl=purl,
        # Which of a version's files is installed depends on the machine: each hash may be the one.
        external_references=[
            ExternalReference(
                type=ExternalReferenceType.DISTRIBUTION,
                url=XsUri(purl.to_string()),
                hashes=[
                    HashType(alg=HashAlgorithm.SHA_256, content=each_hash)
                    for each_hash in each.hashes
                ],
            )
        ],
    )


def _models(root: Path) -> Iterator[Component]:
    """The models in the repository; others are exported where they are used."""
    for file in sorted((root / MODELS).glob("*-small/1/model.onnx")):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        name = file.parts[-3]
        yield Component(
            type=ComponentType.MACHINE_LEARNING_MODEL,
            name=name,
            version=content[:12],
            bom_ref=f"model:{name}",
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=content)],
        )


def _licence(expression: str) -> License:
    return LicenseFactory().make_from_string(
        expression, license_acknowledgement=LicenseAcknowledgement.DECLARED
    )
