"""From single requests to rates, latencies, and the rate at which latency bends."""

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

__all__ = ["Figures", "Knee", "Sample", "Step", "by_name", "figures", "find_knee", "percentile"]

REFUSALS: Final = frozenset({"429", "503"})
"""Statuses by which a service that is full says so: it is meant to, and they are no failures."""
_MOST_P95_GROWTH: Final = 2.0
_LEAST_RATE_GROWTH: Final = 1.1
_MOST_UNANSWERED: Final = 0.01


class Sample(NamedTuple):
    """A request that has ended.

    Attributes:
        ended: in seconds since the test began.
        milliseconds: that it took.
        problem: None where it was answered as it should be; else the status, or what went wrong.
    """

    name: str
    ended: float
    milliseconds: float
    problem: str | None = None


@dataclass(frozen=True)
class Figures:
    """What requests came to. `rate` is that of answered ones a second; percentiles are theirs too.

    They are in milliseconds, and None where nothing was answered.
    """

    requests: int
    rate: float
    p50: float | None
    p95: float | None
    p99: float | None
    refused: Mapping[str, int]
    errors: Mapping[str, int]

    @property
    def refused_share(self) -> float:
        """The part of all requests that were refused, 0 to 1."""
        return sum(self.refused.values()) / self.requests if self.requests else 0.0

    @property
    def failed_share(self) -> float:
        """The part of all requests that have failed, 0 to 1."""
        return sum(self.errors.values()) / self.requests if self.requests else 0.0


@dataclass(frozen=True)
class Step:
    """So many users at once, and what their requests came to."""

    users: int
    figures: Figures


@dataclass(frozen=True)
class Knee:
    """Where latency bends: `step` is the last before, `reason` is what the next one does.

    `reason` is None where no step bends it.
    """

    step: Step
    reason: str | None


def percentile(ascending: Sequence[float], part: float) -> float | None:
    """The smallest value that at least this part of all do not exceed; None where there are none.

    Args:
        ascending: the values, sorted.
        part: above 0, at most 1.
    """
    return ascending[math.ceil(part * len(ascending)) - 1] if ascending else None


def figures(samples: Sequence[Sample], seconds: float) -> Figures:
    """The figures of requests that ended within so many seconds."""
    times = sorted(each.milliseconds for each in samples if each.problem is None)
    problems = Counter(each.problem for each in samples if each.problem is not None)
    return Figures(
        requests=len(samples),
        rate=len(times) / seconds,
        p50=percentile(times, 0.50),
        p95=percentile(times, 0.95),
        p99=percentile(times, 0.99),
        refused={name: count for name, count in sorted(problems.items()) if name in REFUSALS},
        errors={name: count for name, count in sorted(problems.items()) if name not in REFUSALS},
    )


def by_name(samples: Sequence[Sample], seconds: float) -> dict[str, Figures]:
    """The figures of each kind of request."""
    names = sorted({each.name for each in samples})
    return {
        name: figures([each for each in samples if each.name == name], seconds) for name in names
    }


def find_knee(steps: Sequence[Step]) -> Knee | None:
    """The last step of a growing load before one of which one of these is true.

    Nothing is answered, more than 1 % are refused or fail, p95 is more than twice that of the first
    step, or the rate is less than 10 % above that of the step before.

    Returns:
        None where there is no step, or the first was not answered: there is nothing to compare.
    """
    if not steps or steps[0].figures.p95 is None:
        return None
    first = steps[0].figures.p95
    for before, step in itertools.pairwise(steps):
        reason = _bends(first, before.figures, step.figures)
        if reason is not None:
            return Knee(before, reason)
    return Knee(steps[-1], None)


def _bends(first_p95: float, before: Figures, now: Figures) -> str | None:
    if now.p95 is None:
        return "nothing is answered"
    if now.refused_share > _MOST_UNANSWERED:
        return f"{now.refused_share:.0%} of the requests are refused"
    if now.failed_share > _MOST_UNANSWERED:
        return f"{now.failed_share:.0%} of the requests fail"
    if now.p95 > _MOST_P95_GROWTH * first_p95:
        return f"p95 is {now.p95 / first_p95:.1f} times that of the first step"
    if now.rate < _LEAST_RATE_GROWTH * before.rate:
        return f"the rate changes by only {now.rate / before.rate - 1:+.0%}"
    return None
