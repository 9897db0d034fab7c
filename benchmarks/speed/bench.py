"""What every part of the benchmark of speed is given, and the service that it measures."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.service import Service, as_flags, start

__all__ = ["Bench", "photo_files"]


@dataclass(frozen=True)
class Bench:
    """Where the photos are, where to write, and how much to do.

    Attributes:
        data: a folder with `photos/images` (as they came) and `val/images` (made smaller).
        scratch: an empty folder, removed at the end.
        scale: of every count and duration, in parts of what the figures are reported with; tests
            run with a small one.
        log: tells what is going on.
    """

    data: Path
    scratch: Path
    scale: float
    log: Callable[[str], None]

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
        service = start(folder, as_flags(settings or {}), folder / "data", prefix)
        try:
            yield service
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
