"""The users, as Locust runs them. Importing this patches the whole process for gevent."""

import json
import time
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar, Final

import gevent
from locust import FastHttpUser, task
from locust.contrib.fasthttp import FastResponse
from locust.exception import StopTest

from scripts.load_test.access import authorization
from scripts.load_test.apis import Api, Call
from scripts.load_test.figures import REFUSALS, Sample
from scripts.load_test.photos import Photos
from scripts.load_test.scenarios import Scenario

__all__ = ["Plan", "Recorder", "ServiceUser"]

_LONGEST_PAUSE: Final = 1.0
"""Seconds after a refusal, whatever the service asks for: it is to stay under load."""
_FAILED_PAUSE: Final = 0.2
"""Seconds after a failure, so that a service that has ended is not asked without pause."""


@dataclass(frozen=True)
class Plan:
    """What all users do, and with what."""

    scenario: Scenario
    api: Api
    photos: Photos
    url: str


class ServiceUser(FastHttpUser):
    """Makes a scenario's calls, each as soon as the last is answered."""

    plan: ClassVar[Plan | None] = None
    insecure = False
    connection_timeout = 5.0
    network_timeout = 60.0

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        assert self.plan is not None
        if self.host is None or self.host.rstrip("/") != self.plan.url:
            # Locust's page lets one name any other.
            raise StopTest(
                f"what was prepared is at {self.plan.url}: start Locust anew for another"
            )
        self._authorization = authorization()
        self._visit = self.plan.scenario.visit(self.plan.api, self.plan.photos, Random())
        self._call = next(self._visit)

    @task
    def ask(self) -> None:
        """Makes the next call."""
        self._call = self._visit.send(self._ask(self._call))

    def _ask(self, call: Call) -> list[str]:
        found: list[str] = []
        pause = 0.0
        with self.client.request(
            call.method,
            call.path,
            name=call.route,
            data=call.body,  # type: ignore[arg-type]  # it takes bytes, if not by its types
            headers={**self._authorization, **call.headers},
            catch_response=True,
            allow_redirects=False,
            context={"call": call.name},
        ) as answer:
            status = answer.status_code
            if str(status) in REFUSALS:
                # Apart from the others on Locust's page too, and no failure there.
                answer.request_meta["name"] = f"{call.route} refused"
                answer.success()
                pause = _retry_after(answer)
            elif not 200 <= status < 300:
                pause = _FAILED_PAUSE
                if status:
                    answer.failure(f"status {status}")
            elif call.found is not None:
                try:
                    found = call.found(json.loads(answer.content or b""))
                except (ValueError, TypeError, KeyError):
                    answer.failure("not what was asked for")
        gevent.sleep(pause)
        return found


class Recorder:
    """Keeps what has come of every request; a listener of Locust's `request` event."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self._begin = time.perf_counter()

    def seconds(self) -> float:
        """Since the begin."""
        return time.perf_counter() - self._begin

    def __call__(
        self,
        *,
        response_time: float,
        response: FastResponse,
        exception: Exception | None,
        context: dict[str, str],
        **_: object,
    ) -> None:
        """Takes a request that has ended."""
        problem = _problem(response.status_code, exception)
        self.samples.append(Sample(context["call"], self.seconds(), response_time, problem))


def _problem(status: int, exception: Exception | None) -> str | None:
    if str(status) in REFUSALS:
        return str(status)
    if exception is None:
        return None
    if status == 0:
        return type(exception).__name__
    return f"{status}, but {exception}" if 200 <= status < 300 else str(status)


def _retry_after(answer: FastResponse) -> float:
    text = str(answer.headers.get("Retry-After")) if answer.headers else ""
    return min(float(text), _LONGEST_PAUSE) if text.isdecimal() else _LONGEST_PAUSE
