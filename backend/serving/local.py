"""Runs the models of a model repository in the process.

What is the same whatever computes them: how a model is found, read and checked, and how requests
share the threads. `onnx.py` and `openvino.py` open the ONNX file and run a batch, and nothing else.
"""

import asyncio
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from backend.errors import ConfigurationError
from backend.serving.models import SHA256_PARAMETER, ModelSpec, TensorSpec, read_spec
from backend.workers import Workers

__all__ = ["ServedModel", "LocalServer", "Network", "Port"]


_EXTERNAL_DATA_HINT: Final = (
    " (weights in other files than model.onnx are not read, since no SHA-256 covers them: save the"
    " model as one file)"
)


class Port(NamedTuple):
    """One input or output as the ONNX file has it: `shape` with the batch, None for any size."""

    name: str
    dtype: str
    """In the words of config.pbtxt, or the runtime's own where that has none."""
    shape: tuple[int | None, ...]


class Network(Protocol):
    """An ONNX file that is ready to run, in several threads side by side."""

    @property
    def inputs(self) -> Sequence[Port]:
        """What it takes."""
        ...

    @property
    def outputs(self) -> Sequence[Port]:
        """What it answers with."""
        ...

    def run(self, batch: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """The outputs by name for one batch, computed in the calling thread alone."""
        ...


class LocalServer(ABC):
    """Networks that share one pool of threads, a thread a core. See `ModelServer`.

    A request runs on one thread and requests run side by side: for a stream of photos that beats
    splitting each request over the cores.

    Attributes:
        workers: the threads.
    """

    engine_name: str

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self.workers = Workers("network")

    @abstractmethod
    def _open(self, content: bytes) -> Network:
        """The network of an ONNX file's content; raises whatever its runtime does."""

    async def load(self, name: str) -> "ServedModel":
        """See `ModelServer.load`."""
        return await self.workers.run(self._load, name)

    def _load(self, name: str) -> "ServedModel":
        folder = self._repository / name
        path = folder / "1" / "model.onnx"
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise ConfigurationError(
                f"there is no model {name!r}: {path} does not exist; export it: pip install -e"
                f" '.[export]', then python -m scripts.export_models {name}"
            ) from None
        except OSError as error:
            raise ConfigurationError(f"model {name!r}: {path}: {error.strerror}") from None
        spec = read_spec(folder / "config.pbtxt", sha256=hashlib.sha256(content).hexdigest())
        if spec.name != name:
            raise ConfigurationError(
                f"{folder / 'config.pbtxt'} names the model {spec.name!r}, not {name!r}"
            )
        _check_sha256(spec, path)
        try:
            network = self._open(content)
        except Exception as error:  # the runtimes' exceptions share no base below Exception
            reason = " ".join(str(error).split())  # OpenVINO's have several lines
            hint = _EXTERNAL_DATA_HINT if "xternal data" in reason else ""
            raise ConfigurationError(
                f"model {name!r}: {path} does not load: {reason}{hint}"
            ) from None
        _check(spec, network)
        return ServedModel(spec, network, self.workers)

    async def close(self) -> None:
        """See `ModelServer.close`; waits for the requests that are running."""
        await self.workers.close()


class ServedModel:
    """A loaded model that runs in the process. See `Model`."""

    def __init__(self, spec: ModelSpec, network: Network, workers: Workers) -> None:
        self.spec = spec
        self._network = network
        self._workers = workers

    async def infer(self, batch: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """See `Model.infer`."""
        return self._joined(
            await asyncio.gather(
                *(self._workers.run(self._network.run, part) for part in self._split(batch))
            )
        )

    def run(self, batch: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """As `infer`, in the calling thread: for one of the workers."""
        return self._joined([self._network.run(part) for part in self._split(batch)])

    def _split(self, batch: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        # max_batch_size 0 is Triton's word for a model without a batch dimension of its own.
        step = max(1, self.spec.max_batch_size)
        return [batch[start : start + step] for start in range(0, len(batch), step)]

    def _joined(self, parts: Sequence[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
        if len(parts) == 1:
            return parts[0]
        names = [tensor.name for tensor in self.spec.outputs]
        return {name: np.concatenate([part[name] for part in parts]) for name in names}


def _check_sha256(spec: ModelSpec, path: Path) -> None:
    """Refuses an ONNX file other than the one that the config.pbtxt was written for."""
    stated = spec.parameters.get(SHA256_PARAMETER, "")
    if not stated:
        raise ConfigurationError(
            f"model {spec.name!r}: its config.pbtxt does not say which ONNX file it belongs to, so"
            f" {path} cannot be checked; export the model again (python -m scripts.export_models"
            f" {spec.name}), or, if the file is what it should be, add to config.pbtxt:"
            f' parameters {{ key: "{SHA256_PARAMETER}" value {{ string_value: "{spec.sha256}" }} }}'
        )
    if stated.lower() != spec.sha256:
        raise ConfigurationError(
            f"model {spec.name!r}: {path} is not the ONNX file that its config.pbtxt belongs to:"
            f" {SHA256_PARAMETER} is {spec.sha256[:12]}…, not {stated[:12]}…; it was exchanged or"
            " damaged: put the right file back, or export the model again: python -m"
            f" scripts.export_models {spec.name}"
        )


def _check(spec: ModelSpec, network: Network) -> None:
    """Refuses an ONNX file that is not what the config.pbtxt beside it says."""
    sides = (
        ("input", spec.inputs, network.inputs),
        ("output", spec.outputs, network.outputs),
    )
    for kind, described, actual in sides:
        found = {port.name: port for port in actual}
        if set(found) != {tensor.name for tensor in described}:
            raise ConfigurationError(
                f"model {spec.name}: config.pbtxt names the {kind}s"
                f" {[tensor.name for tensor in described]}, model.onnx has {list(found)}"
            )
        for tensor in described:
            port = found[tensor.name]
            if port.dtype != tensor.dtype or not _fits(tensor, port.shape):
                raise ConfigurationError(
                    f"model {spec.name}: config.pbtxt says that {kind} {tensor.name!r} is"
                    f" {tensor.dtype} {list(tensor.dims)}, model.onnx has {port.dtype}"
                    f" {[-1 if size is None else size for size in port.shape[1:]]}"
                )
    if len(spec.inputs) != 1:
        raise ConfigurationError(
            f"model {spec.name}: config.pbtxt names {len(spec.inputs)} inputs, one is needed"
        )
    batch = network.inputs[0].shape[0]
    if batch is not None:
        raise ConfigurationError(
            f"model {spec.name}: model.onnx takes batches of {batch} alone: export it with a"
            " dynamic batch size"
        )


def _fits(tensor: TensorSpec, shape: tuple[int | None, ...]) -> bool:
    """Whether an ONNX shape, batch first, allows the dims."""
    return len(shape) == len(tensor.dims) + 1 and all(
        actual is None or actual == described
        for actual, described in zip(shape[1:], tensor.dims, strict=True)
    )
