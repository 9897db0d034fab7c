"""Loading with a Triton, a Milvus and a MariaDB on the same machine, as a share of bare."""

from typing import Any, Final

import pytest

from benchmarks.speed import bare
from benchmarks.speed.bench import Bench
from benchmarks.speed.loading import Photos, share_of_bare
from tests.engines.production import running_engines

__all__ = ["measure", "rows"]

_MILVUS_SESSION_SECONDS: Final = 60
"""It gives itself up after that long without its own clock: nothing here freezes it."""


def measure(bench: Bench) -> dict[str, Any]:
    """Photos a second of `POST /img/load` and of the networks alone, in turns.

    The networks alone run as the embedded default does: each photo by itself, on a thread a core.

    Raises:
        SystemExit: one of the servers is not installed.
    """
    photos = Photos.of(bench, "production", "photos")
    loop = bare.embedded_loop()
    try:
        with (
            running_engines(
                bench.scratch / "engines", milvus_session_seconds=_MILVUS_SESSION_SECONDS
            ) as engines,
            bench.service("production", engines.settings()) as service,
        ):
            return share_of_bare(bench, service, photos, loop)
    except pytest.skip.Exception as missing:
        raise SystemExit(str(missing)) from None


def rows(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What was measured, the figure, and what it is to be."""
    least, most = report["spread"]["share_of_bare"]
    return [
        (
            "load with Triton, Milvus and MariaDB: share of bare",
            f"{report['share_of_bare']:.3f} ({least:.3f} to {most:.3f}):"
            f" {report['photos_per_second']:.1f} of {report['bare_photos_per_second']:.1f}/s",
            ">= 0.85",
        )
    ]
