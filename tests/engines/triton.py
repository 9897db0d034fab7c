"""Triton as a process, with a stand-in for its onnxruntime backend.

The wheel `nvidia-pytriton` carries the server and its Python backend. What is in `onnxruntime/`,
written for that, goes by the name of the backend that the wheel lacks, so that the model repository
is served as it is for production.
"""

import contextlib
import ctypes
import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import grpc
import psutil
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from tests.engines.process import EngineProcess, lasting_port, missing_engine
from tests.service import SMALL_PAIR

__all__ = ["REPOSITORY", "TritonProcess"]

REPOSITORY: Final = Path(__file__).parents[2] / "model_repository"
_PACKAGE: Final = Path(sys.prefix) / "engines" / "triton"
_HOME: Final = _PACKAGE / "pytriton" / "tritonserver"
_PYTHON: Final = f"{sys.version_info.major}.{sys.version_info.minor}"
_STUB: Final = "triton_python_backend_stub"
_STAND_IN: Final = Path(__file__).parent / "onnxruntime"
_SHARED_MEMORY: Final = Path("/dev/shm")


class TritonProcess(EngineProcess):
    """A Triton whose gRPC listens at `address`, with a process of its own for each model."""

    def __init__(
        self,
        folder: Path,
        *,
        repository: Path = REPOSITORY,
        models: Sequence[str] = tuple(SMALL_PAIR.values()),
        control_mode: str = "explicit",
        certificate: tuple[Path, Path] | None = None,
        on_gpu: bool = False,
    ) -> None:
        """A server that is not started yet.

        Args:
            folder: its own.
            repository: of the models.
            models: those that are loaded at the start, where `control_mode` is explicit.
            control_mode: explicit, poll, or none, with which all models are loaded.
            certificate: PEM files of a certificate and its key; it then speaks TLS, and the
                certificate must be its own authority's.
            on_gpu: whether models are loaded as their config.pbtxt says, which is for a GPU, with
                an ONNX Runtime that has CUDA; otherwise as in configs/cpu.pbtxt.
        """
        _check_installation()
        super().__init__(folder)
        self.port = lasting_port()
        self.address = f"127.0.0.1:{self.port}"
        self.repository = repository
        self._models = models
        self._control_mode = control_mode
        self._certificate = certificate
        self._on_gpu = on_gpu

    def command(self) -> list[str]:
        """See `EngineProcess.command`."""
        self._put_backends_together()
        command = [
            str(_HOME / "bin" / "tritonserver"),
            f"--backend-directory={self.folder / 'backends'}",
            f"--model-repository={self.repository}",
            *(() if self._on_gpu else ("--model-config-name=cpu",)),
            f"--model-control-mode={self._control_mode}",
            "--disable-auto-complete-config",
            "--grpc-address=127.0.0.1",
            f"--grpc-port={self.port}",
            "--allow-http=false",
            "--allow-metrics=false",
            "--exit-timeout-secs=5",
        ]
        if self._control_mode == "explicit":
            command += [f"--load-model={name}" for name in self._models]
        if self._certificate is not None:
            certificate, key = self._certificate
            command += [
                "--grpc-use-ssl=true",
                f"--grpc-server-cert={certificate}",
                f"--grpc-server-key={key}",
            ]
        return command

    def environment(self) -> Mapping[str, str]:
        """See `EngineProcess.environment`."""
        libraries = [str(_PACKAGE / "nvidia_pytriton.libs"), sysconfig.get_config_var("LIBDIR")]
        if inherited := os.environ.get("LD_LIBRARY_PATH"):
            libraries.append(inherited)
        return {
            "LD_LIBRARY_PATH": os.pathsep.join(libraries),
            # The models' processes take their packages from the Python that is found first.
            "PATH": os.pathsep.join((str(Path(sys.prefix) / "bin"), os.environ["PATH"])),
        }

    def is_ready(self) -> bool:
        """See `EngineProcess.is_ready`."""
        with self._channel() as channel:
            try:
                calls = GRPCInferenceServiceStub(channel)
                return bool(calls.ServerReady(pb.ServerReadyRequest(), timeout=1).ready)
            except grpc.RpcError:
                return False

    def version(self) -> str:
        """The server's."""
        with self._channel() as channel:
            calls = GRPCInferenceServiceStub(channel)
            return str(calls.ServerMetadata(pb.ServerMetadataRequest(), timeout=10).version)

    def executions(self, model: str) -> tuple[int, int]:
        """How many rows a model has answered since it was loaded, and in how many batches."""
        with self._channel() as channel:
            calls = GRPCInferenceServiceStub(channel)
            answer = calls.ModelStatistics(pb.ModelStatisticsRequest(name=model), timeout=10)
        [statistics] = answer.model_stats
        return statistics.inference_count, statistics.execution_count

    def unload(self, model: str) -> None:
        """Has the server unload a model, as an operator would."""
        with self._channel() as channel:
            calls = GRPCInferenceServiceStub(channel)
            calls.RepositoryModelUnload(
                pb.RepositoryModelUnloadRequest(model_name=model), timeout=10
            )

    def kill_model_process(self, model: str = SMALL_PAIR["DETECTOR_MODEL"]) -> None:
        """Ends the process that runs a model with SIGKILL; the server goes on, and says so."""
        for process in self._model_processes():
            with contextlib.suppress(psutil.Error):
                if f"{model}_0_0" in process.cmdline():
                    process.kill()

    def stop(self) -> None:
        """See `EngineProcess.stop`."""
        left = self._shared_memory()
        super().stop()
        _remove(left)

    def kill(self) -> None:
        """See `EngineProcess.kill`. The models' processes end as well."""
        assert self.process is not None
        if self.process.poll() is None:
            self.freeze()  # it must not load a model between the look at what it has and its end
        left, models = self._shared_memory(), self._model_processes()
        super().kill()
        for process in models:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(models, timeout=5)
        _remove(left)

    def _model_processes(self) -> list[psutil.Process]:
        if self.process is None:
            return []
        try:
            return psutil.Process(self.process.pid).children()
        except psutil.NoSuchProcess:
            return []

    def _shared_memory(self) -> set[Path]:
        """What the server has of it: nobody else removes it when the server is killed."""
        if self.process is None or self.process.poll() is not None:
            return set()
        with contextlib.suppress(psutil.Error):
            maps = psutil.Process(self.process.pid).memory_maps()
            paths = {Path(each.path) for each in maps}
            return {path for path in paths if path.parent == _SHARED_MEMORY}
        return set()

    def _channel(self) -> grpc.Channel:
        if self._certificate is None:
            return grpc.insecure_channel(self.address)
        credentials = grpc.ssl_channel_credentials(self._certificate[0].read_bytes())
        return grpc.secure_channel(self.address, credentials)

    def _put_backends_together(self) -> None:
        """Makes the folder of backends. Triton takes no links that lead out of it."""
        python, onnx = (self.folder / "backends" / name for name in ("python", "onnxruntime"))
        if onnx.exists():
            return
        python.mkdir(parents=True)
        for file in (_HOME / "backends" / "python").iterdir():
            if file.is_file():
                shutil.copy(file, python)
        shutil.copy(_HOME / "python_backend_stubs" / _PYTHON / _STUB, python)
        onnx.mkdir()
        for file in _STAND_IN.glob("*.py"):
            shutil.copy(file, onnx)


def _check_installation() -> None:
    if not (_HOME / "bin" / "tritonserver").is_file():
        missing_engine(
            f"Triton is not installed: pip install --no-deps --target {_PACKAGE}"
            " nvidia-pytriton==0.7.0"
        )
    if not (_HOME / "python_backend_stubs" / _PYTHON / _STUB).is_file():
        missing_engine(f"Triton's Python backend has no program for Python {_PYTHON}")
    library = f"libpython{_PYTHON}.so.1.0"
    folder = sysconfig.get_config_var("LIBDIR")
    for path in (os.path.join(folder, library), library):
        with contextlib.suppress(OSError):
            ctypes.CDLL(path)
            return
    missing_engine(f"Triton's Python backend needs {library} (Debian's package libpython{_PYTHON})")


def _remove(files: set[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)
