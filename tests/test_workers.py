"""Threads for the processor's work: whose calls go first, and what becomes of those that nobody
waits for."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar

import pytest

from backend.deadlines import deadline
from backend.workers import Workers


@pytest.fixture
async def workers() -> AsyncIterator[Workers]:
    opened = Workers("tested")
    yield opened
    await opened.close()


class _Gate:
    """Keeps every thread busy until it is opened."""

    def __init__(self, workers: Workers) -> None:
        self._open = threading.Event()
        self._calls = [
            asyncio.ensure_future(workers.run(self._open.wait)) for _ in range(os.cpu_count() or 1)
        ]

    async def closed(self) -> "_Gate":
        await asyncio.sleep(0)  # the calls have been handed over
        return self

    async def open(self) -> None:
        self._open.set()
        await asyncio.gather(*self._calls)


async def test_a_call_returns_or_raises_what_its_function_does(workers: Workers) -> None:
    assert await workers.run(divmod, 7, 3) == (2, 1)
    assert await workers.run(sorted, [1, 3, 2], reverse=True) == [3, 2, 1]
    with pytest.raises(ZeroDivisionError):
        await workers.run(divmod, 1, 0)


async def test_a_request_s_calls_go_before_a_load_s_each_in_their_order(workers: Workers) -> None:
    gate = await _Gate(workers).closed()
    made: list[str] = []
    one_by_one = threading.Lock()

    def make(name: str) -> Callable[[], None]:
        def call() -> None:
            with one_by_one:
                made.append(name)

        return call

    # A thread may be between taking a call and making it while another makes the next one; with a
    # call that waits at the end of each kind there is nothing to overtake.
    calls = [asyncio.ensure_future(workers.run(make(f"load {n}"))) for n in range(50)]
    with deadline(60):
        calls += [asyncio.ensure_future(workers.run(make(f"request {n}"))) for n in range(50)]
    await asyncio.sleep(0)
    await gate.open()
    await asyncio.gather(*calls)
    threads = os.cpu_count() or 1
    first, last = made[: 50 - threads], made[50 + threads :]
    assert all(name.startswith("request") for name in first)
    assert all(name.startswith("load") for name in last)
    for kind in ("request", "load"):
        numbers = [int(name.split()[1]) for name in made if name.startswith(kind)]
        assert all(abs(place - number) < threads for place, number in enumerate(numbers))


async def test_a_call_that_is_cancelled_before_its_turn_is_not_made(workers: Workers) -> None:
    gate = await _Gate(workers).closed()
    made: list[int] = []
    calls = [asyncio.ensure_future(workers.run(made.append, number)) for number in range(4)]
    await asyncio.sleep(0)
    for call in calls[1:3]:
        call.cancel()
    await asyncio.sleep(0)
    await gate.open()
    await asyncio.wait(calls)
    assert sorted(made) == [0, 3]


async def test_a_call_sees_its_caller_s_context(workers: Workers) -> None:
    name: ContextVar[str] = ContextVar("name")
    name.set("caller")
    assert await workers.run(name.get) == "caller"
    await workers.run(name.set, "call")
    assert name.get() == "caller"


async def test_what_has_not_begun_at_the_end_is_cancelled() -> None:
    workers = Workers("closed")
    gate = await _Gate(workers).closed()
    waiting = asyncio.ensure_future(workers.run(int))
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(workers.close())
    await asyncio.sleep(0.01)
    await gate.open()
    await closing
    with pytest.raises(asyncio.CancelledError):
        await waiting
