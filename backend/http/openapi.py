"""Endpoints with their documentation in one, and the OpenAPI document that is made from them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from aiohttp.typedefs import Handler
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from backend.http.access import KEY_HEADER, SESSION_COOKIE
from backend.http.schemas import ErrorBody
from backend.http.v1.schemas import Problem
from backend.keys import Scope

__all__ = ["BINARY", "Operation", "Parameter", "Schema", "openapi_document"]

Schema: TypeAlias = Mapping[str, Any] | type[BaseModel]
"""A JSON schema, or the model that it is made from."""

BINARY: Final[Mapping[str, Any]] = {"type": "string", "format": "binary"}
"""The schema of a file."""
_VERSION: Final = "3.1.0"
_REF: Final = "#/components/schemas/{model}"
_IN_PATH: Final = re.compile(r"\{(\w+)(?::[^{}]*(?:\{[^{}]*\})?[^{}]*)?\}")
"""A name in a route's path, with the pattern that aiohttp may have behind it."""

_RETRY_AFTER: Final = {
    "Retry-After": {
        "description": "seconds after which to ask again",
        "schema": {"type": "integer", "minimum": 1},
    }
}

_CHALLENGE: Final = {
    "WWW-Authenticate": {
        "description": "how to send an API key, and what is wrong with the one that was sent",
        "schema": {"type": "string"},
    }
}
_SECURITY: Final = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "an API key"},
    "header": {"type": "apiKey", "in": "header", "name": KEY_HEADER, "description": "an API key"},
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": SESSION_COOKIE,
        "description": "of a page that has begun a session, for what it cannot send a key with",
    },
}
_HEADERS: Final = {401: _CHALLENGE, 429: _RETRY_AFTER, 503: _RETRY_AFTER}
_REFUSALS: Final = (403, 421, 429)
"""Of whoever calls from another's page, by another name, or too often: of every operation."""

_Key: TypeAlias = tuple[type[BaseModel], JsonSchemaMode]


@dataclass(frozen=True)
class Parameter:
    """A query parameter, a header, a part of a path or a field of a form, and its JSON schema."""

    name: str
    description: str
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "string"})
    required: bool = False


@dataclass(frozen=True)
class Operation:
    """An endpoint: its route and its documentation in one, so that they cannot drift apart.

    Attributes:
        scope: what an API key must be for; None where none is ever asked for.
        answer: what it answers with `status`; None for nothing at all.
        also: what it answers with other statuses below 400.
        query: parameters, or the model that they make.
        path_parameters: one for each name in the path.
        file: the media type of its body, where that is a file.
        problems: whether its errors are problem documents (RFC 9457).
        takes_session: whether a page's session stands in for a key.
        admitted: whether it makes the networks work: it then needs a place (`admission`).
    """

    method: str
    path: str
    handler: Handler
    summary: str
    scope: Scope | None
    answer: Schema | None
    status: int = 200
    also: Mapping[int, Schema | None] = field(default_factory=dict)
    query: Sequence[Parameter] | type[BaseModel] = ()
    path_parameters: Sequence[Parameter] = ()
    headers: Sequence[Parameter] = ()
    form: Sequence[Parameter] = ()
    body: type[BaseModel] | None = None
    file: str | None = None
    media_types: Sequence[str] = ("application/json",)
    errors: Sequence[int] = ()
    problems: bool = False
    takes_session: bool = False
    admitted: bool = False
    tag: str | None = None


def openapi_document(
    operations: Sequence[Operation], *, title: str, version: str, demands_keys: bool
) -> dict[str, Any]:
    """An OpenAPI 3.1 document of these endpoints, which demand API keys or do without."""
    models = {key for operation in operations for key in _models(operation)}
    in_order = sorted(models, key=lambda key: (key[0].__name__, key[1]))
    references, schemas = models_json_schema(in_order, ref_template=_REF)
    paths: dict[str, Any] = {}
    for operation in operations:
        path = _IN_PATH.sub(r"{\1}", operation.path)
        paths.setdefault(path, {})[operation.method.lower()] = {
            **_describe(operation, references),
            "security": _security(operation, demands_keys),
        }
    return {
        "openapi": _VERSION,
        "info": {"title": title, "version": version},
        "paths": paths,
        "components": {"schemas": schemas["$defs"], "securitySchemes": _SECURITY},
    }


def _security(operation: Operation, demands_keys: bool) -> list[dict[str, list[str]]]:
    if operation.scope is None:
        return []
    schemes = ["bearer", "header"] + (["session"] if operation.takes_session else [])
    nothing: list[dict[str, list[str]]] = [] if demands_keys else [{}]
    return nothing + [{scheme: [operation.scope]} for scheme in schemes]


def _models(operation: Operation) -> Iterable[_Key]:
    yield (Problem if operation.problems else ErrorBody), "serialization"
    for answer in (operation.answer, *operation.also.values()):
        if isinstance(answer, type):
            yield answer, "serialization"
    if operation.body:
        yield operation.body, "validation"


def _describe(operation: Operation, references: Mapping[Any, Any]) -> dict[str, Any]:
    def schema(of: Schema) -> dict[str, Any]:
        return dict(references[of, "serialization"] if isinstance(of, type) else of)

    def answer(of: Schema | None, description: str) -> dict[str, Any]:
        if of is None:
            return {"description": description}
        # An answer that may come as one of several types is described for each.
        content = {media_type: {"schema": schema(of)} for media_type in operation.media_types}
        return {"description": description, "content": content}

    error, error_type = (
        (Problem, "application/problem+json")
        if operation.problems
        else (ErrorBody, "application/json")
    )
    unknown = () if operation.scope is None else (401,)
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": operation.handler.__name__,
        "parameters": [
            *_parameters("path", operation.path_parameters),
            *_parameters("query", _query(operation.query)),
            *_parameters("header", operation.headers),
        ],
        "responses": {
            str(operation.status): answer(operation.answer, "done"),
            **{str(status): answer(of, "done") for status, of in operation.also.items()},
            **{
                str(status): {
                    "description": "error",
                    "content": {error_type: {"schema": schema(error)}},
                    **({"headers": _HEADERS[status]} if status in _HEADERS else {}),
                }
                for status in sorted({*operation.errors, *_REFUSALS, *unknown})
            },
        },
    }
    if operation.tag:
        described["tags"] = [operation.tag]
    content: dict[str, Any] = {}
    if operation.body:
        content["application/json"] = {"schema": dict(references[operation.body, "validation"])}
    if operation.form:
        content["multipart/form-data"] = {"schema": _form(operation)}
    if operation.file:
        content[operation.file] = {"schema": dict(BINARY)}
    if content:
        described["requestBody"] = {"content": content, "required": True}
    return described


def _form(operation: Operation) -> dict[str, Any]:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {
            part.name: {"description": part.description, **part.schema} for part in operation.form
        },
        "required": [part.name for part in operation.form if part.required],
    }
    if operation.problems:  # the existing endpoints pass over what they do not know
        schema["additionalProperties"] = False
    return schema


def _parameters(where: str, parameters: Sequence[Parameter]) -> Iterable[dict[str, Any]]:
    for parameter in parameters:
        yield {
            "name": parameter.name,
            "in": where,
            "description": parameter.description,
            "required": parameter.required or where == "path",
            "schema": dict(parameter.schema),
        }


def _query(query: Sequence[Parameter] | type[BaseModel]) -> Sequence[Parameter]:
    if not isinstance(query, type):
        return query
    schema = query.model_json_schema()
    required = schema.get("required", ())
    return [
        Parameter(name, value.pop("description", ""), _not_null(value), name in required)
        for name, value in schema["properties"].items()
    ]


def _not_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter that is not given is absent: there is no way to write null in a URL."""
    schema.pop("title", None)
    if schema.get("default", 0) is None:
        del schema["default"]
    options = [option for option in schema.pop("anyOf", []) if option != {"type": "null"}]
    return schema | options[0] if options else schema
