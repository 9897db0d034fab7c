"""How many requests somebody may make in a minute: the generic cell rate algorithm.

One number is kept of each: when all that has been asked for would be due, were it spread evenly.
Whoever has been quiet for a minute may ask for a minute's worth at once; nobody gets more than
that on the long run, and there is no edge of a window at which twice as much is let through.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

__all__ = ["RateLimiter"]

_PERIOD: Final = 60.0
_MOST: Final = 10_000
"""Of those that are remembered: about 2 MB. Beyond, those go that have been quiet the longest."""


class RateLimiter:
    """Counts what everybody asks for; `per_minute` of 0 lets everything through."""

    def __init__(
        self, per_minute: int, *, clock: Callable[[], float] = time.monotonic, most: int = _MOST
    ) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._most = most
        self._due: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._due)

    def take(self, who: str) -> float:
        """0 where the request may be done, else the seconds after which one may."""
        if not self.per_minute:
            return 0.0
        now = self._clock()
        due = max(self._due.get(who, now), now) + _PERIOD / self.per_minute
        # A hair more, since sums of fractions are no whole numbers.
        if due - now > _PERIOD * (1 + 1e-9):
            return due - now - _PERIOD
        self._due[who] = due
        self._due.move_to_end(who)
        while len(self._due) > self._most:
            self._due.popitem(last=False)
        return 0.0
