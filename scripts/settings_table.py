"""Writes the settings table of README.md from the code: `python -m scripts.settings_table`."""

from pathlib import Path
from typing import Final

from backend.settings import Settings, default_text

__all__ = ["settings_table", "with_table"]

_README: Final = Path(__file__).resolve().parent.parent / "README.md"
_START: Final = "<!-- settings -->\n"
_END: Final = "<!-- end of settings -->\n"

# Defaults that depend on the machine are told in words.
_IN_WORDS: Final = {"model_repository": "`model_repository`", "load_concurrency": "2 x cores"}


def settings_table() -> str:
    """A Markdown table of every setting: variable, default, meaning."""
    rows = ["| variable | default | what |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        default = default_text(name)
        shown = _IN_WORDS.get(name) or (f"`{default}`" if default else "")
        rows.append(f"| `{name.upper()}` | {shown} | {field.description} |")
    return "\n".join(rows) + "\n"


def with_table(readme: str) -> str:
    """The README's text with its settings table made anew."""
    before, rest = readme.split(_START)
    _, after = rest.split(_END)
    return before + _START + settings_table() + _END + after


if __name__ == "__main__":
    _README.write_text(with_table(_README.read_text("utf-8")), "utf-8")
