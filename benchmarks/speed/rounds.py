"""Figures of rounds that repeat a measurement, and what a service tells of its stages."""

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["medians", "percentile_ms", "stage_seconds", "stages_ms"]


def medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The median of each figure, and under `spread` the least and the greatest of its values."""
    values = {key: [each[key] for each in rounds] for key in rounds[0]}
    return {
        **{key: statistics.median(each) for key, each in values.items()},
        "spread": {key: [min(each), max(each)] for key, each in values.items()},
        "rounds": len(rounds),
    }


def percentile_ms(seconds: Sequence[float], rank: float) -> float:
    """A percentile of durations in seconds, in milliseconds."""
    return float(np.percentile(seconds, rank)) * 1000


def stage_seconds(exposition: str) -> dict[str, float]:
    """Seconds that were spent in each stage so far, out of what `/metrics` answers."""
    found = re.findall(
        r'^image_search_stage_duration_seconds_sum\{stage="(\w+)"\} (\S+)$', exposition, re.M
    )
    return {stage: float(seconds) for stage, seconds in found}


def stages_ms(
    before: Mapping[str, float], after: Mapping[str, float], count: int
) -> dict[str, float]:
    """Milliseconds of each stage for each of `count` things that were done in between."""
    return {stage: (after[stage] - before[stage]) / count * 1000 for stage in after}
