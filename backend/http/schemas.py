"""Bodies of the existing endpoints' requests and answers."""

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["ErrorBody", "LoadBody"]


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
