"""How long a request may still take."""

import asyncio
import math
from contextvars import Context

import pytest

from backend.deadlines import acquire, deadline, time_left


async def test_without_a_deadline_a_call_may_take_its_limit() -> None:
    assert time_left(30) == 30
    assert time_left(math.inf) == math.inf


async def test_a_deadline_shortens_what_a_call_may_take_and_ends_with_its_block() -> None:
    with deadline(5):
        assert 4 < time_left(30) <= 5
        assert time_left(1) == 1
    assert time_left(30) == 30


async def test_of_two_deadlines_the_earlier_one_counts() -> None:
    with deadline(5):
        with deadline(50):
            assert time_left(100) <= 5
        with deadline(1):
            assert time_left(100) <= 1
        assert 4 < time_left(100) <= 5


async def test_what_is_over_leaves_nothing_and_never_less() -> None:
    with deadline(0):
        await asyncio.sleep(0.01)
        assert time_left(30) == 0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(time_left(30)):
                await asyncio.sleep(1)


async def test_tasks_inherit_the_deadline_unless_they_have_a_context_of_their_own() -> None:
    async def left() -> float:
        return time_left(30)

    with deadline(5):
        assert await asyncio.create_task(left()) <= 5
        assert await asyncio.create_task(left(), context=Context()) == 30
        assert time_left(30) <= 5


async def test_a_lock_is_waited_for_until_the_deadline() -> None:
    lock = asyncio.Lock()
    await acquire(lock)
    with deadline(0.05), pytest.raises(TimeoutError):
        await acquire(lock)
    waiting = asyncio.create_task(acquire(lock))
    await asyncio.sleep(0)
    lock.release()
    await waiting
    assert lock.locked()
