"""The part of a bulk load that Ray runs on every machine: photos are read and analysed there."""

import asyncio
import pickle
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_exponential

from backend.analysis import PhotoAnalyzer
from backend.app import open_preparer
from backend.cores import limit_cores
from backend.deadlines import deadline
from backend.errors import EngineGone, EngineUnavailable, ServiceError, StoreUnavailable
from backend.places import PhotoPlaces
from backend.preparing import PhotoPreparer
from backend.scanning import FoundPhoto
from backend.settings import Settings
from backend.storage.catalog import Image, TouchedImage
from backend.writing import PreparedPhoto

__all__ = ["Column", "Outcome", "Preparer", "Task", "pack", "unpack"]

_T = TypeVar("_T")

Task = tuple[FoundPhoto, Image | None]
"""A photo, and its row where the catalog has one."""
Outcome = PreparedPhoto | TouchedImage
Column = Mapping[str, NDArray[np.object_]]
"""A block of Ray's: tasks or outcomes, pickled, under the name `photo`."""

_PATIENCE_SECONDS: Final = 300.0
"""With an engine or a store that is away; then the load breaks off, to be started again."""
_PROBE_SECONDS: Final = 10.0
_MAX_WAIT_SECONDS: Final = 5.0


def pack(items: Sequence[Task | Outcome]) -> dict[str, NDArray[np.object_]]:
    """A block of items. They travel within the cluster alone, which runs our code anyway."""
    column = np.empty(len(items), object)
    column[:] = [pickle.dumps(item) for item in items]
    return {"photo": column}


def unpack(block: Column) -> list[Any]:
    """What `pack` has made a block of."""
    return [pickle.loads(item) for item in block["photo"]]


class Preparer:
    """Prepares blocks of photos, several at a time, with models and decoders of its own."""

    def __init__(
        self,
        settings: Settings,
        cores: int | None = None,
        *,
        patience_seconds: float = _PATIENCE_SECONDS,
    ) -> None:
        """Opens the models, or connects to Triton; waits for it.

        Args:
            settings: the service's.
            cores: that it may use of its machine; None for all.
            patience_seconds: how long an engine or a store may be away, until this or `__call__`
                raises.

        Raises:
            EngineGone: Triton stays away.
        """
        if cores is not None:
            limit_cores(cores)
        self._patience_seconds = patience_seconds
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._stack = AsyncExitStack()
        self._preparer, self._analyzer, self._places = self._run(self._open(settings))

    async def _open(self, settings: Settings) -> tuple[PhotoPreparer, PhotoAnalyzer, PhotoPlaces]:
        problems: list[str | None] = []
        try:
            async with asyncio.timeout(self._patience_seconds):
                return await self._stack.enter_async_context(
                    open_preparer(settings, on_wait=lambda _, problem: problems.append(problem))
                )
        except TimeoutError:
            raise EngineGone(
                f"the models were not there within {self._patience_seconds:.0f} s:"
                f" {problems[-1] if problems else 'they take longer to be opened'}"
            ) from None

    def _run(self, steps: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(steps, self._loop).result()

    def __call__(self, block: Column) -> dict[str, NDArray[np.object_]]:
        """Outcomes of tasks, in their order.

        Raises:
            EngineGone, StoreRefuses: no photo is to blame.
        """
        return pack(self._run(self._prepare(unpack(block))))

    async def _prepare(self, tasks: Sequence[Task]) -> list[Outcome]:
        return await asyncio.gather(
            *(
                self._preparer.prepare(photo, known, self._places, self._patiently)
                for photo, known in tasks
            )
        )

    async def _patiently(self, attempt: Callable[[], Awaitable[_T]]) -> _T:
        """See `Patience`."""
        try:
            async for trial in AsyncRetrying(
                retry=retry_if_exception_type(EngineUnavailable),
                wait=wait_exponential(max=_MAX_WAIT_SECONDS),
                stop=stop_after_delay(self._patience_seconds),
                reraise=True,
            ):
                with trial:
                    return await attempt()
        except EngineUnavailable as trouble:
            await self._check_is_back(trouble)
        try:
            return await attempt()  # it may have come back just now
        except EngineUnavailable as trouble:
            await self._check_is_back(trouble)
            raise  # it fails with this photo alone

    async def _check_is_back(self, trouble: EngineUnavailable) -> None:
        """Raises EngineGone where the engine that has failed somebody fails everybody."""
        if not isinstance(trouble, StoreUnavailable):
            with suppress(ServiceError), deadline(_PROBE_SECONDS):
                await self._analyzer.probe()
                return
        seconds = f"{self._patience_seconds:.0f} s"
        raise EngineGone(f"{trouble.engine} has not come back within {seconds}: {trouble}")

    def peak_memory(self, block: Column) -> int:
        """Bytes that this process and its decoders have had in memory at most, a block prepared."""
        self(block)
        return sum(_peak(process) for process in ("self", *_children()))

    def close(self) -> None:
        """Ends the models, the decoders and the event loop."""
        self._run(self._stack.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _children() -> list[str]:
    """Processes that any thread of this one has started."""
    found = Path("/proc/self/task").glob("*/children")
    return [process for path in found for process in path.read_text("ascii").split()]


def _peak(process: str) -> int:
    """Peak resident memory of a process, bytes; 0 where it is gone."""
    try:
        lines = Path("/proc", process, "status").read_text("ascii", "replace").splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
