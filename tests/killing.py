"""Kills backends at random while they load a folder together: every photo comes in, once.

`python -m tests.killing --photos 1000 --kills 20 --seed 1`; the test suite kills a few. Three
backends share real engines. One of them is asked to load; the next kill comes as soon as so many
photos more are in. What is killed is started again a moment later. All the while each backend that
runs is searched, and asked how far the load is.
"""

import argparse
import asyncio
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import requests

from backend.app import open_services
from backend.checking import check_collections
from backend.settings import Settings
from tests.engines.backends import Backend, running_backends
from tests.engines.mariadb import MariaDBProcess
from tests.engines.production import Engines, running_engines
from tests.photos import write_photos
from tests.service import SMALL_PAIR

__all__ = ["KillingReport", "kill_while_loading"]

_BACKENDS: Final = 3
_STEADY: Final = 10
_TOP_K: Final = 5
_SAME: Final = 1e-3
_TIMEOUT: Final = 60.0
_LONGEST_DOWN_SECONDS: Final = 2.0
_DEADLINE_SECONDS: Final = 900.0
_LEASES: Final = "SELECT id, owner, is_done FROM {}.load_chunks WHERE owner IS NOT NULL"

Answer = list[tuple[str, float]]


@dataclass
class KillingReport:
    """What has happened.

    Attributes:
        kills: of each backend.
        taken_over: seconds from a kill until another had each chunk that the killed one had.
        searches: that were answered, by backend.
        down: searches that were not answered, or with 503, since the backend was down.
        lease_seconds: of the backends.
        seconds: that the load took.
    """

    kills: Counter[int] = field(default_factory=Counter)
    taken_over: list[float] = field(default_factory=list)
    searches: Counter[int] = field(default_factory=Counter)
    down: int = 0
    lease_seconds: float = 0.0
    seconds: float = 0.0


class _Searches:
    """A thread for each backend that searches until it is stopped, and checks the answers."""

    def __init__(
        self, backends: Sequence[Backend], steady: Mapping[Path, Answer], report: KillingReport
    ) -> None:
        self.is_up = [True] * len(backends)
        self._backends = backends
        self._steady = steady
        self._report = report
        self._stop = threading.Event()
        self._wrong: list[str] = []
        self._threads = [
            threading.Thread(target=self._search, args=(number,)) for number in range(_BACKENDS)
        ]

    def __enter__(self) -> "_Searches":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        assert not self._wrong, self._wrong[:3]

    def _search(self, number: int) -> None:
        draw = random.Random(number)
        while not self._stop.wait(draw.uniform(0, 0.3)):
            path = draw.choice(list(self._steady))
            was_up = self.is_up[number]
            try:
                answer = _search(self._backends[number], path)
            except requests.RequestException as error:
                self._note_unanswered(number, was_up, str(error))
                continue
            if answer.status_code == 503:
                self._note_unanswered(number, was_up, answer.text)
            elif answer.status_code != 200 or not _is_same(answer.json(), self._steady[path]):
                self._wrong.append(f"backend {number}: {answer.status_code} {answer.text}")
            else:
                self._report.searches[number] += 1

    def _note_unanswered(self, number: int, was_up: bool, reason: str) -> None:
        if was_up and self.is_up[number]:
            self._wrong.append(f"backend {number}, which ran: {reason}")
        self._report.down += 1


class _Leases:
    """Sees in the catalog whose the chunks are: how long those of a killed process stay its own."""

    def __init__(self, mysql: MariaDBProcess, database: str, report: KillingReport) -> None:
        self._mysql = mysql
        self._database = database
        self._report = report
        self._killed: dict[str, float] = {}  # when, by the owner's beginning
        self._lost: dict[int, tuple[str, float]] = {}

    def killed(self, pid: int) -> None:
        """A process was killed just now."""
        self._killed[str(pid)] = time.monotonic()

    def look(self) -> None:
        """Reads the leases; to be called again and again."""
        now = time.monotonic()
        chunks = {
            int(chunk): (str(owner), bool(int(done)))
            for chunk, owner, done in self._mysql.execute(_LEASES.format(self._database))
        }
        for chunk, (owner, done) in chunks.items():
            pid = owner.split(":")[1]
            if pid in self._killed and not done:
                self._lost.setdefault(chunk, (owner, self._killed[pid]))
        for chunk, (owner, since) in list(self._lost.items()):
            current = chunks.get(chunk)
            if current is None or current[0] != owner:
                self._report.taken_over.append(now - since)
                del self._lost[chunk]


def kill_while_loading(
    folder: Path,
    engines: Engines,
    *,
    photos: int,
    kills: int,
    seed: int,
    lease_seconds: float = 15.0,
    tell: Callable[[str], None] = lambda line: None,
) -> KillingReport:
    """Loads so many drawn photos, with so many kills, and checks all.

    Raises:
        AssertionError: a photo is missing or there twice, catalog and vectors differ, a backend
            tells something else of the load than another, an answer was wrong, or a chunk of one
            that was killed was taken over later than after two leases.
    """
    draw = random.Random(seed)
    report = KillingReport(lease_seconds=lease_seconds)
    paths = write_photos(folder / "photos", photos)
    steady_photos = write_photos(folder / "steady", _STEADY, start=10**7)
    settings = engines.settings()
    mysql = engines.processes["mysql"]
    assert isinstance(mysql, MariaDBProcess)
    options = {**settings, "load_lease_seconds": str(lease_seconds)}
    with running_backends(folder, options, count=_BACKENDS) as backends:
        steady = _load_steady(backends[0], steady_photos)
        leases = _Leases(mysql, settings["mysql_db"], report)
        begin = time.monotonic()
        body = {"folder": str(folder / "photos"), "collection": "t"}
        answer = requests.post(f"{backends[0].url}/api/v1/loads", json=body, timeout=_TIMEOUT)
        assert answer.status_code == 202, answer.text
        load_id = int(answer.json()["id"])
        ups: list[tuple[float, int]] = []  # when which is to be started again
        with _Searches(backends, steady, report) as searches:
            while True:
                leases.look()
                load = _ask(backends, searches.is_up, load_id, draw)
                assert time.monotonic() - begin < _DEADLINE_SECONDS, load
                if load is not None and load["state"] != "running":
                    break
                killed = sum(report.kills.values())
                running = [number for number, is_up in enumerate(searches.is_up) if is_up]
                processed = 0 if load is None else load["counts"]["processed"]
                # At half of the photos the last: a kill has to wait for what is killed to be up.
                if killed < kills and running and processed >= photos * killed / (2 * kills):
                    number = draw.choice(running)
                    process = backends[number].process
                    assert process is not None
                    searches.is_up[number] = False
                    backends[number].kill()
                    leases.killed(process.pid)
                    report.kills[number] += 1
                    down = draw.uniform(0, _LONGEST_DOWN_SECONDS)
                    ups.append((time.monotonic() + down, number))
                    tell(f"{processed:5} photos: killed backend {number + 1}")
                for due in [each for each in ups if each[0] <= time.monotonic()]:
                    backends[due[1]].start(wait_seconds=0)
                    ups.remove(due)
                for number, is_up in enumerate(searches.is_up):
                    if not is_up and backends[number].is_running and backends[number].is_ready():
                        searches.is_up[number] = True
                time.sleep(0.05)
            report.seconds = time.monotonic() - begin
            assert sum(report.kills.values()) == kills
            assert max(report.taken_over, default=0.0) <= 2 * lease_seconds, report.taken_over
            for _, number in ups:
                backends[number].start(wait_seconds=0)
            for backend in backends:
                backend.wait_until_ready()
            searches.is_up[:] = [True] * _BACKENDS
            _check_told(backends, load_id, photos)
            _check_found(backends, draw.sample(paths, min(10, photos)))
    asyncio.run(_check_stores(folder, settings, paths))
    engines.forget(settings)
    return report


def _ask(
    backends: Sequence[Backend], is_up: Sequence[bool], load_id: int, draw: random.Random
) -> dict[str, Any] | None:
    """The load, as some backend that runs tells it; None where none can."""
    running = [number for number, up in enumerate(is_up) if up]
    if not running:
        return None
    number = draw.choice(running)
    answer = requests.get(f"{backends[number].url}/api/v1/loads/{load_id}", timeout=_TIMEOUT)
    if answer.status_code == 503:
        return None
    assert answer.status_code == 200, answer.text
    load: dict[str, Any] = answer.json()
    return load


def _load_steady(backend: Backend, photos: Sequence[Path]) -> dict[Path, Answer]:
    body = {"File": str(photos[0].parent), "Table": "steady"}
    answer = requests.post(f"{backend.url}/img/load", json=body, timeout=_TIMEOUT)
    assert answer.status_code == 200, answer.text
    return {path: _search(backend, path).json() for path in photos}


def _search(backend: Backend, path: Path, table: str = "steady") -> requests.Response:
    return requests.post(
        f"{backend.url}/img/search",
        params={"table_name": table},
        data={"topk": str(_TOP_K)},
        files={"image": (path.name, path.read_bytes())},
        timeout=_TIMEOUT,
    )


def _is_same(found: Answer, expected: Answer) -> bool:
    return [path for path, _ in found] == [path for path, _ in expected] and all(
        abs(one - other) < _SAME for (_, one), (_, other) in zip(found, expected, strict=True)
    )


def _check_told(backends: Sequence[Backend], load_id: int, photos: int) -> None:
    told = [
        requests.get(f"{each.url}/api/v1/loads/{load_id}", timeout=_TIMEOUT).json()
        for each in backends
    ]
    assert told[0]["state"] == "done", told[0]
    counts = told[0]["counts"]
    assert counts["indexed"] + counts["unchanged"] == counts["total"] == photos, counts
    assert [each["counts"] for each in told] == [counts] * len(told)


def _check_found(backends: Sequence[Backend], photos: Sequence[Path]) -> None:
    for backend in backends:
        for path in photos:
            [[nearest, distance], *_] = _search(backend, path, "t").json()
            assert (nearest, distance < _SAME) == (str(path), True), backend.url


async def _check_stores(folder: Path, settings: Mapping[str, str], photos: Sequence[Path]) -> None:
    """Every photo is there once, and catalog and vectors agree."""
    pair = {name.lower(): model for name, model in SMALL_PAIR.items()}
    own = Settings.load(data_dir=folder / "check", **pair, **settings)
    async with open_services(own, owns=False) as services:
        for report in await check_collections(
            services.catalog, services.vectors, services.analyzer.embedder, services.writer
        ):
            assert (report.missing, report.orphaned) == (set(), set()), report
            if report.collection.name == "t":
                states = {
                    image.path: image.state
                    async for page in services.catalog.images(
                        report.collection.id, ["pending", "undoing", "indexed", "failed"]
                    )
                    for image in page
                }
                assert states == dict.fromkeys(map(str, photos), "indexed")


def main() -> None:
    """Does what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.killing", description=__doc__)
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lease-seconds", type=float, default=15.0)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        running_engines(Path(folder) / "engines", milvus_session_seconds=60) as engines,
    ):
        report = kill_while_loading(
            Path(folder),
            engines,
            photos=options.photos,
            kills=options.kills,
            seed=options.seed,
            lease_seconds=options.lease_seconds,
            tell=lambda line: print(line, flush=True),
        )
    killed = ", ".join(f"{count} of backend {n + 1}" for n, count in sorted(report.kills.items()))
    print(
        f"{options.photos} photos in {report.seconds:.0f} s, with {options.kills} kills ({killed}):"
        " each is there once, catalog and vectors agree"
    )
    print(
        f"{sum(report.searches.values())} searches answered, all right ({dict(report.searches)});"
        f" {report.down} were asked of a backend that was down or starting"
    )
    if report.taken_over:
        print(
            f"{len(report.taken_over)} chunks of killed owners were taken over after at most"
            f" {max(report.taken_over):.1f} s, with leases of {report.lease_seconds:g} s"
        )


if __name__ == "__main__":
    main()
