"""What every benchmark's report holds: where and with what it was measured, and its form."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

__all__ = ["environment", "percentiles_ms", "write_json"]

_PACKAGES: Final = ("milvus-lite", "numpy", "onnxruntime", "opencv-python-headless", "pymilvus")


def environment() -> dict[str, Any]:
    """Date, machine and the versions of what the figures depend on."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
    }


def percentiles_ms(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99 of durations in seconds, in milliseconds."""
    points = np.percentile(np.asarray(seconds) * 1000, [50, 95, 99])
    return {
        f"p{rank}_ms": round(float(at), 2) for rank, at in zip((50, 95, 99), points, strict=True)
    }


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    """Writes a report so that two runs compare line by line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n", "utf-8")


def _cpu() -> str:
    """The processor's name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
