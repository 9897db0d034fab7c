"""`python -m benchmarks.duplicates --data FOLDER`: which limits tell duplicates from look-alikes.

Copies of real photos are made as they come about (resized, recompressed, cropped, …) and compared
with their originals; what is found of them is recall. All pairs of different photos are look-alikes
at most; what is found of them is false. Both by perceptual hash alone, by the embeddings of the
objects alone, and by both, as the service does it. Prints tables, writes JSON.
"""

import argparse
import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Final, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from backend.analysis import AnalyzedPhoto, PhotoAnalyzer
from backend.decoding.pool import Decoders
from backend.duplicates import MAX_BITS, MAX_DISTANCE, photo_distance
from backend.metrics import Metrics
from backend.serving.models import Detector, Embedder
from backend.vision.perceptual_hash import HASH_BITS, differing_bits, perceptual_hash
from benchmarks.models import model_in_use
from benchmarks.reporting import add_common_arguments, environment, rounded, write_json
from benchmarks.voc import MAX_PIXELS, VocPhoto, read_split

__all__ = ["CHANGES", "Copies", "compare_copies", "false_pairs", "main", "measure", "render"]

_T = TypeVar("_T")
_S = TypeVar("_S")

PHOTOS: Final = 500
"""Photos that copies are made of."""
BITS: Final = (4, 6, 8, 10, 12, 14)
DISTANCES: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
MIRRORED: Final = "mirrored"
"""No duplicate: it is told how often it is taken for one."""
_SEED: Final = 20
_IN_FLIGHT: Final = 1 + (os.cpu_count() or 1)
_MILLION: Final = 1e6

Change = Callable[[NDArray[np.uint8], np.random.Generator], bytes]
"""Makes the file of a changed copy from a photo, RGB uint8 [H, W, 3]."""


@dataclass(frozen=True)
class Copies:
    """Of one kind of change: bits, uint8 [N], and distances, float [N], from the originals.

    Copies of photos that have no hash differ in all bits.
    """

    bits: NDArray[np.uint8]
    distances: NDArray[np.float64]

    def found(self, max_bits: int | None, max_distance: float | None) -> float:
        """The part that is within both limits; None is no limit."""
        return float(_within(self.bits, self.distances, max_bits, max_distance).mean())


def _encoded(photo: NDArray[np.uint8], extension: str = ".jpg", quality: int = 90) -> bytes:
    flag = cv2.IMWRITE_WEBP_QUALITY if extension == ".webp" else cv2.IMWRITE_JPEG_QUALITY
    done, data = cv2.imencode(
        extension, cv2.cvtColor(photo, cv2.COLOR_RGB2BGR), [int(flag), quality]
    )
    assert done
    return data.tobytes()


def _recompressed(photo: NDArray[np.uint8], random: np.random.Generator) -> bytes:
    return _encoded(photo, quality=int(random.integers(40, 61)))


def _as_webp(photo: NDArray[np.uint8], _random: np.random.Generator) -> bytes:
    return _encoded(photo, ".webp", quality=70)


def _halved(photo: NDArray[np.uint8], _random: np.random.Generator) -> bytes:
    half = cv2.resize(photo, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    return _encoded(np.asarray(half, np.uint8))


def _cropped(part: float) -> Change:
    def crop(photo: NDArray[np.uint8], random: np.random.Generator) -> bytes:
        height, width = photo.shape[:2]
        rows, columns = round(height * part), round(width * part)
        top, left = int(random.integers(rows + 1)), int(random.integers(columns + 1))
        rest = photo[top : height - (rows - top), left : width - (columns - left)]
        return _encoded(np.ascontiguousarray(rest))

    return crop


def _brightened(factor: float) -> Change:
    def brighten(photo: NDArray[np.uint8], _random: np.random.Generator) -> bytes:
        return _encoded(np.clip(photo * factor, 0, 255).astype(np.uint8))

    return brighten


def _with_text(photo: NDArray[np.uint8], _random: np.random.Generator) -> bytes:
    written = photo.copy()
    height, width = photo.shape[:2]
    place = (int(width * 0.55), height - max(4, height // 40))
    font, white = cv2.FONT_HERSHEY_SIMPLEX, (255, 255, 255)
    cv2.putText(written, "(c) Photo 2024", place, font, height / 400, white, 1, cv2.LINE_AA)
    return _encoded(written)


def _mirrored(photo: NDArray[np.uint8], _random: np.random.Generator) -> bytes:
    return _encoded(np.ascontiguousarray(photo[:, ::-1]))


CHANGES: Final[dict[str, Change]] = {
    "JPEG, quality 40 to 60": _recompressed,
    "WebP, quality 70": _as_webp,
    "half as wide and high": _halved,
    "3 % of width and height cut off": _cropped(0.03),
    "5 % of width and height cut off": _cropped(0.05),
    "15 % brighter": _brightened(1.15),
    "15 % darker": _brightened(0.85),
    "a line of text": _with_text,
    MIRRORED: _mirrored,
}


def _within(
    bits: NDArray[Any],
    distances: NDArray[Any],
    max_bits: int | None,
    max_distance: float | None,
) -> NDArray[np.bool_]:
    close: NDArray[np.bool_] = bits <= (HASH_BITS if max_bits is None else max_bits)
    if max_distance is not None:
        close = close & (distances <= max_distance)
    return close


async def _each(items: Sequence[_T], work: Callable[[_T], Awaitable[_S]]) -> list[_S]:
    """What the work makes of each item, a few of them at a time."""
    turn = asyncio.Semaphore(_IN_FLIGHT)

    async def one(item: _T) -> _S:
        async with turn:
            return await work(item)

    return await asyncio.gather(*map(one, items))


def _bits_between(one: int | None, other: int | None) -> int:
    if one is None or other is None:
        return HASH_BITS
    return int(differing_bits(np.array([one], np.int64), other)[0])


def _distance(one: AnalyzedPhoto, other: AnalyzedPhoto) -> float:
    if not one.objects or not other.objects:
        return float("inf")
    return photo_distance(one.embeddings, other.embeddings)


async def compare_copies(
    photos: Sequence[VocPhoto],
    originals: Sequence[AnalyzedPhoto],
    analyze: Callable[[bytes], Awaitable[AnalyzedPhoto]],
    change: Change,
) -> Copies:
    """How far the changed copies of photos are from their originals."""

    async def compare(index: int) -> tuple[int, float]:
        random = np.random.default_rng([_SEED, index])
        data = await asyncio.to_thread(lambda: change(photos[index].pixels(), random))
        copy, original = await analyze(data), originals[index]
        return _bits_between(copy.phash, original.phash), _distance(copy, original)

    found = await _each(range(len(photos)), compare)
    return Copies(
        np.array([bits for bits, _ in found], np.uint8),
        np.array([distance for _, distance in found], np.float64),
    )


def false_pairs(
    hashes: Sequence[int | None], max_bits: int
) -> tuple[NDArray[np.int64], list[tuple[int, int, int]]]:
    """Pairs of photos by the bits between them: int64 [65], and those of few bits.

    Photos without a hash are found with none: their pairs count as of 64 bits. Those that are
    listed are (index, index, bits).
    """
    known = [index for index, value in enumerate(hashes) if value is not None]
    values = np.array([hashes[index] for index in known], np.int64)
    counts = np.zeros(HASH_BITS + 1, np.int64)
    few = []
    for place, value in enumerate(values.tolist()):
        bits = differing_bits(values[place + 1 :], value)
        counts += np.bincount(bits, minlength=HASH_BITS + 1)
        for later in np.flatnonzero(bits <= max_bits).tolist():
            few.append((known[place], known[place + 1 + later], int(bits[later])))
    counts[HASH_BITS] += len(hashes) * (len(hashes) - 1) // 2 - int(counts.sum())
    return counts, few


async def measure(
    data: Path, photos: int, gallery_photos: int | None, *, log: Callable[[str], None]
) -> dict[str, Any]:
    """The whole report. All photos are those of `data`/train, at most `gallery_photos`."""
    gallery = read_split(data / "train", limit=gallery_photos)
    order = np.random.default_rng(_SEED).permutation(len(gallery)).tolist()
    chosen = order[:photos]
    log(f"hashing {len(gallery)} photos")
    hashes = await _each(
        gallery, lambda photo: asyncio.to_thread(lambda: perceptual_hash(photo.pixels()))
    )
    counts, alike = await asyncio.to_thread(false_pairs, hashes, max(BITS))
    async with AsyncExitStack() as stack:
        detector = await stack.enter_async_context(model_in_use("detector"))
        embedder = await stack.enter_async_context(model_in_use("embedder"))
        decoders = Decoders(max_pixels=MAX_PIXELS)
        stack.callback(decoders.close)
        analyzer = PhotoAnalyzer(
            Detector(detector),
            Embedder(embedder),
            Metrics(),
            engine_name="ONNX Runtime",
            whole_image="fallback",
            decoders=decoders,
        )
        stack.push_async_callback(analyzer.close)
        needed = sorted({*chosen, *(index for pair in alike for index in pair[:2])})
        log(f"finding the objects of {len(needed)} photos")

        async def look(index: int) -> AnalyzedPhoto:
            return await analyzer.analyze(await asyncio.to_thread(gallery[index].path.read_bytes))

        analyzed = dict(zip(needed, await _each(needed, look), strict=True))
        copies = {}
        for name, change in CHANGES.items():
            log(f"comparing {len(chosen)} copies: {name}")
            copies[name] = await compare_copies(
                [gallery[index] for index in chosen],
                [analyzed[index] for index in chosen],
                analyzer.analyze,
                change,
            )
    far_pairs = np.array(
        [_distance(analyzed[one], analyzed[other]) for one, other in combinations(chosen, 2)]
    )
    bits = np.array([pair[2] for pair in alike], np.int64)
    distances = np.array([_distance(analyzed[one], analyzed[other]) for one, other, _ in alike])
    pairs = int(counts.sum())
    duplicates = [copies[name] for name in CHANGES if name != MIRRORED]

    def limits(max_bits: int | None, max_distance: float | None) -> dict[str, Any]:
        recall = [made.found(max_bits, max_distance) for made in duplicates]
        if max_bits is None:
            assert max_distance is not None
            false = float((far_pairs <= max_distance).mean())
        else:
            false = int(_within(bits, distances, max_bits, max_distance).sum()) / pairs
        return {
            "max_bits": max_bits,
            "max_distance": max_distance,
            "recall": float(np.mean(recall)),
            "recall_of_the_worst_change": min(recall),
            "mirrored": copies[MIRRORED].found(max_bits, max_distance),
            "false_per_million": false * _MILLION,
        }

    both = _within(bits, distances, MAX_BITS, MAX_DISTANCE)
    report: dict[str, Any] = rounded(
        {
            **environment(),
            "models": {
                model.spec.name: {"sha256": model.spec.sha256} for model in (detector, embedder)
            },
            "photos": len(chosen),
            "gallery_photos": len(gallery),
            "pairs": pairs,
            "pairs_by_embedding": len(far_pairs),
            "in_use": {"max_bits": MAX_BITS, "max_distance": MAX_DISTANCE},
            "changes": [
                {
                    "change": name,
                    "bits_p50": float(np.median(made.bits)),
                    "bits_p95": float(np.percentile(made.bits, 95)),
                    "distance_p50": float(np.median(made.distances)),
                    "distance_p95": float(np.percentile(made.distances, 95)),
                    "by_hash": made.found(MAX_BITS, None),
                    "by_embedding": made.found(None, MAX_DISTANCE),
                    "by_both": made.found(MAX_BITS, MAX_DISTANCE),
                }
                for name, made in copies.items()
            ],
            "limits": [
                limits(max_bits, max_distance)
                for max_bits in (*BITS, None)
                for max_distance in (*DISTANCES, None)
                if (max_bits, max_distance) != (None, None)
            ],
            "false_pairs": [
                {
                    "files": [gallery[index].path.name for index in alike[place][:2]],
                    "bits": int(bits[place]),
                    "distance": float(distances[place]),
                }
                for place in np.flatnonzero(both).tolist()
            ],
        }
    )
    return report


def render(report: dict[str, Any]) -> list[Table]:
    """The report as two tables: what is found at the limits in use, and what others would do."""
    in_use = report["in_use"]
    at = f"{in_use['max_bits']} bits and a distance of {in_use['max_distance']:g}"
    found = Table(title=f"Copies of {report['photos']:,} photos that are found, at {at}")
    found.add_column("copy")
    for title in ("bits, p50 / p95", "distance, p50 / p95", "hash", "embedding", "both"):
        found.add_column(title, justify="right")
    for row in report["changes"]:
        found.add_row(
            row["change"],
            f"{row['bits_p50']:.0f} / {row['bits_p95']:.0f}",
            f"{row['distance_p50']:.2f} / {row['distance_p95']:.2f}",
            *(f"{row[key]:.3f}" for key in ("by_hash", "by_embedding", "by_both")),
        )
    limits = Table(
        title=f"Recall, and false ones of a million pairs, of {report['pairs']:,}",
        caption="Recall: mean of the changes above but mirrored. By embedding alone: false ones of"
        f" {report['pairs_by_embedding']:,} pairs.",
    )
    limits.add_column("bits")
    far = [*DISTANCES, None]
    for distance in far:
        limits.add_column("any distance" if distance is None else f"{distance:g}", justify="right")
    cells = {(row["max_bits"], row["max_distance"]): row for row in report["limits"]}
    for bits in (*BITS, None):
        limits.add_row(
            "any" if bits is None else str(bits),
            *(_cell(cells.get((bits, distance)), in_use) for distance in far),
        )
    return [found, limits]


def _cell(row: dict[str, Any] | None, in_use: dict[str, Any]) -> str:
    if row is None:
        return ""
    false = row["false_per_million"]
    text = f"{row['recall']:.3f}, " + (f"{false:,.0f}" if false >= 10 else f"{false:.2g}")
    chosen = all(row[name] == value for name, value in in_use.items())
    return f"[bold]{text}[/bold]" if chosen else text


def main() -> None:
    """Parses the command line, measures and reports."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.duplicates", description=__doc__)
    add_common_arguments(parser)
    parser.add_argument(
        "--photos", type=int, default=PHOTOS, metavar="N", help="make copies of N photos"
    )
    parser.add_argument("--gallery", type=int, metavar="N", help="use N photos of train, not all")
    arguments = parser.parse_args()
    progress = Console(stderr=True)
    report = asyncio.run(
        measure(
            arguments.data,
            arguments.photos,
            arguments.gallery,
            log=lambda message: progress.print(message, style="dim"),
        )
    )
    console = Console()
    for table in render(report):
        console.print(table)
    if arguments.json:
        write_json(arguments.json, report)


if __name__ == "__main__":
    main()
