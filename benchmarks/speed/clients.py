"""Clients that search, in a process of their own: what they cost is not in the service's time.

They share the machine's cores with the service all the same; `Answers.cpu_seconds` tells how much
of them they took.
"""

import asyncio
import itertools
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final, ParamSpec, TypeVar

import aiohttp
import numpy as np

__all__ = ["OK", "REFUSED", "Answers", "Clients", "Overload", "clients"]

OK: Final = "200"
REFUSED: Final = "429"
_BOUNDARY: Final = "boundary-of-the-benchmark"
_HEADERS: Final = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
_TIMEOUT_SECONDS: Final = 300.0
_LOAD_STARTS_SECONDS: Final = 0.1
_PROBES: Final = 10
"""Searches in a row, one at a time, by which latency is found to be back to normal."""
_NORMAL: Final = 1.5
"""How many times the quiet median theirs may be."""
_SEED: Final = 0

_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass
class Answers:
    """What became of searches.

    Attributes:
        seconds: of each that was answered with 200.
        statuses: how many were answered with what; without an answer, by the failure's name.
        elapsed: seconds, of all together.
        cpu_seconds: that the clients' process took meanwhile.
        lateness: seconds by which each of an open loop was sent later than planned.
    """

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    elapsed: float = 0.0
    cpu_seconds: float = 0.0
    lateness: list[float] = field(default_factory=list)

    @property
    def per_second(self) -> float:
        """Searches answered with 200 a second."""
        return len(self.seconds) / self.elapsed

    @property
    def cpu_share(self) -> float:
        """Cores that the clients kept busy."""
        return self.cpu_seconds / self.elapsed

    @property
    def others(self) -> dict[str, int]:
        """The counts of every status that is neither 200 nor 429."""
        return {key: count for key, count in self.statuses.items() if key not in (OK, REFUSED)}


@dataclass(frozen=True)
class Overload:
    """Searches of an open loop, and how many seconds after the last one was sent searches took no
    longer than before; None where that did not come."""

    answers: Answers
    recovery_seconds: float | None


class Clients:
    """Clients with query photos, whose requests are made beforehand."""

    def __init__(self, process: ProcessPoolExecutor, photos: Sequence[bytes]) -> None:
        self._process = process
        self._bodies = [_multipart(photo) for photo in photos]

    def search(self, url: str, photos: slice) -> Answers:
        """One client searches for each of these photos, one after the other."""
        bodies = self._bodies[photos]
        return self._run(_closed_loop, url, bodies, 1, requests=len(bodies))

    def closed_loop(self, url: str, count: int, seconds: float) -> Answers:
        """`count` clients, each with its next search as soon as the last one is answered."""
        return self._run(_closed_loop, url, self._bodies, count, seconds=seconds)

    def during_load(
        self, url: str, folder: Path, query: Mapping[str, str] | None = None
    ) -> tuple[Answers, float]:
        """One client's searches while a folder is loaded, and the load's seconds.

        `query`: parameters of the request to load.
        """
        return self._run(_during_load, url, self._bodies, str(folder), query or {})

    def start_overload(
        self, url: str, rate: float, seconds: float, *, quiet_seconds: float, patience: float
    ) -> "Future[Overload]":
        """Searches that come at random, `rate` of them a second on average, whatever the answers.

        Args:
            url: of the service.
            rate: searches a second.
            seconds: that they come for.
            quiet_seconds: what one search takes at a quiet service.
            patience: seconds to wait afterwards until it does again.
        """
        return self._submit(_overload, url, self._bodies, rate, seconds, quiet_seconds, patience)

    def _run(
        self,
        function: Callable[_P, Coroutine[Any, Any, _T]],
        *arguments: _P.args,
        **options: _P.kwargs,
    ) -> _T:
        return self._submit(function, *arguments, **options).result()

    def _submit(
        self,
        function: Callable[_P, Coroutine[Any, Any, _T]],
        *arguments: _P.args,
        **options: _P.kwargs,
    ) -> "Future[_T]":
        return self._process.submit(_complete, function, arguments, options)


@contextmanager
def clients(photos: Sequence[bytes]) -> Iterator[Clients]:
    """Clients that search for these encoded photos."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as process:
        yield Clients(process, photos)


def _complete(
    function: Callable[..., Coroutine[Any, Any, _T]],
    arguments: Sequence[Any],
    options: Mapping[str, Any],
) -> _T:
    return asyncio.run(function(*arguments, **options))


def _multipart(photo: bytes) -> bytes:
    head = (
        f"--{_BOUNDARY}\r\n"
        'Content-Disposition: form-data; name="image"; filename="query.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    )
    return head.encode() + photo + f"\r\n--{_BOUNDARY}--\r\n".encode()


class _Searches:
    """Sends searches and notes what becomes of them."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = f"{url}/img/search"
        self.answers = Answers()
        self._began = time.perf_counter(), time.process_time()

    async def send(self, body: bytes) -> float | None:
        """Seconds until the answer; None where it is not 200."""
        start = time.perf_counter()
        try:
            async with self._session.post(self._url, data=body, headers=_HEADERS) as answer:
                await answer.read()
                status = str(answer.status)
        except (aiohttp.ClientError, OSError, TimeoutError) as failure:
            status = type(failure).__name__
        seconds = time.perf_counter() - start
        self.answers.statuses[status] += 1
        if status != OK:
            return None
        self.answers.seconds.append(seconds)
        return seconds

    def end(self) -> Answers:
        wall, cpu = self._began
        self.answers.elapsed = time.perf_counter() - wall
        self.answers.cpu_seconds = time.process_time() - cpu
        return self.answers


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=_TIMEOUT_SECONDS),
    )


async def _connect(session: aiohttp.ClientSession, url: str, count: int) -> None:
    """Makes the connections that are kept alive for what is measured."""

    async def ask() -> None:
        async with session.get(f"{url}/progress") as answer:
            await answer.read()

    await asyncio.gather(*(ask() for _ in range(count)))


async def _closed_loop(
    url: str,
    bodies: Sequence[bytes],
    count: int,
    *,
    seconds: float = float("inf"),
    requests: int | None = None,
) -> Answers:
    async with _session() as session:
        await _connect(session, url, count)
        waiting = itertools.islice(itertools.cycle(bodies), requests)
        searches = _Searches(session, url)
        end = time.perf_counter() + seconds

        async def search() -> None:
            for body in waiting:
                await searches.send(body)
                if time.perf_counter() >= end:
                    return

        await asyncio.gather(*(search() for _ in range(count)))
        return searches.end()


async def _during_load(
    url: str, bodies: Sequence[bytes], folder: str, query: Mapping[str, str]
) -> tuple[Answers, float]:
    async with _session() as session:
        await _connect(session, url, 2)
        start = time.perf_counter()
        load = asyncio.create_task(_load(session, url, folder, query))
        await asyncio.sleep(_LOAD_STARTS_SECONDS)
        searches = _Searches(session, url)
        for body in itertools.cycle(bodies):
            await searches.send(body)
            if load.done():
                break
        return searches.end(), await load - start


async def _load(
    session: aiohttp.ClientSession, url: str, folder: str, query: Mapping[str, str]
) -> float:
    """When the load is answered."""
    async with session.post(f"{url}/img/load", params=query, json={"File": folder}) as answer:
        text = await answer.text()
        if answer.status != int(OK):
            raise RuntimeError(f"the load failed: {answer.status} {text}")
    return time.perf_counter()


async def _overload(
    url: str,
    bodies: Sequence[bytes],
    rate: float,
    seconds: float,
    quiet_seconds: float,
    patience: float,
) -> Overload:
    random = np.random.default_rng(_SEED)
    gaps = random.exponential(1 / rate, max(1, round(rate * seconds)))
    async with _session() as session:
        searches = _Searches(session, url)
        sent: set[asyncio.Task[float | None]] = set()
        start = time.perf_counter()
        for planned, body in zip(start + np.cumsum(gaps), itertools.cycle(bodies), strict=False):
            await asyncio.sleep(planned - time.perf_counter())
            searches.answers.lateness.append(time.perf_counter() - planned)
            task = asyncio.create_task(searches.send(body))
            sent.add(task)
            task.add_done_callback(sent.discard)
        recovery = asyncio.create_task(_recovery(url, bodies, quiet_seconds, patience))
        if sent:
            await asyncio.wait(sent)
        answers = searches.end()
        return Overload(answers, await recovery)


async def _recovery(
    url: str, bodies: Sequence[bytes], quiet_seconds: float, patience: float
) -> float | None:
    """Seconds until a client's searches take what they take at a quiet service."""
    begin = time.perf_counter()
    probes: list[tuple[float, float | None]] = []
    async with _session() as session:
        searches = _Searches(session, url)
        for body in itertools.cycle(bodies):
            at = time.perf_counter() - begin
            if at > patience:
                return None
            probes = [*probes, (at, await searches.send(body))][-_PROBES:]
            taken = [seconds for _, seconds in probes if seconds is not None]
            if len(taken) == _PROBES and median(taken) <= _NORMAL * quiet_seconds:
                return probes[0][0]
    return None
