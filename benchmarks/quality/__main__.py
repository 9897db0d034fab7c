"""`python -m benchmarks.quality --data FOLDER`: measures, prints one table, writes JSON."""

import argparse
import asyncio
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from backend.logs import configure_logging
from backend.serving.models import Detector, Embedder, Model
from backend.settings import InferenceEngine
from backend.vision.crops import crop_objects
from benchmarks.models import cut_for, model_in_use
from benchmarks.quality.detection import (
    CURVE_NMS_THRESHOLD,
    CURVE_SCORE_THRESHOLD,
    DetectorQuality,
    measure_detector,
)
from benchmarks.quality.examples import Examples
from benchmarks.quality.histograms import colour_histograms
from benchmarks.quality.photos import PhotoSearches, measure_photos
from benchmarks.reporting import add_common_arguments, environment, rounded, write_json
from benchmarks.retrieval import TOP_K, Ranking, chance_of, rank_objects, retrieval_quality
from benchmarks.voc import (
    MIN_SIDE,
    Cut,
    DescribedObjects,
    VocPhoto,
    describe_objects,
    read_split,
)

_PACKAGES: Final = ("aiohttp", "pycocotools", "scikit-learn")
"""What these figures depend on besides."""
_COLUMNS: Final = 130
"""Of the table, also where the output goes to a file."""


async def measure(
    data: Path,
    gallery_photos: int | None,
    *,
    engine: InferenceEngine = "onnxruntime",
    pictures: Path | None = None,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """The whole report. Photos are those of `data`/train (at most `gallery_photos`) and /val.

    Args:
        data: folder of both splits.
        gallery_photos: how many photos of train to use, None for all.
        engine: computes the models.
        pictures: a PNG file to write, showing searches that went well and badly.
        log: takes a line whenever a part begins.
    """
    train, val = read_split(data / "train", limit=gallery_photos), read_split(data / "val")
    async with (
        model_in_use("detector", engine) as detector_model,
        model_in_use("embedder", engine) as model,
    ):
        detector, embedder = Detector(detector_model), Embedder(model)
        log(f"detecting objects in {len(val)} photos")
        detection = await measure_detector(val, detector)
        retrieval, ranking = await _retrieval(train, val, embedder, log)
    searches = await measure_photos(train, val, log, engine=engine)
    report = {
        **environment(*_PACKAGES, *(["openvino"] if engine.startswith("openvino") else [])),
        "engine": engine,
        "models": {
            **_model(detector_model, input=detector.size),
            **_model(
                model,
                input=embedder.size,
                crop_geometry=embedder.crop_geometry,
                crop_margin=embedder.crop_margin,
            ),
        },
        "detector": _detector(detection, detector, photos=len(val)),
        "retrieval": retrieval,
        "photos": _photos(searches, train, val),
    }
    if pictures:
        log(f"drawing {pictures}")
        subtitle = f"{' and '.join(report['models'])}, {len(train):,} photos"
        examples = Examples(train, val, detection.found, detector.labels)
        examples.draw(pictures, subtitle, ranking, searches)
    return report


def _model(model: Model, **described: Any) -> dict[str, Any]:
    return {model.spec.name: {**described, "sha256": model.spec.sha256}}


def _detector(quality: DetectorQuality, detector: Detector, *, photos: int) -> dict[str, Any]:
    point = quality.operating_point
    return rounded(
        {
            "map50": quality.map50,
            "map": quality.map,
            "score_threshold": CURVE_SCORE_THRESHOLD,
            "nms_threshold": CURVE_NMS_THRESHOLD,
            "per_class": {
                label: {"ap50": quality.ap50[label], "ap": quality.ap[label]}
                for label in quality.ap50
            },
            "operating_point": {
                "score_threshold": detector.score_threshold,
                "nms_threshold": detector.nms_threshold,
                "precision": point.precision,
                "recall": point.recall,
                "f1": point.f1,
            },
            "photos": photos,
            "photos_with_more_candidates": quality.saturated_photos,
        }
    )


async def _retrieval(
    train: list[VocPhoto], val: list[VocPhoto], embedder: Embedder, log: Callable[[str], None]
) -> tuple[dict[str, Any], Ranking]:
    """The part of the report, and how the embeddings rank."""

    async def histograms(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        return await asyncio.to_thread(colour_histograms, crops)

    def stretched(photo: NDArray[np.uint8], boxes: NDArray[np.float32]) -> NDArray[np.uint8]:
        # The box and nothing else, however the embedder's crops are cut.
        return crop_objects(photo, boxes, embedder.size)

    async def ranked(
        describe: Callable[..., Any], cut: Cut
    ) -> tuple[DescribedObjects, DescribedObjects, Ranking]:
        gallery = await describe_objects(train, describe, cut=cut, difficult=True)
        queries = await describe_objects(val, describe, cut=cut, difficult=False)
        return gallery, queries, await asyncio.to_thread(rank_objects, gallery, queries)

    log(f"embedding the objects of {len(train)} and {len(val)} photos")
    gallery, queries, ranking = await ranked(embedder.embed, cut_for(embedder))
    *_, by_colour = await ranked(histograms, stretched)
    overall, of = retrieval_quality(ranking, queries.labels)
    histogram, histogram_of = retrieval_quality(by_colour, queries.labels)
    chance, chance_per_label = chance_of(gallery.labels, queries.labels)
    report = rounded(
        {
            **asdict(overall),
            "chance": chance.precision,
            "chance_map": chance.map,
            **{f"histogram_{key}": value for key, value in asdict(histogram).items()},
            "per_class": {
                label: {
                    **asdict(of[label]),
                    "chance": chance_per_label[label].precision,
                    "histogram_p_at_10": histogram_of[label].p_at_10,
                    "gallery": gallery.labels.count(label),
                    "queries": queries.labels.count(label),
                }
                for label in of
            },
            "gallery_objects": len(gallery),
            "gallery_photos": len(train),
            "query_objects": len(queries),
            "query_photos": len(val),
            "min_side_px": MIN_SIDE,
        }
    )
    return report, ranking


def _photos(searches: PhotoSearches, train: list[VocPhoto], val: list[VocPhoto]) -> dict[str, Any]:
    labels = [val[index].labels for index in searches.queries]

    def means(chosen: NDArray[np.bool_]) -> dict[str, float]:
        return {
            "p_at_1": float(searches.matches[chosen, 0].mean()),
            "p_at_10": float(searches.precisions[chosen].mean()),
            "chance": float(searches.chances[chosen].mean()),
        }

    shows = {
        label: np.array([label in of for of in labels]) for label in sorted(set().union(*labels))
    }
    return rounded(
        {
            **means(np.ones(len(labels), bool)),
            "per_class": {
                label: {**means(chosen), "queries": int(chosen.sum())}
                for label, chosen in shows.items()
            },
            "gallery_photos": len(train),
            "query_photos": len(labels),
        }
    )


def render(report: dict[str, Any]) -> Table:
    """The report as one table: a row for each label, the whole at the end."""
    detector, retrieval, photos = report["detector"], report["retrieval"], report["photos"]
    point = detector["operating_point"]
    table = Table(
        title=f"{retrieval['query_objects']:,} objects among {retrieval['gallery_objects']:,};"
        f" {photos['query_photos']:,} photos among {photos['gallery_photos']:,};"
        f" detection in {detector['photos']:,} photos",
        caption=f"Chance of objects: {retrieval['chance']:.3f}, of their mAP"
        f" {retrieval['chance_map']:.3f}; by colour histograms: P@1"
        f" {retrieval['histogram_p_at_1']:.3f}, mAP {retrieval['histogram_map']:.3f}. Detector at"
        f" its own score threshold of {point['score_threshold']}: precision"
        f" {point['precision']:.3f}, recall {point['recall']:.3f}, F1 {point['f1']:.3f}.",
    )
    table.add_column("label")
    for title in (
        "objects",
        "P@1",
        f"P@{TOP_K}",
        "mAP",
        "chance",
        f"colour P@{TOP_K}",
        "photos",
        "P@1",
        f"P@{TOP_K}",
        "chance",
        "AP@.5",
        "AP@.5:.95",
    ):
        table.add_column(title, justify="right")
    for label in sorted({*retrieval["per_class"], *photos["per_class"], *detector["per_class"]}):
        of_detector = detector["per_class"].get(label, {})
        _add_row(
            table,
            label,
            retrieval["per_class"].get(label, {}),
            photos["per_class"].get(label, {}),
            (of_detector.get("ap50"), of_detector.get("ap")),
        )
    table.add_section()
    _add_row(
        table,
        "all",
        {**retrieval, "queries": retrieval["query_objects"]},
        {**photos, "queries": photos["query_photos"]},
        (detector["map50"], detector["map"]),
        style="bold",
    )
    return table


def _add_row(
    table: Table,
    label: str,
    objects: dict[str, Any],
    photos: dict[str, Any],
    precisions: tuple[float | None, float | None],
    *,
    style: str | None = None,
) -> None:
    values = (
        objects.get("queries"),
        *(objects.get(key) for key in ("p_at_1", "p_at_10", "map", "chance", "histogram_p_at_10")),
        photos.get("queries"),
        *(photos.get(key) for key in ("p_at_1", "p_at_10", "chance")),
        *precisions,
    )
    shown = (
        "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
        for value in values
    )
    table.add_row(label, *shown, style=style)


def main() -> None:
    """Parses the command line, measures and reports."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    add_common_arguments(parser)
    parser.add_argument("--gallery", type=int, metavar="N", help="use N photos of train, not all")
    parser.add_argument(
        "--engine",
        choices=get_args(InferenceEngine),
        default="onnxruntime",
        help="computes the models, as INFERENCE_ENGINE says of the service",
    )
    parser.add_argument(
        "--pictures", type=Path, metavar="FILE.png", help="draw the best and the worst searches"
    )
    arguments = parser.parse_args()
    configure_logging("WARNING")  # the service's, which runs in this process
    progress = Console(stderr=True)
    report = asyncio.run(
        measure(
            arguments.data,
            arguments.gallery,
            engine=arguments.engine,
            pictures=arguments.pictures,
            log=lambda message: progress.print(message, style="dim"),
        )
    )
    Console(width=_COLUMNS).print(render(report))
    if arguments.json:
        write_json(arguments.json, report)


if __name__ == "__main__":
    main()
