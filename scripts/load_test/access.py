"""The key of a service that demands one."""

import os
from typing import Final

__all__ = ["authorization"]

_KEY_VARIABLE: Final = "API_KEY"
"""In the environment, since every user of the machine sees a command's arguments."""


def authorization() -> dict[str, str]:
    """The headers that bear the key, if there is one."""
    key = os.environ.get(_KEY_VARIABLE)
    return {"Authorization": f"Bearer {key}"} if key else {}
