"""The service on each engine that can compute the models in the process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from backend.app import create_app
from backend.errors import ConfigurationError
from backend.settings import InferenceEngine, Settings
from tests.photos import draw_photo, encode, write_photos
from tests.serving.bfloat16 import needs_bf16

_PHOTOS = 6


@asynccontextmanager
async def _serving(settings: Settings, engine: InferenceEngine) -> AsyncIterator[Any]:
    chosen = settings.model_copy(update={"inference_engine": engine})
    runner = web.AppRunner(create_app(chosen), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with aiohttp.ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as client:
            yield client
    finally:
        await runner.cleanup()


async def _nearest(client: aiohttp.ClientSession) -> list[list[tuple[str, float]]]:
    """What a search for each of the photos finds."""
    found = []
    for seed in range(_PHOTOS):
        form = aiohttp.FormData()
        form.add_field("image", encode(draw_photo(seed)), filename="a.jpg")
        async with client.post("/img/search", data=form) as answer:
            assert answer.status == 200, await answer.text()
            found.append([(path, distance) for path, distance in await answer.json()])
    return found


@pytest.mark.parametrize(
    ("engine", "name", "distance"),
    [
        ("openvino-f32", "OpenVINO f32", 1e-6),
        pytest.param("openvino-bf16", "OpenVINO bf16", 1e-2, marks=needs_bf16),
    ],
)
async def test_openvino_searches_what_onnx_runtime_has_loaded_and_the_other_way_round(
    settings: Settings, tmp_path: Path, engine: InferenceEngine, name: str, distance: float
) -> None:
    write_photos(tmp_path / "photos", _PHOTOS)
    write_photos(tmp_path / "more", _PHOTOS + 2)
    async with _serving(settings, "onnxruntime") as client:
        async with client.post("/img/load", json={"File": str(tmp_path / "photos")}) as answer:
            assert answer.status == 200
        before = await _nearest(client)
    async with _serving(settings, engine) as client:
        for mine, others in zip(await _nearest(client), before, strict=True):
            assert mine[0][0] == others[0][0]  # itself
            assert abs(mine[0][1] - others[0][1]) <= distance
        async with client.get("/api/v1/info") as answer:
            assert (await answer.json())["engine"] == name
        async with client.get("/readyz") as answer:
            states = (await answer.json())["engines"]
        assert (states[0]["engine"], states[0]["ready"], states[0]["problem"]) == (name, True, None)
        async with client.get("/metrics") as answer:
            assert f'image_search_engine_errors_total{{engine="{name}"}} 0.0' in await answer.text()
        async with client.post("/img/load", json={"File": str(tmp_path / "more")}) as answer:
            assert answer.status == 200
    async with _serving(settings, "onnxruntime") as client:
        for hits in await _nearest(client):
            # The same photo by either engine: one beside the other, before all others.
            assert {Path(path).parent.name for path, _ in hits[:2]} == {"photos", "more"}
            assert hits[1][1] <= distance


def test_an_engine_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"INFERENCE_ENGINE=tensorrt: .*openvino-bf16"):
        Settings.load(inference_engine="tensorrt")
