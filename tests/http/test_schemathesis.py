"""Thousands of requests, made from the OpenAPI document, are answered as it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.photos import draw_photo, encode, write_photos
from tests.service import REPOSITORY, start

LEAST_CASES = 2000
CONFIGURATION = """
hooks = "tests.http.schemathesis_hooks"

# Of forms of the existing endpoints their schemas cannot say that they need a photo or a URL, and
# that the names of fields that are passed over must be readable: they may be answered 400.
[[operations]]
include-path = ["/img/search", "/img/upload"]
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "403"]

# An export is more than its schema can say.
[[operations]]
include-path = ["/api/v1/collections/{name}/import"]
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "409"]
"""


def test_generated_requests_are_answered_as_documented(tmp_path: Path) -> None:
    """All of Schemathesis' checks, over all endpoints: no failure."""
    write_photos(tmp_path / "folder", 2)
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)
    service = start(tmp_path, ("--url-fetch", "false"), tmp_path / "data")
    try:
        photo = {"image": encode(draw_photo(0))}
        assert service.post("/api/v1/images", files=photo).status_code == 201
        done = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli"),
                *("--config-file", str(tmp_path / "schemathesis.toml"), "--no-color"),
                *("run", f"{service.url}/openapi.json", "--checks", "all"),
                *("--max-examples", "18", "--seed", "1", "--continue-on-failure"),
            ],
            cwd=tmp_path,  # it leaves files where it runs
            env=os.environ
            | {"PYTHONPATH": str(REPOSITORY), "SCHEMATHESIS_FOLDER": str(tmp_path / "folder")},
            capture_output=True,
            text=True,
            timeout=280,
        )
    finally:
        service.stop()
    assert done.returncode == 0, done.stdout + done.stderr
    [cases] = re.findall(r"([\d,]+) generated", done.stdout)
    assert int(cases.replace(",", "")) >= LEAST_CASES, done.stdout
    assert "event=request.broke" not in service.log.read_text()
