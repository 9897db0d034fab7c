"""The form of every benchmark's report."""

import json
from pathlib import Path

from benchmarks.reporting import environment, rounded, write_json


def test_floats_are_rounded_however_deep_and_nothing_else_is_changed() -> None:
    report = {"a": 0.123456, "b": {"c": [1, 2.000049, {"d": 1 / 3}]}, "e": True, "f": None}
    assert rounded(report) == {
        "a": 0.1235,
        "b": {"c": [1, 2.0, {"d": 0.3333}]},
        "e": True,
        "f": None,
    }


def test_an_environment_names_the_versions_that_figures_depend_on() -> None:
    versions = environment("rich")["versions"]
    assert versions.keys() >= {"python", "numpy", "onnxruntime", "rich"}


def test_a_report_is_written_a_value_a_line(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.json"
    write_json(path, {"a": 1, "b": [2]})
    assert json.loads(path.read_text()) == {"a": 1, "b": [2]}
    assert len(path.read_text().splitlines()) > 3
