"""What the tests share: photos, settings, engines, and the service as a real process."""

import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from backend.app import Services, open_services
from backend.decoding.pool import Decoders
from backend.settings import Settings
from tests.api import Api, gallery
from tests.engines.mariadb import MariaDBProcess
from tests.engines.milvus import MilvusProcess
from tests.engines.production import COMBINATIONS, Engines
from tests.engines.triton import TritonProcess
from tests.photos import write_photos
from tests.service import SMALL_PAIR, Service, as_flags, start


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


_TESTS = Path(__file__).parent
_DRIVE_OTHER_PROGRAMS = ("page/", "engines/", "serving/test_triton.py")
"""Chromium lets events go by, and Triton ends at times when a process of its is killed."""
_WAITED_IN_VAIN = ["Timeout", "does not answer", r"\[503\]"]
"""What an error says where a machine that is busy with much else let a deadline pass."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives tests a second chance, which the summary names: those that drive other people's
    programs, and others where they have waited in vain.
    """
    for item in items:
        if item.path.relative_to(_TESTS).as_posix().startswith(_DRIVE_OTHER_PROGRAMS):
            item.add_marker(pytest.mark.flaky(reruns=1))
        else:
            item.add_marker(pytest.mark.flaky(reruns=1, only_rerun=_WAITED_IN_VAIN))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests marked `every_combination` run once for each combination of engines."""
    if metafunc.definition.get_closest_marker("every_combination"):
        metafunc.parametrize("combination", COMBINATIONS, indirect=True)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Lists the combinations of engines that tests have passed with."""
    passed = [
        report.nodeid
        for report in terminalreporter.getreports("passed")
        if "every_combination" in report.keywords
    ]
    for name in COMBINATIONS:
        if count := sum(nodeid.endswith((f"[{name}]", f"-{name}]")) for nodeid in passed):
            servers = ", ".join(COMBINATIONS[name]) or "none"
            terminalreporter.write_line(
                f"engines: {name} (servers: {servers}): {count} tests passed"
            )


@pytest.fixture(scope="session")
def triton_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonProcess]:
    """A Triton that tests share, with the small pair."""
    triton = TritonProcess(tmp_path_factory.mktemp("triton") / "server")
    triton.start()
    yield triton
    triton.remove()


@pytest.fixture(scope="session")
def milvus_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusProcess]:
    """A Milvus that tests share."""
    milvus = MilvusProcess(tmp_path_factory.mktemp("milvus") / "server")
    milvus.start()
    yield milvus
    milvus.remove()


@pytest.fixture(scope="session")
def mysql_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MariaDBProcess]:
    """A MariaDB that tests share."""
    mariadb = MariaDBProcess(tmp_path_factory.mktemp("mariadb") / "server")
    mariadb.start()
    yield mariadb
    mariadb.remove()


@pytest.fixture
def combination(request: pytest.FixtureRequest) -> str:
    """Which engines are servers: a name of COMBINATIONS."""
    return getattr(request, "param", "embedded")


@pytest.fixture
def engine_settings(combination: str, request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Settings that lead to the servers of the combination, with nothing in them."""
    engines = Engines(
        {name: request.getfixturevalue(f"{name}_server") for name in COMBINATIONS[combination]}
    )
    if "milvus" in COMBINATIONS[combination]:
        request.getfixturevalue("milvus_server").start_if_given_up()
    settings = engines.settings()
    yield settings
    engines.forget(settings)


@pytest.fixture
def settings(tmp_path: Path, engine_settings: Mapping[str, str]) -> Settings:
    """Settings of a service of the test's own."""
    small_pair = {name.lower(): model for name, model in SMALL_PAIR.items()}
    return Settings.load(port=0, data_dir=tmp_path / "data", **small_pair, **engine_settings)


@pytest.fixture
def start_service(
    tmp_path: Path, engine_settings: Mapping[str, str]
) -> Iterator[Callable[..., Service]]:
    """Starts the service as a process, on a free loopback port; stops it by its process id."""
    services: list[Service] = []
    engine_flags = as_flags(engine_settings)

    def launch(*flags: str, data_dir: Path | None = None, prefix: Sequence[str] = ()) -> Service:
        chosen = (*engine_flags, *flags)
        services.append(start(tmp_path, chosen, data_dir or tmp_path / "data", prefix))
        return services[-1]

    yield launch
    for service in services:
        service.stop()


@pytest.fixture
def service(start_service: Callable[..., Service]) -> Service:
    """A running service with nothing in it."""
    return start_service()


@pytest.fixture(scope="session")
def empty_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A running service that tests share: they ask for what stores nothing."""
    folder = tmp_path_factory.mktemp("empty")
    service = start(folder, (), folder / "data", ())
    yield service
    service.stop()


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """The resource API of a service with a gallery in it, which nobody changes."""
    with gallery(tmp_path_factory.mktemp("api")) as opened:
        yield opened


@pytest.fixture(scope="session")
def decoders() -> Iterator[Decoders]:
    """Processes that decode photos of up to a million pixels."""
    opened = Decoders(max_pixels=10**6)
    yield opened
    opened.close()


@pytest.fixture
async def services(settings: Settings) -> AsyncIterator[Services]:
    """Engines and services in this process, with nothing in them."""
    async with open_services(settings) as opened:
        yield opened


_SOURCES = ["generated"] + (["voc"] if os.environ.get("VOC_DATA") else [])


@pytest.fixture(params=_SOURCES)
def hundred_photos(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder of 100 photos: drawn ones, and real ones too where VOC_DATA names a folder."""
    if request.param == "voc":
        return Path(os.environ["VOC_DATA"]) / "photos" / "images"
    folder = tmp_path / "hundred"
    write_photos(folder, 100)
    return folder
