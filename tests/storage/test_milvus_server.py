"""What is a Milvus server's own: the connection, consistency, and what breaks either."""

import asyncio
import datetime
import ipaddress
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pymilvus import CollectionSchema
from pymilvus.client.types import BulkInsertState

from backend.deadlines import deadline
from backend.errors import ConfigurationError, EngineUnavailable, ServiceError, StillWriting
from backend.storage.vectors import (
    MilvusOptions,
    MilvusServer,
    ObjectVector,
    collection_schema,
)
from scripts.bulk_load.staging import Staging
from tests.engines.milvus import MilvusProcess
from tests.engines.process import free_port

DIMENSION = 32
STORE = "photos_1"

# A server takes seconds to start: the tests share one, one after the other.
pytestmark = pytest.mark.asyncio(loop_scope="module")

UNITS = np.random.default_rng(0).normal(size=(6000, DIMENSION)).astype(np.float32)
UNITS /= np.linalg.norm(UNITS, axis=1, keepdims=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def process(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MilvusProcess]:
    """The shared server; a test that ends it starts it again."""
    # How long a restart takes depends on it; nothing is frozen for as long here.
    quick = {"common.session.ttl": "3"}
    server = MilvusProcess(tmp_path_factory.mktemp("milvus") / "server", options=quick)
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def options(process: MilvusProcess) -> MilvusOptions:
    """How to reach the shared server."""
    process.start_if_given_up()
    return MilvusOptions(process.host, process.port)


@pytest_asyncio.fixture(loop_scope="module")
async def vectors(options: MilvusOptions) -> AsyncIterator[MilvusServer]:
    """A connection to the shared server, on which there is an empty collection."""
    opened = await MilvusServer.open(options, timeout=20)
    await opened.create(STORE, DIMENSION)
    await opened._delete(STORE, "id >= 0")
    yield opened
    await opened.close()


def _rows(ids: Iterable[int]) -> list[ObjectVector]:
    """Rows whose vectors are of `UNITS`, at the places of their ids."""
    return [ObjectVector(i, 100_000 + i // 2, "cat", 0.5, UNITS[i % len(UNITS)]) for i in ids]


async def _delete_images(vectors: MilvusServer, image_ids: Sequence[int]) -> None:
    await vectors.delete(STORE, sorted(await vectors.ids_of_images(STORE, image_ids)))


async def _misplaced(
    vectors: MilvusServer, there: Iterable[int], not_there: Iterable[int] = ()
) -> list[int]:
    """Rows that are not found at distance 0, and rows that are found though they are gone."""
    ids = [*there]
    gone = [*not_there]
    answers = await vectors.search(STORE, UNITS[ids + gone], 1)
    found = [
        bool(hits) and hits[0].object_id == i and hits[0].distance < 1e-4
        for i, hits in zip(ids + gone, answers, strict=True)
    ]
    wanted = [True] * len(ids) + [False] * len(gone)
    return [i for i, is_, ought in zip(ids + gone, found, wanted, strict=True) if is_ != ought]


# Imports


async def test_rows_are_imported_from_files_which_go_then(
    vectors: MilvusServer, tmp_path: Path
) -> None:
    vectors.import_through(Staging(str(tmp_path / "import"), file_bytes=200 * 4 * DIMENSION))
    await vectors.insert(STORE, _rows(range(300)))  # in two files
    assert await _misplaced(vectors, range(300)) == []
    assert await vectors.ids(STORE) == set(range(300))
    await vectors.insert(STORE, [])
    assert list((tmp_path / "import").iterdir()) == []


async def test_an_import_that_was_left_behind_is_waited_for(
    vectors: MilvusServer, tmp_path: Path
) -> None:
    async with Staging(str(tmp_path))(
        collection_schema(UNITS.shape[1]), _rows(range(500))
    ) as files:
        for file in files:
            await vectors._ask("bulk_insert", STORE, file)
        await vectors.settle(STORE)
        await _delete_images(vectors, [100_000 + i // 2 for i in range(498)])
    assert await vectors.ids(STORE) == {498, 499}


async def test_an_import_that_fails_says_why(vectors: MilvusServer, tmp_path: Path) -> None:
    @asynccontextmanager
    async def lay(
        schema: CollectionSchema, rows: Sequence[ObjectVector]
    ) -> AsyncIterator[list[str]]:
        yield [str(tmp_path / "nothing.parquet")]

    vectors.import_through(lay)
    with pytest.raises(ServiceError, match="could not import the vectors: "):
        await vectors.insert(STORE, _rows(range(3)))
    await vectors.settle(STORE)


async def test_rows_that_an_import_has_left_out_are_noticed(
    vectors: MilvusServer, tmp_path: Path
) -> None:
    whole = Staging(str(tmp_path))

    @asynccontextmanager
    async def lay(
        schema: CollectionSchema, rows: Sequence[ObjectVector]
    ) -> AsyncIterator[list[str]]:
        async with whole(schema, rows[1:]) as files:
            yield files

    vectors.import_through(lay)
    with pytest.raises(ServiceError, match="has imported 2 of 3 vectors"):
        await vectors.insert(STORE, _rows(range(3)))


async def test_an_import_that_comes_no_further_is_given_up(
    vectors: MilvusServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Staging(str(tmp_path))(collection_schema(DIMENSION), _rows(range(3))) as [file]:
        number = await vectors._ask("bulk_insert", STORE, file)
        # As it is while imports of others come first.
        stands_still = await vectors._ask("bulk_insert_state", number)
        assert stands_still.state != BulkInsertState.ImportCompleted

        async def say_the_same(*_: object, **__: object) -> BulkInsertState:
            return stands_still

        with monkeypatch.context() as patch:
            patch.setattr(vectors._handler, "bulk_insert_state", say_the_same)
            with deadline(0.5), pytest.raises(StillWriting, match="still imports vectors"):
                await vectors.settle(STORE)
            patch.setattr("backend.storage.vectors._STANDSTILL_SECONDS", 0.5)
            with pytest.raises(EngineUnavailable, match="no further with an import"):
                await vectors._until_over(number)
        await vectors.settle(STORE)
    assert await vectors.ids(STORE) == {0, 1, 2}


# Consistency


async def test_a_search_waits_for_the_servers_clock_only_after_a_write(
    vectors: MilvusServer,
) -> None:
    await vectors.upsert(STORE, _rows(range(500)))
    assert await _misplaced(vectors, range(500)) == []
    start = time.monotonic()
    for i in range(20):
        assert await _misplaced(vectors, [i]) == []
    # Strong consistency waits for a tick of 200 ms each time.
    assert time.monotonic() - start < 1.5


async def test_a_service_that_starts_anew_finds_all_that_another_has_written(
    vectors: MilvusServer, options: MilvusOptions
) -> None:
    for i in range(3):
        await vectors.upsert(STORE, _rows([10 * i, 10 * i + 1, 10 * i + 4]))
        await vectors.delete(STORE, [10 * i + 4])
        fresh = await MilvusServer.open(options, timeout=20)
        try:
            assert await _misplaced(fresh, [10 * i, 10 * i + 1], [10 * i + 4]) == []
        finally:
            await fresh.close()


async def test_one_that_catches_up_finds_what_another_has_just_written(
    vectors: MilvusServer, options: MilvusOptions
) -> None:
    other = await MilvusServer.open(options, timeout=20)
    try:
        await other.search(STORE, UNITS[:1], 1)  # from now on it names its own last write
        for i in range(8):
            written = await vectors.upsert(STORE, _rows([i]))
            other.catch_up(STORE, written)
            other.catch_up(STORE, 1)  # an older one
            assert await _misplaced(other, [i]) == []
    finally:
        await other.close()


async def test_vectors_that_another_has_just_written_are_given_out(
    vectors: MilvusServer, options: MilvusOptions
) -> None:
    other = await MilvusServer.open(options, timeout=20)
    try:
        await other.search(STORE, UNITS[:1], 1)
        for i in range(8):
            await vectors.upsert(STORE, _rows([i]))
            assert set(await other.vectors(STORE, [i, 1000])) == {i}
    finally:
        await other.close()


async def test_a_delete_meets_rows_of_which_another_connection_was_never_told(
    vectors: MilvusServer, options: MilvusOptions
) -> None:
    other = await MilvusServer.open(options, timeout=20)
    try:
        for i in range(5):
            await other.upsert(STORE, _rows([i]))
            await _delete_images(vectors, [100_000 + i // 2])
            assert await vectors.ids(STORE) == set()
    finally:
        await other.close()


async def test_more_hits_are_wanted_than_the_index_looks_at(vectors: MilvusServer) -> None:
    await vectors.upsert(STORE, _rows(range(3000)))
    await vectors._ask("flush", [STORE])  # stored and indexed, no longer only in memory
    [hits] = await vectors.search(STORE, UNITS[:1], 1000)
    distances = ((UNITS[:3000].astype(np.float64) - UNITS[0]) ** 2).sum(axis=1)
    nearest = set(np.argsort(distances)[:1000].tolist())
    assert len(hits) == 1000
    assert len(nearest & {hit.object_id for hit in hits}) > 980
    for hit in hits:
        assert hit.distance == pytest.approx(distances[hit.object_id], abs=1e-4)


async def test_a_collection_that_was_taken_out_of_memory_is_loaded_again(
    vectors: MilvusServer,
) -> None:
    await vectors.upsert(STORE, _rows(range(10)))
    await vectors._ask("release_collection", STORE)
    assert await _misplaced(vectors, range(10)) == []
    await vectors._ask("release_collection", STORE)
    await _delete_images(vectors, [100_000])
    assert await vectors.ids(STORE) == set(range(2, 10))


async def test_an_index_that_the_server_does_not_know_is_refused_by_its_name(
    options: MilvusOptions,
) -> None:
    wrong = MilvusOptions(options.host, options.port, index="FASTEST")
    opened = await MilvusServer.open(wrong, timeout=20)
    try:
        with pytest.raises(ServiceError, match=r"'FASTEST'.*MILVUS_INDEX"):
            await opened.create("never_indexed", DIMENSION)
        await opened.drop("never_indexed")
    finally:
        await opened.close()


# Opening


async def test_a_server_that_is_not_there_is_told_at_once_as_often_as_it_is_tried() -> None:
    nobody = MilvusOptions("127.0.0.1", free_port())
    for _ in range(2):
        start = time.monotonic()
        with pytest.raises(EngineUnavailable, match="MILVUS_HOST"):
            await MilvusServer.open(nobody, timeout=5)
        assert time.monotonic() - start < 2


async def test_a_database_that_does_not_exist_is_made_and_is_apart_from_the_others(
    vectors: MilvusServer, options: MilvusOptions
) -> None:
    other = MilvusOptions(options.host, options.port, database="other")
    for _ in range(2):
        opened = await MilvusServer.open(other, timeout=20)
        assert not await opened.exists(STORE)
        await opened.close()
    assert await vectors.exists(STORE)


async def test_a_server_without_tls_is_named_where_tls_is_wanted(options: MilvusOptions) -> None:
    with pytest.raises(ConfigurationError, match="does not speak TLS: unset MILVUS_TLS"):
        await MilvusServer.open(MilvusOptions(options.host, options.port, tls=True), timeout=5)


async def test_where_it_cannot_be_told_whether_a_server_speaks_tls_the_setting_is_named(
    options: MilvusOptions, process: MilvusProcess
) -> None:
    process.freeze()
    try:
        with pytest.raises(EngineUnavailable, match=r"MILVUS_HOST.*try again.*MILVUS_TLS"):
            await MilvusServer.open(MilvusOptions(options.host, options.port, tls=True), timeout=5)
        with pytest.raises(EngineUnavailable, match=r"MILVUS_HOST.*try again in a few seconds$"):
            await MilvusServer.open(options, timeout=0.5)
    finally:
        process.thaw()


def _certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1, signed by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    files = folder / f"{name}.pem", folder / f"{name}.key"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return files


async def test_tls_and_tokens_are_spoken_and_what_is_wrong_with_either_is_told(
    tmp_path: Path,
) -> None:
    certificate = _certificate(tmp_path, "milvus")
    stranger, _ = _certificate(tmp_path, "stranger")
    server = MilvusProcess(tmp_path / "server", authorization=True, certificate=certificate)

    async def open_with(**given: object) -> None:
        right: dict[str, object] = {
            "token": server.first_token,
            "tls": True,
            "ca": certificate[0],
            "database": "photos",
        }
        opened = await MilvusServer.open(
            MilvusOptions(server.host, server.port, **(right | given)),  # type: ignore[arg-type]
            timeout=20,
        )
        assert not await opened.exists(STORE)
        await opened.close()

    try:
        server.start()
        await open_with()
        for token in ("root:wrong", ""):
            with pytest.raises(ConfigurationError, match="MILVUS_TOKEN"):
                await open_with(token=token)
        for ca in (stranger, None):
            with pytest.raises(ConfigurationError, match="MILVUS_CA"):
                await open_with(ca=ca)
        with pytest.raises(ConfigurationError, match=r"MILVUS_CA=.*cannot be read"):
            await open_with(ca=tmp_path / "missing.pem")
        with pytest.raises(EngineUnavailable, match="MILVUS_HOST"):
            await open_with(tls=False, ca=None)
    finally:
        server.remove()


# Failures


async def test_connections_that_break_are_made_again_without_anybody_noticing(
    vectors: MilvusServer, process: MilvusProcess
) -> None:
    await vectors.upsert(STORE, _rows(range(10)))
    for i in range(5):
        process.cut()
        assert await _misplaced(vectors, [i]) == []
    process.cut()
    await vectors.upsert(STORE, _rows([10]))
    process.cut()
    await vectors.delete(STORE, [0])
    assert await vectors.ids(STORE) == set(range(1, 11))


async def test_an_answer_that_comes_too_late_is_not_waited_for(
    vectors: MilvusServer, process: MilvusProcess
) -> None:
    await vectors.upsert(STORE, _rows(range(10)))
    process.slow(3)
    try:
        start = time.monotonic()
        with deadline(0.5), pytest.raises(EngineUnavailable, match="try again"):
            await _misplaced(vectors, [1])
        assert time.monotonic() - start < 1
    finally:
        process.slow(0)
    assert await _misplaced(vectors, range(10)) == []


async def test_a_frozen_server_costs_no_more_than_the_timeout_and_is_fine_after_it(
    options: MilvusOptions, vectors: MilvusServer, process: MilvusProcess
) -> None:
    await vectors.upsert(STORE, _rows(range(10)))
    vectors._timeout = 0.5
    process.freeze()
    try:
        for call in (
            lambda: vectors.search(STORE, UNITS[:1], 1),
            lambda: vectors.upsert(STORE, _rows(range(10, 20))),
            lambda: MilvusServer.open(options, timeout=0.5),
        ):
            start = time.monotonic()
            with pytest.raises(EngineUnavailable, match=r"MILVUS_HOST.*try again"):
                await call()
            assert time.monotonic() - start < 1
    finally:
        process.thaw()
    vectors._timeout = 20
    assert await _misplaced(vectors, range(10)) == []
    # What was given up may have been done or not; doing it again is right either way.
    await vectors.upsert(STORE, _rows(range(10, 20)))
    assert await _misplaced(vectors, range(20)) == []
    assert await vectors.ids(STORE) == set(range(20))


async def test_kills_lose_nothing_and_searches_meanwhile_are_complete_or_refused(
    options: MilvusOptions, vectors: MilvusServer, process: MilvusProcess
) -> None:
    await vectors.upsert(STORE, _rows(range(2000)))
    await vectors._ask("flush", [STORE])  # some are in files, the rest only in Milvus' log
    there = set(range(2000))
    gone: set[int] = set()
    random = np.random.default_rng(1)
    for round_ in range(2):
        new = range(2000 + 1000 * round_, 3000 + 1000 * round_)
        deleted = [*range(100 * round_, 100 * round_ + 50)]
        await vectors.delete(STORE, deleted)
        await vectors.upsert(STORE, _rows([*range(1900, 2000), *new]))
        there = (there | set(new)) - set(deleted)
        gone |= set(deleted)
        process.kill()
        with pytest.raises(EngineUnavailable):
            await _misplaced(vectors, [1])
        await asyncio.to_thread(process.start, wait_seconds=0)
        # A service that starts now must not see less than the one that has been there.
        fresh = await _open_when_there(options)
        complete = {vectors: 0, fresh: 0}
        end = time.monotonic() + 60
        while min(complete.values()) < 10:
            assert time.monotonic() < end
            sample = random.choice([*there], 100, replace=False).tolist()
            for connection in complete:
                with suppress(EngineUnavailable):
                    assert await _misplaced(connection, sample, gone) == []
                    complete[connection] += 1
        # Neither connection was long in finding the server again.
        assert max(complete.values()) < 60
        assert await vectors.ids(STORE) == there
        await fresh.close()
    await asyncio.to_thread(process.wait_until_ready, 30)


async def _open_when_there(options: MilvusOptions) -> MilvusServer:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with suppress(EngineUnavailable):
            return await MilvusServer.open(options, timeout=20)
        await asyncio.sleep(0.05)
    raise AssertionError("it did not come back")


async def test_a_server_that_has_lost_its_data_is_told_from_one_that_does_not_answer(
    vectors: MilvusServer,
) -> None:
    await vectors._ask("drop_collection", STORE)
    with pytest.raises(EngineUnavailable, match="has lost the vectors"):
        await _misplaced(vectors, [1])
    with pytest.raises(EngineUnavailable, match="has lost the vectors"):
        await vectors.upsert(STORE, _rows([1]))
    assert not await vectors.exists(STORE)
    await vectors.create(STORE, DIMENSION)
    await vectors.upsert(STORE, _rows([1]))
    assert await _misplaced(vectors, [1]) == []
