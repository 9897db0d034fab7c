"""What a terminal shows of a search."""

import io
import re
from collections.abc import Callable

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from backend import console
from backend.console import draw_object, print_hits, say, shows_pictures
from backend.searching import PhotoHit
from backend.storage.catalog import ObjectPlace

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
Shown = Callable[[], str]


def photo_of(*rows: tuple[int, int, int]) -> np.ndarray:
    """100 columns, and 50 rows of each colour."""
    return np.repeat(np.array([[row] for row in rows], np.uint8), 50, 0).repeat(100, 1)


def hit(path: str, distance: float = 0.25) -> PhotoHit:
    place = ObjectPlace(1, 1, path, "0" * 64, 100, 100, "dog", 0.91, (0.0, 50.0, 100.0, 100.0))
    return PhotoHit(place, distance)


def set_stdout(monkeypatch: pytest.MonkeyPatch, **options: object) -> io.StringIO:
    """Puts a terminal of 80 columns in the place of standard output."""
    output = io.StringIO()
    chosen = {"file": output, "width": 80, "highlight": False, "_environ": {}} | options
    monkeypatch.setattr(console, "stdout", Console(**chosen))  # type: ignore[arg-type]
    return output


HOSTILE = "/photos/\x1b[2J\x1b]0;owned\x07\nerror: a\u202egpj.exe [red]x[/red]"
SHOWN = r"/photos/\x1b[2J\x1b]0;owned\x07\nerror: a\u202egpj.exe [red]x[/red]"


def test_a_path_can_neither_move_a_terminal_s_cursor_nor_forge_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    say(f"error: {HOSTILE}")
    assert capsys.readouterr().err == f"error: {SHOWN}\n"
    output = set_stdout(monkeypatch, width=200)
    print_hits([hit(HOSTILE)], "photos", 1)
    assert SHOWN in output.getvalue()
    monkeypatch.setenv("COLUMNS", "200")
    print_hits([hit(HOSTILE)], "photos", 1, [None])
    assert SHOWN in output.getvalue() + capsys.readouterr().out


@pytest.mark.parametrize(
    ("terminal", "colors", "no_color", "shown"),
    [
        (True, "truecolor", False, True),
        (True, "256", False, True),
        (True, "standard", False, False),
        (True, "truecolor", True, False),
        (False, "truecolor", False, False),
    ],
)
def test_pictures_are_shown_in_a_terminal_with_colours_unless_it_is_said(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, colors: str, no_color: bool, shown: bool
) -> None:
    set_stdout(monkeypatch, force_terminal=terminal, color_system=colors, no_color=no_color)
    assert shows_pictures("auto") is shown
    assert shows_pictures("always")
    assert not shows_pictures("never")


def test_a_picture_is_the_object_s_and_nothing_else_s(monkeypatch: pytest.MonkeyPatch) -> None:
    output = set_stdout(monkeypatch, force_terminal=True, color_system="truecolor")
    picture = draw_object(photo_of(RED, GREEN, BLUE, RED), (0, 50, 100, 150))
    assert picture is not None
    console.stdout.print(picture)
    shown = output.getvalue()
    assert {*re.findall(r"[34]8;2;(\d+;\d+;\d+)", shown)} == {"0;255;0", "0;0;255"}
    first, *_, last = [line for line in shown.splitlines() if "▄" in line]
    assert "0;0;255" not in first
    assert "0;255;0" not in last


@pytest.mark.parametrize(
    ("box", "columns", "lines"),
    [
        ((0, 0, 100, 100), 16, 8),
        ((0, 0, 100, 1), 20, 1),
        ((0, 0, 1, 200), 1, 8),
        ((10.2, 10.2, 12.8, 12.8), 16, 8),
        ((-50, -50, 400, 400), 8, 8),
    ],
)
def test_a_picture_keeps_the_object_s_shape_and_is_never_large(
    monkeypatch: pytest.MonkeyPatch,
    box: tuple[float, float, float, float],
    columns: int,
    lines: int,
) -> None:
    output = set_stdout(monkeypatch)
    picture = draw_object(photo_of(RED, GREEN, BLUE, RED), box)
    assert picture is not None
    console.stdout.print(picture)
    drawn = [line.rstrip() for line in output.getvalue().splitlines() if line.strip()]
    assert len(drawn) == lines
    assert {cell_len(line) for line in drawn} == {columns}


@pytest.mark.parametrize("box", [(200, 0, 300, 50), (0, 300, 50, 400), (10, 10, 10, 10)])
def test_what_lies_outside_the_photo_makes_no_picture(
    box: tuple[float, float, float, float],
) -> None:
    assert draw_object(photo_of(RED, GREEN, BLUE, RED), box) is None


@pytest.mark.parametrize("terminal", [True, False])
def test_a_hit_is_some_lines_with_all_that_is_known_of_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool
) -> None:
    output = set_stdout(monkeypatch, force_terminal=terminal, color_system="truecolor")
    long = "/photos/[red]" + "very-long-name-" * 10 + ".jpg"
    picture = draw_object(photo_of(RED, GREEN), (0, 0, 100, 100))
    monkeypatch.setenv("COLUMNS", "80")
    print_hits([hit(long), hit("/photos/gone.jpg", 0.5)], "c", 2, [picture, None])
    shown = output.getvalue() or capsys.readouterr().out
    assert "0;255;0" in shown
    text = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert max(map(cell_len, text.splitlines())) <= 80
    assert "distance 0.2500" in text
    assert "dog 0.91 at 0, 50, 100, 100" in text
    beside = [line[22:].strip() for line in text.splitlines()]
    assert "".join(beside[2:6]).startswith(long)
    gone = text[: text.index("distance 0.5000")].count("\n")
    assert gone == 9  # the first hit's lines, and an empty one
    assert text.splitlines()[8].strip() == ""
    assert "▄" not in text.splitlines()[gone]
