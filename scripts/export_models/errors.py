"""The errors of an export. Each message is one line that says what was wrong and what to do.

- ``ExportError``
    - ``CfgError``: a darknet ``.cfg`` that cannot be built
    - ``WeightsError``: weights that do not fit the network
    - ``ContractError``: labels, names or sizes that the service could not work with
    - ``ParityError``: the ONNX file answers otherwise than the PyTorch module
    - ``DownloadError``: no mirror gives the file
    - ``DiskError``: a file or folder cannot be written

``DownloadInterrupted`` is none of them: a ``KeyboardInterrupt`` that knows what it leaves behind.
"""

from typing import ClassVar


class ExportError(Exception):
    """Base of all errors that an export raises on purpose."""

    exit_code: ClassVar[int] = 2
    """Of the command line: 2 where what was given is at fault, 1 where something else is."""


class CfgError(ExportError):
    """A darknet ``.cfg`` is malformed, or asks for something that is not supported."""


class WeightsError(ExportError):
    """A weights file is not what it should be, or belongs to another network."""


class ContractError(ExportError):
    """A label, a model name, a size or a threshold is outside what the contract allows."""


class ParityError(ExportError):
    """ONNX Runtime's answers are further from PyTorch's than the tolerances allow."""

    exit_code = 1


class DownloadError(ExportError):
    """No mirror gives a file with the right SHA-256; the message has each one's reason."""

    exit_code = 1


class DiskError(ExportError):
    """A file or folder cannot be written: the disk is full, or it is forbidden."""

    exit_code = 1


class DownloadInterrupted(KeyboardInterrupt):
    """Ctrl-C, or the like, during a download; the message says what is kept of it."""
