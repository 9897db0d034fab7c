"""Who waits for something: requests, which have a deadline, before loads, which have none."""

from collections import deque
from collections.abc import Iterator
from itertools import chain
from typing import Generic, TypeVar

from backend.deadlines import has_deadline

__all__ = ["Precedence"]

_T = TypeVar("_T")


class Precedence(Generic[_T]):
    """A queue of things that are wanted; those of requests come first, each kind in its order.

    It is false where nobody waits. Threads may add and take at the same time.
    """

    def __init__(self) -> None:
        self._urgent: deque[_T] = deque()
        self._patient: deque[_T] = deque()

    def add(self, item: _T) -> None:
        """Has it wait, as what the caller is: part of a request, or of a load."""
        (self._urgent if has_deadline() else self._patient).append(item)

    def first(self) -> _T:
        """Whose turn it is. Raises IndexError where nobody waits."""
        return (self._urgent or self._patient)[0]

    def take(self) -> _T:
        """As `first`, and takes it out."""
        try:
            return self._urgent.popleft()
        except IndexError:  # not looked at before: another thread might be faster
            return self._patient.popleft()

    def discard(self, item: _T) -> bool:
        """Takes one out whose turn has not come; returns whether it was there."""
        for items in (self._urgent, self._patient):
            if item in items:
                items.remove(item)
                return True
        return False

    def __bool__(self) -> bool:
        return bool(self._urgent or self._patient)

    def __iter__(self) -> Iterator[_T]:
        """In the order of their turns."""
        return chain(self._urgent, self._patient)
