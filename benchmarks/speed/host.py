"""A photo's cost besides the networks, which bounds a machine with a GPU.

The models are replaced by ones that answer at once; the service is the same in every line. Its
processor time a photo stands beside that of one full-size decode of the same files, which is the
least that anyone has to spend.
"""

import time
from collections.abc import Sequence
from typing import Any, Final

import cv2
import numpy as np
import psutil

from backend.cores import count_cores
from benchmarks.speed.bench import Bench, copies_of, load_seconds, photo_files
from benchmarks.speed.instant import write_instant_models
from benchmarks.speed.processors import service_seconds
from benchmarks.speed.rounds import each_ms, in_words, medians

__all__ = ["measure", "rows"]

_PHOTOS: Final = 2000
_OBJECTS: Final = 2
"""That the models find in a photo: as the small pair does, to the nearest whole one."""
_ROUNDS: Final = 4


def measure(bench: Bench) -> dict[str, Any]:
    """Processor milliseconds a photo and photos a second, with models that answer at once."""
    files = photo_files(bench.data / "photos" / "images")
    models = bench.scratch / "instant models"
    write_instant_models(models, objects=_OBJECTS)
    photos = bench.scaled(_PHOTOS, least=20)
    folder = copies_of(files, bench.scratch / "host photos", photos)
    contents = [path.read_bytes() for path in files]
    cores = count_cores()
    bench.log(f"host: {photos} photos, networks that answer at once")
    rounds = []
    with bench.service("host", {"model_repository": str(models)}) as service:
        process = psutil.Process(service.process.pid)
        for number in range(bench.scaled(_ROUNDS, least=2)):
            decode_ms = _decode_ms(contents)
            before = service_seconds(process)
            elapsed = load_seconds(service, folder, f"round_{number}")
            parts = each_ms(before, service_seconds(process), photos)
            cpu_ms = sum(parts.values())
            rounds.append(
                {
                    "photos_per_second": photos / elapsed,
                    "cpu_ms": cpu_ms,
                    "cpu_ms_by": parts,
                    "decode_ms": decode_ms,
                    "cpu_per_decode": cpu_ms / decode_ms,
                    # Of what the cores would do, were they kept busy with just that.
                    "share_of_cores": cpu_ms / 1000 * photos / (elapsed * cores),
                }
            )
    return {"photos": photos, "objects_a_photo": _OBJECTS, **medians(rounds)}


def rows(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What was measured, the figure, and what it is to be."""
    least, most = report["spread"]["cpu_per_decode"]
    return [
        (
            "instant networks: CPU of a photo, over a decode's",
            f"{report['cpu_per_decode']:.2f} ({least:.2f} to {most:.2f}): {report['cpu_ms']:.2f} of"
            f" {report['decode_ms']:.2f} ms ({in_words(report['cpu_ms_by'])})",
            "<= 1.5",
        ),
        (
            "instant networks: share of the cores that is used",
            f"{report['share_of_cores']:.3f}: {report['photos_per_second']:.0f} photos/s",
            ">= 0.85",
        ),
    ]


def _decode_ms(contents: Sequence[bytes]) -> float:
    """Processor milliseconds of one full-size decode, the mean of the photos."""
    start = time.process_time()
    for content in contents:
        cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    return (time.process_time() - start) / len(contents) * 1000
