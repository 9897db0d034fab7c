"""A service and its engines start in any order."""

import time
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

import pytest

from tests.engines.production import ENGINES, Engines, running_engines
from tests.photos import draw_photo, encode
from tests.service import Service, as_flags, launch

pytestmark = pytest.mark.timeout(600)

_NAMES = {"triton": "Triton", "milvus": "Milvus", "mysql": "MySQL"}


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    """Servers of the module's own: its tests stop them."""
    folder = tmp_path_factory.mktemp("engines")
    with running_engines(folder, milvus_session_seconds=5) as started:
        yield started


def _awaited(service: Service) -> set[str]:
    answer = service.get("/readyz")
    if answer.status_code == 200:
        return set()
    assert "Retry-After" in answer.headers
    return {state["engine"] for state in answer.json()["engines"] if not state["ready"]}


def _until_awaited(service: Service, names: set[str]) -> None:
    end = time.monotonic() + 60
    while (found := _awaited(service)) != names:
        assert time.monotonic() < end, f"it waits for {found}, not for {names}"
        time.sleep(0.1)


@pytest.mark.parametrize("order", [*permutations(ENGINES)][::2], ids=" then ".join)
def test_a_service_waits_for_each_engine_and_says_for_which(
    engines: Engines, order: tuple[str, ...], tmp_path: Path
) -> None:
    for process in engines.processes.values():
        process.stop()
    flags = as_flags(engines.settings() | {"engine_timeout": "5"})
    service = launch(tmp_path, flags, tmp_path / "data")
    try:
        service.wait_until_listening(30)
        awaited = {_NAMES[engine] for engine in order}
        _until_awaited(service, awaited)
        assert service.get("/healthz").json() == {"status": "ok"}
        photo = encode(draw_photo(1))
        answer = service.search(photo)
        assert (answer.status_code, "Retry-After" in answer.headers) == (503, True)
        assert any(name in answer.json()["msg"] for name in awaited)
        for engine in order:
            engines.processes[engine].start()
            awaited.remove(_NAMES[engine])
            _until_awaited(service, awaited)
        end = time.monotonic() + 60
        # Milvus, just started on a busy machine, may take longer for a collection than it may.
        while (
            answer := service.post("/img/upload", files={"image": ("a.jpg", photo)})
        ).status_code == 503:
            assert time.monotonic() < end, answer.text
            time.sleep(0.5)
        assert answer.status_code == 200, answer.text
        [[_, distance]] = service.search(photo).json()
        assert distance < 1e-3
    finally:
        service.stop()
