"""Bad input over HTTP: a clear 4xx, no 5xx, nothing stopped, every failure listed."""

import os
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image

from tests.photos import draw_photo, encode, write_photos
from tests.service import AS_A_USER, FETCHES_FROM_HERE, Service


def _refused(answer: requests.Response, status: int, *words: str) -> None:
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"status", "msg"}
    assert body["status"] is False
    for word in words:
        assert word in body["msg"]


def test_a_folder_that_does_not_exist(empty_service: Service, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    _refused(empty_service.load(missing), 400, str(missing), "does not exist")


def test_a_folder_that_is_empty_or_holds_no_photo(empty_service: Service, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    _refused(empty_service.load(folder), 400, "no photo")
    (folder / "notes.txt").write_text("hello")
    _refused(empty_service.load(folder), 400, "no photo", "1 other")
    assert empty_service.count() == 0


def test_a_folder_that_is_a_file(empty_service: Service, tmp_path: Path) -> None:
    [photo] = write_photos(tmp_path, 1)
    _refused(empty_service.load(photo), 400, "is a file")


def test_a_folder_that_is_not_readable(
    start_service: Callable[..., Service], tmp_path: Path
) -> None:
    service = start_service(prefix=AS_A_USER)
    closed = tmp_path / "photos" / "closed"
    write_photos(closed, 1)
    closed.chmod(0)
    try:
        _refused(service.load(closed), 400, "cannot be read")
        # As a part of a folder it is passed by, with a word in the log.
        write_photos(tmp_path / "photos", 2)
        assert service.load(tmp_path / "photos").status_code == 200
        assert service.count() == 2
        assert str(closed) in service.log.read_text()
    finally:
        closed.chmod(0o700)


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "[]",
        "null",
        '"folder"',
        "{}",
        '{"File": 3}',
        '{"File": null}',
        '{"File": ""}',
        '{"File": "a\\u0000b"}',
        '{"File": "/", "Table": "no name"}',
        '{"File": "/", "Table": 7}',
        "[" * 5000,
        '{"File": "\\ud800"}',
    ],
)
def test_a_load_body_that_is_none(empty_service: Service, body: str) -> None:
    _refused(empty_service.post("/img/load", data=body), 400)


def test_bad_photos_are_listed_and_stop_nothing(service: Service, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    good = write_photos(folder, 3)
    jpeg = good[0].read_bytes()
    bad = {
        "empty.jpg": (b"", "empty"),
        "truncated.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "text.jpg": (b"this is no photo\n" * 9, "no image"),
        "cut.png": (encode(draw_photo(1), ".png")[:2000], "truncated"),
    }
    for name, (content, _) in bad.items():
        (folder / name).write_bytes(content)
    Image.new("1", (20_000, 20_000)).save(folder / "huge.png")
    (folder / "broken link.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    os.mkfifo(folder / "pipe.jpg")
    odd = os.fsencode(folder) + b"/latin-\xe9.jpg"
    with open(odd, "wb") as file:
        file.write(jpeg)
    reasons = {
        **{name: reason for name, (_, reason) in bad.items()},
        "huge.png": "20000 x 20000 pixels",
        "broken link.jpg": "does not exist",
        "loop.jpg": "cannot be read",
        "pipe.jpg": "no regular file",
        "latin-": "not valid UTF-8",
    }
    # These are fine: one pixel, an animation's and a document's first picture.
    Image.new("RGB", (1, 1), "red").save(folder / "one pixel.png")
    frames = [Image.fromarray(draw_photo(seed)) for seed in (5, 6)]
    frames[0].save(folder / "animated.webp", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "pages.tiff", save_all=True, append_images=frames[1:])
    # And these are passed over.
    (folder / "loop of folders").symlink_to(folder)
    (folder / ".hidden.jpg").write_bytes(jpeg)
    (folder / "README.md").write_text("hello")

    assert service.load(folder).text == '"Successfully loaded data!"'
    total = 6 + len(reasons)
    assert service.progress() == (total, total)
    assert service.count() == 6
    log = service.log.read_text()
    for name, reason in reasons.items():
        [line] = [line for line in log.splitlines() if "load.photo_failed" in line and name in line]
        assert reason in line
    assert "passed_over=3" in log
    assert service.search(jpeg).json()[0] == [str(good[0]), pytest.approx(0, abs=1e-3)]


def test_photos_that_were_mended_are_indexed_by_the_next_load(
    service: Service, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    [good, bad] = write_photos(folder, 2)
    whole = bad.read_bytes()
    bad.write_bytes(b"broken")
    service.load(folder)
    assert service.count() == 1
    bad.write_bytes(whole)
    service.load(folder)
    assert service.count() == 2
    # And one that has broken since is not found by what it showed before.
    good.write_bytes(b"broken")
    service.load(folder)
    assert service.count() == 1
    assert [path for path, _ in service.search(whole).json()] == [str(bad)]


@pytest.mark.parametrize("endpoint", ["/img/search", "/img/upload"])
@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"this is no photo", 400),
        (encode(draw_photo(1))[:3000], 400),
        (encode(draw_photo(1), ".gif"), 415),
        (b"BM" + bytes(60), 400),
    ],
    ids=["empty", "text", "truncated", "gif", "damaged"],
)
def test_a_photo_that_is_none(
    empty_service: Service, endpoint: str, content: bytes, status: int
) -> None:
    _refused(empty_service.post(endpoint, files={"image": ("a.jpg", content)}), status)
    assert empty_service.count() == 0


def test_a_photo_of_too_many_pixels(empty_service: Service, tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    Image.new("1", (20_000, 20_000)).save(path)
    for endpoint in ("/img/search", "/img/upload"):
        answer = empty_service.post(endpoint, files={"image": ("huge.png", path.read_bytes())})
        _refused(answer, 413, "20000 x 20000", "MAX_PIXELS")


def test_an_upload_at_the_size_limit_passes_and_one_byte_more_is_refused(
    start_service: Callable[..., Service],
) -> None:
    photo = encode(draw_photo(1))
    service = start_service("--max-upload-bytes", str(len(photo)))
    assert service.post("/img/upload", files={"image": ("a.jpg", photo)}).status_code == 200
    for endpoint in ("/img/search", "/img/upload"):
        answer = service.post(endpoint, files={"image": ("a.jpg", photo + b"\0")})
        _refused(answer, 413, str(len(photo)), "MAX_UPLOAD_BYTES")


def test_a_missing_field(empty_service: Service) -> None:
    _refused(empty_service.post("/img/search"), 400, "'image' is missing")
    _refused(empty_service.post("/img/search", files={"photo": ("a.jpg", b"x")}), 400, "'image'")
    _refused(empty_service.post("/img/upload"), 400, "'image' is missing", "'url'")
    _refused(empty_service.get("/data"), 400, "image_path")


@pytest.mark.parametrize("top_k", ["0", "-1", "1.5", "abc", "10000", "1e3", "٣", "9" * 5000])
def test_a_topk_that_is_no_number_of_photos(empty_service: Service, top_k: str) -> None:
    answer = empty_service.search(encode(draw_photo(1)), top_k)
    _refused(answer, 400, "topk must be a whole number from 1 to 1000", top_k[:40])


@pytest.mark.parametrize(
    "name",
    ["it's", 'a"b', "two words", "x" * 300, "1st", "a;DROP TABLE images", "é", "a\nb", "../a"],
)
def test_a_collections_name_that_is_none(empty_service: Service, name: str, tmp_path: Path) -> None:
    table = {"table_name": name}
    photo = {"image": ("a.jpg", encode(draw_photo(1)))}
    _refused(empty_service.post("/img/count", params=table), 400, "name")
    _refused(empty_service.post("/img/drop", params=table), 400, "name")
    _refused(empty_service.post("/img/search", params=table, files=photo), 400, "name")
    _refused(empty_service.post("/img/upload", params=table, files=photo), 400, "name")
    write_photos(tmp_path, 1)
    body = {"File": str(tmp_path), "Table": name}
    _refused(empty_service.post("/img/load", json=body), 400, "name")


def test_a_query_without_an_object_is_searched_as_a_whole(service: Service, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 5)
    plain = encode(np.full((240, 320, 3), 127, np.uint8), ".png")
    (tmp_path / "photos" / "plain.png").write_bytes(plain)
    service.load(tmp_path / "photos")
    hits = service.search(plain).json()
    assert hits[0] == [str(tmp_path / "photos" / "plain.png"), pytest.approx(0, abs=1e-3)]
    assert len(hits) == 6


def test_an_empty_collection(empty_service: Service) -> None:
    for table in (None, "never_made"):
        assert empty_service.count(table) == 0
        assert empty_service.search(encode(draw_photo(1)), table=table).json() == []
        drop = empty_service.post("/img/drop", params={"table_name": table} if table else {})
        assert drop.text == '"ok"'


def test_a_path_that_is_not_catalogued_is_not_served(service: Service, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 1)
    [other] = write_photos(tmp_path / "other", 1)
    service.load(tmp_path / "photos")
    for path in ("/etc/passwd", str(other), f"{tmp_path}/photos/../other/{other.name}", "", "\0"):
        assert service.get("/data", params={"image_path": path}).status_code == 404


def test_a_catalogued_file_that_has_gone_or_changed_its_kind_is_not_served(
    service: Service, tmp_path: Path
) -> None:
    [photo] = write_photos(tmp_path / "photos", 1)
    service.load(tmp_path / "photos")
    photo.unlink()
    _refused(service.get("/data", params={"image_path": str(photo)}), 404, "cannot be read")
    photo.symlink_to("/etc/passwd")
    _refused(service.get("/data", params={"image_path": str(photo)}), 404, "no photo any more")


def test_an_unknown_address_or_method(empty_service: Service) -> None:
    _refused(empty_service.get("/nowhere"), 404, "/nowhere", "/docs")
    answer = empty_service.get("/img/search")
    _refused(answer, 405, "POST", "GET")
    assert answer.headers["Allow"] == "POST"


def test_a_url_that_cannot_be_fetched(start_service: Callable[..., Service]) -> None:
    empty_service = start_service(*FETCHES_FROM_HERE)
    for url in ("ftp://localhost/a.jpg", "file:///etc/passwd", "no address", "http://"):
        _refused(empty_service.post("/img/upload", params={"url": url}), 400, "http")
    for url in ("http://a..b/", "http://xn--a/", f"http://{'x' * 64}/"):
        answer = empty_service.post("/img/upload", params={"url": url})
        assert answer.status_code in (400, 502), answer.text
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        answer = empty_service.post("/img/upload", params={"url": f"http://127.0.0.1:{port}/a.jpg"})
        _refused(answer, 502, "cannot be fetched")


def test_fetching_is_off_unless_it_is_allowed(empty_service: Service) -> None:
    for url in ("http://127.0.0.1:1/a.jpg", "https://example.org/a.jpg", "no address"):
        answer = empty_service.post("/img/upload", params={"url": url})
        _refused(answer, 403, "URL_FETCH=true")


def test_a_photo_is_fetched_by_its_url(
    start_service: Callable[..., Service], tmp_path: Path
) -> None:
    service = start_service(*FETCHES_FROM_HERE)
    [photo] = write_photos(tmp_path / "photos", 1)
    service.load(tmp_path / "photos")
    # The service itself serves the photo that it then fetches.
    url = f"{service.url}/data?image_path={photo}"
    for options in ({"params": {"url": url}}, {"files": {"url": (None, url)}}):
        answer = service.post("/img/upload?table_name=fetched", **options)
        assert answer.status_code == 200, answer.text
    assert service.count("fetched") == 1


def test_a_body_that_is_not_encoded_as_it_says(empty_service: Service) -> None:
    for encoding in ("gzip", "deflate"):
        headers = {"Content-Encoding": encoding}
        answer = empty_service.post("/img/load", data=b"garbage" * 99, headers=headers)
        _refused(answer, 400)
        headers["Content-Type"] = "multipart/form-data; boundary=x"
        answer = empty_service.post("/img/search", data=b"garbage" * 99, headers=headers)
        _refused(answer, 400)


def test_a_file_beside_a_photo_is_never_served_in_its_place(
    service: Service, tmp_path: Path
) -> None:
    [photo] = write_photos(tmp_path / "photos", 1)
    service.load(tmp_path / "photos")
    for ending in (".gz", ".br"):
        Path(f"{photo}{ending}").write_bytes(b"not catalogued")
    answer = service.get(
        "/data", params={"image_path": str(photo)}, headers={"Accept-Encoding": "gzip, br"}
    )
    assert answer.content == photo.read_bytes()
    head = requests.head(f"{service.url}/data", params={"image_path": str(photo)}, timeout=30)
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["Content-Length"]) == photo.stat().st_size


def test_a_photo_that_has_become_a_pipe_hangs_nothing(service: Service, tmp_path: Path) -> None:
    [photo, other] = write_photos(tmp_path / "photos", 2)
    service.load(tmp_path / "photos")
    photo.unlink()
    os.mkfifo(photo)
    for _ in range(8):
        _refused(service.get("/data", params={"image_path": str(photo)}), 404, "no photo any more")
    assert service.get("/data", params={"image_path": str(other)}).status_code == 200
    assert service.load(tmp_path / "photos").status_code == 200
    assert service.count() == 1


def test_a_photo_that_is_cut_while_it_is_sent_ends_the_connection(
    service: Service, tmp_path: Path
) -> None:
    photo = _large_photo(tmp_path / "photos")
    service.load(tmp_path / "photos")
    answer = service.get("/data", params={"image_path": str(photo)}, stream=True)
    received = len(answer.raw.read(1000))
    os.truncate(photo, 1000)
    with pytest.raises(requests.exceptions.RequestException):
        received += len(answer.content)
    assert received < int(answer.headers["Content-Length"])
    assert service.get("/progress").status_code == 200
    assert "event=photo.broken_off" in service.log.read_text()


def test_a_client_that_goes_away_is_no_error_of_the_service(
    service: Service, tmp_path: Path
) -> None:
    photo = _large_photo(tmp_path / "photos")
    service.load(tmp_path / "photos")
    answer = service.get("/data", params={"image_path": str(photo)}, stream=True)
    answer.raw.read(1000)
    answer.close()
    # Seen by the next write, or told by the event loop before: which of them comes first is chance.
    deadline = time.monotonic() + 60
    while not re.search("event=(photo.broken_off|request.cancelled)", service.log.read_text()):
        assert time.monotonic() < deadline, "the service goes on sending"
        time.sleep(0.01)
    assert "level=error" not in service.log.read_text()


def _large_photo(folder: Path) -> Path:
    """A photo that fits no socket's buffers."""
    folder.mkdir()
    (folder / "large.bmp").write_bytes(encode(np.zeros((4000, 3000, 3), np.uint8), ".bmp"))
    return folder / "large.bmp"
