"""Whether the processor computes in bfloat16."""

from typing import Final

import openvino
import pytest

__all__ = ["needs_bf16"]

_CAPABILITIES: Final = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")

needs_bf16: Final = pytest.mark.skipif(
    "BF16" not in _CAPABILITIES, reason="this processor does not compute in bfloat16"
)
