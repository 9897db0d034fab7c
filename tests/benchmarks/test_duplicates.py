"""The benchmark of duplicates, with the small pair, on a handful of drawn photos."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from backend.duplicates import MAX_BITS, MAX_DISTANCE
from backend.vision.decode import decode
from benchmarks.duplicates import CHANGES, MIRRORED, Copies, false_pairs, main
from tests.photos import draw_photo


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_makes_another_file_of_nearly_the_same_picture(name: str) -> None:
    photo = draw_photo(3)
    data = CHANGES[name](photo, np.random.default_rng(0))
    copy = decode(data, max_pixels=10**6)
    assert data == CHANGES[name](photo, np.random.default_rng(0))
    part = copy.shape[0] / photo.shape[0]
    wanted = 0.5 if "half" in name else 0.97 if "3 %" in name else 0.95 if "5 % of" in name else 1
    assert part == pytest.approx(wanted, abs=0.01)
    brightness = 1.15 if "brighter" in name else 0.85 if "darker" in name else 1
    assert copy.mean() / photo.mean() == pytest.approx(brightness, abs=0.05)


def test_what_is_within_both_limits_is_found() -> None:
    copies = Copies(np.array([0, 4, 10, 64], np.uint8), np.array([0.1, 0.9, 0.2, np.inf]))
    assert copies.found(10, 0.5) == 0.5
    assert copies.found(10, None) == 0.75
    assert copies.found(None, 0.9) == 0.75
    assert copies.found(3, 0.05) == 0


def test_all_pairs_are_counted_by_the_bits_between_them() -> None:
    counts, few = false_pairs([0, 0b111, None, 0, -1], 3)
    assert int(counts.sum()) == 10
    assert {bits: count for bits, count in enumerate(counts.tolist()) if count} == {
        0: 1,
        3: 2,
        61: 1,
        64: 6,
    }
    assert sorted(few) == [(0, 1, 3), (0, 3, 0), (1, 3, 3)]


def test_the_command_prints_the_tables_and_writes_the_report(
    annotated: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "duplicates.json"
    words = ["--data", str(annotated), "--photos", "3", "--gallery", "8", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["duplicates", *words])
    main()
    output = capsys.readouterr()
    assert "Copies of 3 photos" in output.out
    assert "of a million pairs, of 28" in output.out
    assert "copies: mirrored" in output.err
    report = json.loads(path.read_text())
    assert [row["change"] for row in report["changes"]] == list(CHANGES)
    assert report["in_use"] == {"max_bits": MAX_BITS, "max_distance": MAX_DISTANCE}
    for row in report["changes"]:
        assert row["by_both"] <= min(row["by_hash"], row["by_embedding"]) <= 1
    [darker] = [row for row in report["changes"] if row["change"] == "15 % darker"]
    assert darker["by_hash"] == 1
    cells = {(row["max_bits"], row["max_distance"]): row for row in report["limits"]}
    # Both limits together find no more than either alone, rightly and falsely.
    for (bits, distance), row in cells.items():
        for alone in ((bits, None), (None, distance)):
            if alone in cells and bits is not None:
                assert row["recall"] <= cells[alone]["recall"]
        if (bits, None) in cells:
            assert row["false_per_million"] <= cells[bits, None]["false_per_million"]
    in_use = cells[MAX_BITS, MAX_DISTANCE]
    duplicates = [row["by_both"] for row in report["changes"] if row["change"] != MIRRORED]
    assert in_use["recall"] == pytest.approx(np.mean(duplicates), abs=1e-3)
    assert in_use["false_per_million"] == pytest.approx(
        len(report["false_pairs"]) / report["pairs"] * 1e6, abs=1e-3
    )
