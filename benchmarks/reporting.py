"""What every benchmark's report holds: where and with what it was measured, and its form."""

import argparse
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.voc import DATA_VARIABLE

__all__ = [
    "add_common_arguments",
    "environment",
    "percentiles_ms",
    "rounded",
    "write_json",
]

_PACKAGES: Final = ("milvus-lite", "numpy", "onnxruntime", "opencv-python-headless", "pymilvus")
_DIGITS: Final = 4
"""Of a measured part: a query more or less of a thousand is still seen."""


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --data and --json, which every benchmark takes."""
    data = os.environ.get(DATA_VARIABLE)
    parser.add_argument(
        "--data",
        type=Path,
        default=data and Path(data),
        required=not data,
        help=f"folder with train/ and val/ (default: the environment variable {DATA_VARIABLE})",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there too")


def environment(*packages: str) -> dict[str, Any]:
    """Date, machine and the versions of what the figures depend on, `packages` among them."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in (*_PACKAGES, *packages)},
        },
    }


def percentiles_ms(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99 of durations in seconds, in milliseconds."""
    points = np.percentile(np.asarray(seconds) * 1000, [50, 95, 99])
    return {
        f"p{rank}_ms": round(float(at), 2) for rank, at in zip((50, 95, 99), points, strict=True)
    }


def rounded(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report with every float in it, however deep, rounded to what can mean something."""
    return {key: _rounded(value) for key, value in report.items()}


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    """Writes a report so that two runs compare line by line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n", "utf-8")


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return rounded(value)
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, _DIGITS) if isinstance(value, float) else value


def _cpu() -> str:
    """The processor's name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
