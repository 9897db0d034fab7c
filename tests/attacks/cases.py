"""What an attack is, and the list of all of them."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.attacks.target import Target

__all__ = ["Attack", "Attacks", "Case"]

Attack = Callable[[Target], bool]
"""Attacks a server; whether it got through."""


@dataclass(frozen=True)
class Case:
    """A named attack.

    Attributes:
        kind: the class of attacks that it belongs to.
        tries: what it tries, as SECURITY.md lists it.
    """

    kind: str
    name: str
    tries: str
    attack: Attack


class Attacks:
    """The attacks of one class, in their order."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.cases: list[Case] = []

    def add(self, name: str, tries: str, attack: Attack) -> None:
        """Adds an attack."""
        self.cases.append(Case(self.kind, name, tries, attack))

    def case(self, name: str, tries: str) -> Callable[[Attack], Attack]:
        """Adds the decorated function."""

        def add(attack: Attack) -> Attack:
            self.add(name, tries, attack)
            return attack

        return add
