"""What a load test ends with when it cannot be run."""

__all__ = ["LoadTestError"]


class LoadTestError(Exception):
    """One line for the person who has started it: what is wrong, and what to do."""
