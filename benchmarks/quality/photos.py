"""Measures whole searches through the running service, as its clients make them.

The service runs in this process, on a free loopback port, with a data folder of its own; photos are
loaded with `POST /img/load` and searched for with `POST /img/search`. Nothing stays behind.
"""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import numpy as np
from aiohttp import web
from numpy.typing import NDArray

from backend.app import create_app
from backend.settings import InferenceEngine, Settings
from benchmarks.retrieval import TOP_K
from benchmarks.voc import VocPhoto

__all__ = ["PhotoSearches", "measure_photos"]

_LOOPBACK: Final = "127.0.0.1"
_IN_FLIGHT: Final = 2 * (os.cpu_count() or 1)
"""Searches under way: enough that no core waits."""


@dataclass(frozen=True)
class PhotoSearches:
    """What each of Q query photos has found, `queries` being their indices.

    `nearest` int64 [Q, TOP_K] are the gallery's best photos, best first, -1 where the service has
    found fewer; `distances` float64 [Q, TOP_K] are its own; `matches` bool [Q, TOP_K] says which
    share a label with the query, and `chances` float64 [Q] what part of the gallery does. Labels
    are those of objects that are not marked difficult; photos without one are no queries.
    """

    queries: list[int]
    nearest: NDArray[np.int64]
    distances: NDArray[np.float64]
    matches: NDArray[np.bool_]
    chances: NDArray[np.float64]

    @property
    def precisions(self) -> NDArray[np.float64]:
        """Of each query the part of the TOP_K that match, float64 [Q]."""
        precisions: NDArray[np.float64] = self.matches.mean(axis=1)
        return precisions


async def measure_photos(
    gallery: Sequence[VocPhoto],
    photos: Sequence[VocPhoto],
    log: Callable[[str], None],
    *,
    engine: InferenceEngine = "onnxruntime",
) -> PhotoSearches:
    """Loads the gallery into a service of that engine and searches it for each photo.

    Raises:
        RuntimeError: the service has refused a request, or not loaded every photo.
    """
    queries = [index for index, photo in enumerate(photos) if photo.labels]
    turn = asyncio.Semaphore(_IN_FLIGHT)

    async def search(client: aiohttp.ClientSession, photo: VocPhoto) -> list[tuple[int, float]]:
        async with turn:
            form = aiohttp.FormData({"topk": str(TOP_K)})
            data = await asyncio.to_thread(photo.path.read_bytes)
            form.add_field("image", data, filename=photo.path.name)
            hits = await _post(client, "/img/search", data=form)
            return [(int(Path(path).stem), float(distance)) for path, distance in hits]

    with tempfile.TemporaryDirectory() as root:
        folder = Path(root, "gallery")
        _link(gallery, folder)
        async with _service(Path(root, "data"), engine) as client:
            log(f"loading {len(gallery)} photos into the service")
            await _post(client, "/img/load", json={"File": str(folder)})
            loaded = await _post(client, "/img/count")
            if loaded != len(gallery):
                raise RuntimeError(f"the service has loaded {loaded} of {len(gallery)} photos")
            log(f"searching for {len(queries)} photos through the service")
            found = await asyncio.gather(*(search(client, photos[index]) for index in queries))
    related = np.array(
        [[bool(photos[query].labels & photo.labels) for photo in gallery] for query in queries]
    )
    nearest = np.full((len(queries), TOP_K), -1)
    distances = np.full(nearest.shape, np.inf)
    matches = np.zeros(nearest.shape, bool)
    for row, hits in enumerate(found):
        for rank, (photo, distance) in enumerate(hits):
            nearest[row, rank], distances[row, rank] = photo, distance
            matches[row, rank] = related[row, photo]
    return PhotoSearches(queries, nearest, distances, matches, related.mean(axis=1))


def _link(photos: Sequence[VocPhoto], folder: Path) -> None:
    """Makes a folder of these photos alone, named by their indices."""
    folder.mkdir()
    for index, photo in enumerate(photos):
        (folder / f"{index}{photo.path.suffix}").symlink_to(photo.path.resolve())


@asynccontextmanager
async def _service(data_dir: Path, engine: InferenceEngine) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of a service that is set as from outside, but for where it listens and stores."""
    settings = Settings.load(
        host=_LOOPBACK,
        port=0,
        data_dir=data_dir,
        upload_path=data_dir / "uploads",
        inference_engine=engine,
    )
    runner = web.AppRunner(create_app(settings), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, settings.host, settings.port).start()
        port = runner.addresses[0][1]
        async with aiohttp.ClientSession(
            f"http://{_LOOPBACK}:{port}",
            timeout=aiohttp.ClientTimeout(total=None),  # a load takes minutes
        ) as client:
            yield client
    finally:
        await runner.cleanup()


async def _post(client: aiohttp.ClientSession, path: str, **body: Any) -> Any:
    async with client.post(path, **body) as answer:
        text = await answer.text()
        if answer.status != 200:
            raise RuntimeError(f"the service answered {path} with {answer.status}: {text}")
        return await answer.json()
