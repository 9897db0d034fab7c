"""`python -m benchmarks.sharing --data FOLDER`: three backends that load together, beside one.

The models are replaced by ones that answer at once, so that nothing hides what sharing costs;
Milvus and MariaDB are real. One backend and three load the same photos in turns, on the same cores:
what three reach of one is what is lost to each other's leases, rows and turns. Prints one table,
writes JSON.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest
import requests
from rich.console import Console
from rich.table import Table

from benchmarks.reporting import add_common_arguments, environment, rounded, write_json
from benchmarks.speed.bench import copies_of, photo_files
from benchmarks.speed.instant import write_instant_models
from benchmarks.speed.rounds import medians, stage_seconds
from tests.engines.backends import Backend, running_backends
from tests.engines.mariadb import MariaDBProcess
from tests.engines.production import running_engines

__all__ = ["measure", "render"]

_BACKENDS: Final = 3
_OBJECTS: Final = 2
"""That the models find in a photo: as the small pair does, to the nearest whole one."""
_TIMEOUT: Final = 600.0
_ROW_LOCKS: Final = "SHOW GLOBAL STATUS LIKE 'Innodb_row_lock_time'"


def measure(
    data: Path, scratch: Path, *, photos: int, rounds: int, log: Callable[[str], None]
) -> dict[str, Any]:
    """Photos a second of one backend and of three, and what the three wait for each other.

    Shares of time are of the three backends' time together, from a load's begin to its end.

    Raises:
        SystemExit: Milvus or MariaDB are not installed.
    """
    models = scratch / "models"
    write_instant_models(models, objects=_OBJECTS)
    folder = copies_of(photo_files(data / "photos" / "images"), scratch / "photos", photos)
    found = []
    try:
        with ExitStack() as stack:
            engines = stack.enter_context(
                running_engines(scratch / "engines", milvus_session_seconds=60)
            )
            mysql = engines.processes["mysql"]
            assert isinstance(mysql, MariaDBProcess)

            def backends(name: str, count: int) -> list[Backend]:
                settings = {**engines.settings(), "model_repository": str(models)}
                del settings["triton_url"]
                return stack.enter_context(running_backends(scratch / name, settings, count=count))

            one, three = backends("one", 1), backends("three", _BACKENDS)
            for number in range(rounds + 1):  # the first, so that nobody is cold
                log(f"round {number} of {rounds}: {photos} photos")
                alone = _load(one, folder, f"round_{number}")
                before, waited = _stages(three), _row_lock_seconds(mysql)
                together = _load(three, folder, f"round_{number}")
                after, waits = _stages(three), _row_lock_seconds(mysql) - waited
                time_of_all = _BACKENDS * together
                found.append(
                    {
                        "one_photos_per_second": photos / alone,
                        "three_photos_per_second": photos / together,
                        "three_over_one": alone / together,
                        "row_locks": waits / time_of_all,
                        **{
                            name: (after[name] - before[name]) / time_of_all
                            for name in ("lease", "turn")
                        },
                    }
                )
    except pytest.skip.Exception as missing:
        raise SystemExit(str(missing)) from None
    return {"photos": photos, "backends": _BACKENDS, **medians(found[1:])}


def render(report: dict[str, Any]) -> Table:
    """The report as one table."""
    table = Table(title="Three backends that load together, models that answer at once")
    for title in ("what", "measured", "target"):
        table.add_column(title, overflow="fold")
    least, most = report["spread"]["three_over_one"]
    table.add_row(
        "three backends over one, same cores",
        f"{report['three_over_one']:.3f} ({least:.3f} to {most:.3f}):"
        f" {report['three_photos_per_second']:.0f} and {report['one_photos_per_second']:.0f}"
        " photos/s",
        ">= 0.9",
    )
    for name, title, target in (
        ("row_locks", "of their time, waiting for locks of rows", "< 2%"),
        (
            "lease",
            "of their time, leasing chunks and giving them back, processors included",
            "",
        ),
        ("turn", "of their time, somebody waiting for the turn to write (others go on)", ""),
    ):
        least, most = report["spread"][name]
        table.add_row(title, f"{report[name]:.2%} ({least:.2%} to {most:.2%})", target)
    return table


def _load(backends: Sequence[Backend], folder: Path, table: str) -> float:
    """How long a load takes, into a new collection that is dropped afterwards."""
    url = backends[0].url
    made = requests.post(f"{url}/api/v1/collections", json={"name": table}, timeout=_TIMEOUT)
    made.raise_for_status()
    start = time.perf_counter()
    done = requests.post(
        f"{url}/img/load", json={"File": str(folder), "Table": table}, timeout=_TIMEOUT
    )
    seconds = time.perf_counter() - start
    done.raise_for_status()
    dropped = requests.post(f"{url}/img/drop", params={"table_name": table}, timeout=_TIMEOUT)
    dropped.raise_for_status()
    return seconds


def _stages(backends: Sequence[Backend]) -> dict[str, float]:
    """Seconds in each stage so far, of all backends together."""
    with ThreadPoolExecutor(len(backends)) as pool:
        answers = pool.map(
            lambda each: requests.get(f"{each.url}/metrics", timeout=_TIMEOUT).text, backends
        )
    found: dict[str, float] = {}
    for exposition in answers:
        for stage, seconds in stage_seconds(exposition).items():
            found[stage] = found.get(stage, 0.0) + seconds
    return found


def _row_lock_seconds(mysql: MariaDBProcess) -> float:
    [[_, milliseconds]] = mysql.execute(_ROW_LOCKS)
    return float(milliseconds) / 1000


def main() -> None:
    """Parses the command line, measures and reports."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sharing", description=__doc__)
    add_common_arguments(parser)
    parser.add_argument("--photos", type=int, default=2000, help="photos of a load (2000)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (5)")
    arguments = parser.parse_args()
    progress = Console(stderr=True)
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(
            arguments.data,
            Path(scratch),
            photos=arguments.photos,
            rounds=arguments.rounds,
            log=lambda message: progress.print(message, style="dim"),
        )
    report = rounded({**environment("aiomysql"), **found})
    Console().print(render(report))
    if arguments.json:
        write_json(arguments.json, report)


if __name__ == "__main__":
    main()
