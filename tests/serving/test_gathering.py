"""Requests that travel together."""

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.deadlines import deadline, time_left
from backend.serving.gathering import Gatherer, Outputs, Spare


class Doubling:
    """A model that doubles what it is given, when it is told to go on."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        """The rows of each request of each call that was begun."""
        self.cancelled = 0
        self.seconds_left: list[float] = []
        self.failing: Exception | None = None
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self, batches: Sequence[NDArray[np.uint8]], _until: float) -> Outputs:
        self.calls.append([len(batch) for batch in batches])
        self.seconds_left.append(time_left(math.inf))
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        await asyncio.sleep(0)
        if self.failing is not None:
            raise self.failing
        return {"doubled": np.concatenate(list(batches)) * 2}


@pytest.fixture
async def model() -> Doubling:
    return Doubling()


def gatherer(model: Doubling, *, places: int = 1, spare: Spare | None = None) -> Gatherer:
    return Gatherer(model, max_rows=8, places=lambda: places, spare=spare or Spare(0))


def ask(asked: Gatherer, value: int, rows: int = 1, seconds: float = 10) -> "asyncio.Task[Any]":
    until = asyncio.get_running_loop().time() + seconds
    return asyncio.create_task(asked.infer(np.full((rows, 2), value, np.uint8), until))


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_each_gets_the_answer_to_its_own_rows(model: Doubling) -> None:
    asked = gatherer(model, places=2)
    tasks = [ask(asked, value, rows=1 + value % 3) for value in range(20)]
    for value, task in enumerate(tasks):
        rows = (await task)["doubled"]
        np.testing.assert_array_equal(rows, np.full((1 + value % 3, 2), 2 * value))
    assert max(map(len, model.calls)) > 1
    assert max(map(sum, model.calls)) <= 8


async def test_alone_a_request_goes_at_once(model: Doubling) -> None:
    asked = gatherer(model)
    for value in range(3):
        await ask(asked, value)
    assert model.calls == [[1], [1], [1]]


async def test_who_waits_goes_with_the_next_call(model: Doubling) -> None:
    model.go.clear()
    asked = gatherer(model)
    tasks = [ask(asked, value) for value in range(5)]
    await settle()
    assert model.calls == [[1]]
    model.go.set()
    await asyncio.gather(*tasks)
    assert model.calls == [[1], [1, 1, 1, 1]]


async def test_a_search_goes_before_the_photos_of_a_load(model: Doubling) -> None:
    model.go.clear()
    asked = gatherer(model)
    first = ask(asked, 0)
    loads = [ask(asked, value, rows=5) for value in range(2)]
    await settle()
    with deadline(60):
        search = ask(asked, 9, rows=3)
    await settle()
    model.go.set()
    await search
    assert model.calls[1][0] == 3
    await asyncio.gather(first, *loads)


async def test_two_calls_share_what_waits(model: Doubling) -> None:
    model.go.clear()
    asked = gatherer(model, places=2)
    tasks = [ask(asked, value) for value in range(8)]
    await settle()
    assert model.calls == [[1], [1]]
    model.go.set()
    await asyncio.gather(*tasks)
    assert model.calls[2] == [1, 1, 1]  # half of six, and not all of them


async def test_a_spare_call_is_one_for_all(model: Doubling) -> None:
    model.go.clear()
    spare = Spare(1)
    busy, idle = gatherer(model, spare=spare), gatherer(model, spare=spare)
    tasks = [ask(busy, value) for value in range(4)]
    await settle()
    assert len(model.calls) == 2  # its place, and the spare one
    tasks += [ask(idle, value) for value in range(4)]
    await settle()
    assert len(model.calls) == 3
    model.go.set()
    await asyncio.gather(*tasks)
    assert (busy.spare_calls, idle.spare_calls) == (0, 0)


async def test_who_has_given_up_is_not_asked_for(model: Doubling) -> None:
    model.go.clear()
    asked = gatherer(model)
    tasks = [ask(asked, value) for value in range(4)]
    await settle()
    tasks[2].cancel()
    model.go.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert model.calls == [[1], [1, 1]]
    assert tasks[2].cancelled()


async def test_a_call_is_cancelled_with_the_last_who_waits_for_it(model: Doubling) -> None:
    model.go.clear()
    asked = gatherer(model)
    first = ask(asked, 0)
    await settle()
    others = [ask(asked, value) for value in (1, 2)]
    first.cancel()
    await settle()
    assert (model.cancelled, model.calls) == (1, [[1], [1, 1]])
    others[0].cancel()
    await settle()
    assert model.cancelled == 1
    others[1].cancel()
    await settle()
    assert model.cancelled == 2


async def test_nobody_has_less_time_because_of_others(model: Doubling) -> None:
    model.go.clear()
    asked = gatherer(model)
    with deadline(0.01):
        first, second = ask(asked, 0), ask(asked, 1)
    await settle()
    third = ask(asked, 2)
    await asyncio.sleep(0.02)
    model.go.set()
    await asyncio.gather(first, second, third)
    assert model.calls == [[1], [1, 1]]
    assert model.seconds_left == [math.inf, math.inf]


async def test_who_waits_for_too_long_is_told_and_the_others_are_not(model: Doubling) -> None:
    model.go.clear()
    asked = gatherer(model)
    patient, hasty = ask(asked, 1), ask(asked, 2, seconds=0.05)
    with pytest.raises(TimeoutError):
        await hasty
    model.go.set()
    assert (await patient)["doubled"][0, 0] == 2
    assert model.calls == [[1]]


async def test_a_failure_is_everybodys_once_and_then_each_goes_alone(model: Doubling) -> None:
    asked = gatherer(model)
    model.failing = ValueError("one of them is bad")
    model.go.clear()
    tasks = [ask(asked, value) for value in range(3)]
    await settle()
    model.go.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [ValueError] * 3
    assert model.calls == [[1], [1, 1]]
    model.failing = None
    await asyncio.gather(*(ask(asked, value) for value in range(3)))
    assert model.calls[2:] == [[1], [1], [1]]
