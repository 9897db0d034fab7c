"""The service goes on whatever befalls the processes that decode its photos."""

import contextlib
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.photos import draw_photo, encode, write_photos
from tests.service import Service, start

PHOTOS = 6
TIMEOUT = 4
WAIT_SECONDS = 30


def _start(folder: Path) -> Service:
    """A service with photos in it, which gives each new one some seconds to be decoded."""
    service = start(folder, ("--decode-timeout", str(TIMEOUT)), folder / "data")
    write_photos(folder / "photos", PHOTOS)
    assert service.load(folder / "photos").status_code == 200
    return service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with photos in it; it leaves no process behind when it is stopped."""
    started = _start(tmp_path_factory.mktemp("decoding"))
    try:
        yield started
        decoders = _decoders(started)
        assert decoders
    finally:
        started.stop()
    _assert_gone(decoders)


def _decoders(service: Service) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(service.process.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # nor those that have ended just now
            if "backend.decoding.worker" in child.cmdline():
                found.append(child)
    return found


def _assert_gone(decoders: Sequence[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(decoders, WAIT_SECONDS)
    assert not alive


def _query(seed: int) -> bytes:
    return encode(draw_photo(500 + seed))


def _assert_works(service: Service, seeds: range) -> None:
    for seed in seeds:
        answer = service.search(_query(seed), 3)
        assert answer.status_code == 200, answer.text
        assert len(answer.json()) == 3


def test_a_photo_whose_process_hangs_is_refused_and_others_are_searched_with(
    service: Service,
) -> None:
    for process in _decoders(service):
        process.kill()
    _assert_works(service, range(1))
    [hanging] = _decoders(service)
    hanging.suspend()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(service.search, _query(1), 3)
        _assert_works(service, range(2, 6))
        refused = waiting.result()
    assert refused.status_code == 400
    assert f"not done within {TIMEOUT} s" in refused.json()["msg"]
    assert "event=decoder.ended" in service.log.read_text()
    assert not hanging.is_running()
    _assert_works(service, range(6, 8))


def test_processes_that_are_killed_are_replaced(service: Service) -> None:
    for seed in range(3):
        for process in _decoders(service):
            process.kill()
        _assert_works(service, range(seed, seed + 1))


def test_a_load_goes_on_though_its_processes_are_killed(service: Service, tmp_path: Path) -> None:
    """Photos that are lost with them are failures, which the next load mends."""
    write_photos(tmp_path / "more", 40, start=100)
    service.load(tmp_path / "more", params={"wait": "false"}).raise_for_status()
    while True:
        done, total = service.progress()
        for process in _decoders(service):
            process.kill()
        if done == total:
            break
        time.sleep(0.05)
    service.load(tmp_path / "more").raise_for_status()
    assert service.count() == PHOTOS + 40


def test_no_process_outlives_a_service_that_is_killed(tmp_path: Path) -> None:
    service = _start(tmp_path)
    decoders = _decoders(service)
    service.kill()
    assert decoders
    _assert_gone(decoders)


def test_a_signal_to_the_whole_group_does_not_end_them_first(service: Service) -> None:
    """As Ctrl-C in a terminal sends one: what is under way is still decoded."""
    decoders = _decoders(service)
    for process in decoders:
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
    _assert_works(service, range(1))
    assert _decoders(service) == decoders
