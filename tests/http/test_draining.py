"""SIGTERM with DRAIN_SECONDS: clients are sent elsewhere, and nothing that they ask for fails."""

import http.client
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from tests.api import Api
from tests.photos import draw_photo, encode
from tests.service import Service

_STOP_SECONDS = 10


def _drain(service: Service) -> None:
    service.process.send_signal(signal.SIGTERM)
    end = time.monotonic() + 10
    while "event=server.draining" not in service.log.read_text():
        assert time.monotonic() < end
        time.sleep(0.01)


def _long_load(service: Service, folder: Path) -> int:
    """Starts a load that goes on for longer than the test; returns its id."""
    folder.mkdir()
    photo = encode(draw_photo(1))
    for number in range(1500):
        (folder / f"{number}.jpg").write_bytes(photo)
    answer = service.post("/api/v1/loads", json={"folder": str(folder)})
    assert answer.status_code == 202, answer.text
    return int(answer.json()["id"])


def test_clients_are_sent_elsewhere_and_everything_is_answered(
    start_service: Callable[..., Service], tmp_path: Path
) -> None:
    service = start_service("--drain-seconds", "600", "--load-concurrency", "1")
    load_id = _long_load(service, tmp_path / "photos")
    events: list[tuple[str, object]] = []
    api = Api(service, [])
    following = threading.Thread(target=lambda: events.extend(api.events(load_id)))
    following.start()
    parts = urlsplit(service.url)
    kept_open = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    kept_open.request("GET", "/progress")
    assert kept_open.getresponse().read()
    assert kept_open.sock is not None

    _drain(service)
    kept_open.request("GET", "/progress")
    answer = kept_open.getresponse()
    assert (answer.status, answer.headers["Connection"]) == (200, "close")
    kept_open.close()
    readiness = service.get("/readyz")
    assert readiness.status_code == 503
    assert int(readiness.headers["Retry-After"]) > 0
    assert readiness.json() == {"status": "stopping", "engines": [], "waiting_loads": []}
    files = {"image": ("a.jpg", encode(draw_photo(2)))}
    answers = {
        service.get("/healthz"): 200,
        service.get("/docs"): 200,
        service.get("/nowhere"): 404,
        service.post("/img/upload", files=files): 200,
        service.post("/img/search", files=files): 200,
        service.get(f"/api/v1/loads/{load_id}"): 200,
    }
    for answered, status in answers.items():
        assert (answered.status_code, answered.headers["Connection"]) == (status, "close")
    assert answered.json()["state"] == "running"
    service.process.send_signal(signal.SIGTERM)  # as supervisors repeat it
    assert service.get("/healthz").status_code == 200
    assert following.is_alive()

    service.process.send_signal(signal.SIGINT)
    assert service.process.wait(_STOP_SECONDS) == 0
    following.join(10)
    assert {name for name, _ in events} == {"progress"}, "the stream ends, and no load has"
    log = service.log.read_text()
    assert "event=load.interrupted" in log
    assert log.splitlines()[-1].endswith("event=server.stopped")
    assert "Traceback" not in log


def test_it_stops_when_the_time_is_up(start_service: Callable[..., Service]) -> None:
    service = start_service("--drain-seconds", "0.5")
    begin = time.monotonic()
    _drain(service)
    assert service.process.wait(_STOP_SECONDS) == 0
    assert time.monotonic() - begin >= 0.5
    assert service.log.read_text().splitlines()[-1].endswith("event=server.stopped")
    with pytest.raises(requests.ConnectionError):
        service.get("/healthz")
