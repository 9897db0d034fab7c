"""Writes the tables of README.md from the code: `python -m scripts.readme_tables`."""

from pathlib import Path
from typing import Final

from backend.http.v1.routes import OPERATIONS
from backend.settings import Settings, default_text

__all__ = ["api_table", "settings_table", "with_tables"]

_README: Final = Path(__file__).resolve().parent.parent / "README.md"

# Defaults that depend on the machine are told in words.
_IN_WORDS: Final = {
    "model_repository": "`model_repository`",
    "max_queued": "20 x cores",
}


def settings_table() -> str:
    """A Markdown table of every setting: variable, default, meaning."""
    rows = ["| variable | default | what |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        default = default_text(name)
        shown = _IN_WORDS.get(name) or (f"`{default}`" if default else "")
        rows.append(f"| `{name.upper()}` | {shown} | {field.description} |")
    return "\n".join(rows) + "\n"


def api_table() -> str:
    """A Markdown table of the resource API's calls."""
    rows = ["| call | what |", "| --- | --- |"]
    rows += [f"| `{each.method} {each.path}` | {each.summary} |" for each in OPERATIONS]
    return "\n".join(rows) + "\n"


def with_tables(readme: str) -> str:
    """The README's text with its tables made anew."""
    for name, table in (("settings", settings_table()), ("api", api_table())):
        start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
        before, rest = readme.split(start)
        _, after = rest.split(end)
        readme = before + start + table + end + after
    return readme


if __name__ == "__main__":
    _README.write_text(with_tables(_README.read_text("utf-8")), "utf-8")
