"""Work that is done once for all who ask for it together."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from backend.deadlines import deadline, time_left
from backend.errors import NotFound, Unavailable
from backend.single_flight import SingleFlight


class _Work:
    """Work that ends when it is told to, and knows what has become of it."""

    def __init__(self) -> None:
        self.started = 0
        self.cancelled = 0
        self.may_end = asyncio.Event()
        self.seconds_left = 0.0

    async def __call__(self) -> int:
        self.started += 1
        self.seconds_left = time_left(1000)
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return self.started


@pytest.fixture
async def flights() -> AsyncIterator[SingleFlight[int]]:
    """With nothing under way."""
    opened: SingleFlight[int] = SingleFlight()
    yield opened
    await opened.close()


async def _started(*tasks: asyncio.Task[int]) -> None:
    for _ in range(5):
        await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)


async def test_those_who_ask_together_share_the_work(flights: SingleFlight[int]) -> None:
    work, other = _Work(), _Work()
    tasks = [asyncio.create_task(flights.run("a", work)) for _ in range(5)]
    different = asyncio.create_task(flights.run("b", other))
    await _started(*tasks, different)
    assert (work.started, other.started) == (1, 1)
    work.may_end.set()
    assert await asyncio.gather(*tasks) == [1] * 5
    assert not different.done()
    other.may_end.set()
    await different


async def test_who_asks_afterwards_has_it_done_again(flights: SingleFlight[int]) -> None:
    work = _Work()
    work.may_end.set()
    assert [await flights.run("a", work) for _ in range(3)] == [1, 2, 3]


async def test_a_failure_is_everybodys_and_is_not_remembered(flights: SingleFlight[int]) -> None:
    async def fail() -> int:
        await asyncio.sleep(0)
        raise NotFound("gone")

    results = await asyncio.gather(
        *(flights.run("a", fail) for _ in range(3)), return_exceptions=True
    )
    assert [str(result) for result in results] == ["gone"] * 3
    work = _Work()
    work.may_end.set()
    assert await flights.run("a", work) == 1


@pytest.mark.parametrize("leaving", [0, 1, 2])
async def test_one_who_is_cancelled_does_not_concern_the_others(
    flights: SingleFlight[int], leaving: int
) -> None:
    work = _Work()
    tasks = [asyncio.create_task(flights.run("a", work)) for _ in range(3)]
    await _started(*tasks)
    tasks.pop(leaving).cancel()
    await _started(*tasks)
    work.may_end.set()
    assert await asyncio.gather(*tasks) == [1, 1]
    assert work.cancelled == 0


async def test_work_that_nobody_waits_for_is_cancelled_and_not_joined(
    flights: SingleFlight[int],
) -> None:
    work = _Work()
    tasks = [asyncio.create_task(flights.run("a", work)) for _ in range(2)]
    await _started(*tasks)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    later = asyncio.create_task(flights.run("a", work))
    await _started(later)
    assert (work.started, work.cancelled) == (2, 1)
    work.may_end.set()
    assert await later == 2


async def test_each_waits_until_his_own_deadline(flights: SingleFlight[int]) -> None:
    work = _Work()

    async def hurried() -> int:
        with deadline(0.02):
            return await flights.run("a", work)

    late, patient = asyncio.create_task(hurried()), asyncio.create_task(flights.run("a", work))
    with pytest.raises(TimeoutError):
        await late
    # Nor does the work have the deadline of the one who was first.
    assert work.seconds_left == 1000
    work.may_end.set()
    assert await patient == 1


async def test_the_end_of_the_service_is_told_to_those_who_wait(flights: SingleFlight[int]) -> None:
    work = _Work()
    tasks = [asyncio.create_task(flights.run("a", work)) for _ in range(2)]
    await _started(*tasks)
    await flights.close()
    for task in tasks:
        with pytest.raises(Unavailable, match="stopping"):
            await task
    assert work.cancelled == 1
