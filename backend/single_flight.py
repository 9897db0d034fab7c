"""Work that several ask for at the same time, and that is done once."""

import asyncio
import math
from collections.abc import Callable, Coroutine
from contextvars import Context
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from backend.deadlines import time_left
from backend.errors import Unavailable

__all__ = ["SingleFlight"]

_T = TypeVar("_T")


@dataclass
class _Flight(Generic[_T]):
    task: asyncio.Task[_T]
    waiting: int = 0


class SingleFlight(Generic[_T]):
    """Joins those who ask for the same while it is being made; what is made is not remembered."""

    def __init__(self) -> None:
        self._flights: dict[str, _Flight[_T]] = {}

    async def run(self, key: str, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """What `work` returns, or raises: this one, or one of the same key that is under way.

        One who is cancelled, or too late, does not concern the others; the last to leave cancels
        the work.

        Raises:
            TimeoutError: it is not done before the caller's deadline.
            Unavailable: it was ended by `close`.
        """
        flight = self._flights.get(key)
        if flight is None:
            # It is nobody's in particular: no one's deadline or log lines are to be its own.
            task = asyncio.create_task(work(), name=f"flight-{key}", context=Context())
            flight = self._flights[key] = _Flight(task)
        flight.waiting += 1
        left = time_left(math.inf)
        try:
            async with asyncio.timeout(None if left == math.inf else left):
                return await asyncio.shield(flight.task)
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
            raise Unavailable("the service is stopping; try again after its restart") from None
        finally:
            flight.waiting -= 1
            if not flight.waiting or flight.task.done():
                # At once, so that nobody joins what is over.
                if self._flights.get(key) is flight:
                    del self._flights[key]
                flight.task.cancel()

    async def close(self) -> None:
        """Ends everything that is under way."""
        tasks = [flight.task for flight in self._flights.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
