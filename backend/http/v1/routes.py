"""All endpoints of `/api/v1`."""

from typing import Final

from backend.http.v1 import backups, collections, images, loads, searches, sessions

__all__ = ["OPERATIONS"]

OPERATIONS: Final = (
    *searches.OPERATIONS,
    *images.OPERATIONS,
    *loads.OPERATIONS,
    *collections.OPERATIONS,
    *backups.OPERATIONS,
    *sessions.OPERATIONS,
)
