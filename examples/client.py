"""A client of the resource API that does the whole job, from a folder to similar photos.

    python examples/client.py load /path/to/photos
    python examples/client.py search photo.jpg --label dog --top-k 20
    python examples/client.py more 17                # more like the indexed object 17
    python examples/client.py upload one.jpg two.jpg
    python examples/client.py duplicates
    python examples/client.py collections

Needs `requests`. SERVICE_URL is the service's address, SERVICE_KEY the API key if it demands one.
"""

import argparse
import json
import os
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

TIMEOUT_SECONDS = 60
ATTEMPTS = 4
PHOTOS_PER_UPLOAD = 4


class ApiError(Exception):
    """What the service says is wrong (RFC 9457)."""


class Client:
    """The service's resource API."""

    def __init__(self, url: str, key: str | None = None) -> None:
        """`url` is the service's address, such as http://127.0.0.1:5010; `key` an API key."""
        self._api = f"{url.rstrip('/')}/api/v1"
        self._session = requests.Session()
        self._session.headers.update({"X-API-Key": key} if key else {})

    def load(self, folder: str, collection: str | None = None) -> Iterator[dict[str, Any]]:
        """Has the service load one of its folders; yields the load's state as it changes."""
        load = self._call("POST", "/loads", json={"folder": folder, "collection": collection})
        with self._session.get(
            f"{self._api}/loads/{load['id']}/events", stream=True, timeout=TIMEOUT_SECONDS
        ) as events:
            _check(events)
            # Each event is an `event:` and a `data:` line; other lines are of no interest here.
            for line in events.iter_lines():
                if line.startswith(b"data: "):
                    yield json.loads(line.removeprefix(b"data: "))

    def upload(self, photos: list[Path], collection: str | None = None) -> Iterator[dict[str, Any]]:
        """Sends photos; yields for each what has become of it."""
        for start in range(0, len(photos), PHOTOS_PER_UPLOAD):
            chunk = photos[start : start + PHOTOS_PER_UPLOAD]
            files = [("image", (photo.name, photo.read_bytes())) for photo in chunk]
            options = {
                "params": {"collection": collection},
                "files": files,
                "headers": {"Idempotency-Key": str(uuid.uuid4())},
            }
            try:
                done = self._call("POST", "/images", **options)
            except requests.ConnectionError:
                # The answer may have been lost: with the same key it is given again.
                done = self._call("POST", "/images", **options)
            yield from done["results"]

    def search(self, photo: Path, **options: Any) -> Iterator[dict[str, Any]]:
        """The photos most like this one, nearest first; the next pages as they are asked for."""
        page = self._call(
            "POST", "/search", params=options, files={"image": (photo.name, photo.read_bytes())}
        )
        yield from page["hits"]
        # The service keeps the photo for a while: its pages need no second upload.
        yield from self._pages(page, "/search", {**options, "query": page["query"]["id"]}, "hits")

    def more(self, object_id: int, **options: Any) -> Iterator[dict[str, Any]]:
        """The photos that hold something like an indexed object."""
        return self._all("/search", {**options, "object_id": object_id}, "hits")

    def duplicates(self, collection: str) -> Iterator[dict[str, Any]]:
        """Groups of photos that show the same."""
        return self._all(f"/collections/{collection}/duplicates", {}, "items")

    def collections(self) -> list[dict[str, Any]]:
        """All collections."""
        found: list[dict[str, Any]] = self._call("GET", "/collections")["items"]
        return found

    def default_collection(self) -> str:
        """The collection that is meant where none is named."""
        return str(self._call("GET", "/info")["default_collection"])

    def _all(self, path: str, params: dict[str, Any], items: str) -> Iterator[dict[str, Any]]:
        page = self._call("GET", path, params=params)
        yield from page[items]
        yield from self._pages(page, path, params, items)

    def _pages(
        self, page: dict[str, Any], path: str, params: dict[str, Any], items: str
    ) -> Iterator[dict[str, Any]]:
        while cursor := page["next_cursor"]:
            page = self._call("GET", path, params={**params, "cursor": cursor})
            yield from page[items]

    def _call(self, method: str, path: str, **options: Any) -> Any:
        for attempt in range(ATTEMPTS):
            answer = self._session.request(
                method, self._api + path, timeout=TIMEOUT_SECONDS, **options
            )
            if answer.status_code not in (429, 503) or attempt == ATTEMPTS - 1:
                break
            # The service has too much to do, or waits for an engine: it says for how long.
            time.sleep(int(answer.headers.get("Retry-After", 1)))
        _check(answer)
        return answer.json()


def _check(answer: requests.Response) -> None:
    if answer.status_code >= 400:
        problem = answer.json()
        raise ApiError(f"{problem['title']}: {problem['detail']}")


def _print_hits(hits: Iterator[dict[str, Any]], wanted: int) -> None:
    for _, hit in zip(range(wanted), hits, strict=False):
        for match in hit["matches"]:
            found = match["object"]
            print(
                f"{match['distance']:.4f}  {found['label']:<12} {found['score']:.2f}"
                f"  object {found['id']:<6} {hit['image']['path']}"
            )


def main() -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--collection", help="collection (unset: the service's default)")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("load").add_argument("folder", help="on the service's machine")
    commands.add_parser("upload").add_argument("photos", nargs="+", type=Path)
    search, more = commands.add_parser("search"), commands.add_parser("more")
    search.add_argument("photo", type=Path)
    more.add_argument("object", type=int)
    for command in (search, more):
        command.add_argument("--label", action="append", default=[], help="repeatable")
        command.add_argument("--top-k", type=int, default=10)
    commands.add_parser("duplicates")
    commands.add_parser("collections")
    options = parser.parse_args()
    url = os.environ.get("SERVICE_URL", "http://127.0.0.1:5010")
    client = Client(url, os.environ.get("SERVICE_KEY"))
    failed = 0
    try:
        if options.command == "load":
            for load in client.load(options.folder, options.collection):
                counts = load["counts"]
                print(f"{load['state']}: {counts['processed']} of {counts['total']} photos")
            for failure in load["failures"]:
                print(f"{failure['path']}: {failure['reason']}", file=sys.stderr)
            if load["state"] != "done":
                raise ApiError(
                    load["error"] or f"load {load['id']} is {load['state']}, and not done"
                )
            failed = counts["failed"]
        elif options.command == "upload":
            for photo, result in zip(
                options.photos, client.upload(options.photos, options.collection), strict=True
            ):
                problem = result["problem"]
                failed += problem is not None
                print(f"{photo}: {problem['detail'] if problem else result['image']['id']}")
        elif options.command in ("search", "more"):
            wanted = {"collection": options.collection, "label": options.label}
            hits = (
                client.search(options.photo, **wanted)
                if options.command == "search"
                else client.more(options.object, **wanted)
            )
            _print_hits(hits, options.top_k)
        elif options.command == "duplicates":
            for group in client.duplicates(options.collection or client.default_collection()):
                print("\n".join(image["path"] for image in group["images"]), end="\n\n")
        else:
            for each in client.collections():
                print(f"{each['name']}: {each['images']} photos, {each['failed']} failed")
    except (ApiError, requests.ConnectionError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
