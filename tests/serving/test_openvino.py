"""What OpenVINO adds to the engines in the process: its precision, and answers like the others'."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.deadlines import deadline
from backend.errors import ConfigurationError
from backend.serving.engines import open_local_server
from backend.serving.local import LocalServer, ServedModel
from backend.serving.openvino import check_precision
from backend.settings import Settings
from backend.vision.crops import crop_objects
from backend.vision.letterbox import letterbox
from tests.photos import draw_photo
from tests.service import REPOSITORY, SMALL_PAIR
from tests.serving.bfloat16 import needs_bf16

DETECTOR, EMBEDDER = SMALL_PAIR["DETECTOR_MODEL"], SMALL_PAIR["EMBEDDER_MODEL"]

_BF16_DISTANCE = 1e-2
"""Squared, between an embedding in bfloat16 and in 32 bits; objects that differ are 0.1 apart."""


@pytest.fixture
async def f32() -> AsyncIterator[LocalServer]:
    server = await open_local_server("openvino-f32", Settings().model_repository)
    yield server
    await server.close()


@pytest.fixture
async def bf16() -> AsyncIterator[LocalServer]:
    server = await open_local_server("openvino-bf16", Settings().model_repository)
    yield server
    await server.close()


@pytest.fixture
async def own() -> AsyncIterator[LocalServer]:
    """ONNX Runtime, which the answers are compared with."""
    server = await open_local_server("onnxruntime", Settings().model_repository)
    yield server
    await server.close()


def photos(size: int) -> NDArray[np.uint8]:
    """Eight drawn photos in the detector's form."""
    return np.stack([letterbox(draw_photo(seed), size)[0] for seed in range(8)])


def crops(size: int) -> NDArray[np.uint8]:
    """Forty pieces of drawn photos, whole ones among them."""
    boxes = np.array(
        [(0, 0, 1, 1), (0, 0, 0.5, 0.5), (0.5, 0, 1, 0.5), (0.2, 0.3, 0.9, 0.8), (0, 0.5, 1, 1)],
        np.float32,
    )
    pieces = []
    for seed in range(8):
        photo = draw_photo(seed)
        height, width = photo.shape[:2]
        pieces.append(crop_objects(photo, boxes * np.array([width, height] * 2, np.float32), size))
    return np.concatenate(pieces)


async def outputs_of(server: LocalServer, name: str) -> dict[str, NDArray[Any]]:
    model = await server.load(name)
    size = model.spec.inputs[0].dims[0]
    return await model.infer((photos if name == DETECTOR else crops)(size))


# 32-bit floats


async def test_the_detector_in_32_bits_answers_as_onnx_runtime_does(
    f32: LocalServer, own: LocalServer
) -> None:
    got, wanted = await outputs_of(f32, DETECTOR), await outputs_of(own, DETECTOR)
    assert list(got) == list(wanted)
    for name in wanted:
        assert (got[name].dtype, got[name].shape) == (wanted[name].dtype, wanted[name].shape)
    np.testing.assert_allclose(got["scores"], wanted["scores"], rtol=0, atol=1e-5)
    # Candidates of one score may change places.
    alike = got["labels"] == wanted["labels"]
    assert alike.mean() > 0.99
    far = np.abs(got["boxes"] - wanted["boxes"]).max(axis=2)[alike] > 1e-3
    assert far.mean() < 0.01


async def test_the_embedder_in_32_bits_answers_as_onnx_runtime_does(
    f32: LocalServer, own: LocalServer
) -> None:
    got, wanted = await outputs_of(f32, EMBEDDER), await outputs_of(own, EMBEDDER)
    np.testing.assert_allclose(got["embeddings"], wanted["embeddings"], rtol=0, atol=1e-5)


# bfloat16


@needs_bf16
async def test_embeddings_in_bfloat16_are_near_those_in_32_bits_and_not_the_same(
    bf16: LocalServer, own: LocalServer
) -> None:
    got = (await outputs_of(bf16, EMBEDDER))["embeddings"]
    wanted = (await outputs_of(own, EMBEDDER))["embeddings"]
    assert got.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-2)
    apart = ((got - wanted) ** 2).sum(axis=1)
    assert apart.max() < _BF16_DISTANCE
    assert apart.max() > 1e-8  # else it has computed in 32 bits


@needs_bf16
async def test_detections_in_bfloat16_are_near_those_in_32_bits(
    bf16: LocalServer, own: LocalServer
) -> None:
    got, wanted = await outputs_of(bf16, DETECTOR), await outputs_of(own, DETECTOR)
    assert got["boxes"].dtype == got["scores"].dtype == np.float32
    assert got["labels"].dtype == np.int32
    np.testing.assert_allclose(got["scores"], wanted["scores"], rtol=0, atol=0.05)
    assert np.abs(got["scores"] - wanted["scores"]).max() > 1e-7


@needs_bf16
async def test_both_precisions_go_side_by_side_each_with_its_own_answers(
    f32: LocalServer, bf16: LocalServer
) -> None:
    assert (f32.engine_name, bf16.engine_name) == ("OpenVINO f32", "OpenVINO bf16")
    exact, rough = await asyncio.gather(outputs_of(f32, EMBEDDER), outputs_of(bf16, EMBEDDER))
    assert not (exact["embeddings"] == rough["embeddings"]).all()


def test_bfloat16_is_refused_where_the_processor_lacks_it() -> None:
    check_precision("bf16", ["FP32", "BF16"])
    check_precision("f32", ["FP32"])
    with pytest.raises(
        ConfigurationError,
        match=r"openvino-bf16: this processor does not .*names FP32, INT8.*or set it to onnxrunt",
    ):
        check_precision("bf16", ["INT8", "FP32"])


# Without it


_START = """\
import runpy, sys
import backend.app
assert "openvino" not in sys.modules  # it is for who asks for it alone
runpy.run_module("backend", run_name="__main__")
"""


def test_a_start_without_openvino_says_what_to_install(tmp_path: Path) -> None:
    # A package of the name that cannot be imported comes first on the path.
    (tmp_path / "openvino").mkdir()
    (tmp_path / "openvino" / "__init__.py").write_text("raise ImportError('No openvino here')\n")
    done = subprocess.run(
        (
            *(sys.executable, "-W", "ignore", "-c", _START, "serve", "--port", "0"),
            *("--data-dir", str(tmp_path / "data"), "--inference-engine", "openvino-bf16"),
        ),
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "INFERENCE_ENGINE=openvino-bf16 needs OpenVINO, which is not installed" in done.stderr
    assert "pip install -e '.[openvino]'" in done.stderr
    assert "Traceback" not in done.stderr


# Its memory, which is shared with the caller where that saves a copy


@pytest.fixture
async def embedder(f32: LocalServer) -> ServedModel:
    return await f32.load(EMBEDDER)


async def test_an_answer_stays_as_it_is_when_the_next_batch_comes(embedder: ServedModel) -> None:
    batches = np.split(crops(embedder.spec.inputs[0].dims[0]), 20)
    answers = [embedder.run(batch)["embeddings"] for batch in batches]  # by the same request
    kept = [answer.copy() for answer in answers]
    embedder.run(batches[0][::-1])
    for answer, copy in zip(answers, kept, strict=True):
        assert (answer == copy).all()


async def test_pixels_may_be_read_only_or_lie_apart_in_memory(embedder: ServedModel) -> None:
    batch = crops(embedder.spec.inputs[0].dims[0])[:6]
    wanted = embedder.run(batch)["embeddings"]
    frozen = batch.copy()
    frozen.flags.writeable = False
    assert (embedder.run(frozen)["embeddings"] == wanted).all()
    every_other = np.repeat(batch, 2, axis=0)[::2]
    assert (embedder.run(every_other)["embeddings"] == wanted).all()
    mirrored = np.ascontiguousarray(batch[:, :, ::-1])[:, :, ::-1]
    assert (embedder.run(mirrored)["embeddings"] == wanted).all()


# Many at once


async def test_requests_that_are_cancelled_leave_the_others_their_answers(
    embedder: ServedModel,
) -> None:
    batch = crops(embedder.spec.inputs[0].dims[0])
    requests = [asyncio.create_task(embedder.infer(batch[n : n + 3])) for n in range(30)]
    await asyncio.sleep(0)
    for request in requests[::3]:
        request.cancel()
    answers = await asyncio.gather(*requests, return_exceptions=True)
    alone = embedder.run(batch)["embeddings"]
    for number, answer in enumerate(answers):
        if number % 3 == 0:
            assert isinstance(answer, asyncio.CancelledError)
        else:
            assert isinstance(answer, dict)
            np.testing.assert_allclose(answer["embeddings"], alone[number : number + 3], atol=1e-6)


async def test_a_request_goes_before_loads_that_wait(embedder: ServedModel) -> None:
    batch = crops(embedder.spec.inputs[0].dims[0])[:2]
    done: list[str] = []

    async def work(name: str) -> None:
        await embedder.infer(batch)
        done.append(name)

    loads = [asyncio.create_task(work("load")) for _ in range(40)]
    await asyncio.sleep(0)
    with deadline(60):
        await work("request")
    await asyncio.gather(*loads)
    # Beside what has begun: as many loads as there are threads, and those that end with it.
    assert done.index("request") < 20
