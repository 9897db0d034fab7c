"""What the command of a bulk load takes itself, whatever the networks take.

It spreads photos over an actor that answers at once, and writes files for Milvus. Part of
`python -m benchmarks.bulk_load`.
"""

import asyncio
import math
import os
import resource
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
from numpy.typing import NDArray
from rich.table import Table

from backend.scanning import FoundPhoto
from backend.storage.catalog import TouchedImage
from backend.storage.vectors import ObjectVector, collection_schema
from scripts.bulk_load.preparer import Column, Task, pack, unpack

__all__ = ["measure_limits", "render_limits"]

_TIMEOUT: Final = 600.0
_DIMENSION: Final = 2048
"""Of the full pair's embeddings."""


class EchoActor:
    """Takes blocks of photos as `Preparer` does, and knows them all."""

    def __call__(self, block: Column) -> dict[str, NDArray[np.object_]]:
        """Photos that are unchanged."""
        return pack([TouchedImage(1, photo.size, photo.mtime_ns) for photo, _ in unpack(block)])


def measure_limits(photos: int, vectors: int, scratch: Path) -> dict[str, Any]:
    """What the command itself takes, in a process of its own.

    Args:
        photos: that are spread over an actor which answers at once.
        vectors: of 2,048 dimensions, that are written as files.
        scratch: a folder.
    """
    # Ray reads it when it is imported, and listens on loopback alone then.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as fresh:
        return {
            "spread": fresh.submit(_spread, photos).result(_TIMEOUT),
            "files": fresh.submit(_write_files, vectors, scratch).result(_TIMEOUT),
        }


def _spread(count: int) -> dict[str, float]:
    from scripts.bulk_load.cluster import connected, ray
    from scripts.bulk_load.loading import BLOCKS_AT_ONCE, spread

    before = _resident()
    tasks: list[Task] = [
        (
            FoundPhoto(f"s3://bucket/photos/{i // 1000:06d}/the name of one {i:08d}.jpg", i, i),
            None,
        )
        for i in range(count)
    ]
    pool = ray.data.ActorPoolStrategy(
        size=1, max_concurrent_calls_per_actor=BLOCKS_AT_ONCE, enable_true_multi_threading=True
    )

    async def run() -> tuple[float, float, int]:
        async with connected(None):
            return await spread_all()

    async def spread_all() -> tuple[float, float, int]:
        start = time.perf_counter()
        first = math.inf
        done = 0
        async for outcomes in spread(tasks, EchoActor, {"compute": pool, "num_cpus": 1}):
            first = min(first, time.perf_counter() - start)
            done += len(outcomes)
        assert done == count
        return first, time.perf_counter() - start, _resident()

    first, seconds, after = asyncio.run(run())
    return {
        "photos": count,
        "seconds_until_the_first": first,
        "photos_per_s": count / (seconds - first),
        "bytes_per_photo": (after - before) / count,
    }


def _write_files(count: int, scratch: Path) -> dict[str, float]:
    from scripts.bulk_load.staging import Staging

    rng = np.random.default_rng(0)
    rows = [
        ObjectVector(i, i // 7, "a label", 0.5, rng.random(_DIMENSION, np.float32))
        for i in range(count)
    ]
    schema = collection_schema(_DIMENSION)
    before = _resident()
    start = time.perf_counter()

    async def write() -> int:
        async with Staging(str(scratch / "files"))(schema, rows) as files:
            return len(files)

    files = asyncio.run(write())
    seconds = time.perf_counter() - start
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "vectors": count,
        "dimension": _DIMENSION,
        "files": files,
        "vectors_per_s": count / seconds,
        "mib_beside_the_vectors": (peak - before) / 2**20,
    }


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)


def render_limits(report: Mapping[str, Any]) -> Table:
    """What bounds it, as a table."""
    table = Table("part", "figure")
    table.add_column("value", justify="right")
    for part, found in report["limits"].items():
        for name, value in found.items():
            table.add_row(part, name.replace("_", " "), f"{value:,.0f}")
    return table
