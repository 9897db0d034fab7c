"""Each engine fails in each way while a service works, and everything comes right by itself."""

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.engines.mariadb import MariaDBProcess
from tests.engines.milvus import MilvusProcess
from tests.engines.production import ENGINES, Engines, running_engines
from tests.engines.triton import TritonProcess
from tests.forked import run_program
from tests.photos import draw_photo, encode, write_photos
from tests.service import Service, as_flags, start

pytestmark = pytest.mark.timeout(600)

_NAMES = {"triton": "Triton", "milvus": "Milvus", "mysql": "MySQL"}
_DEADLINE_SECONDS = 4
_FROZEN_SECONDS = 20
_PHOTOS = 60
_PAUSE_SECONDS = 0.25
_seeds = itertools.count(1)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    """Servers of the module's own: its tests kill them."""
    folder = tmp_path_factory.mktemp("engines")
    with running_engines(folder, milvus_session_seconds=30) as started:
        yield started


@dataclass(frozen=True)
class Subject:
    """A service under test, how it was started, and photos that it has in the table `steady`."""

    service: Service
    flags: list[str]
    data_dir: Path
    steady: list[Path]


@pytest.fixture(scope="module")
def subject(engines: Engines, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    """One service for all tests: it never needs a restart."""
    folder = tmp_path_factory.mktemp("service")
    timeouts = {
        "request_timeout": str(_DEADLINE_SECONDS),
        "engine_timeout": str(_DEADLINE_SECONDS),
        "load_concurrency": "4",
    }
    flags = as_flags(engines.settings() | timeouts)
    service = start(folder, flags, folder / "data")
    steady = write_photos(folder / "steady", 8, start=10**6)
    answer = service.post("/img/load", json={"File": str(folder / "steady"), "Table": "steady"})
    assert answer.status_code == 200, answer.text
    yield Subject(service, flags, folder / "data", steady)
    service.stop()


@dataclass
class Answers:
    """What eight clients were answered, who searched all the time."""

    good: int = 0
    unavailable: list[str] = field(default_factory=list)
    slowest: float = 0.0


@contextmanager
def _searching(subject: Subject) -> Iterator[Answers]:
    """Eight concurrent searches; each answer must be right, or a 503 in time that names whom."""
    answers = Answers()
    stop = threading.Event()
    lock = threading.Lock()

    def search(photos: Iterator[Path]) -> None:
        while not stop.is_set():
            photo = next(photos)
            begin = time.monotonic()
            answer = subject.service.search(photo.read_bytes(), 3, table="steady")
            seconds = time.monotonic() - begin
            with lock:
                answers.slowest = max(answers.slowest, seconds)
                if answer.status_code == 503:
                    assert int(answer.headers["Retry-After"]) > 0
                    answers.unavailable.append(answer.json()["msg"])
                else:
                    assert answer.status_code == 200, answer.text
                    [nearest, distance] = answer.json()[0]
                    assert (nearest, distance < 1e-3) == (str(photo), True)
                    assert len(answer.json()) == 3
                    answers.good += 1
            # They are there to notice what fails; without a pause they would hold the load up.
            time.sleep(_PAUSE_SECONDS)

    with ThreadPoolExecutor(8) as pool:
        running = [
            pool.submit(search, itertools.cycle(subject.steady[number:] + subject.steady[:number]))
            for number in range(8)
        ]
        try:
            yield answers
        finally:
            stop.set()
    for done in running:
        done.result()


def _load_through(
    engines: Engines,
    subject: Subject,
    tmp_path: Path,
    break_off: Callable[[], None],
    mend: Callable[[], None],
    tells: Callable[[dict[str, Any]], bool],
) -> Answers:
    """Loads photos, breaks an engine in the middle of it, and mends it once /readyz tells.

    The load must end by itself, with every photo once. Returns what the searches meanwhile were
    answered.
    """
    table = f"t{next(_seeds)}"
    start_seed = 1000 * next(_seeds)
    write_photos(tmp_path / "photos", _PHOTOS, start=start_seed)
    service = subject.service
    # Before the searches: with them, a Milvus takes longer to make one than a request may take.
    _until(lambda: service.post("/api/v1/collections", json={"name": table}).ok)
    body = {"File": str(tmp_path / "photos"), "Table": table}
    with _searching(subject) as answers, ThreadPoolExecutor(1) as pool:
        loading = pool.submit(service.post, "/img/load", json=body)
        # Of this load: before it has begun, the progress is that of the one before.
        _until(lambda: service.progress()[1] == _PHOTOS and 0 < service.progress()[0] < _PHOTOS)
        break_off()
        try:
            _readiness_until(service, tells)
        finally:
            mend()
        while not loading.done():
            time.sleep(0.1)
            # Triton now and then ends when a process of its has been killed.
            for process in engines.processes.values():
                process.start_if_ended()
        answer = loading.result()
        assert answer.status_code == 200, answer.text
        _until(lambda: service.get("/readyz").status_code == 200)
    assert service.count(table) == _PHOTOS
    photo = encode(draw_photo(start_seed))
    [nearest, distance] = service.search(photo, 1, table=table).json()[0]
    assert (Path(nearest).read_bytes() == photo, distance < 1e-3) == (True, True)
    _assert_consistent(subject)
    return answers


def _readiness_until(service: Service, tells: Callable[[dict[str, Any]], bool]) -> None:
    """Waits until /readyz says what it should."""

    def told() -> bool:
        answer = service.get("/readyz")
        assert (answer.status_code == 503) == ("Retry-After" in answer.headers)
        return tells(answer.json())

    _until(told, 30)


def _until(holds: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to hold"
        time.sleep(0.02)


def _assert_consistent(subject: Subject) -> None:
    """Nothing is lost, doubled or orphaned, as a second process sees it."""
    flags = ("--data-dir", str(subject.data_dir), *subject.flags, "--engine-timeout", "30")
    done = run_program("check", "--json", *flags, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    for collection in json.loads(done.stdout)["collections"]:
        assert collection["missing"] == collection["orphaned"] == collection["failures"] == []


def _names(engine: str, *, waiting_load: bool = False) -> Callable[[dict[str, Any]], bool]:
    """Whether /readyz says that the engine is not ready, and that a load waits for it."""

    def tells(readiness: dict[str, Any]) -> bool:
        away = {state["engine"] for state in readiness["engines"] if not state["ready"]}
        awaited = {load["waiting_for"] for load in readiness["waiting_loads"]}
        return away == {_NAMES[engine]} and (not waiting_load or awaited == away)

    return tells


def _anything(_readiness: dict[str, Any]) -> bool:
    return True


@pytest.mark.parametrize("engine", ENGINES)
def test_a_killed_engine_is_waited_for(
    engines: Engines, subject: Subject, engine: str, tmp_path: Path
) -> None:
    process = engines.processes[engine]
    answers = _load_through(
        engines,
        subject,
        tmp_path,
        process.kill,
        lambda: process.start(wait_seconds=0),
        _names(engine, waiting_load=True),
    )
    assert any(_NAMES[engine] in message for message in answers.unavailable)
    assert answers.good > 0
    assert answers.slowest < _DEADLINE_SECONDS + 2


@pytest.mark.parametrize("engine", ENGINES)
def test_a_frozen_engine_costs_a_request_its_deadline_and_no_more(
    engines: Engines, subject: Subject, engine: str, tmp_path: Path
) -> None:
    process = engines.processes[engine]

    def thaw_later() -> None:
        time.sleep(max(0.0, frozen_since + _FROZEN_SECONDS - time.monotonic()))
        process.thaw()

    frozen_since = time.monotonic()
    answers = _load_through(engines, subject, tmp_path, process.freeze, thaw_later, _names(engine))
    assert any(_NAMES[engine] in message for message in answers.unavailable)
    assert answers.slowest < _DEADLINE_SECONDS + 2


def test_a_models_process_may_die_while_triton_says_that_it_is_ready(
    engines: Engines, subject: Subject, tmp_path: Path
) -> None:
    triton = engines.processes["triton"]
    assert isinstance(triton, TritonProcess)
    answers = _load_through(
        engines, subject, tmp_path, triton.kill_model_process, lambda: None, _anything
    )
    assert answers.good > 0


def test_connections_to_mysql_may_be_dropped(
    engines: Engines, subject: Subject, tmp_path: Path
) -> None:
    mysql = engines.processes["mysql"]
    assert isinstance(mysql, MariaDBProcess)

    def drop_again_and_again() -> None:
        for _ in range(10):
            mysql.drop_connections()
            time.sleep(0.2)

    answers = _load_through(
        engines, subject, tmp_path, drop_again_and_again, lambda: None, _anything
    )
    assert answers.good > 0


def test_connections_to_milvus_may_be_cut(
    engines: Engines, subject: Subject, tmp_path: Path
) -> None:
    milvus = engines.processes["milvus"]
    assert isinstance(milvus, MilvusProcess)
    answers = _load_through(engines, subject, tmp_path, milvus.cut, lambda: None, _anything)
    assert answers.good > 0


@pytest.mark.parametrize(("seconds", "in_time"), [(0.5, True), (8.0, False)])
def test_a_slow_milvus_is_waited_for_until_the_deadline(
    engines: Engines, subject: Subject, tmp_path: Path, seconds: float, in_time: bool
) -> None:
    milvus = engines.processes["milvus"]
    assert isinstance(milvus, MilvusProcess)
    answers = _load_through(
        engines,
        subject,
        tmp_path,
        lambda: milvus.slow(seconds),
        lambda: milvus.slow(0),
        _anything if in_time else _names("milvus"),
    )
    assert answers.slowest < _DEADLINE_SECONDS + 2
    assert any("Milvus" in message for message in answers.unavailable) == (not in_time)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_upload_that_was_answered_503_is_kept_once_when_it_comes_again(
    engines: Engines, subject: Subject, engine: str
) -> None:
    process = engines.processes[engine]
    photo = encode(draw_photo(50_000 + next(_seeds)))
    table = f"uploads_{engine}"

    def upload() -> requests.Response:
        return subject.service.post(
            "/img/upload", files={"image": ("a.jpg", photo)}, params={"table_name": table}
        )

    process.freeze()
    answer = upload()
    assert answer.status_code == 503
    assert _NAMES[engine] in answer.json()["msg"]
    process.thaw()
    _until(lambda: upload().status_code == 200)
    assert subject.service.count(table) == 1
    _until(lambda: subject.service.get("/readyz").status_code == 200)
    _assert_consistent(subject)


def test_the_service_has_been_the_same_process_throughout(subject: Subject) -> None:
    assert subject.service.process.poll() is None
