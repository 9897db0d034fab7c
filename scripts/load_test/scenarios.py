"""What users do, one request after another."""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Final, Literal

from scripts.load_test.apis import Api, Call
from scripts.load_test.photos import Photos

__all__ = ["SCENARIOS", "Scenario", "Visit"]

Visit = Generator[Call, list[str], None]
"""A user's calls without end; it is sent what each has found, nothing where it has failed."""


@dataclass(frozen=True)
class Scenario:
    """What users do, and what must be there before.

    Attributes:
        visit: makes a user.
        filled: how the collection comes to its photos: each is uploaded, or the service loads
            the folder.
        while_loading: whether the service loads the folder again and again meanwhile.
        apis: those whose calls it makes.
    """

    summary: str
    visit: Callable[[Api, Photos, Random], Visit]
    filled: Literal["uploads", "load"] | None = "uploads"
    while_loading: bool = False
    apis: tuple[str, ...] = ("v1", "existing")


def _search(api: Api, photos: Photos, draw: Random) -> Visit:
    while True:
        yield api.search(photos.fresh())


def _upload(api: Api, photos: Photos, draw: Random) -> Visit:
    while True:
        yield api.upload(photos.fresh())


def _mix(api: Api, photos: Photos, draw: Random) -> Visit:
    found: list[str] = []
    while True:
        [kind] = draw.choices(("search", "upload", "look"), (6, 1, 3))
        if kind == "search" or not found:
            found = (yield api.search(photos.fresh())) or found
        elif kind == "upload":
            yield api.upload(photos.fresh())
        else:
            yield draw.choice(api.looks(found))


def _existing(api: Api, photos: Photos, draw: Random) -> Visit:
    while True:
        found = yield api.search(photos.fresh())
        for call in api.looks(found):  # noqa: UP028 - a list takes nothing that is sent
            yield call


SCENARIOS: Final[Mapping[str, Scenario]] = {
    "search": Scenario("searches alone", _search),
    "search-during-load": Scenario(
        "searches while the service loads the folder", _search, while_loading=True
    ),
    "uploads": Scenario("uploads alone", _upload, filled=None),
    "mixed": Scenario("of ten requests six search, one uploads, three look at results", _mix),
    "existing": Scenario(
        "as the existing scripts: the folder is loaded, then each search is followed by /progress,"
        " /img/count and the photos that it has found",
        _existing,
        filled="load",
        apis=("existing",),
    ),
}
