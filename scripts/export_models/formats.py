"""What may be chosen of an ONNX file: its network's number format and its operator set."""

from __future__ import annotations

from enum import Enum
from typing import Final


class Precision(Enum):
    """Number format of a network's weights and inner values."""

    FP32 = "fp32"
    FP16 = "fp16"


OPSETS: Final = range(18, 24)
"""Operator sets that PyTorch's exporter writes."""

# That of ONNX 1.13 (December 2022), the oldest that is written: ONNX Runtime reads it from 1.14 on,
# which Triton 23.04 carries.
DEFAULT_OPSET: Final = OPSETS[0]
