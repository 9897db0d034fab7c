"""The errors of an export. Each message is one line that says what was wrong and what to do.

- ``ExportError``
    - ``CfgError``: a darknet ``.cfg`` that cannot be built
    - ``WeightsError``: weights that do not fit the network
    - ``ContractError``: labels, names or sizes that the service could not work with
    - ``ParityError``: the ONNX file answers otherwise than the PyTorch module
"""


class ExportError(Exception):
    """Base of all errors that an export raises on purpose."""


class CfgError(ExportError):
    """A darknet ``.cfg`` is malformed, or asks for something that is not supported."""


class WeightsError(ExportError):
    """A weights file is not what it should be, or belongs to another network."""


class ContractError(ExportError):
    """A label, a model name, a size or a threshold is outside what the contract allows."""


class ParityError(ExportError):
    """ONNX Runtime's answers are further from PyTorch's than the tolerances allow."""
