"""The catalog on a MySQL that dies, freezes, refuses, or is shared with others."""

import asyncio
import contextlib
import gc
import ipaddress
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID
from pymysql.err import OperationalError  # type: ignore[import-untyped]
from sqlalchemy.ext.asyncio import AsyncConnection

from backend.deadlines import deadline
from backend.errors import ConfigurationError, EngineUnavailable
from backend.storage import databases
from backend.storage.catalog import Catalog, KeptAnswer, MySQLOptions, NewObject, path_key, utc_now
from backend.storage.databases import connect_mysql
from tests.engines.mariadb import MariaDBProcess
from tests.engines.process import free_port
from tests.storage.catalogs import CAT, DOG, all_images, ensure, index, mysql_database, new_photo


@pytest.fixture
def options(mysql_server: MariaDBProcess) -> Iterator[MySQLOptions]:
    """A database of the test's own on the server that tests share."""
    with mysql_database(mysql_server) as address:
        yield address


@pytest.fixture
async def catalog(options: MySQLOptions) -> AsyncIterator[Catalog]:
    """An empty catalog there."""
    opened = await Catalog.open_mysql(options, timeout=10)
    yield opened
    await opened.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MariaDBProcess]:
    """A server of the test's own, to be killed and frozen."""
    process = MariaDBProcess(tmp_path / "server")
    process.start()
    yield process
    process.remove()


def _own(server: MariaDBProcess, **changes: Any) -> MySQLOptions:
    return replace(server.address, **({"database": "photos"} | changes))


@contextlib.asynccontextmanager
async def _opened(options: MySQLOptions, timeout: float = 10) -> AsyncIterator[Catalog]:
    catalog = await Catalog.open_mysql(options, timeout=timeout)
    try:
        yield catalog
    finally:
        await catalog.close()


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds


# Servers that die, freeze and cut off


async def test_what_was_acknowledged_survives_a_kill_and_the_catalog_comes_back_by_itself(
    server: MariaDBProcess,
) -> None:
    async with _opened(_own(server), timeout=5) as catalog:
        collection = await ensure(catalog)
        acknowledged: list[str] = []

        async def write(worker: int) -> None:
            for number in range(1000):
                path = f"/{worker}/{number}"
                await index(catalog, collection, [path], [CAT, DOG])
                acknowledged.append(path)

        writers = [asyncio.create_task(write(worker)) for worker in range(4)]
        while len(acknowledged) < 40:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(server.kill)
        with _at_most(8):
            outcomes = await asyncio.gather(*writers, return_exceptions=True)
        assert all(isinstance(outcome, EngineUnavailable) for outcome in outcomes)
        assert "MySQL (MYSQL_HOST)" in str(outcomes[0])
        with pytest.raises(EngineUnavailable, match=r"MySQL \(MYSQL_HOST\) does not answer"):
            await catalog.ping()
        await asyncio.to_thread(server.start)
        with _at_most(4):
            await catalog.ping()
        paths = {image.path for image in await all_images(catalog, collection, ["indexed"])}
        assert set(acknowledged) <= paths
        assert len(await catalog.object_ids(collection.id)) == 2 * len(paths)
        await index(catalog, collection, ["/afterwards"], [CAT])


async def test_connections_that_were_cut_off_while_idle_are_not_noticed(
    catalog: Catalog, mysql_server: MariaDBProcess, options: MySQLOptions
) -> None:
    collection = await ensure(catalog)
    for number in range(3):
        await asyncio.gather(*(catalog.ping() for _ in range(20)))
        mysql_server.drop_connections(options.database)
        await index(catalog, collection, [f"/{number}"], [CAT])
    assert await catalog.count_images(collection.id) == 3


@contextlib.asynccontextmanager
async def _row_lock(catalog: Catalog, table: str) -> AsyncIterator[None]:
    """Another transaction has all rows of the table locked."""
    async with catalog._database.engine.connect() as connection:
        await connection.execute(sa.text(f"SELECT id FROM {table} FOR UPDATE"))
        yield
        await connection.rollback()


_WAITING = "SELECT 1 FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"


async def test_a_transaction_whose_connection_is_cut_off_is_run_again(
    server: MariaDBProcess,
) -> None:
    async with _opened(_own(server)) as catalog, _opened(_own(server, database="x")) as _:
        collection = await ensure(catalog)
        await index(catalog, collection, ["/a"], [CAT])
        other = await Catalog.open_mysql(_own(server))
        async with _row_lock(other, "images"):
            locker = server.execute(
                "SELECT trx_mysql_thread_id FROM information_schema.innodb_trx"
            )[0][0]
            changing = asyncio.create_task(
                catalog.begin_images(collection.id, [new_photo("/a", [DOG]), new_photo("/b")])
            )
            await server.wait_for(_WAITING)
            for number in set(server.connections("photos")) - {locker}:
                with contextlib.suppress(OperationalError):
                    server.execute(f"KILL CONNECTION {number}")
            await server.wait_for(_WAITING)  # it has begun again
            assert not changing.done()
        stored = await changing
        assert [image.replaced for image in stored] == [True, False]
        assert len(await all_images(catalog, collection)) == 2
        assert await catalog.object_ids_of_images([image.id for image in stored]) == [
            object_id for image in stored for object_id in image.object_ids
        ]
        await other.close()


async def test_a_frozen_server_costs_the_deadline_and_nothing_once_it_goes_on(
    server: MariaDBProcess,
) -> None:
    async with _opened(_own(server)):
        pass  # making the tables may take more than a second
    async with _opened(_own(server, pool_size=3), timeout=1) as catalog:
        collection = await ensure(catalog)
        await index(catalog, collection, ["/a"], [CAT])
        calls: list[Callable[[], Awaitable[object]]] = [
            catalog.ping,
            lambda: catalog.collection("photos"),
            lambda: index(catalog, collection, ["/b"], [CAT]),
            lambda: catalog.begin_load(collection.id, "/", prune=False),
            lambda: _enter(catalog.exclusive()),
        ]
        server.freeze()
        for _ in range(2):  # with connections that were open, and without
            with _at_most(4):
                outcomes = await asyncio.gather(
                    *(call() for call in calls for _ in range(3)), return_exceptions=True
                )
            assert {type(outcome) for outcome in outcomes} == {EngineUnavailable}
            assert str(outcomes[0]) == (
                "MySQL (MYSQL_HOST) does not answer in time: try again in a few seconds"
            )
        with _at_most(4), pytest.raises(EngineUnavailable), deadline(0.2):
            await catalog.ping()
        with _at_most(4), pytest.raises(EngineUnavailable):
            await Catalog.open_mysql(_own(server), timeout=1)
        server.thaw()
        with _at_most(4):
            await catalog.ping()
        await index(catalog, collection, ["/b"], [CAT])
        async with catalog.exclusive():
            pass
        await _until(lambda: len(server.connections()) <= 3)


async def _enter(context: contextlib.AbstractAsyncContextManager[object]) -> None:
    async with context:
        pass


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.05)


async def test_a_catalog_is_closed_at_once_while_the_server_is_frozen(
    server: MariaDBProcess,
) -> None:
    async with _opened(_own(server)):
        pass  # making the tables may take more than a second
    catalog = await Catalog.open_mysql(_own(server), timeout=1)
    await asyncio.gather(*(catalog.ping() for _ in range(10)))
    server.freeze()
    with _at_most(3):
        await catalog.close()
    server.thaw()


async def test_calls_that_are_cancelled_leave_no_connection_and_no_lock(
    server: MariaDBProcess,
) -> None:
    async with _opened(_own(server, pool_size=4)) as catalog:
        collection = await ensure(catalog)
        for round_ in range(30):
            tasks: list[asyncio.Task[Any]] = [
                asyncio.create_task(index(catalog, collection, [f"/{i}"], [CAT, DOG]))
                for i in range(8)
            ]
            tasks.append(asyncio.create_task(_enter(catalog.exclusive())))
            await asyncio.sleep(0.001 * round_)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        with _at_most(5):
            async with catalog.exclusive():
                await index(catalog, collection, [f"/{i}" for i in range(8)], [CAT])
        assert await catalog.count_images(collection.id) == 8
        assert len(await catalog.object_ids(collection.id)) == 8
        await _until(lambda: len(server.connections()) <= 4)
    await _until(lambda: server.connections() == [])


# Answers that are lost


class _Proxy:
    """Stands before the server, and on demand cuts a connection when it has committed."""

    def __init__(self, server: MariaDBProcess) -> None:
        self._server = server
        self._tasks: set[asyncio.Task[None]] = set()
        self.cuts = 0

    async def start(self) -> int:
        """Returns the port that leads to the server."""
        self._listener = await asyncio.start_server(self._forward, "127.0.0.1", 0)
        port: int = self._listener.sockets[0].getsockname()[1]
        return port

    async def close(self) -> None:
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        up_reader, up_writer = await asyncio.open_connection(self._server.host, self._server.port)
        cut = asyncio.Event()

        async def send() -> None:
            while data := await reader.read(2**16):
                if self.cuts and data.endswith(b"\x03COMMIT"):
                    self.cuts -= 1
                    cut.set()
                up_writer.write(data)

        async def receive() -> None:
            while data := await up_reader.read(2**16):
                if cut.is_set():
                    return  # the server has committed, and its answer is lost
                writer.write(data)

        tasks = [asyncio.create_task(send()), asyncio.create_task(receive())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for other in tasks:
                other.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for end in (writer, up_writer):
                end.close()
                with contextlib.suppress(OSError):
                    await end.wait_closed()


async def test_a_commit_whose_answer_is_lost_is_done_once(
    options: MySQLOptions, mysql_server: MariaDBProcess
) -> None:
    proxy = _Proxy(mysql_server)
    catalog = await Catalog.open_mysql(replace(options, port=await proxy.start()), timeout=10)
    try:
        proxy.cuts = 1
        collection = await ensure(catalog)
        assert await catalog.collections("ready") == [collection]
        proxy.cuts = 2
        load = await catalog.begin_load(collection.id, "/", prune=False)
        assert [row.id for row in await catalog.running_loads()] == [load]
        proxy.cuts = 1
        photos = [new_photo("/a", [CAT, DOG]), new_photo("/b", [CAT]), new_photo("/c", [])]
        asked = []

        async def ensure_held() -> None:
            asked.append(proxy.cuts)

        stored = await catalog.begin_images(collection.id, photos, ensure_held)
        assert asked == [1, 0]  # each time that it is run: the turn may be lost in between
        a, b, c = ids = [image.id for image in stored]
        assert [image.id for image in await all_images(catalog, collection)] == sorted(ids)
        assert sorted(await catalog.object_ids_of_images(ids)) == sorted(
            object_id for image in stored for object_id in image.object_ids
        )
        proxy.cuts = 1
        assert await catalog.finish_images(stored[:2], {b: "bad"}) == []
        proxy.cuts = 1
        assert await catalog.claim_undo([a, c]) == [c]
        proxy.cuts = 1
        await catalog.undo_images([c], "broken off")
        states = [image.state for image in await catalog.images_by_id(ids)]
        assert states == ["indexed", "failed", "failed"]
        new: dict[str, Any] = {"embedder": "e", "embedder_sha256": "", "dim": 4}
        proxy.cuts = 1
        await catalog.begin_replacement(collection.id, "new")
        proxy.cuts = 1
        assert await catalog.replace_vectors(collection, store="new", **new)
        proxy.cuts = 1
        await catalog.finish_replacement(collection.id, collection.store)
        proxy.cuts = 1
        assert await catalog.fail_images(collection.id, "gone") == 1
        proxy.cuts = 1
        await catalog.end_load(load, "done", {"total": 3})
        assert await catalog.running_loads() == []
        proxy.cuts = 1
        await catalog.resume_load(load)
        assert [row.id for row in await catalog.running_loads()] == [load]
        proxy.cuts = 1
        answer = KeptAnswer("key", "ab" * 32, 201, {"results": [1]}, utc_now())
        assert await catalog.keep_answer(answer) == answer
        assert await catalog.kept_answer("key") == answer
        proxy.cuts = 1
        await catalog.forget_answers("9")
        assert await catalog.kept_answer("key") is None
        proxy.cuts = 1
        await catalog.begin_delete_images([a])
        proxy.cuts = 1
        await catalog.finish_delete_images([a])
        assert len(await all_images(catalog, collection)) == 2
        proxy.cuts = 3
        await catalog.begin_drop(collection.id)
        await catalog.finish_drop(collection.id)
        assert await catalog.collection_in_any_state("photos") is None
        assert proxy.cuts == 0
    finally:
        await catalog.close()
        await proxy.close()


async def test_a_commit_whose_answer_never_comes_is_an_outage(
    options: MySQLOptions, mysql_server: MariaDBProcess
) -> None:
    proxy = _Proxy(mysql_server)
    catalog = await Catalog.open_mysql(replace(options, port=await proxy.start()), timeout=10)
    try:
        proxy.cuts = 100
        with _at_most(10), pytest.raises(EngineUnavailable, match="does not answer"):
            await ensure(catalog)
        proxy.cuts = 0
        assert (await ensure(catalog)).state == "ready"
    finally:
        await catalog.close()
        await proxy.close()


# Writers that meet


async def test_services_that_write_the_same_photos_at_the_same_time_leave_each_once(
    options: MySQLOptions,
) -> None:
    async with _opened(options, 20) as one, _opened(options, 20) as two:
        collection = await ensure(one)
        paths = [f"/{i}" for i in range(30)]

        async def write(catalog: Catalog, number: int) -> None:
            order = paths[number:] + paths[:number]
            photos = [new_photo(path, [CAT] * (1 + number % 3)) for path in order]
            await catalog.finish_images(await catalog.begin_images(collection.id, photos), {})

        await asyncio.gather(*(write(catalog, i) for i in range(8) for catalog in (one, two)))
        images = await all_images(one, collection)
        assert sorted(image.path for image in images) == sorted(paths)
        assert {image.state for image in images} == {"indexed"}
        counts = [
            len(some) for some in (await one.objects_of_images([i.id for i in images])).values()
        ]
        assert len(counts) == 30
        assert len(set(counts)) == 1  # of one writer, for all of them


async def test_services_that_make_the_same_collection_get_the_same(options: MySQLOptions) -> None:
    async with _opened(options) as one, _opened(options) as two:
        made = await asyncio.gather(*(ensure(catalog) for _ in range(5) for catalog in (one, two)))
        assert len({collection.id for collection in made}) == 1


async def test_transactions_that_block_each_other_both_succeed(catalog: Catalog) -> None:
    collection = await ensure(catalog)
    ids = await index(catalog, collection, ["/a", "/b"], [])
    met = asyncio.Barrier(2)
    runs = 0

    async def swap(order: list[int]) -> None:
        first = True

        async def write(connection: AsyncConnection) -> None:
            nonlocal first, runs
            runs += 1
            change = "UPDATE images SET width = width + 1 WHERE id = :id"
            await connection.execute(sa.text(change), {"id": order[0]})
            if first:
                first = False
                await met.wait()
            await connection.execute(sa.text(change), {"id": order[1]})

        await catalog._database.write(write)

    await asyncio.gather(swap(ids), swap(ids[::-1]))
    assert runs == 3
    assert [image.width for image in await catalog.images_by_id(ids)] == [642, 642]


async def test_a_row_that_stays_locked_is_an_outage_within_the_deadline(
    options: MySQLOptions,
) -> None:
    async with _opened(options) as other, _opened(options, timeout=2) as catalog:
        collection = await ensure(catalog)
        [image_id] = await index(catalog, collection, ["/a"], [])
        async with _row_lock(other, "images"):
            with _at_most(5), pytest.raises(EngineUnavailable):
                await catalog.begin_delete_images([image_id])
            # Readers do not wait, and see what was there before.
            assert await catalog.count_images(collection.id) == 1
        await catalog.begin_delete_images([image_id])


# Keeping others out


async def test_one_process_at_a_time_writes_alone(options: MySQLOptions) -> None:
    async with _opened(options) as one, _opened(options) as two:
        inside = 0

        async def enter(catalog: Catalog) -> None:
            nonlocal inside
            async with catalog.exclusive():
                inside += 1
                assert inside == 1
                await catalog.ping()
                await asyncio.sleep(0.01)
                inside -= 1

        await asyncio.gather(*(enter(catalog) for _ in range(4) for catalog in (one, two)))


async def test_others_know_what_a_process_is_at_work_on(
    options: MySQLOptions, mysql_server: MariaDBProcess
) -> None:
    async with _opened(replace(options, pool_size=2)) as one, _opened(options) as two:
        async with one.holding("import123456789abc") as held, one.exclusive():
            assert held is not None
            await held()
            await one.ping()  # the pool has all of its connections still
            async with two.holding("import123456789abc") as other:
                assert other is None
            async with two.holding("import999999999999") as other:
                assert other is not None
        async with two.holding("import123456789abc") as other:
            assert other is not None
            await asyncio.to_thread(mysql_server.drop_connections, options.database)
            with pytest.raises(EngineUnavailable):
                await other()


async def test_whoever_is_kept_out_is_told_in_time(options: MySQLOptions) -> None:
    async with _opened(options) as one, _opened(options) as two:
        async with one.exclusive():
            with (
                _at_most(4),
                deadline(1.2),
                pytest.raises(EngineUnavailable, match="another process") as caught,
            ):
                await _enter(two.exclusive())
            assert caught.value.engine == "MySQL"
            with _at_most(3), pytest.raises(EngineUnavailable), deadline(0.3):
                await _enter(two.exclusive())
        with _at_most(4):
            await _enter(two.exclusive())


async def test_one_that_is_frozen_keeps_nobody_out_for_long(
    options: MySQLOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(databases, "_SILENCE_SECONDS", 3)
    monkeypatch.setattr(databases, "_ALIVE_SECONDS", 0.5)
    async with _opened(options) as one, _opened(options) as two:
        async with one.exclusive() as ensure_held:
            await asyncio.sleep(4)  # at other engines, say
            await ensure_held()
        monkeypatch.setattr(databases, "_ALIVE_SECONDS", 3600)  # what a frozen one does
        async with one.exclusive() as ensure_held:
            with deadline(20):
                await _enter(two.exclusive())
            with pytest.raises(EngineUnavailable):
                await ensure_held()


async def test_catalogs_of_one_server_do_not_keep_each_other_out(
    options: MySQLOptions, mysql_server: MariaDBProcess
) -> None:
    with mysql_database(mysql_server) as elsewhere:
        async with _opened(options) as one, _opened(elsewhere) as two, one.exclusive():
            with deadline(1):
                await _enter(two.exclusive())


async def test_whoever_loses_the_connection_keeps_nobody_out(
    options: MySQLOptions, mysql_server: MariaDBProcess
) -> None:
    async with _opened(options) as one, _opened(options) as two:
        async with one.exclusive() as ensure_held:
            await ensure_held()
            mysql_server.drop_connections(options.database)
            with deadline(3):
                await _enter(two.exclusive())
            for _ in range(2):
                with pytest.raises(EngineUnavailable, match="MYSQL_HOST") as caught:
                    await ensure_held()
                assert caught.value.engine == "MySQL"
        async with one.exclusive() as ensure_held:
            await ensure_held()


async def test_whether_a_lock_is_held_is_not_waited_for_longer_than_it_may_take(
    server: MariaDBProcess,
) -> None:
    async with _opened(_own(server)) as catalog:
        catalog._database.timeout = 1  # to make its tables may take longer
        async with catalog.exclusive() as ensure_held:
            server.freeze()
            with _at_most(3), pytest.raises(EngineUnavailable, match="MYSQL_HOST"):
                await ensure_held()
            server.thaw()
            with pytest.raises(EngineUnavailable, match="MYSQL_HOST"):
                await ensure_held()
        with _at_most(4):
            await _enter(catalog.exclusive())


@pytest.mark.parametrize("happens", ["freeze", "drop_connections"])
async def test_what_happens_between_the_unlocking_and_the_end_is_no_error(
    server: MariaDBProcess, happens: str
) -> None:
    async with _opened(_own(server)) as catalog:
        engine = catalog._database.engine.sync_engine
        # A connection is rolled back before it goes back to the pool: the lock is released by then.
        sa.event.listen(engine, "rollback", lambda _: getattr(server, happens)(), once=True)
        with _at_most(4):
            await _enter(catalog.exclusive())
        server.thaw()
        with _at_most(4):
            await _enter(catalog.exclusive())


async def test_an_error_within_lets_the_others_in(options: MySQLOptions) -> None:
    async with _opened(options) as one, _opened(options) as two:
        with pytest.raises(KeyError):
            async with one.exclusive():
                raise KeyError
        with _at_most(4):
            await _enter(two.exclusive())


# Load


async def test_more_calls_than_connections_wait_for_each_other(
    options: MySQLOptions, mysql_server: MariaDBProcess
) -> None:
    async with _opened(replace(options, pool_size=2)) as catalog:
        collection = await ensure(catalog)
        async with catalog.exclusive():
            await asyncio.gather(*(index(catalog, collection, [f"/{i}"], [CAT]) for i in range(40)))
            assert len(mysql_server.connections(options.database)) == 2
        assert await catalog.count_images(collection.id) == 40


async def test_a_batch_of_photos_is_a_few_statements(
    catalog: Catalog, mysql_server: MariaDBProcess
) -> None:
    collection = await ensure(catalog)
    objects = [NewObject(f"label {i}", 0.1 * i, (0.1, 1 / 3, 3.0, 4.0)) for i in range(4)]
    for _ in range(2):  # all of them fresh, then all of them changed
        photos = [new_photo(f"/photos/{i}.jpg", objects) for i in range(64)]
        before = _questions(mysql_server)
        stored = await catalog.begin_images(collection.id, photos)
        await catalog.finish_images(stored, {})
        assert _questions(mysql_server) - before < 20
    photos = [new_photo(f"/{i}", objects * 4) for i in range(500)]
    with _at_most(5):
        await catalog.begin_images(collection.id, photos)


def _questions(server: MariaDBProcess) -> int:
    [(_, count)] = server.execute("SHOW GLOBAL STATUS LIKE 'Questions'")
    return int(count)


async def test_large_collections_go_page_by_page(catalog: Catalog) -> None:
    collection, other = await ensure(catalog), await ensure(catalog, "other")
    await index(catalog, collection, [f"/{i}" for i in range(1500)], [CAT] * 8)
    await index(catalog, other, ["/kept"], [CAT])
    assert len(await catalog.object_ids(collection.id)) == 12_000
    await catalog.begin_drop(collection.id)
    await catalog.finish_drop(collection.id)
    assert await catalog.collection_by_id(collection.id) is None
    assert await catalog.count_images(other.id) == 1
    assert len(await catalog.object_ids(other.id)) == 1


# Text


async def test_text_is_kept_on_a_server_with_other_habits(tmp_path: Path) -> None:
    habits = (
        "--character-set-server=latin1",
        "--collation-server=latin1_swedish_ci",
        "--sql-mode=NO_BACKSLASH_ESCAPES,ANSI_QUOTES,PAD_CHAR_TO_FULL_LENGTH",
        "--transaction-isolation=SERIALIZABLE",
        "--autocommit=0",
    )
    server = MariaDBProcess(tmp_path / "server", options=habits)
    server.start()
    try:
        async with _opened(_own(server)) as catalog:
            collection = await ensure(catalog)
            paths = [
                "/\N{CAT FACE}/\N{FAMILY}.jpg",
                "/a'b\"c`d\\e%f%s_g;--",
                "/A.jpg",
                "/a.jpg",
                "/a.jpg ",
                "/" + "\N{PILE OF POO}" * 16_000,
            ]
            await index(
                catalog, collection, paths, [NewObject("Kätzchen \N{CAT FACE}", 1, CAT.box)]
            )
            images = await all_images(catalog, collection)
            assert [image.path for image in images] == paths
            found = await catalog.indexed_image([path_key("/a.jpg ")])
            assert found is not None
            assert found.path == "/a.jpg "
            [places] = (await catalog.objects_of_images([images[0].id])).values()
            assert places[0].label == "Kätzchen \N{CAT FACE}"
            collations = server.execute(
                "SELECT DISTINCT table_collation FROM information_schema.tables"
                " WHERE table_schema = 'photos' AND table_name <> 'alembic_version'"
            )
            assert collations == [("utf8mb4_bin",)]
    finally:
        server.remove()


# Opening


async def _refused(options: MySQLOptions, match: str) -> None:
    with _at_most(5), pytest.raises(ConfigurationError, match=match) as caught:
        await Catalog.open_mysql(options, timeout=5)
    message = str(caught.value)
    assert f"MYSQL_USER={options.user}" in message
    assert options.password not in message


async def test_who_is_refused_is_told_which_settings_to_correct(
    mysql_server: MariaDBProcess, options: MySQLOptions
) -> None:
    await _refused(replace(options, password="wrong one"), r"Access denied .*MYSQL_PWD")
    await _refused(replace(options, user="nobody"), r"MYSQL_USER=nobody.* Access denied")
    await _refused(replace(options, database="x" * 65), r"MYSQL_DB=x{65}: .*(too long|Incorrect)")
    user = options.database
    for statement in (
        f"CREATE USER {user}@'%' IDENTIFIED BY 'secret'",
        f"CREATE DATABASE {user}_theirs",
        f"GRANT ALL ON {user}_theirs.* TO {user}@'%'",
        f"CREATE DATABASE {user}_read",
        f"GRANT SELECT ON {user}_read.* TO {user}@'%'",
    ):
        mysql_server.execute(statement)
    try:
        unprivileged = replace(options, user=user, password="secret")
        await _refused(unprivileged, "Access denied .*to database")
        await _refused(replace(unprivileged, database=f"{user}_read"), "CREATE command denied")
        async with _opened(replace(unprivileged, database=f"{user}_theirs")) as catalog:
            await ensure(catalog)
    finally:
        mysql_server.execute(f"DROP USER {user}@'%'")
        for name in ("theirs", "read"):
            mysql_server.execute(f"DROP DATABASE {user}_{name}")


async def test_a_missing_database_is_made_whatever_its_name(
    mysql_server: MariaDBProcess, options: MySQLOptions
) -> None:
    name = f"{options.database}-%s `ü"
    try:
        for _ in range(2):
            async with _opened(replace(options, database=name)) as catalog:
                await ensure(catalog)
        made = mysql_server.execute(
            "SELECT default_collation_name FROM information_schema.schemata WHERE schema_name = %s",
            name,
        )
        assert made == [("utf8mb4_bin",)]
    finally:
        mysql_server.execute(f"DROP DATABASE `{name.replace('`', '``')}`")


async def test_a_server_that_is_not_there_can_be_waited_for(tmp_path: Path) -> None:
    server = MariaDBProcess(tmp_path / "server")
    before = len(asyncio.all_tasks())
    try:
        for _ in range(3):
            with _at_most(4), pytest.raises(EngineUnavailable, match="MYSQL_HOST"):
                await Catalog.open_mysql(_own(server), timeout=5)
        assert len(asyncio.all_tasks()) == before
        unknown = MySQLOptions("no-such-host.invalid", free_port())
        with pytest.raises(EngineUnavailable):
            await Catalog.open_mysql(unknown, timeout=2)
        await asyncio.to_thread(server.start)
        async with _opened(_own(server)) as catalog:
            await catalog.ping()
    finally:
        server.remove()


async def test_what_could_not_be_opened_leaves_no_connection(server: MariaDBProcess) -> None:
    await (await Catalog.open_mysql(_own(server))).close()
    server.execute("UPDATE photos.alembic_version SET version_num = '9999'")
    for options in (_own(server), _own(server, password="wrong")):
        with pytest.raises(ConfigurationError):
            await Catalog.open_mysql(options)
    await _until(lambda: server.connections() == [])
    gc.collect()  # whatever was not closed would warn


# Servers that say "not now"


async def test_a_server_with_too_many_connections_is_waited_for(server: MariaDBProcess) -> None:
    async with _opened(_own(server), timeout=3) as catalog:
        collection = await ensure(catalog)
        server.execute("SET GLOBAL max_connections = 10")
        others = [await connect_mysql(**_arguments(server)) for _ in range(9)]
        with pytest.raises(EngineUnavailable):
            await asyncio.gather(*(catalog.ping() for _ in range(10)))
        with pytest.raises(EngineUnavailable):
            await Catalog.open_mysql(_own(server), timeout=3)
        for other in others:
            await other.ensure_closed()
        await _until(lambda: len(server.connections()) < 5)
        await index(catalog, collection, ["/a"], [CAT])


def _arguments(server: MariaDBProcess, **changes: Any) -> dict[str, Any]:
    password = server.password.encode().decode("latin-1")
    address = {"host": server.host, "port": server.port, "user": server.user}
    return address | {"password": password, "charset": "utf8mb4"} | changes


async def test_a_read_only_server_is_an_outage_for_writers(server: MariaDBProcess) -> None:
    server.execute("CREATE DATABASE photos")
    server.execute("CREATE USER service IDENTIFIED BY 'secret'")
    server.execute("GRANT ALL ON photos.* TO service")
    async with _opened(_own(server, user="service", password="secret")) as catalog:
        collection = await ensure(catalog)
        server.execute("SET GLOBAL read_only = 1")
        with pytest.raises(EngineUnavailable, match="cannot at the moment"):
            await index(catalog, collection, ["/a"], [CAT])
        assert await catalog.collection("photos") == collection
        server.execute("SET GLOBAL read_only = 0")
        await index(catalog, collection, ["/a"], [CAT])


async def test_a_stop_of_the_server_is_an_outage(server: MariaDBProcess) -> None:
    async with _opened(_own(server), timeout=3) as catalog:
        collection = await ensure(catalog)
        stopping = asyncio.create_task(asyncio.to_thread(server.stop))

        async def write() -> None:
            for number in range(10_000):
                await index(catalog, collection, [f"/{number}"], [CAT])

        with pytest.raises(EngineUnavailable):
            await write()
        await stopping
        await asyncio.to_thread(server.start)
        await index(catalog, collection, ["/a"], [CAT])


# Encryption and authentication


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """A folder with an authority, `ca.pem`, another, and a server's certificate and key."""
    for name in ("ca", "other"):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        authority = _certificate(subject, subject, key, key, None)
        (tmp_path / f"{name}.pem").write_bytes(authority)
        if name == "ca":
            server_key = ec.generate_private_key(ec.SECP256R1())
            server = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
            (tmp_path / "server.pem").write_bytes(
                _certificate(server, subject, server_key, key, "127.0.0.1")
            )
            (tmp_path / "server.key").write_bytes(
                server_key.private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.TraditionalOpenSSL,
                    serialization.NoEncryption(),
                )
            )
    return tmp_path


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer_key: ec.EllipticCurvePrivateKey,
    address: str | None,
) -> bytes:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=address is None, path_length=None), critical=True)
    )
    if address is not None:
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        builder = builder.add_extension(names, critical=False)
    signed = builder.sign(issuer_key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM)


async def test_a_catalog_may_be_reached_through_tls(certificates: Path) -> None:
    server = MariaDBProcess(
        certificates / "server",
        options=[
            f"--ssl-cert={certificates / 'server.pem'}",
            f"--ssl-key={certificates / 'server.key'}",
        ],
    )
    server.start()
    try:
        options = _own(server, tls=True, ca=certificates / "ca.pem")
        async with _opened(options) as catalog:
            await ensure(catalog)
            async with catalog._database.engine.connect() as connection:
                row = (await connection.execute(sa.text("SHOW STATUS LIKE 'Ssl_cipher'"))).one()
            assert row[1]
        with pytest.raises(ConfigurationError, match=r"certificate verify failed.*MYSQL_CA"):
            await Catalog.open_mysql(replace(options, ca=certificates / "other.pem"))
        with pytest.raises(ConfigurationError, match=r"certificate verify failed.*MYSQL_CA"):
            await Catalog.open_mysql(replace(options, ca=None))
        with pytest.raises(ConfigurationError, match=r"MYSQL_CA=.*missing cannot be read"):
            await Catalog.open_mysql(replace(options, ca=certificates / "missing"))
    finally:
        server.remove()


async def test_what_is_to_be_encrypted_never_goes_in_the_clear(
    mysql_server: MariaDBProcess,
) -> None:
    with pytest.raises(ConfigurationError, match=r"does not offer TLS.*MYSQL_TLS"):
        await Catalog.open_mysql(replace(mysql_server.address, tls=True))


async def test_the_password_of_a_mysql_8_is_sent_under_its_key(unused_tcp_port: int) -> None:
    """No MySQL 8 can be had here, and MariaDB does not speak caching_sha2_password.

    So this is the server's part of the handshake, as MySQL's documentation has it, where the
    password is not cached: it asks for all of it, gives its key, and gets it enciphered.
    """
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    salt = bytes(range(1, 21))
    received: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def read() -> bytes:
            header = await reader.readexactly(4)
            return await reader.readexactly(int.from_bytes(header[:3], "little"))

        def send(number: int, payload: bytes) -> None:
            writer.write(struct.pack("<I", len(payload))[:3] + bytes([number]) + payload)

        capabilities = 0x81BFF7DF & ~0x800  # all that the driver knows but TLS
        ok = b"\x00\x00\x00\x02\x00\x00\x00"
        greeting = b"\x0a8.0.40\x00" + struct.pack("<I", 7) + salt[:8] + b"\x00"
        greeting += struct.pack("<HBHHB", capabilities & 0xFFFF, 45, 2, capabilities >> 16, 21)
        send(0, greeting + bytes(10) + salt[8:] + b"\x00caching_sha2_password\x00")
        await read()
        send(2, b"\x01\x04")
        assert await read() == b"\x02"
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        send(4, b"\x01" + public)
        oaep = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)
        plain = key.decrypt(await read(), oaep)
        received.append(bytes(byte ^ salt[i % 20] for i, byte in enumerate(plain)))
        send(6, ok)
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                await read()
                send(1, ok)
        writer.close()

    listener = await asyncio.start_server(answer, "127.0.0.1", unused_tcp_port)
    connection = await connect_mysql(
        host="127.0.0.1",
        port=unused_tcp_port,
        user="root",
        password="pässword".encode().decode("latin-1"),
        charset="utf8mb4",
    )
    await connection.ensure_closed()
    listener.close()
    await listener.wait_closed()
    await asyncio.sleep(0.05)
    assert received == ["pässword\0".encode()]


def test_a_password_is_not_shown() -> None:
    assert "secret" not in repr(MySQLOptions("localhost", password="secret"))
