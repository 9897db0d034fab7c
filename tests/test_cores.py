"""Processors that a process may use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from backend import cores
from backend.cores import count_cores, limit_cores
from tests.service import REPOSITORY


def test_processors_that_it_may_not_run_on_do_not_count() -> None:
    [one, *_] = os.sched_getaffinity(0)
    code = (
        f"import os; os.sched_setaffinity(0, [{one}]); "
        "from backend.cores import count_cores, limit_cores; print(count_cores())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout == "1\n"


@pytest.mark.parametrize(("limit", "expected"), [(1, 1), (3, 3), (99, 8)])
def test_a_limit_of_its_own_counts(
    limit: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "_limit", cores._limit)
    monkeypatch.setattr(cores, "_QUOTA", Path("/nowhere"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    limit_cores(limit)
    assert count_cores() == expected


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("max 100000", 8),
        ("250000 100000", 3),
        ("1000 100000", 1),
        ("1600000 100000", 8),
        ("", 8),
        ("0 0", 8),
    ],
)
def test_a_container_s_limit_counts(
    limit: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(cores, "_QUOTA", tmp_path / "cpu.max")
    assert count_cores() == 8
    (tmp_path / "cpu.max").write_text(limit + "\n")
    assert count_cores() == expected
