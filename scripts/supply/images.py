"""The containers that docker-compose.yml starts, and those that our Dockerfiles begin with."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml

__all__ = ["ContainerImage", "base_image", "compose_images"]

OURS: Final = "image-search/"


@dataclass(frozen=True)
class ContainerImage:
    """An image by its name, registry included, and its tag."""

    name: str
    tag: str


def compose_images(file: Path) -> list[ContainerImage]:
    """The images that are pulled, each once; those that are built here are left out."""
    services = yaml.safe_load(file.read_text("utf-8"))["services"]
    names = {service["image"] for service in services.values()}
    return sorted(
        (_image(name) for name in names if not name.startswith(OURS)), key=lambda each: each.name
    )


def base_image(dockerfile: Path) -> ContainerImage:
    """What the last stage of a Dockerfile begins with."""
    *_, last = re.findall(r"^FROM (\S+)", dockerfile.read_text("utf-8"), re.MULTILINE)
    return _image(last)


def _image(text: str) -> ContainerImage:
    name, _, tag = text.rpartition(":")
    return ContainerImage(name, tag)
