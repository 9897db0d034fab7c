from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from scripts.export_models.contract import embedder_spec
from scripts.export_models.errors import ContractError, ParityError
from scripts.export_models.repository import export_model
from tests.scripts.export_models.tiny_networks import MeanColour

SPEC = embedder_spec(size=32, dimension=3)
FILES = {"1/model.onnx", "config.pbtxt", "configs/cpu.pbtxt"}


class Unsteady(nn.Module):
    """Never gives the same answer twice, so that no export of it can agree with it."""

    def forward(self, crops: Tensor) -> Tensor:
        mean = crops.to(torch.float32).mean(dim=(1, 2))
        return mean + torch.rand_like(mean)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_model_is_written_whole(tmp_path: Path) -> None:
    repository = tmp_path / "not" / "there" / "yet"

    exported = export_model(repository, "mean-colour", MeanColour(), SPEC)

    assert exported.folder == repository / "mean-colour"
    assert set(contents(exported.folder)) == FILES
    assert {p: p.stat().st_size for p in exported.sizes} == exported.sizes
    assert [path.name for path in repository.iterdir()] == ["mean-colour"]
    digest = hashlib.sha256((exported.folder / "1/model.onnx").read_bytes()).hexdigest()
    assert f"mean-colour-{digest[:12]}" in (exported.folder / "config.pbtxt").read_text()


def test_another_user_may_read_what_is_written(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        folder = export_model(tmp_path, "mean-colour", MeanColour(), SPEC).folder
    finally:
        os.umask(umask)
    for path in (folder, *folder.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644)


def test_a_model_of_that_name_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "mean-colour" / "2").mkdir(parents=True)
    (tmp_path / "mean-colour" / "2" / "model.onnx").write_bytes(b"an older one")

    export_model(tmp_path, "mean-colour", MeanColour(), SPEC)

    assert set(contents(tmp_path / "mean-colour")) == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["mean-colour"]


def test_a_failed_check_leaves_the_repository_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "mean-colour" / "1").mkdir(parents=True)
    (tmp_path / "mean-colour" / "1" / "model.onnx").write_bytes(b"the one in use")
    before = contents(tmp_path)

    for name in ("mean-colour", "another"):
        with pytest.raises(ParityError):
            export_model(tmp_path, name, Unsteady(), SPEC)

    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["mean-colour"]


def test_a_failed_write_leaves_the_model_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_model(tmp_path, "mean-colour", MeanColour(), SPEC)
    before = contents(tmp_path)
    rename = os.replace

    def refuse_the_new_one(source: Path, target: Path) -> None:
        if source.name == "complete":
            raise PermissionError("no")
        rename(source, target)

    monkeypatch.setattr(os, "replace", refuse_the_new_one)
    with pytest.raises(PermissionError):
        export_model(tmp_path, "mean-colour", MeanColour(), SPEC)

    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["mean-colour"]


def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="model name"):
        export_model(tmp_path / "repository", "../elsewhere", MeanColour(), SPEC)
    assert not list(tmp_path.iterdir())
