"""Loading a folder, as a share of what the networks alone can do, and where the rest goes."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Self

import psutil

from backend.cores import count_cores
from backend.vision.decode import decode
from backend.vision.letterbox import letterbox
from backend.vision.perceptual_hash import perceptual_hash
from benchmarks.speed import bare
from benchmarks.speed.bench import Bench, copies_of, load_seconds, photo_files
from benchmarks.speed.networks import PhotoTensors, analysis, ready_tensors
from benchmarks.speed.processors import service_seconds
from benchmarks.speed.rounds import each_ms, in_words, medians, stage_seconds
from tests.service import Service

__all__ = ["Photos", "measure", "rows", "share_of_bare", "share_row"]

_SETS: Final = {"original": "photos", "val": "val"}
"""What the figures are called, by the folders of photos."""
_DISTINCT: Final = 100
_PHOTOS: Final = 300
"""Of a load: the distinct ones again and again, under other names."""
_BARE_SECONDS: Final = 4.0
_ROUNDS: Final = 3
_MAX_PIXELS: Final = 10**8
_TARGETS: Final = {"original": 0.90, "val": 0.92}


def measure(bench: Bench) -> dict[str, Any]:
    """Photos a second of `POST /img/load` and of the networks alone, in turns."""
    cores = count_cores()
    report: dict[str, Any] = {}
    with bench.service("loading") as service:
        process = psutil.Process(service.process.pid)
        for title, folder in _SETS.items():
            photos = Photos.of(bench, title, folder)
            if "loop" not in report:
                bench.log("load: which loop serves the networks alone best")
                loop, report["loops"] = bare.best_loop(photos.tensors, cores, scale=bench.scale)
                report["loop"] = report["loops"][0]
            found = share_of_bare(
                bench,
                service,
                photos,
                loop,
                partial(service_seconds, process),
                with_analysis=True,
            )
            found["parts_ms"] = _parts(photos, found)
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
    bench: Bench,
    service: Service,
    photos: Photos,
    loop: bare.Loop,
    processors: Callable[[], Mapping[str, float]],
    *,
    with_analysis: bool = False,
) -> dict[str, Any]:
    """What a load reaches of the networks alone, in rounds that take turns.

    Args:
        bench: where and how much.
        service: that loads.
        photos: what it loads.
        loop: of the networks alone.
        processors: the processors' time so far, by part of what takes part in a load.
        with_analysis: whether what is between the two takes its turn as well: all that is done
            with a photo's bytes, and nothing else.
    """
    load_seconds(service, photos.folder, "warm")
    rounds = []
    seconds = _BARE_SECONDS * bench.scale
    for number in range(bench.scaled(_ROUNDS, least=2)):
        bench.log(f"load: {photos.title}, round {number + 1}")
        ceiling = bare.run(loop, photos.tensors, seconds=seconds)
        alone = analysis(photos.contents, seconds=seconds) if with_analysis else None
        before, stages = processors(), _stages(service)
        rate = photos.count / load_seconds(service, photos.folder, f"round_{number}")
        parts = each_ms(before, processors(), photos.count)
        found = {
            "photos_per_second": rate,
            "bare_photos_per_second": ceiling.photos_per_second,
            "share_of_bare": rate / ceiling.photos_per_second,
            "cpu_ms": sum(parts.values()),
            "cpu_ms_by": parts,
            "bare_cpu_ms": ceiling.cpu_ms,
            "stages_ms": each_ms(stages, _stages(service), photos.count),
        }
        if alone is not None:
            found["analysis_share_of_bare"] = alone.photos_per_second / ceiling.photos_per_second
        rounds.append(found)
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
        lines += [
            share_row(f"load, {title} photos: share of bare", found, target),
            (
                "the analysis of those photos alone: share of bare",
                f"{found['analysis_share_of_bare']:.3f}",
                "",
            ),
            ("CPU ms a photo", f"{found['cpu_ms']:.2f}: {in_words(found['cpu_ms_by'])}", ""),
            ("of which", in_words(found["parts_ms"]), ""),
        ]
    return lines


def share_row(what: str, found: Mapping[str, Any], target: float) -> tuple[str, str, str]:
    """The row of a share, as `rows`."""
    least, most = found["spread"]["share_of_bare"]
    return (
        what,
        f"{found['share_of_bare']:.3f} ({least:.3f} to {most:.3f}):"
        f" {found['photos_per_second']:.1f} of {found['bare_photos_per_second']:.1f}/s",
        f">= {target:.2f}",
    )


def _parts(photos: Photos, found: Mapping[str, Any]) -> dict[str, float]:
    """Processor milliseconds of a photo, by what is done; `rest` is what is left of all.

    The networks' are those of the networks alone in the same rounds. What else is done with a
    photo's bytes is measured by itself, one photo after the other.
    """
    size = photos.tensors[0].square.shape[1]
    decoded = [decode(content, max_pixels=_MAX_PIXELS) for content in photos.contents]
    squares = [letterbox(photo, size) for photo in decoded]
    shown = [placement.photo_of(square) for square, placement in squares]
    parts = {
        "networks": found["bare_cpu_ms"],
        "decode": _cpu_ms(partial(decode, max_pixels=_MAX_PIXELS), photos.contents),
        "letterbox": _cpu_ms(partial(letterbox, size=size), decoded),
        "hashes": _cpu_ms(perceptual_hash, shown) + _cpu_ms(sha256, photos.contents),
    }
    return {**parts, "rest": found["cpu_ms"] - sum(parts.values())}


def _stages(service: Service) -> dict[str, float]:
    return stage_seconds(service.get("/metrics").text)


def _cpu_ms(function: Callable[[Any], object], things: Sequence[Any]) -> float:
    """Processor milliseconds of a call, the median of some turns."""
    turns = []
    for _ in range(3):
        start = time.process_time()
        for thing in things:
            function(thing)
        turns.append((time.process_time() - start) / len(things) * 1000)
    return statistics.median(turns)
