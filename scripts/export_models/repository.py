"""A model's folder in a Triton model repository: all of its files, or none.

NAME/config.pbtxt, NAME/configs/cpu.pbtxt, NAME/1/model.onnx.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
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

    A model of that name is replaced as a whole, older versions included. Where that fails, it stays
    as it was: the new folder is made inside the repository under a hidden name (so on the same file
    system) and only renamed when complete and on the disk. Two renames do that. Should the process
    be killed, or the power fail, just between them, the old one is left under a hidden name, and
    the next export of that model begins by putting it back.

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
        text = config_text(
            name,
            spec,
            placement,
            source_sha256=source_sha256,
            model_sha256=hashlib.sha256(model).hexdigest(),
        )
        files[file] = text.encode()
    try:
        folder = _replace_folder(repository, name, files)
    except OSError as error:
        raise DiskError(
            f"{error.filename or repository}: {error.strerror}; the model {name} is as it was"
        ) from error
    return Exported(folder, {folder / f: len(data) for f, data in files.items()}, differences)


def _replace_folder(repository: Path, name: str, files: Mapping[Path, bytes]) -> Path:
    repository.mkdir(parents=True, exist_ok=True)
    target = repository / name
    with _locked(repository):
        _clear_up(target)
        temporary = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=repository))
        # Made inside it, for the temporary folder itself is closed to other users and Triton may
        # well be one.
        complete, previous = temporary / "complete", temporary / "previous"
        try:
            _write_folder(complete, files)
            if target.exists():
                os.replace(target, previous)  # a folder cannot be renamed over one that holds files
            os.replace(complete, target)
            _sync_folder(repository)
        finally:  # after Ctrl-C as well
            if previous.exists() and not target.exists():
                os.replace(previous, target)
            # Should it not go: what was asked for is done, and the next export tries again.
            shutil.rmtree(temporary, ignore_errors=True)
    return target


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps other exports out of a folder, for the moment that one writes to it.

    Where the file system knows no locks, there is none.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _clear_up(target: Path) -> None:
    """Undoes what exports that were killed have left of the model at ``target``."""
    # As ``tempfile`` names them: without a '-', so none of a model whose name goes on with one.
    left_behind = re.compile(rf"\.{re.escape(target.name)}-[a-z0-9_]{{8}}")
    for folder in list(target.parent.iterdir()):
        if left_behind.fullmatch(folder.name):
            if (folder / "previous").exists() and not target.exists():
                os.replace(folder / "previous", target)
            shutil.rmtree(folder, ignore_errors=True)


def _write_folder(folder: Path, files: Mapping[Path, bytes]) -> None:
    """Makes a folder of files, all of it on the disk."""
    folders = {folder}
    for file, data in files.items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        folders.add(path.parent)
        with path.open("wb") as opened:
            opened.write(data)
            opened.flush()
            os.fsync(opened.fileno())
    for each in folders:
        _sync_folder(each)


def _sync_folder(folder: Path) -> None:
    """Has the names in a folder reach the disk, where the file system can do that."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
