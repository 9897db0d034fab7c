"""Collections of many objects, written by the service's own code in a process of its own."""

import asyncio
import itertools
import multiprocessing
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from backend.app import open_services
from backend.settings import Settings
from backend.storage.catalog import NewImage, NewObject, path_key
from backend.writing import PreparedPhoto
from benchmarks.speed.networks import MODELS, Networks, PhotoTensors
from benchmarks.vector_stores.vectors import expansion, multiply
from benchmarks.voc import DescribedObjects
from tests.service import SMALL_PAIR

__all__ = ["describe", "fill"]

_COMMIT_PHOTOS: Final = 500
_SEED: Final = 0
_LABEL: Final = "object"
_EMBEDDED: Final[Mapping[str, str]] = {}


def describe(tensors: Sequence[PhotoTensors], networks: Networks) -> DescribedObjects:
    """The objects of photos, in their order, with their embeddings."""
    vectors = [networks.embed(photo.crops) for photo in tensors]
    photos = np.repeat(np.arange(len(tensors)), [len(each) for each in vectors])
    return DescribedObjects((_LABEL,) * len(photos), photos, np.concatenate(vectors))


def fill(
    objects: DescribedObjects,
    counts: Mapping[Path, int],
    settings: Mapping[str, str] = _EMBEDDED,
) -> None:
    """Makes services' data folders whose default collections hold so many objects.

    `settings`: of the services' engines.

    They are noisy copies of real ones, so that they lie in clusters as real ones do, in photos of
    as many objects; no such photo has a file.
    """
    context = multiprocessing.get_context("spawn")  # what it opens and needs ends with it
    with ProcessPoolExecutor(1, mp_context=context) as process:
        process.submit(_run, objects, counts, dict(settings)).result()


def _run(
    objects: DescribedObjects, counts: Mapping[Path, int], settings: Mapping[str, str]
) -> None:
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")  # Milvus Lite's own
    dimension = objects.vectors.shape[1]
    unchanged = expansion(dimension, dimension, seed=_SEED)
    for data_dir, count in counts.items():
        copies = multiply(objects, count, unchanged, seed=_SEED)
        asyncio.run(_fill({**settings, "data_dir": str(data_dir)}, copies))


async def _fill(chosen: Mapping[str, str], objects: DescribedObjects) -> None:
    names = {name.lower(): model for name, model in SMALL_PAIR.items()}
    settings = Settings.load(model_repository=MODELS, **names, **chosen)
    starts = [0, *(np.flatnonzero(np.diff(objects.photos)) + 1).tolist(), len(objects)]
    edges = list(itertools.pairwise(starts))
    async with open_services(settings) as services:
        collection = await services.writer.ensure_collection(settings.default_table)
        for first in range(0, len(edges), _COMMIT_PHOTOS):
            photos = [
                _photo(start, objects.vectors[start:end])
                for start, end in edges[first : first + _COMMIT_PHOTOS]
            ]
            await services.writer.add(collection, photos)


def _photo(number: int, vectors: NDArray[np.float32]) -> PreparedPhoto:
    path = f"/photos/{number:07d}.jpg"
    box = (0.0, 0.0, 100.0, 100.0)
    image = NewImage(
        path=path,
        path_key=path_key(path),
        sha256=path_key(path),
        size=100_000,
        mtime_ns=1,
        width=400,
        height=300,
        objects=[NewObject(_LABEL, 1.0, box) for _ in vectors],
    )
    return PreparedPhoto(image, vectors)
