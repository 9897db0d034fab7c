"""The figures that are kept are those of the models that are kept, and good enough."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def report(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / name).read_text("utf-8"))


@pytest.mark.parametrize("name", ["quality.json", "crop_geometry.json"])
def test_the_models_that_were_measured_are_those_in_use(name: str) -> None:
    for model, described in report(name)["models"].items():
        onnx = ROOT / "model_repository" / model / "1" / "model.onnx"
        assert hashlib.sha256(onnx.read_bytes()).hexdigest() == described["sha256"]


def test_the_small_pair_is_as_good_as_it_has_to_be() -> None:
    quality = report("quality.json")
    assert quality["detector"]["photos"] == 500
    assert quality["detector"]["map50"] >= 0.30
    assert quality["retrieval"]["gallery_photos"] == quality["photos"]["gallery_photos"] == 6687
    assert quality["retrieval"]["p_at_10"] >= 0.50
    assert quality["photos"]["p_at_10"] > 2 * quality["photos"]["chance"]
