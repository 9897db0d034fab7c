"""Searches in a collection of 40,000 objects, beside the networks alone on the same photos."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import psutil

from backend.cores import count_cores
from benchmarks.reporting import percentiles_ms
from benchmarks.speed.bench import Bench, copies_of, photo_files
from benchmarks.speed.clients import OK, Answers, Clients, clients
from benchmarks.speed.filling import describe, fill
from benchmarks.speed.networks import Networks, PhotoTensors, ready_tensors, throughput
from benchmarks.speed.processors import service_seconds
from benchmarks.speed.rounds import each_ms, in_words, medians, percentile_ms, stage_seconds
from tests.service import Service

__all__ = ["measure", "rows", "search"]

_OBJECTS: Final = 40_000
_QUERIES: Final = 100
_CHUNKS: Final = 4
_CHUNK: Final = 10
"""Searches of one client, then as many photos through the networks alone."""
_MANY: Final = 8
_MOST: Final = 32
_SECONDS: Final = 3.0
"""Of each measurement of throughput."""
_LOADED: Final = 100
"""Photos of a load during which is searched."""
_ROUNDS: Final = 3
_EMBEDDED: Final[Mapping[str, str]] = {}


def measure(bench: Bench) -> dict[str, Any]:
    """Latency and throughput of searches with the embedded default: see `search`."""
    return search(bench, "search", objects=_OBJECTS, rounds=_ROUNDS)


def search(
    bench: Bench,
    part: str,
    *,
    objects: int,
    rounds: int,
    settings: Mapping[str, str] = _EMBEDDED,
    servers: Callable[[], Mapping[str, float]] = dict,
) -> dict[str, Any]:
    """Latency and throughput of searches, above and as a share of the networks alone.

    What a round compares is measured in turns; ratios are medians of the rounds' own.

    Args:
        bench: where and how much.
        part: names the service.
        objects: among which is searched, at a scale of 1.
        rounds: likewise.
        settings: of the service's engines.
        servers: the processors' time so far of each of the servers that these lead to.
    """
    files = photo_files(bench.data / "val" / "images")
    photos = [path.read_bytes() for path in files[: bench.scaled(_QUERIES, least=4)]]
    count = bench.scaled(objects, least=200)
    networks, tensors = Networks(), ready_tensors(photos)
    bench.log(f"{part}: writing {count:,} objects")
    data_dir = bench.scratch / f"{part}-data"
    fill(describe(tensors, networks), {data_dir: count}, settings)
    with ExitStack() as stack:
        service = stack.enter_context(bench.service(part, {**settings, "data_dir": str(data_dir)}))
        searching = _Searching(
            bench, service, stack.enter_context(clients(photos)), networks, servers
        )
        for number in range(bench.scaled(rounds)):
            bench.log(f"{part}: round {number + 1}")
            folder = bench.scratch / f"{part}-load-{number}"
            loaded = files[: bench.scaled(_LOADED, least=4)]
            copies_of(loaded, folder, len(loaded))
            searching.round(tensors, folder)
    return {"objects": count, "photos": len(photos), **searching.report()}


def rows(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What was measured, the figure, and what it is to be."""
    shares, cpu = report["clients_cpu"], report[f"cpu_ms_{_MOST}"]
    return [
        *(
            (
                f"search, {count} client{'s' if count != '1' else ''}: p50 / p95 / p99",
                f"{each['p50_ms']:.1f} / {each['p95_ms']:.1f} / {each['p99_ms']:.1f} ms,"
                f" {each['per_second']:.1f}/s, clients on {shares[count]:.2f} cores",
                "",
            )
            for count, each in report["latency"].items()
        ),
        ("search above bare, p50", f"{report['overhead_ms_p50']:.1f} ms", "<= 8 ms"),
        ("32 clients, share of bare", f"{report['share_of_bare_32']:.3f}", ">= 0.90"),
        (
            "CPU of a search then, of which the networks alone",
            f"{sum(cpu.values()):.1f} ms ({in_words(cpu)}), {report['bare_cpu_ms']:.1f} ms",
            "",
        ),
        ("32 clients, p99 over p50", f"{report['p99_over_p50_32']:.2f}", "<= 4"),
        (
            "search during a load, p95 over a quiet one's",
            f"{report['during_load_p95_over_quiet']:.2f}",
            "<= 3",
        ),
        ("searches that failed", f"{report['errors']}", "0"),
    ]


class _Searching:
    """Rounds of searches, and what they came to."""

    def __init__(
        self,
        bench: Bench,
        service: Service,
        searching: Clients,
        networks: Networks,
        servers: Callable[[], Mapping[str, float]],
    ) -> None:
        self._scale = bench.scale
        self._process = psutil.Process(service.process.pid)
        self._servers = servers
        self._service = service
        self._clients = searching
        self._networks = networks
        self._rounds: list[dict[str, Any]] = []
        self._seconds: dict[str, list[float]] = {}
        self._errors = 0
        searching.closed_loop(service.url, 2, _SECONDS * bench.scale)  # so that nobody is cold

    def round(self, tensors: Sequence[PhotoTensors], folder: Path) -> None:
        """Each measurement once; `folder` holds photos that are not loaded yet."""
        found = self._one_client(tensors)
        found |= self._many_clients(_MANY)
        found |= self._saturated(tensors)
        found |= self._during_load(folder, found["p95_ms_1"])
        self._rounds.append(found)

    def report(self) -> dict[str, Any]:
        """Latencies over all rounds, and medians of what the rounds came to."""
        latest = medians(self._rounds)
        spread = latest["spread"]
        counts = ("1", str(_MANY), str(_MOST))
        return {
            "latency": {
                count: percentiles_ms(self._seconds[count])
                | {"per_second": latest[f"per_second_{count}"]}
                for count in counts
            },
            "clients_cpu": {count: latest[f"clients_cpu_{count}"] for count in counts},
            **{key: latest[key] for key in _RATIOS},
            "spread": {key: spread[key] for key in _RATIOS},
            "rounds": latest["rounds"],
            "during_load": percentiles_ms(self._seconds["load"]),
            "bare_ms_p50": latest["bare_ms_p50"],
            "bare_photos_per_second": latest["bare_photos_per_second"],
            "bare_cpu_ms": latest["bare_cpu_ms"],
            "stages_ms": {key: value for key, value in latest["stages_ms"].items() if value},
            f"cpu_ms_{_MOST}": latest[f"cpu_ms_{_MOST}"],
            "errors": self._errors,
        }

    def _one_client(self, tensors: Sequence[PhotoTensors]) -> dict[str, Any]:
        """In chunks of few photos, one client's searches and the networks alone in one thread."""
        searched, bare, together = [], [], Answers()
        before = self._stages()
        for index in range(_CHUNKS):
            start = (len(self._rounds) * _CHUNKS + index) * _CHUNK % len(tensors)
            chunk = slice(start, start + _CHUNK)
            answers = self._note("1", self._clients.search(self._service.url, chunk))
            searched += answers.seconds
            together.elapsed += answers.elapsed
            together.cpu_seconds += answers.cpu_seconds
            for photo in tensors[chunk]:
                begin = perf_counter()
                self._networks.run_once(photo)
                bare.append(perf_counter() - begin)
        stages = each_ms(before, self._stages(), len(searched))
        together.seconds = searched
        return {
            "overhead_ms_p50": percentile_ms(searched, 50) - percentile_ms(bare, 50),
            "bare_ms_p50": percentile_ms(bare, 50),
            "p95_ms_1": percentile_ms(searched, 95),
            "per_second_1": together.per_second,
            "clients_cpu_1": together.cpu_share,
            "stages_ms": stages,
        }

    def _many_clients(self, count: int) -> dict[str, float]:
        answers = self._note(
            str(count),
            self._clients.closed_loop(self._service.url, count, _SECONDS * self._scale),
        )
        return {
            f"per_second_{count}": answers.per_second,
            f"clients_cpu_{count}": answers.cpu_share,
            f"p99_over_p50_{count}": percentile_ms(answers.seconds, 99)
            / percentile_ms(answers.seconds, 50),
            f"clients_cpu_ms_{count}": answers.cpu_seconds / len(answers.seconds) * 1000,
        }

    def _saturated(self, tensors: Sequence[PhotoTensors]) -> dict[str, Any]:
        """As many clients as there are at most, then the networks alone on all cores.

        With the CPU time of each, which shows what keeps the share from being one.
        """
        before = self._processors()
        answered = len(self._seconds.get(str(_MOST), ()))
        found = self._many_clients(_MOST)
        answered = len(self._seconds[str(_MOST)]) - answered
        parts = each_ms(before, self._processors(), answered)
        bare = throughput(
            [self._networks],
            tensors,
            threads=count_cores(),
            detector_batch=1,
            embedder_batch=None,
            seconds=_SECONDS * self._scale,
        )
        return found | {
            "bare_photos_per_second": bare.photos_per_second,
            "bare_cpu_ms": bare.cpu_ms,
            f"share_of_bare_{_MOST}": found[f"per_second_{_MOST}"] / bare.photos_per_second,
            f"cpu_ms_{_MOST}": parts | {"clients": found[f"clients_cpu_ms_{_MOST}"]},
        }

    def _processors(self) -> dict[str, float]:
        return {**service_seconds(self._process), **self._servers()}

    def _during_load(self, folder: Path, quiet_p95_ms: float) -> dict[str, float]:
        answers, _ = self._clients.during_load(self._service.url, folder)
        self._note("load", answers)
        return {"during_load_p95_over_quiet": percentile_ms(answers.seconds, 95) / quiet_p95_ms}

    def _note(self, kind: str, answers: Answers) -> Answers:
        self._seconds.setdefault(kind, []).extend(answers.seconds)
        self._errors += answers.statuses.total() - answers.statuses[OK]
        return answers

    def _stages(self) -> dict[str, float]:
        return stage_seconds(self._service.get("/metrics").text)


_RATIOS: Final = (
    "overhead_ms_p50",
    f"share_of_bare_{_MOST}",
    f"p99_over_p50_{_MOST}",
    "during_load_p95_over_quiet",
)
