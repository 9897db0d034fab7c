"""A model's folder in a Triton model repository: all of its files, or none.

NAME/config.pbtxt, NAME/configs/cpu.pbtxt, NAME/1/model.onnx.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from scripts.export_models.contract import ModelSpec, check_model_name
from scripts.export_models.errors import DiskError
from scripts.export_models.formats import DEFAULT_OPSET, Precision
from scripts.export_models.half_precision import half_precision
from scripts.export_models.onnx_file import check_parity, export_onnx
from scripts.export_models.triton_config import Placement, config_text

MODEL_FILE = Path("1", "model.onnx")
CONFIG_FILES = {
    Placement.GPU: Path("config.pbtxt"),
    Placement.CPU: Path("configs", "cpu.pbtxt"),
}


@dataclass(frozen=True, slots=True)
class Exported:
    """What ``export_model`` wrote: files and their bytes, and how far answers differ."""

    folder: Path
    sizes: Mapping[Path, int]
    differences: Mapping[str, float]


def export_model(
    repository: Path,
    name: str,
    module: nn.Module,
    spec: ModelSpec,
    *,
    source_sha256: str,
    precision: Precision = Precision.FP32,
    opset: int = DEFAULT_OPSET,
) -> Exported:
    """Exports ``module``, checks it, and puts it into ``repository`` as model ``name``.

    A model of that name is replaced as a whole, older versions included. Whatever goes wrong, the
    repository stays as it was: the new folder is made inside it under a hidden name (so on the same
    file system) and only renamed when complete.

    Args:
        repository: made where it does not exist.
        name: of the model, and of its folder.
        module: in FP32; with FP16, one that has a ``network``.
        spec: its contract.
        source_sha256: of the files that the module was made from, see ``config_text``.
        precision: of the network in the ONNX file.
        opset: see ``export_onnx``.

    Raises:
        ContractError: ``name`` is not usable.
        WeightsError: a weight is beyond the range of ``precision``.
        ParityError: the ONNX file's answers differ from the module's.
        DiskError: the repository cannot be written.
    """
    check_model_name(name)
    exported = half_precision(module) if precision is Precision.FP16 else module
    model = export_onnx(exported, spec, opset=opset)
    differences = check_parity(module, model, spec, precision=precision)
    files = {MODEL_FILE: model}
    for placement, file in CONFIG_FILES.items():
        text = config_text(name, spec, placement, source_sha256=source_sha256)
        files[file] = text.encode()
    try:
        folder = _replace_folder(repository, name, files)
    except OSError as error:
        raise DiskError(
            f"{error.filename or repository}: {error.strerror}; the model repository is as it was"
        ) from error
    return Exported(folder, {folder / f: len(data) for f, data in files.items()}, differences)


def _replace_folder(repository: Path, name: str, files: Mapping[Path, bytes]) -> Path:
    repository.mkdir(parents=True, exist_ok=True)
    target = repository / name
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=repository) as temporary:
        # Made inside it, for the temporary folder itself is closed to other users and Triton
        # may well be one.
        complete, previous = Path(temporary, "complete"), Path(temporary, "previous")
        for file, data in files.items():
            (complete / file).parent.mkdir(parents=True, exist_ok=True)
            (complete / file).write_bytes(data)
        try:
            if target.exists():
                os.replace(target, previous)  # a folder cannot be renamed over one that holds files
            os.replace(complete, target)
        except BaseException:  # Ctrl-C as well: with the temporary folder goes what is in it
            if previous.exists() and not target.exists():
                os.replace(previous, target)
            raise
    return target
