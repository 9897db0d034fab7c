"""The bill of materials is valid CycloneDX, and complete."""

import hashlib
import json
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from scripts.supply.__main__ import main
from scripts.supply.locks import IMAGES, read_lock
from tests.service import REPOSITORY, SMALL_PAIR


@pytest.fixture(scope="module", params=IMAGES)
def image(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def text(image: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the command writes."""
    file = tmp_path_factory.mktemp("sbom") / "new" / "sbom.json"
    assert main(["sbom", "--image", image, str(file)]) == 0
    return file.read_text("utf-8")


@pytest.fixture
def content(text: str) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(text)
    return parsed


def test_it_follows_the_schema(text: str) -> None:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None


def test_it_holds_every_locked_package_with_its_licence_and_hashes(
    image: str, content: dict[str, Any]
) -> None:
    found = {each["name"]: each for each in content["components"] if each["type"] == "library"}
    locked = read_lock(REPOSITORY / IMAGES[image].lock)
    assert {*found} == {each.name for each in locked}
    for each in locked:
        component = found[each.name]
        assert component["version"] == str(each.version)
        assert component["purl"].startswith(f"pkg:pypi/{each.name}@")
        assert component["licenses"]
        [files] = component["externalReferences"]
        assert {one["content"] for one in files["hashes"]} == {*each.hashes}


def test_it_holds_the_models_and_the_image_below(image: str, content: dict[str, Any]) -> None:
    kinds = ("machine-learning-model", "container")
    found = {each["name"]: each for each in content["components"] if each["type"] in kinds}
    assert {*found} == {*SMALL_PAIR.values(), "python"}
    for name in SMALL_PAIR.values():
        file = REPOSITORY / "model_repository" / name / "1" / "model.onnx"
        [sha256] = found[name]["hashes"]
        assert sha256 == {
            "alg": "SHA-256",
            "content": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
    dockerfile = (REPOSITORY / IMAGES[image].dockerfile).read_text("utf-8")
    assert f"FROM python:{found['python']['version']}" in dockerfile


def test_it_says_what_requires_what(content: dict[str, Any]) -> None:
    graph = {each["ref"]: each.get("dependsOn", []) for each in content["dependencies"]}
    ourselves = content["metadata"]["component"]["bom-ref"]
    names = {each["bom-ref"]: each["name"] for each in content["components"]}
    assert {"aiohttp", "onnxruntime", *SMALL_PAIR.values()} <= {
        names[ref] for ref in graph[ourselves]
    }
    [aiohttp] = [ref for ref, name in names.items() if name == "aiohttp"]
    assert {"yarl", "multidict"} <= {names[ref] for ref in graph[aiohttp]}
    reached, waiting = set(), [ourselves]
    while waiting:
        ref = waiting.pop()
        if ref not in reached:
            reached.add(ref)
            waiting += graph[ref]
    assert reached == {ourselves, *names}, "something is there that nobody requires"
