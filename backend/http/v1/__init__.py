"""The resource API: `/api/v1`."""
