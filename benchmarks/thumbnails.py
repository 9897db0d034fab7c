"""`python -m benchmarks.thumbnails --data FOLDER`: what a thumbnail costs in each format.

Photos of `val` are made smaller and encoded as the service does it, and in other ways beside it.
Prints one table, writes JSON.
"""

import argparse
import io
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from backend.vision.thumbnail import ENCODERS, make_thumbnail
from benchmarks.reporting import add_common_arguments, environment, rounded, write_json
from benchmarks.voc import read_split

__all__ = ["main", "measure", "render"]

_SIZE: Final = 256
_MAX_PIXELS: Final = 10**8
_OTHERS: Final = (
    ("WEBP", {"quality": 75, "method": 0}),
    ("WEBP", {"quality": 75, "method": 4}),
    ("AVIF", {"quality": 60, "speed": 10, "max_threads": 1}),
    ("AVIF", {"quality": 65, "speed": 8, "max_threads": 1}),
    ("AVIF", {"quality": 65, "speed": 6, "max_threads": 1}),
)
"""What was considered: faster and slower ways to encode."""


@dataclass
class _Tally:
    """What encoding in one way took and gave, photo by photo."""

    seconds: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    decibels: list[float] = field(default_factory=list)


def measure(data: Path, limit: int) -> dict[str, Any]:
    """A report on the first `limit` photos of `val`."""
    cv2.setNumThreads(1)
    ways = [(*way, True) for way in ENCODERS.values()] + [(*way, False) for way in _OTHERS]
    tallies = [_Tally() for _ in ways]
    whole: list[float] = []
    photos = read_split(data / "val", limit=limit)
    for photo in photos:
        encoded = photo.path.read_bytes()
        start = time.thread_time()
        make_thumbnail(encoded, _SIZE, "image/webp", max_pixels=_MAX_PIXELS)
        whole.append(time.thread_time() - start)
        pixels = photo.pixels()
        scale = min(1.0, _SIZE / max(pixels.shape[:2]))
        small = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        image = Image.fromarray(np.asarray(small, np.uint8))
        for tally, (encoder, options, _) in zip(tallies, ways, strict=True):
            file = io.BytesIO()
            start = time.thread_time()
            image.save(file, encoder, **options)
            tally.seconds.append(time.thread_time() - start)
            tally.sizes.append(file.tell())
            with Image.open(file) as decoded:
                tally.decibels.append(cv2.PSNR(small, np.asarray(decoded.convert("RGB"))))
    return rounded(
        {
            "environment": environment("pillow"),
            "photos": len(photos),
            "size_px": _SIZE,
            "whole_webp_ms": 1000 * float(np.mean(whole)),
            "encoders": [
                {
                    "encoder": encoder,
                    "options": options,
                    "in_use": in_use,
                    "ms": 1000 * float(np.mean(tally.seconds)),
                    "bytes": float(np.mean(tally.sizes)),
                    "psnr_db": float(np.mean(tally.decibels)),
                }
                for tally, (encoder, options, in_use) in zip(tallies, ways, strict=True)
            ],
        }
    )


def render(report: dict[str, Any]) -> Table:
    """The report as one table, a row for each way to encode."""
    table = Table(
        title=f"{report['photos']} thumbnails of {report['size_px']} pixels, means of one core's"
        " time",
        caption=f"* in use; a whole WebP, decoding included: {report['whole_webp_ms']:.1f} ms",
    )
    table.add_column("encoder")
    for title in ("ms", "kB", "PSNR, dB"):
        table.add_column(title, justify="right")
    for row in report["encoders"]:
        options = ", ".join(
            f"{name} {option}" for name, option in row["options"].items() if name != "max_threads"
        )
        table.add_row(
            f"{row['encoder']}, {options}" + (" *" if row["in_use"] else ""),
            f"{row['ms']:.1f}",
            f"{row['bytes'] / 1000:.2f}",
            f"{row['psnr_db']:.1f}",
        )
    return table


def main() -> None:
    """Parses the command line, measures and reports."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.thumbnails", description=__doc__)
    add_common_arguments(parser)
    parser.add_argument("--photos", type=int, default=200, metavar="N", help="how many (200)")
    arguments = parser.parse_args()
    report = measure(arguments.data, arguments.photos)
    Console().print(render(report))
    if arguments.json:
        write_json(arguments.json, report)


if __name__ == "__main__":
    main()
