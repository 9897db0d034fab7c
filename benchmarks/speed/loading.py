"""Loading a folder, as a share of what the networks alone can do, and where the rest goes."""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Self

import psutil

from backend.vision.decode import decode
from backend.vision.letterbox import letterbox
from backend.vision.perceptual_hash import perceptual_hash
from benchmarks.speed import bare
from benchmarks.speed.bench import Bench, copies_of, cpu_seconds, load_seconds, photo_files
from benchmarks.speed.networks import Networks, PhotoTensors, ready_tensors
from benchmarks.speed.rounds import medians
from tests.service import Service

__all__ = ["Photos", "measure", "rows", "share_of_bare"]

_SETS: Final = {"original": "photos", "val": "val"}
"""What the figures are called, by the folders of photos."""
_DISTINCT: Final = 100
_PHOTOS: Final = 500
"""Of a load: the distinct ones again and again, under other names."""
_BARE_SECONDS: Final = 4.0
_ROUNDS: Final = 5
_MAX_PIXELS: Final = 10**8
_TARGETS: Final = {"original": 0.90, "val": 0.92}


def measure(bench: Bench) -> dict[str, Any]:
    """Photos a second of `POST /img/load` and of the networks alone, in turns."""
    cores = os.cpu_count() or 1
    report: dict[str, Any] = {}
    with bench.service("loading") as service:
        for title, folder in _SETS.items():
            photos = Photos.of(bench, title, folder)
            if "loop" not in report:
                bench.log("load: which loop serves the networks alone best")
                loop, report["loops"] = bare.best_loop(photos.tensors, cores, scale=bench.scale)
                report["loop"] = report["loops"][0]
            found = share_of_bare(bench, service, photos, loop)
            found["parts_ms"] = _parts(photos.contents, photos.tensors, found["cpu_ms"])
            report[title] = found
    report["share_of_bare"] = report["original"]["share_of_bare"]
    return report


@dataclass(frozen=True)
class Photos:
    """Distinct photos, what the networks are given of them, and a folder of `count` copies."""

    title: str
    contents: list[bytes]
    tensors: list[PhotoTensors]
    folder: Path
    count: int

    @classmethod
    def of(cls, bench: Bench, title: str, name: str) -> Self:
        """The photos of one of the benchmark's folders."""
        files = photo_files(bench.data / name / "images")[:_DISTINCT]
        contents = [path.read_bytes() for path in files]
        count = bench.scaled(_PHOTOS, least=20)
        folder = copies_of(files, bench.scratch / f"load {title}", count)
        return cls(title, contents, ready_tensors(contents), folder, count)


def share_of_bare(
    bench: Bench, service: Service, photos: Photos, loop: bare.Loop
) -> dict[str, Any]:
    """What a load reaches of the networks alone, in rounds that take turns."""
    process = psutil.Process(service.process.pid)
    load_seconds(service, photos.folder, "warm")
    rounds = []
    for number in range(bench.scaled(_ROUNDS, least=2)):
        bench.log(f"load: {photos.title}, round {number + 1}")
        ceiling = bare.run(loop, photos.tensors, seconds=_BARE_SECONDS * bench.scale)
        before = cpu_seconds(process)
        rate = photos.count / load_seconds(service, photos.folder, f"round_{number}")
        rounds.append(
            {
                "photos_per_second": rate,
                "bare_photos_per_second": ceiling,
                "share_of_bare": rate / ceiling,
                "cpu_ms": (cpu_seconds(process) - before) / photos.count * 1000,
            }
        )
    return medians(rounds)


def rows(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What was measured, the figure, and what it is to be."""
    loop = report["loop"]
    crops = loop["embedder_batch"] or "each photo's own"
    lines = [
        (
            "the networks alone do best with",
            f"{loop['threads']} threads, {loop['detector_batch']} photos and {crops} crops a run",
            "",
        )
    ]
    for title, target in _TARGETS.items():
        found = report[title]
        least, most = found["spread"]["share_of_bare"]
        parts = ", ".join(f"{name} {ms:.2f}" for name, ms in found["parts_ms"].items())
        lines += [
            (
                f"load, {title} photos: share of bare",
                f"{found['share_of_bare']:.3f} ({least:.3f} to {most:.3f}):"
                f" {found['photos_per_second']:.1f} of {found['bare_photos_per_second']:.1f}/s",
                f">= {target:.2f}",
            ),
            ("CPU ms a photo", f"{found['cpu_ms']:.2f}: {parts}", ""),
        ]
    return lines


def _parts(
    contents: Sequence[bytes], tensors: Sequence[PhotoTensors], total_ms: float
) -> dict[str, float]:
    """Processor milliseconds of a photo, part by part; `rest` is what is left of the total."""
    networks = Networks()
    size = tensors[0].square.shape[1]
    photos = [decode(content, max_pixels=_MAX_PIXELS) for content in contents]
    squares = [letterbox(photo, size) for photo in photos]
    shown = [placement.photo_of(square) for square, placement in squares]
    parts = {
        "networks": _cpu_ms(networks.run_once, tensors),
        "decode": _cpu_ms(partial(decode, max_pixels=_MAX_PIXELS), contents),
        "letterbox": _cpu_ms(partial(letterbox, size=size), photos),
        "hashes": _cpu_ms(perceptual_hash, shown) + _cpu_ms(sha256, contents),
    }
    return {**parts, "rest": total_ms - sum(parts.values())}


def _cpu_ms(function: Callable[[Any], object], things: Sequence[Any]) -> float:
    """Processor milliseconds of a call, the median of some turns."""
    turns = []
    for _ in range(3):
        start = time.process_time()
        for thing in things:
            function(thing)
        turns.append((time.process_time() - start) / len(things) * 1000)
    return statistics.median(turns)
