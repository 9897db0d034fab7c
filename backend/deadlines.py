"""How long a request may still take, wherever in the code it is.

A request's deadline is set once, where it comes in; every call of an engine that is made for it
asks how much is left. Work that belongs to no request (loads, recovery) has no deadline, and each
of its calls may take what one call may take.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["deadline", "time_left"]

_ends: ContextVar[float | None] = ContextVar("deadline", default=None)
"""On the event loop's clock; tasks inherit it from the one that makes them."""


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Gives everything inside, tasks that it makes included, at most so many seconds.

    Within another deadline the earlier one counts.
    """
    end = asyncio.get_running_loop().time() + time_left(seconds)
    token = _ends.set(end)
    try:
        yield
    finally:
        _ends.reset(token)


def time_left(limit: float) -> float:
    """Seconds that a call may take: `limit`, or what the deadline leaves where that is less.

    Never negative: a call whose time is up times out at once.
    """
    end = _ends.get()
    if end is None:
        return limit
    return max(0.0, min(limit, end - asyncio.get_running_loop().time()))
