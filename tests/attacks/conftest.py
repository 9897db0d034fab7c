"""The two servers under attack, with the same world around them."""

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest

from backend.app import open_keys
from backend.keys import make_key, revoke_key
from backend.settings import Settings
from tests.attacks.canary import Canary, singing
from tests.attacks.cases import Case
from tests.attacks.catalog import CASES
from tests.attacks.slow import ATTACKS as SLOW
from tests.attacks.slow import SERVER_SECONDS
from tests.attacks.target import BUCKET, OTHERS_BUCKET, TOKEN, Keys, Target, World
from tests.object_store import ObjectStore, object_store
from tests.photos import draw_photo, encode
from tests.service import REPOSITORY, start

_GUARDED: Final = ("--require-api-key", "true")
_NO_KEYS: Final = Keys("read-key", "write-key", "admin-key", "revoked-key", "other-key")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Folders that both servers may get at."""
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def canary() -> Iterator[Canary]:
    """An internal server."""
    with singing() as canary:
        yield canary


@pytest.fixture(scope="session")
def store(world: World) -> Iterator[ObjectStore]:
    """A store with photos that may be loaded, and with others' photos."""
    secret = world.secret_photo.read_bytes()
    with object_store() as opened:
        opened.fill(BUCKET, {"photos/a.jpg": encode(draw_photo(1)), "photos2/secret.jpg": secret})
        opened.fill(OTHERS_BUCKET, {"photos/secret.jpg": secret})
        yield opened


@pytest.fixture(scope="session")
def careless(
    world: World, canary: Canary, store: ObjectStore, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Target]:
    """The server that makes every mistake."""
    folder = tmp_path_factory.mktemp("careless")
    log, uploads = folder / "log", folder / "uploads"
    # As a session's environment is: home is where the photos are, and passwords are in it.
    environment = os.environ | {"HOME": str(world.folder), "MYSQL_PWD": TOKEN} | store.environment
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.attacks.careless", str(world.folder), str(uploads)],
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        port = _port(log, process)
        address = ("127.0.0.1", port)
        yield Target(address, address, _NO_KEYS, world, uploads, log, canary, process.pid)
    finally:
        process.kill()
        process.wait()


def _port(log: Path, process: subprocess.Popen[bytes]) -> int:
    end = time.monotonic() + 60
    while not (found := re.search(r"port=(\d+)", log.read_text())):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, "it has not come to listen in 60 s"
        time.sleep(0.02)
    return int(found[1])


@pytest.fixture(scope="session")
def service_under_attack(
    world: World, canary: Canary, store: ObjectStore, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Target]:
    """The service: one process as it is on loopback, and one that demands keys."""
    attacked = tmp_path_factory.mktemp("attacked")
    with (
        _served(world, canary, attacked, *_fetching(canary), store=store) as target,
        _served(world, canary, tmp_path_factory.mktemp("guarded"), *_GUARDED) as guarded,
    ):
        target.guarded, target.keys = guarded.address, guarded.keys
        yield target


def _fetching(canary: Canary) -> tuple[str, ...]:
    """Flags that let the service fetch from one address of loopback, and from no other."""
    return (
        *("--url-fetch", "true", "--url-fetch-networks", "127.0.0.5/32"),
        *("--url-fetch-ports", f"80,443,{canary.port}"),
    )


@contextmanager
def _served(
    world: World, canary: Canary, folder: Path, *flags: str, store: ObjectStore | None = None
) -> Iterator[Target]:
    # A password that is set and used for nothing shows wherever settings leak.
    prefix = ("env", f"HOME={world.folder}", f"MYSQL_PWD={TOKEN}")
    stored = "" if store is None else f":s3://{BUCKET}/photos"
    roots = ("--allowed-roots", f"{world.photos}{stored}")
    environment = None if store is None else store.environment
    service = start(folder, (*roots, *flags), folder / "data", prefix, environment)
    try:
        keys = asyncio.run(_make_keys(folder / "data"))
        bearer = {"Authorization": f"Bearer {keys.admin}"}
        assert service.load(world.photos, headers=bearer).status_code == 200
        parts = urlsplit(service.url)
        address = (str(parts.hostname), int(parts.port or 0))
        yield Target(
            address,
            address,
            keys,
            world,
            folder / "data",
            service.log,
            canary,
            service.process.pid,
        )
        assert service.process.poll() is None, "the service has ended"
    finally:
        service.stop()


async def _make_keys(data_dir: Path) -> Keys:
    """Keys of a service that runs."""
    async with open_keys(Settings(data_dir=data_dir)) as table:
        _, read = await make_key(table, ["read"])
        _, write = await make_key(table, ["write"])
        _, admin = await make_key(table, ["admin"])
        revoked_key, revoked = await make_key(table, ["read"])
        _, other = await make_key(table, ["read", "write"], collections=["other_only"])
        await revoke_key(table, revoked_key.id)
    return Keys(read, write, admin, revoked, other)


SlowOutcomes = dict[str, tuple[bool, bool]]


@pytest.fixture(scope="session")
def slow_outcomes(
    careless: Target, world: World, canary: Canary, tmp_path_factory: pytest.TempPathFactory
) -> SlowOutcomes:
    """Whether each slow client got through, at the careless server and here: all at once."""
    flags = tuple(
        part
        for name in ("upload", "idle", "send")
        for part in (f"--{name}-timeout", str(SERVER_SECONDS))
    )
    with (
        _served(world, canary, tmp_path_factory.mktemp("slow"), *flags) as ours,
        ThreadPoolExecutor(2 * len(SLOW.cases)) as threads,
    ):
        running: dict[str, tuple[Future[bool], Future[bool]]] = {
            case.name: (
                threads.submit(case.attack, careless),
                threads.submit(case.attack, ours),
            )
            for case in SLOW.cases
        }
        return {name: (one.result(), other.result()) for name, (one, other) in running.items()}


@pytest.fixture(params=CASES, ids=lambda case: f"{case.kind}: {case.name}")
def case(request: pytest.FixtureRequest) -> Case:
    """One of all attacks."""
    found = request.param
    assert isinstance(found, Case)
    return found
