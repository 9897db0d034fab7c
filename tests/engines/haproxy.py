"""HAProxy, from Debian's package, in front of backends, with the file that users are given."""

import csv
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.engines.backends import Backend
from tests.engines.process import EngineProcess, lasting_port, missing_engine
from tests.service import REPOSITORY

__all__ = ["CONFIGURATION", "HAProxyProcess"]

CONFIGURATION: Final = REPOSITORY / "deploy" / "haproxy.cfg"


class HAProxyProcess(EngineProcess):
    """A balancer at `url`; it knows each backend by its number, from 1."""

    def __init__(self, folder: Path, backends: Sequence[Backend]) -> None:
        """`backends`: as many as `CONFIGURATION` has."""
        super().__init__(folder)
        self.port = lasting_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._backends = backends
        # A Unix socket's path has at most 107 bytes.
        self._sockets = Path(tempfile.mkdtemp(prefix="haproxy-"))

    def command(self) -> list[str]:
        """See `EngineProcess.command`."""
        path = os.environ.get("PATH", os.defpath)
        program = shutil.which("haproxy", path=f"{path}:/usr/sbin")
        if program is None:
            missing_engine("haproxy is not installed: apt-get install haproxy")
        more = self.folder / "more.cfg"
        more.write_text(f"global\n    stats socket {self._sockets / 'socket'}\n", "utf-8")
        return [program, "-db", "-f", str(CONFIGURATION), "-f", str(more)]

    def environment(self) -> Mapping[str, str]:
        """See `EngineProcess.environment`."""
        return {"LISTEN": f"127.0.0.1:{self.port}"} | {
            f"BACKEND_{number}": f"127.0.0.1:{backend.port}"
            for number, backend in enumerate(self._backends, 1)
        }

    def is_ready(self) -> bool:
        """See `EngineProcess.is_ready`: whether every backend gets requests."""
        return all(state == "UP" for state in self.states().values())

    def states(self) -> dict[str, str]:
        """What it thinks of each backend: UP, DOWN, or UP 1/3 and the like in between."""
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(self._sockets / "socket"))
                connection.sendall(b"show stat\n")
                with connection.makefile(encoding="ascii") as answer:
                    rows = list(csv.DictReader(answer))
        except OSError:
            return {name: "unknown" for name in self.environment() if name != "LISTEN"}
        return {
            row["svname"]: row["status"]
            for row in rows
            if row["# pxname"] == "backends" and row["svname"] != "BACKEND"
        }

    def wait_until_all_get_requests(self, seconds: float) -> None:
        """Returns when it has noticed that all backends are ready."""
        end = time.monotonic() + seconds
        while not self.is_ready():
            assert time.monotonic() < end, f"{self.states()}:\n{self.log_tail()}"
            time.sleep(0.05)

    def wait_until_noticed(self, number: int, seconds: float) -> None:
        """Returns when it has noticed that a backend is not there."""
        end = time.monotonic() + seconds
        while self.states()[f"backend-{number}"] != "DOWN":
            assert time.monotonic() < end, f"{self.states()}:\n{self.log_tail()}"
            time.sleep(0.05)

    def remove(self) -> None:
        """See `EngineProcess.remove`."""
        super().remove()
        shutil.rmtree(self._sockets, ignore_errors=True)
