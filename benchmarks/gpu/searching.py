"""Searches through Triton on a GPU: latency and rate by the number of clients."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.gpu.loading import Engines, Layout, services
from benchmarks.reporting import percentiles_ms
from benchmarks.speed.bench import Bench, copies_of
from benchmarks.speed.clients import OK, clients

__all__ = ["measure"]

_MOST_CORES: Final = 8
_CLIENTS: Final = (1, 8, 32, 64)
_SECONDS: Final = 5.0
_PHOTOS: Final = 1000


def measure(bench: Bench, engines: Engines, files: Sequence[Path]) -> dict[str, Any]:
    """Of one service with a small collection, so that the networks are most of the work."""
    layout = Layout(1, min(_MOST_CORES, len(engines.cores.services)))
    folder = copies_of(files, bench.scratch / "searched", bench.scaled(_PHOTOS, least=8))
    photos = [path.read_bytes() for path in files]
    report: dict[str, Any] = {"cores": layout.cores}
    with (
        services("search", bench, engines, layout) as [service],
        clients(photos) as searching,
    ):
        service.load(folder).raise_for_status()
        report["objects"] = service.count()
        for count in _CLIENTS:
            bench.log(f"search: {count} clients")
            answers = searching.closed_loop(service.url, count, _SECONDS * bench.scale)
            report[str(count)] = {
                **percentiles_ms(answers.seconds),
                "per_second": answers.per_second,
                "errors": answers.statuses.total() - answers.statuses[OK],
            }
    return report
