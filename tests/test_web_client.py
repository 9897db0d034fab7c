"""The existing web client: a page of another origin, its axios calls and its image tags."""

import http.client
import re
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.photos import draw_photo, encode, write_photos
from tests.service import Service

_ORIGIN = {"Origin": "http://localhost:8001"}
_PATIENCE_SECONDS = 60


def _raw_get(service: Service, target: str) -> tuple[int, bytes]:
    """GETs a request target as it stands: `requests` would escape it anew."""
    connection = http.client.HTTPConnection(urlsplit(service.url).netloc, timeout=30)
    connection.putrequest("GET", target, skip_accept_encoding=True)
    for name, value in _ORIGIN.items():
        connection.putheader(name, value)
    connection.endheaders()
    response = connection.getresponse()
    try:
        return response.status, response.read()
    finally:
        connection.close()


def _escaped_by_a_browser(text: str) -> str:
    """What a browser makes of an unescaped `src` (URL Standard: special-query escapes)."""
    return "".join(
        chr(byte) if 0x20 < byte < 0x7F and chr(byte) not in "\"<>'" else f"%{byte:02X}"
        for byte in text.encode()
    )


@pytest.mark.every_combination
def test_the_client_loads_watches_counts_searches_and_shows(
    service: Service, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    photos = write_photos(folder, 60)

    preflight = service_options(service, "/img/load", "POST", "content-type")
    assert preflight[0] == 204
    assert preflight[1]["Access-Control-Allow-Origin"] == _ORIGIN["Origin"]
    assert "POST" in preflight[1]["Access-Control-Allow-Methods"]
    assert preflight[1]["Access-Control-Allow-Headers"].lower() == "content-type"

    answer = service.load(folder, headers=_ORIGIN)
    assert answer.text == '"Successfully loaded data!"'
    assert answer.headers["Access-Control-Allow-Origin"] == _ORIGIN["Origin"]

    seen = [service.progress()]
    end = time.monotonic() + _PATIENCE_SECONDS
    while seen[-1][0] != seen[-1][1]:
        assert time.monotonic() < end, seen
        time.sleep(0.01)
        seen.append(service.progress())
    currents = [current for current, _ in seen]
    assert {total for _, total in seen} == {60}
    assert currents == sorted(currents)
    assert any(0 < current < 60 for current in currents), "progress was not seen while loading"

    count = service.post("/img/count", headers=_ORIGIN)
    assert count.text == "60"
    answer = service.post(
        "/img/search",
        files={"image": ("query.jpg", photos[7].read_bytes())},
        data={"topk": "5"},
        headers=_ORIGIN,
    )
    assert answer.headers["Access-Control-Allow-Origin"] == _ORIGIN["Origin"]
    hits = answer.json()
    assert [type(distance) for _, distance in hits] == [float] * 5  # .toFixed(6) is a number's
    for path, _ in hits:
        status, body = _raw_get(service, f"/data?image_path={_escaped_by_a_browser(path)}")
        assert (status, body) == (200, Path(path).read_bytes())


def service_options(
    service: Service, path: str, method: str, headers: str
) -> tuple[int, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection(urlsplit(service.url).netloc, timeout=30)
    asked = {
        **_ORIGIN,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": headers,
    }
    connection.request("OPTIONS", path, headers=asked)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status, response.headers


def test_photos_of_awkward_names_are_shown(service: Service, tmp_path: Path) -> None:
    names = [
        "x y.jpg",
        "cats & dogs.jpg",
        "1+1=2.jpg",
        "100%.jpg",
        "50%25.jpg",
        "a%20b.jpg",
        "ünïcödé 日本 😀.jpg",
        'quo\'te "d".JPG',
        "?&image_path=x.jpg",
        "<b>.jpeg",
        ";semi:colon.jpg",
    ]
    folder = tmp_path / "awkward & +names % é"
    folder.mkdir()
    for seed, name in enumerate(names):
        (folder / name).write_bytes(encode(draw_photo(seed)))
    assert service.load(folder).status_code == 200
    assert service.count() == len(names)
    for name in names:
        path = str(folder / name)
        expected = (folder / name).read_bytes()
        status, body = _raw_get(service, f"/data?image_path={_escaped_by_a_browser(path)}")
        assert (status, body) == (200, expected), name
        assert service.get("/data", params={"image_path": path}).content == expected, name


def test_errors_reach_a_page_of_another_origin(empty_service: Service) -> None:
    answer = empty_service.load("/no/such/folder", headers=_ORIGIN)
    assert answer.status_code == 400
    assert answer.headers["Access-Control-Allow-Origin"] == _ORIGIN["Origin"]
    assert answer.json()["status"] is False


def test_wait_overrides_what_the_origin_says(service: Service, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 40)
    service.load(tmp_path / "photos", headers=_ORIGIN, params={"wait": "true"})
    assert service.progress() == (40, 40)
    service.post("/img/drop")
    service.load(tmp_path / "photos", params={"wait": "false"})
    assert service.progress()[0] < 40
    answer = service.load(tmp_path / "photos", params={"wait": "maybe"})
    assert answer.status_code == 400
    assert re.search("wait.*true or false.*maybe", answer.json()["msg"])


def test_a_load_that_is_under_way_is_joined(service: Service, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 40)
    service.load(tmp_path / "photos", params={"wait": "false"})
    service.load(tmp_path / "photos")
    assert service.progress() == (40, 40)
    assert service.count() == 40
