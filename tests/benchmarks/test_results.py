"""The figures that are kept are those of the models that are kept, and good enough."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from backend.duplicates import MAX_BITS, MAX_DISTANCE

ROOT = Path(__file__).parents[2]


def report(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / name).read_text("utf-8"))


@pytest.mark.parametrize(
    "name", ["quality.json", "quality_bf16.json", "crop_geometry.json", "duplicates.json"]
)
def test_the_models_that_were_measured_are_those_in_use(name: str) -> None:
    for model, described in report(name)["models"].items():
        onnx = ROOT / "model_repository" / model / "1" / "model.onnx"
        assert hashlib.sha256(onnx.read_bytes()).hexdigest() == described["sha256"]


@pytest.mark.parametrize(
    "key",
    [
        *("load.share_of_bare", "host.cpu_per_decode", "search.overhead_ms_p50"),
        *("search.share_of_bare_32", "search.p99_over_p50_32", "growth.load_100k_over_1k"),
        *("growth.search_100k_over_10k", "original.load_speedup", "triton.share_of_bare"),
    ],
)
def test_the_ratios_of_speed_that_others_read_are_there(key: str) -> None:
    part, figure = key.split(".")
    assert report("speed.json")[part][figure] > 0


def test_the_small_pair_is_as_good_as_it_has_to_be() -> None:
    quality = report("quality.json")
    assert quality["detector"]["photos"] == 500
    assert quality["detector"]["map50"] >= 0.30
    assert quality["retrieval"]["gallery_photos"] == quality["photos"]["gallery_photos"] == 6687
    assert quality["retrieval"]["p_at_10"] >= 0.50
    assert quality["photos"]["p_at_10"] > 2 * quality["photos"]["chance"]


def test_the_limits_of_duplicates_are_those_that_were_measured_and_keep_look_alikes_apart() -> None:
    duplicates = report("duplicates.json")
    assert duplicates["in_use"] == {"max_bits": MAX_BITS, "max_distance": MAX_DISTANCE}
    assert (duplicates["photos"], duplicates["gallery_photos"]) == (500, 6687)
    [in_use] = [
        row
        for row in duplicates["limits"]
        if (row["max_bits"], row["max_distance"]) == (MAX_BITS, MAX_DISTANCE)
    ]
    assert in_use["recall"] >= 0.95
    assert in_use["false_per_million"] <= 0.5
    assert in_use["mirrored"] == 0


def test_bfloat16_is_worth_an_engine_and_its_vectors_compare_with_others() -> None:
    engines = report("engines.json")
    assert engines["over_onnxruntime"]["openvino-bf16"]["load"] < 0.8
    assert engines["embeddings"]["openvino-f32"]["max"] < 1e-6
    rough = engines["embeddings"]["openvino-bf16"]
    assert rough["max"] < rough["nearest_p1"] / 10
    assert rough["same_first"] > 0.95
    for part, figures in {
        "detector": ("map50", "map"),
        "retrieval": ("p_at_1", "p_at_10", "map"),
        "photos": ("p_at_1", "p_at_10"),
    }.items():
        for figure in figures:
            both = [report(name)[part][figure] for name in ("quality.json", "quality_bf16.json")]
            assert abs(both[0] - both[1]) < 0.02, (part, figure)
