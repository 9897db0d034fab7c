"""Errors as clients of `/api/v1` get them: problem documents (RFC 9457)."""

import re
from http import HTTPStatus
from typing import Final

from aiohttp import web

from backend.errors import EngineUnavailable, ServiceError
from backend.http.v1.requests import InvalidFields
from backend.http.v1.schemas import Problem

__all__ = ["MEDIA_TYPE", "problem", "problem_answer"]

MEDIA_TYPE: Final = "application/problem+json"
_WORDS: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")
_CODES: Final = {InvalidFields: "invalid_input", ServiceError: "internal_error"}
"""Of classes whose own names say too much or too little."""


def problem(error: ServiceError, request_id: str) -> Problem:
    """What a client is told of an error."""
    return Problem(
        title=HTTPStatus(error.status).phrase,
        status=error.status,
        detail=str(error),
        code=_CODES.get(type(error)) or _WORDS.sub("_", type(error).__name__).lower(),
        request_id=request_id,
        engine=error.engine if isinstance(error, EngineUnavailable) else None,
        errors=list(error.problems) if isinstance(error, InvalidFields) else [],
    )


def problem_answer(found: Problem) -> web.Response:
    """The problem as an answer."""
    return web.Response(
        text=found.model_dump_json(exclude_none=True), status=found.status, content_type=MEDIA_TYPE
    )
