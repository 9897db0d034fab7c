"""How often engines are asked whether they do their work; `http/test_health.py` has the rest."""

import asyncio

from backend.app import Services


async def test_those_who_ask_at_once_share_a_probe(services: Services) -> None:
    first, second = await asyncio.gather(services.readiness.check(), services.readiness.check())
    assert first is second
    assert all(state.is_ready for state in first)
    assert await services.readiness.check() is not first


async def test_what_was_found_is_told_again_to_whom_it_is_new_enough(services: Services) -> None:
    found = await services.readiness.check(max_age=60)
    assert await services.readiness.check(max_age=60) is found
    assert await services.readiness.check(max_age=0) is not found
