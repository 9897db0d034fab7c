"""The networks alone: the same ONNX files on tensors that are made beforehand."""

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from backend.analysis import PhotoAnalyzer
from backend.metrics import Metrics
from backend.serving.models import Detector, Embedder, Model, ModelSpec
from backend.serving.onnx import OnnxServer
from tests.service import REPOSITORY, SMALL_PAIR

__all__ = ["MODELS", "Networks", "PhotoTensors", "photos_per_second", "ready_tensors"]

MODELS: Final = REPOSITORY / "model_repository"
"""Where the services that are measured have theirs."""
_MAX_PIXELS: Final = 100_000_000


@dataclass(frozen=True)
class PhotoTensors:
    """What the networks are given for a photo.

    `square` uint8 [1, S, S, 3] for the detector, `crops` uint8 [N, C, C, 3] for the embedder.
    """

    square: NDArray[np.uint8]
    crops: NDArray[np.uint8]


class Networks:
    """A session of the detector and one of the embedder; threads may share them."""

    def __init__(self, *, intra_op_threads: int = 1) -> None:
        """`intra_op_threads`: over which ONNX Runtime splits a run; the service has it at 1."""
        self._detector, self._embedder = [
            _session(MODELS / name / "1" / "model.onnx", intra_op_threads)
            for name in SMALL_PAIR.values()
        ]

    def detect(self, squares: NDArray[np.uint8]) -> list[NDArray[Any]]:
        """Boxes, scores and labels, as the detector gives them, of squares, uint8 [N, S, S, 3]."""
        names = ["boxes", "scores", "labels"]
        outputs: list[NDArray[Any]] = self._detector.run(names, {"images": squares})
        return outputs

    def embed(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Unit vectors, float32 [N, D], of crops, uint8 [N, C, C, 3]."""
        [vectors] = self._embedder.run(None, {"crops": crops})
        return np.asarray(vectors, np.float32)

    def run_once(self, photo: PhotoTensors) -> None:
        """Both networks on one photo, one after the other, as one search needs them."""
        self.detect(photo.square)
        if len(photo.crops):
            self.embed(photo.crops)


def ready_tensors(photos: Sequence[bytes]) -> list[PhotoTensors]:
    """What the service's own code gives its networks for each of these encoded photos."""
    return asyncio.run(_record(photos))


def photos_per_second(
    networks: Sequence[Networks],
    tensors: Sequence[PhotoTensors],
    *,
    threads: int,
    detector_batch: int,
    embedder_batch: int | None,
    seconds: float,
) -> float:
    """How many photos a second the networks alone can do.

    Args:
        networks: the threads share them; of several, each thread has its own in turn.
        tensors: of the photos, which are gone through as often as there is time for.
        threads: that run side by side.
        detector_batch: squares of one run.
        embedder_batch: crops of one run, whichever photos they are of; None for a run with each
            photo's own, as the service has them.
        seconds: to measure for; photos that are begun are finished.
    """
    runs = _runs(tensors, detector_batch, embedder_batch)
    lock = threading.Lock()
    passes = 0

    def endless() -> Iterator[tuple[bool, NDArray[np.uint8]]]:
        nonlocal passes
        while True:
            yield from runs
            passes += 1
            if time.perf_counter() >= end:
                return

    waiting = endless()

    def work(mine: Networks) -> None:
        while True:
            with lock:
                run = next(waiting, None)
            if run is None:
                return
            is_square, batch = run
            if is_square:
                mine.detect(batch)
            else:
                mine.embed(batch)

    with ThreadPoolExecutor(threads) as pool:
        start = time.perf_counter()
        end = start + seconds
        for done in [
            pool.submit(work, mine) for mine in itertools.islice(itertools.cycle(networks), threads)
        ]:
            done.result()
        elapsed = time.perf_counter() - start
    return passes * len(tensors) / elapsed


def _runs(
    tensors: Sequence[PhotoTensors], detector_batch: int, embedder_batch: int | None
) -> list[tuple[bool, NDArray[np.uint8]]]:
    """Runs that do all the photos once, and whether each is the detector's, both kinds mixed."""
    squares = _split(np.concatenate([each.square for each in tensors]), detector_batch)
    if embedder_batch is None:
        crops = [each.crops for each in tensors if len(each.crops)]
    else:
        crops = _split(np.concatenate([each.crops for each in tensors]), embedder_batch)
    placed = [
        ((index + 0.5) / len(batches), kind, batch)
        for kind, batches in ((True, squares), (False, crops))
        for index, batch in enumerate(batches)
    ]
    return [(kind, batch) for _, kind, batch in sorted(placed, key=lambda each: each[0])]


def _split(rows: NDArray[np.uint8], size: int) -> list[NDArray[np.uint8]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _session(path: Path, intra_op_threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = intra_op_threads
    options.inter_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class _Recorder:
    """A model that keeps what it is given. See `Model`."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.given: list[NDArray[np.uint8]] = []

    @property
    def spec(self) -> ModelSpec:
        return self._model.spec

    async def infer(self, batch: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        self.given.append(batch.copy())
        return await self._model.infer(batch)


async def _record(photos: Sequence[bytes]) -> list[PhotoTensors]:
    cv2.setNumThreads(1)  # as in the service
    server = OnnxServer(MODELS)
    try:
        detector, embedder = [_Recorder(await server.load(name)) for name in SMALL_PAIR.values()]
        analyzer = PhotoAnalyzer(
            Detector(detector),
            Embedder(embedder),
            Metrics(),
            engine_name=server.engine_name,
            whole_image="fallback",
            max_pixels=_MAX_PIXELS,
        )
        try:
            for photo in photos:
                await analyzer.analyze(photo)
        finally:
            await analyzer.close()
    finally:
        await server.close()
    # With this setting each photo has an object, and so a run of either network.
    return [
        PhotoTensors(square, crops)
        for square, crops in zip(detector.given, embedder.given, strict=True)
    ]
