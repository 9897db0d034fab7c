"""Threads for what keeps a processor busy: a thread a core, and who is waited for comes first."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, Generic, ParamSpec, TypeVar

from backend.cores import count_cores
from backend.precedence import Precedence

__all__ = ["Workers"]

_T = TypeVar("_T")
_P = ParamSpec("_P")


class _Job(Generic[_T]):
    """A call that has yet to be made, and its outcome."""

    def __init__(self, call: Callable[[], _T]) -> None:
        self._call = call
        self.outcome: Future[_T] = Future()

    def do(self) -> None:
        """Makes the call, unless nobody waits for it any more."""
        if not self.outcome.set_running_or_notify_cancel():
            return
        try:
            result = self._call()
        except BaseException as error:
            self.outcome.set_exception(error)
        else:
            self.outcome.set_result(result)


class Workers:
    """A thread a core.

    Calls for a request, which has a deadline, are made before those for loads, which have none, in
    either case first come first served. What a thread has begun it ends: a call should take some
    milliseconds.
    """

    def __init__(self, name: str) -> None:
        """`name`: the threads'."""
        self._threads = ThreadPoolExecutor(count_cores(), thread_name_prefix=name)
        self._jobs = Precedence[_Job[Any]]()

    async def run(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """What a function returns that runs in one of the threads.

        One that is cancelled before its turn is not run.
        """
        context = copy_context()  # stages that are timed, and traces, are the caller's
        job = _Job(lambda: context.run(function, *args, **kwargs))
        self._jobs.add(job)
        self._threads.submit(self._do_next)  # as often as there are jobs, for whichever is first
        return await asyncio.wrap_future(job.outcome)

    def _do_next(self) -> None:
        self._jobs.take().do()

    async def close(self) -> None:
        """Ends the threads, after what they have begun; the rest is not run."""
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)
        for job in self._jobs:
            job.outcome.cancel()
