from __future__ import annotations

import io

import pytest
from rich.console import Console

from scripts.export_models.progress import Display


def test_a_terminal_shows_a_bar() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, _environ={})
    display = Display(console)
    with display.transfer("net.weights", 2_000_000) as show:
        show(500_000)
        display.line("https://a.very.long.address/" + 100 * "x")
        show(2_000_000)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "net.weights" in shown
    assert "2.0/2.0 MB" in shown
    assert "https://a.very.long.address/" + 100 * "x" in shown


def test_anything_else_shows_lines(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display()
    with display.transfer("[red]net", 1000) as show:
        for done in (150, 190, 200, 555, 0, 999, 1000):
            show(done)
    assert capsys.readouterr().out.splitlines() == [
        f"[red]net: {percent} % of 1,000 bytes" for percent in (20, 50, 90, 100)
    ]
