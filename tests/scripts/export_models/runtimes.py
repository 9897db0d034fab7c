"""What runs ONNX files: the service's runtime, and one that shares nothing with it."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

import numpy as np
import onnxruntime
import openvino
from numpy.typing import NDArray

from scripts.export_models.contract import DataType, ModelSpec

Arrays: TypeAlias = dict[str, NDArray[Any]]
Run: TypeAlias = Callable[[NDArray[np.uint8]], Arrays]
"""From a batch of images to the outputs by name."""

# Few, so that parallel tests do not crowd each other out.
_THREADS: Final = 2


def onnx_runtime(model: bytes, spec: ModelSpec) -> Run:
    """ONNX Runtime on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _THREADS
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in spec.outputs]
    return lambda images: dict(
        zip(names, session.run(names, {spec.input.name: images}), strict=True)
    )


def open_vino(model: bytes, spec: ModelSpec) -> Run:
    """OpenVINO on the CPU, reckoning in FP32: left alone, it takes BF16 where the CPU has it."""
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(io.BytesIO(model)),
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": str(_THREADS)},
    )

    def run(images: NDArray[np.uint8]) -> Arrays:
        answer = compiled({spec.input.name: images})
        return {output.name: np.array(answer[output.name]) for output in spec.outputs}

    return run


RUNTIMES: Final[Mapping[str, Callable[[bytes, ModelSpec], Run]]] = {
    "ONNX Runtime": onnx_runtime,
    "OpenVINO": open_vino,
}


def assert_same_alone_and_among_eight(run: Run, spec: ModelSpec, images: NDArray[np.uint8]) -> None:
    """Each of eight images gets the answer that it gets alone, to 1e-5."""
    assert len(images) == 8
    together = run(images)
    for index in range(8):
        alone = run(images[index : index + 1])
        for output in spec.outputs:
            # Boxes in parts of the input: FP32 does not resolve 1e-5 of a pixel.
            unit = spec.input.dims[0] if output.name == "boxes" else 1
            got, wanted = alone[output.name][0] / unit, together[output.name][index] / unit
            assert alone[output.name].dtype == np.dtype(output.data_type.value)
            if output.data_type is DataType.INT32:
                np.testing.assert_array_equal(got, wanted)
            else:
                np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)
