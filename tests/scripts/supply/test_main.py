"""The command line of scripts.supply."""

from pathlib import Path

import pytest

from scripts.supply import advisories, licences, locks
from scripts.supply.__main__ import FAILED, main


def test_the_audit_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit"]) == 0
    assert "none applies" in capsys.readouterr().out


def test_the_audit_fails_by_an_advisory_that_matches(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = advisories.FILE.read_text("utf-8")
    file = tmp_path / "advisories.json"
    file.write_text(text.replace('"fixed": "3.14.3"', '"fixed": "99"'), "utf-8")
    monkeypatch.setattr(advisories, "FILE", file)
    assert main(["audit"]) == FAILED
    lines = capsys.readouterr().err.splitlines()
    assert {line.partition(":")[0] for line in lines} == {
        "pyproject.toml",
        *(str(image.lock) for image in locks.IMAGES.values()),
    }
    assert all("aiohttp" in line and "CVE-2026-69244" in line for line in lines)


def test_the_audit_fails_by_a_licence_that_is_not_allowed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = licences.FILE.read_text("utf-8")
    file = tmp_path / "licences.md"
    file.write_text(text.replace("| MIT-CMU |", "| AGPL-3.0-only |"), "utf-8")
    monkeypatch.setattr(licences, "FILE", file)
    assert main(["audit"]) == FAILED
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("pillow ")
    assert line.endswith("is under AGPL-3.0-only, which is not allowed")


def test_an_advisory_file_that_cannot_be_read_fails_the_audit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(advisories, "FILE", tmp_path / "none.json")
    assert main(["audit"]) == FAILED
    assert "none.json" in capsys.readouterr().err
