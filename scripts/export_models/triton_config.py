"""A model's ``config.pbtxt``, as Triton reads it and as the service does.

Two variants come from one description and differ in where the model runs, nothing else:
``config.pbtxt`` for production (GPU, TensorRT), ``configs/cpu.pbtxt`` for a machine without a GPU
(``tritonserver --model-config-name=cpu``). Sources: Triton's ``model_config.proto``, and for the
accelerator's parameters the README of its onnxruntime backend.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from scripts.export_models.contract import DataType, ModelSpec, TensorSpec

# How long a request may wait for others to share its batch. While one batch runs the next fills by
# itself, so this only matters to a request that finds the model idle; against a network's several
# milliseconds, one is little for a query to lose and enough for a load's requests to meet.
# Batch sizes are not preferred: one engine serves them all, so none is faster than its neighbours.
MAX_QUEUE_DELAY_MICROSECONDS: Final = 1_000

# Scratch memory that an engine may use: the backend's default, written out to be seen and changed.
TENSORRT_WORKSPACE_BYTES: Final = 1 << 30

# Building an engine takes minutes, so engines are kept. A volume here keeps them over restarts.
# Under /tmp, where Triton may write as whatever user it runs.
TENSORRT_CACHE_PATH: Final = "/tmp/tensorrt"

# As the service reads it: collections remember the embedder that filled them by it.
SHA256_PARAMETER: Final = "sha256"

_HEADER: Final = (
    "# Written by `python -m scripts.export_models`: exporting again overwrites changes.\n"
)

_TRITON_TYPES: Final = {
    DataType.UINT8: pb.TYPE_UINT8,
    DataType.INT32: pb.TYPE_INT32,
    DataType.FP32: pb.TYPE_FP32,
}


class Placement(Enum):
    """Where a variant runs."""

    GPU = "gpu"
    CPU = "cpu"


def config_text(
    name: str,
    spec: ModelSpec,
    placement: Placement,
    *,
    source_sha256: str,
    model_sha256: str | None = None,
) -> str:
    """The text of a ``config.pbtxt``.

    Args:
        name: the model's name, as its folder's.
        spec: its contract.
        placement: which variant.
        source_sha256: of the files that the model is made from, one after the other: the weights,
            and the ``.cfg`` of a detector that is not an official one. Hexadecimal. ONNX Runtime
            names a kept TensorRT engine after the graph's nodes, not after their values and sizes,
            and would run the old one after training.
        model_sha256: of the ONNX file, which Triton tells its clients of in no other way; without
            it, the config of a model that is still to be exported. Hexadecimal.
    """
    config = pb.ModelConfig(
        name=name,
        backend="onnxruntime",
        max_batch_size=spec.max_batch_size,
        version_policy=pb.ModelVersionPolicy(latest=pb.ModelVersionPolicy.Latest(num_versions=1)),
        input=[
            pb.ModelInput(
                name=spec.input.name,
                data_type=_TRITON_TYPES[spec.input.data_type],
                dims=spec.input.dims,
            )
        ],
        output=[
            pb.ModelOutput(name=out.name, data_type=_TRITON_TYPES[out.data_type], dims=out.dims)
            for out in spec.outputs
        ],
        dynamic_batching=pb.ModelDynamicBatching(
            max_queue_delay_microseconds=MAX_QUEUE_DELAY_MICROSECONDS
        ),
        model_warmup=[_warmup("one", 1, spec.input)],
    )
    for key, value in spec.parameters.items():
        config.parameters[key].string_value = value
    if model_sha256 is not None:
        config.parameters[SHA256_PARAMETER].string_value = model_sha256
    if placement is Placement.GPU:
        config.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_GPU)
        size = spec.input.dims[0]
        _accelerate(config, cache_prefix=f"{name}-{size}-{source_sha256[:12]}")
        # An engine serves the batch sizes between the smallest and the largest it has seen, and is
        # built again for one outside: this makes it right for all, before the first request.
        config.model_warmup.append(_warmup("full_batch", spec.max_batch_size, spec.input))
    else:
        config.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_CPU)
    text: str = text_format.MessageToString(config, as_utf8=True)
    return _HEADER + text


def _accelerate(config: pb.ModelConfig, *, cache_prefix: str) -> None:
    accelerator = config.optimization.execution_accelerators.gpu_execution_accelerator.add(
        name="tensorrt"
    )
    for key, value in (
        ("precision_mode", "FP16"),
        ("max_workspace_size_bytes", str(TENSORRT_WORKSPACE_BYTES)),
        ("trt_engine_cache_enable", "true"),
        ("trt_engine_cache_path", TENSORRT_CACHE_PATH),
        ("trt_engine_cache_prefix", cache_prefix),
    ):
        accelerator.parameters[key] = value


def _warmup(name: str, batch_size: int, tensor: TensorSpec) -> pb.ModelWarmup:
    """Random pixels, so that no shortcut for zeros makes the first real request a slow one."""
    warmup = pb.ModelWarmup(name=name, batch_size=batch_size)
    pixels = warmup.inputs[tensor.name]
    pixels.data_type = _TRITON_TYPES[tensor.data_type]
    pixels.dims.extend(tensor.dims)
    pixels.random_data = True
    return warmup
