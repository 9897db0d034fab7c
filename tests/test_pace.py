"""How many photos are in flight, on machines of every kind: simulated, with clocks of their own."""

import asyncio
import heapq
import random

import pytest

from backend.pace import Pace

_LOWEST, _HIGHEST = 4, 256


class _Machine:
    """Does photos one after another, so many a second, each some time after it was sent.

    So `capacity * latency` photos in flight keep it busy; each takes up to a fifth more or less.
    """

    def __init__(self, capacity: float, latency: float, seed: int) -> None:
        self.capacity, self.latency = capacity, latency
        self.time = 0.0
        self._random = random.Random(seed)
        self._free = 0.0
        self._ends: list[float] = []

    def send(self) -> None:
        begins = max(self._free, self.time + self.latency * self._random.uniform(0.8, 1.2))
        self._free = begins + self._random.uniform(0.8, 1.2) / self.capacity
        heapq.heappush(self._ends, self._free)

    def finish(self) -> None:
        self.time = heapq.heappop(self._ends)


async def _run(pace: Pace, machine: _Machine, photos: int) -> tuple[float, list[int]]:
    """Photos a second, and the level after each photo."""
    in_flight, levels, began = 0, [], machine.time
    for _ in range(photos):
        while in_flight < pace.level:
            await pace.enter()
            machine.send()
            in_flight += 1
        machine.finish()
        pace.leave()
        in_flight -= 1
        levels.append(pace.level)
    seconds = machine.time - began
    while in_flight:
        machine.finish()
        pace.leave()
        in_flight -= 1
    return photos / seconds, levels


def _pace(machine: _Machine) -> Pace:
    return Pace(_LOWEST, _HIGHEST, clock=lambda: machine.time)


@pytest.mark.parametrize("seed", range(5))
async def test_a_machine_that_is_busy_with_the_fewest_gets_no_more(seed: int) -> None:
    machine = _Machine(capacity=80, latency=0.02, seed=seed)
    speed, levels = await _run(_pace(machine), machine, 5000)
    assert speed >= 0.99 * machine.capacity
    assert sum(levels) / len(levels) <= _LOWEST + 1  # tries count


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("capacity", "latency"), [(300, 0.05), (1000, 0.05), (1000, 0.1), (2000, 0.1)]
)
async def test_a_machine_far_away_gets_as_many_as_keep_it_busy(
    capacity: float, latency: float, seed: int
) -> None:
    machine = _Machine(capacity, latency, seed)
    pace = _pace(machine)
    await _run(pace, machine, 20_000)
    speed, levels = await _run(pace, machine, 10_000)
    assert speed >= 0.85 * capacity  # tries of fewer count
    assert sum(levels) / len(levels) <= 2.5 * capacity * latency


async def test_what_is_best_may_change() -> None:
    machine = _Machine(capacity=1000, latency=0.1, seed=1)
    pace = _pace(machine)
    await _run(pace, machine, 20_000)
    assert pace.level >= 60
    machine.latency = 0.01
    await _run(pace, machine, 60_000)
    assert pace.level <= 40


async def test_more_photos_than_an_engine_bears_are_not_tried_again_at_once() -> None:
    machine = _Machine(capacity=1000, latency=0.1, seed=1)
    pace = _pace(machine)
    failures = []
    for number in range(20_000):
        await pace.enter()
        machine.time += 0.01
        if pace.level > _LOWEST:  # it fails at once
            failures.append(number)
            pace.go_on()
            assert pace.level == _LOWEST
        pace.leave()
    windows = 20_000 / (0.5 / 0.01)
    assert 2 <= len(failures) <= windows / 30 + 1


async def test_a_level_that_is_given_stays() -> None:
    machine = _Machine(capacity=1000, latency=0.1, seed=1)
    _, levels = await _run(Pace(7, 7, clock=lambda: machine.time), machine, 5000)
    assert set(levels) == {7}


async def test_nobody_enters_before_another_has_left() -> None:
    pace = Pace(2, 2)
    await pace.enter()
    await pace.enter()
    third = asyncio.create_task(pace.enter())
    await asyncio.sleep(0.01)
    assert not third.done()
    pace.leave()
    async with asyncio.timeout(10):
        await third


async def test_a_pause_counts_for_no_try() -> None:
    machine = _Machine(capacity=1000, latency=0.1, seed=1)
    pace = _pace(machine)
    await _run(pace, machine, 20_000)
    level = pace.level
    machine.time += 3600
    pace.begin()
    _, levels = await _run(pace, machine, 500)
    assert min(levels) >= level / 2
