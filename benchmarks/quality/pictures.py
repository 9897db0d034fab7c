"""Draws searches on one page: what was searched for, what was found, what of it is right.

Knows photos, boxes and labels, and not where they come from.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

__all__ = ["DrawnBox", "Hit", "Search", "Section", "draw_page", "extremes"]

Box = tuple[float, float, float, float]
"""xyxy, edges in pixels of the photo that it is drawn on."""
Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Okabe and Ito's palette: apart for colour-blind eyes too.
RIGHT: Final[Colour] = (0, 158, 115)
WRONG: Final[Colour] = (213, 94, 0)
TRUTH: Final[Colour] = (86, 180, 233)
DETECTED: Final[Colour] = (240, 228, 66)
QUERY: Final[Colour] = (204, 121, 167)

_PAPER: Final[Colour] = (250, 250, 248)
_INK: Final[Colour] = (34, 34, 34)
_FAINT: Final[Colour] = (112, 112, 112)
_RULE: Final[Colour] = (218, 218, 214)

# Pixels.
_MARGIN: Final = 48
_GAP: Final = 12
_QUERY_WIDTH: Final = 360
_QUERY_HEIGHT: Final = 270
_HIT: Final = 140
_BORDER: Final = 5
_CAPTION: Final = 24
_LINE: Final = 1.35
_TITLE: Final = 40
_HEADING: Final = 26
_TEXT: Final = 17
_SMALL: Final = 14
_COLUMNS: Final = 10
_LABEL_LINES: Final = 3
"""How far a label may stand below its box's edge and still be seen as that box's."""


@dataclass(frozen=True)
class DrawnBox:
    """A box with a word on it, in one of this module's colours, a line of so many pixels."""

    box: Box
    colour: Colour
    text: str = ""
    line: int = 2


@dataclass(frozen=True)
class Hit:
    """Something found: a photo, RGB uint8 [H, W, 3], with boxes, and whether it is right."""

    photo: NDArray[np.uint8]
    boxes: Sequence[DrawnBox]
    caption: str
    distance: float
    right: bool


@dataclass(frozen=True)
class Search:
    """A query photo, RGB uint8 [H, W, 3], with boxes, and the hits, nearest first."""

    title: str
    photo: NDArray[np.uint8]
    boxes: Sequence[DrawnBox]
    hits: Sequence[Hit]


@dataclass(frozen=True)
class Section:
    """Searches under a heading."""

    heading: str
    text: str
    searches: Sequence[Search]


def extremes(
    scores: Sequence[float], labels: Sequence[Set[str]], count: int
) -> tuple[list[int], list[int]]:
    """Indices of the best scores, best first, and of the worst, worst first.

    At most `count` of each, of which no two share a label, so that they show different things; no
    index is in both.
    """
    order = np.argsort(-np.asarray(scores), kind="stable").tolist()
    best = _without_shared_labels(order, labels, count)
    others = [index for index in reversed(order) if index not in best]
    return best, _without_shared_labels(others, labels, count)


def draw_page(title: str, subtitle: str, sections: Sequence[Section], path: Path) -> None:
    """Writes the page as a PNG file: each search a row, its query at the left."""
    width = 2 * _MARGIN + _QUERY_WIDTH + 2 * _GAP + _COLUMNS * (_HIT + _GAP)
    head = round(_LINE * (_TITLE + _TEXT)) + round(2.5 * _TEXT) + _GAP
    of_section = round(_LINE * (_HEADING + _TEXT)) + 3 * _GAP
    rows = sum(_height(search) for section in sections for search in section.searches)
    height = 2 * _MARGIN + head + of_section * len(sections) + rows
    page = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(page)
    y = _MARGIN
    pen.text((_MARGIN, y), title, _INK, _font(_TITLE))
    y += round(_LINE * _TITLE)
    pen.text((_MARGIN, y), subtitle, _FAINT, _font(_TEXT))
    y += round(_LINE * _TEXT) + _GAP
    _draw_legend(pen, y)
    y = _MARGIN + head
    for section in sections:
        pen.line((_MARGIN, y, width - _MARGIN, y), _RULE, 2)
        y += _GAP
        pen.text((_MARGIN, y), section.heading, _INK, _font(_HEADING))
        y += round(_LINE * _HEADING)
        pen.text((_MARGIN, y), section.text, _FAINT, _font(_TEXT))
        y += round(_LINE * _TEXT) + 2 * _GAP
        for search in section.searches:
            _draw_search(page, pen, search, y)
            y += _height(search)
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path, "PNG", optimize=True)


def _without_shared_labels(
    order: Sequence[int], labels: Sequence[Set[str]], count: int
) -> list[int]:
    """The first indices of the order, each with other labels than those before it."""
    chosen: list[int] = []
    seen: set[str] = set()
    for index in order:
        if len(chosen) < count and seen.isdisjoint(labels[index]):
            chosen.append(index)
            seen |= labels[index]
    return chosen


def _draw_legend(pen: ImageDraw.ImageDraw, y: int) -> None:
    x = _MARGIN
    for colour, text in (
        (RIGHT, "right: has the label that was searched for"),
        (WRONG, "wrong"),
        (TRUTH, "annotated"),
        (DETECTED, "detected, with its score"),
        (QUERY, "the object that was searched for, or found"),
    ):
        pen.rectangle((x, y + 2, x + _TEXT, y + 2 + _TEXT), colour, _FAINT)
        x += _TEXT + 8
        pen.text((x, y), text, _INK, _font(_TEXT))
        x += round(pen.textlength(text, _font(_TEXT))) + 2 * _GAP


def _fitted(photo: NDArray[np.uint8], width: int, height: int) -> tuple[int, int]:
    """The photo's size in the page when it is as large as fits into width x height."""
    scale = min(width / photo.shape[1], height / photo.shape[0])
    return max(1, round(photo.shape[1] * scale)), max(1, round(photo.shape[0] * scale))


def _height(search: Search) -> int:
    """Of its row: a line of text, the higher of query and hits, and space below."""
    _, query = _fitted(search.photo, _QUERY_WIDTH, _QUERY_HEIGHT)
    return round(_LINE * _TEXT) + max(query, _HIT + 2 * _CAPTION) + 2 * _GAP


def _draw_search(page: Image.Image, pen: ImageDraw.ImageDraw, search: Search, y: int) -> None:
    pen.text((_MARGIN, y), search.title, _INK, _font(_TEXT))
    y += round(_LINE * _TEXT)
    query = _with_boxes(search.photo, search.boxes, _QUERY_WIDTH, _QUERY_HEIGHT, texts=True)
    page.paste(query, (_MARGIN, y))
    top = y + max(0, query.height - _HIT - 2 * _CAPTION) // 2
    left = _MARGIN + _QUERY_WIDTH + 2 * _GAP
    for column, hit in enumerate(search.hits):
        _draw_hit(page, pen, hit, left + column * (_HIT + _GAP), top)


def _draw_hit(page: Image.Image, pen: ImageDraw.ImageDraw, hit: Hit, x: int, y: int) -> None:
    """A square of _HIT pixels with the photo in it, the caption below, the distance below that."""
    colour = RIGHT if hit.right else WRONG
    pen.rectangle((x, y, x + _HIT - 1, y + _HIT + _CAPTION - _BORDER - 1), colour)
    inner = _HIT - 2 * _BORDER
    left, top = x + _BORDER, y + _BORDER
    pen.rectangle((left, top, left + inner - 1, top + inner - 1), _INK)
    photo = _with_boxes(hit.photo, hit.boxes, inner, inner)
    page.paste(photo, (left + (inner - photo.width) // 2, top + (inner - photo.height) // 2))
    font = _font(_SMALL)
    caption = _shortened(pen, hit.caption, font, inner)
    middle = x + _HIT // 2
    under = y + _HIT - _BORDER + _CAPTION // 2
    pen.text((middle, under), caption, _PAPER, font, anchor="mm")
    pen.text((middle, under + _CAPTION), f"{hit.distance:.3f}", _INK, font, anchor="mm")


def _with_boxes(
    photo: NDArray[np.uint8],
    boxes: Sequence[DrawnBox],
    width: int,
    height: int,
    *,
    texts: bool = False,
) -> Image.Image:
    """The photo as large as fits into width x height, with its boxes in lines of one width."""
    size = _fitted(photo, width, height)
    scale = size[0] / photo.shape[1]
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    picture = Image.fromarray(cv2.resize(photo, size, interpolation=interpolation))
    pen = ImageDraw.Draw(picture)
    taken: list[Box] = []
    for drawn in boxes:
        x1, y1, x2, y2 = (scale * edge for edge in drawn.box)
        # The dark line beneath keeps a light one visible on a light photo.
        for colour, line in ((_INK, drawn.line + 2), (drawn.colour, drawn.line)):
            pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour, width=line)
    for drawn in boxes:
        if texts and drawn.text:
            _draw_label(pen, drawn, scale, size, taken)
    return picture


def _draw_label(
    pen: ImageDraw.ImageDraw,
    drawn: DrawnBox,
    scale: float,
    size: tuple[int, int],
    taken: list[Box],
) -> None:
    """A box's word at its upper edge or a little below; none where a crowd leaves no place."""
    font = _font(_SMALL)
    length, height = pen.textlength(drawn.text, font) + 6, _SMALL + 4
    x = max(0.0, min(scale * drawn.box[0], size[0] - length))
    highest = max(0.0, min(scale * drawn.box[1], size[1] - height))
    for lines in range(_LABEL_LINES):
        y = highest + lines * height
        free = not any(
            x < right and left < x + length and y < bottom and top < y + height
            for left, top, right, bottom in taken
        )
        if free and y + height <= size[1]:
            taken.append((x, y, x + length, y + height))
            pen.rectangle((x, y, x + length, y + height), drawn.colour)
            pen.text((x + 3, y + height / 2), drawn.text, _INK, font, anchor="lm")
            return


def _shortened(pen: ImageDraw.ImageDraw, text: str, font: Font, width: int) -> str:
    if pen.textlength(text, font) <= width:
        return text
    while text and pen.textlength(text + "…", font) > width:
        text = text[:-1]
    return text + "…"


def _font(size: int) -> Font:
    """Pillow's own font: no file of this machine's is needed."""
    return ImageFont.load_default(size)
