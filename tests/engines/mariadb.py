"""A MariaDB server, from the package `mariadb-server`: what the tests have for a MySQL."""

import asyncio
import atexit
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pymysql  # type: ignore[import-untyped]

from backend.storage.databases import MySQLOptions
from tests.engines.process import EngineProcess, lasting_port, missing_engine

__all__ = ["MariaDBProcess"]

_SMALL = ("--innodb-log-file-size=8M", "--innodb-buffer-pool-size=64M")


class MariaDBProcess(EngineProcess):
    """A MariaDB at `host`:`port`, whose first user is `user` with `password`."""

    host = "127.0.0.1"
    user = "root"
    password = 'pass"word %s: ü'

    def __init__(self, folder: Path, *, options: Sequence[str] = ()) -> None:
        """`options` are further flags of the server."""
        super().__init__(folder)
        self.port = lasting_port()
        self._options = options
        # A Unix socket's path has at most 107 bytes.
        self._sockets = Path(tempfile.mkdtemp(prefix="mariadb-"))

    @property
    def address(self) -> MySQLOptions:
        """How to come to the server as its first user; its database is the settings' default."""
        return MySQLOptions(self.host, self.port, self.user, self.password)

    def command(self) -> list[str]:
        """See `EngineProcess.command`."""
        data = self.folder / "data"
        if not data.exists():
            shutil.copytree(_first_data(), data)
            (self.folder / "init.sql").write_text(self._first_statements(), "utf-8")
        return [
            _program("mariadbd"),
            "--no-defaults",
            f"--datadir={data}",
            f"--tmpdir={self._sockets}",
            f"--socket={self._sockets / 'socket'}",
            f"--pid-file={self.folder / 'pid'}",
            f"--init-file={self.folder / 'init.sql'}",
            "--character-set-server=utf8mb4",
            "--skip-name-resolve",
            f"--bind-address={self.host}",
            f"--port={self.port}",
            *_user(),
            *_SMALL,
            *self._options,
        ]

    def _first_statements(self) -> str:
        return (
            f"ALTER USER root@localhost IDENTIFIED BY '{self.password}';\n"
            "DROP USER IF EXISTS root@'127.0.0.1', root@'::1';\n"
            f"CREATE OR REPLACE USER root@'%' IDENTIFIED BY '{self.password}';\n"
            "GRANT ALL ON *.* TO root@'%' WITH GRANT OPTION;\n"
        )

    def is_ready(self) -> bool:
        """See `EngineProcess.is_ready`."""
        try:
            # The driver would leave the socket of a connection that is refused unclosed.
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(self._sockets / "socket"))
            self.execute("SELECT 1")
        except (OSError, pymysql.err.OperationalError):
            return False
        return True

    def execute(self, statement: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """Runs a statement as the first user, and not through the network."""
        with pymysql.connect(
            unix_socket=str(self._sockets / "socket"),
            user=self.user,
            # The driver takes it for Latin 1; the server hashes the bytes that it gets.
            password=self.password.encode().decode("latin-1"),
            autocommit=True,
            charset="utf8mb4",
            connect_timeout=5,
            read_timeout=30,
        ) as connection:
            cursor = connection.cursor()
            cursor.execute(statement, arguments or None)
            return list(cursor.fetchall())

    def connections(self, database: str | None = None) -> list[int]:
        """The ids of all clients' connections but for this one's; or those to one database."""
        rows = self.execute(
            "SELECT id, db FROM information_schema.processlist"
            " WHERE id <> connection_id() AND command NOT IN ('Daemon')"
        )
        return [number for number, name in rows if database is None or name == database]

    def drop_connections(self, database: str | None = None) -> None:
        """Cuts all clients' connections off, or those to one database."""
        for number in self.connections(database):
            try:
                self.execute(f"KILL CONNECTION {number}")
            except pymysql.err.OperationalError as error:
                if error.args[0] != pymysql.constants.ER.NO_SUCH_THREAD:  # it went by itself
                    raise

    async def wait_for(self, statement: str, *arguments: Any) -> None:
        """Returns when the query returns a row."""
        async with asyncio.timeout(10):
            while not await asyncio.to_thread(self.execute, statement, *arguments):
                # What InnoDB tells of itself is as old as the last look, if that is 0.1 s ago.
                await asyncio.sleep(0.2)

    def remove(self) -> None:
        """See `EngineProcess.remove`."""
        super().remove()
        shutil.rmtree(self._sockets, ignore_errors=True)


@cache
def _first_data() -> Path:
    """The data folder of a server that has never run: 26 MB, which are made in a second."""
    folder = Path(tempfile.mkdtemp(prefix="mariadb-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    subprocess.run(
        [
            _program("mariadb-install-db"),
            "--no-defaults",
            f"--datadir={folder / 'data'}",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            *_user(),
            *_SMALL,
        ],
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return folder / "data"


def _program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/bin")
    if found is None:
        missing_engine(f"{name} is not installed: apt-get install mariadb-server")
    return found


def _user() -> list[str]:
    return ["--user=root"] if os.geteuid() == 0 else []
