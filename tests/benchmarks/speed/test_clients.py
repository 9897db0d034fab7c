"""Clients that search a running service."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.speed.clients import Clients, clients
from tests.photos import draw_photo, encode, write_photos
from tests.service import Service, start

_PHOTOS = [encode(draw_photo(seed)) for seed in range(3)]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    started = start(folder, [], folder / "data")
    try:
        started.load(write_photos(folder / "photos", 3)[0].parent).raise_for_status()
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def searching() -> Iterator[Clients]:
    with clients(_PHOTOS) as found:
        yield found


def test_one_client_searches_for_each_of_the_photos_once(
    service: Service, searching: Clients
) -> None:
    answers = searching.search(service.url, slice(None))
    assert answers.statuses == {"200": 3}
    assert len(answers.seconds) == 3
    assert sum(answers.seconds) <= answers.elapsed
    assert answers.per_second == 3 / answers.elapsed
    assert answers.cpu_seconds > 0


def test_a_search_that_is_not_answered_with_200_is_counted_and_not_timed(
    service: Service,
) -> None:
    with clients([*_PHOTOS, b"no photo"]) as searching:
        answers = searching.search(service.url, slice(None))
    assert answers.statuses == {"200": 3, "400": 1}
    assert answers.others == {"400": 1}
    assert len(answers.seconds) == 3


def test_every_client_of_a_closed_loop_searches(service: Service, searching: Clients) -> None:
    answers = searching.closed_loop(service.url, 4, 0.0)
    assert answers.statuses.total() == 4


def test_searches_go_on_while_a_folder_is_loaded(
    service: Service, searching: Clients, tmp_path: Path
) -> None:
    write_photos(tmp_path, 30, start=10)
    before = service.count()
    answers, seconds = searching.during_load(service.url, tmp_path)
    assert service.count() == before + 30
    assert seconds > 0
    assert answers.statuses["200"] > 0


def test_an_open_loop_sends_what_was_planned_and_waits_until_all_is_as_before(
    service: Service, searching: Clients
) -> None:
    found = searching.start_overload(
        service.url, 40.0, 0.5, quiet_seconds=60.0, patience=60.0
    ).result()
    assert found.answers.statuses.total() == 20
    assert len(found.answers.lateness) == 20
    assert min(found.answers.lateness) >= 0


def test_latency_that_does_not_come_back_is_not_waited_for_without_end(
    service: Service, searching: Clients
) -> None:
    found = searching.start_overload(
        service.url, 40.0, 0.1, quiet_seconds=0.0, patience=0.5
    ).result()
    assert found.recovery_seconds is None


def test_a_service_that_is_not_there_is_a_status_of_its_own(searching: Clients) -> None:
    found = searching.start_overload(
        "http://127.0.0.1:9", 100.0, 0.05, quiet_seconds=1.0, patience=0.0
    ).result()
    assert found.answers.statuses == {"ClientConnectorError": 5}
