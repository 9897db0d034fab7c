"""`python -m benchmarks.bulk_load --data FOLDER`: a bulk load on Ray beside an ordinary load.

The photos of val/ are loaded in the ordinary way, in bulk, in bulk with the whole killed half-way
and started again, and in bulk with Ray's actor killed in the middle, with the embedded engines and
with Triton, Milvus, which imports files, and MariaDB. Each time catalog and vectors are compared,
row for row. Then what bounds a load that the networks do not: photos spread over an actor that
answers at once, and files written for Milvus. Prints tables, writes JSON.
"""

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import psutil
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from backend.app import Services, open_services
from backend.checking import check_collections
from backend.settings import Settings
from benchmarks.bulk_limits import measure_limits, render_limits
from benchmarks.reporting import add_common_arguments, environment, rounded, write_json
from tests.engines.production import running_engines
from tests.service import SMALL_PAIR, as_flags

__all__ = ["WAYS", "Way", "compare_loads", "measure", "render"]

Way: TypeAlias = Literal["bulk", "killed", "actor killed"]
WAYS: Final[tuple[Way, ...]] = ("bulk", "killed", "actor killed")
_TIMEOUT: Final = 600.0
_AT_WORK_SECONDS: Final = 0.5
"""That an actor has been at work when it is killed: it takes some seconds for all photos."""
_ORPHANED_SECONDS: Final = 5.0
_GONE_SECONDS: Final = 30.0
_SPREAD_PHOTOS: Final = 200_000
_FILE_VECTORS: Final = 30_000
_NONE: Final = np.empty((0, 0), np.float32)

_OWN_COLUMNS: Final = ("id", "collection_id")
"""Of a photo's row, what tells it from that of another collection."""

Row: TypeAlias = tuple[Any, ...]


def compare_loads(
    folder: Path,
    scratch: Path,
    settings: Mapping[str, str],
    ways: Sequence[Way],
    *,
    commits: int = 8,
    import_files: Path | None = None,
) -> dict[str, Any]:
    """Loads a folder's photos in the ordinary way and in others, and says what differs.

    Args:
        folder: of photos, and of files that are none.
        scratch: for logs, and for what the embedded engines keep.
        settings: the engines'; the small pair is added.
        ways: of bulk loads.
        commits: of a bulk load; it is killed behind half of them.
        import_files: a folder that Milvus sees too, where it is to import files.

    Returns:
        By way, `ordinary` among them: seconds, photos, objects, and of the others how many rows
        differ and by how much a vector at most; vectors that are missing or nobody's.
    """
    own = {"data_dir": str(scratch / "data"), "data_path": str(folder)} | {
        name.lower(): model for name, model in SMALL_PAIR.items()
    }
    chosen = {**settings, **own}
    start = time.perf_counter()
    asyncio.run(_load(chosen, folder))
    seconds = {"ordinary": time.perf_counter() - start}
    photos = sum(path.is_file() for path in folder.rglob("*"))
    for way in ways:
        command = [
            *(sys.executable, "-m", "scripts.bulk_load", str(folder), "--table", _table(way)),
            *("--commit-photos", str(max(1, photos // commits)), *as_flags(chosen)),
            *(() if import_files is None else ("--import-files", str(import_files))),
        ]
        start = time.perf_counter()
        _run(command, way, commits, scratch / "logs")
        seconds[way] = time.perf_counter() - start
    return asyncio.run(_compare(chosen, seconds))


def _table(way: str) -> str:
    return way.replace(" ", "_")


async def _load(settings: Mapping[str, str], folder: Path) -> None:
    async with open_services(Settings.load(**settings), owns=False) as services:
        load = await services.indexer.start_load(str(folder), "ordinary")
        await load.wait()


# Bulk loads, as processes


def _run(command: Sequence[str], way: Way, commits: int, logs: Path) -> None:
    if way == "killed":
        with _running(command, logs / "killed_first") as process:
            _await_commits(process, logs / "killed_first", commits // 2)
            started = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGKILL)
            process.wait(_GONE_SECONDS)
            # The Ray that it had started goes with it, but for agents, which notice late.
            for each in psutil.wait_procs(started, _ORPHANED_SECONDS)[1]:
                each.kill()
            psutil.wait_procs(started, _GONE_SECONDS)
    log = logs / _table(way)
    with _running(command, log) as process:
        if way == "actor killed":
            _kill_actor(process)
        code = process.wait(_TIMEOUT)
    # 1: some of the photos are none.
    assert code in (0, 1), log.read_text("utf-8", "replace")


@contextmanager
def _running(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    log.parent.mkdir(parents=True, exist_ok=True)
    clean = {name: value for name, value in os.environ.items() if name.lower() not in _FIELDS}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=clean
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(_GONE_SECONDS)


_FIELDS: Final = frozenset(Settings.model_fields)


def _await_commits(process: subprocess.Popen[bytes], log: Path, commits: int) -> None:
    end = time.monotonic() + _TIMEOUT
    while log.read_bytes().count(b"bulk_load.written") < commits:
        assert process.poll() is None, log.read_text("utf-8", "replace")
        assert time.monotonic() < end, log.read_text("utf-8", "replace")
        time.sleep(0.02)


def _kill_actor(process: subprocess.Popen[bytes]) -> None:
    """Kills the process that prepares photos, a moment after it has begun to."""
    end = time.monotonic() + _TIMEOUT
    while not (actors := [each for each in _descendants(process.pid) if _is_at_work(each)]):
        assert process.poll() is None, "the load ended before its actor was seen"
        assert time.monotonic() < end, "no actor was found"
        time.sleep(0.02)
    time.sleep(_AT_WORK_SECONDS)
    for actor in actors:
        actor.kill()


def _descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def _is_at_work(process: psutil.Process) -> bool:
    try:
        return any("Preparer)).submit" in part for part in process.cmdline())
    except psutil.Error:
        return False


# What differs


async def _compare(settings: Mapping[str, str], seconds: Mapping[str, float]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    async with open_services(Settings.load(**settings), owns=False) as services:
        reports = {
            report.collection.name: report
            for report in await check_collections(
                services.catalog, services.vectors, services.analyzer.embedder, services.writer
            )
        }
        ordinary = await _rows(services, "ordinary")
        for way, took in seconds.items():
            rows = ordinary if way == "ordinary" else await _rows(services, _table(way))
            report = reports[_table(way)]
            found[_table(way)] = {
                "seconds": took,
                "photos": len(rows),
                "failed": sum("failed" in row for row, _ in rows.values()),
                "objects": sum(len(vectors) for _, vectors in rows.values()),
                "vectors_missing": len(report.missing),
                "vectors_of_nobody": len(report.orphaned),
                **(_differences(ordinary, rows) if way != "ordinary" else {}),
            }
    return found


async def _rows(services: Services, table: str) -> dict[str, tuple[Row, NDArray[np.float32]]]:
    """By path: a photo's row with its objects', without ids; and its objects' vectors, [N, D]."""
    collection = await services.catalog.collection(table)
    assert collection is not None, table
    found = {}
    async for page in services.catalog.images(collection.id, ["indexed", "failed"]):
        objects = await services.catalog.objects_of_images([image.id for image in page])
        for image in page:
            places = sorted(
                objects.get(image.id, []), key=lambda each: (-each.score, each.label, each.box)
            )
            vectors = await services.vectors.vectors(
                collection.store, [place.id for place in places]
            )
            row = tuple(value for name, value in asdict(image).items() if name not in _OWN_COLUMNS)
            of_objects = tuple((place.label, place.score, place.box) for place in places)
            kept = [vectors[place.id] for place in places if place.id in vectors]
            found[image.path] = ((*row, of_objects), np.stack(kept) if kept else _NONE)
    return found


def _differences(
    ordinary: Mapping[str, tuple[Row, NDArray[np.float32]]],
    other: Mapping[str, tuple[Row, NDArray[np.float32]]],
) -> dict[str, Any]:
    same = [path for path in ordinary if path in other and ordinary[path][0] == other[path][0]]
    return {
        "rows_that_differ": len(ordinary.keys() | other.keys()) - len(same),
        "largest_difference_of_vectors": max(
            (
                float(np.abs(ordinary[path][1] - other[path][1]).max(initial=0))
                for path in same
                if ordinary[path][1].shape == other[path][1].shape
            ),
            default=0.0,
        ),
    }


# Report


def measure(data: Path, scratch: Path, *, log: Callable[[str], None]) -> dict[str, Any]:
    """What bulk loads of val/ make, with the embedded engines and with servers.

    Four files that are no photos are added to the photos.

    Raises:
        SystemExit: Triton, Milvus or MariaDB are not installed.
    """
    folder = scratch / "photos"
    folder.mkdir()
    for path in sorted((data / "val" / "images").iterdir()):
        (folder / path.name).symlink_to(path.resolve())
    for number, content in enumerate((b"", b"no photo", b"\xff\xd8\xff", b"GIF89a")):
        (folder / f"bad_{number}.jpg").write_bytes(content)
    log("embedded engines")
    own = {"allowed_roots": f"{folder}:{data.resolve()}"}
    found = {"embedded": compare_loads(folder, scratch / "embedded", own, WAYS)}
    with running_engines(scratch / "engines", milvus_session_seconds=60) as engines:
        log("Triton, Milvus and MariaDB")
        settings = {**engines.settings(), **own}
        found["servers"] = compare_loads(
            folder, scratch / "servers", settings, WAYS, commits=4, import_files=scratch / "import"
        )
    log("what bounds it")
    found["limits"] = measure_limits(_SPREAD_PHOTOS, _FILE_VECTORS, scratch)
    return found


def render(report: Mapping[str, Any]) -> Table:
    """The report as a table."""
    table = Table("engines", "load", "photos", "failed", "objects", "rows that differ", "vectors")
    table.add_column("seconds", justify="right")
    for engines in ("embedded", "servers"):
        for way, found in report.get(engines, {}).items():
            table.add_row(
                engines,
                way.replace("_", " "),
                *(str(found[name]) for name in ("photos", "failed", "objects")),
                str(found.get("rows_that_differ", "")),
                str(found.get("largest_difference_of_vectors", "")),
                f"{found['seconds']:.0f}",
            )
    return table


def main() -> None:
    """Parses the command line, measures and reports."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bulk_load", description=__doc__)
    add_common_arguments(parser)
    arguments = parser.parse_args()
    progress = Console(stderr=True)
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(
            arguments.data,
            Path(scratch),
            log=lambda message: progress.print(message, style="dim"),
        )
    report = rounded({**environment("ray"), **found})
    Console().print(render(report))
    Console().print(render_limits(report))
    if arguments.json:
        write_json(arguments.json, report)


if __name__ == "__main__":
    main()
