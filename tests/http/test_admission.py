"""A service that has enough to do: it says so at once, and goes on with what it has."""

import http.client
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest
import requests

from tests.api import Api, problem
from tests.http.test_metrics import figures, one
from tests.overload import PHOTO, busy, held, taken, wait_for
from tests.photos import draw_photo, encode
from tests.service import FETCHES_FROM_HERE, Service, start

HEAD = (
    "POST /img/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n"
    "Content-Type: multipart/form-data; boundary=xyz\r\n\r\n"
)
PART = b'--xyz\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
END = b"\r\n--xyz--\r\n"


def wait_until_in_flight(service: Service, requests: int) -> None:
    # The request that asks is one, too.
    wait_for(lambda: one(figures(service), "requests_in_flight") == requests + 1)


def refused(service: Service, limit: str = "MAX_QUEUED") -> float:
    return one(figures(service), "requests_refused_total", limit=limit)


def connect(service: Service) -> socket.socket:
    address = urlsplit(service.url)
    connection = socket.create_connection((address.hostname, address.port), timeout=60)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def begin_sending(service: Service, photo: bytes, length: int) -> socket.socket:
    """A client that has sent this much of a photo, and of its request in `length` bytes."""
    connection = connect(service)
    connection.sendall(HEAD.format(length=length).encode() + PART + photo)
    return connection


def begin_sending_most(service: Service, size: int) -> socket.socket:
    """A client of whose photo of this size the service has nearly all."""
    before = held(service)
    connection = begin_sending(service, bytes(size - 4096), 2 * size)
    wait_for(lambda: held(service) > before + size - 2**17)
    return connection


def too_busy(answer: requests.Response) -> int:
    """The `Retry-After` of an answer that says so."""
    if answer.headers["Content-Type"].startswith("application/problem+json"):
        detail = problem(answer, 429, "overloaded")["detail"]
    else:
        assert answer.status_code == 429, answer.text
        body = answer.json()
        assert body["status"] is False
        detail = body["msg"]
    seconds = int(answer.headers["Retry-After"])
    assert f"try again in {seconds} s" in detail
    assert 1 <= seconds <= 30
    return seconds


@pytest.fixture(scope="module")
def one_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with a photo in it that lets no second request wait."""
    folder = tmp_path_factory.mktemp("narrow")
    service = start(folder, ("--max-queued", "1", *FETCHES_FROM_HERE), folder / "data")
    try:
        photo = {"image": ("a.jpg", PHOTO)}
        assert service.post("/img/upload", files=photo).status_code == 200
        yield service
    finally:
        service.stop()


@pytest.fixture
def narrow(one_place: Service) -> Iterator[Service]:
    """The same, of which a test leaves nothing taken."""
    yield one_place
    wait_for(lambda: taken(one_place) == held(one_place) == 0)
    assert one_place.search(PHOTO).status_code == 200
    assert "request.broke" not in one_place.log.read_text()


def test_what_is_beyond_the_places_is_refused_at_once_and_all_else_is_answered(
    narrow: Service,
) -> None:
    api = Api(narrow, ())
    photo = {"image": ("a.jpg", PHOTO)}
    known = api.call("POST", "/search", files=photo).json()["query"]["id"]
    before = refused(narrow)
    with busy(narrow) as begin:
        first = begin()
        for path in ("/search", "/search/batch", "/detect", "/images"):
            too_busy(api.call("POST", path, files=photo))
        too_busy(api.call("POST", "/detect", json={"url": "http://127.0.0.1:1/a.jpg"}))
        too_busy(api.call("GET", "/search", params={"query": known, "region": "1,1,60,60"}))
        too_busy(api.call("GET", "/search", params={"image_id": 1, "region": "1,1,60,60"}))
        too_busy(narrow.search(PHOTO))
        origin = {"Origin": "http://localhost:8001"}
        answer = narrow.post("/img/search", files={"image": PHOTO}, headers=origin)
        assert answer.status_code == 429
        assert answer.headers["Access-Control-Allow-Origin"] == origin["Origin"]
        too_busy(narrow.post("/img/upload", files=photo))
        too_busy(narrow.post("/img/upload", params={"url": "http://127.0.0.1:1/a.jpg"}))
        assert refused(narrow) == before + 11
        assert taken(narrow) == 1
        for path in ("/healthz", "/progress", "/api/v1/images", "/api/v1/images/1/thumbnail"):
            assert narrow.get(path).status_code == 200
        assert narrow.count() == 1
        assert not first.done()
    assert first.result().status_code == 200
    assert refused(narrow) == before + 11


def test_what_was_found_already_is_searched_for_with_all_places_taken(narrow: Service) -> None:
    api = Api(narrow, ())
    photo = {"image": ("a.jpg", PHOTO)}
    known = api.call("POST", "/search", files=photo).json()["query"]["id"]
    with busy(narrow) as begin:
        first = begin()
        with ThreadPoolExecutor() as threads:
            asked = [
                threads.submit(api.call, "GET", "/search", params=params)
                for params in ({"query": known}, {"image_id": 1}, {"object_id": 1})
            ]
            wait_until_in_flight(narrow, 4)
            narrow.milvus_lite.resume()
            assert [each.result().status_code for each in asked] == [200, 200, 200]
    assert first.result().status_code == 200


@pytest.mark.parametrize("megabytes", [3, 20])
def test_who_sends_much_is_refused_before_it_is_read_and_gets_to_see_why(
    narrow: Service, megabytes: int
) -> None:
    large = bytes(megabytes * 10**6)
    with busy(narrow) as begin:
        begin()
        too_busy(narrow.post("/img/search", files={"image": ("a.jpg", large)}))
        # Sent in chunks it has no length.
        too_busy(requests.post(f"{narrow.url}/img/upload", data=iter([large]), timeout=60))
        address = urlsplit(narrow.url)
        client = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
        client.request("POST", "/api/v1/images", body=large)
        response = client.getresponse()
        assert (response.status, response.getheader("Connection")) == (429, None)
        response.read()
        client.request("GET", "/healthz")  # on the same connection
        assert client.getresponse().status == 200
        client.close()
        assert held(narrow) == len(PHOTO)


def test_the_answer_comes_while_the_body_is_half_sent_and_the_connection_stays(
    narrow: Service,
) -> None:
    rest = bytes(4_000_000)
    with busy(narrow) as begin:
        begin()
        with begin_sending(narrow, b"", len(PART) + len(rest)) as client:
            answer = client.recv(65_536)
            assert answer.startswith(b"HTTP/1.1 429 ")
            assert b"\r\nRetry-After: " in answer
            client.sendall(rest + b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert client.recv(65_536).startswith(b"HTTP/1.1 200 ")


def test_clients_that_go_away_leave_nothing_behind(narrow: Service) -> None:
    client = begin_sending(narrow, bytes(300_000), 10**6)
    wait_for(lambda: held(narrow) > 100_000)
    client.close()
    wait_for(lambda: taken(narrow) == held(narrow) == 0)
    with busy(narrow):
        client = begin_sending(narrow, PHOTO + END, len(PART + PHOTO + END))
        wait_for(lambda: held(narrow) == len(PHOTO))
        assert taken(narrow) == 1
        client.close()
        wait_for(lambda: taken(narrow) == held(narrow) == 0)


def test_requests_that_fail_leave_nothing_behind(narrow: Service) -> None:
    api = Api(narrow, ())
    before = refused(narrow)
    for _ in range(3):
        assert narrow.search(b"no photo").status_code == 400
        assert narrow.post("/img/search").status_code == 400
        assert narrow.post("/img/upload", params={"url": "ftp://x"}).status_code == 400
        assert api.upload(b"no photo", collection="c").status_code == 400
        assert api.call("POST", "/detect", json={"url": "ftp://x"}).status_code == 400
        assert api.call("POST", "/search", data=b"x").status_code == 415
        problem(api.call("GET", "/search", params={"query": "0" * 64}), 404, "not_found")
    assert taken(narrow) == held(narrow) == 0
    assert refused(narrow) == before


def test_many_photos_of_one_request_take_turns(narrow: Service) -> None:
    api = Api(narrow, ())
    before = refused(narrow)
    photos = [encode(draw_photo(seed, width=160, height=120)) for seed in range(6)]
    done = api.upload(*photos, b"no photo", collection="c")
    assert [each["status"] for each in done.json()["results"]] == [201] * 6 + [400]
    files = [("image", (f"{number}.jpg", photo)) for number, photo in enumerate(photos)]
    batch = api.call("POST", "/search/batch", files=files, params={"collection": "c"})
    for result in batch.json()["results"]:
        assert result["answer"]["hits"][0]["distance"] < 1e-3
    assert refused(narrow) == before


def test_a_crowd_of_slow_clients_keeps_nobody_out_and_no_memory(
    start_service: Callable[..., Service],
) -> None:
    size = 10**6
    flags = ("--max-queued", "20", "--max-uploads-in-memory", "4", "--max-upload-bytes", str(size))
    service = start_service(*flags)
    with ExitStack() as stack:
        slow: list[socket.socket] = []
        while len(slow) < 40:
            slow += [stack.enter_context(begin_sending(service, b"\xff", size)) for _ in range(20)]
            wait_until_in_flight(service, len(slow))
            wait_for(lambda: taken(service) == 0)  # without an answer: they are read still
        for _ in range(4):
            for client in slow:
                client.sendall(b"\xd8")
            assert service.search(PHOTO).status_code == 200
        # Those that have sent much, and do not end, are no more than there may be.
        for _ in range(4):
            stack.enter_context(begin_sending_most(service, size))
        too_busy(service.search(PHOTO + bytes(size - len(PHOTO))))
        assert refused(service, "MAX_UPLOADS_IN_MEMORY") == 1
        assert refused(service) == 0
        assert held(service) <= 4 * size
    wait_for(lambda: held(service) == taken(service) == 0)
    assert service.search(PHOTO).status_code == 200


def test_a_photo_that_does_not_come_in_is_given_up(start_service: Callable[..., Service]) -> None:
    service = start_service("--upload-timeout", "1")
    with begin_sending(service, PHOTO[:500], 10_000) as client:
        answer = client.recv(65_536)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"UPLOAD_TIMEOUT" in answer
        assert held(service) == taken(service) == 0
    assert service.search(PHOTO).status_code == 200


def test_refusals_are_documented_with_their_header(empty_service: Service) -> None:
    document = empty_service.get("/openapi.json").json()
    responses = {
        (method, path): described["responses"]
        for path, methods in document["paths"].items()
        for method, described in methods.items()
    }
    # All may be asked too often (RATE_LIMIT_ADDRESS), and what makes the networks work too much.
    for described in responses.values():
        assert described["429"]["headers"]["Retry-After"]["schema"]["type"] == "integer"
    working = {
        ("post", "/img/search"),
        ("post", "/img/upload"),
        ("post", "/api/v1/search"),
        ("get", "/api/v1/search"),
        ("post", "/api/v1/search/batch"),
        ("post", "/api/v1/detect"),
        ("post", "/api/v1/images"),
    }
    for each in working:
        described = responses[each]["503"]
        assert described["headers"]["Retry-After"]["schema"]["type"] == "integer"
