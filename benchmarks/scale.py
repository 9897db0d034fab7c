"""What a node of each kind carries, and what some number of objects takes: docs/scale.md.

`python -m benchmarks.scale` measures what MariaDB takes for a photo and an object of the catalog.
`python -m benchmarks.scale --tables` writes the tables of docs/scale.md anew, out of the reports
that are kept in `results/`; what they hold is computed, each by the formula that stands beside it.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from benchmarks.reporting import environment, rounded, write_json
from benchmarks.speed.filling import fill
from benchmarks.voc import DescribedObjects
from tests.engines.mariadb import MariaDBProcess
from tests.service import REPOSITORY

__all__ = ["measure", "read_results", "tables", "with_tables"]

DOCUMENT: Final = REPOSITORY / "docs" / "scale.md"
_RESULTS: Final = Path(__file__).parent / "results"
_REPORTS: Final = ("speed", "speed_million", "gpu", "scale")

_OBJECTS: Final = 50_000
_OBJECTS_A_PHOTO: Final = 5
_DIMENSION: Final = 512
_SEED: Final = 0

_COUNTS: Final = {"10 million": 10**7, "100 million": 10**8, "1 billion": 10**9}
_DIMENSIONS: Final = (512, 2048)
_NODE_GIB: Final = 64
"""Memory of a query node; a bigger one carries in proportion."""
_USABLE: Final = 0.7
"""Of it, so that segments can be loaded while others are replaced."""
_RATES: Final = (100, 1000, 10_000)
"""Photos a second."""
_SEARCH_RATES: Final = (10, 100, 1000)
_SECTOR: Final = 4096


def measure(scratch: Path, *, objects: int = _OBJECTS) -> dict[str, Any]:
    """Bytes that MariaDB takes for a row of each large table, its indexes included.

    Raises:
        SystemExit: there is no MariaDB here.
    """
    database = MariaDBProcess(scratch / "mysql")
    try:
        database.start()
        settings = {
            "mysql_host": database.host,
            "mysql_port": str(database.port),
            "mysql_user": database.user,
            "mysql_pwd": database.password,
            "mysql_db": "scale",
        }
        vectors = np.random.default_rng(_SEED).standard_normal((_OBJECTS_A_PHOTO, _DIMENSION))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        photo = DescribedObjects(
            ("object",) * _OBJECTS_A_PHOTO,
            np.zeros(_OBJECTS_A_PHOTO, np.int64),
            vectors.astype(np.float32),
        )
        fill(photo, {scratch / "data": objects}, settings)
        database.execute("ANALYZE TABLE scale.images, scale.objects")
        found = {
            name: {"rows": rows, "bytes_a_row": size / rows}
            for name, size, rows in (
                (
                    name,
                    int(database.execute(_SIZE, name)[0][0]),
                    int(database.execute(f"SELECT count(*) FROM scale.{name}")[0][0]),
                )
                for name in ("images", "objects")
            )
        }
        [[version]] = database.execute("SELECT VERSION()")
    except pytest.skip.Exception as missing:
        raise SystemExit(str(missing)) from None
    finally:
        database.remove()
    return {"mysql": version, "catalog": found}


_SIZE: Final = (
    "SELECT data_length + index_length FROM information_schema.tables"
    " WHERE table_schema = 'scale' AND table_name = %s"
)


def read_results() -> dict[str, Any]:
    """The reports that are kept, by their names."""
    return {name: json.loads((_RESULTS / f"{name}.json").read_text("utf-8")) for name in _REPORTS}


@dataclass(frozen=True)
class _Index:
    """Bytes of memory and of disk that an index takes for a vector of d dimensions."""

    name: str
    memory: Callable[[int], float]
    disk: Callable[[int], float]


def _hnsw(d: int) -> float:
    # The vector, 2M links of four bytes on the lowest level, M on each higher one, of which a
    # vector is on 1 / ln M in the mean, and its number.
    m = 16
    return 4 * d + 8 * m + 4 * m / math.log(m) + 8


def _vamana(d: int) -> float:
    # A node is the vector and 56 links; as many as fit lie in a sector, or it takes several.
    node = 4 * d + 4 * 57
    fit = _SECTOR // node
    return _SECTOR / fit if fit else math.ceil(node / _SECTOR) * _SECTOR


_INDEXES: Final = (
    _Index("HNSW (M 16)", _hnsw, _hnsw),
    _Index("IVF_SQ8", lambda d: d + 8, lambda d: d + 8),
    # A code of an eighth of the vector, and a cache of a tenth: Milvus' defaults.
    _Index("DISKANN", lambda d: 4 * d * (0.125 + 0.1), _vamana),
)


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """Markdown tables, by the names of their places in docs/scale.md."""
    return {
        "nodes": _nodes(results),
        "indexes": _indexes(results),
        "ingestion": _ingestion(results),
        "searches": _searches(results),
        "catalog": _catalog(results),
        "embedding anew": _embedding_anew(results),
    }


def with_tables(text: str, made: Mapping[str, str]) -> str:
    """The document with its tables made anew."""
    for name, table in made.items():
        start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
        before, rest = text.split(start)
        _, after = rest.split(end)
        text = before + start + table + end + after
    return text


def _markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


class _Gpu:
    """What one GPU machine did: four services of two cores, Triton with an H100."""

    def __init__(self, results: Mapping[str, Any]) -> None:
        gpu = results["gpu"]
        [row] = [row for row in gpu["loads"] if (row["services"], row["cores"]) == (4, 2)]
        self.bare: float = gpu["bare"]["photos_per_second"]
        self.objects: float = row["objects_a_photo"]
        self.query_vectors: float = gpu["objects_a_photo"]
        self.photos: float = row["photos_per_second"]
        self.services: int = row["services"]
        self.service_cores: int = row["cores"]
        self.a_service = self.photos / self.services
        self.milvus_cores: float = row["busy_cores"]["milvus"]
        self.busy: float = row["gpu_busy"]
        self.searches: float = max(
            each["per_second"] for each in gpu["search"].values() if isinstance(each, dict)
        )


def _nodes(results: Mapping[str, Any]) -> str:
    gpu, load = _Gpu(results), results["speed"]["load"]["original"]
    million = results["speed_million"]["million"]
    vectors = sum(million["objects"].values()) / million["index_seconds"] / 2
    catalog = results["scale"]["catalog"]
    rows = [
        (
            "all in one, 2 cores, no GPU",
            f"{load['photos_per_second']:.0f} photos/s of the small pair",
            "`benchmarks.speed`, `load.original.photos_per_second`",
        ),
        (
            "backend, 2 cores, before a GPU",
            f"{gpu.a_service:.0f} photos/s of {gpu.objects:.1f} objects",
            "`benchmarks.gpu`, 4 services of 2 cores",
        ),
        (
            "backend, one process, searches",
            f"{gpu.searches:.0f}/s at the most, {gpu.query_vectors:.1f} query vectors each",
            "`benchmarks.gpu`, `search`",
        ),
        (
            "Triton with an H100, full pair, half precision",
            f"{gpu.bare:.0f} photos/s of bare, {gpu.photos:.0f} of them had through services"
            f" (busy {gpu.busy:.0%})",
            "`benchmarks.gpu`, `bare` and `loads`",
        ),
        (
            "Milvus, building HNSW at 512 dimensions",
            f"{vectors:.0f} vectors/s and core",
            "`benchmarks.speed --only million`, `index_seconds`, two cores that others used too",
        ),
        (
            "Milvus, a million of these on 2 cores",
            f"a photo's vectors in {million['sizes']['1m']['vectors_ms']:.0f} ms",
            "the same, `sizes.1m.vectors_ms`",
        ),
        (
            "MySQL",
            f"{catalog['images']['bytes_a_row']:.0f} bytes a photo,"
            f" {catalog['objects']['bytes_a_row']:.0f} an object, indexes included",
            "`benchmarks.scale`",
        ),
    ]
    return _markdown(("node", "carries", "measured by"), rows)


def _indexes(results: Mapping[str, Any]) -> str:
    rows = []
    for title, count in _COUNTS.items():
        for dimension in _DIMENSIONS:
            for index in _INDEXES:
                memory = count * index.memory(dimension)
                nodes = math.ceil(memory / (_NODE_GIB * 2**30 * _USABLE))
                rows.append(
                    (
                        title,
                        str(dimension),
                        index.name,
                        _bytes(memory),
                        _bytes(count * index.disk(dimension)),
                        f"{nodes:,}",
                    )
                )
    titles = ("objects", "dimensions", "index", "memory", "disk", f"nodes of {_NODE_GIB} GiB")
    return _markdown(titles, rows)


def _ingestion(results: Mapping[str, Any]) -> str:
    gpu = _Gpu(results)
    rows = []
    for rate in _RATES:
        services = math.ceil(rate / gpu.a_service)
        rows.append(
            (
                f"{rate:,}",
                f"{rate * gpu.objects:,.0f}",
                f"{math.ceil(rate / (gpu.photos / gpu.busy)):,}",
                f"{services:,} of {gpu.service_cores} cores",
                f"{rate / gpu.photos * gpu.milvus_cores:,.1f}",
                _duration(10**9 / (rate * gpu.objects)),
            )
        )
    titles = (
        *("photos/s", "objects/s", "H100s", "backends", "cores of Milvus for inserting"),
        "until a billion objects are in",
    )
    return _markdown(titles, rows)


def _searches(results: Mapping[str, Any]) -> str:
    gpu = _Gpu(results)
    million = results["speed_million"]["million"]
    seconds = million["sizes"]["1m"]["vectors_ms"] / 1000
    growth = {
        title: math.log(count) / math.log(million["objects"]["1m"])
        for title, count in _COUNTS.items()
    }
    rows = [
        (
            f"{rate:,}",
            f"{math.ceil(rate / (gpu.photos / gpu.busy)):,}",
            f"{math.ceil(rate / gpu.searches):,}",
            *(f"{math.ceil(rate * seconds * 2 * factor):,}" for factor in growth.values()),
        )
        for rate in _SEARCH_RATES
    ]
    cores = (f"cores of Milvus at {title}" for title in growth)
    return _markdown(("searches/s", "H100s", "backends", *cores), rows)


def _catalog(results: Mapping[str, Any]) -> str:
    gpu, catalog = _Gpu(results), results["scale"]["catalog"]
    rows = []
    for title, count in _COUNTS.items():
        photos = count / gpu.objects
        size = photos * catalog["images"]["bytes_a_row"] + count * catalog["objects"]["bytes_a_row"]
        rows.append((title, f"{photos / 1e6:,.1f} million", _bytes(size)))
    return _markdown(("objects", "photos", "tables and indexes"), rows)


def _embedding_anew(results: Mapping[str, Any]) -> str:
    gpu = _Gpu(results)
    rows = [
        (
            title,
            _duration(count / (gpu.photos * gpu.objects)),
            _duration(count / (10 * gpu.photos * gpu.objects)),
        )
        for title, count in _COUNTS.items()
    ]
    return _markdown(("objects", "one such machine", "ten"), rows)


def _bytes(size: float) -> str:
    for unit, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size:.0f} B"


def _duration(seconds: float) -> str:
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:,.1f} {name}"
    return f"{seconds:.0f} s"


def render(report: Mapping[str, Any]) -> Table:
    """The report as a table."""
    table = Table(title=f"The catalog in {report['mysql']}")
    for title in ("table", "rows", "bytes a row, indexes included"):
        table.add_column(title, justify="right")
    for name, found in report["catalog"].items():
        table.add_row(name, f"{found['rows']:,}", f"{found['bytes_a_row']:.0f}")
    return table


def main() -> None:
    """Parses the command line, measures and reports, or writes the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there too")
    parser.add_argument("--tables", action="store_true", help="write the tables of docs/scale.md")
    arguments = parser.parse_args()
    if arguments.tables:
        made = tables(read_results())
        DOCUMENT.write_text(with_tables(DOCUMENT.read_text("utf-8"), made), "utf-8")
        return
    with tempfile.TemporaryDirectory() as scratch:
        report = rounded({**environment("aiomysql"), **measure(Path(scratch))})
    Console().print(render(report))
    if arguments.json:
        write_json(arguments.json, report)


if __name__ == "__main__":
    main()
