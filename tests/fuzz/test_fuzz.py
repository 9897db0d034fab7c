"""A tenth of what `python -m tests.fuzz` runs."""

from pathlib import Path

from aiohttp.test_utils import make_mocked_request

from backend.app import create_app
from backend.settings import Settings
from tests.fuzz.images import fuzz_images
from tests.fuzz.requests import fuzz_requests, good_requests


def test_changed_photos_are_decoded_or_refused_and_leave_nothing() -> None:
    report = fuzz_images(2000, seed=20)
    assert report.decoded > 200, "what is changed so much tests the first check alone"
    assert sum(report.refused.values()) > 200


async def test_every_route_is_among_the_requests_that_are_changed(tmp_path: Path) -> None:
    app = create_app(Settings(data_dir=tmp_path))
    found = set()
    for request in good_requests(tmp_path, tmp_path / "a.jpg", b""):
        match = await app.router.resolve(make_mocked_request(request.method, request.target))
        if match.http_exception is None:
            found.add((match.route.method, match.route.resource))
        else:
            assert request.method == "OPTIONS", request  # a browser's question, which has no route
    there = {(route.method, route.resource) for route in app.router.routes()}
    assert {route for route in there if route[0] != "HEAD"} == found


def test_changed_requests_break_nothing_and_leave_nothing() -> None:
    report = fuzz_requests(500, seed=20)
    assert report.answers[200] > 50, "what is changed so much tests the first check alone"
    assert sum(count for status, count in report.answers.items() if 400 <= status < 500) > 50
