"""The shapes of requests and answers, and the OpenAPI document that is made from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp.typedefs import Handler
from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

__all__ = ["ErrorBody", "LoadBody", "Operation", "Parameter", "openapi_document"]

_VERSION: Final = "3.1.0"
_REF: Final = "#/components/schemas/{model}"


class LoadBody(BaseModel):
    """Body of `POST /img/load`."""

    model_config = ConfigDict(populate_by_name=True)

    folder: str = Field(alias="File", description="folder on the server, read recursively")
    table: str | None = Field(
        None, alias="Table", description="collection; DEFAULT_TABLE where it is not given"
    )


class ErrorBody(BaseModel):
    """Body of every 4xx and 5xx answer."""

    status: bool = Field(False, description="always false")
    msg: str = Field(description="what was wrong, with which value, and what to do")


@dataclass(frozen=True)
class Parameter:
    """A query parameter or a form field; `schema` is its JSON schema."""

    name: str
    description: str
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "string"})
    required: bool = False


@dataclass(frozen=True)
class Operation:
    """An endpoint: its route and its documentation in one, so that they cannot drift apart."""

    method: str
    path: str
    handler: Handler
    summary: str
    answer: Mapping[str, Any]
    query: Sequence[Parameter] = ()
    form: Sequence[Parameter] = ()
    body: type[BaseModel] | None = None
    media_type: str = "application/json"
    errors: Sequence[int] = ()


def openapi_document(
    operations: Sequence[Operation], *, title: str, version: str
) -> dict[str, Any]:
    """An OpenAPI 3.1 document of these endpoints."""
    models = [operation.body for operation in operations if operation.body] + [ErrorBody]
    _, schemas = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
    paths: dict[str, Any] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _describe(operation)
    return {
        "openapi": _VERSION,
        "info": {"title": title, "version": version},
        "paths": paths,
        "components": {"schemas": schemas["$defs"]},
    }


def _describe(operation: Operation) -> dict[str, Any]:
    error = {"schema": {"$ref": _REF.format(model=ErrorBody.__name__)}}
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": operation.handler.__name__,
        "parameters": [
            {
                "name": parameter.name,
                "in": "query",
                "description": parameter.description,
                "required": parameter.required,
                "schema": dict(parameter.schema),
            }
            for parameter in operation.query
        ],
        "responses": {
            "200": {
                "description": "done",
                "content": {operation.media_type: {"schema": dict(operation.answer)}},
            },
            **{
                str(status): {"description": "error", "content": {"application/json": error}}
                for status in operation.errors
            },
        },
    }
    content: dict[str, Any] = {}
    if operation.body:
        schema = {"$ref": _REF.format(model=operation.body.__name__)}
        content["application/json"] = {"schema": schema}
    if operation.form:
        content["multipart/form-data"] = {
            "schema": {
                "type": "object",
                "properties": {
                    part.name: {"description": part.description, **part.schema}
                    for part in operation.form
                },
                "required": [part.name for part in operation.form if part.required],
            }
        }
    if content:
        described["requestBody"] = {"content": content}
    return described
