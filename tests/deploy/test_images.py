"""The two images that docker-compose.yml builds: their files, their users, and that one serves."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from backend.settings import Settings
from scripts.supply.locks import IMAGES, read_lock
from tests.deploy.compose_file import SERVICES
from tests.deploy.dockerfile import context, exec_form, final_stage, instructions
from tests.engines.process import free_port
from tests.service import REPOSITORY, Service

BACKEND = REPOSITORY / SERVICES["backend"]["build"]["dockerfile"]
MODELS = REPOSITORY / SERVICES["models"]["build"]["dockerfile"]
EACH_IMAGE = pytest.mark.parametrize("dockerfile", [BACKEND, MODELS], ids=["backend", "models"])

_READY_SECONDS = 60


def git_files(*folders: str) -> set[str]:
    """Files below folders that are in git, or would be."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return {name for name in listed.stdout.splitlines() if (REPOSITORY / name).is_file()}


def value(dockerfile: Path, name: str) -> str:
    """The value of the last instruction of a name."""
    return [each.value for each in final_stage(dockerfile) if each.name == name][-1]


def environment() -> dict[str, str]:
    """The service's image's environment."""
    return dict(re.findall(r"(\w+)=(\S+)", value(BACKEND, "ENV")))


@EACH_IMAGE
def test_what_is_copied_is_there_and_not_ignored(dockerfile: Path) -> None:
    sent = context()
    for instruction in instructions(dockerfile):
        if instruction.name == "COPY" and not instruction.value.startswith("--from"):
            *sources, _ = instruction.value.split()
            assert set(sources) <= sent


def test_what_images_need_is_sent_to_docker() -> None:
    needed = git_files("backend", "scripts", "model_repository")
    assert needed <= context()


def test_nothing_else_is_sent_to_docker(tmp_path: Path) -> None:
    for name in (
        ".env",
        ".git/config",
        "data/catalog.db",
        "shared/photo.jpg",
        "tests/test_app.py",
        "backend/__pycache__/app.cpython-311.pyc",
        "backend/app.py",
        "model_repository/yolov3/1/model.onnx",
        "model_repository/yolov3/config.pbtxt",
        "model_repository/.yolov3-abcdefgh/complete/config.pbtxt",
    ):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    sent = {name for name in context(tmp_path) if (tmp_path / name).is_file()}
    assert sent == {"backend/app.py", "model_repository/yolov3/config.pbtxt"}


@EACH_IMAGE
def test_the_base_is_the_python_that_the_project_is_written_for(dockerfile: Path) -> None:
    """By its whole version: what is built today and tomorrow begins with the same."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    version = re.escape(project["requires-python"].removeprefix(">="))
    bases = [each.value.split()[0] for each in instructions(dockerfile) if each.name == "FROM"]
    assert len({*bases}) == 1
    assert re.fullmatch(rf"python:{version}\.\d+-slim-bookworm", bases[0])


@EACH_IMAGE
def test_it_runs_as_a_user_with_a_fixed_number(dockerfile: Path) -> None:
    """Both have the same one: what the exporter writes, the service reads."""
    assert value(dockerfile, "USER") == "10001:10001"
    names = [each.name for each in final_stage(dockerfile)]
    assert names.index("USER") < names.index("CMD")
    assert any("--uid 10001" in each.value for each in final_stage(dockerfile))


@EACH_IMAGE
def test_signals_reach_python(dockerfile: Path) -> None:
    assert exec_form(value(dockerfile, "CMD"))[:2] == ["python", "-m"]


def pip_installs(dockerfile: Path) -> list[list[str]]:
    """The arguments of each `pip install` of an image."""
    found = []
    for instruction in instructions(dockerfile):
        if instruction.name == "RUN":
            for command in re.split(r"&&|;", instruction.value):
                words = shlex.split(command.replace("[ ", "").replace(" ]", ""))
                if "pip" in words and "install" in words[words.index("pip") :]:
                    found.append(words[words.index("install") + 1 :])
    return found


@pytest.mark.parametrize(
    ("dockerfile", "image"), [(BACKEND, "service"), (MODELS, "models")], ids=["backend", "models"]
)
def test_nothing_is_installed_but_what_the_lock_has_hashes_of(dockerfile: Path, image: str) -> None:
    """And the project itself, from the sources that are copied, by tools of the lock."""
    packages, ourselves = pip_installs(dockerfile)
    assert IMAGES[image].dockerfile == dockerfile.relative_to(REPOSITORY)
    assert {"--require-hashes", "--only-binary", ":all:"} <= {*packages}
    assert packages[-2:] == ["--requirement", "requirements.lock"]
    assert {"--no-deps", "--no-build-isolation", "--no-index"} <= {*ourselves}
    assert ourselves[-1] == "."
    [copied] = [
        each.value.split()[0]
        for each in instructions(dockerfile)
        if each.name == "COPY" and "requirements.lock" in each.value
    ]
    assert copied == str(IMAGES[image].lock)


def test_only_the_exporter_asks_another_index_and_for_pytorch_without_cuda() -> None:
    for dockerfile in (BACKEND, MODELS):
        indexes = [word for words in pip_installs(dockerfile) for word in words if "://" in word]
        assert indexes == (["https://download.pytorch.org/whl/cpu"] if dockerfile == MODELS else [])
    [torch] = [
        each for each in read_lock(REPOSITORY / IMAGES["models"].lock) if each.name == "torch"
    ]
    assert torch.version.local == "cpu"


def test_the_services_image_holds_no_pytorch_no_installer_and_no_tests() -> None:
    names = {each.name for each in read_lock(REPOSITORY / IMAGES["service"].lock)}
    assert not names & {"torch", "onnx", "pip", "pytest"}
    assert "opentelemetry-sdk" in names
    assert any("venv --without-pip" in each.value for each in instructions(BACKEND))
    assert any("pip uninstall --yes" in each.value for each in final_stage(BACKEND))
    copied = [each.value.split() for each in final_stage(BACKEND) if each.name == "COPY"]
    assert [words[-2:] for words in copied] == [
        ["/opt/venv", "/opt/venv"],
        ["model_repository", "/models"],
    ]


def test_the_images_settings_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, setting in environment().items():
        if name.lower() in Settings.model_fields:
            monkeypatch.setenv(name, setting)
    settings = Settings.load()
    assert settings.host == "0.0.0.0"
    assert settings.data_dir == Path("/data")
    assert settings.model_repository == Path("/models")
    assert str(settings.port) == value(BACKEND, "EXPOSE")


@dataclass
class Installed:
    """The package as the image has it, without its dependencies, and the models beside it."""

    packages: Path
    models: Path


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """What the build stage does, in a folder with nothing but what it copies."""
    source = tmp_path_factory.mktemp("source")
    sent = context()
    for instruction in instructions(BACKEND):
        if instruction.name != "COPY" or instruction.value.startswith("--from"):
            continue
        for name in sent:
            copied = instruction.value.split()[:-1]
            if name in copied or any(name.startswith(f"{each}/") for each in copied):
                target = source / name
                if (REPOSITORY / name).is_file():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(REPOSITORY / name, target)
    packages = tmp_path_factory.mktemp("packages")
    # Offline: dependencies and setuptools are this environment's.
    install = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target")
    command = [sys.executable, "-m", "pip", "install", *install, str(packages), "."]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return Installed(packages, source / "model_repository")


def test_every_file_of_the_service_is_installed(installed: Installed) -> None:
    needed = git_files("backend") - {"backend/Dockerfile"}
    missing = {name for name in needed if not (installed.packages / name).is_file()}
    assert not missing


@dataclass
class Container:
    """The service as the image runs it, as far as that goes without Docker."""

    service: Service
    environment: Mapping[str, str]
    folder: Path

    def health(self) -> int:
        """Exit code of the image's health check."""
        program, *arguments = exec_form(value(BACKEND, "HEALTHCHECK"))
        return subprocess.run(
            [program, *arguments],
            cwd=self.folder,
            env=self.environment,
            stderr=subprocess.DEVNULL,
            timeout=30,
        ).returncode


@pytest.fixture
def container(installed: Installed, tmp_path: Path) -> Iterator[Container]:
    data = tmp_path / "data"
    data.mkdir()
    own = {
        "HOST": "127.0.0.1",
        "PORT": str(free_port()),
        "DATA_DIR": str(data),
        "HOME": str(data),
        "MODEL_REPOSITORY": str(installed.models),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(installed.packages),
    }
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            exec_form(value(BACKEND, "CMD")),
            cwd=data,
            env=environment() | own,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    started = Container(Service(process, log), environment() | own, data)
    try:
        yield started
    finally:
        started.service.stop()


def test_the_image_serves_and_is_healthy_until_it_stops(container: Container) -> None:
    container.service.wait_until_ready(_READY_SECONDS)
    assert container.service.count() == 0
    assert container.health() == 0
    container.service.stop()
    assert container.service.process.returncode == 0
    assert container.health() != 0


def test_the_image_runs_the_installed_package(container: Container) -> None:
    program = "import backend; print(backend.__file__)"
    found = subprocess.run(
        ["python", "-c", program],
        cwd=container.folder,
        env=container.environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert found.stdout.startswith(container.environment["PYTHONPATH"])
