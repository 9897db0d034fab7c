"""The main job, end to end, against a real server process."""

import itertools
import re
from pathlib import Path

import pytest

from backend.http.v1 import routes
from tests.photos import draw_photo, encode
from tests.service import Service


def test_a_folder_is_loaded_searched_served_and_dropped(
    service: Service, hundred_photos: Path
) -> None:
    photos = sorted(hundred_photos.iterdir())
    assert len(photos) == 100

    answer = service.load(hundred_photos)
    assert (answer.status_code, answer.text) == (200, '"Successfully loaded data!"')
    assert service.get("/progress").text == '"current: 100, total: 100"'
    assert service.count() == 100

    for photo in photos:
        data = photo.read_bytes()
        answer = service.search(data)
        assert answer.status_code == 200
        hits = answer.json()
        assert len(hits) == 10
        assert hits[0][0] == str(photo)
        assert 0 <= hits[0][1] < 1e-3
        paths, distances = zip(*hits, strict=True)
        assert len(set(paths)) == 10
        assert all(near <= far for near, far in itertools.pairwise(distances))
        served = service.get("/data", params={"image_path": str(photo)})
        assert served.content == data
        assert served.headers["Content-Type"] == "image/jpeg"
        assert served.headers["X-Content-Type-Options"] == "nosniff"

    answer = service.post("/img/drop")
    assert (answer.status_code, answer.text) == (200, '"ok"')
    assert service.count() == 0
    assert service.search(photos[0].read_bytes()).json() == []
    assert service.get("/data", params={"image_path": str(photos[0])}).status_code == 404
    assert len(list(hundred_photos.iterdir())) == 100  # the photos themselves stay


@pytest.mark.every_combination
def test_topk_limits_the_photos(service: Service, tmp_path: Path) -> None:
    for seed in range(12):
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "photos" / f"{seed}.png").write_bytes(encode(draw_photo(seed), ".png"))
    service.load(tmp_path / "photos")
    query = encode(draw_photo(3), ".png")
    for top_k in (1, 5, 12):
        assert len(service.search(query, top_k).json()) == top_k
    assert len(service.search(query, 1000).json()) == 12


@pytest.mark.every_combination
def test_an_upload_is_found_at_once_kept_once_and_goes_with_its_collection(
    service: Service, tmp_path: Path
) -> None:
    photo = encode(draw_photo(1))
    first = service.post("/img/upload", files={"image": ("a.jpg", photo)})
    assert first.status_code == 200
    assert re.fullmatch(r'"Successfully loaded data: \d+"', first.text)
    [[path, distance]] = service.search(photo).json()
    assert distance < 1e-3
    assert service.get("/data", params={"image_path": path}).content == photo

    again = service.post("/img/upload", files={"image": ("b.jpg", photo)})
    assert again.text == first.text
    assert service.count() == 1

    # Collections are apart.
    other = encode(draw_photo(2))
    for table, sent in (("cats", photo), ("dogs", other)):
        service.post("/img/upload", files={"image": ("a.jpg", sent)}, params={"table_name": table})
    assert (service.count("cats"), service.count("dogs"), service.count()) == (1, 1, 1)
    service.post("/img/drop", params={"table_name": "cats"})
    assert (service.count("cats"), service.count("dogs"), service.count()) == (0, 1, 1)
    [[path, _]] = service.search(other, table="dogs").json()
    assert service.get("/data", params={"image_path": path}).content == other

    uploads = tmp_path / "data" / "uploads"
    assert len([path for path in uploads.rglob("*") if path.is_file()]) == 2
    service.post("/img/drop")
    service.post("/img/drop", params={"table_name": "dogs"})
    assert [path for path in uploads.rglob("*") if path.is_file()] == []


def test_the_documentation_needs_no_network(empty_service: Service) -> None:
    page = empty_service.get("/docs")
    assert page.status_code == 200
    # What the page itself loads comes from this server.
    sources = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert sources
    assert all(source.startswith("/docs/") for source in sources)
    for source in sources:
        assert empty_service.get(source).status_code == 200
    assert 'href="docs"' in empty_service.get("/").text
    document = empty_service.get("/openapi.json").json()
    [shown] = re.findall(r'url: "([^"]+)"', page.text)
    assert empty_service.get(shown).json() == document
    assert {re.sub(r":[^{}]*", "", each.path) for each in routes.OPERATIONS} | {
        "/img/load",
        "/progress",
        "/img/count",
        "/img/search",
        "/img/upload",
        "/img/drop",
        "/data",
        "/healthz",
        "/metrics",
        "/readyz",
    } == set(document["paths"])
