"""The application's life in one process: it starts, stops, starts again, and leaves nothing."""

import asyncio
import gc
import threading
from pathlib import Path

import aiohttp
import psutil
import pytest
from aiohttp import web

from backend.app import create_app, open_services
from backend.errors import ConfigurationError
from backend.settings import Settings
from tests.photos import draw_photo, encode, write_photos
from tests.service import REPOSITORY


async def _serve_once(settings: Settings, photos: Path) -> None:
    """Starts the application, loads, searches and uploads through it, and stops it."""
    runner = web.AppRunner(create_app(settings), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with aiohttp.ClientSession(url) as client:
        async with client.post("/img/load", json={"File": str(photos)}) as answer:
            assert answer.status == 200
        for endpoint in ("/img/search", "/img/upload"):
            form = aiohttp.FormData()
            form.add_field("image", encode(draw_photo(3)), filename="a.jpg")
            async with client.post(endpoint, data=form) as answer:
                assert answer.status == 200
    await runner.cleanup()


def _resources() -> dict[str, object]:
    gc.collect()
    process = psutil.Process()
    return {
        "threads": sorted(
            thread.name for thread in threading.enumerate() if not thread.name.startswith("asyncio")
        ),
        "tasks": len(asyncio.all_tasks()),
        "descriptors": sorted(file.path for file in process.open_files()),
        "sockets": len(process.net_connections("all")),
        "children": [child.name() for child in process.children(recursive=True)],
    }


async def test_it_can_be_started_again_and_leaves_nothing_behind(settings: Settings) -> None:
    photos = settings.data_dir.parent / "photos"
    write_photos(photos, 3)
    children = _resources()["children"]  # those of services that other tests share
    # The first run pays for what a process does once: gRPC's and asyncio's own threads.
    await _serve_once(settings, photos)
    before = _resources()
    descriptors = psutil.Process().num_fds()
    for _ in range(3):
        await _serve_once(settings, photos)
    assert _resources() == before
    assert psutil.Process().num_fds() <= descriptors
    assert before["children"] == children


async def test_two_applications_run_side_by_side(settings: Settings, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 2)
    other = settings.model_copy(update={"data_dir": tmp_path / "other"})
    async with asyncio.TaskGroup() as group:
        for chosen in (settings, other):
            group.create_task(_serve_once(chosen, tmp_path / "photos"))


async def test_a_data_folder_has_one_owner(settings: Settings) -> None:
    async with open_services(settings):
        with pytest.raises(ConfigurationError, match=r"in use by process \d+"):
            async with open_services(settings):
                pass
    async with open_services(settings):
        pass


async def test_a_dimension_that_is_not_the_models_is_refused(settings: Settings) -> None:
    with pytest.raises(ConfigurationError, match=r"VECTOR_DIMENSION=7, .* vectors of 512"):
        async with open_services(settings.model_copy(update={"vector_dimension": 7})):
            pass
    async with open_services(settings.model_copy(update={"vector_dimension": 512})):
        pass


async def test_a_missing_model_is_an_error_that_says_how_to_get_it(settings: Settings) -> None:
    with pytest.raises(ConfigurationError, match=r"no model 'yolov9'.*export"):
        async with open_services(settings.model_copy(update={"detector_model": "yolov9"})):
            pass


async def test_models_under_the_wrong_contract_are_refused(settings: Settings) -> None:
    swapped = {"detector_model": "resnet50-small", "embedder_model": "yolov3-small"}
    with pytest.raises(ConfigurationError, match="input must be 'images'"):
        async with open_services(settings.model_copy(update=swapped)):
            pass


def test_the_arrows_run_one_way() -> None:
    """http -> services -> vision, serving, storage -> settings, errors; `app` knows everyone."""
    layers = [
        {"errors", "plain_text"},
        {
            *("names", "addresses", "photo_addresses", "files", "tarball", "parquet_pages"),
            *("deadlines", "threads", "tracing", "hosts", "rates"),
        },
        {"metrics", "precedence", "cores"},
        {"photo_cache", "single_flight", "workers", "admission", "budget", "pace"},
        {"settings", "logs"},
        {"flags"},
        {"vision", "serving", "storage"},
        {"decoding"},
        {"analysis", "scanning", "uploads", "fetching", "keys", "archive"},
        {"loads", "stores"},
        {"sharing", "places"},
        {"readiness", "searching", "duplicates", "thumbnails", "queries"},
        {"outages"},
        {"writing"},
        {"preparing"},
        {"indexing"},
        {"checking"},
        {"repairing"},
        {"backup"},
        {"console", "remote", "stopping"},
        {"http"},
        {"app"},
        {"__main__"},
    ]
    rank = {name: number for number, layer in enumerate(layers) for name in layer}
    backend = REPOSITORY / "backend"
    for path in backend.rglob("*.py"):
        name = path.relative_to(backend).parts[0].removesuffix(".py")
        if name == "__init__":
            continue
        for line in path.read_text().splitlines():
            words = line.split()
            if words[:1] != ["from"] or not words[1].startswith("backend"):
                continue
            parts = words[1].split(".")
            used = parts[1] if len(parts) > 1 else words[3]
            allowed = used == name or rank[used] < rank[name]
            assert allowed, f"{path.name} ({name}) imports {used}"
    http = (backend / "http").rglob("*.py")
    engines = ("storage.vectors", "serving", "sqlalchemy", "pymilvus", "onnxruntime")
    for path in http:
        imports = [line for line in path.read_text().splitlines() if " import " in line]
        assert not any(engine in line for line in imports for engine in engines), path
