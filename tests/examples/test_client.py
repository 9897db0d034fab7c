"""The example of a client, as its reader would run it."""

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.api import GALLERY, PHOTOS, Api, drawing
from tests.http.test_metrics import figures, one
from tests.overload import busy, wait_for
from tests.photos import write_photos
from tests.service import REPOSITORY, Service

CLIENT = REPOSITORY / "examples" / "client.py"


def _run(api: Api, *arguments: str, code: int = 0) -> tuple[list[str], str]:
    done = subprocess.run(
        [sys.executable, str(CLIENT), *arguments],
        env={"SERVICE_URL": api.service.url, "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, done.stderr
    return done.stdout.splitlines(), done.stderr


def test_it_fits_on_a_few_pages() -> None:
    assert len(CLIENT.read_text().splitlines()) <= 200


def test_it_loads_a_folder_and_says_what_failed(api: Api, tmp_path: Path) -> None:
    write_photos(tmp_path, 3, start=400)
    (tmp_path / "Århus.jpg").write_bytes(b"no photo")
    lines, errors = _run(api, "--collection", "client_load", "load", str(tmp_path), code=1)
    assert lines[-1] == "done: 4 of 4 photos"
    assert str(tmp_path / "Århus.jpg") in errors


def test_it_searches_page_by_page_and_then_for_more_like_what_it_found(api: Api) -> None:
    photo = str(api.photos[0])
    lines, _ = _run(api, "--collection", GALLERY, "search", photo, "--top-k", str(PHOTOS))
    assert len(lines) == PHOTOS
    assert lines[0].endswith(photo)
    assert lines[0].startswith("0.0000")
    found = lines[0].split(" object ")[1].split()[0]
    lines, _ = _run(api, "more", found, "--top-k", "3")
    assert len(lines) == 3


def test_it_uploads_photos_and_finds_the_copies(api: Api, tmp_path: Path) -> None:
    for name in ("one.jpg", "two.jpg"):
        (tmp_path / name).write_bytes(drawing(410 + len(name)))
    (tmp_path / "bad.jpg").write_bytes(b"no photo")
    paths = [str(tmp_path / name) for name in ("one.jpg", "bad.jpg", "two.jpg")]
    lines, _ = _run(api, "--collection", "client_upload", "upload", *paths, code=1)
    assert len(lines) == 3
    assert "bad.jpg: " in lines[1]
    lines, _ = _run(api, "--collection", "client_upload", "duplicates")
    assert lines == []  # the same bytes in the same collection are the same photo
    lines, _ = _run(api, "collections")
    assert f"{GALLERY}: {PHOTOS} photos, 0 failed" in lines


def test_it_waits_for_a_service_that_has_enough_to_do(
    start_service: Callable[..., Service], tmp_path: Path
) -> None:
    service = start_service("--max-queued", "1")
    api = Api(service, write_photos(tmp_path, 1))
    photo = str(api.photos[0])
    _run(api, "upload", photo)
    with ThreadPoolExecutor() as threads, busy(service) as begin:
        begin()
        asked = threads.submit(_run, api, "search", photo)
        wait_for(lambda: one(figures(service), "requests_refused_total", limit="MAX_QUEUED") > 0)
        assert not asked.done()
    lines, _ = asked.result()
    assert lines[0].startswith("0.0000")


def test_it_says_in_words_what_is_wrong(api: Api, tmp_path: Path) -> None:
    _, errors = _run(api, "load", str(tmp_path / "nowhere"), code=1)
    assert errors.startswith("error: Bad Request: ")
    assert "nowhere" in errors
