"""Traces, as an OTLP collector gets them from the real service."""

import gzip
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from backend.errors import ConfigurationError
from backend.metrics import Metrics
from backend.tracing import Traces
from tests.engines.process import free_port
from tests.photos import draw_photo, encode, write_photos
from tests.service import REPOSITORY, Service

CLIENT = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
PHOTO_STAGES = ["decode", "detect", "cut", "embed"]
WAIT_SECONDS = 20


class Collector:
    """A collector on loopback that keeps what it gets."""

    def __init__(self, port: int = 0) -> None:
        self.spans: list[Span] = []
        self.services: set[str] = set()
        self.requests = 0
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                assert self.headers["Content-Type"] == "application/x-protobuf"
                collector.take(self.path, ExportTraceServiceRequest.FromString(body))
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                """Nothing: it would be one line a request."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.02])
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def take(self, path: str, request: ExportTraceServiceRequest) -> None:
        assert path == "/v1/traces"
        self.requests += 1
        for resource in request.resource_spans:
            self.services.add(attributes(resource.resource)["service.name"])
            for scope in resource.scope_spans:
                self.spans += scope.spans

    def wait_for(self, name: str, count: int = 1) -> list[Span]:
        """The spans of that name, once there are so many."""
        end = time.monotonic() + WAIT_SECONDS
        while len(found := [span for span in self.spans if span.name == name]) < count:
            names = [span.name for span in self.spans]
            assert time.monotonic() < end, f"{len(found)} of {count} {name!r} in {names}"
            time.sleep(0.02)
        return found

    def trace(self, trace_id: bytes) -> list[Span]:
        """Its spans, in the order in which they began."""
        spans = [span for span in self.spans if span.trace_id == trace_id]
        return sorted(spans, key=lambda span: span.start_time_unix_nano)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def attributes(of: Any) -> dict[str, Any]:
    """Those of a span or a resource."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in of.attributes}


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector that is there."""
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture
def start_traced(
    start_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Service]:
    """Starts the service so that it sends its traces to a URL, ten times a second."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    return lambda url: start_service("--otel-exporter-otlp-endpoint", url)


def test_what_a_search_and_a_load_do_are_traces(
    collector: Collector, start_traced: Callable[[str], Service], tmp_path: Path
) -> None:
    service = start_traced(collector.url)
    write_photos(tmp_path / "photos", 3)
    (tmp_path / "photos" / "damaged.jpg").write_bytes(b"\xff\xd8 no photo")
    assert service.load(tmp_path / "photos").status_code == 200
    form = {"image": ("query.jpg", encode(draw_photo(1)))}
    answer = service.post(
        "/img/search",
        files=form,
        headers={"X-Request-ID": "mine", "traceparent": f"00-{CLIENT}-{PARENT}-01"},
    )
    assert answer.status_code == 200
    assert service.get("/nowhere/at/all").status_code == 404
    assert service.post("/img/search", files={"image": ("x.jpg", b"none")}).status_code == 400

    mine, refused = collector.wait_for("POST /img/search", 2)
    assert collector.services == {"image-similarity-search"}
    # The client's trace goes on with the request, and the request's stages are within it.
    assert (mine.trace_id.hex(), mine.parent_span_id.hex()) == (CLIENT, PARENT)
    assert mine.kind == Span.SPAN_KIND_SERVER
    assert attributes(mine) == {
        "http.request.method": "POST",
        "http.route": "/img/search",
        "http.response.status_code": 200,
        "url.path": "/img/search",
        "request.id": "mine",
    }
    first, *stages = collector.trace(mine.trace_id)
    assert first == mine
    names = [span.name for span in stages]
    names.remove("lookup")  # of the collection: it begins beside the analysis
    assert names == [*PHOTO_STAGES, "search", "lookup"]
    for span in stages:
        assert span.parent_span_id == mine.span_id
        assert mine.start_time_unix_nano <= span.start_time_unix_nano
        assert span.end_time_unix_nano <= mine.end_time_unix_nano
    # The log's line about it leads to it.
    line = next(line for line in service.log.read_text().splitlines() if "request=mine" in line)
    assert f"trace={CLIENT}" in line

    # One that is refused says where it ended.
    assert attributes(refused)["http.response.status_code"] == 400
    assert refused.trace_id != mine.trace_id
    assert refused.parent_span_id == b""
    [failed] = [span for span in collector.trace(refused.trace_id) if span.name == "decode"]
    assert failed.status.code == Status.STATUS_CODE_ERROR
    [nowhere] = collector.wait_for("GET")
    assert "http.route" not in attributes(nowhere)
    assert attributes(nowhere)["url.path"] == "/nowhere/at/all"

    # A load outlives its request: a trace of its own, to which its photos' are linked.
    [load] = collector.wait_for("load")
    assert load.parent_span_id == b""
    root = str(tmp_path / "photos")
    assert attributes(load) == {
        "load.id": 1,
        "load.collection": "milvus_obj_det",
        "load.root": root,
    }
    stages = collector.trace(load.trace_id)[1:]
    writes = [span for span in stages if span.name == "write"]
    turns = [span for span in stages if span.name == "turn"]
    assert len(writes) + len(turns) == len(stages)
    assert {span.parent_span_id for span in writes} == {load.span_id}
    assert {span.parent_span_id for span in turns} == {span.span_id for span in writes}
    photos = collector.wait_for("photo", 4)
    assert {Path(attributes(photo)["photo.path"]).name for photo in photos} >= {"damaged.jpg"}
    for photo in photos:
        [link] = photo.links
        assert (link.trace_id, link.span_id) == (load.trace_id, load.span_id)
        names = [span.name for span in collector.trace(photo.trace_id)]
        damaged = attributes(photo)["photo.path"].endswith("damaged.jpg")
        assert names == ["photo", *(PHOTO_STAGES[:1] if damaged else PHOTO_STAGES)]
    assert f"trace={load.trace_id.hex()}" in service.log.read_text()

    # What it has not sent yet goes out when it stops.
    assert service.get("/progress").status_code == 200
    service.stop()
    assert collector.wait_for("GET /progress")


def said_of_traces(service: Service) -> list[str]:
    return [line for line in service.log.read_text().splitlines() if "event=traces." in line]


def test_a_collector_that_is_away_costs_no_request_and_one_line_until_it_is_back(
    start_traced: Callable[[str], Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1.3")  # for a batch and one retry
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    port = free_port()
    service = start_traced(f"http://service:hunter2@127.0.0.1:{port}/")
    seconds = []
    for _ in range(50):  # several batches, and more than the queue holds
        start = time.monotonic()
        assert service.get("/healthz").status_code == 200
        seconds.append(time.monotonic() - start)
        time.sleep(0.01)
    assert statistics.median(seconds) < 0.5  # a batch takes more than a second to fail
    end = time.monotonic() + WAIT_SECONDS
    while not said_of_traces(service):
        assert time.monotonic() < end
        time.sleep(0.05)
    more = time.monotonic() + 3  # for two further batches to fail
    while time.monotonic() < more:
        assert service.get("/healthz").status_code == 200
        time.sleep(0.05)
    collector = Collector(port)
    try:
        while len(said_of_traces(service)) < 2:
            assert time.monotonic() < end, said_of_traces(service)
            assert service.get("/healthz").status_code == 200
            time.sleep(0.05)
        failure, mended = said_of_traces(service)
        assert "level=warning event=traces.not_sent" in failure
        assert f"http://***@127.0.0.1:{port}/v1/traces" in failure
        assert "hunter2" not in service.log.read_text()
        assert "refused" in failure
        assert int(re.findall(r"event=traces\.sent_again .*lost_spans=(\d+)", mended)[0]) > 1
    finally:
        collector.close()
    lines = service.log.read_text().splitlines()
    ours = ("event=access.", "event=request", "event=server.", "event=traces.")
    assert [line for line in lines if not any(event in line for event in ours)] == []


def test_a_stop_does_not_wait_for_a_collector_that_hangs(
    start_traced: Callable[[str], Service],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        service = start_traced(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert service.get("/healthz").status_code == 200
        time.sleep(0.3)  # the span is on its way
        start = time.monotonic()
        service.stop()
        assert time.monotonic() - start < 4
        assert service.process.returncode == 0
        assert "stop.forced" not in service.log.read_text()


def test_without_a_collector_nothing_of_it_is_imported_and_nothing_traced(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys\n"
        "from backend.app import create_app\n"
        "from backend.settings import Settings\n"
        "async def main():\n"
        "    app = create_app(Settings.load(data_dir=sys.argv[1]))\n"
        "    from backend.http.services import METRICS\n"
        "    traces = app[METRICS].traces\n"
        "    async with traces.sending():\n"
        "        with traces.work('load'), app[METRICS].stage('decode'):\n"
        "            pass\n"
        "asyncio.run(main())\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"


def test_without_the_extra_an_endpoint_is_refused_with_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in sys.modules if name.startswith("opentelemetry.sdk")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)  # as if there were none
    with pytest.raises(
        ConfigurationError, match=r"OTEL_EXPORTER_OTLP_ENDPOINT=.*pip install .*\[tracing\]"
    ):
        Traces("http://127.0.0.1:4318", "service")


async def test_what_is_done_for_nobody_has_no_span(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = Metrics(Traces(collector.url, "mine"))
    async with figures.traces.sending():
        with figures.stage("decode"):  # of the readiness' own inference, say
            pass
        with figures.traces.work("load", path="/photos/\udce9.jpg"), figures.stage("write"):
            pass
    names = defaultdict(list)
    for span in collector.spans:
        names[span.name].append(span)
    assert set(names) == {"load", "write"}
    assert attributes(names["load"][0]) == {"path": "/photos/\\udce9.jpg"}
    assert collector.services == {"mine"}
