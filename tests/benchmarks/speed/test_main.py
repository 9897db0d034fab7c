"""The command of the benchmark of speed."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.speed import __main__ as command
from benchmarks.speed.bench import Bench


def test_the_command_prints_what_it_is_asked_for_and_writes_it(
    bench: Bench,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "speed.json"
    words = ["speed", "--data", str(bench.data), "--only", "host", "--scale", "0.01"]
    monkeypatch.setattr(sys, "argv", [*words, "--json", str(path)])
    command.main()
    printed = capsys.readouterr().out
    assert "instant networks" in printed
    assert "event loops' lag" in printed
    report = json.loads(path.read_text("utf-8"))
    assert report["scale"] == 0.01
    assert report["host"]["cpu_per_decode"] > 1
    assert "load" not in report
    assert report["loop_lag_p99_ms"].keys() == {"host"}
