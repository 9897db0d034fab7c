"""What a column's pages in a Parquet file say of themselves, read before a library believes them.

A table's footer says how many values a column has, and each page says it again in a header of its
own: it is that one which the memory for them is made by, and a few bytes of run lengths may stand
for any number of values. So both are compared, and with the bytes that are really there.

What is read is what an export's writer makes: plain values in data pages of version 1, neither
compressed nor behind a dictionary. Their headers are Thrift's compact protocol (a list of fields,
each with its number and its kind), of which this takes that one form and no other.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from backend.errors import InvalidInput

__all__ = ["MAX_PAGES", "check_pages"]

MAX_PAGES: Final = 1024
"""Of a column's values in a row group: a writer fills a page with a megabyte."""

_MAX_HEADER_BYTES: Final = 64
"""More than a header of this form can have."""
_INTEGER: Final = b"\x15"
"""The field after the one before, a whole number of 32 bits."""
_STRUCT: Final = b"\x2c"
"""The field after the next one, which has fields of its own: that of the next is for checksums."""
_NO_STATISTICS: Final = b"\x1c\0"
_END: Final = b"\0"
_DATA_PAGE: Final = 0
_PLAIN: Final = 0
_RUN_LENGTHS: Final = 3


@dataclass(frozen=True, slots=True)
class _Page:
    """`start` and `size` are of what comes behind the header, in bytes."""

    start: int
    size: int
    values: int


class _Malformed(Exception):
    """A header is none of that form."""


def check_pages(
    read: Callable[[int, int], bytes], *, start: int, size: int, values: int, width: int
) -> None:
    """Reads the headers of a column's pages in one row group, and nothing else of them.

    Args:
        read: bytes of the file, from a position on, as many as are asked for or are there.
        start: where the pages begin.
        size: how many bytes they have, their headers included.
        values: how many values they have, those that are null included.
        width: bytes that each value has at least.

    Raises:
        InvalidInput: they are not so, or not as an export has them; it says what is wrong of the
            table.
    """
    at, end, found = start, start + size, 0
    for _ in range(MAX_PAGES):
        if at == end:
            break
        try:
            page = _read_header(read(at, min(_MAX_HEADER_BYTES, end - at)))
        except _Malformed:
            raise InvalidInput("has a page that is not made as an export's is") from None
        if page.start + page.size > end - at:
            raise InvalidInput("has a page that is larger than its column")
        if page.values * width > page.size:
            raise InvalidInput("has a page of fewer bytes than its values need")
        found += page.values
        at += page.start + page.size
    if at != end:
        raise InvalidInput(f"has more than {MAX_PAGES} pages of a column in a row group")
    if found != values:
        raise InvalidInput("has pages of more or fewer values than it says")


def _read_header(data: bytes) -> _Page:
    header = _Header(data)
    kind, size, stored_size = header.integer(), header.integer(), header.integer()
    header.take(_STRUCT)
    values, encoding, *levels = (header.integer() for _ in range(4))
    if header.has(_NO_STATISTICS):
        header.take(_NO_STATISTICS)
    header.take(_END)
    header.take(_END)
    is_plain = (kind, encoding, *levels) == (_DATA_PAGE, _PLAIN, _RUN_LENGTHS, _RUN_LENGTHS)
    if not is_plain or size != stored_size or size < 0 or values < 1:
        raise _Malformed
    return _Page(header.at, size, values)


class _Header:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def has(self, expected: bytes) -> bool:
        return self._data.startswith(expected, self.at)

    def take(self, expected: bytes) -> None:
        if not self.has(expected):
            raise _Malformed
        self.at += len(expected)

    def integer(self) -> int:
        """The next field: groups of 7 bits, the lowest first, and of the whole, the sign last."""
        self.take(_INTEGER)
        number = 0
        for shift in range(0, 35, 7):
            if self.at == len(self._data):
                raise _Malformed
            group = self._data[self.at]
            self.at += 1
            number |= (group & 0x7F) << shift
            if group < 0x80:
                break
        else:
            raise _Malformed
        if number >= 2**32 or (shift and not group):  # what does not fit, or has a shorter form
            raise _Malformed
        return number >> 1 ^ -(number & 1)
