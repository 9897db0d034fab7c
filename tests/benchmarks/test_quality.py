"""The whole benchmark of quality, with the small models, on a handful of drawn photos."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import psutil
import pytest

from benchmarks.quality.__main__ import measure, render
from benchmarks.quality.photos import measure_photos
from benchmarks.voc import VocPhoto, read_split
from tests.service import REPOSITORY


def ignore(_message: str) -> None:
    """Takes what a measurement tells of its progress."""


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary folders are made, to see that none stays.

    Its path is short: Milvus Lite's socket lies there, and may have 107 characters.
    """
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def in_0_to_1(value: object) -> bool:
    return isinstance(value, float) and 0 <= value <= 1


async def test_everything_is_measured_and_nothing_stays(
    annotated: Path, temporary: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    processes = psutil.Process().children()
    pictures = tmp_path / "pages" / "searches.png"
    report = await measure(annotated, 12, pictures=pictures, log=told.append)

    for section, keys in (
        ("detector", ("map50", "map")),
        ("retrieval", ("p_at_1", "p_at_10", "map", "chance", "chance_map", "histogram_map")),
        ("photos", ("p_at_1", "p_at_10", "chance")),
    ):
        assert all(in_0_to_1(report[section][key]) for key in keys), section
        assert set(report[section]["per_class"]) == {"bus", "cat", "sheep"}
    assert (report["retrieval"]["gallery_objects"], report["retrieval"]["query_objects"]) == (24, 8)
    assert (report["photos"]["gallery_photos"], report["photos"]["query_photos"]) == (12, 5)
    # Objects of one look are told from others, and by their colours too.
    assert report["retrieval"]["map"] > report["retrieval"]["chance_map"] + 0.2
    assert report["retrieval"]["histogram_map"] > report["retrieval"]["chance_map"] + 0.2
    assert report["photos"]["p_at_10"] >= report["photos"]["chance"] - 0.2

    detector, embedder = report["models"].values()
    assert set(detector) == {"input", "sha256"}
    assert set(embedder) == {"input", "sha256", "crop_geometry", "crop_margin"}
    assert report["versions"].keys() >= {"onnxruntime", "pycocotools", "scikit-learn"}
    json.dumps(report)
    assert [row.split()[0] for row in told] == [
        "detecting",
        "embedding",
        "loading",
        "searching",
        "drawing",
    ]
    assert render(report).row_count == 4

    page = cv2.imread(str(pictures))
    assert page is not None
    assert page.shape[1] == 2000
    assert list(temporary.iterdir()) == []
    assert psutil.Process().children() == processes


def test_the_command_prints_the_table_and_writes_the_report(
    annotated: Path, temporary: Path, tmp_path: Path
) -> None:
    path = tmp_path / "quality.json"
    done = subprocess.run(
        (
            *(sys.executable, "-m", "benchmarks.quality"),
            *("--data", str(annotated), "--gallery", "4", "--json", str(path)),
            *("--engine", "openvino-f32"),
        ),
        cwd=REPOSITORY,
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "8 objects among 8; 5 photos among 4; detection in 5 photos" in done.stdout
    assert "sheep" in done.stdout
    # Neither the service nor the libraries say more than the benchmark does.
    assert [line.split()[0] for line in done.stderr.splitlines()] == [
        "detecting",
        "embedding",
        "loading",
        "searching",
    ]
    report = json.loads(path.read_text())
    assert report["retrieval"]["gallery_photos"] == 4
    assert (report["engine"], "openvino" in report["versions"]) == ("openvino-f32", True)
    # Milvus Lite's own log stays, as it does of every service.
    assert not [found for found in temporary.iterdir() if found.name.startswith("tmp")]


# Photos through the service


async def test_a_photo_finds_itself_first_and_is_right_by_its_labels(
    annotated: Path, temporary: Path
) -> None:
    photos = read_split(annotated / "train")
    photos[3] = VocPhoto(photos[3].path, ())  # nothing in it: no query, and never right
    found = await measure_photos(photos, photos, ignore)
    assert found.queries == [index for index in range(14) if index != 3]
    assert found.nearest[:, 0].tolist() == found.queries
    assert (found.distances[:, 0] < 1e-3).all()
    assert found.matches[:, 0].all()
    for row, query in enumerate(found.queries):
        assert found.matches[row].tolist() == [
            bool(photos[query].labels & photos[hit].labels) for hit in found.nearest[row]
        ]
        related = [bool(photos[query].labels & photo.labels) for photo in photos]
        assert found.chances[row] == pytest.approx(sum(related) / 14)


async def test_what_a_small_gallery_lacks_are_misses(annotated: Path, temporary: Path) -> None:
    photos = read_split(annotated / "train")
    found = await measure_photos(photos[1:3], photos[1:2], ignore)
    assert found.nearest.tolist() == [[0, 1] + [-1] * 8]
    assert not found.matches[:, 2:].any()
    assert found.precisions.tolist() == [found.matches[0, :2].sum() / 10]


async def test_a_photo_that_cannot_be_loaded_ends_the_measurement(
    annotated: Path, temporary: Path
) -> None:
    photos = read_split(annotated / "train")[:3]
    photos[1].path.write_bytes(b"no photo")
    with pytest.raises(RuntimeError, match="the service has loaded 2 of 3 photos"):
        await measure_photos(photos, photos[:1], ignore)
    assert list(temporary.iterdir()) == []


async def test_a_query_that_the_service_refuses_ends_the_measurement(
    annotated: Path, temporary: Path
) -> None:
    photos = read_split(annotated / "train")[:3]
    broken = VocPhoto(annotated / "train" / "annotations.jsonl", photos[1].objects)
    with pytest.raises(RuntimeError, match="answered /img/search with 4"):
        await measure_photos(photos, [broken], ignore)
    assert list(temporary.iterdir()) == []
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
