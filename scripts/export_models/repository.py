"""A model's folder in a Triton model repository: all of its files, or none.

NAME/config.pbtxt, NAME/configs/cpu.pbtxt, NAME/1/model.onnx.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from scripts.export_models.contract import ModelSpec, check_model_name
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


def export_model(repository: Path, name: str, module: nn.Module, spec: ModelSpec) -> Exported:
    """Exports ``module``, checks it, and puts it into ``repository`` as model ``name``.

    A model of that name is replaced as a whole, older versions included. Whatever goes wrong, the
    repository stays as it was: the new folder is made inside it under a hidden name (so on the same
    file system) and only renamed when complete.

    Raises:
        ContractError: ``name`` is not usable.
        ParityError: the ONNX file's answers differ from the module's.
        OSError: the repository cannot be written.
    """
    check_model_name(name)
    model = export_onnx(module, spec)
    differences = check_parity(module, model, spec)
    sha256 = hashlib.sha256(model).hexdigest()
    files = {MODEL_FILE: model}
    for placement, file in CONFIG_FILES.items():
        text = config_text(name, spec, placement, model_sha256=sha256)
        files[file] = text.encode()
    folder = _replace_folder(repository, name, files)
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
        if target.exists():
            os.replace(target, previous)  # a folder cannot be renamed over one that holds files
        try:
            os.replace(complete, target)
        except OSError:
            if previous.exists():
                os.replace(previous, target)
            raise
    return target
