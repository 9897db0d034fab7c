"""Four times as many searches as the service can answer: what becomes of them, and of it."""

import time
from collections import Counter
from contextlib import ExitStack
from typing import Any, Final

from benchmarks.reporting import percentiles_ms
from benchmarks.speed.bench import Bench, photo_files
from benchmarks.speed.clients import OK, REFUSED, Answers, clients
from benchmarks.speed.filling import describe, fill
from benchmarks.speed.networks import Networks, ready_tensors
from benchmarks.speed.rounds import medians, percentile_ms
from benchmarks.vector_stores.processes import peak_rss, resident

__all__ = ["measure", "overloaded", "rows"]

_OBJECTS: Final = 10_000
_QUERIES: Final = 40
_CLIENTS: Final = 32
"""Of the closed loop that saturates the service."""
_SATURATED_SECONDS: Final = 4.0
_ROUNDS: Final = 3
"""Of finding the rate at saturation."""
_TIMES: Final = 4
_OVERLOADED_SECONDS: Final = 60.0
_PATIENCE_SECONDS: Final = 30.0
"""To wait for latency to be as before; it is done well before that, or has failed."""

_SETTLE_SECONDS: Final = 4.0
"""Until memory is looked at again: within five seconds it is to be as before."""


def measure(bench: Bench) -> dict[str, Any]:
    """Latency and refusals at four times the saturating rate, and how fast all is as before.

    The clients share the cores with the service: `clients_cpu` tells how many they kept busy.
    """
    files = photo_files(bench.data / "val" / "images")
    queries = [path.read_bytes() for path in files[: bench.scaled(_QUERIES, least=4)]]
    count = bench.scaled(_OBJECTS, least=200)
    bench.log(f"overload: writing {count:,} objects")
    data_dir = bench.scratch / "overload-data"
    fill(describe(ready_tensors(queries), Networks()), {data_dir: count})
    with ExitStack() as stack:
        service = stack.enter_context(bench.service("overload", {"data_dir": str(data_dir)}))
        searching = stack.enter_context(clients(queries))
        pid = service.process.pid
        seconds = _SATURATED_SECONDS * bench.scale
        searching.closed_loop(service.url, _CLIENTS, seconds)  # so that nobody is cold
        saturated, rounds, statuses = [], [], Counter[str]()
        for number in range(bench.scaled(_ROUNDS)):
            bench.log(f"overload: saturation, round {number + 1}")
            answers = searching.closed_loop(service.url, _CLIENTS, seconds)
            saturated += answers.seconds
            statuses += answers.statuses
            rounds.append(
                {
                    "saturation_per_second": answers.per_second,
                    "saturation_p99_ms": percentile_ms(answers.seconds, 99),
                    "saturation_clients_cpu": answers.cpu_share,
                }
            )
        saturation = medians(rounds)
        quiet = searching.search(service.url, slice(None))
        before = resident(pid)
        rate = _TIMES * saturation["saturation_per_second"]
        bench.log(f"overload: {rate:.0f} searches a second")
        with peak_rss(pid) as peak:
            overload = searching.start_overload(
                service.url,
                rate,
                _OVERLOADED_SECONDS * bench.scale,
                quiet_seconds=percentile_ms(quiet.seconds, 50) / 1000,
                patience=_PATIENCE_SECONDS * bench.scale,
            ).result()
        time.sleep(_SETTLE_SECONDS * bench.scale)
        after = resident(pid)
    return {
        "objects": count,
        **saturation,
        "saturation": percentiles_ms(saturated),
        "saturation_others": {k: n for k, n in statuses.items() if k != OK},
        "quiet": percentiles_ms(quiet.seconds),
        **overloaded(overload.answers, rate, saturation["saturation_p99_ms"]),
        "recovery_s": overload.recovery_seconds,
        "memory_mb": {
            name: value / 1e6
            for name, value in (("before", before), ("peak", peak[0]), ("after", after))
        },
    }


def rows(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What was measured, the figure, and what it is to be."""
    memory = report["memory_mb"]
    over, recovery = report["p99_over_saturation"], report["recovery_s"]
    others = ", ".join(f"{kind}: {count}" for kind, count in report["others"].items())
    return [
        (
            f"{_CLIENTS} clients saturate it",
            f"{report['saturation_per_second']:.1f}/s, p99 {report['saturation_p99_ms']:.0f} ms",
            "",
        ),
        (
            f"{report['rate']:.0f} searches/s: accepted ones' p99 over that",
            "none accepted" if over is None else f"{over:.2f}",
            "<= 2",
        ),
        (
            "answered, refused with 429",
            f"{report['answered_per_second']:.1f}/s, {report['refused_share']:.1%}; clients on"
            f" {report['clients_cpu']:.2f} cores",
            "",
        ),
        ("any other status", others or "none", "none"),
        (
            "until a search takes what it did",
            "not in time" if recovery is None else f"{recovery:.1f} s",
            "<= 5 s",
        ),
        (
            "memory before / at its peak / after",
            f"{memory['before']:.0f} / {memory['peak']:.0f} / {memory['after']:.0f} MB",
            "",
        ),
    ]


def overloaded(answers: Answers, rate: float, saturation_p99_ms: float) -> dict[str, Any]:
    """What the searches of the open loop came to."""
    total = answers.statuses.total()
    accepted = percentiles_ms(answers.seconds) if answers.seconds else None
    return {
        "rate": rate,
        "searches": total,
        "answered_per_second": answers.per_second,
        "accepted": accepted,
        "p99_over_saturation": accepted and accepted["p99_ms"] / saturation_p99_ms,
        "refused_share": answers.statuses[REFUSED] / total,
        "others": answers.others,
        "clients_cpu": answers.cpu_share,
        "lateness_ms_p99": percentile_ms(answers.lateness, 99),
    }
