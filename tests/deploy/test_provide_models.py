"""The models in use get into the shared repository once, and stay."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from backend.serving.models import default_pair
from scripts.deploy.provide_models import FAILED, SHIPPED, main
from scripts.export_models.contract import embedder_spec
from scripts.export_models.repository import CONFIG_FILES, MODEL_FILE
from scripts.export_models.triton_config import Placement, config_text
from tests.service import REPOSITORY, SMALL_PAIR

SPEC = embedder_spec(size=160, dimension=512)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def exporter_unused(_arguments: list[str]) -> int:
    pytest.fail("nothing had to be exported")


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WEIGHTS_MIRROR", raising=False)
    for name, model in SMALL_PAIR.items():
        monkeypatch.setenv(name, model)


@pytest.fixture
def full_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WEIGHTS_MIRROR", raising=False)
    monkeypatch.setenv("DETECTOR_MODEL", "yolov3")
    monkeypatch.setenv("EMBEDDER_MODEL", "resnet50")


def options(folder: Path) -> list[str]:
    return ["--repository", str(folder / "models"), "--downloads", str(folder / "weights")]


def write_model(repository: Path, name: str, content: bytes = b"exported") -> Path:
    """A model with the configurations that an exporter writes for `exported`; its folder."""
    folder = repository / name
    sha256 = hashlib.sha256(b"exported").hexdigest()
    for placement, file in CONFIG_FILES.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(
            config_text(name, SPEC, placement, source_sha256="0" * 64, model_sha256=sha256), "utf-8"
        )
    (folder / MODEL_FILE).parent.mkdir()
    (folder / MODEL_FILE).write_bytes(content)
    return folder


@pytest.mark.usefixtures("pair")
def test_the_small_pair_is_copied_whole(tmp_path: Path) -> None:
    assert main(options(tmp_path), export=exporter_unused) == 0
    for name in SMALL_PAIR.values():
        assert contents(tmp_path / "models" / name) == contents(SHIPPED / name)
    assert default_pair(tmp_path / "models") == tuple(SMALL_PAIR.values())


@pytest.mark.usefixtures("pair")
def test_what_is_there_is_not_written_again(tmp_path: Path) -> None:
    main(options(tmp_path), export=exporter_unused)
    files = [path for path in (tmp_path / "models").rglob("*") if path.is_file()]
    before = {path: path.stat().st_ino for path in files}
    assert main(options(tmp_path), export=exporter_unused) == 0
    assert {path: path.stat().st_ino for path in files} == before


@pytest.mark.usefixtures("pair")
def test_a_copy_of_an_older_release_is_brought_up_to_date(tmp_path: Path) -> None:
    main(options(tmp_path), export=exporter_unused)
    model = tmp_path / "models" / SMALL_PAIR["DETECTOR_MODEL"] / "1" / "model.onnx"
    model.write_bytes(b"an older one")
    assert main(options(tmp_path), export=exporter_unused) == 0
    assert contents(model.parents[1]) == contents(SHIPPED / SMALL_PAIR["DETECTOR_MODEL"])


@pytest.mark.usefixtures("full_pair")
def test_an_exported_model_stays_as_it_is(tmp_path: Path) -> None:
    for name in ("yolov3", "resnet50"):
        write_model(tmp_path / "models", name)
    before = contents(tmp_path / "models")
    assert main(options(tmp_path), export=exporter_unused) == 0
    assert contents(tmp_path / "models") == before


@pytest.mark.usefixtures("full_pair")
def test_only_what_is_missing_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "models", "yolov3")
    monkeypatch.setenv("WEIGHTS_MIRROR", "https://files.example/models")
    commands: list[list[str]] = []

    def export(arguments: list[str]) -> int:
        commands.append(arguments)
        return 1

    assert main(options(tmp_path), export=export) == 1, "its exit code is passed on"
    mirror = ["--mirror", "https://files.example/models"]
    assert commands == [["resnet50", *options(tmp_path), *mirror]]


@pytest.mark.usefixtures("full_pair")
def test_an_exported_model_that_was_changed_is_not_provided(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The container fails, and Triton, which waits for it, is not started."""
    write_model(tmp_path / "models", "yolov3")
    write_model(tmp_path / "models", "resnet50", b"exchanged")
    assert main(options(tmp_path), export=exporter_unused) == FAILED
    errors = capsys.readouterr().err
    assert errors.count("resnet50/1/model.onnx is not the ONNX file") == len(CONFIG_FILES)
    assert "remove" in errors
    assert "yolov3" not in errors


@pytest.mark.usefixtures("full_pair")
@pytest.mark.parametrize("placement", Placement)
def test_a_configuration_that_states_another_file_or_none_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], placement: Placement
) -> None:
    sums = {"yolov3": "f" * 64, "resnet50": None}
    for name, sha256 in sums.items():
        folder = write_model(tmp_path / "models", name)
        text = config_text(name, SPEC, placement, source_sha256="0" * 64, model_sha256=sha256)
        (folder / CONFIG_FILES[placement]).write_text(text, "utf-8")
    assert main(options(tmp_path), export=exporter_unused) == FAILED
    first, second = capsys.readouterr().err.splitlines()
    assert "yolov3" in first
    assert f"not {'f' * 64}" in first
    assert f"resnet50/{CONFIG_FILES[placement]} does not say which ONNX file" in second


def test_the_exporter_takes_what_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DETECTOR_MODEL", "birds")
    monkeypatch.setenv("EMBEDDER_MODEL", SMALL_PAIR["EMBEDDER_MODEL"])
    monkeypatch.setenv("WEIGHTS_MIRROR", "https://files.example/models")
    assert main(options(tmp_path)) == 2
    assert "birds" in capsys.readouterr().err


def test_a_model_must_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTOR_MODEL", "yolov3-small")
    monkeypatch.delenv("EMBEDDER_MODEL", raising=False)
    with pytest.raises(SystemExit) as stopped:
        main(options(tmp_path))
    assert stopped.value.code == 2


@pytest.mark.usefixtures("pair")
def test_the_small_pair_needs_no_package(tmp_path: Path) -> None:
    """Its image has none installed."""
    command = [sys.executable, "-I", "-S", "-c"]
    program = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r});"
        " from scripts.deploy.provide_models import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [*command, program, *options(tmp_path)],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("copied") == 2
