"""Loads through Triton, by how many services there are and how many cores each has."""

import os
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Final, Self

import psutil

from benchmarks.full_size import DETECTOR, EMBEDDER
from benchmarks.gpu.processors import core_seconds, gpu_use
from benchmarks.speed.bench import Bench, copies_of, load_seconds
from benchmarks.speed.rounds import each_ms, stage_seconds
from tests.engines.milvus import MilvusProcess
from tests.engines.triton import TritonProcess
from tests.service import Service

__all__ = ["Cores", "Engines", "Layout", "measure", "services"]

_PHOTOS_A_CORE: Final = 1000
"""Of a load of one service: the distinct ones again and again, under other names."""
_MOST_PHOTOS: Final = 3000
_ROUNDS: Final = 2
_LEAST_CORES: Final = 4
"""Of a server that has some of its own."""
_START_SECONDS: Final = 300
_MODELS: Final = {"detector": DETECTOR, "embedder": EMBEDDER}


@dataclass(frozen=True)
class Layout:
    """How many services there are, and how many cores each of them has."""

    services: int
    cores: int


@dataclass(frozen=True)
class Cores:
    """Which cores each part of the system has. On a small machine, all have all."""

    services: Sequence[int]
    milvus: Sequence[int]
    triton: Sequence[int]

    @classmethod
    def of(cls, cores: Sequence[int]) -> Self:
        """A quarter for either server, the rest for services, where that leaves enough."""
        part = len(cores) // 4
        if part < _LEAST_CORES:
            return cls(cores, cores, cores)
        return cls(cores[: -2 * part], cores[-2 * part : -part], cores[-part:])

    def layouts(self) -> list[Layout]:
        """What is measured: one service with more and more cores, then all cores for several."""
        count = len(self.services)
        alone = [cores for cores in (1, 2, 4, 8, 16) if cores < count]
        several = [number for number in (2, 4) if number <= count]
        return [
            *(Layout(1, cores) for cores in [*alone, count]),
            *(Layout(number, count // number) for number in several),
        ]


@dataclass(frozen=True)
class Engines:
    """The servers that all services share, and the cores of each."""

    triton: TritonProcess
    milvus: MilvusProcess
    cores: Cores

    def start(self) -> None:
        """Starts both, each on its cores."""
        mine = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, self.cores.milvus)
            self.milvus.start(wait_seconds=_START_SECONDS)
            os.sched_setaffinity(0, self.cores.triton)
            self.triton.start(wait_seconds=_START_SECONDS)
        finally:
            os.sched_setaffinity(0, mine)

    def remove(self) -> None:
        """Ends both."""
        self.triton.remove()
        self.milvus.remove()


def measure(bench: Bench, engines: Engines, files: Sequence[Path]) -> list[dict[str, Any]]:
    """Photos a second of each layout, who was busy meanwhile, and each stage's time."""
    found = []
    for layout in engines.cores.layouts():
        bench.log(f"load: {layout.services} of {layout.cores} cores")
        photos = bench.scaled(min(_MOST_PHOTOS, _PHOTOS_A_CORE * layout.cores), least=8)
        folder = copies_of(files, bench.scratch / f"photos {layout}", photos)
        with services("load", bench, engines, layout) as started:
            found.append(asdict(layout) | _loads(bench, started, engines, folder))
    return found


@contextmanager
def services(title: str, bench: Bench, engines: Engines, layout: Layout) -> Iterator[list[Service]]:
    """Services on cores of their own that share the engines; each has an SQLite of its own."""
    settings = {
        "triton_url": engines.triton.address,
        "detector_model": DETECTOR,
        "embedder_model": EMBEDDER,
        "milvus_host": engines.milvus.host,
        "milvus_port": str(engines.milvus.port),
    }
    with ExitStack() as stack:
        started = []
        for number in range(layout.services):
            mine = engines.cores.services[number * layout.cores :][: layout.cores]
            name = f"{title}, {layout.services} of {layout.cores}, {number}"
            pinned = ("taskset", "--cpu-list", ",".join(map(str, mine)))
            started.append(stack.enter_context(bench.service(name, settings, pinned)))
        yield started


def _loads(
    bench: Bench, started: Sequence[Service], engines: Engines, folder: Path
) -> dict[str, Any]:
    triton = engines.triton
    photos = len(list(folder.iterdir())) * len(started)
    processes = [psutil.Process(service.process.pid) for service in started]
    assert triton.process is not None
    assert engines.milvus.process is not None
    milvus = psutil.Process(engines.milvus.process.pid)
    server = psutil.Process(triton.process.pid)
    _load(started, folder, "warm")
    rates, busy, gpu, batches, stages, in_flight = [], [], [], [], [], []
    for number in range(bench.scaled(_ROUNDS)):
        before = core_seconds(processes, milvus, server, _MODELS)
        executions = {part: triton.executions(model) for part, model in _MODELS.items()}
        spent = [_stages(service) for service in started]
        with gpu_use() as use:
            seconds = _load(started, folder, f"round_{number}")
        after = core_seconds(processes, milvus, server, _MODELS)
        rates.append(photos / seconds)
        busy.append({part: (after[part] - before[part]) / seconds for part in after})
        gpu.append(use.share)
        batches.append(
            {
                part: _mean_batch(executions[part], triton.executions(model))
                for part, model in _MODELS.items()
            }
        )
        stages.append(each_ms(spent[0], _stages(started[0]), photos // len(started)))
        in_flight.append(_in_flight(started[0]))
    shares = [share for share in gpu if share is not None]
    return {
        "photos": photos,
        "photos_per_second": statistics.median(rates),
        "spread": [min(rates), max(rates)],
        "gpu_busy": statistics.median(shares) if shares else None,
        "busy_cores": _medians(busy),
        "batch": _medians(batches),
        "stages_ms": _medians(stages),
        "in_flight": statistics.median(in_flight),
        "objects_a_photo": _objects_a_photo(executions, triton),
    }


def _load(started: Sequence[Service], folder: Path, table: str) -> float:
    """Seconds until all services have loaded the folder, all at once."""
    start = perf_counter()
    with ThreadPoolExecutor(len(started)) as pool:
        for done in [pool.submit(load_seconds, each, folder, table) for each in started]:
            done.result()
    return perf_counter() - start


def _stages(service: Service) -> dict[str, float]:
    return stage_seconds(service.get("/metrics").text)


def _in_flight(service: Service) -> float:
    """How many photos of a load may be in flight by now: it finds that out as it runs."""
    [limit] = re.findall(
        r"^image_search_load_photos_in_flight_limit (\S+)$", service.get("/metrics").text, re.M
    )
    return float(limit)


def _mean_batch(before: tuple[int, int], after: tuple[int, int]) -> float:
    return (after[0] - before[0]) / max(1, after[1] - before[1])


def _objects_a_photo(before: Mapping[str, tuple[int, int]], triton: TritonProcess) -> float:
    """Crops that were embedded for each photo since `before`; a photo without objects has one."""
    rows = {part: triton.executions(model)[0] - before[part][0] for part, model in _MODELS.items()}
    return rows["embedder"] / rows["detector"]


def _medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
