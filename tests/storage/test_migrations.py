"""Older catalogs are brought up to date without loss, whenever and however often one tries."""

import asyncio
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy.dialects import mysql
from sqlalchemy.ext.asyncio import AsyncConnection

from backend.errors import ConfigurationError
from backend.keys import make_key
from backend.storage import migrations
from backend.storage.catalog import Catalog, KeptAnswer, PhotoHashes, path_key
from backend.storage.databases import MySQLDatabase
from backend.storage.tables import metadata
from tests.engines.mariadb import MariaDBProcess
from tests.storage.catalogs import CAT, OpenCatalog, catalogs, ensure, index, mysql_database

_FIRST_TABLES: Final = """
CREATE TABLE collections (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
	name VARCHAR(200) NOT NULL,
	embedder VARCHAR(200) NOT NULL,
	embedder_sha256 VARCHAR(64) NOT NULL,
	dim INTEGER NOT NULL,
	metric VARCHAR(16) NOT NULL,
	state VARCHAR(16) NOT NULL,
	UNIQUE (name)
);
CREATE TABLE identity (
	uuid VARCHAR(32) NOT NULL,
	PRIMARY KEY (uuid)
);
CREATE TABLE images (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
	collection_id INTEGER NOT NULL,
	path TEXT NOT NULL,
	path_key VARCHAR(64) NOT NULL,
	sha256 VARCHAR(64) NOT NULL,
	size BIGINT NOT NULL,
	mtime_ns BIGINT NOT NULL,
	width INTEGER NOT NULL,
	height INTEGER NOT NULL,
	state VARCHAR(16) NOT NULL,
	error TEXT,
	UNIQUE (collection_id, path_key),
	FOREIGN KEY(collection_id) REFERENCES collections (id)
);
CREATE INDEX images_by_path ON images (path_key);
CREATE INDEX images_by_state ON images (collection_id, state);
CREATE TABLE loads (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
	collection_id INTEGER NOT NULL,
	root TEXT NOT NULL,
	prune BOOLEAN NOT NULL,
	state VARCHAR(16) NOT NULL,
	counts JSON NOT NULL,
	error TEXT,
	started_at VARCHAR(32) NOT NULL,
	finished_at VARCHAR(32),
	FOREIGN KEY(collection_id) REFERENCES collections (id)
);
CREATE TABLE objects (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
	image_id INTEGER NOT NULL,
	label VARCHAR(200) NOT NULL,
	score FLOAT NOT NULL,
	x1 FLOAT NOT NULL,
	y1 FLOAT NOT NULL,
	x2 FLOAT NOT NULL,
	y2 FLOAT NOT NULL,
	FOREIGN KEY(image_id) REFERENCES images (id)
);
CREATE INDEX ix_objects_image_id ON objects (image_id);
"""
"""What was made on SQLite before there were revisions."""

_FIRST_ROWS: Final = f"""
INSERT INTO identity VALUES ('{"1f" * 16}');
INSERT INTO collections VALUES (3, 'photos', 'tiny', '{"ab" * 32}', 8, 'L2', 'ready');
INSERT INTO images VALUES
    (7, 3, '/a', '{path_key("/a")}', '{"cd" * 32}', 10, 11, 12, 13, 'indexed', NULL),
    (9, 3, '/b', '{path_key("/b")}', '{"cd" * 32}', 10, 11, 12, 13, 'failed', 'bad');
INSERT INTO objects VALUES (21, 7, 'cat', 0.1, 1, 2, 30.5, 40.25);
INSERT INTO loads VALUES
    (5, 3, '/', 0, 'running', '{{}}', NULL, '2024', NULL),
    (6, 3, '/', 1, 'done', '{{"total": 2}}', NULL, '2024', '2024');
"""


@pytest.fixture(params=["sqlite", "mysql"])
def open_catalog(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenCatalog]:
    """Opens the test's own catalog, each time it is called."""
    yield from catalogs(request, tmp_path)


def _same_type(
    _context: object, _inspected: object, _column: object, found: Any, wanted: Any
) -> bool | None:
    if isinstance(found, mysql.LONGTEXT) and isinstance(wanted, sa.JSON):
        return False  # what MariaDB makes of JSON
    if isinstance(found, mysql.TINYINT) and isinstance(wanted, sa.Boolean):
        return False
    return None


def _differences(connection: sa.Connection) -> list[Any]:
    context = MigrationContext.configure(
        connection, opts={"compare_type": _same_type, "compare_server_default": True}
    )
    return list(compare_metadata(context, metadata))


async def _differences_of(catalog: Catalog) -> list[Any]:
    async with catalog._database.engine.connect() as connection:
        return await connection.run_sync(_differences)


async def _is_usable(catalog: Catalog) -> None:
    collection = await ensure(catalog, "new")
    await index(catalog, collection, ["/a"], [CAT])
    await catalog.begin_load(collection.id, "/", prune=False)
    await catalog.begin_replacement(collection.id, "new_store")
    assert await catalog.replace_vectors(
        collection, store="new_store", embedder="e", embedder_sha256="", dim=4
    )
    answer = KeptAnswer("key", "ab" * 32, 200, {}, "2024")
    assert await catalog.keep_answer(answer) == answer
    key, _ = await make_key(catalog.keys, ["read"], collections=["new"])
    assert await catalog.keys.all() == [key]


async def test_the_tables_that_the_revisions_make_are_those_of_the_code(
    open_catalog: OpenCatalog,
) -> None:
    catalog = await open_catalog()
    assert await _differences_of(catalog) == []
    await _is_usable(catalog)
    await catalog.close()


async def test_opening_again_changes_nothing(open_catalog: OpenCatalog) -> None:
    catalog = await open_catalog()
    identity = catalog.identity
    assert len(identity) == 32
    collection = await ensure(catalog)
    await catalog.close()
    for _ in range(2):
        catalog = await open_catalog()
        assert (catalog.identity, await catalog.collections("ready")) == (identity, [collection])
        await catalog.close()


async def test_a_catalog_from_before_the_revisions_keeps_all_its_rows(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "catalog.db")
    database.executescript(_FIRST_TABLES + _FIRST_ROWS)
    database.close()
    catalog = await Catalog.open_sqlite(tmp_path)
    try:
        assert catalog.identity == "1f" * 16
        collection = await catalog.collection("photos")
        assert collection is not None
        assert (collection.id, collection.store, collection.other_store) == (3, "photos_3", None)
        images = await catalog.images_by_id([7, 9])
        assert [(image.path, image.state, image.error) for image in images] == [
            ("/a", "indexed", None),
            ("/b", "failed", "bad"),
        ]
        assert [image.phash for image in images] == [None, None]
        await catalog.set_phashes({PhotoHashes(7, "cd" * 32, None): -(2**63)})
        assert [image.phash for image in await catalog.images_by_id([7])] == [-(2**63)]
        [place] = (await catalog.places([21])).values()
        assert (place.path, place.score, place.box) == ("/a", 0.1, (1.0, 2.0, 30.5, 40.25))
        assert [load.id for load in await catalog.running_loads()] == [5]
        assert await _differences_of(catalog) == []
        await _is_usable(catalog)
        [new] = await index(catalog, collection, ["/c"], [CAT])
        assert new > 9
    finally:
        await catalog.close()


async def test_a_catalog_of_a_newer_version_is_refused_and_left_as_it_is(
    open_catalog: OpenCatalog,
) -> None:
    catalog = await open_catalog()

    async def stamp(connection: AsyncConnection) -> None:
        await connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))

    await catalog._database.write(stamp)
    await catalog.close()
    with pytest.raises(ConfigurationError, match=r"newer version .* 9999, .* 0007"):
        await open_catalog()


async def test_a_database_of_another_program_is_refused_and_its_tables_are_left(
    tmp_path: Path, mysql_server: MariaDBProcess
) -> None:
    statement = "CREATE TABLE {}images (id INTEGER PRIMARY KEY, caption TEXT)"
    database = sqlite3.connect(tmp_path / "catalog.db")
    database.execute(statement.format(""))
    database.close()
    with pytest.raises(ConfigurationError, match=r"catalog\.db .*'images' is another program's"):
        await Catalog.open_sqlite(tmp_path)
    with mysql_database(mysql_server) as options:
        mysql_server.execute(f"CREATE DATABASE {options.database}")
        mysql_server.execute(statement.format(f"{options.database}."))
        with pytest.raises(ConfigurationError, match=f"{options.database} .*another program's"):
            await Catalog.open_mysql(options)
        tables = mysql_server.execute(f"SHOW TABLES IN {options.database}")
        assert {name for (name,) in tables} == {"alembic_version", "images"}


async def test_a_migration_that_was_broken_off_anywhere_is_gone_on_with(
    open_catalog: OpenCatalog, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    upgrade = migrations.upgrade
    allowed = 0

    def break_off(connection: sa.Connection) -> None:
        left = allowed

        def count(_c: object, _cursor: object, statement: str, *_: object) -> None:
            nonlocal left
            if statement.strip().startswith(("CREATE", "ALTER")):
                left -= 1
                if left < 0:
                    raise InterruptedError(statement)

        sa.event.listen(connection, "before_cursor_execute", count)
        upgrade(connection)

    monkeypatch.setattr(migrations, "upgrade", break_off)
    attempts = 0
    while True:
        try:
            catalog = await open_catalog()
            break
        except InterruptedError:
            attempts += 1
            # On MySQL what one try has made is there for the next, on SQLite nothing of it is.
            allowed = attempts if request.node.callspec.params["open_catalog"] == "sqlite" else 1
    try:
        assert attempts > 8
        assert await _differences_of(catalog) == []
        await _is_usable(catalog)
    finally:
        await catalog.close()


async def test_services_that_start_together_make_one_catalog(
    mysql_server: MariaDBProcess,
) -> None:
    with mysql_database(mysql_server) as options:
        opened = await asyncio.gather(*(Catalog.open_mysql(options) for _ in range(6)))
        assert len({catalog.identity for catalog in opened}) == 1
        assert await _differences_of(opened[0]) == []
        assert mysql_server.execute(f"SELECT COUNT(*) FROM {options.database}.identity") == [(1,)]
        for catalog in opened:
            await catalog.close()


async def test_a_service_waits_for_the_one_that_changes_the_tables(
    mysql_server: MariaDBProcess,
) -> None:
    with mysql_database(mysql_server) as options:
        first = await MySQLDatabase.open(options, timeout=10)
        async with first.migrating():
            second = asyncio.create_task(Catalog.open_mysql(options))
            await asyncio.sleep(0.5)
            assert not second.done()
            assert mysql_server.execute(f"SHOW TABLES IN {options.database}") == []
        await (await second).close()
        await first.close()


async def test_a_catalog_may_lie_in_the_server_s_own_database(tmp_path: Path) -> None:
    # As the settings' default has it.
    server = MariaDBProcess(tmp_path / "server")
    server.start()
    try:
        assert server.address.database == "mysql"
        catalog = await Catalog.open_mysql(server.address)
        await _is_usable(catalog)
        await catalog.close()
    finally:
        server.remove()
