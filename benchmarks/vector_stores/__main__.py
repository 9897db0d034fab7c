"""`python -m benchmarks.vector_stores`: the embedded vector engine at size, in figures."""

import argparse
import asyncio
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from backend.serving.models import Embedder
from benchmarks.models import cut_for, model_in_use
from benchmarks.reporting import add_common_arguments, environment, write_json
from benchmarks.vector_stores.embedded import TARGETS, measure_embedded
from benchmarks.vector_stores.vectors import NOISE, expansion, make_queries, multiply
from benchmarks.vector_stores.versions import (
    CHOSEN,
    VERSIONS,
    cases,
    make_environment,
    measure_case,
    measure_request_size,
)
from benchmarks.voc import DescribedObjects, describe_objects, read_split

_DIMENSIONS: Final = (512, 2048)
"""Of the small embedder and of the full one."""
_MANY_OBJECTS: Final = 100_000
_QUERIES: Final = 200
_REQUEST_ROWS: Final = (125, 250, 500, 750, 1000)
"""Of one upsert, at the larger dimension: 1 to 8 MB."""
_REQUESTS: Final = 4
"""Upserts of each size."""
_SEED: Final = 0
_COLUMNS: Final = 150
"""Of the tables, also where the output goes to a file."""
_UNKNOWN_SHA256: Final = "0" * 64
"""Of the embedder that the expanded vectors stand for."""


async def _embed(
    data: Path, photos: int | None
) -> tuple[DescribedObjects, DescribedObjects, Embedder]:
    """Objects of train (of at most `photos` photos) and of val, with the embedder that was used."""
    async with model_in_use("embedder") as model:
        embedder = Embedder(model)
        train, val = [
            await describe_objects(
                split, embedder.embed, cut=cut_for(embedder), difficult=difficult
            )
            for split, difficult in (
                (read_split(data / "train", limit=photos), True),
                (read_split(data / "val"), False),
            )
        ]
        return train, val, embedder


def _embedded_table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="The embedded default at size: medians; memory is the peak while serving")
    table.add_column("objects x dims")
    for title in (
        "upsert rows/s",
        "reopen s",
        "service start s",
        "search p50/p95/p99 ms",
        "catalog p50/p95/p99 ms",
        "top 10 photos p50/p95/p99 ms",
        "memory GB (PSS)",
        "disk GB",
    ):
        table.add_column(title, justify="right")
    for row in rows:
        memory = row["memory_serving"]
        table.add_row(
            f"{row['objects']:,} x {row['dimension']}",
            f"{row['upsert_rows_per_s']:,}",
            f"{row['reopen_s']:.2f}",
            f"{row['service_start_s']:.2f}",
            _percentiles(row["search"]),
            _percentiles(row["places"]),
            _percentiles(row["nearest"]),
            f"{memory['peak_rss_gb']:.2f} ({memory['idle_pss_gb']:.2f})",
            f"{row['disk_gb']:.2f}",
        )
    targets = ", ".join(f"{key} <= {value:g}" for key, value in TARGETS.items())
    table.caption = f"targets: {targets}; missed: {', '.join(missed(rows)) or 'none'}"
    return table


def missed(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The targets that a row of `measure_embedded` does not reach, with its value."""
    found = []
    for row in rows:
        values = {
            "search_p50_ms": row["search"]["p50_ms"],
            "reopen_s": row["reopen_s"],
            "peak_rss_gb": row["memory_serving"]["peak_rss_gb"],
        }
        found += [
            f"{key} {values[key]:g} at {row['dimension']}-d"
            for key, target in TARGETS.items()
            if values[key] > target
        ]
    return found


def _versions_table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="Versions and indexes of Milvus Lite: L2, top 10, one query at a time")
    table.add_column("version, index")
    table.add_column("objects x dims")
    for title in (
        "upsert rows/s",
        "search p50/p99 ms",
        "with a label p50/p99 ms",
        "reopen s",
        "memory GB",
        "recall@10",
        "queries",
    ):
        table.add_column(title, justify="right")
    for row in rows:
        names = f"{row['version']}, {row['index']}", f"{row['objects']:,} x {row['dimension']}"
        if "error" in row:
            table.add_row(*names, row["error"])
            continue
        table.add_row(
            *names,
            f"{row['upsert_rows_per_s']:,}",
            *(
                f"{row[key]['p50_ms']:.1f} / {row[key]['p99_ms']:.1f}"
                for key in ("search", "filtered")
            ),
            f"{row['reopen_s']:.2f}",
            f"{row['peak_rss_gb']:.2f}",
            f"{row['recall_at_10']:.3f}",
            str(row["queries"]),
        )
    return table


def _request_table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="Upserts of growing size")
    for title in ("rows", "dims", "MB", "upsert rows/s"):
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(
            f"{row['rows_per_request']:,}",
            str(row["dimension"]),
            f"{row['request_mb']:.1f}",
            f"{row['upsert_rows_per_s']:,}",
        )
    return table


def _percentiles(row: dict[str, float]) -> str:
    return " / ".join(f"{row[key]:.1f}" for key in ("p50_ms", "p95_ms", "p99_ms"))


def _measure(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    def log(message: str) -> None:
        console.print(message, style="dim")

    log("embedding real objects")
    train, val, embedder = asyncio.run(_embed(arguments.data, arguments.photos))
    report: dict[str, Any] = {
        **environment(),
        "real_objects": len(train),
        "noise": NOISE,
        "embedder": {"name": embedder.name, "sha256": embedder.sha256},
        "targets": TARGETS,
        "embedded": [],
        "request_sizes": [],
        "milvus_lite": [],
    }
    for dimension in _DIMENSIONS:
        mapping = expansion(embedder.dimension, dimension, seed=_SEED)
        objects = multiply(train, arguments.objects, mapping, seed=_SEED)
        queries = make_queries(val, _QUERIES, mapping)
        same = dimension == embedder.dimension
        with tempfile.TemporaryDirectory() as folder:
            row = measure_embedded(
                objects,
                queries,
                embedder=(
                    (embedder.name, embedder.sha256) if same else ("expanded", _UNKNOWN_SHA256)
                ),
                folder=Path(folder),
                repeat=arguments.repeat,
                log=log,
            )
        report["embedded"].append(row)
    console.print(_embedded_table(report["embedded"]))
    report["request_sizes"] = _request_sizes(train, embedder.dimension, log)
    console.print(_request_table(report["request_sizes"]))
    if arguments.versions:
        report["milvus_lite"] = _compare(train, val, embedder.dimension, arguments.objects, log)
        console.print(_versions_table(report["milvus_lite"]))
    return report


def _request_sizes(
    train: DescribedObjects, dimension: int, log: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Upserts of growing size, each into a database of its own."""
    mapping = expansion(dimension, max(_DIMENSIONS), seed=_SEED)
    rows = []
    for size in _REQUEST_ROWS:
        objects = multiply(train, _REQUESTS * size, mapping, seed=_SEED)
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure_request_size(objects, size, folder=Path(folder), log=log))
    return rows


def _compare(
    train: DescribedObjects,
    val: DescribedObjects,
    dimension: int,
    count: int,
    log: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Every version with every index at both dimensions, and the chosen one with many objects."""
    sizes = [(count, wanted, list(cases(VERSIONS))) for wanted in _DIMENSIONS]
    sizes.append((_MANY_OBJECTS, dimension, [CHOSEN]))
    rows = []
    with tempfile.TemporaryDirectory() as root:
        pythons = {version: make_environment(Path(root) / version, version) for version in VERSIONS}
        for objects_wanted, wanted, chosen in sizes:
            mapping = expansion(dimension, wanted, seed=_SEED)
            objects = multiply(train, objects_wanted, mapping, seed=_SEED)
            queries = make_queries(val, _QUERIES, mapping)
            for case in chosen:
                with tempfile.TemporaryDirectory() as folder:
                    rows.append(
                        measure_case(
                            case,
                            objects,
                            queries,
                            python=pythons[case.version],
                            folder=Path(folder),
                            log=log,
                        )
                    )
    return rows


def main() -> None:
    """Parses the command line, measures and reports."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vector_stores", description=__doc__)
    add_common_arguments(parser)
    parser.add_argument(
        "--objects", type=int, default=40_000, metavar="N", help="objects to search (40000)"
    )
    parser.add_argument(
        "--photos", type=int, metavar="N", help="embed N photos of train, not all, to copy from"
    )
    parser.add_argument(
        "--repeat", type=int, default=3, metavar="N", help="openings to take the median of (3)"
    )
    parser.add_argument(
        "--versions",
        action="store_true",
        help="also compare versions and indexes of Milvus Lite; installs them from the package"
        " index into temporary environments",
    )
    arguments = parser.parse_args()
    report = _measure(arguments, Console(width=_COLUMNS))
    if arguments.json:
        write_json(arguments.json, report)


if __name__ == "__main__":
    main()
