"""Models that answer at once, in place of the networks."""

import hashlib
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from backend.serving.models import SHA256_PARAMETER, ModelSpec, read_spec
from benchmarks.speed.networks import MODELS
from tests.service import SMALL_PAIR

__all__ = ["write_instant_models"]

_TYPES: Final = {"UINT8": TensorProto.UINT8, "FP32": TensorProto.FLOAT, "INT32": TensorProto.INT32}
_DTYPES: Final = {"FP32": np.float32, "INT32": np.int32}
_OPSET: Final = 17
_SCORE: Final = 0.9
"""Of an object that is found: above every threshold."""


def write_instant_models(repository: Path, *, objects: int) -> None:
    """Writes a repository with models of the small pair's names and contracts.

    They are ONNX graphs that hold their answers, the same for every row of a batch.

    Args:
        repository: a folder that is made.
        objects: that the detector finds in every photo, side by side.
    """
    for name in SMALL_PAIR.values():
        config = (MODELS / name / "config.pbtxt").read_text("utf-8")
        spec = read_spec(MODELS / name / "config.pbtxt", sha256="")
        content = _graph(spec, objects).SerializeToString()
        folder = repository / name
        (folder / "1").mkdir(parents=True)
        (folder / "1" / "model.onnx").write_bytes(content)
        (folder / "config.pbtxt").write_text(
            config.replace(spec.parameters[SHA256_PARAMETER], hashlib.sha256(content).hexdigest()),
            "utf-8",
        )


def _graph(spec: ModelSpec, objects: int) -> Any:
    [given] = spec.inputs
    batch = numpy_helper.from_array(np.zeros(1, np.int64), "first")
    constants = [batch]
    nodes = [
        helper.make_node("Shape", [given.name], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["batch"]),
    ]
    for tensor in spec.outputs:
        answer = _answer(tensor.name, tensor.dims, given.dims[0], objects)
        name = tensor.name
        constants += [
            numpy_helper.from_array(
                answer.astype(_DTYPES[tensor.dtype])[np.newaxis], f"{name} row"
            ),
            numpy_helper.from_array(np.array(tensor.dims, np.int64), f"{name} dims"),
        ]
        nodes += [
            helper.make_node("Concat", ["batch", f"{name} dims"], [f"{name} shape"], axis=0),
            helper.make_node("Expand", [f"{name} row", f"{name} shape"], [name]),
        ]
    graph = helper.make_graph(
        nodes,
        "instant",
        [helper.make_tensor_value_info(given.name, _TYPES[given.dtype], ["N", *given.dims])],
        [
            helper.make_tensor_value_info(each.name, _TYPES[each.dtype], ["N", *each.dims])
            for each in spec.outputs
        ],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model


def _answer(name: str, dims: tuple[int, ...], size: int, objects: int) -> Any:
    answer = np.zeros(dims)
    if name == "embeddings":
        answer[0] = 1  # a unit vector
    elif name == "scores":
        answer[:objects] = _SCORE
    elif name == "boxes":
        # In the middle rows, which the letterbox of every photo but a sliver has.
        edges = np.linspace(0.05, 0.95, objects + 1) * size
        answer[:objects, 0], answer[:objects, 2] = edges[:-1], edges[1:]
        answer[:objects, 1], answer[:objects, 3] = 0.35 * size, 0.65 * size
    return answer
