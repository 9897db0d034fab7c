"""Models in the process on OpenVINO's CPU plugin, in 32-bit floats or in bfloat16.

On a processor that computes in bfloat16, OpenVINO does so unless it is told otherwise. Here nothing
is left to it: the precision is named, and what has been compiled is asked which one it has.
"""

import asyncio
import threading
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from backend.cores import count_cores
from backend.errors import ConfigurationError
from backend.serving.local import LocalServer, Port

if TYPE_CHECKING:
    from openvino import Core, InferRequest

__all__ = ["OpenVinoServer", "Precision", "check_precision"]

Precision = Literal["f32", "bf16"]

_DEVICE: Final = "CPU"
_DTYPES: Final = {"u8": "UINT8", "f32": "FP32", "i32": "INT32"}
_EXTERNAL_DATA: Final = b"\n\x08location"
"""In an ONNX file, the key of where weights lie that are in another one: OpenVINO would take them,
unchecked, from the folder that the service was started in."""


class OpenVinoServer(LocalServer):
    """OpenVINO's compiled models, computed in the workers' threads, each by one of them."""

    @classmethod
    async def open(cls, repository: Path, precision: Precision) -> "OpenVinoServer":
        """A server without models.

        Raises:
            ConfigurationError: OpenVINO is not installed, or the processor lacks the precision.
        """
        return cls(repository, await asyncio.to_thread(_core, precision), precision)

    def __init__(self, repository: Path, core: "Core", precision: Precision) -> None:
        super().__init__(repository)
        self.engine_name = f"OpenVINO {precision}"
        self._core = core
        self._precision = precision

    def _open(self, content: bytes) -> "_CompiledModel":
        return _CompiledModel(self._core, content, self._precision)


class _CompiledModel:
    """See `Network`."""

    def __init__(self, core: "Core", content: bytes, precision: Precision) -> None:
        if _EXTERNAL_DATA in content:
            raise RuntimeError("External data")
        # Threads that compute in the same stream wait for each other.
        streams = count_cores()
        options = {
            "INFERENCE_PRECISION_HINT": precision,
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": streams,
            "ENABLE_HYPER_THREADING": True,  # a stream for each of the workers, that is
            "ENABLE_CPU_PINNING": False,  # they are the service's threads, with other work as well
        }
        model = core.read_model(content)
        self.inputs = [_port(port) for port in model.inputs]
        self.outputs = [_port(port) for port in model.outputs]
        self._names = [port.name for port in self.outputs]
        self._model = core.compile_model(model, _DEVICE, options)
        computes = self._model.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if computes != precision:
            raise RuntimeError(f"OpenVINO computes in {computes} where {precision} is asked for")
        self._mine = threading.local()

    def run(self, batch: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """See `Network.run`."""
        request: InferRequest | None = getattr(self._mine, "request", None)
        if request is None:
            request = self._mine.request = self._model.create_infer_request()
        # The pixels are read where they are; the answers are copied: the request's memory is
        # written again by the next batch.
        outputs = request.infer([batch], share_inputs=True, share_outputs=False)
        return dict(zip(self._names, outputs.to_tuple(), strict=True))


def _core(precision: Precision) -> "Core":
    try:
        import openvino
    except ImportError as missing:
        raise ConfigurationError(
            f"INFERENCE_ENGINE=openvino-{precision} needs OpenVINO, which is not installed"
            f" ({missing}): run pip install 'image-similarity-search[openvino]' (in a checkout pip"
            " install -e '.[openvino]'), or unset the variable"
        ) from None
    # The first tensor of a process is made in one thread: where two make theirs at once, one waits
    # for what the other prepares, which waits for the interpreter, and neither ever goes on.
    openvino.Tensor(np.zeros(1, np.uint8), shared_memory=True)
    core = openvino.Core()
    check_precision(precision, core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES"))
    return core


def check_precision(precision: Precision, capabilities: Collection[str]) -> None:
    """Refuses bfloat16 on a processor that does not compute in it.

    Args:
        precision: the one that is asked for.
        capabilities: OpenVINO's OPTIMIZATION_CAPABILITIES of the processor.

    Raises:
        ConfigurationError: it does not; OpenVINO would take another precision without a word.
    """
    if precision == "bf16" and "BF16" not in capabilities:
        raise ConfigurationError(
            "INFERENCE_ENGINE=openvino-bf16: this processor does not compute in bfloat16 (AMX or"
            f" AVX512-BF16; OpenVINO names {', '.join(sorted(capabilities))}): unset the variable,"
            " or set it to onnxruntime or openvino-f32"
        )


def _port(port: Any) -> Port:
    shape = tuple(None if size.is_dynamic else size.get_length() for size in port.partial_shape)
    dtype = port.element_type.get_type_name()
    return Port(port.any_name, _DTYPES.get(dtype, dtype), shape)
