"""Loading and searching with a Triton, a Milvus and a MariaDB on the same machine."""

from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any, Final

import psutil
import pytest
from pymilvus import MilvusClient

from benchmarks.speed import bare
from benchmarks.speed.bench import Bench
from benchmarks.speed.loading import Photos, share_of_bare, share_row
from benchmarks.speed.processors import processor_seconds, service_seconds
from benchmarks.speed.rounds import in_words
from benchmarks.speed.searching import search
from tests.engines.mariadb import MariaDBProcess
from tests.engines.milvus import MilvusProcess
from tests.engines.production import Engines, running_engines
from tests.engines.triton import TritonProcess

__all__ = ["measure", "rows"]

_MILVUS_SESSION_SECONDS: Final = 60
"""It gives itself up after that long without its own clock: nothing here freezes it."""
_OBJECTS: Final = 10_000
_ROUNDS: Final = 3


def measure(bench: Bench) -> dict[str, Any]:
    """Photos a second of `POST /img/load`, and searches, beside the networks alone, in turns.

    The networks alone run as the embedded default does: each photo by itself, on a thread a core.

    Raises:
        SystemExit: one of the servers is not installed.
    """
    photos = Photos.of(bench, "production", "photos")
    loop = bare.embedded_loop()
    try:
        with running_engines(
            bench.scratch / "engines", milvus_session_seconds=_MILVUS_SESSION_SECONDS
        ) as engines:
            servers, versions = partial(_server_seconds, engines), _versions(engines)
            with bench.service("production", engines.settings()) as service:
                processors = _all(psutil.Process(service.process.pid), servers)
                report = share_of_bare(bench, service, photos, loop, processors)
            searched = search(
                bench,
                "production-search",
                objects=_OBJECTS,
                rounds=_ROUNDS,
                settings=engines.settings(),
                servers=servers,
            )
    except pytest.skip.Exception as missing:
        raise SystemExit(str(missing)) from None
    return {"servers": versions, **report, "search": searched}


def rows(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What was measured, the figure, and what it is to be."""
    searched = report["search"]
    one = searched["latency"]["1"]
    return [
        share_row("load with Triton, Milvus and MariaDB: share of bare", report, 0.85),
        (
            "CPU ms a photo",
            f"{report['cpu_ms']:.2f} ({in_words(report['cpu_ms_by'])}); the networks alone"
            f" {report['bare_cpu_ms']:.2f}",
            "",
        ),
        (
            f"search with them among {searched['objects']:,} objects",
            f"p50 {one['p50_ms']:.1f} ms, {searched['overhead_ms_p50']:.1f} above bare; 32 clients:"
            f" {searched['share_of_bare_32']:.3f} of bare, p99 over p50"
            f" {searched['p99_over_p50_32']:.2f}, {searched['errors']} failed",
            "",
        ),
    ]


def _versions(engines: Engines) -> dict[str, str]:
    """Of the servers, as each tells its own."""
    triton, milvus, mysql = (engines.processes[name] for name in ("triton", "milvus", "mysql"))
    assert isinstance(triton, TritonProcess)
    assert isinstance(milvus, MilvusProcess)
    assert isinstance(mysql, MariaDBProcess)
    with closing(MilvusClient(f"http://{milvus.host}:{milvus.port}")) as client:
        found = {"milvus": client.get_server_version()}
    [[version]] = mysql.execute("SELECT VERSION()")
    return {"triton": triton.version(), **found, "mysql": version}


def _all(
    service: psutil.Process, servers: Callable[[], dict[str, float]]
) -> Callable[[], dict[str, float]]:
    return lambda: {**service_seconds(service), **servers()}


def _server_seconds(engines: Engines) -> dict[str, float]:
    """The processors' time so far of each server, by its name."""
    return {
        name: processor_seconds([psutil.Process(engine.process.pid)])
        for name, engine in engines.processes.items()
        if engine.process is not None
    }
