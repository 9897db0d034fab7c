"""Whose turn it is."""

import threading

import pytest

from backend.deadlines import deadline
from backend.precedence import Precedence


async def _mixed() -> Precedence[str]:
    waiting = Precedence[str]()
    for number in range(3):
        waiting.add(f"load {number}")
        with deadline(60):
            waiting.add(f"request {number}")
    return waiting


_ORDER = ["request 0", "request 1", "request 2", "load 0", "load 1", "load 2"]


async def test_requests_come_before_loads_each_kind_in_its_order() -> None:
    waiting = await _mixed()
    assert list(waiting) == _ORDER
    taken = []
    while waiting:
        assert waiting.first() == next(iter(waiting))
        taken.append(waiting.take())
    assert taken == _ORDER


async def test_who_goes_away_is_passed_by() -> None:
    waiting = await _mixed()
    assert waiting.discard("request 0")
    assert waiting.discard("load 1")
    assert not waiting.discard("load 1")
    assert not waiting.discard("another")
    assert list(waiting) == ["request 1", "request 2", "load 0", "load 2"]


def test_where_nobody_waits_it_is_false_and_there_is_nothing_to_take() -> None:
    waiting = Precedence[str]()
    assert not waiting
    assert list(waiting) == []
    for look in (waiting.first, waiting.take):
        with pytest.raises(IndexError):
            look()


async def test_threads_that_take_together_get_each_item_once() -> None:
    waiting = Precedence[int]()
    for number in range(0, 20_000, 2):
        waiting.add(number)
        with deadline(60):
            waiting.add(number + 1)
    taken: list[list[int]] = [[], []]

    def take(mine: list[int]) -> None:
        for _ in range(10_000):
            mine.append(waiting.take())

    threads = [threading.Thread(target=take, args=(mine,)) for mine in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not waiting
    assert sorted(taken[0] + taken[1]) == list(range(20_000))
