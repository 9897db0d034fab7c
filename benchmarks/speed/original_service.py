"""The existing demo's way of doing it, written anew as a service of its own: what `original.py`
compares with.

One photo after another, one object after another, everything on the event loop: each crop is
embedded by itself, a photo's vectors are inserted with one call, each object's row is committed by
itself, and a search asks for one object after another and for one row of SQL after another. The
models, how photos are decoded and cut, and the engines are the service's own. ONNX Runtime and
OpenCV may split a call over all cores, as they do where nobody says otherwise.
"""

import argparse
import asyncio
import signal
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from aiohttp import web
from numpy.typing import NDArray
from pymilvus import MilvusClient

from backend.analysis import WHOLE_IMAGE_LABEL
from backend.files import EVERYWHERE
from backend.scanning import scan_folder
from backend.serving.models import Detector, Embedder
from backend.serving.onnx import OnnxServer
from backend.vision.crops import crop_objects
from backend.vision.decode import decode
from backend.vision.detections import select_detections
from backend.vision.letterbox import letterbox
from benchmarks.speed.networks import MODELS, Networks
from tests.service import SMALL_PAIR

__all__ = ["LISTENING", "Original"]

LISTENING: Final = "listening on "
"""What its one line of output begins with, before its address."""
_COLLECTION: Final = "photos"
_TOP_K: Final = 10
_MAX_PIXELS: Final = 100_000_000
_MAX_BODY_BYTES: Final = 2**27
_ALL_CORES: Final = 0
"""ONNX Runtime's word for as many threads as there are cores."""
_TURNS: Final = 20
"""Of the event loop, which a search that waits takes from its first byte to its answer."""
_TABLE: Final = "CREATE TABLE objects (id INTEGER PRIMARY KEY, path TEXT, label TEXT, box TEXT)"


@dataclass(frozen=True)
class _Object:
    label: str
    box: list[float]
    vector: NDArray[np.float32]


class Original:
    """Loads and searches, and lets nobody in between."""

    def __init__(self, folder: Path, detector: Detector, embedder: Embedder) -> None:
        self._detector = detector
        self._embedder = embedder
        self._networks = Networks(intra_op_threads=_ALL_CORES)
        self._database = sqlite3.connect(folder / "objects.db")
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute(_TABLE)
        self._vectors: Any = MilvusClient(str(folder / "vectors.db"))
        self._vectors.create_collection(
            _COLLECTION, dimension=embedder.dimension, metric_type="L2", auto_id=True
        )
        self._progress = (0, 0)

    async def load(self, request: web.Request) -> web.Response:
        """Loads a folder; with `yields=true` searches get their turn after each photo."""
        folder = (await request.json())["File"]
        yields = request.query.get("yields") == "true"
        photos = scan_folder(folder, start=Path(), within=EVERYWHERE).photos
        for number, photo in enumerate(photos):
            self._add(photo.path, Path(photo.path).read_bytes())
            self._progress = (number + 1, len(photos))
            for _ in range(_TURNS if yields else 0):
                await asyncio.sleep(0)
        return web.json_response("Successfully loaded data!")

    async def search(self, request: web.Request) -> web.Response:
        """The paths with the nearest objects, nearest first."""
        form = await request.post()
        image = form["image"]
        assert isinstance(image, web.FileField)
        distances: dict[str, float] = {}
        for found in self._objects(image.file.read()):
            [hits] = self._vectors.search(_COLLECTION, data=[found.vector.tolist()], limit=_TOP_K)
            for hit in hits:
                [path] = self._database.execute(
                    "SELECT path FROM objects WHERE id = ?", (hit["id"],)
                ).fetchone()
                distances[path] = min(hit["distance"], distances.get(path, hit["distance"]))
        nearest = sorted(distances.items(), key=lambda each: each[1])
        return web.json_response(nearest[:_TOP_K])

    async def progress(self, _request: web.Request) -> web.Response:
        """How far the load has come."""
        current, total = self._progress
        return web.json_response(f"current: {current}, total: {total}")

    def _add(self, path: str, data: bytes) -> None:
        found = self._objects(data)
        ids = self._vectors.insert(
            _COLLECTION, [{"vector": each.vector.tolist()} for each in found]
        )["ids"]
        for object_id, each in zip(ids, found, strict=True):
            self._database.execute(
                "INSERT INTO objects VALUES (?, ?, ?, ?)",
                (object_id, path, each.label, str(each.box)),
            )
            self._database.commit()

    def _objects(self, data: bytes) -> list[_Object]:
        photo = decode(data, max_pixels=_MAX_PIXELS)
        square, placement = letterbox(photo, self._detector.size)
        [boxes], [scores], [labels] = self._networks.detect(square[np.newaxis])
        found = select_detections(
            boxes,
            scores,
            labels,
            placement=placement,
            score_threshold=self._detector.score_threshold,
            nms_threshold=self._detector.nms_threshold,
        )
        kinds = [self._detector.labels[label] for label in found.labels.tolist()]
        boxes = found.boxes
        if not kinds:  # as the service does it, so that both have the same work
            height, width = photo.shape[:2]
            kinds, boxes = [WHOLE_IMAGE_LABEL], np.array([[0, 0, width, height]], np.float32)
        objects = []
        for box, label in zip(boxes, kinds, strict=True):
            crop = crop_objects(
                photo,
                box[np.newaxis],
                self._embedder.size,
                geometry=self._embedder.crop_geometry,
                margin=self._embedder.crop_margin,
            )
            [vector] = self._networks.embed(crop)
            objects.append(_Object(label, box.tolist(), vector))
        return objects


async def _open(folder: Path) -> Original:
    server = OnnxServer(MODELS)
    try:
        detector, embedder = [await server.load(name) for name in SMALL_PAIR.values()]
        return Original(folder, Detector(detector), Embedder(embedder))
    finally:
        await server.close()


async def _serve(folder: Path) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    original = await _open(folder)
    app = web.Application(client_max_size=_MAX_BODY_BYTES)
    app.router.add_post("/img/load", original.load)
    app.router.add_post("/img/search", original.search)
    app.router.add_get("/progress", original.progress)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0]
    print(f"{LISTENING}http://{host}:{port}", flush=True)
    await stop.wait()
    await runner.cleanup()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    asyncio.run(_serve(parser.parse_args().folder))
