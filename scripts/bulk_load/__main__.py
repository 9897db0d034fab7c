"""`python -m scripts.bulk_load`: photos in, on all machines of a Ray cluster.

Exit codes: 0 done, 1 photos or the whole have failed, 2 the command or a setting is wrong.
"""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from backend.app import Services, open_services
from backend.console import say, show_load
from backend.cores import count_cores
from backend.errors import ConfigurationError, ServiceError
from backend.flags import add_settings, take_settings
from backend.logs import configure_logging
from backend.settings import Settings
from backend.storage.vectors import MilvusServer

# Before Ray is imported: it tells nobody outside what it is used for.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
import ray.data

from scripts.bulk_load.loading import BulkLoad
from scripts.bulk_load.staging import Staging

_COMMIT_PHOTOS: Final = 4096
_START_SECONDS: Final = 120
"""For a local Ray to start on a busy machine."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    options = vars(_parser().parse_args(arguments))
    try:
        settings = take_settings(options)
        configure_logging(settings.log_level)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with _ray(options["address"]):
            return asyncio.run(_load(settings, options))
    except ConfigurationError as error:
        say(f"error: {error}")
        return 2
    except ServiceError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("stopped; the same command goes on from here")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bulk_load",
        description="Load folders of very many photos, on all machines of a Ray cluster. What comes"
        " of it is what `python -m backend load` makes of them, and it may be started again at any"
        " time: it goes on where it was.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="folder that all machines see under the same path, or address such as s3://bucket/folder",
    )
    parser.add_argument("--table", help="collection to load into (default: DEFAULT_TABLE)")
    parser.add_argument(
        "--address",
        help="of the Ray cluster: auto, HOST:PORT or ray://HOST:PORT (default: a Ray on this"
        " machine alone, for this run)",
    )
    parser.add_argument(
        "--import-files",
        metavar="ADDRESS",
        help="where Milvus reads files that it imports: s3://BUCKET/PREFIX in its bucket, or a"
        " folder that it sees under the same path; without it vectors are sent to Milvus as in"
        " every load",
    )
    parser.add_argument(
        "--commit-photos",
        type=_positive,
        default=_COMMIT_PHOTOS,
        metavar="COUNT",
        help="photos that are written, and imported, together: meanwhile nobody else writes, and"
        " what is not written when it is killed is prepared again (default: %(default)s)",
    )
    add_settings(parser)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no count: 1 or more")
    return int(text)


@contextmanager
def _ray(address: str | None) -> Iterator[None]:
    """Ray, connected to, or started on this machine for as long as this process runs."""
    try:
        if address is None:
            ray.init(
                num_cpus=count_cores(),
                include_dashboard=False,
                log_to_driver=False,
                logging_level="error",
                _node_ip_address="127.0.0.1",
                namespace="bulk-load",
            )
        else:
            ray.init(address=address, log_to_driver=False, logging_level="error")
    except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
        where = "on this machine" if address is None else f"at --address {address}"
        raise ConfigurationError(f"there is no Ray {where}: {error}") from None
    # In a terminal this command has a bar of its own; the cluster's dashboard shows Ray's.
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield
    finally:
        ray.shutdown()


async def _load(settings: Settings, options: dict[str, Any]) -> int:
    async with open_services(settings, owns=False) as services:
        _choose_way(services, options["import_files"])
        bulk = BulkLoad(services, settings, commit_photos=options["commit_photos"])
        load = await bulk.start(options["sources"], options["table"] or settings.default_table)
        try:
            await show_load(load)
        finally:
            if load.task is not None and not load.task.done():
                load.task.cancel()
                await asyncio.gather(load.task, return_exceptions=True)
        return 1 if load.counts.failed else 0


def _choose_way(services: Services, import_files: str | None) -> None:
    if import_files is None:
        return
    if not isinstance(services.vectors, MilvusServer):
        raise ConfigurationError(
            "--import-files is for a Milvus server (MILVUS_HOST): Milvus Lite imports no files,"
            " leave it out"
        )
    services.vectors.import_through(Staging(import_files))


if __name__ == "__main__":
    sys.exit(main())
