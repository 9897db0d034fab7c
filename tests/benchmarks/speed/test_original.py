"""The existing demo's way beside the service, on a few photos."""

from pathlib import Path

import requests

from benchmarks.speed import original
from benchmarks.speed.bench import Bench
from tests.photos import write_photos


def test_the_report_says_how_many_times_faster(bench: Bench) -> None:
    report = original.measure(bench)
    assert report["errors"] == 0
    least, most = report["spread"]["load_speedup"]
    assert 0 < least <= report["load_speedup"] <= most
    for kind in ("load", "blocking_load"):
        for rank in (50, 95):
            assert report[f"search_speedup_during_{kind}_p{rank}"] > 0
    assert len(original.rows(report)) == 4


def test_the_original_way_finds_what_it_has_loaded(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 5)
    with original.serve_original(tmp_path / "data") as url:
        for yields in ("false", "true"):
            answer = requests.post(
                f"{url}/img/load",
                params={"yields": yields},
                json={"File": str(tmp_path / "photos")},
                timeout=60,
            )
            assert answer.status_code == 200
        for photo in photos:
            answer = requests.post(
                f"{url}/img/search", files={"image": photo.read_bytes()}, timeout=60
            )
            [first, *_] = answer.json()
            assert first[0] == str(photo)
            assert abs(first[1]) < 1e-4
