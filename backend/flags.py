"""Settings on a command line: a flag for each, which goes before the environment."""

import argparse
from typing import Any

from backend.settings import Settings, default_text

__all__ = ["add_settings", "take_settings"]


def add_settings(command: argparse.ArgumentParser) -> None:
    """Adds the settings' flags."""
    group = command.add_argument_group(
        "settings", "Each comes from its flag, else from the environment variable in brackets."
    )
    for field, info in Settings.model_fields.items():
        shown = default_text(field) or "unset"
        group.add_argument(
            f"--{field.replace('_', '-')}",
            metavar="VALUE",
            # A percent sign would be one of argparse's own placeholders.
            help=f"{info.description} [{field.upper()}; default: {shown}]".replace("%", "%%"),
        )


def take_settings(options: dict[str, Any]) -> Settings:
    """The settings of parsed options, from which their flags are taken.

    Raises:
        ConfigurationError: a value is wrong.
    """
    values = {name: options.pop(name) for name in Settings.model_fields}
    # An empty flag counts as unset, as an empty variable does.
    return Settings.load(**{name: value for name, value in values.items() if value})
