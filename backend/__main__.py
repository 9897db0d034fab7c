"""Command line: `python -m backend serve|load|search|check|keys|export|import`.

Exit codes: 0 done, 1 it ran and something is wrong, 2 the command or a setting is wrong.
"""

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final

import structlog
from aiohttp import web
from rich_pixels import Pixels

from backend.app import Services, create_app, open_keys, open_services
from backend.archive import Archive, Manifest, check_installed
from backend.checking import CollectionReport, check_collections
from backend.console import (
    draw_object,
    print_hits,
    print_keys,
    print_reports,
    say,
    show_backup,
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
    Unavailable,
    UnsupportedFormat,
)
from backend.files import EVERYWHERE, note_address, owners_address, sync_folder
from backend.flags import add_settings, take_settings
from backend.http import limits
from backend.http.connections import CONNECTIONS, Site
from backend.http.draining import DRAINING, drain_at_sigterm
from backend.http.services import RUNNING
from backend.indexing import Indexer
from backend.keys import MAX_KEY_NAME, SCOPES, expiry, make_key, revoke_key
from backend.logs import configure_logging
from backend.names import check_collection_name
from backend.remote import fetch_export, send_import
from backend.searching import PhotoHit
from backend.settings import Settings
from backend.stopping import until_stopped
from backend.threads import in_steps

_log = structlog.get_logger("backend")

_SHUTDOWN_SECONDS: Final = 2.0
"""Requests in flight get this long; with the loads' last commit a stop stays under 5 s."""
_LINGERING_SECONDS: Final = 30.0
"""For so long the rest of a body that is not wanted is passed over, so that its sender, who may see
no more than a broken connection otherwise, gets to read the answer."""
_EXAMPLE_PHOTO: Final = "/path/to/a/photo.jpg"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    options = vars(_parser().parse_args(arguments))
    run: Callable[[Settings, dict[str, Any]], Awaitable[int]] = options.pop("run")
    stopped_code: int = options.pop("stopped_code")
    try:
        settings = take_settings(options)
        configure_logging(settings.log_level)
        return asyncio.run(until_stopped(run(settings, options), stopped_code))
    except ConfigurationError as error:
        say(f"error: {error}")
        return 2
    except ServiceError as error:
        say(f"error: {error}")
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
    load.add_argument(
        "folder",
        help="folder on this machine, or address such as s3://bucket/folder, read recursively",
    )
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
    export = _command(
        commands, "export", _export, "write a collection into one file, while photos come and go"
    )
    export.add_argument("file", help="file to write: a tar of Parquet tables")
    _add_collection(export, "collection to export (default: DEFAULT_TABLE)")
    export.add_argument("--photos", action="store_true", help="take the photos' files along")
    _add_url(export)
    imported = _command(commands, "import", _import, "make a collection of an export's file")
    imported.add_argument("file", help="file that export has written")
    _add_collection(imported, "collection to make (default: named as the one that was exported)")
    imported.add_argument(
        "--replace",
        action="store_true",
        help="replace the collection of that name, if there is one",
    )
    _add_url(imported)
    _add_keys(commands)
    return parser


def _add_collection(command: argparse.ArgumentParser, description: str) -> None:
    command.add_argument("--collection", "--table", metavar="NAME", help=description)


def _add_url(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--url",
        help="running service that is to do it (default: the one that has DATA_DIR open, if any);"
        " a key that it wants is taken from the environment, API_KEY",
    )


def _add_keys(commands: Any) -> None:
    keys = commands.add_parser(
        "keys",
        help="make, list and revoke API keys, also while the service runs",
        description="Make, list and revoke API keys. A service that runs notices within seconds.",
        allow_abbrev=False,
    )
    commands = keys.add_subparsers(title="commands", metavar="COMMAND", required=True)
    create = _command(
        commands, "create", _create_key, "make a key and print it: it is shown this once"
    )
    create.add_argument(
        "--scope",
        action="append",
        choices=SCOPES,
        required=True,
        help="what it is for: read (search, see), write (upload, load, delete photos), admin (all,"
        " export, import and drop collections); may be repeated",
    )
    create.add_argument(
        "--collection",
        action="append",
        metavar="NAME",
        help="the only collection that it is for; may be repeated (default: all)",
    )
    create.add_argument("--name", type=_key_name, default="", help="what you call it")
    create.add_argument(
        "--expires", type=_expiry, metavar="TIME", help="how long it is good: 12h, 30d, 8w"
    )
    listed = _command(commands, "list", _list_keys, "list all keys, without their secrets")
    listed.add_argument("--json", action="store_true", help="print JSON to standard output")
    revoke = _command(commands, "revoke", _revoke_key, "have a key be good no more")
    revoke.add_argument("id", help="the key's id, as the list has it")


def _key_name(text: str) -> str:
    if len(text) > MAX_KEY_NAME or not text.isprintable():
        raise argparse.ArgumentTypeError(
            f"a name has at most {MAX_KEY_NAME} characters, all printable"
        )
    return text


def _expiry(text: str) -> str:
    try:
        return expiry(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


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
    add_settings(command)
    return command


async def _serve(settings: Settings, options: dict[str, Any]) -> int:
    app = create_app(settings)
    runner = web.AppRunner(
        app,
        access_log=None,
        handle_signals=False,
        shutdown_timeout=_SHUTDOWN_SECONDS,
        keepalive_timeout=settings.idle_timeout,
        lingering_time=_LINGERING_SECONDS,
        handler_cancellation=True,  # whose client has gone, does no more work
        max_line_size=limits.MAX_LINE_BYTES,
        max_field_size=limits.MAX_HEADER_BYTES,
        max_headers=limits.MAX_HEADERS,
    )
    listening = False
    try:
        await runner.setup()
        site = Site(runner, settings.host, settings.port, app[CONNECTIONS])
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
        _tell_access(settings)
        services = await app[RUNNING].wait_until_ready()
        with contextlib.suppress(Unavailable):  # a photo that comes will say so
            await asyncio.to_thread(services.analyzer.warm_up)
        if _is_embedded(settings):
            # So that commands that cannot run beside this find it.
            note_address(_lock(settings), _url_from_here(settings.host, runner.addresses[0][1]))
        _log.info("server.ready", url=url)
        with drain_at_sigterm(app[DRAINING], settings.drain_seconds):
            if options["load"]:
                await _load_while_serving(services.indexer, settings, options["load"], url)
            await asyncio.Event().wait()
    finally:
        await runner.cleanup()
        if listening:
            _log.info("server.stopped")
    return 0


def _tell_access(settings: Settings) -> None:
    """Says who may use the service, so that nobody has to find out."""
    where = settings.published_host or settings.host
    if settings.demands_keys:
        _log.info("access.keys_demanded", hint="python -m backend keys create --scope read")
    elif settings.is_local:
        _log.info("access.open", reason=f"{where} is reached from this machine alone")
    else:
        _log.warning(
            "access.open",
            reason="REQUIRE_API_KEY=false",
            risk=f"whoever reaches {where} may read, add and delete everything",
        )


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _url_from_here(host: str, port: int) -> str:
    return _url({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port)


def _is_embedded(settings: Settings) -> bool:
    """Whether one process alone may have DATA_DIR open."""
    return settings.milvus_host is None or settings.mysql_host is None


def _lock(settings: Settings) -> Path:
    return settings.data_dir / "lock"


async def _load_while_serving(indexer: Indexer, settings: Settings, folder: str, url: str) -> None:
    try:
        await show_load(await indexer.start_load(folder, settings.default_table))
    except ServiceError as error:
        # The service is of use without it: what was wrong is said, and it goes on.
        say(f"error: {error}")
    key = ' -H "X-API-Key: $KEY"' if settings.demands_keys else ""
    stderr.print(
        f"\nReady at {url}. Open it in a browser, or search with a photo of yours:\n"
        f"  curl{key} -F image=@{_EXAMPLE_PHOTO} {url}/api/v1/search\n"
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
        pictures = None
        if not options["json"] and shows_pictures(options["thumbnails"]):
            pictures = [
                await asyncio.to_thread(_thumbnail, services, hit, settings.max_file_bytes)
                for hit in hits
            ]
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
    else:
        print_hits(hits, table, photos, pictures)
    return 0


def _thumbnail(services: Services, hit: PhotoHit, max_bytes: int) -> Pixels | None:
    """The object; None where its photo is gone, or cannot be read any more."""
    try:
        data = services.places.read_file(hit.object.path, max_bytes)
        return draw_object(services.decoders.decode(data).pixels, hit.object.box)
    except (OSError, ServiceError):
        return None


def _read_photo(path: str, max_bytes: int) -> bytes:
    try:
        return EVERYWHERE.read_file(path, max_bytes)
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}") from None
    except ServiceError as error:
        raise type(error)(f"{path}: {error}") from None


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
        services.catalog,
        services.vectors,
        services.analyzer.embedder,
        services.writer,
        services.places,
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
        say(f"{collection.name}: {count} photos have got their perceptual hashes")


async def _create_key(settings: Settings, options: dict[str, Any]) -> int:
    async with open_keys(settings) as table:
        key, text = await make_key(
            table,
            options["scope"],
            collections=options["collection"],
            name=options["name"],
            expires_at=options["expires"],
        )
    print(text)
    stderr.print(
        f"key {key.id} is made. Keep what is printed above: it is shown this once.",
        markup=False,
        soft_wrap=True,
    )
    return 0


async def _list_keys(settings: Settings, options: dict[str, Any]) -> int:
    async with open_keys(settings) as table:
        keys = await table.all()
    if options["json"]:
        shown = [
            {
                "id": key.id,
                "name": key.name,
                "scopes": key.scopes,
                "collections": key.collections,
                "created_at": key.created_at,
                "expires_at": key.expires_at,
                "revoked_at": key.revoked_at,
            }
            for key in keys
        ]
        print(json.dumps({"keys": shown}, indent=2))
    else:
        print_keys(keys)
    return 0


async def _revoke_key(settings: Settings, options: dict[str, Any]) -> int:
    async with open_keys(settings) as table:
        if await revoke_key(table, options["id"]) is None:
            raise InvalidInput(
                f"there is no key {options['id']!r}: see python -m backend keys list"
            )
    stderr.print(f"key {options['id']} is revoked", markup=False, soft_wrap=True)
    return 0


async def _export(settings: Settings, options: dict[str, Any]) -> int:
    target = Path(options["file"]).absolute()
    name = check_collection_name(options["collection"] or settings.default_table)
    part: Path | None = None
    try:
        descriptor, name_of_part = tempfile.mkstemp(".part", f"{target.name}.", target.parent)
        part = Path(name_of_part)
        with os.fdopen(descriptor, "w+b") as file:
            if url := _service(settings, options):
                stderr.print(f"asking the service at {url}", markup=False, soft_wrap=True)
                await fetch_export(url, name, file, photos=options["photos"])
                without_file = 0
            else:
                without_file = await _export_here(settings, options, name, file, target.parent)
            file.flush()
            manifest = await _manifest(settings, file)
        part.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        raise InvalidInput(f"{target}: {error.strerror}") from None
    finally:
        if part is not None:
            part.unlink(missing_ok=True)
    photos = "" if manifest.photos is None else f", {manifest.photos.files} photos' files"
    stderr.print(
        f"{target}: {name} with {manifest.images.rows} photos, {manifest.objects.rows} objects"
        f"{photos}, {target.stat().st_size / 1e6:.1f} MB",
        markup=False,
        soft_wrap=True,
    )
    if without_file:
        stderr.print(f"{without_file} photos are gone or have changed: their files are not in it")
    return 0


def _service(settings: Settings, options: dict[str, Any]) -> str | None:
    """The URL of the service that is to be asked; None where this process does it itself."""
    if options["url"]:
        return str(options["url"])
    return owners_address(_lock(settings)) if _is_embedded(settings) else None


async def _export_here(
    settings: Settings, options: dict[str, Any], name: str, file: BinaryIO, scratch: Path
) -> int:
    check_installed()
    async with open_services(settings, owns=False) as services:
        done = await show_backup(
            "Exporting objects",
            lambda tell: services.backups.export(
                name, file, scratch=scratch, photos=options["photos"], on_progress=tell
            ),
        )
    return done.without_file


async def _manifest(settings: Settings, file: BinaryIO) -> Manifest:
    archive = Archive(file, max_photo_bytes=settings.max_file_bytes)
    async for _ in in_steps(archive.open()):
        pass
    return archive.manifest


async def _import(settings: Settings, options: dict[str, Any]) -> int:
    name: str | None = options["collection"]
    replace: bool = options["replace"]
    try:
        file = await asyncio.to_thread(EVERYWHERE.open_file, options["file"])
    except OSError as error:
        raise InvalidInput(f"{options['file']}: {error.strerror}") from None
    with file:
        if url := _service(settings, options):
            # What is damaged need not be sent; and the file says how the collection is called.
            named = (await _manifest(settings, file)).collection.name
            stderr.print(f"asking the service at {url}", markup=False, soft_wrap=True)
            done = await send_import(
                url, file, check_collection_name(name or named), replace=replace
            )
        else:
            check_installed()
            async with open_services(settings, owns=False) as services:
                imported = await show_backup(
                    "Importing objects",
                    lambda tell: services.backups.restore(
                        file, name=name, replace=replace, on_progress=tell
                    ),
                )
            done = vars(imported)
    stderr.print(
        f"{done['collection']}: {done['images']} photos with {done['objects']} objects imported,"
        f" {done['files']} photos' files, {done['failed']} photos that had failed",
        markup=False,
        soft_wrap=True,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
