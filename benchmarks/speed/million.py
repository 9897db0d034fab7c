"""What loading a photo and searching cost at 100,000 and 1,000,000 objects on a Milvus server."""

import time
from contextlib import closing
from typing import Any, Final

import pytest
from pymilvus import MilvusClient

from benchmarks.speed.bench import Bench
from benchmarks.speed.growth import Ratios, grow, size_rows
from tests.engines.milvus import MilvusProcess

__all__ = ["measure", "rows"]

_SIZES: Final = {"100k": 100_000, "1m": 1_000_000}
_RATIOS: Final[Ratios] = {
    "load_1m_over_100k": ("load_ms", "1m", "100k"),
    "search_1m_over_100k": ("p50_ms", "1m", "100k"),
    "vectors_1m_over_100k": ("vectors_ms", "1m", "100k"),
}
_SESSION_SECONDS: Final = 60
"""It gives itself up after that long without its own clock, as on a machine that is very busy."""
_INDEX_SECONDS: Final = 3600
_POLL_SECONDS: Final = 2.0


def measure(bench: Bench) -> dict[str, Any]:
    """As `growth`, with the vectors in a Milvus server of the benchmark's own, index and all.

    Raises:
        SystemExit: there is no Milvus here, or it has not built its index within an hour.
    """
    options = {"common.session.ttl": str(_SESSION_SECONDS)}
    milvus = MilvusProcess(bench.scratch / "milvus", options=options)
    try:
        milvus.start(wait_seconds=120)
        settings = {"milvus_host": milvus.host, "milvus_port": str(milvus.port)}
        seconds = 0.0

        def filled() -> None:
            nonlocal seconds
            bench.log("million: waiting for the index")
            seconds = _wait_for_index(f"http://{milvus.host}:{milvus.port}")

        report = grow(bench, "million", _SIZES, _RATIOS, settings, filled)
    except pytest.skip.Exception as missing:
        raise SystemExit(str(missing)) from None
    finally:
        milvus.remove()
    return {"index_seconds": seconds, **report}


def rows(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What was measured, the figure, and what it is to be."""
    return [
        *((f"Milvus server, {what}", figure, "") for what, figure, _ in size_rows(report)),
        ("load at 1,000,000 over 100,000", f"{report['load_1m_over_100k']:.3f}", ""),
        ("search at 1,000,000 over 100,000", f"{report['search_1m_over_100k']:.2f}", ""),
        ("vectors at 1,000,000 over 100,000", f"{report['vectors_1m_over_100k']:.2f}", ""),
        ("until the index was built", f"{report['index_seconds']:.0f} s", ""),
    ]


def _wait_for_index(url: str) -> float:
    """Seconds until every row that has been written is in the index."""
    start = time.monotonic()
    with closing(MilvusClient(url)) as client:
        for name in client.list_collections():
            client.flush(name, timeout=_INDEX_SECONDS)
            [index] = client.list_indexes(name)
            while int(client.describe_index(name, index)["pending_index_rows"]):
                if time.monotonic() - start > _INDEX_SECONDS:
                    raise SystemExit(f"Milvus has built no index in {_INDEX_SECONDS} s")
                time.sleep(_POLL_SECONDS)
    return time.monotonic() - start
