"""What the resource API says of requests that it cannot serve."""

import time
from typing import Any

import pytest
import requests

from tests.api import GALLERY, Api, problem
from tests.photos import draw_photo, encode


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "501"}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"state": "pending"}, "state"),
        ({"colection": "a"}, "colection"),
        ({"limit": ["1", "2"]}, "limit"),
        ({"collection": "no-name"}, "collection"),
        ({"cursor": "nonsense"}, "cursor"),
    ],
)
def test_each_parameter_that_is_wrong_is_named(api: Api, params: Any, name: str) -> None:
    answer = api.call("GET", "/images", params={"collection": GALLERY, **params})
    if name == "collection":
        answer = api.call("GET", "/images", params=params)
    [error] = problem(answer, 400, "invalid_input")["errors"]
    assert (error["where"], error["name"]) == ("query", name)
    assert name in answer.json()["detail"]


def test_all_that_is_wrong_is_told_at_once(api: Api) -> None:
    answer = api.call("GET", "/search", params={"top_k": 0, "min_score": 2, "match": "some"})
    names = {error["name"] for error in problem(answer, 400, "invalid_input")["errors"]}
    assert names == {"top_k", "min_score", "match"}


@pytest.mark.parametrize(
    ("body", "content_type", "status", "code"),
    [
        (b"{", "application/json", 400, "invalid_input"),
        (b"[]", "application/json", 400, "invalid_input"),
        (b"\xff", "application/json", 400, "invalid_input"),
        (b"[" * 50_000, "application/json", 400, "invalid_input"),
        (b"[" * 100_000, "application/json", 413, "request_entity_too_large"),
        (b'{"name": "a"}', "text/plain", 415, "unsupported_media_type"),
        (b"", "application/json", 400, "invalid_input"),
        (b'{"name": "a", "more": 1}', "application/json", 400, "invalid_input"),
    ],
)
def test_a_body_that_is_none_of_ours_is_refused(
    api: Api, body: bytes, content_type: str, status: int, code: str
) -> None:
    headers = {"Content-Type": content_type}
    problem(api.call("POST", "/collections", data=body, headers=headers), status, code)


def test_a_form_without_a_photo_or_with_other_fields_is_refused(api: Api) -> None:
    for options in (
        {"files": {"photo": b"x"}},
        {"files": {"image": b"x"}, "data": {"topk": "3"}},
    ):
        answer = api.call("POST", "/detect", **options)
        [error] = problem(answer, 400, "invalid_input")["errors"]
        assert error["where"] == "body"
    problem(api.call("POST", "/detect", data=b"x"), 415, "unsupported_media_type")


def test_what_is_not_there_is_a_problem_document_too(api: Api) -> None:
    problem(api.call("GET", "/nothing"), 404, "not_found")
    answer = api.call("PUT", "/images")
    problem(answer, 405, "method_not_allowed")
    assert set(answer.headers["Allow"].split(",")) == {"GET", "HEAD", "POST"}


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"},
    ],
)
def test_pages_of_other_origins_may_not_call(api: Api, headers: dict[str, str]) -> None:
    answer = api.call("POST", "/collections", json={"name": "foreign"}, headers=headers)
    problem(answer, 403, "forbidden")
    assert "Access-Control-Allow-Origin" not in answer.headers
    problem(api.call("GET", "/collections/foreign"), 404, "not_found")


def test_the_services_own_page_and_links_may_call(api: Api) -> None:
    own: list[dict[str, str]] = [
        {"Origin": api.service.url},
        {"Sec-Fetch-Site": "same-origin", "Origin": api.service.url},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
    ]
    for headers in own:
        assert api.call("GET", "/info", headers=headers).status_code == 200


def test_the_existing_endpoints_are_open_to_pages_of_the_same_host_alone(api: Api) -> None:
    url = f"{api.service.url}/img/count"
    answer = requests.post(url, headers={"Origin": "http://localhost:8001"}, timeout=30)
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == "http://localhost:8001"
    answer = requests.post(url, headers={"Origin": "http://client.example"}, timeout=30)
    assert answer.status_code == 403
    assert "Access-Control-Allow-Origin" not in answer.headers


def test_what_nobody_waits_for_any_more_is_not_worked_on(api: Api) -> None:
    large = encode(draw_photo(1, width=2400, height=1800))
    # What lies behind a JPEG's end changes nothing but the hash that photos are told apart by.
    files = [("image", (f"{number}.jpg", large + bytes([number]))) for number in range(16)]
    url = f"{api.service.url}/api/v1/search/batch"
    prepared = requests.Request("POST", url, params={"collection": GALLERY}, files=files).prepare()
    with pytest.raises(requests.ReadTimeout):
        requests.Session().send(prepared, timeout=(10, 0.05))
    end = time.monotonic() + 20
    while "event=request.cancelled" not in api.service.log.read_text():
        assert time.monotonic() < end, "the request went on"
        time.sleep(0.05)
    assert api.get("/info")
