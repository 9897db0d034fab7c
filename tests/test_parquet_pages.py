"""Headers of a table's pages: those that a writer makes are read, and no others."""

import random
from collections.abc import Callable
from io import BytesIO
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from backend.errors import InvalidInput
from backend.parquet_pages import MAX_PAGES, check_pages
from tests.archives import page_header


def _check(data: bytes, values: int, *, width: int = 4, start: int = 0, size: int = -1) -> None:
    check_pages(
        lambda at, wanted: data[at : at + wanted],
        start=start,
        size=len(data) - start if size < 0 else size,
        values=values,
        width=width,
    )


def _page(values: int, size: int | None = None, **header: Any) -> bytes:
    size = values * 4 if size is None else size
    return page_header(size, values, **header) + bytes(size)


def test_what_the_library_writes_is_read() -> None:
    vectors = pyarrow.FixedSizeListArray.from_arrays(
        pyarrow.array([1.5] * 3000 * 256, pyarrow.float32()), 256
    )
    optional = pyarrow.array([None, 7] * 1500, pyarrow.int64())
    text = pyarrow.array(["", "ä"] * 1500)
    names = ["optional", "text", "vectors"]
    table = pyarrow.table([optional, text, vectors], names)
    file = BytesIO()
    options: dict[str, Any] = {"compression": "NONE", "write_statistics": False}
    parquet.write_table(
        table, file, use_dictionary=False, row_group_size=2000, data_page_size=2**16, **options
    )
    data, about = file.getvalue(), parquet.ParquetFile(file).metadata
    for number in range(about.num_row_groups):
        for column in map(about.row_group(number).column, range(about.num_columns)):
            place = {"start": column.data_page_offset, "size": column.total_compressed_size}
            _check(data, column.num_values, width=0, **place)
            for values in (column.num_values - 1, column.num_values + 1):
                with pytest.raises(InvalidInput, match="more or fewer values"):
                    _check(data, values, width=0, **place)


def test_pages_fill_their_column_and_have_its_values_together() -> None:
    _check(b"", 0)
    _check(_page(3) + _page(4, 17) + _page(1), 8)
    _check(b"before" + _page(3) + b"behind", 3, start=6, size=len(_page(3)))
    _check(_page(1) * MAX_PAGES, MAX_PAGES)
    _check(_page(3, statistics=b""), 3)
    _check(_page(2**31 - 1, 0), 2**31 - 1, width=0)


_Pages = Callable[[], bytes]


@pytest.mark.parametrize(
    ("pages", "words"),
    [
        (lambda: b"", "more or fewer values"),
        (lambda: _page(7), "more or fewer values"),
        (lambda: _page(9), "more or fewer values"),
        (lambda: _page(8) + _page(1), "more or fewer values"),
        (lambda: _page(8, 31), "fewer bytes"),
        (lambda: _page(2**31 - 1, 32), "fewer bytes"),
        (lambda: _page(8)[:-1], "larger than its column"),
        (lambda: page_header(2**31 - 1, 8) + bytes(99), "larger than its column"),
        (lambda: _page(8) + b"\0", "not made as"),
        (lambda: _page(8) + _page(1)[:5], "not made as"),
        (lambda: _page(8) + _page(0), "not made as"),
        (lambda: _page(9) + _page(-1, 4), "not made as"),
        (lambda: page_header(-1, 8) + bytes(32), "not made as"),
        (lambda: _page(8, kind=1), "not made as"),  # of an index
        (lambda: _page(8, kind=2), "not made as"),  # of a dictionary
        (lambda: _page(8, kind=3), "not made as"),  # of version 2
        (lambda: _page(8, stored_size=31), "not made as"),
        (lambda: _page(8, stored_size=33), "not made as"),
        (lambda: _page(8, encoding=8), "not made as"),  # by a dictionary
        (lambda: _page(8, encoding=5), "not made as"),  # by differences
        (lambda: _page(8, levels=(4, 3)), "not made as"),
        (lambda: _page(8, levels=(3, 4)), "not made as"),
        (lambda: _page(8, statistics=b"\x1c\x18\x01x\0"), "not made as"),
        (lambda: b"\x15\x80\0" + _page(8)[2:], "not made as"),  # 0 in two bytes
        (lambda: b"\x15" + b"\xff" * 80, "not made as"),  # a number without an end
        (lambda: b"\x15\0\x15" + b"\xff" * 4 + b"\x7f" + _page(8)[4:], "not made as"),  # 35 bits
        (lambda: b"\x05\0\x15" + _page(8)[2:], "not made as"),  # a field's number of its own
        (lambda: b"\x19\xfc\xff\xff\xff\xff\x0f" + _page(8), "not made as"),  # a list
    ],
)
def test_other_pages_are_refused(pages: _Pages, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        _check(pages(), 8)


def test_more_pages_than_a_writer_makes_are_refused() -> None:
    with pytest.raises(InvalidInput, match="more than 1024 pages"):
        _check(_page(1) * (MAX_PAGES + 1), MAX_PAGES + 1)


def test_a_flipped_bit_of_a_header_is_never_passed_over() -> None:
    page = _page(8)
    for place in range(len(page_header(32, 8))):
        for bit in range(8):
            flipped = bytearray(page)
            flipped[place] ^= 1 << bit
            with pytest.raises(InvalidInput):
                _check(bytes(flipped), 8)


def test_bytes_at_random_are_refused_and_nothing_else_comes_of_them() -> None:
    draw = random.Random(7)
    good = _page(3) + _page(5)
    for _ in range(3000):
        data = bytearray(good)
        for _ in range(draw.randrange(1, 6)):
            data[draw.randrange(len(page_header(12, 3)))] = draw.randrange(256)
        data = data[: draw.randrange(len(data) + 1)]
        with pytest.raises(InvalidInput):
            _check(bytes(data), 9)
