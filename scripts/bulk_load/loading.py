"""A bulk load: what is to be done is looked up here, prepared on Ray, and written from here.

The catalog alone knows how far it has come. Photos are written in the order of every other write
(`backend/writing.py`): what a run that was killed has left half done the next one mends, and it
goes on from there.
"""

import asyncio
import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, Final

import structlog

from backend.app import Services
from backend.errors import ConfigurationError, ServiceError
from backend.loads import Failure, Load, LoadCounts
from backend.preparing import is_unchanged
from backend.scanning import FoundPhoto
from backend.settings import Settings
from backend.storage.catalog import Image, TouchedImage, path_key
from backend.threads import in_steps, in_thread
from backend.writing import PreparedPhoto
from scripts.bulk_load.cluster import START_SECONDS, connected, ray
from scripts.bulk_load.preparer import Outcome, Preparer, Task, pack, unpack

__all__ = ["BLOCKS_AT_ONCE", "BulkLoad", "plan_actors", "spread"]

_log = structlog.get_logger("backend.bulk_load")

_LOOKUP_PHOTOS: Final = 500
"""Photos whose rows are looked up with one query."""
_BLOCK_PHOTOS: Final = 32
"""As many photos as keep an actor busy."""
BLOCKS_AT_ONCE: Final = 2
"""Of an actor: the last photos of one do not hold up the next."""
_CORES_BESIDE_TRITON: Final = 2
"""An actor that only prepares what Triton infers uses no more, like a backend (docs/scale.md)."""
_RETRIES: Final = {"max_restarts": 3, "max_task_retries": 3}
"""Of an actor whose machine or process goes."""
_MEMORY_MARGIN: Final = 1.25
"""An actor is given more memory than one has needed for its first photos."""
_NO_PASSWORDS: Final = {"mysql_pwd": "", "milvus_token": ""}
"""What actors have no use for does not travel."""


class BulkLoad:
    """Loads folders into a collection, on Ray."""

    def __init__(
        self, services: Services, settings: Settings, *, address: str | None, commit_photos: int
    ) -> None:
        """`address`: see `connected`; `commit_photos`: written together, and imported."""
        self._services = services
        self._settings = settings
        self._address = address
        self._commit_photos = commit_photos
        self._cores = None if settings.triton_url is None else _CORES_BESIDE_TRITON

    async def start(self, sources: Sequence[str], table: str) -> Load:
        """Lists the photos; returns a load that is under way.

        Raises:
            InvalidInput, Forbidden, NotFound: a source is no folder that photos may be loaded from.
            EmbedderMismatch: the collection was filled by another embedder.
        """
        indexer = self._services.indexer
        scans = [await indexer.scan(source) for source in sources]
        for scan in scans:
            for folder, reason in scan.unreadable.items():
                _log.warning("load.folder_unreadable", folder=folder, reason=reason)
        photos = list({photo.path: photo for scan in scans for photo in scan.photos}.values())
        ensure = partial(self._services.writer.ensure_collection, table)
        collection = await indexer.patiently(None, ensure)
        load = Load(
            0,
            collection,
            ", ".join(scan.root for scan in scans),
            False,
            photos,
            LoadCounts(total=len(photos), passed_over=sum(scan.passed_over for scan in scans)),
        )
        load.task = asyncio.create_task(self._run(load), name="bulk-load")
        return load

    async def _run(self, load: Load) -> None:
        if tasks := await self._to_do(load):
            async with connected(self._address):
                try:
                    await self._do(load, tasks)
                except Exception as failure:
                    # What has failed on another machine is wrapped, in its own class as well.
                    cause = getattr(failure, "cause", None) or failure
                    if cause is failure and isinstance(failure, ServiceError | ConfigurationError):
                        raise
                    _log.error("bulk_load.broke_off", exc_info=failure)
                    raise ServiceError(
                        f"the load broke off ({_words(cause)}): the same command goes on from here"
                    ) from failure
        load.end("done")

    async def _do(self, load: Load, tasks: Sequence[Task]) -> None:
        memory = await self._measure(tasks)
        batch: list[Outcome] = []
        async with aclosing(spread(tasks, Preparer, self._preparers(memory))) as prepared:
            async for outcomes in prepared:
                batch += outcomes
                while len(batch) >= self._commit_photos:
                    await self._write(load, batch[: self._commit_photos])
                    del batch[: self._commit_photos]
        await self._write(load, batch)

    async def _to_do(self, load: Load) -> list[Task]:
        """The photos that are not indexed as they are, each with its row."""
        tasks: list[Task] = []
        for start in range(0, len(load.photos), _LOOKUP_PHOTOS):
            photos = load.photos[start : start + _LOOKUP_PHOTOS]
            keys = [path_key(photo.path) for photo in photos]
            rows = await self._services.catalog.images_by_key(load.collection.id, keys)
            known: list[tuple[FoundPhoto, Image | None]] = [
                (photo, rows.get(key)) for photo, key in zip(photos, keys, strict=True)
            ]
            changed = [pair for pair in known if not is_unchanged(*pair)]
            tasks += changed
            load.add(LoadCounts(unchanged=len(known) - len(changed)))
        return tasks

    async def _measure(self, tasks: Sequence[Task]) -> int:
        """Bytes that one actor needs, as one has that prepares the first photos."""
        actors: Any = ray.remote(Preparer)
        probe = actors.options(num_cpus=1, **_RETRIES).remote(self._actors_settings(), self._cores)
        try:
            try:
                async with asyncio.timeout(START_SECONDS):
                    await probe.__ray_ready__.remote()
            except TimeoutError:
                raise ConfigurationError(
                    f"within {START_SECONDS / 60:.0f} minutes no process could be started that"
                    " prepares photos: see that a machine of the cluster has a core free, and that"
                    " it reaches Triton where TRITON_URL names one"
                ) from None
            first = pack(tasks[: _BLOCK_PHOTOS * BLOCKS_AT_ONCE])
            try:
                async with asyncio.timeout(START_SECONDS):
                    peak: int = await probe.peak_memory.remote(first)
            except TimeoutError:
                raise ServiceError(
                    f"the first photos were not prepared within {START_SECONDS / 60:.0f} minutes:"
                    " see the logs of Ray's processes"
                ) from None
        finally:
            ray.kill(probe)
        return math.ceil(_MEMORY_MARGIN * peak)

    def _actors_settings(self) -> Settings:
        return self._settings.model_copy(
            update={
                name: type(getattr(self._settings, name))(value)
                for name, value in _NO_PASSWORDS.items()
            }
        )

    def _preparers(self, memory: int) -> dict[str, Any]:
        """How Ray is to run the actors."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        actors, cores = plan_actors(nodes, memory, self._cores)
        return {
            "fn_constructor_args": (self._actors_settings(), cores),
            "compute": ray.data.ActorPoolStrategy(
                min_size=1,
                max_size=actors,
                max_concurrent_calls_per_actor=BLOCKS_AT_ONCE,
                enable_true_multi_threading=True,
            ),
            "num_cpus": cores,
            "memory": memory,
        }

    async def _write(self, load: Load, batch: Sequence[Outcome]) -> None:
        patiently = partial(self._services.indexer.patiently, load)
        touched = [outcome for outcome in batch if isinstance(outcome, TouchedImage)]
        photos = [outcome for outcome in batch if isinstance(outcome, PreparedPhoto)]
        if touched:
            await patiently(partial(self._services.catalog.touch_images, touched))
            load.add(LoadCounts(unchanged=len(touched)), read=len(touched))
        if photos:
            await patiently(partial(self._services.writer.add, load.collection, photos))
            images = [photo.image for photo in photos]
            failures = [
                Failure(image.path, image.error) for image in images if image.error is not None
            ]
            indexed = [image for image in images if image.error is None]
            counts = LoadCounts(
                indexed=len(indexed),
                failed=len(failures),
                objects=sum(len(image.objects) for image in indexed),
            )
            load.add(counts, failures, read=len(images))
        done, total = load.counts.processed, load.counts.total
        _log.info("bulk_load.written", photos=done, of=total, failed=load.counts.failed)


def plan_actors(
    nodes: Sequence[Mapping[str, float]], memory: int, most_cores: int | None = None
) -> tuple[int, int]:
    """How many actors there are to be at most, and how many cores each may use.

    That is as many as the smallest machine has, and larger ones run several; no more than there is
    memory for.

    Args:
        nodes: what machines have, as Ray says: `CPU`, and `memory` in bytes.
        memory: bytes that one actor takes.
        most_cores: that an actor has a use for; None for any number.

    Raises:
        ConfigurationError: there is no machine that one fits on.
    """
    able = [node for node in nodes if node.get("CPU", 0) >= 1 and node.get("memory", 0) >= memory]
    if not able:
        raise ConfigurationError(
            f"a process with the models needs {memory / 2**20:.0f} MiB of memory and a core, and no"
            " machine of the cluster has both to give: add one that has"
        )
    cores = int(min(node["CPU"] for node in able))
    cores = min(cores, most_cores or cores)
    return sum(int(min(node["CPU"] // cores, node["memory"] // memory)) for node in able), cores


def _words(cause: BaseException) -> str:
    if isinstance(cause, ServiceError):
        return str(cause)
    *_, last = str(cause).strip().splitlines() or [""]
    return f"{type(cause).__name__}: {last}"


async def spread(
    tasks: Sequence[Task], actor: type, options: Mapping[str, Any]
) -> AsyncGenerator[list[Outcome], None]:
    """What actors make of the photos, in the order in which they get ready.

    Args:
        tasks: any number of them.
        actor: makes outcomes of a block, as `Preparer` does.
        options: how Ray is to run the actors.
    """

    def begin() -> Any:  # a generator of columns
        photos = ray.data.from_items(
            [{"photo": photo} for photo in pack(tasks)["photo"]],
            override_num_blocks=math.ceil(len(tasks) / _BLOCK_PHOTOS),
        )
        prepared = photos.map_batches(
            actor, batch_size=_BLOCK_PHOTOS, batch_format="numpy", **options
        )
        return iter(prepared.iter_batches(batch_size=None, batch_format="numpy"))

    ready = await in_thread(begin)  # of many photos it takes a while
    try:
        async for block in in_steps(ready):
            yield unpack(block)
    finally:
        await in_thread(ready.close)  # Ray may not be shut down under what is at work with it
