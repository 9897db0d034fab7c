"""Bodies of the existing endpoints' requests and answers."""

from pydantic import BaseModel, ConfigDict, Field

from backend.names import MAX_NAME_LENGTH, NAME_PATTERN

__all__ = ["ErrorBody", "LoadBody"]


class LoadBody(BaseModel):
    """Body of `POST /img/load`."""

    model_config = ConfigDict(populate_by_name=True)

    # What is only described here is checked further in, where there is more to say of it.
    folder: str = Field(
        alias="File",
        description="folder on the server, or address such as s3://bucket/folder, read recursively",
        json_schema_extra={"minLength": 1},
    )
    table: str | None = Field(
        None,
        alias="Table",
        description="collection; DEFAULT_TABLE where it is not given, or empty",
        json_schema_extra={
            "anyOf": [
                {
                    "type": "string",
                    "pattern": f"^({NAME_PATTERN})?$",
                    "maxLength": MAX_NAME_LENGTH,
                },
                {"type": "null"},
            ]
        },
    )


class ErrorBody(BaseModel):
    """Body of every 4xx and 5xx answer."""

    status: bool = Field(False, description="always false")
    msg: str = Field(description="what was wrong, with which value, and what to do")
