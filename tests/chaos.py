"""Faults drawn at random, in all three engines, while a service loads, uploads and searches.

`python -m tests.chaos --rounds 100 --seed 1` runs as many as asked for; the test suite runs a few.
A round changes photos, asks for a load of them, uploads and searches, and meanwhile kills, freezes
or slows an engine, or cuts its connections. Then everything has to come right by itself: the load
ends, the uploads are taken, and catalog and vector store agree. A search is at every moment either
right for what was acknowledged, or a 503 that names an engine.
"""

import argparse
import json
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import requests

from tests.engines.mariadb import MariaDBProcess
from tests.engines.milvus import MilvusProcess
from tests.engines.process import EngineProcess
from tests.engines.production import Engines, running_engines
from tests.engines.triton import TritonProcess
from tests.forked import run_program
from tests.photos import draw_photo, encode, write_photos
from tests.service import SMALL_PAIR, Service, as_flags, start

__all__ = ["ChaosReport", "chaos_rounds"]

_PHOTOS: Final = 40
_CHANGED_PER_ROUND: Final = 12
_STEADY: Final = 20
_SEARCHERS: Final = 8
_TOP_K: Final = 10
_SAME: Final = 1e-3
"""Squared distance below which a photo is the one that was looked for."""
_LONGEST_FAULT_SECONDS: Final = 5.0
_MILVUS_SESSION_SECONDS: Final = 10
_RECOVERY_SECONDS: Final = 120.0
_TIMEOUTS: Final = ("--request-timeout", "4", "--engine-timeout", "4")
_ENGINE_NAMES: Final = ("Triton", "Milvus", "MySQL")

Answer = list[tuple[str, float]]


@dataclass
class ChaosReport:
    """What happened in the rounds."""

    faults: Counter[str] = field(default_factory=Counter)
    searches: int = 0
    unavailable: int = 0
    uploads: int = 0
    ended_by_themselves: int = 0
    slowest_answer: float = 0.0
    seconds: float = 0.0


class _Searches:
    """Eight threads that search for steady photos until they are stopped, and check answers."""

    def __init__(
        self, service: Service, steady: Mapping[Path, Answer], report: ChaosReport
    ) -> None:
        self._service = service
        self._steady = steady
        self._report = report
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(_SEARCHERS)

    def __enter__(self) -> "_Searches":
        self._running = [self._pool.submit(self._search, number) for number in range(_SEARCHERS)]
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown()
        for running in self._running:
            running.result()

    def _search(self, seed: int) -> None:
        draw = random.Random(seed)
        paths = list(self._steady)
        while not self._stop.is_set():
            path = draw.choice(paths)
            start = time.monotonic()
            answer = self._service.search(path.read_bytes(), _TOP_K, table="steady")
            seconds = time.monotonic() - start
            if answer.status_code == 503:
                _check_unavailable(answer)
                time.sleep(0.2)  # as a client would, if not as long as it is told
            else:
                assert answer.status_code == 200, answer.text
                _check_answer(answer.json(), self._steady[path])
            with self._lock:
                self._report.searches += 1
                self._report.unavailable += answer.status_code == 503
                self._report.slowest_answer = max(self._report.slowest_answer, seconds)


def chaos_rounds(
    folder: Path, *, rounds: int, seed: int, tell: Callable[[str], None] = lambda line: None
) -> ChaosReport:
    """Runs rounds of faults and checks everything after each.

    Raises:
        AssertionError: a photo is lost, doubled or out of date, catalog and vectors differ, an
            answer was wrong, or the service has ended.
    """
    draw = random.Random(seed)
    report = ChaosReport()
    begin = time.monotonic()
    photos = write_photos(folder / "photos", _PHOTOS)
    steady_photos = write_photos(folder / "steady", _STEADY, start=10**7)
    with running_engines(
        folder / "engines", milvus_session_seconds=_MILVUS_SESSION_SECONDS
    ) as engines:
        flags = [*as_flags(engines.settings()), *_TIMEOUTS, "--load-concurrency", "4"]
        service = start(folder, flags, folder / "data")
        try:
            steady = _load_steady(service, steady_photos)
            assert service.load(folder / "photos").status_code == 200
            uploads: list[bytes] = []
            for number in range(rounds):
                for path in draw.sample(photos, _CHANGED_PER_ROUND):
                    path.write_bytes(encode(draw_photo(1000 * (number + 1) + draw.randrange(1000))))
                fault = _draw_fault(draw, engines)
                report.faults[fault.name] += 1
                round_begin = time.monotonic()
                try:
                    _run_round(
                        service, folder / "photos", number, draw, fault, steady, report, uploads
                    )
                    _check_state(service, photos, uploads, draw)
                    if number % 10 == 9 or number == rounds - 1:
                        _check_stores(folder / "data", flags)
                except Exception as error:
                    log = service.log.read_text("utf-8", "replace").splitlines()
                    error.add_note(f"round {number + 1}: {fault.name} for {fault.seconds:.1f} s")
                    error.add_note("\n".join(log[-60:]))
                    raise
                tell(f"{number + 1:4} {fault.name:24} {time.monotonic() - round_begin:5.1f} s")
            assert service.process.poll() is None, "the service has ended"
        finally:
            service.stop()
    report.seconds = time.monotonic() - begin
    return report


def _load_steady(service: Service, photos: Sequence[Path]) -> dict[Path, Answer]:
    """Loads photos that no round changes; returns what a search for each must find."""
    answer = service.post("/img/load", json={"File": str(photos[0].parent), "Table": "steady"})
    assert answer.status_code == 200, answer.text
    found = {}
    for path in photos:
        answer = service.search(path.read_bytes(), _TOP_K, table="steady")
        assert answer.status_code == 200, answer.text
        found[path] = answer.json()
        [nearest, distance] = found[path][0]
        assert (nearest, distance < _SAME) == (str(path), True)
        assert len(found[path]) == _TOP_K
    return found


@dataclass(frozen=True)
class _Fault:
    """Something that is done to an engine, and how it is undone."""

    name: str
    engine: EngineProcess
    begin: Callable[[], None]
    end: Callable[[], None]
    seconds: float


def _draw_fault(draw: random.Random, engines: Engines) -> _Fault:
    name, engine = draw.choice(list(engines.processes.items()))
    kinds = ["kill", "freeze"]
    if isinstance(engine, TritonProcess):
        kinds += ["kill model"]
    elif isinstance(engine, MilvusProcess):
        kinds += ["slow", "cut"]
    elif isinstance(engine, MariaDBProcess):
        kinds += ["cut"]
    kind = draw.choice(kinds)
    begin, end = _actions(kind, engine)
    return _Fault(f"{name} {kind}", engine, begin, end, draw.uniform(0.0, _LONGEST_FAULT_SECONDS))


def _actions(kind: str, engine: EngineProcess) -> tuple[Callable[[], None], Callable[[], None]]:
    def nothing() -> None:
        pass

    match kind, engine:
        case "kill", _:
            return engine.kill, lambda: engine.start(wait_seconds=0)
        case "freeze", _:
            return engine.freeze, engine.thaw
        case "kill model", TritonProcess():
            return engine.kill_model_process, nothing
        case "slow", MilvusProcess():
            return lambda: engine.slow(2.0), lambda: engine.slow(0.0)
        case "cut", MilvusProcess():
            return engine.cut, nothing
        case "cut", MariaDBProcess():
            return engine.drop_connections, nothing
    raise ValueError(kind)


def _run_round(
    service: Service,
    folder: Path,
    number: int,
    draw: random.Random,
    fault: _Fault,
    steady: Mapping[Path, Answer],
    report: ChaosReport,
    uploads: list[bytes],
) -> None:
    delay = draw.uniform(0.0, 1.5)
    upload = encode(draw_photo(10**6 + number))
    with ThreadPoolExecutor(2) as pool, _Searches(service, steady, report):
        loading = pool.submit(_until_taken, lambda: service.load(folder))
        uploading = pool.submit(
            _until_taken,
            lambda: service.post("/img/upload", files={"image": ("upload.jpg", upload)}),
        )
        time.sleep(delay)
        fault.begin()
        try:
            time.sleep(fault.seconds)
        finally:
            fault.end()
        # Triton now and then ends when a process of its has been killed: what restarts it in
        # production does so here. From this thread: its servers end with the one that started them.
        while not (loading.done() and uploading.done()):
            time.sleep(0.1)
            report.ended_by_themselves += fault.engine.start_if_ended()
        loading.result()
        uploading.result()
        uploads.append(upload)
        report.uploads += 1
        report.ended_by_themselves += _until_right(service, steady, fault.engine)


def _until_taken(ask: Callable[[], requests.Response]) -> None:
    """Asks again after each 503, as the answer says one should."""
    end = time.monotonic() + _RECOVERY_SECONDS
    while (answer := ask()).status_code == 503:
        _check_unavailable(answer)
        assert time.monotonic() < end, f"still unavailable: {answer.text}"
        time.sleep(0.5)
    assert answer.status_code == 200, answer.text


def _until_right(service: Service, steady: Mapping[Path, Answer], engine: EngineProcess) -> int:
    """Waits until searches are answered again; how often the engine had ended by itself."""
    ended = 0
    path, expected = next(iter(steady.items()))
    end = time.monotonic() + _RECOVERY_SECONDS
    while (answer := service.search(path.read_bytes(), _TOP_K, table="steady")).status_code == 503:
        assert time.monotonic() < end, f"still unavailable: {answer.text}"
        time.sleep(0.5)
        ended += engine.start_if_ended()
    assert answer.status_code == 200, answer.text
    _check_answer(answer.json(), expected)
    return ended


def _check_unavailable(answer: requests.Response) -> None:
    assert int(answer.headers["Retry-After"]) > 0
    message = answer.json()["msg"]
    assert any(engine in message for engine in _ENGINE_NAMES), message


def _check_answer(found: Answer, expected: Answer) -> None:
    shown = f"found {found}, expected {expected}"
    assert len(found) == len(expected), shown
    for (path, distance), (expected_path, expected_distance) in zip(found, expected, strict=True):
        assert path == expected_path, shown
        assert abs(distance - expected_distance) < _SAME, shown


def _check_state(
    service: Service, photos: Sequence[Path], uploads: Sequence[bytes], draw: random.Random
) -> None:
    """Nothing is lost, doubled or out of date."""
    assert service.process.poll() is None, "the service has ended"
    assert service.count() == len(photos) + len(uploads)
    for path in draw.sample(list(photos), 5):
        answer = service.search(path.read_bytes())
        assert answer.status_code == 200, answer.text
        [nearest, distance] = answer.json()[0]
        assert (Path(nearest).read_bytes() == path.read_bytes(), distance < _SAME) == (True, True)
    for upload in (uploads[-1], draw.choice(uploads)):
        answer = service.search(upload)
        assert answer.status_code == 200, answer.text
        [nearest, distance] = answer.json()[0]
        assert (Path(nearest).read_bytes() == upload, distance < _SAME) == (True, True)


def _check_stores(data_dir: Path, flags: Sequence[str]) -> None:
    """Catalog and vector store hold the same; asked of a process beside the service."""
    done = run_program(
        *("check", "--json", "--data-dir", str(data_dir), *flags, "--engine-timeout", "30"),
        timeout=_RECOVERY_SECONDS,
        environment=SMALL_PAIR,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for collection in json.loads(done.stdout)["collections"]:
        problems = {name: collection[name] for name in ("missing", "orphaned", "gone", "failures")}
        assert not any(problems.values()), problems


def main() -> None:
    """Runs the rounds that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = chaos_rounds(
            Path(folder), rounds=options.rounds, seed=options.seed, tell=_print_now
        )
    _print_now(
        f"{options.rounds} faults in {report.seconds:.0f} s: nothing lost, doubled, orphaned or"
        " wrong, and the same service process throughout"
    )
    _print_now(
        f"{report.searches} searches, {report.unavailable} of them answered 503, the slowest in"
        f" {report.slowest_answer:.1f} s; {report.uploads} uploads; servers that ended by"
        f" themselves and were started again: {report.ended_by_themselves}"
    )
    for name, count in sorted(report.faults.items()):
        _print_now(f"  {name}: {count}")


def _print_now(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
