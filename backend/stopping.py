"""How a command ends that is stopped by a signal."""

import asyncio
import os
import signal
import threading
from collections.abc import Awaitable
from typing import Final

import structlog

__all__ = ["FORCED_STOP_SECONDS", "until_stopped"]

_log = structlog.get_logger(__name__)

FORCED_STOP_SECONDS: Final = 4.0
"""How long a command's clean-up may take."""


async def until_stopped(
    command: Awaitable[int], stopped_code: int, *, forced_after: float = FORCED_STOP_SECONDS
) -> int:
    """Runs a command; SIGINT and SIGTERM cancel it, so that it ends by its own clean-up.

    Where that takes longer than it may (an engine hangs, a thread decodes a huge photo), the
    process ends all the same: what is in flight is undone at the next start, as after a crash.

    Args:
        command: returns its exit code.
        stopped_code: the exit code where a signal has stopped it.
        forced_after: seconds that its clean-up may take.
    """
    task = asyncio.ensure_future(command)
    loop = asyncio.get_running_loop()
    stopped = False

    def stop(number: signal.Signals) -> None:
        nonlocal stopped
        if not stopped:  # a second Ctrl-C must not break into the clean-up
            stopped = True
            _log.info("stopping", signal=number.name)
            force = threading.Timer(forced_after, _force_stop, [stopped_code, forced_after])
            force.daemon = True
            force.start()
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        return await task
    except asyncio.CancelledError:
        if not stopped:
            raise
        return stopped_code
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _force_stop(code: int, after: float) -> None:
    """Ends the whole process; also after a clean stop, where a thread keeps it from ending."""
    _log.warning("stop.forced", after_seconds=after)
    os._exit(code)
