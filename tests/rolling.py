"""Restarts three backends behind a balancer under load, one after the other: no request fails.

`python -m tests.rolling --rounds 5 --kills 3`; the test suite runs one round and one kill. Clients
search, read, upload and ask for the progress through HAProxy all the while, and try nothing again.
In a round each backend is ended by SIGTERM, as an update does, and started again. Then some are
killed, after which only what they were answering may fail. In the end what was acknowledged is
there, once.
"""

import argparse
import asyncio
import hashlib
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import requests

from backend.app import open_services
from backend.checking import CollectionReport, check_collections
from backend.settings import Settings
from tests.engines.backends import Backend, running_backends
from tests.engines.haproxy import HAProxyProcess
from tests.engines.production import running_engines
from tests.photos import draw_photo, encode
from tests.service import SMALL_PAIR

__all__ = ["Failure", "RollingReport", "rolling_restarts"]

_BACKENDS: Final = 3
_SETTINGS: Final = {
    # 3 s until the balancer has noticed, and the longest request.
    "drain_seconds": "5",
    "trusted_proxies": "127.0.0.1",
    "require_api_key": "false",
}
_STEADY: Final = 6
"""Photos that are there from the beginning, and are searched for."""
_NOTICE_SECONDS: Final = 30.0
_SAME: Final = 1e-3
_TIMEOUT: Final = 60.0


@dataclass(frozen=True)
class Failure:
    """A request that was not answered, or not well.

    Attributes:
        began: by the monotonic clock.
    """

    kind: str
    began: float
    reason: str


@dataclass
class RollingReport:
    """What was asked for, and what has become of it.

    Attributes:
        done: of each kind, what clients have done; reading is three requests.
        requests: that were sent.
        failures: of requests while backends were restarted.
        killed: of those that a backend was answering when it was killed.
        uploads: that were acknowledged.
        restarts: seconds that each took, until the balancer had the backend back.
        slowest: seconds that the longest answer took.
    """

    done: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    failures: list[Failure] = field(default_factory=list)
    killed: list[Failure] = field(default_factory=list)
    uploads: int = 0
    restarts: list[float] = field(default_factory=list)
    slowest: float = 0.0


class _Clients:
    """Threads that ask until they are stopped, and know what there has to be."""

    def __init__(self, url: str, report: RollingReport, *, count: int, pause: float) -> None:
        """`pause`: seconds of each client between two requests, on average."""
        self.acknowledged: dict[str, int] = {}
        """Ids of uploaded photos, by the SHA-256 of their bytes."""
        self.unanswered: set[str] = set()
        """Of uploads that nobody knows of whether they were done."""
        self.failures: list[Failure] = []
        self.steady: list[tuple[bytes, int]] = []
        self._url = url
        self._report = report
        self._pause = pause
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(each,)) for each in range(count)]

    def __enter__(self) -> "_Clients":
        with requests.Session() as session:
            for number in range(_STEADY):
                photo = encode(draw_photo(number))
                self.steady.append((photo, self._upload(session, photo)))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def take_failures(self) -> list[Failure]:
        """What has failed since it was last asked for."""
        with self._lock:
            taken, self.failures = self.failures, []
        return taken

    def _run(self, number: int) -> None:
        draw = random.Random(number)
        kinds = (self._search, self._search_old, self._read, self._upload_one, self._ask)
        with requests.Session() as kept_open:
            while not self._stop.is_set():
                # One client in two opens a connection for each request.
                with nullcontext(kept_open) if number % 2 else requests.Session() as session:
                    self._try(draw.choice(kinds), session, draw)
                    self._stop.wait(draw.uniform(0, 2 * self._pause))

    def _try(
        self,
        ask: Callable[[requests.Session, random.Random], None],
        session: requests.Session,
        draw: random.Random,
    ) -> None:
        kind = ask.__name__.strip("_")
        began = time.monotonic()
        try:
            ask(session, draw)
        except (requests.RequestException, AssertionError, LookupError, ValueError) as error:
            with self._lock:
                self.failures.append(Failure(kind, began, f"{type(error).__name__}: {error}"))
        with self._lock:
            self._report.done[kind] += 1
            self._report.slowest = max(self._report.slowest, time.monotonic() - began)

    def _call(self, session: requests.Session, method: str, path: str, **options: Any) -> Any:
        with self._lock:
            self._report.requests += 1
        answer = session.request(method, self._url + path, timeout=_TIMEOUT, **options)
        assert answer.ok, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer

    def _search(self, session: requests.Session, draw: random.Random) -> None:
        photo, image_id = draw.choice(self.steady)
        files = {"image": ("query.jpg", photo)}
        answer = self._call(session, "POST", "/api/v1/search?top_k=1", files=files)
        [hit] = answer.json()["hits"]
        assert (hit["image"]["id"], hit["distance"] < _SAME) == (image_id, True), answer.text

    def _search_old(self, session: requests.Session, draw: random.Random) -> None:
        photo, _ = draw.choice(self.steady)
        answer = self._call(session, "POST", "/img/search", files={"image": ("query.jpg", photo)})
        [path, distance] = answer.json()[0]
        assert (Path(path).read_bytes() == photo, distance < _SAME) == (True, True), answer.text

    def _read(self, session: requests.Session, draw: random.Random) -> None:
        photo, image_id = draw.choice(self.steady)
        detail = self._call(session, "GET", f"/api/v1/images/{image_id}").json()
        assert detail["sha256"] == _sha256(photo)
        assert self._call(session, "GET", f"/api/v1/images/{image_id}/file").content == photo
        self._call(session, "GET", f"/api/v1/images/{image_id}/thumbnail")

    def _upload_one(self, session: requests.Session, draw: random.Random) -> None:
        photo = encode(draw_photo(draw.randrange(10**6, 10**9), width=160, height=120))
        self._upload(session, photo)

    def _upload(self, session: requests.Session, photo: bytes) -> int:
        sha256 = _sha256(photo)
        with self._lock:
            self.unanswered.add(sha256)
        answer = self._call(
            session, "POST", "/api/v1/images", files={"image": ("photo.jpg", photo)}
        )
        [result] = answer.json()["results"]
        image_id = int(result["image"]["id"])
        with self._lock:
            self.unanswered.remove(sha256)
            self.acknowledged[sha256] = image_id
        return image_id

    def _ask(self, session: requests.Session, draw: random.Random) -> None:
        path = draw.choice(("/progress", "/readyz", "/healthz", "/api/v1/loads"))
        self._call(session, "GET", path).json()


def rolling_restarts(
    folder: Path,
    settings: Mapping[str, str],
    *,
    rounds: int,
    kills: int,
    clients: int = 4,
    pause: float = 0.8,
    tell: Callable[[str], None] = lambda line: None,
) -> RollingReport:
    """Restarts and kills backends on the engines that the settings lead to.

    Raises:
        AssertionError: a backend did not stop or start, a request that a killed one was not
            answering has failed after that, or the catalog, the vectors and what was acknowledged
            are not the same.
    """
    report = RollingReport()
    with ExitStack() as stack:
        backends = stack.enter_context(
            running_backends(folder, {**settings, **_SETTINGS}, count=_BACKENDS)
        )
        balancer = HAProxyProcess(folder / "haproxy", backends)
        stack.callback(balancer.remove)
        balancer.start()
        with _Clients(balancer.url, report, count=clients, pause=pause) as asking:
            for number in range(rounds):
                for place, backend in enumerate(backends, 1):
                    begin = time.monotonic()
                    backend.terminate()
                    balancer.wait_until_noticed(place, _NOTICE_SECONDS)
                    assert backend.is_running, "it has ended while requests came"
                    backend.wait_until_stopped()
                    backend.start()
                    balancer.wait_until_all_get_requests(_NOTICE_SECONDS)
                    report.restarts.append(time.monotonic() - begin)
                tell(_line(f"round {number + 1}", report, asking.failures))
            time.sleep(pause)
            report.failures = asking.take_failures()
            for number in range(kills):
                backend = backends[number % _BACKENDS]
                backend.kill()
                died = time.monotonic()
                balancer.wait_until_noticed(number % _BACKENDS + 1, _NOTICE_SECONDS)
                backend.start()
                balancer.wait_until_all_get_requests(_NOTICE_SECONDS)
                killed = asking.take_failures()
                late = [each for each in killed if each.began > died]
                assert not late, f"failed though the backend was dead when they came: {late}"
                report.killed += killed
                tell(_line(f"kill {number + 1}", report, report.killed))
            time.sleep(pause)
        assert not asking.failures, asking.failures
        report.uploads = len(asking.acknowledged)
        _check(backends, asking)
    return report


def _check(backends: Sequence[Backend], asking: _Clients) -> None:
    """What was acknowledged is there once, on every backend; and nothing else but what may be."""
    for backend in backends:
        found: Counter[str] = Counter()
        params: dict[str, str] | None = {"limit": "100"}
        while params is not None:
            answer = backend.service.get("/api/v1/images", params=params)
            assert answer.status_code == 200, answer.text
            page = answer.json()
            for item in page["items"]:
                assert asking.acknowledged.get(item["sha256"], item["id"]) == item["id"]
                found[item["sha256"]] += 1
            cursor = page["next_cursor"]
            params = None if cursor is None else {"limit": "100", "cursor": cursor}
        assert set(found.values()) == {1}
        missing = set(asking.acknowledged) - set(found)
        assert not missing, f"acknowledged, and not there: {missing}"
        assert set(found) - set(asking.acknowledged) <= asking.unanswered
    [report] = asyncio.run(_compare(backends[0]))
    assert (report.missing, report.orphaned, report.gone) == (set(), set(), [])


async def _compare(backend: Backend) -> list[CollectionReport]:
    settings = {name: value for name, value in backend.settings.items() if name != "port"}
    small_pair = {name.lower(): model for name, model in SMALL_PAIR.items()}
    async with open_services(Settings.load(**settings, **small_pair), owns=False) as services:
        return await check_collections(
            services.catalog, services.vectors, services.analyzer.embedder, services.writer
        )


def _sha256(photo: bytes) -> str:
    return hashlib.sha256(photo).hexdigest()


def _line(what: str, report: RollingReport, failures: Sequence[Failure]) -> str:
    return f"{what}: {report.requests} requests so far, {len(failures)} failures"


def main() -> None:
    """Runs the rounds that the command line asks for, on engines of its own."""
    parser = argparse.ArgumentParser(prog="python -m tests.rolling", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--pause", type=float, default=0.2, help="of a client, in seconds")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with running_engines(folder / "engines", milvus_session_seconds=5) as engines:
            report = rolling_restarts(
                folder / "backends",
                engines.settings(),
                rounds=options.rounds,
                kills=options.kills,
                clients=options.clients,
                pause=options.pause,
                tell=print,
            )
    for failure in (*report.failures, *report.killed):
        print(f"{failure.kind}: {failure.reason}")
    print(f"{report.requests} requests; the slowest took {report.slowest:.2f} s")
    print(", ".join(f"{count} times {kind}" for kind, count in sorted(report.done.items())))
    print(f"{len(report.restarts)} restarts: {len(report.failures)} requests failed")
    print(f"{options.kills} kills: {len(report.killed)} requests failed, all on their way then")
    print(f"uploads acknowledged: {report.uploads}; each is there once")


if __name__ == "__main__":
    main()
