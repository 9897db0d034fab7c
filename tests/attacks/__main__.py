"""Writes the list of attacks into SECURITY.md: `python -m tests.attacks`."""

from tests.attacks.catalog import with_list
from tests.service import REPOSITORY

_SECURITY = REPOSITORY / "SECURITY.md"

if __name__ == "__main__":
    _SECURITY.write_text(with_list(_SECURITY.read_text("utf-8")), "utf-8")
