"""How many times faster the service is than the existing demo's way of doing it.

Both do the same work on the same photos, in turns, with the same models: see
`original_service.py` for what that way is.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import requests

from benchmarks.reporting import percentiles_ms
from benchmarks.speed.bench import Bench, copies_of, photo_files
from benchmarks.speed.clients import OK, Answers, clients
from benchmarks.speed.original_service import LISTENING
from benchmarks.speed.rounds import medians, percentile_ms
from tests.service import REPOSITORY

__all__ = ["measure", "rows", "serve_original"]

_PHOTOS: Final = 40
"""Of a load."""
_QUERIES: Final = 40
_QUIET: Final = 10
"""Searches of a round while nothing is loaded."""
_ROUNDS: Final = 3
_TIMEOUT_SECONDS: Final = 300
_STOP_SECONDS: Final = 30
_KINDS: Final = {
    "load": {"yields": "true"},
    "blocking_load": {"yields": "false"},
}
"""What theirs is asked to do with searches while it loads: let them in between, or not."""


def measure(bench: Bench) -> dict[str, Any]:
    """Photos a second of a load, and latency of searches while one runs, ours over theirs.

    Theirs is measured in two ways: as it was, its event loop blocked until the load is done, and
    with each search let in after the photo that is being worked on, which is a favour.
    """
    files = photo_files(bench.data / "val" / "images")
    queries = [path.read_bytes() for path in files[-bench.scaled(_QUERIES, least=4) :]]
    loaded = files[: bench.scaled(_PHOTOS, least=4)]
    quiet = slice(0, _QUIET)
    seconds: dict[str, list[float]] = {}
    rounds = []
    errors = 0

    def note(kind: str, answers: Answers) -> list[float]:
        nonlocal errors
        errors += answers.statuses.total() - answers.statuses[OK]
        seconds.setdefault(kind, []).extend(answers.seconds)
        return answers.seconds

    with ExitStack() as stack:
        ours = stack.enter_context(bench.service("original-ours")).url
        theirs = stack.enter_context(serve_original(bench.scratch / "original-theirs"))
        searching = stack.enter_context(clients(queries))
        folders = iter(range(1_000_000))

        def folder() -> Path:
            """A new one: a path is loaded once."""
            path = bench.scratch / f"original-photos-{next(folders)}"
            copies_of(loaded, path, len(loaded))
            return path

        for url in (ours, theirs):  # so that nobody is cold
            _load(url, folder())
            searching.search(url, quiet)
        for number in range(bench.scaled(_ROUNDS)):
            bench.log(f"original: round {number + 1}")
            place = folder()
            our_load, their_load = _load(ours, place), _load(theirs, place)
            our_quiet = note("ours_quiet", searching.search(ours, quiet))
            their_quiet = note("theirs_quiet", searching.search(theirs, quiet))
            our_busy = note("ours_during_load", searching.during_load(ours, folder())[0])
            found = {
                "ours_photos_per_second": len(loaded) / our_load,
                "theirs_photos_per_second": len(loaded) / their_load,
                "load_speedup": their_load / our_load,
                "search_speedup_quiet_p50": percentile_ms(their_quiet, 50)
                / percentile_ms(our_quiet, 50),
            }
            for kind, query in _KINDS.items():
                answers, _ = searching.during_load(theirs, folder(), query)
                their_busy = note(f"theirs_during_{kind}", answers)
                for rank in (50, 95):
                    found[f"search_speedup_during_{kind}_p{rank}"] = percentile_ms(
                        their_busy, rank
                    ) / percentile_ms(our_busy, rank)
            rounds.append(found)
    return {
        "photos": len(loaded),
        **medians(rounds),
        "search": {kind: percentiles_ms(each) for kind, each in seconds.items()},
        "errors": errors,
    }


def rows(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What was measured, the figure, and what it is to be."""
    return [
        (
            "load, over the original way",
            f"{report['load_speedup']:.2f} times ({report['ours_photos_per_second']:.1f} and"
            f" {report['theirs_photos_per_second']:.1f} photos/s)",
            ">= 1.5 times",
        ),
        ("search, nothing loaded, p50", f"{report['search_speedup_quiet_p50']:.2f} times", ""),
        (
            "search during a load, p50, p95",
            f"{report['search_speedup_during_blocking_load_p50']:.1f},"
            f" {report['search_speedup_during_blocking_load_p95']:.1f} times",
            ">= 10 times",
        ),
        (
            "the same, were it to let searches in after each photo",
            f"{report['search_speedup_during_load_p50']:.1f},"
            f" {report['search_speedup_during_load_p95']:.1f} times",
            "",
        ),
    ]


def _load(url: str, folder: Path) -> float:
    """Seconds of a load."""
    start = time.perf_counter()
    answer = requests.post(f"{url}/img/load", json={"File": str(folder)}, timeout=_TIMEOUT_SECONDS)
    answer.raise_for_status()
    return time.perf_counter() - start


@contextmanager
def serve_original(folder: Path) -> Iterator[str]:
    """The address of a service of the original way, whose data is in a new folder."""
    folder.mkdir()
    words = (sys.executable, "-W", "ignore", "-m", "benchmarks.speed.original_service", str(folder))
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(
            words, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith(LISTENING):
                raise RuntimeError(f"it does not start: {(folder / 'log').read_text('utf-8')}")
            yield line.removeprefix(LISTENING).strip()
        finally:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
