"""Compares versions and indexes of Milvus Lite, each version in an environment of its own."""

import importlib.metadata
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.reporting import percentiles_ms
from benchmarks.vector_stores.processes import ANSWER, Memory, WorkerFailed, run_worker
from benchmarks.vector_stores.vectors import Queries, nearest
from benchmarks.voc import DescribedObjects

__all__ = [
    "CHOSEN",
    "VERSIONS",
    "Case",
    "cases",
    "make_environment",
    "measure_case",
    "measure_request_size",
    "recall",
]

VERSIONS: Final = ("2.5.1", "3.2.2")
"""The chosen one and the newest."""

_INDEXES: Final[Mapping[str, tuple[dict[str, int], dict[str, int]]]] = {
    "FLAT": ({}, {}),
    "IVF_FLAT": ({"nlist": 128}, {"nprobe": 16}),
    "HNSW": ({"M": 16, "efConstruction": 200}, {"ef": 64}),
}
"""Parameters of building and of searching: middling values of Milvus' documentation."""

_WORKER: Final = Path(__file__).with_name("lite_worker.py")
_ROWS_PER_REQUEST: Final = 500
"""4 MB of 2,048 dimensions: `measure_request_size` shows what more than 7 MB costs."""
_SEARCH_SECONDS: Final = 15.0
"""For the queries of one kind: a search may take seconds, and p50 needs few."""
_TIMEOUT_SECONDS: Final = 300.0
_TOP_K: Final = 10


@dataclass(frozen=True)
class Case:
    """A version with an index."""

    version: str
    index: str


CHOSEN: Final = Case("2.5.1", "FLAT")
"""What the service runs on."""


def cases(versions: Sequence[str]) -> Iterator[Case]:
    """Every index that a version has: HNSW came with 3."""
    for version in versions:
        for index in _INDEXES:
            if index != "HNSW" or int(version.partition(".")[0]) >= 3:
                yield Case(version, index)


def make_environment(folder: Path, version: str) -> Path:
    """The Python of a new virtual environment with that version of Milvus Lite."""
    client = importlib.metadata.version("pymilvus")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    # milvus-lite 2.5.1 imports pkg_resources, which setuptools 81 has dropped.
    packages = (f"milvus-lite=={version}", f"pymilvus=={client}", "setuptools<81", "numpy")
    subprocess.run(
        [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check", *packages],
        check=True,
    )
    return python


def measure_case(
    case: Case,
    objects: DescribedObjects,
    queries: Queries,
    *,
    python: Path,
    folder: Path,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """One row of the comparison; `error` in place of figures where the version fails.

    Args:
        case: what to measure.
        objects: the gallery.
        queries: what is searched for.
        python: of an environment with the case's version.
        folder: empty; the data is kept there.
        log: is told what begins.
    """
    log(f"{case.version} {case.index}: {len(objects):,} x {objects.vectors.shape[1]}")
    row = {
        "version": case.version,
        "index": case.index,
        "objects": len(objects),
        "dimension": objects.vectors.shape[1],
    }
    questions = folder / "queries.npy"
    np.save(questions, queries.vectors)
    worker = _LiteWorker(python, folder, case.index)
    try:
        written, _ = worker.write(objects, rows_per_request=_ROWS_PER_REQUEST)
        searched, memory = worker.run(
            action="search",
            queries=str(questions),
            query_labels=queries.labels,
            search_parameters=_INDEXES[case.index][1],
            seconds=_SEARCH_SECONDS,
        )
    except WorkerFailed as error:
        return {**row, "error": str(error)}
    found = searched["found"]
    truth = nearest(objects.vectors, queries.vectors[: len(found)], _TOP_K)
    return {
        **row,
        "upsert_rows_per_s": written["upsert_rows_per_s"],
        "reopen_s": round(searched["reopen_s"], 3),
        "search": percentiles_ms(searched["search_seconds"]),
        "filtered": percentiles_ms(searched["filtered_seconds"]),
        "queries": len(found),
        "recall_at_10": round(recall(found, truth), 4),
        **memory.as_gb(),
    }


def measure_request_size(
    objects: DescribedObjects, rows_per_request: int, *, folder: Path, log: Callable[[str], None]
) -> dict[str, Any]:
    """How fast the installed version takes objects in upserts of that many rows.

    Args:
        objects: what is written.
        rows_per_request: of one upsert.
        folder: empty; the data is kept there.
        log: is told what begins.
    """
    dimension = objects.vectors.shape[1]
    log(f"upserts of {rows_per_request:,} x {dimension}")
    worker = _LiteWorker(Path(sys.executable), folder, CHOSEN.index)
    written, _ = worker.write(objects, rows_per_request=rows_per_request)
    return {
        "rows_per_request": rows_per_request,
        "dimension": dimension,
        "request_mb": round(rows_per_request * objects.vectors[0].nbytes / 1e6, 2),
        "upsert_rows_per_s": written["upsert_rows_per_s"],
    }


def recall(found: Sequence[Sequence[int]], truth: NDArray[np.int64]) -> float:
    """The part of the true nearest rows, [Q, K], that the answers hold."""
    hits = [len(set(answer) & set(row)) for answer, row in zip(found, truth.tolist(), strict=True)]
    return sum(hits) / truth.size


class _LiteWorker:
    """Runs `lite_worker.py` on one database, each action in a fresh process."""

    def __init__(self, python: Path, folder: Path, index: str) -> None:
        self._command = (str(python), "-W", "ignore", str(_WORKER))
        self._folder = folder
        self._index = index

    def write(
        self, objects: DescribedObjects, *, rows_per_request: int
    ) -> tuple[dict[str, Any], Memory]:
        vectors, labels = self._folder / "vectors.npy", self._folder / "labels.npy"
        np.save(vectors, objects.vectors)
        np.save(labels, np.array(objects.labels))
        return self.run(
            action="write",
            vectors=str(vectors),
            labels=str(labels),
            index=self._index,
            index_parameters=_INDEXES[self._index][0],
            rows_per_request=rows_per_request,
        )

    def run(self, **arguments: Any) -> tuple[dict[str, Any], Memory]:
        given = {"mark": ANSWER, "database": str(self._folder / "lite.db"), **arguments}
        return run_worker(self._command, given, cwd=self._folder, timeout=_TIMEOUT_SECONDS)
