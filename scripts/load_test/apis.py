"""The calls of both APIs that a load test makes, as data: who sends them is another's concern."""

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol
from urllib.parse import quote, urlencode

from scripts.load_test.errors import LoadTestError
from scripts.load_test.photos import Photo

__all__ = ["APIS", "Api", "Call", "ExistingApi", "ResourceApi"]

_BOUNDARY: Final = f"load-test-{secrets.token_hex(16)}"
_FILES_OF_A_SEARCH: Final = 3
"""Photos of a search's results that are then asked for."""


@dataclass(frozen=True)
class Call:
    """A request.

    Attributes:
        route: how the summary lists it.
        path: what is asked for, with its query.
        found: takes from the answer's JSON what later calls may ask for.
        may_be_missing: whether a 404 is an answer as well.
    """

    method: str
    route: str
    path: str
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    found: Callable[[Any], list[str]] | None = None
    may_be_missing: bool = False

    @property
    def name(self) -> str:
        return f"{self.method} {self.route}"


class Api(Protocol):
    """One of the service's two APIs, and the collection that is meant."""

    collection: str

    def search(self, photo: Photo) -> Call:
        """A search with a photo that is sent."""

    def upload(self, photo: Photo) -> Call:
        """A photo that is to be kept."""

    def looks(self, found: Sequence[str]) -> list[Call]:
        """What a client asks for besides, when a search has found something."""

    def load(self, folder: str) -> Call:
        """A folder, named as the service sees it, that is to be loaded."""

    def follow(self, load: Any) -> Call | None:
        """Asks how a load goes; None when it is done.

        Args:
            load: the JSON that `load`, or this call the last time, was answered.

        Raises:
            LoadTestError: it has failed.
        """

    def count(self) -> Call:
        """How many photos the collection has."""

    def counted(self, answer: Any) -> int:
        """The same, of the JSON that `count` was answered; None where there is no collection."""

    def drop(self) -> Call:
        """The collection's end."""


class ExistingApi:
    """The existing endpoints."""

    def __init__(self, collection: str, top_k: int) -> None:
        self.collection = collection
        self._query = urlencode({"table_name": collection})
        self._top_k = top_k

    def search(self, photo: Photo) -> Call:
        path = f"/img/search?{self._query}"
        return _form("/img/search", path, photo, fields={"topk": str(self._top_k)}, found=_paths)

    def upload(self, photo: Photo) -> Call:
        return _form("/img/upload", f"/img/upload?{self._query}", photo)

    def looks(self, found: Sequence[str]) -> list[Call]:
        files = [
            Call("GET", "/data", f"/data?image_path={quote(path)}")
            for path in found[:_FILES_OF_A_SEARCH]
        ]
        return [Call("GET", "/progress", "/progress"), self.count(), *files]

    def load(self, folder: str) -> Call:
        body = {"File": folder, "Table": self.collection}
        return _json("/img/load", body)

    def follow(self, load: Any) -> Call | None:
        return None  # what asks for a load is answered when it is done

    def count(self) -> Call:
        return Call("POST", "/img/count", f"/img/count?{self._query}")

    def counted(self, answer: Any) -> int:
        return int(answer)

    def drop(self) -> Call:
        return Call("POST", "/img/drop", f"/img/drop?{self._query}")


class ResourceApi:
    """`/api/v1`."""

    def __init__(self, collection: str, top_k: int) -> None:
        self.collection = collection
        self._query = urlencode({"collection": collection})
        self._top_k = top_k

    def search(self, photo: Photo) -> Call:
        path = f"/api/v1/search?{self._query}&top_k={self._top_k}"
        return _form("/api/v1/search", path, photo, found=_image_ids)

    def upload(self, photo: Photo) -> Call:
        return _form("/api/v1/images", f"/api/v1/images?{self._query}", photo)

    def looks(self, found: Sequence[str]) -> list[Call]:
        calls = [Call("GET", "/api/v1/images", f"/api/v1/images?{self._query}")]
        for image_id in found[:_FILES_OF_A_SEARCH]:
            path = f"/api/v1/images/{image_id}"
            calls.append(Call("GET", "/api/v1/images/{id}", path))
            calls.append(Call("GET", "/api/v1/images/{id}/thumbnail", f"{path}/thumbnail"))
        return calls

    def load(self, folder: str) -> Call:
        return _json("/api/v1/loads", {"folder": folder, "collection": self.collection})

    def follow(self, load: Any) -> Call | None:
        if load["state"] == "done":
            return None
        if load["state"] != "running":
            reason = load["error"] or "somebody has ended it"
            raise LoadTestError(f"the load of {load['folder']} is {load['state']}: {reason}")
        return Call("GET", "/api/v1/loads/{id}", f"/api/v1/loads/{load['id']}")

    def count(self) -> Call:
        return self._collection("GET")

    def counted(self, answer: Any) -> int:
        return 0 if answer is None else int(answer["images"])

    def drop(self) -> Call:
        return self._collection("DELETE")

    def _collection(self, method: str) -> Call:
        path = f"/api/v1/collections/{self.collection}"
        return Call(method, "/api/v1/collections/{name}", path, may_be_missing=True)


APIS: Final[Mapping[str, Callable[[str, int], Api]]] = {
    "v1": ResourceApi,
    "existing": ExistingApi,
}
"""What makes each API's calls, of a collection and how many photos a search is to find."""


def _paths(answer: Any) -> list[str]:
    return [path for path, _ in answer]


def _image_ids(answer: Any) -> list[str]:
    return [str(hit["image"]["id"]) for hit in answer["hits"]]


def _json(route: str, body: object) -> Call:
    headers = {"Content-Type": "application/json"}
    return Call("POST", route, route, json.dumps(body).encode(), headers)


def _form(
    route: str,
    path: str,
    photo: Photo,
    *,
    fields: Mapping[str, str] | None = None,
    found: Callable[[Any], list[str]] | None = None,
) -> Call:
    """A multipart form with a photo in it."""
    begin = f"--{_BOUNDARY}\r\nContent-Disposition: form-data; name="
    parts = [f'{begin}"{name}"\r\n\r\n{value}\r\n' for name, value in (fields or {}).items()]
    parts.append(
        f'{begin}"image"; filename="photo{photo.ending}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    body = b"".join(["".join(parts).encode(), photo.data, f"\r\n--{_BOUNDARY}--\r\n".encode()])
    headers = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
    return Call("POST", route, path, body, headers, found)
