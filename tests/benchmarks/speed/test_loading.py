"""Loading beside the networks alone."""

import pytest

from benchmarks.speed import bare, loading
from benchmarks.speed.bench import Bench, photo_files
from benchmarks.speed.networks import ready_tensors


def test_a_load_is_measured_beside_the_networks_alone(bench: Bench) -> None:
    report = loading.measure(bench)
    for title in ("original", "val"):
        found = report[title]
        assert found["rounds"] == 2
        assert 0 < found["spread"]["share_of_bare"][0] <= found["share_of_bare"]
        assert found["cpu_ms"] == pytest.approx(sum(found["parts_ms"].values()))
        assert found["cpu_ms"] == pytest.approx(sum(found["cpu_ms_by"].values()), rel=0.5)
        assert found["parts_ms"]["networks"] > found["parts_ms"]["letterbox"] > 0
        assert found["stages_ms"]["decode"] > 0
        assert found["cpu_ms_by"]["decoders"] > 0
        assert found["analysis_share_of_bare"] > 0
    assert report["share_of_bare"] == report["original"]["share_of_bare"]
    shown = loading.rows(report)
    assert [target for *_, target in shown if target] == [">= 0.90", ">= 0.92"]


def test_the_best_of_all_loops_is_the_ceiling(bench: Bench) -> None:
    files = photo_files(bench.data / "photos" / "images")
    tensors = ready_tensors([path.read_bytes() for path in files])
    best, tried = bare.best_loop(tensors, 2, scale=0.01)
    rates = [each["photos_per_second"] for each in tried]
    assert rates == sorted(rates, reverse=True)
    assert len(tried) > 8
    assert {key: tried[0][key] for key in ("threads", "detector_batch")} == {
        "threads": best.threads,
        "detector_batch": best.detector_batch,
    }
