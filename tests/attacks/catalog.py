"""All attacks, and their list as SECURITY.md has it."""

from collections import Counter
from typing import Final

from tests.attacks import (
    bodies,
    bombs,
    exports,
    fetching,
    headers,
    injection,
    keys,
    origins,
    slow,
    stores,
    telling,
    traversal,
)
from tests.attacks.cases import Case

__all__ = ["CASES", "attacks_list", "with_list"]

CASES: Final[tuple[Case, ...]] = tuple(
    case
    for attacks in (
        traversal.ATTACKS,
        stores.ATTACKS,
        fetching.ATTACKS,
        origins.ORIGINS,
        origins.REBINDING,
        injection.ATTACKS,
        bombs.ATTACKS,
        exports.ATTACKS,
        bodies.MULTIPART,
        bodies.JSON,
        headers.ATTACKS,
        slow.ATTACKS,
        keys.ATTACKS,
        telling.FORGING,
        telling.LEAKS,
    )
    for case in attacks.cases
)

_START: Final = "<!-- attacks -->"
_END: Final = "<!-- /attacks -->"


def attacks_list() -> str:
    """Every attack in Markdown: a heading with their number for each class, and a line each."""
    counts = Counter(case.kind for case in CASES)
    lines = [f"{len(CASES)} attacks of {len(counts)} classes.", ""]
    for kind, count in counts.items():
        lines += [f"### {kind[0].upper()}{kind[1:]} ({count})", ""]
        lines += [
            f"- {_escaped(case.name)}: {_escaped(case.tries)}"
            for case in CASES
            if case.kind == kind
        ]
        lines.append("")
    return "\n".join(lines)


def with_list(security: str) -> str:
    """The text of SECURITY.md with its list made anew."""
    before, rest = security.split(_START)
    _, after = rest.split(_END)
    return f"{before}{_START}\n{attacks_list()}{_END}{after}"


def _escaped(text: str) -> str:
    """Text of which Markdown takes nothing but what stands between backticks for a sign."""
    shown = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text.strip())
    return "".join(f"\\{char}" if char in "\\*[]<>" else char for char in shown)
