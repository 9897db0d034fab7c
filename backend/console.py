"""What a person sees in the terminal: progress bars and tables."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, Literal, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich_pixels import Pixels

from backend.checking import CollectionReport
from backend.keys import ApiKey
from backend.loads import Failure, Load
from backend.plain_text import printable
from backend.repairing import Reembedding
from backend.searching import PhotoHit
from backend.storage.catalog import Collection

__all__ = [
    "draw_object",
    "print_hits",
    "print_keys",
    "print_reports",
    "say",
    "show_backup",
    "show_embedding",
    "show_load",
    "shows_pictures",
    "stderr",
]

_T = TypeVar("_T")

_REFRESH_SECONDS = 0.2
_PICTURE_COLUMNS: Final = 20
_PICTURE_LINES: Final = 8
"""Of two pixels each: as few as an object can be told by."""

stderr = Console(stderr=True, highlight=False)
stdout = Console(highlight=False)


def say(text: str) -> None:
    """Prints a line on standard error, whatever the names in it hold."""
    # Not wrapped: a path in two pieces can neither be read nor copied.
    stderr.print(printable(text), markup=False, soft_wrap=True)


def _shown(text: str) -> str:
    """A text from outside, for a cell of a table."""
    return escape(printable(text))


async def show_load(load: Load) -> None:
    """Draws a load's progress until it ends, then what came of it.

    Raises:
        ServiceError: as `Load.wait`.
    """
    columns = (
        TextColumn("Loading photos"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(show_speed=False),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    loop = asyncio.get_running_loop()
    start = loop.time()
    # Where nobody watches a terminal, a bar would only fill a log file.
    with Progress(*columns, console=stderr, disable=not stderr.is_terminal) as progress:
        bar = progress.add_task("load", total=load.counts.total, rate="")
        waiting = asyncio.ensure_future(load.wait())
        try:
            while not waiting.done():
                await asyncio.wait([waiting], timeout=_REFRESH_SECONDS)
                rate = load.counts.processed / max(loop.time() - start, 1e-9)
                shown = (
                    f"waiting for {load.waiting_for}"
                    if load.waiting_for
                    else f"{rate:.1f} photos/s"
                )
                progress.update(bar, completed=load.counts.processed, rate=shown)
        finally:
            waiting.cancel()
    await waiting
    _report(load)


def _report(load: Load) -> None:
    counts = load.counts
    parts = [
        f"{counts.indexed} indexed with {counts.objects} objects",
        f"{counts.unchanged} unchanged",
        f"{counts.failed} failed",
    ]
    if load.prune:
        parts.append(f"{counts.removed} removed")
    parts.append(f"{counts.passed_over} other entries passed over")
    summary = f"{counts.total} photos in {load.root}: {', '.join(parts)}"
    say(summary)
    if load.failures:
        _print_failures(f"{counts.failed} photos failed:", load.failures)
        if counts.failed > len(load.failures):
            stderr.print("  …; python -m backend check lists them all")


async def show_embedding(
    collection: Collection, embed: Callable[[Callable[[int, int], None]], Awaitable[Reembedding]]
) -> None:
    """Draws how far embedding a collection anew has come, then what came of it."""
    columns = (
        TextColumn("Embedding photos"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(show_speed=True),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr, disable=not stderr.is_terminal) as progress:
        bar = progress.add_task("embed", total=None)
        done = await embed(lambda ready, total: progress.update(bar, completed=ready, total=total))
    new = done.collection
    say(
        f"{collection.name}: {done.objects} objects of {done.photos} photos embedded anew with"
        f" {new.embedder} ({new.dim}-d), {len(done.failures)} photos failed"
    )
    if done.failures:
        _print_failures(f"{len(done.failures)} photos failed:", done.failures)


async def show_backup(
    title: str, work: Callable[[Callable[[int, int], None]], Awaitable[_T]]
) -> _T:
    """Draws how far an export or an import has come; returns what came of it."""
    columns = (
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(show_speed=True),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr, disable=not stderr.is_terminal) as progress:
        bar = progress.add_task("backup", total=None)
        return await work(lambda done, total: progress.update(bar, completed=done, total=total))


def shows_pictures(thumbnails: Literal["auto", "always", "never"]) -> bool:
    """Whether standard output is to show pictures; `auto`: where it is a terminal with colours."""
    if thumbnails == "auto":
        has_colors = stdout.color_system in ("256", "truecolor") and not stdout.no_color
        return stdout.is_terminal and has_colors
    return thumbnails == "always"


def draw_object(photo: NDArray[np.uint8], box: tuple[float, float, float, float]) -> Pixels | None:
    """An object of a photo, for a terminal: two pixels a character, by coloured half blocks.

    None where nothing of the box lies in the photo.

    Args:
        photo: uint8 [H, W, 3], RGB, upright.
        box: xyxy, in the photo's pixels.
    """
    x1, y1, x2, y2 = box
    crop = photo[max(0, math.floor(y1)) : math.ceil(y2), max(0, math.floor(x1)) : math.ceil(x2)]
    if crop.size == 0:
        return None
    height, width = crop.shape[:2]
    scale = min(_PICTURE_COLUMNS / width, 2 * _PICTURE_LINES / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = Image.fromarray(cv2.resize(crop, size, interpolation=cv2.INTER_AREA))
    picture: Pixels = Pixels.from_image(small)
    return picture


def print_hits(
    hits: Sequence[PhotoHit],
    collection: str,
    photos: int,
    pictures: Sequence[Pixels | None] | None = None,
) -> None:
    """Prints what a search has found, nearest first, to standard output.

    Args:
        hits: what has been found.
        collection: where it was searched for.
        photos: how many there are in it.
        pictures: of each hit's object, None where there is none; without them, a table.
    """
    if not hits:
        hint = "nothing in it is like that" if photos else "load a folder of photos first"
        say(f"found nothing; collection {collection} holds {photos} photos: {hint}")
        return
    if pictures is not None:
        _print_pictures(hits, pictures)
        return
    table = Table(show_edge=False)
    for name in ("distance", "object", "score", "box (x1, y1, x2, y2)"):
        table.add_column(name, justify="left" if name == "object" else "right")
    table.add_column("photo", overflow="fold")
    for hit in hits:
        found = hit.object
        table.add_row(
            f"{hit.distance:.4f}",
            _shown(found.label),
            f"{found.score:.2f}",
            ", ".join(f"{edge:.0f}" for edge in found.box),
            _shown(found.path),
        )
    stdout.print(table)


def _print_pictures(hits: Sequence[PhotoHit], pictures: Sequence[Pixels | None]) -> None:
    # In one column, so that a path has room beside a picture on a terminal of 80 columns.
    table = Table.grid(padding=(0, 2, 1, 0), collapse_padding=False)
    table.add_column(width=_PICTURE_COLUMNS)
    table.add_column(overflow="fold")
    for hit, picture in zip(hits, pictures, strict=True):
        found = hit.object
        box = ", ".join(f"{edge:.0f}" for edge in found.box)
        lines = (
            f"distance {hit.distance:.4f}",
            f"{_shown(found.label)} {found.score:.2f} at {box}",
            _shown(found.path),
        )
        table.add_row(picture or "", "\n".join(lines))
    console = stdout
    if not shows_pictures("auto"):  # but it is to show them
        console = Console(highlight=False, force_terminal=True, color_system="truecolor")
    console.print(table)


def print_keys(keys: Sequence[ApiKey]) -> None:
    """Prints API keys, to standard output; there is no secret to be seen."""
    table = Table(show_edge=False)
    for name in ("id", "name", "for", "collections", "made", "good until"):
        table.add_column(name, overflow="fold")
    for key in keys:
        end = f"revoked {key.revoked_at[:16]}" if key.revoked_at else (key.expires_at or "")[:16]
        table.add_row(
            key.id,
            escape(key.name),
            ", ".join(key.scopes),
            "all" if key.collections is None else ", ".join(key.collections),
            key.created_at[:16],
            end or "it is revoked",
        )
    stdout.print(table)


def print_reports(reports: Sequence[CollectionReport]) -> None:
    """Prints what a check has found, with the photos that are gone or have failed."""
    table = Table(title="Collections", title_justify="left", show_edge=False)
    for name in ("collection", "photos", "objects", "without vector", "orphaned vectors", "gone"):
        table.add_column(name, justify="left" if name == "collection" else "right")
    table.add_column("embedder", overflow="fold")
    for report in reports:
        embedder = _shown(report.collection.embedder)
        if report.other_embedder:
            embedder += " (not in use)"
        if report.dimension is not None:
            embedder += f" ({report.collection.dim}-d, the vectors are {report.dimension}-d)"
        table.add_row(
            _shown(report.collection.name),
            str(report.photos),
            str(report.objects),
            str(len(report.missing)),
            str(len(report.orphaned)),
            str(len(report.gone) + len(report.unreachable)),
            embedder,
        )
    stderr.print(table)
    for report in reports:
        name = report.collection.name
        if report.lost:
            say(
                f"The vectors of {name} are lost, or the settings lead to another vector engine:"
                " where they do not, --repair makes the vectors anew"
            )
        if report.gone:
            title = f"{len(report.gone)} photos of {name} are gone:"
            _print_lines(title, [image.path for image in report.gone])
        if report.unreachable:
            title = (
                f"{len(report.unreachable)} photos of {name} cannot be reached: their folders are"
                " gone or empty (a disk that is not mounted?), or their store does not answer:"
            )
            _print_lines(title, report.unreachable)
        if report.failures:
            _print_failures(f"{len(report.failures)} photos of {name} failed:", report.failures)


def _print_failures(title: str, failures: Sequence[Failure]) -> None:
    _print_lines(title, [f"{failure.path}: {failure.reason}" for failure in failures])


def _print_lines(title: str, lines: Iterable[str]) -> None:
    say(title)
    for line in lines:
        say(f"  {line}")
