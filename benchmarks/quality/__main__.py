"""`python -m benchmarks.quality --data FOLDER`: measures, prints one table, writes JSON."""

import argparse
import asyncio
import os
import tempfile
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from backend.serving.models import Detector, Embedder, default_pair
from backend.serving.onnx import OnnxServer
from backend.settings import Settings
from benchmarks.quality.detection import (
    CURVE_NMS_THRESHOLD,
    CURVE_SCORE_THRESHOLD,
    measure_detector,
)
from benchmarks.quality.retrieval import (
    TOP_K,
    chance_precision,
    colour_histograms,
    label_matches,
    label_precision,
)
from benchmarks.reporting import environment, write_json
from benchmarks.voc import DATA_VARIABLE, MIN_SIDE, VocPhoto, describe_objects, read_split

MAP50_OF_TRAINING_SCRIPT: Final = {"yolov3-small": 0.171}
"""VOC mAP@0.5 at input 320 that the script which trained the committed weights printed for the
same 500 photos, from the network in bfloat16, before it was exported."""


async def measure(data: Path, gallery_photos: int | None) -> dict[str, Any]:
    """The whole report. Photos are those of `data`/train (at most `gallery_photos`) and /val."""
    cv2.setNumThreads(1)  # photos already run side by side, as in the service
    train, val = read_split(data / "train", limit=gallery_photos), read_split(data / "val")
    settings = Settings.load()
    pair = default_pair(settings.model_repository)
    server = OnnxServer(settings.model_repository)
    try:
        detector_model = await server.load(settings.detector_model or pair[0])
        embedder_model = await server.load(settings.embedder_model or pair[1])
        detector, embedder = Detector(detector_model), Embedder(embedder_model)
        return {
            **environment(),
            "models": {
                model.spec.name: {"input": size, "sha256": model.spec.sha256}
                for model, size in (
                    (detector_model, detector.size),
                    (embedder_model, embedder.size),
                )
            },
            "detector": await _detector(val, detector),
            "retrieval": await _retrieval(train, val, embedder),
        }
    finally:
        await server.close()


async def _detector(val: list[VocPhoto], detector: Detector) -> dict[str, Any]:
    quality = await measure_detector(val, detector)
    reference = MAP50_OF_TRAINING_SCRIPT.get(detector.name)
    point = quality.operating_point
    return {
        "map50": round(quality.map50, 4),
        "map50_training_script": reference,
        "map50_difference": None if reference is None else round(quality.map50 - reference, 4),
        "score_threshold": CURVE_SCORE_THRESHOLD,
        "nms_threshold": CURVE_NMS_THRESHOLD,
        "average_precision": {
            label: round(value, 4) for label, value in quality.average_precisions.items()
        },
        "operating_point": {
            "score_threshold": detector.score_threshold,
            "nms_threshold": detector.nms_threshold,
            "precision": round(point.precision, 4),
            "recall": round(point.recall, 4),
            "f1": round(point.f1, 4),
        },
        "photos": len(val),
        "photos_with_more_candidates": quality.saturated_photos,
    }


async def _retrieval(
    train: list[VocPhoto], val: list[VocPhoto], embedder: Embedder
) -> dict[str, Any]:
    async def histograms(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        return await asyncio.to_thread(colour_histograms, crops)

    size = embedder.size
    with tempfile.TemporaryDirectory() as folder:
        precisions = {}
        for kind, describe in (("embedding", embedder.embed), ("histogram", histograms)):
            gallery = await describe_objects(train, describe, crop_size=size, difficult=True)
            queries = await describe_objects(val, describe, crop_size=size, difficult=False)
            matches = await label_matches(Path(folder) / kind, gallery, queries)
            precisions[kind] = label_precision(matches, queries.labels)
    chance, chance_of = chance_precision(gallery.labels, queries.labels)
    overall, of = precisions["embedding"]
    histogram, histogram_of = precisions["histogram"]
    return {
        "p_at_1": round(overall.p_at_1, 4),
        "p_at_10": round(overall.p_at_10, 4),
        "chance": round(chance, 4),
        "histogram_p_at_1": round(histogram.p_at_1, 4),
        "histogram_p_at_10": round(histogram.p_at_10, 4),
        "per_class": {
            label: {
                "p_at_1": round(of[label].p_at_1, 4),
                "p_at_10": round(of[label].p_at_10, 4),
                "chance": round(chance_of[label], 4),
                "histogram_p_at_10": round(histogram_of[label].p_at_10, 4),
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


def render(report: dict[str, Any]) -> Table:
    """The report as one table: a row for each label, the whole at the end."""
    detector, retrieval = report["detector"], report["retrieval"]
    point = detector["operating_point"]
    reference = detector["map50_training_script"]
    table = Table(
        title=f"Retrieval of {retrieval['query_objects']} objects among"
        f" {retrieval['gallery_objects']}, detection in {detector['photos']} photos",
        caption=f"mAP@0.5 {detector['map50']:.3f}"
        + ("" if reference is None else f" (training script: {reference:.3f})")
        + f"; at the model's own score threshold of {point['score_threshold']}: precision"
        f" {point['precision']:.3f}, recall {point['recall']:.3f}, F1 {point['f1']:.3f}",
    )
    table.add_column("label")
    for title in ("queries", "P@1", f"P@{TOP_K}", "chance", f"histogram P@{TOP_K}", "AP@0.5"):
        table.add_column(title, justify="right")
    for label, row in retrieval["per_class"].items():
        precision = detector["average_precision"].get(label)
        table.add_row(
            label,
            str(row["queries"]),
            *(f"{row[key]:.3f}" for key in ("p_at_1", "p_at_10", "chance", "histogram_p_at_10")),
            "" if precision is None else f"{precision:.3f}",
        )
    table.add_section()
    table.add_row(
        "all",
        str(retrieval["query_objects"]),
        *(f"{retrieval[key]:.3f}" for key in ("p_at_1", "p_at_10", "chance", "histogram_p_at_10")),
        f"{detector['map50']:.3f}",
        style="bold",
    )
    return table


def main() -> None:
    """Parses the command line, measures and reports."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    data = os.environ.get(DATA_VARIABLE)
    parser.add_argument(
        "--data",
        type=Path,
        default=data and Path(data),
        required=not data,
        help=f"folder with train/ and val/ (default: the environment variable {DATA_VARIABLE})",
    )
    parser.add_argument("--gallery", type=int, metavar="N", help="use N photos of train, not all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there too")
    arguments = parser.parse_args()
    report = asyncio.run(measure(arguments.data, arguments.gallery))
    Console().print(render(report))
    if arguments.json:
        write_json(arguments.json, report)


if __name__ == "__main__":
    main()
