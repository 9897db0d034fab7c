"""A server's process that tests start, stop, kill, freeze and start again at the same address."""

import ctypes
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import pytest

__all__ = ["EngineProcess", "free_port", "lasting_port", "missing_engine"]

_STOP_SECONDS = 10
_LOWEST_PORT = 10_000
_PR_SET_PDEATHSIG = 1


def missing_engine(reason: str) -> NoReturn:
    """Skips a test whose engine is not installed; fails it where every engine is required."""
    if os.environ.get("REQUIRE_ENGINES") == "1":
        pytest.fail(f"REQUIRE_ENGINES=1, but {reason}")
    pytest.skip(reason)


def free_port() -> int:
    """A port of loopback on which nothing listens at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def lasting_port() -> int:
    """A free port of loopback that stays free while the server that has it is away.

    No connection that somebody opens gets its number, where the system draws those from higher
    ones, as Linux does unless it is told otherwise.
    """
    others = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text("ascii")
    lowest = int(others.split()[0])
    while lowest > _LOWEST_PORT:
        port = random.SystemRandom().randrange(_LOWEST_PORT, lowest)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    return free_port()


class EngineProcess(ABC):
    """One server with a folder of its own. Its address and its data stay over restarts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> list[str]:
        """The command that starts the server; the process that it starts is the server."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Whether the server answers."""

    @property
    def is_running(self) -> bool:
        """Whether the process has been started and has not ended."""
        return self.process is not None and self.process.poll() is None

    def environment(self) -> Mapping[str, str]:
        """What the server's environment has besides this process's."""
        return {}

    def start(self, *, wait_seconds: float = 60) -> None:
        """Starts the server; returns once it is ready, or at once where `wait_seconds` is 0."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                env=os.environ | self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for the tests, which then stop it
                preexec_fn=_die_with_parent,
            )
        if wait_seconds:
            self.wait_until_ready(wait_seconds)

    def wait_until_ready(self, seconds: float) -> None:
        """Returns when the server answers; fails where it ends before that twice, with its log.

        Once it is started again, as a supervisor would: now and then Milvus ends as it starts.
        """
        end = time.monotonic() + seconds
        has_ended = False
        while time.monotonic() < end:
            if self.is_ready():
                return
            if self.process is not None and self.process.poll() is not None:
                assert not has_ended, f"it ended twice:\n{self.log_tail()}"
                has_ended = True
                self.start(wait_seconds=0)
            time.sleep(0.05)
        raise AssertionError(f"it was not ready in {seconds} s:\n{self.log_tail()}")

    def stop(self) -> None:
        """Ends the server with SIGTERM, and with SIGKILL where that takes too long."""
        if self.process is None or self.process.poll() is not None:
            return
        self.thaw()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Ends the server with SIGKILL, as a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def start_if_ended(self) -> bool:
        """Starts a server again that has ended by itself, as a supervisor would; whether it had."""
        ended = self.process is not None and self.process.poll() is not None
        if ended:
            self.start(wait_seconds=0)
        return ended

    def freeze(self) -> None:
        """Stops the server's clock: it neither answers nor goes away."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        # A thread of it that runs at the moment does so for a little longer.
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def thaw(self) -> None:
        """Lets a frozen server go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def remove(self) -> None:
        """Stops the server and removes its folder."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def log_tail(self) -> str:
        """The end of what the server has logged."""
        return self.log.read_text("utf-8", "replace")[-4000:]


def _die_with_parent() -> None:
    """Runs in the child: the kernel kills it where the tests are killed before they can."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
