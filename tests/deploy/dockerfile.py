"""The instructions of a Dockerfile."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from docker.utils.build import exclude_paths

from tests.service import REPOSITORY

__all__ = ["Instruction", "context", "exec_form", "final_stage", "instructions"]


@dataclass(frozen=True)
class Instruction:
    """One instruction, its lines joined."""

    name: str
    value: str


def instructions(dockerfile: Path) -> list[Instruction]:
    """All instructions, in order."""
    lines = [
        line for line in dockerfile.read_text("utf-8").splitlines() if not line.startswith("#")
    ]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [
        Instruction(name, value.strip())
        for name, _, value in (line.partition(" ") for line in joined.splitlines() if line)
    ]


def final_stage(dockerfile: Path) -> list[Instruction]:
    """The instructions that make the image, those of stages before it left out."""
    found = instructions(dockerfile)
    start = max(index for index, each in enumerate(found) if each.name == "FROM")
    return found[start:]


def exec_form(value: str) -> list[str]:
    """The command of a CMD or HEALTHCHECK, which starts it without a shell."""
    command: list[str] = json.loads(value[value.index("[") :])
    return command


def context(root: Path = REPOSITORY) -> set[str]:
    """What of a folder Docker gets to see, by the repository's .dockerignore."""
    patterns = (REPOSITORY / ".dockerignore").read_text("utf-8").splitlines()
    return exclude_paths(str(root), patterns)
