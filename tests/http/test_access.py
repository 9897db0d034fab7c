"""API keys as clients use them: what each operation needs, what a key reaches, when it ends."""

import asyncio
import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import pytest
import requests
import structlog

from backend.__main__ import _list_keys, _parser, _revoke_key, _tell_access
from backend.app import create_app, open_keys
from backend.errors import InvalidInput
from backend.http import compat, health, metrics
from backend.http.openapi import Operation, openapi_document
from backend.http.v1 import routes
from backend.keys import Scope, make_key, revoke_key
from backend.settings import Settings
from tests.photos import draw_photo, encode, write_photos
from tests.service import Service, start
from tests.test_main import _run as run_command

OPERATIONS = (
    *compat.OPERATIONS,
    *routes.OPERATIONS,
    *health.OPERATIONS,
    *metrics.operations(is_open=False),
)
GUARDED = [operation for operation in OPERATIONS if operation.scope is not None]
LACKING: dict[Scope, tuple[Scope, ...]] = {
    "read": ("write",),
    "write": ("read",),
    "admin": ("read", "write"),
}
PER_KEY = 400


@dataclass
class Guarded:
    """A service that demands keys, with photos in `mine` and in `theirs`."""

    service: Service
    folder: Path
    admin: str = ""

    def key(self, *scopes: Scope, collections: Sequence[str] | None = None) -> str:
        async def make() -> str:
            async with open_keys(self.settings) as table:
                return (await make_key(table, scopes, collections=collections))[1]

        return asyncio.run(make())

    def revoke(self, key: str) -> None:
        async def revoke() -> None:
            async with open_keys(self.settings) as table:
                assert await revoke_key(table, key.split("_")[1]) is not None

        asyncio.run(revoke())

    @property
    def settings(self) -> Settings:
        return Settings.load(data_dir=self.folder / "data")

    def call(
        self, method: str, path: str, key: str | None = None, **options: Any
    ) -> requests.Response:
        headers = options.pop("headers", {})
        if key is not None:
            headers = headers | {"Authorization": f"Bearer {key}"}
        for _ in range(3):
            answer = requests.request(
                method, self.service.url + path, headers=headers, timeout=60, **options
            )
            if answer.status_code != 503:
                break
            time.sleep(2)  # an engine is away for a moment, and asks to be asked again
        return answer

    def upload(self, seed: int, collection: str) -> Any:
        answer = self.call(
            "POST",
            "/api/v1/images",
            self.admin,
            params={"collection": collection},
            files={"image": encode(draw_photo(seed))},
        )
        assert answer.status_code == 201, answer.text
        return answer.json()["results"][0]["image"]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """It is as one that listens on a network; nothing that a test changes concerns another."""
    folder = tmp_path_factory.mktemp("guarded")
    flags = (
        *("--published-host", "192.0.2.1", "--rate-limit-key", str(PER_KEY)),
        *("--allowed-roots", str(folder)),
    )
    service = start(folder, (*flags, "--url-fetch", "false"), folder / "data")
    try:
        opened = Guarded(service, folder)
        opened.admin = opened.key("admin")
        for seed in range(2):
            opened.upload(seed, "mine")
        write_photos(folder / "photos", 2, start=20)
        body = {"File": str(folder / "photos"), "Table": "theirs"}
        assert opened.call("POST", "/img/load", opened.admin, json=body).status_code == 200
        yield opened
    finally:
        service.stop()


def _path(operation: Operation) -> str:
    return re.sub(
        r"\{(\w+)[^/]*\}", lambda found: "1" if found[1] == "id" else "mine", operation.path
    )


def _named(operation: Operation) -> str:
    return f"{operation.method} {operation.path}"


def _message(answer: requests.Response) -> str:
    body = answer.json()
    return str(body.get("detail") or body["msg"])


# What each operation needs


@pytest.mark.parametrize("operation", GUARDED, ids=_named)
def test_every_operation_demands_a_good_key(guarded: Guarded, operation: Operation) -> None:
    method, path = operation.method, _path(operation)
    answer = guarded.call(method, path)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="image similarity search"'
    assert "python -m backend keys create" in _message(answer)
    answer = guarded.call(method, path, "isk_made_up")
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].endswith(', error="invalid_token"')


def test_every_operation_demands_the_scope_that_it_declares(guarded: Guarded) -> None:
    lacking = {scope: guarded.key(*others) for scope, others in LACKING.items()}
    for operation in GUARDED:
        scope = operation.scope
        assert scope is not None
        answer = guarded.call(operation.method, _path(operation), lacking[scope])
        assert answer.status_code == 403, _named(operation)
        assert repr(scope) in _message(answer)
        challenge = answer.headers["WWW-Authenticate"]
        assert challenge.endswith(f'error="insufficient_scope", scope="{scope}"')
    # HEAD is a GET without a body, not a way around.
    assert guarded.call("HEAD", "/api/v1/images/1/file").status_code == 401
    assert guarded.call("HEAD", "/api/v1/images/1/file", lacking["read"]).status_code == 403


def test_what_is_not_guarded_is_listed_here(settings: Settings) -> None:
    documented = {(operation.method, operation.path) for operation in GUARDED}
    routed = set()
    for route in create_app(settings).router.routes():
        assert route.resource is not None
        method = "GET" if route.method == "HEAD" else route.method
        routed.add((method, re.sub(r":[^}]*(?=\})", "", route.resource.canonical)))
    assert documented <= routed
    opened = {path for method, path in routed - documented if method == "GET"}
    assert {path for path in opened if not path.startswith("/docs")} == {
        *("/", "/page/{name}", "/openapi.json"),  # the same everywhere, and nothing of the data
        *("/healthz", "/readyz"),
    }
    assert {method for method, _ in routed - documented} == {"GET"}


def test_what_removes_whole_collections_is_for_admins_and_what_adds_for_writers() -> None:
    scopes = {_named(operation): operation.scope for operation in OPERATIONS}
    assert [name for name, scope in scopes.items() if scope == "admin"] == [
        "POST /img/drop",
        "DELETE /api/v1/collections/{name}",
        "GET /api/v1/collections/{name}/export",
        "POST /api/v1/collections/{name}/import",
    ]
    assert {name for name, scope in scopes.items() if scope == "write"} == {
        *("POST /img/load", "POST /img/upload"),
        *("POST /api/v1/images", "DELETE /api/v1/images/{id}"),
        *("POST /api/v1/loads", "POST /api/v1/loads/{id}/cancel", "POST /api/v1/loads/{id}/resume"),
        "POST /api/v1/collections",
    }
    reading = {name for name, scope in scopes.items() if scope == "read"}
    assert all(
        name.startswith("GET ")
        or name.rpartition("/")[2] in ("search", "count", "batch", "detect", "session")
        for name in reading
    )


def test_probes_the_page_and_the_documentation_are_open(guarded: Guarded) -> None:
    for path in ("/healthz", "/readyz", "/", "/page/app.js", "/docs", "/openapi.json"):
        assert guarded.call("GET", path).status_code == 200, path
    ready = guarded.call("GET", "/readyz").json()
    assert ready["status"] == "ready"
    assert ready["waiting_loads"] == []


def test_the_figures_may_be_opened(settings: Settings) -> None:
    assert metrics.operations(is_open=False)[0].scope == "read"
    assert metrics.operations(is_open=True)[0].scope is None


def test_a_key_comes_in_either_header_and_only_one_key(guarded: Guarded) -> None:
    key, other = guarded.key("read"), guarded.key("read")
    for headers in (
        {"Authorization": f"Bearer {key}"},
        {"Authorization": f"bearer  {key} "},
        {"X-API-Key": key},
        {"X-API-Key": key, "Authorization": f"Bearer {key}"},
        {"X-API-Key": key, "Authorization": "Basic dXNlcjpwYXNz"},  # a proxy's own
    ):
        assert guarded.call("GET", "/progress", headers=headers).status_code == 200, headers
    for headers in (
        {"Authorization": key},
        {"Authorization": f"Basic {key}"},
        {"Authorization": "Bearer"},
        {"Authorization": f"Bearer {key} {key}"},
        {"X-API-Key": f"Bearer {key}"},
        {"X-API-Key": ""},
        {"X-API-Key": f"isk_{'0' * 12}_{'A' * 43}"},
        {"Cookie": f"image_search_session={key}"},
        {"Cookie": f"X-API-Key={key}"},
        {"X-API-Key": key, "Authorization": f"Bearer {other}"},
    ):
        assert guarded.call("GET", "/progress", headers=headers).status_code == 401, headers
    assert guarded.call("GET", f"/progress?api_key={key}&key={key}").status_code == 401


def test_on_loopback_no_key_is_asked_for_and_any_is_passed_over(empty_service: Service) -> None:
    for headers in ({}, {"X-API-Key": "wrong"}, {"Authorization": "Bearer wrong"}):
        assert empty_service.get("/progress", headers=headers).status_code == 200
        assert empty_service.get("/api/v1/collections", headers=headers).status_code == 200
    log = empty_service.log.read_text()
    assert re.search('event=access.open reason="127.0.0.1 is reached from this machine alone"', log)


# What a key reaches


@pytest.fixture(scope="module")
def theirs(guarded: Guarded) -> dict[str, Any]:
    """Ids and paths of what a key for `mine` must not see."""
    listed = guarded.call("GET", "/api/v1/images?collection=theirs", guarded.admin).json()["items"]
    image = guarded.call("GET", f"/api/v1/images/{listed[0]['id']}", guarded.admin).json()
    loads = guarded.call("GET", "/api/v1/loads?collection=theirs", guarded.admin).json()["items"]
    return {
        "image": image["id"],
        "object": image["objects"][0]["id"],
        "path": image["path"],
        "load": loads[0]["id"],
    }


def test_what_a_key_must_not_see_is_as_if_it_were_not_there(
    guarded: Guarded, theirs: dict[str, Any]
) -> None:
    key = guarded.key("admin", collections=["mine"])
    photo = {"image": encode(draw_photo(1))}
    image, load, of = theirs["image"], theirs["load"], theirs["object"]
    api = "/api/v1"
    asked: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", f"{api}/collections/theirs", {}),
        ("GET", f"{api}/collections/theirs/duplicates", {}),
        ("GET", f"{api}/collections/theirs/export", {}),
        ("DELETE", f"{api}/collections/theirs", {}),
        ("GET", f"{api}/images?collection=theirs", {}),
        ("GET", f"{api}/images/{image}", {}),
        ("GET", f"{api}/images/{image}/file", {}),
        ("GET", f"{api}/images/{image}/thumbnail", {}),
        ("GET", f"{api}/images/{image}/duplicates", {}),
        ("DELETE", f"{api}/images/{image}", {}),
        ("GET", f"{api}/loads?collection=theirs", {}),
        ("GET", f"{api}/loads/{load}", {}),
        ("GET", f"{api}/loads/{load}/events", {}),
        ("POST", f"{api}/loads/{load}/cancel", {}),
        ("POST", f"{api}/loads/{load}/resume", {}),
        ("POST", f"{api}/search?collection=theirs", {"files": photo}),
        ("GET", f"{api}/search?image_id={image}", {}),
        ("GET", f"{api}/search?image_id={image}&collection=mine", {}),
        ("GET", f"{api}/search?object_id={of}", {}),
        ("GET", f"{api}/search?object_id={of}&collection=mine", {}),
        ("GET", "/data", {"params": {"image_path": theirs["path"]}}),
    ]
    for method, path, options in asked:
        answer = guarded.call(method, path, key, **options)
        assert answer.status_code == 404, (method, path, answer.text)
        # Word for word what is said of what is not there.
        missing = {"collections/theirs": "collections/nothing", "=theirs": "=nothing"}
        other = re.sub(r"(?<=[/=])\d+", "999999", path)
        for name, instead in missing.items():
            other = other.replace(name, instead)
        if "params" in options:
            options = {"params": {"image_path": "/nothing"}}
        told = guarded.call(method, other, guarded.admin, **options)
        assert told.status_code == 404, (method, other, told.text)
        mask = re.compile(r"theirs|nothing|\d+|/\S+")
        assert mask.sub("*", _message(answer)) == mask.sub("*", _message(told))
    batch = guarded.call("POST", f"{api}/search/batch?collection=theirs", key, files=photo)
    assert batch.status_code == 404
    # The same of the existing endpoints, which have other words for it.
    assert guarded.call("POST", "/img/count?table_name=theirs", key).json() == 0
    found = guarded.call("POST", "/img/search?table_name=theirs", key, files=photo)
    assert (found.status_code, found.json()) == (200, [])
    assert guarded.call("GET", "/progress", key).json() == "current: 0, total: 0"
    assert guarded.call("GET", "/progress", guarded.admin).json() == "current: 2, total: 2"
    names = guarded.call("GET", f"{api}/collections", key).json()["items"]
    assert [each["name"] for each in names] == ["mine"]
    assert guarded.call("GET", f"{api}/loads", key).json()["items"] == []
    # All is still there.
    assert guarded.call("POST", "/img/count?table_name=theirs", guarded.admin).json() == 2


def test_what_a_key_must_not_change_is_refused_there_or_not(guarded: Guarded) -> None:
    key = guarded.key("admin", collections=["mine"])
    photo = {"image": encode(draw_photo(1))}
    folder = str(guarded.folder / "photos")
    for name in ("theirs", "nothing"):
        for method, path, options in (
            ("POST", f"/api/v1/images?collection={name}", {"files": photo}),
            ("POST", "/api/v1/loads", {"json": {"folder": folder, "collection": name}}),
            ("POST", "/api/v1/collections", {"json": {"name": name}}),
            ("POST", f"/api/v1/collections/{name}/import", {}),
            ("POST", f"/img/upload?table_name={name}", {"files": photo}),
            ("POST", "/img/load", {"json": {"File": folder, "Table": name}}),
            ("POST", f"/img/drop?table_name={name}", {}),
        ):
            answer = guarded.call(method, path, key, **options)
            assert answer.status_code == 403, (method, path, answer.text)
            assert _message(answer) == f"the API key is not for collection {name!r}: take another"
    assert guarded.call("GET", "/metrics", key).status_code == 403
    names = guarded.call("GET", "/api/v1/collections", guarded.admin).json()["items"]
    assert {each["name"] for each in names} >= {"mine", "theirs"}
    assert "nothing" not in {each["name"] for each in names}


def test_a_key_reaches_what_it_is_for_and_that_is_meant_where_nothing_is_named(
    guarded: Guarded,
) -> None:
    key = guarded.key("read", "write", collections=["own", "mine"])
    photo = {"image": encode(draw_photo(77))}
    info = guarded.call("GET", "/api/v1/info", key).json()
    assert info["default_collection"] == "own"
    made = guarded.call("POST", "/api/v1/images", key, files=photo)
    assert made.status_code == 201
    image = made.json()["results"][0]["image"]
    assert image["collection"] == "own"
    assert guarded.call("POST", "/img/upload", key, files=photo).status_code == 200
    assert guarded.call("POST", "/img/count", key).json() == 1
    assert guarded.call("POST", "/img/count?table_name=mine", key).json() >= 2
    found = guarded.call("POST", "/api/v1/search", key, files=photo).json()
    assert found["collection"] == "own"
    file = guarded.call("GET", "/data", key, params={"image_path": image["path"]})
    assert file.content == photo["image"]
    assert guarded.call("DELETE", f"/api/v1/images/{image['id']}", key).status_code == 204


def test_an_idempotency_key_is_the_api_keys_own(guarded: Guarded) -> None:
    first, second = guarded.key("write"), guarded.key("write")
    word = {"Idempotency-Key": "upload-1"}
    for key, seed in ((first, 80), (second, 81)):
        photo = {"image": encode(draw_photo(seed))}
        path = "/api/v1/images?collection=mine"
        answer = guarded.call("POST", path, key, files=photo, headers=word)
        assert answer.status_code == 201
        again = guarded.call("POST", path, key, files=photo, headers=word)
        assert again.headers["Idempotency-Replayed"] == "true"


# When it ends, how often it may be used, and what is logged


def test_keys_are_made_listed_and_revoked_from_the_command_line_while_the_service_runs(
    guarded: Guarded, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ("--data-dir", str(guarded.folder / "data"))
    made = run_command(
        *("keys", "create", "--scope", "read", "--collection", "mine", "--name", "Käthe"),
        *("--expires", "30d", *data),
    )
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    assert re.fullmatch(r"isk_[0-9a-f]{12}_[A-Za-z0-9_-]{43}", key)
    _, key_id, secret = key.split("_", 2)
    assert key_id in made.stderr
    assert secret not in made.stderr
    assert guarded.call("GET", "/api/v1/collections/mine", key).status_code == 200

    listed = run_command("keys", "list", *data).stdout
    [line] = [line for line in listed.splitlines() if key_id in line]
    assert "Käthe" in line
    assert "read" in line
    assert "mine" in line
    assert secret not in listed

    revoked = run_command("keys", "revoke", key_id, *data)
    assert (revoked.returncode, revoked.stderr.strip()) == (0, f"key {key_id} is revoked")
    end = time.monotonic() + 10
    while guarded.call("GET", "/api/v1/collections/mine", key).status_code != 401:
        assert time.monotonic() < end
        time.sleep(0.1)
    asyncio.run(_list_keys(guarded.settings, {"json": True}))
    [shown] = [key for key in json.loads(capsys.readouterr().out)["keys"] if key["id"] == key_id]
    assert shown["revoked_at"]
    assert shown["scopes"] == ["read"]
    with pytest.raises(InvalidInput, match="no key 'nothing'"):
        asyncio.run(_revoke_key(guarded.settings, {"id": "nothing"}))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["create"], "--scope"),
        (["create", "--scope", "root"], "invalid choice"),
        (["create", "--scope", "read", "--expires", "soon"], "30d"),
        (["create", "--scope", "read", "--name", "a\nb"], "printable"),
        (["create", "--scope", "read", "--name", "a" * 201], "at most 200"),
        ([], "COMMAND"),
    ],
)
def test_a_key_that_makes_no_sense_is_not_made(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        _parser().parse_args(["keys", *words])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_a_key_may_be_used_so_often_and_its_sessions_count_as_it(guarded: Guarded) -> None:
    key = guarded.key("read")
    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {key}"
    assert session.post(f"{guarded.service.url}/api/v1/session", timeout=60).status_code == 200
    statuses: list[int] = []
    while 429 not in statuses:
        assert len(statuses) < 4 * PER_KEY  # a few are earned meanwhile
        answer = session.get(f"{guarded.service.url}/progress", timeout=60)
        statuses.append(answer.status_code)
    assert set(statuses[:-1]) == {200}
    assert answer.status_code == 429
    assert len(statuses) >= PER_KEY
    assert int(answer.headers["Retry-After"]) >= 1
    assert f"this API key may make {PER_KEY} requests a minute" in answer.json()["msg"]
    del session.headers["Authorization"]
    image = session.get(f"{guarded.service.url}/api/v1/images/1/thumbnail", timeout=60)
    assert image.status_code == 429
    # Another's is not concerned.
    assert guarded.call("GET", "/progress", guarded.key("read")).status_code == 200


def test_the_log_names_the_key_that_did_it_and_no_secret(guarded: Guarded) -> None:
    key = guarded.key("write")
    _, key_id, secret = key.split("_", 2)
    photo = {"image": encode(draw_photo(90))}
    path = "/api/v1/images?collection=mine"
    assert guarded.call("POST", path, key, files=photo).status_code == 201
    assert guarded.call("GET", "/progress", key).status_code == 403
    made_up = f"isk_{key_id}_{'B' * 43}"
    assert guarded.call("GET", "/progress", made_up).status_code == 401
    log = guarded.service.log.read_text()
    assert re.search(rf"event=photo.added .*key={key_id}", log)
    assert re.search(rf"event=request .*key={key_id} .*path=/api/v1/images status=201", log) or (
        re.search(rf"event=request .*path=/api/v1/images status=201 .*key={key_id}", log)
    )
    assert len(re.findall(rf"status=403 .*key={key_id}|key={key_id} .*status=403", log)) == 1
    assert not re.search(rf"status=401 .*key={key_id}|key={key_id} .*status=401", log)
    assert secret not in log
    assert "B" * 43 not in log
    assert guarded.admin.split("_", 2)[2] not in log


def test_the_start_says_who_may_use_the_service(guarded: Guarded) -> None:
    assert "event=access.keys_demanded" in guarded.service.log.read_text()
    said = []
    for flags in (
        {},
        {"host": "0.0.0.0"},
        {"host": "0.0.0.0", "require_api_key": "false"},
        {"host": "0.0.0.0", "published_host": "127.0.0.1"},
        {"host": "127.0.0.1", "require_api_key": "true"},
    ):
        with structlog.testing.capture_logs() as lines:
            _tell_access(Settings.load(**flags))
        said += [(line["event"], line["log_level"]) for line in lines]
    assert said == [
        ("access.open", "info"),
        ("access.keys_demanded", "info"),
        ("access.open", "warning"),
        ("access.open", "info"),
        ("access.keys_demanded", "info"),
    ]


# Sessions


def _begin(guarded: Guarded, key: str, **headers: str) -> tuple[str, str]:
    """A new session's cookie, and how it was set."""
    answer = guarded.call("POST", "/api/v1/session", key, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"seconds": 3600}
    given = answer.headers["Set-Cookie"]
    [cookie] = SimpleCookie(given).values()
    return f"image_search_session={cookie.value}", given


def test_a_session_shows_images_and_does_nothing_else(guarded: Guarded) -> None:
    key = guarded.key("admin", collections=["mine"])
    image = guarded.upload(95, "mine")["id"]
    cookie, given = _begin(guarded, key)
    attributes = {part.strip().lower() for part in given.split(";")[1:]}
    assert attributes == {"max-age=3600", "httponly", "samesite=strict"}  # and no path but its own
    asked = {"Cookie": cookie, "Sec-Fetch-Site": "same-origin"}
    shown = [
        operation
        for operation in GUARDED
        if operation.takes_session and operation.path.startswith("/api/v1/images")
    ]
    assert len(shown) == 2
    for operation in shown:
        path = operation.path.replace("{id}", str(image))
        assert guarded.call("GET", path, headers=asked).status_code == 200
    for operation in GUARDED:
        if not operation.takes_session:
            answer = guarded.call(operation.method, _path(operation), headers=asked)
            assert answer.status_code == 401, _named(operation)
        else:
            assert operation.method == "GET"
    # A page of another port shares the cookie, and may not use it.
    for site in ("same-site", "cross-site"):
        foreign = asked | {"Sec-Fetch-Site": site, "Referer": "http://127.0.0.1:1/"}
        assert (
            guarded.call("GET", f"/api/v1/images/{image}/file", headers=foreign).status_code == 401
        )


def test_a_session_ends_when_it_is_told_to_and_with_its_key(guarded: Guarded) -> None:
    key = guarded.key("read")
    image = f"/api/v1/images/{guarded.upload(96, 'mine')['id']}/file"
    cookie, _ = _begin(guarded, key)
    other, _ = _begin(guarded, key)
    assert guarded.call("GET", image, headers={"Cookie": cookie}).status_code == 200
    ended = guarded.call("DELETE", "/api/v1/session", key, headers={"Cookie": cookie})
    assert ended.status_code == 204
    assert "Max-Age=0" in ended.headers["Set-Cookie"]
    assert guarded.call("GET", image, headers={"Cookie": cookie}).status_code == 401
    assert guarded.call("GET", image, headers={"Cookie": other}).status_code == 200
    guarded.revoke(key)
    end = time.monotonic() + 10
    while guarded.call("GET", image, headers={"Cookie": other}).status_code != 401:
        assert time.monotonic() < end
        time.sleep(0.1)


def test_where_no_key_is_demanded_a_session_is_nothing(empty_service: Service) -> None:
    answer = empty_service.post("/api/v1/session")
    assert answer.status_code == 200
    assert "Set-Cookie" not in answer.headers
    ended = requests.delete(f"{empty_service.url}/api/v1/session", timeout=60)
    assert ended.status_code == 204


# The document


def test_the_document_says_what_each_operation_needs() -> None:
    for demands_keys in (False, True):
        document = openapi_document(OPERATIONS, title="t", version="1", demands_keys=demands_keys)
        schemes = document["components"]["securitySchemes"]
        assert schemes["bearer"]["scheme"] == "bearer"
        assert (schemes["header"]["in"], schemes["header"]["name"]) == ("header", "X-API-Key")
        for operation in OPERATIONS:
            path = re.sub(r"\{(\w+)[^/]*\}", r"{\1}", operation.path)
            told = document["paths"][path][operation.method.lower()]
            if operation.scope is None:
                assert told["security"] == []
                assert "401" not in told["responses"]
                continue
            expected = [{"bearer": [operation.scope]}, {"header": [operation.scope]}]
            if operation.takes_session:
                expected.append({"session": [operation.scope]})
            assert told["security"] == ([] if demands_keys else [{}]) + expected
            assert "WWW-Authenticate" in told["responses"]["401"]["headers"]
            assert {"401", "403", "421", "429"} <= set(told["responses"])
