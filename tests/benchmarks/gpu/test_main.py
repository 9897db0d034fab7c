"""The benchmark of a GPU, without one: what runs where, and what is missing.

The whole of it, on processors: `python -m benchmarks.gpu --on-cpu --width 0.03125 --scale 0.001`.
"""

import sys
from pathlib import Path

import onnxruntime as ort
import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu.loading import Cores, Layout


def test_one_service_has_more_and_more_cores_and_several_have_all() -> None:
    cores = Cores.of(range(16))
    assert (cores.services, cores.milvus, cores.triton) == (range(8), range(8, 12), range(12, 16))
    alone = [Layout(1, count) for count in (1, 2, 4, 8)]
    assert cores.layouts() == [*alone, Layout(2, 4), Layout(4, 2)]


def test_on_a_small_machine_all_have_all_cores() -> None:
    cores = Cores.of([0, 1])
    assert cores.services == cores.milvus == cores.triton == [0, 1]
    assert cores.layouts() == [Layout(1, 1), Layout(1, 2), Layout(2, 1)]


def test_without_a_gpu_the_command_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "--data", str(tmp_path)])
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(SystemExit, match="onnxruntime-gpu"):
        command.main()
