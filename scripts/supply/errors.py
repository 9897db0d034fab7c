"""What ends a command of this package."""

__all__ = ["SupplyError"]


class SupplyError(Exception):
    """One line for the person who has started it: what is wrong, and what to do."""
