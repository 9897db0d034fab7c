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

from backend.indexing import Failure, Load

__all__ = ["print_table", "show_load", "stderr"]

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
    stderr.print(f"{counts.total} photos in {escape(load.root)}: {', '.join(parts)}")
    if load.failures:
        print_failures(load.failures, counts.failed)


def print_failures(failures: Sequence[Failure], total: int) -> None:
    """Lists the photos that could not be indexed, with their reasons."""
    rows = [(failure.path, failure.reason) for failure in failures]
    print_table("Photos that could not be indexed", ("photo", "reason"), rows)
    if total > len(failures):
        stderr.print(f"… and {total - len(failures)} more; python -m backend check lists them all")


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a table to standard error."""
    table = Table(title=title, title_justify="left", show_edge=False)
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    stderr.print(table)
