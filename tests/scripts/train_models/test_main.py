from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scripts.export_models import darknet
from scripts.export_models.resnet50 import load_resnet50
from scripts.train_models.__main__ import main
from tests.scripts.train_models.drawn import write_drawn_set, write_labels


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    data = write_drawn_set(tmp_path / "data")
    labels = write_labels(tmp_path / "labels.txt")
    return [
        *("--data", str(data), "--labels", str(labels), "--output", str(tmp_path / "out")),
        *("--width", "0.03125", "--device", "cpu", "--threads", "1"),
    ]


def test_a_detector_is_trained_and_written(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["detector", *arguments, "--backbone-phases", "64:1", "--phases", "64:1,96:1"]
    assert main(run) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == [
        "epoch 1/1 at 64",
        "epoch 1/2 at 64",
        "epoch 2/2 at 96",
    ]
    assert "accuracy" in lines[0]
    assert "mAP@0.5" in lines[2]
    network = darknet.parse_cfg((tmp_path / "out/yolov3-small.cfg").read_text("utf-8"))
    assert (network.size, network.classes) == (96, 2)
    trained = darknet.read_weights(tmp_path / "out/yolov3-small.weights", network)

    # What was trained can be trained on.
    (tmp_path / "out/detector.checkpoint").unlink()
    start = tmp_path / "start.weights"
    (tmp_path / "out/yolov3-small.weights").rename(start)
    assert main(["detector", *arguments, "--start", str(start), "--phases", "64:1"]) == 0
    assert "accuracy" not in capsys.readouterr().out
    again = darknet.read_weights(tmp_path / "out/yolov3-small.weights", network)
    assert (again[0].kernel != trained[0].kernel).any()
    assert abs(again[0].kernel - trained[0].kernel).max() < 0.1


def test_an_embedder_is_trained_and_written(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["embedder", *arguments, "--phases", "32:2"]) == 0
    assert "p@10 square" in capsys.readouterr().out
    network = load_resnet50(tmp_path / "out/resnet50-small.pt").eval()
    assert network.dimension == 64
    assert torch.isfinite(network(torch.zeros(1, 3, 32, 32))).all()


def test_a_seed_decides_what_is_learnt(arguments: list[str], tmp_path: Path) -> None:
    states = []
    for seed in (1, 1, 2):
        assert main(["embedder", *arguments, "--phases", "32:1", "--seed", str(seed)]) == 0
        states.append(load_resnet50(tmp_path / "out/resnet50-small.pt").state_dict())
        (tmp_path / "out/embedder.checkpoint").unlink()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["conv1.weight"], states[2]["conv1.weight"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--data", "/nowhere"], "/nowhere/train/annotations.jsonl"),
        (["--labels", "/nowhere"], "/nowhere"),
        (["--start", "/nowhere"], "/nowhere: cannot be read"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str],
    changed: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["embedder", *arguments, *changed, "--phases", "32:1"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("python -m scripts.train_models: error: ")
    assert message in line


def test_a_wrong_command_line_says_how_it_should_be(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["embedder", *arguments, "--phases", "32"])
    assert "'32' is not SIZE:EPOCHS, both whole numbers above 0" in capsys.readouterr().err
