"""What a person sees in the terminal: progress bars and tables."""

import asyncio
from collections.abc import Iterable, Sequence

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

from backend.checking import CollectionReport
from backend.indexing import Failure, Load

__all__ = ["print_reports", "show_load", "stderr"]

_REFRESH_SECONDS = 0.2

stderr = Console(stderr=True, highlight=False)


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
                progress.update(bar, completed=load.counts.processed, rate=f"{rate:.1f} photos/s")
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
    stderr.print(summary, markup=False, soft_wrap=True)
    if load.failures:
        _print_failures(f"{counts.failed} photos failed:", load.failures)
        if counts.failed > len(load.failures):
            stderr.print("  …; python -m backend check lists them all")


def print_reports(reports: Sequence[CollectionReport], embedder_sha256: str) -> None:
    """Prints what a check has found, with the photos that are gone or have failed."""
    table = Table(title="Collections", title_justify="left", show_edge=False)
    for name in ("collection", "photos", "objects", "without vector", "orphaned vectors"):
        table.add_column(name, justify="left" if name == "collection" else "right")
    table.add_column("embedder", overflow="fold")
    for report in reports:
        in_use = report.collection.embedder_sha256 == embedder_sha256
        table.add_row(
            escape(report.collection.name),
            str(report.photos),
            str(report.objects),
            str(len(report.missing)),
            str(len(report.orphaned)),
            escape(report.collection.embedder) + ("" if in_use else " (not in use)"),
        )
    stderr.print(table)
    for report in reports:
        name = report.collection.name
        if report.gone:
            title = f"{len(report.gone)} photos of {name} are gone from the disk:"
            _print_lines(title, report.gone)
        if report.failures:
            _print_failures(f"{len(report.failures)} photos of {name} failed:", report.failures)


def _print_failures(title: str, failures: Sequence[Failure]) -> None:
    _print_lines(title, [f"{failure.path}: {failure.reason}" for failure in failures])


def _print_lines(title: str, lines: Iterable[str]) -> None:
    # Not wrapped: a path in two pieces can neither be read nor copied.
    stderr.print(title, markup=False, soft_wrap=True)
    for line in lines:
        stderr.print(f"  {line}", markup=False, soft_wrap=True)
