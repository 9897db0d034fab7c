"""How long a request may still take, wherever in the code it is.

A request's deadline is set once, where its body has been read; every call of an engine that is
made for it asks how much is left. Work that belongs to no request (loads, recovery) has no
deadline, and each of its calls may take what one call may take.
"""

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["acquire", "before_deadline", "deadline", "has_deadline", "time_left"]

_end: ContextVar[float] = ContextVar("end", default=math.inf)
"""On the event loop's clock; tasks inherit it, unless they are made with a context of their own."""


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Gives everything inside, tasks that it makes included, at most so many seconds.

    Within another deadline the earlier one counts.
    """
    token = _end.set(asyncio.get_running_loop().time() + time_left(seconds))
    try:
        yield
    finally:
        _end.reset(token)


def time_left(limit: float) -> float:
    """Seconds that a call may take: `limit`, or what the deadline leaves where that is less.

    Never negative: a call whose time is up times out at once.
    """
    end = _end.get()
    if end == math.inf:
        return limit
    return max(0.0, min(limit, end - asyncio.get_running_loop().time()))


def has_deadline() -> bool:
    """Whether this is done for a request, which somebody waits for."""
    return _end.get() != math.inf


def before_deadline() -> asyncio.Timeout:
    """A timeout at the deadline, where there is one."""
    return asyncio.timeout(time_left(math.inf) if has_deadline() else None)


async def acquire(lock: asyncio.Lock | asyncio.Semaphore) -> None:
    """Acquires a lock before the deadline.

    Raises:
        TimeoutError: those before it have kept it for longer.
    """
    async with before_deadline():
        await lock.acquire()
