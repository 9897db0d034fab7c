"""What is Milvus Lite's own: the file, the process, and what kills either."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.errors import ConfigurationError, EngineUnavailable
from backend.storage.vectors import MilvusLite, ObjectVector

DIMENSION = 8
STORE = "photos_1"
ROOT = Path(__file__).parents[2]


def _unit(count: int, seed: int = 0, dimension: int = DIMENSION) -> NDArray[np.float32]:
    values = np.random.default_rng(seed).normal(size=(count, dimension))
    unit: NDArray[np.float32] = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(
        np.float32
    )
    return unit


def _rows(units: NDArray[np.float32], *, first: int = 1) -> list[ObjectVector]:
    return [
        ObjectVector(index, 100 + index // 2, "cat", 0.5, unit)
        for index, unit in enumerate(units, first)
    ]


@pytest.fixture
async def vectors(tmp_path: Path) -> AsyncIterator[MilvusLite]:
    """A database with an empty collection."""
    opened = await MilvusLite.open(tmp_path, timeout=20)
    await opened.create(STORE, DIMENSION)
    yield opened
    await opened.close()


async def _answers(
    vectors: MilvusLite, units: NDArray[np.float32]
) -> tuple[set[int], list[list[int]]]:
    answers = await vectors.search(STORE, units[:5], 10)
    return await vectors.ids(STORE), [[hit.object_id for hit in hits] for hits in answers]


# The file


async def test_everything_is_there_after_reopening(tmp_path: Path) -> None:
    units = _unit(50)
    first = await MilvusLite.open(tmp_path)
    await first.create(STORE, DIMENSION)
    await first.upsert(STORE, _rows(units))
    await first.delete(STORE, sorted(await first.ids_of_images(STORE, [_rows(units)[0].image_id])))
    before = await _answers(first, units)
    await first.close()
    second = await MilvusLite.open(tmp_path)
    try:
        await second.create(STORE, DIMENSION)
        assert await _answers(second, units) == before
        await second.upsert(STORE, _rows(_unit(1, seed=3), first=51))
        assert 51 in await second.ids(STORE)
    finally:
        await second.close()


async def test_a_second_process_is_refused_however_often_it_tries(
    vectors: MilvusLite, tmp_path: Path
) -> None:
    await vectors.upsert(STORE, _rows(_unit(2)))
    script = """
import asyncio, sys
from pathlib import Path
from backend.errors import ConfigurationError
from backend.storage.vectors import MilvusLite
try:
    asyncio.run(MilvusLite.open(Path(sys.argv[1])))
    print("opened")
except ConfigurationError as error:
    print(error)
"""
    for _ in range(2):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "ignore", "-c", script, str(tmp_path)),
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
        )
        output, _ = await process.communicate()
        assert "vectors.db: another process has it open" in output.decode()
    assert await vectors.ids(STORE) == {1, 2}


async def test_a_damaged_file_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "vectors.db").write_bytes(b"this is no database" * 500)
    with pytest.raises(ConfigurationError, match=r"vectors\.db.*damaged"):
        await MilvusLite.open(tmp_path)


async def test_a_folder_that_does_not_exist_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"missing/vectors\.db"):
        await MilvusLite.open(tmp_path / "missing")


async def test_a_folder_too_long_for_the_socket_is_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with pytest.raises(ConfigurationError, match="longer than 107 bytes; set TMPDIR"):
        await MilvusLite.open(tmp_path)
    monkeypatch.undo()
    opened = await MilvusLite.open(tmp_path)
    await opened.close()


# The process


async def test_a_process_that_dies_is_started_again_with_all_that_was_acknowledged(
    vectors: MilvusLite,
) -> None:
    units = _unit(150)
    for round_ in range(3):
        rows = _rows(units[50 * round_ : 50 * round_ + 50], first=50 * round_ + 1)
        await vectors.upsert(STORE, rows)
        os.kill(vectors._process.pid, signal.SIGKILL)
        # The call that meets the death may be refused; those after it wait for the new process.
        answers = await asyncio.gather(
            *(vectors.search(STORE, row.vector[np.newaxis], 1) for row in rows),
            return_exceptions=True,
        )
        assert all(isinstance(answer, list | EngineUnavailable) for answer in answers)
        for row in rows[::10]:
            [[hit]] = await vectors.search(STORE, row.vector[np.newaxis], 1)
            assert hit.object_id == row.id
            assert hit.distance == pytest.approx(0, abs=1e-5)
        assert await vectors.ids(STORE) == set(range(1, 50 * round_ + 51))


async def test_after_a_death_the_first_call_of_each_kind_is_answered(vectors: MilvusLite) -> None:
    await vectors.upsert(STORE, _rows(_unit(4)))
    calls: tuple[Callable[[], Awaitable[object]], ...] = (
        lambda: vectors.upsert(STORE, _rows(_unit(2), first=5)),
        lambda: vectors.delete(STORE, [1]),
        lambda: vectors.create("photos_2", DIMENSION),
        lambda: vectors.drop("photos_2"),
    )
    for call in calls:
        os.kill(vectors._process.pid, signal.SIGKILL)
        while vectors._process.is_running:
            await asyncio.sleep(0.01)
        await call()
    assert await vectors.ids(STORE) == {2, 3, 4, 5, 6}


async def test_a_caller_that_gives_up_leaves_the_restart_to_the_others(
    vectors: MilvusLite,
) -> None:
    await vectors.upsert(STORE, _rows(_unit(4)))
    os.kill(vectors._process.pid, signal.SIGKILL)
    while vectors._process.is_running:
        await asyncio.sleep(0.01)
    first = asyncio.create_task(vectors.ids(STORE))
    await asyncio.sleep(0.05)
    second = asyncio.create_task(vectors.ids(STORE))
    first.cancel()
    assert await second == {1, 2, 3, 4}
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_frozen_process_costs_no_more_than_the_timeout_and_is_fine_after_it(
    vectors: MilvusLite,
) -> None:
    await vectors.upsert(STORE, _rows(_unit(4)))
    vectors._timeout = 0.5
    process = vectors._process.pid
    os.kill(process, signal.SIGSTOP)
    try:
        start = time.monotonic()
        with pytest.raises(EngineUnavailable, match="try again"):
            await vectors.search(STORE, _unit(1), 10)
        assert time.monotonic() - start < 1
    finally:
        os.kill(process, signal.SIGCONT)
    vectors._timeout = 20
    assert await vectors.ids(STORE) == {1, 2, 3, 4}
    assert vectors._process.pid == process


# The disk


def test_what_a_full_disk_refuses_is_not_acknowledged_and_space_mends_it(tmp_path: Path) -> None:
    # A file system of a few megabytes, in a mount namespace of its own: it goes with the process.
    namespace = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "-r", "--mount"]
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(tmp_path)]
    if subprocess.run([*namespace, *mount], capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    script = f"from tests.storage.test_milvus_lite import fill_disk; fill_disk({str(tmp_path)!r})"
    done = subprocess.run(
        [*namespace, sys.executable, "-W", "ignore", "-c", script],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["refused"] == "EngineUnavailable"
    assert found["acknowledged"] > 0
    assert found["while full"] == found["acknowledged"]
    assert found["with space"] == found["acknowledged"] + 100
    assert found["reopened"] == found["with space"]


def fill_disk(folder: str) -> None:
    """Runs in a process and a mount namespace of its own; prints what happened."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", folder]
    subprocess.run(mount, check=True)
    sys.stdout.write(json.dumps(asyncio.run(_fill_disk(Path(folder)))))


async def _fill_disk(folder: Path) -> dict[str, object]:
    units = _unit(100, dimension=256)
    happened: dict[str, object] = {}
    vectors = await MilvusLite.open(folder)
    await vectors.create(STORE, 256)
    first = 0
    try:
        while first < 10_000:
            await vectors.insert(STORE, _rows(units, first=first))
            first += 100
    except EngineUnavailable as error:
        happened["refused"] = type(error).__name__
    happened["acknowledged"] = first
    happened["while full"] = len(await vectors.ids(STORE))
    remount = ["mount", "-o", "remount,size=60m", str(folder)]
    await asyncio.to_thread(subprocess.run, remount, check=True)
    # What the catalog does after a failure: its photos are undone, and come again under new ids.
    await vectors.delete(STORE, range(first, first + 100))
    await vectors.insert(STORE, _rows(units, first=first + 100))
    happened["with space"] = len(await vectors.ids(STORE))
    await vectors.close()
    vectors = await MilvusLite.open(folder)
    await vectors.create(STORE, 256)
    happened["reopened"] = len(await vectors.ids(STORE))
    await vectors.close()
    return happened


async def test_processes_leave_each_other_and_the_users_home_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "nobody" / "home"
    monkeypatch.setenv("HOME", str(home))
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    one, two = await asyncio.gather(*map(MilvusLite.open, folders))
    try:
        assert os.environ["HOME"] == str(home)
        await asyncio.gather(*(engine.create(STORE, 8) for engine in (one, two)))
        await one.close()  # and removes what it has made there
        row = ObjectVector(1, 1, "cat", 0.5, np.ones(8, np.float32))
        await two.insert(STORE, [row])
        await two.create("another", 8)
        assert await two.ids(STORE) == {1}
    finally:
        await two.close()
    assert not home.exists()
