"""`python -m benchmarks.triton --data FOLDER`: what it costs to have Triton run the models.

The same photos go through the same code with the models in the process and behind a Triton on
loopback, in rounds that take turns, so that both meet the same machine. First the small pair, from
a photo's bytes to its embeddings; then the detector alone at full size, with random weights. Prints
one table, writes JSON.
"""

import argparse
import asyncio
import hashlib
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from backend.serving.models import Detector
from backend.serving.onnx import OnnxServer
from backend.serving.triton import TritonServer
from backend.vision.decode import decode
from backend.vision.letterbox import letterbox
from benchmarks.full_size import random_detector
from benchmarks.reporting import environment, rounded, write_json
from benchmarks.speed.networks import open_analyzer
from scripts.export_models.contract import detector_spec
from scripts.export_models.onnx_file import export_onnx
from scripts.export_models.repository import CONFIG_FILES, MODEL_FILE
from scripts.export_models.triton_config import Placement, config_text
from tests.engines.triton import REPOSITORY, TritonProcess
from tests.service import SMALL_PAIR

CONCURRENCY: Final = 8
WIDTH = 1.0
"""Of the detector at full size, in parts of the published network's: tests make it a thin one."""
_TIMEOUT_SECONDS: Final = 120
_MAX_PIXELS: Final = 100_000_000
_LARGE: Final = "yolov3"
_LARGE_SIZE: Final = 416
_LARGE_LABELS: Final = 80

Work = Callable[[bytes], Awaitable[object]]
"""What is done with a photo."""


@dataclass(frozen=True)
class Cost:
    """Of a photo, in milliseconds: of the clock, and of all processors of all processes."""

    wall_ms: float
    cpu_ms: float


@dataclass(frozen=True)
class Overhead:
    """Costs a photo, medians of the rounds, and by what Triton multiplies them.

    The ratios are medians of the rounds' own: a round's two halves follow each other, so that other
    work on the machine is in both.
    """

    in_process: Cost
    triton: Cost
    wall_ratio: float
    cpu_ratio: float
    photos: int
    rounds: int


async def compare(
    photos: Sequence[bytes], in_process: Work, triton: Work, server: psutil.Process, rounds: int
) -> Overhead:
    """Has both do the same work on the photos in turns, and the other one first each time."""
    processes = [psutil.Process(), server, *server.children()]
    for work in (in_process, triton):
        await _run(photos, work, processes)  # so that nobody is cold
    found: dict[Work, list[Cost]] = {in_process: [], triton: []}
    for number in range(rounds):
        order = (in_process, triton) if number % 2 else (triton, in_process)
        for work in order:
            found[work].append(await _run(photos, work, processes))
    pairs = list(zip(found[in_process], found[triton], strict=True))
    return Overhead(
        in_process=_median(found[in_process]),
        triton=_median(found[triton]),
        wall_ratio=statistics.median(b.wall_ms / a.wall_ms for a, b in pairs),
        cpu_ratio=statistics.median(b.cpu_ms / a.cpu_ms for a, b in pairs),
        photos=len(photos),
        rounds=rounds,
    )


async def measure(
    data: Path,
    *,
    photos: int,
    large_photos: int,
    rounds: int,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """The whole report, of the first photos in a folder."""
    cv2.setNumThreads(1)  # photos already run side by side, as in the service
    files = sorted(path for path in data.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
    contents = [path.read_bytes() for path in files[:photos]]
    if not contents:
        raise SystemExit(f"{data} holds no JPEG files")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log(f"the small pair on {len(contents)} photos, {rounds} rounds")
        pair = await _compare_pair(folder, contents, rounds)
        log("exporting the detector at full size")
        sha256 = _write_large(folder / "repository")
        contents = contents[:large_photos]
        log(f"the detector at full size on {len(contents)} photos, {rounds} rounds")
        detector = await _compare_large(folder, contents, rounds)
    report: dict[str, Any] = rounded(
        {
            **environment("grpcio", "tritonclient"),
            "concurrency": CONCURRENCY,
            "small_pair": asdict(pair),
            "large_detector": {"input": _LARGE_SIZE, "sha256": sha256, **asdict(detector)},
        }
    )
    return report


def render(report: dict[str, Any]) -> Table:
    """The report as one table, a row for each kind of work."""
    table = Table(title=f"{report['concurrency']} photos in flight; milliseconds a photo")
    table.add_column("work")
    for title in ("in process", "Triton", "ratio", "CPU in process", "CPU Triton", "ratio"):
        table.add_column(title, justify="right")
    for title, key in (
        ("small pair", "small_pair"),
        (f"{_LARGE} at {_LARGE_SIZE} px", "large_detector"),
    ):
        row = report[key]
        cells = [title]
        for kind in ("wall", "cpu"):
            cells += [f"{row[side][f'{kind}_ms']:,.1f}" for side in ("in_process", "triton")]
            cells.append(f"[bold]{row[f'{kind}_ratio']:.3f}[/bold]")
        table.add_row(*cells)
    return table


async def _compare_pair(folder: Path, photos: Sequence[bytes], rounds: int) -> Overhead:
    async with (
        _servers(folder / "pair", REPOSITORY, tuple(SMALL_PAIR.values())) as (own, triton, server),
        open_analyzer(own) as near,
        open_analyzer(triton) as far,
    ):
        first, second = await near.analyze(photos[0]), await far.analyze(photos[0])
        if first.objects != second.objects or not np.array_equal(
            first.embeddings, second.embeddings
        ):
            raise SystemExit("Triton's answers differ from those in the process")
        return await compare(photos, near.analyze, far.analyze, server, rounds)


async def _compare_large(folder: Path, photos: Sequence[bytes], rounds: int) -> Overhead:
    squares = {photo: _square(photo) for photo in photos}

    def detect(detector: Detector) -> Work:
        return lambda photo: detector.detect(squares[photo])

    async with _servers(folder / "large", folder / "repository", (_LARGE,)) as (
        own,
        triton,
        server,
    ):
        near, far = [Detector(await each.load(_LARGE)) for each in (own, triton)]
        return await compare(photos, detect(near), detect(far), server, rounds)


@asynccontextmanager
async def _servers(
    folder: Path, repository: Path, models: Sequence[str]
) -> AsyncIterator[tuple[OnnxServer, TritonServer, psutil.Process]]:
    process = TritonProcess(folder, repository=repository, models=models)
    try:
        await asyncio.to_thread(process.start)
        assert process.process is not None
        own = OnnxServer(repository)
        triton = TritonServer([process.address], timeout=_TIMEOUT_SECONDS)
        try:
            yield own, triton, psutil.Process(process.process.pid)
        finally:
            await own.close()
            await triton.close()
    finally:
        await asyncio.to_thread(process.remove)


async def _run(photos: Sequence[bytes], work: Work, processes: Sequence[psutil.Process]) -> Cost:
    waiting = iter(photos)

    async def take_photos() -> None:
        for photo in waiting:
            await work(photo)

    cpu, start = _cpu_seconds(processes), time.perf_counter()
    await asyncio.gather(*(take_photos() for _ in range(CONCURRENCY)))
    seconds = time.perf_counter() - start
    return Cost(
        wall_ms=seconds / len(photos) * 1000,
        cpu_ms=(_cpu_seconds(processes) - cpu) / len(photos) * 1000,
    )


def _cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    # A process's clock in nanoseconds (clock_getcpuclockid(3)): what psutil reads goes in ticks of
    # 10 ms, which a round of few photos may end within.
    return sum(time.clock_gettime(~process.pid << 3 | 2) for process in processes)


def _median(costs: Sequence[Cost]) -> Cost:
    return Cost(
        statistics.median(cost.wall_ms for cost in costs),
        statistics.median(cost.cpu_ms for cost in costs),
    )


def _square(photo: bytes) -> NDArray[np.uint8]:
    square, _ = letterbox(decode(photo, max_pixels=_MAX_PIXELS), _LARGE_SIZE)
    return square[np.newaxis]


def _write_large(repository: Path) -> str:
    """Exports YOLOv3 with random weights; returns the ONNX file's SHA-256."""
    module = random_detector(WIDTH)
    spec = detector_spec(
        size=_LARGE_SIZE,
        labels=[f"label {number}" for number in range(_LARGE_LABELS)],
        score_threshold=0.5,
        nms_threshold=0.5,
    )
    content = export_onnx(module, spec)
    sha256 = hashlib.sha256(content).hexdigest()
    text = config_text(_LARGE, spec, Placement.CPU, source_sha256=sha256, model_sha256=sha256)
    folder = repository / _LARGE
    (folder / MODEL_FILE).parent.mkdir(parents=True)
    (folder / MODEL_FILE).write_bytes(content)
    (folder / CONFIG_FILES[Placement.GPU]).write_text(text, "utf-8")  # the one that is looked for
    return sha256


def main() -> None:
    """Parses the command line, measures and reports."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.triton", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of photos (JPEG)")
    parser.add_argument("--photos", type=int, default=100, help="photos of a round (100)")
    parser.add_argument("--large-photos", type=int, default=8, help="the same, at full size (8)")
    parser.add_argument("--rounds", type=int, default=11, help="rounds of each (11)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there too")
    arguments = parser.parse_args()
    progress = Console(stderr=True)
    try:
        report = asyncio.run(
            measure(
                arguments.data,
                photos=arguments.photos,
                large_photos=arguments.large_photos,
                rounds=arguments.rounds,
                log=lambda message: progress.print(message, style="dim"),
            )
        )
    except pytest.skip.Exception as missing:
        sys.exit(str(missing))
    Console().print(render(report))
    if arguments.json:
        write_json(arguments.json, report)


if __name__ == "__main__":
    main()
