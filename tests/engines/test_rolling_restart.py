"""One round of what `python -m tests.rolling` does: restarts, and a kill, under load."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.rolling import rolling_restarts


@pytest.mark.parametrize("combination", ["production"], indirect=True)
def test_no_request_fails_while_backends_are_restarted_one_after_the_other(
    engine_settings: Mapping[str, str], tmp_path: Path
) -> None:
    report = rolling_restarts(tmp_path, engine_settings, rounds=1, kills=1)
    assert report.failures == []
    assert len(report.restarts) == 3
    assert len(report.done) == 5
    assert min(report.done.values()) > 3, report.done
    assert len(report.killed) <= 4, "each client waits for one answer at a time"
