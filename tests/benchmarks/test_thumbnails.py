"""What thumbnails cost, on a handful of drawn photos."""

import json
import sys
from pathlib import Path

import pytest

from backend.vision.thumbnail import ENCODERS
from benchmarks.thumbnails import main


def test_the_command_prints_the_table_and_writes_the_report(
    annotated: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "thumbnails.json"
    words = ["thumbnails", "--data", str(annotated), "--photos", "2", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", words)
    main()
    report = json.loads(path.read_text("utf-8"))
    assert report["photos"] == 2
    in_use = [row for row in report["encoders"] if row["in_use"]]
    assert {row["encoder"] for row in in_use} == {encoder for encoder, _ in ENCODERS.values()}
    for row in report["encoders"]:
        assert row["ms"] > 0
        assert row["bytes"] > 500
        assert 25 < row["psnr_db"] < 60
    printed = capsys.readouterr().out
    assert "WEBP, quality 75, method 2 *" in printed
