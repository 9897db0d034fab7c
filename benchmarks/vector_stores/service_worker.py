"""What happens inside the measured process of the service; `embedded.py` starts it.

One argument, JSON: `action` is `fill` (write objects as a load does), `reopen` (open the stores and
search once) or `serve` (open the whole service, then search many times).
"""

import asyncio
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
from numpy.typing import NDArray

from backend.app import open_services
from backend.settings import Settings
from backend.storage.catalog import Catalog, NewImage, NewObject, path_key
from backend.storage.vectors import MilvusLite, ObjectVector, VectorHit, VectorStore
from benchmarks.reporting import percentiles_ms
from benchmarks.vector_stores.processes import ANSWER

_COLLECTION: Final = "benchmark"
_COMMIT_PHOTOS: Final = 64
"""As `indexing.py` commits them."""
_TOP_K: Final = 10
_HITS: Final = 4 * _TOP_K
"""What `searching.py` asks for first, to have `_TOP_K` distinct photos."""


async def _fill(arguments: dict[str, Any]) -> None:
    """Writes objects photo by photo, in the service's order of writes."""
    folder = Path(arguments["data_dir"])
    # Mapped, so that this process is no larger than one that embeds photos as it goes.
    vectors = np.load(arguments["vectors"], mmap_mode="r")
    photos = np.load(arguments["photos"])
    labels = np.load(arguments["labels"]).tolist()
    catalog = await Catalog.open_sqlite(folder)
    store = await MilvusLite.open(folder)
    try:
        collection = await catalog.ensure_collection(
            _COLLECTION,
            embedder=arguments["embedder"],
            embedder_sha256=arguments["embedder_sha256"],
            dim=vectors.shape[1],
            metric="L2",
        )
        assert collection is not None
        await store.create(collection.store, collection.dim)
        await catalog.finish_collection(collection.id)
        # Objects of one photo stand together: a photo begins where the index changes.
        starts = [0, *(np.flatnonzero(np.diff(photos)) + 1).tolist(), len(photos)]
        in_catalog = in_vectors = 0.0
        for first in range(0, len(starts) - 1, _COMMIT_PHOTOS):
            edges = starts[first : first + _COMMIT_PHOTOS + 1]
            ranges = [range(*pair) for pair in itertools.pairwise(edges)]
            begin = time.perf_counter()
            stored = await catalog.begin_images(
                collection.id, [_image(rows, labels) for rows in ranges]
            )
            written = time.perf_counter()
            await store.upsert(
                collection.store,
                [
                    ObjectVector(object_id, image.id, labels[row], 1.0, np.array(vectors[row]))
                    for image, rows in zip(stored, ranges, strict=True)
                    for object_id, row in zip(image.object_ids, rows, strict=True)
                ],
            )
            upserted = time.perf_counter()
            await catalog.finish_images(stored, {})
            in_catalog += written - begin + time.perf_counter() - upserted
            in_vectors += upserted - written
        await _answer(
            {
                "photos": len(starts) - 1,
                "upsert_rows_per_s": round(len(photos) / in_vectors),
                "catalog_rows_per_s": round(len(photos) / in_catalog),
            }
        )
    finally:
        await store.close()
        await catalog.close()


def _image(rows: range, labels: list[str]) -> NewImage:
    path = f"/photos/{rows.start:06d}.jpg"
    box = (0.0, 0.0, 100.0, 100.0)
    return NewImage(
        path=path,
        path_key=path_key(path),
        sha256=path_key(path),
        size=100_000,
        mtime_ns=1,
        width=400,
        height=300,
        objects=[NewObject(labels[row], 1.0, box) for row in rows],
    )


async def _reopen(arguments: dict[str, Any]) -> None:
    """How long until the stores alone have answered a first search."""
    folder = Path(arguments["data_dir"])
    queries = np.load(arguments["queries"])
    begin = time.perf_counter()
    catalog = await Catalog.open_sqlite(folder)
    store = await MilvusLite.open(folder)
    try:
        await _search(catalog, store, queries[:1])
        await _answer({"reopen_s": time.perf_counter() - begin})
    finally:
        await store.close()
        await catalog.close()


async def _serve(arguments: dict[str, Any]) -> None:
    """How long until the whole service has answered a first search, then many searches."""
    queries = np.load(arguments["queries"])
    settings = Settings.load(data_dir=Path(arguments["data_dir"]))
    opened = time.perf_counter()
    async with open_services(settings) as services:
        await _search(services.catalog, services.vectors, queries[:1])
        answered = time.perf_counter()
        # With the interpreter's start and the imports: what somebody who starts it waits for.
        from_nothing = time.time() - psutil.Process().create_time()
        timings = [
            await _search(services.catalog, services.vectors, queries[index : index + 1])
            for index in range(len(queries))
        ]
        collection = await services.catalog.collection(_COLLECTION)
        assert collection is not None
        whole = []
        for index in range(len(queries)):
            begin = time.perf_counter()
            hits = await services.searcher.nearest(collection, queries[index : index + 1], _TOP_K)
            whole.append(time.perf_counter() - begin)
            assert len(hits) == _TOP_K
        await _answer(
            {
                "start_s": answered - opened,
                "process_start_s": from_nothing,
                "search": percentiles_ms([search for search, _ in timings]),
                "places": percentiles_ms([places for _, places in timings]),
                "nearest": percentiles_ms(whole),
                "queries": len(timings),
            }
        )


async def _search(
    catalog: Catalog, vectors: VectorStore, query: NDArray[np.float32]
) -> tuple[float, float]:
    """Seconds for the vectors [1, D] and for the catalog, which `searching.py` asks in turn."""
    collection = await catalog.collection(_COLLECTION)
    assert collection is not None
    begin = time.perf_counter()
    [hits] = await vectors.search(collection.store, query, _HITS)
    searched = time.perf_counter()
    nearest: dict[int, VectorHit] = {}
    for hit in hits:
        nearest.setdefault(hit.image_id, hit)
    places = await catalog.places([hit.object_id for hit in nearest.values()])
    assert len(places) == len(nearest) >= 1
    return searched - begin, time.perf_counter() - searched


async def _answer(answer: dict[str, Any]) -> None:
    """Hands the answer over and keeps everything open while this process is weighed."""
    print(ANSWER + json.dumps(answer), flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    actions = {"fill": _fill, "reopen": _reopen, "serve": _serve}
    asyncio.run(actions[given["action"]](given))
