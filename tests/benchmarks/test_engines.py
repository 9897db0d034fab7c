"""The engines beside each other, on a handful of drawn photos."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import engines
from tests.photos import write_photos


def _unit(rows: int, seed: int) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).normal(size=(rows, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def test_equal_embeddings_agree_in_everything() -> None:
    own = _unit(30, seed=1)
    found = engines.agreement(own, own, np.arange(30))
    assert (found["p50"], found["max"], found["same_first"], found["same_top"]) == (0, 0, 1, 1)
    assert 0 < found["nearest_p1"] <= found["nearest_p50"]


def test_embeddings_that_say_something_else_do_not_agree() -> None:
    own, others = _unit(30, seed=1), _unit(30, seed=2)
    found = engines.agreement(own, others, np.arange(30))
    assert found["p50"] > 0.5
    assert found["same_first"] < 0.5
    assert found["same_top"] < 0.8


def test_objects_of_the_same_photo_are_not_what_a_search_is_for() -> None:
    own = np.repeat(_unit(2, seed=3), 2, axis=0)  # two photos, each with the same object twice
    found = engines.agreement(own, own, np.array([0, 0, 1, 1]))
    assert found["nearest_p1"] > 0.1


def test_the_command_prints_the_table_and_writes_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_photos(tmp_path / "val" / "images", 3)
    path = tmp_path / "engines.json"
    options = ["--photos", "3", "--rounds", "1", "--with", "openvino-f32", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["engines", "--data", str(tmp_path), *options])
    engines.main()
    shown = capsys.readouterr().out
    assert "openvino-f32" in shown
    report = json.loads(path.read_text())
    assert report["ms_a_photo"].keys() == {"onnxruntime", "openvino-f32"}
    [ratios] = report["over_onnxruntime"].values()
    for work in ("detector", "embedder", "load"):
        assert report["ms_a_photo"]["openvino-f32"][work] > 0
        assert ratios[work] > 0
    assert report["embeddings"]["openvino-f32"]["max"] < 1e-6
