"""The resource API as a client calls it, of a service with a gallery in it."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from tests.photos import draw_photo, encode, write_photos
from tests.service import Service, start

GALLERY = "gallery"
PHOTOS = 24


@dataclass(frozen=True)
class Api:
    """Calls of `/api/v1`, and the photos of its gallery, which nobody changes."""

    service: Service
    photos: Sequence[Path]

    def call(self, method: str, path: str, **options: Any) -> requests.Response:
        return requests.request(method, f"{self.service.url}/api/v1{path}", timeout=120, **options)

    def get(self, path: str, **params: Any) -> Any:
        return _body(self.call("GET", path, params=params), 200)

    def post(self, path: str, body: object) -> requests.Response:
        return self.call("POST", path, json=body)

    def upload(
        self,
        *photos: bytes,
        collection: str,
        headers: Mapping[str, str] | None = None,
    ) -> requests.Response:
        return self.call(
            "POST",
            "/images",
            params={"collection": collection},
            files=[("image", (f"{number}.jpg", photo)) for number, photo in enumerate(photos)],
            headers=headers,
        )

    def search(self, photo: bytes, **params: Any) -> Any:
        answer = self.call(
            "POST",
            "/search",
            params={"collection": GALLERY, **params},
            files={"image": ("query.jpg", photo)},
        )
        return _body(answer, 200)

    def events(self, load_id: int) -> list[tuple[str, Any]]:
        """All server-sent events of a load, until the stream ends."""
        found: list[tuple[str, Any]] = []
        with self.call("GET", f"/loads/{load_id}/events", stream=True) as answer:
            assert answer.status_code == 200, answer.text
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            event = ""
            for line in answer.iter_lines(decode_unicode=True):
                name, _, value = line.partition(": ")
                if name == "event":
                    event = value
                elif name == "data":
                    found.append((event, json.loads(value)))
        return found


def _body(answer: requests.Response, status: int) -> Any:
    assert answer.status_code == status, answer.text
    return answer.json()


def problem(answer: requests.Response, status: int, code: str) -> Any:
    """The problem document of an answer that is one."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"].startswith("application/problem+json")
    body = answer.json()
    assert body["status"] == status
    assert body["code"] == code
    assert body["request_id"] == answer.headers["X-Request-ID"]
    assert body["title"]
    assert body["detail"]
    return body


def drawing(seed: int) -> bytes:
    """A photo that the gallery does not have."""
    return encode(draw_photo(10_000 + seed))


@contextmanager
def gallery(folder: Path) -> Iterator[Api]:
    """The service, its files in `folder`, with a gallery of real photos or else of drawn ones."""
    photos = _photos(folder / "photos")
    service = start(folder, ("--url-fetch", "false"), folder / "data")
    try:
        api = Api(service, photos)
        body = {"folder": str(folder / "photos"), "collection": GALLERY}
        load = _body(api.post("/loads", body), 202)
        name, last = api.events(load["id"])[-1]
        assert (name, last["state"]) == ("end", "done"), last
        assert last["counts"]["indexed"] == PHOTOS
        yield api
    finally:
        service.stop()


def _photos(folder: Path) -> list[Path]:
    if data := os.environ.get("VOC_DATA"):
        folder.mkdir()
        found = sorted((Path(data) / "val" / "images").glob("*.jpg"))[:PHOTOS]
        return [Path(shutil.copy(path, folder)) for path in found]
    return write_photos(folder, PHOTOS)
