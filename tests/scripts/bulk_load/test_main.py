"""The command line of a bulk load: what it refuses, and what breaks it off."""

import ipaddress
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

import psutil
import pytest

from scripts.bulk_load.__main__ import main
from tests.object_store import object_store
from tests.photos import draw_photo, encode, write_photos
from tests.service import REPOSITORY, SMALL_PAIR, as_flags


@pytest.fixture(autouse=True)
def _leaves_the_process_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("scripts.bulk_load.__main__.configure_logging", lambda level: None)
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    """Settings of one's own."""
    own = {name.lower(): model for name, model in SMALL_PAIR.items()}
    return as_flags(own | {"data_dir": str(tmp_path / "data")})


@pytest.mark.parametrize("count", ["0", "-1", "many", ""])
def test_a_count_that_is_none_is_refused(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["photos", f"--commit-photos={count}"])
    assert stopped.value.code == 2
    assert "is no count: 1 or more" in capsys.readouterr().err


def test_a_setting_that_is_wrong_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["photos", "--top-k", "none"]) == 2
    assert "TOP_K" in capsys.readouterr().err


def test_milvus_lite_imports_no_files(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), "--import-files", str(tmp_path), *flags]) == 2
    assert "Milvus Lite imports no files" in capsys.readouterr().err


def test_files_for_an_import_need_a_way_to_write_them(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = [*flags, "--milvus-host", "127.0.0.1", "--import-files", "nowhere://bucket/folder"]
    assert main([str(tmp_path), *chosen]) == 2
    assert "--import-files nowhere://bucket/folder: Protocol not known" in capsys.readouterr().err


@pytest.mark.parametrize("holds", ["nothing", "no photo"])
def test_a_folder_without_photos_is_told(
    holds: str, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    if holds == "no photo":
        folder.mkdir()
    assert main([str(folder), *flags]) == 1
    assert str(folder) in capsys.readouterr().err


def test_a_cluster_that_is_not_there_is_told(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_photos(tmp_path / "photos", 1)
    assert main([str(tmp_path / "photos"), "--address", "nowhere", *flags]) == 2
    assert "no Ray answers at nowhere: " in capsys.readouterr().err


_WITHOUT_CORES: Final = """
import os, sys
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
from scripts.bulk_load import cluster, loading
from scripts.bulk_load.__main__ import main
if "none" == sys.argv[1]:
    cluster.count_cores = lambda: 0
    loading.START_SECONDS = 3
else:  # as where another program holds one
    loading.plan_actors = lambda *_: (1, 99)
    cluster.START_SECONDS = 3
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    ("free", "said"),
    [
        ("none", "no process could be started that prepares photos: see that a machine"),
        ("too few", "Timed out while starting actors"),
    ],
)
def test_a_cluster_without_cores_to_give_is_not_waited_for_for_ever(
    free: str, said: str, flags: list[str], tmp_path: Path
) -> None:
    write_photos(tmp_path / "photos", 1)
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_CORES, free, str(tmp_path / "photos"), *flags],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode in (1, 2), done.stderr
    assert said in done.stderr.splitlines()[-1]


def test_a_store_that_refuses_breaks_the_load_off_and_fails_no_photo(
    flags: list[str], tmp_path: Path
) -> None:
    listening: set[str] = set()
    log = tmp_path / "log"
    with object_store() as store:
        store.fill("bucket", {f"photos/{i}.jpg": encode(draw_photo(i)) for i in range(120)})
        store.refuse_after(90)  # of which 64 are measured with
        sources = ["s3://bucket/photos", "--allowed-roots", "s3://bucket"]
        # A process of its own: Ray warns of itself, and every warning is an error here.
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "scripts.bulk_load", *sources, *flags],
                env=os.environ | store.environment,
                stdout=output,
                stderr=output,
            )
        try:
            while process.poll() is None:
                listening.update(_listening(process.pid))
                time.sleep(2)  # it takes some time itself
        finally:
            process.kill()
            process.wait()
    said = log.read_text()
    assert process.returncode == 1, said
    assert "MapWorker" in said  # not the actor that is measured
    assert "error: the load broke off (the photo store s3://bucket refuses this service" in said
    with closing(sqlite3.connect(tmp_path / "data" / "catalog.db")) as catalog:
        assert catalog.execute("SELECT count(*) FROM images WHERE state = 'failed'").fetchone() == (
            0,
        )
    assert listening
    assert all(ipaddress.ip_address(each.removeprefix("::ffff:")).is_loopback for each in listening)


def test_a_load_that_is_stopped_ends_what_it_has_begun_and_says_so(
    flags: list[str], tmp_path: Path
) -> None:
    write_photos(tmp_path / "photos", 150)
    command = [sys.executable, "-m", "scripts.bulk_load", str(tmp_path / "photos"), *flags]
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--commit-photos", "32"], cwd=REPOSITORY, stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + 100
        while "event=bulk_load.written" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    finally:
        process.kill()
        process.wait()
    said = log.read_text()
    assert code == 1, said
    assert "stopped; the same command goes on from here" in said
    assert "of=150" in said
    assert "photos=150" not in said
    assert "stop.forced" not in said
    assert "Traceback" not in said
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive


def _listening(pid: int) -> set[str]:
    """The addresses that a process and its children listen on."""
    found: set[str] = set()
    with suppress(psutil.Error):
        for process in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.Error):
                found.update(
                    each.laddr.ip
                    for each in process.net_connections("inet")
                    if each.status == psutil.CONN_LISTEN
                )
    return found
