"""A small set of annotated photos: rectangles of two kinds on a ground, in the form of VOC's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.photos import encode

LABELS = ("red", "blue")
_COLOURS = ((220, 30, 30), (30, 30, 220))


def write_drawn_set(folder: Path, *, train: int = 8, val: int = 4, side: int = 96) -> Path:
    """Writes ``train`` and ``val``; each photo has one or two objects, its class their colour."""
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        (folder / split / "images").mkdir(parents=True)
        lines = []
        for number in range(count):
            pixels = np.full((side, side, 3), 120, np.uint8)
            objects = []
            for place in range(1 + number % 2):
                label = int(generator.integers(2))
                width, height = generator.integers(side // 4, side // 2, 2).tolist()
                x, y = (generator.random(2) * (side - width, side // 2 - height // 2)).astype(int)
                y += place * side // 2 - place * height // 2
                pixels[y : y + height, x : x + width] = _COLOURS[label]
                box = [int(x), int(y), int(x + width), int(y + height)]
                objects.append({"label": LABELS[label], "box": box, "difficult": False})
            file = f"images/{number}.png"
            (folder / split / file).write_bytes(encode(pixels, ".png"))
            line = {"file": file, "width": side, "height": side, "objects": objects}
            lines.append(json.dumps(line) + "\n")
        (folder / split / "annotations.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def write_labels(path: Path) -> Path:
    path.write_text("".join(f"{label}\n" for label in LABELS), encoding="utf-8")
    return path
