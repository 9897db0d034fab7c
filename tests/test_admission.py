"""Places and bytes: who is let in, who is not, and that everything comes back."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from backend.admission import Admission, Place
from backend.errors import Overloaded, TooSlow
from backend.metrics import Limit, Metrics
from tests.test_metrics import value

Make = Callable[..., Admission]


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def figures() -> Metrics:
    """Where refusals are counted."""
    return Metrics()


@pytest.fixture
def admission(figures: Metrics) -> Make:
    """Makes an admission of some places and bytes."""

    def make(places: int = 2, max_bytes: int = 100, body_timeout: float = 60) -> Admission:
        return Admission(
            figures,
            places=places,
            max_bytes=max_bytes,
            body_timeout=body_timeout,
            longest_wait=30,
        )

    return make


def refused(figures: Metrics, limit: Limit) -> float | None:
    return value(figures, "requests_refused_total", limit=limit)


def test_whoever_comes_when_all_places_are_taken_is_refused_at_once(
    admission: Make, figures: Metrics
) -> None:
    here = admission(2)
    assert refused(figures, "MAX_QUEUED") == 0
    with here.place(), here.place():
        assert here.taken == 2
        for _ in range(3):
            with pytest.raises(Overloaded, match="try again in 1 s"), here.place():
                raise AssertionError("it was let in")
        assert here.taken == 2
    assert here.taken == 0
    assert refused(figures, "MAX_QUEUED") == 3
    with here.place():
        assert here.taken == 1


def test_a_place_comes_back_from_whoever_fails(admission: Make) -> None:
    here = admission(1)

    def fail() -> None:
        with here.place() as place:
            place.hold(40)
            raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        fail()
    assert (here.taken, here.held_bytes) == (0, 0)


async def test_a_place_comes_back_from_whoever_goes_away(admission: Make) -> None:
    here = admission(1)
    begun = asyncio.Event()

    async def request() -> None:
        with here.place() as place:
            async with place.reading():
                place.hold(40)
                begun.set()
                await asyncio.Event().wait()

    task = asyncio.create_task(request())
    await begun.wait()
    assert (here.taken, here.held_bytes) == (1, 40)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (here.taken, here.held_bytes) == (0, 0)


# When to ask again


@pytest.mark.parametrize(
    ("places", "each", "seconds"),
    [(48, 1 / 16, 3), (48, 1 / 100, 1), (10, 0.55, 6), (48, 5.0, 30)],
    ids=["as it goes", "at least a second", "rounded up", "at most the longest wait"],
)
def test_who_is_refused_is_told_when_those_before_him_will_have_gone(
    admission: Make, monkeypatch: pytest.MonkeyPatch, places: int, each: float, seconds: int
) -> None:
    clock = Clock()
    monkeypatch.setattr("backend.admission.time", SimpleNamespace(monotonic=clock.monotonic))
    here = admission(places)
    here.take(places)
    for _ in range(200):
        clock.now += each
        here.give_back(1)
        here.take(1)
    with pytest.raises(Overloaded) as refusal:
        here.take(1)
    assert refusal.value.retry_after == seconds
    assert f"{seconds} s" in str(refusal.value)


def test_the_time_with_nothing_to_do_does_not_count(
    admission: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("backend.admission.time", SimpleNamespace(monotonic=clock.monotonic))
    here = admission(48)
    for _ in range(100):
        with here.place():
            clock.now += 0.1
        clock.now += 3600
    here.take(48)
    with pytest.raises(Overloaded) as refusal:
        here.take(1)
    assert refusal.value.retry_after == 5


def test_where_nothing_comes_back_the_wait_grows(
    admission: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("backend.admission.time", SimpleNamespace(monotonic=clock.monotonic))
    here = admission(2)
    here.take(2)
    for after, seconds in ((0.1, 1), (4, 4), (14.5, 15), (100, 30)):
        clock.now = 1000 + after
        with pytest.raises(Overloaded) as refusal:
            here.take(1)
        assert refusal.value.retry_after == seconds


# Bodies


def test_bytes_are_held_until_the_request_ends_and_no_more_than_there_may_be(
    admission: Make, figures: Metrics
) -> None:
    here = admission(3, max_bytes=100)
    with here.place() as one:
        one.hold(60)
        with here.place() as other:
            other.hold(40)
            assert here.held_bytes == 100
            with pytest.raises(Overloaded):
                other.hold(1)
            assert here.held_bytes == 100
        assert here.held_bytes == 60
        one.hold(-20)
        one.hold(60)
        assert here.held_bytes == 100
    assert here.held_bytes == 0
    assert refused(figures, "MAX_UPLOADS_IN_MEMORY") == 1
    assert refused(figures, "MAX_QUEUED") == 0


async def lent(here: Admission) -> None:
    """Returns when all places have come back."""
    async with asyncio.timeout(10):
        while here.taken:
            await asyncio.sleep(0.02)


async def test_bodies_that_come_slowly_keep_nobody_out(
    admission: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.admission._PATIENCE_SECONDS", 0.1)
    here = admission(2)
    end = asyncio.Event()

    async def slow() -> str:
        try:
            with here.place() as place:
                async with place.reading():
                    await end.wait()
                assert here.taken <= 2
                await asyncio.sleep(0.05)
        except Overloaded:
            return "refused"
        return "done"

    for _ in range(3):
        senders = [asyncio.create_task(slow()) for _ in range(2)]
        await asyncio.sleep(0)
        assert here.taken == 2
        await lent(here)
        with here.place():  # whose body has come
            end.set()
            # There is one place for both of them, which are through now.
            assert sorted(await asyncio.gather(*senders)) == ["done", "refused"]
        end.clear()
        assert here.taken == 0


async def test_a_body_that_comes_at_once_keeps_its_place(
    admission: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.admission._PATIENCE_SECONDS", 0.1)
    here = admission(1)
    with here.place() as place:
        async with place.reading():
            assert here.taken == 1
        await asyncio.sleep(0.3)
        assert here.taken == 1
    assert here.taken == 0


async def test_a_body_that_does_not_come_is_given_up(admission: Make) -> None:
    here = admission(1, body_timeout=0.05)
    with here.place() as place:
        place.hold(3)
        with pytest.raises(TooSlow, match="UPLOAD_TIMEOUT"):
            async with place.reading():
                await asyncio.Event().wait()
    assert (here.taken, here.held_bytes) == (0, 0)


async def test_a_timeout_of_somebody_else_s_is_not_the_body_s(admission: Make) -> None:
    with pytest.raises(TimeoutError), admission().place() as place:
        async with place.reading():
            raise TimeoutError


# Several photos


def test_a_request_of_many_photos_gets_a_quarter_of_the_places_or_what_is_free(
    admission: Make,
) -> None:
    here = admission(16)

    def widened(photos: int) -> tuple[Place, int]:
        place = Place(here)
        place.take()
        return place, place.widen(photos)

    first, width = widened(64)
    assert (width, here.taken) == (4, 4)
    assert widened(3)[1] == 3
    assert widened(1)[1] == 1
    for taken in (12, 16):
        assert widened(64)[1] == 4
        assert here.taken == taken
    first.give_back()
    assert here.taken == 12
    assert widened(2)[1] == 2
    assert widened(2)[1] == 2
    assert here.taken == 16


@pytest.mark.parametrize("places", [1, 2, 3])
def test_a_request_of_many_photos_gets_in_where_there_are_few_places(
    admission: Make, places: int
) -> None:
    here = admission(places)
    with here.place() as place:
        assert place.widen(64) == 1
        assert here.taken == 1
    assert here.taken == 0
