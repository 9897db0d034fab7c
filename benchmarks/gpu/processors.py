"""Who keeps which processor busy: the cores, by the part of the system, and the GPU."""

import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import Final

import psutil

from benchmarks.speed.processors import processor_seconds, service_seconds

__all__ = ["GpuUse", "core_seconds", "gpu_name", "gpu_use"]

_NAME: Final = ("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
_USE: Final = (
    "nvidia-smi",
    "--query-gpu=utilization.gpu",
    "--format=csv,noheader,nounits",
    "--loop-ms=100",
)


def gpu_name() -> str | None:
    """What the first GPU is called; None where there is none."""
    try:
        return subprocess.run(
            _NAME, capture_output=True, text=True, check=True
        ).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def core_seconds(
    services: Sequence[psutil.Process],
    milvus: psutil.Process,
    triton: psutil.Process,
    models: Mapping[str, str],
) -> dict[str, float]:
    """Processor time so far, by part.

    Args:
        services: of the backend; parts `event_loop`, `threads` (all others) and `decoders`, of all
            services together.
        milvus: the server, or who has started it; part `milvus`.
        triton: the server; part `triton`.
        models: names of its models, by the part that each one's process is.
    """
    parts = {
        **dict.fromkeys(("event_loop", "threads", "decoders"), 0.0),
        "milvus": processor_seconds([milvus]),
        "triton": _seconds(triton),
    }
    for service in services:
        for part, seconds in service_seconds(service).items():
            if part in parts:
                parts[part] += seconds
    for part, model in models.items():
        parts[part] = sum(
            _seconds(process)
            for process in triton.children()
            if any(word.startswith(f"{model}_") for word in process.cmdline())
        )
    return parts


class GpuUse:
    """How busy the GPU was, as its driver tells it ten times a second."""

    def __init__(self) -> None:
        self._percent: list[float] = []

    def note(self, percent: float) -> None:
        """Takes one reading, 0..100."""
        self._percent.append(percent)

    @property
    def share(self) -> float | None:
        """Of the time in which anything ran on it; None where there is no GPU to ask."""
        return fmean(self._percent) / 100 if self._percent else None


@contextmanager
def gpu_use() -> Iterator[GpuUse]:
    """Watches the GPU until the end of the block."""
    use = GpuUse()
    try:
        watcher = subprocess.Popen(_USE, stdout=subprocess.PIPE, text=True)
    except FileNotFoundError:
        yield use
        return
    assert watcher.stdout is not None
    lines = watcher.stdout

    def read() -> None:
        for line in lines:
            if line.strip().isdecimal():
                use.note(float(line))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield use
    finally:
        watcher.terminate()
        watcher.wait()
        reader.join()
        lines.close()


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
