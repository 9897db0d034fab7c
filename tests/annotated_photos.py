"""Annotated photos that are drawn on the spot, in the form of PASCAL VOC's that is read here."""

import json
from pathlib import Path

import cv2
import numpy as np

from tests.photos import encode

_COLOURS = {"cat": (200, 40, 40), "bus": (40, 60, 200), "sheep": (235, 235, 225)}
LABELS = tuple(_COLOURS)
SIDE = 240
"""Width and height of every photo."""


def write_split(folder: Path, count: int, *, seed: int) -> None:
    """Photos of two objects each on noise, annotated; objects of a label have one look.

    The first object of every third photo is marked difficult.
    """
    random = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    lines = []
    for number in range(count):
        photo = random.integers(90, 150, (SIDE, SIDE, 3)).astype(np.uint8)
        objects = []
        for place, label in enumerate(random.choice(list(_COLOURS), 2).tolist()):
            width, height = (int(side) for side in random.integers(60, 100, 2))
            left, top = 10 + place * 120, int(random.integers(10, 120))
            cv2.rectangle(
                photo, (left, top), (left + width - 1, top + height - 1), _COLOURS[label], -1
            )
            centre = (left + width // 2, top + height // 2)
            cv2.circle(photo, centre, 15, _COLOURS[label][::-1], -1)
            box = [left, top, left + width, top + height]
            difficult = int(number % 3 == 0 and place == 0)
            objects.append({"label": label, "box": box, "difficult": difficult})
        name = f"images/{number:03d}.jpg"
        (folder / name).write_bytes(encode(photo))
        entry = {"file": name, "width": SIDE, "height": SIDE, "objects": objects}
        lines.append(json.dumps(entry) + "\n")
    (folder / "annotations.jsonl").write_text("".join(lines), "utf-8")
