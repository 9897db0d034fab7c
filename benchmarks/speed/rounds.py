"""Figures of rounds that repeat a measurement, and what a service tells of its stages."""

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["each_ms", "in_words", "medians", "percentile_ms", "stage_seconds"]


def medians(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The median of each figure, and under `spread` the least and the greatest of its values.

    A figure may be several, by name.
    """
    return {
        **_of_each(rounds, statistics.median),
        "spread": _of_each(rounds, lambda values: [min(values), max(values)]),
        "rounds": len(rounds),
    }


def _of_each(
    rounds: Sequence[Mapping[str, Any]], function: Callable[[Sequence[float]], Any]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, first in rounds[0].items():
        values = [each[key] for each in rounds]
        found[key] = _of_each(values, function) if isinstance(first, Mapping) else function(values)
    return found


def in_words(parts: Mapping[str, float]) -> str:
    """Milliseconds of parts, those that take any."""
    shown = {name.replace("_", " "): f"{ms:.2f}" for name, ms in parts.items()}
    return ", ".join(f"{name} {ms}" for name, ms in shown.items() if float(ms))


def percentile_ms(seconds: Sequence[float], rank: float) -> float:
    """A percentile of durations in seconds, in milliseconds."""
    return float(np.percentile(seconds, rank)) * 1000


def stage_seconds(exposition: str) -> dict[str, float]:
    """Seconds that were spent in each stage so far, out of what `/metrics` answers."""
    found = re.findall(
        r'^image_search_stage_duration_seconds_sum\{stage="(\w+)"\} (\S+)$', exposition, re.M
    )
    return {stage: float(seconds) for stage, seconds in found}


def each_ms(
    before: Mapping[str, float], after: Mapping[str, float], count: int
) -> dict[str, float]:
    """Milliseconds of each part, of which these are seconds so far, for each of `count` things
    that were done in between.
    """
    return {part: (after[part] - before[part]) / count * 1000 for part in after}
