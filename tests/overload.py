"""A service that is kept busy for as long as a test likes."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import requests

from tests.http.test_metrics import figures, one
from tests.photos import draw_photo, encode
from tests.service import Service

PHOTO = encode(draw_photo(3))


@contextmanager
def busy(service: Service) -> Iterator[Callable[..., Future[requests.Response]]]:
    """Has searches end no sooner than this does: their vector store stands still meanwhile.

    Gives what begins one, which returns when it has its place.
    """
    milvus_lite = service.milvus_lite
    with ThreadPoolExecutor() as threads:

        def begin() -> Future[requests.Response]:
            before = taken(service)
            begun = threads.submit(service.search, PHOTO)
            wait_for(lambda: taken(service) == before + 1)
            return begun

        milvus_lite.suspend()
        try:
            yield begin
        finally:
            milvus_lite.resume()


def taken(service: Service) -> float:
    return one(figures(service), "places_taken")


def held(service: Service) -> float:
    return one(figures(service), "upload_bytes")


def wait_for(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end, "it has not come to be so in 30 s"
        time.sleep(0.05)
