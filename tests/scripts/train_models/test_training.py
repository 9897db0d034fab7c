from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from scripts.train_models.training import (
    Batch,
    Options,
    Phase,
    TrainingError,
    parse_phases,
    train,
)


class Line:
    """Learns y = 2 x + 1; a task that takes no time."""

    def __init__(self, output: Path, *, stop_in_epoch: int | None = None, wrong: bool = False):
        torch.manual_seed(0)
        self.network: nn.Module = nn.Linear(1, 1)
        self.output = output
        self.stop_in_epoch = stop_in_epoch
        self.wrong = wrong
        self.sizes: list[int] = []
        self.last_phases: list[bool] = []

    def prepare(self, phase: Phase) -> None:
        self.sizes.append(phase.size)

    def batches(self, epoch: int, *, last_phase: bool) -> Sequence[Callable[[], Batch]]:
        self.last_phases.append(last_phase)
        if epoch == self.stop_in_epoch:
            raise KeyboardInterrupt
        return [partial(self._batch, 100 * epoch + number) for number in range(20)]

    @staticmethod
    def _batch(seed: int) -> Batch:
        x = torch.rand(8, 1, generator=torch.Generator().manual_seed(seed))
        return x, 2 * x + 1

    def loss(self, batch: Batch) -> tuple[Tensor, Mapping[str, float]]:
        x, y = batch
        loss = (self.network(x) - y).square().mean()
        if self.wrong:
            loss = loss * torch.nan
        return loss, {"loss": loss.item()}

    def evaluate(self, network: nn.Module) -> Mapping[str, float]:
        return {"slope": network.weight.item()}  # type: ignore[operator]

    def save(self, network: nn.Module) -> Sequence[Path]:
        torch.save(network.state_dict(), self.output)
        return (self.output,)


def options(folder: Path, *phases: Phase) -> Options:
    return Options(
        phases or (Phase(8, 2), Phase(16, 3)),
        learning_rate=0.1,
        weight_decay=0.0,
        evaluate_every=2,
        makers=2,
        checkpoint=folder / "line.checkpoint",
        run="this one",
    )


def test_phases_are_sizes_and_epochs() -> None:
    assert parse_phases("192:20,256:10") == (Phase(192, 20), Phase(256, 10))


@pytest.mark.parametrize("text", ["", "192", "192:", "192:0", "-1:2", "a:b", "192:1,", "1:2:3"])
def test_other_phases_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not SIZE:EPOCHS"):
        parse_phases(text)


def test_what_is_learnt_is_averaged_and_written(tmp_path: Path) -> None:
    task = Line(tmp_path / "line.pt")
    said: list[str] = []
    network = train(task, options(tmp_path, Phase(1, 60)), said.append)
    torch.testing.assert_close(network.weight.item(), 2.0, atol=0.1, rtol=0)  # type: ignore[operator]
    written = torch.load(tmp_path / "line.pt", weights_only=True)
    assert written["weight"].item() == network.weight.item()  # type: ignore[operator]
    assert len(said) == 61
    assert said[0].startswith("epoch 1/60 at 1: loss ")
    assert "slope" in said[1]
    assert said[-1] == f"wrote {tmp_path / 'line.pt'}"


def test_phases_follow_each_other(tmp_path: Path) -> None:
    task = Line(tmp_path / "line.pt")
    train(task, options(tmp_path), lambda _: None)
    assert task.sizes == [8, 16]
    assert task.last_phases == [False, False, True, True, True]


def test_the_only_phase_is_not_the_last(tmp_path: Path) -> None:
    task = Line(tmp_path / "line.pt")
    train(task, options(tmp_path, Phase(8, 2)), lambda _: None)
    assert task.last_phases == [False, False]


@pytest.mark.parametrize("epoch", range(1, 5))
def test_a_run_that_was_stopped_goes_on_as_if_nothing_had_been(tmp_path: Path, epoch: int) -> None:
    whole = train(Line(tmp_path / "whole.pt"), options(tmp_path / "whole"), lambda _: None)
    with pytest.raises(KeyboardInterrupt):
        train(Line(tmp_path / "x", stop_in_epoch=epoch), options(tmp_path / "two"), lambda _: None)
    said: list[str] = []
    rest = train(Line(tmp_path / "rest.pt"), options(tmp_path / "two"), said.append)
    assert said[0] == f"going on after epoch {epoch} of {tmp_path / 'two/line.checkpoint'}"
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, rest.state_dict()[name])


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    first = train(Line(tmp_path / "a.pt"), options(tmp_path), lambda _: None)
    again = Line(tmp_path / "b.pt")
    second = train(again, options(tmp_path), lambda _: None)
    assert again.last_phases == []
    assert again.sizes == [16]  # what is written is for the last phase's size
    assert torch.equal(first.state_dict()["weight"], second.state_dict()["weight"])
    assert (tmp_path / "b.pt").exists()


def test_another_networks_checkpoint_is_refused(tmp_path: Path) -> None:
    train(Line(tmp_path / "a.pt"), options(tmp_path), lambda _: None)
    task = Line(tmp_path / "b.pt")
    task.network = nn.Linear(2, 1)
    with pytest.raises(TrainingError, match=r"line\.checkpoint: .* this network: delete it"):
        train(task, options(tmp_path), lambda _: None)


def test_another_runs_checkpoint_is_refused(tmp_path: Path) -> None:
    train(Line(tmp_path / "a.pt"), options(tmp_path), lambda _: None)
    other = replace(options(tmp_path), run="that one")
    with pytest.raises(TrainingError, match=r"line\.checkpoint: .* another run .* --output"):
        train(Line(tmp_path / "b.pt"), other, lambda _: None)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"e"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "line.checkpoint").write_bytes(content)
    with pytest.raises(TrainingError, match=r"line\.checkpoint: is damaged"):
        train(Line(tmp_path / "b.pt"), options(tmp_path), lambda _: None)


def test_a_run_may_be_prolonged(tmp_path: Path) -> None:
    train(Line(tmp_path / "a.pt"), options(tmp_path, Phase(8, 2)), lambda _: None)
    said: list[str] = []
    train(Line(tmp_path / "a.pt"), options(tmp_path, Phase(8, 3)), said.append)
    assert said[0].startswith("going on after epoch 2 ")
    assert said[1].startswith("epoch 3/3 at 8: ")


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"epoch 1: the loss is nan.*--learning-rate"):
        train(Line(tmp_path / "a.pt", wrong=True), options(tmp_path), lambda _: None)
    assert not (tmp_path / "line.checkpoint").exists()
