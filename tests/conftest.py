"""What the tests share: photos, settings, and the service as a real process."""

import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

import pytest

from backend.app import Services, open_services
from backend.settings import Settings
from tests.photos import write_photos
from tests.service import SMALL_PAIR, Service, start


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings of a service of the test's own."""
    small_pair = {name.lower(): model for name, model in SMALL_PAIR.items()}
    return Settings.load(port=0, data_dir=tmp_path / "data", **small_pair)


@pytest.fixture
def start_service(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Starts the service as a process, on a free loopback port; stops it by its process id."""
    services: list[Service] = []

    def launch(*flags: str, data_dir: Path | None = None, prefix: Sequence[str] = ()) -> Service:
        services.append(start(tmp_path, flags, data_dir or tmp_path / "data", prefix))
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
