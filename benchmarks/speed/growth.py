"""What loading a photo and searching cost in collections of 1,000, 10,000 and 100,000 objects.

And of 1,000,000 where `grow` is asked to.
"""

import itertools
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, TypeAlias

from benchmarks.reporting import percentiles_ms
from benchmarks.speed.bench import Bench, copies_of, photo_files
from benchmarks.speed.clients import OK, Clients, clients
from benchmarks.speed.filling import describe, fill
from benchmarks.speed.networks import Networks, ready_tensors
from benchmarks.speed.rounds import each_ms, medians, percentile_ms, stage_seconds
from tests.service import Service

__all__ = ["Ratios", "grow", "measure", "rows", "size_rows"]

Ratios: TypeAlias = Mapping[str, tuple[str, str, str]]
"""By their keys in the report: what is compared, at which size, with which other size."""

_SIZES: Final = {"1k": 1_000, "10k": 10_000, "100k": 100_000}
_LOADED: Final = 50
"""Photos of a load."""
_QUERIES: Final = 40
_ROUNDS: Final = 4
_RATIOS: Final[Ratios] = {
    "load_100k_over_1k": ("load_ms", "100k", "1k"),
    "search_100k_over_10k": ("p50_ms", "100k", "10k"),
    "vectors_100k_over_10k": ("vectors_ms", "100k", "10k"),
}
_EMBEDDED: Final[Mapping[str, str]] = {}


def measure(bench: Bench) -> dict[str, Any]:
    """Costs at each size of the embedded default, and ratios of them: see `grow`."""
    return grow(bench, "growth", _SIZES, _RATIOS)


def grow(
    bench: Bench,
    part: str,
    full_sizes: Mapping[str, int],
    ratios: Ratios,
    settings: Mapping[str, str] = _EMBEDDED,
    filled: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Costs at each size, and the ratios of large collections' to small ones'.

    Each size is a service of its own. They take turns, in another order each round; ratios are
    medians of the rounds' own.

    Args:
        bench: where and how much.
        part: names the services.
        full_sizes: objects, by what a size is called, at a scale of 1.
        ratios: what to compare.
        settings: of the services' engines.
        filled: called once the objects are written.
    """
    files = photo_files(bench.data / "val" / "images")
    queries = [path.read_bytes() for path in files[-bench.scaled(_QUERIES, least=4) :]]
    loaded = files[: bench.scaled(_LOADED, least=4)]
    sizes = {name: bench.scaled(count, least=20) for name, count in full_sizes.items()}
    objects = describe(ready_tensors(queries), Networks())
    folders = {name: bench.scratch / f"{part}-data-{name}" for name in sizes}
    bench.log(f"{part}: writing {sum(sizes.values()):,} objects")
    fill(objects, {folders[name]: count for name, count in sizes.items()}, settings)
    filled()
    with ExitStack() as stack:
        growth = _Growth(
            {
                name: stack.enter_context(
                    bench.service(f"{part}-{name}", {**settings, "data_dir": str(folder)})
                )
                for name, folder in folders.items()
            },
            stack.enter_context(clients(queries)),
            ratios,
        )
        growth.begin()
        for number in range(bench.scaled(_ROUNDS)):
            bench.log(f"{part}: round {number + 1}")
            folder = bench.scratch / f"{part}-photos-{number}"
            copies_of(loaded, folder, len(loaded))
            growth.round(folder, len(loaded))
    return {"objects": sizes, "photos": len(loaded), **growth.report()}


def rows(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What was measured, the figure, and what it is to be."""
    return [
        *size_rows(report),
        ("load at 100,000 over 1,000", f"{report['load_100k_over_1k']:.3f}", "<= 1.10"),
        ("search at 100,000 over 10,000", f"{report['search_100k_over_10k']:.2f}", "<= 2"),
        ("vectors at 100,000 over 10,000", f"{report['vectors_100k_over_10k']:.2f}", ""),
    ]


def size_rows(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The costs at each size, as `rows`."""
    return [
        (
            f"{report['objects'][name]:,} objects",
            f"load {each['load_ms']:.1f} ms a photo; search p50 {each['p50_ms']:.1f} ms, of"
            f" which vectors {each['vectors_ms']:.1f} ms",
            "",
        )
        for name, each in report["sizes"].items()
    ]


class _Growth:
    """Rounds of loads and searches of services that differ in what they hold."""

    def __init__(self, services: dict[str, Service], searching: Clients, ratios: Ratios) -> None:
        self._services = services
        self._ratios = ratios
        self._clients = searching
        self._seconds: dict[str, list[float]] = {name: [] for name in services}
        self._rounds: list[dict[str, float]] = []
        self._orders = itertools.cycle((list(services), list(services)[::-1]))
        self._errors = 0

    def begin(self) -> None:
        """Has each search once, so that nobody is cold."""
        for service in self._services.values():
            self._clients.search(service.url, slice(None))

    def round(self, folder: Path, photos: int) -> None:
        """Each measurement once at each size; `folder` holds photos that are not loaded yet."""
        found: dict[str, float] = {}
        order = next(self._orders)
        for name in order:
            found |= self._search(name)
        for name in order:
            found[f"load_ms_{name}"] = _load_seconds(self._services[name], folder) / photos * 1000
        found |= {
            key: found[f"{what}_{large}"] / found[f"{what}_{small}"]
            for key, (what, large, small) in self._ratios.items()
        }
        self._rounds.append(found)

    def report(self) -> dict[str, Any]:
        """Medians of what the rounds came to, and latencies over all rounds."""
        found = medians(self._rounds)
        return {
            "sizes": {
                name: percentiles_ms(self._seconds[name])
                | {kind: found[f"{kind}_{name}"] for kind in ("load_ms", "vectors_ms")}
                for name in self._services
            },
            **{key: found[key] for key in self._ratios},
            "spread": {key: found["spread"][key] for key in self._ratios},
            "rounds": found["rounds"],
            "errors": self._errors,
        }

    def _search(self, name: str) -> dict[str, float]:
        service = self._services[name]
        before = _stages(service)
        answers = self._clients.search(service.url, slice(None))
        stages = each_ms(before, _stages(service), len(answers.seconds))
        self._seconds[name] += answers.seconds
        self._errors += answers.statuses.total() - answers.statuses[OK]
        return {
            f"p50_ms_{name}": percentile_ms(answers.seconds, 50),
            f"vectors_ms_{name}": stages["search"],
        }


def _stages(service: Service) -> dict[str, float]:
    return stage_seconds(service.get("/metrics").text)


def _load_seconds(service: Service, folder: Path) -> float:
    start = time.perf_counter()
    service.load(folder).raise_for_status()
    return time.perf_counter() - start
