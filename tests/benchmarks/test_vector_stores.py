"""The vectors that stand for many objects, the processes that are weighed, what is concluded."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from benchmarks.vector_stores.__main__ import missed
from benchmarks.vector_stores.embedded import measure_embedded
from benchmarks.vector_stores.processes import ANSWER, WorkerFailed, run_worker
from benchmarks.vector_stores.vectors import (
    NOISE,
    expansion,
    make_queries,
    multiply,
    nearest,
)
from benchmarks.vector_stores.versions import CHOSEN, Case, cases, measure_case, recall
from benchmarks.voc import DescribedObjects


def real_objects(count: int, dimension: int) -> DescribedObjects:
    vectors = np.random.default_rng(1).standard_normal((count, dimension)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels = tuple(f"label {index % 3}" for index in range(count))
    return DescribedObjects(labels, np.arange(count) // 2, vectors)


def ignore(_message: str) -> None:
    """Takes what a measurement tells of its progress."""


def test_an_expansion_keeps_every_distance() -> None:
    objects = real_objects(20, 8).vectors
    expanded = objects @ expansion(8, 32, seed=0)
    assert expanded.shape == (20, 32)
    np.testing.assert_allclose(expanded @ expanded.T, objects @ objects.T, atol=1e-6)
    np.testing.assert_array_equal(objects @ expansion(8, 8, seed=0), objects)


def test_copies_are_unit_vectors_near_their_originals_in_photos_of_their_own() -> None:
    objects = real_objects(10, 512)
    many = multiply(objects, 25, expansion(512, 512, seed=0), seed=0)
    assert many.labels == (objects.labels * 3)[:25]
    assert np.linalg.norm(many.vectors, axis=1) == pytest.approx(1, abs=1e-6)
    cosines = (many.vectors * np.tile(objects.vectors, (3, 1))[:25]).sum(axis=1)
    assert cosines == pytest.approx(1 / np.sqrt(1 + NOISE**2), abs=0.03)
    assert len({row.tobytes() for row in many.vectors}) == 25
    assert many.photos.tolist() == np.repeat(range(13), 2)[:25].tolist()


def test_queries_are_spread_over_the_objects() -> None:
    objects = real_objects(9, 4)
    queries = make_queries(objects, 3, expansion(4, 4, seed=0))
    np.testing.assert_array_equal(queries.vectors, objects.vectors[[0, 4, 8]])
    assert queries.labels == ("label 0", "label 1", "label 2")
    assert len(make_queries(objects, 100, expansion(4, 4, seed=0)).labels) == 9


def test_nearest_is_what_sorting_all_distances_gives() -> None:
    vectors, queries = real_objects(40, 6).vectors, real_objects(60, 6).vectors[40:]
    distances = ((queries[:, None] - vectors[None]) ** 2).sum(axis=2)
    np.testing.assert_array_equal(nearest(vectors, queries, 5), distances.argsort(axis=1)[:, :5])


def test_recall_is_the_part_of_the_true_nearest_that_was_found() -> None:
    truth = np.array([[1, 2], [3, 4]])
    assert recall([[1, 2], [4, 3]], truth) == 1
    assert recall([[1, 9], [8, 7]], truth) == 0.25


def test_hnsw_is_measured_where_it_exists() -> None:
    assert list(cases(["2.5.1"])) == [Case("2.5.1", "FLAT"), Case("2.5.1", "IVF_FLAT")]
    assert Case("3.2.2", "HNSW") in list(cases(["3.2.2"]))


def test_a_missed_target_is_named_with_its_value() -> None:
    row: dict[str, Any] = {
        "dimension": 512,
        "search": {"p50_ms": 50.0},
        "reopen_s": 5.5,
        "memory_serving": {"peak_rss_gb": 2.0},
    }
    assert missed([row]) == ["reopen_s 5.5 at 512-d"]


def worker(code: str) -> Sequence[str]:
    return (sys.executable, "-c", code)


def test_a_worker_is_weighed_with_its_children_while_it_waits(tmp_path: Path) -> None:
    code = f"""
import json, subprocess, sys
held = b"x" * 60_000_000
child = subprocess.Popen([sys.executable, "-c", "x = b'x' * 60_000_000; print(); input()"],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
print("something else")
print({ANSWER!r} + json.dumps({{"given": json.loads(sys.argv[1])}}), flush=True)
sys.stdin.read()
child.communicate(b"\\n")
"""
    answer, memory = run_worker(worker(code), {"a": 1}, cwd=tmp_path, timeout=30)
    assert answer == {"given": {"a": 1}}
    assert 120e6 < memory.idle_pss <= memory.idle_rss <= memory.peak_rss < 300e6


def test_a_worker_without_an_answer_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(WorkerFailed, match="no such luck"):
        run_worker(worker("raise SystemExit('no such luck')"), {}, cwd=tmp_path, timeout=30)


def test_a_worker_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(WorkerFailed):
        run_worker(worker("import time; time.sleep(60)"), {}, cwd=tmp_path, timeout=0.3)
    assert time.monotonic() - begin < 20
    assert not [
        child
        for child in psutil.Process().children(recursive=True)
        if "time.sleep(60)" in child.cmdline()
    ]


def test_the_embedded_default_is_filled_reopened_searched_and_weighed(tmp_path: Path) -> None:
    mapping = expansion(8, 8, seed=0)
    objects = multiply(real_objects(30, 8), 150, mapping, seed=0)
    row = measure_embedded(
        objects,
        make_queries(real_objects(5, 8), 5, mapping),
        embedder=("none", "0" * 64),
        folder=tmp_path,
        repeat=1,
        log=ignore,
    )
    assert (row["objects"], row["dimension"], row["photos"], row["queries"]) == (150, 8, 75, 5)
    assert 0 < row["search"]["p50_ms"] <= row["search"]["p99_ms"]
    assert 0 < row["reopen_s"] < row["service_process_start_s"]
    assert row["memory_serving"]["peak_rss_gb"] > 0.05
    assert missed([row]) == []


def test_a_version_of_milvus_lite_is_measured_against_an_exhaustive_search(tmp_path: Path) -> None:
    mapping = expansion(8, 8, seed=0)
    row = measure_case(
        CHOSEN,
        multiply(real_objects(30, 8), 100, mapping, seed=0),
        make_queries(real_objects(6, 8), 6, mapping),
        python=Path(sys.executable),
        folder=tmp_path,
        log=ignore,
    )
    assert row.get("error") is None
    assert (row["recall_at_10"], row["queries"]) == (1.0, 6)


def test_a_version_that_fails_is_a_row_that_says_so(tmp_path: Path) -> None:
    row = measure_case(
        Case("3.2.2", "HNSW"),
        real_objects(4, 8),
        make_queries(real_objects(4, 8), 4, expansion(8, 8, seed=0)),
        python=Path("false"),
        folder=tmp_path,
        log=ignore,
    )
    assert (row["version"], row["index"], row["error"]) == ("3.2.2", "HNSW", "it printed nothing")
