"""What every part of the benchmark of speed is given, and the service that it measures."""

import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.service import Service, as_flags, start

__all__ = ["Bench", "copies_of", "load_seconds", "photo_files"]


@dataclass(frozen=True)
class Bench:
    """Where the photos are, where to write, and how much to do.

    Attributes:
        data: a folder with `photos/images` (as they came) and `val/images` (made smaller).
        scratch: an empty folder, removed at the end.
        scale: of every count and duration, in parts of what the figures are reported with; tests
            run with a small one.
        log: tells what is going on.
        lags: the services that have ended, and the p99 of their event loops' lag in milliseconds.
        is_measured: whether figures count: where they do not, in tests, services are forked.
    """

    data: Path
    scratch: Path
    scale: float
    log: Callable[[str], None]
    lags: dict[str, float] = field(default_factory=dict)
    is_measured: bool = True

    def scaled(self, count: int, *, least: int = 1) -> int:
        """A count of things to measure, at this scale."""
        return max(least, round(count * self.scale))

    @contextmanager
    def service(
        self, name: str, settings: Mapping[str, str] | None = None, prefix: Sequence[str] = ()
    ) -> Iterator[Service]:
        """A service in a process of its own with an empty data folder, named for its log."""
        folder = self.scratch / name
        folder.mkdir(parents=True)
        service = start(
            *(folder, as_flags(settings or {}), folder / "data", prefix),
            is_measured=self.is_measured,
        )
        try:
            yield service
            self.lags[name] = _lag_p99_ms(service.get("/metrics").text)
        finally:
            service.stop()


def photo_files(folder: Path) -> list[Path]:
    """The JPEG files of a folder, by name.

    Raises:
        SystemExit: there are none.
    """
    files = (
        sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
        if folder.is_dir()
        else []
    )
    if not files:
        raise SystemExit(f"{folder} holds no JPEG files")
    return files


def copies_of(files: Sequence[Path], folder: Path, photos: int) -> Path:
    """Fills a new folder with so many photos: the files again and again, under other names."""
    folder.mkdir(parents=True)
    for number in range(photos):
        shutil.copyfile(files[number % len(files)], folder / f"photo {number:06d}.jpg")
    return folder


def load_seconds(service: Service, folder: Path, table: str) -> float:
    """How long the service takes to load a folder into a new collection, which is then dropped."""
    # Making one takes half a second, most of it pymilvus' first look at whether its index is there.
    service.post("/api/v1/collections", json={"name": table}).raise_for_status()
    start_time = time.perf_counter()
    answer = service.post("/img/load", json={"File": str(folder), "Table": table})
    seconds = time.perf_counter() - start_time
    answer.raise_for_status()
    service.post("/img/drop", params={"table_name": table}).raise_for_status()
    return seconds


def _lag_p99_ms(exposition: str) -> float:
    """The least bucket's limit under which 99 of 100 lags of the event loop are."""
    buckets = [
        (float(limit), float(count))
        for limit, count in re.findall(
            r'^image_search_event_loop_lag_seconds_bucket\{le="([^"]+)"\} (\S+)$',
            exposition,
            re.M,
        )
    ]
    total = buckets[-1][1]
    return next(limit for limit, count in buckets if count >= 0.99 * total) * 1000
