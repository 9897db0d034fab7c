"""Command line: `python -m backend serve|load|search|check`.

Exit codes: 0 done, 1 it ran and something is wrong, 2 the command or a setting is wrong.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final

import structlog
from aiohttp import web
from rich_pixels import Pixels

from backend.app import Services, create_app, open_services
from backend.checking import CollectionReport, check_collections
from backend.console import (
    draw_object,
    print_hits,
    print_reports,
    show_embedding,
    show_load,
    shows_pictures,
    stderr,
)
from backend.errors import (
    ConfigurationError,
    InvalidImage,
    InvalidInput,
    ServiceError,
    TooLarge,
    UnsupportedFormat,
)
from backend.files import read_photo_file
from backend.http.services import RUNNING
from backend.indexing import Indexer
from backend.logs import configure_logging
from backend.searching import PhotoHit
from backend.settings import Settings, default_text
from backend.vision.decode import decode

_log = structlog.get_logger("backend")

_SHUTDOWN_SECONDS: Final = 2.0
"""Requests in flight get this long; with the loads' last commit a stop stays under 5 s."""
_LINGERING_SECONDS: Final = 30.0
"""For so long the rest of a body that is not wanted is passed over, so that its sender, who may see
no more than a broken connection otherwise, gets to read the answer."""
_MAX_LINE_BYTES: Final = 2**16
"""Of a request's first line: twenty labels of 200 letters, each up to twelve bytes in a URL."""
_FORCED_STOP_SECONDS: Final = 4.0
_EXAMPLE_PHOTO: Final = "/path/to/a/photo.jpg"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    options = vars(_parser().parse_args(arguments))
    run: Callable[[Settings, dict[str, Any]], Awaitable[int]] = options.pop("run")
    stopped_code: int = options.pop("stopped_code")
    values = {name: options.pop(name) for name in Settings.model_fields}
    # An empty flag counts as unset, as an empty variable does.
    flags = {name: value for name, value in values.items() if value}
    try:
        settings = Settings.load(**flags)
        configure_logging(settings.log_level)
        return asyncio.run(_until_stopped(run(settings, options), stopped_code))
    except ConfigurationError as error:
        stderr.print(f"error: {error}", markup=False, soft_wrap=True)
        return 2
    except ServiceError as error:
        stderr.print(f"error: {error}", markup=False, soft_wrap=True)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m backend",
        description="Image similarity search with object detection.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    serve = _command(commands, "serve", _serve, "run the HTTP service")
    serve.set_defaults(stopped_code=0)  # it ends in no other way
    serve.add_argument("--load", metavar="FOLDER", help="load this folder once it runs")
    load = _command(commands, "load", _load, "load a folder of photos while no service runs")
    load.add_argument("folder", help="folder on this machine, read recursively")
    load.add_argument("--table", help="collection to load into (default: DEFAULT_TABLE)")
    load.add_argument(
        "--prune", action="store_true", help="also remove photos that are gone from the folder"
    )
    search = _command(
        commands, "search", _search, "find the photos with objects most like those of a photo"
    )
    search.add_argument("photo", help="file of the query photo")
    search.add_argument("--table", help="collection to search in (default: DEFAULT_TABLE)")
    search.add_argument("--json", action="store_true", help="print JSON to standard output")
    search.add_argument(
        "--thumbnails",
        choices=("auto", "always", "never"),
        default="auto",
        help="whether each hit's object is shown (default: auto, in a terminal with colours)",
    )
    check = _command(
        commands,
        "check",
        _check,
        "undo what a crash has left, and compare catalog, vectors and disk",
    )
    check.add_argument("--json", action="store_true", help="print JSON to standard output")
    check.add_argument(
        "--repair",
        action="store_true",
        help="mend what is found: remove stray vectors and photos that are gone, index again what"
        " lacks vectors or has failed, embed anew what another embedder has filled or the vector"
        " engine has lost, hash photos that were indexed before there were perceptual hashes",
    )
    return parser


def _command(
    commands: Any,
    name: str,
    run: Callable[[Settings, dict[str, Any]], Awaitable[int]],
    description: str,
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=description, description=description.capitalize() + ".", allow_abbrev=False
    )
    command.set_defaults(run=run, stopped_code=1)
    group = command.add_argument_group(
        "settings", "Each comes from its flag, else from the environment variable in brackets."
    )
    for field, info in Settings.model_fields.items():
        shown = default_text(field) or "unset"
        group.add_argument(
            f"--{field.replace('_', '-')}",
            metavar="VALUE",
            # A percent sign would be one of argparse's own placeholders.
            help=f"{info.description} [{field.upper()}; default: {shown}]".replace("%", "%%"),
        )
    return command


async def _until_stopped(command: Awaitable[int], stopped_code: int) -> int:
    """Runs a command; SIGINT and SIGTERM cancel it, so that it ends by its own clean-up.

    Where that takes longer than it may (an engine hangs, a thread decodes a huge photo), the
    process ends all the same: what is in flight is undone at the next start, as after a crash.
    """
    task = asyncio.ensure_future(command)
    loop = asyncio.get_running_loop()
    stopped = False

    def stop(number: signal.Signals) -> None:
        nonlocal stopped
        if not stopped:  # a second Ctrl-C must not break into the clean-up
            stopped = True
            _log.info("stopping", signal=number.name)
            force = threading.Timer(_FORCED_STOP_SECONDS, _force_stop, [stopped_code])
            force.daemon = True
            force.start()
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        return await task
    except asyncio.CancelledError:
        if not stopped:
            raise
        return stopped_code
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _force_stop(code: int) -> None:
    """Ends the whole process; also after a clean stop, where a thread keeps it from ending."""
    _log.warning("stop.forced", after_seconds=_FORCED_STOP_SECONDS)
    os._exit(code)


async def _serve(settings: Settings, options: dict[str, Any]) -> int:
    app = create_app(settings)
    runner = web.AppRunner(
        app,
        access_log=None,
        handle_signals=False,
        shutdown_timeout=_SHUTDOWN_SECONDS,
        max_line_size=_MAX_LINE_BYTES,
        lingering_time=_LINGERING_SECONDS,
        handler_cancellation=True,  # whose client has gone, does no more work
    )
    listening = False
    try:
        await runner.setup()
        site = web.TCPSite(runner, settings.host, settings.port)
        try:
            await site.start()
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen on {settings.host}:{settings.port}: {error.strerror};"
                " choose another HOST or PORT"
            ) from None
        url = _url(settings.host, runner.addresses[0][1])
        listening = True
        _log.info("server.listening", url=url)
        services = await app[RUNNING].wait_until_ready()
        _log.info("server.ready", url=url)
        if options["load"]:
            await _load_while_serving(services.indexer, settings, options["load"], url)
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
        if listening:
            _log.info("server.stopped")
    return 0


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _load_while_serving(indexer: Indexer, settings: Settings, folder: str, url: str) -> None:
    try:
        await show_load(await indexer.start_load(folder, settings.default_table))
    except ServiceError as error:
        # The service is of use without it: what was wrong is said, and it goes on.
        stderr.print(f"error: {error}", markup=False, soft_wrap=True)
    stderr.print(
        f"\nReady at {url}. Open it in a browser, or search with a photo of yours:\n"
        f"  curl -F image=@{_EXAMPLE_PHOTO} {url}/api/v1/search\n"
        f"All endpoints, to try in a browser: {url}/docs\n",
        markup=False,
        soft_wrap=True,
    )


async def _load(settings: Settings, options: dict[str, Any]) -> int:
    async with open_services(settings, owns=False) as services:
        table = options["table"] or settings.default_table
        load = await services.indexer.start_load(options["folder"], table, prune=options["prune"])
        try:
            await show_load(load)
        except asyncio.CancelledError:
            await services.indexer.cancel_load(load)
            stderr.print("stopped; the same command goes on from here")
            return 1
        return 1 if load.counts.failed else 0


async def _search(settings: Settings, options: dict[str, Any]) -> int:
    photo = _read_photo(options["photo"], settings.max_file_bytes)
    table = options["table"] or settings.default_table
    async with open_services(settings, owns=False) as services:
        try:
            hits = await services.searcher.search(photo, table, settings.top_k)
        except (InvalidImage, TooLarge, UnsupportedFormat) as error:
            raise type(error)(f"{options['photo']}: {error}") from None
        photos = await services.searcher.count(table)
    if options["json"]:
        found = [
            {
                "path": hit.object.path,
                "distance": hit.distance,
                "label": hit.object.label,
                "score": hit.object.score,
                "box": hit.object.box,
            }
            for hit in hits
        ]
        print(json.dumps({"collection": table, "photos": photos, "hits": found}, indent=2))
    elif shows_pictures(options["thumbnails"]):
        pictures = [await asyncio.to_thread(_thumbnail, hit, settings) for hit in hits]
        print_hits(hits, table, photos, pictures)
    else:
        print_hits(hits, table, photos)
    return 0


def _thumbnail(hit: PhotoHit, settings: Settings) -> Pixels | None:
    """The object; None where its photo is gone, or cannot be read any more."""
    try:
        data = _read_photo(hit.object.path, settings.max_file_bytes)
        return draw_object(decode(data, max_pixels=settings.max_pixels), hit.object.box)
    except ServiceError:
        return None


def _read_photo(path: str, max_bytes: int) -> bytes:
    try:
        return read_photo_file(path, max_bytes)
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}") from None


async def _check(settings: Settings, options: dict[str, Any]) -> int:
    async with open_services(settings, owns=False, repairs=True) as services:
        reports = await _reports(services)
        if options["repair"]:
            print_reports(reports)
            for report in reports:
                await _repair(services, report)
            reports = await _reports(services)
    if options["json"]:
        print(json.dumps({"collections": [report.as_json() for report in reports]}, indent=2))
    else:
        print_reports(reports)
    return 0 if all(report.is_consistent for report in reports) else 1


async def _reports(services: Services) -> list[CollectionReport]:
    return await check_collections(
        services.catalog, services.vectors, services.analyzer.embedder, services.writer
    )


async def _repair(services: Services, report: CollectionReport) -> None:
    repairer = services.repairer
    collection = report.collection
    if not report.lost:
        await repairer.remove_strays(report)
    if report.needs_embedding:
        await show_embedding(collection, partial(repairer.embed_anew, collection))
    elif load := await repairer.index_again(report):
        await show_load(load)
    if count := await repairer.hash_photos(collection):
        stderr.print(f"{collection.name}: {count} photos have got their perceptual hashes")


if __name__ == "__main__":
    sys.exit(main())
