"""Runs a measurement in a process of its own and watches that process and all below it.

A worker gets its arguments as JSON, prints its answer as one line of JSON behind ANSWER, then
waits for its standard input to end, so that it can be weighed while it is idle.
"""

import json
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

__all__ = ["ANSWER", "Memory", "WorkerFailed", "peak_rss", "resident", "run_worker"]

ANSWER: Final = "ANSWER "

_SAMPLE_SECONDS: Final = 0.1
_END_SECONDS: Final = 30.0
_KEPT_LINES: Final = 5
"""Of a failed worker's output, for the message."""


class WorkerFailed(Exception):
    """A worker ended, or was ended, without an answer; its last lines say why."""


@dataclass(frozen=True)
class Memory:
    """Memory of a process and all below it, in bytes.

    `peak_rss` is the largest sum of resident sizes seen, ten times a second; `idle_rss` and
    `idle_pss` are those after the answer. PSS counts a page that n processes share as 1/n.
    """

    peak_rss: int
    idle_rss: int
    idle_pss: int

    def as_gb(self) -> dict[str, float]:
        """For a report, in 10^9 bytes."""
        return {
            "peak_rss_gb": round(self.peak_rss / 1e9, 3),
            "idle_rss_gb": round(self.idle_rss / 1e9, 3),
            "idle_pss_gb": round(self.idle_pss / 1e9, 3),
        }


def run_worker(
    command: Sequence[str], arguments: Mapping[str, Any], *, cwd: Path, timeout: float
) -> tuple[dict[str, Any], Memory]:
    """The worker's answer and the memory of its process tree.

    Raises:
        WorkerFailed: it ended without an answer, or had none after `timeout` seconds.
    """
    with subprocess.Popen(
        [*command, json.dumps(arguments)],
        cwd=cwd,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        deadline = threading.Timer(timeout, _end_tree, [process.pid])
        deadline.start()
        try:
            with peak_rss(process.pid) as peak:
                answer = _read_answer(process)
                idle = _tree(process.pid)
                idle_rss, idle_pss = sum(map(_rss, idle)), sum(map(_pss, idle))
            process.communicate()
            # What it started may outlive it for a moment, and hold the database meanwhile.
            psutil.wait_procs(idle, timeout=_END_SECONDS)
            return answer, Memory(max(peak[0], idle_rss), idle_rss, idle_pss)
        finally:
            deadline.cancel()
            _end_tree(process.pid)


def _read_answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    seen: list[str] = []
    for line in process.stdout:
        if line.startswith(ANSWER):
            answer: dict[str, Any] = json.loads(line.removeprefix(ANSWER))
            return answer
        seen = [*seen, line.strip()][-_KEPT_LINES:]
    raise WorkerFailed(" | ".join(seen) or "it printed nothing")


def resident(pid: int) -> int:
    """Bytes of a process and all below it that are in memory, what they share counted twice."""
    return sum(map(_rss, _tree(pid)))


@contextmanager
def peak_rss(pid: int) -> Iterator[list[int]]:
    """The largest RSS of the tree so far, in bytes, as the one item of a list."""
    peak = [0]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_SAMPLE_SECONDS):
            peak[0] = max(peak[0], resident(pid))

    thread = threading.Thread(target=watch, name="memory", daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _rss(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def _pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.NoSuchProcess:
        return 0


def _end_tree(pid: int) -> None:
    for process in _tree(pid):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
