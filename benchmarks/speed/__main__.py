"""`python -m benchmarks.speed`: how fast the service is, as ratios within one run.

Each part starts services of its own, on loopback, and measures what it compares in turns, so that
a busy moment of the machine meets both sides. Prints one table, writes JSON. Takes about ten
minutes on 2 cores; with `--only` a part or some of them. `memory`, a long load, and `million`,
many objects on a Milvus server, are measured only where they are named.
"""

import argparse
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import cv2
from rich.console import Console
from rich.table import Table

from benchmarks.reporting import add_common_arguments, environment, rounded, write_json
from benchmarks.speed import (
    growth,
    host,
    loading,
    memory,
    million,
    original,
    overload,
    production,
    searching,
)
from benchmarks.speed.bench import Bench

_PARTS: Final[dict[str, ModuleType]] = {
    "load": loading,
    "host": host,
    "search": searching,
    "original": original,
    "growth": growth,
    "overload": overload,
    "triton": production,
    "memory": memory,
    "million": million,
}
"""By their keys in the report, in the order in which they are measured."""
_AT_REQUEST: Final = ("memory", "million")


def render(report: dict[str, Any]) -> Table:
    """The report as one table: what was measured, what it is to be."""
    table = Table(title="Speed; ratios are within this run")
    for title in ("what", "measured", "target"):
        table.add_column(title, overflow="fold")
    for name, part in _PARTS.items():
        if name in report:
            for row in part.rows(report[name]):
                table.add_row(*row)
            table.add_section()
    lags = report["loop_lag_p99_ms"]
    if lags:
        worst = max(lags, key=lags.__getitem__)
        table.add_row(
            f"event loops' lag, p99, of {len(lags)} services",
            f"at most {lags[worst]:g} ms ({worst})",
            "<= 10 ms",
        )
    return table


def main() -> None:
    """Parses the command line, measures and reports."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    add_common_arguments(parser)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=_PARTS,
        default=[name for name in _PARTS if name not in _AT_REQUEST],
        metavar="PART",
        help=f"of {', '.join(_PARTS)}; where none is named, all but {', '.join(_AT_REQUEST)}",
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, help="of counts and durations, for a quick look (1)"
    )
    arguments = parser.parse_args()
    progress = Console(stderr=True)
    cv2.setNumThreads(1)  # as in the service
    lags: dict[str, float] = {}
    report: dict[str, Any] = {**environment("aiohttp"), "scale": arguments.scale}
    for name, part in _PARTS.items():
        if name in arguments.only:
            with tempfile.TemporaryDirectory() as scratch:
                bench = Bench(
                    arguments.data,
                    Path(scratch),
                    arguments.scale,
                    log=lambda message: progress.print(message, style="dim"),
                    lags=lags,
                )
                report[name] = part.measure(bench)
    report = rounded({**report, "loop_lag_p99_ms": lags})
    Console().print(render(report))
    if arguments.json:
        write_json(arguments.json, report)


if __name__ == "__main__":
    main()
