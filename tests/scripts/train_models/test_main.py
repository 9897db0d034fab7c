from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from scripts.export_models import darknet
from scripts.export_models.resnet50 import load_resnet50
from scripts.train_models.__main__ import main
from tests.annotated_photos import LABELS


@pytest.fixture
def arguments(annotated: Path, tmp_path: Path) -> list[str]:
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"{label}\n" for label in LABELS), encoding="utf-8")
    return [
        *("--data", str(annotated), "--labels", str(labels), "--output", str(tmp_path / "out")),
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
    assert (network.size, network.classes) == (96, 3)
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


@pytest.mark.parametrize(
    ("run", "weights"),
    [
        (
            ["detector", "--backbone-phases", "64:1", "--phases", "64:1,96:1"],
            "yolov3-small.weights",
        ),
        (["embedder", "--phases", "32:1,48:1"], "resnet50-small.pt"),
    ],
)
def test_a_run_that_was_stopped_goes_on_as_if_nothing_had_been(
    arguments: list[str],
    tmp_path: Path,
    run: list[str],
    weights: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*run, *arguments]) == 0
    whole = (tmp_path / "out" / weights).read_bytes()
    shutil.rmtree(tmp_path / "out")

    def stop_after_one(line: str) -> None:
        if line.startswith("epoch 1/2"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("scripts.train_models.__main__._say", stop_after_one)
        assert main([*run, *arguments]) == 130
    assert capsys.readouterr().err.endswith("stopped; the same command goes on from there\n")
    assert not (tmp_path / "out" / weights).exists()
    assert main([*run, *arguments]) == 0
    assert (tmp_path / "out" / weights).read_bytes() == whole

    # Once more: nothing is left to do, and all that was written is written again.
    for file in (tmp_path / "out").glob("*-small.*"):
        file.write_text("lost")
    assert main([*run, *arguments]) == 0
    assert (tmp_path / "out" / weights).read_bytes() == whole
    if run[0] == "detector":
        cfg = (tmp_path / "out/yolov3-small.cfg").read_text(encoding="utf-8")
        assert darknet.parse_cfg(cfg).size == 96


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


@pytest.mark.parametrize(
    ("phases", "message"),
    [("64:1,100:1", "choose an input size that every stride divides"), ("32:1", "larger size")],
)
def test_a_size_that_cannot_be_trained_is_known_at_once(
    arguments: list[str], phases: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["detector", *arguments, "--phases", phases]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ""


@pytest.mark.parametrize(
    ("option", "value"),
    [("--evaluate-every", "0"), ("--threads", "x"), ("--width", "0"), ("--square", "1.5")],
)
def test_numbers_out_of_range_are_refused(
    arguments: list[str], option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["embedder", *arguments, option, value])
    assert f"argument {option}: " in capsys.readouterr().err


def test_a_wrong_command_line_says_how_it_should_be(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["embedder", *arguments, "--phases", "32"])
    assert "'32' is not SIZE:EPOCHS, both whole numbers above 0" in capsys.readouterr().err
