"""How many processors there are for this process."""

import contextlib
import math
import os
from pathlib import Path
from typing import Final

__all__ = ["count_cores", "limit_cores"]

_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")
"""Of a container: microseconds of processors' time in each period of so many microseconds."""
_limit = math.inf
"""Of this process; see `limit_cores`."""


def limit_cores(cores: int) -> None:
    """From now on this process counts on no more: it is one of several on its machine."""
    global _limit
    _limit = cores


def count_cores() -> int:
    """Processors that it may run on, or, where its container has less of their time, so many."""
    cores = len(os.sched_getaffinity(0))
    # Where there is no limit it is "max", which is no number.
    with contextlib.suppress(OSError, ArithmeticError, ValueError):
        quota, period = map(int, _QUOTA.read_text("ascii").split())
        cores = min(cores, math.ceil(quota / period))
    return max(1, int(min(cores, _limit)))
