"""Runs the models of a model repository in the process, on ONNX Runtime's CPU provider."""

import asyncio
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from backend.errors import ConfigurationError
from backend.serving.models import SHA256_PARAMETER, ModelSpec, TensorSpec, read_spec
from backend.workers import Workers

__all__ = ["OnnxServer"]

_ONNX_DTYPES: Final = {"UINT8": "tensor(uint8)", "FP32": "tensor(float)", "INT32": "tensor(int32)"}


class OnnxServer:
    """ONNX Runtime sessions that share one pool of threads, a thread a core.

    A request runs on one thread and requests run side by side: for a stream of photos that beats
    splitting each request over the cores, and it leaves no thread of ONNX Runtime's own behind.

    Attributes:
        workers: the threads.
    """

    engine_name = "ONNX Runtime"

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self.workers = Workers("onnx")

    async def load(self, name: str) -> "OnnxModel":
        """See `ModelServer.load`."""
        return await self.workers.run(self._load, name)

    def _load(self, name: str) -> "OnnxModel":
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
        stated = spec.parameters.get(SHA256_PARAMETER, spec.sha256)
        if stated != spec.sha256:
            raise ConfigurationError(
                f"model {name!r}: {path} is not the ONNX file that its config.pbtxt belongs to:"
                f" {SHA256_PARAMETER} is {spec.sha256[:12]}…, not {stated[:12]}…; export the model"
                f" again: python -m scripts.export_models {name}"
            )
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        try:
            session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions share no base below Exception
            raise ConfigurationError(f"model {name!r}: {path} does not load: {error}") from None
        _check(spec, session)
        return OnnxModel(spec, session, self.workers)

    async def close(self) -> None:
        """See `ModelServer.close`; waits for the requests that are running."""
        await self.workers.close()


class OnnxModel:
    """One session. See `LocalModel`."""

    def __init__(self, spec: ModelSpec, session: ort.InferenceSession, workers: Workers) -> None:
        self.spec = spec
        self._session = session
        self._workers = workers
        self._input = spec.inputs[0].name
        self._outputs = [tensor.name for tensor in spec.outputs]

    async def infer(self, batch: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """See `Model.infer`."""
        parts = await asyncio.gather(
            *(self._workers.run(self._run, part) for part in self._split(batch))
        )
        return self._joined(parts)

    def run(self, batch: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """See `LocalModel.run`."""
        return self._joined([self._run(part) for part in self._split(batch)])

    def _split(self, batch: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        # max_batch_size 0 is Triton's word for a model without a batch dimension of its own.
        step = max(1, self.spec.max_batch_size)
        return [batch[start : start + step] for start in range(0, len(batch), step)]

    def _run(self, batch: NDArray[np.uint8]) -> list[NDArray[Any]]:
        outputs: list[NDArray[Any]] = self._session.run(self._outputs, {self._input: batch})
        return outputs

    def _joined(self, parts: Sequence[list[NDArray[Any]]]) -> dict[str, NDArray[Any]]:
        arrays = parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts, strict=True))
        return dict(zip(self._outputs, arrays, strict=True))


def _check(spec: ModelSpec, session: ort.InferenceSession) -> None:
    """Refuses an ONNX file that is not what the config.pbtxt beside it says."""
    sides = (
        ("input", spec.inputs, session.get_inputs()),
        ("output", spec.outputs, session.get_outputs()),
    )
    for kind, described, actual in sides:
        found = {node.name: node for node in actual}
        if set(found) != {tensor.name for tensor in described}:
            raise ConfigurationError(
                f"model {spec.name}: config.pbtxt names the {kind}s"
                f" {[tensor.name for tensor in described]}, model.onnx has {list(found)}"
            )
        for tensor in described:
            node = found[tensor.name]
            if node.type != _ONNX_DTYPES.get(tensor.dtype) or not _fits(tensor, node.shape):
                raise ConfigurationError(
                    f"model {spec.name}: config.pbtxt says that {kind} {tensor.name!r} is"
                    f" {tensor.dtype} {list(tensor.dims)}, model.onnx has {node.type}"
                    f" {node.shape[1:]}"
                )
    if len(spec.inputs) != 1:
        raise ConfigurationError(
            f"model {spec.name}: config.pbtxt names {len(spec.inputs)} inputs, one is needed"
        )
    batch = session.get_inputs()[0].shape[0]
    if isinstance(batch, int):
        raise ConfigurationError(
            f"model {spec.name}: model.onnx takes batches of {batch} alone: export it with a"
            " dynamic batch size"
        )


def _fits(tensor: TensorSpec, shape: list[Any]) -> bool:
    """Whether an ONNX shape, batch first, symbolic sizes as strings or None, allows the dims."""
    return len(shape) == len(tensor.dims) + 1 and all(
        not isinstance(actual, int) or actual == described
        for actual, described in zip(shape[1:], tensor.dims, strict=True)
    )
