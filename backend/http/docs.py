"""`/openapi.json` and `/docs`: interactive documentation, served without a network."""

from collections.abc import Sequence

import swagger_ui
from aiohttp import web

from backend.http.openapi import Operation, openapi_document

__all__ = ["add_documentation"]

_TITLE = "Image similarity search with object detection"


def add_documentation(
    app: web.Application, operations: Sequence[Operation], version: str, *, demands_keys: bool
) -> None:
    """Adds the routes that document `operations`.

    They are open to whoever may call: they say the same everywhere, and nothing of the data.
    """
    document = openapi_document(
        operations, title=_TITLE, version=version, demands_keys=demands_keys
    )

    async def openapi(_request: web.Request) -> web.Response:
        return web.json_response(document)

    app.router.add_get("/openapi.json", openapi)
    swagger_ui.api_doc(
        app,
        config=document,
        host_inject=False,  # an OpenAPI 2 field
        url_prefix="/docs",
        title=_TITLE,
        parameters={"layout": '"BaseLayout"'},  # without the bar that asks for another document
    )
