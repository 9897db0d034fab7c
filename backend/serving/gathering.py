"""Requests that would wait for a server anyway travel to it together.

A call costs a server and its client a millisecond or two whatever is in it. So no more calls are
made at a time than keep the server busy; who comes meanwhile waits, and goes together with others
that wait. Where there is a place free, a request goes at once and alone.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from backend.precedence import Precedence

__all__ = ["Gatherer", "Outputs", "Spare"]

Outputs: TypeAlias = dict[str, NDArray[Any]]
"""A model's answer: arrays by the outputs' names, a row for each row of the batch."""
Call: TypeAlias = Callable[[Sequence[NDArray[np.uint8]], float], Awaitable[Outputs]]
"""Has a server run several batches as one, until a time of the event loop's."""

_ALONE_SECONDS: Final = 60.0
"""After a shared call has failed. One request that always fails takes others along once, not each
time that all of them are made again."""


@dataclass(eq=False)
class _Request:
    """A batch, until when its answer is of use, and the answer."""

    batch: NDArray[np.uint8]
    until: float
    answer: asyncio.Future[Outputs]


class Spare:
    """Calls that gatherers may make beyond their own places, all of them together.

    They are there when the server is done with what it runs. Whichever model there is most to do
    for takes them most of the time, and the requests of the others meet.
    """

    def __init__(self, calls: int) -> None:
        """None of the calls is taken."""
        self._calls = calls
        self._gatherers: list[Gatherer] = []

    def join(self, gatherer: "Gatherer") -> None:
        """Lets a gatherer take part."""
        self._gatherers.append(gatherer)

    def left_for(self, gatherer: "Gatherer") -> int:
        """How many of them the others have not taken."""
        others = sum(other.spare_calls for other in self._gatherers if other is not gatherer)
        return max(0, self._calls - others)


class Gatherer:
    """Makes calls of one model, each for as many requests as are there."""

    def __init__(
        self, call: Call, *, max_rows: int, places: Callable[[], int], spare: Spare
    ) -> None:
        """A gatherer that has nothing to do.

        Args:
            call: makes one.
            max_rows: of a call.
            places: tells how many calls the servers run side by side.
            spare: the calls beyond that.
        """
        self._call = call
        self._max_rows = max_rows
        self._places = places
        self._spare = spare
        spare.join(self)
        self._waiting = Precedence[_Request]()
        self._calls: set[asyncio.Task[None]] = set()
        self._alone_until = -math.inf

    @property
    def spare_calls(self) -> int:
        """How many calls it makes beyond its places."""
        return max(0, len(self._calls) - self._places())

    async def infer(self, batch: NDArray[np.uint8], until: float) -> Outputs:
        """The model's answer for these rows, of which there are `max_rows` at most.

        A call that nobody waits for any more is cancelled.

        Raises:
            TimeoutError: it is too late; and whatever the call raises.
        """
        request = _Request(batch, until, asyncio.get_running_loop().create_future())
        self._waiting.add(request)
        self._fill_places()
        # A cancellation or a timeout cancels the answer, and the call with the last of its answers.
        async with asyncio.timeout_at(until):
            return await request.answer

    def _fill_places(self) -> None:
        while len(self._calls) < (limit := self._places() + self._spare.left_for(self)):
            requests = self._next(limit)
            if not requests:
                return
            # It is nobody's in particular: no one's deadline or log lines are to be its own.
            call = asyncio.create_task(self._run(requests), context=Context())
            self._calls.add(call)
            call.add_done_callback(self._ended)
            for request in requests:
                request.answer.add_done_callback(partial(self._give_up, call, requests))

    def _next(self, calls: int) -> list[_Request]:
        """The requests of the next call: searches' before loads', first come first served.

        Not all that there are: another of so many calls will end soon, and there must be something
        to do for it as well.
        """
        taken: list[_Request] = []
        waiting = sum(len(request.batch) for request in self._waiting)
        room = min(self._max_rows, math.ceil(waiting / calls))
        together = asyncio.get_running_loop().time() >= self._alone_until
        while self._waiting and (together or not taken):
            request = self._waiting.first()
            if not request.answer.done():
                if taken and len(request.batch) > room:
                    break
                room -= len(request.batch)
                taken.append(request)
            self._waiting.take()
        return taken

    async def _run(self, requests: Sequence[_Request]) -> None:
        try:
            outputs = await self._call(
                [request.batch for request in requests],
                max(request.until for request in requests),
            )
        except asyncio.CancelledError:
            for request in requests:
                request.answer.cancel()
            raise
        except Exception as error:
            if len(requests) > 1:
                now = asyncio.get_running_loop().time()
                self._alone_until = now + _ALONE_SECONDS
            for request in requests:
                if not request.answer.done():
                    request.answer.set_exception(error)
        else:
            start = 0
            for request in requests:
                end = start + len(request.batch)
                if not request.answer.done():
                    rows = {name: array[start:end] for name, array in outputs.items()}
                    request.answer.set_result(rows)
                start = end

    def _ended(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        self._fill_places()

    def _give_up(
        self,
        call: asyncio.Task[None],
        requests: Sequence[_Request],
        _answer: asyncio.Future[Outputs],
    ) -> None:
        """Cancels a call whose requests have all been."""
        # One that is late is left to find that out: it is how a server is known to be frozen.
        is_late = asyncio.get_running_loop().time() >= max(request.until for request in requests)
        if not is_late and all(request.answer.cancelled() for request in requests):
            call.cancel()
