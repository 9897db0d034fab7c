from collections import Counter
from pathlib import Path
from random import Random

import pytest

from scripts.load_test.apis import APIS, Call
from scripts.load_test.errors import LoadTestError
from scripts.load_test.photos import Photos, read_photos
from scripts.load_test.scenarios import SCENARIOS
from tests.photos import write_photos


@pytest.fixture
def photos(tmp_path: Path) -> Photos:
    write_photos(tmp_path, 2)
    return read_photos(tmp_path, 2)


def _calls(scenario: str, api: str, photos: Photos, count: int, found: list[str]) -> list[Call]:
    visit = SCENARIOS[scenario].visit(APIS[api]("mine", 5), photos, Random(1))
    calls = [next(visit)]
    while len(calls) < count:
        calls.append(visit.send(found if calls[-1].found else []))
    return calls


@pytest.mark.parametrize(
    ("api", "name"), [("v1", "POST /api/v1/search"), ("existing", "POST /img/search")]
)
@pytest.mark.parametrize("scenario", ["search", "search-during-load"])
def test_a_search_sends_another_photo_each_time(
    photos: Photos, scenario: str, api: str, name: str
) -> None:
    calls = _calls(scenario, api, photos, 10, [])
    assert {call.name for call in calls} == {name}
    assert len({call.body for call in calls}) == 10
    assert all("mine" in call.path for call in calls)


def test_a_mix_searches_most_and_looks_at_what_was_found(photos: Photos) -> None:
    names = Counter(call.name for call in _calls("mixed", "v1", photos, 1000, ["7", "8"]))
    assert set(names) == {
        "POST /api/v1/search",
        "POST /api/v1/images",
        "GET /api/v1/images",
        "GET /api/v1/images/{id}",
        "GET /api/v1/images/{id}/thumbnail",
    }
    assert 500 < names["POST /api/v1/search"] < 700
    assert 50 < names["POST /api/v1/images"] < 150


def test_a_mix_searches_until_something_is_found(photos: Photos) -> None:
    calls = _calls("mixed", "existing", photos, 50, [])
    assert {call.name for call in calls} == {"POST /img/search"}


def test_the_existing_scripts_ask_for_what_their_searches_find(photos: Photos) -> None:
    found = ["/a b/ü.jpg", "/b.jpg", "/c.jpg", "/d.jpg"]
    calls = _calls("existing", "existing", photos, 7, found)
    assert [call.name for call in calls] == [
        "POST /img/search",
        "GET /progress",
        "POST /img/count",
        *["GET /data"] * 3,
        "POST /img/search",
    ]
    assert calls[3].path == "/data?image_path=/a%20b/%C3%BC.jpg"


def test_a_load_that_has_failed_or_was_ended_says_so() -> None:
    api = APIS["v1"]("mine", 5)
    load = {"id": 3, "folder": "/photos", "state": "running", "error": None}
    follow = api.follow(load)
    assert follow is not None
    assert follow.path == "/api/v1/loads/3"
    assert api.follow(load | {"state": "done"}) is None
    with pytest.raises(LoadTestError, match="the load of /photos is failed: too bad"):
        api.follow(load | {"state": "failed", "error": "too bad"})
    with pytest.raises(LoadTestError, match="is cancelled: somebody has ended it"):
        api.follow(load | {"state": "cancelled"})
