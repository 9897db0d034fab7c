from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
import torch

from scripts.export_models.__main__ import main
from scripts.export_models.resnet50 import ResNet50
from tests.scripts.export_models.tiny_networks import (
    TINY_CFG,
    TINY_LABELS,
    random_floats,
    tiny_network,
    write_weights,
)


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tiny.cfg").write_text(TINY_CFG)
    (tmp_path / "tiny.txt").write_text("\n".join(TINY_LABELS))
    write_weights(tmp_path / "tiny.weights", random_floats(tiny_network()))
    torch.manual_seed(0)
    torch.save(ResNet50(base_width=2, classes=5).state_dict(), tmp_path / "tiny.pt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


DETECTOR = [
    *("detector", "tiny", "--cfg", "tiny.cfg"),
    *("--weights", "tiny.weights", "--labels", "tiny.txt"),
]
EMBEDDER = ["embedder", "tiny", "--weights", "tiny.pt", "--size", "64"]


def test_a_detector_is_exported(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*DETECTOR, "--size", "96", "--score-threshold", "0.4"]) == 0

    printed = capsys.readouterr().out
    assert "wrote model_repository/tiny/1/model.onnx (" in printed
    assert "checked boxes: ONNX Runtime is within" in printed
    assert printed.endswith("to use it, set DETECTOR_MODEL=tiny\n")
    config = (inputs / "model_repository/tiny/config.pbtxt").read_text()
    assert "dims: 96" in config
    assert 'string_value: "0.4"' in config
    assert 'string_value: "0.45"' in config
    assert 'string_value: "cat,dog,potted plant"' in config


def test_an_embedder_is_exported(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*EMBEDDER, "--repository", "elsewhere"]) == 0

    printed = capsys.readouterr().out
    assert "checked embeddings: ONNX Runtime is within" in printed
    assert printed.endswith("to use it, set EMBEDDER_MODEL=tiny\n")
    session = onnxruntime.InferenceSession(inputs / "elsewhere/tiny/1/model.onnx")
    assert session.get_inputs()[0].shape[1:] == [64, 64, 3]
    assert session.get_outputs()[0].shape[1:] == [64]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*DETECTOR, "--cfg", "absent.cfg"], "absent.cfg: cannot be read as a darknet cfg"),
        ([*DETECTOR, "--cfg", "tiny.txt"], "tiny.txt: line 1: 'cat' is neither"),
        ([*DETECTOR, "--weights", "tiny.cfg"], "tiny.cfg: does not begin with a darknet version"),
        ([*DETECTOR, "--labels", "tiny.weights"], "tiny.weights: cannot be read as labels"),
        ([*DETECTOR, "--size", "50"], "tiny.cfg: section 13 [route]"),
        ([*DETECTOR, "--size", "16"], "an input of 16 pixels gives 180 candidates"),
        ([*DETECTOR, "--score-threshold", "1.5"], "score threshold 1.5 is outside 0..1"),
        ([*EMBEDDER, "--size", "31"], "input size 31 is less than 32"),
        ([*EMBEDDER, "--weights", "tiny.cfg"], "tiny.cfg: cannot be read as a PyTorch state dict"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    inputs: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("python -m scripts.export_models: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (inputs / "model_repository").exists()


@pytest.mark.parametrize(
    "arguments", [[], ["detector"], ["classifier", "x"], [*EMBEDDER, "--size", "big"]]
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
