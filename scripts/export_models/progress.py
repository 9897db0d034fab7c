"""What a person sees while files come in: a bar in a terminal, lines of text anywhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

LINE_EVERY_PERCENT: Final = 10


class Display:
    """Writes to standard output; errors go elsewhere."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)

    def line(self, text: str) -> None:
        """Shows one line, above a bar where there is one."""
        # Not wrapped: a path or an address in two pieces can neither be read nor copied.
        self._console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def transfer(self, name: str, size: int) -> Iterator[Callable[[int], None]]:
        """Shows how much of ``size`` bytes is there, as often as what it gives is told."""
        if not self._console.is_terminal:
            yield self._percentages(name, size)
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task(name, total=size)
            yield lambda done: progress.update(task, completed=done)

    def _percentages(self, name: str, size: int) -> Callable[[int], None]:
        shown: int | None = None

        def show(done: int) -> None:
            nonlocal shown
            percent = 100 * done // size // LINE_EVERY_PERCENT * LINE_EVERY_PERCENT
            # What was there before is no news; where a download starts anew, so do these.
            if shown is not None and percent > shown:
                self.line(f"{name}: {percent} % of {size:,} bytes")
            shown = percent

        return show
