"""The embedded default at size: fill, reopen, search and weigh what the service itself runs.

Each step is a fresh process (`service_worker.py`), and before each the database files are taken
out of the page cache: a start finds the disk as it is after a reboot.
"""

import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.vector_stores.processes import run_worker
from benchmarks.vector_stores.vectors import Queries
from benchmarks.voc import DescribedObjects

__all__ = ["TARGETS", "measure_embedded"]

TARGETS: Final = {"search_p50_ms": 50.0, "reopen_s": 5.0, "peak_rss_gb": 2.0}
"""What 40,000 objects must not exceed."""

_REPOSITORY: Final = Path(__file__).resolve().parents[2]
_COMMAND: Final = (sys.executable, "-W", "ignore", "-m", "benchmarks.vector_stores.service_worker")
_TIMEOUT_SECONDS: Final = 600.0


def measure_embedded(
    objects: DescribedObjects,
    queries: Queries,
    *,
    embedder: tuple[str, str],
    folder: Path,
    repeat: int,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Write speed, time to reopen, time of a search and memory, of one collection.

    Args:
        objects: the collection's.
        queries: what is searched for, one after the other.
        embedder: name and SHA-256 that the collection is marked with.
        folder: empty; the data is kept there.
        repeat: how often to reopen and to serve; times are medians, memory is the largest.
        log: is told what begins.
    """
    data_dir = folder / "data"
    data_dir.mkdir()
    np.save(folder / "vectors.npy", objects.vectors)
    np.save(folder / "photos.npy", objects.photos)
    np.save(folder / "labels.npy", np.array(objects.labels))
    np.save(folder / "queries.npy", queries.vectors)
    shared = {"data_dir": str(data_dir), "queries": str(folder / "queries.npy")}

    def run(action: str, **arguments: Any) -> tuple[dict[str, Any], dict[str, float]]:
        log(f"{action}: {len(objects):,} x {objects.vectors.shape[1]}")
        _leave_page_cache(data_dir)
        answer, memory = run_worker(
            _COMMAND,
            {"action": action, **shared, **arguments},
            cwd=_REPOSITORY,
            timeout=_TIMEOUT_SECONDS,
        )
        return answer, memory.as_gb()

    filled, memory_filled = run(
        "fill",
        vectors=str(folder / "vectors.npy"),
        photos=str(folder / "photos.npy"),
        labels=str(folder / "labels.npy"),
        embedder=embedder[0],
        embedder_sha256=embedder[1],
    )
    reopened = [run("reopen")[0] for _ in range(repeat)]
    served = [run("serve") for _ in range(repeat)]
    return {
        "objects": len(objects),
        "dimension": objects.vectors.shape[1],
        "photos": filled["photos"],
        "disk_gb": round(_size(data_dir) / 1e9, 3),
        "upsert_rows_per_s": filled["upsert_rows_per_s"],
        "catalog_rows_per_s": filled["catalog_rows_per_s"],
        "reopen_s": _median([answer["reopen_s"] for answer in reopened]),
        "service_start_s": _median([answer["start_s"] for answer, _ in served]),
        "service_process_start_s": _median([answer["process_start_s"] for answer, _ in served]),
        "search": _medians([answer["search"] for answer, _ in served]),
        "places": _medians([answer["places"] for answer, _ in served]),
        "nearest": _medians([answer["nearest"] for answer, _ in served]),
        "queries": served[0][0]["queries"],
        "memory_serving": _largest([memory for _, memory in served]),
        "memory_filling": memory_filled,
    }


def _leave_page_cache(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())  # only what is on the disk can leave the cache
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _median(values: list[float]) -> float:
    return round(statistics.median(values), 3)


def _medians(answers: list[dict[str, float]]) -> dict[str, float]:
    return {key: _median([answer[key] for answer in answers]) for key in answers[0]}


def _largest(answers: list[dict[str, float]]) -> dict[str, float]:
    return {key: max(answer[key] for answer in answers) for key in answers[0]}
