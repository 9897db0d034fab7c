"""docker-compose.yml as Docker Compose reads it, without Docker."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import yaml
from dotenv import dotenv_values

from tests.service import REPOSITORY

__all__ = ["EXAMPLE", "PASSWORD", "SERVICES", "TEXT", "Use", "resolved", "uses"]

FILE: Final = REPOSITORY / "docker-compose.yml"
TEXT: Final = FILE.read_text("utf-8")

_VARIABLE: Final = re.compile(r"\$\$|\$\{(?P<name>\w+)(?::(?P<sort>[-?])(?P<word>[^}]*))?\}|\$")

EXAMPLE: Final[Mapping[str, str]] = {
    name: value or "" for name, value in dotenv_values(REPOSITORY / ".env.example").items()
}
"""The variables of .env.example."""

PASSWORD: Final = "Secret123"


@dataclass(frozen=True)
class Use:
    """A place that takes a variable: what it falls back on, or says where the variable is unset."""

    name: str
    default: str | None
    message: str | None


def uses() -> Iterator[Use]:
    """Every use of a variable."""
    for text in _texts(yaml.safe_load(TEXT)):
        for match in _VARIABLE.finditer(text):
            assert match[0] != "$", f"a lone $ in {text!r}"
            if match["name"]:
                word, sort = match["word"], match["sort"]
                yield Use(
                    match["name"],
                    word if sort == "-" else None,
                    word if sort == "?" else None,
                )


def resolved(variables: Mapping[str, str]) -> dict[str, Any]:
    """The file's content with variables filled in; an empty one counts as unset."""

    def fill(value: Any) -> Any:
        match value:
            case str():
                return _VARIABLE.sub(lambda match: _filled(match, variables), value)
            case list():
                return [fill(item) for item in value]
            case dict():
                return {key: fill(item) for key, item in value.items()}
        return value

    content: dict[str, Any] = fill(yaml.safe_load(TEXT))
    return content


def _filled(match: re.Match[str], variables: Mapping[str, str]) -> str:
    if match[0] == "$$":
        return "$"
    if value := variables.get(match["name"], ""):
        return value
    assert match["sort"] != "?", f"{match['name']}: {match['word']}"
    return match["word"] or ""


def _texts(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case list():
            for item in value:
                yield from _texts(item)
        case dict():
            for item in value.values():
                yield from _texts(item)


def _example_filled_in() -> dict[str, str]:
    return {name: PASSWORD if "PASSWORD" in name else value for name, value in EXAMPLE.items()}


SERVICES: Final[dict[str, dict[str, Any]]] = resolved(_example_filled_in())["services"]
"""The services of somebody who has copied .env.example and filled in the passwords."""
