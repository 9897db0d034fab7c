"""The networks alone, on drawn photos."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.serving.models import Detector, Embedder
from backend.serving.onnx import OnnxServer
from benchmarks.speed.networks import (
    MODELS,
    Networks,
    PhotoTensors,
    analysis,
    ready_tensors,
    throughput,
)
from tests.photos import draw_photo, encode
from tests.service import SMALL_PAIR


@pytest.fixture(scope="module")
def tensors() -> list[PhotoTensors]:
    return ready_tensors([encode(draw_photo(seed)) for seed in range(3)])


@pytest.fixture(scope="module")
def networks() -> Networks:
    return Networks()


def test_every_photo_has_a_square_and_a_crop_or_more(tensors: list[PhotoTensors]) -> None:
    assert len(tensors) == 3
    for photo in tensors:
        assert photo.square.shape == (1, 256, 256, 3)
        assert photo.crops.shape[0] >= 1
        assert photo.crops.shape[1] == photo.crops.shape[2]


async def test_the_networks_answer_as_the_services_do(
    tensors: list[PhotoTensors], networks: Networks
) -> None:
    server = OnnxServer(MODELS)
    try:
        detector, embedder = [await server.load(name) for name in SMALL_PAIR.values()]
        for photo in tensors:
            [theirs] = await Detector(detector).detect(photo.square)
            [boxes], [scores], [labels] = networks.detect(photo.square)
            np.testing.assert_array_equal(boxes, theirs.boxes)
            np.testing.assert_array_equal(scores, theirs.scores)
            np.testing.assert_array_equal(labels, theirs.labels)
            vectors = await Embedder(embedder).embed(photo.crops)
            np.testing.assert_array_equal(networks.embed(photo.crops), vectors)
    finally:
        await server.close()


@pytest.mark.parametrize(
    ("threads", "detector_batch", "embedder_batch"), [(1, 1, None), (2, 1, None), (2, 2, 4)]
)
def test_photos_are_counted_whatever_the_batches(
    tensors: list[PhotoTensors],
    networks: Networks,
    threads: int,
    detector_batch: int,
    embedder_batch: int | None,
) -> None:
    done = throughput(
        [networks],
        tensors,
        threads=threads,
        detector_batch=detector_batch,
        embedder_batch=embedder_batch,
        seconds=0.1,
    )
    assert done.photos_per_second > 0
    assert done.cpu_ms > 0


class _Counting(Networks):
    """Notes how much it is given in each run."""

    def __init__(self) -> None:
        super().__init__()
        self.squares: list[int] = []
        self.crops: list[int] = []

    def detect(self, squares: NDArray[np.uint8]) -> list[NDArray[Any]]:
        self.squares.append(len(squares))
        return super().detect(squares)

    def embed(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.crops.append(len(crops))
        return super().embed(crops)


def test_a_pass_runs_each_network_once_on_every_photo(tensors: list[PhotoTensors]) -> None:
    networks = _Counting()
    throughput([networks], tensors, threads=1, detector_batch=2, embedder_batch=4, seconds=0.0)
    assert networks.squares == [2, 1]
    assert sum(networks.crops) == sum(len(photo.crops) for photo in tensors)
    assert max(networks.crops) <= 4


def test_whole_photos_are_analysed_without_a_service() -> None:
    done = analysis([encode(draw_photo(seed)) for seed in range(3)], seconds=0.1)
    assert done.photos_per_second > 0
    assert done.cpu_ms > 0
