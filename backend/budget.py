"""An amount that is shared, such as pixels in memory: who wants a part waits until one is free."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from backend.deadlines import before_deadline
from backend.precedence import Precedence

__all__ = ["Budget"]


@dataclass(frozen=True, eq=False, slots=True)
class _Asker:
    amount: int
    turn: asyncio.Future[None]


class Budget:
    """An amount of which everyone takes a part for a while.

    Requests, which have a deadline, are served before loads, which have none, in either case first
    come first served: a large part is not passed by smaller ones for ever.
    """

    def __init__(self, total: int) -> None:
        self._total = self._left = total
        self._askers = Precedence[_Asker]()

    @asynccontextmanager
    async def part(self, amount: int) -> AsyncIterator[None]:
        """Takes a part, for as long as the context is open; one larger than the total is the total.

        Raises:
            TimeoutError: none was free before the deadline.
        """
        amount = min(amount, self._total)
        async with before_deadline():
            await self._take(amount)
        try:
            yield
        finally:
            self._give_back(amount)

    async def _take(self, amount: int) -> None:
        asker = _Asker(amount, asyncio.get_running_loop().create_future())
        self._askers.add(asker)
        self._serve()
        try:
            await asker.turn
        except asyncio.CancelledError:
            if not asker.turn.cancelled():  # its turn has come meanwhile
                self._give_back(amount)
            elif self._askers.discard(asker):
                self._serve()  # those behind it may want less
            raise

    def _give_back(self, amount: int) -> None:
        self._left += amount
        self._serve()

    def _serve(self) -> None:
        while self._askers and self._askers.first().amount <= self._left:
            asker = self._askers.take()
            if not asker.turn.cancelled():
                self._left -= asker.amount
                asker.turn.set_result(None)
