"""`python -m benchmarks.gpu`: the full-size pair on a GPU behind Triton, and what bounds it.

YOLOv3 and ResNet-50 at their published sizes, with random weights, in half precision, which a
Triton on loopback runs on the GPU through its Python backend and ONNX Runtime. First the networks
alone in the best loop that is found, on tensors that are made beforehand; then folders are loaded
by services of more and more cores, and by several of them, which share that Triton and a Milvus.
Needs `onnxruntime-gpu` in the place of `onnxruntime`. Prints tables, writes JSON.
"""

import argparse
import asyncio
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import cv2
import onnxruntime as ort
import pytest
from rich.console import Console
from rich.table import Table

from benchmarks.full_size import DETECTOR, EMBEDDER, write_detector, write_embedder
from benchmarks.gpu import loading, networks, searching
from benchmarks.gpu.loading import Cores, Engines
from benchmarks.gpu.processors import gpu_name
from benchmarks.reporting import add_common_arguments, environment, rounded, write_json
from benchmarks.speed.bench import Bench, photo_files
from scripts.export_models.formats import Precision
from tests.engines.milvus import MilvusProcess
from tests.engines.onnxruntime.padded import GPU_PROVIDER, PaddedModel, Provider, gpu_provider
from tests.engines.triton import TritonProcess

WIDTH: Final = 1.0
"""Of both networks, in parts of the published ones'."""
_OBJECTS: Final = 3.0
"""That the detector finds on a photo in the mean."""
_PARTS: Final = (
    *("event_loop", "threads", "decoders"),
    *("milvus", "triton", "detector", "embedder"),
)
"""Of the cores that are busy, see `core_seconds`."""
_NORMALISED: Final = 32
"""Photos on which the random networks are normalised."""
_TENSORS: Final = 128
_BARE_SECONDS: Final = 4.0
_SESSION_SECONDS: Final = 60
"""Milvus gives itself up after that long without its own clock: nothing here freezes it."""


def measure(bench: Bench, *, width: float, on_gpu: bool) -> dict[str, Any]:
    """The whole report. Where not `on_gpu`, all runs on processors, to try it out."""
    provider: Provider = gpu_provider() if on_gpu else "CPUExecutionProvider"
    precision = Precision.FP16 if on_gpu else Precision.FP32
    files = photo_files(bench.data / "photos" / "images")
    photos = [path.read_bytes() for path in files]
    repository = bench.scratch / "models"
    bench.log("writing the networks")
    write_embedder(repository, photos[:_NORMALISED], width=width, precision=precision)
    write_detector(
        repository,
        photos[:_NORMALISED],
        objects=_OBJECTS,
        open_model=lambda path: PaddedModel(path, 1, provider).run,
        width=width,
        precision=precision,
    )
    bench.log("starting Milvus and Triton")
    engines = Engines(
        TritonProcess(
            bench.scratch / "triton",
            repository=repository,
            models=(DETECTOR, EMBEDDER),
            on_gpu=on_gpu,
        ),
        MilvusProcess(
            bench.scratch / "milvus", options={"common.session.ttl": str(_SESSION_SECONDS)}
        ),
        Cores.of(sorted(os.sched_getaffinity(0))),
    )
    try:
        engines.start()
        return {
            "gpu": gpu_name() if on_gpu else None,
            "onnxruntime_provider": provider if isinstance(provider, str) else provider[0],
            "precision": precision.value,
            "cores_of": {part: len(cores) for part, cores in vars(engines.cores).items()},
            **_bare(bench, repository, provider, photos, engines.triton.address),
            "loads": loading.measure(bench, engines, files),
            "search": searching.measure(bench, engines, files),
        }
    finally:
        engines.remove()


def _bare(
    bench: Bench, repository: Path, provider: Provider, photos: list[bytes], address: str
) -> dict[str, Any]:
    wanted = bench.scaled(_TENSORS, least=4)
    chosen = [photos[number % len(photos)] for number in range(wanted)]
    tensors = asyncio.run(networks.ready_tensors(chosen, address))
    bench.log("the networks alone")
    alone = networks.Networks(repository, provider)
    loop, tried = networks.best_loop(alone, tensors, seconds=_BARE_SECONDS * bench.scale)
    rate = networks.run(alone, loop, tensors, seconds=_BARE_SECONDS * bench.scale)
    return {
        "objects_a_photo": sum(len(each.crops) for each in tensors) / len(tensors),
        "bare": {
            "photos_per_second": rate,
            "latency_ms_p50": networks.latency_ms(alone, tensors),
            "loops": tried,
        },
    }


def render(report: dict[str, Any]) -> list[Table]:
    """The report as tables: of loads and of searches."""
    bare = report["bare"]["photos_per_second"]
    loads = Table(title=f"Loads; the networks alone: {bare:,.0f} photos/s; cores that are busy")
    titles = ("services", "cores", "photos/s", "of bare", "GPU", "loop", "threads", "decoders")
    for title in (*titles, "Milvus", "Triton", "detector", "embedder", "batch", "in flight"):
        loads.add_column(title, justify="right")
    for row in report["loads"]:
        busy, gpu = row["busy_cores"], row["gpu_busy"]
        loads.add_row(
            str(row["services"]),
            str(row["cores"]),
            f"{row['photos_per_second']:,.0f}",
            f"{row['photos_per_second'] / bare:.3f}",
            "" if gpu is None else f"{gpu:.0%}",
            *(f"{busy[part]:.2f}" for part in _PARTS),
            f"{row['batch']['detector']:.1f}",
            f"{row['in_flight']:.0f}",
        )
    searches = Table(title="Searches")
    for title in ("clients", "p50 ms", "p95 ms", "p99 ms", "a second"):
        searches.add_column(title, justify="right")
    for count, row in report["search"].items():
        if isinstance(row, dict):
            times = (f"{row[f'p{rank}_ms']:.1f}" for rank in (50, 95, 99))
            searches.add_row(count, *times, f"{row['per_second']:.1f}")
    return [loads, searches]


def main() -> None:
    """Parses the command line, measures and reports."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    add_common_arguments(parser)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="of counts and durations, for a quick look (1)"
    )
    parser.add_argument(
        "--width", type=float, default=WIDTH, help="of both networks, to try it out (1)"
    )
    parser.add_argument("--on-cpu", action="store_true", help="without a GPU, to try it out")
    arguments = parser.parse_args()
    if not arguments.on_cpu and GPU_PROVIDER not in ort.get_available_providers():
        sys.exit(
            "this ONNX Runtime knows no GPU: pip uninstall onnxruntime, then pip install"
            " 'onnxruntime-gpu[cuda,cudnn]'"
        )
    progress = Console(stderr=True)
    cv2.setNumThreads(1)  # as in the service
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(
            arguments.data,
            Path(scratch),
            arguments.scale,
            log=lambda message: progress.print(message, style="dim"),
        )
        try:
            report = measure(bench, width=arguments.width, on_gpu=not arguments.on_cpu)
        except pytest.skip.Exception as missing:
            sys.exit(str(missing))
    report = rounded({**environment("tritonclient"), "scale": arguments.scale, **report})
    # A package of another name, which may lie over that of the first.
    report["versions"]["onnxruntime"] = ort.__version__
    for table in render(report):
        Console().print(table)
    if arguments.json:
        write_json(arguments.json, report)


if __name__ == "__main__":
    main()
