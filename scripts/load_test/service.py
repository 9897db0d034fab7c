"""The service before and after the load: is it there, has it photos, is it clean again."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import requests

from scripts.load_test.access import authorization
from scripts.load_test.apis import Api, Call
from scripts.load_test.errors import LoadTestError
from scripts.load_test.photos import Photos

__all__ = ["Service"]

_CONNECT_SECONDS: Final = 5
_ANSWER_SECONDS: Final = 600
"""A folder of a few hundred photos may take that long."""
_FULL_SECONDS: Final = 60.0
"""For so long a service that is full, or waits for an engine, is asked again."""
_AGAIN_SECONDS: Final = 0.5
_POLL_SECONDS: Final = 0.2
_UPLOADS_AT_ONCE: Final = 4
_DROPS: Final = 5


class Service:
    """The service at an address."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session = requests.Session()
        self._session.trust_env = False  # a proxy of the environment's is none for loopback
        self._session.headers.update(authorization())

    def ask(self, call: Call) -> Any:
        """The JSON of an answer; None where there is none, or what was asked for is missing.

        Raises:
            LoadTestError: there is no service, or it does not do what it is asked for.
        """
        end = time.monotonic() + _FULL_SECONDS
        while (answer := self._send(call)).status_code in (429, 503) and time.monotonic() < end:
            time.sleep(_AGAIN_SECONDS)
        if answer.status_code == 404 and call.may_be_missing:
            return None
        if answer.status_code in (401, 403):
            raise LoadTestError(f"{self._url} does not permit {call.name}: {_told(answer)}")
        if not answer.ok:
            raise LoadTestError(f"{self._url} answers {call.name} with {_told(answer)}")
        if not answer.content:
            return None
        try:
            return answer.json()
        except ValueError:
            raise LoadTestError(
                f"what {self._url} answers to {call.name} is no JSON: is this the service?"
            ) from None

    def count(self, api: Api) -> int:
        """How many photos the API's collection has.

        Raises:
            LoadTestError: as `ask`.
        """
        return api.counted(self.ask(api.count()))

    def upload(self, api: Api, photos: Photos) -> None:
        """Uploads each photo once.

        Raises:
            LoadTestError: as `ask`.
        """
        calls = [api.upload(photos.fresh()) for _ in range(photos.read)]
        with ThreadPoolExecutor(_UPLOADS_AT_ONCE) as pool:
            list(pool.map(self.ask, calls))

    def load(self, api: Api, folder: str) -> None:
        """Has the service load a folder; returns when that is done.

        Raises:
            LoadTestError: it cannot, or as `ask`.
        """
        answer = self.ask(api.load(folder))
        while follow := api.follow(answer):
            time.sleep(_POLL_SECONDS)
            answer = self.ask(follow)

    def drop(self, api: Api) -> None:
        """Removes a collection.

        Raises:
            LoadTestError: it is there still, or as `ask`.
        """
        # What an upload that was broken off has begun may end after the first drop.
        for _ in range(_DROPS):
            self.ask(api.drop())
            if self.count(api) == 0:
                return
            time.sleep(_POLL_SECONDS)
        raise LoadTestError(f"the collection {api.collection} cannot be dropped: it fills again")

    def _send(self, call: Call) -> requests.Response:
        try:
            return self._session.request(
                call.method,
                self._url + call.path,
                data=call.body,
                headers=dict(call.headers),
                timeout=(_CONNECT_SECONDS, _ANSWER_SECONDS),
                allow_redirects=False,
            )
        except requests.Timeout:
            raise LoadTestError(f"{self._url} does not answer {call.name} in time") from None
        except requests.RequestException as error:
            raise LoadTestError(
                f"no service answers at {self._url} ({_cause(error)}): start one with `make serve`,"
                " or name another with --url"
            ) from None


def _told(answer: requests.Response) -> str:
    """An answer's status, and what it says is wrong."""
    try:
        body = answer.json()
        text = body.get("detail") or body.get("msg") or answer.text
    except (ValueError, AttributeError):
        text = answer.text
    return f"{answer.status_code}: {' '.join(str(text).split())[:300]}"


def _cause(error: BaseException) -> str:
    while (deeper := error.__cause__ or error.__context__) is not None:
        error = deeper
    return str(error)
