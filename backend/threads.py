"""Calls in threads that outlast a cancellation."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, ParamSpec, TypeVar

__all__ = ["in_steps", "in_thread"]

_T = TypeVar("_T")
_P = ParamSpec("_P")


async def in_thread(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """What a call in a thread returns; a cancellation comes after it.

    For what uses something, such as a file, that whoever is cancelled closes.
    """
    call = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        await asyncio.wait([call])
        raise


async def in_steps(steps: Iterable[_T]) -> AsyncIterator[_T]:
    """What an iterator gives, each step in a thread; a cancellation comes after the step."""
    iterator = iter(steps)
    end: Any = object()
    while (value := await in_thread(next, iterator, end)) is not end:
        yield value
