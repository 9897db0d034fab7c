"""Every setting: typed, with its default, its environment variable and its reason.

A value comes from a command-line flag, else from the environment, else from the default. The
environment variable is the field's name in capitals, the flag is the field's name with dashes.
This module knows no engine and reads nothing but the environment.
"""

import ipaddress
import json
import os
import re
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeAlias

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from backend.addresses import Network
from backend.cores import count_cores
from backend.errors import ConfigurationError
from backend.hosts import Origin, is_loopback, read_host, read_origin
from backend.names import check_collection_name
from backend.photo_addresses import PhotoAddress, is_address
from backend.plain_text import without_credentials

__all__ = ["MAX_TOP_K", "InferenceEngine", "PortRange", "Settings", "default_text"]

InferenceEngine = Literal["onnxruntime", "openvino-f32", "openvino-bf16"]
"""What can compute the models in the process; OpenVINO in 32-bit floats or in bfloat16."""

MAX_TOP_K: Final = 1000
"""Milvus returns at most 16,384 hits a query; photos hold several objects each, so that distinct
photos can only be promised well below it."""

PortRange: TypeAlias = tuple[int, int]
"""From the first number to the last."""
_PORTS: Final = re.compile("([0-9]{1,5})(?:-([0-9]{1,5}))?")
_PROTOCOL: Final = re.compile("[a-z][a-z0-9+.-]*", re.I)
_NO_STORES: Final = frozenset(
    {
        *("file", "local", "data", "http", "https"),
        # These read what another address, or a file, says.
        *("simplecache", "filecache", "blockcache", "cached", "dir", "reference", "generic"),
        *("zip", "tar", "libarchive", "async_wrapper"),
    }
)
"""What fsspec reads, besides stores: photos' ways to be read are others, or none."""
_RATE: Final = 6000
"""Requests a minute: a page of a thousand thumbnails, and the next, without a wait."""
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
    published_host: str | None = Field(
        None,
        description="address at which others reach HOST, where it is a container's (unset: HOST)",
    )
    require_api_key: bool | None = Field(
        None,
        description="whether requests must bear an API key"
        " (unset: unless HOST is loopback, without a proxy)",
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="names, behind commas, that the service may be called by besides addresses"
        " and its own",
    )
    allowed_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="origins, behind commas, of other hosts' pages that may call the service",
    )
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="addresses or networks, behind commas, whose X-Forwarded-For is believed",
    )
    rate_limit_key: int | None = Field(
        None,
        ge=0,
        description="requests a minute with one API key; 0: any number (unset:"
        f" {_RATE}; on loopback without keys any)",
    )
    rate_limit_address: int | None = Field(
        None,
        ge=0,
        description="requests a minute from one address; 0: any number (unset:"
        f" {_RATE}; on loopback without keys any)",
    )
    open_metrics: bool = Field(
        False, description="whether /metrics answers without an API key where others demand one"
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
    inference_engine: InferenceEngine = Field(
        "onnxruntime",
        description="what computes the models in-process; openvino-bf16 needs AMX or AVX512-BF16",
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
    data_path: Annotated[Path | PhotoAddress, NoDecode] = Field(
        Path(),
        description="folder, or address such as s3://bucket/folder, that a relative folder to load"
        " starts at",
    )
    allowed_roots: Annotated[tuple[Path | PhotoAddress, ...] | None, NoDecode] = Field(
        None,
        description="folders and addresses, behind colons, of photos besides DATA_PATH (unset: on"
        " loopback without keys any folder)",
    )
    upload_path: Path | None = Field(
        None, description="folder that keeps uploaded photos (unset: DATA_DIR/uploads)"
    )

    max_pixels: int = Field(
        100_000_000, ge=1, description="photos of more pixels are refused before they are decoded"
    )
    max_frames: int = Field(
        1000,
        ge=1,
        description="photos of more frames or pages are refused; the first is what counts",
    )
    decode_timeout: float = Field(
        30,
        gt=0,
        description="seconds that decoding a photo of MAX_PIXELS may take before its process is"
        " killed",
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
    url_fetch: bool = Field(
        False, description="whether photos may be fetched by a URL that a client names"
    )
    url_fetch_networks: Annotated[tuple[Network, ...], NoDecode] = Field(
        (),
        description="networks that URL_FETCH reaches beside public addresses, such as"
        " 10.1.0.0/16,::1/128",
    )
    url_fetch_ports: Annotated[tuple[PortRange, ...], NoDecode] = Field(
        ((80, 80), (443, 443)),
        description="ports that URL_FETCH reaches, such as 80,443,8000-8099",
    )
    load_concurrency: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="photos of a load in flight together (unset: as many as make it fastest,"
        " measured as it runs, up to 256)",
    )
    load_lease_seconds: float = Field(
        15,
        ge=1,
        le=3600,
        description="silence after which other backends on the same MySQL take over what one was"
        " loading",
    )

    max_queued: int = Field(
        20 * count_cores(),
        ge=1,
        description="photos of requests that are worked on or wait; beyond, a request gets a 429"
        " (default: 20 times the CPU cores)",
    )
    max_import_bytes: int = Field(
        64 * 2**30, ge=1, description="larger exports are refused when they are sent to the service"
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
    send_timeout: float = Field(
        60,
        gt=0,
        description="seconds after which a client that takes nothing of its answer is cut off",
    )
    idle_timeout: float = Field(
        75,
        gt=0,
        description="seconds that a connection may go without a whole request's head",
    )
    max_connections: int = Field(
        4000,
        ge=1,
        description="connections at a time; beyond, the one that is idle for longest, or else the"
        " slowest to send, is closed",
    )
    drain_seconds: float = Field(
        0,
        ge=0,
        le=3600,
        description="seconds that the service goes on answering after SIGTERM, while /readyz and"
        " Connection: close send clients elsewhere",
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

    @field_validator("allowed_hosts", "allowed_origins", "trusted_proxies", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _valid_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for host in value:
            if ":" in host.strip("[]") and not host.startswith("["):
                raise ValueError(f"{host!r} must be a name without a port, such as photos.example")
            if read_host(host) is None:
                raise ValueError(f"{host!r} must be a name, such as photos.example.org")
        return tuple(read_host(host) or host for host in value)

    @field_validator("allowed_origins")
    @classmethod
    def _valid_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if read_origin(origin.removesuffix("/")) is None:
                raise ValueError(f"{origin!r} must be an origin, such as https://photos.example")
        return tuple(origin.removesuffix("/") for origin in value)

    @field_validator("trusted_proxies")
    @classmethod
    def _valid_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for network in value:
            try:
                ipaddress.ip_network(network)
            except ValueError:
                raise ValueError(
                    f"{network!r} must be an address or a network, such as 10.0.0.0/8"
                ) from None
        return value

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

    @field_validator("url_fetch_networks", mode="before")
    @classmethod
    def _parsed_networks(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return tuple(ip_network(part.strip()) for part in value.split(",") if part.strip())
        except ValueError as error:
            raise ValueError(f"they must be networks such as 10.1.0.0/16: {error}") from None

    @field_validator("url_fetch_ports", mode="before")
    @classmethod
    def _parsed_ports(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        parts = [_PORTS.fullmatch(part.strip()) for part in value.split(",")]
        ranges = [(int(part[1]), int(part[2] or part[1])) for part in parts if part]
        if len(ranges) < len(parts) or not all(1 <= low <= high <= 65535 for low, high in ranges):
            raise ValueError("they must be numbers from 1 to 65535 or ranges such as 8000-8099")
        return tuple(ranges)

    @field_validator("milvus_index_params", "milvus_search_params", mode="before")
    @classmethod
    def _parsed_json(cls, value: object) -> object:
        try:
            return json.loads(value) if isinstance(value, str) else value
        except ValueError:
            raise ValueError('it must be a JSON object, such as {"M": 16}') from None

    @field_validator("allowed_roots", mode="before")
    @classmethod
    def _split_folders(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(map(_read_root, _split_roots(value)))

    @field_validator("data_path", mode="before")
    @classmethod
    def _parsed_root(cls, value: object) -> object:
        return _read_address(value) if isinstance(value, str) and is_address(value) else value

    @property
    def photo_roots(self) -> tuple[Path, ...] | None:
        """Folders that photos may be loaded from; None where that is any.

        On this machine's own address those who can ask are its users, unless keys tell others:
        what its users may read, they may load. DATA_PATH is one of the folders where it has been
        set.
        """
        if self.allowed_roots is None and is_loopback(self.host) and not self.demands_keys:
            return None
        return tuple(root.absolute() for root in self._roots if isinstance(root, Path))

    @property
    def photo_stores(self) -> tuple[PhotoAddress, ...]:
        """Stores that photos may be loaded from: those that are named, and no other."""
        return tuple(root for root in self._roots if isinstance(root, PhotoAddress))

    @property
    def _roots(self) -> tuple[Path | PhotoAddress, ...]:
        own = (self.data_path,) if "data_path" in self.model_fields_set else ()
        return (*own, *(self.allowed_roots or ()))

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
    def is_local(self) -> bool:
        """Whether nobody but this machine reaches the service."""
        return is_loopback(self.published_host or self.host)

    @property
    def demands_keys(self) -> bool:
        """Whether requests must bear an API key."""
        if self.require_api_key is None:
            # Who is behind a proxy of this machine's may be anybody.
            return not self.is_local or bool(self.trusted_proxies)
        return self.require_api_key

    @property
    def requests_per_key(self) -> int:
        """Requests a minute with one key; 0: any number."""
        return self._rate(self.rate_limit_key)

    @property
    def requests_per_address(self) -> int:
        """Requests a minute from one address; 0: any number."""
        return self._rate(self.rate_limit_address)

    def _rate(self, limit: int | None) -> int:
        if limit is None:
            return 0 if self.is_local and not self.demands_keys else _RATE
        return limit

    @property
    def origins(self) -> frozenset[Origin]:
        """The pages of other hosts that may call."""
        return frozenset(filter(None, map(read_origin, self.allowed_origins)))

    @property
    def proxies(self) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        """Whose word is taken for whom a request comes from."""
        return tuple(map(ipaddress.ip_network, self.trusted_proxies))

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


def _split_roots(text: str) -> list[str]:
    """What stands between colons, but for those of addresses: s3://bucket, sftp://host:22/folder."""
    roots: list[str] = []
    for part in text.split(os.pathsep):
        before = roots[-1] if roots else ""
        if (part.startswith("//") and _PROTOCOL.fullmatch(before)) or (
            is_address(before) and not os.path.isabs(part) and not _PROTOCOL.fullmatch(part)
        ):
            roots[-1] = f"{before}:{part}"
        else:
            roots.append(part)
    return roots


def _read_root(text: str) -> Path | PhotoAddress:
    if is_address(text):
        return _read_address(text)
    if not os.path.isabs(text):
        raise ValueError(
            "it must be absolute folders and addresses, such as /photos:s3://bucket/folder"
        )
    return Path(text)


def _read_address(text: str) -> PhotoAddress:
    protocol = text.partition("://")[0].lower()
    if protocol in _NO_STORES:
        raise ValueError(
            f"{protocol}:// is no store of photos: name a folder by its path, and photos of the web"
            " by their URLs (URL_FETCH)"
        )
    return PhotoAddress.parse(text)


def default_text(name: str) -> str:
    """A setting's default as one would write it; empty where it is unset."""
    default = Settings.model_fields[name].default
    if isinstance(default, SecretStr):
        return default.get_secret_value()
    if isinstance(default, dict):
        return json.dumps(default)
    if name == "url_fetch_ports":
        return ",".join(f"{low}-{high}" if low < high else f"{low}" for low, high in default)
    if isinstance(default, tuple):
        return ",".join(default)
    return "" if default is None else str(default)


def _explain(error: Any) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    if not error["loc"]:
        return message
    name = str(error["loc"][0])
    field = Settings.model_fields[name]
    shown = without_credentials(str(error["input"]))
    value = f"={shown if shown.isprintable() else repr(shown)}"
    if field.annotation is SecretStr:
        value = ""  # a password must not reach a log by way of an error message
    return f"{name.upper()}{value}: {message} ({field.description})"
