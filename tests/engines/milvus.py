"""Milvus' standalone server, from the package `milvus`, which lies apart in `engines/milvus`."""

import base64
import fcntl
import importlib.util
import signal
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import psutil
from pymilvus.grpc_gen import milvus_pb2, milvus_pb2_grpc

from tests.engines import confined
from tests.engines.process import EngineProcess, lasting_port, missing_engine

__all__ = ["MilvusProcess"]

_ENGINE = Path(sys.prefix) / "engines" / "milvus"
_INNER_PORT = 19530


class MilvusProcess(EngineProcess):
    """A Milvus server of a test's own, at `host`:`port`, in a network namespace of its own.

    `process` is the one that forwards the port; it lives as long as the server, its only child.
    """

    host = "127.0.0.1"
    first_token = "root:Milvus"

    def __init__(
        self,
        folder: Path,
        *,
        authorization: bool = False,
        certificate: tuple[Path, Path] | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        """With `authorization` it wants a token; with a certificate and its key it speaks TLS.

        `options` are settings of Milvus, such as "proxy.timeTickInterval".
        """
        super().__init__(folder)
        self.port = lasting_port()
        self._certificate = certificate
        self._options = {
            "common.security.authorizationEnabled": str(authorization).lower(),
            "log.level": "warn",
            "log.stdout": "false",
            "quotaAndLimits.enabled": "false",
            # What waits for a poll of one component by another is several times as fast.
            "queryCoord.checkInterval": "100",
            "queryCoord.distPullInterval": "100",
            "rootCoord.dmlChannelNum": "4",
            # A server that was killed holds its place for so long. It gives itself up where it is
            # frozen for longer.
            "common.session.ttl": "5",
        }
        if certificate is not None:
            self._options |= {
                "common.security.tlsMode": "1",
                "tls.serverPemPath": str(certificate[0]),
                "tls.serverKeyPath": str(certificate[1]),
            }
        self._options |= options or {}

    def command(self) -> list[str]:
        """See `EngineProcess.command`."""
        _check_namespaces()
        self._write_settings()
        forwarder = [sys.executable, confined.__file__, str(self.folder)]
        server = [str(_unpacked() / "milvus"), "run", "standalone"]
        return [*forwarder, str(self.port), str(_INNER_PORT), *server]

    def environment(self) -> Mapping[str, str]:
        """See `EngineProcess.environment`."""
        return {
            "DEPLOY_MODE": "STANDALONE",
            "LD_LIBRARY_PATH": str(_unpacked()),
            "MILVUSCONF": str(self.folder / "configs"),
            "MILVUS_RUN_DIR": str(self.folder / "run"),
        }

    def is_ready(self) -> bool:
        """See `EngineProcess.is_ready`; collections may still be on their way into memory."""
        token = base64.b64encode(self.first_token.encode()).decode()
        address = f"{self.host}:{self.port}"
        if self._certificate is None:
            channel = grpc.insecure_channel(address)
        else:
            trusted = grpc.ssl_channel_credentials(self._certificate[0].read_bytes())
            channel = grpc.secure_channel(address, trusted)
        with channel:
            try:
                answer = milvus_pb2_grpc.MilvusServiceStub(channel).CheckHealth(
                    milvus_pb2.CheckHealthRequest(),
                    timeout=1,
                    metadata=[("authorization", token)],
                )
            except grpc.RpcError:
                return False
            return bool(answer.isHealthy)

    def stop(self) -> None:
        """Kills the server: it would take seconds to end, and its data is not kept."""
        if self.process is not None and self.process.poll() is None:
            self.kill()

    def kill(self) -> None:
        """See `EngineProcess.kill`."""
        assert self.process is not None
        if not self._signal(signal.SIGKILL):
            self.process.kill()
        self.process.wait()

    def start_if_given_up(self) -> None:
        """Starts a server again that has given itself up: on a machine that has stood still for
        longer than its session lasts, it says for ever that it is not ready."""
        if not self.is_ready():
            self.stop()
            self.start()

    def freeze(self) -> None:
        """See `EngineProcess.freeze`; connections are still taken, as the kernel would."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """See `EngineProcess.thaw`."""
        self._signal(signal.SIGCONT)

    def slow(self, seconds: float) -> None:
        """Holds every answer back for so long; 0 ends it."""
        (self.folder / "delay").write_text(str(seconds))

    def cut(self) -> None:
        """Breaks all connections that are open."""
        assert self.process is not None
        self.process.send_signal(signal.SIGUSR1)

    def _signal(self, number: signal.Signals) -> bool:
        assert self.process is not None
        servers = psutil.Process(self.process.pid).children()
        for server in servers:
            server.send_signal(number)
        return bool(servers)

    def _write_settings(self) -> None:
        settings = _package().MilvusServerConfig(data_dir=str(self.folder))
        # Ports keep their defaults: nothing else is in the namespace.
        settings.resolve_storage()
        for name, value in self._options.items():
            settings.set(name, value)
        settings.write_config()


@cache
def _package() -> Any:
    """The package `milvus`: what writes settings, and unpacks the server."""
    spec = importlib.util.spec_from_file_location("milvus", _ENGINE / "milvus" / "__init__.py")
    if spec is None or spec.loader is None or not Path(str(spec.origin)).exists():
        missing_engine(f"the package milvus==2.3.5 is not installed in {_ENGINE}")
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def _unpacked() -> Path:
    """The folder of the server's binaries; the package keeps them compressed."""
    package = _package()
    with (_ENGINE / "unpacking").open("w") as lock:
        # Tests run in several processes, of which one unpacks.
        fcntl.flock(lock, fcntl.LOCK_EX)
        package._initialize_data_files(str(_ENGINE / "unpacked"))
    return _ENGINE / "unpacked" / "bin"


@cache
def _check_namespaces() -> None:
    tried = subprocess.run([sys.executable, confined.__file__], capture_output=True, text=True)
    if tried.returncode:
        reason = tried.stderr.strip().rpartition("\n")[2]
        missing_engine(f"network namespaces cannot be made here: {reason}")
