"""The small pair, as it lies in the repository."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from scripts.export_models.download import file_sha256
from scripts.export_models.formats import Precision
from scripts.export_models.onnx_file import TOLERANCES, check_parity, differences, scenes
from scripts.export_models.repository import CONFIG_FILES
from scripts.export_models.triton_config import config_text
from tests.scripts.export_models.committed_models import (
    LABELS,
    REPOSITORY,
    ROOT,
    SOURCES,
    SPECS,
    committed_module,
    model_path,
)
from tests.scripts.export_models.runtimes import (
    RUNTIMES,
    Run,
    assert_same_alone_and_among_eight,
    onnx_runtime,
    open_vino,
)

MEGABYTE = 1_000_000

pair = pytest.mark.parametrize("name", SPECS)


def session(name: str) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model_path(name), providers=["CPUExecutionProvider"])


def running(name: str, runtime: str = "ONNX Runtime") -> Run:
    return RUNTIMES[runtime](model_path(name).read_bytes(), SPECS[name])


def config(path: Path) -> Any:
    return text_format.Parse(path.read_text(encoding="utf-8"), pb.ModelConfig())


@pair
def test_the_onnx_file_is_valid(name: str) -> None:
    onnx.checker.check_model(str(model_path(name)), full_check=True)


def test_the_pair_is_small_enough_for_git() -> None:
    assert sum(model_path(name).stat().st_size for name in SPECS) < 25 * MEGABYTE


@pytest.mark.skipif(
    shutil.which("git") is None or not (ROOT / ".git").exists(), reason="this is no git checkout"
)
def test_no_other_model_gets_into_git() -> None:
    def git(*arguments: str) -> list[str]:
        command = ["git", *arguments]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        return done.stdout.splitlines()

    tracked = [ROOT / path for path in git("ls-files", "model_repository")]
    assert {model_path(name) for name in SPECS} <= {*tracked}
    assert sum(path.stat().st_size for path in tracked if path.exists()) < 30 * MEGABYTE

    models = [f"model_repository/{x}/1/model.onnx" for x in ("yolov3", "birds", ".birds-a1/new")]
    ignored = git("check-ignore", "--no-index", *models, *map(str, tracked))
    assert ignored == models


@pair
def test_the_configs_are_what_the_exporter_writes(name: str) -> None:
    """An edit by hand would be lost with the next export, and with it whatever it was for."""
    for placement, file in CONFIG_FILES.items():
        text = config_text(
            name,
            SPECS[name],
            placement,
            source_sha256=SOURCES[name],
            model_sha256=file_sha256(model_path(name)),
        )
        assert (REPOSITORY / name / file).read_text(encoding="utf-8") == text


@pair
@pytest.mark.parametrize("file", ["config.pbtxt", "configs/cpu.pbtxt"])
def test_config_and_onnx_file_agree(name: str, file: str) -> None:
    described = config(REPOSITORY / name / file)
    types = {
        "tensor(uint8)": pb.TYPE_UINT8,
        "tensor(int32)": pb.TYPE_INT32,
        "tensor(float)": pb.TYPE_FP32,
    }
    model = session(name)
    for tensors, wanted in (
        (model.get_inputs(), described.input),
        (model.get_outputs(), described.output),
    ):
        assert [(x.name, types[x.type], x.shape[1:]) for x in tensors] == [
            (x.name, x.data_type, list(x.dims)) for x in wanted
        ]
        assert all(isinstance(x.shape[0], str) for x in tensors)


@pair
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_image_gets_the_same_answer_alone_and_among_eight(name: str, runtime: str) -> None:
    spec = SPECS[name]
    assert_same_alone_and_among_eight(running(name, runtime), spec, scenes(spec, 8, seed=0))


@pair
def test_runtimes_agree(name: str) -> None:
    spec, model = SPECS[name], model_path(name).read_bytes()
    images = scenes(spec, 3, seed=3)
    expected, actual = onnx_runtime(model, spec)(images), open_vino(model, spec)(images)
    differences(expected, actual, spec, TOLERANCES[Precision.FP32])  # raises where they do not


@pair
def test_the_files_are_of_these_networks(name: str) -> None:
    """Put back into PyTorch, their values give their answers: nothing else is in them."""
    check_parity(committed_module(name), model_path(name).read_bytes(), SPECS[name])


def test_detections_are_best_first_and_labelled() -> None:
    spec = SPECS["yolov3-small"]
    answer = running("yolov3-small")(scenes(spec, 2, seed=1))
    assert (np.diff(answer["scores"], axis=1) <= 0).all()
    assert ((answer["scores"] >= 0) & (answer["scores"] <= 1)).all()
    assert ((answer["labels"] >= 0) & (answer["labels"] < len(LABELS))).all()
    boxes = answer["boxes"]
    assert (boxes[..., 2:] > boxes[..., :2]).all()


def test_embeddings_have_length_1_and_tell_images_apart() -> None:
    spec = SPECS["resnet50-small"]
    vectors = running("resnet50-small")(scenes(spec, 4, seed=2))["embeddings"]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    similarity = vectors @ vectors.T
    assert (similarity[~np.eye(4, dtype=bool)] < 0.999).all()
