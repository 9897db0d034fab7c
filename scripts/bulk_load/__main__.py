"""`python -m scripts.bulk_load`: photos in, on all machines of a Ray cluster.

Exit codes: 0 done, 1 photos or the whole have failed, 2 the command or a setting is wrong.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from backend.app import open_services
from backend.console import say, show_load
from backend.errors import ConfigurationError, ServiceError
from backend.flags import add_settings, take_settings
from backend.logs import configure_logging
from backend.settings import Settings
from backend.stopping import until_stopped
from backend.storage.vectors import MilvusServer

if TYPE_CHECKING:
    from scripts.bulk_load.staging import Staging

_COMMIT_PHOTOS: Final = 4096
_STOPPED: Final = 1
_FORCED_STOP_SECONDS: Final = 20.0
"""For the photos that are being prepared, and for Ray to end."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    options = vars(_parser().parse_args(arguments))
    if options["address"] is None:
        # Ray reads it when it is imported. A Ray of this machine alone listens on loopback then,
        # and not on every address, as one on Linux does.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        settings = take_settings(options)
        configure_logging(settings.log_level)
        return asyncio.run(
            until_stopped(_load(settings, options), _STOPPED, forced_after=_FORCED_STOP_SECONDS)
        )
    except ConfigurationError as error:
        say(f"error: {error}")
        return 2
    except ServiceError as error:
        say(f"error: {error}")
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


async def _load(settings: Settings, options: dict[str, Any]) -> int:
    try:
        return await _do_load(settings, options)
    except asyncio.CancelledError:
        say("stopped; the same command goes on from here")
        raise


async def _do_load(settings: Settings, options: dict[str, Any]) -> int:
    try:
        from scripts.bulk_load.loading import BulkLoad
    except ModuleNotFoundError as missing:
        raise ConfigurationError(
            f"{missing.name} is not installed: pip install '.[bulk]'"
        ) from None
    staging = _staging(settings, options["import_files"])
    async with open_services(settings, owns=False) as services:
        if staging is not None and isinstance(services.vectors, MilvusServer):
            services.vectors.import_through(staging)
        bulk = BulkLoad(
            services, settings, address=options["address"], commit_photos=options["commit_photos"]
        )
        load = await bulk.start(options["sources"], options["table"] or settings.default_table)
        try:
            await show_load(load)
        finally:
            if load.task is not None and not load.task.done():
                load.task.cancel()
                await asyncio.gather(load.task, return_exceptions=True)
        return 1 if load.counts.failed else 0


def _staging(settings: Settings, address: str | None) -> "Staging | None":
    if address is None:
        return None
    if settings.milvus_host is None:
        raise ConfigurationError(
            "--import-files is for a Milvus server (MILVUS_HOST): Milvus Lite imports no files,"
            " leave it out"
        )
    from scripts.bulk_load.staging import Staging

    return Staging(address)


if __name__ == "__main__":
    sys.exit(main())
