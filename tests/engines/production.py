"""The three engines of production together, and the settings that lead a service to them."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

from pymilvus import MilvusClient

from tests.engines.mariadb import MariaDBProcess
from tests.engines.milvus import MilvusProcess
from tests.engines.process import EngineProcess
from tests.engines.triton import TritonProcess

__all__ = ["COMBINATIONS", "ENGINES", "Engines", "running_engines"]

ENGINES: Final = ("triton", "milvus", "mysql")

COMBINATIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "embedded": (),
    "triton": ("triton",),
    "milvus": ("milvus",),
    "mysql": ("mysql",),
    "triton+milvus": ("triton", "milvus"),
    "triton+mysql": ("triton", "mysql"),
    "milvus+mysql": ("milvus", "mysql"),
    "production": ENGINES,
}
"""Which engines are servers; the others are the embedded ones."""


@dataclass(frozen=True)
class Engines:
    """Servers that run, by their names in ENGINES."""

    processes: Mapping[str, EngineProcess]

    def settings(self) -> dict[str, str]:
        """Settings of a service that shares the servers with others, and no data."""
        own = f"t{uuid4().hex[:12]}"
        settings: dict[str, str] = {}
        for process in self.processes.values():
            if isinstance(process, TritonProcess):
                settings |= {"triton_url": process.address}
            elif isinstance(process, MilvusProcess):
                settings |= {"milvus_host": process.host, "milvus_port": str(process.port)}
            elif isinstance(process, MariaDBProcess):
                settings |= {
                    "mysql_host": process.host,
                    "mysql_port": str(process.port),
                    "mysql_user": process.user,
                    "mysql_pwd": process.password,
                    "mysql_db": own,
                }
        return settings

    def forget(self, settings: Mapping[str, str]) -> None:
        """Removes what a service with these settings has left on the servers."""
        for process in self.processes.values():
            if isinstance(process, MilvusProcess):
                with closing(MilvusClient(f"http://{process.host}:{process.port}")) as client:
                    for name in client.list_collections():
                        client.drop_collection(name)
            elif isinstance(process, MariaDBProcess):
                process.execute(f"DROP DATABASE IF EXISTS {settings['mysql_db']}")


@contextmanager
def running_engines(folder: Path, *, milvus_session_seconds: int) -> Iterator[Engines]:
    """Starts servers of one's own and stops them at the end.

    `milvus_session_seconds`: a Milvus that is frozen for longer gives itself up; one that was
    killed takes as long to start again.
    """
    processes: dict[str, EngineProcess] = {
        "triton": TritonProcess(folder / "triton"),
        "milvus": MilvusProcess(
            folder / "milvus", options={"common.session.ttl": str(milvus_session_seconds)}
        ),
        "mysql": MariaDBProcess(folder / "mysql"),
    }
    with ExitStack() as stack:
        for process in processes.values():
            stack.callback(process.remove)
            process.start(wait_seconds=0)
        for process in processes.values():
            process.wait_until_ready(120)
        yield Engines(processes)
