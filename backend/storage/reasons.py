"""Why photos and loads have failed, as the catalog keeps it."""

import json
from collections.abc import Sequence
from typing import Final, TypeAlias

__all__ = ["FAILURES_KEPT", "Failed", "keep_failures", "keep_reason", "read_failures"]

Failed: TypeAlias = tuple[str, str]
"""A photo's path, and why it has failed."""

FAILURES_KEPT: Final = 1000
"""Of a load: the first."""
_CHARACTERS: Final = 4000
"""Of a reason; MySQL's text columns hold 65,535 bytes."""


def keep_reason(reason: str) -> str:
    """The reason as it is kept: of any length and any characters, whatever the column takes."""
    shown = reason.encode("utf-8", "backslashreplace").decode()
    return shown if len(shown) <= _CHARACTERS else f"{shown[: _CHARACTERS - 1]}…"


def keep_failures(failures: Sequence[Failed]) -> str | None:
    """Failures as a column keeps them."""
    kept = [(path, keep_reason(reason)) for path, reason in failures[:FAILURES_KEPT]]
    return json.dumps(kept) if kept else None


def read_failures(kept: str | None) -> list[Failed]:
    """Failures out of such a column."""
    return [(path, reason) for path, reason in json.loads(kept or "[]")]
