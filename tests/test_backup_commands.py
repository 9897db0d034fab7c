"""`python -m backend export` and `import`: alone, beside a service, and killed in the middle."""

import asyncio
import os
import random
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import requests

from backend.__main__ import main
from backend.app import open_services
from backend.archive import ArchivedCollection
from backend.checking import check_collections
from backend.files import lock_file, note_address, owners_address
from backend.serving.models import Embedder
from backend.serving.onnx import OnnxServer
from backend.settings import Settings
from tests.archives import content, photo_row, read_all
from tests.forked import ForkedProgram
from tests.photos import draw_photo, encode, write_photos
from tests.service import REPOSITORY, SMALL_PAIR, Service

_IMAGES = 1200
_FILES = 24
_Run = Callable[..., tuple[int, str]]
_TAR = {"Content-Type": "application/x-tar"}


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Runs a command in this process; returns its exit code and what it says."""
    monkeypatch.setattr("backend.__main__.configure_logging", lambda level: None)
    for name, model in SMALL_PAIR.items():
        monkeypatch.setenv(name, model)

    def run(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        code = main(arguments)
        return code, capsys.readouterr().err

    return run


def _answers(service: Service, table: str, photos: Sequence[Path]) -> list[Any]:
    return [service.search(path.read_bytes(), table=table).json() for path in photos]


# Beside a service


def test_a_running_service_is_found_and_asked(service: Service, tmp_path: Path, run: _Run) -> None:
    photos = write_photos(tmp_path / "photos", 3)
    service.load(tmp_path / "photos")
    file, data = tmp_path / "export.tar", ("--data-dir", str(tmp_path / "data"))
    code, said = run("export", str(file), "--photos", *data)
    assert code == 0, said
    assert f"asking the service at {service.url}" in said
    assert "milvus_obj_det with 3 photos, 3 objects, 3 photos' files" in said
    assert read_all(file)[0].manifest.photos is not None
    left = {path.name for path in tmp_path.iterdir() if not path.name.startswith("service-")}
    assert left == {"photos", "data", "export.tar"}

    assert run("export", str(file), *data)[0] == 0  # it replaces the file, all at once
    assert read_all(file)[0].manifest.photos is None
    code, said = run("import", str(file), "--collection", "other", *data)
    assert code == 0, said
    assert "other: 3 photos with 3 objects imported" in said
    before = _answers(service, "milvus_obj_det", photos)
    assert _answers(service, "other", photos) == before

    code, said = run("import", str(file), *data)
    assert code == 1
    assert "there is a collection 'milvus_obj_det'" in said
    assert run("import", str(file), "--replace", *data)[0] == 0
    assert _answers(service, "milvus_obj_det", photos) == before

    # From elsewhere, with no data folder in common.
    there = ("--url", service.url, "--data-dir", str(tmp_path / "elsewhere"))
    assert run("export", str(tmp_path / "2.tar"), "--table", "other", *there)[0] == 0
    code, said = run("export", str(tmp_path / "3.tar"), "--table", "none", *there)
    assert (code, (tmp_path / "3.tar").exists()) == (1, False)
    assert "there is no collection 'none'" in said
    whole = file.read_bytes()
    file.write_bytes(whole[:-600])
    code, said = run("import", str(file), "--collection", "third", *there)
    assert code == 1
    assert "its end is missing" in said
    names = [each["name"] for each in service.get("/api/v1/collections").json()["items"]]
    assert names == ["milvus_obj_det", "other"]
    assert not [path for path in (tmp_path / "data").iterdir() if "tmp" in path.name]


def test_an_address_is_that_of_whoever_has_the_lock(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    assert owners_address(lock) is None
    descriptor = lock_file(lock)
    assert owners_address(lock) is None  # a command has it, which cannot be asked
    note_address(lock, "http://127.0.0.1:1")
    assert owners_address(lock) == "http://127.0.0.1:1"
    with pytest.raises(BlockingIOError, match=rf"^{os.getpid()}$"):
        lock_file(lock)
    os.close(descriptor)
    assert owners_address(lock) is None
    os.close(lock_file(lock))
    assert "http" not in lock.read_text()


def test_without_a_service_a_command_does_it_itself(tmp_path: Path, run: _Run) -> None:
    write_photos(tmp_path / "photos", 2)
    data = ("--data-dir", str(tmp_path / "data"))
    assert run("load", str(tmp_path / "photos"), *data)[0] == 0
    code, said = run("export", str(tmp_path / "x.tar"), "--photos", *data)
    assert code == 0, said
    assert "asking" not in said
    (tmp_path / "photos" / "photo 0000.jpg").unlink()
    code, said = run("export", str(tmp_path / "y.tar"), "--photos", *data)
    assert code == 0
    assert "1 photos are gone or have changed" in said
    code, said = run("import", str(tmp_path / "x.tar"), "--table", "other", *data)
    assert code == 0, said
    assert "other: 2 photos with 2 objects imported, 2 photos' files" in said
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "data", "x.tar", "y.tar"}


def test_a_service_that_is_not_there_is_one_clear_line(tmp_path: Path, run: _Run) -> None:
    code, said = run("export", str(tmp_path / "x.tar"), "--url", "http://127.0.0.1:9")
    assert (code, list(tmp_path.iterdir())) == (1, [])
    assert "http://127.0.0.1:9 does not answer" in said.splitlines()[-1]


def test_what_is_not_installed_is_said(
    tmp_path: Path, run: _Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, said = run("export", str(tmp_path / "x.tar"), "--data-dir", str(tmp_path / "data"))
    assert code == 1
    assert "pip install 'image-similarity-search[backup]'" in said
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "/no folder/x.tar"], "No such file or directory"),
        (["export", "x.tar", "--collection", "no name"], "'no name' is no collection's name"),
        (["import", "/no such file"], "No such file or directory"),
        (["import", "/dev/null"], "no regular file"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_clear_line(
    arguments: list[str], words: str, tmp_path: Path, run: _Run
) -> None:
    code, said = run(*arguments, "--url", "http://127.0.0.1:9", "--data-dir", str(tmp_path))
    assert code == 1
    [line] = said.splitlines()
    assert line.startswith("error: ")
    assert words in line


# Over HTTP


def test_requests_that_cannot_be_done_are_refused(
    start_service: Callable[..., Service], tmp_path: Path
) -> None:
    write_photos(tmp_path / "photos", 2)
    service = start_service("--max-import-bytes", "100000")
    service.load(tmp_path / "photos")
    path = "/api/v1/collections/milvus_obj_det"
    answer = service.get(f"{path}/export", params={"photos": "false"})
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/x-tar"
    assert int(answer.headers["Content-Length"]) == len(answer.content)
    head = requests.head(service.url + f"{path}/export", timeout=30)
    assert (head.status_code, head.content) == (200, b"")

    def refused(status: int, code: str, name: str = "other", **options: Any) -> str:
        answer = service.post(f"/api/v1/collections/{name}/import", **options)
        assert answer.status_code == status, answer.text
        assert answer.json()["code"] == code
        return str(answer.json()["detail"])

    good = answer.content
    refused(409, "conflict", "milvus_obj_det", data=good, headers=_TAR)
    refused(415, "unsupported_media_type", data=good, headers={"Content-Type": "text/plain"})
    refused(400, "invalid_input", name="a-b", data=good, headers=_TAR)
    refused(400, "invalid_input", data=good, headers=_TAR, params={"replace": "perhaps"})
    assert "nothing was imported" in refused(400, "invalid_input", data=b"x", headers=_TAR)
    assert "damaged" in refused(400, "invalid_input", data=b"\1" + good[1:], headers=_TAR)
    for body in (b"x" * 100_001, (b"x" * 1000 for _ in range(101))):  # told before, and not
        assert "MAX_IMPORT_BYTES" in refused(413, "too_large", data=body, headers=_TAR)
    refused(400, "invalid_input", data=b"x" * 100_000, headers=_TAR)
    for missing in ("none", "other"):
        assert service.get(f"/api/v1/collections/{missing}/export").status_code == 404
        head = requests.head(f"{service.url}/api/v1/collections/{missing}/export", timeout=30)
        assert head.status_code == 404
    answer = service.post("/api/v1/collections/other/import", data=good, headers=_TAR)
    assert answer.status_code == 200
    assert answer.json() == {
        "collection": "other",
        "images": 2,
        "failed": 0,
        "objects": 2,
        "files": 0,
    }


# Killed


async def _embedder() -> Embedder:
    models = OnnxServer(REPOSITORY / "model_repository")
    try:
        return Embedder(await models.load(SMALL_PAIR["EMBEDDER_MODEL"]))
    finally:
        await models.close()


def _large_export(path: Path) -> None:
    """An export that takes a second or two to import, with photos."""
    embedder = asyncio.run(_embedder())
    made = content(
        ArchivedCollection(
            name="t",
            embedder=embedder.name,
            embedder_sha256=embedder.sha256,
            dimension=embedder.dimension,
            metric="L2",
        ),
        _IMAGES,
    )
    for number in range(_FILES):
        data = encode(draw_photo(number, width=32, height=32))
        at = number * (_IMAGES // _FILES)
        made.images[at], name = photo_row(f"/photos/{at}.jpg", data)
        made.photos[name] = data
    with path.open("w+b") as file:
        made.write(file)


def _rows(data_dir: Path) -> tuple[list[tuple[str, str]], int]:
    """Names and states of the collections, and how many photos' rows there are."""
    with closing(sqlite3.connect(f"file:{data_dir / 'catalog.db'}?mode=ro", uri=True)) as catalog:
        collections = catalog.execute("SELECT name, state FROM collections").fetchall()
        [count] = catalog.execute("SELECT count(*) FROM images").fetchone()
    return collections, int(count)


def _import_until(file: Path, data_dir: Path, images: int) -> bool:
    """Kills an import when so many photos are written; returns whether it died before its end."""
    arguments = ("import", str(file), "--data-dir", str(data_dir))
    nowhere = Path(os.devnull)
    process = ForkedProgram(arguments, {**os.environ, **SMALL_PAIR}, nowhere, nowhere)
    end = time.monotonic() + 60
    try:
        while process.poll() is None:
            assert time.monotonic() < end
            try:
                collections, count = _rows(data_dir)
            except sqlite3.OperationalError:  # it is not there yet
                continue
            if collections and count >= images:
                break
            time.sleep(0.005)
    finally:
        process.kill()
    return process.wait() != 0


def test_kills_in_the_middle_of_an_import_leave_nothing_of_it(tmp_path: Path) -> None:
    file, data_dir = tmp_path / "export.tar", tmp_path / "data"
    _large_export(file)
    draw = random.Random(6)
    moments = [0, draw.randrange(1, _IMAGES)]
    died = [_import_until(file, data_dir, images) for images in moments]
    assert any(died)
    collections, _ = _rows(data_dir)
    assert [state for _, state in collections] in (["importing"], ["ready"])
    settings = Settings.load(
        data_dir=data_dir, **{name.lower(): model for name, model in SMALL_PAIR.items()}
    )
    asyncio.run(_look_and_import(settings, file))


async def _look_and_import(settings: Settings, file: Path) -> None:
    async with open_services(settings) as services:  # a start, which clears up
        vectors: Any = services.vectors
        if not await services.catalog.collection("t"):
            assert _rows(settings.data_dir) == ([], 0)
            assert list(await vectors._ask("list_collections")) == []
            assert not list(settings.uploads.rglob("*.*"))
        with file.open("rb") as opened:
            done = await services.backups.restore(opened, replace=True)
        assert (done.images, done.objects, done.files) == (_IMAGES, _IMAGES, _FILES)
        [report] = await check_collections(
            services.catalog, services.vectors, services.analyzer.embedder, services.writer
        )
        assert report.is_consistent
        assert (report.photos, report.objects) == (_IMAGES, _IMAGES)
        assert len(await vectors._ask("list_collections")) == 1
        assert len(list(settings.uploads.rglob("*.jpeg"))) == _FILES
