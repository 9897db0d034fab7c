"""How many requests are let through, and what is remembered of who has made them."""

import pytest

from backend.rates import RateLimiter


class _Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_minutes_worth_may_come_at_once_and_not_one_more() -> None:
    clock = _Clock()
    limiter = RateLimiter(7, clock=clock)
    assert [limiter.take("a") for _ in range(7)] == [0.0] * 7
    wait = limiter.take("a")
    assert wait == pytest.approx(60 / 7)
    assert limiter.take("b") == 0.0  # which is nobody else's concern


def test_whoever_waits_as_told_is_let_through_and_whoever_does_not_is_not() -> None:
    clock = _Clock()
    limiter = RateLimiter(60, clock=clock)
    for _ in range(60):
        assert limiter.take("a") == 0.0
    wait = limiter.take("a")
    clock.now += wait * 0.9
    assert limiter.take("a") > 0
    clock.now += wait * 0.11
    assert limiter.take("a") == 0.0
    assert limiter.take("a") > 0


def test_nobody_gets_more_than_that_on_the_long_run() -> None:
    clock = _Clock()
    limiter = RateLimiter(30, clock=clock)
    let_through = 0
    for _ in range(6000):  # ten a second for ten minutes
        clock.now += 0.1
        let_through += limiter.take("a") == 0.0
    assert 30 * 10 <= let_through <= 30 * 11


def test_being_refused_makes_nobody_wait_longer() -> None:
    clock = _Clock()
    limiter = RateLimiter(1, clock=clock)
    limiter.take("a")
    waits = {limiter.take("a") for _ in range(100)}
    assert len(waits) == 1


def test_no_limit_remembers_nobody() -> None:
    limiter = RateLimiter(0)
    assert all(limiter.take(str(number)) == 0.0 for number in range(100))
    assert len(limiter) == 0


def test_invented_callers_do_not_fill_the_memory_and_those_who_go_on_are_remembered() -> None:
    clock = _Clock()
    limiter = RateLimiter(2, clock=clock, most=50)
    for number in range(5000):
        limiter.take(f"invented {number}")
        if number % 10 == 0:
            limiter.take("busy")
            clock.now += 0.001
    assert len(limiter) == 50
    assert limiter.take("busy") > 0
