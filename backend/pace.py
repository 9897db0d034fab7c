"""How many photos of a load are in flight together: found by trying, while the load runs.

Where the models run in the process, a few photos keep every core busy and more would only wait. A
server with a GPU wants so many that its batches fill, and how many that is depends on the network
between, on the models and on the photos. So it is measured: more photos are tried for a moment, and
kept where they bring more photos a second.
"""

import asyncio
import math
import time
from collections.abc import Callable
from typing import Final, Literal

__all__ = ["Pace"]

_STEP: Final = 1.5
"""By what the level is multiplied or divided to try another one."""
_WORTH: Final = 1.1
"""How many times as fast it must be with more photos in flight: they take memory, and a search
waits behind them. Photos differ, so that two windows of the same level do by some per cent."""
_AS_FAST: Final = 0.97
"""With fewer photos in flight, as a part of the speed before."""
_WINDOW_SECONDS: Final = 0.5
_WINDOW_ROUNDS: Final = 4
"""A window lasts at least so long, and so many times the photos in flight: half of those that end
in the first round began at the level before."""
_REST: Final = 30
"""Windows between a try that failed and the next one; what is best may change."""


class Pace:
    """Lets so many photos be in flight as brings the most of them a second.

    A try is three windows: as it was, with another level, as it was again. The other level stays
    where it was better than both. Up goes first, down is tried when up has failed.
    """

    def __init__(
        self,
        lowest: int,
        highest: int,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begins at the lowest level; where the highest is not above it, that is the level."""
        self._lowest, self._highest = lowest, max(lowest, highest)
        self._level = self._home = lowest
        self._clock = clock
        self._in_flight = 0
        self._room = asyncio.Event()
        self._direction: Literal["up", "down"] = "up"
        self._speeds: list[float] = []
        """Photos a second in the windows of the try so far."""
        self._resting = 0
        self._begin_window()

    @property
    def level(self) -> int:
        """Photos that may be in flight at the moment."""
        return self._level

    async def enter(self) -> None:
        """Waits until one more photo may be in flight; `leave` ends it."""
        while self._in_flight >= self._level:
            self._room.clear()
            await self._room.wait()
        self._in_flight += 1

    def leave(self) -> None:
        """One photo less is in flight."""
        self._in_flight -= 1
        self._done += 1
        if self._done >= _WINDOW_ROUNDS * self._level:
            seconds = self._clock() - self._began
            if seconds >= _WINDOW_SECONDS:
                self._end_window(self._done / seconds)
        self._room.set()

    def begin(self) -> None:
        """Photos begin to come, after a time that says nothing about the speed."""
        self._level = self._home
        self._speeds.clear()
        self._begin_window()

    def go_on(self) -> None:
        """They go on after an engine has failed, which may be due to a try that was under way."""
        if self._level != self._home:
            self._turn_round()
        self.begin()

    def _begin_window(self) -> None:
        self._done = 0
        self._began = self._clock()

    def _end_window(self, speed: float) -> None:
        self._begin_window()
        if self._resting:
            self._resting -= 1
            return
        self._speeds.append(speed)
        match self._speeds:
            case [_]:
                self._level = self._other_level()
                if self._level == self._home:
                    self._turn_round()
            case [_, _]:
                self._level = self._home
            case [before, tried, after]:
                self._decide(before, tried, after)

    def _decide(self, before: float, tried: float, after: float) -> None:
        self._speeds.clear()
        if self._direction == "up":
            is_better = tried >= _WORTH * max(before, after)
        else:
            is_better = tried >= _AS_FAST * max(before, after)
        if is_better:
            self._level = self._home = self._other_level()
        else:
            self._turn_round()

    def _turn_round(self) -> None:
        """Up has failed: down is next. Down has failed as well: a rest, then up again."""
        self._speeds.clear()
        if self._direction == "up":
            self._direction = "down"
        else:
            self._direction = "up"
            self._resting = _REST

    def _other_level(self) -> int:
        if self._direction == "up":
            return min(self._highest, math.ceil(self._home * _STEP))
        return max(self._lowest, math.floor(self._home / _STEP))
