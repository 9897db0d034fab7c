"""README.md, and what it leads to, tell the truth of what can be checked."""

import re

import pytest

from backend.http.compat import OPERATIONS
from scripts.readme_tables import with_tables
from tests.service import REPOSITORY

_README = (REPOSITORY / "README.md").read_text("utf-8")


def test_its_tables_are_the_codes() -> None:
    assert with_tables(_README) == _README, "run python -m scripts.readme_tables"


def test_every_endpoint_is_listed() -> None:
    for operation in OPERATIONS:
        assert f"`{operation.method} {operation.path}`" in _README


@pytest.mark.parametrize("document", ["README.md", "SECURITY.md", "CONTRIBUTING.md"])
def test_linked_files_exist(document: str) -> None:
    text = (REPOSITORY / document).read_text("utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    links += re.findall(r'<img src="([^"]+)"', text)
    for link in links:
        assert (REPOSITORY / link).exists(), link


@pytest.mark.parametrize("document", ["README.md", "SECURITY.md", "CONTRIBUTING.md"])
def test_commands_of_make_exist(document: str) -> None:
    makefile = (REPOSITORY / "Makefile").read_text("utf-8")
    text = (REPOSITORY / document).read_text("utf-8")
    targets = re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE)
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_security_has_one_place_for_the_list_of_attacks() -> None:
    text = (REPOSITORY / "SECURITY.md").read_text("utf-8")
    assert text.count("<!-- attacks -->\n") == text.count("<!-- /attacks -->\n") == 1
    assert text.index("<!-- attacks -->") < text.index("<!-- /attacks -->")
