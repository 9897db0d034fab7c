"""ONNX models of a few nodes, and the config.pbtxt that belongs beside them."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Port = tuple[str, str, Sequence[int]]
"""Name, type and dims, the batch left out."""

_ELEMENTS = {"UINT8": TensorProto.UINT8, "FP32": TensorProto.FLOAT, "INT32": TensorProto.INT32}


def config_text(
    name: str,
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    *,
    max_batch_size: int = 4,
    parameters: dict[str, str] | None = None,
) -> str:
    """A model configuration as Triton reads it."""
    blocks = [f'name: "{name}"', 'backend: "onnxruntime"', f"max_batch_size: {max_batch_size}"]
    for kind, ports in (("input", inputs), ("output", outputs)):
        for port, dtype, dims in ports:
            sizes = ", ".join(map(str, dims))
            blocks.append(f'{kind} {{ name: "{port}" data_type: TYPE_{dtype} dims: [ {sizes} ] }}')
    for key, value in (parameters or {}).items():
        blocks.append(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}')
    return "\n".join(blocks) + "\n"


def adding_model(side: int = 2, added: float = 1.0, batch: int | str = "batch") -> bytes:
    """`crops` UINT8 [N, side, side, 3] to `embeddings` FP32 [N, side² x 3]: each pixel + added."""
    length = side * side * 3
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["crops"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Reshape", ["floats", "shape"], ["flat"]),
            helper.make_node("Add", ["flat", "added"], ["embeddings"]),
        ],
        "adding",
        [helper.make_tensor_value_info("crops", TensorProto.UINT8, [batch, side, side, 3])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, [batch, length])],
        [
            helper.make_tensor("shape", TensorProto.INT64, [2], [-1, length]),
            numpy_helper.from_array(np.array([added], np.float32), "added"),
        ],
    )
    return _serialize(graph)


def constant_model() -> bytes:
    """A model without an input: `embeddings` FP32 [1, 2]."""
    value = helper.make_tensor("value", TensorProto.FLOAT, [1, 2], [0.0, 1.0])
    graph = helper.make_graph(
        [helper.make_node("Constant", [], ["embeddings"], value=value)],
        "constant",
        [],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, [1, 2])],
    )
    return _serialize(graph)


def passing_model(inputs: Sequence[Port], outputs: Sequence[Port]) -> bytes:
    """A model with these inputs and outputs; every output is [1, …], and zeros."""
    # Made of the first input: runtimes leave out what nothing is made of.
    nodes = [
        helper.make_node("Cast", [inputs[0][0]], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMin", ["floats"], ["least"], keepdims=0),
        helper.make_node("Mul", ["least", "zero"], ["nothing"]),
    ]
    values = [helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0])]
    for name, dtype, dims in outputs:
        sizes = [1, *dims]
        values.append(helper.make_tensor(f"{name}_shape", TensorProto.INT64, [len(sizes)], sizes))
        nodes.append(helper.make_node("Cast", ["nothing"], [f"{name}_zero"], to=_ELEMENTS[dtype]))
        nodes.append(helper.make_node("Expand", [f"{name}_zero", f"{name}_shape"], [name]))
    graph = helper.make_graph(
        nodes,
        "passing",
        [
            helper.make_tensor_value_info(name, _ELEMENTS[dtype], ["batch", *dims])
            for name, dtype, dims in inputs
        ],
        [
            helper.make_tensor_value_info(name, _ELEMENTS[dtype], ["batch", *dims])
            for name, dtype, dims in outputs
        ],
        values,
    )
    return _serialize(graph)


def write_model(
    repository: Path, name: str, content: bytes, config: str, *, said: str | None = None
) -> Path:
    """Puts a model into a repository; returns its folder.

    Its configuration says which ONNX file it belongs to: the one of the SHA-256 `said`, without it
    that of the content; with an empty one it says nothing.
    """
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.onnx").write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest() if said is None else said
    if sha256:
        config += f'parameters {{ key: "sha256" value {{ string_value: "{sha256}" }} }}\n'
    (folder / "config.pbtxt").write_text(config, "utf-8")
    return folder


def _serialize(graph: onnx.GraphProto) -> bytes:
    opset = [helper.make_opsetid("", 13)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content
