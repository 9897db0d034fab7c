"""The process of Milvus Lite: started, watched and ended. Blocks: call it in a thread."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from backend.errors import ConfigurationError
from backend.files import lock_file

__all__ = ["LiteProcess"]

_RETRY_SECONDS: Final = 0.5
_OPEN_SECONDS: Final = 3.0
"""For the database of a process that has just been killed to come free: 15 ms were measured."""
_LISTEN_SECONDS: Final = 20.0
_MAX_SOCKET_BYTES: Final = 107
"""What Linux takes as the path of a Unix socket."""

_environment = threading.Lock()
"""Held by whoever changes the environment of this process for a moment."""


class LiteProcess:
    """The one process that has a database open, behind a Unix socket."""

    def __init__(self, database: Path, lock: int, server: Any) -> None:
        self._database = database
        self._lock = lock
        self._server = server

    @classmethod
    def start(cls, database: Path) -> "LiteProcess":
        """Starts the process.

        Raises:
            ConfigurationError: the database cannot be opened, or another process has it open.
        """
        # Its own lock file does not keep a second process out: a refused attempt deletes it.
        try:
            lock = lock_file(database.with_suffix(".lock"))
        except BlockingIOError as owner:
            raise ConfigurationError(
                f"Milvus Lite cannot open {database}: another process has it open ({owner})"
            ) from None
        except OSError as error:
            raise ConfigurationError(
                f"Milvus Lite cannot open {database}: {error.strerror}"
            ) from None
        try:
            return cls(database, lock, _start_server(database))
        except BaseException:
            os.close(lock)
            raise

    @property
    def address(self) -> str:
        """Its socket's; another one after each start."""
        address: str = self._server.uds_path
        return address

    @property
    def pid(self) -> int:
        """The process's id."""
        pid: int = self._server._p.pid
        return pid

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._server._p is not None and self._server._p.poll() is None

    def kill(self) -> None:
        """Ends the process as a crash would; what it has acknowledged is on the disk."""
        if self.is_running:
            self._server._p.kill()
            self._server._p.wait()

    def restart(self) -> None:
        """Starts the process again where it has ended.

        Raises:
            ConfigurationError: the database cannot be opened.
        """
        if not self.is_running:
            self._server.stop()  # removes its socket
            self._server = _start_server(self._database)

    def stop(self) -> None:
        """Ends the process, and lets others open the database."""
        self._server.stop()
        os.close(self._lock)


def _start_server(database: Path) -> Any:
    # Imported late: it is the one dependency that warns (of pkg_resources) on import.
    from milvus_lite.server import Server

    # Ctrl-C in a terminal reaches the whole process group. The engine must outlive the writes
    # that are finished after it, so it starts, and stays, with SIGINT blocked; it ends when its
    # parent lets go of the file's lock, however the parent ends.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        end = time.monotonic() + _OPEN_SECONDS
        while True:
            server = Server(str(database))
            path = server.uds_path.removeprefix("unix:")
            if len(os.fsencode(path)) > _MAX_SOCKET_BYTES:
                raise ConfigurationError(
                    f"Milvus Lite cannot make its socket {path}: the path is longer than"
                    f" {_MAX_SOCKET_BYTES} bytes; set TMPDIR to a folder with a shorter path"
                )
            with _environment_of_its_own(database.parent):
                has_started = server.init() and server.start()
            if has_started and _listens(server, path):
                return server
            server.stop()
            if time.monotonic() > end:
                break
            time.sleep(_RETRY_SECONDS)
    except (OSError, RuntimeError) as error:
        raise ConfigurationError(f"Milvus Lite cannot open {database}: {error}") from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    raise ConfigurationError(
        f"Milvus Lite cannot open {database}: its process ends at once; the file may be damaged"
    )


@contextmanager
def _environment_of_its_own(home: Path) -> Iterator[None]:
    """What a process that is started meanwhile gets as its environment."""
    with _environment:
        before = {name: os.environ.pop(name, None) for name in ("LOG_LEVEL", "HOME")}
        # It would take our LOG_LEVEL for its own and print to our standard output. And it has a
        # folder below its home, which goes when it ends: not that of another process.
        os.environ["HOME"] = str(home)
        try:
            yield
        finally:
            del os.environ["HOME"]
            os.environ.update({name: value for name, value in before.items() if value is not None})


def _listens(server: Any, path: str) -> bool:
    """Whether the process takes connections; on a busy machine that takes it a while."""
    end = time.monotonic() + _LISTEN_SECONDS
    while server._p.poll() is None and time.monotonic() < end:
        with socket.socket(socket.AF_UNIX) as client, suppress(OSError):
            client.connect(path)
            return True
        time.sleep(0.02)
    return False
