"""A long load: what it does to the memory of the service, and to its event loop."""

import shutil
import threading
import time
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks.speed.bench import Bench, photo_files
from tests.service import MILVUS_LITE, Service

__all__ = ["measure", "rows"]

_PHOTOS: Final = 20_000
_SETTLED: Final = 1000
"""Photos after which caches, pools and threads are there."""
_FOLDERS: Final = ("photos", "val", "train")
_SAMPLE_SECONDS: Final = 0.5
_TIMEOUT_SECONDS: Final = 3600


def measure(bench: Bench) -> dict[str, Any]:
    """Resident memory while a folder is loaded whose photos are all different files."""
    files = [
        path
        for name in _FOLDERS
        if (bench.data / name / "images").is_dir()
        for path in photo_files(bench.data / name / "images")
    ]
    count, settled = bench.scaled(_PHOTOS, least=40), bench.scaled(_SETTLED, least=10)
    folder = bench.scratch / "long load"
    folder.mkdir()
    bench.log(f"memory: {count:,} photos")
    for number in range(count):
        _write_changed(files[number % len(files)], folder / f"photo {number:06d}.jpg", number)
    with bench.service("memory") as service:
        process = psutil.Process(service.process.pid)
        samples: list[tuple[int, int, int]] = []
        over = threading.Event()

        def watch() -> None:
            while not over.wait(_SAMPLE_SECONDS):
                samples.append((service.progress()[0], *_resident(process)))

        watching = threading.Thread(target=watch)
        watching.start()
        start = time.perf_counter()
        try:
            service.post(
                "/img/load", json={"File": str(folder)}, params={"wait": "false"}
            ).raise_for_status()
            _wait(service, count)
        finally:
            over.set()
            watching.join()
        seconds = time.perf_counter() - start
        samples.append((count, *_resident(process)))
    after = [sample for sample in samples if sample[0] >= settled]
    return {
        "photos": count,
        "photos_per_second": count / seconds,
        "settled_after": settled,
        "service_mb": [after[0][1] / 2**20, max(each[1] for each in after) / 2**20],
        "service_growth_mb": (max(each[1] for each in after) - after[0][1]) / 2**20,
        "vectors_growth_mb": (max(each[2] for each in after) - after[0][2]) / 2**20,
        "loop_lag_p99_ms": bench.lags["memory"],
    }


def rows(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What was measured, the figure, and what it is to be."""
    first, most = report["service_mb"]
    return [
        (
            f"load of {report['photos']:,} photos: growth after {report['settled_after']:,}",
            f"{report['service_growth_mb']:.0f} MB: {first:.0f} to {most:.0f}; Milvus Lite's, which"
            f" has the vectors in memory, {report['vectors_growth_mb']:.0f} MB",
            "<= 100 MB",
        ),
        ("event loop's lag meanwhile, p99", f"below {report['loop_lag_p99_ms']:g} ms", "< 10 ms"),
    ]


def _write_changed(source: Path, target: Path, number: int) -> None:
    """A copy whose bytes are no other's: decoders leave out what follows a picture's end."""
    shutil.copyfile(source, target)
    with target.open("ab") as file:
        file.write(number.to_bytes(8, "big"))


def _wait(service: Service, photos: int) -> None:
    end = time.monotonic() + _TIMEOUT_SECONDS
    while service.progress() != (photos, photos):
        if time.monotonic() > end:
            raise SystemExit(f"the load has not ended in {_TIMEOUT_SECONDS} s")
        time.sleep(_SAMPLE_SECONDS)


def _resident(process: psutil.Process) -> tuple[int, int]:
    """Bytes of the service, with the processes in which it decodes photos, and of Milvus Lite."""
    own, vectors = process.memory_info().rss, 0
    for child in process.children(recursive=True):
        if child.name() == MILVUS_LITE:
            vectors += child.memory_info().rss
        else:
            own += child.memory_info().rss
    return own, vectors
