"""The comparison of crops, with the small embedder, on a handful of drawn photos."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from backend.serving.models import Embedder
from backend.vision.crops import crop_objects
from benchmarks.crop_geometry import Crop, combine, describe_crops, main, measure, variants
from benchmarks.models import cut_for, model_in_use
from benchmarks.quality.__main__ import measure as measure_quality
from benchmarks.voc import describe_objects, read_split


def ignore(_message: str) -> None:
    """Takes what a measurement tells of its progress."""


def test_every_geometry_is_compared_with_every_margin_and_pairs_of_crops() -> None:
    names = [str(variant) for variant in variants(Crop("stretch", 0.0))]
    assert len(names) == len(set(names)) == 15
    assert {"stretch", "square, margin 0.1", "pad, margin 0.2"} < set(names)
    assert {"pad + pad, mirrored", "square + square, margin 0.2"} < set(names)


def test_the_embedders_own_crops_are_compared_whatever_they_are() -> None:
    names = [str(variant) for variant in variants(Crop("pad", 0.15))]
    assert len(names) == 16
    assert "pad, margin 0.15" in names


def test_several_crops_are_averaged_to_a_unit_vector() -> None:
    vectors = np.array([[[1, 0], [0, 1]], [[0, 1], [0, 1]]], np.float32)
    np.testing.assert_allclose(combine(vectors), [[0.5**0.5, 0.5**0.5], [0, 1]], atol=1e-6)
    np.testing.assert_array_equal(combine(vectors[:, :1]), vectors[:, 0])


async def test_each_crop_is_embedded_as_if_it_were_alone(annotated: Path) -> None:
    photos = read_split(annotated / "val")
    async with model_in_use("embedder") as model:
        embedder = Embedder(model)
        crops = [Crop("stretch", 0.0), Crop("pad", 0.2), Crop("pad", 0.2, mirrored=True)]
        together = await describe_crops(photos, embedder, crops, difficult=True)
        plain = await describe_objects(
            photos, embedder.embed, cut=cut_for(embedder), difficult=True
        )
        boxes = np.array([found.box for found in photos[0].objects], np.float32)
        padded = crop_objects(photos[0].pixels(), boxes, embedder.size, geometry="pad", margin=0.2)
        mirrored = await embedder.embed(np.ascontiguousarray(padded[:, :, ::-1]))
    assert together.labels == plain.labels
    assert together.vectors.shape == (len(plain), 3, embedder.dimension)
    if (embedder.crop_geometry, embedder.crop_margin) == ("stretch", 0):
        np.testing.assert_allclose(together.vectors[:, 0], plain.vectors, atol=1e-5)
    np.testing.assert_allclose(together.vectors[: len(boxes), 2], mirrored, atol=1e-5)
    assert np.abs(together.vectors[:, 1] - together.vectors[:, 0]).max() > 0.01


async def test_what_is_in_use_scores_as_in_the_benchmark_of_quality(annotated: Path) -> None:
    report = await measure(annotated, 9, log=ignore)
    [in_use] = [row for row in report["variants"] if row["in_use"]]
    retrieval = (await measure_quality(annotated, 9, log=ignore))["retrieval"]
    for key in ("p_at_1", "p_at_10", "map"):
        assert in_use[key] == pytest.approx(retrieval[key], abs=1e-3)
    for key in ("chance", "chance_map", "gallery_objects", "query_objects"):
        assert report[key] == retrieval[key]
    assert {row["crops_per_object"] for row in report["variants"]} == {1, 2}


def test_the_command_prints_the_table_and_writes_the_report(
    annotated: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "crops.json"
    words = ["crop_geometry", "--data", str(annotated), "--gallery", "4", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", words)
    main()
    output = capsys.readouterr()
    assert "8 objects among 8" in output.out
    assert "square + square, margin 0.2" in output.out
    assert "embedding" in output.err
    rows = json.loads(path.read_text())["variants"]
    assert all(0 <= row["map"] <= 1 for row in rows)
