"""Photos of the resource API: in, listed, shown, out."""

import io
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import requests
from PIL import Image

from tests.api import GALLERY, PHOTOS, Api, drawing, problem
from tests.service import FETCHES_FROM_HERE, Service


def _first(api: Api) -> Any:
    return api.get("/images", collection=GALLERY, limit=1)["items"][0]


def test_an_upload_is_kept_and_found_and_the_same_bytes_are_the_same_photo(api: Api) -> None:
    photo = drawing(100)
    made = api.upload(photo, collection="uploads_one")
    assert made.status_code == 201, made.text
    [result] = made.json()["results"]
    assert result["status"] == 201
    assert result["filename"] == "0.jpg"
    image = result["image"]
    assert made.headers["Location"] == f"/api/v1/images/{image['id']}"
    assert api.get(f"/images/{image['id']}") == image
    found = api.search(photo, collection="uploads_one")
    assert found["hits"][0]["image"]["id"] == image["id"]
    again = api.upload(photo, collection="uploads_one")
    assert again.status_code == 200
    assert again.json()["results"][0]["image"] == image


def test_of_several_photos_each_has_its_own_result(api: Api) -> None:
    answer = api.upload(drawing(101), b"no photo", drawing(102), collection="uploads_many")
    assert answer.status_code == 207
    first, bad, last = answer.json()["results"]
    assert (first["status"], bad["status"], last["status"]) == (201, 400, 201)
    assert bad["image"] is None
    assert bad["problem"]["code"] == "invalid_image"
    assert bad["filename"] == "1.jpg"
    assert api.get("/collections/uploads_many")["images"] == 2


def test_a_filename_that_is_no_utf_8_is_taken_as_far_as_it_goes(api: Api) -> None:
    body = (
        b'--xyz\r\nContent-Disposition: form-data; name="image"; filename="caf\xe9.jpg"\r\n\r\n'
        + drawing(108)
        + b"\r\n--xyz--\r\n"
    )
    headers = {"Content-Type": "multipart/form-data; boundary=xyz"}
    params = {"collection": "uploads_latin"}
    answer = api.call("POST", "/images", params=params, data=body, headers=headers)
    assert answer.status_code == 201, answer.text
    assert answer.json()["results"][0]["filename"] == "caf\ufffd.jpg"
    odd = body.replace(b'name="image"', b'name="\xe9"').replace(drawing(108), b"text")
    answer = api.call("POST", "/images", params=params, data=odd, headers=headers)
    [error] = problem(answer, 400, "invalid_input")["errors"]
    assert error["name"] == "\ufffd"


def test_one_photo_that_is_none_is_an_error(api: Api) -> None:
    gif = io.BytesIO()
    Image.new("P", (8, 8)).save(gif, "GIF")
    answer = api.upload(gif.getvalue(), collection="uploads_bad")
    assert "GIF" in problem(answer, 415, "unsupported_format")["detail"]
    problem(api.upload(b"", collection="uploads_bad"), 400, "invalid_image")
    problem(api.call("GET", "/collections/uploads_bad"), 404, "not_found")


def test_a_request_with_the_same_key_is_answered_as_the_first_time(api: Api) -> None:
    photo, headers = drawing(103), {"Idempotency-Key": "a-key-of-103"}
    first = api.upload(photo, collection="uploads_key", headers=headers)
    assert first.status_code == 201
    assert "Idempotency-Replayed" not in first.headers
    second = api.upload(photo, collection="uploads_key", headers=headers)
    assert (second.status_code, second.json()) == (201, first.json())
    assert second.headers["Idempotency-Replayed"] == "true"
    assert second.headers["Location"] == first.headers["Location"]
    for other in (
        api.upload(drawing(104), collection="uploads_key", headers=headers),
        api.upload(photo, collection="uploads_other", headers=headers),
    ):
        problem(other, 422, "idempotency_key_reused")
    wrong = api.upload(photo, collection="uploads_key", headers={"Idempotency-Key": "x" * 256})
    [error] = problem(wrong, 400, "invalid_input")["errors"]
    assert error["where"] == "header"


def test_an_upload_by_url_with_a_key_is_fetched_once(
    start_service: Callable[..., Service],
) -> None:
    api = Api(start_service(*FETCHES_FROM_HERE), ())
    asked: list[str] = []

    class Site(BaseHTTPRequestHandler):
        """Has a photo the first time, and another one from then on."""

        def do_GET(self) -> None:
            """Answers with a photo."""
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "image/jpeg")
            self.end_headers()
            self.wfile.write(drawing(200 + len(asked)))

        def log_message(self, *_about: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as site:
        Thread(target=site.serve_forever, daemon=True).start()
        body = {"url": f"http://127.0.0.1:{site.server_port}/a.jpg"}

        def upload(body: object = body, **params: str) -> requests.Response:
            headers = {"Idempotency-Key": "a-key-of-a-url"}
            return api.call("POST", "/images", json=body, headers=headers, params=params)

        first, second = upload(), upload()
        assert first.status_code == 201, first.text
        assert (second.status_code, second.json()) == (201, first.json())
        assert second.headers["Idempotency-Replayed"] == "true"
        # Of another URL, another collection or a photo that is sent the key is not.
        other = {"url": f"{body['url']}?other"}
        problem(upload(other), 422, "idempotency_key_reused")
        problem(upload(collection="other"), 422, "idempotency_key_reused")
        headers = {"Idempotency-Key": "a-key-of-a-url"}
        sent = api.upload(drawing(201), collection="milvus_obj_det", headers=headers)
        problem(sent, 422, "idempotency_key_reused")
        assert asked == ["/a.jpg"]
        site.shutdown()


def test_photos_are_listed_page_by_page(api: Api) -> None:
    whole = api.get("/images", collection=GALLERY)
    assert whole["next_cursor"] is None
    assert len(whole["items"]) == PHOTOS
    assert {each["path"] for each in whole["items"]} == {str(path) for path in api.photos}
    page = api.get("/images", collection=GALLERY, limit=10)
    items = page["items"]
    while page["next_cursor"]:
        page = api.get("/images", collection=GALLERY, limit=10, cursor=page["next_cursor"])
        items += page["items"]
    assert items == whole["items"]


def test_photos_are_listed_by_what_they_hold(api: Api) -> None:
    labels = api.get(f"/collections/{GALLERY}")["labels"]
    label = labels[-1]["label"]
    listed = api.get("/images", collection=GALLERY, label=label)["items"]
    details = [
        api.get(f"/images/{each['id']}") for each in api.get("/images", collection=GALLERY)["items"]
    ]
    assert [each["id"] for each in listed] == [
        each["id"] for each in details if label in [found["label"] for found in each["objects"]]
    ]
    assert api.get("/images", collection=GALLERY, label="no such label")["items"] == []


def test_a_deleted_upload_is_gone_with_its_file(api: Api) -> None:
    photo = drawing(105)
    image = api.upload(photo, collection="uploads_gone").json()["results"][0]["image"]
    assert Path(image["path"]).exists()
    answer = api.call("DELETE", f"/images/{image['id']}")
    assert (answer.status_code, answer.content) == (204, b"")
    assert not Path(image["path"]).exists()
    problem(api.call("GET", f"/images/{image['id']}"), 404, "not_found")
    problem(api.call("DELETE", f"/images/{image['id']}"), 404, "not_found")
    assert api.search(photo, collection="uploads_gone")["hits"] == []


def test_a_file_is_sent_once_and_then_only_asked_about(api: Api) -> None:
    image = _first(api)
    answer = api.call("GET", f"/images/{image['id']}/file")
    assert answer.content == Path(image["path"]).read_bytes()
    assert answer.headers["Content-Type"] == "image/jpeg"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    tag = answer.headers["ETag"]
    known = api.call("GET", f"/images/{image['id']}/file", headers={"If-None-Match": tag})
    assert (known.status_code, known.content) == (304, b"")
    assert known.headers["ETag"] == tag
    other = api.call("GET", f"/images/{image['id']}/file", headers={"If-None-Match": '"x"'})
    assert other.status_code == 200


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("image/avif,image/webp,image/apng,*/*;q=0.8", "image/webp"),
        ("image/avif,*/*;q=0.1", "image/avif"),
        ("*/*", "image/jpeg"),
        (None, "image/jpeg"),
    ],
)
def test_a_thumbnail_is_small_and_of_a_type_that_the_client_takes(
    api: Api, accept: str | None, media_type: str
) -> None:
    image = _first(api)
    headers = {"Accept": accept}  # None: requests sends none at all
    path = f"/images/{image['id']}/thumbnail"
    answer = api.call("GET", path, params={"size": 128}, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == media_type
    assert "Accept" in answer.headers["Vary"]
    with Image.open(io.BytesIO(answer.content)) as thumbnail:
        assert max(thumbnail.size) == 128
        ratio = image["width"] / image["height"]
        assert thumbnail.width / thumbnail.height == pytest.approx(ratio, rel=0.03)
    headers["If-None-Match"] = answer.headers["ETag"]
    assert api.call("GET", path, params={"size": 128}, headers=headers).status_code == 304
    assert api.call("GET", path, params={"size": 256}, headers=headers).status_code == 200


@pytest.mark.parametrize("size", ["0", "100000", "x", "64.5"])
def test_a_thumbnail_has_one_of_four_sizes(api: Api, size: str) -> None:
    answer = api.call("GET", f"/images/{_first(api)['id']}/thumbnail", params={"size": size})
    [error] = problem(answer, 400, "invalid_input")["errors"]
    assert error["name"] == "size"


@pytest.mark.parametrize("path", ["", "/file", "/thumbnail", "/duplicates"])
def test_a_photo_that_is_not_there_is_not_found(api: Api, path: str) -> None:
    problem(api.call("GET", f"/images/{10**9}{path}"), 404, "not_found")
    for wrong in ("0", "-1", "x", "1.5", "9" * 30, "%00"):
        answer = api.call("GET", f"/images/{wrong}{path}")
        [error] = problem(answer, 400, "invalid_input")["errors"]
        assert (error["where"], error["name"]) == ("path", "id")


def test_copies_of_a_photo_are_its_duplicates(api: Api) -> None:
    photo = drawing(106)
    with Image.open(io.BytesIO(photo)) as opened:
        coarse = io.BytesIO()
        opened.save(coarse, "JPEG", quality=60)
    answer = api.upload(photo, coarse.getvalue(), drawing(107), collection="uploads_like")
    first, copy, _ = (result["image"] for result in answer.json()["results"])
    [found] = api.get(f"/images/{first['id']}/duplicates")["items"]
    assert found["image"]["id"] == copy["id"]
    assert not found["exact"]
    [group] = api.get("/collections/uploads_like/duplicates")["items"]
    assert {image["id"] for image in group["images"]} == {first["id"], copy["id"]}
