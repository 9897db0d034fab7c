"""What the command line asks for, within bounds."""

import argparse
import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from backend.errors import InvalidInput
from backend.names import MAX_NAME_LENGTH, check_collection_name
from backend.settings import MAX_TOP_K
from scripts.load_test.apis import APIS
from scripts.load_test.errors import LoadTestError
from scripts.load_test.scenarios import SCENARIOS

__all__ = [
    "DEFAULT_COLLECTION",
    "DEFAULT_LOAD",
    "DEFAULT_PHOTOS",
    "DEFAULT_TOP_K",
    "DEFAULT_URL",
    "LOADING_SUFFIX",
    "Options",
    "check_url",
    "choose_api",
    "parse",
    "step_sizes",
]

DEFAULT_URL: Final = "http://127.0.0.1:5010"
DEFAULT_COLLECTION: Final = "load_test"
DEFAULT_PHOTOS: Final = 200
DEFAULT_TOP_K: Final = 10
DEFAULT_LOAD: Final = {"num_users": 16, "spawn_rate": 10, "run_time": "60s"}
"""As Locust calls it."""
LOADING_SUFFIX: Final = "_loading"
"""Of the collection that a folder is loaded into while others search."""
_MOST_USERS: Final = 512
_MOST_SECONDS: Final = 3600
_MOST_PHOTOS: Final = 100_000
_LEAST_STEP_SECONDS: Final = 2.0


@dataclass(frozen=True)
class Options:
    """What to do, checked. `users` is how many there are at most, `spawn_rate` how many come a
    second, `seconds` how long all steps take together.
    """

    scenario: str
    api: str
    url: str
    photos: Path
    at_most: int
    users: int
    spawn_rate: float
    seconds: float
    steps: bool
    top_k: int
    collection: str
    keep: bool
    json: Path | None


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Reads a command line; ends the program with status 2 where it asks for what cannot be.

    Raises:
        LoadTestError: what it asks for does not go together.
    """
    parser = argparse.ArgumentParser(
        prog="python -m scripts.load_test",
        description="Puts the service under load and says what became of its answers.",
        epilog="scenarios:\n"
        + "\n".join(f"  {name:20}{each.summary}" for name, each in SCENARIOS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("scenario", choices=SCENARIOS, metavar="SCENARIO", help=", ".join(SCENARIOS))
    add("--photos", type=Path, required=True, metavar="FOLDER", help="of the photos to send")
    add("--url", default=DEFAULT_URL, help="of the service (default: %(default)s)")
    add("--api", choices=APIS, help="default: v1, where the scenario does not say otherwise")
    add(
        "--users", type=_whole(1, _MOST_USERS), default=DEFAULT_LOAD["num_users"], metavar="N",
        help="who ask at once, each again as soon as it is answered (default: %(default)s)",
    )  # fmt: skip
    add(
        "--spawn-rate", type=_number(0.1, 100), default=DEFAULT_LOAD["spawn_rate"], metavar="N",
        help="users that come a second; those of a step come at once (default: %(default)s)",
    )  # fmt: skip
    add("--seconds", type=_number(1, _MOST_SECONDS), default=60, metavar="T",
        help="until all is over, save for the drop (default: %(default)s)",
    )  # fmt: skip
    add(
        "--steps", action="store_true",
        help="users from 1 to N, doubled step by step, to see where latency bends",
    )  # fmt: skip
    add(
        "--top-k", type=_whole(1, MAX_TOP_K), default=DEFAULT_TOP_K, metavar="N",
        help="photos that a search finds (default: %(default)s)",
    )  # fmt: skip
    add(
        "--most-photos", type=_whole(1, _MOST_PHOTOS), default=DEFAULT_PHOTOS, metavar="N",
        help="of the folder that are read, by name (default: %(default)s)",
    )  # fmt: skip
    add(
        "--collection", type=_collection, default=DEFAULT_COLLECTION, metavar="NAME",
        help="that is made, written to and dropped at the end (default: %(default)s)",
    )  # fmt: skip
    add(
        "--keep", action="store_true",
        help="use the collection as it is where there is one, and do not drop it",
    )  # fmt: skip
    add(
        "--allow-remote", action="store_true",
        help="allow a --url that is not this machine's: only for a service of your own",
    )  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="for the figures")
    given = parser.parse_args(arguments)
    if given.steps:
        count = len(step_sizes(given.users))
        if given.seconds < count * _LEAST_STEP_SECONDS:
            raise LoadTestError(
                f"{count} steps to {given.users} users need at least"
                f" {count * _LEAST_STEP_SECONDS:g} seconds, not {given.seconds:g}: give --seconds"
            )
    return Options(
        scenario=given.scenario,
        api=choose_api(given.scenario, given.api),
        url=check_url(given.url, allow_remote=given.allow_remote),
        photos=given.photos,
        at_most=given.most_photos,
        users=given.users,
        spawn_rate=given.spawn_rate,
        seconds=given.seconds,
        steps=given.steps,
        top_k=given.top_k,
        collection=given.collection,
        keep=given.keep,
        json=given.json,
    )


def choose_api(scenario: str, wanted: str | None) -> str:
    """The API that is wanted, or the first that the scenario has calls of.

    Raises:
        LoadTestError: it has none of the one that is wanted.
    """
    apis = SCENARIOS[scenario].apis
    if wanted is not None and wanted not in apis:
        raise LoadTestError(f"the scenario {scenario} has no calls of the API {wanted}")
    return wanted or apis[0]


def step_sizes(users: int) -> list[int]:
    """1, 2, 4, … and so many users at last."""
    sizes = [1]
    while sizes[-1] < users:
        sizes.append(min(2 * sizes[-1], users))
    return sizes


def check_url(url: str, *, allow_remote: bool) -> str:
    """The service's address without a slash at its end.

    Raises:
        LoadTestError: it is none, or another machine's, which is not allowed.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise LoadTestError(f"{url!r} is no address of a service: {error}") from None
    if parts.scheme not in ("http", "https") or not host or parts.path.strip("/") or parts.query:
        raise LoadTestError(f"{url!r} is no address of a service, such as {DEFAULT_URL}")
    if not (allow_remote or _is_loopback(host)):
        raise LoadTestError(
            f"{host} is another machine than this one: a load test may bring it down. If it is"
            " yours to test, add --allow-remote"
        )
    return f"{parts.scheme}://{parts.netloc}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _whole(least: int, most: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        number = int(text)
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{number} is not between {least} and {most}")
        return number

    return whole


def _number(least: float, most: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = float(text)
        if not least <= value <= most:  # nor is it a number, where that cannot be compared
            raise argparse.ArgumentTypeError(f"{text} is not between {least:g} and {most:g}")
        return value

    return number


def _collection(text: str) -> str:
    try:
        for name in (text, text + LOADING_SUFFIX):
            check_collection_name(name)
    except InvalidInput:
        longest = MAX_NAME_LENGTH - len(LOADING_SUFFIX)
        raise argparse.ArgumentTypeError(
            f"{text!r} is no collection's name: use up to {longest} letters of a-z, digits and _"
        ) from None
    return text
