"""Triton's onnxruntime backend for tests, on ONNX Runtime and Triton's Python backend.

Triton starts it in a process of its own for each model, with the packages of the Python that is
first on PATH. On CPUs a request runs on one thread and requests run side by side, as in
`OnnxServer`, so that the answers are the same to the bit. On a GPU the requests that Triton's
batcher has put together run as one batch, and the next one is copied meanwhile.
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
from padded import PaddedModel, gpu_provider  # type: ignore[import-not-found]

_CORES: Final = os.cpu_count() or 1
_GPU_THREADS: Final = 2
"""One batch is reckoned on while the next one's pixels are copied."""
_USED: Final = b"used_dltensor"
_set_name: Final = ctypes.pythonapi.PyCapsule_SetName
_set_name.argtypes = (ctypes.py_object, ctypes.c_char_p)


class TritonPythonModel:
    """The class that Triton looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the model's ONNX file."""
        config = json.loads(args["model_config"])
        path = Path(args["model_repository"], args["model_version"], "model.onnx")
        self._input = config["input"][0]["name"]
        self._outputs = [output["name"] for output in config["output"]]
        self._joins = args["model_instance_kind"] == "GPU"
        self._model: PaddedModel | ort.InferenceSession
        if self._joins:
            provider = gpu_provider(int(args["model_instance_device_id"]))
            self._model = PaddedModel(path, config["max_batch_size"], provider)
        else:
            options = ort.SessionOptions()
            options.intra_op_num_threads = 1
            options.inter_op_num_threads = 1
            self._model = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        threads = _GPU_THREADS if self._joins else _CORES
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="onnx")
        # One more than run is at hand, so that none waits. All others stay in Triton's queue,
        # where they meet to be batches, and where Triton drops those that were cancelled: to ask
        # about each here as well would cost a message there and back.
        self._places = threading.Semaphore(threads + 1)

    def execute(self, requests: list[Any]) -> None:
        """Starts the requests of a batch; each is answered when it is done."""
        for group in [requests] if self._joins else [[request] for request in requests]:
            self._places.acquire()
            senders = [request.get_response_sender() for request in group]
            self._threads.submit(self._answer, group, senders)

    def finalize(self) -> None:
        """Waits for what is running."""
        self._threads.shutdown()

    def _answer(self, requests: list[Any], senders: list[Any]) -> None:
        try:
            responses = self._run(requests)
        except Exception as error:
            failure = pb_utils.TritonError(str(error))
            responses = [pb_utils.InferenceResponse(error=failure) for _ in requests]
        finally:
            self._places.release()
        for response, sender in zip(responses, senders, strict=True):
            sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _run(self, requests: list[Any]) -> list[Any]:
        # Neither `as_numpy` nor `Tensor(name, array)`: they misread the arrays of NumPy 2.
        batches = [
            np.from_dlpack(pb_utils.get_input_tensor_by_name(request, self._input))
            for request in requests
        ]
        arrays = self._infer(batches[0] if len(batches) == 1 else np.concatenate(batches))
        ends = np.cumsum([len(batch) for batch in batches])
        parts = zip(*(np.split(array, ends[:-1]) for array in arrays), strict=True)
        return [
            pb_utils.InferenceResponse(
                [_tensor(name, array) for name, array in zip(self._outputs, part, strict=True)]
            )
            for part in parts
        ]

    def _infer(self, batch: NDArray[Any]) -> list[NDArray[Any]]:
        arrays: list[NDArray[Any]]
        if self._joins:
            arrays = self._model.run(batch, self._outputs)
        else:
            arrays = self._model.run(self._outputs, {self._input: batch})
        return arrays


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
