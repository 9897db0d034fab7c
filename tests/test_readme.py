"""README.md tells the truth of what can be checked."""

import re

from backend.http.compat import OPERATIONS
from scripts.readme_tables import with_tables
from tests.service import REPOSITORY

_README = (REPOSITORY / "README.md").read_text("utf-8")


def test_its_tables_are_the_codes() -> None:
    assert with_tables(_README) == _README, "run python -m scripts.readme_tables"


def test_every_endpoint_is_listed() -> None:
    for operation in OPERATIONS:
        assert f"`{operation.method} {operation.path}`" in _README


def test_linked_files_exist() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", _README)
    links += re.findall(r'<img src="([^"]+)"', _README)
    assert links
    for link in links:
        assert (REPOSITORY / link).exists(), link
