"""Models in the process on ONNX Runtime's CPU provider."""

import os
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from backend.serving.local import LocalServer, Port

__all__ = ["OnnxServer"]

_DTYPES: Final = {"tensor(uint8)": "UINT8", "tensor(float)": "FP32", "tensor(int32)": "INT32"}

# An ONNX file may leave its weights to other files, which ONNX Runtime would take, unchecked, from
# the folder that the service was started in. Below a file that is no folder there are none.
_NO_EXTERNAL_DATA: Final = ("session.model_external_initializers_file_folder_path", os.devnull)


class OnnxServer(LocalServer):
    """ONNX Runtime sessions, none of which has a thread of its own."""

    engine_name = "ONNX Runtime"

    def _open(self, content: bytes) -> "_Session":
        return _Session(content)


class _Session:
    """See `Network`."""

    def __init__(self, content: bytes) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry(*_NO_EXTERNAL_DATA)
        self._session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self.inputs = [_port(node) for node in self._session.get_inputs()]
        self.outputs = [_port(node) for node in self._session.get_outputs()]
        self._names = [port.name for port in self.outputs]

    def run(self, batch: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """See `Network.run`."""
        outputs = self._session.run(self._names, {self.inputs[0].name: batch})
        return dict(zip(self._names, outputs, strict=True))


def _port(node: Any) -> Port:
    # A symbolic size is a string or None.
    shape = tuple(size if isinstance(size, int) else None for size in node.shape)
    return Port(node.name, _DTYPES.get(node.type, node.type), shape)
