"""A model on a GPU, for batches of any size up to its largest.

Stands beside `model.py` in the folder of Triton's backend, which imports it as `padded`.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

__all__ = ["GPU_PROVIDER", "PaddedModel", "gpu_provider"]

GPU_PROVIDER: Final = "CUDAExecutionProvider"

Provider = str | tuple[str, dict[str, str]]


def gpu_provider(device: int = 0) -> Provider:
    """ONNX Runtime's provider of a GPU, and how it is to use it."""
    return GPU_PROVIDER, {
        "device_id": str(device),
        # Trying out every algorithm takes minutes for so many shapes.
        "cudnn_conv_algo_search": "HEURISTIC",
        "prefer_nhwc": "1",
    }


class PaddedModel:
    """A session for each power of two of a batch's size; a batch is padded to the next.

    cuDNN plans a convolution anew whenever the shape differs from the last one's, which takes
    longer than running it: each session only ever sees one shape. Threads may share it.
    """

    def __init__(self, path: Path, max_batch_size: int, provider: Provider) -> None:
        """Loads an ONNX file with one input, and runs each session once.

        Args:
            path: of the file.
            max_batch_size: the largest batch that comes.
            provider: which ONNX Runtime is to use, see `gpu_provider`.

        Raises:
            RuntimeError: ONNX Runtime does not give that provider.
        """
        name = provider if isinstance(provider, str) else provider[0]
        if name not in ort.get_available_providers():
            raise RuntimeError(f"this ONNX Runtime has no {name}")
        if name == GPU_PROVIDER:
            ort.preload_dlls()
        self._sessions: dict[int, ort.InferenceSession] = {}
        size = 1
        while size < 2 * max_batch_size:
            session = ort.InferenceSession(str(path), _options(), providers=[provider])
            if name not in session.get_providers():
                raise RuntimeError(f"ONNX Runtime does not run {path} on {name}")
            self._sessions[size] = session
            size *= 2
        [self._input] = [each.name for each in session.get_inputs()]
        self.outputs = [each.name for each in session.get_outputs()]
        dims = session.get_inputs()[0].shape[1:]
        for rows in self._sessions:
            self.run(np.zeros((rows, *dims), np.uint8))

    def run(
        self, batch: NDArray[np.uint8], outputs: Sequence[str] | None = None
    ) -> list[NDArray[Any]]:
        """The outputs, or those that are named, of a batch, uint8 [N, …], in parts if need be."""
        rows, most = len(batch), max(self._sessions)
        if rows > most:
            parts = [
                self.run(batch[start : start + most], outputs) for start in range(0, rows, most)
            ]
            return [np.concatenate(each) for each in zip(*parts, strict=True)]
        size, session = next(each for each in self._sessions.items() if each[0] >= rows)
        if size > rows:
            padded = np.zeros((size, *batch.shape[1:]), batch.dtype)
            padded[:rows] = batch
            batch = padded
        arrays = session.run(list(outputs or self.outputs), {self._input: batch})
        return [np.asarray(array)[:rows] for array in arrays]


def _options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    # What the GPU cannot do is little; more threads would only take the cores of others.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = int(os.environ.get("ONNX_LOG_LEVEL", "3"))
    return options
