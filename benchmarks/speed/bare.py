"""The ceiling: the networks alone, in the best loop that was found for them."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from benchmarks.speed.networks import Networks, PhotoTensors, photos_per_second

__all__ = ["Loop", "best_loop", "embedded_loop", "run"]

_SECONDS: Final = 1.5
"""Of each way that is tried."""
_TURNS: Final = 2


@dataclass(frozen=True)
class Loop:
    """A way to run the networks; see `photos_per_second`, and `Networks` for `intra_op_threads`.

    `sessions` of either network; threads share them in turn.
    """

    threads: int
    detector_batch: int
    embedder_batch: int | None
    intra_op_threads: int = 1
    sessions: int = 1


def embedded_loop() -> Loop:
    """As the embedded default runs them."""
    return Loop(os.cpu_count() or 1, 1, None)


def _loops(cores: int) -> list[Loop]:
    """What is tried."""
    return [
        *(Loop(cores, batch, None) for batch in (1, 4, 16)),
        *(Loop(cores, batch, crops) for batch in (1, 4) for crops in (4, 16)),
        Loop(cores, 1, None, sessions=cores),
        Loop(cores + 1, 1, None),
        *(Loop(1, batch, crops, cores) for batch, crops in ((1, None), (8, 16))),
    ]


def best_loop(
    tensors: Sequence[PhotoTensors], cores: int, *, scale: float
) -> tuple[Loop, list[dict[str, Any]]]:
    """The loop with which most photos a second were done, and all that were tried, best first.

    They take turns, so that a busy moment is not one loop's alone.
    """
    rates: dict[Loop, float] = dict.fromkeys(_loops(cores), 0.0)
    for _ in range(_TURNS):
        for loop in rates:
            rates[loop] = max(rates[loop], run(loop, tensors, seconds=_SECONDS * scale))
    ranked = sorted(rates.items(), key=lambda each: -each[1])
    tried = [{**asdict(loop), "photos_per_second": rate} for loop, rate in ranked]
    return ranked[0][0], tried


def run(loop: Loop, tensors: Sequence[PhotoTensors], *, seconds: float) -> float:
    """Photos a second, with this loop."""
    networks = [Networks(intra_op_threads=loop.intra_op_threads) for _ in range(loop.sessions)]
    return photos_per_second(
        networks,
        tensors,
        threads=loop.threads,
        detector_batch=loop.detector_batch,
        embedder_batch=loop.embedder_batch,
        seconds=seconds,
    )
