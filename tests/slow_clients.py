"""Slow clients beside ordinary ones: these must not notice.

`python -m tests.slow_clients` measures the latency of searches and of small requests on a quiet
server, with 200 clients that send one byte a second, with 1,000 connections that are idle, with
clients that never read what they have asked for, and with all of them, and says by how much the
99th percentile is higher. The parts alternate with quiet ones, since a machine's own speed drifts.
Whoever the service ends comes again at once, and where not nearly all are there while it measures,
it fails. The test suite runs a short one that looks at what happens, and not at how long it takes.
"""

import argparse
import asyncio
import resource
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

import aiohttp
import numpy as np
import psutil

from benchmarks.reporting import environment, percentiles_ms, rounded, write_json
from tests.photos import draw_photo, encode, write_photos
from tests.service import Service, start

__all__ = ["Attendance", "Crowd", "Figures", "attended", "crowded", "measure", "prepared"]

_BYTE_SECONDS: Final = 1.0
_COMING_SECONDS: Final = 20.0
_SETTLE_SECONDS: Final = 2.0
"""Until all are there, and slow: for a second a place is kept for a photo that comes in."""
_POOLS: Final = 20
"""Descriptors by which pools of threads, processes and connections may grow up to their limits."""
_SLOW: Final = 200
_IDLE: Final = 1000
_NEVER_READ: Final = 20
_NEARLY_ALL: Final = 0.95
_LOOK_SECONDS: Final = 0.1
"""Between two looks at who is there."""
_AGAIN_SECONDS: Final = 0.1
"""After which a client comes again that could not connect."""
_RECEIVED: Final = 2**16
_RECEIVE_BUFFER: Final = 4096
_FORM: Final = "multipart/form-data; boundary=slow"
_HEADS: Final = (
    # A head that has no end, a JSON body, a photo, and a body that nobody wants.
    b"GET /progress HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ",
    b"POST /img/load HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n\r\n",
    b"POST /img/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\nContent-Type: "
    + _FORM.encode()
    + b'\r\n\r\n--slow\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n',
    b"POST /img/count HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n\r\n",
)


@dataclass
class Crowd:
    """Who is there besides the ordinary clients.

    Attributes:
        ended: connections that the service has ended, by what they did.
        answered: clients that have been ended, or got an answer, at least once, by what they do
            and their numbers. An answer does not end what is still being sent at once.
    """

    slow: int = 0
    idle: int = 0
    never_read: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    answered: set[tuple[str, int]] = field(default_factory=set)
    _here: Counter[str] = field(default_factory=Counter)

    @property
    def wanted(self) -> dict[str, int]:
        """How many there are to be, by what they do."""
        whole = {"slow": self.slow, "idle": self.idle, "never read": self.never_read}
        return {kind: count for kind, count in whole.items() if count}

    @property
    def here(self) -> dict[str, int]:
        """How many are connected now, by what they do."""
        return {kind: self._here[kind] for kind in self.wanted}

    @contextmanager
    def present(self, kind: str, number: int) -> Iterator[None]:
        """A client is connected inside; where nothing breaks, the service has ended it then."""
        self._here[kind] += 1
        try:
            yield
            self.ended[kind] += 1
            self.answered.add((kind, number))
        finally:
            self._here[kind] -= 1


@dataclass
class Attendance:
    """Who of a crowd was there while something was measured.

    Attributes:
        mean, fewest, end: of each kind, on the average, at the worst look, and when it was over.
        connections: of the service's, when it was over.
    """

    mean: dict[str, float] = field(default_factory=dict)
    fewest: dict[str, int] = field(default_factory=dict)
    end: dict[str, int] = field(default_factory=dict)
    connections: int = 0

    def check(self, crowd: Crowd) -> None:
        """Fails where less than nearly all of the crowd were there."""
        for kind, wanted in crowd.wanted.items():
            least = min(self.mean[kind], self.end[kind])
            assert least >= _NEARLY_ALL * wanted, f"of {wanted} that are {kind}: {self}"
        assert self.connections >= _NEARLY_ALL * sum(crowd.wanted.values()), self


@dataclass
class Figures:
    """Latencies in seconds of what ordinary clients have asked for, and how often in vain."""

    searches: list[float] = field(default_factory=list)
    small: list[float] = field(default_factory=list)
    refused: int = 0

    def p99(self, of: Sequence[float]) -> float:
        """The 99th percentile."""
        return float(np.percentile(of, 99))


@asynccontextmanager
async def crowded(service: Service, crowd: Crowd, large_photo: Path) -> AsyncIterator[None]:
    """The crowd is there inside; whoever the service ends is counted, and comes again at once."""
    parts = urlsplit(service.url)
    host, port = str(parts.hostname), int(parts.port or 0)
    path = quote(str(large_photo))
    wanted = f"GET /data?image_path={path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()

    @asynccontextmanager
    async def connected(
        kind: str, number: int
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection(host, port, limit=_RECEIVE_BUFFER)
        try:
            with crowd.present(kind, number):
                yield reader, writer
        finally:
            writer.transport.abort()

    async def read_to_the_end(kind: str, number: int, reader: asyncio.StreamReader) -> None:
        with suppress(ConnectionError):
            while await reader.read(_RECEIVED):
                crowd.answered.add((kind, number))

    async def send_slowly(kind: str, number: int, beginning: bytes, drop: bytes) -> None:
        """Goes on until the service has ended it: an answer that comes before is read, no more."""
        async with connected(kind, number) as (reader, writer):
            end = asyncio.create_task(read_to_the_end(kind, number, reader))
            try:
                with suppress(ConnectionError):
                    writer.write(beginning)
                    while not end.done():
                        await asyncio.wait([end], timeout=_BYTE_SECONDS if drop else None)
                        if not end.done():
                            writer.write(drop)
                            await writer.drain()
            finally:
                end.cancel()

    async def never_read(number: int) -> None:
        async with connected("never read", number) as (_, writer):
            transport = writer.transport
            assert isinstance(transport, asyncio.ReadTransport)
            transport.pause_reading()
            writer.write(wanted)
            # Whether the service has ended it shows only when something is sent, or looked for.
            taken = writer.get_extra_info("socket")
            while taken.getsockopt(1, 4) == 0 and not transport.is_closing():  # SO_ERROR
                await asyncio.sleep(_BYTE_SECONDS)
                with suppress(ConnectionError):
                    writer.write(b"\r\n")

    async def again_and_again(come: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            try:
                await come()
            except ConnectionError:  # there was no room
                await asyncio.sleep(_AGAIN_SECONDS)

    comers = [
        *(
            partial(send_slowly, "slow", number, _HEADS[number % len(_HEADS)], b"a")
            for number in range(crowd.slow)
        ),
        *(partial(send_slowly, "idle", number, b"", b"") for number in range(crowd.idle)),
        *(partial(never_read, number) for number in range(crowd.never_read)),
    ]
    tasks = [asyncio.create_task(again_and_again(come)) for come in comers]
    try:
        # Not for ever: whether they have come is for `Attendance` to tell.
        end = time.monotonic() + _COMING_SECONDS
        nearly_all = _NEARLY_ALL * sum(crowd.wanted.values())
        while await _connections(service) < nearly_all and time.monotonic() < end:
            await asyncio.sleep(_LOOK_SECONDS)
        await asyncio.sleep(_SETTLE_SECONDS)
        yield
    finally:
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result


@asynccontextmanager
async def attended(service: Service, crowd: Crowd) -> AsyncIterator[Attendance]:
    """Looks who of the crowd is there while something is measured inside; tells afterwards."""
    found = Attendance()
    looks: list[dict[str, int]] = []

    async def look() -> None:
        while True:
            looks.append(crowd.here)
            await asyncio.sleep(_LOOK_SECONDS)

    looking = asyncio.create_task(look())
    try:
        yield found
    finally:
        looking.cancel()
    found.end = crowd.here
    for kind in crowd.wanted:
        found.mean[kind] = statistics.fmean(each[kind] for each in looks)
        found.fewest[kind] = min(each[kind] for each in looks)
    found.connections = await _connections(service)


async def _connections(service: Service) -> int:
    """How many the service has taken: the system has connected more by then."""
    process = psutil.Process(service.process.pid)
    open_now = await asyncio.to_thread(process.net_connections, "tcp")
    return sum(each.status == psutil.CONN_ESTABLISHED for each in open_now)


async def measure(service: Service, photo: bytes, figures: Figures, seconds: float) -> None:
    """One ordinary client that searches, and one that asks for small things, one after another."""
    end = time.monotonic() + seconds
    async with aiohttp.ClientSession(service.url) as client:

        async def search() -> None:
            while time.monotonic() < end:
                form = aiohttp.FormData()
                form.add_field("image", photo, filename="a.jpg")
                begun = time.monotonic()
                async with client.post("/img/search", data=form) as answer:
                    await answer.read()
                    assert answer.status in (200, 429), await answer.text()
                if answer.status == 429:
                    figures.refused += 1
                    await asyncio.sleep(0.1)
                else:
                    figures.searches.append(time.monotonic() - begun)

        async def ask() -> None:
            while time.monotonic() < end:
                begun = time.monotonic()
                async with client.post("/img/count") as answer:
                    await answer.read()
                    assert answer.status == 200, await answer.text()
                figures.small.append(time.monotonic() - begun)
                await asyncio.sleep(0.01)

        await asyncio.gather(search(), ask())


def prepared(folder: Path, *flags: str) -> tuple[Service, Path]:
    """A service with photos in it, one of which is too large for a socket's buffers."""
    write_photos(folder / "photos", 20)
    large = folder / "photos" / "large.bmp"
    large.write_bytes(encode(np.zeros((4000, 3000, 3), np.uint8), ".bmp"))
    service = start(folder, flags, folder / "data", is_measured=True)
    try:
        assert service.load(folder / "photos").status_code == 200
        assert service.count() == 21
    except BaseException:
        service.stop()
        raise
    return service, large


async def _compare(
    service: Service, large: Path, *, rounds: int, seconds: float, tell: Callable[[str], None]
) -> dict[str, Any]:
    """The report, in milliseconds."""
    photo = encode(draw_photo(3))
    crowds = {
        f"{_SLOW} that send a byte a second": (_SLOW, 0, 0),
        f"{_IDLE:,} idle connections": (0, _IDLE, 0),
        f"{_NEVER_READ} that never read": (0, 0, _NEVER_READ),
        "all of them": (_SLOW, _IDLE, _NEVER_READ),
    }
    process = psutil.Process(service.process.pid)
    await measure(service, photo, Figures(), seconds)  # opens what stays open
    descriptors = process.num_fds()
    report: dict[str, Any] = {"rounds": rounds, "seconds": seconds, "crowds": {}}
    for name, numbers in crowds.items():
        quiet, busy = Figures(), Figures()
        ratios: dict[str, list[float]] = {"searches": [], "small requests": []}
        attendances = []
        ended: Counter[str] = Counter()
        for _ in range(rounds):
            alone, beside, crowd = Figures(), Figures(), Crowd(*numbers)
            await measure(service, photo, alone, seconds)
            async with crowded(service, crowd, large):
                async with attended(service, crowd) as attendance:
                    await measure(service, photo, beside, seconds)
                tell(
                    f"{name}: at the end {attendance.end}, of the service's connections"
                    f" {attendance.connections}; on the average {attendance.mean}; ended and come"
                    f" again: {dict(crowd.ended)}"
                )
                attendance.check(crowd)
            attendances.append(attendance)
            ended += crowd.ended
            for kind, before, after in (
                ("searches", alone.searches, beside.searches),
                ("small requests", alone.small, beside.small),
            ):
                ratios[kind].append(alone.p99(after) / alone.p99(before))
            for whole, part in ((quiet, alone), (busy, beside)):
                whole.searches += part.searches
                whole.small += part.small
                whole.refused += part.refused
        async with crowded(service, Crowd(*numbers), large):
            share = await _processor_share(process, seconds)
        tell(
            f"{name}: {100 * share:.1f}% of a core for them alone; searches refused: {busy.refused}"
        )
        report["crowds"][name] = figures = {
            "core_share": share,
            "searches_refused": busy.refused,
            "ended": dict(ended),
            "there": [asdict(attendance) for attendance in attendances],
        }
        for kind, before, after in (
            ("searches", quiet.searches, busy.searches),
            ("small requests", quiet.small, busy.small),
        ):
            figures[kind.replace(" ", "_")] = {
                "alone": {"count": len(before), **percentiles_ms(before)},
                "beside": {"count": len(after), **percentiles_ms(after)},
                "p99_ratio": quiet.p99(after) / quiet.p99(before),
                "p99_ratio_median_of_rounds": statistics.median(ratios[kind]),
            }
            tell(
                f"{name}: {kind}: p99 {1000 * quiet.p99(before):.1f} ms alone,"
                f" {1000 * quiet.p99(after):.1f} ms beside them:"
                f" {quiet.p99(after) / quiet.p99(before):.2f} times (of {len(before)} and"
                f" {len(after)}; median of {rounds} rounds {statistics.median(ratios[kind]):.2f})"
            )
    end = time.monotonic() + 30
    while process.num_fds() > descriptors + _POOLS:
        assert time.monotonic() < end, f"descriptors: {descriptors} before, {process.num_fds()} now"
        await asyncio.sleep(0.2)
    tell(f"descriptors of the service: {descriptors} before, {process.num_fds()} after")
    return report | {"descriptors": {"before": descriptors, "after": process.num_fds()}}


async def _processor_share(process: psutil.Process, seconds: float) -> float:
    """What part of a core the service takes."""
    before, begun = sum(process.cpu_times()[:2]), time.monotonic()
    await asyncio.sleep(seconds)
    return (sum(process.cpu_times()[:2]) - before) / (time.monotonic() - begun)


def main() -> None:
    """Measures as long as the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.slow_clients", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each part of a round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory() as folder:
        service, large = prepared(Path(folder))
        try:
            report = asyncio.run(
                _compare(
                    service,
                    large,
                    rounds=options.rounds,
                    seconds=options.seconds,
                    tell=lambda line: print(line, flush=True),
                )
            )
        finally:
            service.stop()
    if options.json:
        write_json(options.json, rounded({**environment("aiohttp"), **report}))


if __name__ == "__main__":
    main()
