"""Triton's onnxruntime backend for tests, on ONNX Runtime and Triton's Python backend.

Triton starts it in a process of its own for each model, with the packages of the Python that is
first on PATH. A request runs on one thread and requests run side by side, as in `OnnxServer`, so
that the answers are the same to the bit.
"""

import ctypes
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]
from numpy.typing import NDArray

_CORES: Final = os.cpu_count() or 1
_USED: Final = b"used_dltensor"
_set_name: Final = ctypes.pythonapi.PyCapsule_SetName
_set_name.argtypes = (ctypes.py_object, ctypes.c_char_p)


class TritonPythonModel:
    """The class that Triton looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the model's ONNX file."""
        if args["model_instance_kind"] != "CPU":
            raise pb_utils.TritonModelException(
                "this backend runs on CPUs alone: start Triton with --model-config-name=cpu"
            )
        config = json.loads(args["model_config"])
        path = Path(args["model_repository"], args["model_version"], "model.onnx")
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._input = config["input"][0]["name"]
        self._outputs = [output["name"] for output in config["output"]]
        self._threads = ThreadPoolExecutor(_CORES, thread_name_prefix="onnx")
        # One more than run is at hand, so that no core waits. All others stay in Triton's queue,
        # where they meet to be batches, and where Triton drops those that were cancelled: to ask
        # about each here as well would cost a message there and back.
        self._places = threading.Semaphore(_CORES + 1)

    def execute(self, requests: list[Any]) -> None:
        """Starts the requests of a batch; each is answered when it is done."""
        for request in requests:
            self._places.acquire()
            self._threads.submit(self._answer, request, request.get_response_sender())

    def finalize(self) -> None:
        """Waits for what is running."""
        self._threads.shutdown()

    def _answer(self, request: Any, sender: Any) -> None:
        try:
            response = self._run(request)
        except Exception as error:
            response = pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
        finally:
            self._places.release()
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _run(self, request: Any) -> Any:
        # Neither `as_numpy` nor `Tensor(name, array)`: they misread the arrays of NumPy 2.
        batch = np.from_dlpack(pb_utils.get_input_tensor_by_name(request, self._input))
        arrays = self._session.run(self._outputs, {self._input: batch})
        return pb_utils.InferenceResponse(
            [_tensor(name, array) for name, array in zip(self._outputs, arrays, strict=True)]
        )


class _Exported:
    """An array for `Tensor.from_dlpack`, and the capsule in which it was handed over."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array
        self.capsule: Any = None

    def __dlpack__(self, **_options: Any) -> Any:
        self.capsule = self._array.__dlpack__()
        return self.capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()


def _tensor(name: str, array: NDArray[Any]) -> Any:
    exported = _Exported(array)
    tensor = pb_utils.Tensor.from_dlpack(name, exported)
    # Triton marks it as used with a name that NumPy does not know, which would then complain in the
    # log of each array.
    _set_name(exported.capsule, _USED)
    return tensor
