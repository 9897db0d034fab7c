"""Waiting for engines that do not answer, once for everybody who waits."""

import asyncio
import math
import random
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Final

import structlog

from backend.errors import EngineUnavailable, StillWriting, StoreUnavailable
from backend.metrics import Metrics
from backend.readiness import Readiness

__all__ = ["Outages"]

_log = structlog.get_logger(__name__)

_FIRST_DELAY_SECONDS: Final = 0.25
_LONGEST_DELAY_SECONDS: Final = 3.0
_CALM_SECONDS: Final = 30.0
"""After the end of an outage; one that begins before goes on with the delays of the one before."""


class Outages:
    """Begins an outage when an engine has failed somebody, and ends it when all engines work.

    Before it ends, what the failure has left half done is mended; whoever waits then goes on. All
    engines are probed, since one that is back is of no use while another is away.

    Attributes:
        engines: those that are waited for at the moment.
    """

    def __init__(
        self, readiness: Readiness, mend: Callable[[], Awaitable[None]], figures: Metrics
    ) -> None:
        self.engines: tuple[str, ...] = ()
        self._readiness = readiness
        self._mend = mend
        self._figures = figures
        self._task: asyncio.Task[None] | None = None
        self._failed_again = False
        self._delay = _FIRST_DELAY_SECONDS
        self._ended = -math.inf

    def begin(self, trouble: EngineUnavailable) -> "asyncio.Task[None]":
        """Begins an outage, or joins the one that there is; the task ends with it."""
        self._failed_again = True
        if self._task is None or self._task.done():
            self.engines = (trouble.engine,)
            self._figures.count_engine_error(trouble)
            _log.warning("outage.began", engine=trouble.engine, reason=str(trouble))
            # It is nobody's: neither the deadline nor the id of the request that it has failed.
            self._task = asyncio.create_task(self._run(), name="outage", context=Context())
        return self._task

    async def over(self, trouble: EngineUnavailable) -> None:
        """Returns when every engine works and what was half done is mended.

        Of a store of photos: when it answers. Nothing is half done there, and who needs no photo of
        it has not noticed. Of an engine that is still writing: soon, since each attempt waits
        itself, and others need not.

        Raises:
            StoreRefuses: the store answers, and does not let us in.
        """
        if isinstance(trouble, StoreUnavailable):
            await self._store_answers(trouble)
            return
        if isinstance(trouble, StillWriting):
            await asyncio.sleep(_LONGEST_DELAY_SECONDS)
            return
        # Shielded: one who waits no longer takes nobody else's wait along.
        await asyncio.shield(self.begin(trouble))

    async def _store_answers(self, trouble: StoreUnavailable) -> None:
        delay = _FIRST_DELAY_SECONDS
        while True:
            await asyncio.sleep(delay * random.uniform(0.5, 1))
            delay = min(2 * delay, _LONGEST_DELAY_SECONDS)
            try:
                await asyncio.to_thread(trouble.probe)
            except StoreUnavailable:
                continue
            return

    async def close(self) -> None:
        """Gives up waiting; the next start mends."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        # An engine may pass its probe and yet refuse what it is asked, again and again.
        if start - self._ended > _CALM_SECONDS:
            self._delay = _FIRST_DELAY_SECONDS
        while True:
            # Not all services that share an engine should come back to it in the same moment.
            await asyncio.sleep(self._delay * random.uniform(0.5, 1))
            self._delay = min(2 * self._delay, _LONGEST_DELAY_SECONDS)
            states = await self._readiness.check()
            away = tuple(state.engine for state in states if not state.is_ready)
            if away:
                if away != self.engines:
                    _log.warning("outage.waiting", engines=",".join(away))
                self.engines = away
                continue
            self._failed_again = False
            try:
                await self._mend()
            except EngineUnavailable as trouble:
                self.engines = (trouble.engine,)
                continue
            except Exception:
                # Whoever waits shall find out for himself; the next start mends.
                _log.exception("outage.not_mended")
            if not self._failed_again:
                break
        self.engines = ()
        self._ended = loop.time()
        _log.info("outage.ended", seconds=round(loop.time() - start, 1))
