from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from torch import Tensor, nn

from scripts.export_models.contract import embedder_spec
from scripts.export_models.errors import ContractError, DiskError, ParityError
from scripts.export_models.repository import Exported, export_model
from tests.limits import files_limited_to
from tests.scripts.export_models.tiny_networks import MeanColour

SPEC = embedder_spec(size=32, dimension=3)
FILES = {"1/model.onnx", "config.pbtxt", "configs/cpu.pbtxt"}


def export(
    repository: Path, name: str = "mean-colour", module: nn.Module | None = None
) -> Exported:
    return export_model(repository, name, module or MeanColour(), SPEC, source_sha256="a1" * 32)


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

    exported = export(repository)

    assert exported.folder == repository / "mean-colour"
    assert set(contents(exported.folder)) == FILES
    assert {p: p.stat().st_size for p in exported.sizes} == exported.sizes
    assert [path.name for path in repository.iterdir()] == ["mean-colour"]
    assert '"mean-colour-32-a1a1a1a1a1a1"' in (exported.folder / "config.pbtxt").read_text()


def test_another_user_may_read_what_is_written(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        folder = export(tmp_path).folder
    finally:
        os.umask(umask)
    for path in (folder, *folder.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644)


def test_a_model_of_that_name_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "mean-colour" / "2").mkdir(parents=True)
    (tmp_path / "mean-colour" / "2" / "model.onnx").write_bytes(b"an older one")

    export(tmp_path)

    assert set(contents(tmp_path / "mean-colour")) == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["mean-colour"]


def test_a_failed_check_leaves_the_repository_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "mean-colour" / "1").mkdir(parents=True)
    (tmp_path / "mean-colour" / "1" / "model.onnx").write_bytes(b"the one in use")
    before = contents(tmp_path)

    for name in ("mean-colour", "another"):
        with pytest.raises(ParityError):
            export(tmp_path, name, Unsteady())

    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["mean-colour"]


def test_a_full_disk_leaves_the_model_in_use(tmp_path: Path) -> None:
    (tmp_path / "mean-colour" / "1").mkdir(parents=True)
    (tmp_path / "mean-colour" / "1" / "model.onnx").write_bytes(b"the one in use")
    before = contents(tmp_path)

    with (
        files_limited_to(100),
        pytest.raises(DiskError, match=r"File too large; the model mean-colour is as it was"),
    ):
        export(tmp_path)

    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["mean-colour"]


@pytest.mark.parametrize(
    ("failure", "raised"),
    [
        (PermissionError(13, "Permission denied"), DiskError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_what_stops_the_last_step_leaves_the_model_in_use(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
    raised: type[BaseException],
) -> None:
    export(tmp_path)
    before = contents(tmp_path)
    rename = os.replace

    def refuse_the_new_one(source: Path, target: Path) -> None:
        if source.name == "complete":
            raise failure
        rename(source, target)

    monkeypatch.setattr(os, "replace", refuse_the_new_one)
    with pytest.raises(raised):
        export(tmp_path)

    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["mean-colour"]


def test_what_is_replaced_but_cannot_be_removed_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tmp_path / "mean-colour" / "1" / "model.onnx"
    before.parent.mkdir(parents=True)
    before.write_bytes(b"an older one")

    def refuse(path: object, *arguments: object, **options: object) -> NoReturn:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patched:
        for name in ("unlink", "rmdir"):
            patched.setattr(os, name, refuse)
        export(tmp_path)
    assert set(contents(tmp_path / "mean-colour")) == FILES

    export(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mean-colour"]


def test_all_of_a_model_is_on_the_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    at_rename: list[str] = []
    sync, rename = os.fsync, os.replace

    def note_sync(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        sync(descriptor)

    def note_rename(source: Path, target: Path) -> None:
        at_rename.extend(synced)
        rename(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_rename)
    export(tmp_path)
    assert {*at_rename} == {"model.onnx", "config.pbtxt", "cpu.pbtxt", "complete", "1", "configs"}
    assert synced[len(at_rename) :] == [tmp_path.name]


def test_what_a_killed_export_has_left_is_removed(tmp_path: Path) -> None:
    export(tmp_path)
    for left in (".mean-colour-abcd_123", ".mean-colour-2-abcd_123", ".mean-colour-notes"):
        shutil.copytree(tmp_path / "mean-colour", tmp_path / left / "complete")

    export(tmp_path)

    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".mean-colour-2-abcd_123",  # another model's
        ".mean-colour-notes",
        "mean-colour",
    ]


def test_a_model_that_a_killed_export_has_taken_away_is_put_back_first(tmp_path: Path) -> None:
    folder = tmp_path / ".mean-colour-abcd_123"
    (folder / "previous" / "1").mkdir(parents=True)
    (folder / "previous" / "1" / "model.onnx").write_bytes(b"the one in use")

    with files_limited_to(100), pytest.raises(DiskError):
        export(tmp_path)

    assert contents(tmp_path) == {"mean-colour/1/model.onnx": b"the one in use"}
    assert [path.name for path in tmp_path.iterdir()] == ["mean-colour"]


def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="model name"):
        export(tmp_path / "repository", "../elsewhere")
    assert not list(tmp_path.iterdir())
