"""The overhead of Triton, measured on a handful of drawn photos and a thin detector."""

import json
import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks import triton
from tests.photos import write_photos


async def test_work_that_takes_longer_is_found_to() -> None:
    def burn(seconds: float) -> None:
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    async def quick(_photo: bytes) -> None:
        burn(0.01)

    async def slow(_photo: bytes) -> None:
        burn(0.03)

    other = psutil.Process(os.getppid())
    found = await triton.compare([b""] * 16, quick, slow, other, rounds=3)
    assert found.wall_ratio > 1.5
    assert found.cpu_ratio > 1.5
    assert found.triton.wall_ms > found.in_process.wall_ms
    assert (found.photos, found.rounds) == (16, 3)


def test_the_command_prints_the_table_and_writes_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_photos(tmp_path / "photos", 4)
    path = tmp_path / "triton.json"
    options = ["--photos", "4", "--large-photos", "1", "--rounds", "1", "--json", str(path)]
    words = ["triton", "--data", str(tmp_path / "photos"), *options]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(triton, "WIDTH", 1 / 32)
    triton.main()
    assert "small pair" in capsys.readouterr().out
    report = json.loads(path.read_text())
    for row in (report["small_pair"], report["large_detector"]):
        assert row["wall_ratio"] > 0
        assert row["cpu_ratio"] > 0
