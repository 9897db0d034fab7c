"""GET /metrics of a running service, read as Prometheus reads it."""

import socket
import time
from collections.abc import Callable
from pathlib import Path

import requests
from prometheus_client.parser import text_string_to_metric_families

from tests.photos import draw_photo, encode, write_photos
from tests.service import Service, launch

Figures = dict[tuple[str, frozenset[tuple[str, str]]], float]
PREFIX = "image_search_"
ANALYSIS = ("decode", "detect", "cut", "embed")
STAGES = (*ANALYSIS, "search", "lookup", "write")


def figures(service: Service) -> Figures:
    """Every sample by its name and its labels."""
    answer = service.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def one(read: Figures, name: str, **labels: str) -> float:
    """A sample; 0 where it does not exist yet, as its counter would be."""
    return read.get((PREFIX + name, frozenset(labels.items())), 0.0)


def stages(read: Figures) -> dict[str, float]:
    """How often each stage was timed."""
    return {stage: one(read, "stage_duration_seconds_count", stage=stage) for stage in STAGES}


def wait_for_loads(service: Service, *, waiting: int) -> Figures:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        read = figures(service)
        if one(read, "loads_waiting") == waiting:
            return read
        time.sleep(0.1)
    raise AssertionError(f"after 30 s there are not {waiting} loads that wait")


def test_requests_are_counted_by_method_route_and_status(service: Service) -> None:
    service.get("/data", params={"image_path": "/nothing.jpg"})
    service.get("/data", params={"image_path": "/other.jpg"})
    service.get("/data")
    service.count()
    read = figures(service)
    assert one(read, "requests_total", method="GET", route="/data", status="404") == 2
    assert one(read, "requests_total", method="GET", route="/data", status="400") == 1
    assert one(read, "requests_total", method="POST", route="/img/count", status="200") == 1
    assert one(read, "request_duration_seconds_count", route="/data") == 3
    assert one(read, "requests_in_flight") == 1  # this one
    assert one(figures(service), "requests_total", method="GET", route="/metrics", status="200")


def test_what_clients_invent_shares_one_label(service: Service) -> None:
    for number in range(20):
        assert service.get(f"/no/such/page/{number}").status_code == 404
    odd = requests.request("PROPFIND", f"{service.url}/img/count", timeout=30)
    assert odd.status_code == 405
    service.get("/")
    read = figures(service)
    assert one(read, "requests_total", method="GET", route="other", status="404") == 20
    assert one(read, "requests_total", method="other", route="other", status="405") == 1
    assert one(read, "requests_total", method="GET", route="/", status="200") == 1
    routes = {dict(labels)["route"] for name, labels in read if name == PREFIX + "requests_total"}
    assert routes <= {"other", "/"}


def test_a_load_an_upload_and_a_search_are_timed_by_stage(service: Service, tmp_path: Path) -> None:
    assert set(stages(figures(service)).values()) == {0}
    write_photos(tmp_path / "photos", 5)
    (tmp_path / "photos" / "damaged.jpg").write_bytes(b"no photo")
    assert service.load(tmp_path / "photos").status_code == 200
    loaded = figures(service)
    times = stages(loaded)
    assert times["decode"] == 6
    assert all(times[stage] == 5 for stage in ("detect", "cut", "embed"))
    assert times["search"] == times["lookup"] == 0
    assert times["write"] >= 1
    assert one(loaded, "photos_indexed_total") == 5
    assert one(loaded, "objects_indexed_total") >= 5
    found, processed, failed = (
        one(loaded, f"load_photos_{what}") for what in ("found", "processed", "failed")
    )
    assert (found, processed, failed) == (6, 6, 1)
    assert one(loaded, "loads_running") == one(loaded, "loads_waiting") == 0
    assert one(loaded, "photos_waiting") == one(loaded, "photos_analyzing") == 0

    photo = encode(draw_photo(77))
    assert service.post("/img/upload", files={"image": ("a.jpg", photo)}).status_code == 200
    assert service.search(photo).status_code == 200
    times = stages(figures(service))
    assert times["decode"] == 8
    assert all(times[stage] == 7 for stage in ("detect", "cut", "embed"))
    assert times["search"] >= 1
    assert times["lookup"] >= 2  # of the collection, and of the hits
    assert one(figures(service), "photos_indexed_total") == 6
    # The same bytes again are the same photo.
    assert service.post("/img/upload", files={"image": ("a.jpg", photo)}).status_code == 200
    assert one(figures(service), "photos_indexed_total") == 6


def test_an_engine_that_fails_is_counted_and_a_load_that_waits_is_shown(
    start_service: Callable[..., Service], tmp_path: Path
) -> None:
    service = start_service("--request-timeout", "1", "--engine-timeout", "1")
    write_photos(tmp_path / "photos", 3)
    assert service.load(tmp_path / "photos").status_code == 200
    read = figures(service)
    for engine in ("ONNX Runtime", "Milvus Lite", "SQLite"):
        assert read[PREFIX + "engine_errors_total", frozenset({("engine", engine)})] == 0
    milvus_lite = service.milvus_lite
    milvus_lite.suspend()
    try:
        assert service.search(encode(draw_photo(1))).status_code == 503
        read = figures(service)
        assert one(read, "engine_errors_total", engine="Milvus Lite") == 1
        # Its failure reaches the request and begins an outage, and is one failure.
        photo = encode(draw_photo(78))
        assert service.post("/img/upload", files={"image": ("a.jpg", photo)}).status_code == 503
        read = figures(service)
        assert one(read, "engine_errors_total", engine="Milvus Lite") == 2
        assert one(read, "engine_errors_total", engine="SQLite") == 0
        write_photos(tmp_path / "more", 2, start=50)
        assert service.load(tmp_path / "more", params={"wait": "false"}).status_code == 200
        read = wait_for_loads(service, waiting=1)
        assert (one(read, "loads_running"), one(read, "load_photos_processed")) == (1, 0)
    finally:
        milvus_lite.resume()
    wait_for_loads(service, waiting=0)


def test_it_answers_while_the_service_waits_for_its_engines(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        service = launch(tmp_path, ["--triton-url", address], tmp_path / "data")
        try:
            service.wait_until_listening(60)
            read = figures(service)
            assert service.get("/progress").status_code == 503
        finally:
            service.stop()
    assert one(read, "loads_running") == 0
    assert set(stages(read).values()) == {0}


def test_it_is_documented_as_text(empty_service: Service) -> None:
    document = empty_service.get("/openapi.json").json()
    described = document["paths"]["/metrics"]["get"]
    assert set(described["responses"]["200"]["content"]) == {"text/plain"}
