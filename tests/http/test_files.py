"""What is sent of a photo's file, whatever has been put in its place."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests

from tests.api import drawing, problem
from tests.photos import write_photos
from tests.service import Service, start


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the photos that are loaded, and of others beside them."""
    folder = tmp_path_factory.mktemp("files")
    write_photos(folder / "photos", 8)
    write_photos(folder / "private", 1)
    return folder


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    """A service that may load from one folder alone, and has."""
    flags = ("--allowed-roots", str(folder / "photos"), "--data-path", str(folder / "photos"))
    service = start(folder, flags, folder / "data")
    try:
        assert service.load(".").status_code == 200
        yield service
    finally:
        service.stop()


def _photo(service: Service, number: int) -> Any:
    listed = service.get("/api/v1/images", params={"limit": 100}).json()["items"]
    return sorted(listed, key=lambda each: str(each["path"]))[number]


def _answers(service: Service, image: Any, **headers: str) -> list[requests.Response]:
    return [
        service.get(f"/api/v1/images/{image['id']}/file", headers=headers),
        service.get(f"/data?image_path={quote(image['path'])}", headers=headers),
    ]


def test_a_photo_is_sent_as_a_photo_and_as_nothing_else(service: Service) -> None:
    image = _photo(service, 0)
    file = f"/api/v1/images/{image['id']}/file"
    for answer in (*_answers(service, image), service.get(f"{file[:-5]}/thumbnail")):
        assert answer.status_code == 200
        assert answer.headers["Content-Type"] == "image/jpeg"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        policy = answer.headers["Content-Security-Policy"]
        assert policy == "default-src 'none'; style-src 'unsafe-inline'; sandbox"
    named = service.get(file).headers["Content-Disposition"]
    assert named == f'inline; filename="photo-{image["id"]}.jpeg"'


@pytest.mark.parametrize(
    "content",
    [
        b"<html><script>alert(1)</script></html>",
        b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
        b'<?xml version="1.0"?><svg/>',
        b"%PDF-1.7",
        b"GIF89a\1\0\1\0",
        b"#!/bin/sh\n",
        b"SQLite format 3\0",
        b"",
    ],
)
def test_what_has_taken_a_photos_place_and_is_none_is_not_sent(
    content: bytes, service: Service
) -> None:
    image = _photo(service, 1)
    Path(image["path"]).write_bytes(content)
    for answer in _answers(service, image):
        assert answer.status_code == 404
        assert "no photo any more" in answer.text


def test_a_page_behind_a_photos_beginning_is_sent_as_a_photo(service: Service) -> None:
    image = _photo(service, 2)
    Path(image["path"]).write_bytes(b"\xff\xd8\xff<html><script>alert(1)</script></html>")
    for answer in _answers(service, image):
        assert answer.headers["Content-Type"] == "image/jpeg"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "sandbox" in answer.headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    ("range_", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=5-9", 5, 9),
        ("bytes=300000-", 300_000, 399_999),
        ("bytes=262143-262144", 262_143, 262_144),
        ("bytes=399999-500000", 399_999, 399_999),
        ("bytes=-5", 399_995, 399_999),
        ("bytes=0-", 0, 399_999),
    ],
)
def test_a_range_of_a_photo_is_sent(range_: str, first: int, last: int, service: Service) -> None:
    image = _photo(service, 7)
    photo = (drawing(7) + b"0123456789" * 40_000)[:400_000]
    Path(image["path"]).write_bytes(photo)
    for answer in _answers(service, image, Range=range_):
        assert answer.status_code == (200 if (first, last) == (0, 399_999) else 206)
        assert answer.content == photo[first : last + 1]
        assert answer.headers["Content-Type"] == "image/jpeg"
        assert answer.headers["Accept-Ranges"] == "bytes"
        if answer.status_code == 206:
            assert answer.headers["Content-Range"] == f"bytes {first}-{last}/400000"
        same = {"If-Range": answer.headers["ETag"], "Range": range_}
        assert [each.content for each in _answers(service, image, **same)] == [answer.content] * 2
    for answer in _answers(service, image, **{"Range": range_, "If-Range": '"another"'}):
        assert (answer.status_code, len(answer.content)) == (200, 400_000)


@pytest.mark.parametrize("range_", ["bytes=400000-", "bytes=-0", "bytes=999999999999-"])
def test_a_range_behind_a_photos_end_is_refused(range_: str, service: Service) -> None:
    image = _photo(service, 7)
    Path(image["path"]).write_bytes(drawing(7).ljust(400_000, b"0"))
    as_resource, old = _answers(service, image, Range=range_)
    problem(as_resource, 416, "range_not_satisfiable")
    assert (old.status_code, old.json()["status"]) == (416, False)
    assert as_resource.headers["Content-Range"] == old.headers["Content-Range"] == "bytes */400000"


@pytest.mark.parametrize("range_", ["bytes=1-2,4-5", "bytes=9-5", "bytes=-", "lines=1-2", "x"])
def test_what_is_no_one_range_is_passed_over(range_: str, service: Service) -> None:
    image = _photo(service, 7)
    for answer in _answers(service, image, Range=range_):
        assert answer.status_code == 200
        assert answer.content == Path(image["path"]).read_bytes()


def test_a_link_out_of_the_allowed_folders_is_not_followed(service: Service, folder: Path) -> None:
    """Neither where it takes the photo's place, nor where it takes that of its folder."""
    image = _photo(service, 3)
    path = Path(image["path"])
    private = next((folder / "private").iterdir())
    for target in (private, Path("/etc/passwd"), Path("/proc/self/environ"), Path("/dev/zero")):
        path.unlink()
        path.symlink_to(target)
        for answer in _answers(service, image):
            assert answer.status_code == 404
            assert "outside of the folders" in answer.text
            assert str(target) not in answer.text
        thumbnail = service.get(f"/api/v1/images/{image['id']}/thumbnail")
        problem(thumbnail, 404, "not_found")
        region = {"image_id": image["id"], "region": "0,0,50,50"}
        problem(service.get("/api/v1/search", params=region), 404, "not_found")


def test_a_link_within_the_allowed_folders_is_followed(service: Service) -> None:
    image, other = _photo(service, 4), _photo(service, 5)
    Path(image["path"]).unlink()
    Path(image["path"]).symlink_to(other["path"])
    for answer in _answers(service, image):
        assert answer.content == Path(other["path"]).read_bytes()


def test_a_pipe_in_a_photos_place_keeps_nobody_waiting(service: Service) -> None:
    image = _photo(service, 6)
    Path(image["path"]).unlink()
    os.mkfifo(image["path"])
    for answer in _answers(service, image):
        assert answer.status_code == 404


def test_an_upload_is_sent_though_its_folder_is_none_to_load_from(service: Service) -> None:
    photo = drawing(1)
    answer = service.post("/img/upload", files={"image": ("../../../etc/x.jpg", photo)})
    image_id = answer.json().split(": ")[1]
    image = service.get(f"/api/v1/images/{image_id}").json()
    assert Path(image["path"]).name.endswith(".jpeg")
    for answer in _answers(service, image):
        assert answer.content == photo
    refused = service.load(Path(image["path"]).parent)
    assert refused.status_code == 403


@pytest.mark.parametrize(
    "path",
    ["/etc", "/", "..", "../private", "/nowhere", "/proc/self/cwd", "~", "link/../../private"],
)
def test_a_folder_elsewhere_is_not_loaded_whether_it_exists_or_not(
    path: str, service: Service
) -> None:
    old = service.load(path)
    assert (old.status_code, old.json()["status"]) == (403, False)
    assert old.json()["msg"].startswith(f"the folder {path} cannot be read: it lies outside")
    problem(service.post("/api/v1/loads", json={"folder": path}), 403, "forbidden")


def test_a_link_out_of_the_folder_is_a_photo_that_cannot_be_loaded(
    service: Service, folder: Path
) -> None:
    (folder / "photos" / "links").mkdir()
    (folder / "photos" / "links" / "good.jpg").write_bytes(drawing(2))
    private = next((folder / "private").iterdir())
    (folder / "photos" / "links" / "bad.jpg").symlink_to(private)
    body = {"folder": "links", "collection": "links"}
    started = service.post("/api/v1/loads", json=body).json()
    service.get(f"/api/v1/loads/{started['id']}/events")  # it ends with the load
    load = service.get(f"/api/v1/loads/{started['id']}").json()
    assert load["counts"]["indexed"] == 1
    [failure] = load["failures"]
    assert failure["path"].endswith("bad.jpg")
    assert "outside of the folders" in failure["reason"]
    assert str(private) not in failure["reason"]
