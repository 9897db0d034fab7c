from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file

from scripts.export_models import download, repository
from scripts.export_models.__main__ import main
from scripts.export_models.official import Catalogue
from scripts.export_models.plans import Options, make_plans
from scripts.export_models.resnet50 import ResNet50
from tests.limits import files_limited_to
from tests.scripts.export_models.file_server import Answer, FileServer, Request
from tests.scripts.export_models.small_catalogue import small_catalogue
from tests.scripts.export_models.tiny_networks import (
    TINY_CFG,
    TINY_LABELS,
    random_floats,
    tiny_network,
    write_weights,
)

Files = dict[str, bytes]


def contents(folder: Path) -> Files:
    """Every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up weights in the formats of the official ones, and what describes them."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "tiny.cfg").write_text(TINY_CFG)
    (folder / "tiny.txt").write_text("\n".join(TINY_LABELS))
    write_weights(folder / "yolov3.weights", random_floats(tiny_network()))
    for seed, name in enumerate(("resnet50-v1.pth", "resnet50-v2.pth")):
        torch.manual_seed(seed)
        torch.save(ResNet50(base_width=2, classes=5).state_dict(), folder / name)
    state = ResNet50(base_width=2).state_dict()
    save_file(state, folder / "tiny.safetensors")
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: Path) -> Path:
    """Works in an empty folder, with a cache of its own and no patience."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "RETRY_DELAYS", (0.0, 0.0))
    return tmp_path


@pytest.fixture
def serving(server: FileServer, files: Path) -> FileServer:
    server.files.update({path.name: path.read_bytes() for path in files.iterdir()})
    return server


@pytest.fixture
def catalogue(serving: FileServer, files: Path) -> Catalogue:
    return small_catalogue(files, serving.url)


@pytest.fixture
def in_use(here: Path) -> Files:
    """What a model repository holds that is in use, and still has to hold after a failure."""
    folder = here / "model_repository" / "yolov3"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.onnx").write_bytes(b"the one in use")
    (folder / "config.pbtxt").write_text("its description")
    return contents(here / "model_repository")


def test_official_models_are_fetched_and_exported(
    here: Path,
    files: Path,
    catalogue: Catalogue,
    serving: FileServer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["yolov3", "resnet50"], catalogue=catalogue) == 0

    printed = capsys.readouterr()
    assert f"downloading {serving.url}/yolov3.weights\n" in printed.out
    assert "wrote model_repository/yolov3/1/model.onnx (" in printed.out
    assert "checked boxes: ONNX Runtime is within" in printed.out
    assert "\nexporting yolov3 …\n" in printed.out
    *_, default, other_collections = printed.out.splitlines()
    assert default == "to use yolov3 and resnet50, nothing needs to be set: they are the default"
    assert "set EMBEDDER_MODEL to it (resnet50-small, if" in other_collections
    assert not printed.err
    assert sorted(contents(here / "cache" / "image-similarity-search")) == [
        "resnet50-v1.pth",
        "yolov3.weights",
    ]
    for name, weights in (("yolov3", "yolov3.weights"), ("resnet50", "resnet50-v1.pth")):
        digest = download.file_sha256(files / weights)
        config = (here / "model_repository" / name / "config.pbtxt").read_text()
        assert f'"{name}-64-{digest[:12]}"' in config
    config = (here / "model_repository/yolov3/config.pbtxt").read_text()
    assert 'string_value: "cat,dog,potted plant"' in config
    assert 'string_value: "0.25"' in config
    assert 'string_value: "0.45"' in config

    before = contents(here / "model_repository")
    assert main(["resnet50"], catalogue=catalogue) == 0
    assert contents(here / "model_repository") == before
    assert len(serving.requests) == 2


def test_a_file_at_hand_a_checkpoint_a_precision_and_an_opset_are_taken(
    here: Path,
    catalogue: Catalogue,
    files: Path,
    serving: FileServer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--weights", str(files / "resnet50-v2.pth"), "--checkpoint", "v2"]
    formats = ["--precision", "fp16", "--opset", "20"]
    assert main(["resnet50", *arguments, *formats], catalogue=catalogue) == 0

    assert not serving.requests
    model = onnx.load(here / "model_repository/resnet50/1/model.onnx")
    assert model.opset_import[0].version == 20
    assert {x.data_type for x in model.graph.initializer if "conv1" in x.name} == {
        onnx.TensorProto.FLOAT16
    }
    assert "\nto use resnet50, set EMBEDDER_MODEL=resnet50\n" in capsys.readouterr().out


def test_a_detector_of_ones_own_is_exported(
    here: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = [f"--{x}={files / y}" for x, y in (("cfg", "tiny.cfg"), ("labels", "tiny.txt"))]
    weights = f"--weights={files / 'yolov3.weights'}"
    assert main(["tiny", weights, *own, "--size", "96", "--score-threshold", "0.4"]) == 0

    assert capsys.readouterr().out.endswith("to use tiny, set DETECTOR_MODEL=tiny\n")
    config = (here / "model_repository/tiny/config.pbtxt").read_text()
    assert "dims: 96" in config
    assert 'string_value: "0.4"' in config
    digest = download.file_sha256(files / "yolov3.weights", files / "tiny.cfg")
    assert f'"tiny-96-{digest[:12]}"' in config


def test_an_embedder_of_ones_own_is_exported(
    here: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    crops = ["--crop-geometry", "pad", "--crop-margin", "0.1"]
    weights = ["--weights", str(files / "tiny.safetensors"), "--size", "96"]
    assert main(["tiny", *weights, *crops, "--repository", "elsewhere"]) == 0

    assert "\nto use tiny, set MODEL_REPOSITORY=elsewhere EMBEDDER_MODEL=tiny\n" in (
        capsys.readouterr().out
    )
    session = onnxruntime.InferenceSession(here / "elsewhere/tiny/1/model.onnx")
    assert session.get_inputs()[0].shape[1:] == [96, 96, 3]
    assert session.get_outputs()[0].shape[1:] == [64]
    config = (here / "elsewhere/tiny/config.pbtxt").read_text()
    assert 'string_value: "pad"' in config
    assert 'string_value: "0.1"' in config


DETECTOR = ["tiny", "--cfg=tiny.cfg", "--weights=yolov3.weights", "--labels=tiny.txt"]
EMBEDDER = ["tiny", "--weights=resnet50-v1.pth", "--size=64"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*DETECTOR, "--cfg=absent.cfg"], "absent.cfg: cannot be read as a darknet cfg"),
        ([*DETECTOR, "--cfg=tiny.txt"], "tiny.txt: line 1: 'cat' is neither"),
        ([*DETECTOR, "--weights=tiny.cfg"], "tiny.cfg: does not begin with a darknet version"),
        ([*DETECTOR, "--labels=yolov3.weights"], "yolov3.weights: cannot be read as labels"),
        ([*DETECTOR, "--size=50"], "tiny.cfg: section 13 [route]"),
        ([*DETECTOR, "--size=16"], "an input of 16 pixels gives 180 candidates"),
        ([*DETECTOR, "--score-threshold=1.5"], "score threshold 1.5 is outside 0..1"),
        ([*DETECTOR, "--crop-margin=0"], "--crop-margin is for embedders"),
        ([*DETECTOR[:3], "--size=64"], "--cfg and --labels go together"),
        ([*EMBEDDER, "--size=31"], "input size 31 is less than 32"),
        ([*EMBEDDER, "--weights=tiny.cfg"], "tiny.cfg: cannot be read as a PyTorch state dict"),
        ([*EMBEDDER, "--weights=absent.pth"], "absent.pth: cannot be read as a PyTorch state dict"),
        ([*EMBEDDER, "--crop-margin=2"], "crop margin 2 is outside 0..1"),
        ([*EMBEDDER, "--nms-threshold=0.5"], "--nms-threshold is for detectors"),
        ([*EMBEDDER, "--checkpoint=v1"], "--checkpoint is for official models, which tiny is not"),
        (EMBEDDER[:2], "tiny needs --cfg and --labels (YOLOv3) or --size (ResNet-50)"),
        (["../tiny", *EMBEDDER[1:]], "the model name '../tiny' must be letters"),
        (["tiny"], "tiny is no official model (yolov3, resnet50): one of your own needs --weights"),
        (["yolov3", "resnet50", "--size=64"], "--size goes with one NAME, not with 2"),
        (["yolov3", "resnet50", "--weights=x"], "--weights goes with one NAME, not with 2"),
        (["yolov3", "--size=50"], "yolov3: section 13 [route]"),
        (["yolov3", "--checkpoint=v2"], "--checkpoint is for embedders"),
        (["yolov3", *DETECTOR[1:]], "yolov3 is an official model, whose cfg and labels are known"),
        (["yolov3", "--weights=absent"], "absent: cannot be read: No such file or directory"),
        (["yolov3", "--weights=tiny.cfg"], "choose another NAME, with --cfg and --labels (YOLOv3)"),
        (["yolov3", "yolov3", "--size=50"], "yolov3: section 13 [route]"),
        (["resnet50", "--size=0"], "input size 0 is less than 32"),
        (["resnet50", "--weights=resnet50-v2.pth"], "another checkpoint of resnet50: choose --che"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    here: Path,
    files: Path,
    catalogue: Catalogue,
    serving: FileServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(files)
    before = contents(files)
    assert main([*arguments, f"--repository={here / 'repository'}"], catalogue=catalogue) == 2
    error = capsys.readouterr().err
    assert error.startswith("python -m scripts.export_models: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not contents(here)
    assert contents(files) == before
    assert not serving.requests


def test_a_name_given_twice_is_one_model(catalogue: Catalogue) -> None:
    (plan,) = make_plans(Options(names=("yolov3", "yolov3"), size=96), catalogue)
    assert plan.name == "yolov3"


def test_another_file_than_the_official_one_is_told_with_both_sums(
    here: Path, files: Path, catalogue: Catalogue, capsys: pytest.CaptureFixture[str]
) -> None:
    path = files / "tiny.cfg"
    assert main(["yolov3", "--weights", str(path)], catalogue=catalogue) == 2
    error = capsys.readouterr().err
    assert f"its SHA-256 is {download.file_sha256(path)}, " in error
    assert download.file_sha256(files / "yolov3.weights") in error


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        [*EMBEDDER, "--size=big"],
        ["resnet50", "--checkpoint=v3"],
        ["resnet50", "--precision=int8"],
        ["resnet50", "--opset=17"],
        ["resnet50", "--opset=24"],
        ["resnet50", "--mirror=ftp://host/folder"],
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def wrong_sum(serving: FileServer) -> None:
    data = serving.files["yolov3.weights"]
    serving.files["yolov3.weights"] = bytes(len(data))


def cut(serving: FileServer) -> None:
    serving.answers.extend([Answer()] + [Answer(cut_after=99)] * 3)


@pytest.mark.parametrize(
    ("fail", "message", "kept"),
    [
        (lambda s: s.files.pop("yolov3.weights"), "yolov3.weights: HTTP 404 Not Found", False),
        (wrong_sum, "its SHA-256 is ", False),
        (cut, "the connection was lost", True),
    ],
    ids=["absent", "wrong sum", "cut"],
)
def test_a_download_that_fails_is_one_line_and_leaves_the_repository(
    here: Path,
    in_use: Files,
    catalogue: Catalogue,
    serving: FileServer,
    capsys: pytest.CaptureFixture[str],
    fail: Callable[[FileServer], object],
    message: str,
    kept: bool,
) -> None:
    fail(serving)
    assert main(["resnet50", "yolov3"], catalogue=catalogue) == 1
    error = capsys.readouterr().err
    assert error.startswith("python -m scripts.export_models: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert contents(here / "model_repository") == in_use
    parts = ["yolov3.weights.part"] if kept else []
    assert sorted(contents(here / "cache" / "image-similarity-search")) == [
        "resnet50-v1.pth",
        *parts,
    ]


def test_a_full_disk_is_one_line_and_leaves_the_repository(
    here: Path, in_use: Files, catalogue: Catalogue, capsys: pytest.CaptureFixture[str]
) -> None:
    with files_limited_to(1000):
        assert main(["yolov3"], catalogue=catalogue) == 1
    error = capsys.readouterr().err
    assert "yolov3.weights.part: File too large; " in error
    assert "keeps 1,000 of " in error
    assert error.count("\n") == 1
    assert contents(here / "model_repository") == in_use


def test_a_disk_too_full_for_the_model_is_one_line_and_leaves_the_one_in_use(
    here: Path,
    files: Path,
    in_use: Files,
    catalogue: Catalogue,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with files_limited_to((files / "yolov3.weights").stat().st_size):
        assert main(["yolov3"], catalogue=catalogue) == 1
    printed = capsys.readouterr()
    assert printed.err.endswith("model_repository: File too large; the model yolov3 is as it was\n")
    assert printed.err.count("\n") == 1
    assert contents(here / "model_repository") == in_use
    assert [path.name for path in (here / "model_repository").iterdir()] == ["yolov3"]


def test_a_model_comes_from_the_mirror_that_gives_it_however_often_it_breaks_off(
    here: Path, catalogue: Catalogue, serving: FileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    serving.answers.extend([Answer(status=404), Answer(cut_after=5000)])
    mirror = f"http://127.0.0.1:{serving.port}/one"
    assert main(["yolov3", "--mirror", mirror], catalogue=catalogue) == 0
    printed = capsys.readouterr()
    assert f"{mirror}/yolov3.weights: HTTP 404 Not Found; trying the next mirror\n" in printed.out
    assert not printed.err
    assert serving.requests == [
        Request("/one/yolov3.weights", None),
        Request("/files/yolov3.weights", None),
        Request("/files/yolov3.weights", "bytes=5000-"),
    ]
    assert sorted(contents(here / "model_repository")) == [
        "yolov3/1/model.onnx",
        "yolov3/config.pbtxt",
        "yolov3/configs/cpu.pbtxt",
    ]


def test_mirrors_are_asked_first(
    here: Path, catalogue: Catalogue, serving: FileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    serving.files.clear()
    base = f"http://127.0.0.1:{serving.port}"
    mirrors = ["--mirror", f"{base}/one", "--mirror", f"{base}/two/"]
    assert main(["yolov3", *mirrors, "--downloads", "kept/here"], catalogue=catalogue) == 1
    assert serving.requests == [
        Request(f"/{folder}/yolov3.weights", None) for folder in ("one", "two", "files")
    ]
    assert (here / "kept" / "here").is_dir()
    error = capsys.readouterr().err
    assert error.count("/yolov3.weights: HTTP 404 Not Found") == 3
    assert error.count("\n") == 1


@pytest.mark.parametrize("value", ["", "relative/folder", None])
def test_downloads_are_kept_in_the_home_folders_cache(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    value: str | None,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "1000")
    if value is None:
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", value)
    with pytest.raises(SystemExit):
        main(["--help"])
    assert f"(default: {tmp_path}/.cache/image-similarity-search)" in capsys.readouterr().out


def test_ctrl_c_keeps_what_has_arrived_and_the_same_command_goes_on(
    here: Path,
    in_use: Files,
    files: Path,
    catalogue: Catalogue,
    serving: FileServer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    size = len(serving.files["yolov3.weights"])
    part = here / "cache" / "image-similarity-search" / "yolov3.weights.part"
    over = threading.Event()
    serving.answers.append(Answer(cut_after=5000, wait_for=over))
    program = (
        # Where Ctrl-C is ignored, as in a shell's background job, so would its children.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        " import sys; from pathlib import Path;"
        " from scripts.export_models.__main__ import main;"
        " from tests.scripts.export_models.small_catalogue import small_catalogue;"
        f" sys.exit(main(['yolov3'], catalogue=small_catalogue(Path({str(files)!r}),"
        f" {serving.url!r})))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    try:
        deadline = time.monotonic() + 60
        while not (part.exists() and part.stat().st_size == 5000):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        over.set()
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert error == (
        f"python -m scripts.export_models: interrupted; {part} keeps 5,000 of {size:,} bytes,"
        " and the same command goes on from there\n"
    )
    assert contents(here / "model_repository") == in_use

    assert main(["yolov3"], catalogue=catalogue) == 0
    assert serving.requests[-1] == Request("/files/yolov3.weights", "bytes=5000-")
    assert sorted(contents(here / "model_repository")) == [
        "yolov3/1/model.onnx",
        "yolov3/config.pbtxt",
        "yolov3/configs/cpu.pbtxt",
    ]
    assert not part.exists()


def test_ctrl_c_while_exporting_is_one_line(
    here: Path,
    in_use: Files,
    catalogue: Catalogue,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(repository, "check_parity", interrupt)
    assert main(["yolov3"], catalogue=catalogue) == 130
    assert capsys.readouterr().err == "python -m scripts.export_models: interrupted\n"
    assert contents(here / "model_repository") == in_use


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_that_ends_the_process_is_as_ctrl_c(
    here: Path,
    in_use: Files,
    files: Path,
    serving: FileServer,
    number: signal.Signals,
    code: int,
) -> None:
    program = f"""
import os, signal, sys
from pathlib import Path
from scripts.export_models.__main__ import main
from tests.scripts.export_models.small_catalogue import small_catalogue

signal.signal({number:d}, signal.SIG_DFL)
rename = os.replace

def stop_before_the_new_one(source, target):
    if source.name == "complete":
        signal.raise_signal({number:d})
    rename(source, target)

os.replace = stop_before_the_new_one
sys.exit(main(["yolov3"], catalogue=small_catalogue(Path({str(files)!r}), {serving.url!r})))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        check=False,
    )
    assert (done.returncode, done.stderr) == (
        code,
        "python -m scripts.export_models: interrupted\n",
    )
    assert contents(here / "model_repository") == in_use
    assert [path.name for path in (here / "model_repository").iterdir()] == ["yolov3"]


def test_a_signal_that_is_ignored_stays_so(
    here: Path, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``nohup`` has it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def hang_up(*arguments: object, **options: object) -> NoReturn:
        signal.raise_signal(signal.SIGHUP)
        raise KeyboardInterrupt

    monkeypatch.setattr(repository, "check_parity", hang_up)
    try:
        assert main(["yolov3"], catalogue=catalogue) == 130
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_command_line_starts_without_pytorch() -> None:
    """So that help, mistakes and failed downloads do not wait for it."""
    program = "import sys; import scripts.export_models.__main__; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[3])
