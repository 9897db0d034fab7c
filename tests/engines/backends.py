"""Several backends on the same engines: each a process that may be killed and started again."""

import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import requests

from backend.settings import Settings
from tests.engines.process import EngineProcess, lasting_port
from tests.service import REPOSITORY, SMALL_PAIR, Service, as_flags

__all__ = ["Backend", "running_backends"]

_READY_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 10.0
"""That a stop may take, besides its drain."""


class Backend(EngineProcess):
    """One backend at `url`, which stays over restarts, with a DATA_DIR of its own."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        """`settings` lead to its engines; `folder` is its own."""
        super().__init__(folder)
        self.port = lasting_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.data_dir = folder / "data"
        self.settings = {"port": str(self.port), "data_dir": str(self.data_dir), **settings}

    def command(self) -> list[str]:
        """See `EngineProcess.command`."""
        return [sys.executable, "-W", "ignore", "-m", "backend", "serve", *as_flags(self.settings)]

    def environment(self) -> Mapping[str, str]:
        """See `EngineProcess.environment`: no setting but those that it is given."""
        unset = {name.upper(): "" for name in Settings.model_fields}
        return unset | SMALL_PAIR | {"PYTHONPATH": str(REPOSITORY)}

    def is_ready(self) -> bool:
        """See `EngineProcess.is_ready`: whether all of its engines work."""
        try:
            return requests.get(f"{self.url}/readyz", timeout=10).status_code == 200
        except requests.RequestException:
            return False

    def wait_until_ready(self, seconds: float = _READY_SECONDS) -> None:
        """See `EngineProcess.wait_until_ready`; it is not started again where it ends."""
        end = time.monotonic() + seconds
        while not self.is_ready():
            assert self.is_running, f"the backend has ended:\n{self.log_tail()}"
            assert time.monotonic() < end, f"it is not ready:\n{self.log_tail()}"
            time.sleep(0.05)

    @property
    def service(self) -> Service:
        """What clients do with it."""
        assert self.process is not None
        return Service(self.process, self.log, self.url)

    def terminate(self) -> None:
        """Sends SIGTERM, as an update does, and waits for nothing."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)

    def wait_until_stopped(self) -> None:
        """Returns when it has drained, and ended by itself.

        Raises:
            AssertionError: it has not ended well.
        """
        assert self.process is not None
        drain = float(self.settings.get("drain_seconds", "0"))
        code = self.process.wait(drain + _STOP_SECONDS)
        assert code == 0, f"it has ended with {code}:\n{self.log_tail()}"

    def stop(self) -> None:
        """See `EngineProcess.stop`: at once, by SIGINT."""
        if self.is_running:
            assert self.process is not None
            self.process.send_signal(signal.SIGINT)
            self.process.wait(_STOP_SECONDS)


@contextmanager
def running_backends(
    folder: Path, settings: Mapping[str, str], *, count: int = 3
) -> Iterator[list[Backend]]:
    """Starts backends with the same settings, of `Engines.settings` and others, together.

    Uploads lie in one folder, as on a volume that all of them have. At the end they are stopped;
    what they have left on the engines is whose engines these are to forget.
    """
    shared = {"upload_path": str(folder / "uploads"), **settings}
    backends = [Backend(folder / f"backend-{number + 1}", shared) for number in range(count)]
    with ExitStack() as stack:
        for backend in backends:
            stack.callback(backend.remove)
            backend.start(wait_seconds=0)
        for backend in backends:
            backend.wait_until_ready()
        yield backends
