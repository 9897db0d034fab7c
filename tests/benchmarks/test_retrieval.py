"""Label precision against values worked out by hand, through the real store."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality.retrieval import (
    TOP_K,
    LabelPrecision,
    chance_precision,
    colour_histograms,
    label_matches,
    label_precision,
)
from benchmarks.voc import DescribedObjects


def described(labels: list[str], vectors: list[list[float]]) -> DescribedObjects:
    return DescribedObjects(tuple(labels), np.arange(len(labels)), np.array(vectors, np.float32))


async def test_the_nearest_objects_come_first_and_missing_ones_are_misses(tmp_path: Path) -> None:
    gallery = described(["cat", "dog", "cat"], [[1, 0], [0.8, 0.6], [0, 1]])
    queries = described(["cat", "dog"], [[1, 0], [0, 1]])
    matches = await label_matches(tmp_path / "store", gallery, queries)
    assert matches.shape == (2, TOP_K)
    assert matches[0].tolist() == [True, False, True] + [False] * (TOP_K - 3)
    assert matches[1].tolist() == [False, True, False] + [False] * (TOP_K - 3)


def test_precision_is_the_mean_over_queries_and_over_those_of_a_label() -> None:
    matches = np.zeros((3, TOP_K), bool)
    matches[0, :5] = True
    matches[1, 1] = True
    overall, per_label = label_precision(matches, ["cat", "cat", "dog"])
    assert overall.p_at_1 == pytest.approx(1 / 3)
    assert overall.p_at_10 == pytest.approx(6 / 30)
    assert per_label == {"cat": LabelPrecision(0.5, 0.3), "dog": LabelPrecision(0.0, 0.0)}


def test_chance_is_the_share_of_the_querys_label_in_the_gallery() -> None:
    overall, per_label = chance_precision(["cat", "cat", "cat", "dog"], ["cat", "dog", "dog"])
    assert per_label == {"cat": 0.75, "dog": 0.25}
    assert overall == pytest.approx((0.75 + 0.25 + 0.25) / 3)


def test_histograms_are_unit_vectors_of_colours() -> None:
    crops = np.zeros((4, 8, 8, 3), np.uint8)
    crops[0], crops[1], crops[2] = (255, 0, 0), (0, 0, 255), (250, 4, 4)
    crops[3, :4], crops[3, 4:] = (255, 0, 0), (0, 0, 255)
    histograms = colour_histograms(crops)
    assert histograms.shape == (4, 512)
    assert np.linalg.norm(histograms, axis=1) == pytest.approx(1)
    red, blue, reddish, half = histograms
    assert red @ reddish == pytest.approx(1)
    assert red @ blue == 0
    # The Bhattacharyya coefficient of (1, 0) and (1/2, 1/2).
    assert red @ half == pytest.approx(np.sqrt(0.5))
