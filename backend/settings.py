"""Every setting: typed, with its default, its environment variable and its reason.

A value comes from a command-line flag, else from the environment, else from the default. The
environment variable is the field's name in capitals, the flag is the field's name with dashes.
This module knows no engine and reads nothing but the environment.
"""

import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from backend.errors import ConfigurationError
from backend.names import check_collection_name

__all__ = ["MAX_TOP_K", "Settings", "default_text"]

MAX_TOP_K: Final = 1000
"""Milvus returns at most 16,384 hits a query; photos hold several objects each, so that distinct
photos can only be promised well below it."""

_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_PACKAGE_ROOT: Final = Path(__file__).resolve().parent.parent


class Settings(BaseSettings):
    """The service's settings, validated; raises `pydantic.ValidationError` for a bad value.

    Use `Settings.load` to get one-line errors.
    """

    # An empty variable counts as unset: compose files pass on what is not set as "".
    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_ignore_empty=True)

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(5010, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    data_dir: Path = Field(
        Path("data"), description="folder for all that the embedded engines and uploads keep"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="least severe event that is logged"
    )

    model_repository: Path = Field(
        _PACKAGE_ROOT / "model_repository", description="folder of the models (Triton's layout)"
    )
    detector_model: str | None = Field(
        None,
        description="detector's name (unset: yolov3 where the full pair is exported, else"
        " yolov3-small)",
    )
    embedder_model: str | None = Field(
        None,
        description="embedder's name (unset: resnet50 where the full pair is exported, else"
        " resnet50-small)",
    )
    whole_image: Literal["fallback", "always", "never"] = Field(
        "fallback",
        description="when a photo also counts as one object: where nothing is detected, always"
        " or never",
    )
    vector_dimension: int | None = Field(
        None, ge=1, description="read from the embedder; where set, it must agree"
    )

    default_table: str = Field(
        "milvus_obj_det", description="collection that is meant where a request names none"
    )
    top_k: int = Field(
        10, ge=1, le=MAX_TOP_K, description="photos a search returns where it does not say"
    )
    metric_type: Literal["L2"] = Field(
        "L2", description="on unit vectors L2 ranks as cosine and inner product do"
    )
    data_path: Path = Field(Path(), description="folder that a relative folder to load starts at")
    upload_path: Path | None = Field(
        None, description="folder that keeps uploaded photos (unset: DATA_DIR/uploads)"
    )

    max_pixels: int = Field(
        100_000_000, ge=1, description="photos of more pixels are refused before they are decoded"
    )
    max_file_bytes: int = Field(
        512 * 2**20, ge=1, description="larger files are refused when a folder is loaded"
    )
    max_upload_bytes: int = Field(
        32 * 2**20, ge=1, description="larger uploads and downloads are refused"
    )
    thumbnail_cache_bytes: int = Field(
        512 * 2**20, ge=0, description="thumbnails kept in DATA_DIR/thumbnails; 0 keeps none"
    )
    query_cache_bytes: int = Field(
        256 * 2**20,
        ge=0,
        description="photos that were searched with, kept in DATA_DIR/queries; 0 keeps none",
    )
    url_fetch: bool | None = Field(
        None, description="whether /img/upload may fetch a URL (unset: only while HOST is loopback)"
    )
    load_concurrency: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="photos of a load in flight together (unset: as many as make it fastest,"
        " measured as it runs, up to 256)",
    )

    max_queued: int = Field(
        20 * (os.cpu_count() or 1),
        ge=1,
        description="photos of requests that are worked on or wait; beyond, a request gets a 429"
        " (default: 20 times the CPU cores)",
    )
    max_uploads_in_memory: int = Field(
        16,
        ge=4,
        description="photos of MAX_UPLOAD_BYTES that fit into memory together; beyond, a request"
        " gets a 429",
    )
    upload_timeout: float = Field(
        300,
        gt=0,
        description="seconds that a request's photos may take to come in before it gets a 408",
    )
    request_timeout: float = Field(
        30, gt=0, description="seconds that a search or an upload may take before it gets a 503"
    )
    engine_timeout: float = Field(
        30, gt=0, description="seconds that one call of an engine may take"
    )
    slow_request: float = Field(
        1.0,
        gt=0,
        description="seconds after which a request, unless it is a load, is logged as a warning"
        " that says where the time went",
    )

    otel_exporter_otlp_endpoint: str | None = Field(
        None, description="URL of the collector that gets traces, OTLP over HTTP (unset: no traces)"
    )
    otel_service_name: str = Field(
        "image-similarity-search", description="the service's name in traces"
    )

    triton_url: str | None = Field(
        None, description="Triton's gRPC address, or several behind commas (unset: in-process)"
    )
    triton_tls: bool = Field(False, description="whether to speak TLS with Triton")
    triton_ca: Path | None = Field(
        None, description="PEM file of who signs Triton's certificate (unset: the system's)"
    )

    milvus_host: str | None = Field(None, description="Milvus' host (unset: Milvus Lite)")
    milvus_port: int = Field(19530, ge=1, le=65535, description="Milvus' port")
    milvus_token: SecretStr = Field(
        SecretStr(""), description="Milvus' token, or USER:PASSWORD (unset: no authentication)"
    )
    milvus_db: str = Field("default", description="Milvus' database")
    milvus_tls: bool = Field(False, description="whether to speak TLS with Milvus")
    milvus_ca: Path | None = Field(
        None, description="PEM file of who signs Milvus' certificate (unset: the system's)"
    )
    milvus_index: str = Field("HNSW", description="type of the index of a Milvus server")
    milvus_index_params: Annotated[dict[str, Any], NoDecode] = Field(
        {"M": 16, "efConstruction": 200}, description="parameters of building the index, JSON"
    )
    milvus_search_params: Annotated[dict[str, Any], NoDecode] = Field(
        {"ef": 128}, description="parameters of searching the index, JSON"
    )

    mysql_host: str | None = Field(None, description="MySQL's host (unset: SQLite)")
    mysql_port: int = Field(3306, ge=1, le=65535, description="MySQL's port")
    mysql_user: str = Field("root", description="MySQL's user")
    mysql_pwd: SecretStr = Field(SecretStr(""), description="MySQL's password")
    mysql_db: str = Field("mysql", description="MySQL's database; it is made where there is none")
    mysql_tls: bool = Field(False, description="whether to speak TLS with MySQL")
    mysql_ca: Path | None = Field(
        None, description="PEM file of who signs MySQL's certificate (unset: the system's)"
    )
    mysql_pool_size: int = Field(
        10, ge=2, le=1000, description="connections to MySQL that are kept open at most"
    )

    @field_validator("default_table")
    @classmethod
    def _valid_collection_name(cls, value: str) -> str:
        return check_collection_name(value)

    @field_validator("otel_exporter_otlp_endpoint")
    @classmethod
    def _valid_url(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^/\s]+(/\S*)?", value):
            raise ValueError("it must be a URL, such as http://collector:4318")
        return value

    @field_validator("milvus_index_params", "milvus_search_params", mode="before")
    @classmethod
    def _parsed_json(cls, value: object) -> object:
        try:
            return json.loads(value) if isinstance(value, str) else value
        except ValueError:
            raise ValueError('it must be a JSON object, such as {"M": 16}') from None

    @property
    def uploads(self) -> Path:
        """Absolute folder of uploaded photos."""
        return (self.upload_path or self.data_dir / "uploads").absolute()

    @property
    def thumbnails(self) -> Path:
        """Absolute folder of the cache of thumbnails."""
        return (self.data_dir / "thumbnails").absolute()

    @property
    def queries(self) -> Path:
        """Absolute folder of photos that were searched with."""
        return (self.data_dir / "queries").absolute()

    @property
    def may_fetch_urls(self) -> bool:
        """Whether the service may fetch a URL that a client names."""
        return self.host in _LOOPBACK if self.url_fetch is None else self.url_fetch

    @classmethod
    def load(cls, **flags: Any) -> Self:
        """Settings from flags, environment and defaults.

        Raises:
            ConfigurationError: one line that names each bad setting, its value and what it may be.
        """
        try:
            return cls(**flags)
        except ValidationError as error:
            raise ConfigurationError("; ".join(map(_explain, error.errors()))) from None


def default_text(name: str) -> str:
    """A setting's default as one would write it; empty where it is unset."""
    default = Settings.model_fields[name].default
    if isinstance(default, SecretStr):
        return default.get_secret_value()
    if isinstance(default, dict):
        return json.dumps(default)
    return "" if default is None else str(default)


def _explain(error: Any) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    if not error["loc"]:
        return message
    name = str(error["loc"][0])
    field = Settings.model_fields[name]
    shown = str(error["input"])
    value = f"={shown if shown.isprintable() else repr(shown)}"
    if field.annotation is SecretStr:
        value = ""  # a password must not reach a log by way of an error message
    return f"{name.upper()}{value}: {message} ({field.description})"
