"""The ceiling: the networks alone, in the best loop that was found for them."""

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from backend.cores import count_cores
from benchmarks.speed.networks import Networks, PhotoTensors, Throughput, throughput

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
    return Loop(count_cores(), 1, None)


def _loops(cores: int) -> list[Loop]:
    """What is tried."""
    return [
        *(Loop(cores, batch, None) for batch in (1, 4, 16)),
        *(Loop(cores, batch, crops) for batch in (1, 4) for crops in (4, 16)),
        Loop(cores, 1, None, sessions=cores),
        *(Loop(threads, 1, None) for threads in (cores + 1, 2 * cores)),
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
            done = run(loop, tensors, seconds=_SECONDS * scale)
            rates[loop] = max(rates[loop], done.photos_per_second)
    ranked = sorted(rates.items(), key=lambda each: -each[1])
    tried = [{**asdict(loop), "photos_per_second": rate} for loop, rate in ranked]
    return ranked[0][0], tried


def run(loop: Loop, tensors: Sequence[PhotoTensors], *, seconds: float) -> Throughput:
    """What the networks do with this loop."""
    return throughput(
        [_networks(loop.intra_op_threads, number) for number in range(loop.sessions)],
        tensors,
        threads=loop.threads,
        detector_batch=loop.detector_batch,
        embedder_batch=loop.embedder_batch,
        seconds=seconds,
    )


@functools.cache
def _networks(intra_op_threads: int, number: int) -> Networks:
    """Sessions that are there from one turn to the next."""
    return Networks(intra_op_threads=intra_op_threads)
