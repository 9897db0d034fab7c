"""Photos in a bucket: loaded, searched, shown and mended as those of a folder are."""

import time
from collections.abc import Callable, Iterator
from typing import Any, Final
from urllib.parse import quote

import pytest
import requests

from tests.api import problem
from tests.object_store import ObjectStore, object_store
from tests.photos import draw_photo, encode
from tests.service import Service, start

ROOT: Final = "s3://photos/all"
_LISTED: Final = 1000
"""Files that a store lists at once."""
_PHOTOS: Final = 6


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    """Photos among more files than one page of a listing has; and others' photos."""
    with object_store() as opened:
        photos = {f"all/a/{number} ü+&#.jpg": encode(draw_photo(number)) for number in range(6)}
        notes = {f"all/notes/{number}.txt": b"" for number in range(_LISTED)}
        odd = {
            "all/.hidden/x.jpg": b"",
            "all/folder/": b"",
            "all/z/bad.jpg": b"no photo",
            "all/z/empty.jpg": b"",
            "all/z//x.jpg": b"",
        }
        opened.fill("photos", photos | notes | odd)
        opened.fill("photos", {"all-others/secret.jpg": encode(draw_photo(50))})
        opened.fill("photos-of-others", {"all/secret.jpg": encode(draw_photo(51))})
        yield opened


@pytest.fixture(scope="module")
def service(store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that may load from one folder of the bucket alone, and has."""
    folder = tmp_path_factory.mktemp("stored")
    flags = ("--data-path", ROOT, "--allowed-roots", f"{ROOT}:{folder}")
    service = start(folder, flags, folder / "data", environment=store.environment)
    try:
        assert _load(service)["indexed"] == _PHOTOS
        yield service
    finally:
        service.stop()


def _start(service: Service, folder: str, collection: str) -> str:
    """Starts a load; its address."""
    body = {"folder": folder, "collection": collection}
    started = service.post("/api/v1/loads", json=body)
    assert started.status_code == 202, started.text
    return f"/api/v1/loads/{started.json()['id']}"


def _end(service: Service, address: str) -> Any:
    """The load, when it has ended."""
    service.get(f"{address}/events")
    return service.get(address).json()


def _until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end, "it has not come to pass in 20 s"
        time.sleep(0.05)


def _load(service: Service, folder: str = ".", **options: Any) -> dict[str, Any]:
    """Loads a folder to the end; its counts."""
    return _loaded(service, folder, **options)["counts"]  # type: ignore[no-any-return]


def _loaded(service: Service, folder: str = ".", **options: Any) -> dict[str, Any]:
    started = service.post("/api/v1/loads", json={"folder": folder, **options})
    assert started.status_code == 202, started.text
    address = f"/api/v1/loads/{started.json()['id']}"
    service.get(f"{address}/events")  # it ends with the load
    load: dict[str, Any] = service.get(address).json()
    assert load["state"] == "done", load
    return load


def _photo(service: Service, number: int) -> Any:
    listed = service.get("/api/v1/images", params={"limit": 100, "state": "indexed"}).json()
    return sorted(listed["items"], key=lambda each: str(each["path"]))[number]


def _answers(service: Service, image: Any, **options: Any) -> list[requests.Response]:
    return [
        service.get(f"/api/v1/images/{image['id']}/file", **options),
        service.get(f"/data?image_path={quote(image['path'])}", **options),
    ]


def test_a_bucket_is_loaded_and_what_is_unchanged_is_skipped_unread(
    service: Service, store: ObjectStore
) -> None:
    before = len(store.requests)
    load = _loaded(service, f"{ROOT}/")
    assert load["folder"] == ROOT
    assert load["counts"] == {
        **dict.fromkeys(("indexed", "removed", "objects"), 0),
        **{"total": _PHOTOS + 3, "processed": _PHOTOS + 3, "unchanged": _PHOTOS, "failed": 3},
        "passed_over": _LISTED + 1,
    }
    reasons = {each["path"]: each["reason"] for each in load["failures"]}
    assert "rename it" in reasons[f"{ROOT}/z//x.jpg"]
    assert "empty" in reasons[f"{ROOT}/z/empty.jpg"]
    assert reasons.keys() == {f"{ROOT}/z/{name}" for name in ("bad.jpg", "empty.jpg", "/x.jpg")}
    read = {request.split()[1] for request in store.requests[before:]}
    assert read == {"/photos", "/photos/all/z/bad.jpg", "/photos/all/z/empty.jpg", "/photos/all"}
    assert service.count() == _PHOTOS


def test_a_photo_is_found_by_its_address(service: Service) -> None:
    hits = service.search(encode(draw_photo(2))).json()
    assert hits[0][0] == f"{ROOT}/a/2 ü+&#.jpg"
    assert hits[0][1] < 1e-3


def test_a_photo_of_the_same_size_and_second_is_noticed(
    service: Service, store: ObjectStore
) -> None:
    image = _photo(service, 1)
    photo = encode(draw_photo(1))
    other = photo[:-2] + b"\0" * 40 + photo[-2:]
    same_size = photo[:-2] + b"\1" * 40 + photo[-2:]
    for content in (other, same_size):
        store.fill("photos", {"all/a/1 ü+&#.jpg": content})
        counts = _load(service, "a")
        assert (counts["indexed"], counts["unchanged"]) == (1, _PHOTOS - 1)
        for answer in _answers(service, image):
            assert answer.content == content


def test_a_photo_is_sent_with_its_type_and_a_validator(service: Service) -> None:
    image = _photo(service, 2)
    for answer in _answers(service, image):
        assert answer.status_code == 200
        assert answer.content == encode(draw_photo(2))
        assert answer.headers["Content-Type"] == "image/jpeg"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "sandbox" in answer.headers["Content-Security-Policy"]
        again = _answers(service, image, headers={"If-None-Match": answer.headers["ETag"]})
        assert [each.status_code for each in again] == [304, 304]
    for answer in _answers(service, image, headers={"Range": "bytes=10-19"}):
        assert (answer.status_code, answer.content) == (206, encode(draw_photo(2))[10:20])
    for answer in _answers(service, image, headers={"Range": "bytes=1000000-"}):
        assert answer.status_code == 416
    thumbnail = service.get(f"/api/v1/images/{image['id']}/thumbnail", params={"size": 128})
    assert thumbnail.status_code == 200
    assert thumbnail.headers["Content-Type"] == "image/jpeg"


def test_a_region_of_a_photo_is_searched(service: Service) -> None:
    image = _photo(service, 2)
    found = service.get(
        "/api/v1/search", params={"image_id": image["id"], "region": "0,0,60,60"}
    ).json()
    assert found["hits"]


def test_what_is_no_photo_any_more_or_is_gone_is_not_sent(
    service: Service, store: ObjectStore
) -> None:
    image = _photo(service, 3)
    store.fill("photos", {"all/a/3 ü+&#.jpg": b"<html><script>alert(1)</script></html>"})
    for answer in _answers(service, image):
        assert answer.status_code == 404
        assert "no photo any more" in answer.text
    thumbnail = service.get(f"/api/v1/images/{image['id']}/thumbnail")
    assert "has changed" in problem(thumbnail, 404, "not_found")["detail"]
    store.remove("photos", "all/a/3 ü+&#.jpg")
    for answer in _answers(service, image):
        assert answer.status_code == 404
        assert "no such photo" in answer.text


def test_photos_that_are_gone_go_where_that_is_asked_for(
    service: Service, store: ObjectStore
) -> None:
    name = "all/pruned/x.jpg"
    store.fill("photos", {name: encode(draw_photo(9)), "all/pruned/y.jpg": encode(draw_photo(10))})
    collection = {"collection": "pruned"}
    assert _load(service, "pruned", **collection)["indexed"] == 2
    store.remove("photos", name)
    assert _load(service, "pruned", **collection)["removed"] == 0
    assert _load(service, "pruned", **collection, prune=True)["removed"] == 1
    assert service.count("pruned") == 1


@pytest.mark.parametrize(
    "folder",
    [
        "s3://photos",
        "s3://photos/all-others",
        "s3://photos/all/../all-others",
        "s3://photos/all/%2e%2e/all-others",
        "s3://photos/all//../all-others",
        "s3://photos-of-others/all",
        "../all-others",
        "s3a://photos/all",
        "gs://photos/all",
        "simplecache::s3://photos/all",
        "file:///etc",
        "local:///etc",
        "http://127.0.0.1/photos",
        "memory://photos",
        "/etc",
    ],
)
def test_a_folder_elsewhere_is_not_loaded_whether_it_exists_or_not(
    folder: str, service: Service, store: ObjectStore
) -> None:
    before = len(store.requests)
    old = service.load(folder)
    assert (old.status_code, old.json()["status"]) == (403, False)
    problem(service.post("/api/v1/loads", json={"folder": folder}), 403, "forbidden")
    assert len(store.requests) == before


@pytest.mark.parametrize("folder", [f"{ROOT}/nothing", f"{ROOT}/z/bad.jpg", f"{ROOT}/notes"])
def test_a_folder_without_photos_says_so(folder: str, service: Service) -> None:
    refusal = problem(service.post("/api/v1/loads", json={"folder": folder}), 400, "invalid_input")
    assert folder in refusal["detail"]


def test_a_store_that_goes_away_is_waited_for_and_no_photo_fails_for_it(
    service: Service, store: ObjectStore
) -> None:
    store.answers_left = 2  # the listing, and a photo
    address = _start(service, "a", "away")
    _until(lambda: service.get(address).json().get("waiting_for") == f"the photo store {ROOT}")
    assert service.get(address).json()["counts"]["failed"] == 0
    store.answers_left = None
    load = _end(service, address)
    assert (load["state"], load["counts"]["failed"]) == ("done", 0)
    assert load["counts"]["indexed"] == load["counts"]["total"] > 2


def test_a_store_that_refuses_ends_a_load_and_no_photo_fails_for_it(
    service: Service, store: ObjectStore
) -> None:
    store.refuse_after(1)  # the listing
    try:
        address = _start(service, "a", "refused")
        load = _end(service, address)
        assert (load["state"], load["counts"]["failed"]) == ("failed", 0)
        refusal = problem(service.post(f"{address}/resume"), 502, "store_refuses")["detail"]
        for text in (load["error"], refusal):
            assert f"{ROOT} refuses this service" in text
            for secret in store.environment.values():
                assert secret not in text
    finally:
        store.refuse_after(float("inf"))
    _until(lambda: service.post(f"{address}/resume").status_code == 200)
    load = _end(service, address)
    assert load["counts"]["indexed"] == load["counts"]["total"] > 2


def test_a_photo_that_is_gone_since_it_was_listed_fails_alone(
    service: Service, store: ObjectStore
) -> None:
    store.fill("photos", {f"all/late/{name}.jpg": encode(draw_photo(20)) for name in "xy"})

    def remove(request: str) -> None:
        if request == "GET /photos/all/late/x.jpg":
            store.remove("photos", "all/late/x.jpg")

    store.before = remove
    load = _loaded(service, "late", collection="late")
    assert (load["counts"]["indexed"], load["counts"]["failed"]) == (1, 1)
    [failure] = load["failures"]
    assert failure["path"] == f"{ROOT}/late/x.jpg"
    assert "no such photo" in failure["reason"]


def test_a_store_that_is_away_is_said_to_be(service: Service, store: ObjectStore) -> None:
    image = _photo(service, 4)
    store.stop()
    try:
        answers = [
            *_answers(service, image),
            service.load("."),
            service.get(f"/api/v1/images/{image['id']}/thumbnail", params={"size": 512}),
        ]
        for answer in answers:
            assert answer.status_code == 503
            assert "does not answer" in answer.text
            assert answer.headers["Retry-After"]
            for secret in store.environment.values():
                assert secret not in answer.text
        assert service.get("/readyz").status_code == 200
        assert service.search(encode(draw_photo(2))).status_code == 200
    finally:
        store.start()
    # That it was away is remembered for a second.
    _until(lambda: service.load("a").status_code == 200)
    assert store.environment["AWS_SECRET_ACCESS_KEY"] not in service.log.read_text()
