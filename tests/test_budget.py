"""Who gets a part of what is shared, and when."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from backend.budget import Budget
from backend.deadlines import deadline


class _Takers:
    """Takes parts, each in a task of its own, and says who has got theirs."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.have: list[str] = []
        self._done: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, name: str, amount: int, *, seconds: float | None = None) -> None:
        self._done[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._take(name, amount, seconds))
        await _settle()

    async def _take(self, name: str, amount: int, seconds: float | None) -> None:
        async with AsyncExitStack() as stack:
            if seconds is not None:
                stack.enter_context(deadline(seconds))
            await stack.enter_async_context(self._budget.part(amount))
            self.have.append(name)
            await self._done[name].wait()

    async def finish(self, name: str) -> None:
        self._done[name].set()
        await self._tasks[name]
        await _settle()

    async def cancel(self, name: str) -> None:
        self._tasks[name].cancel()
        await asyncio.wait([self._tasks[name]])
        await _settle()


async def _settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_parts_are_given_while_there_are_some_left() -> None:
    takers = _Takers(Budget(10))
    await takers.ask("a", 6)
    await takers.ask("b", 4)
    await takers.ask("c", 1)
    assert takers.have == ["a", "b"]
    await takers.finish("b")
    assert takers.have == ["a", "b", "c"]
    await takers.finish("a")
    await takers.finish("c")


async def test_a_large_part_is_not_passed_by_small_ones() -> None:
    takers = _Takers(Budget(10))
    await takers.ask("small", 3)
    await takers.ask("large", 8)
    await takers.ask("another", 1)
    assert takers.have == ["small"]
    await takers.finish("small")
    assert takers.have == ["small", "large", "another"]
    await takers.finish("large")
    await takers.finish("another")


async def test_more_than_there_is_means_all_of_it() -> None:
    takers = _Takers(Budget(10))
    await takers.ask("huge", 1000)
    await takers.ask("next", 1)
    assert takers.have == ["huge"]
    await takers.finish("huge")
    assert takers.have == ["huge", "next"]
    await takers.finish("next")


async def test_a_request_goes_before_loads() -> None:
    takers = _Takers(Budget(10))
    await takers.ask("first", 10)
    await takers.ask("load", 10)
    await takers.ask("request", 10, seconds=60)
    await takers.finish("first")
    assert takers.have == ["first", "request"]
    await takers.finish("request")
    assert takers.have == ["first", "request", "load"]
    await takers.finish("load")


async def test_who_waits_no_longer_than_the_deadline_leaves_what_it_asked_for() -> None:
    budget = Budget(10)
    takers = _Takers(budget)
    await takers.ask("first", 8)
    with deadline(0.01), pytest.raises(TimeoutError):
        async with budget.part(5):
            pass
    await takers.ask("next", 2)
    assert takers.have == ["first", "next"]
    await takers.finish("first")
    await takers.finish("next")


async def test_who_is_cancelled_stands_in_nobodys_way() -> None:
    takers = _Takers(Budget(10))
    await takers.ask("first", 8)
    await takers.ask("large", 8)
    await takers.ask("small", 2)
    assert takers.have == ["first"]
    await takers.cancel("large")
    assert takers.have == ["first", "small"]
    await takers.finish("first")
    await takers.finish("small")


async def test_a_part_that_comes_together_with_the_cancellation_is_not_lost() -> None:
    budget = Budget(10)
    holds = budget.part(10)
    await holds.__aenter__()
    takers = _Takers(budget)
    await takers.ask("cancelled", 10)
    leaves = asyncio.create_task(takers.cancel("cancelled"))
    await holds.__aexit__(None, None, None)  # its turn comes first, then the cancellation
    await leaves
    assert takers.have == []
    await takers.ask("next", 10)
    assert takers.have == ["next"]
    await takers.finish("next")


async def test_an_error_inside_gives_the_part_back() -> None:
    budget = Budget(10)
    with pytest.raises(ZeroDivisionError):
        async with budget.part(10):
            raise ZeroDivisionError
    async with asyncio.timeout(10), budget.part(10):
        pass
