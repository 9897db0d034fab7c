"""Colour histograms, the baseline."""

import numpy as np
import pytest

from benchmarks.quality.histograms import colour_histograms


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
