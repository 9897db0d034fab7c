"""All endpoints of `/api/v1`."""

from typing import Final

from backend.http.v1 import collections, images, loads, searches

__all__ = ["OPERATIONS"]

OPERATIONS: Final = (
    *searches.OPERATIONS,
    *images.OPERATIONS,
    *loads.OPERATIONS,
    *collections.OPERATIONS,
)
