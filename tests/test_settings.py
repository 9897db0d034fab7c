"""Where a setting comes from, and what is said of a bad one."""

import re
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from backend.errors import ConfigurationError
from backend.settings import MAX_TOP_K, Settings

SECRET = "hunter2-Geheim"


def _refusal(**flags: Any) -> str:
    with pytest.raises(ConfigurationError) as refused:
        Settings.load(**flags)
    return str(refused.value)


# Where a value comes from


def test_the_defaults_are_those_that_are_documented() -> None:
    settings = Settings.load()
    assert (settings.host, settings.port) == ("127.0.0.1", 5010)
    assert settings.data_dir == Path("data")
    assert settings.default_table == "milvus_obj_det"
    assert (settings.top_k, settings.metric_type) == (10, "L2")
    assert settings.whole_image == "fallback"
    assert settings.data_path == Path()
    for unset in (
        "detector_model",
        "embedder_model",
        "vector_dimension",
        "upload_path",
        "load_concurrency",
    ):
        assert getattr(settings, unset) is None
    for engine in ("triton_url", "milvus_host", "mysql_host"):
        assert getattr(settings, engine) is None
    assert settings.model_repository.is_absolute()


def test_the_environment_variable_is_the_name_in_capitals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "6000")
    monkeypatch.setenv("DEFAULT_TABLE", "holidays")
    monkeypatch.setenv("UPLOAD_PATH", "/srv/uploads")
    monkeypatch.setenv("URL_FETCH", "false")
    settings = Settings.load()
    assert (settings.port, settings.default_table) == (6000, "holidays")
    assert settings.upload_path == Path("/srv/uploads")
    assert settings.url_fetch is False


def test_a_flag_comes_before_the_environment_and_that_before_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Settings.load().top_k == 10
    monkeypatch.setenv("TOP_K", "20")
    assert Settings.load().top_k == 20
    assert Settings.load(top_k="30").top_k == 30


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_an_empty_variable_counts_as_unset(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name.upper(), "")
    assert Settings.load() == Settings()
    monkeypatch.delenv(name.upper())
    assert Settings.load() == Settings()


def test_variables_of_others_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOP_KEK", "x")
    monkeypatch.setenv("HOSTNAME", "elsewhere")
    assert Settings.load() == Settings()


def test_settings_cannot_be_changed() -> None:
    settings = Settings.load()
    with pytest.raises(ValidationError, match="frozen"):
        settings.port = 1  # type: ignore[misc]


# What is refused

BAD_VALUES = [
    ("PORT", "http", "integer"),
    ("PORT", "-1", "greater than or equal to 0"),
    ("PORT", "65536", "less than or equal to 65535"),
    ("TOP_K", "0", "greater than or equal to 1"),
    ("TOP_K", str(MAX_TOP_K + 1), f"less than or equal to {MAX_TOP_K}"),
    ("TOP_K", "1.5", "integer"),
    ("LOG_LEVEL", "LOUD", "'DEBUG', 'INFO', 'WARNING' or 'ERROR'"),
    ("WHOLE_IMAGE", "sometimes", "'fallback', 'always' or 'never'"),
    ("METRIC_TYPE", "IP", "'L2'"),
    ("VECTOR_DIMENSION", "0", "greater than or equal to 1"),
    ("VECTOR_DIMENSION", "many", "integer"),
    ("DEFAULT_TABLE", "my photos", "letters of a-z, digits and _"),
    ("DEFAULT_TABLE", "t" * 201, "at most 200 characters"),
    ("MAX_PIXELS", "0", "greater than or equal to 1"),
    ("MAX_FILE_BYTES", "1GB", "integer"),
    ("MAX_UPLOAD_BYTES", "-5", "greater than or equal to 1"),
    ("THUMBNAIL_CACHE_BYTES", "-1", "greater than or equal to 0"),
    ("QUERY_CACHE_BYTES", "1GB", "integer"),
    ("URL_FETCH", "maybe", "boolean"),
    ("URL_FETCH_NETWORKS", "10.0.0.1/8", "networks such as 10.1.0.0/16"),
    ("URL_FETCH_NETWORKS", "intranet", "networks such as 10.1.0.0/16"),
    ("URL_FETCH_PORTS", "0", "numbers from 1 to 65535"),
    ("URL_FETCH_PORTS", "80,65536", "numbers from 1 to 65535"),
    ("URL_FETCH_PORTS", "90-80", "ranges such as 8000-8099"),
    ("URL_FETCH_PORTS", "80,,443", "ranges such as 8000-8099"),
    ("LOAD_CONCURRENCY", "0", "greater than or equal to 1"),
    ("LOAD_CONCURRENCY", "1025", "less than or equal to 1024"),
    ("SLOW_REQUEST", "0", "greater than 0"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317", "a URL, such as http://collector:4318"),
    ("MILVUS_PORT", "0", "greater than or equal to 1"),
    ("MYSQL_PORT", "99999", "less than or equal to 65535"),
]


@pytest.mark.parametrize(("name", "value", "allowed"), BAD_VALUES)
def test_a_bad_variable_is_one_line_of_name_value_and_what_is_allowed(
    name: str, value: str, allowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    message = _refusal()
    assert message.startswith(f"{name}={value}: ")
    assert allowed in message
    assert message.splitlines() == [message]
    description = Settings.model_fields[name.lower()].description
    assert description is not None
    assert description in message


@pytest.mark.parametrize(("name", "value", "allowed"), BAD_VALUES)
def test_a_bad_flag_is_refused_as_a_bad_variable_is(name: str, value: str, allowed: str) -> None:
    message = _refusal(**{name.lower(): value})
    assert message.startswith(f"{name}={value}: ")
    assert allowed in message


@pytest.mark.parametrize(
    ("name", "edges"),
    [
        ("port", (0, 65535)),
        ("top_k", (1, MAX_TOP_K)),
        ("load_concurrency", (1, 1024)),
        ("milvus_port", (1, 65535)),
        ("mysql_port", (1, 65535)),
    ],
)
def test_values_at_the_limits_are_taken(name: str, edges: tuple[int, int]) -> None:
    for edge in edges:
        assert getattr(Settings.load(**{name: str(edge)}), name) == edge


def test_urls_are_fetched_only_where_it_is_said() -> None:
    settings = Settings.load()
    assert settings.url_fetch is False
    assert settings.url_fetch_networks == ()
    assert settings.url_fetch_ports == ((80, 80), (443, 443))
    assert Settings.load(host="0.0.0.0", url_fetch="true").url_fetch is True


def test_networks_and_ports_are_lists_behind_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("URL_FETCH_NETWORKS", "10.1.0.0/16, ::1")
    monkeypatch.setenv("URL_FETCH_PORTS", "80, 8000-8099 ,65535")
    settings = Settings.load()
    assert settings.url_fetch_networks == (ip_network("10.1.0.0/16"), ip_network("::1/128"))
    assert settings.url_fetch_ports == ((80, 80), (8000, 8099), (65535, 65535))


def test_every_bad_setting_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "x")
    monkeypatch.setenv("TOP_K", "y")
    message = _refusal(whole_image="z")
    for expected in ("PORT=x", "TOP_K=y", "WHOLE_IMAGE=z"):
        assert expected in message
    assert message.splitlines() == [message]


@pytest.mark.parametrize("value", ["50\n10", "50\r\nerror: all is well"])
def test_a_bad_value_with_a_line_break_still_makes_one_line(value: str) -> None:
    message = _refusal(port=value)
    assert message.splitlines() == [message]


def test_parameters_of_the_index_are_json(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings.load().milvus_index_params == {"M": 16, "efConstruction": 200}
    monkeypatch.setenv("MILVUS_INDEX_PARAMS", '{"nlist": 128}')
    assert Settings.load().milvus_index_params == {"nlist": 128}
    assert Settings.load(milvus_search_params='{"nprobe": 8}').milvus_search_params == {"nprobe": 8}


@pytest.mark.parametrize("value", ["nlist=128", "[1]", "{"])
def test_parameters_that_are_no_json_object_are_refused(value: str) -> None:
    assert "MILVUS_INDEX_PARAMS=" in _refusal(milvus_index_params=value)


def test_the_password_is_read_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYSQL_PWD", SECRET)
    settings = Settings.load()
    assert settings.mysql_pwd.get_secret_value() == SECRET
    for shown in (repr(settings), str(settings), settings.model_dump_json()):
        assert SECRET not in shown


@pytest.mark.parametrize("name", sorted({name for name, _, _ in BAD_VALUES}))
def test_no_error_shows_the_password(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYSQL_PWD", SECRET)
    monkeypatch.setenv(name, "-")
    assert SECRET not in _refusal()


def test_a_password_that_is_refused_itself_is_not_shown() -> None:
    message = _refusal(mysql_pwd=[SECRET])
    assert message.startswith("MYSQL_PWD: ")
    assert SECRET not in message


def test_a_password_in_a_url_that_is_refused_is_not_shown() -> None:
    message = _refusal(otel_exporter_otlp_endpoint=f"ftp://user:{SECRET}@collector")
    assert message.startswith("OTEL_EXPORTER_OTLP_ENDPOINT=ftp://***@collector: ")


# What follows from others


@pytest.mark.parametrize(
    ("flags", "roots"),
    [
        ({}, None),
        ({"host": "::1"}, None),
        ({"data_path": "/photos"}, None),
        ({"host": "0.0.0.0"}, ()),
        ({"host": "0.0.0.0", "data_path": "/photos"}, ("/photos",)),
        ({"host": "0.0.0.0", "allowed_roots": "/a:/b"}, ("/a", "/b")),
        ({"host": "0.0.0.0", "allowed_roots": "/a", "data_path": "/b"}, ("/b", "/a")),
        ({"allowed_roots": "/a"}, ("/a",)),
        ({"require_api_key": "true"}, ()),
        ({"trusted_proxies": "127.0.0.1"}, ()),
        ({"published_host": "192.0.2.1"}, ()),
        ({"host": "0.0.0.0", "allowed_roots": "/"}, ("/",)),
        ({"data_path": "s3://bucket"}, None),
        ({"allowed_roots": "s3://bucket"}, ()),
        ({"host": "0.0.0.0", "allowed_roots": "/a:s3://bucket:/b"}, ("/a", "/b")),
    ],
)
def test_photos_lie_anywhere_only_for_this_machine_unless_it_is_said(
    flags: dict[str, str], roots: tuple[str, ...] | None
) -> None:
    expected = None if roots is None else tuple(map(Path, roots))
    assert Settings.load(**flags).photo_roots == expected


def test_the_folder_of_photos_counts_where_the_environment_names_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DATA_PATH", "/photos")
    monkeypatch.setenv("ALLOWED_ROOTS", "/more")
    assert Settings.load(host="0.0.0.0").photo_roots == (Path("/photos"), Path("/more"))


@pytest.mark.parametrize(
    "roots", ["photos", "/photos:", ":", "/photos:~/more", "/a:s3:/bucket", "s3:/a", "s3://b:/a:s3"]
)
def test_allowed_folders_are_absolute(roots: str) -> None:
    assert "it must be absolute folders" in _refusal(allowed_roots=roots)


@pytest.mark.parametrize(
    ("flags", "stores"),
    [
        ({}, ()),
        ({"allowed_roots": "/a"}, ()),
        ({"data_path": "s3://bucket/a/"}, ("s3://bucket/a",)),
        (
            {"data_path": "gs://a", "allowed_roots": "/a:s3://bucket:S3://more/b:/c"},
            ("gs://a", "s3://bucket", "s3://more/b"),
        ),
        (
            {"allowed_roots": "sftp://host:22/a b:/c:s3://x:sftp://host:2222:s3://y"},
            ("sftp://host:22/a b", "s3://x", "sftp://host:2222", "s3://y"),
        ),
        ({"allowed_roots": "/a://b:/s3://b"}, ()),
    ],
)
def test_stores_are_those_that_are_named(
    flags: dict[str, str], stores: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tuple(map(str, Settings.load(**flags).photo_stores)) == stores
    for name, value in flags.items():
        monkeypatch.setenv(name.upper(), value)
    assert tuple(map(str, Settings.load().photo_stores)) == stores


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("file:///photos", "no store of photos"),
        ("local:///photos/a", "no store of photos"),
        ("memory:///photos", "empty"),
        ("http://photos.example/a", "URL_FETCH"),
        ("https://photos.example/a", "URL_FETCH"),
        ("zip://a.zip", "no store of photos"),
        ("s3://", "names no bucket"),
        ("s3://bucket/../other", "some would take it for another"),
        ("sftp://me:password@host/a", "credentials"),
    ],
)
def test_what_is_no_store_is_no_place_for_photos(address: str, problem: str) -> None:
    for setting in ("data_path", "allowed_roots"):
        refusal = _refusal(**{setting: address})
        assert problem in refusal
        assert "password" not in refusal
    assert "chains protocols" in _refusal(data_path=f"simplecache::{address}")
    assert "it must be absolute" in _refusal(allowed_roots=f"simplecache::{address}")


@pytest.mark.parametrize(
    ("flags", "demanded"),
    [
        ({}, False),
        ({"host": "localhost"}, False),
        ({"host": "::1"}, False),
        ({"host": "127.0.0.2"}, False),
        ({"host": "0.0.0.0"}, True),
        ({"host": "::"}, True),
        ({"host": "192.168.1.5"}, True),
        ({"host": "localhost.example.org"}, True),
        ({"host": "0.0.0.0", "require_api_key": "false"}, False),
        ({"host": "127.0.0.1", "require_api_key": "true"}, True),
        ({"host": "0.0.0.0", "published_host": "127.0.0.1"}, False),
        ({"host": "0.0.0.0", "published_host": "0.0.0.0"}, True),
        ({"host": "0.0.0.0", "published_host": ""}, True),
        ({"trusted_proxies": "127.0.0.1"}, True),
        ({"trusted_proxies": "127.0.0.1", "require_api_key": "false"}, False),
    ],
)
def test_keys_are_demanded_where_others_reach_the_service_unless_it_is_said(
    flags: dict[str, str], demanded: bool
) -> None:
    assert Settings.load(
        **{name: value for name, value in flags.items() if value}
    ).demands_keys is (demanded)


def test_lists_are_behind_commas() -> None:
    settings = Settings.load(
        allowed_hosts=" Photos.Example ,backend,, [::1]",
        allowed_origins="http://a.example:81, https://b.example/",
        trusted_proxies="10.0.0.0/8,::1",
    )
    assert settings.allowed_hosts == ("photos.example", "backend", "::1")
    assert {(each.scheme, each.host, each.port) for each in settings.origins} == {
        ("http", "a.example", 81),
        ("https", "b.example", 443),
    }
    assert [str(network) for network in settings.proxies] == ["10.0.0.0/8", "::1/128"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("allowed_hosts", value) for value in ("photos.example:80", "http://a", "a b", "*")),
        *(("allowed_origins", value) for value in ("a.example", "*", "null", "http://a/b")),
        *(("trusted_proxies", value) for value in ("proxy", "10.0.0.1/8", "10.0.0.0/33")),
        *(("rate_limit_key", value) for value in ("-1", "many")),
    ],
)
def test_a_list_of_what_cannot_be_is_refused(name: str, value: str) -> None:
    assert name.upper() in _refusal(**{name: f"{value}"})


def test_uploads_lie_in_the_data_folder_unless_it_is_said(tmp_path: Path) -> None:
    assert Settings.load(data_dir=tmp_path).uploads == tmp_path / "uploads"
    assert Settings.load(data_dir=tmp_path, upload_path="/srv/up").uploads == Path("/srv/up")
    assert Settings.load().uploads == Path.cwd() / "data" / "uploads"


def test_caches_lie_in_the_data_folder(tmp_path: Path) -> None:
    settings = Settings.load(data_dir=tmp_path)
    assert settings.thumbnails == tmp_path / "thumbnails"
    assert settings.queries == tmp_path / "queries"
    assert Settings.load().queries == Path.cwd() / "data" / "queries"


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_every_setting_says_what_it_is(name: str) -> None:
    description = Settings.model_fields[name].description
    assert description
    assert re.fullmatch(r"[^\n]{10,120}", description)


@pytest.mark.parametrize(
    ("flags", "limit"),
    [
        ({}, 0),
        ({"require_api_key": "true"}, 6000),
        ({"trusted_proxies": "127.0.0.1"}, 6000),
        ({"host": "0.0.0.0"}, 6000),
        ({"host": "0.0.0.0", "rate_limit_address": "0"}, 0),
    ],
)
def test_requests_are_limited_where_others_than_this_machines_users_send_them(
    flags: dict[str, str], limit: int
) -> None:
    assert Settings.load(**flags).requests_per_address == limit
