"""`python -m benchmarks.crop_geometry --data FOLDER`: how a box is best cut out for the embedder.

The embedder in use is given the same objects cut in every way that the service knows, and several
crops of each at once, whose embeddings are averaged. The protocol is that of `benchmarks.quality`;
prints one table, writes JSON.
"""

import argparse
import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from backend.serving.models import CropGeometry, Embedder
from backend.vision.crops import crop_objects
from benchmarks.models import model_in_use
from benchmarks.reporting import add_common_arguments, environment, rounded, write_json
from benchmarks.retrieval import TOP_K, chance_of, rank_objects, retrieval_quality
from benchmarks.voc import (
    MIN_SIDE,
    DescribedObjects,
    VocPhoto,
    describe_objects,
    read_split,
)

_GEOMETRIES: Final[tuple[CropGeometry, ...]] = get_args(CropGeometry)
_MARGINS: Final = (0.0, 0.1, 0.2)
_CONTEXT: Final = 0.2
"""Margin of the crop that is taken besides the box's own."""


@dataclass(frozen=True)
class Crop:
    """One way to cut a box out."""

    geometry: CropGeometry
    margin: float
    mirrored: bool = False

    def __str__(self) -> str:
        return (
            self.geometry
            + (f", margin {self.margin:g}" if self.margin else "")
            + (", mirrored" if self.mirrored else "")
        )


@dataclass(frozen=True)
class Variant:
    """What is embedded of an object: the mean of these crops' embeddings, as a unit vector."""

    crops: tuple[Crop, ...]

    def __str__(self) -> str:
        return " + ".join(map(str, self.crops))


def variants(in_use: Crop) -> list[Variant]:
    """Every geometry with every margin, and pairs of crops; the one in use among them."""
    single = [Crop(geometry, margin) for geometry, margin in product(_GEOMETRIES, _MARGINS)]
    if in_use not in single:
        single.append(in_use)
    plain = [Crop(geometry, 0.0) for geometry in _GEOMETRIES]
    return [
        *(Variant((crop,)) for crop in single),
        *(Variant((crop, replace(crop, mirrored=True))) for crop in plain),
        *(Variant((crop, replace(crop, margin=_CONTEXT))) for crop in plain),
    ]


def combine(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Unit vectors [N, D] of the means of several, [N, crops, D]."""
    means = vectors.mean(axis=1)
    unit: NDArray[np.float32] = means / np.linalg.norm(means, axis=1, keepdims=True)
    return unit


async def measure(
    data: Path, gallery_photos: int | None, *, log: Callable[[str], None]
) -> dict[str, Any]:
    """The whole report. Photos are those of `data`/train (at most `gallery_photos`) and /val."""
    train, val = read_split(data / "train", limit=gallery_photos), read_split(data / "val")
    async with model_in_use("embedder") as model:
        embedder = Embedder(model)
        in_use = Crop(embedder.crop_geometry, embedder.crop_margin)
        chosen = variants(in_use)
        crops = list(dict.fromkeys(crop for variant in chosen for crop in variant.crops))
        log(f"embedding {len(crops)} crops of each object of {len(train)} and {len(val)} photos")
        gallery = await describe_crops(train, embedder, crops, difficult=True)
        queries = await describe_crops(val, embedder, crops, difficult=False)
    rows = []
    for variant in chosen:
        log(f"ranking by {variant}")
        indices = [crops.index(crop) for crop in variant.crops]
        ranking = rank_objects(
            *(
                replace(objects, vectors=combine(objects.vectors[:, indices]))
                for objects in (gallery, queries)
            )
        )
        quality, _ = retrieval_quality(ranking, queries.labels)
        rows.append(
            {
                "crops": str(variant),
                "crops_per_object": len(variant.crops),
                "in_use": variant.crops == (in_use,),
                **asdict(quality),
            }
        )
    chance, _ = chance_of(gallery.labels, queries.labels)
    report: dict[str, Any] = rounded(
        {
            **environment("scikit-learn"),
            "models": {
                embedder.name: {"input": embedder.size, "sha256": model.spec.sha256},
            },
            "variants": rows,
            "chance": chance.precision,
            "chance_map": chance.map,
            "gallery_objects": len(gallery),
            "gallery_photos": len(train),
            "query_objects": len(queries),
            "query_photos": len(val),
            "min_side_px": MIN_SIDE,
        }
    )
    return report


async def describe_crops(
    photos: Sequence[VocPhoto], embedder: Embedder, crops: Sequence[Crop], *, difficult: bool
) -> DescribedObjects:
    """Objects with a vector for each crop, float32 [N, crops, D]."""

    def cut(photo: NDArray[np.uint8], boxes: NDArray[np.float32]) -> NDArray[np.uint8]:
        made = (
            crop_objects(photo, boxes, embedder.size, geometry=crop.geometry, margin=crop.margin)[
                :, :, :: -1 if crop.mirrored else 1
            ]
            for crop in crops
        )
        return np.stack(list(made), axis=1)

    async def describe(cuts: NDArray[np.uint8]) -> NDArray[np.float32]:
        vectors = await embedder.embed(cuts.reshape(-1, *cuts.shape[2:]))
        return vectors.reshape(len(cuts), len(crops), -1)

    return await describe_objects(photos, describe, cut=cut, difficult=difficult)


def render(report: dict[str, Any]) -> Table:
    """The report as one table, a row for each variant; the best of each column is bold."""
    table = Table(
        title=f"{report['query_objects']:,} objects among {report['gallery_objects']:,},"
        f" embedded by {', '.join(report['models'])}",
        caption=f"Chance: {report['chance']:.3f}, of mAP {report['chance_map']:.3f};"
        " * as the embedder's config.pbtxt says",
    )
    table.add_column("crops")
    keys = ("p_at_1", "p_at_10", "map")
    for title in ("crops an object", "P@1", f"P@{TOP_K}", "mAP"):
        table.add_column(title, justify="right")
    best = {key: max(row[key] for row in report["variants"]) for key in keys}
    for row in report["variants"]:
        table.add_row(
            row["crops"] + (" *" if row["in_use"] else ""),
            str(row["crops_per_object"]),
            *(
                f"[bold]{row[key]:.3f}[/bold]" if row[key] == best[key] else f"{row[key]:.3f}"
                for key in keys
            ),
        )
    return table


def main() -> None:
    """Parses the command line, measures and reports."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crop_geometry", description=__doc__)
    add_common_arguments(parser)
    parser.add_argument("--gallery", type=int, metavar="N", help="use N photos of train, not all")
    arguments = parser.parse_args()
    progress = Console(stderr=True)
    report = asyncio.run(
        measure(
            arguments.data,
            arguments.gallery,
            log=lambda message: progress.print(message, style="dim"),
        )
    )
    Console().print(render(report))
    if arguments.json:
        write_json(arguments.json, report)


if __name__ == "__main__":
    main()
