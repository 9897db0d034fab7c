"""What the tests share: photos, settings, and the service as a real process."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from backend.settings import Settings
from tests.service import Service

REPOSITORY = Path(__file__).resolve().parent.parent
_READY_SECONDS = 60


def draw_photo(seed: int, *, width: int = 320, height: int = 240) -> NDArray[np.uint8]:
    """A scene of coloured shapes on a textured ground, RGB uint8 [H, W, 3]; a seed is a scene."""
    random = np.random.default_rng(seed)
    coarse = random.integers(40, 216, (6, 8, 3), np.uint8)
    scene = np.ascontiguousarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))
    for _ in range(random.integers(3, 9)):
        colour = tuple(int(value) for value in random.integers(0, 256, 3))
        x, y = int(random.integers(width)), int(random.integers(height))
        size = int(random.integers(max(2, height // 12), max(3, height // 3)))
        if random.random() < 0.5:
            cv2.circle(scene, (x, y), size, colour, -1, cv2.LINE_AA)
        else:
            cv2.rectangle(scene, (x, y), (x + size, y + size // 2), colour, -1)
    noise = random.integers(-12, 13, scene.shape)
    return np.clip(scene.astype(np.int64) + noise, 0, 255).astype(np.uint8)


def encode(photo: NDArray[np.uint8], extension: str = ".jpg") -> bytes:
    """An RGB photo in the format of a file name's extension."""
    done, encoded = cv2.imencode(extension, cv2.cvtColor(photo, cv2.COLOR_RGB2BGR))
    assert done
    return encoded.tobytes()


def write_photos(folder: Path, count: int, *, start: int = 0) -> list[Path]:
    """Writes `count` different photos into the folder and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for seed in range(start, start + count):
        path = folder / f"photo {seed:04d}.jpg"
        path.write_bytes(encode(draw_photo(seed)))
        paths.append(path)
    return paths


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings of a service of the test's own."""
    return Settings(port=0, data_dir=tmp_path / "data")


@pytest.fixture
def start_service(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Starts the service as a process, on a free loopback port; stops it by its process id."""
    services: list[Service] = []

    def start(*flags: str, data_dir: Path | None = None, prefix: tuple[str, ...] = ()) -> Service:
        log = tmp_path / f"service-{len(services)}.log"
        command = [
            *prefix,
            *(sys.executable, "-W", "ignore", "-m", "backend", "serve", "--port", "0"),
            *("--data-dir", str(data_dir or tmp_path / "data")),
            *flags,
        ]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stderr=output, stdout=output
            )
        service = Service(process, log)
        services.append(service)
        service.wait_until_ready(_READY_SECONDS)
        return service

    yield start
    for service in services:
        if service.process.poll() is None:
            service.process.send_signal(signal.SIGTERM)
    for service in services:
        try:
            service.process.wait(10)
        except subprocess.TimeoutExpired:
            service.process.kill()
            raise


@pytest.fixture
def service(start_service: Callable[..., Service]) -> Service:
    """A running service with nothing in it."""
    return start_service()


_SOURCES = ["generated"] + (["voc"] if os.environ.get("VOC_DATA") else [])


@pytest.fixture(params=_SOURCES)
def hundred_photos(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder of 100 photos: drawn ones, and real ones too where VOC_DATA names a folder."""
    if request.param == "voc":
        return Path(os.environ["VOC_DATA"]) / "photos" / "images"
    folder = tmp_path / "hundred"
    write_photos(folder, 100)
    return folder
