"""How much of everything a request may have, before anybody looks at what it says."""

import json
import re
from typing import Any, Final

from aiohttp import web
from aiohttp.typedefs import Handler

from backend.errors import InvalidInput

__all__ = [
    "MAX_BODY_BYTES",
    "MAX_HEADERS",
    "MAX_HEADER_BYTES",
    "MAX_LINE_BYTES",
    "parse_json",
    "refuse_many_parameters",
]

# aiohttp's own, which answers 400 beyond.
MAX_LINE_BYTES: Final = 2**16
"""Of a request's first line: twenty labels of 200 letters, each up to twelve bytes in a URL."""
MAX_HEADER_BYTES: Final = 8190
MAX_HEADERS: Final = 64
"""Of a request, and of a part of a form; browsers and proxies together send half as many."""

MAX_BODY_BYTES: Final = 2**16
"""Of a body that is no form: the longest has a path, or a URL, and little else."""
_MAX_DEPTH: Final = 16
_MAX_VALUES: Final = 1000
"""Values and names of a JSON body, in all."""
_MAX_PARAMETERS: Final = 200
"""Of a query string: twenty labels, as many objects, and some twenty more that there are."""

# Possessive, so that no text makes it look at a character twice; the last string may have no end.
_STRINGS: Final = re.compile(r'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
_OPENS: Final = frozenset("[{")
_CLOSES: Final = frozenset("]}")
_SEPARATES: Final = frozenset(",:")


@web.middleware
async def refuse_many_parameters(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answers 400 where a query string has more parameters than any use has."""
    if request.rel_url.raw_query_string.count("&") >= _MAX_PARAMETERS:
        raise InvalidInput(
            f"the query string has more than the {_MAX_PARAMETERS} parameters that one may have"
        )
    return await handler(request)


def parse_json(body: bytes) -> Any:
    """What a JSON text says.

    Raises:
        InvalidInput: it is none, is nested too deeply, has too many values, or a name twice.
    """
    try:
        text = body.decode(json.detect_encoding(body))
        depth = values = 0
        for char in _STRINGS.sub("", text):
            if char in _OPENS:
                depth += 1
                values += 1
                if depth > _MAX_DEPTH:
                    raise InvalidInput(f"the JSON is nested more than {_MAX_DEPTH} deep")
            elif char in _CLOSES:
                depth -= 1
            elif char in _SEPARATES:
                values += 1
        if values > _MAX_VALUES:
            raise InvalidInput(f"the JSON has more than {_MAX_VALUES} values")
        return json.loads(text, object_pairs_hook=_object)
    except InvalidInput:
        raise
    except ValueError:  # also of what is no text, and of numbers of thousands of digits
        raise InvalidInput("the body is no JSON") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object in which no name is there twice: of two values others might take the other one."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise InvalidInput("the JSON has a name twice in an object")
    return found
