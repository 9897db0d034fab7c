from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from backend.serving import models
from scripts.export_models.contract import (
    CROP_GEOMETRIES,
    ModelSpec,
    detector_spec,
    embedder_spec,
)
from scripts.export_models.triton_config import Placement, config_text

LABELS = ("cat", "potted plant", 'a "quoted" \\ label', "Küche")
DETECTOR = detector_spec(size=320, labels=LABELS, score_threshold=0.3, nms_threshold=0.45)
EMBEDDER = embedder_spec(size=160, dimension=512)


@dataclass
class _Described:
    """A model that is looked at and never run."""

    spec: models.ModelSpec

    async def infer(self, batch: Any) -> dict[str, Any]:
        raise NotImplementedError


def parsed(spec: ModelSpec, placement: Placement, *, source_sha256: str = "0" * 64) -> Any:
    text = config_text("some-model", spec, placement, source_sha256=source_sha256)
    return text_format.Parse(text, pb.ModelConfig())


@pytest.mark.parametrize("placement", Placement)
def test_a_detectors_config_says_what_the_contract_does(placement: Placement) -> None:
    config = parsed(DETECTOR, placement)

    assert (config.name, config.backend, config.max_batch_size) == ("some-model", "onnxruntime", 32)
    assert [(x.name, x.data_type, list(x.dims)) for x in config.input] == [
        ("images", pb.TYPE_UINT8, [320, 320, 3])
    ]
    assert [(x.name, x.data_type, list(x.dims)) for x in config.output] == [
        ("boxes", pb.TYPE_FP32, [300, 4]),
        ("scores", pb.TYPE_FP32, [300]),
        ("labels", pb.TYPE_INT32, [300]),
    ]
    assert {key: value.string_value for key, value in config.parameters.items()} == {
        "labels": ",".join(LABELS),
        "score_threshold": "0.3",
        "nms_threshold": "0.45",
    }
    assert config.version_policy.latest.num_versions == 1
    assert config.dynamic_batching.max_queue_delay_microseconds == 1000


@pytest.mark.parametrize("placement", Placement)
def test_an_embedders_config_says_what_the_contract_does(placement: Placement) -> None:
    config = parsed(EMBEDDER, placement)

    assert config.max_batch_size == 64
    assert [(x.name, x.data_type, list(x.dims)) for x in config.input] == [
        ("crops", pb.TYPE_UINT8, [160, 160, 3])
    ]
    assert [(x.name, x.data_type, list(x.dims)) for x in config.output] == [
        ("embeddings", pb.TYPE_FP32, [512])
    ]
    assert not config.parameters


@pytest.mark.parametrize("geometry", CROP_GEOMETRIES)
@pytest.mark.parametrize("margin", [0, 0.15])
def test_the_service_reads_how_crops_are_cut(tmp_path: Path, geometry: str, margin: float) -> None:
    spec = embedder_spec(size=160, dimension=512, crop_geometry=geometry, crop_margin=margin)
    for placement in Placement:
        config = tmp_path / "config.pbtxt"
        config.write_text(config_text("some-model", spec, placement, source_sha256="0" * 64))
        embedder = models.Embedder(_Described(models.read_spec(config, sha256="0" * 64)))
        assert (embedder.crop_geometry, embedder.crop_margin) == (geometry, margin)


@pytest.mark.parametrize("placement", Placement)
def test_the_service_reads_which_onnx_file_a_config_belongs_to(placement: Placement) -> None:
    digest = "0123456789abcdef" * 4
    text = config_text(
        "some-model", EMBEDDER, placement, source_sha256="0" * 64, model_sha256=digest
    )
    config = text_format.Parse(text, pb.ModelConfig())
    assert models.spec_of(config, sha256="").parameters == {models.SHA256_PARAMETER: digest}


def test_production_runs_on_a_gpu_with_tensorrt_in_fp16() -> None:
    config = parsed(DETECTOR, Placement.GPU, source_sha256="0123456789abcdef" * 4)
    assert [group.kind for group in config.instance_group] == [pb.ModelInstanceGroup.KIND_GPU]
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    assert dict(accelerator.parameters) == {
        "precision_mode": "FP16",
        "max_workspace_size_bytes": "1073741824",
        "trt_engine_cache_enable": "true",
        "trt_engine_cache_path": "/tmp/tensorrt",
        "trt_engine_cache_prefix": "some-model-320-0123456789ab",
    }


def test_warming_up_covers_all_batch_sizes_of_an_engine_and_one_on_the_cpu() -> None:
    def sizes(placement: Placement) -> list[int]:
        warmups = parsed(EMBEDDER, placement).model_warmup
        for warmup in warmups:
            crops = warmup.inputs["crops"]
            assert (list(crops.dims), crops.data_type) == ([160, 160, 3], pb.TYPE_UINT8)
            assert crops.random_data
        return [warmup.batch_size for warmup in warmups]

    assert sizes(Placement.GPU) == [1, 64]
    assert sizes(Placement.CPU) == [1]


@pytest.mark.parametrize("spec", [DETECTOR, EMBEDDER], ids=["detector", "embedder"])
def test_variants_differ_in_where_they_run_only(spec: ModelSpec) -> None:
    gpu, cpu = parsed(spec, Placement.GPU), parsed(spec, Placement.CPU)
    assert [group.kind for group in cpu.instance_group] == [pb.ModelInstanceGroup.KIND_CPU]
    assert not cpu.HasField("optimization")
    for config in (gpu, cpu):
        config.ClearField("instance_group")
        config.ClearField("optimization")
    del gpu.model_warmup[1:]  # the batch that a TensorRT engine is made large enough with
    assert gpu == cpu
