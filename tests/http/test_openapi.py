"""The OpenAPI document: whole, valid, and about the routes that there are."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from backend.app import create_app
from backend.errors import ServiceError
from backend.http import compat
from backend.http.openapi import openapi_document
from backend.http.schemas import ErrorBody, LoadBody
from backend.settings import Settings

METHODS = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}
TYPES = {"string", "number", "integer", "boolean", "array", "object", "null"}


@pytest.fixture
def document() -> dict[str, Any]:
    """The document as a client gets it: through JSON."""
    made = openapi_document(compat.OPERATIONS, title="A title", version="1.2.3", demands_keys=True)
    through_json: dict[str, Any] = json.loads(json.dumps(made))
    return through_json


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from _nodes(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _nodes(inner)


def _resolve(document: dict[str, Any], reference: str) -> Any:
    assert reference.startswith("#/")
    found: Any = document
    for name in reference.removeprefix("#/").split("/"):
        found = found[name.replace("~1", "/").replace("~0", "~")]
    return found


def test_it_says_which_openapi_it_is_and_what_it_is_about(document: dict[str, Any]) -> None:
    assert document["openapi"] == "3.1.0"
    assert document["info"] == {"title": "A title", "version": "1.2.3"}
    assert set(document) <= {"openapi", "info", "paths", "components"}


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    references = [node["$ref"] for node in _nodes(document) if "$ref" in node]
    assert references
    for reference in references:
        assert _resolve(document, reference)["type"] == "object"


def test_every_operation_has_an_id_of_its_own_a_summary_and_responses(
    document: dict[str, Any],
) -> None:
    ids = []
    for path, method, operation in _operations(document):
        assert path.startswith("/")
        assert method in METHODS
        assert operation["summary"]
        ids.append(operation["operationId"])
        assert "200" in operation["responses"]
        for status, response in operation["responses"].items():
            assert 200 <= int(status) <= 599
            assert response["description"]
            for media_type, content in response["content"].items():
                assert "/" in media_type
                assert content["schema"]
    assert len(set(ids)) == len(ids) == len(compat.OPERATIONS)


def test_every_error_is_documented_with_the_body_that_errors_have(
    document: dict[str, Any],
) -> None:
    statuses = {ServiceError.status} | {kind.status for kind in _all_errors(ServiceError)}
    seen = set()
    for _, _, operation in _operations(document):
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                seen.add(int(status))
                schema = response["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ErrorBody"}
    assert seen <= statuses
    body = document["components"]["schemas"]["ErrorBody"]
    assert set(body["properties"]) == {"status", "msg"}


def _all_errors(kind: type[ServiceError]) -> set[type[ServiceError]]:
    below = set(kind.__subclasses__())
    return below | {error for inner in below for error in _all_errors(inner)}


def test_every_parameter_is_whole_and_named_once(document: dict[str, Any]) -> None:
    for _, _, operation in _operations(document):
        names = [(parameter["in"], parameter["name"]) for parameter in operation["parameters"]]
        assert len(set(names)) == len(names)
        for parameter in operation["parameters"]:
            assert parameter["in"] == "query"
            assert parameter["description"]
            assert isinstance(parameter["required"], bool)
            assert parameter["schema"]["type"] in TYPES


def test_every_schema_has_a_type_that_json_schema_knows(document: dict[str, Any]) -> None:
    for node in _nodes([document["paths"], document["components"]["schemas"]]):
        if isinstance(node.get("type"), str):
            assert node["type"] in TYPES
        if "required" in node and "properties" in node:
            assert set(node["required"]) <= set(node["properties"])


def test_a_form_s_fields_are_documented(document: dict[str, Any]) -> None:
    search = document["paths"]["/img/search"]["post"]["requestBody"]["content"]
    schema = search["multipart/form-data"]["schema"]
    assert schema["type"] == "object"
    assert set(schema["properties"]) == {"image", "topk"}
    assert schema["properties"]["image"]["format"] == "binary"
    assert schema["required"] == ["image"]
    upload = document["paths"]["/img/upload"]["post"]["requestBody"]["content"]
    schema = upload["multipart/form-data"]["schema"]
    assert set(schema["properties"]) == {"image", "url"}
    assert schema["required"] == []


def test_a_load_s_body_is_documented_under_the_names_that_clients_send(
    document: dict[str, Any],
) -> None:
    content = document["paths"]["/img/load"]["post"]["requestBody"]["content"]
    schema = _resolve(document, content["application/json"]["schema"]["$ref"])
    assert set(schema["properties"]) == {"File", "Table"}
    assert schema["required"] == ["File"]


def test_what_is_documented_is_what_is_routed(document: dict[str, Any], settings: Settings) -> None:
    documented = {(path, method.upper()) for path, method, _ in _operations(document)}
    routed = {
        (route.resource.canonical, route.method)
        for route in create_app(settings).router.routes()
        if route.resource is not None
    }
    assert documented <= routed
    existing = {
        ("/img/load", "POST"),
        ("/progress", "GET"),
        ("/img/count", "POST"),
        ("/img/search", "POST"),
        ("/img/upload", "POST"),
        ("/img/drop", "POST"),
        ("/data", "GET"),
    }
    assert existing <= documented


def test_a_load_s_body_takes_the_names_that_clients_send() -> None:
    body = LoadBody.model_validate({"File": "/photos", "Table": "t", "Extra": 1})
    assert (body.folder, body.table) == ("/photos", "t")
    assert LoadBody.model_validate({"File": "/photos"}).table is None
    with pytest.raises(ValidationError, match="File"):
        LoadBody.model_validate({"Table": "t"})


def test_an_error_s_status_is_false() -> None:
    assert ErrorBody(msg="why").model_dump() == {"status": False, "msg": "why"}
