"""The full-size pair alone on the GPU: the same ONNX files on tensors that are made beforehand."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from backend.serving.triton import TritonServer
from benchmarks.full_size import DETECTOR, EMBEDDER
from benchmarks.speed.networks import PhotoTensors, record, throughput
from scripts.export_models.repository import MODEL_FILE
from tests.engines.onnxruntime.padded import PaddedModel, Provider

__all__ = ["LOOPS", "Loop", "Networks", "best_loop", "latency_ms", "ready_tensors", "run"]

_DETECTOR_BATCH: Final = 32
_EMBEDDER_BATCH: Final = 64
"""The largest that the models' configurations allow."""
_TIMEOUT_SECONDS: Final = 120.0
_LATENCIES: Final = 50


@dataclass(frozen=True)
class Loop:
    """A way to run the networks, see `photos_per_second`."""

    threads: int
    detector_batch: int
    embedder_batch: int


LOOPS: Sequence[Loop] = (
    Loop(1, 1, 1),
    Loop(1, 8, 16),
    *(Loop(threads, 16, 32) for threads in (1, 2)),
    *(Loop(threads, _DETECTOR_BATCH, _EMBEDDER_BATCH) for threads in (1, 2, 3, 4)),
)
"""What is tried; tests try less."""


class Networks:
    """A session of the detector and one of the embedder for each size; threads may share them."""

    def __init__(self, repository: Path, provider: Provider) -> None:
        squares = max(loop.detector_batch for loop in LOOPS)
        crops = max(loop.embedder_batch for loop in LOOPS)
        self._detector = PaddedModel(repository / DETECTOR / MODEL_FILE, squares, provider)
        self._embedder = PaddedModel(repository / EMBEDDER / MODEL_FILE, crops, provider)

    def detect(self, squares: NDArray[np.uint8]) -> list[NDArray[Any]]:
        """Boxes, scores and labels of squares, uint8 [N, S, S, 3]."""
        return self._detector.run(squares)

    def embed(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Unit vectors, float32 [N, D], of crops, uint8 [N, C, C, 3]."""
        [vectors] = self._embedder.run(crops)
        return np.asarray(vectors, np.float32)


async def ready_tensors(photos: Sequence[bytes], address: str) -> list[PhotoTensors]:
    """What the service gives the models of a Triton at `address` for each of these photos."""
    server = TritonServer([address], timeout=_TIMEOUT_SECONDS)
    try:
        models = [await server.load(name) for name in (DETECTOR, EMBEDDER)]
        return await record(photos, *models, engine_name=server.engine_name)
    finally:
        await server.close()


def best_loop(
    networks: Networks, tensors: Sequence[PhotoTensors], *, seconds: float
) -> tuple[Loop, list[dict[str, Any]]]:
    """The loop with which most photos a second were done, and all that were tried, best first."""
    rates = {loop: run(networks, loop, tensors, seconds=seconds) for loop in LOOPS}
    ranked = sorted(rates.items(), key=lambda each: -each[1])
    return ranked[0][0], [{**asdict(loop), "photos_per_second": rate} for loop, rate in ranked]


def run(
    networks: Networks, loop: Loop, tensors: Sequence[PhotoTensors], *, seconds: float
) -> float:
    """Photos a second, with this loop."""
    return throughput(
        [networks],
        tensors,
        threads=loop.threads,
        detector_batch=loop.detector_batch,
        embedder_batch=loop.embedder_batch,
        seconds=seconds,
    ).photos_per_second


def latency_ms(networks: Networks, tensors: Sequence[PhotoTensors]) -> float:
    """Milliseconds that both networks take of one photo, one after the other; the median."""
    taken = []
    for photo in tensors[:_LATENCIES]:
        start = perf_counter()
        networks.detect(photo.square)
        networks.embed(photo.crops)
        taken.append(perf_counter() - start)
    return median(taken) * 1000
