"""Trains any task: phases of input sizes, learning rate, averaged weights, checkpoints.

On the CPU a run is a pure function of its options and its data, so that one which was stopped goes
on from its last checkpoint as if nothing had been. (A GPU adds in no fixed order.)
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

Batch: TypeAlias = tuple[Tensor, Tensor]
"""Inputs and what is wanted of them; the task knows what they are."""

_WARM_UP_STEPS: Final = 300
_LEAST_RATE: Final = 0.01
"""Part of the learning rate that is left at the end."""
_AVERAGE_DECAY: Final = 0.998
_MAX_GRADIENT: Final = 10.0
_AHEAD: Final = 2
"""Batches that wait for the network, beside those being made."""


Network = TypeVar("Network", bound=nn.Module)


class TrainingError(Exception):
    """Training cannot start or go on; the message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Phase:
    """``epochs`` passes over the data at input width and height ``size``."""

    size: int
    epochs: int


def parse_phases(text: str) -> tuple[Phase, ...]:
    """Phases of text like ``192:20,256:10``: size and epochs of each.

    Raises:
        ValueError: it is not of that form, or a number is below 1.
    """
    phases = []
    for part in text.split(","):
        size, colon, epochs = part.partition(":")
        try:
            phase = Phase(int(size), int(epochs))
        except ValueError:
            colon = ""
        if not colon or phase.size < 1 or phase.epochs < 1:
            raise ValueError(f"{part!r} is not SIZE:EPOCHS, both whole numbers above 0")
        phases.append(phase)
    return tuple(phases)


class Task(Protocol):
    """What is trained, and on what."""

    @property
    def network(self) -> nn.Module:
        """What is trained, as it is kept in checkpoints."""
        ...

    def prepare(self, phase: Phase) -> None:
        """Called before the first epoch of a phase."""
        ...

    def batches(self, epoch: int, *, last_phase: bool) -> Sequence[Callable[[], Batch]]:
        """What makes each batch of an epoch, called from other threads.

        ``last_phase`` is of several: where there is but one phase, it is not the last.
        """
        ...

    def loss(self, batch: Batch) -> tuple[Tensor, Mapping[str, float]]:
        """The loss of a batch, and parts of it to be shown."""
        ...

    def evaluate(self, network: nn.Module) -> Mapping[str, float]:
        """How good an (averaged) network is."""
        ...

    def save(self, network: nn.Module) -> Sequence[Path]:
        """Writes an (averaged) network's weights; returns the files."""
        ...


@dataclass(frozen=True, slots=True)
class Options:
    """How to train.

    Attributes:
        phases: one after the other.
        learning_rate: at its highest.
        weight_decay: of every tensor of two dimensions or more.
        evaluate_every: epochs from one evaluation to the next; the last epoch has one always.
        makers: threads that make batches while the network works on others.
        checkpoint: file to go on from and to write after every epoch.
        run: what tells this run from others, beside phases and learning rate, which may be changed
            on the way. A checkpoint of another run is refused.
    """

    phases: tuple[Phase, ...]
    learning_rate: float
    weight_decay: float
    evaluate_every: int
    makers: int
    checkpoint: Path
    run: str


def placed(network: Network, device: torch.device) -> Network:
    """The network itself, on a device, channels last: the layout that convolutions are fast in."""
    network.to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def train(task: Task, options: Options, say: Callable[[str], None]) -> nn.Module:
    """Trains, or goes on with what a checkpoint holds; returns the averaged network.

    Args:
        task: what to train.
        options: how.
        say: takes a line of progress.

    Raises:
        TrainingError: the checkpoint is of another run, or the loss is no number any more.
    """
    network = task.network
    average = AveragedModel(network, multi_avg_fn=_average, use_buffers=True)
    average.eval()
    optimizer = _optimizer(network, options)
    done = _restore(options, network, average, optimizer)
    if done:
        say(f"going on after epoch {done} of {options.checkpoint}")
    epochs = [phase for phase in options.phases for _ in range(phase.epochs)]
    several = len(options.phases) > 1
    started, trained = time.monotonic(), 0
    if done >= len(epochs):
        task.prepare(options.phases[-1])
    for epoch, phase in enumerate(epochs):
        if epoch < done:
            continue
        if epoch == done or phase is not epochs[epoch - 1]:
            task.prepare(phase)
        makers = task.batches(epoch, last_phase=several and phase is options.phases[-1])
        shown: dict[str, float] = {}
        network.train()
        for number, batch in enumerate(_made_ahead(makers, options.makers)):
            progress = (epoch + number / len(makers)) / len(epochs)
            step = epoch * len(makers) + number
            for group in optimizer.param_groups:
                group["lr"] = options.learning_rate * _rate(progress, step)
            loss, parts = task.loss(batch)
            if not loss.isfinite():
                raise TrainingError(
                    f"epoch {epoch + 1}: the loss is {loss.item()}: train again from the last"
                    " checkpoint with a lower --learning-rate"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), _MAX_GRADIENT)
            optimizer.step()
            average.update_parameters(network)
            trained += len(batch[0])
            for name, value in parts.items():
                shown[name] = shown.get(name, value) * 0.98 + value * 0.02
        if (epoch + 1) % options.evaluate_every == 0 or epoch + 1 == len(epochs):
            shown.update(task.evaluate(average.module))
        _keep(options, network, average, optimizer, epoch + 1)
        seconds = time.monotonic() - started
        left = seconds / (epoch + 1 - done) * (len(epochs) - epoch - 1)
        say(
            f"epoch {epoch + 1}/{len(epochs)} at {phase.size}:"
            f" {', '.join(f'{name} {value:.4f}' for name, value in shown.items())};"
            f" {trained / seconds:.0f} images/s, {seconds / 60:.0f} min, {left / 60:.0f} left"
        )
    for file in task.save(average.module):
        say(f"wrote {file}")
    return average.module


def _average(averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
    """Exponential means, in place, whose memory grows to 1 / (1 - decay) steps."""
    steps = float(count)
    decay = min(_AVERAGE_DECAY, (1 + steps) / (20 + steps))
    for mean, latest in zip(averaged, current, strict=True):
        if mean.is_floating_point():
            mean.lerp_(latest, 1 - decay)
        else:
            mean.copy_(latest)  # counters


def _rate(progress: float, step: int) -> float:
    """Part of the learning rate: a warm-up, then half a cosine."""
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return min(1.0, (step + 1) / _WARM_UP_STEPS) * max(_LEAST_RATE, cosine)


def _optimizer(network: nn.Module, options: Options) -> torch.optim.Optimizer:
    # Decay is for what multiplies features: biases and normalisation stay free.
    kernels = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    return torch.optim.AdamW(
        [
            {"params": kernels, "weight_decay": options.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=options.learning_rate,
    )


def _made_ahead(makers: Sequence[Callable[[], Batch]], threads: int) -> Iterator[Batch]:
    """The batches in order, the next ones made in other threads meanwhile."""
    ahead = threads + _AHEAD
    with ThreadPoolExecutor(threads) as maker:
        waiting = deque(maker.submit(make) for make in makers[:ahead])
        for number in range(len(makers)):
            batch = waiting.popleft().result()
            if number + ahead < len(makers):
                waiting.append(maker.submit(makers[number + ahead]))
            yield batch


def _restore(
    options: Options, network: nn.Module, average: AveragedModel, optimizer: torch.optim.Optimizer
) -> int:
    """Loads a checkpoint where there is one; returns how many epochs it has behind it."""
    path = options.checkpoint
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["run"] == options.run:
            network.load_state_dict(state["network"])
            average.load_state_dict(state["average"])
            optimizer.load_state_dict(state["optimizer"])
            return int(state["epochs"])
    except Exception as error:  # PyTorch's reader stumbles in many ways over what it did not write
        raise TrainingError(
            f"{path}: is damaged, or no checkpoint of this network: delete it to start anew"
        ) from error
    raise TrainingError(
        f"{path}: is the checkpoint of another run (other photos, labels, seed, width or start):"
        " give another --output, or delete it to start anew"
    )


def _keep(
    options: Options,
    network: nn.Module,
    average: AveragedModel,
    optimizer: torch.optim.Optimizer,
    epochs: int,
) -> None:
    """Writes a checkpoint; a crash leaves the one before or this one, never half of it."""
    path = options.checkpoint
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "run": options.run,
        "network": network.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epochs": epochs,
    }
    unfinished = path.with_name(f".{path.name}")
    torch.save(state, unfinished)
    os.replace(unfinished, path)
