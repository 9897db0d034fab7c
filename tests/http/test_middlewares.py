"""What every request passes: its id, and errors as JSON."""

import logging
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.pytest_plugin import AiohttpClient
from aiohttp.test_utils import TestClient

from backend import errors
from backend.errors import ServiceError
from backend.http import middlewares
from backend.http.services import METRICS, SETTINGS
from backend.metrics import Metrics
from backend.settings import Settings
from tests.photos import draw_photo, encode, write_photos
from tests.service import Service

SERVICE_ERRORS = [
    errors.InvalidInput,
    errors.InvalidImage,
    errors.NotFound,
    errors.Forbidden,
    errors.Conflict,
    errors.EmbedderMismatch,
    errors.TooLarge,
    errors.UnsupportedFormat,
    errors.BadGateway,
    errors.Unavailable,
    errors.ServiceError,
]
Client = TestClient[web.Request, web.Application]


async def _good(_request: web.Request) -> web.Response:
    return web.json_response("good")


async def _broken(_request: web.Request) -> web.Response:
    raise RuntimeError("the password is hunter2")


async def _moved(_request: web.Request) -> web.Response:
    raise web.HTTPFound("/good")


async def _large(request: web.Request) -> web.Response:
    await request.read()
    return web.json_response("read")


async def _service_error(request: web.Request) -> web.Response:
    kind: type[ServiceError] = getattr(errors, request.match_info["name"])
    raise kind("what was wrong: naïve “value”")


async def _engine_away(_request: web.Request) -> web.Response:
    raise errors.EngineUnavailable("Milvus", "Milvus does not answer")


@pytest.fixture
async def client(aiohttp_client: AiohttpClient) -> Client:
    """An application with the middlewares in the order in which the service has them."""
    app = web.Application(
        middlewares=[
            middlewares.identify_requests,
            middlewares.log_requests,
            middlewares.answer_errors,
        ],
        client_max_size=1000,
    )
    app[METRICS] = Metrics()
    app[SETTINGS] = Settings.load()
    app.on_response_prepare.append(middlewares.tell_request_id)
    app.router.add_get("/good", _good)
    app.router.add_post("/good", _good)
    app.router.add_get("/broken", _broken)
    app.router.add_get("/moved", _moved)
    app.router.add_post("/large", _large)
    app.router.add_get("/error/{name}", _service_error)
    app.router.add_get("/away", _engine_away)
    return await aiohttp_client(app)


# Errors


@pytest.mark.parametrize("kind", SERVICE_ERRORS)
async def test_an_error_of_ours_is_answered_with_its_status_and_message(
    client: Client, kind: type[ServiceError]
) -> None:
    async with client.get(f"/error/{kind.__name__}") as answer:
        assert answer.status == kind.status
        assert answer.content_type == "application/json"
        assert await answer.json() == {"status": False, "msg": "what was wrong: naïve “value”"}


@pytest.mark.parametrize("path", ["/away", "/error/Unavailable"])
async def test_what_is_not_available_says_when_to_try_again(client: Client, path: str) -> None:
    async with client.get(path) as answer:
        assert answer.status == 503
        assert int(answer.headers["Retry-After"]) > 0


async def test_an_error_that_repeating_does_not_mend_is_not_to_be_tried_again(
    client: Client,
) -> None:
    async with client.get("/error/Conflict") as answer:
        assert "Retry-After" not in answer.headers


async def test_anything_unexpected_is_a_500_without_its_details(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        async with client.get("/broken") as answer:
            text = await answer.text()
    assert answer.status == 500
    assert "hunter2" not in text
    assert "RuntimeError" not in text
    assert await answer.json() == {
        "status": False,
        "msg": "an internal error; the server's log has its cause",
    }


async def test_after_an_unexpected_error_the_next_request_is_answered(client: Client) -> None:
    for _ in range(3):
        async with client.get("/broken") as answer:
            assert answer.status == 500
        async with client.get("/good") as answer:
            assert await answer.json() == "good"


async def test_what_is_not_there_is_named_with_where_to_look(client: Client) -> None:
    async with client.get("/no/such page?x=1") as answer:
        assert answer.status == 404
        assert await answer.json() == {
            "status": False,
            "msg": "there is nothing at /no/such page; GET /docs lists what there is",
        }


async def test_a_wrong_method_is_told_the_right_ones(client: Client) -> None:
    async with client.delete("/good") as answer:
        assert answer.status == 405
        assert await answer.json() == {
            "status": False,
            "msg": "/good is called with GET, HEAD, POST, not with DELETE",
        }
        allowed = {method.strip() for method in answer.headers["Allow"].split(",")}
    assert allowed == {"GET", "HEAD", "POST"}


async def test_a_body_that_is_too_large_is_a_413(client: Client) -> None:
    async with client.post("/large", data=bytes(1000)) as answer:
        assert answer.status == 200
    async with client.post("/large", data=bytes(1001)) as answer:
        assert answer.status == 413
        body = await answer.json()
    assert body["status"] is False
    assert "1000" in body["msg"]


async def test_a_redirect_stays_a_redirect(client: Client) -> None:
    async with client.get("/moved", allow_redirects=False) as answer:
        assert (answer.status, answer.headers["Location"]) == (302, "/good")


async def test_a_good_answer_is_left_alone(client: Client) -> None:
    async with client.get("/good") as answer:
        assert (answer.status, await answer.json()) == (200, "good")


# Ids


@pytest.mark.parametrize(
    ("path", "status"), [("/good", 200), ("/missing", 404), ("/broken", 500), ("/moved", 302)]
)
async def test_every_answer_bears_an_id_of_its_own(client: Client, path: str, status: int) -> None:
    ids = set()
    for _ in range(3):
        async with client.get(path, allow_redirects=False) as answer:
            assert answer.status == status
            ids.add(answer.headers["X-Request-ID"])
    assert len(ids) == 3
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in ids)


async def test_an_answer_that_no_handler_gives_bears_an_id(client: Client) -> None:
    async with client.get("/good", headers={"Expect": "miracles"}) as answer:
        assert answer.status == 417
        assert answer.headers["X-Request-ID"]


@pytest.mark.parametrize("given", ["7", "a" * 64, "web-1.2_B"])
async def test_a_client_s_own_id_is_kept(client: Client, given: str) -> None:
    async with client.get("/good", headers={"X-Request-ID": given}) as answer:
        assert answer.headers["X-Request-ID"] == given


@pytest.mark.parametrize("given", ["", "a" * 65, "a b", 'a"', "a=b", "naïve"])
async def test_an_id_that_a_log_cannot_bear_is_replaced(client: Client, given: str) -> None:
    async with client.get("/good", headers={"X-Request-ID": given}) as answer:
        assert re.fullmatch("[0-9a-f]{32}", answer.headers["X-Request-ID"])


def _lines(service: Service, request_id: str) -> list[str]:
    """The events that are logged with a request's id; on a busy machine some requests are slow."""
    marked = re.compile(rf"event=(\S+) .*\brequest={request_id}(?: |$)")
    return [
        found[1].removesuffix(".slow")
        for line in service.log.read_text().splitlines()
        if (found := marked.search(line))
    ]


def test_what_is_logged_for_a_request_bears_its_id(service: Service) -> None:
    photo = {"image": ("a.jpg", encode(draw_photo(1)))}
    assert service.post("/img/upload", files=photo, headers={"X-Request-ID": "u1"}).ok
    assert service.get("/progress", headers={"X-Request-ID": "p1"}).ok
    assert _lines(service, "u1") == ["photo.added", "request"]
    assert _lines(service, "p1") == ["request"]
    assert _lines(service, r"\S+") == ["photo.added", "request", "request"]


def test_a_load_does_not_bear_the_id_of_the_request_that_started_it(
    service: Service, tmp_path: Path
) -> None:
    write_photos(tmp_path / "photos", 1)
    (tmp_path / "photos" / "damaged.jpg").write_bytes(b"no photo")
    assert service.load(tmp_path / "photos", headers={"X-Request-ID": "l1"}).ok
    log = service.log.read_text()
    for event in ("load.started", "load.photo_failed", "load.done"):
        assert f"event={event}" in log
    assert _lines(service, "l1") == ["request"]


def test_an_outage_does_not_bear_the_id_of_the_request_that_it_began_with(
    start_service: Callable[..., Service],
) -> None:
    service = start_service("--request-timeout", "3", "--engine-timeout", "3")
    photo = {"image": ("a.jpg", encode(draw_photo(1)))}
    assert service.post("/img/upload", files=photo).ok
    milvus_lite = service.milvus_lite
    milvus_lite.suspend()
    try:
        photo = {"image": ("b.jpg", encode(draw_photo(2)))}
        answer = service.post("/img/upload", files=photo, headers={"X-Request-ID": "o1"})
        assert answer.status_code == 503
    finally:
        milvus_lite.resume()
    end = time.monotonic() + 30
    while "event=outage.ended" not in service.log.read_text():
        assert time.monotonic() < end
        time.sleep(0.1)
    assert "outage.began" in _lines(service, "o1")
    assert "outage.ended" not in _lines(service, "o1")


# Slow requests


def test_a_request_that_is_slow_is_a_warning_that_says_where_the_time_went(
    start_service: Callable[..., Service], tmp_path: Path
) -> None:
    service = start_service("--slow-request", "0.000001")  # anything is slower
    write_photos(tmp_path / "photos", 2)
    assert service.load(tmp_path / "photos").ok
    photo = encode(draw_photo(1))
    assert service.search(photo).ok
    assert service.post("/img/upload", files={"image": ("a.jpg", photo)}).ok
    assert service.get("/healthz").ok
    slow = {}
    for line in service.log.read_text().splitlines():
        if found := re.search(r"level=warning event=request\.slow .*path=(\S+) status=200 ", line):
            figures = re.findall(r"(?:(\w+)_)?ms=([\d.]+)", line)
            slow[found[1]] = {stage: float(milliseconds) for stage, milliseconds in figures}
    # Loads take as long as they take.
    assert set(slow) == {"/img/search", "/img/upload", "/healthz"}
    analysis = ["decode", "detect", "cut", "embed"]
    assert list(slow["/img/search"]) == ["", *analysis, "search", "lookup"]
    assert list(slow["/img/upload"]) == ["", *analysis, "write", "turn"]
    assert list(slow["/healthz"]) == [""]
    for times in slow.values():
        total = times.pop("")
        # A search looks its collection up while the photo is analysed.
        alongside = times.pop("lookup", 0.0)
        assert times.pop("turn", 0.0) <= times.get("write", 0.0) + 0.1  # which is a part of it
        # Each figure is rounded to a tenth.
        assert alongside <= total + 0.1
        assert sum(times.values()) <= total + 0.1 * len(times)


def test_a_request_that_is_not_slow_is_no_warning(
    start_service: Callable[..., Service],
) -> None:
    service = start_service("--slow-request", "60")
    assert service.count() == 0
    assert re.search(r"level=info event=request .*path=/img/count", service.log.read_text())
    assert "request.slow" not in service.log.read_text()
