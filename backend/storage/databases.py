"""SQLite and MySQL as the catalog sees them: transactions that are rerun, bounded and explained.

A transaction is a function that is given a connection. It may run several times, so it must be
safe to repeat even where the first time has been done and only the answer was lost.

- SQLite: WAL, so that readers and the one writer do not wait for each other; synchronous=FULL, so
  that what was acknowledged survives a power cut; BEGIN IMMEDIATE for every transaction that
  writes, so that what it read cannot have changed by the time it writes.
- MySQL: READ COMMITTED, so that a transaction sees what others have finished and locks only rows
  that it names; one that reads before it writes must read FOR UPDATE. Deadlocks, lock waits that
  take too long, keys that another writer was first with, and lost connections rerun it.

Every call ends within `time_left` of its timeout, whatever the engine does.
"""

import asyncio
import contextlib
import hashlib
import sqlite3
import ssl
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, TypeAlias, TypeVar

import aiomysql  # type: ignore[import-untyped]
import pymysql  # type: ignore[import-untyped]
import sqlalchemy as sa
import structlog
from pymysql.constants import CLIENT, CR, ER  # type: ignore[import-untyped]
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool
from tenacity import (
    AsyncRetrying,
    retry_if_exception,
    stop_after_attempt,
    stop_never,
    wait_random_exponential,
)
from tenacity.stop import stop_base

from backend.deadlines import time_left
from backend.errors import ConfigurationError, EngineUnavailable, ServiceError

__all__ = ["Database", "EnsureHeld", "MySQLDatabase", "MySQLOptions", "SQLiteDatabase"]

_T = TypeVar("_T")
Transaction: TypeAlias = Callable[[AsyncConnection], Awaitable[_T]]
EnsureHeld: TypeAlias = Callable[[], Awaitable[None]]
"""Raises EngineUnavailable where a lock is not held any more."""

_ATTEMPTS: Final = 8
"""Of a transaction that others get in the way of."""
_LOCK_SECONDS: Final = 1
"""That the server waits for a lock by itself: it does not know when we have given up."""
_RELEASE_SECONDS: Final = 1.0
_SILENCE_SECONDS: Final = 30
"""After which the server ends a connection that asks nothing, and frees the locks that it holds:
its process may be frozen, or its machine gone."""
_ALIVE_SECONDS: Final = 8
"""Between two questions of a connection that holds a lock."""
_RECYCLE_SECONDS: Final = 20
"""Age at which a connection is replaced, so that the server does not end one in the pool."""
_BUSY_MILLISECONDS: Final = 500
"""That SQLite itself waits for a writer of another process: a wait that cannot be cancelled."""
_SQLITE_NOT_NOW: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_PROTOCOL,
    }
)
_SQLITE_AFTER_OPENING: Final = frozenset({sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN})
"""Wrong settings where a catalog is opened, a trouble of the disk where it has been open."""

_IN_THE_WAY: Final = frozenset({ER.LOCK_DEADLOCK, ER.LOCK_WAIT_TIMEOUT, ER.DUP_ENTRY})
_LOST: Final = frozenset(
    {
        CR.CR_SERVER_GONE_ERROR,
        CR.CR_SERVER_LOST,
        CR.CR_SERVER_LOST_EXTENDED,
        CR.CR_COMMANDS_OUT_OF_SYNC,
        ER.SERVER_SHUTDOWN,
        ER.NORMAL_SHUTDOWN,
        ER.FORCING_CLOSE,
        1927,  # MariaDB's "connection was killed"
        4031,  # MySQL's "disconnected because of inactivity"
    }
)
_AWAY: Final = _LOST | {CR.CR_CONN_HOST_ERROR, CR.CR_CONNECTION_ERROR}
_REFUSED: Final = frozenset(
    {
        ER.DBACCESS_DENIED_ERROR,
        ER.ACCESS_DENIED_ERROR,
        1698,  # MariaDB's "access denied" to a user that logs in by another way
        ER.HOST_NOT_PRIVILEGED,
        ER.TABLEACCESS_DENIED_ERROR,
        ER.COLUMNACCESS_DENIED_ERROR,
        ER.SPECIFIC_ACCESS_DENIED_ERROR,
        ER.BAD_DB_ERROR,
        ER.WRONG_DB_NAME,
        ER.TOO_LONG_IDENT,
        ER.UNKNOWN_CHARACTER_SET,
        1231,  # a wrong value of a session's variable
        ER.NOT_SUPPORTED_AUTH_MODE,
        1524,  # an authentication plugin that the server does not have
        CR.CR_AUTH_PLUGIN_CANNOT_LOAD,
        CR.CR_SSL_CONNECTION_ERROR,
        1820,  # the password must be changed first
        1862,  # the password has expired
        3118,  # the account is locked
    }
)
_OURS: Final = frozenset(
    {
        ER.BAD_FIELD_ERROR,
        ER.NET_PACKET_TOO_LARGE,
        ER.NO_DEFAULT_FOR_FIELD,
        ER.TRUNCATED_WRONG_VALUE,
        ER.TRUNCATED_WRONG_VALUE_FOR_FIELD,
        ER.CANT_AGGREGATE_2COLLATIONS,
    }
)
"""Operational errors that trying again would not mend: the statement is wrong."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class MySQLOptions:
    """Where MySQL is and who we are there. `ca` names who signs its certificate (a PEM file)."""

    host: str
    port: int = 3306
    user: str = "root"
    password: str = field(default="", repr=False)
    database: str = "mysql"
    pool_size: int = 10
    tls: bool = False
    ca: Path | None = None


class Database(ABC):
    """An opened database. `read` and `write` run transactions on it."""

    name: ClassVar[str]
    setting: ClassVar[str]
    """The setting that says where it is, for messages."""
    _stop: ClassVar[stop_base]
    """When to give up on a transaction that others get in the way of."""

    def __init__(self, engine: AsyncEngine, timeout: float, where: str) -> None:
        self.engine = engine
        self.timeout = timeout
        self.where = where
        self._writer = engine.execution_options(writes=True)

    async def close(self) -> None:
        """Closes every connection."""
        await self.engine.dispose()
        await asyncio.sleep(0)  # transports close in the event loop's next round

    async def read(self, transaction: Transaction[_T]) -> _T:
        """What the transaction returns; it must not write.

        Raises:
            EngineUnavailable: the database does not answer in time, or cannot at the moment.
        """
        async with self.bounded():
            return await self._run(self.engine, transaction)
        raise AssertionError("unreachable")

    async def write(self, transaction: Transaction[_T]) -> _T:
        """What the transaction returns, once all that it has written is kept.

        Raises:
            EngineUnavailable: the database does not answer in time, or cannot at the moment. The
                transaction may have been done or not.
        """
        async with self.bounded():
            return await self._run(self._writer, transaction)
        raise AssertionError("unreachable")

    async def prepare(self, transaction: Transaction[_T]) -> _T:
        """What a transaction that writes returns, while the database is being opened.

        Raises:
            ConfigurationError: it can never work with these settings.
            EngineUnavailable: the database does not answer in time, or cannot at the moment.
        """
        async with self.opening(), self.migrating():
            return await self._run(self._writer, transaction)
        raise AssertionError("unreachable")

    @abstractmethod
    def exclusive(self) -> contextlib.AbstractAsyncContextManager[EnsureHeld]:
        """Keeps writers of other processes out; see `Catalog.exclusive`."""

    @abstractmethod
    def holding(self, name: str) -> contextlib.AbstractAsyncContextManager[EnsureHeld | None]:
        """Tells other processes that this one is at work on something; see `Catalog.holding`."""

    @abstractmethod
    def migrating(self) -> contextlib.AbstractAsyncContextManager[object]:
        """Lets one process at a time look at the tables and change them."""

    @abstractmethod
    def may_rerun(self, error: BaseException) -> bool:
        """Whether a transaction that has failed so may succeed now."""

    @abstractmethod
    def is_not_now(self, error: sa.exc.DBAPIError) -> bool:
        """Whether the trouble is the engine's and may pass, not the statement's."""

    @abstractmethod
    def refusal(self, error: sa.exc.DBAPIError) -> str | None:
        """What is wrong with the settings, where a catalog that fails so never opens."""

    @contextlib.asynccontextmanager
    async def bounded(self) -> AsyncIterator[None]:
        """Ends what is inside in time, and turns the engine's errors into ours."""
        try:
            async with asyncio.timeout(time_left(self.timeout)):
                yield
        except TimeoutError as error:
            raise self._unavailable("does not answer in time", error) from error
        except sa.exc.DBAPIError as error:
            if self.is_not_now(error):
                away = error.connection_invalidated or _mysql_code(error) in _AWAY
                what = "does not answer" if away else "cannot at the moment"
                raise self._unavailable(what, error) from error
            _log.error("catalog.refused", engine=self.name, error=_reason(error))
            raise ServiceError(
                f"{self.name} refused a statement of the catalog; the server's log has the cause"
            ) from error

    @contextlib.asynccontextmanager
    async def opening(self) -> AsyncIterator[None]:
        """As `bounded`; what can never work is an error of the settings; a failure closes."""
        try:
            async with self.bounded():
                try:
                    yield
                except sa.exc.DBAPIError as error:
                    if (reason := self.refusal(error)) is None:
                        raise
                    raise ConfigurationError(reason) from error
        except BaseException:
            await self.close()
            raise

    def _unavailable(self, what: str, error: BaseException) -> EngineUnavailable:
        """The error for the caller; its cause goes to the log."""
        _log.warning("catalog.failed", engine=self.name, error=_reason(error))
        return EngineUnavailable(
            self.name, f"{self.name} ({self.setting}) {what}: try again in a few seconds"
        )

    async def _run(self, engine: AsyncEngine, transaction: Transaction[_T]) -> _T:
        retrying = AsyncRetrying(
            retry=retry_if_exception(self.may_rerun),
            stop=self._stop,
            wait=wait_random_exponential(multiplier=0.02, max=1),
            reraise=True,
        )
        return await retrying(attempt, engine, transaction)


class SQLiteDatabase(Database):
    """A file. One writer at a time: those of this process queue up here, not in SQLite."""

    name = "SQLite"
    setting = "DATA_DIR"
    _stop = stop_never  # before the time is up

    def __init__(self, engine: AsyncEngine, timeout: float, where: str) -> None:
        super().__init__(engine, timeout, where)
        self._turn = asyncio.Lock()

    @classmethod
    async def open(cls, path: Path, timeout: float) -> "SQLiteDatabase":
        """Opens the file, or makes it.

        Raises:
            ConfigurationError: it is no database, or cannot be opened.
            EngineUnavailable: the disk is full, or another process does not let go of it.
        """
        engine = create_async_engine(
            sa.URL.create("sqlite+aiosqlite", database=str(path)), pool_timeout=None
        )
        sa.event.listen(engine.sync_engine, "connect", _configure)
        sa.event.listen(engine.sync_engine, "begin", _begin)
        sa.event.listen(engine.sync_engine, "invalidate", _let_go)
        database = cls(engine, timeout, str(path))
        async with database.opening():
            try:
                await asyncio.to_thread(_probe, path)
            except sqlite3.Error as error:
                raise sa.exc.DBAPIError("PRAGMA schema_version", None, error) from error
        return database

    async def write(self, transaction: Transaction[_T]) -> _T:
        """See `Database.write`."""
        async with self.bounded(), self._turn:
            return await super().write(transaction)
        raise AssertionError("unreachable")

    @contextlib.asynccontextmanager
    async def exclusive(self) -> AsyncIterator[EnsureHeld]:
        """Nothing: the lock on the data folder keeps other processes out."""

        async def ensure_held() -> None:
            pass

        yield ensure_held

    def holding(self, name: str) -> contextlib.AbstractAsyncContextManager[EnsureHeld | None]:
        """Nothing: there is no other process."""
        return self.exclusive()

    @contextlib.asynccontextmanager
    async def migrating(self) -> AsyncIterator[None]:
        """Nothing: tables change within the one transaction that may write."""
        yield

    def may_rerun(self, error: BaseException) -> bool:
        """See `Database.may_rerun`."""
        busy = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
        return isinstance(error, sa.exc.DBAPIError) and _sqlite_code(error) in busy

    def is_not_now(self, error: sa.exc.DBAPIError) -> bool:
        """See `Database.is_not_now`."""
        return _sqlite_code(error) in _SQLITE_NOT_NOW | _SQLITE_AFTER_OPENING

    def refusal(self, error: sa.exc.DBAPIError) -> str | None:
        """See `Database.refusal`."""
        if _sqlite_code(error) in _SQLITE_NOT_NOW:
            return None
        return f"{self.where} cannot be opened: {error.orig}"


class MySQLDatabase(Database):
    """A database of a MySQL or MariaDB server, behind a pool of connections."""

    name = "MySQL"
    setting = "MYSQL_HOST"
    _stop = stop_after_attempt(_ATTEMPTS)

    def __init__(
        self, engine: AsyncEngine, apart: AsyncEngine, options: MySQLOptions, timeout: float
    ) -> None:
        """`apart`: the same server; its connections are none of the pool's."""
        super().__init__(engine, timeout, f"MYSQL_DB={options.database}")
        self._apart = apart
        self._options = options

    @classmethod
    async def open(cls, options: MySQLOptions, timeout: float) -> "MySQLDatabase":
        """Connects to the server, and makes the database where there is none.

        Raises:
            ConfigurationError: the server refuses us, or is too old.
            EngineUnavailable: it does not answer.
        """
        tls = await asyncio.to_thread(_tls, options) if options.tls else None
        engine = _engine(
            options,
            tls,
            timeout,
            database=options.database,
            pool_size=options.pool_size,
            max_overflow=0,
            pool_timeout=None,  # the deadline of the whole call is the limit
            pool_recycle=_RECYCLE_SECONDS,
            pool_pre_ping=True,
            pool_use_lifo=True,
        )
        apart = _engine(options, tls, timeout, database=options.database, poolclass=NullPool)
        database = cls(engine, apart, options, timeout)
        async with database.opening():
            try:
                await attempt(engine, _check_version)
            except sa.exc.DBAPIError as error:
                if _mysql_code(error) != ER.BAD_DB_ERROR:
                    raise
                await database._create(_engine(options, tls, timeout, poolclass=NullPool))
                await attempt(engine, _check_version)
        return database

    async def _create(self, server: AsyncEngine) -> None:
        name = server.dialect.identifier_preparer.quote_identifier(self._options.database)

        async def create(connection: AsyncConnection) -> None:
            await connection.exec_driver_sql(
                f"CREATE DATABASE IF NOT EXISTS {name} CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"
            )

        await attempt(server, create)
        _log.info("catalog.database_made", database=self._options.database)

    def may_rerun(self, error: BaseException) -> bool:
        """See `Database.may_rerun`."""
        return isinstance(error, sa.exc.DBAPIError) and (
            error.connection_invalidated or _mysql_code(error) in _IN_THE_WAY | _LOST
        )

    def is_not_now(self, error: sa.exc.DBAPIError) -> bool:
        """See `Database.is_not_now`."""
        if error.connection_invalidated:
            return True
        # Whatever the server has to say of itself: too many connections, a full disk, a read-only
        # replica, a shutdown. The list differs from server to server; that of our faults is short.
        troubles = (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.InternalError)
        return isinstance(error, troubles) and _mysql_code(error) not in _OURS

    def refusal(self, error: sa.exc.DBAPIError) -> str | None:
        """See `Database.refusal`."""
        cause = error.orig.__cause__ if error.orig is not None else None
        if isinstance(cause, ssl.SSLError):
            reason, advice = str(cause), "Correct MYSQL_TLS and MYSQL_CA"
        elif _mysql_code(error) == CR.CR_SSL_CONNECTION_ERROR:
            reason, advice = _reason(error), "Correct MYSQL_TLS"
        elif _mysql_code(error) in _REFUSED or not self.is_not_now(error):
            reason = _reason(error)
            advice = "Correct these settings and MYSQL_PWD, or what the user may do"
        else:
            return None
        options = self._options
        return (
            f"MYSQL_HOST={options.host}, MYSQL_PORT={options.port}, MYSQL_USER={options.user},"
            f" MYSQL_DB={options.database}: {reason}. {advice}"
        )

    # Locks

    def exclusive(self) -> contextlib.AbstractAsyncContextManager[EnsureHeld]:
        """See `Database.exclusive`."""
        return self._locked("writing")

    def migrating(self) -> contextlib.AbstractAsyncContextManager[object]:
        """See `Database.migrating`."""
        return self._locked("migrating")

    @contextlib.asynccontextmanager
    async def holding(self, name: str) -> AsyncIterator[EnsureHeld | None]:
        """See `Database.holding`. It may take long, so its connection is none of the pool's."""
        lock = self._lock_name(name)
        async with self.bounded():
            connection = await _try_lock(self._apart, lock, 0)
        if connection is None:
            yield None
            return
        async with self._kept(connection, lock) as ensure_held:
            yield ensure_held

    def _lock_name(self, purpose: str) -> str:
        # Locks are the whole server's, and their names have at most 64 characters.
        database = hashlib.sha256(self._options.database.encode()).hexdigest()[:32]
        return f"image-search {database} {purpose}"

    @contextlib.asynccontextmanager
    async def _locked(self, purpose: str) -> AsyncIterator[EnsureHeld]:
        name = self._lock_name(purpose)
        async with self._kept(await self._lock(name), name) as ensure_held:
            yield ensure_held

    @contextlib.asynccontextmanager
    async def _kept(self, connection: AsyncConnection, name: str) -> AsyncIterator[EnsureHeld]:
        """Keeps a lock that the connection holds for as long as this process runs."""
        asking = asyncio.Lock()  # a connection takes one question at a time

        async def ensure_held() -> None:
            async with asking:
                await self._ensure_held(connection, name)

        async def say_alive() -> None:
            while True:
                await asyncio.sleep(_ALIVE_SECONDS)
                await ensure_held()

        alive = asyncio.create_task(say_alive(), name=f"hold-{name.rsplit(maxsplit=1)[-1]}")
        try:
            yield ensure_held
        finally:
            alive.cancel()
            try:
                await asyncio.gather(alive, return_exceptions=True)
            finally:
                await _unlock(connection, name)

    async def _ensure_held(self, connection: AsyncConnection, name: str) -> None:
        # A connection that was lost is not made again within the transaction that is open on it.
        try:
            async with self.bounded():
                query = sa.select(sa.func.is_used_lock(name) == sa.func.connection_id())
                if (await connection.execute(query)).scalar_one():
                    return
        except sa.exc.PendingRollbackError:
            pass  # an earlier look has found it lost
        raise EngineUnavailable(
            self.name,
            f"{self.name} ({self.setting}) was away meanwhile, and another process may have"
            " written: try again in a few seconds",
        )

    async def _lock(self, name: str) -> AsyncConnection:
        """A connection that holds the lock."""
        taken = False
        try:
            async with self.bounded():
                while (connection := await _try_lock(self.engine, name, _LOCK_SECONDS)) is None:
                    taken = True
                return connection
        except EngineUnavailable as error:
            if taken and isinstance(error.__cause__, TimeoutError):
                raise EngineUnavailable(
                    self.name,
                    f"another process works on the catalog ({self.setting}): try again when it"
                    " is done",
                ) from None
            raise
        raise AssertionError("unreachable")


async def _try_lock(engine: AsyncEngine, name: str, seconds: int) -> AsyncConnection | None:
    connection = await engine.connect()
    try:
        query = sa.select(sa.func.get_lock(name, seconds))
        got = (await connection.execute(query)).scalar_one() == 1
    except BaseException:
        # It may have been taken: it goes with the connection.
        await connection.invalidate()
        await connection.close()
        raise
    if got:
        return connection
    await connection.close()
    return None


async def _unlock(connection: AsyncConnection, name: str) -> None:
    released = False
    try:
        with contextlib.suppress(TimeoutError, sa.exc.SQLAlchemyError):
            async with asyncio.timeout(_RELEASE_SECONDS):
                query = sa.select(sa.func.release_lock(name))
                released = (await connection.execute(query)).scalar_one() == 1
    finally:
        if not released:
            await connection.invalidate()
        try:
            async with asyncio.timeout(_RELEASE_SECONDS):
                await connection.close()
        except (TimeoutError, sa.exc.SQLAlchemyError):  # frozen or cut off in between
            if not connection.closed:  # else the close that was broken off has discarded it
                await connection.invalidate()


async def attempt(engine: AsyncEngine, transaction: Transaction[_T]) -> _T:
    """Runs the transaction once, on a connection of its own."""
    # Not `async with`: that would go on with closing behind the back of a cancellation, and wait
    # for a frozen server there.
    connection = await engine.connect()
    try:
        result = await transaction(connection)
        if engine.get_execution_options().get("writes", False):
            await connection.commit()
        return result
    except BaseException as error:
        if not isinstance(error, Exception):
            # A rollback would wait for the very server that did not answer in time.
            await connection.invalidate()
        raise
    finally:
        await connection.close()


class _Connection(aiomysql.Connection):  # type: ignore[misc]
    """aiomysql's, but one that was to be encrypted never goes on in the clear."""

    async def _request_authentication(self) -> None:
        if self._ssl_context and not self.server_capabilities & CLIENT.SSL:
            raise pymysql.err.OperationalError(
                CR.CR_SSL_CONNECTION_ERROR, "the server does not offer TLS"
            )
        await super()._request_authentication()

    async def ensure_closed(self) -> None:
        """Closes it, also where the server has ended it, and nobody takes the goodbye."""
        try:
            with contextlib.suppress(OSError):
                await super().ensure_closed()
        finally:
            self.close()


async def connect_mysql(**arguments: Any) -> aiomysql.Connection:
    """A connection of the driver's, for SQLAlchemy."""
    connection = _Connection(**arguments)
    try:
        await connection._connect()
    except BaseException:
        connection.close()
        raise
    return connection


def _engine(
    options: MySQLOptions, tls: ssl.SSLContext | None, timeout: float, **arguments: Any
) -> AsyncEngine:
    database = arguments.pop("database", None)
    url = sa.URL.create(
        "mysql+aiomysql",
        username=options.user,
        # The driver takes it for Latin 1; the server hashes the bytes that it gets.
        password=options.password.encode().decode("latin-1"),
        host=options.host,
        port=options.port,
        database=database,
        query={"charset": "utf8mb4"},
    )
    # A third, so that there is time to run a transaction again after it has waited in vain.
    lock_seconds = max(1, int(timeout / 3))
    return create_async_engine(
        url,
        isolation_level="READ COMMITTED",
        connect_args={
            "async_creator_fn": connect_mysql,
            "ssl": tls,
            # TRADITIONAL: what does not fit is an error, never cut off or made up.
            "init_command": "SET SESSION sql_mode = 'TRADITIONAL',"
            f" innodb_lock_wait_timeout = {lock_seconds}, lock_wait_timeout = {lock_seconds},"
            f" wait_timeout = {_SILENCE_SECONDS}",
        },
        **arguments,
    )


def _tls(options: MySQLOptions) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=options.ca)
    except OSError as error:
        raise ConfigurationError(f"MYSQL_CA={options.ca} cannot be read: {error}") from None


async def _check_version(connection: AsyncConnection) -> None:
    dialect: Any = connection.dialect
    version = dialect.server_version_info
    oldest, product = ((10, 2, 4), "MariaDB") if dialect.is_mariadb else ((8,), "MySQL")
    if version < oldest:
        raise ConfigurationError(
            f"MYSQL_HOST: {product} {'.'.join(map(str, version))} forgets, when it restarts, which"
            f" ids it has given out: use {'.'.join(map(str, oldest))} or newer"
        )


def _mysql_code(error: sa.exc.DBAPIError) -> int:
    arguments = error.orig.args if error.orig is not None else ()
    return arguments[0] if arguments and isinstance(arguments[0], int) else 0


def _sqlite_code(error: sa.exc.DBAPIError) -> int:
    # The low byte; the rest tells the kinds of a trouble apart.
    return int(getattr(error.orig, "sqlite_errorcode", 0)) & 0xFF


def _reason(error: BaseException) -> str:
    """What has happened, in one line, without the statement and its parameters."""
    shown = error.orig if isinstance(error, sa.exc.DBAPIError) and error.orig else error
    if isinstance(shown, pymysql.err.Error) and len(shown.args) == 2:
        return f"{shown.args[1]} ({shown.args[0]})"
    return f"{type(shown).__name__}: {shown}".removesuffix(": ")


def _probe(path: Path) -> None:
    """Raises sqlite3.Error where the file is no database: the asynchronous driver, failing to
    connect, would leave its thread behind."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA schema_version").fetchone()


def _configure(connection: Any, _record: Any) -> None:
    # The driver's own BEGIN comes too late, before the first write: ours are in `_begin`.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        "foreign_keys=ON",
        f"busy_timeout={_BUSY_MILLISECONDS}",
        "journal_mode=WAL",
        "synchronous=FULL",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _let_go(connection: Any, _record: Any, _error: BaseException | None) -> None:
    # Closing alone does not end a transaction that was cancelled: SQLite keeps the connection, and
    # its locks, for as long as a cursor of it is referred to, by the cancelled task's frames say.
    with contextlib.suppress(Exception):  # whatever keeps it from that, it is to be closed
        connection.rollback()


def _begin(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
