"""The networks alone: the same ONNX files on tensors that are made beforehand."""

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import cv2
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from backend.analysis import PhotoAnalyzer
from backend.cores import count_cores
from backend.decoding.pool import Decoders
from backend.metrics import Metrics
from backend.serving.models import Detector, Embedder, Model, ModelServer, ModelSpec
from backend.serving.onnx import OnnxServer
from tests.service import REPOSITORY, SMALL_PAIR

__all__ = [
    "MODELS",
    "Networks",
    "PhotoTensors",
    "Runs",
    "Throughput",
    "analysis",
    "open_analyzer",
    "ready_tensors",
    "record",
    "throughput",
]

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


@dataclass(frozen=True)
class Throughput:
    """Photos a second, and the processor's milliseconds that this process took for each."""

    photos_per_second: float
    cpu_ms: float


class Runs(Protocol):
    """Both networks, however they are run; threads may share them."""

    def detect(self, squares: NDArray[np.uint8]) -> list[NDArray[Any]]:
        """Boxes, scores and labels, as the detector gives them, of squares, uint8 [N, S, S, 3]."""
        ...

    def embed(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Unit vectors, float32 [N, D], of crops, uint8 [N, C, C, 3]."""
        ...


class Networks:
    """A session of the detector and one of the embedder; threads may share them."""

    def __init__(self, *, intra_op_threads: int = 1) -> None:
        """`intra_op_threads`: over which ONNX Runtime splits a run; the service has it at 1."""
        self._detector, self._embedder = [
            _session(MODELS / name / "1" / "model.onnx", intra_op_threads)
            for name in SMALL_PAIR.values()
        ]

    def detect(self, squares: NDArray[np.uint8]) -> list[NDArray[Any]]:
        """See `Runs.detect`."""
        names = ["boxes", "scores", "labels"]
        outputs: list[NDArray[Any]] = self._detector.run(names, {"images": squares})
        return outputs

    def embed(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Runs.embed`."""
        [vectors] = self._embedder.run(None, {"crops": crops})
        return np.asarray(vectors, np.float32)

    def run_once(self, photo: PhotoTensors) -> None:
        """Both networks on one photo, one after the other, as one search needs them."""
        self.detect(photo.square)
        if len(photo.crops):
            self.embed(photo.crops)


def ready_tensors(photos: Sequence[bytes]) -> list[PhotoTensors]:
    """What the service's own code gives its networks for each of these encoded photos."""
    return asyncio.run(_record_small_pair(photos))


def throughput(
    networks: Sequence[Runs],
    tensors: Sequence[PhotoTensors],
    *,
    threads: int,
    detector_batch: int,
    embedder_batch: int | None,
    seconds: float,
) -> Throughput:
    """What the networks alone can do.

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

    def work(mine: Runs) -> None:
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
        cpu, start = time.process_time(), time.perf_counter()
        end = start + seconds
        for done in [
            pool.submit(work, mine) for mine in itertools.islice(itertools.cycle(networks), threads)
        ]:
            done.result()
        return _throughput(passes * len(tensors), cpu, start)


def analysis(photos: Sequence[bytes], *, seconds: float) -> Throughput:
    """What the service's own code makes of encoded photos: decoding, both networks, all between.

    In this process, with as many threads as the service has and its processes that decode, but
    without files, catalog, vectors and requests.
    """
    return asyncio.run(_analysis(photos, seconds))


async def _analysis(photos: Sequence[bytes], seconds: float) -> Throughput:
    server = OnnxServer(MODELS)
    try:
        async with open_analyzer(server) as analyzer:
            in_flight = 2 * count_cores()
            waiting = itertools.cycle(photos)
            warm = (analyzer.analyze(next(waiting)) for _ in range(in_flight))
            await asyncio.gather(*warm)
            done = 0
            cpu, start = time.process_time(), time.perf_counter()

            async def analyze() -> None:
                nonlocal done
                while time.perf_counter() < start + seconds:
                    await analyzer.analyze(next(waiting))
                    done += 1

            await asyncio.gather(*(analyze() for _ in range(in_flight)))
            return _throughput(done, cpu, start)
    finally:
        await server.close()


@asynccontextmanager
async def open_analyzer(server: ModelServer) -> AsyncIterator[PhotoAnalyzer]:
    """The service's analysis of photos with the small pair of this server."""
    detector, embedder = [await server.load(name) for name in SMALL_PAIR.values()]
    decoders = Decoders(max_pixels=_MAX_PIXELS)
    analyzer = PhotoAnalyzer(
        Detector(detector),
        Embedder(embedder),
        Metrics(),
        engine_name=server.engine_name,
        whole_image="fallback",
        decoders=decoders,
        workers=server.workers if isinstance(server, OnnxServer) else None,
    )
    try:
        yield analyzer
    finally:
        await analyzer.close()
        decoders.close()


def _throughput(photos: int, cpu: float, start: float) -> Throughput:
    """Of so many photos since these moments of the processor's and the wall's clock."""
    return Throughput(
        photos / (time.perf_counter() - start), (time.process_time() - cpu) / photos * 1000
    )


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


async def record(
    photos: Sequence[bytes], detector: Model, embedder: Model, *, engine_name: str
) -> list[PhotoTensors]:
    """What the service's own code gives these models for each of these encoded photos."""
    cv2.setNumThreads(1)  # as in the service
    given = _Recorder(detector), _Recorder(embedder)
    decoders = Decoders(max_pixels=_MAX_PIXELS)
    analyzer = PhotoAnalyzer(
        Detector(given[0]),
        Embedder(given[1]),
        Metrics(),
        engine_name=engine_name,
        whole_image="fallback",
        decoders=decoders,
    )
    try:
        for photo in photos:
            await analyzer.analyze(photo)
    finally:
        await analyzer.close()
        decoders.close()
    # With this setting each photo has an object, and so a run of either network.
    return [
        PhotoTensors(square, crops)
        for square, crops in zip(given[0].given, given[1].given, strict=True)
    ]


async def _record_small_pair(photos: Sequence[bytes]) -> list[PhotoTensors]:
    server = OnnxServer(MODELS)
    try:
        models = [await server.load(name) for name in SMALL_PAIR.values()]
        return await record(photos, *models, engine_name=server.engine_name)
    finally:
        await server.close()
