"""The official models as facts: counts that their authors published, and what lies in git."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
import torch

from backend.errors import ConfigurationError
from backend.serving.models import default_pair
from backend.serving.onnx import OnnxServer
from scripts.export_models import darknet, resnet50
from scripts.export_models.download import file_sha256
from scripts.export_models.official import (
    CATALOGUE,
    DEFAULT_PAIR,
    OfficialDetector,
    OfficialEmbedder,
)
from scripts.export_models.plans import Options, make_plans
from scripts.export_models.repository import CONFIG_FILES
from scripts.export_models.triton_config import config_text

REPOSITORY = Path(__file__).parents[3] / "model_repository"

DETECTORS = [name for name, model in CATALOGUE.items() if isinstance(model, OfficialDetector)]
HEADER_BYTES = 20
"""Of a ``.weights`` file of version 0.2: three int32, one int64."""


def detector(name: str) -> OfficialDetector:
    model = CATALOGUE[name]
    assert isinstance(model, OfficialDetector)
    return model


@pytest.mark.parametrize(
    ("name", "floats"),
    [("yolov3", 62_001_757), ("yolov3-tiny", 8_858_734), ("yolov3-spp", 63_052_381)],
)
def test_weights_files_hold_what_their_networks_need(name: str, floats: int) -> None:
    network = darknet.parse_cfg(detector(name).cfg)
    assert network.weight_count == floats
    assert detector(name).weights.size == HEADER_BYTES + 4 * floats


def test_every_detector_is_in_the_table_above() -> None:
    assert sorted(DETECTORS) == ["yolov3", "yolov3-spp", "yolov3-tiny"]


def billion_operations(network: darknet.Network) -> float:
    """BFLOPs as darknet prints them: a multiplication and an addition for each weight and place."""
    return (
        sum(
            2 * layer.filters * layer.size**2 * layer.in_channels * shape.size**2
            for layer, shape in zip(network.layers, network.shapes, strict=True)
            if isinstance(layer, darknet.Convolutional)
        )
        / 1e9
    )


@pytest.mark.parametrize(
    ("name", "size", "published"),
    [
        # The table of https://pjreddie.com/darknet/yolo/.
        ("yolov3", 320, 38.97),
        ("yolov3", 416, 65.86),
        ("yolov3", 608, 140.69),
        ("yolov3-tiny", 416, 5.56),
        ("yolov3-spp", 608, 141.45),
    ],
)
def test_networks_do_as_many_operations_as_published(
    name: str, size: int, published: float
) -> None:
    network = darknet.parse_cfg(detector(name).cfg, size=size)
    assert billion_operations(network) == pytest.approx(published, abs=0.01)


@pytest.mark.parametrize(("name", "size"), [("yolov3", 416), ("yolov3-tiny", 416)])
@pytest.mark.parametrize("other_size", [320, 352, 608])
def test_any_multiple_of_32_is_a_size(name: str, size: int, other_size: int) -> None:
    cfg = detector(name).cfg
    assert darknet.parse_cfg(cfg).size == size
    assert darknet.parse_cfg(cfg, size=other_size).shapes[-1].size == other_size // (
        8 if name == "yolov3" else 16
    )


def test_tiny_has_the_anchors_that_its_weights_were_trained_with() -> None:
    network = darknet.parse_cfg(detector("yolov3-tiny").cfg)
    heads = [layer.anchors for layer in network.layers if isinstance(layer, darknet.Yolo)]
    assert heads == [((81, 82), (135, 169), (344, 319)), ((23, 27), (37, 58), (81, 82))]


def test_spp_joins_three_poolings_and_what_they_are_of() -> None:
    network = darknet.parse_cfg(detector("yolov3-spp").cfg)
    assert len(network.layers) == 114  # sections of the published yolov3-spp.cfg, without [net]
    pools = {i: x.size for i, x in enumerate(network.layers) if isinstance(x, darknet.MaxPool)}
    assert pools == {78: 5, 80: 9, 82: 13}
    assert network.layers[79] == network.layers[81] == darknet.Route((77,))
    assert network.layers[83] == darknet.Route((82, 80, 78, 77))
    assert network.shapes[83] == darknet.Shape(2048, 19)


@pytest.mark.parametrize("name", DETECTORS)
def test_labels_are_coco_names_as_darknet_has_them(name: str) -> None:
    digest = hashlib.sha256(detector(name).labels.read_bytes()).hexdigest()
    assert digest == "634a1132eb33f8091d60f2c346ababe8b905ae08387037aed883953b7329af84"


def test_checkpoints_names_begin_their_sums() -> None:
    """As torch.hub takes them: NAME-<first 8 digits of the SHA-256>.pth."""
    model = CATALOGUE["resnet50"]
    assert isinstance(model, OfficialEmbedder)
    checkpoints = model.checkpoints
    assert list(checkpoints) == ["v1", "v2"]  # the first is the default
    for file in checkpoints.values():
        assert file.name == f"resnet50-{file.sha256[:8]}.pth"


@pytest.mark.parametrize("name", DEFAULT_PAIR)
def test_configs_in_git_are_what_make_models_writes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Networks without memory, and so without the weights that nobody has fetched.
    monkeypatch.setattr(darknet, "read_weights", lambda path, network: {})
    monkeypatch.setattr(resnet50, "load_resnet50", lambda path: resnet50.ResNet50())
    (plan,) = make_plans(Options(names=(name,)), CATALOGUE)
    with torch.device("meta"):
        _, spec = plan.build(Path("weights"))
    exported = REPOSITORY / name / "1" / "model.onnx"
    for placement, file in CONFIG_FILES.items():
        text = config_text(
            name,
            spec,
            placement,
            source_sha256=plan.source_sha256(Path("weights")),
            # Its hash is known where `make models` has run; git has a description without it.
            model_sha256=file_sha256(exported) if exported.exists() else None,
        )
        assert (REPOSITORY / name / file).read_text(encoding="utf-8") == text


def configs_only(folder: Path) -> None:
    """Copies the pair as it lies in git, whatever has been exported here."""
    for name in DEFAULT_PAIR:
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("1"))


def test_the_service_uses_the_pair_as_soon_as_both_are_exported(tmp_path: Path) -> None:
    configs_only(tmp_path)
    assert default_pair(tmp_path) == ("yolov3-small", "resnet50-small")
    for name in DEFAULT_PAIR:
        (tmp_path / name / "1").mkdir()
        (tmp_path / name / "1" / "model.onnx").touch()
    assert default_pair(tmp_path) == DEFAULT_PAIR


@pytest.mark.parametrize("name", DEFAULT_PAIR)
async def test_the_service_says_how_to_export_what_is_only_described(
    tmp_path: Path, name: str
) -> None:
    configs_only(tmp_path)
    server = OnnxServer(tmp_path)
    try:
        with pytest.raises(
            ConfigurationError, match=rf"\[export\]', then python -m scripts\.export_models {name}$"
        ):
            await server.load(name)
    finally:
        await server.close()
