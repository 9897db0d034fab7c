"""What may be asked of the networks at once: what is beyond it is refused, and does not wait.

Two things are bounded. Places: of photos that are worked on, or wait for it, so that whoever is let
in is answered in a time that can be foreseen. And bytes: of the bodies of those requests, from the
first that comes in to the answer.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final, NoReturn

from backend.errors import Overloaded, TooSlow
from backend.metrics import Limit, Metrics

__all__ = ["Admission", "Place"]

_PATIENCE_SECONDS: Final = 1.0
"""For so long a place is kept for a body that is on its way: one from near by takes far less."""
_RETURNS: Final = 64
"""Of places, the last ones: the rate at which they come back is theirs."""
_FEW_RETURNS: Final = 8
"""Less say nothing of a rate: many come in together, and go together."""
_SHARE: Final = 4
"""A request of many photos gets at most this part of all places: others are to be let in too."""


class Admission:
    """Places and bytes for the requests that make the networks work.

    Attributes:
        body_timeout: seconds that a body may take to come in.
    """

    def __init__(
        self,
        figures: Metrics,
        *,
        places: int,
        max_bytes: int,
        body_timeout: float,
        longest_wait: float,
    ) -> None:
        """Nothing is taken yet.

        Args:
            figures: counts what is refused.
            places: photos that may be worked on, or wait for it.
            max_bytes: of bodies in memory.
            body_timeout: seconds that a body may take to come in.
            longest_wait: seconds; after these every place that is taken now has been given back.
        """
        self._figures = figures
        self._places = places
        self._max_bytes = max_bytes
        self.body_timeout = body_timeout
        self._longest_wait = longest_wait
        self._taken = 0
        self._bytes = 0
        # Seconds of a clock that stands still while nothing is taken: up to when it last went on,
        # when that was, and those at which places came back.
        self._seconds = 0.0
        self._since = 0.0
        self._returns: deque[float] = deque(maxlen=_RETURNS)

    @property
    def taken(self) -> int:
        """Places that are taken."""
        return self._taken

    @property
    def held_bytes(self) -> int:
        """Bytes of bodies that are in memory."""
        return self._bytes

    @contextmanager
    def place(self) -> Iterator["Place"]:
        """A place for one photo, inside.

        Raises:
            Overloaded: all are taken.
        """
        place = Place(self)
        place.take()
        try:
            yield place
        finally:
            place.give_back()

    def take(self, wanted: int) -> None:
        """Takes so many places, or none.

        Raises:
            Overloaded: there are fewer.
        """
        if self._taken + wanted > self._places:
            self._refuse(
                "MAX_QUEUED",
                "the service has as many photos to work on as it takes on at once",
            )
        if not self._taken:
            self._since = time.monotonic()
        self._taken += wanted

    def give_back(self, places: int) -> None:
        """Gives back what `take` has taken."""
        now = self._clock()
        self._returns.extend([now] * places)
        self._taken -= places
        if not self._taken:
            self._seconds = now

    def free(self, most: int) -> int:
        """How many places a request that has one may take beside it, of as many as it could use."""
        return max(0, min(most, self._places // _SHARE - 1, self._places - self._taken))

    def hold(self, size: int) -> None:
        """Counts bytes that are in memory from now on, or, of a negative size, no more.

        Raises:
            Overloaded: there would be too many.
        """
        if size > 0 and self._bytes + size > self._max_bytes:
            self._refuse(
                "MAX_UPLOADS_IN_MEMORY",
                "the service has as many photos in memory as it keeps there at once",
            )
        self._bytes += size

    def _refuse(self, limit: Limit, reason: str) -> NoReturn:
        self._figures.count_refused(limit)
        seconds = self._retry_after()
        raise Overloaded(f"{reason}: try again in {seconds} s", seconds)

    def _retry_after(self) -> int:
        """Whole seconds until all that is here has gone, at the rate of the last while."""
        seconds = self._clock()
        if len(self._returns) > _FEW_RETURNS:
            seconds = self._taken * (seconds - self._returns[0]) / (len(self._returns) - 1)
        return math.ceil(max(1.0, min(seconds, self._longest_wait)))

    def _clock(self) -> float:
        return self._seconds + (time.monotonic() - self._since if self._taken else 0.0)


class Place:
    """What one request has of the places and bytes that there are."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._places = 0
        self._bytes = 0

    def take(self) -> None:
        """Takes a place.

        Raises:
            Overloaded: all are taken.
        """
        self._admission.take(1)
        self._places += 1

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """The request's photos come in inside. Slow ones keep nobody out: the place is lent soon.

        Raises:
            Overloaded: it was, and all places are taken now.
            TooSlow: they have not come in time.
        """
        seconds = self._admission.body_timeout
        lend = asyncio.get_running_loop().call_later(_PATIENCE_SECONDS, self._lend)
        try:
            async with asyncio.timeout(seconds) as limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise TooSlow(
                f"the photo has not come in within the {seconds:g} s that UPLOAD_TIMEOUT allows:"
                " send fewer, or smaller ones, in a request"
            ) from None
        finally:
            lend.cancel()
        if not self._places:
            self.take()

    def _lend(self) -> None:
        self._admission.give_back(self._places)
        self._places = 0

    def hold(self, size: int) -> None:
        """Counts bytes of the request's that are in memory from now on, or no more; see Admission.

        Raises:
            Overloaded: all requests together would have too many.
        """
        self._admission.hold(size)
        self._bytes += size

    def widen(self, photos: int) -> int:
        """Takes what is free for a request of several photos; returns its places, 1 at least.

        Of so many of its photos may it be worked at a time.
        """
        more = self._admission.free(photos - 1)
        self._admission.take(more)
        self._places += more
        return self._places

    def give_back(self) -> None:
        """Gives back all that it has."""
        self._admission.give_back(self._places)
        self._admission.hold(-self._bytes)
        self._places = self._bytes = 0
