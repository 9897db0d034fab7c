"""README.md tells the truth of what can be checked."""

import re

from backend.http.compat import OPERATIONS
from scripts.settings_table import with_table
from tests.service import REPOSITORY

_README = (REPOSITORY / "README.md").read_text("utf-8")


def test_the_settings_table_is_the_codes() -> None:
    assert with_table(_README) == _README, "run python -m scripts.settings_table"


def test_every_endpoint_is_listed() -> None:
    for operation in OPERATIONS:
        assert f"`{operation.method} {operation.path}`" in _README


def test_linked_files_exist() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", _README)
    assert links
    for link in links:
        assert (REPOSITORY / link).exists(), link
