"""Everything at once for a long time, with faults in between: nothing is lost, and nothing leaks.

`python -m tests.soak --minutes 15 --seed 1`; the test suite runs twelve seconds. Clients search,
load, upload, delete and drop all the while, and know what there has to be. Others send photos that
are none, go away in the middle of a request, or send it byte by byte; Milvus Lite is killed and
frozen, and processes that decode photos are killed. In the end every count is exact, and memory,
tasks, threads and descriptors are what they were.
"""

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import psutil
import requests

from backend.cores import count_cores
from benchmarks.reporting import environment, rounded, write_json
from tests.http.test_metrics import figures, one
from tests.photos import draw_photo, encode, write_photos
from tests.service import REPOSITORY, SMALL_PAIR, Service, resident_bytes, start

__all__ = ["MOST_DECODERS", "MOST_GROWTH", "SoakReport", "soak"]

MOST_GROWTH: Final = 150 * 2**20
"""Bytes by which the service and its processes may have grown since a fifth of the time: what
Milvus Lite keeps of vectors that have come and gone until it tidies up, and what malloc keeps of
eight kinds of requests at once."""
_STEADY: Final = 20
_CHANGING: Final = 30
_SAME: Final = 1e-3
_AGAIN: Final = 0.25
"""The part of uploads that come a second time, and of deleted photos that come back."""
_SETTLE_SECONDS: Final = 60.0
_PATIENCE_SECONDS: Final = 300.0
"""Of a client: a load waits for an engine as long as it takes."""
_LONGEST_PAUSE_SECONDS: Final = 8.0
"""Between two faults."""
_TIMEOUTS: Final = (
    *("--request-timeout", "10", "--engine-timeout", "10"),
    *("--upload-timeout", "2", "--idle-timeout", "3", "--send-timeout", "3"),
)


@dataclass
class SoakReport:
    """What has happened, and what is left of it.

    Attributes:
        done: of each kind of work.
        refused: answers of 503 and 429, after which it was tried again.
        left: figures at the beginning and at the end.
        growth: bytes of memory, since a fifth of the time.
        decoders: processes that there are at the end.
    """

    done: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    left: dict[str, tuple[int, int]] = field(default_factory=dict)
    growth: int = 0
    decoders: int = 0
    seconds: float = 0.0


class _Soak:
    """The clients, and what they know of what there has to be."""

    def __init__(self, service: Service, folder: Path, seed: int) -> None:
        self.service = service
        self.folder = folder
        self.report = SoakReport()
        self.lock = threading.Lock()
        self.stop = threading.Event()
        self.seed = seed
        self.kept: dict[int, bytes] = {}
        """Uploaded photos that nobody has deleted, by their ids. No two are ever the same: an
        upload of a photo that is being deleted is answered that it is there, which is true, and by
        the time that it is noted here it may be gone."""
        self.steady = write_photos(folder / "steady", _STEADY, start=10**6)
        self.changing = write_photos(folder / "changing", _CHANGING)

    def count(self, kind: str) -> None:
        with self.lock:
            self.report.done[kind] += 1

    def ask(self, method: str, path: str, *allowed: int, **options: Any) -> requests.Response:
        """Asks until the service does not say that it cannot just now."""
        end = time.monotonic() + _SETTLE_SECONDS
        while True:
            answer = requests.request(
                method, self.service.url + path, timeout=_PATIENCE_SECONDS, **options
            )
            # Whoever decodes a photo when its process is killed cannot tell whose fault it was.
            killed = answer.status_code == 400 and "the photo cannot be decoded: " in answer.text
            if answer.status_code not in (429, 503) and not killed:
                break
            assert killed or int(answer.headers["Retry-After"]) > 0
            assert time.monotonic() < end, f"still refused: {answer.text}"
            with self.lock:
                self.report.refused += 1
            time.sleep(0.2)
        assert answer.status_code in (allowed or (200,)), f"{method} {path}: {answer.text}"
        return answer

    def search(self, draw: random.Random) -> None:
        path = draw.choice(self.steady)
        files = {"image": ("a.jpg", path.read_bytes())}
        answer = self.ask("POST", "/img/search?table_name=steady", files=files)
        [nearest, distance] = answer.json()[0]
        assert (nearest, distance < _SAME) == (str(path), True), answer.text

    def load(self, draw: random.Random) -> None:
        for path in draw.sample(self.changing, 5):
            part = path.with_suffix(".part")
            part.write_bytes(encode(draw_photo(draw.randrange(10**5))))
            part.replace(path)
        body = {"File": str(self.folder / "changing"), "Table": "changing"}
        self.ask("POST", "/img/load", json=body)

    def upload(self, draw: random.Random) -> None:
        photo = encode(draw_photo(draw.randrange(10**7, 10**8), width=160, height=120))
        image_id = self._take_in(photo, 200, 201)
        if draw.random() < _AGAIN:  # nobody else knows of it yet
            assert self._take_in(photo, 200) == image_id, f"photo {image_id} was not there any more"
        with self.lock:
            self.kept[image_id] = photo

    def delete(self, draw: random.Random) -> None:
        while True:
            with self.lock:
                if len(self.kept) > 2:
                    image_id = draw.choice(list(self.kept))
                    photo = self.kept.pop(image_id)
                    break
            if self.stop.wait(0.1):
                return
        # 404: it was deleted by a request that was answered 503 all the same.
        self.ask("DELETE", f"/api/v1/images/{image_id}", 204, 404)
        if draw.random() < _AGAIN:  # and whatever is left of the deletion must not take it along
            again = self._take_in(photo, 200, 201)
            assert again != image_id, f"photo {image_id} was there still"
            with self.lock:
                self.kept[again] = photo

    def _take_in(self, photo: bytes, *allowed: int) -> int:
        """The id that an upload is answered with; 200: an attempt before had done it."""
        files = {"image": ("a.jpg", photo)}
        answer = self.ask("POST", "/api/v1/images?collection=kept", *allowed, files=files)
        [result] = answer.json()["results"]
        return int(result["image"]["id"])

    def drop(self, draw: random.Random) -> None:
        name = f"dropped_{draw.randrange(3)}_{threading.get_ident()}"
        for _ in range(draw.randint(1, 3)):
            photo = encode(draw_photo(draw.randrange(10**5), width=160, height=120))
            files = {"image": ("a.jpg", photo)}
            self.ask("POST", f"/img/upload?table_name={name}", files=files)
        self.ask("POST", f"/img/drop?table_name={name}")
        assert self.ask("POST", f"/img/count?table_name={name}").json() == 0

    def send_nonsense(self, draw: random.Random) -> None:
        photo = bytearray(encode(draw_photo(draw.randrange(1000))))
        del photo[draw.randrange(len(photo)) :]
        files = {"image": ("a.jpg", bytes(photo))}
        self.ask("POST", "/img/search?table_name=steady", 200, 400, 413, 415, files=files)

    def go_away(self, draw: random.Random) -> None:
        """A client that leaves in the middle of its request, or of the answer."""
        parts = urlsplit(self.service.url)
        photo = encode(draw_photo(draw.randrange(1000)))
        body = (
            b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
            + photo
            + b"\r\n--b--\r\n"
        )
        head = (
            "POST /img/search?table_name=steady HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type:"
            f" multipart/form-data; boundary=b\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode()
        data = head + body
        with socket.create_connection((parts.hostname, parts.port or 0), 30) as connection:
            connection.sendall(data[: draw.choice((1, 50, len(head), len(head) + 999, len(data)))])
            self.stop.wait(draw.choice((0.0, 0.02, 4.0)))

    def break_engine(self, draw: random.Random) -> None:
        """Kills or freezes one of the processes that the service has started."""
        self.stop.wait(draw.uniform(1.0, _LONGEST_PAUSE_SECONDS))
        children = psutil.Process(self.service.process.pid).children(recursive=True)
        engines = [child for child in children if "milvus" in " ".join(_command(child))]
        decoders = _decoders(children)
        with suppress(psutil.NoSuchProcess, IndexError):
            match draw.randrange(3):
                case 0:
                    draw.choice(engines).send_signal(signal.SIGKILL)
                    self.count("Milvus Lite killed")
                case 1:
                    engine = draw.choice(engines)
                    engine.suspend()
                    try:
                        self.stop.wait(draw.uniform(0.5, 3.0))
                    finally:
                        engine.resume()
                    self.count("Milvus Lite frozen")
                case 2:
                    draw.choice(decoders).send_signal(signal.SIGKILL)
                    self.count("decoder killed")

    def work(self, kind: str, step: Callable[[random.Random], None], client: str) -> None:
        draw = random.Random(f"{self.seed} {kind} {client}")
        try:
            while not self.stop.is_set():
                step(draw)
                self.count(kind)
        except BaseException:
            self.stop.set()
            raise


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def soak(
    folder: Path, *, seconds: float, seed: int, tell: Callable[[str], None] = lambda line: None
) -> SoakReport:
    """Runs for so many seconds, and checks what is left.

    Raises:
        AssertionError: an answer or a count is wrong, stores differ, or something has leaked.
    """
    service = start(folder, _TIMEOUTS, folder / "data", is_measured=True)
    try:
        soaking = _Soak(service, folder, seed)
        body = {"File": str(folder / "steady"), "Table": "steady"}
        soaking.ask("POST", "/img/load", json=body)
        begun = time.monotonic()
        _run(soaking, begin=0.2 * seconds, rest=0.8 * seconds, tell=tell)
        soaking.report.seconds = time.monotonic() - begun
        _check_counts(soaking)
        assert service.process.poll() is None, "the service has ended"
    except BaseException as error:
        log = service.log.read_text("utf-8", "replace").splitlines()
        error.add_note("\n".join(line for line in log if "level=info" not in line)[-6000:])
        raise
    finally:
        service.stop()
    assert "event=request.broke" not in service.log.read_text("utf-8", "replace")
    _check_stores(folder / "data")
    return soaking.report


def _run(soaking: _Soak, *, begin: float, rest: float, tell: Callable[[str], None]) -> None:
    """The work: a fifth of the time for all that is done once, then the part that is compared."""
    steps = {
        "search": (soaking.search, 2),
        "load": (soaking.load, 1),
        "upload": (soaking.upload, 2),
        "delete": (soaking.delete, 1),
        "drop": (soaking.drop, 1),
        "nonsense": (soaking.send_nonsense, 1),
        "gone": (soaking.go_away, 2),
        "fault": (soaking.break_engine, 1),
    }
    before: dict[str, int] = {}
    for part, seconds in enumerate((begin, rest)):
        soaking.stop.clear()
        with ThreadPoolExecutor(16) as threads:
            running = [
                # Drawn anew in each part: what is uploaded must be new, see `_Soak.kept`.
                threads.submit(soaking.work, kind, step, f"{part}.{number}")
                for kind, (step, clients) in steps.items()
                for number in range(clients)
            ]
            end = time.monotonic() + seconds
            while (left := end - time.monotonic()) > 0:
                if soaking.stop.wait(min(10.0, left)):
                    break
                resident = resident_bytes(soaking.service.process.pid) / 2**20
                tell(f"{left:5.0f} s left, {resident:5.0f} MiB, {dict(soaking.report.done)}")
            soaking.stop.set()
        for each in running:
            each.result()
        now = _settled(soaking, before)
        if not before:
            before = now
    soaking.report.left = {name: (before[name], now[name]) for name in before}
    soaking.report.growth = now["memory"] - before["memory"]
    assert soaking.report.growth <= MOST_GROWTH, soaking.report.left
    soaking.report.decoders = now["decoders"]
    assert now["decoders"] <= MOST_DECODERS, soaking.report.left
    for name in ("tasks", "threads", "descriptors"):
        assert now[name] <= before[name] + _SLACK[name], soaking.report.left


_CORES: Final = count_cores()
MOST_DECODERS: Final = _CORES + min(_CORES, 8)
"""One for each thread that has photos decoded: a core's that analyse them, and those that make
thumbnails."""
_OF_A_DECODER: Final = 3
"""Descriptors of the service's: a socket, and the memory that both have, twice."""
_SLACK: Final = {"tasks": 0, "threads": 4, "descriptors": 6}
"""By which a figure may differ: pools start threads, and databases open connections, up to limits
of theirs, whenever as many are first needed at once."""


def _settled(soaking: _Soak, before: dict[str, int]) -> dict[str, int]:
    """The figures of the service, once all that was begun has ended."""
    soaking.search(random.Random(0))  # an engine that was killed counts when it is back
    end = time.monotonic() + _SETTLE_SECONDS
    while True:
        now = _leftovers(soaking.service)
        over = [name for name in _SLACK if before and now[name] > before[name] + _SLACK[name]]
        if (now["in flight"] <= 1 and not over) or time.monotonic() > end:
            assert now["in flight"] <= 1, f"requests that do not end: {now}"
            return now
        time.sleep(0.5)


def _decoders(children: Sequence[psutil.Process]) -> list[psutil.Process]:
    return [child for child in children if "decoding" in " ".join(_command(child))]


def _leftovers(service: Service) -> dict[str, int]:
    process = psutil.Process(service.process.pid)
    read = figures(service)
    decoders = len(_decoders(process.children()))
    return {
        "in flight": int(one(read, "requests_in_flight") + one(read, "places_taken")),
        "tasks": int(one(read, "event_loop_tasks")),
        "threads": process.num_threads(),
        "decoders": decoders,
        # There are as many decoders as photos have been decoded at a time so far.
        "descriptors": process.num_fds() - _OF_A_DECODER * decoders,
        "memory": resident_bytes(service.process.pid),
    }


def _check_counts(soaking: _Soak) -> None:
    """Nothing is lost, doubled, or there although it was removed."""
    ask = soaking.ask
    # What was being decoded when its process was killed is indexed by the next load.
    soaking.load(random.Random(soaking.seed))
    collections = {
        each["name"]: each["images"] for each in ask("GET", "/api/v1/collections").json()["items"]
    }
    listed: list[int] = []
    cursor: str | None = None
    while True:
        more = f"&cursor={cursor}" if cursor else ""
        page = ask("GET", f"/api/v1/images?collection=kept&limit=100{more}").json()
        listed += [image["id"] for image in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    missing = [
        ask("GET", f"/api/v1/images/{image_id}", 200, 404).text
        for image_id in sorted(soaking.kept.keys() - set(listed))
    ]
    assert not missing, f"photos that were taken in are not there: {missing}"
    assert sorted(listed) == sorted(soaking.kept)
    expected = {"steady": _STEADY, "changing": _CHANGING, "kept": len(soaking.kept)}
    assert collections == expected, f"{collections}, expected {expected}"
    for path in soaking.changing:
        files = {"image": ("a.jpg", path.read_bytes())}
        [nearest, distance] = ask("POST", "/img/search?table_name=changing", files=files).json()[0]
        assert distance < _SAME, f"{path} is out of date"
        assert Path(nearest).read_bytes() == path.read_bytes()
    uploads = soaking.folder / "data" / "uploads"
    files_left = sorted(path.name for path in uploads.rglob("*") if path.is_file())
    assert len(files_left) == len(set(soaking.kept.values())), files_left


def _check_stores(data_dir: Path) -> None:
    """Catalog and vector store hold the same; asked of a process of its own."""
    done = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-m", "backend", "check", "--json"),
            *("--data-dir", str(data_dir)),
        ],
        cwd=REPOSITORY,
        env=os.environ | SMALL_PAIR,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for collection in json.loads(done.stdout)["collections"]:
        problems = {name: collection[name] for name in ("missing", "orphaned", "gone", "failures")}
        assert not any(problems.values()), problems


def main() -> None:
    """Runs as long as the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = soak(
            Path(folder), seconds=60 * options.minutes, seed=options.seed, tell=_print_now
        )
    _print_now(
        f"{report.seconds:.0f} s: every count exact, catalog and vectors agree, the same process"
        f" throughout; {report.refused} requests were refused for the moment and tried again"
    )
    _print_now(
        f"memory grew by {report.growth / 2**20:.0f} MiB of {MOST_GROWTH / 2**20:.0f} that it may"
        f" after the first fifth; decoders: {report.decoders} of {MOST_DECODERS} that there may be"
    )
    for name, (before, now) in report.left.items():
        _print_now(f"  {name}: {before} after the first fifth, {now} at the end")
    for name, count in sorted(report.done.items()):
        _print_now(f"  {name}: {count}")
    if options.json:
        limits = {"most_growth": MOST_GROWTH, "most_decoders": MOST_DECODERS}
        report_of_it = {
            **environment("aiohttp"),
            "seed": options.seed,
            **vars(report),
            **limits,
        }
        write_json(options.json, rounded(report_of_it))


def _print_now(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
